//! The records of the log database: their keys and their bodies.
//!
//! ```text
//! "e" index piece   -> EntryPiece      part of a long entry
//! "e" index 2^32-1  -> EntrySeal       its last part; the entry exists with it
//! "m" name          -> vote, committed, purged, start, group
//! ```
//!
//! Numbers in keys are big-endian, so keys sort by index and the seal comes
//! after the pieces: written in key order and removed against it, an entry is
//! never there without all its parts.

use bincode::{BorrowDecode, Encode};

use super::Entry;
use crate::codec::{self, Kind};

/// Payload bytes in one value. sled keeps a leaf of up to 17 values in one
/// page, and moves pages from 128 KiB on to files that it never syncs; 17 of
/// these stay well below.
pub(crate) const PIECE_BYTES: usize = 6 << 10;

/// The longest vote or marker: they must fit one value.
pub(crate) const MARKER_BYTES_MAX: usize = 4 << 10;

pub(crate) const VOTE_KEY: &[u8] = b"mvote";
pub(crate) const COMMITTED_KEY: &[u8] = b"mcommitted";
pub(crate) const PURGED_KEY: &[u8] = b"mpurged";
pub(crate) const START_KEY: &[u8] = b"mstart";
pub(crate) const GROUP_KEY: &[u8] = b"mgroup";
/// Prefix of all keys that are not entries.
pub(crate) const MARKER_PREFIX: &[u8] = b"m";
/// First key behind all entries.
pub(crate) const ENTRIES_END: &[u8] = b"f";

const ENTRY_PREFIX: u8 = b'e';
const SEAL: u32 = u32::MAX;

/// Part of a long entry; `number` counts from 0.
#[derive(Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub(crate) struct Piece<'a> {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) number: u32,
    pub(crate) bytes: &'a [u8],
}

/// The last part of an entry, behind `pieces` others.
#[derive(Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub(crate) struct Seal<'a> {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) pieces: u32,
    /// Length of the whole payload.
    pub(crate) length: u32,
    /// Checksum of the whole payload.
    pub(crate) crc: u32,
    pub(crate) bytes: &'a [u8],
}

/// The purged marker.
#[derive(Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub(crate) struct Purged<'a> {
    pub(crate) index: u64,
    pub(crate) marker: &'a [u8],
}

/// Which record of which entry a key names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Piece(u32),
    Seal,
}

pub(crate) fn key(index: u64, part: Part) -> [u8; 13] {
    let number = match part {
        Part::Piece(number) => number,
        Part::Seal => SEAL,
    };
    let mut key = [ENTRY_PREFIX; 13];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The first key that entry `index` may have.
pub(crate) fn first_key(index: u64) -> [u8; 13] {
    key(index, Part::Piece(0))
}

/// Reads an entry's key; `None` if it is none.
pub(crate) fn parse_key(key: &[u8]) -> Option<(u64, Part)> {
    let key: &[u8; 13] = key.try_into().ok()?;
    let (&prefix, numbers) = key.split_first()?;
    let (index, number) = numbers.split_first_chunk::<8>()?;
    let number = u32::from_be_bytes(number.try_into().ok()?);
    let part = if number == SEAL { Part::Seal } else { Part::Piece(number) };
    (prefix == ENTRY_PREFIX).then_some((u64::from_be_bytes(*index), part))
}

/// Whether a key is one of an entry's.
pub(crate) fn is_entry_key(key: &[u8]) -> bool {
    parse_key(key).is_some()
}

/// How a key is called in an error.
pub(crate) fn describe_key(key: &[u8]) -> String {
    match parse_key(key) {
        Some((index, Part::Seal)) => format!("entry {index}"),
        Some((index, Part::Piece(number))) => format!("entry {index}, piece {number}"),
        None => format!("key {}", key.escape_ascii()),
    }
}

/// The records of an entry, in the order in which they must be written.
pub(crate) fn records(entry: &Entry) -> impl Iterator<Item = ([u8; 13], Vec<u8>)> {
    let payload = entry.payload.as_slice();
    // The seal takes the last piece, which may be empty.
    let pieces = payload.len().saturating_sub(1) / PIECE_BYTES;
    let (long, tail) = payload.split_at(pieces * PIECE_BYTES);
    let number_of =
        |position: usize| u32::try_from(position).expect("16 MiB cut in pieces of 6 KiB are fewer than 2^32");
    let seal = Seal {
        index: entry.index,
        term: entry.term,
        pieces: number_of(pieces),
        length: number_of(payload.len()),
        crc: crc32c::crc32c(payload),
        bytes: tail,
    };
    let seal = codec::encode(Kind::EntrySeal, &seal, tail.len() + 40);
    long.chunks(PIECE_BYTES)
        .enumerate()
        .map(move |(position, bytes)| {
            let piece = Piece { index: entry.index, term: entry.term, number: number_of(position), bytes };
            (key(entry.index, Part::Piece(piece.number)), codec::encode(Kind::EntryPiece, &piece, bytes.len() + 32))
        })
        .chain(std::iter::once((key(entry.index, Part::Seal), seal)))
}
