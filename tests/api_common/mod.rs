//! A fleet in memory behind the real router: what the API's tests share.

#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, Response, StatusCode, header};
use berth::broker::api::door::{
    AskError, Caller, Core, Identity, Proposed, Token, TokenError, Unavailable, UnavailableReason, VerifyError, View,
};
use berth::broker::api::{ApiSettings, ApiState, router};
use berth::broker::notes::{Scribe, notes};
use berth::domain::audit::{AuditRecord, verify};
use berth::domain::fleet::Stamp;
use berth::domain::host::{
    Aws, Cpu, Endpoint, EndpointProtocol, Gpu, Health, HostFacts, HostLoad, Limits, LoadAverage, Os, OsFamily, Usage,
};
use berth::domain::journal::Position;
use berth::domain::report::{Inventory, Report, ReportedSession};
use berth::domain::{
    Action, AgentInstance, ClientId, Command, Epoch, Event, Fleet, InstructionId, LogIndex, Millis, Outcome, Owner,
    ReplicaId, ServerId, Session, SessionId, SessionKind, Timestamp,
};
use berth::protocol::{Image, ImageFormat, Question, Reply};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub const CLIENT: &str = "portal";
pub const SECRET: &str = "s3cret:with+odd%20signs";

/// A log that grows and the fleet that it makes.
struct Log {
    fleet: Fleet,
    index: u64,
    at: u64,
}

impl Log {
    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let stamp = Stamp { index: LogIndex(self.index), at: Timestamp(self.at) };
        self.fleet.advance(stamp);
        self.fleet.apply(stamp, command).outcome
    }
}

