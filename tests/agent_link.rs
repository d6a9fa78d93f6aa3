//! An agent with simulated desktops against a small broker made for the test:
//! TLS, WebSocket and the protocol as the other side sees them.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth::agent::config::DesktopKind;
use berth::agent::desktops::Desktops;
use berth::agent::desktops::simulated::{Settings, Simulated};
use berth::agent::{Config, run_with};
use berth::domain::instruction::{Action, Answer, Instruction};
use berth::domain::report::{Inventory, Report};
use berth::domain::{Epoch, InstructionId, Owner, SessionId, SessionKind, SessionSpec, Timestamp};
use berth::protocol::{self, FromAgent, FromBroker, Hello, ImageFormat, Question, Reply};
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_mins(1);

/// The broker's side of the agents' port.
struct Broker {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    folder: tempfile::TempDir,
}

impl Broker {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certified.cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), folder }
    }

    fn config(&self) -> Config {
        Config {
            broker_port: self.listener.local_addr().unwrap().port(),
            ca_file: Some(self.folder.path().join("ca.pem")),
            tags_folder: self.folder.path().join("tags"),
            desktops: DesktopKind::Simulated,
            broker_update_interval: Duration::from_secs(1),
            // This broker lets everybody in.
            software_statement_path: None,
            ..Config::new("localhost", Path::new(""), &self.folder.path().join("data"))
        }
    }

    /// The next connection whose TLS handshake succeeds.
    async fn accept_tls(&self) -> TlsStream<TcpStream> {
        let accepted = timeout(DEADLINE, async {
            loop {
                let (stream, _) = self.listener.accept().await.unwrap();
                if let Ok(stream) = self.acceptor.accept(stream).await {
                    return stream;
                }
            }
        });
        accepted.await.expect("no agent came")
    }

    /// The next connection, up to the agent's hello.
    async fn accept(&self) -> (Peer, Hello) {
        let stream = self.accept_tls().await;
        #[allow(clippy::result_large_err)] // the library's own signature
        let check = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            assert_eq!(request.uri().path(), protocol::PATH);
            Ok(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(stream, check).await.unwrap();
        let mut peer = Peer { socket };
        match peer.next().await {
            FromAgent::Hello(hello) => (peer, hello),
            other => panic!("no hello: {other:?}"),
        }
    }

    /// The next connection, welcomed.
    async fn welcome(&self, epoch: u64) -> (Peer, Hello) {
        let (mut peer, hello) = self.accept().await;
        let welcome = FromBroker::Welcome { version: 1, epoch: Epoch(epoch), oldest_instruction: InstructionId(0) };
        peer.say(&welcome).await;
        (peer, hello)
    }
}

struct Peer {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

impl Peer {
    async fn say(&mut self, message: &FromBroker) {
        self.socket.send(Message::text(serde_json::to_string(message).unwrap())).await.unwrap();
    }

    /// The next message, with pings answered.
    async fn next(&mut self) -> FromAgent {
        let heard = timeout(DEADLINE, async {
            loop {
                match self.socket.next().await.expect("the agent went away").unwrap() {
                    Message::Text(text) => match serde_json::from_str(&text).unwrap() {
                        FromAgent::Ping { number } => self.say(&FromBroker::Pong { number }).await,
                        message => return message,
                    },
                    Message::Close(frame) => panic!("the agent closed: {frame:?}"),
                    _ => {}
                }
            }
        });
        heard.await.expect("the agent said nothing")
    }

    /// The next answer; reports in between are taken.
    async fn answer(&mut self) -> (InstructionId, Answer) {
        loop {
            match self.next().await {
                FromAgent::Answer { instruction, answer } => return (instruction, answer),
                FromAgent::Report { .. } => {}
                other => panic!("no answer: {other:?}"),
            }
        }
    }

    /// The next report that something holds for.
    async fn report(&mut self, wanted: impl Fn(&Report) -> bool) -> Report {
        loop {
            if let FromAgent::Report { number, report } = self.next().await {
                self.say(&FromBroker::Reported { number }).await;
                if wanted(&report) {
                    return report;
                }
            }
        }
    }

