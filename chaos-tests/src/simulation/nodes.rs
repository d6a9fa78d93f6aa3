//! The machines that replicas run on: started, stopped, killed, without power,
//! standing still, with a damaged disk, taken away.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth::broker::cluster::members;
use berth::domain::{Command, Settings};
use berth_raft::testing::simulation::{self, Host};
use berth_raft::{Clock, Config, Formation, Member, Observer, Replica, ReplicaId, StartError};
use berth_storage::memory::{Damage, Disk, Operation};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::broken::Broken;
use super::clock::MachineClock;
use super::disks::DiskPace;
use super::machine::Replicated;
use super::network::Station;
use super::world::World;

/// How often a leader looks what is to be done for the members.
const TEND_INTERVAL: Duration = Duration::from_millis(250);
/// How often is looked after machines that are down.
const CARE_INTERVAL: Duration = Duration::from_millis(200);

/// A machine for one replica.
pub struct Node {
    /// The replica's number.
    pub id: ReplicaId,
    /// Its clock.
    pub clock: Arc<MachineClock>,
    /// How fast its disk is.
    pub pace: Arc<DiskPace>,
    /// Changes whenever the replica applied something.
    pub applied: watch::Sender<u64>,
    state: Mutex<State>,
}

/// How a machine came to have a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was there when the cluster was formed.
    Founded,
    /// It was let in later.
    Joined,
}

/// What a machine is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its replica is a member, or is to become one.
    Serves,
    /// Its replica was removed, and runs until it hears of that.
    Leaves,
    /// It is gone for good.
    Gone,
}

struct State {
    disk: Disk,
    origin: Origin,
    standing: Standing,
    /// It had members in its log: that must not be begun anew.
    had_log: bool,
    host: Option<Host>,
    replica: Option<Replica<Replicated>>,
    /// Nobody starts it before.
    down_until: Instant,
    /// Counts starts.
    run: u64,
    /// Why the last start came to nothing.
    refusal: Option<String>,
}

impl Node {
    /// Which of its starts this is.
    fn run(&self) -> u64 {
        self.state().run
    }

