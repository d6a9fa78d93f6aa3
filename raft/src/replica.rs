//! The handle on a running replica.

use crate::applier::{Applier, SnapshotPolicy, Surroundings};
use crate::barrier;
use crate::checkpoints::{self, Checkpoints};
use crate::clock::Clock;
use crate::codec;
use crate::config::Config;
use crate::core::Core;
use crate::error::{ProposeError, RaiseError, ReadError, SnapshotError, StartError, StopReason};
use crate::formats::{self, Formats};
use crate::forwarder;
use crate::halt::Halt;
use crate::handover::Holding;
use crate::ids::{LogIndex, ReplicaId};
use crate::incoming::{self, SnapshotReceiver};
use crate::log_store::{LogStore, QUEUE_BYTES};
use crate::log_time::LogTime;
use crate::machine::{Observer, StateMachine};
use crate::members::{self, Formation, Member};
use crate::network::{Network, SNAPSHOT_TIMEOUT};
use crate::peers::{NoPeers, Peers};
use crate::proposer;
use crate::published::Published;
use crate::queue::{self, Memory};
use crate::receiver;
use crate::runtime;
use crate::seldom::Seldom;
use crate::sequences::Sequences;
use crate::status::Status;
use crate::tasks::{self, Supervised};
use crate::testing::simulation;
use crate::types::Call;
use crate::wire::{Answer, Refusal, Request};
use berth_storage::{Options, Store};
use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::raft::AppendEntriesRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// The timers of a cluster of one, which has nobody to send signs of life to: fewer wake-ups.
const ALONE_HEARTBEAT_MS: u64 = 1_000;
const ALONE_ELECTION_TIMEOUT_MS: u64 = 3_000;

/// How often elections and signs of life come.
#[derive(Clone, Copy)]
enum Timers {
    /// There is nobody to hear from.
    Alone,
    /// As configured.
    Cluster,
}

/// How often a snapshot is asked for again while another one is being written.
const SNAPSHOT_POLL: Duration = Duration::from_millis(200);

/// What became of the commands of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposed<O> {
    /// The entry that holds them all.
    pub index: LogIndex,
    /// One outcome per command, in the order of the commands.
    pub outcomes: Vec<O>,
}

/// An immutable state as it was right after the entry at `index`.
#[derive(Debug)]
pub struct View<M> {
    /// The state.
    pub state: Arc<M>,
    /// The last entry applied to it; 0 also when none was yet.
    pub index: LogIndex,
}

impl<M> Clone for View<M> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), index: self.index }
    }
}

/// A running replica. Clones are handles on the same replica; it ends with
/// [`stop`](Self::stop), or in the background when the last handle is dropped.
pub struct Replica<M: StateMachine> {
    pub(crate) core: Arc<Core<M>>,
    closed: watch::Receiver<Option<Result<(), StopReason>>>,
    // Cancels everything when the last handle goes.
    guard: Arc<DropGuard>,
}

impl<M: StateMachine> Clone for Replica<M> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core), closed: self.closed.clone(), guard: Arc::clone(&self.guard) }
    }
}

impl<M: StateMachine> std::fmt::Debug for Replica<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Replica").field(&self.core.config.replica).finish()
    }
}

impl<M: StateMachine> Replica<M> {
    /// Starts a cluster of one.
    ///
    /// On an empty folder the cluster is formed, exactly once, from `initial`; later starts use
    /// `initial` only to replay the log when there is no snapshot yet, so it must always be the
    /// same. Returns once this replica leads and its state holds everything that was ever
    /// acknowledged.
    pub async fn start(
        config: Config,
        clock: Arc<dyn Clock>,
        initial: M,
        observer: Observer<M>,
    ) -> Result<Self, StartError> {
        let formation = Formation::Members(BTreeMap::from([(config.replica, Member::default())]));
        Self::start_alone(config, clock, initial, observer, formation).await
    }

    /// Starts a replica that nobody else can reach, as [`start`](Self::start) does, with another
    /// formation. An error if its log names other members.
    pub async fn start_alone(
        config: Config,
        clock: Arc<dyn Clock>,
        initial: M,
        observer: Observer<M>,
        formation: Formation,
    ) -> Result<Self, StartError> {
        Self::launch(config, clock, initial, observer, Arc::new(NoPeers), formation, Timers::Alone).await
    }

