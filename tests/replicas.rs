//! Three replicas in one process, with agents that know all of them: what is
//! read where, and what becomes of agents and questions when a replica is cut
//! off.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use berth::agent::brokers::Address;
use berth::agent::config::DesktopKind;
use berth::agent::{self, Config};
use berth::broker::agents::{self, Agents, Colleagues, Links, Proofs, Ticket, report_missing};
use berth::broker::api::door::{AskError, Caller, Identity, Token, TokenError, Unavailable, VerifyError};
use berth::broker::api::{ApiSettings, ApiState, router};
use berth::broker::contact::Contact;
use berth::broker::core::Broker;
use berth::broker::listen::Bound;
use berth::broker::machine::Machine;
use berth::broker::notes::Notes;
use berth::broker::tls::{ClientAuth, Pki, Roots, Source};
use berth::domain::client::Grant;
use berth::domain::ids::StatementId;
use berth::domain::report::Report;
use berth::domain::{
    AgentInstance, ClientId, Command, Fleet, Millis, Outcome, ReplicaId, ServerId, Session, SessionId,
};
use berth::protocol::{Question, Reply};
use berth::secret::Secret;
use berth_raft::testing::LocalNetwork;
use berth_raft::{Replica, SystemClock};
use common::{DEADLINE, until};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

type Brokers = Arc<Mutex<BTreeMap<ReplicaId, Weak<Broker>>>>;

/// Questions from replica to replica, as far as the network carries them.
struct Corridor {
    brokers: Brokers,
    isolated: Isolated,
}

impl Colleagues for Corridor {
    fn ask<'a>(
        &'a self,
        replica: ReplicaId,
        server: &'a ServerId,
        question: Question,
    ) -> BoxFuture<'a, Result<Reply, AskError>> {
        let is_cut = self.isolated.lock().unwrap().contains_key(&replica);
        let broker = self.brokers.lock().unwrap().get(&replica).and_then(Weak::upgrade).filter(|_| !is_cut);
        Box::pin(async move {
            let broker = broker.ok_or(AskError::Unreachable)?;
            broker.answer_colleague(server, question).await
        })
    }
}

/// Who was cut off, and when.
type Isolated = Arc<Mutex<BTreeMap<ReplicaId, Instant>>>;

/// Everybody may do everything.
struct Anybody;

impl Identity for Anybody {
    async fn token(&self, _: &ClientId, _: &str) -> Result<Token, TokenError> {
        Err(TokenError::InvalidClient)
    }

    fn verify(&self, bearer: &str) -> Result<Caller, VerifyError> {
        let client = ClientId::new(bearer).map_err(|_| VerifyError::Invalid)?;
        Ok(Caller { client, grant: Grant::default() })
    }

    fn connection_token(&self, session: &Session, user: &str) -> Result<String, Unavailable> {
        Ok(format!("opens {} for {user}", session.id))
    }
}

/// What agents enrol with.
const STATEMENT: &str = "a-statement-of-sixteen-bytes-or-more";

/// There is one statement, and no desktop server asks here.
struct OneStatement;

