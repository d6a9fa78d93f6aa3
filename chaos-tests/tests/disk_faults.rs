//! The faults of disk and clock do what they say: to a small program, and to
//! the store under load, which loses nothing when only un-synced data is lost,
//! and does when its disk lies about having synced.
//!
//! `BERTH_POWER_LOSSES` sets the number of losses under load (default 8),
//! `BERTH_SEED` repeats a run's load.

#![allow(clippy::print_stdout)] // seeds and results

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use berth_chaos_tests::faultfs::control::{Class, Extent};
use berth_chaos_tests::faultfs::power::{Kept, Loss};
use berth_chaos_tests::faultfs::{Faults, Library};
use berth_chaos_tests::power_cut::{self, Expected};
use berth_chaos_tests::random::{self, Random, number_from};
use berth_storage::Store;
use rustix::io::Errno;
use tempfile::TempDir;

/// The small program on a folder of its own.
struct Probe {
    _place: TempDir,
    faults: Faults,
    running: Option<(Child, ChildStdin, Lines<BufReader<ChildStdout>>)>,
}

impl Probe {
    fn new() -> anyhow::Result<Self> {
        let place = tempfile::tempdir()?;
        let library = Library::build(place.path())?;
        let faults = Faults::new(&library, &place.path().join("data"), &place.path().join("faults"))?;
        Ok(Self { _place: place, faults, running: None })
    }