    /// Starts a replica of a cluster. `formation` says what to do when the folder is empty;
    /// afterwards the members stored in the log count.
    ///
    /// The only member returns when its state is current. Others return as soon as the replica
    /// takes part: [`local`](Self::local) may lag behind, [`read`](Self::read) never does.
    /// Requests of peers must reach [`answer_peer`](Self::answer_peer) from then on.
    pub async fn start_with_peers(
        config: Config,
        clock: Arc<dyn Clock>,
        initial: M,
        observer: Observer<M>,
        peers: Arc<dyn Peers>,
        formation: Formation,
    ) -> Result<Self, StartError> {
        Self::launch(config, clock, initial, observer, peers, formation, Timers::Cluster).await
    }

    async fn launch(
        config: Config,
        clock: Arc<dyn Clock>,
        initial: M,
        observer: Observer<M>,
        peers: Arc<dyn Peers>,
        formation: Formation,
        timers: Timers,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let replica = config.replica;
        if let Formation::Members(members) = &formation
            && !members.contains_key(&replica)
        {
            return Err(StartError::NotAMember { replica });
        }
        let store = open_store(&config).await?;
        let log = store.log();
        let snapshots = store.snapshots();
        if let Some((purged, _)) = log.purged() {
            let snapshot =
                snapshots.current().map_err(|source| StartError::Storage { folder: config.folder.clone(), source })?;
            if snapshot.is_none_or(|snapshot| snapshot.index() < purged) {
                return Err(StartError::SnapshotLost {
                    folder: config.folder.join("snapshots"),
                    purged: LogIndex(purged),
                });
            }
        }

        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let halt = Halt::new(stop.clone());
        let formats = Arc::new(Formats::new(config.formats.clone(), halt.clone()));
        // Nothing was ever written here: this replica takes part in forming the cluster.
        let is_new = log.last().is_none() && log.purged().is_none() && log.vote().is_none();
        let (forms, alone) = match &formation {
            Formation::Members(members) => (is_new, members.len() == 1),
            Formation::Meet => (is_new, false),
            Formation::Existing if is_new => {
                return Err(StartError::LogLost { folder: config.folder.clone(), replica });
            }
            Formation::Wait | Formation::Existing => (false, false),
        };
        let policy = SnapshotPolicy {
            after_entries: config.snapshot_after_entries,
            after_bytes: config.snapshot_after_bytes,
            due: Arc::default(),
            overdue: Arc::default(),
        };
        let published = Arc::new(Published::new(initial.clone(), initial.next_deadline()));
        let (checkpoints, taken_checkpoints) = checkpoints::sink();
        let surroundings = Surroundings {
            published: Arc::clone(&published),
            snapshots: snapshots.clone(),
            policy: policy.clone(),
            formats: Arc::clone(&formats),
            checkpoint_each: config.hash_every_entries,
            checkpoints,
            stop: stop.clone(),
        };
        // Also when nothing is on its way that would tell the consensus core: a leader that cannot
        // write must not keep others from being elected.
        let failing = halt.clone();
        log.on_failure(move |reason| failing.because(StopReason::Failed(format!("storage: {reason}"))));
        let applier = Applier::new(initial, observer, surroundings);
        let answer_timeout = Duration::from_millis(config.election_timeout_ms);
        let network = Network::new(Arc::clone(&peers), answer_timeout, config.snapshot_part_bytes);
        let outgoing = network.outgoing.clone();
        let raft = Raft::new(
            replica.0,
            Arc::new(library_config(&config, timers)),
            network,
            LogStore::new(log.clone(), replica, stop.clone()),
            applier,
        )
        .await
        .map_err(|error| halt.reason().map_or_else(|| failed_start(error), StartError::Stopped))?;

        let (proposals, waiting_proposals) = queue::queue(&config);
        let (forwards, waiting_forwards) = queue::queue(&config);
        let (reads, waiting_reads) = barrier::queue();
        let sequences = Sequences::new(replica, config.incarnation);
        let incoming = SnapshotReceiver::new(snapshots, Arc::clone(&formats));
        let core = Arc::new(Core {
            config,
            time: LogTime::new(clock),
            raft: raft.clone(),
            log,
            peers,
            published,
            formats,
            checkpoints: Checkpoints::default(),
            halt: halt.clone(),
            proposals,
            forwards,
            taken: Arc::default(),
            sequences,
            reads,
            incoming,
            stop,
            changing: tokio::sync::Mutex::default(),
            holding: Holding::new(),
            nonsense: Seldom::default(),
        });
        let running = TaskTracker::new();
        runtime::spawn(running.track_future(proposer::run(Arc::clone(&core), waiting_proposals)));
        runtime::spawn(running.track_future(forwarder::run(Arc::clone(&core), waiting_forwards)));
        runtime::spawn(running.track_future(checkpoints::run(Arc::clone(&core), taken_checkpoints)));
        runtime::spawn(running.track_future(incoming::sweep(Arc::clone(&core))));
        runtime::spawn(running.track_future(barrier::run(Arc::clone(&core), waiting_reads)));
        runtime::spawn(running.track_future(members::tell_transport(Arc::clone(&core))));
        runtime::spawn(running.track_future(tasks::tick(Arc::clone(&core))));
        runtime::spawn(running.track_future(tasks::snapshot(Arc::clone(&core), policy, outgoing)));
        let (closing, closed) = watch::channel(None);
        runtime::spawn(tasks::supervise(Supervised { raft, store, tasks: running.clone(), halt, closed: closing }));
        let replica = Self { core, closed, guard: Arc::new(guard) };
        let waited = Duration::from_millis(replica.core.config.start_timeout_ms);
        let taking_part = async {
            replica.take_part(formation, timers).await?;
            let raised = formats::raise_when_new(Arc::clone(&replica.core), forms);
            if alone {
                // Nobody else has to be asked.
                raised.await;
            } else {
                runtime::spawn(running.track_future(raised));
            }
            Ok(())
        };
        let error = match tokio::time::timeout(waited, taking_part).await {
            Ok(Ok(())) => return Ok(replica),
            Ok(Err(error)) => error,
            Err(_) => StartError::NotReady { waited, condition: replica.status().storage.to_string() },
        };
        // The folder must be free again when the caller hears of it.
        if let Err(reason) = replica.stop().await {
            tracing::warn!(%reason, "stopping after a failed start");
        }
        Err(error)
    }

