//! What the observer is told is visible already: whoever it wakes finds it.
#![allow(clippy::unwrap_used)]

use berth_raft::testing::{Command, Effect, Ledger};
use berth_raft::{Config, Observer, Replica, ReplicaId, SystemClock};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

async fn start(folder: &Path, observer: Observer<Ledger>) -> Replica<Ledger> {
    let mut config = Config::new(folder, ReplicaId(1));
    // Small entries: several of them are applied before one publication.
    config.batch_commands_max = 4;
    Replica::start(config, Arc::new(SystemClock), Ledger::default(), observer).await.unwrap()
}

/// Proposes `size` commands at the same time and waits for all of them.
async fn burst(replica: &Replica<Ledger>, ids: &mut std::ops::RangeFrom<u64>, size: u64) {
    let mut calls = JoinSet::new();
    for _ in 0..size {
        let (replica, id) = (replica.clone(), ids.next().unwrap());
        calls.spawn(async move {
            replica.propose(vec![Command::Add { id, amount: 1, padding: Vec::new() }]).await.unwrap();
        });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_that_the_observer_is_told_of_is_visible_already() {
    let folder = tempfile::tempdir().unwrap();
    let handle = Arc::new(OnceLock::<Replica<Ledger>>::new());
    let (calls, invisible) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let observer = {
        let (handle, calls, invisible) = (Arc::clone(&handle), Arc::clone(&calls), Arc::clone(&invisible));
        Arc::new(move |told: &Ledger, _: &[Effect]| {
            let Some(replica) = handle.get() else { return };
            calls.fetch_add(1, Ordering::Relaxed);
            if replica.local().state.total < told.total {
                invisible.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let replica = start(folder.path(), observer).await;
    handle.set(replica.clone()).unwrap();
    let mut ids = 0..;
    for size in 1..=24 {
        burst(&replica, &mut ids, size).await;
    }
    replica.stop().await.unwrap();
    assert!(calls.load(Ordering::Relaxed) >= 24);
    assert_eq!(invisible.load(Ordering::Relaxed), 0, "states told of before they could be read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_woken_by_the_observer_misses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let woken = Arc::new(Notify::new());
    let observer = {
        let woken = Arc::clone(&woken);
        Arc::new(move |_: &Ledger, _: &[Effect]| woken.notify_one())
    };
    let replica = start(folder.path(), observer).await;
    let (seen, mut latest) = watch::channel(0);
    let follower = {
        let replica = replica.clone();
        tokio::spawn(async move {
            loop {
                woken.notified().await;
                seen.send_replace(replica.local().state.total);
            }
        })
    };
    let mut ids = 0..;
    for number in 0..300 {
        burst(&replica, &mut ids, 1 + number % 24).await;
        let total = replica.local().state.total;
        // Nothing else wakes the task: a wake-up that came too early is never made good.
        let caught_up = timeout(PATIENCE, latest.wait_for(|seen| *seen == total)).await;
        assert!(caught_up.is_ok(), "burst {number}: the task never saw the total of {total}");
    }
    follower.abort();
    replica.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_observer_stops_the_replica_loudly() {
    let folder = tempfile::tempdir().unwrap();
    let observer = Arc::new(|_: &Ledger, effects: &[Effect]| assert!(effects.is_empty(), "a broken observer"));
    let replica = start(folder.path(), observer).await;
    let proposed = replica.propose(vec![Command::Add { id: 1, amount: 1, padding: Vec::new() }]);
    timeout(PATIENCE, proposed).await.unwrap().unwrap_err();
    let mut stopped = replica.stopped();
    let reason = timeout(PATIENCE, stopped.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(reason.to_string().contains("a broken observer"), "{reason}");
    replica.stop().await.unwrap();
}
