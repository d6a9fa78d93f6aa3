//! The thread that writes: the only one that changes the database.
//!
//! It takes what is queued, writes it in order, syncs once for all of it, and
//! only then reports it as done. A group of writes goes to sled in several
//! batches; each is atomic and none survives a crash without those before it,
//! so a crash leaves the writes of a group up to some point. Writing a group a
//! second time, after sled had to be opened anew, leaves the same state, and a
//! crash meanwhile as good a one: each append first removes what stands there.
//!
//! On a simulated disk there is no thread: [`inline`] takes the same steps when
//! the disk says so.

mod inline;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::Condition;
use super::batch::Batch;
use super::database::Database;
use super::load;
use super::record::{self, Purged};
use super::shared::{Action, Shared, State, Write};
use super::synced::Synced;
use super::tree::panic_text;
use crate::Error;
use crate::codec::{self, Kind};
pub(crate) use inline::Turn;

/// Bytes taken into one group, which bounds how long the first of it waits for
/// the last; a single longer entry is a group of its own.
const GROUP_BYTES: u64 = 4 << 20;
/// Writes taken into one group.
const GROUP_WRITES: usize = 4096;
/// Keys of purged entries removed with one group. Thousands at once would stall
/// it; a group that adds more keys removes as many.
const PURGE_KEYS: usize = 256;
/// Pause between removals while nothing else is to be written.
const PURGE_PAUSE: Duration = Duration::from_millis(10);
/// How long a committed marker waits for a group to ride with.
const COMMITTED_WAIT: Duration = Duration::from_millis(500);
/// How often a full disk is looked at.
const FULL_PAUSE: Duration = Duration::from_millis(100);
/// Room for what sled writes besides the records of a group: whole segments, and
/// pages moved out of old ones.
const SEGMENTS_BYTES: u64 = 16 << 20;
/// What sled writes for each byte of a record, at most and roughly.
const WRITE_AMPLIFICATION: u64 = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    synced: Synced,
    /// Number of the last durable group.
    group: u64,
    /// Entries through this index are purged, on disk.
    purged: Option<u64>,
    /// Whether keys of purged entries may be left.
    leftovers: bool,
    /// What is being written; reported on whatever happens.
    in_flight: Group,
    /// Whether an attempt before may have written some of it.
    again: bool,
    /// Whether it is written and not synced yet.
    is_written: bool,
}

/// Writes that share a sync.
#[derive(Debug, Default)]
struct Group {
    writes: VecDeque<Write>,
    committed: Option<Vec<u8>>,
}

enum Job {
    Group,
    Committed(Vec<u8>),
    Purge,
    Stop(Result<(), Error>),
}

impl Writer {
    /// A writer that goes on after `group`, the last one in the database.
    pub(crate) fn new(shared: Arc<Shared>, synced: Synced, group: u64) -> Self {
        let purged = shared.state().view.purged().map(|(index, _)| *index);
        let (leftovers, in_flight) = (purged.is_some(), Group::default());
        Self { shared, synced, group, purged, leftovers, in_flight, again: false, is_written: false }
    }

    /// Writes until the store is closed or fails.
    pub(crate) fn run(mut self) -> Result<(), Error> {
        let result = catch_unwind(AssertUnwindSafe(|| self.work())).unwrap_or_else(|panic| {
            Err(Error::Failed { reason: format!("the writer panicked: {}", panic_text(panic.as_ref())).into() })
        });
        self.finish(result)
    }

    /// Ends with `result`: what is left is reported as failed, the database closed.
    pub(crate) fn finish(mut self, result: Result<(), Error>) -> Result<(), Error> {
        if let Err(error) = &result
            && !matches!(error, Error::Full { .. })
        {
            self.shared.fail(error);
        }
        self.refuse_rest(&result);
        let database = self.shared.database_exclusively().take();
        let closed = database.map_or(Ok(()), Database::close);
        result.and(closed)
    }

    fn work(&mut self) -> Result<(), Error> {
        loop {
            match self.next_job() {
                Job::Group => {
                    self.with_room(Self::write_group)?;
                    self.report();
                }
                Job::Committed(marker) => {
                    self.in_flight.committed = Some(marker);
                    let result = self.with_room(Self::write_committed);
                    self.in_flight.committed = None;
                    unless_full(result)?;
                }
                Job::Purge => unless_full(self.with_room(Self::write_purge))?,
                Job::Stop(result) => return result,
            }
        }
    }

