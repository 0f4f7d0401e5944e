//! Every transport, end to end: upload and watch.

mod abandoned;
mod bad;
mod capability;
mod limits;
mod post;
mod reset;
mod rivals;
mod upload;
mod watch;
