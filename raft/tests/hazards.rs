//! The known hazards of the consensus library, one test each: what protects, and what does not.
#![allow(clippy::unwrap_used)]

mod support;

use berth_raft::testing::Command;
use berth_raft::{Config, StartError, StopReason};
use std::path::{Path, PathBuf};
use support::{Cluster, PATIENCE, add};
use tokio::time::{sleep, timeout};

/// Serving before the log is replayed: what was acknowledged before a restart is in the first read
/// after it, through every replica, though each has all of it still to apply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_read_after_a_restart_sees_everything_that_was_acknowledged() {
    let mut cluster = Cluster::of_three().await;
    let ids = cluster.all();
    let mut total = 0;
    for round in 0..3 {
        let leader = cluster.leader(&ids).await;
        for id in 0..200 {
            cluster.running[&leader].propose(vec![add(round * 200 + id)]).await.unwrap();
            total += 1;
        }
        // The leader alone at first, then everybody.
        let restarted = if round == 0 { vec![leader] } else { ids.clone() };
        let seen_before: Vec<u64> = restarted.iter().map(|id| cluster.running[id].local().state.total).collect();
        for id in &restarted {
            cluster.stop(*id).await;
        }
        for (id, seen_before) in restarted.iter().zip(seen_before) {
            cluster.start(*id, |_| {}).await.unwrap();
            // Not even what needs no agreement goes back.
            let seen = cluster.running[id].local().state.total;
            assert!(seen >= seen_before, "replica {id} shows {seen} after {seen_before}");
        }
        let reads = ids.iter().map(|id| cluster.running[id].read());
        for read in futures_util::future::join_all(reads).await {
            assert_eq!(read.unwrap().state.total, total);
        }
    }
    cluster.stop_all().await;
}

/// The files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files
}

/// Flips a bit in the middle of the first run of `pattern` in each file that has one.
fn flip_a_bit(folder: &Path, pattern: &[u8]) -> usize {
    let mut flipped = 0;
    for path in files(folder) {
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(pattern.len()).position(|window| window == pattern) {
            bytes[at + pattern.len() / 2] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            flipped += 1;
        }
    }
    flipped
}

/// A storage error taken for data: a bit that has flipped in the log, or in a snapshot, stops the
/// replica at its start with the file's name. The others go on, and nothing is missing there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_storage_cannot_read_stops_the_replica_and_is_never_served() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader(&cluster.all()).await;
    let [by_log, by_snapshot] = cluster.others(leader)[..] else { unreachable!() };
    let padding = vec![0xa5; 64];
    for id in 0..50 {
        let command = Command::Add { id, amount: 1, padding: padding.clone() };
        cluster.running[&leader].propose(vec![command]).await.unwrap();
    }
    let newest = cluster.running[&leader].local().index;
    cluster.applied(by_log, newest).await;
    cluster.applied(by_snapshot, newest).await;
    cluster.running[&by_snapshot].trigger_snapshot().await.unwrap();
    // What the ledger's snapshot holds of ids 40 to 44, each seen once.
    let in_snapshot = [40, 1, 41, 1, 42, 1, 43, 1, 44, 1];
    for (id, place, pattern) in [(by_log, "log", &padding[..]), (by_snapshot, "snapshots", &in_snapshot)] {
        cluster.stop(id).await;
        let whole = tempfile::tempdir().unwrap();
        copy(cluster.folders[&id].path(), whole.path());
        let folder = cluster.folders[&id].path().join(place);
        assert!(flip_a_bit(&folder, pattern) > 0, "nothing to damage in {}", folder.display());
        // However often it is tried.
        for _ in 0..3 {
            let refused = cluster.start(id, |_| {}).await.unwrap_err();
            let StartError::Storage { source, .. } = &refused else { panic!("{refused}") };
            assert!(source.to_string().contains(place), "{source}");
        }
        cluster.running[&leader].propose(vec![add(1_000)]).await.unwrap();
        let read = cluster.running[&leader].read().await.unwrap();
        assert!((0..50).all(|id| read.state.seen.contains(id)));
        std::fs::remove_dir_all(cluster.folders[&id].path()).unwrap();
        std::fs::rename(whole.path(), cluster.folders[&id].path()).unwrap();
        cluster.start(id, |_| {}).await.unwrap();
        let read = cluster.running[&id].read().await.unwrap();
        assert!((0..50).all(|id| read.state.seen.contains(id)));
    }
    cluster.stop_all().await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// An empty folder under an old id: the consensus alone does **not** notice. The replica votes as
