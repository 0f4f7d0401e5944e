//! The drop-in routes against a core written from the contract.
