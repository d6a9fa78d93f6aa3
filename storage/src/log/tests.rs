#![allow(clippy::unwrap_used, clippy::similar_names)]

mod damage;
mod golden;
mod model;

use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::*;
use crate::Store;
use crate::memory::{Pace, Step, Work};
use crate::testing::{Ground, on_both};

const DEADLINE: Duration = Duration::from_mins(1);

/// A store on a ground of its own.
struct Fixture {
    ground: Ground,
    store: Store,
}

impl Fixture {
    fn new(ground: Ground) -> Self {
        Self::with(ground, small_options())
    }

    fn with(ground: Ground, options: Options) -> Self {
        let store = ground.open(options).unwrap();
        Self { ground, store }
    }

    fn reopen(self) -> Self {
        let Self { ground, store } = self;
        store.close().unwrap();
        Self::new(ground)
    }

    fn log(&self) -> Log {
        self.store.log()
    }
}

/// So small that most reads go to the disk.
fn small_options() -> Options {
    Options { cache_bytes: 8 << 20, window_bytes: 4 << 10, ..Options::default() }
}

fn entry(index: u64, length: usize) -> Entry {
    let payload = (0..length).map(|position| (position as u64 * 31 + index * 7).to_le_bytes()[0]).collect();
    Entry { index, term: 1 + index / 10, payload }
}

fn entries(range: Range<u64>, length: usize) -> Vec<Entry> {
    range.map(|index| entry(index, length)).collect()
}

/// A callback, and what it was called with.
fn done() -> (Done, Receiver<Result<(), Error>>) {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result| {
        sender.send(result).ok();
    });
    (done, receiver)
}

fn wait(receiver: &Receiver<Result<(), Error>>) -> Result<(), Error> {
    receiver.recv_timeout(DEADLINE).unwrap()
}

fn append(log: &Log, entries: Vec<Entry>) {
    let (done, receiver) = done();
    log.append(entries, done).unwrap();
    wait(&receiver).unwrap();
}

fn truncate(log: &Log, index: u64) {
    let (done, receiver) = done();
    log.truncate_from(index, done);
    wait(&receiver).unwrap();
}

fn purge(log: &Log, index: u64, marker: &[u8]) {
    let (done, receiver) = done();
    log.purge_through(index, marker.to_vec(), done);
    wait(&receiver).unwrap();
}

fn vote(log: &Log, vote: &[u8]) {
    let (done, receiver) = done();
    log.save_vote(vote.to_vec(), done);
    wait(&receiver).unwrap();
}

/// All of a range, in as many reads as it takes.
fn read_all(log: &Log, range: Range<u64>) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut start = range.start;
    loop {
        let some = log.read(start..range.end, 64 << 10).unwrap();
        if some.is_empty() {
            return found;
        }
        start += some.len() as u64;
        found.extend(some);
    }
}

/// Copies a data folder without closing it: what is on disk at this moment.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap().path();
        let target = to.join(file.file_name().unwrap());
        if file.is_dir() {
            copy_folder(&file, &target);
        } else {
            std::fs::copy(&file, &target).unwrap();
        }
    }
}

