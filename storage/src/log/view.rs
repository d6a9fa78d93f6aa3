//! What the log holds as its callers see it: everything that was accepted,
//! durable or not. In memory: term and length of each entry, and the recent
//! entries themselves (the window).
//!
//! Invariants: the slots cover the live entries without a gap; the window is an
//! end of the log; an entry that is not durable yet is always in the window.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::Entry;
use crate::Error;

/// What is remembered of every live entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) term: u64,
    pub(crate) length: u32,
}

/// An entry of the window.
#[derive(Debug, Clone)]
struct Recent {
    entry: Arc<Entry>,
    /// Number of the write that appended it.
    write: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Index of the first slot; meaningless without slots.
    first: u64,
    slots: VecDeque<Slot>,
    bytes: u64,
    window: VecDeque<Recent>,
    window_bytes: u64,
    truncations: u64,
    pub(crate) vote: Option<Vec<u8>>,
    pub(crate) committed: Option<Vec<u8>>,
    purged: Option<(u64, Vec<u8>)>,
}

/// Where the entries of a range are.
#[derive(Debug)]
pub(crate) enum Found {
    /// All of them in memory.
    Memory(Vec<Arc<Entry>>),
    /// On disk: what is to be found there for each index from the first on.
    Disk { first: u64, slots: Vec<Slot> },
}

impl View {
    /// A view of a log that was read from disk up to `purged`.
    pub(crate) fn purged_at(purged: Option<(u64, Vec<u8>)>) -> Self {
        Self { purged, ..Self::default() }
    }

    pub(crate) fn purged(&self) -> Option<&(u64, Vec<u8>)> {
        self.purged.as_ref()
    }

    /// Number of live entries.
    pub(crate) fn entries(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Payload bytes of the live entries.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How often entries were dropped from the end; tells a reader whether an
    /// index may stand for another entry now.
    pub(crate) fn truncations(&self) -> u64 {
        self.truncations
    }

    /// Index and term of the last entry.
    pub(crate) fn last(&self) -> Option<(u64, u64)> {
        let slot = self.slots.back()?;
        Some((self.first + self.entries() - 1, slot.term))
    }

    /// The only index that may be appended next; `None` if any may, on a log
    /// that never held an entry.
    pub(crate) fn next(&self) -> Option<u64> {
        match (self.last(), &self.purged) {
            (Some((last, _)), _) => Some(last + 1),
            (None, Some((purged, _))) => Some(purged + 1),
            (None, None) => None,
        }
    }

    /// Term and length of the entry at `index`.
    pub(crate) fn slot(&self, index: u64) -> Option<Slot> {
        let position = index.checked_sub(self.first)?;
        self.slots.get(usize::try_from(position).ok()?).copied()
    }

    /// Indexes of the live entries.
    pub(crate) fn range(&self) -> Range<u64> {
        self.first..self.first + self.entries()
    }

    /// Index of the first entry in the window: those before it are on disk only.
    fn window_start(&self) -> u64 {
        self.range().end - self.window.len() as u64
    }

    /// Whether the entry at `index` was appended by a write after `write`.
    pub(crate) fn is_newer_than(&self, index: u64, write: u64) -> bool {
        index
            .checked_sub(self.window_start())
            .and_then(|position| self.window.get(usize::try_from(position).ok()?))
            .is_some_and(|recent| recent.write > write)
    }

    /// Adds an entry that follows the last one.
    pub(crate) fn push(&mut self, entry: Arc<Entry>, write: u64) {
        if self.slots.is_empty() {
            self.first = entry.index;
        }
        assert_eq!(entry.index, self.range().end, "callers refuse entries that do not follow the last one");
        let length = u32::try_from(entry.payload.len()).expect("callers refuse more than 16 MiB");
        self.slots.push_back(Slot { term: entry.term, length });
        self.bytes += u64::from(length);
        self.window_bytes += u64::from(length);
        self.window.push_back(Recent { entry, write });
    }

    /// Drops the entry at `index` and all after it.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        while self.range().end > index {
            let Some(slot) = self.slots.pop_back() else {
                break;
            };
            self.bytes -= u64::from(slot.length);
            if let Some(recent) = self.window.pop_back() {
                self.window_bytes -= recent.entry.payload.len() as u64;
            }
        }
        self.truncations += 1;
    }

    /// Drops everything through `index`. False if that was done before.
    pub(crate) fn purge_through(&mut self, index: u64, marker: Vec<u8>) -> bool {
        if self.purged.as_ref().is_some_and(|(purged, _)| *purged >= index) {
            return false;
        }
        while !self.slots.is_empty() && self.first <= index {
            if self.window_start() == self.first {
                self.pop_window();
            }
            if let Some(slot) = self.slots.pop_front() {
                self.bytes -= u64::from(slot.length);
            }
            self.first += 1;
        }
        self.purged = Some((index, marker));
        true
    }

    /// Gives up entries of the window beyond `limit_bytes`, oldest first, as far
    /// as the writes through `durable_write` brought them to disk.
    pub(crate) fn trim_window(&mut self, limit_bytes: u64, durable_write: u64) {
        while self.window_bytes > limit_bytes && self.window.front().is_some_and(|recent| recent.write <= durable_write)
        {
            self.pop_window();
        }
    }

    fn pop_window(&mut self) {
        if let Some(recent) = self.window.pop_front() {
            self.window_bytes -= recent.entry.payload.len() as u64;
        }
    }

    /// The entries of `range` that exist, cut off at `max_bytes` but not before
    /// the first; and where they are.
    pub(crate) fn find(&self, range: Range<u64>, max_bytes: u64) -> Result<Found, Error> {
        if range.is_empty() {
            return Ok(Found::Memory(Vec::new()));
        }
        if let Some((purged, _)) = self.purged
            && range.start <= purged
        {
            return Err(Error::Purged { index: range.start, purged });
        }
        let live = self.range();
        if range.start < live.start || range.start >= live.end {
            return Ok(Found::Memory(Vec::new()));
        }
        let mut slots = Vec::new();
        let mut bytes = 0;
        for index in range.start..range.end.min(live.end) {
            let Some(slot) = self.slot(index) else { break };
            bytes += u64::from(slot.length);
            if bytes > max_bytes && !slots.is_empty() {
                break;
            }
            slots.push(slot);
        }
        let Some(position) = range.start.checked_sub(self.window_start()) else {
            // Not beyond the window: what follows can be asked for next.
            let on_disk = usize::try_from(self.window_start() - range.start).unwrap_or(usize::MAX);
            slots.truncate(on_disk);
            return Ok(Found::Disk { first: range.start, slots });
        };
        let recent = self.window.iter().skip(usize::try_from(position).unwrap_or(usize::MAX)).take(slots.len());
        Ok(Found::Memory(recent.map(|recent| Arc::clone(&recent.entry)).collect()))
    }
}
