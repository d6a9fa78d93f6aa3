//! Runs simulated worlds, many of them, and says what it found.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use berth_chaos_tests::simulation::{self, Broken, Counts, Plan, Report};

const USAGE: &str = "\
Runs simulated clusters under faults, one for each seed.

  --seeds N        how many seeds (default 1000)
  --first-seed N   the first of them (default 1)
  --seed N         this one alone
  --verbose        print what happens in it
  --threads N      worlds at a time (default: one for each processor)
  --broken NAME    with a defect that is to be found: the seeds end there
                   (lost-sync, rolled-back, stale-read, doubled-instruction, forgotten-vote, local-clock,
                   hasty-member)
  --progress       name each seed when it begins
  --twice          run each seed twice, and see that the same happens

Ends with 1 and the seed when something is wrong, and with --broken when that was not found.
Also when more than one world of five does not count: hardly anything succeeded there.";

/// One world of so many may see fewer operations succeed than count.
const IDLE_SHARE: u64 = 5;

struct Arguments {
    first: u64,
    count: u64,
    threads: usize,
    twice: bool,
    progress: bool,
    plan: Plan,
}

fn arguments() -> anyhow::Result<Option<Arguments>> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut arguments =
        Arguments { first: 1, count: 1_000, threads, twice: false, progress: false, plan: Plan::default() };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut value = || given.next().with_context(|| format!("{name} needs a value"));
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--verbose" => arguments.plan.verbose = true,
            "--progress" => arguments.progress = true,
            "--twice" => arguments.twice = true,
            "--seeds" => arguments.count = value()?.parse().context("--seeds")?,
            "--first-seed" => arguments.first = value()?.parse().context("--first-seed")?,
            "--seed" => (arguments.first, arguments.count) = (value()?.parse().context("--seed")?, 1),
            "--threads" => arguments.threads = value()?.parse::<usize>().context("--threads")?.max(1),
            "--broken" => {
                let name = value()?;
                arguments.plan.broken = Some(Broken::named(&name).with_context(|| format!("--broken {name}"))?);
            }
            _ => bail!("{name} is not known; see --help"),
        }
    }
    Ok(Some(arguments))
}

/// What all worlds together came to.
#[derive(Default)]
struct Total {
    counts: Counts,
    lives: u64,
    idle: u64,
    /// Of those with a violation, the one with the least seed.
    failed: Option<Report>,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for people")]
fn main() -> anyhow::Result<ExitCode> {
    let Some(arguments) = arguments()? else {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    // What panics in a world is reported with it.
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let total = Mutex::new(Total::default());
    let next = AtomicU64::new(arguments.first);
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..arguments.threads {
            threads.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed - arguments.first >= arguments.count {
                        return;
                    }
                    if arguments.progress {
                        eprintln!("seed {seed}");
                    }
                    let mut report = simulation::run(seed, arguments.plan);
                    if arguments.twice {
                        let again = simulation::run(seed, arguments.plan);
                        if again.fingerprint != report.fingerprint {
                            report.violations.push("the same seed went another way the second time".to_owned());
                        }
                    }
                    let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    total.lives += 1;
                    total.idle += u64::from(!report.counts_as_life());
                    total.counts.add(&report.counts);
                    if is_found(&report, arguments.plan.broken) {
                        stop.store(true, Ordering::Relaxed);
                        if total.failed.as_ref().is_none_or(|failed| failed.seed > seed) {
                            total.failed = Some(report);
                        }
                    }
                }
            });
        }
    });
    let total = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let seconds = began.elapsed().as_secs_f64();
    let Counts { called, succeeded, unknown, compared, simulated_ms, faults } = &total.counts;
    println!(
        "{} worlds from seed {} on in {seconds:.1} s: {:.0} a minute",
        total.lives,
        arguments.first,
        precise(total.lives) / seconds * 60.0
    );
    println!(
        "{} simulated seconds, {:.0} for each real one",
        simulated_ms / 1_000,
        precise(*simulated_ms) / 1_000.0 / seconds
    );
    println!(
        "{succeeded} of {called} operations succeeded, {unknown} have no known outcome; states compared {compared} times"
    );
    println!("{} worlds do not count: fewer than {} operations succeeded", total.idle, simulation::OPERATIONS_MIN);
    for (name, times) in faults {
        println!("{times:>10}  {name}");
    }
    let Some(failed) = &total.failed else {
        if arguments.plan.broken.is_some() {
            eprintln!("nothing was found");
            return Ok(ExitCode::FAILURE);
        }
        // Worlds in which hardly anything succeeds prove nothing.
        let idle_max = total.lives / IDLE_SHARE;
        if total.idle > idle_max {
            eprintln!("of these worlds {idle_max} may be idle at most");
            return Ok(ExitCode::FAILURE);
        }
        return Ok(ExitCode::SUCCESS);
    };
    if !arguments.plan.verbose {
        for line in &failed.trace {
            println!("{line}");
        }
    }
    println!("seed {}:", failed.seed);
    for violation in &failed.violations {
        println!("  {violation}");
    }
    Ok(if arguments.plan.broken.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether what is looked for was found: anything, or what is broken on purpose
/// and nothing else that this may lead to.
fn is_found(report: &Report, broken: Option<Broken>) -> bool {
    match broken {
        None => !report.violations.is_empty(),
        Some(broken) => {
            report.violations.iter().any(|violation| broken.shows().iter().any(|words| violation.contains(words)))
        }
    }
}

fn precise(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}
