//! Every transport, end to end: upload and watch.

mod abandoned;
mod ahead;
mod bad;
mod capability;
mod dialects;
mod early;
mod ends;
mod grant;
mod hint;
mod limits;
mod named;
mod post;
mod reauthorized;
mod reset;
mod resumes;
mod returns;
mod rivals;
mod signs;
mod slow;
mod upload;
mod watch;
mod webtransport;
