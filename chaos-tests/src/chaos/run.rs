//! A run: rounds of faults under load, and in between everything comes to rest
//! and is judged. A long run has one cluster after the other, so that what they
//! keep does not outgrow the time there is to judge it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::fault::{Kind, Plan, Round};
use super::report::{Report, Tally};
use super::strike::{self, Struck, SwarmSize};
use super::world::{self, CLIENTS_HOST, World};
use crate::history::History;
use crate::operators::{Doorkeeper, Waiter};
use crate::process::Program;
use crate::random::Random;
use crate::traffic::{Client, Traffic};

/// Rounds after which everything comes to rest and is judged.
const ROUNDS_PER_JUDGEMENT: u64 = 5;
/// Rounds of one cluster in a long run. What it keeps, snapshots with the whole
/// journal among it, grows with each.
const ROUNDS_PER_CLUSTER: u64 = 20;
/// Clusters that the harness may give up before it counts as broken itself.
const HICCUPS_MAX: usize = 5;
/// A run in which less succeeds, for each round, does not count.
const ACKNOWLEDGED_PER_ROUND_MIN: u64 = 10;
/// Time under load before the first fault of a round.
const CALM: Duration = Duration::from_millis(500);
/// How long a queue may take to empty when nobody joins it.
const QUEUE_LIMIT: Duration = Duration::from_mins(1);
/// A client pauses for less than this between two requests: what it makes is
/// read whole at each judgement.
const PAUSE_MS: u64 = 250;

/// Said of an error of the harness's own: nothing was found out about the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hiccup;

impl fmt::Display for Hiccup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the harness cannot go on")
    }
}

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
    /// After so many rounds of one cluster.
    Rounds(u64),
    /// When every kind has struck one cluster, as many at a time as is sound, or
    /// this time has passed.
    EveryKind(Duration),
}

/// A run that found something, or could not be done.
#[derive(Debug)]
pub struct Failed {
    /// What.
    pub error: anyhow::Error,
    /// The seed that repeats the cluster in which it was, as far as processes let
    /// themselves be repeated.
    pub seed: u64,
    /// All that happened until then.
    pub report: Report,
}

/// Runs, in labs of its own, and tells what it does through `tell`. Whatever is
/// needed to look for the cause of an error is in `place` then.
pub fn run(settings: &Settings, place: &Path, tell: &mut (dyn FnMut(String) + Send)) -> Result<Report, Box<Failed>> {
    let begun = Instant::now();
    let mut report = Report::default();
    // The first cluster has the run's seed, so that any one can be repeated by its own.
    let mut settings = settings.clone();
    let mut seeds = Random::new(settings.seed);
    let program = match Program::take(place) {
        Ok(program) => program,
        Err(error) => return Err(Box::new(Failed { error, seed: settings.seed, report })),
    };
    loop {
        let seed = settings.seed;
        let (one, result) = run_cluster(&settings, &program, begun, &place.join(format!("{seed:016x}")), tell);
        report.merge(one);
        if let Err(error) = result {
            if error.downcast_ref::<Hiccup>().is_none() || report.hiccups.len() >= HICCUPS_MAX {
                return Err(Box::new(Failed { error, seed, report }));
            }
            tell(format!("given up, --seed {seed}: {error:#}"));
            report.hiccups.push(format!("--seed {seed}: {error:#}"));
        }
        match settings.length {
            Length::Time(time) if begun.elapsed() < time => settings.seed = seeds.next(),
            _ => return Ok(report),
        }
    }
}

/// One cluster, in a folder of its own, which goes with it unless something was found.
fn run_cluster(
    settings: &Settings,
    program: &Program,
    begun: Instant,
    place: &Path,
    tell: &mut (dyn FnMut(String) + Send),
) -> (Report, anyhow::Result<()>) {
    let mut report = Report { clusters: 1, ..Report::default() };
    let filled = &mut report;
    let result = (move || {
        std::fs::create_dir_all(place).context(Hiccup)?;
        tell(format!("a new cluster, --seed {}", settings.seed));
        let mut random = Random::new(settings.seed);
        super::swarm::raise_files_max(settings.swarm as u64 * 8 + 1000).context(Hiccup)?;
        let lab = world::lab(settings.replicas, settings.agents, &mut random).context(Hiccup)?;
        let host = lab.named(CLIENTS_HOST)?.clone();
        host.inside(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(async {
                let program = program.clone();
                let world = World::start(lab, program, place, settings.replicas, settings.agents, &mut random).await;
                let world = world.context("a new cluster")?;
                tell("the cluster is formed, and whole".to_owned());
                let actors = Actors::new(&world, settings.clients, &mut random)?;
                let mut running = Run { world, settings, begun, report: filled, actors: Some(actors), tell };
                let result = running.rounds(&mut random).await;
                running.sum_up()?;
                if result.is_err() {
                    running.world.history.write(&place.join("history.jsonl"))?;
                    for (replica, words) in running.world.last_words() {
                        (running.tell)(format!("last words of replica {replica}:\n{words}"));
                    }
                }
                result.with_context(|| format!("everything is in {}", place.display()))
            })
        })
    })();
    if result.is_ok() {
        // It is in a temporary folder anyway.
        let _ = std::fs::remove_dir_all(place);
    }
    (report, result)
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
        let mut client = |number| {
            Client::new(world.portal(random), format!("user{number}"), random.fork(), history()).pausing(PAUSE_MS)
        };
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
    /// Of the whole run.
    begun: Instant,
    report: &'a mut Report,
    actors: Option<Actors>,
    tell: &'a mut (dyn FnMut(String) + Send),
}