on_both! {
    fn a_new_log_is_empty(ground) {
        let fixture = Fixture::new(ground);
        let log = fixture.log();
        assert_eq!(log.last(), None);
        assert_eq!(log.last_entry().unwrap(), None);
        assert_eq!(log.vote(), None);
        assert_eq!(log.committed(), None);
        assert_eq!(log.purged(), None);
        assert_eq!(log.condition(), Condition::Healthy);
        assert_eq!(log.read(0..10, 1000).unwrap(), []);
    }

    fn entries_of_every_size_come_back_after_a_restart(ground) {
        let lengths = [
            0,
            1,
            record::PIECE_BYTES - 1,
            record::PIECE_BYTES,
            record::PIECE_BYTES + 1,
            2 * record::PIECE_BYTES,
            100_000,
            1 << 20,
            MAX_PAYLOAD_BYTES,
        ];
        let fixture = Fixture::new(ground);
        let written: Vec<_> = (0..).zip(lengths).map(|(index, length)| entry(index, length)).collect();
        append(&fixture.log(), written.clone());
        assert!(read_all(&fixture.log(), 0..100) == written);
        let fixture = fixture.reopen();
        assert!(read_all(&fixture.log(), 0..100) == written);
        assert!(fixture.log().last_entry().unwrap().as_ref() == written.last());
    }

    fn what_is_in_memory_can_be_read_without_the_disk_and_nothing_else(ground) {
        let fixture = Fixture::new(ground);
        let log = fixture.log();
        append(&log, entries(0..50, 1_000));
        // Four of them fit.
        assert_eq!(log.read_recent(46..50, u64::MAX).unwrap().unwrap(), entries(46..50, 1_000));
        assert_eq!(log.read_recent(45..50, u64::MAX).unwrap(), None);
        assert_eq!(log.read_recent(50..60, u64::MAX).unwrap(), Some(Vec::new()));
        purge(&log, 10, b"marker");
        assert!(matches!(log.read_recent(10..11, u64::MAX), Err(Error::Purged { .. })));
        fixture.store.close().unwrap();
        assert!(matches!(log.read_recent(46..50, u64::MAX), Err(Error::Closed)));
    }

    fn entries_are_readable_before_they_are_durable(ground) {
        let fixture = Fixture::new(ground);
        let log = fixture.log();
        let (done, receiver) = done();
        log.append(entries(0..5, 100), done).unwrap();
        assert_eq!(log.read(0..5, u64::MAX).unwrap(), entries(0..5, 100));
        wait(&receiver).unwrap();
    }

    fn writes_are_acknowledged_in_the_order_of_the_calls(ground) {
        let fixture = Fixture::new(ground);
        let log = fixture.log();
        let (sender, receiver) = mpsc::channel();
        for number in 0..200_u64 {
            let sender = sender.clone();
            let done: Done = Box::new(move |result| sender.send((number, result.is_ok())).unwrap());
            match number % 3 {
                0 => log.append(vec![entry(number / 3, 500)], done).unwrap(),
                1 => log.save_vote(number.to_le_bytes().to_vec(), done),
                _ => log.truncate_from(number / 3 + 1, done),
            }
        }
        let order: Vec<_> = (0..200).map(|_| receiver.recv_timeout(DEADLINE).unwrap()).collect();
        assert_eq!(order, (0..200).map(|number| (number, true)).collect::<Vec<_>>());
    }

    fn holes_are_refused_and_leave_the_log_as_it_was(ground) {
        let fixture = Fixture::new(ground);
        let log = fixture.log();
        append(&log, entries(0..3, 10));
        for wrong in [vec![entry(4, 1)], vec![entry(2, 1)], vec![entry(3, 1), entry(5, 1)]] {
            let error = log.append(wrong, done().0).unwrap_err();
            assert!(matches!(error, Error::Hole { .. }), "{error}");
        }
        assert_eq!(log.last(), Some((2, 1)));
        append(&log, entries(3..4, 10));
    }

    fn a_log_that_starts_late_still_does_after_a_restart(ground) {
        let fixture = Fixture::new(ground);
        append(&fixture.log(), entries(7..9, 10));
        let fixture = fixture.reopen();
        assert_eq!(read_all(&fixture.log(), 7..20), entries(7..9, 10));
        assert_eq!(fixture.log().read(0..20, 1000).unwrap(), []);
    }

    fn truncated_entries_are_gone_and_can_be_replaced(ground) {
        let fixture = Fixture::new(ground);
        let log = fixture.log();
        append(&log, entries(0..1000, 100));
        truncate(&log, 400);
        assert_eq!(log.last(), Some((399, 40)));
        let other: Vec<_> = (400..420).map(|index| Entry { index, term: 900, payload: vec![9; 20_000] }).collect();
        append(&log, other.clone());
        let fixture = fixture.reopen();
        assert_eq!(read_all(&fixture.log(), 0..400), entries(0..400, 100));
        assert!(read_all(&fixture.log(), 400..2000) == other);
        truncate(&fixture.log(), 0);
        let fixture = fixture.reopen();
        assert_eq!(fixture.log().last(), None);
    }

    fn purged_entries_are_refused_at_once_and_their_keys_removed(ground) {
        let fixture = Fixture::new(ground);
        let log = fixture.log();
        append(&log, entries(0..2000, 50));
        purge(&log, 1499, b"marker");
        assert_eq!(log.purged(), Some((1499, b"marker".to_vec())));
        let error = log.read(1499..1501, 1000).unwrap_err();
        assert!(matches!(error, Error::Purged { index: 1499, purged: 1499 }), "{error}");
        assert_eq!(read_all(&log, 1500..3000), entries(1500..2000, 50));
        assert_eq!(log.entries_since_purge(), 500);
        assert_eq!(log.bytes_since_purge(), 500 * 50);
        // The writer removes the rest while idle.
        let deadline = Instant::now() + DEADLINE;
        loop {
            let guard = log.shared.database();
            let database = guard.as_ref().unwrap();
            let keys = database.first_keys(&record::first_key(0), &record::first_key(1500), 10).unwrap();
            if keys.is_empty() {
                break;
            }
            drop(guard);
            assert!(Instant::now() < deadline, "purged keys are still there");
            std::thread::yield_now();
        }
        let fixture = fixture.reopen();
        assert_eq!(read_all(&fixture.log(), 1500..3000), entries(1500..2000, 50));
    }

    fn a_log_can_be_purged_beyond_its_end(ground) {
        let fixture = Fixture::new(ground);
        append(&fixture.log(), entries(0..10, 50));
        purge(&fixture.log(), 99, b"installed");
        assert_eq!(fixture.log().last(), None);
        let error = fixture.log().append(entries(10..11, 1), done().0).unwrap_err();
        assert!(matches!(error, Error::Hole { expected: 100, found: 10 }), "{error}");
        let fixture = fixture.reopen();
        append(&fixture.log(), entries(100..110, 50));
        let fixture = fixture.reopen();
        assert_eq!(read_all(&fixture.log(), 100..200), entries(100..110, 50));
        assert_eq!(fixture.log().purged(), Some((99, b"installed".to_vec())));
    }

    fn purging_less_than_before_changes_nothing(ground) {
        let fixture = Fixture::new(ground);
        append(&fixture.log(), entries(0..10, 50));
        purge(&fixture.log(), 5, b"five");
        purge(&fixture.log(), 3, b"three");
        let fixture = fixture.reopen();
        assert_eq!(fixture.log().purged(), Some((5, b"five".to_vec())));
        assert_eq!(read_all(&fixture.log(), 6..10), entries(6..10, 50));
    }

    fn the_committed_marker_is_written_without_other_writes(ground) {
        let fixture = Fixture::new(ground);
        fixture.log().save_committed(b"one".to_vec());
        fixture.log().save_committed(b"two".to_vec());
        assert_eq!(fixture.log().committed(), Some(b"two".to_vec()));
        let deadline = Instant::now() + DEADLINE;
        while fixture.log().shared.state().committed.is_some() {
            assert!(Instant::now() < deadline, "it still waits");
            std::thread::yield_now();
        }
        let fixture = fixture.reopen();
        assert_eq!(fixture.log().committed(), Some(b"two".to_vec()));
    }

    fn closing_writes_what_is_queued(ground) {
        let fixture = Fixture::new(ground);
        for index in 0..100 {
            fixture.log().append(vec![entry(index, 1000)], done().0).unwrap();
        }
        fixture.log().save_committed(b"end".to_vec());
        let log = fixture.log();
        let fixture = fixture.reopen();
        assert_eq!(read_all(&fixture.log(), 0..200), entries(0..100, 1000));
        assert_eq!(fixture.log().committed(), Some(b"end".to_vec()));
        // The old handle is of no use any more.
        assert!(matches!(log.read(0..1, 1), Err(Error::Closed)));
        let (done, receiver) = done();
        log.save_vote(b"late".to_vec(), done);
        assert!(matches!(wait(&receiver), Err(Error::Closed)));
    }

    fn reads_stop_at_the_size_that_was_asked_for(ground) {
        let fixture = Fixture::with(ground, Options::default());
        let log = fixture.log();
        append(&log, entries(0..10, 1000));
        assert_eq!(log.read(0..10, 3500).unwrap(), entries(0..3, 1000));
        assert_eq!(log.read(4..10, 1).unwrap(), entries(4..5, 1000));
        let fixture = fixture.reopen();
        assert_eq!(fixture.log().read(0..10, 3500).unwrap(), entries(0..3, 1000));
        assert_eq!(fixture.log().read(4..10, 1).unwrap(), entries(4..5, 1000));
    }

    fn what_is_too_long_is_refused(ground) {
        let fixture = Fixture::new(ground);
        let log = fixture.log();
        let long = entry(0, MAX_PAYLOAD_BYTES + 1);
        let error = log.append(vec![long], done().0).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        let (done, receiver) = done();
        log.save_vote(vec![0; MAX_MARKER_BYTES + 1], done);
        assert!(matches!(wait(&receiver), Err(Error::TooLarge { .. })));
    }
}

