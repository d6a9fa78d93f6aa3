//! Replicas, agents and clients on hosts of a lab, and when all of it is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::json;

use super::journal::{self, Auditor};
use super::odd::{Odd, Room};
use super::plug;
use crate::client::{self, Answer, Api, Seen};
use crate::cluster::{Hosted, kill_agent, list, start_agents, unlinked};
use crate::desktops::Desktops;
use crate::faultfs::{Faults, Library};
use crate::history::{Event, History};
use crate::judge::{Observed, Violation, judge, stories};
use crate::lab::cut::{Cut, HostId};
use crate::lab::{Host, Lab, Wiring};
use crate::portal::{Counters, Portal};
use crate::process::{Agent, Broker, Ground, Home, Process, Program};
use crate::random::Random;

/// Where clients are.
pub const CLIENTS_HOST: &str = "clients";
/// Where the swarm is.
pub const SWARM_HOST: &str = "swarm";
/// Where odd agents are.
const ODD_HOST: &str = "odd";
/// Where a further replica is.
pub const SPARE_HOST: &str = "spare";
/// Owns the session that a liar is given; what becomes of it nobody judges.
pub const DUPE: &str = "dupe";
/// Sessions that one agent takes.
pub const SESSIONS_PER_SERVER_MAX: u32 = 100;
/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(8);
/// After everything was mended, how long the cluster may take to be whole.
pub const WHOLE_LIMIT: Duration = Duration::from_mins(1);
/// How long everything may take to come to rest when no client disturbs it.
const REST_LIMIT: Duration = Duration::from_mins(2);
/// How long an orderly end of a replica may take.
const END_LIMIT: Duration = Duration::from_mins(1);
/// How often a state that is to come is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A lab for so many replicas and agents.
pub fn lab(replicas: usize, agents: usize, random: &mut Random) -> anyhow::Result<Lab> {
    let names: Vec<String> = (1..=replicas)
        .map(|number| format!("replica-{number}"))
        .chain((1..=agents).map(|number| format!("agent-{number}")))
        .chain([CLIENTS_HOST, SWARM_HOST, ODD_HOST, SPARE_HOST].map(str::to_owned))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Lab::new(&names, Wiring::Switch, random.fork())
}

/// A replica: what stays over its deaths, and its process.
#[derive(Debug)]
pub struct Replica {
    /// Its number in the cluster.
    pub number: u64,
    /// What stays.
    pub broker: Broker,
    process: Option<Process>,
    is_paused: bool,
    /// Its disk was made to fail: it may end by itself.
    pub may_end: bool,
}

impl Replica {
    /// Its host in the lab.
    pub fn host(&self) -> anyhow::Result<HostId> {
        Ok(self.broker.host()?.id())
    }

    /// Its disk and clock.
    pub fn faults(&self) -> anyhow::Result<&Faults> {
        self.broker.faults()
    }

    /// Whether it runs and does not stand still.
    pub const fn is_up(&self) -> bool {
        self.process.is_some() && !self.is_paused
    }

    /// Whether its process is there and stands still.
    pub fn stands_still(&self) -> anyhow::Result<bool> {
        self.process.as_ref().map_or(Ok(false), Process::stands_still)
    }

