//! What tests and benchmarks of several crates share: replicas in one process.

mod ledger;
mod network;

pub use ledger::{Command, Effect, Ledger, Outcome, Skew};
pub use network::LocalNetwork;