    /// Waits for something to do. Takes the group into `in_flight`.
    fn next_job(&mut self) -> Job {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state();
        let mut paused = false;
        loop {
            let is_old = state.committed.as_ref().is_some_and(|waiting| waiting.since.elapsed() >= COMMITTED_WAIT);
            if let Some(job) = self.take_job(&mut state, paused, is_old) {
                return job;
            }
            let limit = if self.leftovers {
                Some(PURGE_PAUSE)
            } else {
                state.committed.as_ref().map(|waiting| COMMITTED_WAIT.saturating_sub(waiting.since.elapsed()))
            };
            state = match limit {
                Some(limit) => {
                    let (state, timeout) =
                        shared.wake.wait_timeout(state, limit).unwrap_or_else(std::sync::PoisonError::into_inner);
                    paused = timeout.timed_out();
                    state
                }
                None => shared.wake.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner),
            };
        }
    }

    /// What is to be done, if anything is. `paused` when nothing came for a
    /// while, `is_old` when the committed marker has waited long enough.
    fn take_job(&mut self, state: &mut State, paused: bool, is_old: bool) -> Option<Job> {
        if let Condition::Failed(reason) = &state.condition {
            return Some(Job::Stop(Err(Error::Failed { reason: Arc::clone(reason) })));
        }
        let mut bytes = 0;
        while let Some(write) = state.queue.front()
            && self.in_flight.writes.len() < GROUP_WRITES
            && (bytes == 0 || bytes + write.bytes <= GROUP_BYTES)
        {
            bytes += write.bytes;
            self.in_flight.writes.extend(state.queue.pop_front());
        }
        let last = self.in_flight.writes.back().map(|write| write.number);
        let in_order = |after: u64| state.queue.is_empty() || last.is_some_and(|last| last >= after);
        let ripe = (state.committed.as_ref())
            .is_some_and(|waiting| in_order(waiting.after_write) && (last.is_some() || state.closing || is_old));
        let committed = if ripe { state.committed.take() } else { None };
        match (last, committed) {
            (Some(_), committed) => {
                self.in_flight.committed = committed.map(|waiting| waiting.marker);
                Some(Job::Group)
            }
            (None, Some(waiting)) => Some(Job::Committed(waiting.marker)),
            (None, None) if state.closing => Some(Job::Stop(Ok(()))),
            (None, None) if self.leftovers && paused => Some(Job::Purge),
            (None, None) => None,
        }
    }

    /// Does `write` once there is room for it; again if the disk fills up
    /// meanwhile.
    fn with_room(&mut self, write: fn(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        // With no reserve the disk is filled to the last byte.
        if self.shared.options.reserve_bytes > 0 {
            self.wait_for_room()?;
        }
        loop {
            match write(self) {
                Err(error) if error.is_disk_full() => self.reopen(&error)?,
                result => return result,
            }
        }
    }

    /// Bytes that must be free before what is in flight is written. Votes and
    /// removals may use half of the reserve: without them a replica with a full
    /// disk could not even follow.
    fn needed_bytes(&self) -> u64 {
        let reserve_bytes = self.shared.options.reserve_bytes;
        let has_entries = (self.in_flight.writes.iter()).any(|write| matches!(write.action, Action::Append { .. }));
        if has_entries {
            let bytes: u64 = self.in_flight.writes.iter().map(|write| write.bytes).sum();
            reserve_bytes + bytes * WRITE_AMPLIFICATION + SEGMENTS_BYTES
        } else {
            reserve_bytes / 2
        }
    }

    /// Waits while the disk is full. Fails only when the store is closed then.
    fn wait_for_room(&mut self) -> Result<(), Error> {
        self.wait_for(self.needed_bytes())
    }

    fn wait_for(&mut self, needed_bytes: u64) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let mut waited = false;
        loop {
            let full = match shared.files.require_room(&shared.folder, needed_bytes) {
                Ok(()) => break,
                Err(full) => full,
            };
            let Error::Full { free_bytes, .. } = full else {
                return Err(full);
            };
            let mut state = shared.state();
            if let Some(refusal) = state.refusal() {
                return Err(if state.closing { full } else { refusal });
            }
            state.condition = Condition::Full { free_bytes, needed_bytes };
            if !waited {
                waited = true;
                tracing::warn!(folder = %shared.folder.display(), free_bytes, needed_bytes,
                    "the disk is full, writes wait for room");
            }
            drop(shared.wake.wait_timeout(state, FULL_PAUSE).unwrap_or_else(std::sync::PoisonError::into_inner));
        }
        let mut state = shared.state();
        if let Condition::Full { .. } = state.condition {
            state.condition = Condition::Healthy;
            tracing::info!(folder = %shared.folder.display(), "there is room on the disk again, writing goes on");
        }
        Ok(())
    }

    /// After sled met a full disk: waits for room, opens the database anew, and
    /// checks that everything acknowledged is there.
    fn reopen(&mut self, cause: &Error) -> Result<(), Error> {
        tracing::warn!(folder = %self.shared.folder.display(), %cause,
            "the disk filled up during a write");
        let shared = Arc::clone(&self.shared);
        self.wait_for(self.needed_bytes().max(SEGMENTS_BYTES))?;
        // Readers of what is not in memory wait from here on, without this lock.
        let failed = shared.database_exclusively().take();
        if let Some(database) = failed
            && let Err(error) = database.close()
        {
            tracing::warn!(%error, "the database did not close cleanly, it is checked next");
        }
        let database = loop {
            let opened = Database::open(&shared.files, &shared.folder, shared.options.cache_bytes);
            match opened.and_then(|database| self.verify(&database).map(|()| database)) {
                Ok(database) => break database,
                Err(error) if error.is_disk_full() => {
                    self.wait_for(self.needed_bytes().max(SEGMENTS_BYTES))?;
                    std::thread::sleep(FULL_PAUSE);
                }
                Err(error) => return Err(error),
            }
        };
        *shared.database_exclusively() = Some(database);
        self.again = true;
        shared.has_reopened();
        tracing::info!(folder = %shared.folder.display(), "the database was opened again, nothing is missing");
        Ok(())
    }

    /// Checks that `database` holds all that was acknowledged.
    fn verify(&self, database: &Database) -> Result<(), Error> {
        let folder = &self.shared.folder;
        let loaded = load::load(database, folder, 0)?;
        check_group(folder, loaded.group, self.group)?;
        let state = self.shared.state();
        for index in state.view.range() {
            let lost = !state.view.is_newer_than(index, state.durable_write)
                && loaded.view.slot(index) != state.view.slot(index);
            if lost {
                return Err(Error::damaged(
                    folder,
                    format!("entry {index}"),
                    "it was acknowledged and is not there after a full disk",
                ));
            }
        }
        drop(state);
        remove_unfinished(database, loaded.unfinished)
    }

    /// Writes the group in flight and makes it durable.
    fn write_group(&mut self) -> Result<(), Error> {
        self.write_records()?;
        self.make_durable()
    }

    /// Writes the group in flight.
    fn write_records(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let guard = shared.database();
        let database = guard.as_ref().ok_or(Error::Closed)?;
        let mut batch = Batch::new(database);
        for write in &self.in_flight.writes {
            match &write.action {
                Action::Append { start, entries } => {
                    if let Some(start) = start {
                        batch.insert(record::START_KEY, codec::encode(Kind::Start, start, 9))?;
                    }
                    if let Some(first) = entries.first().filter(|_| self.again) {
                        // What the attempt before got to later in the group may
                        // stand there: parts of two entries must never mix.
                        batch.apply()?;
                        truncate(database, first.index)?;
                    }
                    for entry in entries {
                        for (key, value) in record::records(entry) {
                            batch.insert(&key, value)?;
                        }
                    }
                }
                Action::Vote(vote) => {
                    batch.insert(record::VOTE_KEY, encode_marker(Kind::Vote, vote))?;
                }
                Action::Truncate(index) => {
                    batch.apply()?;
                    truncate(database, *index)?;
                }
                Action::Purge { index, marker } => {
                    let purged = Purged { index: *index, marker };
                    let value = codec::encode(Kind::Purged, &purged, marker.len() + 16);
                    batch.insert(record::PURGED_KEY, value)?;
                    self.purged = Some(*index);
                    self.leftovers = true;
                }
            }
        }
        if let Some(committed) = &self.in_flight.committed {
            let value = encode_marker(Kind::Committed, committed);
            batch.insert(record::COMMITTED_KEY, value)?;
        }
        let limit = PURGE_KEYS.max(batch.inserted());
        if self.leftovers {
            // The purged marker goes first: nothing is removed without it.
            batch.apply()?;
            self.leftovers = batch.remove_purged(self.purged, limit)?;
        }
        let group = self.group + 1;
        batch.insert(record::GROUP_KEY, codec::encode(Kind::Group, &group, 9))?;
        batch.apply()?;
        database.flush()
    }

    /// Makes the group that was written durable.
    fn make_durable(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let guard = shared.database();
        let database = guard.as_ref().ok_or(Error::Closed)?;
        database.sync()?;
        let group = self.group + 1;
        self.group = group;
        match self.synced.note(group) {
            // The group is durable; the next note catches up.
            Err(error) if error.is_disk_full() => {
                tracing::warn!(%error, "the last group could not be noted");
                Ok(())
            }
            result => result,
        }
    }

    /// Writes a group of one, for the first time or again.
    #[cfg(test)]
    pub(super) fn write_alone(&mut self, action: Action, again: bool) -> Result<(), Error> {
        let write = Write { number: 1, bytes: 0, action, done: Box::new(drop) };
        self.in_flight = Group { writes: VecDeque::from([write]), committed: None };
        self.again = again;
        self.write_group()
    }

    fn write_committed(&mut self) -> Result<(), Error> {
        let guard = self.shared.database();
        let database = guard.as_ref().ok_or(Error::Closed)?;
        let mut batch = Batch::new(database);
        if let Some(committed) = &self.in_flight.committed {
            let value = encode_marker(Kind::Committed, committed);
            batch.insert(record::COMMITTED_KEY, value)?;
        }
        batch.apply()?;
        database.flush()
    }

    fn write_purge(&mut self) -> Result<(), Error> {
        let guard = self.shared.database();
        let database = guard.as_ref().ok_or(Error::Closed)?;
        let mut batch = Batch::new(database);
        self.leftovers = batch.remove_purged(self.purged, PURGE_KEYS)?;
        batch.apply()?;
        database.flush()
    }

    /// Reports the group in flight as durable.
    fn report(&mut self) {
        let group = std::mem::take(&mut self.in_flight);
        self.again = false;
        let mut state = self.shared.state();
        for write in &group.writes {
            state.waiting_bytes -= write.bytes;
            state.waiting_writes -= 1;
            state.durable_write = write.number;
        }
        let durable_write = state.durable_write;
        let window_bytes = self.shared.options.window_bytes;
        state.view.trim_window(window_bytes, durable_write);
        drop(state);
        for write in group.writes {
            call(write, Ok(()));
        }
    }

    /// Reports everything not written as failed. Nothing is accepted any more:
    /// the store is closing or has failed.
    fn refuse_rest(&mut self, result: &Result<(), Error>) {
        let mut state = self.shared.state();
        state.closing = true;
        let error = match result {
            Err(full @ Error::Full { .. }) => full.clone(),
            _ => state.refusal().unwrap_or(Error::Closed),
        };
        let queued = std::mem::take(&mut state.queue);
        drop(state);
        let in_flight = std::mem::take(&mut self.in_flight);
        for write in in_flight.writes.into_iter().chain(queued) {
            call(write, Err(error.clone()));
        }
    }
}

