//! The broker's host: the product's ports with their limits and TLS, its
//! routers, its links to agents, and behind them one replica that has its log
//! on a simulated disk.
//!
//! Two things are the harness's own. Access tokens are checked without
//! signatures: secrets are hashed by a thread, which simulated time does not wait
//! for. And ids of sessions are numbers, so that a world repeats itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth::broker::agents::{self, Agents, Links, Proofs, Ticket};
use berth::broker::api::door::{self, AskError, Caller, Proposed, Token, TokenError, Unavailable, VerifyError, View};
use berth::broker::api::{self, ApiSettings, ApiState};
use berth::broker::config::Listener;
use berth::broker::core::Broker;
use berth::broker::listen::Bound;
use berth::broker::machine::Machine;
use berth::broker::notes::Notes;
use berth::broker::tls::{Authority, ClientAuth, Pki, Roots, Source, Tls};
use berth::domain::client::Grant;
use berth::domain::ids::StatementId;
use berth::domain::journal::Position;
use berth::domain::{ClientId, Command, Event, LogIndex, ReplicaId, ServerId, Session, Settings, Timestamp};
use berth::protocol::{Question, Reply};
use berth::secret::Secret;
use berth_raft::testing::simulation::with_disk;
use berth_raft::{Clock, Config, Formation, Member, Replica, UnixMillis};
use berth_storage::memory::Disk;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::net::Port;
use super::world::World;
use super::{AGENT_PORT, BROKER, CLIENT_PORT, Moment, PORTAL};

/// What agents enrol with.
const STATEMENT: &str = "a-statement-of-sixteen-bytes-or-more";

/// What outlives the broker's processes.
pub struct Site {
    disk: Disk,
    folder: PathBuf,
    client_tls: Tls,
    agent_tls: Tls,
    authority: Arc<Authority>,
    starts: AtomicU64,
}

impl Site {
    /// Its certificates and secrets, in a folder.
    pub fn prepare(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.join(BROKER);
        std::fs::create_dir_all(&folder)?;
        Secret::new(STATEMENT.to_owned()).write(&folder.join("software-statement"))?;
        let pki = Pki::open(&folder.join("tls"), &[BROKER.to_owned()])?;
        let agents_auth = ClientAuth::Optional(Roots { own_authority: true, files: Vec::new() });
        Ok(Self {
            disk: Disk::new(),
            client_tls: pki.server_config("clients", Source::OwnAuthority, &[b"h2", b"http/1.1"], ClientAuth::None)?,
            agent_tls: pki.server_config("agents", Source::OwnAuthority, &[b"http/1.1"], agents_auth)?,
            authority: Arc::clone(pki.authority()),
            folder,
            starts: AtomicU64::new(0),
        })
    }

    /// What agents enrol with.
    pub fn statement_file(&self) -> PathBuf {
        self.folder.join("software-statement")
    }

    /// The authority that signed its certificates.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("tls/ca.pem")
    }

    /// Its processes died; what was written is on the disk.
    pub fn died(&self) {
        self.disk.kill();
    }

    /// It lost its power: what was not synced is gone.
    pub fn lost_power(&self, world: &World) {
        self.disk.kill();
        self.disk.cut_power(&mut |limit| world.dice.below(limit));
    }
}

/// The time in the simulation.
#[derive(Debug, Default)]
struct SimulatedClock(AtomicU64);

impl Clock for SimulatedClock {
    fn now(&self) -> UnixMillis {
        // A thread beside the simulation is told what it was last.
        if let Some(since_1970) = turmoil::since_epoch() {
            self.0.store(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        UnixMillis(self.0.load(Ordering::Relaxed))
    }

    fn sleep_until(&self, at: UnixMillis) -> BoxFuture<'_, ()> {
        async move {
            while let left @ 1.. = at.0.saturating_sub(self.now().0) {
                sleep(Duration::from_millis(left)).await;
            }
        }
        .boxed()
    }
}

/// The broker's door, with numbers for ids.
struct Core {
    broker: Arc<Broker>,
    world: Arc<World>,
}

impl door::Core for Core {
    async fn propose(&self, commands: Vec<Command>) -> Result<Proposed, Unavailable> {
        let proposed = door::Core::propose(&*self.broker, commands).await;
        self.world.happens(PORTAL, Moment::Proposed);
        proposed
    }

    async fn read(&self) -> Result<View, Unavailable> {
        door::Core::read(&*self.broker).await
    }

    fn local(&self) -> View {
        door::Core::local(&*self.broker)
    }

    async fn applied(&self, index: LogIndex) {
        door::Core::applied(&*self.broker, index).await;
    }