#[test]
fn a_read_waits_while_the_database_is_opened_anew() {
    let fixture = Fixture::new(Ground::folder());
    let log = fixture.log();
    append(&log, entries(0..50, 1_000));
    let database = log.shared.database_exclusively().take();
    let (started, has_started) = mpsc::channel();
    let reader = std::thread::spawn({
        let log = log.clone();
        move || {
            started.send(()).unwrap();
            log.read(0..10, u64::MAX)
        }
    });
    has_started.recv_timeout(DEADLINE).unwrap();
    // What is in memory needs no database.
    assert_eq!(log.read(49..50, u64::MAX).unwrap(), entries(49..50, 1_000));
    *log.shared.database_exclusively() = database;
    log.shared.has_reopened();
    assert_eq!(reader.join().unwrap().unwrap(), entries(0..10, 1_000));
}

#[test]
fn a_group_written_again_leaves_nothing_of_the_attempt_before() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place { files: Files::System, folder: folder.path().join("log"), synced: folder.path().join("synced") };
    let options = small_options();
    Running::create(&place, &options).unwrap();
    let append = |term, pieces| Action::Append {
        start: Some(0),
        entries: vec![Arc::new(Entry { index: 0, term, payload: vec![0; pieces * record::PIECE_BYTES] })],
    };
    let database = Database::open(&place.files, &place.folder, options.cache_bytes).unwrap();
    let view = load::load(&database, &place.folder, 0).unwrap().view;
    let shared = Arc::new(Shared::new(place.files.clone(), place.folder.clone(), options, view, database));
    let (synced, _) = Synced::open(&place.files, &place.synced).unwrap();
    let mut writer = Writer::new(Arc::clone(&shared), synced, 0);
    // The attempt before had got to a later append of the group, of a longer entry.
    writer.write_alone(append(2, 40), false).unwrap();
    writer.write_alone(append(1, 3), true).unwrap();

    let guard = shared.database();
    let loaded = load::load(guard.as_ref().unwrap(), &place.folder, 0).unwrap();
    assert_eq!(loaded.view.last(), Some((0, 1)));
    assert_eq!(loaded.unfinished, None);
}

