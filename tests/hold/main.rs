//! What is held through kills, restarts and an absent core.
