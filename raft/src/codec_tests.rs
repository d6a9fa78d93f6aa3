#![allow(clippy::unwrap_used)]

use super::*;
use crate::wire::{Answer, Refusal, Request};
use proptest::prelude::*;

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

fn membership() -> Membership {
    let member = |id: u64| Member { address: format!("b{id}:47100"), folder: format!("f{id}") };
    let nodes: BTreeMap<u64, Member> = [1, 2, 300].into_iter().map(|id| (id, member(id))).collect();
    Membership::new(vec![BTreeSet::from([1, 2])], nodes).unwrap()
}

fn entries() -> Vec<Entry> {
    let batch = Batch { at: UnixMillis(1_700_000_000_000), commands: vec![b"one".to_vec(), Vec::new(), vec![0xff; 3]] };
    let payloads = [EntryPayload::Blank, EntryPayload::Membership(membership()), EntryPayload::Normal(batch)];
    let numbered = (0..).zip(payloads);
    numbered.map(|(index, payload)| Entry { log_id: log_id(7, index), payload }).collect()
}

fn snapshot_meta() -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: Some(log_id(7, 1_000)),
        last_membership: StoredMembership::new(Some(log_id(1, 0)), membership()),
    }
}

/// Bytes that version 1 wrote. They are read for ever; a line is never changed, only added.
const ENTRIES_V1: [&str; 3] = [
    "010000",
    "0100010102010203010862313a3437313030026631020862323a3437313030026632fb2c010a623330303a34373130300466333030",
    "010002fd0068e5cf8b01000003036f6e650003ffffff",
];
const VOTE_V1: &str = "01000307fb2c0101";
const LOG_ID_V1: &str = "01000107fbe803";
const NO_LOG_ID_V1: &str = "010000";
const SNAPSHOT_META_V1: &str = "01000107fbe8030101000102010203010862313a3437313030026631020862323a3437313030026632fb2c010a623330303a34373130300466333030fd0068e5cf8b010000";

#[test]
fn the_bytes_of_version_1_are_what_they_always_were() {
    let written: Vec<String> = entries().into_iter().map(|entry| hex(&encode_entry(entry).payload)).collect();
    assert_eq!(written, ENTRIES_V1);
    let vote = Vote::new_committed(7, 300);
    assert_eq!(hex(&encode_vote(ReplicaId(3), &vote)), VOTE_V1);
    assert_eq!(hex(&encode_log_id(Some(&log_id(7, 1_000)))), LOG_ID_V1);
    assert_eq!(hex(&encode_log_id(None)), NO_LOG_ID_V1);
    let meta = encode_snapshot_meta(&snapshot_meta(), UnixMillis(1_700_000_000_000));
    assert_eq!(hex(&meta), SNAPSHOT_META_V1);
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn the_bytes_of_version_1_are_read_back() {
    for (entry, bytes) in entries().into_iter().zip(ENTRIES_V1) {
        let stored = berth_storage::Entry { index: entry.log_id.index, term: 7, payload: unhex(bytes) };
        let read = decode_entry(&stored).unwrap();
        assert_eq!((read.log_id, read.payload), (entry.log_id, entry.payload));
    }
    let vote = (ReplicaId(3), Vote::new_committed(7, 300));
    assert_eq!(decode_vote(&unhex(VOTE_V1)).unwrap(), vote);
    let id = decode_log_id("a marker", &unhex(LOG_ID_V1)).unwrap();
    assert_eq!(id, Some(log_id(7, 1_000)));
    let none = decode_log_id("a marker", &unhex(NO_LOG_ID_V1)).unwrap();
    assert_eq!(none, None);
    let meta = decode_snapshot_meta(&unhex(SNAPSHOT_META_V1)).unwrap();
    assert_eq!(meta, (snapshot_meta(), UnixMillis(1_700_000_000_000)));
}

#[test]
fn a_newer_version_and_bytes_left_over_are_refused_by_name() {
    let newer = decode_log_id("the purged marker", &[2, 0, 0]).unwrap_err();
    assert_eq!(newer.to_string(), "the purged marker has version 2, but this build reads 1; use a newer build");
    let longer = decode_log_id("the purged marker", &[1, 0, 0, 0]).unwrap_err();
    assert!(matches!(longer, Error::TrailingBytes { extra: 1, .. }));
    let shorter = decode_log_id("the purged marker", &[1]).unwrap_err();
    assert!(matches!(shorter, Error::NoVersion { length: 1, .. }));
}

#[test]
fn a_refusal_keeps_its_place_on_the_wire() {
    let refused = Answer::Refused(Refusal::NoLeader);
    assert_eq!(hex(&refused.encode()), "01000001");
    assert_eq!(hex(&Request::ReadIndex.encode()), "010006");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        versioned in any::<bool>(),
    ) {
        if versioned && bytes.len() >= 2 {
            bytes[..2].copy_from_slice(&1_u16.to_le_bytes());
        }
        drop(Request::decode(&bytes));
        drop(Answer::decode(&bytes));
        drop(decode_vote(&bytes));
        drop(decode_snapshot_meta(&bytes));
        drop(decode_entry(&berth_storage::Entry { index: 1, term: 1, payload: bytes }));
    }

    #[test]
    fn every_batch_comes_back(
        at in any::<u64>(),
        commands in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..50), 0..20),
    ) {
        let batch = Batch { at: UnixMillis(at), commands };
        let entry = Entry { log_id: log_id(3, 9), payload: EntryPayload::Normal(batch) };
        let read = decode_entry(&encode_entry(entry.clone())).unwrap();
        prop_assert_eq!(read.payload, entry.payload);
    }
}