    /// Forms the cluster if there is none yet; alone, waits until the state is current.
    async fn take_part(&self, formation: Formation, timers: Timers) -> Result<(), StartError> {
        let raft = &self.core.raft;
        let replica = self.core.config.replica;
        let formed_alone = matches!(&formation, Formation::Members(members) if members.len() == 1);
        if let Formation::Members(members) = formation
            && !raft.is_initialized().await.map_err(failed_start)?
        {
            let nodes: BTreeMap<u64, Member> = members.iter().map(|(id, member)| (id.0, member.clone())).collect();
            match raft.initialize(nodes).await {
                Ok(()) => tracing::info!(%replica, members = ?members.keys(), "cluster formed"),

                // A peer was faster and its entries have arrived: the cluster exists.
                Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(error) => {
                    let reason = StopReason::Failed(error.to_string());
                    return Err(StartError::Stopped(reason));
                }
            }
        }
        let members = self.members();
        if !members.is_empty() && !members.contains_key(&replica) {
            return Err(StartError::NotAMember { replica });
        }
        if matches!(timers, Timers::Alone) && members.len() > 1 {
            return Err(StartError::OthersMissing { replica, members: members.len() });
        }
        // The members of a cluster that was formed just now do not show yet.
        let alone = members.len() == 1 || (members.is_empty() && formed_alone);
        if !alone {
            return Ok(());
        }
        if !self.core.leads() {
            // Nobody else could be heard from: no need to wait for a timeout.
            raft.trigger().elect(false).await.map_err(failed_start)?;
        }
        loop {
            match self.read().await {
                Ok(_) => return Ok(()),
                Err(ReadError::Stopped(reason)) => return Err(StartError::Stopped(reason)),
                Err(error) => tracing::debug!(%error, "the state is not current yet"),
            }
        }
    }

