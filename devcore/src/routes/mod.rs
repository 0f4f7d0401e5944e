//! The routes: each reads its call in the order the contract gives.

pub(crate) mod account;
pub(crate) mod chunks;
pub(crate) mod contact;
pub(crate) mod control;
pub(crate) mod form;
pub(crate) mod grants;
pub(crate) mod groups;
pub(crate) mod keeping;
pub(crate) mod keys;
pub(crate) mod relay;