/// Nobody waits for committed markers and removals: a full disk at closing, the
/// only time it is an error, may drop them.
fn unless_full(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Full { .. }) => Ok(()),
        result => result,
    }
}

/// Calls back. A panic there must not keep the others from being called.
fn call(write: Write, result: Result<(), Error>) {
    let done = write.done;
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| done(result))) {
        let reason = panic_text(panic.as_ref());
        tracing::error!(reason, "whoever waited for a write panicked");
    }
}

fn encode_marker(kind: Kind, marker: &[u8]) -> Vec<u8> {
    codec::encode(kind, &marker, marker.len() + 8)
}

/// Fails if the database ends before the group that was acknowledged.
pub(crate) fn check_group(folder: &std::path::Path, found: u64, acknowledged: u64) -> Result<(), Error> {
    if found < acknowledged {
        return Err(Error::damaged(
            folder,
            "the end of the log",
            format!("it ends with group {found}, but group {acknowledged} was acknowledged"),
        ));
    }
    Ok(())
}

/// Removes the parts of an entry that was being written when a crash came.
pub(crate) fn remove_unfinished(database: &Database, entry: Option<u64>) -> Result<(), Error> {
    let Some(index) = entry else { return Ok(()) };
    tracing::info!(index, "removing parts of an entry that a crash interrupted; it was never acknowledged");
    truncate(database, index)
}

/// Removes the keys of entry `index` and all after it, last ones first: what a
/// crash leaves has no hole.
fn truncate(database: &Database, index: u64) -> Result<(), Error> {
    loop {
        let keys = database.last_keys(&record::first_key(index), record::ENTRIES_END, PURGE_KEYS)?;
        if keys.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(database);
        for key in keys {
            batch.remove(key)?;
        }
        batch.apply()?;
    }
}
