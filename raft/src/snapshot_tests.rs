#![allow(clippy::unwrap_used)]

use super::*;
use crate::codec;
use crate::halt::Halt;
use crate::ids::ReplicaId;
use crate::testing::{Command, Ledger};
use crate::types;
use berth_storage::{Options, Store};
use std::path::Path;
use std::process::Command as Process;

const MIB: usize = 1024 * 1024;

struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_noticed_even_when_its_error_is_wrapped() {
    let mut noting = NotesFullDisk { writer: Full, full: false, stop: CancellationToken::new() };
    let wrapped = noting.write_all(b"state").map_err(io::Error::other);
    assert!(wrapped.is_err_and(|error| !is_disk_full(&error)));
    assert!(noting.full);
}

#[test]
fn a_replica_that_stops_writes_no_more_of_a_snapshot() {
    let mut noting = NotesFullDisk { writer: Vec::new(), full: false, stop: CancellationToken::new() };
    noting.write_all(b"state").unwrap();
    noting.stop.cancel();
    noting.write_all(b"more").unwrap_err();
    assert_eq!((noting.writer.as_slice(), noting.full), (&b"state"[..], false));
}

fn ledger(ids: u64) -> Ledger {
    use crate::ids::{LogIndex, Stamp};
    let mut ledger = Ledger::default();
    for id in 0..ids {
        let stamp = Stamp { index: LogIndex(id + 1), at: UnixMillis(id) };
        ledger.apply(stamp, Command::Add { id, amount: 1, padding: Vec::new() }, &mut Vec::new());
    }
    ledger
}

fn header(index: u64) -> SnapshotHeader {
    let last_log_id = Some(types::log_id(1, index));
    let meta = SnapshotMeta { last_log_id, last_membership: types::StoredMembership::default() };
    SnapshotHeader { meta, at: UnixMillis(index), extra: None }
}

fn meta(index: u64) -> Vec<u8> {
    header(index).encode()
}

fn reading(formats: std::ops::RangeInclusive<u16>) -> (Arc<Formats>, Halt) {
    let halt = Halt::new(CancellationToken::new());
    (Arc::new(Formats::new(formats, halt.clone())), halt)
}

/// What is read of a snapshot that a leader sent.
async fn install(snapshots: &Snapshots, data: SnapshotData, stop: CancellationToken) -> io::Result<Installed<Ledger>> {
    super::install(snapshots, data, &reading(1..=2).0, stop).await
}

/// What a leader sent, complete.
fn received(snapshots: &Snapshots, content: &[u8], index: u64) -> SnapshotData {
    let mut writer = Box::new(snapshots.begin().unwrap());
    writer.write_all(content).unwrap();
    SnapshotData::Received { writer, meta: meta(index), index }
}

fn content(state: &Ledger) -> Vec<u8> {
    let mut content = Vec::new();
    state.write_snapshot(&mut content).unwrap();
    content
}

fn open(folder: &Path, reserve_bytes: usize) -> Store {
    Store::open(folder, Options { reserve_bytes: reserve_bytes as u64, ..Options::default() }).unwrap()
}

fn current(snapshots: &Snapshots) -> Option<u64> {
    snapshots.current().unwrap().map(|snapshot| snapshot.index())
}

#[tokio::test]
async fn a_received_snapshot_that_cannot_be_read_does_not_become_current() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0);
    let snapshots = store.snapshots();
    let good = received(&snapshots, &content(&ledger(5)), 5);
    install(&snapshots, good, CancellationToken::new()).await.unwrap();

    let mut longer = content(&ledger(9));
    longer.push(0);
    for bad in [&b"\xff"[..], &longer] {
        let bad = received(&snapshots, bad, 9);
        let error = install(&snapshots, bad, CancellationToken::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert_eq!(current(&snapshots), Some(5));
    }
    store.close().unwrap();
    assert_eq!(current(&open(folder.path(), 0).snapshots()), Some(5));
}

#[tokio::test]
async fn an_older_snapshot_that_is_installed_late_yields_the_state_and_meta_of_the_current_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0);
    let snapshots = store.snapshots();
    let late = received(&snapshots, &content(&ledger(5)), 5);
    let newer = received(&snapshots, &content(&ledger(9)), 9);
    install(&snapshots, newer, CancellationToken::new()).await.unwrap();
    let installed = install(&snapshots, late, CancellationToken::new()).await.unwrap();
    assert_eq!(installed.state, ledger(9));
    assert_eq!(installed.header.meta.last_log_id.map(|last| last.index), Some(9));
    assert_eq!(installed.header.at, UnixMillis(9));
}

