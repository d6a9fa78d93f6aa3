//! Worlds, each in a process of its own, which alone repeats itself: libraries
//! draw random numbers (for the order of what is ready, for pauses) from the
//! operating system, and count from the start of the process. So a process gets
//! the same numbers each time, by a library that is loaded into it
//! (`preload/chance.c`); the seed decides everything else.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};

use super::Report;
use crate::preload;

/// Begins the line with which a world ends.
const END: &str = "the world ended:";

/// Which worlds.
#[derive(Debug, Clone)]
pub struct Worlds {
    /// What is done in them.
    pub scenario: String,
    /// The first seed.
    pub first_seed: u64,
    /// How many.
    pub seeds: u64,
    /// Each twice, and the same has to happen.
    pub twice: bool,
    /// At a time.
    pub at_once: usize,
}

/// What a process says in the end of the world that it was.
pub fn last_words(report: &Report) -> String {
    let (fingerprint, simulated) = (report.fingerprint, report.simulated.as_millis());
    format!("{END} {fingerprint:016x} after {simulated} ms")
}

/// Runs them; what each came to, in a line. `program` is this one, which runs a
/// world with `SCENARIO --here --seed N`.
pub fn run(program: &Path, worlds: &Worlds) -> anyhow::Result<Vec<String>> {
    let folder = tempfile::tempdir()?;
    let chance = preload::build("chance", folder.path())?;
    let next = AtomicU64::new(0);
    let lines = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= worlds.seeds {
                    return Ok(());
                }
                let seed = worlds.first_seed + number;
                let line = once(program, &chance, &worlds.scenario, seed)?;
                if worlds.twice {
                    let again = once(program, &chance, &worlds.scenario, seed)?;
                    ensure!(line == again, "{} with seed {seed} went two ways: {line}, {again}", worlds.scenario);
                }
                let line = format!("{} with seed {seed}: {line}", worlds.scenario);
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        };
        let workers: Vec<_> = (0..worlds.at_once.max(1)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(lines.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn once(program: &Path, chance: &Path, scenario: &str, seed: u64) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args([scenario, "--here", "--seed", &seed.to_string()])
        .env("LD_PRELOAD", chance)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{scenario} with seed {seed} went wrong:\n{said}{complained}");
    let last = said.lines().find_map(|line| line.strip_prefix(END));
    Ok(last.with_context(|| format!("{scenario} with seed {seed} has no end: {said}{complained}"))?.trim().to_owned())
}
