//! Which run of which replica speaks to this one.
//!
//! A host whose data folder was copied, and one that was given the number of
//! another one, say that they are a replica that speaks already. Certificates do
//! not tell them apart. But each run of a process has a number of its own, drawn
//! at random: while one run of a replica is connected here, no other one is
//! talked to under its number. A replica that was started anew is, as soon as
//! its old connections have ended.
//!
//! A run that came while another one was there, and that other one went on
//! speaking, is no replica that was started anew. It is remembered, and not
//! talked to either when the other one is down for a moment. Who comes first is
//! taken for the replica: a copy that starts while it is down is not noticed
//! here before both run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::domain::ReplicaId;

/// How often it is told that two runs speak for one replica.
const TELL_INTERVAL: Duration = Duration::from_mins(1);
/// So long after a run was refused, a word of the one that is connected shows
/// that both run. Longer than a connection lasts whose other end is gone: what a
/// process that has ended said last may come late.
const DOUBLED_AFTER: Duration = Duration::from_secs(15);
/// Runs of one replica that are remembered; the oldest are forgotten.
const IMPOSTORS_MAX: usize = 8;

/// A run of a replica's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run([u8; 16]);

impl Run {
    /// A new one.
    pub fn random() -> Self {
        Self(*uuid::Uuid::new_v4().as_bytes())
    }
}

/// The runs that are connected here, and those that must not be.
#[derive(Debug, Default)]
pub struct Runs {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    connected: BTreeMap<ReplicaId, Connected>,
    /// Runs that ran beside the one that was connected.
    impostors: BTreeMap<ReplicaId, VecDeque<Run>>,
}

#[derive(Debug)]
struct Connected {
    run: Run,
    connections: usize,
    told_at: Option<Instant>,
    /// Other runs that came, and when they first did; the earliest first.
    refused: VecDeque<(Run, Instant)>,
    /// Whether there are any.
    is_contested: Arc<AtomicBool>,
}

/// One connection of a run. It ends with this.
#[derive(Debug)]
pub struct Visit {
    runs: Arc<Runs>,
    replica: ReplicaId,
    is_contested: Arc<AtomicBool>,
}

impl Runs {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Plain data: a panic elsewhere leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a connection. Nothing comes of one while another run of
    /// its replica is connected, nor of one that ran beside another.
    pub fn enter(self: &Arc<Self>, replica: ReplicaId, run: Run) -> Option<Visit> {
        self.enter_at(Instant::now(), replica, run)
    }

    fn enter_at(self: &Arc<Self>, now: Instant, replica: ReplicaId, run: Run) -> Option<Visit> {
        let mut known = self.known();
        if known.impostors.get(&replica).is_some_and(|runs| runs.contains(&run)) {
            return None;
        }
        let holder = known.connected.entry(replica).or_insert_with(|| Connected {
            run,
            connections: 0,
            told_at: None,
            refused: VecDeque::new(),
            is_contested: Arc::default(),
        });
        if holder.run != run {
            if holder.told_at.is_none_or(|at| now.duration_since(at) >= TELL_INTERVAL) {
                holder.told_at = Some(now);
                tracing::error!(%replica, "two processes say that they are this replica; the later one is not talked to");
            }
            let is_noted = holder.refused.iter().any(|(refused, _)| *refused == run);
            if !is_noted && holder.refused.len() < IMPOSTORS_MAX {
                holder.refused.push_back((run, now));
                holder.is_contested.store(true, Ordering::Relaxed);
            }
            return None;
        }
        holder.connections += 1;
        let is_contested = Arc::clone(&holder.is_contested);
        Some(Visit { runs: Arc::clone(self), replica, is_contested })
    }

    /// The run of a replica that is connected has spoken: those that were
    /// refused long enough ago run beside it.
    fn spoke(&self, now: Instant, replica: ReplicaId) {
        let mut known = self.known();
        let Known { connected, impostors } = &mut *known;
        let Some(holder) = connected.get_mut(&replica) else { return };
        while let Some((run, _)) = holder.refused.pop_front_if(|(_, at)| now.duration_since(*at) >= DOUBLED_AFTER) {
            let marked = impostors.entry(replica).or_default();
            if marked.len() >= IMPOSTORS_MAX {
                marked.pop_front();
            }
            marked.push_back(run);
            tracing::error!(
                %replica,
                "two processes are this replica, one of a copied data folder; the later one is not talked to before \
                 it is started anew: stop it"
            );
        }
        holder.is_contested.store(!holder.refused.is_empty(), Ordering::Relaxed);
    }
}

impl Visit {
    /// Something came on this connection.
    pub fn heard(&self) {
        // Looked at for each frame, and nearly never so.
        if self.is_contested.load(Ordering::Relaxed) {
            self.runs.spoke(Instant::now(), self.replica);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut known = self.runs.known();
        if let Some(holder) = known.connected.get_mut(&self.replica) {
            holder.connections -= 1;
            if holder.connections == 0 {
                known.connected.remove(&self.replica);
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
        assert!(runs.known().connected.is_empty());
    }

    /// Runs with one connected, and another that was refused at this moment.
    fn contested(now: Instant) -> (Arc<Runs>, Visit, Run) {
        let (runs, late) = (Arc::<Runs>::default(), Run::random());
        let visit = runs.enter_at(now, ReplicaId(2), Run::random()).expect("nobody else is there");
        assert!(!visit.is_contested.load(Ordering::Relaxed));
        assert!(runs.enter_at(now, ReplicaId(2), late).is_none());
        assert!(visit.is_contested.load(Ordering::Relaxed));
        (runs, visit, late)
    }

    #[test]
    fn a_run_beside_another_one_is_refused_also_when_that_has_gone() {
        let began = Instant::now();
        let (runs, visit, late) = contested(began);
        runs.spoke(began + DOUBLED_AFTER, ReplicaId(2));
        assert!(!visit.is_contested.load(Ordering::Relaxed), "it is settled");
        drop(visit);
        assert!(runs.enter(ReplicaId(2), late).is_none());
        assert!(runs.enter(ReplicaId(3), late).is_some(), "another replica");
        let visit = runs.enter(ReplicaId(2), Run::random()).expect("the rightful one was started anew");

        // A few are remembered.
        for _ in 0..=IMPOSTORS_MAX {
            assert!(runs.enter_at(began, ReplicaId(2), Run::random()).is_none());
        }
        runs.spoke(began + DOUBLED_AFTER, ReplicaId(2));
        drop(visit);
        assert_eq!(runs.known().impostors[&ReplicaId(2)].len(), IMPOSTORS_MAX);
        assert!(runs.enter(ReplicaId(2), late).is_some(), "the oldest is forgotten");
    }

    #[test]
    fn a_replica_that_was_started_anew_is_let_in_whatever_came_late_of_its_old_run() {
        let began = Instant::now();
        let (runs, visit, anew) = contested(began);
        // What was on its way still comes, and then nothing.
        runs.spoke(began + DOUBLED_AFTER / 2, ReplicaId(2));
        visit.heard();
        assert!(visit.is_contested.load(Ordering::Relaxed));
        drop(visit);
        assert!(runs.enter(ReplicaId(2), anew).is_some());
    }
}
