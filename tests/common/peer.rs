//! An agent that does what its test says, also what no agent should.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use berth::agent::enrolment::Enrolment;
use berth::domain::host::{Health, HostFacts, HostLoad, Limits};
use berth::domain::instruction::{Answer, Instruction};
use berth::domain::report::{Inventory, Report, ReportedSession};
use berth::domain::{AgentInstance, Epoch, InstructionId, Owner, ServerId, SessionId, SessionKind, Timestamp};
use berth::protocol::{self, FromAgent, FromBroker, Hello, Question};
use futures_util::{SinkExt, StreamExt};
use rustls::client::ResolvesClientCert;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::DEADLINE;
use super::broker::{Broker, tls_of};

pub struct Peer {
    pub socket: WebSocketStream<TlsStream<TcpStream>>,
    pub epoch: Epoch,
    pub oldest_instruction: InstructionId,
}

impl Peer {
    /// A connection that shows this certificate, before any hello.
    pub async fn knock(broker: &Broker, shown: Option<Shown>) -> Result<Self, Error> {
        Self::knock_at(broker.agents, &broker.ca_path(), shown).await
    }

    /// The same at an address whose certificate an authority signed.
    pub async fn knock_at(agents: SocketAddr, authority: &Path, shown: Option<Shown>) -> Result<Self, Error> {
        let stream = connect_tls(agents, authority, shown).await?;
        let url = format!("wss://{agents}{}", protocol::PATH);
        // The broker's limits are under test, not those of this side.
        let limits = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let (socket, _) = tokio_tungstenite::client_async_with_config(url, stream, Some(limits)).await?;
        Ok(Self { socket, epoch: Epoch(0), oldest_instruction: InstructionId(0) })
    }

    /// A connection that shows an access token and no certificate.
    pub async fn knock_with_token(broker: &Broker, token: &str) -> Result<Self, Error> {
        let stream = connect_tls(broker.agents, &broker.ca_path(), None).await?;
        let mut request = format!("wss://{}{}", broker.agents, protocol::PATH).into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
        Ok(Self { socket, epoch: Epoch(0), oldest_instruction: InstructionId(0) })
    }

    /// A connection of the agent that enrolled as a server, before any hello.
    pub async fn connect(broker: &Broker, server: &str) -> Self {
        Self::knock(broker, Some(enrolled(broker, server).await.resolver())).await.unwrap()
    }

    /// A connection that said hello and was welcomed.
    pub async fn join(broker: &Broker, server: &str, sessions: Vec<ReportedSession>) -> Self {
        let mut peer = Self::connect(broker, server).await;
        peer.say(&FromAgent::Hello(hello(server, sessions))).await;
        match peer.next().await {
            FromBroker::Welcome { version: 1, epoch, oldest_instruction } => Self { epoch, oldest_instruction, ..peer },
            other => panic!("not welcome: {other:?}"),
        }
    }

    pub async fn say_text(&mut self, text: impl Into<String>) {
        self.socket.send(Message::text(text.into())).await.unwrap();
    }

    pub async fn say(&mut self, message: &FromAgent) {
        self.say_text(serde_json::to_string(message).unwrap()).await;
    }

    pub async fn report(&mut self, number: u64, report: Report) {
        self.say(&FromAgent::Report { number, report }).await;
    }

    /// Reports sessions that changed and that ended, and waits until the log
    /// has it.
    pub async fn report_sessions(&mut self, number: u64, sessions: Inventory) {
        self.report(number, Report { sessions: Some(sessions), ..Report::default() }).await;
        self.hear("reported", |message| matches!(message, FromBroker::Reported { number: n } if *n == number)).await;
    }

    pub async fn answer(&mut self, instruction: InstructionId, answer: Answer) {
        self.say(&FromAgent::Answer { instruction, answer }).await;
    }

    /// Answers and waits until the log has it.
    pub async fn settle(&mut self, instruction: InstructionId, answer: Answer) {
        self.answer(instruction, answer).await;
        let settled =
            |message: &FromBroker| matches!(message, FromBroker::Settled { instruction: i } if *i == instruction);
        self.hear("settled", settled).await;
    }

    /// The next message, with pings answered.
    pub async fn next(&mut self) -> FromBroker {
        let heard = timeout(DEADLINE, async {
            loop {
                match self.socket.next().await.expect("the broker went away").unwrap() {
                    Message::Text(text) => match serde_json::from_str(&text).unwrap() {
                        FromBroker::Ping { number } => self.say(&FromAgent::Pong { number }).await,
                        message => return message,
                    },
                    Message::Close(frame) => panic!("the broker closed: {frame:?}"),
                    _ => {}
                }
            }
        });
        heard.await.expect("the broker said nothing")
    }

