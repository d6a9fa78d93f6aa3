#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};

use super::*;
use crate::testing::{Ground, on_both};

const CURRENT: &str = "00000000000000000009.snapshot";
const OLDER: &str = "00000000000000000004.snapshot";
const GOLDEN: &str = include_str!("golden/version_1.txt");

fn open(ground: &Ground) -> Snapshots {
    Snapshots::open(&ground.restart(), ground.path(), 0).unwrap()
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

on_both! {
    fn a_snapshot_of_every_size_comes_back_after_a_restart(ground) {
        for length in [0, 1, format::CHUNK_BYTES - 1, format::CHUNK_BYTES, format::CHUNK_BYTES + 1, 3_000_000] {
            let ground = ground.afresh();
            let written = write(&open(&ground), &content(length), b"meta", 12);
            assert!(read(&written) == content(length));
            let snapshot = open(&ground).current().unwrap().unwrap();
            assert_eq!(snapshot.meta(), b"meta");
            assert_eq!(snapshot.index(), 12);
            assert_eq!(snapshot.length(), length as u64);
            assert!(read(&snapshot) == content(length));
        }
    }

    fn an_empty_folder_has_no_snapshot(ground) {
        assert!(open(&ground).current().unwrap().is_none());
    }

    fn a_newer_snapshot_replaces_the_older_one_which_stays_readable(ground) {
        let snapshots = open(&ground);
        let old = write(&snapshots, &content(600_000), b"old", 5);
        let mut reader = old.open();
        reader.read_exact(&mut [0; 10]).unwrap();
        write(&snapshots, b"new", b"new", 9);
        assert_eq!(ground.names(""), [CURRENT]);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert!(rest == content(600_000)[10..]);
        assert_eq!(read(&snapshots.current().unwrap().unwrap()), b"new");
    }

    fn a_snapshot_finished_late_does_not_replace_a_newer_one(ground) {
        let snapshots = open(&ground);
        let mut late = snapshots.begin().unwrap();
        late.write_all(b"late").unwrap();
        write(&snapshots, b"new", b"new", 9);
        let current = late.finish(b"late", 7).unwrap();
        assert_eq!(current.meta(), b"new");
        assert_eq!(ground.names(""), [CURRENT]);
    }

    fn a_snapshot_of_the_same_index_replaces_the_first(ground) {
        let snapshots = open(&ground);
        write(&snapshots, b"one", b"1", 9);
        write(&snapshots, b"two", b"2", 9);
        assert_eq!(read(&open(&ground).current().unwrap().unwrap()), b"two");
    }

    fn an_unfinished_snapshot_leaves_nothing(ground) {
        let snapshots = open(&ground);
        let mut writer = snapshots.begin().unwrap();
        writer.write_all(&content(1_000_000)).unwrap();
        drop(writer);
        assert!(ground.names("").is_empty());
    }

    fn a_sealed_snapshot_can_be_read_and_is_not_current(ground) {
        let snapshots = open(&ground);
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
        assert_eq!(ground.names(""), [CURRENT]);
        assert!(read(&open(&ground).current().unwrap().unwrap()) == content(600_000));
    }

    fn a_sealed_snapshot_that_is_dropped_leaves_the_older_one(ground) {
        let snapshots = open(&ground);
        write(&snapshots, b"old", b"old", 4);
        let mut writer = snapshots.begin().unwrap();
        writer.write_all(b"unreadable").unwrap();
        writer.seal(b"meta", 9).unwrap();
        drop(writer);
        assert_eq!(ground.names(""), ["00000000000000000004.snapshot"]);
        assert_eq!(read(&open(&ground).current().unwrap().unwrap()), b"old");
    }

    fn a_writer_that_outlives_its_store_no_longer_touches_the_folder(ground) {
        let store = ground.open(crate::Options::default()).unwrap();
        let snapshots = store.snapshots();
        let mut idle = snapshots.begin().unwrap();
        let mut writing = snapshots.begin().unwrap();
        writing.write_all(b"late").unwrap();
        store.close().unwrap();
        let left = ground.names("snapshots");

        assert!(matches!(snapshots.begin(), Err(Error::Closed)));
        idle.write_all(&content(format::CHUNK_BYTES)).unwrap();
        idle.write_all(b"more than the chunk in memory").unwrap_err();
        assert!(matches!(writing.finish(b"late", 9), Err(Error::Closed)));
        assert_eq!(ground.names("snapshots"), left);

        let store = ground.open(crate::Options::default()).unwrap();
        let mut next = store.snapshots().begin().unwrap();
        next.write_all(b"state").unwrap();
        let unfinished = ground.names("snapshots");
        assert_eq!(unfinished, ["0.unfinished"]);
        // Both have the same name.
        drop(idle);
        assert_eq!(ground.names("snapshots"), unfinished);
        next.finish(b"meta", 3).unwrap();
        drop(store);
        let store = ground.open(crate::Options::default()).unwrap();
        assert_eq!(read(&store.snapshots().current().unwrap().unwrap()), b"state");
    }

    fn what_a_crash_left_is_removed_at_the_next_start(ground) {
        write(&open(&ground), b"new", b"new", 9);
        ground.write(OLDER, &ground.read(CURRENT));
        ground.write("3.unfinished", b"BRTH");
        let snapshots = open(&ground);
        assert_eq!(ground.names(""), [CURRENT]);
        assert_eq!(snapshots.current().unwrap().unwrap().index(), 9);
    }

    fn every_damaged_byte_of_the_current_snapshot_stops_the_start(ground) {
        write(&open(&ground), &content(300), b"meta", 9);
        let good = ground.read(CURRENT);
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0x10;
            ground.write(CURRENT, &bad);
            let error = Snapshots::open(&ground.restart(), ground.path(), 0).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(CURRENT), "byte {position}: {text}");
        }
        for length in 0..good.len() {
            ground.write(CURRENT, &good[..length]);
            assert!(Snapshots::open(&ground.restart(), ground.path(), 0).is_err(), "{length} bytes");
        }
    }

    fn an_older_snapshot_is_kept_while_the_current_one_is_damaged(ground) {
        write(&open(&ground), b"state", b"meta", 9);
        ground.write(OLDER, &ground.read(CURRENT));
        ground.write(CURRENT, b"garbage");
        Snapshots::open(&ground.restart(), ground.path(), 0).unwrap_err();
        assert_eq!(ground.names("").len(), 2);
    }

    fn damage_while_streaming_is_noticed_before_its_bytes_are_handed_out(ground) {
        let snapshot = write(&open(&ground), &content(900_000), b"meta", 9);
        ground.change(CURRENT, |bytes| bytes[600_000] ^= 1);
        let mut content_read = Vec::new();
        let error = snapshot.open().read_to_end(&mut content_read).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains(CURRENT), "{error}");
        assert!(content_read == content(900_000)[..2 * format::CHUNK_BYTES]);
    }

    fn a_foreign_file_is_not_removed(ground) {
        ground.restart();
        ground.write("notes.txt", b"mine");
        let error = Snapshots::open(&ground.restart(), ground.path(), 0).unwrap_err();
        assert!(error.to_string().contains("notes.txt"), "{error}");
        assert_eq!(ground.names(""), ["notes.txt"]);
    }

    fn a_snapshot_removed_behind_our_back_is_noticed(ground) {
        let snapshots = open(&ground);
        write(&snapshots, b"state", b"meta", 9);
        ground.remove(CURRENT);
        snapshots.current().unwrap_err();
    }

    fn a_full_disk_is_told_apart(ground) {
        let error = Snapshots::open(&ground.restart(), ground.path(), 1 << 60).unwrap().begin().unwrap_err();
        assert!(matches!(error, Error::Full { .. }), "{error}");
    }

    fn a_meta_that_is_too_long_is_refused(ground) {
        let snapshots = open(&ground);
        let longest = vec![7; format::META_BYTES_MAX];
        let snapshot = write(&snapshots, b"", &longest, 1);
        assert!(snapshot.meta() == longest);
        let error = snapshots.begin().unwrap().finish(vec![7; format::META_BYTES_MAX + 1], 2).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }

    /// The fixture stays for ever: what was written once must be read.
    fn a_file_of_version_1_is_written_and_read_as_ever(ground) {
        let path = "00000000000000000012.snapshot";
        let golden: Vec<u8> = GOLDEN
            .trim()
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        write(&open(&ground), b"state", b"meta", 12);
        assert_eq!(ground.read(path), golden);
        ground.write(path, &golden);
        let snapshot = open(&ground).current().unwrap().unwrap();
        assert_eq!((snapshot.meta(), snapshot.index()), (&b"meta"[..], 12));
        assert_eq!(read(&snapshot), b"state");
    }
}

#[test]
fn closing_a_store_waits_for_the_step_that_a_writer_is_in() {
    let ground = Ground::folder();
    for round in 1..=20_u64 {
        let store = crate::Store::open(ground.path(), crate::Options::default()).unwrap();
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
        let before = ground.names("snapshots");
        let result: Result<(), Error> = writer.join().unwrap();
        result.unwrap_err();
        assert_eq!(ground.names("snapshots"), before, "round {round}");
    }
}
