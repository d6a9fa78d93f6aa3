//! Faults, and the checkers that judge what is left after them.

pub mod disk;
pub mod power_cut;
