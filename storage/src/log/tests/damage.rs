//! Damaged, foreign and missing files stop the start with an error that names
//! them.

use super::*;
use crate::codec::{self, Kind};

/// The records of a database.
type Records = std::collections::BTreeMap<Vec<u8>, Vec<u8>>;

/// Opens the store, which must fail.
fn refused(ground: &Ground) -> String {
    let error = ground.open(small_options()).map(drop).unwrap_err();
    crate::error::chain(&error)
}

/// Closes the store and opens its database.
fn database_of(fixture: Fixture) -> (Ground, Files, Database) {
    let Fixture { ground, store } = fixture;
    store.close().unwrap();
    let files = match &ground {
        Ground::Folder(_) => Files::System,
        Ground::Memory(disk) => Files::Memory(disk.mount().unwrap()),
    };
    let database = Database::open(&files, &ground.path().join("log"), 8 << 20).unwrap();
    (ground, files, database)
}

fn close_database(files: &Files, database: Database) {
    database.flush().unwrap();
    database.close().unwrap();
    if let Files::Memory(mount) = files {
        mount.unmount();
    }
}

/// Closes the store, changes its database by hand, and opens it again.
fn tampered(fixture: Fixture, change: impl FnOnce(&mut Records)) -> String {
    let (ground, files, database) = database_of(fixture);
    let mut before = Records::new();
    let take = |key: &[u8], value: &[u8]| {
        before.insert(key.to_vec(), value.to_vec());
        Ok(true)
    };
    database.scan(b"", &[0xff; 20], take).unwrap();
    let mut after = before.clone();
    change(&mut after);
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        database.set(key, None);
    }
    for (key, value) in after.iter().filter(|(key, value)| before.get(*key) != Some(*value)) {
        database.set(key, Some(value));
    }
    close_database(&files, database);
    refused(&ground)
}

/// Removes all records of an entry.
fn remove_entry(records: &mut Records, index: u64) {
    let range = record::first_key(index).to_vec()..record::first_key(index + 1).to_vec();
    records.retain(|key, _| !range.contains(key));
}

fn filled(ground: Ground) -> Fixture {
    let fixture = Fixture::new(ground);
    append(&fixture.log(), entries(0..20, 20_000));
    vote(&fixture.log(), b"ballot");
    fixture
}

on_both! {
    fn a_second_opener_is_refused_while_the_first_lives(ground) {
        let fixture = filled(ground);
        let text = refused(&fixture.ground);
        assert!(text.contains("LOCK is locked by another process"), "{text}");
        fixture.reopen();
    }

    fn a_flipped_bit_in_an_entry_is_named(ground) {
        let key = record::key(11, record::Part::Seal);
        let text = tampered(filled(ground), |records| records.get_mut(&key[..]).unwrap()[40] ^= 4);
        assert!(text.contains("entry 11 is damaged: the checksum"), "{text}");
        assert!(text.contains("/log"), "{text}");
    }

    fn a_missing_piece_is_named(ground) {
        let text = tampered(filled(ground), |records| {
            records.remove(&record::key(11, record::Part::Piece(1))[..]).unwrap();
        });
        assert!(text.contains("entry 11"), "{text}");
        assert!(text.contains("piece 1 is missing"), "{text}");
    }

    fn a_hole_is_named(ground) {
        let text = tampered(filled(ground), |records| remove_entry(records, 11));
        assert!(text.contains("entry 11 must stand there"), "{text}");
    }

    fn a_missing_first_entry_is_named(ground) {
        let text = tampered(filled(ground), |records| remove_entry(records, 0));
        assert!(text.contains("entry 0 must stand there"), "{text}");
    }

    fn entries_that_changed_places_are_named(ground) {
        let text = tampered(filled(ground), |records| {
            let value = records[&record::key(11, record::Part::Piece(0))[..]].clone();
            records.insert(record::key(12, record::Part::Piece(0)).to_vec(), value);
        });
        assert!(text.contains("it holds piece 0 of entry 11"), "{text}");
    }

    fn a_missing_seal_in_the_middle_is_named(ground) {
        let text = tampered(filled(ground), |records| {
            records.remove(&record::key(11, record::Part::Seal)[..]).unwrap();
        });
        assert!(text.contains("the last part of entry 11 is missing"), "{text}");
    }

    fn an_unknown_record_is_named(ground) {
        for key in [&b"mystery"[..], b"a", b"zebra", b"fog", b"e123"] {
            let text = tampered(filled(ground.afresh()), |records| {
                records.insert(key.to_vec(), b"what".to_vec());
            });
            assert!(text.contains(&key.escape_ascii().to_string()), "{text}");
        }
    }

    fn a_newer_record_is_not_called_damage(ground) {
        let text = tampered(filled(ground), |records| {
            let value = records.get_mut(record::VOTE_KEY).unwrap();
            value[4] = 9;
            let crc = crc32c::crc32c_append(crc32c::crc32c(&value[4..12]), &value[16..]);
            value[12..16].copy_from_slice(&crc.to_le_bytes());
        });
        assert!(text.contains("format version 9, this program reads version 1"), "{text}");
    }

    fn what_a_crash_left_of_an_unfinished_entry_is_removed(ground) {
        let (ground, files, database) = database_of(filled(ground));
        for (key, value) in record::records(&entry(20, 50_000)).take(3) {
            database.set(&key, Some(&value));
        }
        close_database(&files, database);
        let fixture = Fixture::new(ground);
        assert_eq!(fixture.log().last().unwrap().0, 19);
        append(&fixture.log(), entries(20..21, 10));
        let fixture = fixture.reopen();
        assert_eq!(fixture.log().last_entry().unwrap(), Some(entry(20, 10)));
    }
}

