//! Cuts the power at random moments while a store is under load: everything
//! acknowledged must be there afterwards, byte for byte.
//!
//! `BERTH_POWER_CUTS` sets the number of cuts (default 10), `BERTH_SEED` repeats
//! a run's load.

#![allow(clippy::print_stdout)] // seeds and results

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, ensure};
use berth_chaos_tests::disk::Disk;
use berth_chaos_tests::power_cut::{self, Expected};
use berth_chaos_tests::random::{self, Random, number_from};
use berth_storage::{Condition, Error, Store};

/// Cuts that hit the same disk one after the other, before a new one is taken.
const CUTS_PER_DISK: u64 = 5;
const DEADLINE: Duration = Duration::from_mins(1);
const DISK_MEGABYTES: u64 = 3 << 10;

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() -> anyhow::Result<()> {
    let cuts = number_from("BERTH_POWER_CUTS")?.unwrap_or(10);
    let seed = random::seed()?;
    println!("BERTH_SEED={seed} BERTH_POWER_CUTS={cuts}");
    let mut random = Random::new(seed);
    let mut cut = 0;
    let mut disks = 1;
    let mut acknowledged_steps = 0;
    while cut < cuts {
        let disk = Disk::new(DISK_MEGABYTES)?;
        // Odd and even seeds are different kinds of load.
        let load = (random.next() & !1) | (disks % 2);
        disks += 1;
        let mut expected = Expected::new(load);
        for _ in 0..CUTS_PER_DISK.min(cuts - cut) {
            cut += 1;
            let first = expected.next_step();
            let pause = Duration::from_millis(random.below(1200));
            let last = load_and_cut(&disk, load, first, pause)?;
            expected = judge(&disk, expected, last)
                .with_context(|| format!("cut {cut} of BERTH_SEED={seed}, after {pause:?}"))?;
            acknowledged_steps += last.map_or(0, |last| last + 1 - first);
            println!("cut {cut}: steps {first} to {last:?}, {} entries", expected.entries());
        }
    }
    println!("{cut} cuts, {acknowledged_steps} acknowledged steps, nothing missing");
    assert!(acknowledged_steps > 0, "nothing was ever acknowledged");
    Ok(())
}

#[test]
fn a_disk_that_fails_stops_the_store_for_good() -> anyhow::Result<()> {
    let disk = Disk::new(192)?;
    let store = Store::open(&disk.path().join("data"), power_cut::options())?;
    let log = store.log();
    let (sender, outcomes) = mpsc::channel();
    let append = |index| {
        let sender = sender.clone();
        let entries = vec![power_cut::entry(1, 1, index, 5000)];
        log.append(entries, Box::new(move |result| drop(sender.send(result))))
    };
    append(0)?;
    outcomes.recv_timeout(DEADLINE)??;
    disk.cut_power()?;
    append(1)?;
    let result = outcomes.recv_timeout(DEADLINE)?;
    ensure!(result.is_err(), "a write to a dead disk was acknowledged");
    let condition = log.condition();
    ensure!(matches!(condition, Condition::Failed(_)), "{condition:?}");
    let refusal = append(2).err().context("it still takes entries")?;
    ensure!(matches!(refusal, Error::Failed { .. }), "{refusal}");
    let refusal = log.read(0..1, 1).err().context("it still reads")?;
    ensure!(matches!(refusal, Error::Failed { .. }), "{refusal}");
    ensure!(store.close().is_err(), "closing went well");
    Ok(())
}

/// Runs the writer from step `first` on, cuts the power, kills it, and mounts the
/// disk again. Answers with the last step that was reported.
fn load_and_cut(disk: &Disk, seed: u64, first: u64, pause: Duration) -> anyhow::Result<Option<u64>> {
    let mut writer = Command::new(env!("CARGO_BIN_EXE_power-cut-writer"))
        .arg(disk.path().join("data"))
        .args([seed.to_string(), first.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the writer")?;
    let output = writer.stdout.take().context("no pipe")?;
    let mut lines = BufReader::new(output).lines();
    let begun = lines.next().transpose()?.context("the writer failed at once")?;
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).last());
    // Not to wait for something: this is the random moment of the cut.
    std::thread::sleep(pause);
    disk.cut_power()?;
    writer.kill()?;
    writer.wait()?;
    let last = reader.join().ok().flatten().unwrap_or(begun);
    disk.restart()?;
    Ok(Some(last.parse()?))
}

fn judge(disk: &Disk, expected: Expected, last: Option<u64>) -> anyhow::Result<Expected> {
    let store = Store::open(&disk.path().join("data"), power_cut::options())?;
    let expected = expected.judge(&store, last)?;
    store.close()?;
    Ok(expected)
}
