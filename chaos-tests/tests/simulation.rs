//! Simulated worlds: those of many seeds are sound, each repeats itself, and
//! what is broken on purpose is found.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_chaos_tests::random::number_from;
use berth_chaos_tests::simulation::{self, Broken, Plan, Report};

/// Seeds that are run; `BERTH_SIMULATION_SEEDS` says otherwise.
const SEEDS: u64 = 1_000;

/// Runs worlds on all processors until one is as wanted, or all were run. What
/// panics in a world is reported with it.
fn find(
    seeds: std::ops::RangeInclusive<u64>,
    plan: Plan,
    wanted: impl Fn(&Report) -> bool + Sync,
) -> (Option<Report>, u64) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicU64::new(*seeds.start());
    let found: Mutex<Option<Report>> = Mutex::new(None);
    let idle = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > *seeds.end() || found.lock().expect("nothing panics with it").is_some() {
                        return;
                    }
                    let report = simulation::run(seed, plan);
                    idle.fetch_add(u64::from(!report.counts_as_life()), Ordering::Relaxed);
                    if wanted(&report) {
                        *found.lock().expect("nothing panics with it") = Some(report);
                    }
                }
            });
        }
    });
    (found.into_inner().expect("nothing panics with it"), idle.into_inner())
}

#[test]
fn nothing_goes_wrong_in_any_of_many_worlds() -> anyhow::Result<()> {
    let seeds = number_from("BERTH_SIMULATION_SEEDS")?.unwrap_or(SEEDS);
    let (failed, idle) = find(1..=seeds, Plan::default(), |report| !report.violations.is_empty());
    if let Some(Report { seed, violations, trace, .. }) = failed {
        panic!("seed {seed}: {violations:#?}\n{}", trace.join("\n"));
    }
    // Worlds in which hardly anything succeeds prove nothing.
    assert!(idle * 5 < seeds, "{idle} of {seeds} worlds do not count");
    Ok(())
}

#[test]
fn a_seed_leads_to_the_same_world_each_time() {
    for seed in 1..=8 {
        let (first, again) = (simulation::run(seed, Plan::default()), simulation::run(seed, Plan::default()));
        assert_eq!(first.fingerprint, again.fingerprint, "seed {seed}");
        assert_eq!(first.counts, again.counts, "seed {seed}");
    }
}

#[test]
fn every_defect_that_is_put_in_is_found() {
    for broken in Broken::ALL {
        let plan = Plan { broken: Some(broken), ..Plan::default() };
        let (found, _) = find(1..=200, plan, |report| !report.violations.is_empty());
        assert!(found.is_some(), "{} was not found", broken.name());
    }
}
