//! The journal: what happened, in order, with bounds on how much is kept.
//!
//! Records go, oldest first, when they are too many, too large together, or too
//! old. The journal remembers up to where they went: its *horizon*. A reader
//! whose cursor lies before it has missed something and must be told so.
//!
//! What is kept is a function of the log alone. Sizes and the listings by
//! session and by server are derived from the records; they are kept up as
//! records come and go, built anew from a snapshot, and the same either way.

use std::ops::Bound;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::codec;
use super::event::Event;
use super::ids::{ClientId, LogIndex, ServerId, SessionId};
use super::time::{Millis, Timestamp};

/// Records that go at one time at most, so that no single entry takes long
/// after a week of silence; the rest goes with what follows.
const DROPS_MAX: u32 = 1024;

/// Place of a record: the log entry that caused it, and its number among the
/// records of that entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Log entry.
    pub index: LogIndex,
    /// Number within it, from 0.
    pub number: u32,
}

impl Position {
    /// Comes before every record.
    const FIRST: Self = Self { index: LogIndex(0), number: 0 };

    /// Comes after every record of a log entry.
    pub const fn end_of(index: LogIndex) -> Self {
        Self { index, number: u32::MAX }
    }
}

/// What was known when something happened and is not in the event itself:
/// nothing here repeats what the event says.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Context {
    /// The session that an instruction was about.
    pub session: Option<SessionId>,
    /// The server that a session was on.
    pub server: Option<ServerId>,
    /// The API client whose call brought it about.
    pub client: Option<ClientId>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Where it stands.
    pub position: Position,
    /// When it happened, by the leader's clock.
    pub at: Timestamp,
    /// What happened.
    pub event: Event,
    /// What the event does not say.
    pub context: Context,
}

impl Record {
    /// The session that it concerns.
    pub fn session(&self) -> Option<&SessionId> {
        self.event.session().or(self.context.session.as_ref())
    }

    /// The server that it concerns.
    pub fn server(&self) -> Option<&ServerId> {
        self.event.server().or(self.context.server.as_ref())
    }

    /// The API client whose call brought it about.
    pub fn client(&self) -> Option<&ClientId> {
        self.event.client().or(self.context.client.as_ref())
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Records.
    pub(super) records_max: u32,
    /// Bytes of all records together, encoded.
    pub(super) bytes_max: u64,
    /// Age of a record; 0 sets no limit.
    pub(super) retention: Millis,
}

/// A record and its encoded size.
#[derive(Debug, Clone, PartialEq)]
struct Kept {
    record: Arc<Record>,
    bytes: u64,
}

/// The newest records.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Journal {
    records: OrdMap<Position, Kept>,
    horizon: Option<Position>,
    bytes: u64,
    by_session: OrdSet<(SessionId, Position)>,
    by_server: OrdSet<(ServerId, Position)>,
}

impl Journal {
    /// Adds a record and drops what is then too much.
    pub(super) fn push(&mut self, index: LogIndex, at: Timestamp, event: Event, context: Context, bounds: Bounds) {
        let number = match self.last() {
            Some(last) if last.index == index => last.number.saturating_add(1),
            _ => 0,
        };
        let position = Position { index, number };
        self.keep(Arc::new(Record { position, at, event, context }));
        self.trim(at, bounds);
    }

    /// Drops what is too old by `now`, or too much.
    pub(super) fn trim(&mut self, now: Timestamp, bounds: Bounds) {
        for _ in 0..DROPS_MAX {
            let Some((_, Kept { record, .. })) = self.records.get_min() else { return };
            let is_old = bounds.retention > Millis(0) && record.at + bounds.retention <= now;
            let is_too_much = self.records.len() > bounds.records_max as usize || self.bytes > bounds.bytes_max;
            if !is_old && !is_too_much {
                return;
            }
            let position = record.position;
            self.forget(position);
        }
    }

    fn keep(&mut self, record: Arc<Record>) {
        let position = record.position;
        if let Some(session) = record.session() {
            self.by_session.insert((session.clone(), position));
        }
        if let Some(server) = record.server() {
            self.by_server.insert((server.clone(), position));
        }
        let bytes = codec::encoded_len(&*record);
        self.bytes += bytes;
        self.records.insert(position, Kept { record, bytes });
    }