    /// Starts it, unless it runs; it may not serve yet.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.process.is_none() {
            self.faults()?.tidy()?;
            self.process = Some(self.broker.start()?);
        }
        Ok(())
    }

    /// Kills it; tells whether it ran.
    pub fn kill(&mut self) -> anyhow::Result<bool> {
        self.is_paused = false;
        let Some(process) = self.process.take() else { return Ok(false) };
        process.kill()?;
        Ok(true)
    }

    /// Has it stand still, or go on.
    pub fn pause(&mut self, pauses: bool) -> anyhow::Result<()> {
        if let Some(process) = &self.process {
            process.signal(if pauses { Signal::STOP } else { Signal::CONT })?;
            self.is_paused = pauses;
        }
        Ok(())
    }

    /// Tells it to end in order.
    pub fn tell_to_end(&self) -> anyhow::Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal(Signal::TERM))
    }

    /// Waits until it has ended in order; tells whether it ran.
    pub async fn ends(&mut self) -> anyhow::Result<bool> {
        let Some(process) = &mut self.process else { return Ok(false) };
        let deadline = Instant::now() + END_LIMIT;
        let status = loop {
            if let Some(status) = process.ended()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "replica {} has not ended after {END_LIMIT:?}", self.number);
            tokio::time::sleep(LOOK_INTERVAL).await;
        };
        self.process = None;
        let words = || self.broker.last_words().unwrap_or_default();
        ensure!(status.success(), "replica {} ended with {status}: {}", self.number, words());
        Ok(true)
    }

    /// Whether its process is there. Whatever ended it, it is noticed.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        self.check()?;
        Ok(self.process.is_some())
    }

    /// Notices that it has ended by itself: an error, unless its disk was to blame.
    fn check(&mut self) -> anyhow::Result<()> {
        let ended = self.process.as_mut().map_or(Ok(None), Process::ended)?;
        if let Some(status) = ended {
            self.process = None;
            let words = self.broker.last_words().unwrap_or_default();
            ensure!(self.may_end, "replica {} ended by itself with {status}: {words}", self.number);
        }
        Ok(())
    }

    /// The cluster as it sees it.
    pub fn view(&self) -> anyhow::Result<plug::View> {
        tokio::task::block_in_place(|| plug::view(&self.broker))
    }
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// Replicas by their places, which outlive their numbers.
    pub replicas: Vec<Replica>,
    agents: Vec<Hosted>,
    /// Answers late or says things twice, when it is told to.
    pub odd: Odd,
    /// Lies, when it is told to.
    pub liar: Odd,
    /// How agents find the replicas.
    pub home: Home,
    /// What happened.
    pub history: Arc<History>,
    /// How calls fared.
    pub counters: Arc<Counters>,
    apis: Vec<Api>,
    auditor: Auditor,
    /// Up to where the replicas' events were compared.
    compared: Option<String>,
    /// What is cut for longer.
    pub cut: Cut,
    /// Everything that is kept.
    pub place: PathBuf,
    /// The binary.
    pub program: Program,
    // Dropped last.
    /// The network.
    pub lab: Lab,
}

