//! Berth.
pub mod domain;
pub mod protocol;
