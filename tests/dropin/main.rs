//! The drop-in routes (contract, section B) and what they must never leak (section C), against a
//! core written from section A of the contract.

mod core;
mod form;
mod holds;
mod leaks;
mod mercy;
mod routes;
mod spool;
mod upload;
mod watch;
mod world;
