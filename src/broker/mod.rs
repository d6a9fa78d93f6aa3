//! Role: a replica of the broker.
//!
//! - `api/`: what clients call,
//! - `agents/`: the agents' connections,
//! - `identity/`: clients, secrets and tokens,
//! - `gateway.rs`: where sessions are, for connection gateways,
//! - `cluster/`: the other replicas,
//! - `backup/`: the state in one file, and a new cluster of it,
//! - `admin.rs`: the operators' socket,
//! - `deeds.rs`: what operators do, for the audit,
//! - `notes.rs`: what the audit learns of deeds that change nothing,
//! - `core.rs`: the door to the replicated log, with `machine.rs` behind it,
//! - `throttle.rs`: how many requests callers may send,
//! - `contact.rs`: whether a majority of the replicas can be reached,
//! - `listen.rs`: ports; `shares.rs`: who has how many of their places;
//!   `taking.rs`: what becomes of answers; `tls/`: certificates,
//! - `config/`: `berth.toml`, the original's file, environment and flags.

pub mod admin;
pub mod agents;
pub mod api;
pub mod backup;
pub mod cluster;
pub mod config;
pub mod contact;
pub mod core;
pub mod deeds;
pub mod gateway;
pub mod identity;
pub mod listen;
pub mod machine;
pub mod notes;
pub mod shares;
pub mod taking;
pub mod throttle;
pub mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_raft::{Replica, StorageCondition, SystemClock};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::agents::{Agents, Links};
use self::api::door::{Unavailable, UnavailableReason};
use self::cluster::{Peering, Place, shared};
use self::config::Config;
use self::core::Broker;
use self::identity::{ClusterKey, Identity};
use self::listen::Bound;
use self::machine::Machine;
use self::throttle::Throttle;
use self::tls::{ClientAuth, Pki, Roots, source_of};
use crate::domain::key::KeyPurpose;
use crate::domain::{Command, ReplicaId};
use crate::files::{self, FileError};

/// Between two looks at the disk while the first words are written.
const STORAGE_POLL: Duration = Duration::from_millis(50);
/// Between two looks at whether this replica is a member.
const MEMBER_POLL: Duration = Duration::from_millis(50);
/// Between two attempts to write what must be said at the start.
const OPENING_RETRY: Duration = Duration::from_secs(1);

