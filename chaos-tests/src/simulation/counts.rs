//! How much happened.

use std::collections::BTreeMap;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that clients called.
    pub called: u64,
    /// Those that were carried out or answered.
    pub succeeded: u64,
    /// Those whose outcome nobody knows.
    pub unknown: u64,
    /// Entries of the log that were compared between replicas.
    pub compared: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Faults that really struck, by name.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// A fault struck.
    pub fn fault(&mut self, name: &'static str, times: u64) {
        if times > 0 {
            *self.faults.entry(name).or_default() += times;
        }
    }

    /// Adds those of another world.
    pub fn add(&mut self, other: &Self) {
        self.called += other.called;
        self.succeeded += other.succeeded;
        self.unknown += other.unknown;
        self.compared += other.compared;
        self.simulated_ms += other.simulated_ms;
        for (name, times) in &other.faults {
            self.fault(name, *times);
        }
    }
}