impl World {
    /// Starts a cluster and its agents in an empty folder. The caller is on the
    /// clients' host.
    pub async fn start(
        lab: Lab,
        program: Program,
        place: &Path,
        replicas: usize,
        agents: usize,
        random: &mut Random,
    ) -> anyhow::Result<Self> {
        let library = Library::build(place)?;
        let secret = place.join("secret");
        plug::write_secret(&secret, random)?;
        let hosts: Vec<Arc<Host>> = (1..=replicas)
            .map(|number| lab.named(&format!("replica-{number}")).cloned())
            .collect::<anyhow::Result<_>>()?;
        let members: Vec<(u64, std::net::Ipv4Addr)> = (1..).zip(hosts.iter().map(|host| host.address())).collect();
        let mut all = Vec::new();
        for (number, host) in (1..).zip(&hosts) {
            let folder = place.join(format!("replica-{number}"));
            let data_folder = folder.join("data");
            let faults = Some(Faults::new(&library, &data_folder, &folder.join("faults"))?);
            let addresses = ((host.address(), plug::CLIENTS_PORT).into(), (host.address(), plug::AGENTS_PORT).into());
            let ground = Ground { host: Some(Arc::clone(host)), faults };
            let settings = plug::forming(number, &members, &secret);
            let broker = Broker::placed(&program, &folder, &data_folder, addresses, ground, &settings)?;
            all.push(Replica { number, broker, process: None, is_paused: false, may_end: false });
        }
        all.iter_mut().try_for_each(Replica::start)?;
        let Replica { broker, process, .. } = &mut all[0];
        let process = process.as_mut().context("it was started")?;
        let api = Api::register(broker, process).await.context("the cluster does not form")?;
        let first = &all[0];
        let home = Home {
            brokers: plug::brokers(&all.iter().map(|replica| replica.broker.agents_address()).collect::<Vec<_>>()),
            ca_file: place.join("ca.pem"),
            statement_file: place.join("software-statement"),
        };
        // What replicas keep may be lost with one of them.
        std::fs::copy(first.broker.ca_path(), &home.ca_file)?;
        first.broker.write_statement(&home.statement_file)?;
        let apis =
            all.iter().map(|replica| api.at(&replica.broker, &home.ca_file, CALL_LIMIT)).collect::<Result<_, _>>()?;
        let doors: Vec<_> = all.iter().map(|replica| replica.broker.agents_address()).collect();
        let place_of_odd = lab.named(ODD_HOST)?;
        let room = Room::Virtual(SESSIONS_PER_SERVER_MAX);
        let odd = Odd::start(place_of_odd, "odd", doors.clone(), &home, room, random)?;
        let liar = Odd::start(place_of_odd, "liar", doors, &home, Room::Console, random)?;
        let mut world = Self {
            replicas: all,
            agents: Vec::new(),
            odd,
            liar,
            home,
            history: Arc::default(),
            counters: Arc::default(),
            apis,
            auditor: Auditor::default(),
            compared: None,
            cut: Cut::none(),
            place: place.to_owned(),
            program,
            lab,
        };
        for number in 1..=agents {
            let host = world.lab.named(&format!("agent-{number}"))?.clone();
            let folder = place.join(format!("agent-{number}"));
            let agent = Agent::placed(&world.program, &folder, &world.home, Some(host), SESSIONS_PER_SERVER_MAX)?;
            world.agents.push((agent, None));
        }
        world.start_agents()?;
        world.whole().await?;
        world.rest().await?;
        Ok(world)
    }

    /// A client of all replicas.
    pub fn portal(&self, random: &mut Random) -> Portal {
        Portal::new(self.apis.clone(), random.fork(), Arc::clone(&self.counters))
    }

    /// A client of the replica at a place.
    pub fn api(&self, place: usize) -> &Api {
        &self.apis[place]
    }

    /// Hosts of all replicas.
    pub fn replica_hosts(&self) -> anyhow::Result<Vec<HostId>> {
        self.replicas.iter().map(Replica::host).collect()
    }

    /// All hosts.
    pub fn all_hosts(&self) -> Vec<HostId> {
        self.lab.hosts().iter().map(|host| host.id()).collect()
    }

    /// Notes what was done to the world.
    pub fn note(&self, what: String) {
        let sent = self.history.now();
        self.history.add([Event::Fault { span: self.history.since(sent), what }]);
    }

    /// Number of agents.
    pub const fn agents_count(&self) -> usize {
        self.agents.len()
    }

    /// An agent.
    pub fn agent(&self, number: usize) -> &Agent {
        &self.agents[number].0
    }

    /// Id of an agent's server.
    pub fn server(&self, number: usize) -> anyhow::Result<String> {
        self.agents[number].0.server().context("the agent has no id yet")
    }

    /// Kills an agent and its desktops; tells whether it ran.
    pub fn kill_agent(&mut self, number: usize) -> anyhow::Result<bool> {
        kill_agent(&mut self.agents[number], &self.history)
    }

    /// Starts the agents that do not run.
    pub fn start_agents(&mut self) -> anyhow::Result<()> {
        start_agents(&mut self.agents)
    }

    /// The place of the replica that leads, as far as one that is up knows.
    pub fn leader(&self) -> Option<usize> {
        let views = self.replicas.iter().filter(|replica| replica.is_up()).filter_map(|replica| replica.view().ok());
        let newest = views.filter(|view| view.leader.is_some()).max_by_key(|view| view.term)?;
        self.replicas.iter().position(|replica| Some(replica.number) == newest.leader)
    }

