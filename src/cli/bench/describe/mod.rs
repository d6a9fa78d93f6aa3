//! `berth bench describe`: what a page of describeSessions costs out of few
//! and out of many sessions.
//!
//! Two fleets in memory, one with a hundredth of the sessions of the other,
//! both made by commands as a log would hold them: agents connect, clients
//! create, agents answer. Then pages at random places of a walk: the page
//! alone, by the code of the handler from the query to the bytes of the answer,
//! and the whole call, over TLS to the last byte. The two fleets take turns, so
//! that whatever else the machine does hits both.

mod fleets;
mod served;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::fleets::{SESSIONS_PER_SERVER, build, owner_name, pool_name, resident_bytes};
use self::served::Served;
use crate::broker::api::describe_page;
use crate::broker::api::wire::{DescribeSessionsRequestData, DescribeSessionsResponse, KeyValuePair};
use crate::domain::Fleet;

/// Owners and pools in the smaller fleet: each has several pages.
const GROUPS_SMALL: u16 = 5;

/// Options of `berth bench describe`.
#[derive(Debug, clap::Args)]
#[group(skip)] // all are called Args, and groups must differ
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
    /// Owners and pools in the larger fleet: one in so many sessions is what a
    /// filter finds. The smaller fleet has five.
    #[arg(long, default_value_t = GROUPS_SMALL, value_parser = clap::value_parser!(u16).range(5..=250))]
    groups: u16,
    /// Seed of ids and places.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let [few, many] = args.sessions[..] else { bail!("--sessions takes two numbers, the smaller first") };
    let has_pages = |sessions: usize, groups: u16| sessions / usize::from(groups) >= usize::from(args.rows);
    if few >= many || !has_pages(few, GROUPS_SMALL) || !has_pages(many, args.groups) {
        bail!("--sessions takes two numbers, the smaller first, and each owner must have a page's worth");
    }
    let folder = std::env::temp_dir().join(format!("berth-bench-{}", std::process::id()));
    let result = measure(&args, few, many, &folder).await;
    let removed = std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()));
    result.and(removed)
}

async fn measure(args: &Args, few: usize, many: usize, folder: &std::path::Path) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(args.seed);
    let before = resident_bytes()?;
    let large = build(many, args.groups.into(), &mut random)?;
    let bytes = resident_bytes()?.saturating_sub(before) / many;
    say!("{many} sessions on {} servers: {bytes} bytes for each session, all told", many / SESSIONS_PER_SERVER);
    let small = build(few, GROUPS_SMALL.into(), &mut random)?;
    let (small, large) = (Subject::new(small, GROUPS_SMALL, folder)?, Subject::new(large, args.groups, folder)?);

    say!("pages of {}; medians of {} repetitions of {} pages", args.rows, args.repetitions, args.pages);
    say!("| what | which | of {few} | of {many} | ratio |\n|---|---|---|---|---|");
    let mut tables = (Vec::new(), Vec::new());
    for kind in [Kind::All, Kind::Owner, Kind::Tag] {
        let walks = (small.walk(kind, args.rows)?, large.walk(kind, args.rows)?);
        let mut pages = (Vec::new(), Vec::new());
        let mut calls = (Vec::new(), Vec::new());
        for _ in 0..args.repetitions {
            let mut times = [const { Vec::new() }; 4];
            for _ in 0..args.pages {
                let [page_small, page_large, call_small, call_large] = &mut times;
                page_small.push(small.time_page(choose(&walks.0, &mut random), args.rows)?);
                page_large.push(large.time_page(choose(&walks.1, &mut random), args.rows)?);
                call_small.push(small.time_call(choose(&walks.0, &mut random), args.rows).await?);
                call_large.push(large.time_call(choose(&walks.1, &mut random), args.rows).await?);
            }
            let [page_small, page_large, call_small, call_large] = times.map(median);
            pages.0.push(page_small);
            pages.1.push(page_large);
            calls.0.push(call_small);
            calls.1.push(call_large);
        }
        tables.0.push(line("page", kind, median(pages.0), median(pages.1)));
        tables.1.push(line("call", kind, median(calls.0), median(calls.1)));
    }
    for line in tables.0.into_iter().chain(tables.1) {
        say!("{line}");
    }
    small.served.stop();
    large.served.stop();
    Ok(())
}

fn line(what: &str, kind: Kind, small: Duration, large: Duration) -> String {
    let ratio = large.as_secs_f64() / small.as_secs_f64();
    format!("| {what} | {} | {:.2} ms | {:.2} ms | {ratio:.2} |", kind.name(), millis(small), millis(large))
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

    fn filters(self, group: u16) -> Option<Vec<KeyValuePair>> {
        let (key, value) = match self {
            Self::All => return None,
            Self::Owner => ("owner", owner_name(group.into())),
            Self::Tag => ("tag:pool", pool_name(group.into())),
        };
        Some(vec![KeyValuePair { key: Some(key.to_owned()), value: Some(value) }])
    }
}

/// Queries that each give a full page.
type Walk = Vec<DescribeSessionsRequestData>;

fn choose<'a>(walk: &'a Walk, random: &mut StdRng) -> &'a DescribeSessionsRequestData {
    &walk[random.random_range(0..walk.len())]
}

/// A fleet that is measured.
struct Subject {
    fleet: Arc<Fleet>,
    groups: u16,
    served: Served,
}

impl Subject {
    fn new(fleet: Fleet, groups: u16, folder: &std::path::Path) -> anyhow::Result<Self> {
        let fleet = Arc::new(fleet);
        let served = Served::start(Arc::clone(&fleet), folder)?;
        Ok(Self { fleet, groups, served })
    }

    /// Queries for the full pages of a walk through each group.
    fn walk(&self, kind: Kind, rows: u16) -> anyhow::Result<Walk> {
        let groups = match kind {
            Kind::All => 1,
            Kind::Owner | Kind::Tag => self.groups,
        };
        let mut walk = Vec::new();
        for group in 0..groups {
            let mut query = DescribeSessionsRequestData {
                filters: kind.filters(group),
                max_results: Some(rows.into()),
                ..DescribeSessionsRequestData::default()
            };
            loop {
                let body = describe_page(&self.fleet, query.clone(), "")?;
                let page: DescribeSessionsResponse = serde_json::from_slice(&body)?;
                if page.sessions.len() == usize::from(rows) {
                    walk.push(query.clone());
                }
                match page.next_token {
                    Some(token) => query.next_token = Some(token),
                    None => break,
                }
            }
        }
        if walk.is_empty() {
            bail!("{} has no full page", kind.name());
        }
        Ok(walk)
    }

    fn time_page(&self, query: &DescribeSessionsRequestData, rows: u16) -> anyhow::Result<Duration> {
        let query = query.clone();
        let began = Instant::now();
        let body = describe_page(black_box(&self.fleet), query, "a-request-id")?;
        let took = began.elapsed();
        if black_box(&body).len() < bytes_min(rows) {
            bail!("a page has too few bytes");
        }
        Ok(took)
    }

    async fn time_call(&self, query: &DescribeSessionsRequestData, rows: u16) -> anyhow::Result<Duration> {
        self.served.time_one(query, bytes_min(rows)).await
    }
}

/// Less than a page of so many rows can have.
fn bytes_min(rows: u16) -> usize {
    usize::from(rows) * 100
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