    async fn instruct(&mut self, epoch: u64, id: u64, action: Action) {
        let instruction = Instruction { id: InstructionId(id), issued_at: Timestamp(0), action };
        self.say(&FromBroker::Instruction { epoch: Epoch(epoch), instruction }).await;
    }
}

/// An agent that runs until it is dropped.
struct Agent {
    desktops: Arc<Simulated>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), berth::agent::Error>>,
}

impl Agent {
    fn start(config: Config) -> Self {
        let desktops = Arc::new(Simulated::new(config.simulated.clone()));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run_with(config, Arc::clone(&desktops) as Arc<dyn Desktops>, shutdown.clone()));
        Self { desktops, shutdown, task }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(DEADLINE, self.task).await.expect("the agent did not end").unwrap().unwrap();
    }
}

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn create(name: &str, owner: &str) -> Action {
    let spec = SessionSpec::plain(name.to_owned(), Owner::new(owner).unwrap(), SessionKind::Virtual);
    Action::CreateSession { session: session(name), spec }
}

fn failure(answer: Answer) -> String {
    match answer {
        Answer::Failed { reason } => reason,
        Answer::Done => panic!("it was done"),
    }
}

fn write_tag(folder: &Path, text: &str) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("a.toml"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hello_is_full_and_later_reports_hold_what_changed() {
    let broker = Broker::start().await;
    let config = broker.config();
    let tags_folder = config.tags_folder.clone();
    write_tag(&tags_folder, "pool = 'red'");
    let agent = Agent::start(config);
    let (mut peer, hello) = broker.welcome(1).await;
    assert_eq!((hello.version, hello.report_interval_ms), (1, 1_000));
    let facts = hello.report.facts.unwrap();
    assert_eq!(facts.ip, "127.0.0.1");
    assert_eq!(facts.tags["pool"], "red");
    assert_eq!(facts.tags["dcv:os-family"], "linux");
    assert_eq!(hello.report.sessions, Some(Inventory::Full(Vec::new())));
    assert!(hello.report.load.is_some() && hello.report.health.is_some());

    // A changed tag needs no restart.
    write_tag(&tags_folder, "pool = 'blue'");
    let report = peer.report(|report| report.facts.is_some()).await;
    assert_eq!(report.facts.unwrap().tags["pool"], "blue");
    assert_eq!(report.sessions, None);

    peer.instruct(1, 5, create("s", "ann")).await;
    assert_eq!(peer.answer().await, (InstructionId(5), Answer::Done));
    let known =
        |report: &Report| matches!(&report.sessions, Some(Inventory::Changes { changed, .. }) if !changed.is_empty());
    // The report of the new session may have come before its answer.
    agent.desktops.connect(&session("s"), 2);
    let report = peer.report(known).await;
    let Some(Inventory::Changes { changed, gone }) = report.sessions else { unreachable!("checked above") };
    assert_eq!((changed[0].created_by, gone.len()), (Some(InstructionId(5)), 0));

    agent.desktops.end_by_itself(&session("s"), "the user logged out");
    let ended = |report: &Report| matches!(&report.sessions, Some(Inventory::Changes { gone, .. }) if !gone.is_empty());
    let Some(Inventory::Changes { gone, .. }) = peer.report(ended).await.sessions else {
        unreachable!("checked above")
    };
    assert_eq!(gone[0].reason.as_deref(), Some("the user logged out"));

    // The server keeps its id over a restart of the agent.
    agent.stop().await;
    let agent = Agent::start(broker.config());
    let (_peer, again) = broker.welcome(2).await;
    assert_eq!(again.server, hello.server);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instruction_has_its_effect_once_and_its_answer_until_it_is_settled() {
    let broker = Broker::start().await;
    let agent = Agent::start(broker.config());
    let (mut peer, _) = broker.welcome(1).await;
    peer.instruct(1, 5, create("s", "ann")).await;
    assert_eq!(peer.answer().await, (InstructionId(5), Answer::Done));
    peer.instruct(1, 5, create("s", "ann")).await;
    assert_eq!(peer.answer().await, (InstructionId(5), Answer::Done));
    agent.desktops.end_by_itself(&session("s"), "gone");
    let ended = "the session was made and has ended: gone";
    peer.instruct(1, 5, create("s", "ann")).await;
    let (id, answer) = peer.answer().await;
    assert_eq!((id, failure(answer).as_str()), (InstructionId(5), ended));
    // Runs behind whatever else is done to the session.
    let fence = Action::SetPermissions { session: session("s"), permissions: String::new() };
    peer.instruct(1, 7, fence).await;
    let (id, answer) = peer.answer().await;
    assert_eq!(id, InstructionId(7));
    assert_eq!(failure(answer), "session s does not exist on this host", "it was made a second time");
    peer.say(&FromBroker::Settled { instruction: InstructionId(7) }).await;

    drop(peer);
    let (mut peer, _) = broker.welcome(2).await;
    let (id, answer) = peer.answer().await;
    assert_eq!((id, failure(answer).as_str()), (InstructionId(5), ended), "not settled, so told again");
    peer.say(&FromBroker::Settled { instruction: InstructionId(5) }).await;
    // Settled comes before the close of the connection, so it has been heard.
    peer.instruct(2, 6, Action::CloseSession { session: session("s") }).await;
    assert_eq!(peer.answer().await, (InstructionId(6), Answer::Done));
    drop(peer);
    let (mut peer, _) = broker.welcome(3).await;
    assert_eq!(peer.answer().await, (InstructionId(6), Answer::Done), "only the unsettled one");
    peer.instruct(3, 4, create("s", "ann")).await;
    let (id, answer) = peer.answer().await;
    assert_eq!(id, InstructionId(4));
    assert!(failure(answer).starts_with("superseded"));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ended_before_its_answer_arrived_was_not_made() {
    let broker = Broker::start().await;
    let simulated = Settings { create_delay_ms: 300, ..Settings::default() };
    let agent = Agent::start(Config { simulated, ..broker.config() });
    let (mut peer, _) = broker.welcome(1).await;
    peer.instruct(1, 5, create("s", "ann")).await;
    // Behind the instruction on the same connection, so that one was heard.
    peer.instruct(1, 6, Action::CloseSession { session: session("other") }).await;
    assert_eq!(peer.answer().await, (InstructionId(6), Answer::Done));
    drop(peer);
    let mut state = agent.desktops.watch();
    let made = timeout(DEADLINE, state.wait_for(|state| state.sessions.contains_key(&session("s"))));
    drop(made.await.unwrap().unwrap());
    agent.desktops.end_by_itself(&session("s"), "the user logged out");

    let (mut peer, hello) = broker.welcome(2).await;
    assert_eq!(hello.report.sessions, Some(Inventory::Full(Vec::new())));
    let (id, answer) = peer.answer().await;
    assert_eq!(id, InstructionId(5));
    assert_eq!(failure(answer), "the session was made and has ended: the user logged out");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_before_a_report_names_it_is_reported_gone() {
    let broker = Broker::start().await;
    let agent = Agent::start(broker.config());
    let (mut peer, _) = broker.welcome(1).await;
    peer.instruct(1, 5, create("s", "ann")).await;
    // A report that names it would come a tenth of a second behind the answer.
    while !matches!(peer.next().await, FromAgent::Answer { .. }) {}
    agent.desktops.end_by_itself(&session("s"), "the user logged out");
    let ended = |report: &Report| matches!(&report.sessions, Some(Inventory::Changes { gone, .. }) if !gone.is_empty());
    let Some(Inventory::Changes { gone, .. }) = peer.report(ended).await.sessions else {
        unreachable!("checked above")
    };
    assert_eq!((&gone[0].id, gone[0].reason.as_deref()), (&session("s"), Some("the user logged out")));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instruction_of_another_epoch_is_void() {
    let broker = Broker::start().await;
    let agent = Agent::start(broker.config());
    let (mut peer, _) = broker.welcome(8).await;
    peer.instruct(7, 1, create("stale", "ann")).await;
    peer.instruct(9, 2, create("unheard", "ann")).await;
    peer.instruct(8, 3, create("current", "ann")).await;
    assert_eq!(peer.answer().await, (InstructionId(3), Answer::Done));
    let sessions: Vec<SessionId> = agent.desktops.watch().borrow().sessions.keys().cloned().collect();
    assert_eq!(sessions, [session("current")]);

    // A welcome with an older epoch does not make its instructions valid.
    drop(peer);
    let (mut peer, _) = broker.welcome(2).await;
    assert_eq!(peer.answer().await.0, InstructionId(3));
    peer.instruct(2, 4, create("old", "bob")).await;
    // Would run, and be answered, behind a create of the same session.
    peer.instruct(8, 5, Action::CloseSession { session: session("old") }).await;
    assert_eq!(peer.answer().await, (InstructionId(5), Answer::Done));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instructions_of_one_session_run_in_order_and_limits_hold() {
    let broker = Broker::start().await;
    let simulated = Settings {
        create_delay_ms: 100,
        close_delay_ms: 1,
        fail_name: Some("cursed".to_owned()),
        ..Settings::default()
    };
    let config = Config { simulated, max_virtual_sessions: Some(2), ..broker.config() };
    let agent = Agent::start(config);
    let (mut peer, hello) = broker.welcome(1).await;
    assert_eq!(hello.report.facts.unwrap().tags["dcv:max-virtual-sessions"], "2");
    // Had the close run beside the create, the session would stay.
    peer.instruct(1, 1, create("s", "ann")).await;
    peer.instruct(1, 2, Action::CloseSession { session: session("s") }).await;
    assert_eq!(peer.answer().await, (InstructionId(1), Answer::Done));
    assert_eq!(peer.answer().await, (InstructionId(2), Answer::Done));
    assert!(agent.desktops.watch().borrow().sessions.is_empty());

    for (id, name, owner) in [(3, "a", "ann"), (4, "b", "ann"), (5, "c", "bob"), (6, "d", "carl")] {
        peer.instruct(1, id, create(name, owner)).await;
    }
    let mut answers = std::collections::BTreeMap::new();
    while answers.len() < 4 {
        let (id, answer) = peer.answer().await;
        answers.insert(id.0, answer);
    }
    assert_eq!((&answers[&3], &answers[&5]), (&Answer::Done, &Answer::Done));
    assert!(failure(answers.remove(&4).unwrap()).contains("at most 1 sessions of user ann"));
    assert!(failure(answers.remove(&6).unwrap()).contains("at most 2 virtual sessions"));

    agent.desktops.end_by_itself(&session("a"), "gone");
    peer.instruct(1, 7, create("cursed", "ann")).await;
    assert!(failure(peer.answer().await.1).starts_with("simulated failure"));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_told_and_a_missing_session_is_named() {
    let broker = Broker::start().await;
    let agent = Agent::start(broker.config());
    let (mut peer, _) = broker.welcome(1).await;
    peer.instruct(1, 1, create("s", "ann")).await;
    peer.answer().await;
    for (number, name) in [(1, "s"), (2, "other")] {
        let question =
            Question::Screenshot { session: session(name), width_max: 160, height_max: 100, format: ImageFormat::Jpeg };
        peer.say(&FromBroker::Question { number, question }).await;
        let (asked, reply) = loop {
            if let FromAgent::Reply { question, reply } = peer.next().await {
                break (question, reply);
            }
        };
        assert_eq!(asked, number);
        match reply {
            Reply::Screenshot(images) => assert_eq!((name, images[0].format), ("s", ImageFormat::Jpeg)),
            Reply::Failed { reason } => assert_eq!(reason, "session other does not exist on this host"),
        }
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_left_for_a_new_connection() {
    let broker = Broker::start().await;
    let agent = Agent::start(broker.config());
    let (silent, _) = broker.welcome(1).await;
    // The socket stays open; only nothing is said on it any more.
    let (_peer, hello) = broker.welcome(2).await;
    assert!(matches!(hello.report.sessions, Some(Inventory::Full(_))));
    drop(silent);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_turned_away_comes_again() {
    let broker = Broker::start().await;
    let agent = Agent::start(broker.config());
    // Not understood: closed by the agent, which says why.
    let (mut peer, _) = broker.accept().await;
    peer.socket.send(Message::text(r#"{"type":"sing"}"#)).await.unwrap();
    let closed = timeout(DEADLINE, async {
        loop {
            if let Some(Ok(Message::Close(frame))) = peer.socket.next().await {
                return frame;
            }
        }
    });
    assert_eq!(u16::from(closed.await.unwrap().unwrap().code), protocol::close::NONSENSE);
    // It is a stranger.
    let stream = broker.accept_tls().await;
    #[allow(clippy::result_large_err)] // the library's own signature
    let refuse = |_: &Request, _: Response| -> Result<Response, ErrorResponse> {
        let mut refusal = ErrorResponse::new(None);
        *refusal.status_mut() = 401.try_into().unwrap();
        Err(refusal)
    };
    assert!(tokio_tungstenite::accept_hdr_async(stream, refuse).await.is_err());
    // Its version is refused.
    let (mut peer, _) = broker.accept().await;
    let frame = CloseFrame { code: protocol::close::VERSION.into(), reason: "only version 9".into() };
    peer.socket.close(Some(frame)).await.unwrap();
    drop(peer);
    let (_peer, _) = broker.welcome(1).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_says_which_run_of_it_connects_and_tries_on_while_another_one_is_preferred() {
    let broker = Broker::start().await;
    let agent = Agent::start(broker.config());
    let mut instances = Vec::new();
    for _ in 0..3 {
        let (mut peer, hello) = broker.accept().await;
        let frame = CloseFrame { code: protocol::close::CLONED.into(), reason: protocol::CLONED_REASON.into() };
        peer.socket.close(Some(frame)).await.unwrap();
        instances.push((hello.server, hello.instance));
    }
    let (_peer, hello) = broker.welcome(1).await;
    assert!(instances.iter().all(|known| *known == (hello.server.clone(), hello.instance.clone())), "{instances:?}");
    agent.stop().await;

    let agent = Agent::start(broker.config());
    let (_peer, next) = broker.welcome(2).await;
    assert_eq!(next.server, hello.server, "the server stays the same");
    assert_ne!(next.instance, hello.instance, "each run has an instance of its own");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_a_foreign_certificate_is_trusted_only_without_strictness() {
    let broker = Broker::start().await;
    let foreign = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let config = broker.config();
    std::fs::write(config.ca_file.as_ref().unwrap(), foreign.cert.pem()).unwrap();
    let agent = Agent::start(config.clone());
    let (stream, _) = timeout(DEADLINE, broker.listener.accept()).await.unwrap().unwrap();
    assert!(broker.acceptor.accept(stream).await.is_err(), "the agent trusted a foreign certificate");
    agent.stop().await;

    let agent = Agent::start(Config { tls_strict: false, ..config });
    let (_peer, _) = broker.welcome(1).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_is_trusted_without_a_new_start_and_a_broken_file_changes_nothing() {
    let broker = Broker::start().await;
    let config = broker.config();
    let ca_file = config.ca_file.clone().unwrap();
    let right = std::fs::read(&ca_file).unwrap();
    let foreign = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&ca_file, foreign.cert.pem()).unwrap();
    let agent = Agent::start(config);
    let (stream, _) = timeout(DEADLINE, broker.listener.accept()).await.unwrap().unwrap();
    assert!(broker.acceptor.accept(stream).await.is_err(), "the agent trusted a foreign certificate");

    std::fs::write(&ca_file, right).unwrap();
    let (mut peer, _) = broker.welcome(1).await;

    // Neither what is no certificate nor a missing file takes the trust away.
    std::fs::write(&ca_file, "-----BEGIN CERTIFICATE-----\nbroken\n").unwrap();
    peer.socket.close(None).await.unwrap();
    drop(peer);
    let (mut peer, _) = broker.welcome(2).await;
    std::fs::remove_file(&ca_file).unwrap();
    peer.socket.close(None).await.unwrap();
    drop(peer);
    let (mut peer, _) = broker.welcome(3).await;

    // And the old authority is trusted no more once there is another one.
    std::fs::write(&ca_file, foreign.cert.pem()).unwrap();
    peer.socket.close(None).await.unwrap();
    drop(peer);
    let (stream, _) = timeout(DEADLINE, broker.listener.accept()).await.unwrap().unwrap();
    assert!(broker.acceptor.accept(stream).await.is_err(), "the agent still trusted the old authority");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_cut_off_asks_its_balancer_again_when_no_other_broker_takes_it() {
    let broker = Broker::start().await;
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let other = berth::agent::brokers::Address { host: closed.ip().to_string(), port: closed.port() };
    let agent = Agent::start(Config { brokers: vec![other], ..broker.config() });
    let (mut cut_off, _) = broker.welcome(1).await;
    cut_off.say(&FromBroker::CutOff { cut_off: true }).await;
    let (_peer, _) = broker.welcome(2).await;
    agent.stop().await;
}

/// The program itself, as a process of its own; killed when it is dropped.
fn start_program(config_file: &Path) -> tokio::process::Child {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["agent", "--config"])
        .arg(config_file)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Processes that have a session's id in their environment.
fn processes_of(session: &str) -> Vec<std::path::PathBuf> {
    let variable = format!("BERTH_SESSION_ID={session}");
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    let has_it = |path: &std::path::PathBuf| {
        std::fs::read(path.join("environ"))
            .is_ok_and(|text| text.split(|byte| *byte == 0).any(|found| found == variable.as_bytes()))
    };
    entries.filter(has_it).collect()
}

/// Needs the Debian packages tigervnc-standalone-server and tigervnc-tools.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_it_made_a_session_clears_it_and_says_so_at_its_next_start() {
    let broker = Broker::start().await;
    let folder = broker.folder.path();
    let config = broker.config();
    let text = format!(
        "version = '0.1'\n[agent]\nbroker_host = 'localhost'\nbroker_port = {}\nca_file = 'ca.pem'\n\
         data_folder = 'data'\ninit_folder = 'init'\ntags_folder = 'tags'\n\
         [log]\ndirectory = 'log'\n[xvnc]\nallow_root = true\n",
        config.broker_port
    );
    let config_file = folder.join("agent.conf");
    std::fs::write(&config_file, text).unwrap();
    // No window manager: for three seconds the agent waits for one.
    std::fs::create_dir(folder.join("init")).unwrap();
    let init = folder.join("init/desk");
    std::fs::write(&init, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let id = std::process::Command::new("id").arg("-un").output().unwrap();
    let own_user = String::from_utf8(id.stdout).unwrap();
    let name = uuid::Uuid::new_v4().to_string();
    let mut action = create(&name, own_user.trim());
    if let Action::CreateSession { spec, .. } = &mut action {
        spec.init_file = Some("desk".to_owned());
    }

    let mut agent = start_program(&config_file);
    let (mut peer, _) = broker.welcome(1).await;
    peer.instruct(1, 2, action).await;
    let made = folder.join("data/sessions").join(&name);
    let begun = timeout(DEADLINE, async {
        while !made.join("desktop.log").exists() {
            assert!(agent.try_wait().unwrap().is_none(), "the agent ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    begun.await.expect("the desktop was not started");
    agent.kill().await.unwrap();
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(made.join("session.json")).unwrap()).unwrap();
    assert!(record["running"].is_null(), "the session was up already");
    let display = record["screen"]["display"].as_u64().unwrap();
    let lock = format!("/tmp/.X{display}-lock");
    assert!(Path::new(&lock).exists());
    assert!(!processes_of(&name).is_empty());
    drop(peer);

    let _agent = start_program(&config_file);
    let (mut peer, hello) = broker.welcome(2).await;
    assert_eq!(hello.report.sessions, Some(Inventory::Full(Vec::new())));
    let (id, answer) = peer.answer().await;
    assert_eq!(id, InstructionId(2));
    assert_eq!(failure(answer), "the agent ended while it made the session");
    assert_eq!(processes_of(&name), Vec::<std::path::PathBuf>::new());
    assert!(!made.exists());
    assert!(!Path::new(&lock).exists(), "the lock of the display is left");
    assert!(!Path::new(&format!("/tmp/.X11-unix/X{display}")).exists(), "the socket of the display is left");
}
