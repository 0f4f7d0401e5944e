//! Every transport, end to end: upload and watch.

mod abandoned;
mod bad;
mod capability;
mod dialects;
mod limits;
mod reset;
mod rivals;
mod upload;
mod watch;
