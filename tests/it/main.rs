//! The system as its users see it.

mod limits;
mod upload;
