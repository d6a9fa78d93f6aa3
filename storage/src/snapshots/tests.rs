#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};

use super::*;

const GOLDEN: &str = include_str!("golden/version_1.txt");

fn open(folder: &Path) -> Snapshots {
    Snapshots::open(folder, 0).unwrap()
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|position| (position * 131 + position / 251).to_le_bytes()[0]).collect()
}

fn write(snapshots: &Snapshots, content: &[u8], meta: &[u8], index: u64) -> Snapshot {
    let mut writer = snapshots.begin().unwrap();
    writer.write_all(content).unwrap();
    writer.finish(meta, index).unwrap()
}

fn read(snapshot: &Snapshot) -> Vec<u8> {
    let mut content = Vec::new();
    snapshot.open().read_to_end(&mut content).unwrap();
    content
}

fn files(folder: &Path) -> Vec<String> {
    let names = list(folder).unwrap().into_iter();
    names.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_snapshot_of_every_size_comes_back_after_a_restart() {
    for length in [0, 1, format::CHUNK_BYTES - 1, format::CHUNK_BYTES, format::CHUNK_BYTES + 1, 3_000_000] {
        let folder = tempfile::tempdir().unwrap();
        let written = write(&open(folder.path()), &content(length), b"meta", 12);
        assert!(read(&written) == content(length));
        let snapshot = open(folder.path()).current().unwrap().unwrap();
        assert_eq!(snapshot.meta(), b"meta");
        assert_eq!(snapshot.index(), 12);
        assert_eq!(snapshot.length(), length as u64);
        assert!(read(&snapshot) == content(length));
    }
}

#[test]
fn an_empty_folder_has_no_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    assert!(open(folder.path()).current().unwrap().is_none());
}

#[test]
fn a_newer_snapshot_replaces_the_older_one_which_stays_readable() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = open(folder.path());
    let old = write(&snapshots, &content(600_000), b"old", 5);
    let mut reader = old.open();
    reader.read_exact(&mut [0; 10]).unwrap();
    write(&snapshots, b"new", b"new", 9);
    assert_eq!(files(folder.path()), ["00000000000000000009.snapshot"]);
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest == content(600_000)[10..]);
    assert_eq!(read(&snapshots.current().unwrap().unwrap()), b"new");
}

#[test]
fn a_snapshot_finished_late_does_not_replace_a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = open(folder.path());
    let mut late = snapshots.begin().unwrap();
    late.write_all(b"late").unwrap();
    write(&snapshots, b"new", b"new", 9);
    let current = late.finish(b"late", 7).unwrap();
    assert_eq!(current.meta(), b"new");
    assert_eq!(files(folder.path()), ["00000000000000000009.snapshot"]);
}

#[test]
fn a_snapshot_of_the_same_index_replaces_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = open(folder.path());
    write(&snapshots, b"one", b"1", 9);
    write(&snapshots, b"two", b"2", 9);
    assert_eq!(read(&open(folder.path()).current().unwrap().unwrap()), b"two");
}

#[test]
fn an_unfinished_snapshot_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = open(folder.path());
    let mut writer = snapshots.begin().unwrap();
    writer.write_all(&content(1_000_000)).unwrap();
    drop(writer);
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_sealed_snapshot_can_be_read_and_is_not_current() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = open(folder.path());
    write(&snapshots, b"old", b"old", 4);
    let mut writer = snapshots.begin().unwrap();
    writer.write_all(&content(600_000)).unwrap();
    let sealed = writer.seal(b"meta", 9).unwrap();
    assert!(read(&sealed) == content(600_000));
    assert_eq!((sealed.meta(), sealed.index()), (&b"meta"[..], 9));
    assert_eq!(snapshots.current().unwrap().unwrap().index(), 4);
    writer.write_all(b"more").unwrap_err();

    let current = writer.finish(b"meta", 9).unwrap();
    assert_eq!(current.index(), 9);
    drop(writer);
    assert_eq!(files(folder.path()), ["00000000000000000009.snapshot"]);
    assert!(read(&open(folder.path()).current().unwrap().unwrap()) == content(600_000));
}

#[test]
fn a_sealed_snapshot_that_is_dropped_leaves_the_older_one() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = open(folder.path());
    write(&snapshots, b"old", b"old", 4);
    let mut writer = snapshots.begin().unwrap();
    writer.write_all(b"unreadable").unwrap();
    writer.seal(b"meta", 9).unwrap();
    drop(writer);
    assert_eq!(files(folder.path()), ["00000000000000000004.snapshot"]);
    assert_eq!(read(&open(folder.path()).current().unwrap().unwrap()), b"old");
}

#[test]
fn a_writer_that_outlives_its_store_no_longer_touches_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let store = crate::Store::open(folder.path(), crate::Options::default()).unwrap();
    let snapshots = store.snapshots();
    let path = folder.path().join("snapshots");
    let mut idle = snapshots.begin().unwrap();
    let mut writing = snapshots.begin().unwrap();
    writing.write_all(b"late").unwrap();
    store.close().unwrap();
    let left = files(&path);

    assert!(matches!(snapshots.begin(), Err(Error::Closed)));
    idle.write_all(&content(format::CHUNK_BYTES)).unwrap();
    idle.write_all(b"more than the chunk in memory").unwrap_err();
    assert!(matches!(writing.finish(b"late", 9), Err(Error::Closed)));
    assert_eq!(files(&path), left);

    let store = crate::Store::open(folder.path(), crate::Options::default()).unwrap();
    let mut next = store.snapshots().begin().unwrap();
    next.write_all(b"state").unwrap();
    let unfinished = files(&path);
    assert_eq!(unfinished, ["0.unfinished"]);
    // Both have the same name.
    drop(idle);
    assert_eq!(files(&path), unfinished);
    next.finish(b"meta", 3).unwrap();
    drop(store);
    let store = crate::Store::open(folder.path(), crate::Options::default()).unwrap();
    assert_eq!(read(&store.snapshots().current().unwrap().unwrap()), b"state");
}