    fn forget(&mut self, position: Position) {
        let Some(Kept { record, bytes }) = self.records.remove(&position) else { return };
        self.bytes -= bytes;
        if let Some(session) = record.session() {
            self.by_session.remove(&(session.clone(), position));
        }
        if let Some(server) = record.server() {
            self.by_server.remove(&(server.clone(), position));
        }
        self.horizon = self.horizon.max(Some(position));
    }

    /// Records after a position, oldest first; all that are kept for `None`.
    pub fn after(&self, position: Option<Position>) -> impl Iterator<Item = &Arc<Record>> {
        let from = position.map_or(Bound::Unbounded, Bound::Excluded);
        self.records.range((from, Bound::Unbounded)).map(|(_, kept)| &kept.record)
    }

    /// Records after a position that concern a session, oldest first.
    pub fn of_session_after<'a>(
        &'a self,
        session: &SessionId,
        position: Option<Position>,
    ) -> impl Iterator<Item = &'a Arc<Record>> + use<'a> {
        positions_after(&self.by_session, session, position).filter_map(|position| self.record(position))
    }

    /// Records after a position that concern a server, oldest first.
    pub fn of_server_after<'a>(
        &'a self,
        server: &ServerId,
        position: Option<Position>,
    ) -> impl Iterator<Item = &'a Arc<Record>> + use<'a> {
        positions_after(&self.by_server, server, position).filter_map(|position| self.record(position))
    }

    fn record(&self, position: Position) -> Option<&Arc<Record>> {
        self.records.get(&position).map(|kept| &kept.record)
    }

    /// A position such that the records after it are those that happened at a
    /// time or later; `None` when nothing can come before them.
    pub fn position_before(&self, time: Timestamp) -> Option<Position> {
        // Times never run backwards along the log, and all records of an entry
        // have the same one.
        let mut least = self.oldest()?.position.index.0;
        let mut end = self.newest()?.position.index.0.saturating_add(1);
        while least < end {
            let middle = least + (end - least) / 2;
            let from = Position { index: LogIndex(middle), number: 0 };
            match self.records.range(from..).next() {
                Some((position, kept)) if kept.record.at < time => least = position.index.0.saturating_add(1),
                _ => end = middle,
            }
        }
        least.checked_sub(1).map(|index| Position::end_of(LogIndex(index)))
    }

    /// The newest record that was dropped: up to here nothing is kept.
    pub const fn horizon(&self) -> Option<Position> {
        self.horizon
    }

    /// Whether something after a position was dropped.
    pub fn has_lost_after(&self, position: Position) -> bool {
        self.horizon.is_some_and(|horizon| position < horizon)
    }

    /// The oldest record that is kept.
    pub fn oldest(&self) -> Option<&Arc<Record>> {
        self.records.get_min().map(|(_, kept)| &kept.record)
    }

    /// The newest record.
    pub fn newest(&self) -> Option<&Arc<Record>> {
        self.records.get_max().map(|(_, kept)| &kept.record)
    }

    /// The newest record that there ever was, kept or dropped.
    pub fn last(&self) -> Option<Position> {
        self.newest().map(|record| record.position).max(self.horizon)
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Size of all records together, encoded.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All records, oldest first.
    pub(super) fn records(&self) -> impl ExactSizeIterator<Item = &Arc<Record>> {
        self.records.values().map(|kept| &kept.record)
    }

    /// The journal that held these records, after it had dropped those up to
    /// its horizon.
    pub(super) fn restored(horizon: Option<Position>, records: impl IntoIterator<Item = Arc<Record>>) -> Self {
        let mut journal = Self { horizon, ..Self::default() };
        for record in records {
            journal.keep(record);
        }
        journal
    }
}

/// The positions after one that stand under a key, in order.
fn positions_after<'a, K: Ord + Clone>(
    set: &'a OrdSet<(K, Position)>,
    key: &K,
    after: Option<Position>,
) -> impl Iterator<Item = Position> + use<'a, K> {
    let key = key.clone();
    let from = match after {
        Some(after) => Bound::Excluded((key.clone(), after)),
        None => Bound::Included((key.clone(), Position::FIRST)),
    };
    set.range((from, Bound::Unbounded)).take_while(move |(other, _)| *other == key).map(|(_, position)| *position)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