    /// Commits and applies `commands`, all in one log entry and in this order, together with what
    /// other callers propose at the same time. Durable on a majority when this returns. A replica
    /// that does not lead forwards to the leader. No commands is a tick.
    ///
    /// When the leader is lost on the way, it is tried again through the next one until the outcome
    /// is known or the time is up, and is applied once all the same; that takes an
    /// [`incarnation`](Config::incarnation) and format 2. A caller that repeats after
    /// [`ProposeError::OutcomeUnknown`] needs an id in the command that the state remembers.
    pub async fn propose(&self, commands: Vec<M::Command>) -> Result<Proposed<M::Outcome>, ProposeError> {
        self.propose_within(commands, self.core.config.request_timeout()).await
    }

    /// The same for a caller with more time, or less, to learn what became of it. Nobody leading,
    /// or no room, is told as soon as to others. While it waits, at most as many further calls of
    /// this replica are taken as are remembered (65,536): not for long waits.
    pub async fn propose_within(
        &self,
        commands: Vec<M::Command>,
        within: Duration,
    ) -> Result<Proposed<M::Outcome>, ProposeError> {
        let encoded = commands.iter().map(M::encode_command).collect();
        self.core.propose(encoded, within).await
    }

    /// A state that holds everything acknowledged before this call (linearizable). Concurrent
    /// readers share one confirmation; nothing is written.
    pub async fn read(&self) -> Result<View<M>, ReadError> {
        let core = &self.core;
        let stopped = || ReadError::Stopped(core.reason_or_requested());
        if core.stop_reason().is_some() {
            return Err(stopped());
        }
        let within = core.config.request_timeout();
        core.reads.confirmed(within, stopped).await?;
        Ok(self.local())
    }

    /// Whether a majority confirms now what is current, as a [`read`](Self::read) needs it. How far
    /// this replica has applied does not matter, and no reader is waited for. Asks once.
    pub async fn majority_confirms(&self) -> Result<bool, StopReason> {
        match self.core.read_index().await {
            Ok(index) => Ok(index.is_some()),
            Err(_) => Err(self.core.reason_or_requested()),
        }
    }

    /// The latest state applied here, without asking anybody. May lag behind other replicas.
    pub fn local(&self) -> View<M> {
        let latest = self.core.published.latest();
        View { state: Arc::clone(&latest.state), index: latest.index.unwrap_or_default() }
    }

    /// Follows the last applied entry; [`local`](Self::local) is at least that new.
    pub fn applied(&self) -> watch::Receiver<LogIndex> {
        self.core.published.indexes()
    }

    /// The replica's own account of itself.
    pub fn status(&self) -> Status {
        let latest = self.core.published.latest();
        let leader = self.core.leader();
        let metrics = self.core.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<crate::types::LogId>| id.as_ref().map(|id| LogIndex(id.index));
        let voters = metrics.membership_config.voter_ids().map(ReplicaId).collect::<BTreeSet<_>>();
        let voters: Vec<ReplicaId> = voters.into_iter().collect();
        Status {
            replica: self.core.config.replica,
            leader,
            term: metrics.current_term,
            last_log: metrics.last_log_index.map(LogIndex),
            format: self.core.formats.agreed(),
            applied: latest.index,
            applied_at: latest.at,
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
            checkpoints: self.core.checkpoints.status(&voters),
            voters,
            storage: self.core.log.condition().into(),
            stopped: self.core.stop_reason(),
        }
    }

    /// Follows the reason why the replica has stopped; `None` while it runs.
    pub fn stopped(&self) -> watch::Receiver<Option<StopReason>> {
        self.core.halt.stopped.subscribe()
    }

    /// Makes a snapshot that covers everything applied before this call, and waits for it.
    /// Returns the last entry it covers.
    pub async fn trigger_snapshot(&self) -> Result<LogIndex, SnapshotError> {
        let core = &self.core;
        let stopped = || SnapshotError::Stopped(core.reason_or_requested());
        let target = core.published.latest().index;
        let waited = core.config.request_timeout();
        let deadline = Instant::now() + waited;
        loop {
            let covered = self.status().snapshot;
            if covered >= target {
                return Ok(covered.unwrap_or_default());
            }
            if core.stop_reason().is_some() {
                return Err(stopped());
            }
            if Instant::now() >= deadline {
                return Err(SnapshotError::TimedOut { waited });
            }
            // Has no effect while another one is being written: asked for again until it covers
            // what is wanted.
            let trigger = core.raft.trigger();
            trigger.snapshot().await.map_err(|_| stopped())?;
            let wait = core.raft.wait(Some(SNAPSHOT_POLL));
            let covers = wait.metrics(|metrics| metrics.snapshot.map(|id| LogIndex(id.index)) >= target, "snapshot");
            if let Err(error) = covers.await {
                tracing::debug!(%error, "the snapshot is not there yet");
            }
        }
    }

