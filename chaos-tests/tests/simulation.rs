//! Simulated worlds: those of many seeds are sound, each repeats itself, and
//! what is broken on purpose is found. They run in a program that is built for
//! speed, in a profile of its own.
#![allow(clippy::print_stdout)] // the seeds, and what was done

use std::process::Command;

use anyhow::{Context, ensure};
use berth_chaos_tests::process::built;
use berth_chaos_tests::random::number_from;
use berth_chaos_tests::simulation::Broken;

/// Seeds that are run; `BERTH_SIMULATION_SEEDS` says otherwise.
const SEEDS: u64 = 1_000;
/// Seeds that are run twice.
const TWICE: u64 = 20;
/// By then each defect must have shown; most show in the first.
const BROKEN_MAX: u64 = 50;

/// Runs it to its end.
fn simulate(arguments: &[&str]) -> anyhow::Result<()> {
    let program = built("simulate", &["--profile", "simulation", "-p", "berth-chaos-tests"])?;
    let output = Command::new(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("simulate {}: {said}", arguments.join(" "));
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn nothing_goes_wrong_in_any_of_many_worlds() -> anyhow::Result<()> {
    let seeds = number_from("BERTH_SIMULATION_SEEDS")?.unwrap_or(SEEDS);
    simulate(&["--seeds", &seeds.to_string()])
}

#[test]
fn a_seed_leads_to_the_same_world_each_time() -> anyhow::Result<()> {
    simulate(&["--twice", "--seeds", &TWICE.to_string()])
}

#[test]
fn every_defect_that_is_put_in_is_found() -> anyhow::Result<()> {
    for broken in Broken::ALL {
        simulate(&["--broken", broken.name(), "--seeds", &BROKEN_MAX.to_string()])
            .with_context(|| format!("{} was not found", broken.name()))?;
    }
    Ok(())
}
