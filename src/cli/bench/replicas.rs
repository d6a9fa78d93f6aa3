//! Three replicas of this very program, each a process with a folder of its
//! own. They end with the value that holds them.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use axum::http::Method;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::super::http::{Api, Credentials};
use super::super::socket::Socket;
use super::https::Access;
use crate::broker::admin::access::{GrantRequest, RegisterAnswer, RegisterRequest};
use crate::broker::cluster::admin::{ClusterView, RaiseRequest, TransferRequest};
use crate::broker::config::Config;
use crate::secret::Secret;

/// How long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Replicas of the cluster.
pub(super) const REPLICAS: usize = 3;

/// Timers of the cluster, when they are not the default ones.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)] // all are called Args, and groups must differ
pub(super) struct Timers {
    /// `cluster.election_timeout_ms` of the replicas.
    #[arg(long, value_name = "MS")]
    election_timeout_ms: Option<u64>,
    /// `cluster.heartbeat_ms` of the replicas.
    #[arg(long, value_name = "MS")]
    heartbeat_ms: Option<u64>,
}

impl Timers {
    fn lines(&self) -> String {
        let line =
            |key: &str, value: Option<u64>| value.map_or_else(String::new, |ms| format!("cluster.{key} = {ms}\n"));
        line("election_timeout_ms", self.election_timeout_ms) + &line("heartbeat_ms", self.heartbeat_ms)
    }
}

/// One of them.
pub(super) struct Replica {
    number: usize,
    folder: PathBuf,
    /// Where API clients are served.
    pub(super) clients: SocketAddr,
    peers: SocketAddr,
    agents: SocketAddr,
    process: Option<Child>,
}

/// A free port below those that the system gives to connections, so that none
/// takes it while a process restarts. None is given twice.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..1000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::random_range(20_000..32_000)));
        let is_new = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(address.port());
        if is_new && TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port from 20000 to 31999");
}

impl Replica {
    fn data_folder(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn socket(&self) -> Socket {
        Socket::of(self.data_folder())
    }

    /// Starts it; it may not serve yet.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        let log_path = self.folder.join("log");
        let log = File::options().create(true).append(true).open(&log_path)?;
        let mut command = Command::new(std::env::current_exe()?);
        // What the caller's environment would tell it.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BERTH_")) {
            command.env_remove(name);
        }
        command.args(["--log", "warn,openraft=error", "serve", "--config"]).arg(self.folder.join("berth.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        self.process = Some(command.spawn().context("cannot start a replica")?);
        Ok(())
    }

    /// Sends a signal; it may not have ended yet.
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.id().context("the replica does not run")?;
        Ok(kill_process(id, signal)?)
    }

    fn id(&self) -> Option<Pid> {
        self.process.as_ref()?.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
    }

