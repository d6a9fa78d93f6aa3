#![allow(clippy::unwrap_used)]

use super::LogStore;
use crate::applier::{Applier, SnapshotPolicy};
use crate::ids::ReplicaId;
use crate::published::Published;
use crate::testing::Ledger;
use crate::types::Types;
use berth_storage::{Options, Store};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

struct Folders;

impl StoreBuilder<Types, LogStore, Applier<Ledger>, (Store, tempfile::TempDir)> for Folders {
    async fn build(&self) -> Result<((Store, tempfile::TempDir), LogStore, Applier<Ledger>), StorageError<Types>> {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Options::default()).unwrap();
        let log = LogStore::new(store.log(), ReplicaId(1), CancellationToken::new());
        let published = Arc::new(Published::new(Ledger::default(), None));
        let policy = SnapshotPolicy { after_entries: u64::MAX, after_bytes: u64::MAX, due: Arc::default() };
        let applier = Applier::new(
            Ledger::default(),
            published,
            Arc::new(|_, _| {}),
            store.snapshots(),
            policy,
            CancellationToken::new(),
        );
        Ok(((store, folder), log, applier))
    }
}

#[test]
fn the_librarys_own_storage_suite_passes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Folders)).unwrap();
}
