//! Runs worlds of the broker's edge on a simulated network, and says what it found.

use std::process::ExitCode;

use anyhow::{Context, bail};
use berth_chaos_tests::edge::apart::{self, Worlds};
use berth_chaos_tests::edge::{run, scenarios};

const USAGE: &str = "\
Runs the broker's ports and agents on a simulated network, one world for each seed.

  edge SCENARIO [options]

  --seeds N        how many seeds (default 1)
  --first-seed N   the first of them (default 1)
  --seed N         this one alone
  --twice          run each seed twice, and see that the same happens
  --at-once N      worlds at a time (default: one for each processor)
  --here           in this process: it does not repeat itself exactly
  --verbose        with --here: print what happens; RUST_LOG adds what the product logs

Ends with 1 and what happened when something is wrong. The scenarios:
";

#[expect(clippy::print_stdout, reason = "it is a program for people")]
fn main() -> anyhow::Result<ExitCode> {
    let mut given = std::env::args().skip(1);
    let scenario = match given.next() {
        Some(name) if !name.starts_with('-') => name,
        _ => {
            let names: Vec<&str> = scenarios().iter().map(|scenario| scenario.name).collect();
            println!("{USAGE}  {}", names.join(" "));
            return Ok(ExitCode::SUCCESS);
        }
    };
    let at_once = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut worlds = Worlds { scenario, first_seed: 1, seeds: 1, twice: false, at_once };
    let (mut here, mut verbose) = (false, false);
    while let Some(name) = given.next() {
        let mut value = || given.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "--seeds" => worlds.seeds = value()?.parse().context("--seeds")?,
            "--first-seed" => worlds.first_seed = value()?.parse().context("--first-seed")?,
            "--seed" => (worlds.first_seed, worlds.seeds) = (value()?.parse().context("--seed")?, 1),
            "--at-once" => worlds.at_once = value()?.parse().context("--at-once")?,
            "--twice" => worlds.twice = true,
            "--here" => here = true,
            "--verbose" => verbose = true,
            _ => bail!("{name} is not known; see --help"),
        }
    }
    if !here {
        for line in apart::run(&std::env::current_exe()?, &worlds)? {
            println!("{line}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if verbose {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().init();
    }
    let all = scenarios();
    let scenario = all.iter().find(|scenario| scenario.name == worlds.scenario);
    let scenario = scenario.with_context(|| format!("there is no scenario {}", worlds.scenario))?;
    let report = run(*scenario, worlds.first_seed, verbose)?;
    if !report.violations.is_empty() {
        println!("{}\n\n{}", report.trace.join("\n"), report.violations.join("\n"));
        return Ok(ExitCode::FAILURE);
    }
    println!("{}", apart::last_words(&report));
    Ok(ExitCode::SUCCESS)
}
