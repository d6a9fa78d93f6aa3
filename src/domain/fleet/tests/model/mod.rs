//! The fleet against a model of it, over random lives: clients, operators,
//! hosts with agents that are slow, forgetful, lying, doubled or gone, replicas
//! that begin anew, and time. After each step all invariants of the design are
//! checked that a single log can show.
//!
//! - `world.rs`: the log, its replicas, connections, and one entry at a time,
//! - `acts.rs`, `wishes.rs`: what clients, operators and hosts do,
//! - `agent.rs`: a host, with an agent as `docs/agent-protocol.md` demands it,
//! - `shadow.rs`, `reading.rs`: the second account, kept by events and acknowledgements,
//! - `placing.rs`: the rules of placement, worked out anew,
//! - `checks.rs`: what must hold,
//! - `faults.rs`: deliberate faults that the checks must notice.
//!
//! `BERTH_MODEL_STEPS` runs more, `BERTH_SEED` repeats; see `docs/reliability.md`.

mod acts;
mod agent;
mod checks;
mod faults;
mod placing;
mod reading;
mod shadow;
mod wishes;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use self::faults::Fault;
use self::world::{Seen, World};

/// What is wrong, if anything is.
type Check = Result<(), String>;

/// Returns what is wrong unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
use ensure;

/// Steps of a test run.
const STEPS: u64 = 100_000;
/// Steps of one life.
const STEPS_PER_LIFE: u64 = 2_500;

/// Kinds of events that happen: all but those of clients and keys.
const EVENTS: usize = 33;
/// Lives in which a deliberate fault must be noticed.
const FAULTY_LIVES: u64 = 10;

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}

/// One life.
fn live(seed: u64, fault: Option<Fault>) -> Result<World, String> {
    let mut world = World::new(seed, fault);
    match world.live(STEPS_PER_LIFE) {
        Ok(()) => Ok(world),
        Err(problem) => Err(format!("{}\n{problem}", world.trail())),
    }
}

#[test]
#[allow(clippy::print_stderr)] // the seed is for whoever runs it
fn random_lives_of_a_fleet_keep_every_invariant() {
    let seed = number_from("BERTH_SEED").unwrap_or_else(rand::random);
    let steps = number_from("BERTH_MODEL_STEPS").unwrap_or(STEPS);
    eprintln!("{steps} steps, BERTH_SEED={seed}");
    let (lives, done, happened) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(Seen::default()));
    let one_after_the_other = || {
        while done.load(Ordering::Relaxed) < steps {
            let seed = seed.wrapping_add(lives.fetch_add(1, Ordering::Relaxed));
            match live(seed, None) {
                Ok(world) => {
                    done.fetch_add(world.steps(), Ordering::Relaxed);
                    happened.lock().expect("no thread panics here").join(world.seen);
                }
                Err(problem) => panic!(
                    "{problem}\nagain with: BERTH_SEED={seed} BERTH_MODEL_STEPS=1 \
                     cargo test -p berth --lib random_lives -- --nocapture"
                ),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(one_after_the_other))));
    eprintln!("{} steps in {} lives", done.into_inner(), lives.into_inner());
    let happened = happened.into_inner().expect("no thread panicked");
    if steps >= STEPS {
        assert_eq!(happened.events.len(), EVENTS, "some kinds of events never happened");
        assert_eq!(happened.unavailable.len(), 6, "some reasons never arose: {:?}", happened.unavailable);
    }
}

#[test]
fn each_deliberate_fault_is_noticed() {
    let unnoticed = faults::ALL.into_iter().filter_map(|(fault, expected)| {
        let noticed = (0..FAULTY_LIVES).find_map(|seed| live(seed, Some(fault)).err());
        let Some(noticed) = noticed else { return Some(format!("{fault:?} goes unnoticed")) };
        let problem = noticed.lines().last().unwrap_or_default();
        (!problem.contains(expected)).then(|| format!("{fault:?} was noticed as: {problem}"))
    });
    assert_eq!(unnoticed.collect::<Vec<_>>(), Vec::<String>::new());
}