    /// The last entry that a replica that is up has applied.
    pub fn applied(&self) -> Option<u64> {
        let views = self.replicas.iter().filter(|replica| replica.is_up()).filter_map(|replica| replica.view().ok());
        views.map(|view| view.applied).max()
    }

    /// Whatever is broken is mended: the network, disks, clocks, and who is dead
    /// or stands still is up again.
    pub fn mend(&mut self) -> anyhow::Result<()> {
        self.lab.clear_up()?;
        self.cut = Cut::none();
        for replica in &mut self.replicas {
            if replica.is_paused {
                replica.pause(false)?;
            }
            replica.check()?;
            replica.faults()?.control().mend_disk()?;
            replica.faults()?.control().mend_clock()?;
            replica.start()?;
        }
        self.start_agents()
    }

    /// The host of an agent.
    pub fn agent_host(&self, number: usize) -> anyhow::Result<&Arc<Host>> {
        self.lab.named(&format!("agent-{}", number + 1))
    }

    /// The agent's folder.
    pub fn agent_folder(&self, number: usize) -> PathBuf {
        self.place.join(format!("agent-{}", number + 1))
    }

    /// Does something with a replica that is up, the leader first, until that
    /// succeeds or `limit` has passed.
    pub async fn operate<T>(
        &self,
        except: Option<usize>,
        limit: Duration,
        mut work: impl FnMut(&Broker) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let mut places: Vec<usize> = (0..self.replicas.len()).collect();
            places.retain(|&place| Some(place) != except && self.replicas[place].is_up());
            let mut problem = anyhow::anyhow!("no replica is up");
            for place in places {
                match tokio::task::block_in_place(|| work(&self.replicas[place].broker)) {
                    Ok(done) => return Ok(done),
                    Err(error) => problem = error,
                }
            }
            ensure!(Instant::now() < deadline, "not within {limit:?}: {problem:#}");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Takes a replica's disk away, and has another one join in its place: as a
    /// replacement of its number, or beside the others if that was removed.
    pub async fn replace(&mut self, place: usize, is_removed: bool) -> anyhow::Result<()> {
        self.replicas[place].kill()?;
        let token = self.place.join("token");
        let gone = (!is_removed).then_some(self.replicas[place].number);
        let new = &self.replicas[place].broker;
        let address = new.host()?.address();
        let join = |through: &Broker| {
            std::fs::remove_dir_all(new.data_folder())?;
            std::fs::create_dir_all(new.data_folder())?;
            new.faults()?.forget()?;
            plug::join(through, gone, new, address, &token)
        };
        let number = self.operate(Some(place), WHOLE_LIMIT, join).await.context("a new replica cannot join")?;
        let replica = &mut self.replicas[place];
        replica.number = number;
        replica.start()
    }

    /// Has a further replica join on a host of its own, and waits until it votes.
    pub async fn add_spare(&self, name: &str) -> anyhow::Result<Replica> {
        let host = self.lab.named(SPARE_HOST)?.clone();
        let address = host.address();
        let folder = self.place.join(name);
        let doors = ((address, plug::CLIENTS_PORT).into(), (address, plug::AGENTS_PORT).into());
        let ground = Ground { host: Some(host), faults: None };
        let settings = plug::joining(address);
        let broker = Broker::placed(&self.program, &folder, &folder.join("data"), doors, ground, &settings)?;
        std::fs::create_dir_all(broker.data_folder())?;
        let token = self.place.join("token");
        let join = |through: &Broker| plug::join(through, None, &broker, address, &token);
        let number = self.operate(None, WHOLE_LIMIT, join).await.context("a further replica cannot join")?;
        let process = Some(broker.start()?);
        let mut spare = Replica { number, broker, process, is_paused: false, may_end: false };
        let begun = Instant::now();
        loop {
            spare.check()?;
            let votes = |replica: &Replica| replica.view().is_ok_and(|view| view.voters.contains(&number));
            if spare.view().is_ok() && self.replicas.iter().filter(|replica| replica.is_up()).any(votes) {
                return Ok(spare);
            }
            ensure!(begun.elapsed() < WHOLE_LIMIT, "a further replica does not get a vote within {WHOLE_LIMIT:?}");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until the replica at a place serves.
    pub async fn serving(&mut self, place: usize) -> anyhow::Result<()> {
        let replica = &mut self.replicas[place];
        let process = replica.process.as_mut().context("the replica was not started")?;
        let serving = client::serving(&replica.broker, process).await;
        serving
            .with_context(|| format!("replica {}: {}", replica.number, replica.broker.last_words().unwrap_or_default()))
    }

    /// Waits until every replica serves, follows one leader with the whole log,
    /// and takes writes; tells how long that took.
    pub async fn whole(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let mut goal = None;
        loop {
            for replica in &mut self.replicas {
                // The disk is mended, but the process may end of it a little later.
                replica.check()?;
                replica.start()?;
            }
            let problem = match self.incomplete(&mut goal).await {
                Ok(()) => {
                    self.replicas.iter_mut().for_each(|replica| replica.may_end = false);
                    return Ok(begun.elapsed());
                }
                Err(problem) => problem,
            };
            ensure!(begun.elapsed() < WHOLE_LIMIT, "not whole after {WHOLE_LIMIT:?}: {problem:#}");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// An error while something is missing.
    async fn incomplete(&self, goal: &mut Option<u64>) -> anyhow::Result<()> {
        let mut views = Vec::new();
        for replica in &self.replicas {
            if let Some(problem) = client::unready(&replica.broker).await {
                return Err(problem.context(format!("replica {} does not serve", replica.number)));
            }
            views.push(replica.view()?);
        }
        let numbers: BTreeSet<u64> = self.replicas.iter().map(|replica| replica.number).collect();
        let leaders: BTreeSet<Option<u64>> = views.iter().map(|view| view.leader).collect();
        ensure!(leaders.len() == 1 && !leaders.contains(&None), "leaders are {leaders:?}");
        for view in &views {
            let voters: BTreeSet<u64> = view.voters.iter().copied().collect();
            ensure!(voters == numbers && view.others.is_empty(), "replica {} sees {view:?}", view.replica);
            ensure!(view.different.is_empty(), "replicas came to different states: {view:?}");
        }
        let most = views.iter().map(|view| view.applied).max().unwrap_or_default();
        let goal = *goal.get_or_insert(most);
        let behind = views.iter().find(|view| view.applied < goal);
        ensure!(behind.is_none(), "{behind:?} has not come to {goal}");
        for (api, replica) in self.apis.iter().zip(&self.replicas) {
            let answer = api.call("openServers", &json!([{ "ServerId": "nowhere" }])).await;
            ensure!(matches!(answer, Answer::Done(_)), "replica {} takes no writes: {answer:?}", replica.number);
        }
        Ok(())
    }

    /// Waits until everything has come to rest as the history wants it, then
    /// judges: what is there, what was seen, what each replica says and what the
    /// journal tells.
    pub async fn rest(&mut self) -> anyhow::Result<Observed> {
        let deadline = Instant::now() + REST_LIMIT;
        let observed = loop {
            let late = Instant::now() > deadline;
            let problem = match self.at_rest(late).await? {
                Ok(observed) => break observed,
                Err(problem) => problem,
            };
            ensure!(!late, "no rest after {REST_LIMIT:?}: {problem}");
            tokio::time::sleep(LOOK_INTERVAL).await;
        };
        let untold = stories(&self.history.events(), &observed);
        ensure!(untold.is_empty(), "{}", list(&untold));
        let mut first = None;
        for place in 0..self.replicas.len() {
            let seen = self.apis[place].sessions(&[]).await?;
            let all = first.get_or_insert_with(|| seen.clone());
            let differs = all.iter().zip(&seen).find(|(one, other)| one != other);
            ensure!(
                differs.is_none() && seen.len() == all.len(),
                "replica {} shows {} sessions, another one {}: {differs:?}",
                self.replicas[place].number,
                seen.len(),
                all.len()
            );
        }
        self.audit().await?;
        Ok(observed)
    }

    /// What there is when everything is at rest, or what is still to come; an error
    /// when that will not pass, or comes too late.
    async fn at_rest(&mut self, is_late: bool) -> anyhow::Result<Result<Observed, String>> {
        for (agent, process) in &mut self.agents {
            if let Some(process) = process {
                process.lives().with_context(|| format!("the agent {:?}", agent.server()))?;
            }
        }
        self.odd.check()?;
        self.liar.check()?;
        let seen = match self.apis[0].sessions(&[]).await {
            Ok(seen) => seen,
            Err(problem) => return Ok(Err(format!("{problem:#}"))),
        };
        let left = seen.iter().find(|session| {
            session.state != "DELETED"
                && (session.owner == DUPE || session.server.as_deref() == Some(self.liar.server()))
        });
        let left = left.map(|session| format!("{session:?} is what a liar said, and stays"));
        let observed = self.observed(seen)?;
        let violations = judge(&self.history.events(), &observed, SESSIONS_PER_SERVER_MAX as usize);
        if is_late || !violations.iter().all(Violation::may_pass) {
            ensure!(violations.is_empty(), "{}", list(&violations));
        }
        if let Some(problem) = left {
            return Ok(Err(problem));
        }
        if !violations.is_empty() {
            return Ok(Err(list(&violations)));
        }
        Ok(match self.absent().await {
            Ok(absent) if absent.is_empty() => Ok(observed),
            Ok(absent) => Err(format!("agents are not connected: {absent:?}")),
            Err(problem) => Err(format!("{problem:#}")),
        })
    }

    /// The journals of all replicas are the same, and without contradiction.
    async fn audit(&mut self) -> anyhow::Result<()> {
        let (events, next) = journal::read(&self.apis[0], self.compared.as_deref()).await?;
        for place in 1..self.replicas.len() {
            let (others, _) = journal::read(&self.apis[place], self.compared.as_deref()).await?;
            let difference = journal::difference(&events, &others);
            ensure!(difference.is_none(), "the journals of replicas differ: {}", difference.unwrap_or_default());
            // One may have read further, if something happened meanwhile.
            ensure!(others.len() >= events.len(), "{} events here, {} there", events.len(), others.len());
        }
        events.iter().try_for_each(|event| self.auditor.read(event))?;
        self.compared = next;
        Ok(())
    }

    /// Events that were compared and audited.
    pub const fn events_audited(&self) -> u64 {
        self.auditor.count()
    }

    /// Waits until every agent is connected; tells whether they came in time.
    pub async fn agents_come(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        loop {
            if self.absent().await.is_ok_and(|absent| absent.is_empty()) {
                return true;
            }
            if begun.elapsed() > limit {
                return false;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Agents that are not connected, by the brokers' word or their own.
    async fn absent(&self) -> anyhow::Result<Vec<String>> {
        let known = |(agent, _): &Hosted| agent.server().unwrap_or_else(|| "an agent without an id".to_owned());
        let absent = self.apis[0].absent(self.agents.iter().map(known).chain([self.odd.server().to_owned()])).await?;
        if !absent.is_empty() {
            return Ok(absent);
        }
        unlinked(&self.agents)
    }

    /// Sessions that were seen, and the desktops that there are.
    fn observed(&self, mut sessions: Vec<Seen>) -> anyhow::Result<Observed> {
        sessions.retain(|session| session.owner != DUPE);
        let mut desktops = vec![self.odd.desktops()];
        for (agent, _) in &self.agents {
            // One that was just started has neither yet.
            if let Some(server) = agent.server()
                && agent.trace().exists()
            {
                desktops.push(Desktops::read(&server, &agent.trace())?);
            }
        }
        Ok(Observed { sessions, desktops })
    }

    /// What everybody said last, for who looks for a cause.
    pub fn last_words(&self) -> BTreeMap<u64, String> {
        self.replicas.iter().map(|replica| (replica.number, replica.broker.last_words().unwrap_or_default())).collect()
    }
}
