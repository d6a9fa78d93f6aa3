//! The journal: what happened, in order, with a bound on how much is kept.

use std::ops::Bound;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::ids::LogIndex;
use super::time::Timestamp;

/// Place of a record: the log entry that caused it, and its number among the
/// records of that entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Log entry.
    pub index: LogIndex,
    /// Number within it, from 0.
    pub number: u32,
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
}

/// The newest records.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Journal {
    records: imbl::OrdMap<Position, Arc<Record>>,
}

impl Journal {
    /// Adds a record and drops the oldest beyond `records_max`.
    pub(super) fn push(&mut self, index: LogIndex, at: Timestamp, event: Event, records_max: u32) {
        let number = match self.newest() {
            Some(last) if last.position.index == index => last.position.number + 1,
            _ => 0,
        };
        let position = Position { index, number };
        self.records.insert(position, Arc::new(Record { position, at, event }));
        while self.records.len() > records_max as usize {
            let Some(oldest) = self.oldest().map(|record| record.position) else { return };
            self.records.remove(&oldest);
        }
    }

    /// Records after a position, oldest first; all that are kept for `None`.
    pub fn after(&self, position: Option<Position>) -> impl Iterator<Item = &Arc<Record>> {
        let from = position.map_or(Bound::Unbounded, Bound::Excluded);
        self.records.range((from, Bound::Unbounded)).map(|(_, record)| record)
    }

    /// All records, oldest first.
    pub(super) fn records(&self) -> impl ExactSizeIterator<Item = &Arc<Record>> {
        self.records.values()
    }

    /// The journal that held these records.
    pub(super) fn from_records(records: impl IntoIterator<Item = Arc<Record>>) -> Self {
        Self { records: records.into_iter().map(|record| (record.position, record)).collect() }
    }

    /// The oldest record that is kept.
    pub fn oldest(&self) -> Option<&Arc<Record>> {
        self.records.get_min().map(|(_, record)| record)
    }

    /// The newest record.
    pub fn newest(&self) -> Option<&Arc<Record>> {
        self.records.get_max().map(|(_, record)| record)
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ServerId;

    fn lost(server: &str) -> Event {
        Event::ServerLost { server: ServerId::new(server).expect("valid") }
    }

    #[test]
    fn the_oldest_records_make_room_and_a_cursor_reads_on() {
        let mut journal = Journal::default();
        for index in 1..=3 {
            journal.push(LogIndex(index), Timestamp(index), lost("a"), 4);
            journal.push(LogIndex(index), Timestamp(index), lost("b"), 4);
        }
        assert_eq!(journal.len(), 4);
        let positions =
            |after| journal.after(after).map(|r| (r.position.index.0, r.position.number)).collect::<Vec<_>>();
        assert_eq!(positions(None), [(2, 0), (2, 1), (3, 0), (3, 1)]);
        let cursor = Position { index: LogIndex(2), number: 1 };
        assert_eq!(positions(Some(cursor)), [(3, 0), (3, 1)]);
    }
}