/// A file system of 96 MiB in memory, gone when dropped. Needs root.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted =
            Process::new("mount").args(["-t", "tmpfs", "-o", "size=96m", "tmpfs"]).arg(folder.path()).status();
        let mounted = mounted.is_ok_and(|status| status.success());
        assert!(mounted, "cannot mount a tmpfs: this test has to run as root");
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Process::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_received_snapshot_that_finds_no_room_is_installed_once_there_is() {
    let disk = SmallDisk::mount();
    let store = open(&disk.0.path().join("data"), 8 * MIB);
    let snapshots = store.snapshots();
    // Both kinds: one received, one that lies in another folder.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(elsewhere.path(), 0);
    let mut writer = other.snapshots().begin().unwrap();
    writer.write_all(&content(&ledger(2_000))).unwrap();
    let foreign = SnapshotData::Stored(writer.finish(meta(2_000), 2_000).unwrap());
    let data = received(&snapshots, &content(&ledger(1_000)), 1_000);

    for (mut data, index) in [(data, 1_000), (foreign, 2_000)] {
        let ballast = disk.0.path().join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        while file.write_all(&vec![0; 64 * 1024]).is_ok() {}
        drop(file);
        let before = current(&snapshots);
        let error = try_install::<Ledger>(&snapshots, &mut data, &reading(1..=2).0).unwrap_err();
        assert!(is_disk_full(&error), "{error}");
        assert_eq!(current(&snapshots), before);

        let mut waiting = std::pin::pin!(install(&snapshots, data, CancellationToken::new()));
        let moment = Duration::from_millis(100);
        assert!(tokio::time::timeout(moment, &mut waiting).await.is_err(), "installed without room");
        std::fs::remove_file(&ballast).unwrap();
        let installed = waiting.await;
        assert_eq!(installed.unwrap().state, ledger(index));
        assert_eq!(current(&snapshots), Some(index));
    }
}

#[tokio::test]
async fn waiting_for_room_ends_when_the_replica_stops() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = open(elsewhere.path(), 0);
    let mut writer = other.snapshots().begin().unwrap();
    writer.write_all(&content(&ledger(3))).unwrap();
    let stored = writer.finish(meta(3), 3).unwrap();
    // No disk has this much room.
    let store = open(folder.path(), 1 << 60);
    let stop = CancellationToken::new();
    let snapshots = store.snapshots();
    let waiting = install(&snapshots, SnapshotData::Stored(stored), stop.clone());
    stop.cancel();
    let error = waiting.await.unwrap_err();
    assert!(is_disk_full(&error), "{error}");
}

/// The moment after `index`, with one call kept, and a snapshot's content and header of it.
fn with_a_call(index: u64) -> (Moment<Ledger>, Vec<u8>, SnapshotHeader) {
    let mut replicated = Replicated { format: 2, ..Replicated::new(1) };
    let id = types::CallId { replica: ReplicaId(1), incarnation: 1, sequence: 0, answered_below: 0 };
    replicated.calls.keep(&id, crate::ids::LogIndex(index), b"outcomes");
    let moment = Moment { state: ledger(index), replicated };
    let mut content = Vec::new();
    moment.write(&mut content).unwrap();
    let mut hash = ContentHash::default();
    hash.update(&content);
    let extra = moment.replicated.snapshot_extra(hash.finish());
    (moment, content, SnapshotHeader { extra, ..header(index) })
}

#[tokio::test]
async fn a_snapshot_of_format_2_brings_the_calls_that_are_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0);
    let (moment, content, header) = with_a_call(5);
    let mut data = received(&store.snapshots(), &content, 5);
    if let SnapshotData::Received { meta, .. } = &mut data {
        *meta = header.encode();
    }
    let installed = install(&store.snapshots(), data, CancellationToken::new()).await.unwrap();
    assert_eq!((&installed.state, &installed.calls), (&moment.state, &moment.replicated.calls));
    assert_eq!(Replicated::from_snapshot(&installed.header, installed.calls, 1), moment.replicated);
}

#[tokio::test]
async fn a_snapshot_whose_content_is_another_than_its_header_tells_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0);
    let (_, content, header) = with_a_call(5);
    let mut data = received(&store.snapshots(), &content, 5);
    if let (SnapshotData::Received { meta, .. }, Some(extra)) = (&mut data, header.extra) {
        let extra = Some(codec::SnapshotExtra { content_hash: extra.content_hash + 1, ..extra });
        *meta = SnapshotHeader { extra, ..header }.encode();
    }
    let error = install(&store.snapshots(), data, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("not what its header tells"), "{error}");
    assert_eq!(current(&store.snapshots()), None);
}

#[tokio::test]
async fn a_snapshot_in_a_format_that_is_not_read_stops_the_replica_and_does_not_become_current() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0);
    let (_, content, header) = with_a_call(5);
    let mut data = received(&store.snapshots(), &content, 5);
    if let SnapshotData::Received { meta, .. } = &mut data {
        *meta = header.encode();
    }
    let (formats, halt) = reading(1..=1);
    let refused = super::install::<Ledger>(&store.snapshots(), data, &formats, CancellationToken::new()).await;
    refused.unwrap_err();
    assert!(matches!(halt.reason(), Some(crate::error::StopReason::FormatNotRead { format: 2, .. })));
    assert_eq!(current(&store.snapshots()), None);
}