impl Run<'_> {
    async fn rounds(&mut self, random: &mut Random) -> anyhow::Result<()> {
        let mut plan = Plan::new(&self.settings.kinds, self.settings.replicas, random.fork());
        if matches!(self.settings.length, Length::EveryKind(_)) {
            plan = plan.dense();
        }
        while !self.is_over() {
            let mut load = self.actors.take().context("clients are at rest")?.start();
            let mut result = Ok(());
            for _ in 0..ROUNDS_PER_JUDGEMENT {
                if self.is_over() {
                    break;
                }
                let round = plan.draw();
                let number = self.report.rounds;
                result = self.round(&round, &mut plan, &mut load).await;
                result = result.with_context(|| format!("round {number}: {}", names(&round)));
                if result.is_err() {
                    break;
                }
            }
            // The harness stumbled: what happened until then is judged all the same.
            if result.as_ref().is_err_and(|error| error.downcast_ref::<Hiccup>().is_some()) {
                self.world.mend().context(Hiccup)?;
            } else {
                result?;
                result = Ok(());
            }
            self.actors = Some(load.stop().await?);
            self.judge().await.context("at rest")?;
            result?;
        }
        let least = self.report.rounds * ACKNOWLEDGED_PER_ROUND_MIN;
        let acknowledged = self.report.tally.acknowledged();
        ensure!(
            acknowledged >= least,
            "only {acknowledged} calls succeeded; a run with less than {least} proves nothing"
        );
        Ok(())
    }

    fn is_over(&self) -> bool {
        match self.settings.length {
            Length::Time(time) => self.begun.elapsed() >= time || self.report.rounds >= ROUNDS_PER_CLUSTER,
            Length::Rounds(rounds) => self.report.rounds >= rounds,
            Length::EveryKind(time) => {
                let has_struck = |kind: &Kind| self.report.has_struck(*kind);
                self.begun.elapsed() >= time || self.settings.kinds.iter().all(has_struck)
            }
        }
    }

    async fn round(&mut self, round: &Round, plan: &mut Plan, load: &mut Load) -> anyhow::Result<()> {
        let begun = Instant::now();
        tokio::time::sleep(CALM).await;
        let (mut of_agents, mut others) = (Vec::new(), Vec::new());
        for fault in &round.faults {
            self.world.note(format!("begins: {fault}"));
            let under_way = strike::begin(&mut self.world, fault, SwarmSize(self.settings.swarm)).await;
            let under_way = under_way.with_context(|| fault.to_string())?;
            if fault.kind.is_of_agents() { &mut of_agents } else { &mut others }.push(under_way);
        }
        // Not to wait for something: the faults last.
        tokio::time::sleep(round.hold).await;
        let held = begun.elapsed();
        let mut told = Vec::new();
        for under_way in others {
            self.end(under_way, plan, &mut told).await?;
        }
        self.world.mend().context(Hiccup)?;
        self.world.note("mended".to_owned());
        let whole = self.world.whole().await?;
        self.world.note("whole".to_owned());
        // An agent can behave in whatever way it likes only towards a cluster.
        for under_way in of_agents {
            self.end(under_way, plan, &mut told).await?;
        }
        load.check()?;
        self.report.whole.push(whole);
        (self.tell)(format!(
            "round {}: {}; begun and held {} ms, whole after {} ms, {} ms in all",
            self.report.rounds,
            told.join(" + "),
            held.as_millis(),
            whole.as_millis(),
            begun.elapsed().as_millis()
        ));
        self.report.rounds += 1;
        Ok(())
    }

    async fn end(&mut self, under_way: strike::Begun, plan: &mut Plan, told: &mut Vec<String>) -> anyhow::Result<()> {
        let name = under_way.to_string();
        let Struck { kind, told: what, hits } = strike::end(&mut self.world, under_way).await.context(name)?;
        self.report.add(kind, hits);
        if hits == 0 {
            plan.again(kind);
            told.push(format!("{what}: did not strike"));
        } else {
            told.push(format!("{what}: {hits} {}", kind.unit()));
        }
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
        self.report.judgements += 1;
        self.sum_up()?;
        (self.tell)(format!(
            "judged in {} ms: {} sessions, {:?}",
            begun.elapsed().as_millis(),
            observed.sessions.len(),
            self.report.tally
        ));
        Ok(())
    }

    /// Notes what clients and the network came to.
    fn sum_up(&mut self) -> anyhow::Result<()> {
        let report = &mut *self.report;
        report.tally = Tally::of(&self.world.history.events());
        let counters = &self.world.counters;
        report.calls =
            [&counters.calls, &counters.retried, &counters.failed].map(|counter| counter.load(Ordering::Relaxed));
        report.stale = counters.stale.load(Ordering::Relaxed);
        report.events = self.world.events_audited();
        report.packets = self.world.lab.switch()?.counts();
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

/// The kinds of a round and whom they hit.
fn names(round: &Round) -> String {
    round.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(" + ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hiccup_is_told_from_a_finding_however_deep_it_lies() {
        let hiccup = anyhow::anyhow!("nft is gone").context(Hiccup).context("Ring").context("round 7");
        assert!(hiccup.downcast_ref::<Hiccup>().is_some());
        let finding = anyhow::anyhow!("a session is lost").context("at rest");
        assert!(finding.downcast_ref::<Hiccup>().is_none());
    }
}
