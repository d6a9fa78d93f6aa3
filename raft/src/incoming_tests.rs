#![allow(clippy::unwrap_used)]

use super::*;
use crate::codec::SnapshotExtra;
use crate::halt::Halt;
use crate::ids::{LogIndex, UnixMillis};
use crate::trail::Trail;
use crate::types::{SnapshotMeta, StoredMembership, log_id};
use berth_storage::{Options, Store};
use std::io::Read;
use tokio_util::sync::CancellationToken;

struct Here {
    _folder: tempfile::TempDir,
    store: Store,
    halt: Halt,
    receiver: SnapshotReceiver,
}

fn here() -> Here {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Options { reserve_bytes: 0, ..Options::default() }).unwrap();
    let halt = Halt::new(CancellationToken::new());
    let receiver = SnapshotReceiver::new(store.snapshots(), Arc::new(Formats::new(1..=2, halt.clone())));
    Here { _folder: folder, store, halt, receiver }
}

fn header(index: u64, format: u16) -> Vec<u8> {
    let meta = SnapshotMeta { last_log_id: Some(log_id(1, index)), last_membership: StoredMembership::default() };
    let extra = SnapshotExtra { format, trail: Trail::begin(LogIndex(0), 1), content_hash: index };
    SnapshotHeader { meta, at: UnixMillis(0), extra: Some(extra) }.encode()
}

fn part(header: &[u8], offset: u64, bytes: &[u8], is_last: bool) -> Part {
    Part { snapshot: number_of(header), offset, bytes: bytes.to_vec(), is_last }
}

#[tokio::test]
async fn an_interrupted_snapshot_goes_on_where_it_was_whoever_sends_it() {
    let here = here();
    let receiver = &here.receiver;
    let header = header(9, 2);
    assert_eq!(receiver.offered(header.clone(), 10).await, Ok(0));
    assert!(receiver.take(part(&header, 0, b"0123", false)).await.is_ok());
    // Its answer was lost, and it comes again.
    let again = receiver.take(part(&header, 0, b"0123", false)).await;
    assert_eq!(again.err(), Some(Refusal::SnapshotOutOfOrder));
    assert_eq!(receiver.offered(header.clone(), 10).await, Ok(4));
    assert!(receiver.take(part(&header, 4, b"456", false)).await.is_ok());
    assert_eq!(receiver.offered(header.clone(), 10).await, Ok(7));

    let complete = receiver.take(part(&header, 7, b"789", true)).await.ok().flatten().unwrap();
    // Not twice at a time.
    assert_eq!(receiver.offered(header.clone(), 10).await, Err(Refusal::SnapshotBusy));
    let SnapshotData::Received { mut writer, meta, index } = complete.data else { panic!() };
    let stored = writer.finish(meta, index).unwrap();
    let mut content = String::new();
    stored.open().read_to_string(&mut content).unwrap();
    assert_eq!((content.as_str(), stored.index()), ("0123456789", 9));
    drop(complete.installing);

    // Once it is there, nothing of it is sent again, and the end is answered all the same.
    assert_eq!(receiver.offered(header.clone(), 10).await, Ok(10));
    let complete = receiver.take(part(&header, 10, b"", true)).await.ok().flatten().unwrap();
    assert!(matches!(complete.data, SnapshotData::Stored(_)));
}

#[tokio::test]
async fn another_snapshot_takes_the_place_of_an_unfinished_one() {
    let here = here();
    let receiver = &here.receiver;
    let (first, second) = (header(9, 2), header(12, 2));
    receiver.offered(first.clone(), 10).await.unwrap();
    assert!(receiver.take(part(&first, 0, b"0123", false)).await.is_ok());
    assert_eq!(receiver.offered(second.clone(), 10).await, Ok(0));
    let late = receiver.take(part(&first, 4, b"4567", false)).await;
    assert_eq!(late.err(), Some(Refusal::SnapshotOutOfOrder));
    // The same with another length is another one.
    assert!(receiver.take(part(&second, 0, b"01", false)).await.is_ok());
    assert_eq!(receiver.offered(second.clone(), 11).await, Ok(0));
}

#[tokio::test]
async fn one_that_is_here_already_takes_the_place_of_an_unfinished_one() {
    let here = here();
    let receiver = &here.receiver;
    let (unfinished, own) = (header(9, 2), header(12, 2));
    receiver.offered(unfinished.clone(), 10).await.unwrap();
    assert!(receiver.take(part(&unfinished, 0, b"0123", false)).await.is_ok());
    // What this replica has made itself from the same entries is the same.
    let mut writer = here.store.snapshots().begin().unwrap();
    std::io::Write::write_all(&mut writer, b"0123456789").unwrap();
    writer.finish(own.clone(), 12).unwrap();
    assert_eq!(receiver.offered(own.clone(), 10).await, Ok(10));
    let complete = receiver.take(part(&own, 10, b"", true)).await.ok().flatten().unwrap();
    assert!(matches!(complete.data, SnapshotData::Stored(_)));
}

#[tokio::test]
async fn a_snapshot_ends_where_it_was_said_to() {
    let here = here();
    let receiver = &here.receiver;
    let header = header(9, 2);
    receiver.offered(header.clone(), 4).await.unwrap();
    for (bytes, is_last) in [(&b"012"[..], true), (b"01234", true), (b"01234", false)] {
        let refused = receiver.take(part(&header, 0, bytes, is_last)).await;
        assert_eq!(refused.err(), Some(Refusal::SnapshotOutOfOrder));
    }
    assert!(receiver.take(part(&header, 0, b"0123", true)).await.is_ok_and(|complete| complete.is_some()));
}

#[tokio::test]
async fn a_snapshot_in_a_format_that_is_not_read_stops_the_replica_before_it_is_sent() {
    let here = here();
    let (receiver, halt) = (&here.receiver, &here.halt);
    assert!(receiver.offered(header(9, 7), 10).await.is_err());
    assert!(halt.reason().is_some());
}

#[tokio::test]
async fn an_unfinished_snapshot_is_dropped_when_nothing_comes_for_long() {
    let here = here();
    let receiver = &here.receiver;
    let header = header(9, 2);
    receiver.offered(header.clone(), 10).await.unwrap();
    assert!(receiver.take(part(&header, 0, b"0123", false)).await.is_ok());
    receiver.drop_stale(KEPT_WITHOUT_NEWS).await;
    assert_eq!(receiver.offered(header.clone(), 10).await, Ok(4));
    receiver.drop_stale(Duration::ZERO).await;
    assert_eq!(receiver.offered(header, 10).await, Ok(0));
}