#[test]
fn an_index_that_was_being_written_does_no_harm() {
    for content in [&b""[..], &[7; 1000]] {
        let fixture = filled(Ground::folder());
        let Fixture { ground: folder, store } = fixture;
        store.close().unwrap();
        let unfinished = folder.path().join("log/snap.7FFFFFFFFFFFFFFF.generating");
        std::fs::write(&unfinished, content).unwrap();
        let store = Store::open(folder.path(), small_options()).unwrap();
        assert_eq!(store.log().read(0..20, u64::MAX).unwrap(), entries(0..20, 20_000));
        assert!(!unfinished.exists());
        store.close().unwrap();
    }
}

#[test]
fn a_lost_end_of_the_log_is_noticed() {
    let fixture = filled(Ground::folder());
    let copy = tempfile::tempdir().unwrap();
    copy_folder(fixture.ground.path(), copy.path());
    append(&fixture.log(), entries(20..25, 100));
    // The database of before, the note of after.
    std::fs::copy(fixture.ground.path().join("synced"), copy.path().join("synced")).unwrap();
    let text = refused(&Ground::Folder(copy));
    assert!(text.contains("was acknowledged"), "{text}");
}

#[test]
fn every_missing_file_is_named() {
    for name in ["synced", "log", "log/db", "log/conf", "log/blobs", "snapshots", "format"] {
        let Fixture { ground: folder, store } = filled(Ground::folder());
        store.close().unwrap();
        let path = folder.path().join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let text = refused(&folder);
        let named = if name == "format" { "file format" } else { name };
        assert!(text.contains(named), "without {name}: {text}");
    }
}

#[test]
fn a_folder_with_something_else_in_it_is_left_alone() {
    let folder = Ground::folder();
    std::fs::write(folder.path().join("thesis.txt"), "precious").unwrap();
    let text = refused(&folder);
    assert!(text.contains("thesis.txt"), "{text}");
    assert!(!folder.path().join("log").exists());
}

#[test]
fn a_newer_layout_is_refused() {
    let Fixture { ground: folder, store } = filled(Ground::folder());
    store.close().unwrap();
    let format = folder.path().join("format");
    std::fs::write(&format, codec::encode(Kind::Format, &2_u32, 0)).unwrap();
    let text = refused(&folder);
    assert!(text.contains("version 2, this program reads version 1"), "{text}");
    std::fs::write(&format, "garbage").unwrap();
    let text = refused(&folder);
    assert!(text.contains("/format"), "{text}");
}

#[test]
fn an_interrupted_first_start_is_taken_up_again() {
    let Fixture { ground: folder, store } = Fixture::new(Ground::folder());
    store.close().unwrap();
    std::fs::remove_file(folder.path().join("format")).unwrap();
    std::fs::create_dir(folder.path().join("log.new")).unwrap();
    let store = Store::open(folder.path(), small_options()).unwrap();
    append(&store.log(), entries(0..3, 10));
}

/// Whatever byte of whatever file of the database is overwritten: either the
/// store opens and everything acknowledged is there, or it says what is wrong.
#[test]
fn no_damage_to_a_file_loses_entries_silently() {
    let Fixture { ground: folder, store } = filled(Ground::folder());
    purge(&store.log(), 3, b"three");
    append(&store.log(), entries(20..60, 900));
    // As a kill leaves it: closing writes more.
    let source = tempfile::tempdir().unwrap();
    copy_folder(folder.path(), source.path());
    let mut refusals = 0;
    for file in ["log/db", "log/conf", "synced", "format"] {
        let length = std::fs::metadata(source.path().join(file)).unwrap().len();
        for part in 0..24 {
            let copy = tempfile::tempdir().unwrap();
            copy_folder(source.path(), copy.path());
            let path = copy.path().join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            let position = usize::try_from(length * part / 24).unwrap();
            for byte in bytes.iter_mut().skip(position).take(16) {
                *byte ^= 0x55;
            }
            std::fs::write(&path, bytes).unwrap();
            match Store::open(copy.path(), small_options()) {
                Err(error) => {
                    refusals += 1;
                    let text = error.to_string();
                    assert!(text.contains(&copy.path().display().to_string()), "{text}");
                }
                Ok(store) => {
                    let log = store.log();
                    assert_eq!(log.vote(), Some(b"ballot".to_vec()), "{file} at {position}");
                    assert!(
                        read_all(&log, 4..20) == entries(4..20, 20_000)
                            && read_all(&log, 20..100) == entries(20..60, 900),
                        "{file} at {position}"
                    );
                }
            }
        }
    }
    assert!(refusals > 10, "only {refusals} of the damages were refused");
}