    /// A machine with an empty disk.
    pub fn new(id: ReplicaId, origin: Origin, clock: MachineClock, pace: DiskPace) -> Self {
        let pace = Arc::new(pace);
        let disk = Disk::new();
        disk.set_pace(Some(Arc::<DiskPace>::clone(&pace)));
        let (standing, down_until) = (Standing::Serves, Instant::now());
        let (host, replica, refusal) = (None, None, None);
        let state = State { disk, origin, standing, had_log: false, host, replica, down_until, run: 0, refusal };
        Self { id, clock: Arc::new(clock), pace, applied: watch::Sender::new(0), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain data, whole between steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The replica and its machine, while it runs.
    pub fn running(&self) -> Option<Station> {
        let state = self.state();
        Some(Station { host: state.host.clone()?, replica: state.replica.clone()? })
    }

    /// Why it does not run, if that is its own decision.
    pub fn refusal(&self) -> Option<String> {
        self.state().refusal.clone()
    }

    /// What it is there for.
    pub fn standing(&self) -> Standing {
        self.state().standing
    }

    /// Its replica was removed.
    pub fn leave(&self) {
        let mut state = self.state();
        if state.standing == Standing::Serves {
            state.standing = Standing::Leaves;
        }
    }

    /// It is taken away, and its disk with it.
    pub fn scrap(&self, world: &World) {
        self.state().standing = Standing::Gone;
        self.kill(world, Duration::ZERO);
    }

    /// It gets an empty disk. Its replica comes back under the number that it had:
    /// nobody may do that.
    pub fn forget_all(&self, world: &World, down: Duration) {
        self.kill(world, down);
        let disk = Disk::new();
        disk.set_pace(Some(Arc::<DiskPace>::clone(&self.pace)));
        let mut state = self.state();
        (state.disk, state.origin, state.had_log) = (disk, Origin::Joined, false);
    }

    /// Its disk.
    pub fn disk(&self) -> Disk {
        self.state().disk.clone()
    }

    /// Kills what runs on it. It stays down for a while.
    pub fn kill(&self, world: &World, down: Duration) {
        if let Some(station) = self.running() {
            let status = station.replica.status();
            let (id, term, last) = (self.id, status.term, status.last_log);
            world.trace.note(&format!("replica {id} is killed in term {term}, its log ends at {last:?}"));
            world.trace.detail(|| format!("its snapshot is of {:?}", status.snapshot));
        }
        world.network.disconnect(self.id);
        let mut state = self.state();
        state.down_until = Instant::now() + down;
        state.run += 1;
        let (host, replica) = (state.host.take(), state.replica.take());
        drop(state);
        if let Some(host) = host {
            host.kill();
        }
        // Its tasks are gone; this is the last that holds it.
        drop(replica);
        self.applied.send_modify(|applied| *applied += 1);
    }

    /// Cuts its power.
    pub fn cut_power(&self, world: &World, down: Duration) {
        self.kill(world, down);
        let disk = self.disk();
        let leaves_nothing = world.plan.broken == Some(Broken::RolledBack);
        if disk.cut_power(&mut |limit| if leaves_nothing { 0 } else { world.dice.below(limit) }) {
            world.count("unsynced data lost in a power cut", 1);
        }
        if world.plan.broken == Some(Broken::ForgottenVote) && disk.damage(Damage::VoteForgotten, &mut |_| 0) {
            world.trace.note(&format!("replica {} will not know whom it voted for", self.id));
        }
    }

    /// Stops everything on it, or lets it go on.
    pub fn set_paused(&self, is_paused: bool) {
        if let Some(host) = &self.state().host {
            host.set_paused(is_paused);
        }
    }

    /// Takes all faults from its disk.
    pub fn heal_disk(&self) {
        let disk = self.disk();
        for operation in [Operation::Read, Operation::Sync, Operation::Write] {
            disk.fail(operation, 0);
        }
        self.pace.set_slow(None);
        disk.set_free_bytes(1 << 40);
    }

    /// Damages its disk while it is off, and sees that the replica refuses to
    /// start. Then it is given the disk as it was before.
    pub async fn suffer(&self, world: &Arc<World>, damage: Damage) {
        let down = Duration::from_mins(10);
        self.cut_power(world, down);
        let good = self.disk().synced_copy();
        if !self.disk().damage(damage, &mut |limit| world.dice.below(limit)) {
            self.state().down_until = Instant::now();
            return;
        }
        world.trace.note(&format!("replica {} starts on a damaged disk: {damage:?}", self.id));
        match self.start(world).await {
            Some(Err(StartError::Storage { source, .. })) => {
                world.trace.note(&format!("replica {} refused: {:#}", self.id, anyhow::Error::from(source)));
                world.count(name_of(damage), 1);
                good.set_pace(Some(Arc::<DiskPace>::clone(&self.pace)));
                self.state().disk = good;
            }
            // A flipped bit in what is purged and not removed yet does no harm.
            Some(Ok(())) if damage == Damage::Entry => return,
            Some(Ok(())) => world.judge.violation(format!("replica {} did not notice {damage:?}", self.id)),
            Some(Err(error)) => {
                world.trace.note(&format!("replica {} did not start: {:#}", self.id, anyhow::Error::from(error)));
            }
            None => {}
        }
        self.state().down_until = Instant::now();
    }

    /// Whether it does not start because its log is gone.
    pub fn has_lost_its_log(&self) -> bool {
        self.state().refusal.as_deref().is_some_and(|refusal| refusal.contains("what it acknowledged may be lost"))
    }

    /// Starts the replica. `None` if it was killed meanwhile.
    async fn start(&self, world: &Arc<World>) -> Option<Result<(), StartError>> {
        let host = Host::new(self.disk());
        let run = {
            let mut state = self.state();
            state.host = Some(host.clone());
            state.run += 1;
            state.run
        };
        let started = host.spawn(begin(Arc::clone(world), self.id)).await;
        let mut state = self.state();
        if state.run != run {
            return None;
        }
        match started {
            Ok(Ok(replica)) => {
                state.replica = Some(replica.clone());
                state.refusal = None;
                drop(state);
                host.disk().set_lying(world.plan.broken.is_some_and(Broken::is_of_disks));
                world.network.connect(self.id, Station { host, replica });
                Some(Ok(()))
            }
            Ok(Err(error)) => {
                state.host = None;
                drop(state);
                host.kill();
                Some(Err(error))
            }
            Err(_) => None,
        }
    }
}

fn name_of(damage: Damage) -> &'static str {
    match damage {
        Damage::Entry => "flipped bit in the log found",
        Damage::Vote => "flipped bit in the vote found",
        Damage::Snapshot => "flipped bit in a snapshot found",
        Damage::LogLost => "lost log found",
        Damage::SnapshotLost => "lost snapshot",
        Damage::VoteForgotten => "forgotten vote",
    }
}

/// What a process does when it starts: the only place that forms clusters.
async fn begin(world: Arc<World>, id: ReplicaId) -> Result<Replica<Replicated>, StartError> {
    let node = world.node(id);
    let mut config = Config::new(Path::new("/simulated").join(id.to_string()), id);
    config.request_timeout_ms = 3_000;
    config.incarnation = node.run();
    config.snapshot_after_entries = world.shape.snapshot_after_entries;
    config.keep_entries = world.shape.keep_entries;
    let initial = match world.plan.broken {
        Some(Broken::LocalClock) => Replicated::broken(Arc::clone(&node.clock)),
        _ => Replicated::default(),
    };
    let observer: Observer<Replicated> = {
        let (world, applied) = (Arc::downgrade(&world), node.applied.clone());
        Arc::new(move |machine, events| {
            let Some(world) = world.upgrade() else { return };
            world.trace.mark((id.0, machine.fleet().applied().0, events.len()));
            world.judge.applied(id, machine, events);
            applied.send_modify(|applied| *applied += 1);
        })
    };
    let formation = {
        let state = node.state();
        match state.origin {
            Origin::Founded => Formation::Members(world.founders().map(|id| (id, Member::default())).collect()),
            Origin::Joined if state.had_log => Formation::Existing,
            Origin::Joined => Formation::Wait,
        }
    };
    let clock: Arc<dyn Clock> = Arc::<MachineClock>::clone(&node.clock);
    let peers = world.network.peers_of(id);
    let starting = Replica::start_with_peers(config, clock, initial, observer, peers, formation);
    let replica = Box::pin(starting).await?;
    // Said at each start, as soon as the log takes it.
    let opening =
        vec![Command::Configure(settings()), Command::ReplicaStarted { replica: berth::domain::ReplicaId(id.0) }];
    let saying = replica.clone();
    simulation::spawn(async move {
        while saying.propose(opening.clone()).await.is_err() && saying.status().stopped.is_none() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    simulation::spawn(tend(replica.clone()));
    Ok(replica)
}

/// Times so short that everything ends within a world's life, except for what
/// the judges look at in the end.
fn settings() -> Settings {
    let week = berth::domain::Millis::from_secs(7 * 24 * 3600);
    let seconds = berth::domain::Millis::from_secs;
    Settings {
        deleted_retention: week,
        lost_server_retention: week,
        prepare_timeout: seconds(8),
        delete_timeout: seconds(8),
        queue_timeout: seconds(15),
        avoid_failed_server: seconds(10),
        journal_records_max: 100,
        ..Settings::default()
    }
}

/// Does for the members what the leader is to do, as the product's steward.
async fn tend(replica: Replica<Replicated>) {
    while replica.status().stopped.is_none() {
        sleep(TEND_INTERVAL).await;
        members::tend(&replica, || replica.local().state.fleet().cluster().clone()).await;
    }
}

/// Starts what is down and may start, restarts what has stopped by itself, and
/// looks at what runs. Ends when the machine is gone.
pub async fn care(world: Arc<World>, node: Arc<Node>) {
    let id = node.id;
    while node.standing() != Standing::Gone {
        let (is_up, may_start) = {
            let state = node.state();
            (state.host.is_some(), state.down_until <= Instant::now())
        };
        if !is_up && may_start {
            match node.start(&world).await {
                Some(Ok(())) => {
                    let last = node.running().and_then(|station| station.replica.status().last_log);
                    world.trace.note(&format!("replica {id} runs, its log ends at {last:?}"));
                    let snapshot = node.running().and_then(|station| station.replica.status().snapshot);
                    world.trace.detail(|| format!("its snapshot is of {snapshot:?}"));
                }
                Some(Err(error)) => {
                    let refusal = format!("{:#}", anyhow::Error::from(error));
                    world.trace.note(&format!("replica {id} did not start: {refusal}"));
                    let mut state = node.state();
                    state.refusal = Some(refusal);
                    state.down_until = Instant::now() + Duration::from_secs(1);
                }
                None => {}
            }
        }
        if let Some(station) = node.running() {
            inspect(&world, &node, &station.replica);
        }
        sleep(CARE_INTERVAL).await;
    }
}

/// Looks at a replica that runs.
fn inspect(world: &Arc<World>, node: &Node, replica: &Replica<Replicated>) {
    let id = node.id;
    let status = replica.status();
    if status.leader == Some(id) {
        world.judge.leads(id, status.term);
        if let Some(ago) = replica.majority_heard() {
            world.judge.had_majority(id, status.term, Instant::now() - ago);
        }
    }
    if let Some(agreed) = replica.agreed() {
        node.state().had_log = true;
        world.judge.agreed(id, agreed);
    }
    if let Some(reason) = status.stopped {
        world.trace.note(&format!("replica {id} has stopped: {reason}"));
        world.count("replica stopped by a failure of its disk", 1);
        node.kill(world, Duration::from_millis(200 + world.dice.below(2_000)));
    } else if world.network.was_dismissed(id) {
        // As a process does that is told so.
        world.trace.note(&format!("replica {id} ends: it was told that it was removed"));
        world.count("removed replica was told, and ended", 1);
        if node.standing() == Standing::Serves && !world.is_leaving(id) {
            world.judge.violation(format!("replica {id} was told that it was removed, and nobody removed it"));
        }
        node.scrap(world);
    }
}

/// Stops a replica in good order, as an operator does, and lets it start again.
pub async fn restart(world: &Arc<World>, node: &Node) {
    let Some(station) = node.running() else { return };
    world.network.disconnect(node.id);
    let replica = station.replica.clone();
    let stopped = station.host.spawn(async move { replica.stop().await });
    drop(station);
    if let Ok(Ok(Err(reason))) = timeout(Duration::from_secs(5), stopped).await {
        world.trace.note(&format!("replica {} did not stop cleanly: {reason}", node.id));
    }
    node.kill(world, Duration::from_millis(world.dice.below(1_000)));
}

/// The machines by their replicas' numbers.
pub type Nodes = BTreeMap<ReplicaId, Arc<Node>>;
