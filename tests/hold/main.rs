//! A staged chunk is not lost, whatever happens to the client, the relay or the core (promise 3);
//! what the relay says of itself meanwhile; and that nothing of it names anybody (promise 7).

mod away;
mod canary;
mod crash;
mod ops;
mod process;
mod queue;
mod syncs;
mod way;
