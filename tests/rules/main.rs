//! House rules as tests: who may import whom, what the rules may touch, how long a file may be, what the
//! relay must not be able to do, and that the book says what the code does.
//!
//! `UPDATE_DOCS=1` rewrites the generated tables of the book; then read the difference.

mod blind;
mod book;
mod deploy;
mod forbidden;
mod fuzz;
mod layers;
mod limits;
mod links;
mod metrics;
mod sizes;
mod source;
mod table;
