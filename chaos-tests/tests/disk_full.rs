//! Fills the disk under a store that is being written to: nothing acknowledged
//! is lost, and writing goes on by itself when there is room again.

#![allow(clippy::print_stdout)] // figures

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use berth_chaos_tests::disk::Disk;
use berth_chaos_tests::power_cut::entry;
use berth_storage::{Condition, Done, Error, Options, Store};

const DEADLINE: Duration = Duration::from_mins(1);
const SEED: u64 = 7;
const ENTRY_BYTES: usize = 20_000;

type Outcome = (u64, Result<(), Error>);

/// Appends entry `index`; its outcome goes to `outcomes`.
fn append(store: &Store, index: u64, outcomes: &Sender<Outcome>) -> Result<(), Error> {
    let outcomes = outcomes.clone();
    let done: Done = Box::new(move |result| {
        outcomes.send((index, result)).ok();
    });
    store.log().append(vec![entry(SEED, 1, index, ENTRY_BYTES)], done)
}

fn check(store: &Store, count: u64) -> anyhow::Result<()> {
    let mut next = 0;
    while next < count {
        for read in store.log().read(next..count, 1 << 20)? {
            ensure!(read == entry(SEED, 1, next, ENTRY_BYTES), "entry {next} differs");
            next += 1;
        }
    }
    Ok(())
}

/// Appends, fills the disk up meanwhile, waits until the store says that it is
/// full, and makes room. Answers with the number of entries. `reads_go_on`: also
/// those of older entries, as long as the reserve is not used up.
fn survive(disk: &Disk, store: &Store, rounds: u64, reads_go_on: bool) -> anyhow::Result<u64> {
    let (sender, outcomes) = mpsc::channel();
    let mut accepted = 0;
    let mut acknowledged = 0;
    for round in 0..rounds {
        let ballast = disk.fill(0)?;
        let deadline = Instant::now() + DEADLINE;
        while !matches!(store.log().condition(), Condition::Full { .. }) {
            ensure!(Instant::now() < deadline, "it never says that the disk is full");
            match append(store, accepted, &sender) {
                Ok(()) => accepted += 1,
                Err(Error::Overloaded { .. }) => std::thread::yield_now(),
                Err(error) => return Err(error).context("while the disk fills up"),
            }
            while let Ok((index, result)) = outcomes.try_recv() {
                result.with_context(|| format!("entry {index} while the disk fills up"))?;
                ensure!(index == acknowledged, "{index} acknowledged before {acknowledged}");
                acknowledged += 1;
            }
        }
        println!("round {round}: full with {acknowledged} of {accepted} entries acknowledged");
        // Reads go on meanwhile, of waiting entries too.
        if reads_go_on {
            check(store, accepted)?;
        }
        ballast.remove()?;
        while acknowledged < accepted {
            let (index, result) = match outcomes.recv_timeout(DEADLINE) {
                Ok(outcome) => outcome,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("entry {acknowledged} of {accepted} is never acknowledged: {:?}", store.log().condition())
                }
                Err(error) => return Err(error.into()),
            };
            result.with_context(|| format!("entry {index} after there was room"))?;
            ensure!(index == acknowledged, "{index} acknowledged before {acknowledged}");
            acknowledged += 1;
        }
        let condition = store.log().condition();
        ensure!(condition == Condition::Healthy, "{condition:?} although there is room");
        check(store, accepted)?;
    }
    Ok(accepted)
}

fn full_disk(reserve_bytes: u64) -> anyhow::Result<()> {
    let disk = Disk::new(192)?;
    let folder = disk.path().join("data");
    let options = Options { reserve_bytes, window_bytes: 1 << 20, queue_bytes: 2 << 20, ..Options::default() };
    let store = Store::open(&folder, options.clone())?;
    let count = survive(&disk, &store, 4, reserve_bytes > 0)?;
    store.close()?;
    let store = Store::open(&folder, options)?;
    check(&store, count)?;
    ensure!(store.log().last() == Some((count - 1, 1)), "{:?}", store.log().last());
    Ok(())
}

#[test]
fn a_disk_at_its_reserve_makes_writes_wait() -> anyhow::Result<()> {
    full_disk(16 << 20)
}

#[test]
fn a_disk_filled_to_the_last_byte_loses_nothing() -> anyhow::Result<()> {
    full_disk(0)
}

#[test]
fn closing_on_a_full_disk_says_what_was_not_written() -> anyhow::Result<()> {
    let disk = Disk::new(192)?;
    let folder = disk.path().join("data");
    let options = Options { reserve_bytes: 16 << 20, ..Options::default() };
    let store = Store::open(&folder, options.clone())?;
    let (sender, outcomes) = mpsc::channel();
    append(&store, 0, &sender)?;
    outcomes.recv_timeout(DEADLINE)?.1?;
    let ballast = disk.fill(0)?;
    append(&store, 1, &sender)?;
    let error = store.close().err().context("closing went well")?;
    ensure!(matches!(error, Error::Full { .. }), "{error}");
    let (_, result) = outcomes.recv_timeout(DEADLINE)?;
    ensure!(matches!(result, Err(Error::Full { .. })), "{result:?}");
    ballast.remove()?;
    let store = Store::open(&folder, options)?;
    check(&store, 1)
}
