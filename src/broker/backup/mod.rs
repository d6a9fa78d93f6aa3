//! Backups: the state of a cluster in one file, and a new cluster of it.
//!
//! - `format.rs`: the file,
//! - `make.rs`: a running replica makes one,
//! - `restore.rs`: an empty data folder begins with one.

pub mod format;
mod make;
pub mod restore;

pub use make::routes;