    /// The next message that something holds for.
    pub async fn hear(&mut self, what: &str, wanted: impl Fn(&FromBroker) -> bool) -> FromBroker {
        let heard = timeout(DEADLINE, async {
            loop {
                let message = self.next().await;
                if wanted(&message) {
                    return message;
                }
            }
        });
        heard.await.unwrap_or_else(|_| panic!("the broker did not say: {what}"))
    }

    /// The next instruction, with the epoch it is for.
    pub async fn instruction(&mut self) -> (Epoch, Instruction) {
        match self.hear("an instruction", |message| matches!(message, FromBroker::Instruction { .. })).await {
            FromBroker::Instruction { epoch, instruction } => (epoch, instruction),
            _ => unreachable!("filtered above"),
        }
    }

    /// The next question, with its number.
    pub async fn question(&mut self) -> (u64, Question) {
        match self.hear("a question", |message| matches!(message, FromBroker::Question { .. })).await {
            FromBroker::Question { number, question } => (number, question),
            _ => unreachable!("filtered above"),
        }
    }

    /// Waits until the broker closes; the code and the words. Says nothing
    /// meanwhile, not even to pings.
    pub async fn closed(&mut self) -> (u16, String) {
        let closed = timeout(DEADLINE, async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => return (frame.code.into(), frame.reason.to_string()),
                    Some(Ok(_)) => {}
                    other => panic!("closed without a word: {other:?}"),
                }
            }
        });
        closed.await.expect("the broker did not close")
    }

    /// Ends the connection in an orderly way.
    pub async fn leave(mut self) {
        self.socket.close(None).await.unwrap();
        let gone = timeout(DEADLINE, async { while let Some(Ok(_)) = self.socket.next().await {} });
        gone.await.expect("the broker did not let go");
    }

    /// Waits until the broker says that it heard everything so far.
    pub async fn ping(&mut self) {
        self.say(&FromAgent::Ping { number: 77 }).await;
        self.hear("pong", |message| *message == FromBroker::Pong { number: 77 }).await;
    }
}

/// A certificate of a client.
pub type Shown = Arc<dyn ResolvesClientCert>;

/// A connection to an agents' port, before anything is said.
pub async fn connect_tls(
    agents: SocketAddr,
    authority: &Path,
    shown: Option<Shown>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = tls_of(authority, &[]);
    if let Some(shown) = shown {
        config.client_auth_cert_resolver = shown;
    }
    let stream = TcpStream::connect(agents).await?;
    TlsConnector::from(Arc::new(config)).connect("127.0.0.1".try_into().unwrap(), stream).await
}

/// What the agent of a server has, which enrolled with the broker: the same
/// each time. Its folder is beside the broker's.
pub async fn enrolled(broker: &Broker, server: &str) -> Enrolment {
    enrolled_trusting(broker, &broker.ca_path(), server).await
}

/// The same where an operator's authority signed the agents' port.
pub async fn enrolled_trusting(broker: &Broker, authority: &Path, server: &str) -> Enrolment {
    let name: String = server.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let folder = broker.folder.path().join("peers").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let id = ServerId::new(server).unwrap();
    let enrolment = Enrolment::open(&folder, id, "peer".to_owned(), Some(broker.statement_path())).unwrap();
    if enrolment.is_needed() {
        let stream = connect_tls(broker.agents, authority, None).await.unwrap();
        enrolment.enrol(stream, &broker.agents.to_string()).await.unwrap();
    }
    enrolment
}

pub fn hello(server: &str, sessions: Vec<ReportedSession>) -> Hello {
    Hello {
        version: 1,
        server: ServerId::new(server).unwrap(),
        // The same for each connection, as with an agent that connects again.
        instance: AgentInstance::new(&format!("run of {server}")).unwrap(),
        report_interval_ms: 30_000,
        report: Report {
            facts: Some(HostFacts {
                hostname: server.to_owned(),
                ip: "127.0.0.1".to_owned(),
                limits: Limits { sessions_per_owner_max: None, ..Limits::default() },
                ..HostFacts::default()
            }),
            load: Some(HostLoad::default()),
            health: Some(Health::Healthy),
            sessions: Some(Inventory::Full(sessions)),
        },
    }
}

/// A session as its host reports it.
pub fn reported(id: &str, owner: &str) -> ReportedSession {
    ReportedSession {
        id: SessionId::new(id).unwrap(),
        name: String::new(),
        owner: Owner::new(owner).unwrap(),
        kind: SessionKind::Virtual,
        usable: true,
        connections: 0,
        clients_max: None,
        created_at: Timestamp(1_700_000_000_000),
        last_disconnected_at: None,
        storage_root: None,
        created_by: None,
    }
}
