//! The envelope around everything this crate writes, and the one place that
//! encodes.
//!
//! ```text
//! magic "BRTH" | version u16 | kind u16 | length u32 | crc32c u32 | body
//! ```
//!
//! Numbers are little-endian; `length` is that of the body; the checksum covers
//! version, kind, length and body. Bodies are bincode 2 in its standard
//! configuration. Formats change by raising [`VERSION`] and keeping the reader
//! of the old one; kinds are appended, never renumbered.

use std::path::Path;

use bincode::{BorrowDecode, Encode};

use crate::Error;

/// The version that is written. Older ones are read as long as they exist.
pub(crate) const VERSION: u16 = 1;

/// Length of the envelope before the body.
pub(crate) const HEADER_BYTES: usize = 16;

/// The longest body: a snapshot footer with its meta. Decoding refuses to
/// allocate more, whatever the bytes claim.
const BODY_BYTES_MAX: usize = 2 << 20;

const MAGIC: [u8; 4] = *b"BRTH";

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    /// Part of a long entry, not its last one.
    EntryPiece = 1,
    /// The last part of an entry; with it the entry exists.
    EntrySeal = 2,
    /// The vote.
    Vote = 3,
    /// The committed marker.
    Committed = 4,
    /// The purged index and its marker.
    Purged = 5,
    /// Index at which a log without purged entries starts.
    Start = 6,
    /// Number of the last group in the database.
    Group = 7,
    /// Number of the last group known to be durable (file `synced`).
    Synced = 8,
    /// First record of a snapshot file.
    SnapshotHeader = 9,
    /// Last record of a snapshot file.
    SnapshotFooter = 10,
    /// The file `format`.
    Format = 11,
}

/// Why bytes are no record of the kind that was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Defect {
    /// Written in a version this program does not read.
    Version(u16),
    /// Anything else.
    Damage(String),
}

impl Defect {
    /// As an error about record `what` of `path`.
    pub(crate) fn into_error(self, path: &Path, what: impl Into<String>) -> Error {
        match self {
            Self::Version(found) => Error::Version {
                path: path.to_owned(),
                what: what.into(),
                found: u32::from(found),
                supported: u32::from(VERSION),
            },
            Self::Damage(reason) => Error::damaged(path, what, reason),
        }
    }
}

fn configuration() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<BODY_BYTES_MAX>()
}

/// `body` in an envelope. `capacity_bytes` is a guess of the body's length.
pub(crate) fn encode(kind: Kind, body: &impl Encode, capacity_bytes: usize) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER_BYTES + capacity_bytes);
    record.extend_from_slice(&MAGIC);
    record.extend_from_slice(&VERSION.to_le_bytes());
    record.extend_from_slice(&(kind as u16).to_le_bytes());
    record.extend_from_slice(&[0; 8]);
    bincode::encode_into_std_write(body, &mut record, configuration())
        .expect("writing plain structs to a vector cannot fail");
    let body_bytes = record.len() - HEADER_BYTES;
    let length = u32::try_from(body_bytes).expect("bodies are at most 2 MiB, callers check");
    record[8..12].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(&record);
    record[12..16].copy_from_slice(&crc.to_le_bytes());
    record
}

/// The body of the record that `bytes` is, exactly and of this kind.
pub(crate) fn decode<'a, T: BorrowDecode<'a, ()>>(kind: Kind, bytes: &'a [u8]) -> Result<T, Defect> {
    let length = body_length(bytes)?;
    if bytes.len() != HEADER_BYTES + length {
        return Err(Defect::Damage(format!("{} bytes where {} were written", bytes.len(), HEADER_BYTES + length)));
    }
    let stored = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    let version = u16::from_le_bytes([bytes[4], bytes[5]]);
    let found = u16::from_le_bytes([bytes[6], bytes[7]]);
    // The checksum comes first: a flipped bit in the version is damage, not a
    // newer program.
    if stored != checksum(bytes) {
        return Err(Defect::Damage("the checksum does not match".to_owned()));
    }
    if version != VERSION {
        return Err(Defect::Version(version));
    }
    if found != kind as u16 {
        return Err(Defect::Damage(format!("a record of kind {found} stands where kind {} belongs", kind as u16)));
    }
    let (body, used) = bincode::borrow_decode_from_slice(&bytes[HEADER_BYTES..], configuration())
        .map_err(|error| Defect::Damage(format!("the body cannot be decoded: {error}")))?;
    if used != length {
        return Err(Defect::Damage(format!("{} bytes follow the body", length - used)));
    }
    Ok(body)
}

/// Length of the body, from the first [`HEADER_BYTES`] of a record.
pub(crate) fn body_length(bytes: &[u8]) -> Result<usize, Defect> {
    if bytes.len() < HEADER_BYTES {
        return Err(Defect::Damage(format!("only {} bytes", bytes.len())));
    }
    if bytes[..4] != MAGIC {
        return Err(Defect::Damage("it does not start with BRTH".to_owned()));
    }
    let length = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
    if length > BODY_BYTES_MAX {
        return Err(Defect::Damage(format!("a body of {length} bytes")));
    }
    Ok(length)
}

fn checksum(record: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&record[4..12]);
    crc32c::crc32c_append(crc, &record[HEADER_BYTES..])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let record = encode(Kind::Vote, &b"ballot".as_slice(), 16);
        let body: &[u8] = decode(Kind::Vote, &record).unwrap();
        assert_eq!(body, b"ballot");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let record = encode(Kind::Vote, &b"ballot".as_slice(), 16);
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let result = decode::<&[u8]>(Kind::Vote, &damaged);
            assert!(matches!(result, Err(Defect::Damage(_))), "bit {bit}: {result:?}");
        }
    }

    #[test]
    fn every_shortened_record_is_noticed() {
        let record = encode(Kind::Vote, &b"ballot".as_slice(), 16);
        for length in 0..record.len() {
            assert!(decode::<&[u8]>(Kind::Vote, &record[..length]).is_err());
        }
    }

    #[test]
    fn a_record_of_another_kind_is_refused() {
        let record = encode(Kind::Vote, &b"ballot".as_slice(), 16);
        assert!(matches!(decode::<&[u8]>(Kind::Committed, &record), Err(Defect::Damage(_))));
    }

    #[test]
    fn a_newer_version_is_told_apart_from_damage() {
        let mut record = encode(Kind::Vote, &b"ballot".as_slice(), 16);
        record[4..6].copy_from_slice(&2_u16.to_le_bytes());
        let crc = checksum(&record);
        record[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode::<&[u8]>(Kind::Vote, &record), Err(Defect::Version(2)));
    }
}