#[test]
fn what_was_acknowledged_is_on_disk_already() {
    let fixture = Fixture::new(Ground::folder());
    append(&fixture.log(), entries(0..50, 3000));
    vote(&fixture.log(), b"ballot");
    let copy = tempfile::tempdir().unwrap();
    copy_folder(fixture.ground.path(), copy.path());
    let store = Store::open(copy.path(), small_options()).unwrap();
    assert_eq!(read_all(&store.log(), 0..100), entries(0..50, 3000));
    assert_eq!(store.log().vote(), Some(b"ballot".to_vec()));
}

#[test]
fn a_full_queue_refuses_more() {
    let fixture = Fixture::with(Ground::folder(), Options { queue_bytes: 10_000, ..small_options() });
    let log = fixture.log();
    // The first callback holds the writer until the queue was seen full.
    let (release, held) = mpsc::channel::<()>();
    let hold: Done = Box::new(move |_| {
        held.recv_timeout(DEADLINE).ok();
    });
    log.append(entries(0..1, 1), hold).unwrap();
    let mut accepted = 1;
    let error = loop {
        match log.append(vec![entry(accepted, 1000)], done().0) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 100, "nothing is ever refused");
    };
    assert!(matches!(error, Error::Overloaded { .. }), "{error}");
    release.send(()).unwrap();
    let fixture = fixture.reopen();
    assert_eq!(fixture.log().last().unwrap().0, accepted - 1);
}