fn statement() -> StatementId {
    StatementId::new("the-statement").unwrap()
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

/// One replica with everything that it serves.
struct Site {
    broker: Arc<Broker>,
    agents: SocketAddr,
    api: Router,
    shutdown: CancellationToken,
    serving: JoinSet<()>,
}

struct Cluster {
    network: LocalNetwork,
    isolated: Isolated,
    sites: BTreeMap<ReplicaId, Site>,
    folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (network, isolated, brokers) = (LocalNetwork::new(), Isolated::default(), Brokers::default());
        let pki = Pki::open(&folder.path().join("tls"), &[]).unwrap();
        Secret::new(STATEMENT.to_owned()).write(&folder.path().join("software-statement")).unwrap();
        let mut cluster = Self { network, isolated, sites: BTreeMap::new(), folder };
        for id in (1..=3).map(ReplicaId) {
            let site = cluster.start_site(id, &pki, &brokers).await;
            brokers.lock().unwrap().insert(id, Arc::downgrade(&site.broker));
            cluster.sites.insert(id, site);
        }
        cluster.leader().await;
        let issue = Command::IssueStatement { id: statement() };
        let broker = &cluster.site(1).broker;
        until("the log takes the statement", || async { broker.propose(vec![issue.clone()]).await.ok() }).await;
        cluster
    }

    async fn start_site(&self, id: ReplicaId, pki: &Pki, brokers: &Brokers) -> Site {
        let raft_id = berth_raft::ReplicaId(id.0);
        let mut config = berth_raft::Config::new(self.folder.path().join(format!("replica-{id}")), raft_id);
        // Patient, since a busy machine runs all three.
        config.election_timeout_ms = 800;
        config.heartbeat_ms = 250;
        let links = Arc::new(Links::default());
        let (journal, journaled) = watch::channel(None);
        let observer = {
            let links = Arc::clone(&links);
            Arc::new(move |machine: &Machine, events: &[berth::domain::Event]| {
                links.notice(events);
                journal.send_replace(machine.0.journal().last());
            })
        };
        let (clock, peers) = (Arc::new(SystemClock), self.network.peers_of(raft_id));
        let members = (1..=3).map(|id| (berth_raft::ReplicaId(id), berth_raft::Member::default())).collect();
        let members = berth_raft::Formation::Members(members);
        let started =
            Box::pin(Replica::start_with_peers(config, clock.clone(), Machine::default(), observer, peers, members))
                .await;
        let replica = started.unwrap();
        self.network.connect(&replica);
        let corridor = Corridor { brokers: Arc::clone(brokers), isolated: Arc::clone(&self.isolated) };
        let broker = Arc::new(Broker::new(replica, id, clock, links, journaled).with_colleagues(Arc::new(corridor)));

        let (shutdown, opened) = (CancellationToken::new(), CancellationToken::new());
        opened.cancel();
        let api = router(ApiState::new(Arc::clone(&broker), Arc::new(Anybody), ApiSettings::default()));
        let agents_router = agents::router(Agents {
            strangers: Arc::default(),
            proofs: Arc::new(OneStatement),
            authority: Arc::clone(pki.authority()),
            throttle: None,
            notes: Notes::unread(),
            authorization: true,
            broker: Arc::clone(&broker),
            opened,
            shutdown: shutdown.clone(),
            tasks: TaskTracker::new(),
        });
        let auth = ClientAuth::Optional(Roots { own_authority: true, files: Vec::new() });
        let tls = pki.server_config("agents", Source::OwnAuthority, &[b"http/1.1"], auth).unwrap();
        let port = Bound::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let agents = port.address();
        let mut serving = JoinSet::new();
        serving.spawn(port.serve(tls, agents_router, 100, shutdown.clone()));
        serving.spawn(Arc::clone(&broker).keep_contact(shutdown.clone()));
        let last_heard = {
            let (broker, isolated) = (Arc::clone(&broker), Arc::clone(&self.isolated));
            move || {
                let silent = isolated.lock().unwrap().clone();
                if !broker.status().is_leader() || silent.contains_key(&id) {
                    return BTreeMap::new();
                }
                let ago = |id| silent.get(&id).map_or(Duration::ZERO, Instant::elapsed);
                (1..=3).map(ReplicaId).map(|id| (id, ago(id))).collect()
            }
        };
        serving.spawn(report_missing(Arc::clone(&broker), last_heard, shutdown.clone()));
        Site { broker, agents, api, shutdown, serving }
    }

    /// Waits until some replica leads and knows that it does.
    async fn leader(&self) {
        let site = self.site(1);
        until("a leader", || async { site.broker.propose(Vec::new()).await.ok() }).await;
    }

    /// Waits until all replicas judge their contact so.
    async fn all(&self, expected: Contact) {
        for site in self.sites.values() {
            let mut contact = site.broker.contact();
            timeout(DEADLINE, contact.wait_for(|contact| *contact == expected)).await.unwrap().unwrap();
        }
    }

    fn site(&self, number: u64) -> &Site {
        &self.sites[&ReplicaId(number)]
    }

    fn isolate(&self, number: u64) {
        self.isolated.lock().unwrap().insert(ReplicaId(number), Instant::now());
        self.network.isolate(berth_raft::ReplicaId(number));
    }

    fn heal(&self) {
        self.isolated.lock().unwrap().clear();
        self.network.heal();
    }

    /// An agent that knows these replicas.
    fn agent(&self, replicas: &[u64]) -> Agent {
        let folder = tempfile::tempdir().unwrap();
        let brokers = replicas.iter().map(|number| Address::parse(&self.site(*number).agents.to_string(), 1).unwrap());
        let config = Config {
            brokers: brokers.collect(),
            ca_file: Some(self.folder.path().join("tls/ca.pem")),
            desktops: DesktopKind::Simulated,
            max_concurrent_sessions_per_user: None,
            ..Config::new("", &self.folder.path().join("software-statement"), &folder.path().join("data"))
        };
        let shutdown = CancellationToken::new();
        Agent { task: tokio::spawn(agent::run(config, shutdown.clone())), shutdown, _folder: folder }
    }

    async fn stop(mut self) {
        for site in self.sites.values() {
            site.shutdown.cancel();
        }
        for site in self.sites.values_mut() {
            while let Some(ended) = site.serving.join_next().await {
                ended.unwrap();
            }
            site.broker.stop().await.unwrap();
        }
    }
}