#[test]
fn closing_a_store_waits_for_the_step_that_a_writer_is_in() {
    let folder = tempfile::tempdir().unwrap();
    for round in 1..=20_u64 {
        let store = crate::Store::open(folder.path(), crate::Options::default()).unwrap();
        let snapshots = store.snapshots();
        let (started, waiting) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            // Far more than it gets to before the store is closed.
            for _ in 0..20_000 {
                let mut writer = snapshots.begin()?;
                writer.write_all(&content(1_000)).map_err(|error| Error::io("write", Path::new("-"), error))?;
                let written = writer.finish(b"meta", round)?;
                started.send(written.index()).ok();
            }
            Ok(())
        });
        waiting.recv().unwrap();
        store.close().unwrap();
        let before = files(&folder.path().join("snapshots"));
        let result: Result<(), Error> = writer.join().unwrap();
        result.unwrap_err();
        assert_eq!(files(&folder.path().join("snapshots")), before, "round {round}");
    }
}

#[test]
fn what_a_crash_left_is_removed_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    write(&open(folder.path()), b"new", b"new", 9);
    let current = folder.path().join("00000000000000000009.snapshot");
    std::fs::copy(&current, folder.path().join("00000000000000000004.snapshot")).unwrap();
    std::fs::write(folder.path().join("3.unfinished"), b"BRTH").unwrap();
    let snapshots = open(folder.path());
    assert_eq!(files(folder.path()), ["00000000000000000009.snapshot"]);
    assert_eq!(snapshots.current().unwrap().unwrap().index(), 9);
}

#[test]
fn every_damaged_byte_of_the_current_snapshot_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    write(&open(folder.path()), &content(300), b"meta", 9);
    let path = folder.path().join("00000000000000000009.snapshot");
    let good = std::fs::read(&path).unwrap();
    for position in 0..good.len() {
        let mut bad = good.clone();
        bad[position] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        let error = Snapshots::open(folder.path(), 0).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("00000000000000000009.snapshot"), "byte {position}: {text}");
    }
    for length in 0..good.len() {
        std::fs::write(&path, &good[..length]).unwrap();
        assert!(Snapshots::open(folder.path(), 0).is_err(), "{length} bytes");
    }
}

#[test]
fn an_older_snapshot_is_kept_while_the_current_one_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    write(&open(folder.path()), b"state", b"meta", 9);
    let current = folder.path().join("00000000000000000009.snapshot");
    std::fs::copy(&current, folder.path().join("00000000000000000004.snapshot")).unwrap();
    std::fs::write(&current, b"garbage").unwrap();
    Snapshots::open(folder.path(), 0).unwrap_err();
    assert_eq!(files(folder.path()).len(), 2);
}

#[test]
fn damage_while_streaming_is_noticed_before_its_bytes_are_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = write(&open(folder.path()), &content(900_000), b"meta", 9);
    let path = folder.path().join("00000000000000000009.snapshot");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[600_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut content_read = Vec::new();
    let error = snapshot.open().read_to_end(&mut content_read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(error.to_string().contains("00000000000000000009.snapshot"), "{error}");
    assert!(content_read == content(900_000)[..2 * format::CHUNK_BYTES]);
}

#[test]
fn a_foreign_file_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.txt"), b"mine").unwrap();
    let error = Snapshots::open(folder.path(), 0).unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert_eq!(files(folder.path()), ["notes.txt"]);
}

#[test]
fn a_snapshot_removed_behind_our_back_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = open(folder.path());
    write(&snapshots, b"state", b"meta", 9);
    std::fs::remove_file(folder.path().join("00000000000000000009.snapshot")).unwrap();
    snapshots.current().unwrap_err();
}

#[test]
fn a_full_disk_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let error = Snapshots::open(folder.path(), 1 << 60).unwrap().begin().unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
}

#[test]
fn a_meta_that_is_too_long_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = open(folder.path());
    let longest = vec![7; format::META_BYTES_MAX];
    let snapshot = write(&snapshots, b"", &longest, 1);
    assert!(snapshot.meta() == longest);
    let error = snapshots.begin().unwrap().finish(vec![7; format::META_BYTES_MAX + 1], 2).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

/// The fixture stays for ever: what was written once must be read.
#[test]
fn a_file_of_version_1_is_written_and_read_as_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("00000000000000000012.snapshot");
    let golden: Vec<u8> = GOLDEN
        .trim()
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    write(&open(folder.path()), b"state", b"meta", 12);
    assert_eq!(std::fs::read(&path).unwrap(), golden);
    std::fs::write(&path, &golden).unwrap();
    let snapshot = open(folder.path()).current().unwrap().unwrap();
    assert_eq!((snapshot.meta(), snapshot.index()), (&b"meta"[..], 12));
    assert_eq!(read(&snapshot), b"state");
}