/// Everything behind the router.
pub struct World {
    log: Mutex<Log>,
    replies: Mutex<BTreeMap<ServerId, Result<Reply, AskError>>>,
    pub questions: Mutex<Vec<(ServerId, Question)>>,
    asking: AtomicUsize,
    pub asking_max: AtomicUsize,
    pub proposals: AtomicUsize,
    pub has_no_quorum: AtomicBool,
    /// As much waits for the log as may.
    pub is_overloaded: AtomicBool,
    /// Reads wait for ever: nobody knows yet that there is no majority.
    pub reads_hang: AtomicBool,
    /// It is known that reads would wait in vain.
    pub is_cut_off: AtomicBool,
    grown: watch::Sender<LogIndex>,
    pub is_panicking: AtomicBool,
    pub tokens_are_refused: AtomicBool,
    journaled: watch::Sender<Option<Position>>,
    /// What is proposed happens, and its outcome is lost.
    pub loses_outcomes: AtomicBool,
    /// What is proposed waits until it is released.
    pub is_holding: AtomicBool,
    pub held: Notify,
    pub released: Notify,
    ids: AtomicU64,
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            log: Mutex::new(Log { fleet: Fleet::default(), index: 0, at: 1_601_979_331_633 }),
            replies: Mutex::default(),
            questions: Mutex::default(),
            asking: AtomicUsize::new(0),
            asking_max: AtomicUsize::new(0),
            proposals: AtomicUsize::new(0),
            has_no_quorum: AtomicBool::new(false),
            is_overloaded: AtomicBool::new(false),
            reads_hang: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
            grown: watch::Sender::new(LogIndex(0)),
            is_panicking: AtomicBool::new(false),
            tokens_are_refused: AtomicBool::new(false),
            journaled: watch::Sender::new(None),
            loses_outcomes: AtomicBool::new(false),
            is_holding: AtomicBool::new(false),
            held: Notify::new(),
            released: Notify::new(),
            ids: AtomicU64::new(0),
        })
    }

    pub fn apply(&self, command: Command) -> Outcome {
        let outcome = self.log.lock().unwrap().apply(command);
        self.announce();
        outcome
    }

    /// Tells those who follow the journal how far it goes.
    fn announce(&self) {
        let fleet = self.fleet();
        self.journaled.send_replace(fleet.journal().last());
        self.grown.send_replace(fleet.applied());
    }

    pub fn fleet(&self) -> Fleet {
        self.log.lock().unwrap().fleet.clone()
    }

    /// Lets time pass.
    pub fn wait(&self, span: Millis) {
        let mut log = self.log.lock().unwrap();
        log.at += span.0;
        log.index += 1;
        let stamp = Stamp { index: LogIndex(log.index), at: Timestamp(log.at) };
        log.fleet.advance(stamp);
        drop(log);
        self.announce();
    }

    /// Connects a server with these sessions on it.
    pub fn connect(&self, id: &str, facts: HostFacts, sessions: Vec<ReportedSession>) -> Epoch {
        let report = Report {
            facts: Some(facts),
            load: Some(full_load()),
            health: Some(Health::Healthy),
            sessions: Some(Inventory::Full(sessions)),
        };
        let outcome = self.apply(Command::ConnectAgent {
            server: server_id(id),
            instance: AgentInstance::new(id).unwrap(),
            via: ReplicaId(1),
            report_interval: Millis::from_secs(30),
            report,
        });
        match outcome {
            Outcome::Welcome { epoch } => epoch,
            other => panic!("not connected: {other:?}"),
        }
    }

    /// The agent of a server does all it was told and reports it.
    pub fn obey(&self, server: &str, epoch: Epoch) {
        let server = server_id(server);
        let instructions: Vec<_> = self.fleet().outbox(&server).cloned().collect();
        for instruction in instructions {
            let changes = match &instruction.action {
                Action::CreateSession { session, spec } => Inventory::Changes {
                    changed: vec![ReportedSession {
                        name: spec.name.clone(),
                        owner: spec.owner.clone(),
                        kind: spec.kind,
                        clients_max: spec.clients_max,
                        storage_root: spec.storage_root.clone(),
                        created_by: Some(instruction.id),
                        ..host_session(session.as_str(), "nobody")
                    }],
                    gone: Vec::new(),
                },
                Action::CloseSession { session } => Inventory::Changes {
                    changed: Vec::new(),
                    gone: vec![berth::domain::report::EndedSession { id: session.clone(), reason: None }],
                },
                Action::SetPermissions { .. } => Inventory::Changes { changed: Vec::new(), gone: Vec::new() },
            };
            let report = Report { sessions: Some(changes), ..Report::default() };
            self.apply(Command::Report { server: server.clone(), epoch, report });
            self.answer(&server, epoch, instruction.id);
        }
    }

    fn answer(&self, server: &ServerId, epoch: Epoch, instruction: InstructionId) {
        let answer = berth::domain::instruction::Answer::Done;
        self.apply(Command::Answer { server: server.clone(), epoch, instruction, answer });
    }

    /// What the agent of a server will answer to questions.
    pub fn reply(&self, server: &str, reply: Result<Reply, AskError>) {
        self.replies.lock().unwrap().insert(server_id(server), reply);
    }

    pub fn api(self: &Arc<Self>) -> Api {
        self.api_with(ApiSettings::default())
    }

    pub fn api_with(self: &Arc<Self>, settings: ApiSettings) -> Api {
        self.api_until(settings, CancellationToken::new())
    }

    /// An API whose notes for the audit somebody brings to the log.
    pub fn api_noting(self: &Arc<Self>) -> (Api, Scribe) {
        let (notes, scribe) = notes();
        let state = ApiState::new(Arc::clone(self), Arc::new(Keys(Arc::clone(self))), ApiSettings::default());
        (Api(router(state.noting(notes))), scribe)
    }

    /// Brings what was noted to the log, at once.
    pub async fn write_down(self: &Arc<Self>, scribe: Scribe) {
        let ended = CancellationToken::new();
        ended.cancel();
        scribe.write(Arc::clone(self), ended).await;
    }

    /// The records of the audit. They are as they were written.
    pub fn audit(&self) -> Vec<AuditRecord> {
        let fleet = self.fleet();
        let records = fleet.journal().after(None).filter_map(|record| match &record.event {
            Event::Audited(record) => Some((**record).clone()),
            _ => None,
        });
        let records: Vec<AuditRecord> = records.collect();
        assert_eq!(verify(&records).unwrap().unwrap_or_default(), *fleet.audit());
        records
    }

    /// An API that ends its streams when a token is cancelled.
    pub fn api_until(self: &Arc<Self>, settings: ApiSettings, ending: CancellationToken) -> Api {
        let state = ApiState::new(Arc::clone(self), Arc::new(Keys(Arc::clone(self))), settings);
        Api(router(state.ending_with(ending)))
    }
}

const NO_QUORUM: Unavailable =
    Unavailable { reason: UnavailableReason::NoQuorum, retry_after: Duration::from_millis(1500) };

const BUSY: Unavailable = Unavailable { reason: UnavailableReason::Busy, retry_after: Duration::from_secs(1) };