/// Why a replica did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// A file or folder cannot be had.
    #[error(transparent)]
    File(#[from] FileError),
    /// A secret cannot be had.
    #[error(transparent)]
    Secret(#[from] crate::secret::SecretError),
    /// The cluster key cannot be used.
    #[error("the cluster key {} cannot be used", path.display())]
    ClusterKey {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: identity::seal::SealError,
    },
    /// The replica cannot take its place among the others.
    #[error(transparent)]
    Cluster(#[from] cluster::ClusterError),
    /// What all replicas have in common cannot be had.
    #[error(transparent)]
    Shared(#[from] cluster::shared::SharedKeyError),
    /// The other replicas do not talk to this one any more.
    #[error("the other replicas do not talk to this one: {0}")]
    Unwelcome(cluster::frame::Unwelcome),
    /// Certificates cannot be had.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// A port cannot be had.
    #[error(transparent)]
    Bind(#[from] listen::BindError),
    /// The operators' socket cannot be had.
    #[error(transparent)]
    Admin(#[from] admin::AdminError),
    /// The replica did not start.
    #[error("the replica did not start")]
    Start(#[source] berth_raft::StartError),
    /// The log did not take what must be in it at the start, or its keys
    /// cannot be used.
    #[error("the replica could not begin to serve")]
    FirstWrites(#[source] identity::ClientError),
    /// The replica stopped by itself.
    #[error(transparent)]
    Stopped(berth_raft::StopReason),
}

/// A replica that serves.
pub struct Running {
    /// Where API clients are served.
    pub client_address: SocketAddr,
    /// Where agents are served.
    pub agent_address: SocketAddr,
    /// Certificate of the authority that signed the server's certificate.
    pub ca_path: PathBuf,
    /// Clients and tokens.
    pub identity: Arc<Identity>,
    /// The door to the log.
    pub broker: Arc<Broker>,
    shutdown: CancellationToken,
    /// Cancelled when no port serves any more.
    last_words: CancellationToken,
    servers: JoinSet<()>,
    links: TaskTracker,
    peering: Peering,
    steward: JoinHandle<()>,
}

/// Starts a replica: it serves when this returns.
pub async fn start(config: Config) -> Result<Running, Error> {
    config.check()?;
    let folder = config.data_folder.clone();
    make_data_folder(&config)?;

    let place = Place::take(&config)?;
    let id = place.replica();
    let cluster_key = ClusterKey::new(place.secret())
        .map_err(|source| Error::ClusterKey { path: folder.join(cluster::identity::SECRET), source })?;
    let mut peering = Peering::open(place, &config).await?;
    let formation = peering.formation(&config).await?;
    let links = Arc::new(Links::default());
    let clock = Arc::new(SystemClock);
    let (journal, journaled) = watch::channel(None);
    let observer = {
        let links = Arc::clone(&links);
        Arc::new(move |machine: &Machine, events: &[crate::domain::Event]| {
            links.notice(events);
            let last = machine.0.journal().last();
            journal.send_if_modified(|known| std::mem::replace(known, last) != last);
        })
    };
    // The store locks the folder; everything else in it is touched after that.
    let replica_config = replica_config(&config, id, peering.starts());
    // Boxed: the state is large enough to make every caller's future so.
    let replica = if peering.listening.is_some() {
        let peers: Arc<dyn berth_raft::Peers> = Arc::clone(peering.node.dialer()) as _;
        Box::pin(Replica::start_with_peers(
            replica_config,
            clock.clone(),
            Machine::default(),
            observer,
            peers,
            formation,
        ))
        .await
    } else {
        Box::pin(Replica::start_alone(replica_config, clock.clone(), Machine::default(), observer, formation)).await
    }
    .map_err(Error::Start)?;
    let colleagues: Arc<dyn agents::Colleagues> = Arc::clone(&peering.node) as _;
    let broker = Broker::new(replica.clone(), id, clock, links, journaled).with_colleagues(colleagues);
    let broker = Arc::new(broker);
    peering.node.serves(replica.clone(), Arc::clone(&broker));
    // What is begun here must not be begun again.
    member(&peering, &broker).await?;
    peering.has_log()?;
    // It writes into the same file from here on.
    let steward = cluster::steward::run(
        Arc::clone(&peering.node),
        replica.clone(),
        Arc::clone(&broker),
        peering.folder(),
        peering.stop(),
    );
    let steward = tokio::spawn(steward);

    let tls_folder = folder.join("tls");
    let is_used = tls_folder.join("ca.pem").exists();
    let offered = tls::export_authority(&tls_folder)?;
    let authority = shared::agree(&broker, &cluster_key, KeyPurpose::Authority, &offered).await?;
    tls::import_authority(&tls_folder, &authority, is_used)?;
    let pki = open_pki(tls_folder, config.names.clone()).await?;
    let (clients, agents) = (source_of(&config.clients), source_of(&config.agents.listener()));
    for source in [&clients, &agents] {
        source.require_hidden()?;
    }
    // Who enrols has no certificate yet, and desktop servers need none.
    let own = Roots { own_authority: true, files: Vec::new() };
    let client_tls = pki.server_config("clients", clients, &[b"h2", b"http/1.1"], ClientAuth::None)?;
    let agent_tls = pki.server_config("agents", agents, &[b"http/1.1"], ClientAuth::Optional(own))?;

    let opened = CancellationToken::new();
    let opening = vec![deeds::configured(id, config.settings()), Command::ReplicaStarted { replica: id }];
    let first = open(&broker, opening.clone()).await;
    match &first {
        Ok(()) => opened.cancel(),
        // Reads go on while the disk is full, at a start as at any other time.
        // And so they do while no majority is there.
        Err(error) if error.reason != UnavailableReason::NotServing => {
            tracing::warn!(%error, "the log takes nothing now; agents are let in when it does");
        }
        Err(error) => return Err(Error::FirstWrites((*error).into())),
    }
    let identity = Arc::new(
        Identity::start(Arc::clone(&broker), cluster_key, &folder, token_settings(&config))
            .await
            .map_err(Error::FirstWrites)?,
    );

    let client_port = Bound::bind(config.clients.listen)?.trusting(config.limits.trusted_proxies.clone());
    let agent_port = Bound::bind(config.agents.listen)?;
    let admin_socket = admin::AdminSocket::bind(&folder)?;
    let (client_address, agent_address) = (client_port.address(), agent_port.address());
    let gateway = &config.gateway;
    let gateway_port = gateway.enabled.then(|| Bound::bind(gateway.listen)).transpose()?;
    let gateway_address = gateway_port.as_ref().map(Bound::address);

    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    tasks.spawn(Arc::clone(&broker).keep_contact(shutdown.clone()));
    tasks.spawn(cluster::steward::miss(Arc::clone(&peering.node), replica, Arc::clone(&broker), shutdown.clone()));
    if first.is_err() {
        tasks.spawn(open_later(Arc::clone(&broker), opening, opened.clone(), shutdown.clone()));
    }
    let api = api::ApiState::new(Arc::clone(&broker), Arc::clone(&identity), api_settings(&config));
    let (notes, scribe) = notes::notes();
    tasks.spawn(Arc::clone(&identity).keep_keys(shutdown.clone()));
    // It ends when nobody does anything any more.
    let last_words = CancellationToken::new();
    tasks.spawn(scribe.write(Arc::clone(&broker), last_words.clone()));
    let api = api::router(api.ending_with(shutdown.clone()).noting(notes.clone()));
    let agents_router = agents::router(Agents {
        broker: Arc::clone(&broker),
        strangers: Arc::default(),
        proofs: Arc::clone(&identity) as Arc<dyn agents::Proofs>,
        authority: Arc::clone(pki.authority()),
        throttle: Throttle::new(config.limits.requests_per_second).map(Arc::new),
        notes: notes.clone(),
        authorization: config.agents.authorization,
        opened,
        shutdown: shutdown.clone(),
        tasks: tasks.clone(),
    });
    let mut servers = JoinSet::new();
    servers.spawn(client_port.serve(client_tls, api, config.clients.connections_max, shutdown.clone()));
    servers.spawn(agent_port.serve(agent_tls, agents_router, config.agents.connections_max, shutdown.clone()));
    if let Some(port) = gateway_port {
        let source = source_of(&gateway.listener());
        source.require_hidden()?;
        let asked = tls::gateways_of(gateway);
        let admits = gateway::Admits::from(&asked);
        let tls = pki.server_config("gateway", source, &[b"h2", b"http/1.1"], asked)?;
        let throttle = Throttle::new(config.limits.requests_per_second).map(Arc::new);
        let router =
            gateway::router(gateway::Gateway { admits, broker: Arc::clone(&broker), notes: notes.clone(), throttle });
        servers.spawn(port.serve(tls, router, gateway.connections_max, shutdown.clone()));
    }
    let node = Arc::clone(&peering.node);
    let (broker_of_doors, identity_of_doors) = (Arc::clone(&broker), Arc::clone(&identity));
    let doors =
        admin::Doors { broker: broker_of_doors, identity: identity_of_doors, node, pki: Arc::clone(&pki), notes };
    servers.spawn(admin_socket.serve(doors, shutdown.clone()));
    tasks.spawn(Arc::clone(&pki).keep(shutdown.clone()));
    tracing::info!(replica = %id, clients = %client_address, agents = %agent_address,
        gateways = gateway_address.map(tracing::field::display), "broker serves");

    Ok(Running {
        client_address,
        agent_address,
        ca_path: pki.ca_path().to_owned(),
        identity,
        broker,
        shutdown,
        last_words,
        servers,
        links: tasks,
        peering,
        steward,
    })
}

/// The resolver that tells the host's full name may take its time.
async fn open_pki(folder: PathBuf, names: Vec<String>) -> Result<Arc<Pki>, tls::TlsError> {
    let opening = tokio::task::spawn_blocking(move || Pki::open(&folder, &names));
    Ok(Arc::new(opening.await??))
}

/// Makes the data folder, for its owner alone.
pub fn make_data_folder(config: &Config) -> Result<(), FileError> {
    files::make_folder(&config.data_folder, 0o700)
}

pub(crate) fn replica_config(config: &Config, id: ReplicaId, starts: u64) -> berth_raft::Config {
    let folder = config.data_folder.join(cluster::identity::STORE);
    let cluster = &config.cluster;
    let new = berth_raft::Config::new(folder, berth_raft::ReplicaId(id.0));
    berth_raft::Config {
        election_timeout_ms: cluster.election_timeout_ms,
        heartbeat_ms: cluster.heartbeat_ms,
        snapshot_after_entries: cluster.snapshot_after_entries,
        // Who wants a short log gets one.
        keep_entries: new.keep_entries.min(cluster.snapshot_after_entries),
        request_timeout_ms: cluster.request_timeout_seconds * 1_000,
        // Grows with each start. Two copies of a folder that start equally often still differ: the
        // call of one must not be answered with what a call of the other came to.
        incarnation: (starts << 32) | u64::from(rand::random::<u32>()),
        formats: 1..=cluster.format_max,
        ..new
    }
}

/// Waits until the log says that this replica is a member, which takes a while
/// when it joins.
async fn member(peering: &Peering, broker: &Broker) -> Result<(), Error> {
    let mut unwelcome = peering.node.dialer().unwelcome();
    let mut told = false;
    while peering.node.members().is_empty() {
        if let Some(unwelcome) = unwelcome.borrow_and_update().clone() {
            return Err(Error::Unwelcome(unwelcome));
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!("waiting for the log of the cluster");
        }
        tokio::select! {
            () = tokio::time::sleep(MEMBER_POLL) => {}
            reason = broker.stopped() => return Err(Error::Stopped(reason)),
        }
    }
    Ok(())
}

/// Says what is said at each start. Whether the disk is full turns out only
/// when something is to be written; the answer then does not wait for room.
async fn open(broker: &Broker, opening: Vec<Command>) -> Result<(), Unavailable> {
    let full = async {
        while !matches!(broker.status().storage, StorageCondition::Full { .. }) {
            tokio::time::sleep(STORAGE_POLL).await;
        }
    };
    tokio::select! {
        said = broker.propose(opening) => said.map(drop),
        () = full => Err(Unavailable { reason: UnavailableReason::Storage, retry_after: OPENING_RETRY }),
    }
}

/// Says again, until the log takes it, what is said at each start. What was
/// given up before may be said as well, and then earlier; that does no harm.
async fn open_later(
    broker: Arc<Broker>,
    opening: Vec<Command>,
    opened: CancellationToken,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(OPENING_RETRY) => {}
            () = shutdown.cancelled() => return,
        }
        if broker.propose(opening.clone()).await.is_ok() {
            tracing::info!("the log takes writes again");
            return opened.cancel();
        }
    }
}

const fn token_settings(config: &Config) -> identity::TokenSettings {
    let config::Tokens { algorithm, access_seconds, connection_minutes, connection_single_use } = config.tokens;
    identity::TokenSettings {
        algorithm,
        access_lifetime: Duration::from_secs(access_seconds),
        connection_lifetime: Duration::from_secs(connection_minutes * 60),
        connection_single_use,
        issues_access: config.authorization.server,
    }
}

fn api_settings(config: &Config) -> api::ApiSettings {
    let config::Screenshots { width_max, height_max, format } = config.screenshots;
    api::ApiSettings {
        screenshots: api::Screenshots { width_max, height_max, format, ..api::Screenshots::default() },
        description_served: config.enable_api_yaml,
        authorization: config.authorization.enabled,
        autorun: api::Autorun {
            arguments_max: config.sessions.autorun_arguments_max,
            argument_chars_max: config.sessions.autorun_argument_length_max,
        },
        limits: config.limits.clone(),
        ..api::ApiSettings::default()
    }
}

impl Running {
    /// Serves until `end` completes or the replica stops by itself, then lets
    /// what is under way finish.
    pub async fn run_until(mut self, end: impl Future<Output = ()>) -> Result<(), Error> {
        let mut unwelcome = self.peering.node.dialer().unwelcome();
        let failure = tokio::select! {
            () = end => None,
            Ok(unwelcome) = unwelcome.wait_for(Option::is_some) => unwelcome.clone().map(Error::Unwelcome),
            reason = self.broker.stopped() => Some(Error::Stopped(reason)),
            // A server only ends on shutdown; if one does so by itself, the others must not go on alone.
            Some(_) = self.servers.join_next() => {
                Some(Error::Stopped(berth_raft::StopReason::Failed("a listener ended".to_owned())))
            }
        };
        tracing::info!("broker ends");
        // Before anything is refused here, so that others can take it.
        self.broker.hand_over().await;
        self.shutdown.cancel();
        while self.servers.join_next().await.is_some() {}
        self.last_words.cancel();
        self.links.close();
        self.links.wait().await;
        let stopped = self.broker.stop().await;
        self.peering.close().await;
        if let Err(error) = self.steward.await {
            tracing::warn!(%error, "the care for members did not end in order");
        }
        match (failure, stopped) {
            (Some(error), _) => Err(error),
            (None, Err(reason)) => Err(Error::Stopped(reason)),
            (None, Ok(())) => Ok(()),
        }
    }
}