/// if it had never acknowledged anything, and so what was acknowledged can be lost. Whoever starts
/// replicas has to see to it that an id never comes back with an empty folder: a replica that lost
/// its disk comes back under a new id, and the old one is removed.
///
/// Should this test fail one day because the entry is still there, the library has learned to
/// notice; the check in front of it stays right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_comes_back_without_its_log_is_not_noticed_by_the_consensus_alone() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader(&cluster.all()).await;
    let [behind, forgetful] = cluster.others(leader)[..] else { unreachable!() };
    cluster.network.isolate(behind);
    cluster.running[&leader].propose(vec![add(7)]).await.unwrap();
    // Acknowledged by the leader and one other; the leader dies, and the other loses its disk.
    cluster.stop(leader).await;
    cluster.stop(forgetful).await;
    cluster.folders.remove(&forgetful);
    cluster.network.heal();
    cluster.start(forgetful, |_| {}).await.unwrap();
    let next = cluster.leader(&cluster.all()).await;
    let state = cluster.running[&next].read().await.unwrap().state;
    assert!(!state.seen.contains(7), "it was noticed");
    cluster.stop_all().await;
}

/// What does protect: a folder knows whose it is, so that an id does not come back with the log
/// of another one, and one that was found to be wrong is not used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_does_not_come_back_with_the_log_of_another() {
    let mut cluster = Cluster::of_three().await;
    let [one, other] = cluster.all()[..2] else { unreachable!() };
    cluster.stop(one).await;
    cluster.stop(other).await;
    let [ones, others] = [one, other].map(|id| cluster.folders.remove(&id).unwrap());
    cluster.folders.insert(one, others);
    cluster.folders.insert(other, ones);
    let refused = cluster.start(one, |_| {}).await.unwrap_err();
    assert!(matches!(refused, StartError::ForeignFolder { found, .. } if found == other), "{refused}");
    cluster.stop_all().await;
}

/// A leader that learns in the middle of its work that a follower lost its log: this build's
/// library takes it for a broken promise. Nobody serves anything wrong because of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_loses_its_log_while_the_leader_lives_gets_it_back_or_stops_the_leader() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader(&cluster.all()).await;
    let [steady, forgetful] = cluster.others(leader)[..] else { unreachable!() };
    for id in 0..20 {
        cluster.running[&leader].propose(vec![add(id)]).await.unwrap();
    }
    let newest = cluster.running[&leader].local().index;
    cluster.applied(forgetful, newest).await;
    cluster.stop(forgetful).await;
    cluster.folders.remove(&forgetful);
    cluster.start(forgetful, |config: &mut Config| config.request_timeout_ms = 5_000).await.unwrap();
    let settled = async {
        loop {
            let caught_up = cluster.running[&forgetful].local().state.total >= 20;
            let stopped = cluster.running[&leader].status().stopped;
            if caught_up || stopped.is_some() {
                return stopped;
            }
            sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let stopped = timeout(PATIENCE, settled).await.expect("one or the other");
    assert!(matches!(stopped, None | Some(StopReason::Failed(_))), "{stopped:?}");
    // The one that was never touched has everything, whoever leads now.
    let read = cluster.running[&steady].read().await.unwrap();
    assert_eq!(read.state.seen.len(), 20);
    for id in cluster.all() {
        let total = cluster.running[&id].local().state.total;
        assert!(total <= 20, "replica {id} shows {total}");
    }
    for (_, replica) in std::mem::take(&mut cluster.running) {
        drop(replica.stop().await);
    }
}

/// The library is used as it was tested here: an exact version, whose storage suite is part of this
/// crate's tests (`the_librarys_own_storage_suite_passes`).
#[test]
fn the_consensus_library_is_pinned_to_one_version() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let lines = manifest.lines().filter(|line| line.starts_with("openraft"));
    let lines: Vec<_> = lines.collect();
    assert!(!lines.is_empty());
    assert!(lines.iter().all(|line| line.contains("\"=")), "{lines:?}");
}
