//! What tests and benchmarks of several crates share: replicas in one process.

mod ledger;
mod network;
pub mod simulation;

pub use ledger::{Command, Effect, Ledger, Outcome};
pub use network::LocalNetwork;
