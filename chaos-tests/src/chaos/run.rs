//! A run: rounds of faults under load, and in between everything comes to rest
//! and is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::fault::{Kind, Plan, Round};
use super::strike::{self, Effect, Struck, SwarmSize};
use super::world::{self, CLIENTS_HOST, World};
use crate::history::{Event, History, Outcome};
use crate::lab::switch::Counts;
use crate::operators::{Doorkeeper, Waiter};
use crate::random::Random;
use crate::traffic::{Client, Traffic};

/// Rounds after which everything comes to rest and is judged.
const ROUNDS_PER_JUDGEMENT: u64 = 5;
/// A run in which less succeeds, for each round, does not count.
const ACKNOWLEDGED_PER_ROUND_MIN: u64 = 10;
/// Time under load before the first fault of a round.
const CALM: Duration = Duration::from_millis(500);
/// How long a queue may take to empty when nobody joins it.
const QUEUE_LIMIT: Duration = Duration::from_mins(1);

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Decides everything that processes let be decided.
    pub seed: u64,
    /// Replicas.
    pub replicas: usize,
    /// Agents with desktops.
    pub agents: usize,
    /// Clients that make and end sessions.
    pub clients: usize,
    /// Agents of a swarm.
    pub swarm: usize,
    /// Kinds of faults to draw from.
    pub kinds: BTreeSet<Kind>,
    /// When it is over.
    pub length: Length,
}

/// When a run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// After this time, at the end of a round.
    Time(Duration),
    /// After so many rounds, in combination.
    Rounds(u64),
    /// When every kind was done once, alone, or this time has passed.
    EveryKind(Duration),
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How often each kind was done.
    pub faults: BTreeMap<Kind, u64>,
    /// Faults that could not be done when they were drawn.
    pub refused: u64,
    /// Rounds.
    pub rounds: u64,
    /// Times that everything was judged.
    pub judgements: u64,
    /// What clients were told.
    pub tally: Tally,
    /// Calls of all clients, those that were tried again, and those for which
    /// that did not help either.
    pub calls: [u64; 3],
    /// Answers that said they may be out of date.
    pub stale: u64,
    /// Events of the journal that were compared and audited.
    pub events: u64,
    /// How long the cluster took to be whole after each round.
    pub whole: Vec<Duration>,
    /// What the network did.
    pub packets: Counts,
}

/// What clients were told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Acknowledged.
    pub creates: u64,
    /// Acknowledged.
    pub deletes: u64,
    /// Acknowledged: servers opened, closed and drained.
    pub doors: u64,
    /// Had no effect.
    pub refused: u64,
    /// May have had an effect.
    pub in_doubt: u64,
    /// Sessions, servers and queues that were looked at.
    pub looks: u64,
    /// Replicas killed.
    pub broker_kills: u64,
    /// Agents killed.
    pub agent_kills: u64,
}

impl Tally {
    /// Counts a history.
    pub fn of(events: &[Event]) -> Self {
        let mut tally = Self::default();
        for event in events {
            let counter = match event {
                Event::Create { outcome: Outcome::Acknowledged(_), .. } => &mut tally.creates,
                Event::Delete { outcome: Outcome::Acknowledged(()), .. } => &mut tally.deletes,
                Event::Door { outcome: Outcome::Acknowledged(()), .. } => &mut tally.doors,
                Event::Create { outcome: Outcome::Unknown(_), .. }
                | Event::Delete { outcome: Outcome::Unknown(_), .. }
                | Event::Door { outcome: Outcome::Unknown(_), .. } => &mut tally.in_doubt,
                Event::Create { .. } | Event::Delete { .. } | Event::Door { .. } => &mut tally.refused,
                Event::Look { .. } | Event::DoorSeen { .. } | Event::QueueSeen { .. } => &mut tally.looks,
                Event::BrokerKilled { .. } => &mut tally.broker_kills,
                Event::AgentKilled { .. } => &mut tally.agent_kills,
                Event::Fault { .. } => continue,
            };
            *counter += 1;
        }
        tally
    }

