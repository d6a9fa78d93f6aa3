//! A world from its first start to the last check.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth::domain::session::Phase;
use berth::domain::{Owner, ServerId, SessionId};
use berth_raft::testing::simulation;
use berth_raft::{Configuration, ReplicaId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::accounts::Accounts;
use super::agents::Mishap;
use super::agents::host::Host;
use super::agents::life::Agent;
use super::broken::Broken;
use super::clients::Client;
use super::clock::MachineClock;
use super::counts::Counts;
use super::disks::DiskPace;
use super::history::{History, Operation};
use super::judge::Judge;
use super::nemesis::{self, Fault};
use super::network::{Network, Station};
use super::nodes::{self, Node, Nodes, Origin, Standing};
use super::registers;
use super::stories::{self, Known, Told};
use super::trace::Trace;
use super::{Plan, Report};
use crate::history;
use crate::random::Random;

/// How long a world may take to be whole once nothing breaks any more.
const WHOLE_WITHIN: Duration = Duration::from_mins(1);
/// How long nothing must be wrong with it then.
const CALM: Duration = Duration::from_secs(3);
/// Fewer replicas must never be left.
const REPLICAS_MIN: usize = 3;
/// By then nobody speaks to a replica any more that was removed.
const STRAY_MAX: Duration = Duration::from_secs(1);

/// The world's chance. All who live in it share it.
#[derive(Debug)]
pub struct Dice(Mutex<Random>);

impl Dice {
    /// Dice that fall as the seed says.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(Random::new(seed)))
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&self, limit: u64) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).below(limit)
    }

    /// True so many times in a thousand.
    pub fn in_thousand(&self, times: u64) -> bool {
        self.below(1_000) < times
    }

    /// A place in something of this length; `None` if it is empty.
    pub fn index(&self, length: usize) -> Option<usize> {
        if length == 0 {
            return None;
        }
        usize::try_from(self.below(length as u64)).ok()
    }
}

/// What a world is like; drawn by its seed.
#[derive(Debug, Clone)]
pub struct Shape {
    replicas: u64,
    hosts: u64,
    copies: u64,
    clients: u32,
    /// How long things break.
    faults_for: Duration,
    /// What breaks.
    pub faults: Vec<Fault>,
    /// The longest pause between two faults.
    pub fault_interval_ms: u64,
    /// The longest pause of a client.
    pub think_ms: u64,
    /// Answers that get lost between replica and client, of a thousand.
    pub client_loss: u64,
    /// When snapshots are made, and what is kept of the log then.
    pub snapshot_after_entries: u64,
    /// See above.
    pub keep_entries: u64,
}

impl Shape {
    fn draw(dice: &Dice, broken: Option<Broken>) -> Self {
        let share = 150 + dice.below(700);
        let mut faults: Vec<Fault> = Fault::ALL.into_iter().filter(|_| dice.in_thousand(share)).collect();
        // A defect shows only when what it is about happens.
        faults.extend(match broken {
            Some(Broken::LostSync | Broken::RolledBack) => vec![Fault::PowerCut, Fault::PowerCutMany],
            Some(Broken::ForgottenVote) => vec![Fault::PowerCut, Fault::PowerCutMany, Fault::Isolate],
            Some(Broken::StaleRead) => vec![Fault::Isolate, Fault::Storm],
            Some(Broken::DoubledInstruction) => vec![Fault::AgentsReturn, Fault::Agents],
            Some(Broken::LocalClock) => vec![Fault::ClockJump],
            Some(Broken::HastyMember) => vec![Fault::Replacement, Fault::Isolate, Fault::KillMany],
            None => vec![],
        });
        Self {
            replicas: if dice.in_thousand(100) { 5 } else { 3 },
            hosts: 2 + dice.below(3),
            copies: u64::from(dice.in_thousand(200)),
            clients: 3 + u32::try_from(dice.below(3)).unwrap_or_default(),
            faults_for: Duration::from_millis(8_000 + dice.below(12_000)),
            faults,
            fault_interval_ms: 300 + dice.below(3_000),
            think_ms: 100 + dice.below(600),
            client_loss: dice.below(80),
            snapshot_after_entries: if dice.in_thousand(700) { 15 + dice.below(80) } else { 50_000 },
            keep_entries: dice.below(30),
        }
    }
}

