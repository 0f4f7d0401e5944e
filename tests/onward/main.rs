//! The way to the core: refusals, budget, order of mercy.
