//! Clients that are not ours.
