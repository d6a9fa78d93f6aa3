//! The log of a replica: entries, vote, committed and purged marker.
//!
//! Callers see a write in memory as soon as it is accepted ([`view`]); a thread
//! of its own brings it to disk ([`writer`]) in a sled database ([`database`],
//! [`tree`]) of checksummed records ([`record`], [`assemble`]), all of which are checked
//! when the log is opened ([`load`]).

mod assemble;
mod batch;
pub(crate) mod database;
mod load;
pub(crate) mod record;
mod shared;
mod synced;
#[cfg(test)]
mod tests;
mod tree;
mod view;
mod writer;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::files::Files;
use crate::memory::Driver;
use crate::{Error, Options};
use assemble::Assembler;
use database::Database;
use shared::{Action, CommittedWaiting, OnFailure, Shared};
use synced::Synced;
use view::{Found, Slot};
pub(crate) use writer::{Turn, Writer};

/// The longest payload of an entry, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;

/// The longest vote or marker, in bytes.
pub const MAX_MARKER_BYTES: usize = record::MARKER_BYTES_MAX;

/// What a write weighs in the queue besides its payload, in bytes.
const WRITE_OVERHEAD_BYTES: u64 = 64;

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position; entries have no gaps.
    pub index: u64,
    /// The term of the leader that made it.
    pub term: u64,
    /// Opaque here; at most [`MAX_PAYLOAD_BYTES`].
    pub payload: Vec<u8>,
}

/// Called exactly once: with `Ok` after the write has become durable, otherwise
/// with the reason why it may not have. Called from the writer thread, or, for a
/// write that is refused at once, from the thread that asked for it. Must be
/// quick and must not wait for another write.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Whether the log can write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It can.
    Healthy,
    /// It waits for room on the disk, and goes on by itself.
    Full {
        /// Bytes free when last looked.
        free_bytes: u64,
        /// Bytes that must be free before writing goes on.
        needed_bytes: u64,
    },
    /// It has stopped for good; the replica must be restarted.
    Failed(Arc<str>),
}

/// A handle on the log. All clones share one log and one order of writes.
#[derive(Debug, Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

impl Log {
    /// Appends entries. They are readable when this returns; `done` is called
    /// when they are durable. They must follow the last entry without a gap (on
    /// an empty log: the last purged one; on one that never held an entry, they
    /// may start anywhere), or nothing is accepted. After an error `done` is
    /// dropped without being called.
    pub fn append(&self, entries: Vec<Entry>, done: Done) -> Result<(), Error> {
        let bytes = entries.iter().map(|entry| entry.payload.len() as u64 + WRITE_OVERHEAD_BYTES).sum::<u64>()
            + WRITE_OVERHEAD_BYTES;
        let options = &self.shared.options;
        let mut state = self.shared.state();
        if let Some(refusal) = state.refusal() {
            return Err(refusal);
        }
        let next = state.view.next();
        check_entries(&entries, next)?;
        // An idle queue takes anything, or a long entry would never fit.
        let fits = state.waiting_bytes + bytes <= options.queue_bytes && state.waiting_writes < options.queue_writes;
        if state.waiting_writes > 0 && !fits {
            return Err(Error::Overloaded { queued_bytes: state.waiting_bytes, queued_writes: state.waiting_writes });
        }
        let start = match next {
            None => entries.first().map(|entry| entry.index),
            Some(_) => None,
        };
        let entries: Vec<_> = entries.into_iter().map(Arc::new).collect();
        let write = state.last_write + 1;
        for entry in &entries {
            state.view.push(Arc::clone(entry), write);
        }
        state.enqueue(bytes, Action::Append { start, entries }, done);
        drop(state);
        self.shared.wake_writer();
        Ok(())
    }

    /// Stores the vote (at most [`MAX_MARKER_BYTES`]). Seen by [`Log::vote`] at
    /// once, durable when `done` says so.
    pub fn save_vote(&self, vote: Vec<u8>, done: Done) {
        if let Err(error) = check_marker("the vote", &vote) {
            return done(Err(error));
        }
        self.write(done, |state| {
            state.view.vote = Some(vote.clone());
            Some(Action::Vote(vote))
        });
    }

