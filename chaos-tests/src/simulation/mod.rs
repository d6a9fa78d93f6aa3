//! A cluster in one thread: real replicas of the real fleet, on a simulated
//! network, with simulated disks, clocks, agents and clients, under faults. All
//! of it is a function of one number, and runs some thousand times faster than
//! the clock.
//!
//! - [`world`]: a life from the first start to the last check,
//! - [`nodes`]: the machines that replicas run on; [`clock`], [`disks`]: what
//!   they have,
//! - [`machine`]: the fleet, and what can be wrong with it on purpose,
//! - [`network`]: how replicas reach each other,
//! - [`clients`]: who makes load, and [`history`]: what was asked and answered,
//! - [`agents`]: desktop hosts,
//! - [`nemesis`]: what breaks, and [`operators`]: who adds and removes replicas
//!   meanwhile,
//! - [`judge`]: what must hold all the time, [`configurations`]: also of those
//!   who vote; [`registers`], [`stories`], [`accounts`]: and what of the history
//!   in the end,
//! - [`broken`]: variants that the judges must catch,
//! - [`trace`]: what happened, and [`counts`] of it.
//!
//! `cargo run --release -p berth-chaos-tests --bin simulate` runs many.

pub mod accounts;
pub mod agents;
pub mod broken;
pub mod clients;
pub mod clock;
pub mod configurations;
pub mod counts;
pub mod disks;
pub mod history;
pub mod judge;
pub mod machine;
pub mod nemesis;
pub mod network;
pub mod nodes;
pub mod operators;
pub mod registers;
pub mod stories;
pub mod trace;
pub mod world;

use berth_raft::testing::simulation;

pub use broken::Broken;
pub use counts::Counts;

/// How a world is to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    /// What is wrong with it on purpose.
    pub broken: Option<Broken>,
    /// Print what happens while it does.
    pub verbose: bool,
}

/// How it went.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its number.
    pub seed: u64,
    /// What must not be; empty if all is well.
    pub violations: Vec<String>,
    /// Changes with everything that happened.
    pub fingerprint: u64,
    /// The last of what happened.
    pub trace: Vec<String>,
    /// How much of what.
    pub counts: Counts,
}

/// Fewer operations that succeeded do not count as a life.
pub const OPERATIONS_MIN: u64 = 25;

impl Report {
    /// Whether enough happened for the rest to mean anything.
    pub fn counts_as_life(&self) -> bool {
        self.counts.succeeded >= OPERATIONS_MIN
    }
}

/// Runs the world of a seed.
///
/// # Panics
/// When the operating system gives no timer, and when the world itself has a
/// defect.
pub fn run(seed: u64, plan: Plan) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without input and output needs nothing");
    let (mut report, panics) = simulation::run(&runtime, seed, world::live(seed, plan));
    report.violations.extend(panics.into_iter().map(|text| format!("a task panicked: {text}")));
    report
}
