//! Faults on real replicas for as long as wanted.

#![allow(clippy::print_stdout)] // what it does, and what came out

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use berth_chaos_tests::chaos::fault::Kind;
use berth_chaos_tests::chaos::run::{self, Length, Settings};
use clap::Parser;

/// Breaks a cluster of real replicas in every way, under load, and judges what
/// clients saw. Needs root; see docs/reliability.md.
#[derive(Debug, Parser)]
struct Args {
    /// How long to go on, with one cluster after the other.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Rounds of one cluster, instead of a time.
    #[arg(long)]
    rounds: Option<u64>,
    /// Repeats a run as far as processes let themselves be repeated.
    #[arg(long, env = "BERTH_SEED")]
    seed: Option<u64>,
    /// Replicas.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=7))]
    replicas: u8,
    /// Agents with desktops.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    agents: u8,
    /// Clients that make and end sessions.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=100))]
    clients: u8,
    /// Agents of a swarm.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    swarm: u32,
    /// Only these kinds of faults, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// None of these kinds.
    #[arg(long, value_delimiter = ',')]
    without: Vec<Kind>,
    /// Tell which kinds of faults there are.
    #[arg(long)]
    kinds: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.kinds {
        for kind in Kind::ALL {
            println!("{kind:<16} {}", kind.about());
        }
        return Ok(());
    }
    let wanted = if args.only.is_empty() { Kind::ALL.to_vec() } else { args.only };
    let kinds: BTreeSet<Kind> = wanted.into_iter().filter(|kind| !args.without.contains(kind)).collect();
    anyhow::ensure!(!kinds.is_empty(), "no kind of fault is left");
    let settings = Settings {
        seed: args.seed.unwrap_or_else(rand::random),
        replicas: args.replicas.into(),
        agents: args.agents.into(),
        clients: args.clients.into(),
        swarm: usize::try_from(args.swarm)?,
        kinds,
        length: args.rounds.map_or(Length::Time(Duration::from_secs(args.minutes * 60)), Length::Rounds),
    };
    println!("{settings:?}");
    let place = tempfile::tempdir()?;
    let begun = Instant::now();
    let mut tell = |line: String| println!("[{:>5} s] {line}", begun.elapsed().as_secs());
    match run::run(&settings, place.path(), &mut tell) {
        Ok(report) => {
            println!("{report}\nseed {}: nothing lost, nothing doubled, nothing out of order", settings.seed);
            Ok(())
        }
        Err(failed) => {
            let (kept, seed) = (place.keep(), failed.seed);
            println!("{}", failed.report);
            Err(failed.error.context(format!("FAILED: --seed {seed}; everything is in {}", kept.display())))
        }
    }
}