    /// Raises the format of the log and of snapshots to `to`, if this replica leads and every
    /// member, voting or not, says now that it reads it. There is no way back: an earlier build can
    /// no longer take part, and stops when it is started. A cluster that is formed with this build
    /// raises it by itself as soon as all members have answered.
    pub async fn raise_format(&self, to: u16) -> Result<(), RaiseError> {
        formats::raise(&self.core, to).await
    }

    /// Answers a request of another replica, for the receiving side of a [`Peers`] transport.
    /// `from` is who the transport knows the sender to be. Garbage is answered with a refusal that
    /// the sender understands; it harms nobody.
    pub async fn answer_peer(&self, from: ReplicaId, request: &[u8]) -> Vec<u8> {
        let answer = match Request::decode(request) {
            Ok(request) => self.answer(from, request).await,
            Err(error) => {
                let text = codec::chain(&error);
                if let Some(times) = self.core.nonsense.count() {
                    tracing::warn!(%from, error = %text, times, "request of a peer not understood");
                }
                Answer::Refused(Refusal::Garbage(text))
            }
        };
        answer.encode()
    }

    async fn answer(&self, from: ReplicaId, request: Request) -> Answer {
        let core = &self.core;
        let raft = &core.raft;
        match request {
            Request::Append { vote, previous, entries, committed } => {
                let entries = entries.into_iter().map(codec::RawEntry::into_entry);
                let entries = match entries.collect::<Result<Vec<_>, _>>() {
                    Ok(entries) => entries,
                    Err(error) => {
                        return Answer::Refused(Refusal::Garbage(codec::chain(&error)));
                    }
                };
                let request = AppendEntriesRequest {
                    vote: vote.into(),
                    prev_log_id: previous.map(Into::into),
                    entries,
                    leader_commit: committed.map(Into::into),
                };
                receiver::append(raft, request).await
            }
            Request::Vote(ballot) => receiver::vote(raft, ballot).await,
            Request::PreVote(ballot) => receiver::pre_vote(raft, ballot).await,
            Request::TransferLeader { vote, to, last } => receiver::transfer_leader(raft, vote, to, last).await,
            Request::SnapshotChunk { transfer, offset, bytes, end } => {
                let taken = core.incoming.take_numbered(from, transfer, offset, bytes, end.as_ref());
                match (taken.await, end) {
                    (Err(refusal), _) => Answer::Refused(refusal),
                    (Ok(Some(complete)), Some(end)) => receiver::install(raft, end.vote, complete).await,
                    (Ok(_), _) => Answer::ChunkTaken,
                }
            }
            Request::SnapshotOffer { header, length } => match core.incoming.offered(header, length).await {
                Ok(offset) => Answer::SnapshotFrom { offset },
                Err(refusal) => Answer::Refused(refusal),
            },
            Request::SnapshotPart { snapshot, offset, bytes, end } => {
                let part = incoming::Part { snapshot, offset, bytes, is_last: end.is_some() };
                match (core.incoming.take(part).await, end) {
                    (Err(refusal), _) => Answer::Refused(refusal),
                    (Ok(Some(complete)), Some(vote)) => receiver::install(raft, vote, complete).await,
                    (Ok(_), _) => Answer::ChunkTaken,
                }
            }
            Request::Propose { commands } => {
                let deadline = Instant::now() + core.config.request_timeout();
                match core.propose_here(Call { id: None, commands }, Memory::Wanted, deadline).await {
                    Ok(Proposed { index, outcomes }) => match forwarder::encode_outcomes(&outcomes) {
                        Ok(outcomes) => Answer::Proposed { index: index.0, outcomes },
                        Err(refusal) => Answer::Refused(refusal),
                    },
                    Err(unproposed) => Answer::Refused(forwarder::refusal(unproposed)),
                }
            }
            Request::Formats => {
                let reads = core.formats.reads();
                Answer::Formats { from: *reads.start(), to: *reads.end() }
            }
            Request::Checkpoints { mine: theirs } => {
                checkpoints::hear(core, from, theirs);
                Answer::Checkpoints { mine: core.checkpoints.mine() }
            }
            Request::Calls { calls } => forwarder::take(core, from, calls.into_iter().map(Call::from).collect()).await,
            Request::ReadIndex => match core.read_index_here().await {
                Ok(Some(LogIndex(index))) => Answer::ReadIndex { index },
                Ok(None) => Answer::Refused(Refusal::NoLeader),
                Err(error) => Answer::Refused(Refusal::Stopped(error.to_string())),
            },
        }
    }

