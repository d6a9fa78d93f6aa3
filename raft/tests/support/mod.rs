//! Replicas in one process, with a transport between them that counts and loses.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test file needs all of it")]

use berth_raft::testing::{Command, Ledger, LocalNetwork};
use berth_raft::{
    Config, Formation, Lane, LogIndex, Member, PeerError, Peers, Replica, ReplicaId, StartError, SystemClock,
};
use futures_util::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn add(id: u64) -> Command {
    Command::Add { id, amount: 1, padding: vec![0; 100] }
}

/// What happens to requests on their way, and what was seen of them.
#[derive(Default)]
pub(crate) struct Traffic {
    /// Each so manyth answer on the lane of the log is lost. 0: none.
    pub(crate) lose_answer_each: AtomicU64,
    /// Each so manyth request on the lane of snapshots is lost, and so is the answer of the one
    /// after it. 0: none.
    pub(crate) lose_part_each: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) parts: AtomicU64,
    pub(crate) part_bytes: AtomicU64,
    /// Requests of a version later than the first, by the replica they were sent to.
    pub(crate) newer_to: [AtomicU64; 8],
}

fn comes_up(counter: &AtomicU64, each: &AtomicU64) -> (bool, bool) {
    let number = counter.fetch_add(1, Ordering::Relaxed);
    match each.load(Ordering::Relaxed) {
        0 => (false, false),
        each => (number % each == each - 1, number.is_multiple_of(each) && number > 0),
    }
}

struct Watched {
    inner: Arc<dyn Peers>,
    traffic: Arc<Traffic>,
}

impl Peers for Watched {
    fn call(&self, to: ReplicaId, lane: Lane, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        let traffic = &self.traffic;
        if request.first() != Some(&1) {
            traffic.newer_to[usize::try_from(to.0).unwrap()].fetch_add(1, Ordering::Relaxed);
        }
        let no_answer = move || PeerError::NoAnswer { to, reason: "lost on the way".to_owned() };
        let (lose_request, lose_answer) = match lane {
            Lane::Heartbeat => (false, false),
            Lane::Replication => (false, comes_up(&traffic.requests, &traffic.lose_answer_each).0),
            Lane::Snapshot => {
                traffic.part_bytes.fetch_add(request.len() as u64, Ordering::Relaxed);
                comes_up(&traffic.parts, &traffic.lose_part_each)
            }
        };
        traffic.lost.fetch_add(u64::from(lose_request || lose_answer), Ordering::Relaxed);
        Box::pin(async move {
            if lose_request {
                return Err(no_answer());
            }
            let answer = self.inner.call(to, lane, request).await?;
            if lose_answer { Err(no_answer()) } else { Ok(answer) }
        })
    }
}

pub(crate) struct Cluster {
    pub(crate) network: LocalNetwork,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) folders: BTreeMap<ReplicaId, TempDir>,
    pub(crate) running: BTreeMap<ReplicaId, Replica<Ledger>>,
    /// How many members a new cluster has.
    pub(crate) members: u64,
    starts: u64,
}

impl Cluster {
    /// Without replicas.
    pub(crate) fn empty() -> Self {
        Self {
            network: LocalNetwork::new(),
            traffic: Arc::default(),
            folders: BTreeMap::new(),
            running: BTreeMap::new(),
            members: 3,
            starts: 0,
        }
    }

    /// Three that agree on a leader and on the newest format.
    pub(crate) async fn of_three() -> Self {
        let mut cluster = Self::empty();
        for id in (1..=3).map(ReplicaId) {
            cluster.start(id, |_| {}).await.unwrap();
        }
        cluster.leader(&cluster.all()).await;
        cluster.all_have_format(2).await;
        cluster
    }

    pub(crate) async fn all_have_format(&self, format: u16) {
        let raised = async {
            while self.running.values().any(|replica| replica.status().format < format) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, raised).await.expect("a format that all have agreed on");
    }

    pub(crate) async fn start(&mut self, id: ReplicaId, tune: impl Fn(&mut Config)) -> Result<(), StartError> {
        self.start_with(id, Ledger::default(), tune).await
    }

