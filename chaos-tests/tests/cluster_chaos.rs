//! Every kind of fault, on three real replicas under load: nothing that was
//! acknowledged is lost, nothing is doubled, and what clients saw has an order.
//! Several go on at once where that is sound; one that hit nothing is done again,
//! and the test fails if it never does.
//!
//! `BERTH_SEED` repeats a run, as far as processes let themselves be repeated;
//! the program `chaos` of this crate goes on for as long as wanted.

#![allow(clippy::print_stdout)] // the seed, and what was done

use std::time::{Duration, Instant};

use anyhow::ensure;
use berth_chaos_tests::chaos::fault::Kind;
use berth_chaos_tests::chaos::run::{self, Length, Settings};
use berth_chaos_tests::random;

/// Longest time for the faults.
const LIMIT: Duration = Duration::from_mins(15);
/// Agents that return at once. The program takes thousands.
const SWARM: usize = 300;
/// Without `BERTH_SEED`.
const SEED: u64 = 4;

#[test]
fn faults_of_every_kind_are_survived() -> anyhow::Result<()> {
    let settings = Settings {
        seed: random::number_from("BERTH_SEED")?.unwrap_or(SEED),
        replicas: 3,
        agents: 3,
        clients: 4,
        swarm: SWARM,
        kinds: Kind::ALL.into_iter().collect(),
        length: Length::EveryKind(LIMIT),
    };
    println!("BERTH_SEED={}", settings.seed);
    let place = tempfile::tempdir()?;
    let begun = Instant::now();
    let mut tell = |line: String| println!("[{:>5} s] {line}", begun.elapsed().as_secs());
    let report = match run::run(&settings, place.path(), &mut tell) {
        Ok(report) => report,
        Err(failed) => {
            let kept = place.keep();
            return Err(failed.error.context(format!(
                "BERTH_SEED={}; everything is in {}",
                failed.seed,
                kept.display()
            )));
        }
    };
    println!("{report}");
    let missing: Vec<Kind> = settings.kinds.into_iter().filter(|kind| !report.has_struck(*kind)).collect();
    ensure!(missing.is_empty(), "never struck: {missing:?}");
    Ok(())
}