#[test]
fn sled_keeps_no_blobs() {
    let fixture = Fixture::new(Ground::folder());
    for round in 0..20 {
        let start = round * 3;
        append(&fixture.log(), entries(start..start + 3, 300_000));
        let blobs = std::fs::read_dir(fixture.ground.path().join("log").join("blobs")).unwrap();
        assert_eq!(blobs.count(), 0);
    }
}

/// Keeps what the writer is to do until it is asked for.
#[derive(Default)]
struct Held(std::sync::Mutex<Vec<(Step, Work)>>);

impl Pace for Held {
    fn arrange(&self, step: Step, work: Work) {
        self.0.lock().unwrap().push((step, work));
    }
}

impl Held {
    fn steps(&self) -> Vec<Step> {
        self.0.lock().unwrap().iter().map(|(step, _)| *step).collect()
    }

    fn run(&self) {
        let held = std::mem::take(&mut *self.0.lock().unwrap());
        for (_, work) in held {
            work.run();
        }
    }
}

/// A store on a simulated disk whose writer does nothing by itself.
fn held() -> (crate::memory::Disk, Arc<Held>, Fixture) {
    let disk = crate::memory::Disk::new();
    let fixture = Fixture::new(Ground::Memory(disk.clone()));
    let held = Arc::new(Held::default());
    disk.set_pace(Some(Arc::<Held>::clone(&held)));
    (disk, held, fixture)
}

#[test]
fn in_memory_a_write_is_acknowledged_when_it_is_synced_and_not_before() {
    let (disk, held, fixture) = held();
    let log = fixture.log();
    let (done, receiver) = done();
    log.append(entries(0..5, 100), done).unwrap();
    assert_eq!(log.read(0..5, u64::MAX).unwrap(), entries(0..5, 100));
    assert_eq!(held.steps(), [Step::Write]);
    held.run();
    assert_eq!(held.steps(), [Step::Sync]);
    assert!(receiver.try_recv().is_err());
    assert_eq!(Fixture::new(Ground::Memory(disk.synced_copy())).log().last(), None);
    held.run();
    wait(&receiver).unwrap();
    let copy = Fixture::new(Ground::Memory(disk.synced_copy()));
    assert_eq!(read_all(&copy.log(), 0..9), entries(0..5, 100));
}

#[test]
fn in_memory_a_power_cut_leaves_a_beginning_of_what_was_not_synced() {
    for kept in 0..=2 {
        let (disk, held, fixture) = held();
        append_and_run(&fixture, &held, entries(0..5, 100));
        // More than one batch takes.
        fixture.log().append(entries(5..6, 900_000), Box::new(drop)).unwrap();
        held.run();
        assert!(disk.cut_power(&mut |_| kept));
        disk.set_pace(None);
        drop(fixture);
        let after = Fixture::new(Ground::Memory(disk));
        assert_eq!(read_all(&after.log(), 0..9), entries(0..5, 100), "{kept} of its batches are there");
        append(&after.log(), entries(5..6, 10));
    }
}

