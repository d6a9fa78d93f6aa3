#![allow(clippy::unwrap_used)]

use super::LogStore;
use crate::applier::{Applier, SnapshotPolicy, Surroundings};
use crate::checkpoints;
use crate::codec;
use crate::formats::Formats;
use crate::halt::Halt;
use crate::ids::ReplicaId;
use crate::published::Published;
use crate::testing::Ledger;
use crate::types::{Entry, Types, log_id};
use berth_storage::{Options, Store};
use futures_util::FutureExt;
use openraft::storage::RaftLogReader;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, StorageError};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Where the stores of the suite are.
#[derive(Clone, Copy)]
enum Ground {
    Folder,
    Memory,
}

type Opened = (Store, tempfile::TempDir);

impl StoreBuilder<Types, LogStore, Applier<Ledger>, Opened> for Ground {
    async fn build(&self) -> Result<(Opened, LogStore, Applier<Ledger>), StorageError<Types>> {
        let folder = tempfile::tempdir().unwrap();
        let store = match self {
            Self::Folder => Store::open(folder.path(), Options::default()),
            Self::Memory => Store::in_memory(&berth_storage::memory::Disk::new(), folder.path(), Options::default()),
        };
        let store = store.unwrap();
        let log = LogStore::new(store.log(), ReplicaId(1), CancellationToken::new());
        let published = Arc::new(Published::new(Ledger::default(), None));
        let stop = CancellationToken::new();
        let surroundings = Surroundings {
            published,
            snapshots: store.snapshots(),
            policy: SnapshotPolicy {
                after_entries: u64::MAX,
                after_bytes: u64::MAX,
                due: Arc::default(),
                overdue: Arc::default(),
            },
            formats: Arc::new(Formats::new(1..=2, Halt::new(stop.clone()))),
            checkpoint_each: 4_096,
            checkpoints: checkpoints::sink().0,
            stop,
        };
        let applier = Applier::new(Ledger::default(), Arc::new(|_, _| {}), surroundings);
        Ok(((store, folder), log, applier))
    }
}

#[test]
fn the_librarys_own_storage_suite_passes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for ground in [Ground::Folder, Ground::Memory] {
        runtime.block_on(Suite::test_all(ground)).unwrap();
    }
}

/// A store with three entries; as many of them in memory as `window_bytes` allow.
fn three_entries(folder: &std::path::Path, window_bytes: u64) -> Store {
    let store = Store::open(folder, Options { window_bytes, ..Options::default() }).unwrap();
    let entry = |index| codec::encode_entry(Entry { log_id: log_id(1, index), payload: EntryPayload::Blank });
    let (done, durable) = std::sync::mpsc::channel();
    store.log().append((0..3).map(entry).collect(), Box::new(move |result| done.send(result).unwrap())).unwrap();
    durable.recv().unwrap().unwrap();
    store
}

/// With one thread for what may block, which is busy until it is released.
fn with_busy_thread<F: Future<Output = ()>>(test: impl FnOnce(std::sync::mpsc::Sender<()>) -> F) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (release, released) = std::sync::mpsc::channel();
        let busy = tokio::task::spawn_blocking(move || released.recv().unwrap_err());
        test(release).await;
        busy.await.unwrap();
    });
}

#[test]
fn entries_that_are_not_in_memory_are_read_where_it_may_block_and_no_others() {
    for (window_bytes, blocks) in [(1 << 20, false), (1, true)] {
        let folder = tempfile::tempdir().unwrap();
        let store = three_entries(folder.path(), window_bytes);
        let mut reader = LogStore::new(store.log(), ReplicaId(1), CancellationToken::new());
        with_busy_thread(|release| async move {
            let mut read = std::pin::pin!(reader.limited_get_log_entries(0, 3));
            let at_once = (&mut read).now_or_never();
            assert_eq!(at_once.is_none(), blocks, "with {window_bytes} bytes in memory");
            drop(release);
            let entries = match at_once {
                Some(entries) => entries,
                None => read.await,
            };
            assert_eq!(entries.unwrap().len(), 3);
        });
    }
}

#[test]
fn a_read_that_waits_for_the_disk_ends_when_the_replica_stops() {
    let folder = tempfile::tempdir().unwrap();
    let store = three_entries(folder.path(), 1);
    let stop = CancellationToken::new();
    let mut reader = LogStore::new(store.log(), ReplicaId(1), stop.clone());
    with_busy_thread(|release| async move {
        let mut read = std::pin::pin!(reader.try_get_log_entries(0..3));
        assert!((&mut read).now_or_never().is_none());
        stop.cancel();
        read.await.unwrap_err();
        drop(release);
    });
}