    const fn acknowledged(&self) -> u64 {
        self.creates + self.deletes + self.doors
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut whole = self.whole.clone();
        whole.sort();
        let at = |part: usize| whole.get((whole.len() * part / 100).min(whole.len().saturating_sub(1))).copied();
        writeln!(f, "{} rounds, judged {} times, {} faults refused", self.rounds, self.judgements, self.refused)?;
        for (kind, count) in &self.faults {
            writeln!(f, "  {count:4} {kind}: {}", kind.about())?;
        }
        writeln!(f, "{:?}", self.tally)?;
        let [calls, retried, failed] = self.calls;
        writeln!(f, "{calls} calls, {retried} tried again, {failed} without success; {} stale answers", self.stale)?;
        writeln!(f, "{} events compared and audited", self.events)?;
        writeln!(f, "whole again after p50 {:?}, p99 {:?}, at most {:?}", at(50), at(99), whole.last())?;
        write!(f, "{:?}", self.packets)
    }
}

/// Runs in a lab of its own, and tells what it does through `tell`. Whatever is
/// needed to look for the cause of an error is in `place` then.
pub fn run(settings: &Settings, place: &Path, tell: &mut (dyn FnMut(String) + Send)) -> anyhow::Result<Report> {
    let mut random = Random::new(settings.seed);
    super::swarm::raise_files_max(settings.swarm as u64 * 8 + 1000)?;
    let lab = world::lab(settings.replicas, settings.agents, &mut random)?;
    let host = lab.named(CLIENTS_HOST)?.clone();
    host.inside(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let world = World::start(lab, place, settings.replicas, settings.agents, &mut random).await;
            let world = world.context("a new cluster")?;
            tell("the cluster is formed, and whole".to_owned());
            let actors = Actors::new(&world, settings.clients, &mut random)?;
            let mut running = Run { world, settings, report: Report::default(), actors: Some(actors), tell };
            let result = running.rounds(&mut random).await;
            let history = place.join("history.jsonl");
            running.world.history.write(&history)?;
            if result.is_err() {
                for (replica, words) in running.world.last_words() {
                    (running.tell)(format!("last words of replica {replica}:\n{words}"));
                }
            }
            result.with_context(|| format!("history in {}", history.display()))?;
            Ok(running.report)
        })
    })
}

/// All who make load.
struct Actors {
    clients: Vec<Client>,
    doorkeepers: Vec<Doorkeeper>,
    waiters: Vec<Waiter>,
}

impl Actors {
    fn new(world: &World, clients: usize, random: &mut Random) -> anyhow::Result<Self> {
        let history = || std::sync::Arc::clone(&world.history);
        let mut client = |number| Client::new(world.portal(random), format!("user{number}"), random.fork(), history());
        let clients = (0..clients).map(&mut client).collect();
        let doorkeepers = vec![Doorkeeper::new(world.portal(random), world.server(0)?, random.fork(), history())];
        let waiters = vec![Waiter::new(world.portal(random), "waiter0".to_owned(), random.fork(), history())];
        Ok(Self { clients, doorkeepers, waiters })
    }

    fn start(self) -> Load {
        Load {
            clients: Traffic::start(self.clients),
            doorkeepers: Traffic::start(self.doorkeepers),
            waiters: Traffic::start(self.waiters),
        }
    }
}

/// All of them at work.
struct Load {
    clients: Traffic<Client>,
    doorkeepers: Traffic<Doorkeeper>,
    waiters: Traffic<Waiter>,
}

impl Load {
    fn check(&mut self) -> anyhow::Result<()> {
        self.clients.check()?;
        self.doorkeepers.check()?;
        self.waiters.check()
    }

    async fn stop(self) -> anyhow::Result<Actors> {
        Ok(Actors {
            clients: self.clients.stop().await?,
            doorkeepers: self.doorkeepers.stop().await?,
            waiters: self.waiters.stop().await?,
        })
    }
}

struct Run<'a> {
    world: World,
    settings: &'a Settings,
    report: Report,
    actors: Option<Actors>,
    tell: &'a mut (dyn FnMut(String) + Send),
}