#[test]
fn in_memory_a_power_cut_that_tears_all_that_was_not_synced_leaves_a_note() {
    let disk = crate::memory::Disk::new();
    let fixture = Fixture::new(Ground::Memory(disk.clone()));
    for first in 0..3 {
        append(&fixture.log(), entries(first..first + 1, 100));
    }
    // Of each write to a file, a few bytes.
    assert!(disk.cut_power(&mut |limit| if limit == 3 { 1 } else { 5.min(limit - 1) }));
    drop(fixture);
    let after = Fixture::new(Ground::Memory(disk));
    assert_eq!(read_all(&after.log(), 0..9), entries(0..3, 100));
}

fn append_and_run(fixture: &Fixture, held: &Held, entries: Vec<Entry>) {
    let (done, receiver) = done();
    fixture.log().append(entries, done).unwrap();
    held.run();
    held.run();
    wait(&receiver).unwrap();
}

#[test]
fn in_memory_a_killed_process_leaves_what_it_wrote_and_changes_nothing_more() {
    let (disk, held, fixture) = held();
    append_and_run(&fixture, &held, entries(0..5, 100));
    fixture.log().append(entries(5..8, 100), Box::new(drop)).unwrap();
    held.run();
    disk.kill();
    fixture.log().append(entries(8..9, 100), Box::new(drop)).unwrap();
    held.run();
    disk.set_pace(None);
    let after = Fixture::new(Ground::Memory(disk));
    fixture.store.close().unwrap_err();
    assert_eq!(read_all(&after.log(), 0..9), entries(0..8, 100));
    append(&after.log(), entries(8..9, 10));
}

#[test]
fn in_memory_a_disk_that_lies_about_syncs_loses_what_was_acknowledged() {
    let (disk, held, fixture) = held();
    disk.set_lying(true);
    append_and_run(&fixture, &held, entries(0..5, 100));
    assert!(disk.cut_power(&mut |_| 0));
    disk.set_pace(None);
    assert_eq!(Fixture::new(Ground::Memory(disk)).log().last(), None);
}

#[test]
fn in_memory_writes_wait_for_room_and_go_on_by_themselves() {
    for reserve_bytes in [1 << 20, 0] {
        let disk = crate::memory::Disk::new();
        let fixture = Fixture::with(Ground::Memory(disk.clone()), Options { reserve_bytes, ..small_options() });
        append(&fixture.log(), entries(0..3, 100));
        disk.set_free_bytes(0);
        let (done, receiver) = done();
        fixture.log().append(entries(3..5, 100), done).unwrap();
        assert!(receiver.try_recv().is_err());
        assert!(matches!(fixture.log().condition(), Condition::Full { free_bytes: 0, .. }));
        assert_eq!(read_all(&fixture.log(), 0..9), entries(0..5, 100));
        disk.set_free_bytes(1 << 40);
        wait(&receiver).unwrap();
        assert_eq!(fixture.log().condition(), Condition::Healthy);
        let fixture = fixture.reopen();
        assert_eq!(read_all(&fixture.log(), 0..9), entries(0..5, 100));
        // So does what nobody waits for.
        disk.set_free_bytes(0);
        fixture.log().save_committed(b"marker".to_vec());
        assert!(matches!(fixture.log().condition(), Condition::Full { .. }));
        disk.set_free_bytes(1 << 40);
        assert_eq!(fixture.log().condition(), Condition::Healthy);
        let fixture = fixture.reopen();
        assert_eq!(fixture.log().committed(), Some(b"marker".to_vec()));
        // Whoever closes does not wait for room.
        disk.set_free_bytes(0);
        fixture.log().append(entries(5..6, 100), Box::new(drop)).unwrap();
        assert!(matches!(fixture.store.close(), Err(Error::Full { .. })));
    }
}

