//! Every transport, end to end: upload and watch.