const OUTCOME_UNKNOWN: Unavailable =
    Unavailable { reason: UnavailableReason::OutcomeUnknown, retry_after: Duration::from_secs(1) };

impl Core for World {
    async fn propose(&self, commands: Vec<Command>) -> Result<Proposed, Unavailable> {
        assert!(!self.is_panicking.load(Ordering::Relaxed), "the secret inside of the broker");
        if self.has_no_quorum.load(Ordering::Relaxed) {
            return Err(NO_QUORUM);
        }
        if self.is_overloaded.load(Ordering::Relaxed) {
            return Err(BUSY);
        }
        if self.is_holding.load(Ordering::Relaxed) {
            self.held.notify_one();
            self.released.notified().await;
        }
        self.proposals.fetch_add(1, Ordering::Relaxed);
        let outcomes = commands.into_iter().map(|command| self.apply(command)).collect();
        if self.loses_outcomes.load(Ordering::Relaxed) {
            return Err(OUTCOME_UNKNOWN);
        }
        Ok(Proposed { index: self.fleet().applied(), outcomes })
    }

    async fn propose_patiently(&self, commands: Vec<Command>) -> Result<Proposed, Unavailable> {
        match Core::propose(self, commands).await {
            // It is found out.
            Err(OUTCOME_UNKNOWN) => Ok(Proposed { index: self.fleet().applied(), outcomes: Vec::new() }),
            proposed => proposed,
        }
    }

    async fn read(&self) -> Result<View, Unavailable> {
        if self.reads_hang.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if self.has_no_quorum.load(Ordering::Relaxed) { Err(NO_QUORUM) } else { Ok(Core::local(self)) }
    }

    fn local(&self) -> View {
        let fleet = Arc::new(self.fleet());
        View { index: fleet.applied(), fleet }
    }

    async fn applied(&self, index: LogIndex) {
        self.grown.subscribe().wait_for(|grown| *grown >= index).await.unwrap();
    }

    fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Ordering::Relaxed)
    }

    async fn journaled_after(&self, position: Position) {
        let mut journaled = self.journaled.subscribe();
        journaled.wait_for(|last| *last > Some(position)).await.unwrap();
    }

    async fn ask(&self, server: &ServerId, question: Question) -> Result<Reply, AskError> {
        // Counts down also when the caller gives up.
        struct Asking<'a>(&'a AtomicUsize);
        impl Drop for Asking<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let now = self.asking.fetch_add(1, Ordering::Relaxed) + 1;
        let _asking = Asking(&self.asking);
        self.asking_max.fetch_max(now, Ordering::Relaxed);
        self.questions.lock().unwrap().push((server.clone(), question));
        tokio::task::yield_now().await;
        let reply = self.replies.lock().unwrap().get(server).cloned();
        match reply {
            Some(reply) => reply,
            // An agent that never answers.
            None => std::future::pending().await,
        }
    }

    fn replica(&self) -> ReplicaId {
        ReplicaId(1)
    }

    fn new_id(&self) -> String {
        format!("00000000-0000-4000-8000-{:012}", self.ids.fetch_add(1, Ordering::Relaxed))
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.log.lock().unwrap().at)
    }
}

/// Tokens of the form `good:CLIENT`.
pub struct Keys(Arc<World>);

impl Identity for Keys {
    async fn token(&self, client: &ClientId, secret: &str) -> Result<Token, TokenError> {
        if client.as_str() == CLIENT && secret == SECRET {
            Ok(Token { access_token: format!("good:{client}"), expires_in: Duration::from_hours(1) })
        } else {
            Err(TokenError::InvalidClient)
        }
    }

    fn verify(&self, bearer: &str) -> Result<Caller, VerifyError> {
        match bearer {
            _ if self.0.tokens_are_refused.load(Ordering::Relaxed) => Err(VerifyError::InactiveClient),
            "expired" => Err(VerifyError::Expired),
            other => {
                let client = other.strip_prefix("good:").and_then(|client| ClientId::new(client).ok());
                let client = client.ok_or(VerifyError::Invalid)?;
                // Clients that the log knows may do what is registered, others the usual.
                let registered = self.0.fleet().client(&client).map(|known| known.grant.clone());
                Ok(Caller { client, grant: registered.unwrap_or_default() })
            }
        }
    }

    fn connection_token(&self, session: &Session, user: &str) -> Result<String, Unavailable> {
        Ok(format!("opens {} for {user}", session.id))
    }
}