/// What is known of a desktop host.
#[derive(Debug, Clone)]
struct Seen {
    server: ServerId,
    is_copy: bool,
    desktops: BTreeSet<SessionId>,
    open: usize,
}

/// See the module.
pub struct World {
    /// How it is to be.
    pub plan: Plan,
    /// What it is like.
    pub shape: Shape,
    /// Its chance.
    pub dice: Arc<Dice>,
    /// What happened.
    pub trace: Arc<Trace>,
    /// What is wrong.
    pub judge: Arc<Judge>,
    /// Between replicas.
    pub network: Network,
    /// Desktop hosts' server ids.
    pub servers: Vec<ServerId>,
    /// Where mishaps of agents are sent.
    pub agents: Vec<mpsc::UnboundedSender<Mishap>>,
    /// What was asked of registers and answered.
    pub history: History,
    /// What was asked of sessions and servers and answered.
    pub calls: history::History,
    /// Machines of replicas, also those that are gone.
    nodes: Mutex<Nodes>,
    /// What an operator is doing.
    operation: Mutex<Option<String>>,
    /// Replicas that somebody is removing, or has removed.
    leaving: Mutex<BTreeSet<ReplicaId>>,
    accounts: Mutex<Accounts>,
    sessions: Mutex<BTreeMap<SessionId, Owner>>,
    hosts: Mutex<BTreeMap<String, Seen>>,
    counts: Mutex<Counts>,
    phase: AtomicU8,
}