    fn is_cut_off(&self) -> bool {
        door::Core::is_cut_off(&*self.broker)
    }

    async fn journaled_after(&self, position: Position) {
        door::Core::journaled_after(&*self.broker, position).await;
    }

    async fn ask(&self, server: &ServerId, question: Question) -> Result<Reply, AskError> {
        door::Core::ask(&*self.broker, server, question).await
    }

    fn replica(&self) -> ReplicaId {
        self.broker.id()
    }

    fn new_id(&self) -> String {
        format!("00000000-0000-4000-8000-{:012}", self.world.next_session())
    }

    fn now(&self) -> Timestamp {
        self.broker.now()
    }
}

/// Tokens that say whose they are.
struct Names;

impl door::Identity for Names {
    async fn token(&self, client: &ClientId, _secret: &str) -> Result<Token, TokenError> {
        Ok(Token { access_token: client.to_string(), expires_in: Duration::from_hours(1) })
    }

    fn verify(&self, bearer: &str) -> Result<Caller, VerifyError> {
        let client = ClientId::new(bearer).map_err(|_| VerifyError::Invalid)?;
        Ok(Caller { client, grant: Grant::default() })
    }

    fn connection_token(&self, session: &Session, user: &str) -> Result<String, Unavailable> {
        Ok(format!("{} for {user}", session.id))
    }
}

/// There is one statement, and no desktop server asks here.
struct OneStatement;

fn statement() -> StatementId {
    StatementId::new("the-statement").expect("valid")
}

impl Proofs for OneStatement {
    fn statement(&self, text: &str) -> Option<StatementId> {
        (text == STATEMENT).then(statement)
    }

    fn ticket(&self, _: &str) -> Result<Ticket, String> {
        Err("nobody connects here".to_owned())
    }

    fn spend<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

/// What runs on the host, from its start to its death.
pub async fn live(world: Arc<World>) -> turmoil::Result {
    let site = &world.site;
    let starts = site.starts.fetch_add(1, Ordering::Relaxed) + 1;
    world.note("the broker starts");
    let id = ReplicaId(1);
    let links = Arc::new(Links::default());
    let clock: Arc<dyn Clock> = Arc::new(SimulatedClock::default());
    let (journal, journaled) = watch::channel(None);
    let observer = {
        let links = Arc::clone(&links);
        Arc::new(move |machine: &Machine, events: &[Event]| {
            links.notice(events);
            let last = machine.0.journal().last();
            journal.send_if_modified(|known| std::mem::replace(known, last) != last);
        })
    };
    let config = Config { incarnation: starts, ..Config::new("/simulated", berth_raft::ReplicaId(id.0)) };
    let formation = Formation::Members(BTreeMap::from([(config.replica, Member::default())]));
    let starting = Replica::start_alone(config, Arc::clone(&clock), Machine::default(), observer, formation);
    let replica = with_disk(site.disk.clone(), Box::pin(starting)).await?;
    let broker = Arc::new(Broker::new(replica, id, clock, links, journaled));
    let opening = [
        Command::Configure(Settings::default()),
        Command::ReplicaStarted { replica: id },
        Command::IssueStatement { id: statement() },
    ];
    broker.propose(opening.to_vec()).await?;

    let (opened, shutdown, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
    opened.cancel();
    tasks.spawn(Arc::clone(&broker).keep_contact(shutdown.clone()));
    let core = Arc::new(Core { broker: Arc::clone(&broker), world: Arc::clone(&world) });
    let state = ApiState::new(core, Arc::new(Names), ApiSettings::default());
    let api = api::router(state.ending_with(shutdown.clone()));
    let agents = agents::router(Agents {
        broker,
        strangers: Arc::default(),
        proofs: Arc::new(OneStatement),
        authority: Arc::clone(&site.authority),
        throttle: None,
        notes: Notes::unread(),
        authorization: true,
        opened,
        shutdown: shutdown.clone(),
        tasks,
    });
    let connections_max = world.shape.connections_max;
    let [clients_serve, agents_serve] = [
        (CLIENT_PORT, site.client_tls.clone(), api, connections_max),
        (AGENT_PORT, site.agent_tls.clone(), agents, Listener::default().connections_max),
    ]
    .map(|(port, tls, router, connections_max)| {
        let (world, shutdown) = (&world, shutdown.clone());
        async move {
            let (listener, address) = Port::bind(port, world).await?;
            Bound::of(listener, address).serve(tls, router, connections_max, shutdown).await;
            Ok::<_, std::io::Error>(())
        }
    });
    world.note("the broker serves");
    tokio::try_join!(clients_serve, agents_serve)?;
    Ok(())
}