    /// Stores the committed marker (at most [`MAX_MARKER_BYTES`]), after the
    /// writes accepted before it: with the next group that is written, or by
    /// itself after half a second; never with a sync of its own. It may be lost
    /// in a power cut, never be ahead of the entries.
    pub fn save_committed(&self, committed: Vec<u8>) {
        if let Err(error) = check_marker("the committed marker", &committed) {
            tracing::error!(%error, "the committed marker is not stored");
            return;
        }
        let mut state = self.shared.state();
        if state.refusal().is_some() {
            return;
        }
        let since = match state.committed.take() {
            Some(waiting) => waiting.since,
            None => Instant::now(),
        };
        state.view.committed = Some(committed.clone());
        state.committed = Some(CommittedWaiting { marker: committed, after_write: state.last_write, since });
        drop(state);
        self.shared.wake_writer();
    }

    /// Drops the entry at `index` and all after it.
    pub fn truncate_from(&self, index: u64, done: Done) {
        self.write(done, |state| {
            state.view.truncate_from(index);
            Some(Action::Truncate(index))
        });
    }

    /// Drops everything through `index`, which may lie beyond the last entry,
    /// and stores `marker` (at most [`MAX_MARKER_BYTES`]) with it. Reads refuse
    /// these entries at once; the space is given back little by little. An
    /// `index` at or below what is purged changes nothing.
    pub fn purge_through(&self, index: u64, marker: Vec<u8>, done: Done) {
        if let Err(error) = check_marker("the purged marker", &marker) {
            return done(Err(error));
        }
        self.write(done, |state| {
            let changed = state.view.purge_through(index, marker.clone());
            // Also what changes nothing is reported in its turn.
            let (index, marker) = match state.view.purged() {
                Some((index, marker)) if !changed => (*index, marker.clone()),
                _ => (index, marker),
            };
            Some(Action::Purge { index, marker })
        });
    }

    fn write(&self, done: Done, accept: impl FnOnce(&mut shared::State) -> Option<Action>) {
        let mut state = self.shared.state();
        let refusal = state.refusal().or_else(|| {
            (state.waiting_writes >= self.shared.options.queue_writes)
                .then(|| Error::Overloaded { queued_bytes: state.waiting_bytes, queued_writes: state.waiting_writes })
        });
        if let Some(refusal) = refusal {
            drop(state);
            return done(Err(refusal));
        }
        if let Some(action) = accept(&mut state) {
            state.enqueue(WRITE_OVERHEAD_BYTES, action, done);
        }
        drop(state);
        self.shared.wake_writer();
    }

    /// The entries of `range` that exist, without gaps from its start, cut off
    /// where their payloads exceed `max_bytes` (but at least one); fewer where
    /// the older ones are on disk only: ask again from there. Empty if there is
    /// no entry at the start of `range`, [`Error::Purged`] if it is purged.
    /// Recent entries come from memory, older ones from disk, each checked. When
    /// the disk is full to the last byte, beyond the reserve, older ones may have
    /// to wait until there is room: not to be called where nothing may block.
    pub fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, Error> {
        loop {
            let state = self.shared.state();
            if let Some(refusal) = state.refusal() {
                return Err(refusal);
            }
            let truncations = state.view.truncations();
            let found = state.view.find(range.clone(), max_bytes)?;
            drop(state);
            let (first, slots) = match found {
                Found::Memory(entries) => {
                    return Ok(entries.iter().map(|entry| Entry::clone(entry)).collect());
                }
                Found::Disk { first, slots } => (first, slots),
            };
            let result = self.read_disk(first, &slots);
            let Err(error) = result else { return result };
            // Closed is the database while it is opened anew, too; the log itself
            // is asked at the next turn.
            if error.is_disk_full() || matches!(error, Error::Closed) {
                self.shared.wait_for_reopening();
                continue;
            }
            // Unless it was dropped while being read, it is damaged.
            let state = self.shared.state();
            let dropped = state.view.truncations() != truncations
                || state.view.purged().is_some_and(|(purged, _)| *purged >= first);
            if !dropped {
                let closed = state.closing;
                drop(state);
                if !closed {
                    self.shared.fail(&error);
                }
                return Err(error);
            }
        }
    }

