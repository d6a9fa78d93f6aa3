//! The log as the consensus library sees it, on top of `berth-storage`.
//!
//! Every write goes into storage's one queue in the order of the calls. Entries are readable when
//! `append` returns and reported when they are durable. A read that fails is an error that stops
//! the replica: it is never taken for an absent entry.

use crate::codec;
use crate::ids::ReplicaId;
use crate::snapshot::blocking;
use crate::types::{Entry, LogId, Types, Vote};
use berth_storage::Log;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

/// The most payload bytes read from storage at once, unless one entry is longer. Also what one
/// replication request holds.
const READ_BYTES_MAX: u64 = 1024 * 1024;

/// The most payload bytes handed to storage in one append, unless one entry is longer.
const APPEND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How many bytes may wait for the disk. Appends beyond wait here, so that storage's own bound
/// ([`QUEUE_BYTES`]) is never reached.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What storage is told to take: [`WAITING_BYTES_MAX`] and one largest entry, twice over.
pub(crate) const QUEUE_BYTES: u64 = 192 * 1024 * 1024;

/// Smallest share of [`WAITING_BYTES_MAX`] that one append takes: bounds their number too.
const APPEND_SHARE_MIN: usize = 8 * 1024;

/// The log store, and at the same time a reader of it.
#[derive(Clone)]
pub(crate) struct LogStore {
    log: Log,
    replica: ReplicaId,
    room: Arc<Semaphore>,
    /// Ends waiting for the disk: on a full one it could take for ever.
    stop: CancellationToken,
}

impl LogStore {
    pub(crate) fn new(log: Log, replica: ReplicaId, stop: CancellationToken) -> Self {
        Self { log, replica, room: Arc::new(Semaphore::new(WAITING_BYTES_MAX)), stop }
    }

    /// Reads entries, where it may block if they are on disk only.
    async fn read(&self, range: Range<u64>, bytes_max: u64) -> Result<Vec<Entry>, io::Error> {
        let decode = |stored: Vec<berth_storage::Entry>| -> io::Result<Vec<Entry>> {
            Ok(stored.iter().map(codec::decode_entry).collect::<Result<_, _>>()?)
        };
        let recent = self.log.read_recent(range.clone(), bytes_max).map_err(|error| storage_error(&error))?;
        if let Some(stored) = recent {
            return decode(stored);
        }
        let log = self.log.clone();
        let read = blocking("read the log", move || {
            decode(log.read(range, bytes_max).map_err(|error| storage_error(&error))?)
        });
        tokio::select! {
            biased;
            entries = read => entries,
            () = self.stop.cancelled() => Err(stopping("a read")),
        }
    }

    /// `range` cut to what the log holds: nothing purged, nothing that is not there yet.
    fn present(&self, range: &impl RangeBounds<u64>) -> Range<u64> {
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        start_of(range).max(self.first())..end.min(self.next())
    }

    fn first(&self) -> u64 {
        self.log.purged().map_or(0, |(index, _)| index + 1)
    }

    fn next(&self) -> u64 {
        self.log.last().map_or(self.first(), |(index, _)| index + 1)
    }

    async fn wait_for(
        &self,
        what: &'static str,
        write: impl FnOnce(&Log, berth_storage::Done),
    ) -> Result<(), io::Error> {
        let (done, flushed) = oneshot::channel();
        // Nobody listens any more only when the library was dropped in between: nothing to tell.
        write(&self.log, Box::new(move |result| drop(done.send(result))));
        tokio::select! {
            biased;
            flushed = flushed => match flushed {
                Ok(result) => result.map_err(|error| storage_error(&error)),
                Err(_) => Err(io::Error::other(format!(
                    "storage was closed while writing {what}"
                ))),
            },
            () = self.stop.cancelled() => Err(stopping(what)),
        }
    }
}

fn stopping(what: &str) -> io::Error {
    io::Error::other(format!("the replica stops while {what} waits for the disk"))
}

fn storage_error(error: &berth_storage::Error) -> io::Error {
    io::Error::other(codec::chain(error))
}

fn start_of(range: &impl RangeBounds<u64>) -> u64 {
    match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    }
}

