//! Kinds of faults, each once, on three real replicas under load: nothing that was
//! acknowledged is lost, nothing is doubled, and what clients saw has an order.
//! Those kinds are taken that are quickly over; `chaos` draws from all of them.
//!
//! `BERTH_SEED` repeats a run, as far as processes let themselves be repeated;
//! the program `chaos` of this crate goes on for as long as wanted, with
//! several faults at a time.

#![allow(clippy::print_stdout)] // the seed, and what was done

use std::time::{Duration, Instant};

use anyhow::ensure;
use berth_chaos_tests::chaos::fault::Kind;
use berth_chaos_tests::chaos::run::{self, Length, Settings};
use berth_chaos_tests::random;

/// Longest time for the faults.
const LIMIT: Duration = Duration::from_mins(6);

/// What befalls the cluster.
const KINDS: [Kind; 8] = [
    Kind::Kill,
    Kind::KillMajority,
    Kind::Pause,
    Kind::RestartAll,
    Kind::OneOff,
    Kind::Halves,
    Kind::OneWay,
    Kind::HandOver,
];

#[test]
fn faults_of_many_kinds_are_survived() -> anyhow::Result<()> {
    let settings = Settings {
        seed: random::seed()?,
        replicas: 3,
        agents: 3,
        clients: 4,
        swarm: 0,
        kinds: KINDS.into_iter().collect(),
        length: Length::EveryKind(LIMIT),
    };
    println!("BERTH_SEED={}", settings.seed);
    let place = tempfile::tempdir()?;
    let begun = Instant::now();
    let mut tell = |line: String| println!("[{:>5} s] {line}", begun.elapsed().as_secs());
    let report = match run::run(&settings, place.path(), &mut tell) {
        Ok(report) => report,
        Err(error) => {
            let kept = place.keep();
            return Err(error.context(format!("BERTH_SEED={}; everything is in {}", settings.seed, kept.display())));
        }
    };
    println!("{report}");
    let missing: Vec<Kind> = settings.kinds.into_iter().filter(|kind| !report.faults.contains_key(kind)).collect();
    ensure!(missing.is_empty(), "not done: {missing:?}");
    Ok(())
}
