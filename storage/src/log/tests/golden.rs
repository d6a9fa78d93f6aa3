//! The records of version 1, byte for byte. These fixtures stay for ever: what
//! was written once must be read.

use super::*;
use crate::codec::{self, Kind};
use record::{Part, Piece, Purged, Seal};

const FIXTURES: &str = include_str!("golden/version_1.txt");

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|position| u8::from_str_radix(&hex[2 * position..2 * position + 2], 16).unwrap()).collect()
}

fn fixture(name: &str) -> Vec<u8> {
    let line = FIXTURES
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .unwrap_or_else(|| panic!("no fixture {name}"));
    bytes(line)
}

fn assert_written(name: &str, record: &[u8]) {
    assert_eq!(hex(record), hex(&fixture(name)), "{name}");
}

#[test]
fn an_entry_of_version_1_is_written_and_read_as_ever() {
    let whole = Entry { index: 300, term: 7, payload: b"sessions".to_vec() };
    let records: Vec<_> = record::records(&whole).collect();
    let [(key, value)] = records.as_slice() else { panic!("{records:?}") };
    assert_written("seal key", key);
    assert_written("seal", value);
    let mut assembler = Assembler::default();
    let read = assembler.push(&fixture("seal key"), &fixture("seal")).unwrap();
    assert_eq!(read, Some(whole));
    let seal: Seal<'_> = codec::decode(Kind::EntrySeal, value).unwrap();
    assert_eq!((seal.pieces, seal.length, seal.bytes), (0, 8, &b"sessions"[..]));
}

#[test]
fn a_piece_of_version_1_is_written_and_read_as_ever() {
    let piece = Piece { index: 300, term: 7, number: 2, bytes: b"part" };
    assert_written("piece key", &record::key(300, Part::Piece(2)));
    assert_written("piece", &codec::encode(Kind::EntryPiece, &piece, 0));
    let stored = fixture("piece");
    let read: Piece<'_> = codec::decode(Kind::EntryPiece, &stored).unwrap();
    assert_eq!(read, piece);
}

#[test]
fn the_markers_of_version_1_are_written_and_read_as_ever() {
    for (name, kind) in [("vote", Kind::Vote), ("committed", Kind::Committed)] {
        assert_written(name, &codec::encode(kind, &b"marker".as_slice(), 0));
        let stored = fixture(name);
        assert_eq!(codec::decode::<&[u8]>(kind, &stored).unwrap(), b"marker");
    }
    for (name, kind) in [("start", Kind::Start), ("group", Kind::Group), ("synced", Kind::Synced)] {
        assert_written(name, &codec::encode(kind, &70_000_u64, 0));
        assert_eq!(codec::decode::<u64>(kind, &fixture(name)).unwrap(), 70_000);
    }
    let purged = Purged { index: 299, marker: b"marker" };
    assert_written("purged", &codec::encode(Kind::Purged, &purged, 0));
    let stored = fixture("purged");
    assert_eq!(codec::decode::<Purged<'_>>(Kind::Purged, &stored).unwrap(), purged);
    assert_written("format", &codec::encode(Kind::Format, &1_u32, 0));
    assert_eq!(codec::decode::<u32>(Kind::Format, &fixture("format")).unwrap(), 1);
}