const BREAKING: u8 = 0;
const HEALED: u8 = 1;
const RESTING: u8 = 2;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data, whole between steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// A machine.
    ///
    /// # Panics
    /// When there never was a replica of this number.
    pub fn node(&self, id: ReplicaId) -> Arc<Node> {
        Arc::clone(&lock(&self.nodes)[&id])
    }

    /// The machines that are not gone.
    pub fn machines(&self) -> Vec<Arc<Node>> {
        lock(&self.nodes).values().filter(|node| node.standing() != Standing::Gone).cloned().collect()
    }

    /// Those whose replicas are members, or are to become some.
    pub fn members(&self) -> Vec<Arc<Node>> {
        lock(&self.nodes).values().filter(|node| node.standing() == Standing::Serves).cloned().collect()
    }

    /// The replicas that form the cluster.
    pub fn founders(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        (1..=self.shape.replicas).map(ReplicaId)
    }

    /// The highest number that a replica ever had.
    pub fn last_number(&self) -> u64 {
        lock(&self.nodes).keys().next_back().map_or(0, |id| id.0)
    }

    /// A machine for a replica, of which there must not have been one.
    pub fn add_machine(&self, id: ReplicaId, origin: Origin) -> Option<Arc<Node>> {
        let within = |span: u64| {
            i64::try_from(self.dice.below(2 * span)).unwrap_or_default() - i64::try_from(span).unwrap_or_default()
        };
        let clock = MachineClock::new(within(10_000), within(10_000));
        if self.is_healed() {
            clock.set(nemesis::latest(self));
        }
        let pace = DiskPace::new(Arc::clone(&self.dice), self.dice.below(4));
        let node = Arc::new(Node::new(id, origin, clock, pace));
        if lock(&self.nodes).insert(id, Arc::clone(&node)).is_some() {
            self.judge.violation(format!("the number {id} was given to two replicas"));
            return None;
        }
        Some(node)
    }

    /// A replica that answers at all; nobody knows more of them.
    pub fn any_station(&self) -> Option<Station> {
        let running: Vec<Station> = self.machines().iter().filter_map(|node| node.running()).collect();
        self.dice.index(running.len()).map(|place| running[place].clone())
    }

    /// What an operator is doing.
    pub fn operation(&self) -> Option<String> {
        lock(&self.operation).clone()
    }

    /// An operator does something from now on, or no more.
    pub fn set_operation(&self, operation: Option<String>) {
        *lock(&self.operation) = operation;
    }

    /// Whether somebody is removing a replica, or has removed it.
    pub fn is_leaving(&self, id: ReplicaId) -> bool {
        lock(&self.leaving).contains(&id)
    }

    /// Somebody begins to remove a replica.
    pub fn set_leaving(&self, id: ReplicaId) {
        lock(&self.leaving).insert(id);
    }

    /// The newest members that any replica knows to be agreed on, and its term.
    pub fn agreed(&self) -> Option<(Configuration, u64)> {
        let known = self.machines().into_iter().filter_map(|node| {
            let replica = node.running()?.replica;
            Some((replica.agreed()?, replica.status().term))
        });
        known.max_by_key(|(agreed, term)| (agreed.entry, *term))
    }

    /// Whether nothing breaks any more.
    pub fn is_healed(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= HEALED
    }

    /// Whether nobody is to ask for anything any more.
    pub fn is_resting(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= RESTING || self.judge.has_found()
    }

    /// Who says that it leads; of several the one in the newest term.
    pub fn leader(&self) -> Option<ReplicaId> {
        let leads = |node: &Arc<Node>| {
            let status = node.running()?.replica.status();
            (status.leader == Some(node.id)).then_some((status.term, node.id))
        };
        self.machines().iter().filter_map(leads).max().map(|(_, id)| id)
    }

    /// Does something later, if the world still breaks then: what heals heals all.
    pub fn after(self: &Arc<Self>, wait: Duration, work: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let world = Arc::clone(self);
        simulation::spawn(async move {
            sleep(wait).await;
            if !world.is_healed() {
                work(&world);
            }
        });
    }

    /// What clients were told.
    pub fn accounts(&self) -> MutexGuard<'_, Accounts> {
        lock(&self.accounts)
    }

    /// A fault struck.
    pub fn count(&self, name: &'static str, times: u64) {
        lock(&self.counts).fault(name, times);
    }

    /// A client asks something.
    pub fn count_call(&self) {
        lock(&self.counts).called += 1;
    }

    /// It got its answer.
    pub fn count_success(&self) {
        lock(&self.counts).succeeded += 1;
    }

    /// It got none.
    pub fn count_unknown(&self) {
        lock(&self.counts).unknown += 1;
    }

    /// A session that may be there.
    pub fn add_session(&self, id: SessionId, owner: Owner) {
        lock(&self.sessions).insert(id, owner);
    }

    /// One that is not wanted any more.
    pub fn drop_session(&self, id: &SessionId) {
        lock(&self.sessions).remove(id);
    }

    /// How many may be there.
    pub fn session_count(&self) -> usize {
        lock(&self.sessions).len()
    }

    /// One of them.
    pub fn any_session(&self) -> Option<(SessionId, Owner)> {
        let sessions = lock(&self.sessions);
        let place = self.dice.index(sessions.len())?;
        sessions.iter().nth(place).map(|(id, owner)| (id.clone(), owner.clone()))
    }

    /// How a desktop host is.
    pub fn tell_of_host(
        &self,
        name: &str,
        server: ServerId,
        is_copy: bool,
        desktops: BTreeSet<SessionId>,
        open: usize,
    ) {
        lock(&self.hosts).insert(name.to_owned(), Seen { server, is_copy, desktops, open });
    }

    /// What is not whole, if anything is not.
    fn defect(&self) -> Option<String> {
        if let Some(operation) = self.operation() {
            return Some(format!("an operator has not finished: {operation}"));
        }
        let members = self.members();
        let numbers: BTreeSet<ReplicaId> = members.iter().map(|node| node.id).collect();
        let mut indexes = BTreeSet::new();
        for node in &members {
            let Some(station) = node.running() else {
                let why = node.refusal().map(|refusal| format!(": {refusal}")).unwrap_or_default();
                return Some(format!("replica {} does not run{why}", node.id));
            };
            let status = station.replica.status();
            if let Some(reason) = status.stopped {
                return Some(format!("replica {} has stopped: {reason}", node.id));
            }
            if status.leader.is_none() {
                return Some(format!("replica {} knows no leader", node.id));
            }
            let known = station.replica.agreed().map(|agreed| (agreed.members, agreed.voters));
            if known != Some((numbers.clone(), vec![numbers.clone()])) {
                return Some(format!("replicas {numbers:?} are to vote, replica {} knows {known:?}", node.id));
            }
            indexes.insert(station.replica.local().index);
        }
        if members.len() < REPLICAS_MIN {
            return Some(format!("only {} replicas are left", members.len()));
        }
        if indexes.len() > 1 {
            return Some(format!("replicas are at entries {indexes:?}"));
        }
        if let Some((from, to)) = self.network.stray(STRAY_MAX) {
            return Some(format!("replica {from} still speaks to replica {to}, which was removed"));
        }
        let state = members.first()?.running()?.replica.local().state;
        let fleet = state.fleet();
        for session in fleet.sessions_from(None) {
            if !matches!(session.phase, Phase::Ready { .. } | Phase::Deleted { .. }) {
                return Some(format!("session {} is {:?}", session.id, session.phase));
            }
        }
        for (name, seen) in lock(&self.hosts).iter().filter(|(_, seen)| !seen.is_copy) {
            let Some(server) = fleet.server(&seen.server) else {
                return Some(format!("{} is not listed", seen.server));
            };
            if !server.link.is_up() {
                return Some(format!("the agent of {} is not connected", seen.server));
            }
            if seen.open > 0 || fleet.outbox(&seen.server).next().is_some() {
                return Some(format!("{} has unfinished instructions", seen.server));
            }
            let listed = fleet.sessions_on(&seen.server).map(|session| session.id.clone());
            let set_aside = fleet.conflicts_on(&seen.server).map(|session| session.id.clone());
            let known: BTreeSet<SessionId> = listed.chain(set_aside).collect();
            if known != seen.desktops {
                return Some(format!("{name} has desktops {:?}, the broker knows {known:?}", seen.desktops));
            }
        }
        None
    }

    /// Waits until the world is whole and stays so for a while.
    async fn become_whole(&self) {
        let deadline = Instant::now() + WHOLE_WITHIN;
        let mut whole_since = None;
        loop {
            // Whoever has not heard that it was removed is stopped by those who removed it.
            for node in self.machines().iter().filter(|node| node.standing() == Standing::Leaves) {
                self.trace.note(&format!("replica {} is stopped: it was removed", node.id));
                self.count("removed replica had to be stopped", u64::from(node.running().is_some()));
                node.scrap(self);
            }
            let defect = self.defect();
            if defect.is_none() {
                let since = *whole_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= CALM {
                    return;
                }
            } else {
                whole_since = None;
            }
            if self.judge.has_found() {
                return;
            }
            if Instant::now() >= deadline {
                let defect = defect.unwrap_or_else(|| "it does not stay whole".to_owned());
                return self
                    .judge
                    .violation(format!("not whole {} s after the last fault: {defect}", WHOLE_WITHIN.as_secs()));
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// What only the whole history tells.
    fn judge_history(&self) {
        let members = self.members();
        for node in &members {
            if let Some(station) = node.running() {
                self.judge.compare(node.id, &station.replica.local().state);
            }
        }
        let adopted = self.judge.adopted();
        // What a session is that a host has shown is the host's word.
        let is_ours = |operation: &Operation| !adopted.iter().any(|id| operation.key == format!("permissions of {id}"));
        let operations: Vec<Operation> = self.history.operations().into_iter().filter(is_ours).collect();
        for error in registers::by_index(&operations) {
            self.judge.violation(error);
        }
        let unique: Vec<Operation> =
            operations.into_iter().filter(|operation| operation.key.starts_with("permissions")).collect();
        for error in registers::by_value(&unique) {
            self.judge.violation(error);
        }
        if let Some(station) = members.first().and_then(|node| node.running()) {
            let state = station.replica.local().state;
            let survivors = self.judge.survivors();
            for error in self.accounts().errors(state.fleet(), &adopted, &survivors) {
                self.judge.violation(error);
            }
            let lawless = adopted.union(&survivors).cloned().collect();
            let known = Known { lawless, ended: self.judge.ended_unasked() };
            let Told { flaws, stories, too_hard } = stories::tell(&self.calls.events(), state.fleet(), &known);
            self.count("story told of a session or a server", stories);
            self.count("story given up as too hard", too_hard);
            for flaw in flaws {
                self.judge.violation(flaw);
            }
        }
    }
}

/// A whole life.
pub async fn live(seed: u64, plan: Plan) -> Report {
    let dice = Arc::new(Dice::new(seed ^ 0x5eed));
    let shape = Shape::draw(&dice, plan.broken);
    let trace = Arc::new(Trace::new(plan.verbose));
    trace.note(&format!("{shape:?}"));
    let judge = Arc::new(Judge::new(Arc::clone(&trace)));
    let servers = (1..=shape.hosts).map(|number| ServerId::new(&format!("server-{number}")).expect("a short text"));
    let servers: Vec<ServerId> = servers.collect();
    let (agents, mishaps): (Vec<_>, Vec<_>) = servers.iter().map(|_| mpsc::unbounded_channel()).unzip();
    let world = Arc::new(World {
        plan,
        dice: Arc::clone(&dice),
        network: Network::new(dice, Arc::clone(&trace), Arc::clone(&judge)),
        trace,
        judge,
        servers,
        agents,
        history: History::default(),
        calls: history::History::default(),
        nodes: Mutex::default(),
        operation: Mutex::default(),
        leaving: Mutex::default(),
        accounts: Mutex::default(),
        sessions: Mutex::default(),
        hosts: Mutex::default(),
        counts: Mutex::default(),
        phase: AtomicU8::new(BREAKING),
        shape,
    });
    // All of them before the first one starts.
    let founders: Vec<_> = world.founders().filter_map(|id| world.add_machine(id, Origin::Founded)).collect();
    for node in founders {
        simulation::spawn(nodes::care(Arc::clone(&world), node));
    }
    populate(&world, mishaps);
    let until = Instant::now() + world.shape.faults_for;
    nemesis::rage(Arc::clone(&world), until).await;
    world.phase.store(HEALED, Ordering::Relaxed);
    nemesis::heal(&world);
    world.trace.note("nothing breaks any more");
    sleep(Duration::from_secs(3)).await;
    world.phase.store(RESTING, Ordering::Relaxed);
    // Whoever asks something now has its answer, or gives it up.
    sleep(Duration::from_secs(6)).await;
    world.become_whole().await;
    world.judge_history();
    let report = report(seed, &world);
    // Replicas and network hold each other.
    for node in world.machines() {
        node.kill(&world, Duration::ZERO);
    }
    report
}

fn populate(world: &Arc<World>, mishaps: Vec<mpsc::UnboundedReceiver<Mishap>>) {
    for number in 1..=world.shape.clients {
        simulation::spawn(Client::new(Arc::clone(world), number).live());
    }
    for (number, (server, mishaps)) in world.servers.iter().zip(mishaps).enumerate() {
        let host = Host::new(format!("host-{}", number + 1), server.clone(), false, Arc::clone(&world.judge));
        simulation::spawn(Agent::new(Arc::clone(world), host, mishaps).live());
    }
    for number in 0..world.shape.copies {
        let server = world.servers[0].clone();
        world.count("copied host", 1);
        let host = Host::new(format!("copy-{}", number + 1), server, true, Arc::clone(&world.judge));
        // Nothing befalls a copy: its end of the channel is closed at once.
        let (_, none) = mpsc::unbounded_channel();
        simulation::spawn(Agent::new(Arc::clone(world), host, none).live());
    }
}

fn report(seed: u64, world: &World) -> Report {
    let mut counts = lock(&world.counts).clone();
    for (name, times) in world.network.struck() {
        counts.fault(name, times);
    }
    let failures = lock(&world.nodes).values().map(|node| node.disk().failures()).sum();
    counts.fault("input/output error of a disk", failures);
    counts.compared = world.judge.compared();
    counts.simulated_ms = world.trace.now_ms();
    let violations = world.judge.violations();
    let (fingerprint, trace) = world.trace.end();
    Report { seed, violations, fingerprint, trace, counts }
}