impl Run<'_> {
    async fn rounds(&mut self, random: &mut Random) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut plan = Plan::new(&self.settings.kinds, self.settings.replicas, random.fork());
        if matches!(self.settings.length, Length::EveryKind(_)) {
            plan = plan.alone();
        }
        while !self.is_over(begun) {
            let mut load = self.actors.take().context("clients are at rest")?.start();
            for _ in 0..ROUNDS_PER_JUDGEMENT {
                if self.is_over(begun) {
                    break;
                }
                let round = plan.draw();
                let number = self.report.rounds;
                self.round(&round, &mut load).await.with_context(|| format!("round {number}: {}", names(&round)))?;
            }
            self.actors = Some(load.stop().await?);
            self.judge().await.context("at rest")?;
        }
        let least = self.report.rounds * ACKNOWLEDGED_PER_ROUND_MIN;
        let acknowledged = self.report.tally.acknowledged();
        ensure!(
            acknowledged >= least,
            "only {acknowledged} calls succeeded; a run with less than {least} proves nothing"
        );
        Ok(())
    }

    fn is_over(&self, begun: Instant) -> bool {
        match self.settings.length {
            Length::Time(time) => begun.elapsed() >= time,
            Length::Rounds(rounds) => self.report.rounds >= rounds,
            Length::EveryKind(time) => {
                let is_done = |kind: &Kind| self.report.faults.contains_key(kind);
                begun.elapsed() >= time || self.settings.kinds.iter().all(is_done)
            }
        }
    }

    async fn round(&mut self, round: &Round, load: &mut Load) -> anyhow::Result<()> {
        let begun = Instant::now();
        tokio::time::sleep(CALM).await;
        let mut struck = Struck::default();
        let mut told = Vec::new();
        for fault in &round.faults {
            self.world.note(format!("begins: {fault}"));
            let effect = strike::begin(&mut self.world, fault, SwarmSize(self.settings.swarm), &mut struck).await;
            match effect.with_context(|| fault.to_string())? {
                Effect::Done(what) => {
                    *self.report.faults.entry(fault.kind).or_default() += 1;
                    told.push(if what.is_empty() { fault.to_string() } else { format!("{fault} ({what})") });
                }
                Effect::Refused(why) => {
                    self.report.refused += 1;
                    told.push(format!("{fault} was refused ({why})"));
                }
            }
        }
        // Not to wait for something: the faults last.
        tokio::time::sleep(round.hold).await;
        for fault in &round.faults {
            strike::end(&mut self.world, fault, &mut struck).await.with_context(|| fault.to_string())?;
        }
        self.world.mend()?;
        self.world.note("mended".to_owned());
        let whole = self.world.whole().await?;
        self.world.note("whole".to_owned());
        load.check()?;
        self.report.whole.push(whole);
        (self.tell)(format!(
            "round {}: {}; held {} ms, whole after {} ms, {} ms in all",
            self.report.rounds,
            told.join(" + "),
            round.hold.as_millis(),
            whole.as_millis(),
            begun.elapsed().as_millis()
        ));
        self.report.rounds += 1;
        Ok(())
    }

    async fn judge(&mut self) -> anyhow::Result<()> {
        let actors = self.actors.as_mut().context("clients are at rest")?;
        for doorkeeper in &mut actors.doorkeepers {
            until(&self.world.history, async || doorkeeper.open().await).await.context("a server stays closed")?;
        }
        for waiter in &mut actors.waiters {
            until(&self.world.history, async || waiter.leave_all().await).await.context("a queue stays")?;
        }
        let begun = Instant::now();
        let observed = self.world.rest().await?;
        let report = &mut self.report;
        report.judgements += 1;
        report.tally = Tally::of(&self.world.history.events());
        let counters = &self.world.counters;
        report.calls =
            [&counters.calls, &counters.retried, &counters.failed].map(|counter| counter.load(Ordering::Relaxed));
        report.stale = counters.stale.load(Ordering::Relaxed);
        report.events = self.world.events_audited();
        report.packets = self.world.lab.switch()?.counts();
        (self.tell)(format!(
            "judged in {} ms: {} sessions, {:?}",
            begun.elapsed().as_millis(),
            observed.sessions.len(),
            report.tally
        ));
        Ok(())
    }
}

/// Repeats something until it succeeds.
async fn until(history: &History, mut attempt: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !attempt().await? {
        ensure!(begun.elapsed() < QUEUE_LIMIT, "not within {QUEUE_LIMIT:?}, at {:?}", history.now());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn names(round: &Round) -> String {
    round.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
}
