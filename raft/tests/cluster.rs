//! Three replicas in one process: elections, forwarding, catching up.
#![allow(clippy::unwrap_used)]

use berth_raft::testing::{Command, Effect, Ledger, LocalNetwork};
use berth_raft::{
    Config, Formation, LogIndex, Member, ProposeError, ReadError, Replica, ReplicaId, StartError, SystemClock,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_mins(1);

fn add(id: u64) -> Command {
    Command::Add { id, amount: 1, padding: vec![0; 100] }
}

fn member(id: u64) -> Member {
    Member { address: format!("replica-{id}"), folder: format!("folder-{id}") }
}

fn formation(ids: std::ops::RangeInclusive<u64>) -> Formation {
    Formation::Members(ids.map(|id| (ReplicaId(id), member(id))).collect())
}

struct Cluster {
    network: LocalNetwork,
    folders: BTreeMap<ReplicaId, TempDir>,
    running: BTreeMap<ReplicaId, Replica<Ledger>>,
    observed: Arc<Observed>,
}

/// What the observers of all replicas noticed.
#[derive(Default)]
struct Observed {
    /// How often one was told of a state that could not be read yet.
    invisible: AtomicU64,
    /// How often a running replica was told that its whole state was replaced.
    replaced: AtomicU64,
}

impl Cluster {
    async fn of_three() -> Self {
        let mut cluster = Self {
            network: LocalNetwork::new(),
            folders: BTreeMap::new(),
            running: BTreeMap::new(),
            observed: Arc::default(),
        };
        for id in (1..=3).map(ReplicaId) {
            let folder = tempfile::tempdir().unwrap();
            cluster.folders.insert(id, folder);
            cluster.start(id).await;
        }
        cluster
    }

    async fn start(&mut self, id: ReplicaId) {
        let mut config = Config::new(self.folders[&id].path(), id);
        config.election_timeout_ms = 600;
        config.heartbeat_ms = 200;
        config.keep_entries = 5;
        config.request_timeout_ms = 5_000;
        let handle = Arc::new(OnceLock::<Replica<Ledger>>::new());
        let observer = {
            let (handle, observed) = (Arc::clone(&handle), Arc::clone(&self.observed));
            Arc::new(move |told: &Ledger, effects: &[Effect]| {
                let Some(replica) = handle.get() else { return };
                if effects.is_empty() {
                    observed.replaced.fetch_add(1, Ordering::Relaxed);
                }
                if replica.local().state.total < told.total {
                    observed.invisible.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let replica = Replica::start_with_peers(
            config,
            Arc::new(SystemClock),
            Ledger::default(),
            observer,
            self.network.peers_of(id),
            formation(1..=3),
        )
        .await
        .unwrap();
        handle.set(replica.clone()).unwrap();
        self.network.connect(&replica);
        self.running.insert(id, replica);
    }

    async fn stop(&mut self, id: ReplicaId) {
        self.network.disconnect(id);
        let replica = self.running.remove(&id).unwrap();
        replica.stop().await.unwrap();
    }

    /// The replica that leads and that the others follow.
    async fn leader(&self, among: &[ReplicaId]) -> ReplicaId {
        let agreed = timeout(PATIENCE, async {
            loop {
                let leaders: BTreeSet<_> = among.iter().map(|id| self.running[id].status().leader).collect();
                let leader = leaders.first().copied().flatten();
                if let Some(leader) = leader.filter(|leader| among.contains(leader))
                    && leaders.len() == 1
                {
                    return leader;
                }
                sleep(Duration::from_millis(10)).await;
            }
        });
        agreed.await.expect("a leader that all agree on")
    }

    fn all(&self) -> Vec<ReplicaId> {
        self.running.keys().copied().collect()
    }

    fn others(&self, than: ReplicaId) -> Vec<ReplicaId> {
        self.all().into_iter().filter(|id| *id != than).collect()
    }

    /// Proposes until it is acknowledged; only for commands whose repetition does not matter.
    async fn write(&self, through: ReplicaId, id: u64) -> LogIndex {
        let written = timeout(PATIENCE, async {
            loop {
                match self.running[&through].propose(vec![add(id)]).await {
                    Ok(proposed) => return proposed.index,
                    Err(ProposeError::NoLeader { .. } | ProposeError::OutcomeUnknown) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        });
        written.await.expect("a write that is acknowledged")
    }

    async fn applied(&self, id: ReplicaId, index: LogIndex) {
        let mut applied = self.running[&id].applied();
        let reached = applied.wait_for(|applied| *applied >= index);
        timeout(PATIENCE, reached).await.unwrap().unwrap();
    }

    async fn stop_all(mut self) {
        for id in self.all() {
            self.stop(id).await;
        }
        assert_eq!(self.observed.invisible.load(Ordering::Relaxed), 0, "states told of before they could be read");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_takes_writes_and_reads_its_own() {
    let cluster = Cluster::of_three().await;
    cluster.leader(&cluster.all()).await;
    for (id, replica) in &cluster.running {
        for call in 0..5 {
            let proposed = replica.propose(vec![add(id.0 * 10 + call)]).await.unwrap();
            assert_eq!(proposed.outcomes[0].times, 1);
            assert!(replica.local().index >= proposed.index);
        }
    }
    for replica in cluster.running.values() {
        let view = replica.read().await.unwrap();
        assert_eq!((view.state.total, view.state.seen.len()), (15, 15));
        assert!(!view.state.ran_backwards);
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_leader_costs_no_acknowledged_write() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader(&cluster.all()).await;
    for id in 0..20 {
        cluster.write(leader, id).await;
    }
    cluster.stop(leader).await;
    let rest = cluster.all();
    let second = cluster.leader(&rest).await;
    for id in 20..40 {
        cluster.write(rest[0], id).await;
    }
    let state = cluster.running[&second].read().await.unwrap().state;
    assert!((0..40).all(|id| state.seen.contains(id)));

    // The dead one comes back and catches up from the log.
    cluster.start(leader).await;
    let last = cluster.write(second, 40).await;
    cluster.applied(leader, last).await;
    let states = cluster.all().into_iter();
    let states: Vec<Ledger> = states.map(|id| cluster.running[&id].local().state.as_ref().clone()).collect();
    assert!(states.iter().all(|state| *state == states[0]));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_missed_what_was_purged_catches_up_by_a_snapshot() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader(&cluster.all()).await;
    let away = cluster.others(leader)[0];
    cluster.write(leader, 0).await;
    cluster.stop(away).await;
    for id in 1..60 {
        cluster.write(leader, id).await;
    }
    let covered = cluster.running[&leader].trigger_snapshot().await.unwrap();
    let purged = timeout(PATIENCE, async {
        while cluster.running[&leader].status().purged < Some(LogIndex(covered.0 - 10)) {
            sleep(Duration::from_millis(5)).await;
        }
    });
    purged.await.unwrap();
    assert_eq!(cluster.network.snapshot_chunks(), 0);

    cluster.start(away).await;
    let last = cluster.write(leader, 60).await;
    cluster.applied(away, last).await;
    assert!(cluster.network.snapshot_chunks() > 0);
    assert!(cluster.observed.replaced.load(Ordering::Relaxed) > 0);
    let state = cluster.running[&away].local().state;
    assert!((0..=60).all(|id| state.seen.contains(id)));
    assert_eq!(*state, *cluster.running[&leader].local().state);

    // What was installed is still there after a restart.
    cluster.stop(away).await;
    cluster.start(away).await;
    assert!(cluster.running[&away].local().state.total >= 60);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_acknowledged_and_reads_are_refused() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader(&cluster.all()).await;
    cluster.write(leader, 1).await;
    cluster.network.isolate(leader);
    let alone = &cluster.running[&leader];
    let refused = alone.propose(vec![add(2)]).await.unwrap_err();
    assert!(matches!(refused, ProposeError::OutcomeUnknown | ProposeError::NoLeader { .. }), "{refused}");
    let refused = alone.read().await.unwrap_err();
    assert!(matches!(refused, ReadError::NoLeader { .. } | ReadError::TimedOut { .. }), "{refused}");
    // What it had is still there to be shown as stale.
    assert_eq!(alone.local().state.total, 1);

    let rest = cluster.others(leader);
    cluster.leader(&rest).await;
    cluster.write(rest[0], 3).await;
    cluster.network.heal();
    let last = cluster.write(leader, 4).await;
    for id in cluster.all() {
        cluster.applied(id, last).await;
    }
    let states: Vec<_> = cluster.running.values().map(Replica::local).collect();
    let newest = cluster.running[&leader].read().await.unwrap();
    assert!([1, 3, 4].iter().all(|id| newest.state.seen.contains(*id)));
    assert!(states.iter().all(|view| view.state.seen == newest.state.seen));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_can_be_handed_over() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader(&cluster.all()).await;
    cluster.write(leader, 1).await;
    let heir = cluster.others(leader)[0];
    let replica = &cluster.running[&leader];
    assert!(replica.hand_over_to(heir).await.unwrap(), "it has the whole log");
    let handed_over = timeout(PATIENCE, async {
        while cluster.running[&heir].status().leader != Some(heir) {
            sleep(Duration::from_millis(5)).await;
        }
    });
    handed_over.await.unwrap();
    cluster.write(leader, 2).await;
    assert_eq!(cluster.running[&heir].read().await.unwrap().state.seen.len(), 2);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_from_a_peer_is_refused_and_harms_nobody() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader(&cluster.all()).await;
    let replica = &cluster.running[&leader];
    let peer = cluster.others(leader)[0];
    for request in [&[][..], &[0], &[0xff; 40], &[1, 0, 99], &[1, 0, 0, 0, 0]] {
        assert!(!replica.answer_peer(peer, request).await.is_empty());
    }
    cluster.write(leader, 1).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_replica_that_is_not_among_the_members_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let refused = Replica::start_with_peers(
        Config::new(folder.path(), ReplicaId(4)),
        Arc::new(SystemClock),
        Ledger::default(),
        Arc::new(|_, _| {}),
        LocalNetwork::new().peers_of(ReplicaId(4)),
        formation(1..=3),
    )
    .await;
    assert!(matches!(refused, Err(StartError::NotAMember { .. })));
}