struct Agent {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), agent::Error>>,
    _folder: tempfile::TempDir,
}

impl Agent {
    async fn stop(self) {
        self.shutdown.cancel();
        timeout(DEADLINE, self.task).await.expect("the agent did not end").unwrap().unwrap();
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Site {
    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, "Bearer portal")
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.api.clone().oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = serde_json::from_slice(&to_bytes(body, usize::MAX).await.unwrap()).unwrap();
        Answer { status: head.status, headers: head.headers, body }
    }

    async fn create(&self) -> Answer {
        let item = json!([{ "Name": "test", "Owner": "ann", "Type": "VIRTUAL" }]);
        let answer = self.call("POST", "/createSessions", &[], item).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        answer
    }

    async fn picture(&self, session: &str) -> Value {
        self.call("POST", "/getSessionScreenshots", &[], json!([{ "SessionId": session }])).await.body
    }

    /// Waits until this replica knows something of the fleet.
    async fn knows<T>(&self, what: &str, look: impl Fn(&Fleet) -> Option<T>) -> T {
        until(what, || std::future::ready(look(&self.broker.fleet()))).await
    }

    /// Waits until the only server is connected to another replica than one;
    /// to which, and with what number.
    async fn linked_not_by(&self, other: u64) -> (ReplicaId, u64) {
        self.knows("the agent is linked", |fleet| {
            let link = &fleet.servers().next()?.link;
            let holder = link.held_by().filter(|holder| *holder != ReplicaId(other) && link.is_up())?;
            Some((holder, link.epoch().0))
        })
        .await
    }

