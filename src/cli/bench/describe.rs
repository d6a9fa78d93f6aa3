//! `berth bench describe`: what a page of describeSessions costs out of few
//! and out of many sessions.
//!
//! Two fleets in memory, one with a hundredth of the sessions of the other,
//! both made by commands as a log would hold them: agents connect, clients
//! create, agents answer. Then pages at random places of a walk, by the code
//! that the handler runs: from the query to the bytes of the answer. Pages of
//! the two fleets take turns, so that whatever else the machine does hits both.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::broker::api::describe_page;
use crate::broker::api::wire::{DescribeSessionsRequestData, DescribeSessionsResponse, KeyValuePair};
use crate::domain::fleet::Stamp;
use crate::domain::host::{Endpoint, EndpointProtocol, Health, HostFacts, HostLoad, Limits};
use crate::domain::ids::AgentInstance;
use crate::domain::instruction::Answer;
use crate::domain::report::{Inventory, Report};
use crate::domain::{
    ClientId, Command, Epoch, Fleet, LogIndex, Millis, Outcome, Owner, ReplicaId, ServerId, SessionId, SessionKind,
    SessionSpec, Settings, Timestamp,
};

/// Sessions on each server, in both fleets.
const SESSIONS_PER_SERVER: usize = 10;
/// Sessions of one owner, and on servers with one value of the tag `pool`, out
/// of all: 2,000 of the fewer, as many or more of the many.
const SHARE_SMALL: usize = 5;

/// Options of `berth bench describe`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Sessions of the two fleets.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 1_000_000])]
    sessions: Vec<usize>,
    /// Results of a page.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rows: u16,
    /// Pages of each kind and fleet in one repetition.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    pages: u32,
    /// Repetitions; the median of their medians is told.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(5..))]
    repetitions: u32,
    /// Owners and pools in the larger fleet; their share of all sessions is
    /// what one filter finds. The smaller fleet has five.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(5..=250))]
    groups: u16,
    /// Seed of ids and places.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[allow(clippy::print_stdout)] // a command's output
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let [few, many] = args.sessions[..] else { bail!("--sessions takes two numbers, the smaller first") };
    if few >= many || few < SHARE_SMALL * usize::from(args.rows) || many / usize::from(args.groups) < 1000 {
        bail!("--sessions takes two numbers, the smaller first, and each owner must have a page's worth");
    }
    let mut random = StdRng::seed_from_u64(args.seed);
    let before = resident_bytes()?;
    let large = build(many, usize::from(args.groups), &mut random)?;
    let bytes = resident_bytes()?.saturating_sub(before);
    println!(
        "fleet: {many} sessions on {} servers, {} B each with everything",
        many / SESSIONS_PER_SERVER,
        bytes / many
    );
    let small = build(few, SHARE_SMALL, &mut random)?;

    println!("pages of {}, {} repetitions of {} pages", args.rows, args.repetitions, args.pages);
    println!("| pages | {few} sessions | {many} sessions | ratio |\n|---|---|---|---|");
    for kind in [Kind::All, Kind::Owner, Kind::Tag] {
        let small_walk = kind.tokens(&small, SHARE_SMALL, args.rows)?;
        let large_walk = kind.tokens(&large, usize::from(args.groups), args.rows)?;
        let mut medians = (Vec::new(), Vec::new());
        for _ in 0..args.repetitions {
            let (mut of_small, mut of_large) = (Vec::new(), Vec::new());
            for _ in 0..args.pages {
                of_small.push(small_walk.time_one(&small, args.rows, &mut random)?);
                of_large.push(large_walk.time_one(&large, args.rows, &mut random)?);
            }
            medians.0.push(median(of_small));
            medians.1.push(median(of_large));
        }
        let (small, large) = (median(medians.0), median(medians.1));
        println!(
            "| {} | {:.2} ms | {:.2} ms | {:.2} |",
            kind.name(),
            millis(small),
            millis(large),
            large.as_secs_f64() / small.as_secs_f64()
        );
    }
    Ok(())
}

/// What a page is asked for.
#[derive(Debug, Clone, Copy)]
enum Kind {
    All,
    Owner,
    Tag,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::All => "unfiltered",
            Self::Owner => "by owner",
            Self::Tag => "by tag",
        }
    }

    fn filters(self, group: usize) -> Option<Vec<KeyValuePair>> {
        let (key, value) = match self {
            Self::All => return None,
            Self::Owner => ("owner", owner_name(group)),
            Self::Tag => ("tag:pool", pool_name(group)),
        };
        Some(vec![KeyValuePair { key: Some(key.to_owned()), value: Some(value) }])
    }

    /// Queries for full pages: a walk through each group.
    fn tokens(self, fleet: &Fleet, groups: usize, rows: u16) -> anyhow::Result<Walks> {
        let mut queries = Vec::new();
        let groups: Vec<usize> = match self {
            Self::All => vec![0],
            Self::Owner | Self::Tag => (0..groups).collect(),
        };
        for group in groups {
            let mut query = DescribeSessionsRequestData {
                filters: self.filters(group),
                max_results: Some(rows.into()),
                ..DescribeSessionsRequestData::default()
            };
            loop {
                let body = describe_page(fleet, query.clone(), "")?;
                let page: DescribeSessionsResponse = serde_json::from_slice(&body)?;
                if page.sessions.len() == usize::from(rows) {
                    queries.push(query.clone());
                }
                match page.next_token {
                    Some(token) => query.next_token = Some(token),
                    None => break,
                }
            }
        }
        if queries.is_empty() {
            bail!("{} has no full page", self.name());
        }
        Ok(Walks(queries))
    }
}

