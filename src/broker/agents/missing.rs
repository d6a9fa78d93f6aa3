//! Tells the log which replicas are not heard of.
//!
//! The replica that leads hears from all others many times a second. One that
//! it has not heard of for [`SILENT_AFTER`] is gone or cut off, and what agents
//! it held are elsewhere or will be (`docs/agent.md`); the log should know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::broker::core::Broker;
use crate::domain::{Command, Fleet, ReplicaId};

/// A replica that was not heard of for so long counts as gone.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Looks, as long as this replica runs, for replicas that are not heard of and
/// hold agents by what the log says, and tells the log so.
///
/// `last_heard` says how long ago each of the other replicas was last heard of
/// (since this one began to lead, when it was not heard of since then), and
/// nothing at all while this replica does not lead.
pub async fn report_missing(
    broker: Arc<Broker>,
    last_heard: impl Fn() -> BTreeMap<ReplicaId, Duration> + Send + 'static,
    shutdown: CancellationToken,
) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        let silent = silent(&last_heard(), broker.id());
        if silent.is_empty() {
            continue;
        }
        // Looked at again and again: what a replica said before it fell silent
        // may reach the log after that.
        let missing = holding(&broker.fleet(), &silent);
        if missing.is_empty() {
            continue;
        }
        tracing::warn!(replicas = ?missing, "replicas are not heard of; their agents count as no longer connected");
        let commands = missing.into_iter().map(|replica| Command::ReplicaSilent { replica }).collect();
        let proposed = tokio::select! {
            () = shutdown.cancelled() => return,
            proposed = broker.propose(commands) => proposed,
        };
        if let Err(error) = proposed {
            tracing::debug!(%error, "the log was not told which replicas are missing");
        }
    }
}

/// Who was not heard of for too long.
fn silent(last_heard: &BTreeMap<ReplicaId, Duration>, own: ReplicaId) -> Vec<ReplicaId> {
    let silent = last_heard.iter().filter(|(replica, ago)| **replica != own && **ago >= SILENT_AFTER);
    silent.map(|(replica, _)| *replica).collect()
}

/// Those of some replicas that hold an agent, as far as the log knows.
fn holding(fleet: &Fleet, replicas: &[ReplicaId]) -> Vec<ReplicaId> {
    let holds = |replica: &ReplicaId| fleet.servers().any(|server| server.link.held_by() == Some(*replica));
    replicas.iter().copied().filter(holds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_silent_after_three_seconds_and_never_oneself() {
        let heard = [(1, 9_000), (2, 2_999), (3, 3_000), (4, 0)];
        let heard = heard.map(|(replica, ms)| (ReplicaId(replica), Duration::from_millis(ms))).into();
        assert_eq!(silent(&heard, ReplicaId(1)), [ReplicaId(3)]);
        assert!(silent(&BTreeMap::new(), ReplicaId(1)).is_empty());
    }
}
