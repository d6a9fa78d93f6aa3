//! The database of a log: records in key order, changed in atomic batches. sled's
//! tree on a real disk, its twin on a simulated one.

use std::path::Path;

use super::tree::Tree;
use crate::Error;
use crate::files::Files;
use crate::memory::TableHandle;

/// An open database.
#[derive(Debug)]
pub(crate) enum Database {
    Sled(Tree),
    Memory(TableHandle),
}

/// Changes that are applied together.
#[derive(Debug)]
pub(crate) enum Changes {
    Sled(sled::Batch),
    Memory(Vec<(sled::IVec, Option<Vec<u8>>)>),
}

impl Changes {
    pub(crate) fn insert(&mut self, key: &[u8], value: Vec<u8>) {
        match self {
            Self::Sled(batch) => batch.insert(key, value),
            Self::Memory(batch) => batch.push((key.into(), Some(value))),
        }
    }

    pub(crate) fn remove(&mut self, key: sled::IVec) {
        match self {
            Self::Sled(batch) => batch.remove(key),
            Self::Memory(batch) => batch.push((key, None)),
        }
    }
}

impl Database {
    /// Makes an empty database at `folder`, whole or not at all.
    pub(crate) fn create(files: &Files, folder: &Path, cache_bytes: u64) -> Result<(), Error> {
        match files {
            Files::System => Tree::create(folder, cache_bytes),
            Files::Memory(mount) => TableHandle::create(mount, folder),
        }
    }

    /// Opens the database at `folder` and makes what recovery did durable.
    /// The caller holds the lock of the data folder.
    pub(crate) fn open(files: &Files, folder: &Path, cache_bytes: u64) -> Result<Self, Error> {
        match files {
            Files::System => Tree::open(folder, cache_bytes).map(Self::Sled),
            Files::Memory(mount) => TableHandle::open(mount, folder).map(Self::Memory),
        }
    }

    /// No changes yet.
    pub(crate) fn changes(&self) -> Changes {
        match self {
            Self::Sled(_) => Changes::Sled(sled::Batch::default()),
            Self::Memory(_) => Changes::Memory(Vec::new()),
        }
    }

    /// Applies changes made by [`changes`](Self::changes), of at most
    /// [`BATCH_RECORDS_MAX`](super::tree::BATCH_RECORDS_MAX) and
    /// [`BATCH_BYTES_MAX`](super::tree::BATCH_BYTES_MAX): after a crash either
    /// all of them are there or none, and nothing of later ones without them.
    pub(crate) fn apply(&self, changes: Changes) -> Result<(), Error> {
        match (self, changes) {
            (Self::Sled(tree), Changes::Sled(batch)) => tree.apply(batch),
            (Self::Memory(table), Changes::Memory(batch)) => table.apply(batch),
            _ => unreachable!("changes are made by the database that they are for"),
        }
    }

    /// Hands everything applied to the operating system: it survives the death
    /// of this process, not yet a power cut.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        match self {
            Self::Sled(tree) => tree.flush(),
            Self::Memory(_) => Ok(()),
        }
    }

    /// Makes everything flushed durable.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        match self {
            Self::Sled(tree) => tree.sync(),
            Self::Memory(table) => table.sync(),
        }
    }

    /// Calls `each` with the records from `from` up to `until`, in key order,
    /// until it answers false.
    pub(crate) fn scan(
        &self,
        from: &[u8],
        until: &[u8],
        each: impl FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        match self {
            Self::Sled(tree) => tree.scan(from, until, each),
            Self::Memory(table) => table.scan(from, until, each),
        }
    }

    /// Up to `limit` keys from `from` up to `until`: the first ones in key order.
    pub(crate) fn first_keys(&self, from: &[u8], until: &[u8], limit: usize) -> Result<Vec<sled::IVec>, Error> {
        match self {
            Self::Sled(tree) => tree.first_keys(from, until, limit),
            Self::Memory(table) => table.keys(from, until, limit, false),
        }
    }

    /// Up to `limit` keys from `from` up to `until`: the last ones, backwards.
    pub(crate) fn last_keys(&self, from: &[u8], until: &[u8], limit: usize) -> Result<Vec<sled::IVec>, Error> {
        match self {
            Self::Sled(tree) => tree.last_keys(from, until, limit),
            Self::Memory(table) => table.keys(from, until, limit, true),
        }
    }

    /// Sets or removes one record, for a test.
    #[cfg(test)]
    pub(crate) fn set(&self, key: &[u8], value: Option<&[u8]>) {
        match (self, value) {
            (Self::Memory(table), value) => table.change(key, value),
            (Self::Sled(tree), Some(value)) => tree.change(|tree| drop(tree.insert(key, value).expect("it works"))),
            (Self::Sled(tree), None) => tree.change(|tree| drop(tree.remove(key).expect("it works"))),
        }
    }

    /// Closes the database. sled writes when it is dropped, and may panic.
    pub(crate) fn close(self) -> Result<(), Error> {
        match self {
            Self::Sled(tree) => tree.close(),
            Self::Memory(_) => Ok(()),
        }
    }
}
