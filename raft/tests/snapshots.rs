//! A replica that is far behind gets a snapshot, whatever disturbs the transfer and the cluster.
#![allow(clippy::unwrap_used)]

mod support;

use berth_raft::testing::Command;
use berth_raft::{Config, LogIndex, ReplicaId};
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Cluster, Load, PATIENCE, add};
use tokio::time::{Instant, sleep, timeout};

const PART_BYTES: usize = 4096;

fn tuned(config: &mut Config) {
    config.keep_entries = 5;
    config.snapshot_part_bytes = PART_BYTES;
}

async fn of_three(tune: impl Fn(&mut Config)) -> Cluster {
    let mut cluster = Cluster::empty();
    for id in (1..=3).map(ReplicaId) {
        cluster.start(id, &tune).await.unwrap();
    }
    cluster.leader(&cluster.all()).await;
    cluster.all_have_format(2).await;
    cluster
}

/// Waits until the log behind the newest snapshot of `id` is gone, up to `index`.
async fn purged(cluster: &Cluster, id: ReplicaId, index: LogIndex) {
    let purged = async {
        while cluster.running[&id].status().purged < Some(index) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, purged).await.expect("a log that is cut off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_is_cut_again_and_again_goes_on_where_it_was() {
    let mut cluster = of_three(tuned).await;
    let leader = cluster.leader(&cluster.all()).await;
    let away = cluster.others(leader)[0];
    cluster.stop(away).await;
    for call in 0..30 {
        let commands = (0..1_000).map(|id| Command::Add { id: call * 1_000 + id, amount: 1, padding: Vec::new() });
        cluster.running[&leader].propose(commands.collect()).await.unwrap();
    }
    for id in cluster.all() {
        let covered = cluster.running[&id].trigger_snapshot().await.unwrap();
        purged(&cluster, id, LogIndex(covered.0 - 5)).await;
    }
    let mut content = Vec::new();
    let state = cluster.running[&leader].local().state;
    berth_raft::StateMachine::write_snapshot(state.as_ref(), &mut content).unwrap();
    let parts = (content.len() / PART_BYTES) as u64;
    assert!(parts > 20, "{parts} parts");

    cluster.traffic.lose_part_each.store(9, Ordering::Relaxed);
    let lost_before = cluster.traffic.lost.load(Ordering::Relaxed);
    cluster.start(away, tuned).await.unwrap();
    let leader = cluster.leader(&cluster.all()).await;
    let newest = cluster.running[&leader].propose(vec![add(1_000_000)]).await.unwrap();
    cluster.applied(away, newest.index).await;

    // A part that was lost was sent again, with the offer before it, and nothing else was.
    let lost = cluster.traffic.lost.load(Ordering::Relaxed) - lost_before;
    assert!(lost >= 5, "{lost} requests or answers were lost");
    let sent = cluster.traffic.part_bytes.load(Ordering::Relaxed);
    let most = content.len() as u64 + (lost + 2) * (PART_BYTES as u64 + 512) + parts * 64;
    assert!(sent <= most, "{sent} bytes were sent for {} and {lost} losses", content.len());
    assert_eq!(cluster.common_state().await.total, 30_001);
    cluster.stop_all().await;
}

/// One replica is away for so many entries, and catches up while `callers` go on. Returns how long
/// it was away, and how long it took.
async fn falls_behind_and_catches_up(behind: u64, callers: u64, snapshot_after_entries: u64) -> [Duration; 2] {
    let tune = |config: &mut Config| {
        tuned(config);
        // As many entries as commands.
        config.batch_commands_max = 1;
        config.snapshot_after_entries = snapshot_after_entries;
    };
    let needs_snapshot = snapshot_after_entries < behind;
    let mut cluster = of_three(tune).await;
    let leader = cluster.leader(&cluster.all()).await;
    let away = cluster.others(leader)[0];
    let begun = Instant::now();
    cluster.stop(away).await;
    let load = Load::on([cluster.running[&leader].clone()], callers, 0);
    while cluster.running[&leader].status().last_log < Some(LogIndex(behind)) {
        load.more(100).await;
    }
    let was_away = begun.elapsed();
    if needs_snapshot {
        purged(&cluster, leader, LogIndex(behind / 2)).await;
    }

    let term = cluster.running[&leader].status().term;
    let begun = Instant::now();
    cluster.start(away, tune).await.unwrap();
    // It has caught up once it is as far as the leader was a moment ago, while that goes on.
    let mut applied = cluster.running[&away].applied();
    let patience = PATIENCE * u32::try_from(behind / 50_000).unwrap().max(1);
    let target = cluster.running[&leader].status().applied.unwrap();
    timeout(patience, applied.wait_for(|index| *index >= target)).await.unwrap().unwrap();
    load.more(200).await;
    let target = cluster.running[&leader].status().applied.unwrap();
    timeout(patience, applied.wait_for(|index| *index >= target)).await.unwrap().unwrap();
    let took = begun.elapsed();
    let commands = load.end().await;
    assert_eq!(cluster.running[&leader].status().term, term, "the leader changed");
    assert_eq!(cluster.common_state().await.total, commands);
    assert_eq!(cluster.traffic.parts.load(Ordering::Relaxed) > 0, needs_snapshot, "whether a snapshot came");
    cluster.stop_all().await;
    [was_away, took]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_thousands_of_entries_behind_catches_up_under_load() {
    falls_behind_and_catches_up(4_000, 16, 500).await;
}

/// How long a million entries take, or `BERTH_BEHIND`, by a snapshot as it is made by default, and
/// entry by entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; for a release build"]
#[allow(clippy::print_stdout, reason = "the figures")]
async fn a_replica_that_is_a_million_entries_behind_catches_up_under_load() {
    let behind = std::env::var("BERTH_BEHIND").map_or(1_000_000, |number| number.parse().unwrap());
    for (way, snapshot_after_entries) in [("by a snapshot", 50_000), ("entry by entry", u64::MAX)] {
        let [away, took] = falls_behind_and_catches_up(behind, 128, snapshot_after_entries).await;
        println!("{way}: {behind} entries written in {away:.1?}, caught up in {took:.1?}");
    }
}

/// One thread runs all replicas: nothing of the installing may take it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_snapshot_that_takes_long_to_be_read_holds_up_nobody() {
    let mut cluster = of_three(tuned).await;
    let leader = cluster.leader(&cluster.all()).await;
    let away = cluster.others(leader)[0];
    cluster.stop(away).await;
    // Longer than a leader may be silent for.
    cluster.running[&leader].propose(vec![Command::SlowToRead { read_ms: 6_000 }]).await.unwrap();
    for id in 0..20 {
        cluster.running[&leader].propose(vec![add(id)]).await.unwrap();
    }
    for id in cluster.all() {
        let covered = cluster.running[&id].trigger_snapshot().await.unwrap();
        purged(&cluster, id, LogIndex(covered.0 - 5)).await;
    }
    let term = cluster.running[&leader].status().term;
    let load = Load::on([cluster.running[&leader].clone()], 4, 1_000);
    cluster.start(away, tuned).await.unwrap();
    let target = cluster.running[&leader].status().applied.unwrap();
    cluster.applied(away, target).await;
    let status = cluster.running[&away].status();
    assert!(status.snapshot.is_some(), "no snapshot was needed");
    assert_eq!((status.term, cluster.running[&leader].status().term), (term, term), "somebody stood for election");
    load.end().await;
    cluster.common_state().await;
    cluster.stop_all().await;
}