#[test]
fn in_memory_an_io_error_stops_the_store_for_good() {
    use crate::memory::Operation;
    for operation in [Operation::Write, Operation::Sync] {
        let disk = crate::memory::Disk::new();
        let fixture = Fixture::new(Ground::Memory(disk.clone()));
        append(&fixture.log(), entries(0..3, 100));
        disk.fail(operation, 1);
        let (done, receiver) = done();
        fixture.log().append(entries(3..5, 100), done).unwrap();
        assert!(matches!(wait(&receiver), Err(Error::Failed { .. })));
        assert!(matches!(fixture.log().condition(), Condition::Failed(_)));
        assert!(matches!(fixture.log().append(entries(5..6, 1), Box::new(drop)), Err(Error::Failed { .. })));
        // Whoever still calls for the writer calls for nobody.
        fixture.log().save_vote(b"late".to_vec(), Box::new(drop));
        fixture.log().save_committed(b"late".to_vec());
        assert_eq!(disk.failures(), 1);
        drop(fixture);
        let after = Fixture::new(Ground::Memory(disk));
        assert_eq!(read_all(&after.log(), 0..3), entries(0..3, 100));
    }
}

#[test]
fn in_memory_a_read_that_fails_stops_the_store() {
    let disk = crate::memory::Disk::new();
    let fixture = Fixture::new(Ground::Memory(disk.clone()));
    append(&fixture.log(), entries(0..50, 1_000));
    disk.fail(crate::memory::Operation::Read, 1);
    assert!(matches!(fixture.log().read(0..5, u64::MAX), Err(Error::Io { attempt: "read from", .. })));
    assert!(matches!(fixture.log().condition(), Condition::Failed(_)));
}

#[test]
fn in_memory_a_full_queue_refuses_more() {
    let (_disk, held, _fixture) = held();
    let disk = crate::memory::Disk::new();
    disk.set_pace(Some(held));
    let fixture = Fixture::with(Ground::Memory(disk), Options { queue_bytes: 10_000, ..small_options() });
    let accepted = (0..100).find(|index| fixture.log().append(vec![entry(*index, 1000)], done().0).is_err());
    let accepted = accepted.unwrap();
    let error = fixture.log().append(vec![entry(accepted, 1000)], done().0).unwrap_err();
    assert!(matches!(error, Error::Overloaded { .. }), "{error}");
    let fixture = fixture.reopen();
    assert_eq!(fixture.log().last().unwrap().0, accepted - 1);
}

#[test]
fn in_memory_damage_is_found_at_opening_and_what_no_check_can_find_is_not() {
    use crate::memory::Damage;
    for (damage, named) in [
        (Damage::Entry, Some("entry")),
        (Damage::Vote, Some("key mvote is damaged")),
        (Damage::LogLost, Some("missing")),
        (Damage::Snapshot, Some("snapshot")),
        (Damage::VoteForgotten, None),
        (Damage::SnapshotLost, None),
    ] {
        let disk = crate::memory::Disk::new();
        assert!(!disk.damage(damage, &mut |_| 0), "there is nothing yet");
        let fixture = Fixture::new(Ground::Memory(disk.clone()));
        append(&fixture.log(), entries(0..5, 100));
        vote(&fixture.log(), b"ballot");
        let mut snapshot = fixture.store.snapshots().begin().unwrap();
        std::io::Write::write_all(&mut snapshot, b"state").unwrap();
        snapshot.finish(b"meta", 3).unwrap();
        drop(snapshot);
        let Fixture { ground, store } = fixture;
        store.close().unwrap();
        assert!(disk.damage(damage, &mut |limit| limit / 2));
        match (ground.open(small_options()), named) {
            (Ok(store), None) => assert_eq!(store.log().last(), Some((4, 1))),
            (Err(error), Some(named)) => assert!(error.to_string().contains(named), "{damage:?}: {error}"),
            (opened, _) => panic!("{damage:?}: {:?}", opened.map(drop)),
        }
    }
}