/// Queries that each give a full page.
struct Walks(Vec<DescribeSessionsRequestData>);

impl Walks {
    fn time_one(&self, fleet: &Fleet, rows: u16, random: &mut StdRng) -> anyhow::Result<Duration> {
        let query = self.0[random.random_range(0..self.0.len())].clone();
        let began = Instant::now();
        let body = describe_page(black_box(fleet), query, "a-request-id")?;
        let took = began.elapsed();
        if black_box(&body).len() < usize::from(rows) * 100 {
            bail!("a page has too few bytes");
        }
        Ok(took)
    }
}

fn owner_name(group: usize) -> String {
    format!("user{group:05}")
}

fn pool_name(group: usize) -> String {
    format!("pool-{group:05}")
}

/// A fleet with so many sessions, all READY, of as many owners and on servers
/// of as many pools as there are groups.
fn build(sessions: usize, groups: usize, random: &mut StdRng) -> anyhow::Result<Fleet> {
    let mut log = Log { fleet: Fleet::default(), index: 0, at: 1_750_000_000_000 };
    log.apply(Command::Configure(Settings { journal_records_max: 1000, ..Settings::default() }));
    let mut epochs: BTreeMap<ServerId, Epoch> = BTreeMap::new();
    for number in 0..sessions / SESSIONS_PER_SERVER {
        let id = ServerId::new(&uuid::Builder::from_random_bytes(random.random()).into_uuid().to_string())?;
        let report = Report {
            facts: Some(facts(number, number % groups)),
            load: Some(HostLoad::default()),
            health: Some(Health::Healthy),
            sessions: Some(Inventory::Full(Vec::new())),
        };
        let outcome = log.apply(Command::ConnectAgent {
            instance: AgentInstance::new("bench")?,
            server: id.clone(),
            via: ReplicaId(1),
            // Nobody is lost while the fleet is made.
            report_interval: Millis::from_secs(1_000_000),
            report,
        });
        let Outcome::Welcome { epoch } = outcome else { bail!("an agent was not let in: {outcome:?}") };
        epochs.insert(id, epoch);
    }
    let client = ClientId::new("bench")?;
    for _ in 0..sessions {
        // Some thousand a second, as a busy broker makes them.
        log.at += u64::from(random.random_ratio(1, 4));
        let id = uuid::Builder::from_unix_timestamp_millis(log.at, &random.random()).into_uuid();
        let id = SessionId::new(&id.to_string())?;
        let owner = Owner::new(&owner_name(random.random_range(0..groups)))?;
        let spec = SessionSpec::plain("a desktop".to_owned(), owner, SessionKind::Virtual);
        log.apply(Command::CreateSession { id: id.clone(), spec, client: client.clone() });
        let session = log.fleet.session(&id).context("a session was refused")?;
        let server = session.phase.server().context("a session was not placed")?.clone();
        let epoch = *epochs.get(&server).context("a server that is not there")?;
        let instruction = log.fleet.outbox(&server).next().context("an agent was told nothing")?.id;
        log.apply(Command::Answer { server, epoch, instruction, answer: Answer::Done });
    }
    Ok(log.fleet)
}

struct Log {
    fleet: Fleet,
    index: u64,
    at: u64,
}

impl Log {
    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let stamp = Stamp { index: LogIndex(self.index), at: Timestamp(self.at) };
        self.fleet.advance(stamp);
        self.fleet.apply(stamp, command).outcome
    }
}

/// What a host of a fleet tells: five tags, two places where it listens.
fn facts(number: usize, group: usize) -> HostFacts {
    let endpoint = |protocol| Endpoint { ip: None, port: 8443, web_url_path: Some("/".to_owned()), protocol };
    let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    HostFacts {
        hostname: format!("desk-{number}"),
        ip: format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255),
        dns_name: Some(format!("desk-{number}.desktops.example.org")),
        endpoints: vec![endpoint(EndpointProtocol::Http), endpoint(EndpointProtocol::Quic)],
        web_url_path: Some("/".to_owned()),
        desktop_version: "2023.0.15487".to_owned(),
        agent_version: "0.1.0".to_owned(),
        tags: BTreeMap::from([
            tag("pool", &pool_name(group)),
            tag("dcv:os-family", "linux"),
            tag("dcv:max-virtual-sessions", "50"),
            tag("site", if number.is_multiple_of(2) { "london" } else { "paris" }),
            tag("image", &format!("2025-{:02}", number % 12 + 1)),
        ]),
        limits: Limits { virtual_sessions_max: Some(50), sessions_per_owner_max: None, console_sessions: false },
        ..HostFacts::default()
    }
}

/// Resident memory of this process.
fn resident_bytes() -> anyhow::Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: usize = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
