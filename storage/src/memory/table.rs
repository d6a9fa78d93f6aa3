//! The twin of sled's tree: records in key order, written in atomic batches of
//! which none survives a power cut without those before it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Choose, Mount, Node, Operation};
use crate::Error;

/// A key and its value, or its removal.
type Change = (Vec<u8>, Option<Arc<[u8]>>);
type Record = (Vec<u8>, Arc<[u8]>);
type Records = BTreeMap<Vec<u8>, Arc<[u8]>>;

/// What a database holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    records: Records,
    synced: Records,
    unsynced: Vec<Vec<Change>>,
}

fn change(records: &mut Records, batch: Vec<Change>) {
    for (key, value) in batch {
        match value {
            Some(value) => records.insert(key, value),
            None => records.remove(&key),
        };
    }
}

impl Table {
    fn sync(&mut self) {
        for batch in std::mem::take(&mut self.unsynced) {
            change(&mut self.synced, batch);
        }
    }

    pub(super) fn cut_power(&mut self, choose: Choose<'_>) -> bool {
        let batches = std::mem::take(&mut self.unsynced);
        if batches.is_empty() {
            return false;
        }
        let count = batches.len();
        let kept = usize::try_from(choose(count as u64 + 1)).unwrap_or_default();
        for batch in batches.into_iter().take(kept) {
            change(&mut self.synced, batch);
        }
        self.records = self.synced.clone();
        kept < count
    }

    pub(super) fn synced_copy(&self) -> Self {
        Self { records: self.synced.clone(), synced: self.synced.clone(), unsynced: Vec::new() }
    }

    pub(super) fn flip_bit(&mut self, is_meant: impl Fn(&[u8]) -> bool, choose: Choose<'_>) -> bool {
        let keys: Vec<Vec<u8>> = self.records.keys().filter(|key| is_meant(key)).cloned().collect();
        if keys.is_empty() {
            return false;
        }
        let key = &keys[usize::try_from(choose(keys.len() as u64)).unwrap_or_default()];
        let mut value = self.records[key].to_vec();
        let bit = usize::try_from(choose(value.len() as u64 * 8)).unwrap_or_default();
        value[bit / 8] ^= 1 << (bit % 8);
        self.records.insert(key.clone(), value.into());
        self.is_all_synced();
        true
    }

    pub(super) fn forget(&mut self, key: &[u8]) -> bool {
        let was_there = self.records.remove(key).is_some();
        self.is_all_synced();
        was_there
    }

    fn is_all_synced(&mut self) {
        self.synced = self.records.clone();
        self.unsynced.clear();
    }
}

/// An open database.
#[derive(Debug)]
pub(crate) struct TableHandle {
    mount: Mount,
    folder: PathBuf,
    id: u64,
}

impl TableHandle {
    pub(crate) fn create(mount: &Mount, folder: &Path) -> Result<(), Error> {
        let created = mount.with(|state| {
            state.pass(Operation::Write)?;
            let id = state.next_node();
            state.tables.insert(id, Table::default());
            state.names.insert(folder.to_owned(), Node::Table(id));
            state.durable_names.insert(folder.to_owned(), Node::Table(id));
            Ok(())
        });
        created.map_err(|error| Error::io("open the database", folder, error))
    }

    pub(crate) fn open(mount: &Mount, folder: &Path) -> Result<Self, Error> {
        let found = mount.with(|state| {
            state.pass(Operation::Read)?;
            Ok(state.names.get(folder).copied())
        });
        match found.map_err(|error| Error::io("open the database", folder, error))? {
            Some(Node::Table(id)) => Ok(Self { mount: mount.clone(), folder: folder.to_owned(), id }),
            _ => Err(Error::damaged(folder, "it", "it is missing")),
        }
    }

    fn with<T>(
        &self,
        attempt: &'static str,
        operation: Operation,
        work: impl FnOnce(&mut Table, bool) -> T,
    ) -> Result<T, Error> {
        let done = self.mount.with(|state| {
            state.pass(operation)?;
            if operation == Operation::Write && state.free_bytes == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let lies = state.syncs_are_lies;
            let table = state.tables.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
            Ok(work(table, lies))
        });
        done.map_err(|error| Error::io(attempt, &self.folder, error))
    }

    /// Applies a batch as a whole.
    pub(crate) fn apply(&self, batch: Vec<(sled::IVec, Option<Vec<u8>>)>) -> Result<(), Error> {
        let batch: Vec<Change> = batch.into_iter().map(|(key, value)| (key.to_vec(), value.map(Arc::from))).collect();
        self.with("write to", Operation::Write, |table, _| {
            change(&mut table.records, batch.clone());
            table.unsynced.push(batch);
        })
    }

    /// Makes everything applied durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.with("sync", Operation::Sync, |table, lies| {
            if !lies {
                table.sync();
            }
        })
    }

    /// The first record from `from` on, or behind it, up to `until`.
    fn next(&self, from: Bound<&[u8]>, until: &[u8]) -> Result<Option<Record>, Error> {
        self.with("read from", Operation::Read, |table, _| {
            let end = Bound::Excluded(until);
            let is_empty = match from {
                Bound::Included(from) | Bound::Excluded(from) => from >= until,
                Bound::Unbounded => false,
            };
            if is_empty {
                return None;
            }
            let mut range = table.records.range::<[u8], _>((from, end));
            range.next().map(|(key, value)| (key.clone(), Arc::clone(value)))
        })
    }

    /// See [`Database::scan`](crate::log::database::Database::scan).
    pub(crate) fn scan(
        &self,
        from: &[u8],
        until: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut found = self.next(Bound::Included(from), until)?;
        while let Some((key, value)) = found {
            if !each(&key, &value)? {
                break;
            }
            found = self.next(Bound::Excluded(&key), until)?;
        }
        Ok(())
    }

    /// Up to `limit` keys from `from` up to `until`: the first, or the last ones
    /// backwards.
    pub(crate) fn keys(
        &self,
        from: &[u8],
        until: &[u8],
        limit: usize,
        backwards: bool,
    ) -> Result<Vec<sled::IVec>, Error> {
        self.with("read from", Operation::Read, |table, _| {
            if from >= until {
                return Vec::new();
            }
            let keys = table.records.range::<[u8], _>((Bound::Included(from), Bound::Excluded(until)));
            let keys = keys.map(|(key, _)| sled::IVec::from(key.as_slice()));
            if backwards { keys.rev().take(limit).collect() } else { keys.take(limit).collect() }
        })
    }

    /// Lets a test change it by hand.
    #[cfg(test)]
    pub(crate) fn change(&self, key: &[u8], value: Option<&[u8]>) {
        let batch = vec![(sled::IVec::from(key), value.map(<[u8]>::to_vec))];
        self.apply(batch).expect("nothing fails in tests that do this");
    }
}