    /// Stops taking part, finishes what is being written and closes the data folder. Calls that
    /// wait get [`StopReason::Requested`] or an unknown outcome. Idempotent; an error says that
    /// the folder was not closed cleanly (nothing acknowledged is lost by that).
    pub async fn stop(&self) -> Result<(), StopReason> {
        self.core.stop.cancel();
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(StopReason::Failed("the supervisor ended before the data folder was closed".to_owned())),
        }
    }
}

pub(crate) fn failed_start(error: impl std::fmt::Display) -> StartError {
    StartError::Stopped(StopReason::Failed(error.to_string()))
}

/// Opens the folder and makes sure that it is this replica's.
pub(crate) async fn open_store(config: &Config) -> Result<Store, StartError> {
    let folder = config.folder.clone();
    let options = Options {
        cache_bytes: config.cache_bytes,
        reserve_bytes: config.disk_reserve_bytes,
        queue_bytes: QUEUE_BYTES,
        ..Options::default()
    };
    let opened = match simulation::disk() {
        Some(disk) => Ok(Store::in_memory(&disk, &folder, options)),
        None => runtime::blocking(move || Store::open(&folder, options)).await,
    };
    let store = opened
        .map_err(failed_start)?
        .map_err(|source| StartError::Storage { folder: config.folder.clone(), source })?;
    if let Some(index) = checkpoints::diverged(store.folder()).map_err(failed_start)? {
        return Err(StartError::Stopped(StopReason::Diverged { index }));
    }
    if let Some(bytes) = store.log().vote() {
        let (found, _) = codec::decode_vote(&bytes).map_err(|error| failed_start(codec::chain(&error)))?;
        if found != config.replica {
            return Err(StartError::ForeignFolder { folder: config.folder.clone(), found, configured: config.replica });
        }
    }
    Ok(store)
}

fn library_config(config: &Config, timers: Timers) -> openraft::Config {
    let (heartbeat_ms, election_timeout_ms) = match timers {
        Timers::Alone => (ALONE_HEARTBEAT_MS, ALONE_ELECTION_TIMEOUT_MS),
        Timers::Cluster => (config.heartbeat_ms, config.election_timeout_ms),
    };
    openraft::Config {
        cluster_name: "berth".to_owned(),
        heartbeat_interval: heartbeat_ms,
        // The library adds a lease of the maximum to what it draws: a follower waits for
        // `election_timeout_ms` and half to all of it again. The minimum is also what a peer has
        // to store and answer a vote.
        election_timeout_min: (election_timeout_ms / 2).max(heartbeat_ms + 1),
        election_timeout_max: election_timeout_ms,
        install_snapshot_timeout: u64::try_from(SNAPSHOT_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
        // Entries hold many commands each; what bounds a request is its bytes.
        max_payload_entries: 1_024,
        // Asked for by this crate, by entries and by bytes.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: config.keep_entries,
        enable_pre_vote: Some(true),
        // A leader commits what a majority has on disk, which need not be itself. Restarted, it may
        // lack the end of what it committed; were it to go on in its old term, other entries would
        // get the same places. Alone it is the majority, and on a full disk it can vote no more.
        enable_leader_restore: Some(matches!(timers, Timers::Alone)),
        ..openraft::Config::default()
    }
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
