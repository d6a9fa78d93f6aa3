//! Which run of which replica speaks to this one.
//!
//! A host whose data folder was copied, and one that was given the number of
//! another one, say that they are a replica that speaks already. Certificates do
//! not tell them apart. But each run of a process has a number of its own, drawn
//! at random: while one run of a replica is connected here, no other one is
//! talked to under its number. A replica that was started anew is, as soon as
//! its old connections have ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::domain::ReplicaId;

/// How often it is told that two runs speak for one replica.
const TELL_INTERVAL: Duration = Duration::from_mins(1);

/// A run of a replica's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run([u8; 16]);

impl Run {
    /// A new one.
    pub fn random() -> Self {
        Self(*uuid::Uuid::new_v4().as_bytes())
    }
}

/// The runs that are connected here.
#[derive(Debug, Default)]
pub struct Runs {
    connected: Mutex<BTreeMap<ReplicaId, Connected>>,
}

#[derive(Debug)]
struct Connected {
    run: Run,
    connections: usize,
    told_at: Option<Instant>,
}

/// One connection of a run. It ends with this.
#[derive(Debug)]
pub struct Visit {
    runs: Arc<Runs>,
    replica: ReplicaId,
}

impl Runs {
    fn connected(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, Connected>> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a connection. Nothing comes of one while another run of
    /// its replica is connected.
    pub fn enter(self: &Arc<Self>, replica: ReplicaId, run: Run) -> Option<Visit> {
        let mut connected = self.connected();
        let known = connected.entry(replica).or_insert(Connected { run, connections: 0, told_at: None });
        if known.run != run {
            if known.told_at.is_none_or(|at| at.elapsed() >= TELL_INTERVAL) {
                known.told_at = Some(Instant::now());
                tracing::error!(%replica, "two processes say that they are this replica; the later one is not talked to");
            }
            return None;
        }
        known.connections += 1;
        Some(Visit { runs: Arc::clone(self), replica })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut connected = self.runs.connected();
        if let Some(known) = connected.get_mut(&self.replica) {
            known.connections -= 1;
            if known.connections == 0 {
                connected.remove(&self.replica);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_of_a_replica_is_connected_at_a_time() {
        let runs = Arc::new(Runs::default());
        let (first, second) = (Run::random(), Run::random());
        let visits = [(); 2].map(|()| runs.enter(ReplicaId(2), first).expect("nobody else is there"));
        assert!(runs.enter(ReplicaId(2), second).is_none());
        assert!(runs.enter(ReplicaId(3), second).is_some(), "another replica");
        let [one, other] = visits;
        drop(one);
        assert!(runs.enter(ReplicaId(2), second).is_none(), "a connection is left");
        drop(other);
        assert!(runs.enter(ReplicaId(2), second).is_some(), "it was started anew");
        assert!(runs.connected().is_empty());
    }
}
