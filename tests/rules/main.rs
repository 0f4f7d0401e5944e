//! House rules: import directions, sizes, purity, and documents that keep up with the code.