    /// Ends it by a signal and waits for that.
    pub(super) async fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.signal(signal)?;
        let mut process = self.process.take().context("it runs")?;
        let ended = tokio::time::timeout(PATIENCE, process.wait()).await;
        ended.with_context(|| format!("replica {} did not end by {signal:?}", self.number))??;
        Ok(())
    }

    /// The cluster as it sees it; `None` while it does not serve.
    async fn view(&self) -> Option<ClusterView> {
        self.socket().call(Method::GET, "/cluster", String::new()).await.ok()
    }

    /// Has the leader hand over. To be asked of the leader.
    pub(super) async fn hand_over(&self) -> anyhow::Result<()> {
        let body = serde_json::to_string(&TransferRequest { to: None })?;
        self.socket().call_raw(Method::POST, "/cluster/leader", body).await?;
        Ok(())
    }

    /// Has the log written in the newest format: without it the replicas do not
    /// remember calls, and what is on its way when the leader dies is lost.
    async fn raise_format(&self) -> anyhow::Result<()> {
        let body = serde_json::to_string(&RaiseRequest { to: Config::default().cluster.format_max })?;
        self.socket().call_raw(Method::POST, "/cluster/format", body).await?;
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// All of them.
pub(super) struct Replicas {
    pub(super) all: Vec<Replica>,
}

impl Replicas {
    /// Starts three in `folder` and waits until they serve.
    pub(super) async fn start(folder: &Path, timers: &Timers) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let secret = folder.join("secret");
        Secret::read_or_create(&secret)?;
        let mut all = Vec::new();
        for number in 1..=REPLICAS {
            let folder = folder.join(format!("replica-{number}"));
            std::fs::create_dir_all(&folder)?;
            let (clients, peers, agents) = (free_address()?, free_address()?, free_address()?);
            all.push(Replica { number, folder, clients, peers, agents, process: None });
        }
        let member = |replica: &Replica| format!("{{ replica = {}, address = '{}' }}", replica.number, replica.peers);
        let members = all.iter().map(member).collect::<Vec<_>>().join(", ");
        for replica in &mut all {
            let Replica { number, folder, clients, peers, agents, .. } = &*replica;
            // Each session that is created waits for a server that never comes, and one client sends them all.
            let text = format!(
                "data_folder = '{}'\nreplica = {number}\nclients.listen = '{clients}'\nagents.listen = '{agents}'\n\
                 cluster.listen = '{peers}'\ncluster.members = [{members}]\ncluster.secret_file = '{}'\n\
                 sessions.queue_max = 1000000\nlimits.requests_per_second = 0\n{}",
                replica.data_folder().display(),
                secret.display(),
                timers.lines(),
            );
            std::fs::write(folder.join("berth.toml"), text)?;
            replica.start()?;
        }
        let mut replicas = Self { all };
        let (leader, _) = replicas.leader().await?;
        replicas.all[leader].raise_format().await?;
        Ok(replicas)
    }

    /// Registers a client and obtains its token, which is good for all.
    pub(super) async fn access(&self) -> anyhow::Result<Arc<Access>> {
        let first = &self.all[0];
        let body =
            serde_json::to_string(&RegisterRequest { name: "bench".to_owned(), grant: GrantRequest::default() })?;
        let client: RegisterAnswer = first.socket().call(Method::POST, "/clients", body).await?;
        let credentials = Credentials { id: client.id, secret: Secret::new(client.secret) };
        let ca_path = first.data_folder().join("tls/ca.pem");
        let api = Api::connect(&format!("https://{}", first.clients), &ca_path, &credentials).await?;
        Ok(Arc::new(Access::new(&ca_path, api.token())?))
    }

    /// The one that leads, once all that run agree, and the term.
    pub(super) async fn leader(&mut self) -> anyhow::Result<(usize, u64)> {
        self.leader_when("a leader that all agree on", |_| true).await
    }

    /// The same, once it is another one than `before`.
    pub(super) async fn leader_after(&mut self, before: usize) -> anyhow::Result<(usize, u64)> {
        self.leader_when("another leader that all agree on", |leader| leader != before).await
    }

    async fn leader_when(&mut self, what: &str, wanted: impl Fn(usize) -> bool) -> anyhow::Result<(usize, u64)> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut leaders = Vec::new();
            for replica in self.all.iter().filter(|replica| replica.process.is_some()) {
                leaders.push(replica.view().await.and_then(|view| Some((view.leader?, view.term))));
            }
            leaders.dedup();
            if let [Some((number, term))] = leaders[..]
                && let Some(place) = self.all.iter().position(|replica| replica.number as u64 == number)
                && wanted(place)
            {
                return Ok((place, term));
            }
            self.look_again(end, what).await?;
        }
    }

    /// Waits until a replica serves and has applied what the leader has now.
    pub(super) async fn caught_up(&mut self, place: usize) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        let (leader, _) = self.leader().await?;
        let target = self.all[leader].view().await.and_then(|view| view.applied);
        while self.all[place].view().await.is_none_or(|view| view.applied < target) {
            self.look_again(end, "a replica that has caught up").await?;
        }
        Ok(())
    }

    async fn look_again(&mut self, end: Instant, what: &str) -> anyhow::Result<()> {
        for replica in &mut self.all {
            if let Some(process) = &mut replica.process
                && let Some(status) = process.try_wait()?
            {
                bail!("replica {} ended by itself, {status}:\n{}", replica.number, replica.last_words());
            }
        }
        if Instant::now() >= end {
            let words: Vec<String> = self.all.iter().map(Replica::last_words).collect();
            bail!("not reached within {} s: {what}\n{}", PATIENCE.as_secs(), words.join("\n--\n"));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        Ok(())
    }

    /// Ids of the processes.
    pub(super) fn process_ids(&self) -> Vec<u32> {
        self.all.iter().filter_map(|replica| replica.process.as_ref()?.id()).collect()
    }

    /// Ends all of them.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for replica in &mut self.all {
            if let Some(mut process) = replica.process.take() {
                process.kill().await.with_context(|| format!("replica {} does not end", replica.number))?;
            }
        }
        Ok(())
    }
}
