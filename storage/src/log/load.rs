//! Reads a whole log database and checks every record of it.

use std::path::Path;
use std::sync::Arc;

use super::Entry;
use super::assemble::Assembler;
use super::database::Database;
use super::record::{self, Purged};
use super::view::View;
use crate::Error;
use crate::codec::{self, Defect, Kind};

/// Number of the write that stands for everything found on disk.
pub(crate) const LOADED_WRITE: u64 = 0;

/// A log as found on disk.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) view: View,
    /// Number of the last group.
    pub(crate) group: u64,
    /// The entry that was being written when a crash came: its parts are to be
    /// removed.
    pub(crate) unfinished: Option<u64>,
}

/// Reads `database`, which lies in `folder`. Keeps the last `window_bytes` of
/// payload in memory.
pub(crate) fn load(database: &Database, folder: &Path, window_bytes: u64) -> Result<Loaded, Error> {
    let mut purged = None;
    let mut vote = None;
    let mut committed = None;
    let mut start = None;
    let mut group = 0;
    // What sorts before the entries, between them and the markers, or behind.
    let strangers = [(&b""[..], &b"e"[..]), (record::ENTRIES_END, record::MARKER_PREFIX), (b"n", &[0xff; 16])];
    for (from, until) in strangers {
        database.scan(from, until, |key, _| Err(unknown(folder, key)))?;
    }
    database.scan(record::MARKER_PREFIX, b"n", |key, value| {
        let bytes = |kind| codec::decode::<&[u8]>(kind, value).map(<[u8]>::to_vec);
        let read = match key {
            record::VOTE_KEY => bytes(Kind::Vote).map(|found| vote = Some(found)),
            record::COMMITTED_KEY => bytes(Kind::Committed).map(|found| committed = Some(found)),
            record::PURGED_KEY => codec::decode::<Purged<'_>>(Kind::Purged, value)
                .map(|found| purged = Some((found.index, found.marker.to_vec()))),
            record::START_KEY => codec::decode(Kind::Start, value).map(|found: u64| start = Some(found)),
            record::GROUP_KEY => codec::decode(Kind::Group, value).map(|found| group = found),
            _ => return Err(unknown(folder, key)),
        };
        read.map_err(|defect| defect.into_error(folder, record::describe_key(key)))?;
        Ok(true)
    })?;

    let expected_first = match &purged {
        Some((index, _)) => Some(index + 1),
        None => start,
    };
    let mut view = View::purged_at(purged);
    view.vote = vote;
    view.committed = committed;
    let mut assembler = Assembler::default();
    // Entries below may be there still: purging removes them little by little.
    let from = record::first_key(view.purged().map_or(0, |(index, _)| index + 1));
    database.scan(&from, record::ENTRIES_END, |key, value| {
        let failed = |defect: Defect| defect.into_error(folder, record::describe_key(key));
        if let Some(entry) = assembler.push(key, value).map_err(failed)? {
            let expected = view.last().map(|(last, _)| last + 1).or(expected_first);
            if expected != Some(entry.index) {
                return Err(hole(folder, expected, &entry));
            }
            view.push(Arc::new(entry), LOADED_WRITE);
            view.trim_window(window_bytes, LOADED_WRITE);
        }
        Ok(true)
    })?;

    let unfinished = assembler.unfinished();
    if let Some(index) = unfinished {
        let next = view.next().or(expected_first);
        // On a log without entries its start is not known yet.
        if next.is_some_and(|next| next != index) {
            return Err(Error::damaged(
                folder,
                format!("entry {index}"),
                "its last part is missing, and it does not follow the last entry",
            ));
        }
    }
    Ok(Loaded { view, group, unfinished })
}

fn unknown(folder: &Path, key: &[u8]) -> Error {
    Error::damaged(folder, record::describe_key(key), "no record of this name is ever written")
}

fn hole(folder: &Path, expected: Option<u64>, found: &Entry) -> Error {
    let reason = match expected {
        Some(expected) => format!("entry {expected} must stand there: the log has a hole"),
        None => "the record of where the log starts is missing".to_owned(),
    };
    Error::damaged(folder, format!("entry {}", found.index), reason)
}
