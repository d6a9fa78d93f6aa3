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
    let commands = vec![b"one".to_vec(), Vec::new(), vec![0xff; 3]];
    let batch = Batch { at: UnixMillis(1_700_000_000_000), work: Work::Calls(vec![Call { id: None, commands }]) };
    let payloads = [EntryPayload::Blank, EntryPayload::Membership(membership()), EntryPayload::Normal(batch)];
    let numbered = (0..).zip(payloads);
    numbered.map(|(index, payload)| Entry { log_id: log_id(7, index), payload }).collect()
}

/// What only version 2 can say.
fn entries_of_calls() -> Vec<Entry> {
    let id = CallId { replica: ReplicaId(3), incarnation: 2, sequence: 1_000, answered_below: 990 };
    let calls = vec![
        Call { id: Some(id), commands: vec![b"one".to_vec()] },
        Call { id: None, commands: vec![b"two".to_vec(), Vec::new()] },
    ];
    let works = [Work::Calls(calls), Work::Calls(Vec::new()), Work::RaiseFormat(2)];
    let batches = works.map(|work| Batch { at: UnixMillis(1_700_000_000_000), work });
    let numbered = (0..).zip(batches);
    numbered.map(|(index, batch)| Entry { log_id: log_id(7, index), payload: EntryPayload::Normal(batch) }).collect()
}

fn snapshot_header() -> SnapshotHeader {
    let meta = SnapshotMeta {
        last_log_id: Some(log_id(7, 1_000)),
        last_membership: StoredMembership::new(Some(log_id(1, 0)), membership()),
    };
    SnapshotHeader { meta, at: UnixMillis(1_700_000_000_000), extra: None }
}

fn snapshot_header_with_calls() -> SnapshotHeader {
    let trail = Trail { since: LogIndex(512), version: 3, hash: 0x0123_4567_89ab_cdef };
    let extra = SnapshotExtra { format: 2, trail, content_hash: 0xfedc_ba98_7654_3210 };
    SnapshotHeader { extra: Some(extra), ..snapshot_header() }
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

/// The same of version 2.
const ENTRIES_V2: [&str; 3] = [
    "020003fd0068e5cf8b01000002010302fbe8030a01036f6e6500020374776f00",
    "020003fd0068e5cf8b01000000",
    "020004fd0068e5cf8b01000002",
];
const SNAPSHOT_META_V2: &str = "02000107fbe8030101000102010203010862313a3437313030026631020862323a3437313030026632fb2c010a623330303a34373130300466333030fd0068e5cf8b01000002fb000203fdefcdab8967452301fd1032547698badcfe";

#[test]
fn the_bytes_of_version_1_are_what_they_always_were() {
    let written: Vec<String> = entries().into_iter().map(|entry| hex(&encode_entry(entry).payload)).collect();
    assert_eq!(written, ENTRIES_V1);
    let vote = Vote::new_committed(7, 300);
    assert_eq!(hex(&encode_vote(ReplicaId(3), &vote)), VOTE_V1);
    assert_eq!(hex(&encode_log_id(Some(&log_id(7, 1_000)))), LOG_ID_V1);
    assert_eq!(hex(&encode_log_id(None)), NO_LOG_ID_V1);
    assert_eq!(hex(&snapshot_header().encode()), SNAPSHOT_META_V1);
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
    assert_eq!(SnapshotHeader::decode(&unhex(SNAPSHOT_META_V1)).unwrap(), snapshot_header());
}

#[test]
fn the_bytes_of_version_2_are_what_they_always_were_and_are_read_back() {
    let written: Vec<String> = entries_of_calls().into_iter().map(|entry| hex(&encode_entry(entry).payload)).collect();
    assert_eq!(written, ENTRIES_V2);
    assert_eq!(hex(&snapshot_header_with_calls().encode()), SNAPSHOT_META_V2);
    for (entry, bytes) in entries_of_calls().into_iter().zip(ENTRIES_V2) {
        let stored = berth_storage::Entry { index: entry.log_id.index, term: 7, payload: unhex(bytes) };
        let read = decode_entry(&stored).unwrap();
        assert_eq!((read.log_id, read.payload), (entry.log_id, entry.payload));
    }
    let header = SnapshotHeader::decode(&unhex(SNAPSHOT_META_V2)).unwrap();
    assert_eq!((header.format(), &header), (2, &snapshot_header_with_calls()));
}

#[test]
fn what_version_1_cannot_say_is_not_read_from_it() {
    for bytes in ENTRIES_V2 {
        let mut payload = unhex(bytes);
        payload[0] = 1;
        let error = decode_entry(&berth_storage::Entry { index: 1, term: 7, payload }).unwrap_err();
        assert!(matches!(error, Error::Impossible { .. }), "{error}");
    }
}

#[test]
fn a_newer_version_and_bytes_left_over_are_refused_by_name() {
    let newer = decode_log_id("the purged marker", &[2, 0, 0]).unwrap_err();
    assert_eq!(newer.to_string(), "the purged marker has version 2, but this build reads up to 1; use a newer build");
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
        version in 1..=2_u16,
    ) {
        if versioned && bytes.len() >= 2 {
            bytes[..2].copy_from_slice(&version.to_le_bytes());
        }
        drop(Request::decode(&bytes));
        drop(Answer::decode(&bytes));
        drop(decode_vote(&bytes));
        drop(SnapshotHeader::decode(&bytes));
        drop(decode_entry(&berth_storage::Entry { index: 1, term: 1, payload: bytes }));
    }

    #[test]
    fn every_batch_comes_back(
        at in any::<u64>(),
        calls in proptest::collection::vec((
            proptest::option::of((any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>())),
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20),
        ), 0..5),
    ) {
        let calls = calls.into_iter().map(|(id, commands)| {
            let id = id.map(|(replica, incarnation, sequence, below)| CallId {
                replica: ReplicaId(replica),
                incarnation,
                sequence,
                answered_below: below.min(sequence),
            });
            Call { id, commands }
        });
        let batch = Batch { at: UnixMillis(at), work: Work::Calls(calls.collect()) };
        let entry = Entry { log_id: log_id(3, 9), payload: EntryPayload::Normal(batch) };
        let read = decode_entry(&encode_entry(entry.clone())).unwrap();
        prop_assert_eq!(read.payload, entry.payload);
    }
}
