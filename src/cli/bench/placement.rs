//! Placements per second in fleets of few and of many servers, each request
//! with one of fifty expressions.
//!
//! What is timed is what a replica does for a create in the log: the command
//! is applied and the state cloned for readers after each entry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::domain::fleet::Stamp;
use crate::domain::host::{Health, HostFacts, HostLoad, Limits, Usage};
use crate::domain::report::{Inventory, Report};
use crate::domain::requirements::Expression;
use crate::domain::{
    ClientId, Command, Fleet, LogIndex, Millis, Outcome, Owner, ReplicaId, ServerId, SessionId, SessionKind,
    SessionSpec, Timestamp,
};

/// Commands in one entry of the log, as a busy leader gathers them.
const COMMANDS_PER_ENTRY: u32 = 16;

/// Options of `berth bench placement`.
#[derive(Debug, clap::Args)]
#[group(skip)] // all are called Args, and groups must differ
pub(super) struct Args {
    /// Sizes of fleets.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 100_000])]
    servers: Vec<u32>,
    /// Placements in each round.
    #[arg(long, default_value_t = 20_000)]
    placements: u32,
    /// Rounds; the sizes take turns, and medians are told.
    #[arg(long, default_value_t = 7)]
    rounds: u32,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let expressions = expressions()?;
    let mut fleets = Vec::new();
    for servers in &args.servers {
        let started = Instant::now();
        let mut fleet = Bench::new(*servers)?;
        // Each expression is asked for twice before anything is timed: then its set is kept.
        for expression in expressions.iter().chain(&expressions) {
            fleet.place(1, std::slice::from_ref(expression))?;
        }
        say!("{servers} servers, {} expressions: ready after {:.1?}", expressions.len(), started.elapsed());
        fleets.push((*servers, fleet, Vec::new()));
    }
    for _ in 0..args.rounds {
        for (_, fleet, times) in &mut fleets {
            times.push(fleet.place(args.placements, &expressions)?);
        }
    }
    let mut first = None;
    for (servers, _, times) in &mut fleets {
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().context("there must be a round")?;
        let rate = f64::from(args.placements) / median.as_secs_f64();
        let ratio = rate / *first.get_or_insert(rate);
        say!("{servers:>8} servers: {rate:>9.0} placements/s, {ratio:.2} of the first");
    }
    Ok(())
}

/// Fifty expressions of the kinds that portals send.
fn expressions() -> anyhow::Result<Vec<Arc<Expression>>> {
    let mut texts = Vec::new();
    for color in 0..10 {
        texts.push(format!("tag:color = 'c{color}'"));
        texts.push(format!("tag:color != 'c{color}' and tag:size >= {}", color % 4));
        texts.push(format!("server:Host.CpuInfo.NumberOfCpus >= {} and tag:color := '{color}'", 1 << (color % 4)));
        texts.push(format!("server:Host.Memory.TotalBytes > {}E9", 4 + 3 * color));
        texts.push(format!("(tag:size = {} or tag:color = 'c{color}') and not tag:site = 'away'", color % 4));
    }
    let parsed = texts.iter().map(|text| Expression::parse(text).map(|e| e.map(Arc::new)));
    let parsed: Result<Option<Vec<_>>, _> = parsed.collect();
    parsed?.context("no expression is blank")
}

struct Bench {
    fleet: Fleet,
    /// What readers hold.
    published: Fleet,
    index: u64,
    client: ClientId,
    /// Sessions that were made.
    made: u64,
}

impl Bench {
    fn new(servers: u32) -> anyhow::Result<Self> {
        let fleet = Fleet::default();
        let client = ClientId::new("bench")?;
        let mut bench = Self { published: fleet.clone(), fleet, index: 0, client, made: 0 };
        for number in 0..servers {
            bench.index += 1;
            let stamp = bench.stamp();
            bench.fleet.apply(stamp, connect(number)?);
        }
        Ok(bench)
    }

    const fn stamp(&self) -> Stamp {
        Stamp { index: LogIndex(self.index), at: Timestamp(1_000) }
    }

    /// Places so many sessions and tells how long it took.
    fn place(&mut self, count: u32, expressions: &[Arc<Expression>]) -> anyhow::Result<Duration> {
        let mut commands = Vec::with_capacity(count as usize);
        for expression in expressions.iter().cycle().take(count as usize) {
            self.made += 1;
            let owner = Owner::new(&format!("user{}", self.made % 5_000))?;
            let spec = SessionSpec {
                requirements: Some(Arc::clone(expression)),
                ..SessionSpec::plain("work".to_owned(), owner, SessionKind::Virtual)
            };
            let id = SessionId::new(&format!("01a1b2c3-0000-7000-8000-{:012}", self.made))?;
            commands.push(Command::CreateSession { id, spec, client: self.client.clone() });
        }
        let mut placed = 0;
        let started = Instant::now();
        for (number, command) in (0u32..).zip(commands) {
            let outcome = self.fleet.apply(self.stamp(), command).outcome;
            placed += u32::from(matches!(outcome, Outcome::Created { .. }));
            if number % COMMANDS_PER_ENTRY == 0 {
                self.index += 1;
                self.published = self.fleet.clone();
            }
        }
        let elapsed = started.elapsed();
        ensure!(placed == count, "only {placed} of {count} sessions found a server");
        Ok(elapsed)
    }
}

fn connect(number: u32) -> anyhow::Result<Command> {
    let tags = BTreeMap::from([
        ("color".to_owned(), format!("c{}", number % 10)),
        ("size".to_owned(), (number / 3 % 4).to_string()),
        ("site".to_owned(), if number.is_multiple_of(7) { "away" } else { "home" }.to_owned()),
    ]);
    let facts = HostFacts {
        hostname: format!("host{number}"),
        tags,
        cpu: crate::domain::host::Cpu { logical_count: 8 << (number % 2), ..Default::default() },
        limits: Limits { virtual_sessions_max: None, sessions_per_owner_max: None, console_sessions: false },
        ..HostFacts::default()
    };
    let memory = Usage { total_bytes: (u64::from(number % 8) + 5) * 8_000_000_000, used_bytes: 0 };
    Ok(Command::ConnectAgent {
        server: ServerId::new(&format!("5c0f2d9e-0000-4000-8000-{number:012}"))?,
        instance: crate::domain::ids::AgentInstance::new("bench")?,
        via: ReplicaId(1),
        report_interval: Millis::from_secs(30),
        report: Report {
            facts: Some(facts),
            load: Some(HostLoad { memory, ..HostLoad::default() }),
            health: Some(Health::Healthy),
            sessions: Some(Inventory::Full(Vec::new())),
        },
    })
}
