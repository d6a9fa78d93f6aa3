//! Replicas find out when one of them came to something else.
#![allow(clippy::unwrap_used)]

mod support;

use berth_raft::testing::{Ledger, Skew};
use berth_raft::{Config, LogIndex, ReplicaId, StartError, Status, StopReason};
use support::{Cluster, PATIENCE, add};
use tokio::time::{sleep, timeout};

const WRONG: ReplicaId = ReplicaId(3);

fn compared_often(config: &mut Config) {
    config.hash_every_entries = 4;
}

/// A cluster whose last replica goes wrong in its own way.
async fn with_a_wrong_one(members: u64, skew: Skew) -> Cluster {
    let mut cluster = Cluster::empty();
    cluster.members = members;
    for id in (1..=members).map(ReplicaId) {
        let skew = if id.0 == members { skew } else { Skew::None };
        let initial = Ledger { skew, ..Ledger::default() };
        cluster.start_with(id, initial, compared_often).await.unwrap();
    }
    cluster.all_have_format(2).await;
    cluster
}

/// Writes through replica 1 until `enough`.
async fn write_until(cluster: &Cluster, enough: impl Fn() -> bool) {
    let written = async {
        for id in 0.. {
            if enough() {
                return;
            }
            cluster.running[&ReplicaId(1)].propose(vec![add(id)]).await.unwrap();
            sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, written).await.expect("something that is found out in time");
}

fn status(cluster: &Cluster, id: u64) -> Status {
    cluster.running[&ReplicaId(id)].status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_came_to_the_same_say_so_also_after_a_restart() {
    let mut cluster = with_a_wrong_one(3, Skew::None).await;
    for round in 0..2 {
        // Whole states are compared at each sixteenth checkpoint.
        let start = status(&cluster, 1).last_log.unwrap().0 + 200;
        write_until(&cluster, || {
            (1..=3).all(|id| {
                let checkpoints = status(&cluster, id).checkpoints;
                let same = checkpoints.same.values().filter(|at| at.0 > start).count();
                same == 2 && checkpoints.last_state > Some(LogIndex(start))
            })
        })
        .await;
        for id in 1..=3 {
            assert!(status(&cluster, id).checkpoints.different.is_empty());
        }
        if round == 0 {
            // One from its log, one from a snapshot.
            cluster.running[&ReplicaId(2)].trigger_snapshot().await.unwrap();
            for id in [2, 3].map(ReplicaId) {
                cluster.stop(id).await;
                cluster.start(id, compared_often).await.unwrap();
            }
            cluster.leader(&cluster.all()).await;
        }
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_went_wrong_stops_for_good_whether_it_follows_or_leads() {
    for (skew, leads) in [(Skew::Outcomes, false), (Skew::State, false), (Skew::Outcomes, true), (Skew::State, true)] {
        let mut cluster = with_a_wrong_one(3, skew).await;
        let leader = cluster.leader(&cluster.all()).await;
        let wanted = if leads { WRONG } else { ReplicaId(2) };
        if leader != wanted {
            cluster.running[&leader].hand_over_to(wanted).await.unwrap();
        }
        write_until(&cluster, || status(&cluster, WRONG.0).stopped.is_some()).await;
        let reason = status(&cluster, WRONG.0).stopped.unwrap();
        assert!(matches!(reason, StopReason::Diverged { .. }), "{skew:?}, {leads}: {reason}");
        // The others know who it was, and go on.
        cluster.stop(WRONG).await;
        cluster.leader(&cluster.all()).await;
        for id in [1, 2] {
            cluster.running[&ReplicaId(id)].propose(vec![add(1_000_000 + id)]).await.unwrap();
            assert_eq!(status(&cluster, id).stopped, None);
        }
        assert!([1, 2].iter().any(|id| status(&cluster, *id).checkpoints.different.contains_key(&WRONG)));

        let refused = cluster.start(WRONG, compared_often).await.unwrap_err();
        assert!(matches!(&refused, StartError::Stopped(again) if *again == reason), "{refused}");
        cluster.stop_all().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_differ_nobody_stops_but_both_tell() {
    let cluster = with_a_wrong_one(2, Skew::Outcomes).await;
    cluster.leader(&cluster.all()).await;
    write_until(&cluster, || (1..=2).all(|id| !status(&cluster, id).checkpoints.different.is_empty())).await;
    assert!((1..=2).all(|id| status(&cluster, id).stopped.is_none()));
    cluster.stop_all().await;
}