    /// Has a command carried out; starts the program first if it does not run.
    fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        if self.running.is_none() {
            let mut command = Command::new(env!("CARGO_BIN_EXE_disk-probe"));
            command.arg(self.faults.folder()).stdin(Stdio::piped()).stdout(Stdio::piped());
            self.faults.attach(&mut command);
            let mut child = command.spawn()?;
            let input = child.stdin.take().context("no input")?;
            let output = BufReader::new(child.stdout.take().context("no output")?).lines();
            self.running = Some((child, input, output));
        }
        let (_, input, output) = self.running.as_mut().context("it runs")?;
        writeln!(input, "{command}")?;
        output.next().context("the probe ended")?.with_context(|| format!("no answer to {command}"))
    }

    /// Has commands carried out that must go well; answers with the last answer.
    fn does(&mut self, commands: &[&str]) -> anyhow::Result<String> {
        let mut last = String::new();
        for command in commands {
            let answer = self.ask(command)?;
            answer.strip_prefix("ok ").with_context(|| format!("{command}: {answer}"))?.clone_into(&mut last);
        }
        Ok(last)
    }

    /// Has a command carried out that must fail with an error.
    fn fails(&mut self, command: &str, error: Errno) -> anyhow::Result<()> {
        let answer = self.ask(command)?;
        let number = format!("(os error {})", error.raw_os_error());
        ensure!(answer.starts_with("error") && answer.contains(&number), "{command}: {answer}");
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        if let Some((mut child, ..)) = self.running.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn lose_power(&mut self, kept: Kept, seed: u64) -> anyhow::Result<Loss> {
        self.kill()?;
        self.faults.lose_power(kept, &mut Random::new(seed))
    }

    fn content(&self, name: &str) -> Option<String> {
        let bytes = std::fs::read(self.faults.folder().join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // A failing test must not leave it behind.
        let _ = self.kill();
    }
}

/// A file with synced content under a synced name.
const A_FILE: [&str; 5] = ["create a", "write a 0 first", "sync a", "sync-folder .", "read a"];

#[test]
fn calls_fail_as_ordered_and_no_longer() -> anyhow::Result<()> {
    let mut probe = Probe::new()?;
    ensure!(probe.does(&A_FILE)? == "first", "without faults everything works");
    let control = |probe: &Probe, class, extent, error| probe.faults.control().fail(class, extent, error);

    control(&probe, Class::Writes, Extent::Next(2), Errno::IO)?;
    probe.fails("write a 0 x", Errno::IO)?;
    probe.fails("truncate a 1", Errno::IO)?;
    probe.does(&["write a 0 x"])?;
    ensure!(probe.does(&["read a"])? == "xirst", "failed calls change nothing");

    control(&probe, Class::Writes, Extent::All, Errno::NOSPC)?;
    for _ in 0..3 {
        probe.fails("append a x", Errno::NOSPC)?;
    }
    control(&probe, Class::Syncs, Extent::Next(3), Errno::IO)?;
    for command in ["sync a", "datasync a", "sync-folder ."] {
        probe.fails(command, Errno::IO)?;
    }
    control(&probe, Class::Reads, Extent::Next(1), Errno::IO)?;
    probe.fails("read a", Errno::IO)?;
    control(&probe, Class::Names, Extent::Next(4), Errno::IO)?;
    for command in ["create new", "rename a b", "remove a", "make-folder d"] {
        probe.fails(command, Errno::IO)?;
    }
    probe.faults.control().mend_disk()?;
    ensure!(probe.does(&["sync a", "sync-folder .", "append a !", "read a"])? == "xirst!", "it is mended");

    let control = probe.faults.control();
    ensure!(control.hits(Class::Writes)? == 5 && control.hits(Class::Syncs)? == 3, "every failure is counted");
    Ok(())
}

#[test]
fn a_short_write_takes_half() -> anyhow::Result<()> {
    let mut probe = Probe::new()?;
    probe.does(&A_FILE)?;
    probe.faults.control().shorten_writes(Extent::Next(1))?;
    ensure!(probe.does(&["put a abcdef"])? == "3", "half of it");
    ensure!(probe.does(&["put a abcdef"])? == "6", "once");
    probe.faults.control().shorten_writes(Extent::Next(1))?;
    ensure!(probe.does(&["write a 0 ABCDEF", "read a"])? == "ABCDEF", "who writes all goes on");
    ensure!(probe.faults.control().shortened()? == 2, "counted");
    Ok(())
}

#[test]
fn faults_can_be_kept_to_some_files() -> anyhow::Result<()> {
    let mut probe = Probe::new()?;
    probe.does(&A_FILE)?;
    probe.does(&["create other"])?;
    probe.faults.control().only("/other")?;
    probe.faults.control().fail(Class::Syncs, Extent::All, Errno::IO)?;
    probe.does(&["sync a"])?;
    probe.fails("sync other", Errno::IO)
}

#[test]
fn a_slow_sync_is_slow() -> anyhow::Result<()> {
    let mut probe = Probe::new()?;
    probe.does(&A_FILE)?;
    let delay = Duration::from_millis(300);
    probe.faults.control().slow_syncs(delay)?;
    let begun = Instant::now();
    probe.does(&["datasync a"])?;
    ensure!(begun.elapsed() >= delay, "it took {:?}", begun.elapsed());
    ensure!(probe.faults.control().slowed()? == 1, "counted");
    Ok(())
}

#[test]
fn a_loss_of_power_takes_what_was_not_synced() -> anyhow::Result<()> {
    let mut probe = Probe::new()?;
    probe.does(&A_FILE)?;
    probe.does(&["write a 3 ABCDEFGH", "append a more", "truncate a 2"])?;
    let loss = probe.lose_power(Kept::Nothing, 1)?;
    ensure!(probe.content("a").as_deref() == Some("first"), "{:?}", probe.content("a"));
    ensure!((loss.changes, loss.kept) == (3, 0), "{loss:?}");

    probe.does(&["open a", "write a 0 FIRST", "datasync a", "write a 0 xxxxx"])?;
    probe.lose_power(Kept::Nothing, 1)?;
    ensure!(probe.content("a").as_deref() == Some("FIRST"), "what was synced stays");

    probe.does(&["open a", "write a 0 first", "clone-sync a", "write a 0 xxxxx"])?;
    probe.kill()?;
    probe.does(&["open a", "write a 5 yyyyy"])?;
    probe.lose_power(Kept::Nothing, 1)?;
    ensure!(probe.content("a").as_deref() == Some("first"), "a kill alone makes nothing durable");
    Ok(())
}

#[test]
fn a_loss_of_power_takes_names_whose_folder_was_not_synced() -> anyhow::Result<()> {
    let mut probe = Probe::new()?;
    probe.does(&A_FILE)?;
    probe.does(&["create b", "write b 0 second", "sync b"])?;
    probe.lose_power(Kept::Nothing, 1)?;
    ensure!(probe.content("b").is_none(), "a name is not synced with its file");

    probe.does(&["create b", "write b 0 second", "sync b", "rename b a"])?;
    probe.kill()?;
    ensure!(probe.content("a").as_deref() == Some("second"), "a kill alone takes nothing");
    probe.lose_power(Kept::Nothing, 1)?;
    ensure!(probe.content("a").as_deref() == Some("first"), "what was replaced is back");

    probe.does(&["create b", "write b 0 second", "sync b", "rename b a", "sync-folder .", "remove a"])?;
    probe.lose_power(Kept::Nothing, 1)?;
    ensure!(probe.content("a").as_deref() == Some("second"), "the rename was synced, the removal was not");

    probe.does(&["make-folder d", "create d/e", "sync-folder d"])?;
    probe.lose_power(Kept::Nothing, 1)?;
    ensure!(!probe.faults.folder().join("d").exists(), "the folder's own name was not synced");
    Ok(())
}

#[test]
fn a_part_of_what_was_not_synced_may_be_kept() -> anyhow::Result<()> {
    let (long, mut outcomes) = ("x".repeat(2000), std::collections::BTreeSet::new());
    for seed in 0..20 {
        let mut probe = Probe::new()?;
        probe.does(&A_FILE)?;
        probe.does(&[&format!("write a 0 {long}"), "create b"])?;
        probe.lose_power(Kept::Some, seed)?;
        let (a, b) = (probe.content("a").context("a is synced")?, probe.content("b").is_some());
        let kind = match a.matches('x').count() {
            0 => "lost",
            2000 => "kept",
            _ => "torn",
        };
        outcomes.insert((kind, b));
    }
    let kinds: std::collections::BTreeSet<_> = outcomes.iter().map(|(kind, _)| *kind).collect();
    ensure!(kinds.len() == 3 && outcomes.iter().any(|(_, b)| *b) && outcomes.iter().any(|(_, b)| !*b), "{outcomes:?}");
    Ok(())
}

#[test]
fn what_a_failed_sync_left_is_lost_though_a_later_one_succeeds() -> anyhow::Result<()> {
    let mut probe = Probe::new()?;
    probe.does(&A_FILE)?;
    probe.faults.control().fail(Class::Syncs, Extent::Next(1), Errno::IO)?;
    probe.does(&["write a 0 lost!"])?;
    probe.fails("sync a", Errno::IO)?;
    probe.does(&["sync a", "write a 5000 kept", "sync a"])?;
    probe.lose_power(Kept::Nothing, 1)?;
    let content = probe.content("a").context("it is there")?;
    ensure!(content.starts_with("first") && content.ends_with("kept"), "{content:?}");
    Ok(())
}

#[test]
fn copies_go_the_way_that_can_be_followed() -> anyhow::Result<()> {
    let mut probe = Probe::new()?;
    probe.does(&A_FILE)?;
    ensure!(probe.does(&["copy a b", "read b"])? == "first", "a copy");
    probe.lose_power(Kept::Nothing, 1)?;
    ensure!(probe.content("b").is_none(), "it was not synced");
    Ok(())
}

#[test]
fn the_clock_jumps_and_drifts() -> anyhow::Result<()> {
    let mut probe = Probe::new()?;
    let read = |probe: &mut Probe| -> anyhow::Result<i64> { Ok(probe.does(&["clock"])?.parse()?) };
    let hour_ms = 3_600_000;
    let right = read(&mut probe)?;
    probe.faults.control().shift_clock(hour_ms)?;
    let later = read(&mut probe)?;
    ensure!((hour_ms..2 * hour_ms).contains(&(later - right)), "{later} after {right}");
    probe.faults.control().shift_clock(-2 * hour_ms)?;
    let earlier = read(&mut probe)?;
    ensure!((hour_ms / 2..=hour_ms).contains(&(right - earlier)), "{earlier} before {right}");

    // A thousand times too fast.
    probe.faults.control().mend_clock()?;
    probe.faults.control().let_clock_drift(1_000_000_000)?;
    let first = read(&mut probe)?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(50) {
        read(&mut probe)?;
    }
    let passed = read(&mut probe)? - first;
    ensure!(passed > 49_000, "only {passed} ms have passed in 50 ms");
    probe.faults.control().mend_clock()?;
    ensure!((read(&mut probe)? - right).abs() < hour_ms, "it is mended");
    ensure!(probe.faults.control().clock_reads()? > 0, "counted");
    Ok(())
}

/// One life of the store under load, and the loss of power at its end.
fn load_and_lose(
    folder: &Path,
    faults: &Faults,
    (seed, first): (u64, u64),
    pause: Duration,
    kept: Kept,
    random: &mut Random,
) -> anyhow::Result<(u64, Loss)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_power-cut-writer"));
    command.arg(folder).args([seed.to_string(), first.to_string()]).stdout(Stdio::piped());
    faults.attach(&mut command);
    let mut writer = command.spawn()?;
    let mut lines = BufReader::new(writer.stdout.take().context("no pipe")?).lines();
    let begun = lines.next().transpose()?.context("the writer failed at once")?;
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).last());
    // Not to wait for something: this is the random moment of the loss.
    std::thread::sleep(pause);
    writer.kill()?;
    writer.wait()?;
    let last = reader.join().ok().flatten().unwrap_or(begun);
    Ok((last.parse()?, faults.lose_power(kept, random)?))
}