fn missing(index: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log has no entry {index} though it should"))
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let mut wanted = self.present(&range);
        let mut entries = Vec::new();
        while wanted.start < wanted.end {
            let some = self.read(wanted.clone(), READ_BYTES_MAX).await?;
            if some.is_empty() {
                // Storage checks that a log goes on from where it began. One that has begun late
                // lacks what is before its beginning, and nothing else.
                if entries.is_empty() && self.log.purged().is_none() {
                    wanted.start += 1;
                    continue;
                }
                return Err(missing(wanted.start));
            }
            wanted.start += some.len() as u64;
            entries.extend(some);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let Some(bytes) = self.log.vote() else {
            return Ok(None);
        };
        let (_, vote) = codec::decode_vote(&bytes)?;
        Ok(Some(vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start..end, READ_BYTES_MAX).await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl futures_util::Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // Committed entries cannot change any more, so they are read piece by piece: a long
        // replay is never in memory as a whole. What is purged is an error here: these entries
        // are about to be applied, and none may be left out.
        let present = self.present(&range);
        let wanted = start_of(&range)..present.end;
        let state = (self.clone(), wanted, Vec::new().into_iter());
        futures_util::stream::try_unfold(state, |(store, mut wanted, mut ready)| async move {
            if ready.as_slice().is_empty() && wanted.start < wanted.end {
                let some = store.read(wanted.clone(), READ_BYTES_MAX).await?;
                if some.is_empty() {
                    return Err(missing(wanted.start));
                }
                wanted.start += some.len() as u64;
                ready = some.into_iter();
            }
            Ok(ready.next().map(|entry| (entry, (store, wanted, ready))))
        })
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let last_purged_log_id = match self.log.purged() {
            None => None,
            Some((_, marker)) => codec::decode_log_id("the purged marker", &marker)?,
        };
        let last_log_id = match self.log.last() {
            None => last_purged_log_id,
            Some((index, term)) => Some(crate::types::log_id(term, index)),
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = codec::encode_vote(self.replica, vote);
        self.wait_for("the vote", |log, done| log.save_vote(bytes, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.log.save_committed(codec::encode_log_id(committed.as_ref()));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        match self.log.committed() {
            None => Ok(None),
            Some(bytes) => Ok(codec::decode_log_id("the committed marker", &bytes)?),
        }
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = <Types as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut entries = entries.into_iter().map(codec::encode_entry).peekable();
        let mut callback = Some(callback);
        while let Some(first) = entries.next() {
            let mut bytes = first.payload.len();
            let mut group = vec![first];
            while let Some(next) = entries.next_if(|next| bytes + next.payload.len() <= APPEND_BYTES_MAX) {
                bytes += next.payload.len();
                group.push(next);
            }
            // Writes become durable in their order, so the last group speaks for all.
            let flushed = if entries.peek().is_none() { callback.take() } else { None };
            let share = bytes.clamp(APPEND_SHARE_MIN, WAITING_BYTES_MAX);
            let share = u32::try_from(share).unwrap_or(u32::MAX);
            let room = Arc::clone(&self.room);
            let permit = tokio::select! {
                biased;
                permit = room.acquire_many_owned(share) => {
                    permit.map_err(|closed| io::Error::other(closed.to_string()))?
                }
                () = self.stop.cancelled() => return Err(stopping("an append")),
            };
            let done = move |result: Result<(), berth_storage::Error>| {
                drop(permit);
                if let Some(flushed) = flushed {
                    flushed.io_completed(result.map_err(|error| storage_error(&error)));
                }
            };
            self.log.append(group, Box::new(done)).map_err(|error| storage_error(&error))?;
        }
        if let Some(callback) = callback {
            callback.io_completed(Ok(()));
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        self.wait_for("a truncation", |log, done| log.truncate_from(from, done)).await
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        // Not waited for: a full disk must not hold up the rest. A failure stops storage as a
        // whole and reaches the replica with the next write.
        let marker = codec::encode_log_id(Some(&through));
        let done = move |result: Result<(), berth_storage::Error>| {
            if let Err(error) = result {
                tracing::error!(error = %codec::chain(&error), %through, "cannot purge the log");
            }
        };
        self.log.purge_through(through.index, marker, Box::new(done));
        Ok(())
    }
}

#[cfg(test)]
#[path = "log_store_tests.rs"]
mod tests;