    /// The same where nothing may block: `None` if it takes the disk.
    pub fn read_recent(&self, range: Range<u64>, max_bytes: u64) -> Result<Option<Vec<Entry>>, Error> {
        let state = self.shared.state();
        if let Some(refusal) = state.refusal() {
            return Err(refusal);
        }
        let found = state.view.find(range, max_bytes)?;
        drop(state);
        Ok(match found {
            Found::Memory(entries) => Some(entries.iter().map(|entry| Entry::clone(entry)).collect()),
            Found::Disk { .. } => None,
        })
    }

    fn read_disk(&self, first: u64, slots: &[Slot]) -> Result<Vec<Entry>, Error> {
        let folder = &self.shared.folder;
        let guard = self.shared.database();
        let database = guard.as_ref().ok_or(Error::Closed)?;
        let mut entries = Vec::with_capacity(slots.len());
        let mut assembler = Assembler::default();
        let until = record::first_key(first + slots.len() as u64);
        database.scan(&record::first_key(first), &until, |key, value| {
            let completed =
                assembler.push(key, value).map_err(|defect| defect.into_error(folder, record::describe_key(key)))?;
            entries.extend(completed);
            Ok(entries.len() < slots.len())
        })?;
        for (position, slot) in slots.iter().enumerate() {
            let index = first + position as u64;
            let as_written = entries.get(position).is_some_and(|entry: &Entry| {
                (entry.index, entry.term) == (index, slot.term) && entry.payload.len() == slot.length as usize
            });
            if !as_written {
                let reason = "it is missing, or another one stands there";
                return Err(Error::damaged(folder, format!("entry {index}"), reason));
            }
        }
        Ok(entries)
    }

    /// Index and term of the last entry, if the log holds any.
    pub fn last(&self) -> Option<(u64, u64)> {
        self.shared.state().view.last()
    }

    /// The last entry, if the log holds any.
    pub fn last_entry(&self) -> Result<Option<Entry>, Error> {
        loop {
            let Some((last, _)) = self.last() else {
                return Ok(None);
            };
            match self.read(last..last + 1, u64::MAX) {
                // Dropped in between: look again.
                Err(Error::Purged { .. }) => {}
                Ok(entries) if entries.is_empty() => {}
                result => return Ok(result?.pop()),
            }
        }
    }

    /// The vote last saved.
    pub fn vote(&self) -> Option<Vec<u8>> {
        self.shared.state().view.vote.clone()
    }

    /// The committed marker last saved.
    pub fn committed(&self) -> Option<Vec<u8>> {
        self.shared.state().view.committed.clone()
    }

    /// The last purged index and its marker.
    pub fn purged(&self) -> Option<(u64, Vec<u8>)> {
        self.shared.state().view.purged().cloned()
    }

    /// Whether the log can write.
    pub fn condition(&self) -> Condition {
        self.shared.state().condition.clone()
    }

    /// Calls `tell` with the reason once the log has stopped for good, at once if it has, and not
    /// at all otherwise. It may stop while nobody waits for a write. One caller only: the last.
    pub fn on_failure(&self, tell: impl FnOnce(Arc<str>) + Send + 'static) {
        let mut state = self.shared.state();
        if let Condition::Failed(reason) = &state.condition {
            let reason = Arc::clone(reason);
            drop(state);
            return tell(reason);
        }
        state.on_failure = Some(OnFailure(Box::new(tell)));
    }

    /// Number of entries since the last purged one.
    pub fn entries_since_purge(&self) -> u64 {
        self.shared.state().view.entries()
    }

    /// Payload bytes of the entries since the last purged one.
    pub fn bytes_since_purge(&self) -> u64 {
        self.shared.state().view.bytes()
    }
}

fn check_entries(entries: &[Entry], next: Option<u64>) -> Result<(), Error> {
    let mut expected = next;
    for entry in entries {
        if entry.payload.len() > MAX_PAYLOAD_BYTES {
            return Err(Error::TooLarge {
                what: format!("entry {}", entry.index),
                bytes: entry.payload.len(),
                limit_bytes: MAX_PAYLOAD_BYTES,
            });
        }
        // The very last index is left out, so that the next one always exists.
        if entry.index == u64::MAX || expected.is_some_and(|expected| expected != entry.index) {
            return Err(Error::Hole { expected: expected.unwrap_or_default(), found: entry.index });
        }
        expected = Some(entry.index + 1);
    }
    Ok(())
}

