//! Members come, get a vote, lead and go.
#![allow(clippy::unwrap_used)]

use berth_raft::testing::{Command, Ledger, LocalNetwork};
use berth_raft::{Config, Formation, Member, MemberError, Replica, ReplicaId, StartError, SystemClock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_mins(1);

fn member(id: u64) -> Member {
    Member { address: format!("replica-{id}"), folder: format!("folder-{id}") }
}

fn only(id: u64) -> Formation {
    Formation::Members(BTreeMap::from([(ReplicaId(id), member(id))]))
}

fn add(id: u64) -> Vec<Command> {
    vec![Command::Add { id, amount: 1, padding: Vec::new() }]
}

#[derive(Default)]
struct Cluster {
    network: LocalNetwork,
    folders: BTreeMap<u64, TempDir>,
    running: BTreeMap<u64, Replica<Ledger>>,
}

impl Cluster {
    /// A cluster of one that others can join.
    async fn of_one() -> Self {
        let mut cluster = Self::default();
        cluster.start(1, only(1)).await.unwrap();
        cluster
    }

    /// A cluster that has grown to three voters.
    async fn of_three() -> Self {
        let mut cluster = Self::of_one().await;
        for id in [2, 3] {
            cluster.start(id, Formation::Wait).await.unwrap();
            cluster.running[&1].add_learner(ReplicaId(id), member(id)).await.unwrap();
            cluster.promoted(1, id).await;
        }
        cluster
    }

    async fn start(&mut self, id: u64, formation: Formation) -> Result<(), StartError> {
        let folder = self.folders.entry(id).or_insert_with(|| tempfile::tempdir().unwrap());
        let mut config = Config::new(folder.path(), ReplicaId(id));
        config.election_timeout_ms = 600;
        config.heartbeat_ms = 200;
        let peers = self.network.peers_of(ReplicaId(id));
        let observer = Arc::new(|_: &Ledger, _: &[_]| {});
        let replica =
            Replica::start_with_peers(config, Arc::new(SystemClock), Ledger::default(), observer, peers, formation)
                .await?;
        self.network.connect(&replica);
        self.running.insert(id, replica);
        Ok(())
    }

    async fn stop(&mut self, id: u64) {
        self.network.disconnect(ReplicaId(id));
        self.running.remove(&id).unwrap().stop().await.unwrap();
    }

    async fn promoted(&self, by: u64, id: u64) {
        let promoted = async {
            loop {
                match self.running[&by].promote(ReplicaId(id)).await {
                    Ok(()) => return,
                    Err(MemberError::Behind { .. } | MemberError::InProgress) => sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        timeout(PATIENCE, promoted).await.expect("a learner catches up");
    }

    fn voters(&self, seen_by: u64) -> Vec<u64> {
        self.running[&seen_by].status().voters.iter().map(|id| id.0).collect()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let held = async {
            while !holds(self) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, held).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }
}

#[tokio::test]
async fn one_grows_to_three_and_each_of_them_can_do_without_another() {
    let mut cluster = Cluster::of_one().await;
    for id in 0..1_000 {
        cluster.running[&1].propose(add(id)).await.unwrap();
    }
    for id in [2, 3] {
        cluster.start(id, Formation::Wait).await.unwrap();
        cluster.running[&1].add_learner(ReplicaId(id), member(id)).await.unwrap();
        assert!(!cluster.voters(1).contains(&id), "it learns before it votes");
        cluster.promoted(1, id).await;
    }
    assert_eq!(cluster.voters(1), [1, 2, 3]);
    assert_eq!(cluster.running[&1].members()[&ReplicaId(2)].member, member(2));
    // Through a replica that has just joined, and after the one that was first is gone.
    cluster.running[&3].propose(add(1_000)).await.unwrap();
    cluster.stop(1).await;
    let read = timeout(PATIENCE, async {
        loop {
            if let Ok(view) = cluster.running[&2].read().await {
                return view;
            }
        }
    });
    assert_eq!(read.await.unwrap().state.total, 1_001);
}

#[tokio::test]
async fn nothing_is_promoted_that_has_not_caught_up_and_no_id_is_used_twice() {
    let cluster = Cluster::of_one().await;
    let leader = &cluster.running[&1];
    // Nobody answers under this id.
    leader.add_learner(ReplicaId(7), member(7)).await.unwrap();
    leader.add_learner(ReplicaId(7), member(7)).await.unwrap();
    assert!(matches!(leader.promote(ReplicaId(7)).await, Err(MemberError::Behind { .. })));
    assert_eq!(leader.promote(ReplicaId(8)).await, Err(MemberError::Unknown(ReplicaId(8))));
    let other_folder = Member { folder: "another".to_owned(), ..member(7) };
    assert_eq!(leader.add_learner(ReplicaId(7), other_folder).await, Err(MemberError::IdTaken(ReplicaId(7))));
    let moved = Member { address: "elsewhere".to_owned(), ..member(7) };
    leader.add_learner(ReplicaId(7), moved.clone()).await.unwrap();
    assert_eq!(leader.members()[&ReplicaId(7)].member, moved);
    leader.remove(ReplicaId(7)).await.unwrap();
    assert_eq!(leader.members().len(), 1);
    assert_eq!(leader.remove(ReplicaId(1)).await, Err(MemberError::Leads(ReplicaId(1))));
}

#[tokio::test]
async fn no_replica_is_removed_that_a_majority_needs() {
    let mut cluster = Cluster::of_three().await;
    assert!(matches!(cluster.running[&2].remove(ReplicaId(3)).await, Err(MemberError::NotLeader { .. })));
    cluster.stop(3).await;
    let leader = cluster.running[&1].clone();
    cluster
        .until("replica 3 counts as silent", |_| {
            leader.members()[&ReplicaId(3)].heard.is_none_or(|heard| heard > Duration::from_secs(2))
        })
        .await;
    // Of 1 and 3, only 1 would answer.
    let refused = leader.remove(ReplicaId(2)).await;
    assert_eq!(refused, Err(MemberError::NoQuorum { id: ReplicaId(2), alive: 1, voters: 2 }));
    // The dead one can go, and another one takes its place under a new id.
    leader.remove(ReplicaId(3)).await.unwrap();
    cluster.until("2 knows", |cluster| cluster.voters(2) == [1, 2]).await;
    cluster.start(4, Formation::Wait).await.unwrap();
    leader.add_learner(ReplicaId(4), member(4)).await.unwrap();
    cluster.promoted(1, 4).await;
    assert_eq!(cluster.voters(1), [1, 2, 4]);
    let agreed_by = |replica: &Replica<Ledger>| {
        let agreed = replica.agreed().unwrap();
        (agreed.voters, agreed.members)
    };
    let all = [1, 2, 4].map(ReplicaId).into_iter().collect::<BTreeSet<_>>();
    for id in [1, 2, 4] {
        let agrees = |cluster: &Cluster| agreed_by(&cluster.running[&id]) == (vec![all.clone()], all.clone());
        cluster.until("everybody knows what was agreed on", agrees).await;
    }
    assert!(leader.majority_heard().is_some_and(|ago| ago < PATIENCE));
    assert_eq!(cluster.running[&2].majority_heard(), None, "it does not lead");
    leader.propose(add(1)).await.unwrap();
}

#[tokio::test]
async fn a_leader_hands_over_and_can_then_be_removed() {
    let mut cluster = Cluster::of_three().await;
    assert!(cluster.running[&1].hand_over().await);
    let leader = cluster.running[&1].status().leader.unwrap();
    assert_ne!(leader, ReplicaId(1));
    assert!(cluster.running[&1].hand_over().await, "one that does not lead has nothing to hand over");
    cluster.until("it knows that it leads", |cluster| cluster.running[&leader.0].status().is_leader()).await;
    cluster.running[&leader.0].remove(ReplicaId(1)).await.unwrap();
    cluster.running[&leader.0].propose(add(1)).await.unwrap();
    let other = if leader.0 == 2 { 3 } else { 2 };
    assert_eq!(cluster.running[&leader.0].members().len(), 2, "nothing is left of it");
    cluster.until("the other one knows", |cluster| cluster.voters(other).len() == 2).await;
    cluster.stop(1).await;
    assert_eq!(cluster.running[&other].read().await.unwrap().state.total, 1);
}

#[tokio::test]
async fn alone_there_is_nobody_to_hand_over_to() {
    let cluster = Cluster::of_one().await;
    assert!(!cluster.running[&1].hand_over().await);
    assert!(cluster.running[&1].status().is_leader());
    cluster.running[&1].propose(add(1)).await.unwrap();
}