/// The router, called in process.
#[derive(Clone)]
pub struct Api(Router);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("no JSON: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn error(&self) -> String {
        let json = self.json();
        assert_eq!(json.as_object().unwrap().len(), 1, "an error has one member: {json}");
        json["error"].as_str().unwrap().to_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Api {
    /// Sends a request as it is.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.0.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: head.status, headers: head.headers, body }
    }

    /// Begins a stream of events with a good token of a client and these
    /// further headers.
    pub async fn follow(&self, client: &str, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let mut request = Request::builder()
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer good:{client}"))
            .header(header::ACCEPT, "text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.0.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    /// Calls with a good token.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let request =
            Request::builder().method(method).uri(path).header(header::AUTHORIZATION, format!("Bearer good:{CLIENT}"));
        let request = match body {
            Some(body) => request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        self.send(request.unwrap()).await
    }

    /// Posts JSON with a good token and expects success.
    pub async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.call("POST", path, Some(body)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }
}

pub fn server_id(id: &str) -> ServerId {
    ServerId::new(id).unwrap()
}

/// Facts of a host with everything that a host can tell.
pub fn full_facts() -> HostFacts {
    let endpoint = |protocol, web_url_path: Option<&str>| Endpoint {
        ip: Some("10.0.0.7".to_owned()),
        port: 8443,
        web_url_path: web_url_path.map(str::to_owned),
        protocol,
    };
    HostFacts {
        hostname: "desk-7".to_owned(),
        ip: "10.0.0.7".to_owned(),
        dns_name: Some("desk-7.example.org".to_owned()),
        endpoints: vec![endpoint(EndpointProtocol::Quic, None), endpoint(EndpointProtocol::Http, Some("/"))],
        web_url_path: Some("/".to_owned()),
        desktop_version: "2023.0.15487".to_owned(),
        agent_version: "0.1.0".to_owned(),
        os: Os {
            family: OsFamily::Linux,
            name: "Debian GNU/Linux".to_owned(),
            version: "12".to_owned(),
            kernel_version: Some("6.1.0".to_owned()),
            build_number: Some("14393".to_owned()),
        },
        cpu: Cpu {
            vendor: "GenuineIntel".to_owned(),
            model_name: "Xeon".to_owned(),
            architecture: "x86_64".to_owned(),
            logical_count: 8,
            physical_cores_per_cpu: 4,
        },
        gpus: vec![Gpu { vendor: "NVIDIA".to_owned(), model_name: "T4".to_owned() }],
        aws: Some(Aws {
            region: "eu-west-1".to_owned(),
            instance_type: "g4dn.xlarge".to_owned(),
            instance_id: "i-1".to_owned(),
            image_id: "ami-1".to_owned(),
        }),
        tags: BTreeMap::from([
            ("color".to_owned(), "pink".to_owned()),
            ("dcv:os-family".to_owned(), "linux".to_owned()),
        ]),
        limits: Limits { virtual_sessions_max: None, sessions_per_owner_max: None, console_sessions: true },
    }
}

pub fn full_load() -> HostLoad {
    HostLoad {
        memory: Usage { total_bytes: 16_000_000_000, used_bytes: 4_000_000_000 },
        swap: Usage { total_bytes: 0, used_bytes: 0 },
        load_average: LoadAverage {
            one_minute_hundredths: 224,
            five_minutes_hundredths: 97,
            fifteen_minutes_hundredths: 100,
        },
        logged_in_users: vec!["root".to_owned()],
    }
}

/// A usable session that a host made by itself.
pub fn host_session(id: &str, owner: &str) -> ReportedSession {
    ReportedSession {
        id: SessionId::new(id).unwrap(),
        name: String::new(),
        owner: Owner::new(owner).unwrap(),
        kind: SessionKind::Virtual,
        usable: true,
        connections: 2,
        clients_max: Some(10),
        created_at: Timestamp(1_601_979_331_633),
        last_disconnected_at: Some(Timestamp(1_601_979_331_633)),
        storage_root: Some("%home%".to_owned()),
        created_by: None,
    }
}

pub fn picture() -> Reply {
    Reply::Screenshot(vec![Image {
        format: ImageFormat::Png,
        data: "iVBORw0KGgo=".to_owned(),
        taken_at_ms: 1_738_314_000_123,
        primary: true,
    }])
}