    pub(crate) async fn start_with(
        &mut self,
        id: ReplicaId,
        initial: Ledger,
        tune: impl Fn(&mut Config),
    ) -> Result<(), StartError> {
        let folder = self.folders.entry(id).or_insert_with(|| tempfile::tempdir().unwrap());
        let mut config = Config::new(folder.path(), id);
        // A loaded machine must not look like a lost leader.
        config.election_timeout_ms = 1_000;
        config.heartbeat_ms = 200;
        config.request_timeout_ms = 20_000;
        self.starts += 1;
        config.incarnation = self.starts;
        tune(&mut config);
        let peers = Watched { inner: self.network.peers_of(id), traffic: Arc::clone(&self.traffic) };
        let replica = Replica::start_with_peers(
            config,
            Arc::new(SystemClock),
            initial,
            Arc::new(|_, _| {}),
            Arc::new(peers),
            Formation::Members((1..=self.members).map(|id| (ReplicaId(id), Member::default())).collect()),
        )
        .await?;
        self.network.connect(&replica);
        self.running.insert(id, replica);
        Ok(())
    }

    pub(crate) async fn stop(&mut self, id: ReplicaId) {
        self.network.disconnect(id);
        let replica = self.running.remove(&id).unwrap();
        replica.stop().await.unwrap();
    }

    pub(crate) async fn stop_all(mut self) {
        for id in self.all() {
            self.stop(id).await;
        }
    }

    /// The replica that leads and that the others follow.
    pub(crate) async fn leader(&self, among: &[ReplicaId]) -> ReplicaId {
        let agreed = timeout(PATIENCE, async {
            loop {
                let leaders: BTreeSet<_> = among.iter().map(|id| self.running[id].status().leader).collect();
                let leader = leaders.first().copied().flatten();
                if let Some(leader) = leader.filter(|leader| among.contains(leader))
                    && leaders.len() == 1
                {
                    return leader;
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        agreed.await.expect("a leader that all agree on")
    }

    pub(crate) fn all(&self) -> Vec<ReplicaId> {
        self.running.keys().copied().collect()
    }

    pub(crate) fn others(&self, than: ReplicaId) -> Vec<ReplicaId> {
        self.all().into_iter().filter(|id| *id != than).collect()
    }

    pub(crate) async fn applied(&self, id: ReplicaId, index: LogIndex) {
        let mut applied = self.running[&id].applied();
        let reached = applied.wait_for(|applied| *applied >= index);
        timeout(PATIENCE, reached).await.unwrap().unwrap();
    }

    /// Waits until all have applied the same, and returns it.
    pub(crate) async fn common_state(&self) -> Ledger {
        let newest = self.running.values().next().unwrap().read().await.unwrap().index;
        for id in self.all() {
            self.applied(id, newest).await;
        }
        let mut states = self.running.values().map(|replica| replica.local().state.as_ref().clone());
        let first = states.next().unwrap();
        for state in states {
            assert_eq!(state.seen, first.seen);
            assert_eq!(state.total, first.total);
        }
        first
    }
}

/// Callers of all replicas, each of which proposes one command after the other. A command that is
/// not acknowledged, or came twice, ends the test.
pub(crate) struct Load {
    pub(crate) go_on: Arc<AtomicBool>,
    ids: Arc<AtomicU64>,
    callers: JoinSet<()>,
}

impl Load {
    /// Ids are counted from `first`.
    pub(crate) fn on(replicas: impl IntoIterator<Item = Replica<Ledger>>, callers_each: u64, first: u64) -> Self {
        let (go_on, ids) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(first)));
        let mut callers = JoinSet::new();
        for replica in replicas {
            for _ in 0..callers_each {
                let (replica, go_on, ids) = (replica.clone(), Arc::clone(&go_on), Arc::clone(&ids));
                callers.spawn(async move {
                    while go_on.load(Ordering::Relaxed) {
                        let id = ids.fetch_add(1, Ordering::Relaxed);
                        let proposed = replica.propose(vec![add(id)]).await.unwrap();
                        assert_eq!(proposed.outcomes[0].times, 1, "{id}");
                        assert!(replica.local().state.seen.contains(id), "{id} is not to be seen here");
                    }
                });
            }
        }
        Self { go_on, ids, callers }
    }

    /// Waits for so many more commands.
    pub(crate) async fn more(&self, commands: u64) {
        let target = self.ids.load(Ordering::Relaxed) + commands;
        let done = async {
            while self.ids.load(Ordering::Relaxed) < target {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, done).await.expect("calls go on");
    }

    /// Ends it; how many commands there were.
    pub(crate) async fn end(mut self) -> u64 {
        self.go_on.store(false, Ordering::Relaxed);
        while let Some(caller) = self.callers.join_next().await {
            caller.unwrap();
        }
        self.ids.load(Ordering::Relaxed)
    }
}