fn check_marker(what: &str, marker: &[u8]) -> Result<(), Error> {
    if marker.len() > MAX_MARKER_BYTES {
        return Err(Error::TooLarge { what: what.to_owned(), bytes: marker.len(), limit_bytes: MAX_MARKER_BYTES });
    }
    Ok(())
}

/// The running log: stops the writer when told or dropped.
#[derive(Debug)]
pub(crate) struct Running {
    log: Log,
    writer: Option<Engine>,
}

/// What moves the writer.
#[derive(Debug)]
enum Engine {
    Thread(JoinHandle<Result<(), Error>>),
    /// The simulated disk.
    Disk(Arc<Driver>),
}

/// Where a log lies.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) files: Files,
    /// Folder of the database.
    pub(crate) folder: PathBuf,
    /// File of the last durable group.
    pub(crate) synced: PathBuf,
}

impl Running {
    /// Makes an empty log, or takes the one that an interrupted start made: it
    /// is an error if anything was ever written to it.
    pub(crate) fn create(place: &Place, options: &Options) -> Result<(), Error> {
        let exists = place.files.exists(&place.folder);
        if exists {
            let database = Database::open(&place.files, &place.folder, options.cache_bytes)?;
            let loaded = load::load(&database, &place.folder, 0)?;
            database.close()?;
            let unused = loaded.group == 0
                && loaded.view.next().is_none()
                && loaded.view.vote.is_none()
                && loaded.view.committed.is_none()
                && loaded.unfinished.is_none();
            if !unused {
                let reason = "it is in use, but the file format beside it is missing";
                return Err(Error::damaged(&place.folder, "the log", reason));
            }
        }
        Synced::create(&place.files, &place.synced)?;
        if exists {
            return Ok(());
        }
        Database::create(&place.files, &place.folder, options.cache_bytes)
    }

    /// Opens the log, checks all of it, and starts its writer.
    pub(crate) fn open(place: &Place, options: Options) -> Result<Self, Error> {
        let files = &place.files;
        let (synced, acknowledged) = Synced::open(files, &place.synced)?;
        if matches!(files, Files::System) {
            require_sled_files(&place.folder)?;
        }
        let database = Database::open(files, &place.folder, options.cache_bytes)?;
        let loaded = load::load(&database, &place.folder, options.window_bytes)?;
        writer::check_group(&place.folder, loaded.group, acknowledged)?;
        writer::remove_unfinished(&database, loaded.unfinished)?;
        database.flush()?;
        database.sync()?;
        let shared = Arc::new(Shared::new(files.clone(), place.folder.clone(), options, loaded.view, database));
        let writer = Writer::new(Arc::clone(&shared), synced, loaded.group);
        let engine = match files {
            Files::System => std::thread::Builder::new()
                .name("storage-writer".to_owned())
                .spawn(move || writer.run())
                .map(Engine::Thread)
                .map_err(|error| Error::io("start the writer thread for", &place.folder, error))?,
            Files::Memory(mount) => {
                let driver = Driver::new(mount.clone(), writer);
                shared.driver.get_or_init(|| Arc::downgrade(&driver));
                driver.call();
                Engine::Disk(driver)
            }
        };
        Ok(Self { log: Log { shared }, writer: Some(engine) })
    }

    pub(crate) fn log(&self) -> Log {
        self.log.clone()
    }

    /// Writes what is queued, stops the writer and closes the database.
    pub(crate) fn close(&mut self) -> Result<(), Error> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        self.log.shared.state().closing = true;
        self.log.shared.wake.notify_all();
        match writer {
            Engine::Thread(writer) => writer
                .join()
                .unwrap_or_else(|_| Err(Error::Failed { reason: "the writer panicked while closing".into() })),
            Engine::Disk(driver) => driver.close(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            let reason = crate::error::chain(&error);
            tracing::error!(reason, "the log was not closed cleanly");
        }
    }
}

/// sled makes what is missing anew, without a word; its files must be there.
fn require_sled_files(folder: &Path) -> Result<(), Error> {
    for name in ["conf", "db", "blobs"] {
        let path = folder.join(name);
        if !path.exists() {
            return Err(Error::damaged(&path, "it", "it is missing"));
        }
    }
    Ok(())
}