#[test]
fn the_store_loses_nothing_that_it_has_synced() -> anyhow::Result<()> {
    let losses = number_from("BERTH_POWER_LOSSES")?.unwrap_or(8);
    let seed = random::seed()?;
    println!("BERTH_SEED={seed} BERTH_POWER_LOSSES={losses}");
    let mut random = Random::new(seed);
    let mut total = Loss::default();
    for life in 0..losses.div_ceil(4) {
        let place = tempfile::tempdir()?;
        let library = Library::build(place.path())?;
        let folder = place.path().join("data");
        let faults = Faults::new(&library, &folder, &place.path().join("faults"))?;
        let load = (random.next() & !1) | (life % 2);
        let mut expected = Expected::new(load);
        for _ in 0..4 {
            let first = expected.next_step();
            let pause = Duration::from_millis(random.below(600));
            let kept = if random.below(2) == 0 { Kept::Nothing } else { Kept::Some };
            let (last, loss) = load_and_lose(&folder, &faults, (load, first), pause, kept, &mut random)?;
            let judged = judge(&folder, expected, last);
            println!("steps {first} to {last}: {kept:?}, {loss:?}");
            expected = match judged {
                Ok(expected) => expected,
                Err(error) => {
                    let kept = place.keep();
                    return Err(error.context(format!("BERTH_SEED={seed}, {loss:?}, data in {}", kept.display())));
                }
            };
            ensure!(faults.control().refused()? == 0, "the store did what cannot be followed");
            total.changes += loss.changes;
        }
    }
    println!("{losses} losses of power, {} changes that were not synced, nothing missing", total.changes);
    ensure!(total.changes > 0, "there was never anything to lose");
    Ok(())
}

