//! Two formats in one cluster: forwards, back, and forwards for good.
#![allow(clippy::unwrap_used)]

mod support;

use berth_raft::testing::{Command, Ledger};
use berth_raft::{Config, RaiseError, Replica, ReplicaId, StartError, StopReason, SystemClock};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use support::{Cluster, add};

fn reading(formats: RangeInclusive<u16>) -> impl Fn(&mut Config) {
    move |config| {
        config.formats = formats.clone();
        // Rolling restarts also replay from snapshots.
        config.snapshot_after_entries = 100;
        config.keep_entries = 20;
    }
}

/// Proposes through all replicas; what is acknowledged counts.
async fn load(cluster: &Cluster, next: &mut u64, acknowledged: &mut BTreeSet<u64>) {
    for _ in 0..20 {
        let calls = cluster.running.values().map(|replica| {
            *next += 1;
            let (replica, id) = (replica.clone(), *next);
            async move { replica.propose(vec![add(id)]).await.map(|_| id) }
        });
        let calls: Vec<_> = calls.collect();
        // With format 1 a change of the leader may leave a call unknown: it is not repeated.
        acknowledged.extend(futures_util::future::join_all(calls).await.into_iter().flatten());
    }
}

fn newer_requests(cluster: &Cluster) -> u64 {
    cluster.traffic.newer_to.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

async fn assert_complete(cluster: &Cluster, acknowledged: &BTreeSet<u64>) {
    let state = cluster.common_state().await;
    assert!(acknowledged.iter().all(|id| state.seen.contains(*id)));
    assert!(state.seen.values().all(|times| *times == 1));
}

async fn raise(cluster: &Cluster, to: u16) -> Result<(), RaiseError> {
    loop {
        let leader = cluster.leader(&cluster.all()).await;
        match cluster.running[&leader].raise_format(to).await {
            // It has just changed.
            Err(RaiseError::NotLeader { .. }) => {}
            other => return other,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_goes_forwards_and_back_until_the_format_is_raised_and_then_only_forwards() {
    let mut cluster = Cluster::empty();
    let ids: Vec<ReplicaId> = (1..=3).map(ReplicaId).collect();
    for id in &ids {
        cluster.start(*id, reading(1..=1)).await.unwrap();
    }
    cluster.leader(&ids).await;
    let (mut next, mut acknowledged) = (0, BTreeSet::new());
    load(&cluster, &mut next, &mut acknowledged).await;

    // Forwards, back, and forwards again, one after the other under load.
    for (round, formats) in [1..=2, 1..=1, 1..=2].into_iter().enumerate() {
        for id in &ids {
            cluster.stop(*id).await;
            cluster.leader(&cluster.all()).await;
            load(&cluster, &mut next, &mut acknowledged).await;
            cluster.start(*id, reading(formats.clone())).await.unwrap();
            load(&cluster, &mut next, &mut acknowledged).await;
            if (round, *id) == (0, ReplicaId(2)) {
                let refused = raise(&cluster, 2).await.unwrap_err();
                let expected = RaiseError::NotRead { member: ReplicaId(3), from: 1, to: 1, wanted: 2 };
                assert_eq!(refused, expected);
            }
        }
    }
    assert_complete(&cluster, &acknowledged).await;
    assert!(cluster.running.values().all(|replica| replica.status().format == 1));
    assert_eq!(newer_requests(&cluster), 0, "what earlier builds do not know was sent");
    assert!(acknowledged.len() > 300);

    // A member that does not answer speaks against it as well.
    let leader = cluster.leader(&ids).await;
    let away = cluster.others(leader)[0];
    cluster.network.isolate(away);
    let others: Vec<_> = ids.iter().copied().filter(|id| *id != away).collect();
    let leader = cluster.leader(&others).await;
    let refused = cluster.running[&leader].raise_format(2).await.unwrap_err();
    assert!(matches!(refused, RaiseError::MemberSilent { member, .. } if member == away), "{refused}");
    cluster.network.heal();

    raise(&cluster, 2).await.unwrap();
    cluster.all_have_format(2).await;
    raise(&cluster, 2).await.unwrap();
    assert_eq!(raise(&cluster, 1).await, Err(RaiseError::Lower { agreed: 2, to: 1 }));
    let before = acknowledged.len();
    load(&cluster, &mut next, &mut acknowledged).await;
    assert_eq!(acknowledged.len(), before + 60);
    assert!(newer_requests(&cluster) > 0);
    assert_complete(&cluster, &acknowledged).await;

    // There is no way back, from the log or from a snapshot.
    let leader = cluster.leader(&ids).await;
    let [one, other] = cluster.others(leader)[..] else { unreachable!() };
    cluster.running[&other].trigger_snapshot().await.unwrap();
    for id in [one, other] {
        cluster.stop(id).await;
        let refused = cluster.start(id, reading(1..=1)).await.unwrap_err();
        let expected = StopReason::FormatNotRead { format: 2, from: 1, to: 1 };
        assert!(matches!(&refused, StartError::Stopped(reason) if *reason == expected), "{refused}");
        cluster.start(id, reading(1..=2)).await.unwrap();
    }
    cluster.leader(&ids).await;
    assert_complete(&cluster, &acknowledged).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_raises_the_format_by_itself_once_the_last_member_has_come() {
    let mut cluster = Cluster::empty();
    for id in (1..=2).map(ReplicaId) {
        cluster.start(id, |_| {}).await.unwrap();
    }
    let leader = cluster.leader(&cluster.all()).await;
    cluster.running[&leader].propose(vec![add(1)]).await.unwrap();
    assert_eq!(cluster.running[&leader].status().format, 1);
    cluster.start(ReplicaId(3), |_| {}).await.unwrap();
    cluster.all_have_format(2).await;
    cluster.stop_all().await;
}

async fn alone(folder: &Path, formats: RangeInclusive<u16>) -> Replica<Ledger> {
    let mut config = Config::new(folder, ReplicaId(1));
    config.formats = formats;
    Replica::start(config, Arc::new(SystemClock), Ledger::default(), Arc::new(|_, _| {})).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_begins_with_the_newest_format_and_an_older_one_is_raised_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let replica = alone(folder.path(), 1..=2).await;
    assert_eq!(replica.status().format, 2);
    replica.stop().await.unwrap();

    // Where nothing was ever written there is nothing to go back to.
    let folder = tempfile::tempdir().unwrap();
    alone(folder.path(), 1..=1).await.stop().await.unwrap();
    let replica = alone(folder.path(), 1..=2).await;
    assert_eq!(replica.status().format, 2);
    replica.stop().await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let replica = alone(folder.path(), 1..=1).await;
    replica.propose(vec![add(1)]).await.unwrap();
    replica.trigger_snapshot().await.unwrap();
    replica.stop().await.unwrap();
    let replica = alone(folder.path(), 1..=2).await;
    assert_eq!(replica.status().format, 1);
    replica.raise_format(2).await.unwrap();
    replica.propose(vec![add(2)]).await.unwrap();
    replica.stop().await.unwrap();
    // With it, what follows is read: the snapshot of the first format and entries of both.
    let replica = alone(folder.path(), 1..=2).await;
    assert_eq!((replica.status().format, replica.local().state.total), (2, 2));
    let unknown = replica.raise_format(3).await.unwrap_err();
    assert!(matches!(unknown, RaiseError::NotRead { member: ReplicaId(1), wanted: 3, .. }), "{unknown}");
    let deadline = Command::Deadline { at: 1, stuck: false };
    replica.propose(vec![deadline]).await.unwrap();
    replica.stop().await.unwrap();
}
