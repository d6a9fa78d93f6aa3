//! Batches of a size that [`Database::apply`] takes.

use super::database::{Changes, Database};
use super::record;
use super::tree::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::Error;

/// Changes, applied whenever they are as many as fit.
pub(crate) struct Batch<'a> {
    database: &'a Database,
    pending: Changes,
    bytes: usize,
    records: usize,
    inserted: usize,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(database: &'a Database) -> Self {
        Self { database, pending: database.changes(), bytes: 0, records: 0, inserted: 0 }
    }

    pub(crate) fn insert(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), Error> {
        self.make_room(key.len() + value.len())?;
        self.inserted += 1;
        self.pending.insert(key, value);
        Ok(())
    }

    /// Keys inserted since it was made.
    pub(crate) fn inserted(&self) -> usize {
        self.inserted
    }

    pub(crate) fn remove(&mut self, key: sled::IVec) -> Result<(), Error> {
        self.make_room(key.len())?;
        self.pending.remove(key);
        Ok(())
    }

    fn make_room(&mut self, bytes: usize) -> Result<(), Error> {
        if self.bytes + bytes > BATCH_BYTES_MAX || self.records == BATCH_RECORDS_MAX {
            self.apply()?;
        }
        self.bytes += bytes;
        self.records += 1;
        Ok(())
    }

    /// Adds the removal of up to `limit` keys of purged entries. Answers whether
    /// there may be more.
    pub(crate) fn remove_purged(&mut self, purged: Option<u64>, limit: usize) -> Result<bool, Error> {
        let Some(purged) = purged else {
            return Ok(false);
        };
        let until = record::first_key(purged.saturating_add(1));
        let keys = self.database.first_keys(&record::first_key(0), &until, limit)?;
        let more = keys.len() == limit;
        for key in keys {
            self.remove(key)?;
        }
        Ok(more)
    }

    /// Applies what is pending.
    pub(crate) fn apply(&mut self) -> Result<(), Error> {
        if self.records == 0 {
            return Ok(());
        }
        self.bytes = 0;
        self.records = 0;
        self.database.apply(std::mem::replace(&mut self.pending, self.database.changes()))
    }
}