#[test]
fn a_disk_that_lies_about_syncs_is_caught() -> anyhow::Result<()> {
    let mut random = Random::new(7);
    let place = tempfile::tempdir()?;
    let library = Library::build(place.path())?;
    let folder = place.path().join("data");
    let faults = Faults::new(&library, &folder, &place.path().join("faults"))?;
    let load = 7;
    let (last, _) = load_and_lose(&folder, &faults, (load, 1), Duration::from_millis(100), Kept::Nothing, &mut random)?;
    let expected = judge(&folder, Expected::new(load), last)?;
    faults.control().lie_about_syncs(true)?;
    let first = expected.next_step();
    let (last, loss) =
        load_and_lose(&folder, &faults, (load, first), Duration::from_millis(300), Kept::Nothing, &mut random)?;
    ensure!(faults.control().lies()? > 0 && loss.changes > 0, "nothing was synced in vain: {loss:?}");
    let verdict = judge(&folder, expected, last);
    ensure!(verdict.is_err(), "lost syncs were not noticed");
    Ok(())
}

fn judge(folder: &Path, expected: Expected, last: u64) -> anyhow::Result<Expected> {
    let store = Store::open(folder, power_cut::options())?;
    let expected = expected.judge(&store, Some(last))?;
    store.close()?;
    Ok(expected)
}
