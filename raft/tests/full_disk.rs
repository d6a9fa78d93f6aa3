//! A disk that fills up under a running replica. Needs root, to mount a small file system.
#![allow(clippy::unwrap_used)]

use berth_raft::testing::{Command, Ledger};
use berth_raft::{Config, ProposeError, Replica, ReplicaId, SnapshotError, StorageCondition, SystemClock};
use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_mins(1);
const MIB: usize = 1024 * 1024;

/// A file system of 96 MiB in memory, gone when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted =
            Process::new("mount").args(["-t", "tmpfs", "-o", "size=96m", "tmpfs"]).arg(folder.path()).status();
        let mounted = mounted.is_ok_and(|status| status.success());
        assert!(mounted, "cannot mount a tmpfs: this test has to run as root");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Process::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn add(id: u64, length: usize) -> Command {
    Command::Add { id, amount: 1, padding: vec![7; length] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_keeps_reads_and_recovers_by_itself() {
    let disk = SmallDisk::mount();
    let mut config = Config::new(disk.path().join("data"), ReplicaId(1));
    config.disk_reserve_bytes = 8 * MIB as u64;
    config.request_timeout_ms = 1_000;
    let observer = Arc::new(|_: &Ledger, _: &[_]| {});
    let replica =
        Replica::start(config.clone(), Arc::new(SystemClock), Ledger::default(), observer.clone()).await.unwrap();
    let mut acknowledged = vec![1];
    replica.propose(vec![add(1, MIB)]).await.unwrap();

    let ballast = disk.path().join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &vec![0; 64 * 1024]).is_ok() {}
    drop(file);

    let mut id = 2;
    let refused = timeout(PATIENCE, async {
        loop {
            match replica.propose(vec![add(id, 1_000)]).await {
                Ok(_) => acknowledged.push(id),
                Err(ProposeError::OutcomeUnknown) => {}
                Err(other) => return other,
            }
            id += 1;
        }
    });
    let refused = refused.await.unwrap();
    assert!(matches!(refused, ProposeError::StorageFull { .. }), "{refused}");
    let status = replica.status();
    assert!(matches!(status.storage, StorageCondition::Full { .. }));
    assert_eq!(status.stopped, None);
    let state = replica.read().await.unwrap().state;
    assert!(acknowledged.iter().all(|id| state.seen.contains(*id)));
    let snapshot = replica.trigger_snapshot().await;
    assert!(matches!(snapshot, Ok(_) | Err(SnapshotError::TimedOut { .. })), "{snapshot:?}");

    std::fs::remove_file(&ballast).unwrap();
    id += 1;
    let last = timeout(PATIENCE, async {
        loop {
            match replica.propose(vec![add(id, 1_000)]).await {
                Ok(_) => return id,
                Err(ProposeError::StorageFull { .. }) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(ProposeError::OutcomeUnknown) => id += 1,
                Err(other) => panic!("{other}"),
            }
        }
    });
    acknowledged.push(last.await.unwrap());
    let made = timeout(PATIENCE, async {
        while let Err(error) = replica.trigger_snapshot().await {
            assert!(matches!(error, SnapshotError::TimedOut { .. }), "{error}");
        }
    });
    made.await.unwrap();
    assert_eq!(replica.status().stopped, None);
    replica.stop().await.unwrap();

    let replica = Replica::start(config, Arc::new(SystemClock), Ledger::default(), observer).await.unwrap();
    let state = replica.local().state;
    assert!(acknowledged.iter().all(|id| state.seen.contains(*id)));
    assert!(state.seen.values().all(|times| *times == 1));
    replica.stop().await.unwrap();
}