    /// Whether its agent stays for as long as it takes one to be told of a lost
    /// majority, to look around and to be refused.
    async fn keeps_its_agent(&self) -> bool {
        for _ in 0..30 {
            if self.broker.links().count() != 1 {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        true
    }
}

fn session_id(created: &Answer) -> String {
    created.body["SuccessfulList"][0]["Id"].as_str().unwrap_or_else(|| panic!("{}", created.body)).to_owned()
}

fn is_ready(fleet: &Fleet, id: &str) -> Option<()> {
    let session = fleet.session(&SessionId::new(id).unwrap())?;
    (fleet.state_of(session) == berth::domain::session::SessionState::Ready).then_some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_through_one_replica_is_read_through_all_and_agents_are_asked_through_all() {
    let cluster = Cluster::start().await;
    let agent = cluster.agent(&[2]);
    let (holder, _) = cluster.site(1).linked_not_by(0).await;
    assert_eq!(holder, ReplicaId(2));
    let created = cluster.site(3).create().await;
    let id = session_id(&created);
    let index = created.header("berth-index").unwrap();
    for site in cluster.sites.values() {
        for headers in [&[][..], &[("berth-min-index", index)]] {
            let seen = site.call("POST", "/describeSessions", headers, json!({ "SessionIds": [id] })).await;
            assert_eq!(seen.body["Sessions"].as_array().unwrap().len(), 1, "{}", seen.body);
            assert!(seen.header("berth-index").unwrap().parse::<u64>().unwrap() >= index.parse().unwrap());
        }
    }
    for site in cluster.sites.values() {
        site.knows("it is ready", |fleet| is_ready(fleet, &id)).await;
        let pictures = site.picture(&id).await;
        assert_eq!(pictures["SuccessfulList"][0]["SessionScreenshot"]["SessionId"], json!(id), "{pictures}");
    }
    agent.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_cut_off_says_so_and_its_agents_go_elsewhere() {
    let cluster = Cluster::start().await;
    let agent = cluster.agent(&[1, 2, 3]);
    let (holder, epoch) = cluster.site(1).linked_not_by(0).await;
    let id = session_id(&cluster.site(1).create().await);
    let (cut, other) = (cluster.site(holder.0), cluster.site(holder.0 % 3 + 1));
    other.knows("it is ready", |fleet| is_ready(fleet, &id)).await;
    cut.knows("it is ready", |fleet| is_ready(fleet, &id)).await;
    cluster.isolate(holder.0);

    let (elsewhere, later) = other.linked_not_by(holder.0).await;
    assert!(later > epoch, "{later} through {elsewhere}");
    assert!(is_ready(&other.broker.fleet(), &id).is_some(), "its session went on");
    until("a leader of the others", || async { other.broker.propose(Vec::new()).await.ok() }).await;
    let pictures = other.picture(&id).await;
    assert_eq!(pictures["SuccessfulList"].as_array().map(Vec::len), Some(1), "{pictures}");

    // Who is cut off tells what it knows, marked, and does nothing.
    let mut contact = cut.broker.contact();
    timeout(DEADLINE, contact.wait_for(|contact| *contact == Contact::GivenUp)).await.unwrap().unwrap();
    let stale = cut.call("POST", "/describeSessions", &[], json!({})).await;
    assert_eq!((stale.status, stale.header("berth-stale")), (StatusCode::OK, Some("true")));
    assert_eq!(stale.body["Sessions"].as_array().unwrap().len(), 1);
    for (path, body) in [
        ("/deleteSessions", json!([{ "SessionId": id, "Owner": "ann" }])),
        ("/getSessionScreenshots", json!([{ "SessionId": id }])),
    ] {
        let refused = cut.call("POST", path, &[], body).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {}", refused.body);
        assert!(refused.header("retry-after").is_some());
    }
    // Nor does it take agents: one that knows no other stays outside.
    let outside = cluster.agent(&[holder.0]);
    until("it has no agents", || async { (cut.broker.links().count() == 0).then_some(()) }).await;

    cluster.heal();
    timeout(DEADLINE, contact.wait_for(|contact| *contact == Contact::Kept)).await.unwrap().unwrap();
    let fresh = cut.call("POST", "/describeSessions", &[], json!({})).await;
    assert_eq!((fresh.status, fresh.header("berth-stale")), (StatusCode::OK, None));
    other.knows("the one outside is let in", |fleet| (fleet.server_count() == 2).then_some(())).await;
    for agent in [agent, outside] {
        agent.stop().await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_stay_where_they_are_while_no_replica_has_a_majority() {
    let cluster = Cluster::start().await;
    let agent = cluster.agent(&[1, 2, 3]);
    // On a busy machine one of them may notice so late that the agent goes there.
    let mut has_stayed = false;
    for _ in 0..3 {
        let (holder, _) = cluster.site(1).linked_not_by(0).await;
        (1..=3).for_each(|id| cluster.isolate(id));
        cluster.all(Contact::GivenUp).await;
        has_stayed = cluster.site(holder.0).keeps_its_agent().await;
        cluster.heal();
        cluster.all(Contact::Kept).await;
        if has_stayed {
            break;
        }
    }
    assert!(has_stayed, "its connection ended");
    // A replica that was found again a moment before its own may have it now.
    let id = session_id(&cluster.site(1).create().await);
    cluster.site(1).knows("it is ready", |fleet| is_ready(fleet, &id)).await;
    agent.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_hears_of_a_replica_that_is_not_heard_of_and_others_may_come_in_place_of_its_agents() {
    let cluster = Cluster::start().await;
    let server = ServerId::new("desk").unwrap();
    let hello = |instance: &str, via: u64| Command::ConnectAgent {
        server: server.clone(),
        instance: AgentInstance::new(instance).unwrap(),
        via: ReplicaId(via),
        report_interval: Millis::from_secs(600),
        report: Report::default(),
    };
    let outcomes = cluster.site(3).broker.propose(vec![hello("first run", 3)]).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::Welcome { .. }]), "{outcomes:?}");
    cluster.isolate(3);
    // Its three missed reports would take half an hour.
    cluster
        .site(1)
        .knows("its connection is over", |fleet| fleet.server(&server)?.link.held_by().is_none().then_some(()))
        .await;
    let outcomes = cluster.site(1).broker.propose(vec![hello("second run", 1)]).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::Welcome { .. }]), "{outcomes:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_closes_connections_that_the_log_took_for_broken_and_the_agents_come_back() {
    let cluster = Cluster::start().await;
    let agent = cluster.agent(&[2]);
    let (_, epoch) = cluster.site(1).linked_not_by(0).await;
    let id = session_id(&cluster.site(1).create().await);
    cluster.site(1).knows("it is ready", |fleet| is_ready(fleet, &id)).await;
    // As if nothing had been heard of it for a while; its agents report once in
    // half a minute.
    cluster.site(1).broker.propose(vec![Command::ReplicaSilent { replica: ReplicaId(2) }]).await.unwrap();
    let later = cluster
        .site(1)
        .knows("the agent is back", |fleet| {
            let link = &fleet.servers().next()?.link;
            (link.is_up() && link.epoch().0 > epoch).then_some(link.epoch().0)
        })
        .await;
    assert!(later > epoch);
    assert!(is_ready(&cluster.site(1).broker.fleet(), &id).is_some(), "its session went on");
    agent.stop().await;
    cluster.stop().await;
}
