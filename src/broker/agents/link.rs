//! One connection of one agent.
//!
//! Two tasks: one reads what the agent says and what the log has for it, and
//! alone writes to the socket; the recorder puts what the agent said into the
//! log, in order, and what came in meanwhile as one entry. An agent that says
//! more than the log takes has to wait, because nothing more is read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::registry::{Asked, Registered};
use super::{Agents, stray};
use crate::broker::api::door::{Unavailable, UnavailableReason};
use crate::broker::contact::Contact;
use crate::broker::core::Broker;
use crate::domain::host::Health;
use crate::domain::instruction::Answer;
use crate::domain::report::{Inventory, Report};
use crate::domain::{Command, Epoch, InstructionId, Millis, Outcome, Refusal, ServerId};
use crate::protocol::{
    self, CLONED_REASON, CONTEST_TIMEOUT, FromAgent, FromBroker, HELLO_TIMEOUT, Hello, PING_INTERVAL_OF_BROKER,
    REPORT_INTERVAL_MS_MAX, REPORT_INTERVAL_MS_MIN, Reply, SILENCE_MAX, WELCOME_TIMEOUT, close,
};
use crate::pulse::{Pulse, Stalled};

/// Messages of one agent that may wait for the log, and that become one entry.
const WAITING_MAX: usize = 128;

/// Sessions in one report.
const SESSIONS_MAX: usize = 10_000;
/// Tags of a server.
const TAGS_MAX: usize = 1_000;
/// Graphics processors or endpoints of a server.
const PARTS_MAX: usize = 100;
/// Users logged in at a server.
const USERS_MAX: usize = 1_000;
/// Longest name of a tag, and longest value, in bytes.
const TAG_BYTES_MAX: usize = 4_096;
/// Longest text for people, such as the reason of a failure, in bytes.
const REASON_BYTES_MAX: usize = 1_024;

/// How long the log may take for a hello: less than the agent waits.
const ADMIT_TIMEOUT: Duration = WELCOME_TIMEOUT.saturating_sub(Duration::from_secs(1));

/// Before what an agent said is proposed again; partly random, so that
/// thousands of agents do not come at once.
const PROPOSE_RETRY: Duration = Duration::from_secs(1);

/// How long the farewell may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a connection ends: the code and the words for the agent.
#[derive(Debug)]
struct Farewell {
    code: u16,
    reason: String,
    /// The agent is gone, as far as can be known.
    is_silence: bool,
}

impl Farewell {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), is_silence: false }
    }

    /// The agent did not answer although it was asked for a sign of life.
    fn silence() -> Self {
        let reason = "another agent came for this server, and this one did not answer";
        Self { is_silence: true, ..Self::new(close::SILENT, reason) }
    }

    fn nonsense(reason: impl Into<String>) -> Self {
        Self::new(close::NONSENSE, reason)
    }

    /// Nothing more can be read: the agent broke the rules of WebSocket, or
    /// the connection broke under it.
    fn broken(error: axum::Error) -> Self {
        use tokio_tungstenite::tungstenite::Error;
        use tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
        let error = error.into_inner();
        match error.downcast_ref::<Error>() {
            Some(Error::Capacity(_) | Error::Utf8(_)) => Self::nonsense(error.to_string()),
            Some(Error::Protocol(problem)) if *problem != ResetWithoutClosingHandshake => {
                Self::nonsense(error.to_string())
            }
            _ => Self::new(close::GOING_AWAY, format!("the connection broke: {error}")),
        }
    }

    /// The agent went away by itself.
    fn gone() -> Self {
        Self::new(close::GOING_AWAY, "the agent went away")
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve(mut socket: WebSocket, pulse: Pulse, agents: Agents) {
    let hello = match timeout(HELLO_TIMEOUT, read_hello(&mut socket)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(farewell)) => return part(&mut socket, None, farewell).await,
        Err(_) => {
            let farewell = Farewell::new(close::SILENT, "no hello came in time");
            return part(&mut socket, None, farewell).await;
        }
    };
    let server = hello.server.clone();
    let epoch = match admit(&mut socket, &agents, hello).await {
        Ok(epoch) => epoch,
        Err(farewell) => return part(&mut socket, Some(&server), farewell).await,
    };
    tracing::info!(%server, %epoch, "agent connected");
    let registered = agents.broker.links().register(&server, epoch);
    let farewell = converse(&mut socket, pulse, &agents, &server, epoch, registered).await;
    agents.broker.links().unregister(&server, epoch);
    let gone = if farewell.is_silence {
        Command::AgentSilent { server: server.clone(), epoch }
    } else {
        Command::DisconnectAgent { server: server.clone(), epoch }
    };
    // A dead agent never takes the farewell: the log does not wait for that.
    let ((), proposed) = tokio::join!(part(&mut socket, Some(&server), farewell), agents.broker.propose(vec![gone]));
    if let Err(error) = proposed {
        // Its silence will tell the same a little later.
        tracing::debug!(%server, %error, "the end of a connection did not reach the log");
    }
}

/// Says goodbye and closes.
async fn part(socket: &mut WebSocket, server: Option<&ServerId>, farewell: Farewell) {
    let server = server.map_or("unknown", ServerId::as_str);
    let farewell = Farewell { reason: shortened(farewell.reason), ..farewell };
    if farewell.code == close::CLONED {
        // It comes again and again. The replica with the other agent's
        // connection tells it, once a minute.
        tracing::debug!(server, "an agent was refused: another one with its server id is connected");
    } else {
        tracing::info!(server, code = farewell.code, reason = farewell.reason, "agent connection ends");
    }
    let frame = CloseFrame { code: farewell.code, reason: Utf8Bytes::from(farewell.reason) };
    let _ = timeout(FAREWELL_TIMEOUT, async {
        socket.send(Message::Close(Some(frame))).await?;
        // Read on until the agent has closed its side, or the words are lost.
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<_, axum::Error>(())
    })
    .await;
}

/// A reason has at most 123 bytes (RFC 6455 section 5.5).
fn shortened(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(123));
    reason
}

async fn read_hello(socket: &mut WebSocket) -> Result<Hello, Farewell> {
    loop {
        match socket.recv().await {
            Some(Ok(Message::Text(text))) => {
                return match serde_json::from_str::<FromAgent>(&text) {
                    Ok(FromAgent::Hello(hello)) => check_hello(hello),
                    Ok(_) => Err(Farewell::nonsense("the first message must be a hello")),
                    Err(error) => Err(misfit(&text, &error)),
                };
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(_))) => return Err(Farewell::nonsense("messages are text")),
            Some(Ok(Message::Close(_))) | None => return Err(Farewell::gone()),
            Some(Err(error)) => return Err(Farewell::broken(error)),
        }
    }
}

/// A hello of another version may look different altogether; say so rather
/// than which field is missing.
fn misfit(text: &str, error: &serde_json::Error) -> Farewell {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    match serde_json::from_str::<Version>(text) {
        Ok(Version { version }) if !protocol::VERSIONS.contains(&version) => other_version(version),
        _ => Farewell::nonsense(format!("not understood: {error}")),
    }
}

fn other_version(version: u32) -> Farewell {
    let (least, most) = (protocol::VERSIONS.start(), protocol::VERSIONS.end());
    Farewell::new(close::VERSION, format!("version {version} is not spoken here; this broker speaks {least} to {most}"))
}

fn check_hello(mut hello: Hello) -> Result<Hello, Farewell> {
    if !protocol::VERSIONS.contains(&hello.version) {
        return Err(other_version(hello.version));
    }
    if !(REPORT_INTERVAL_MS_MIN..=REPORT_INTERVAL_MS_MAX).contains(&hello.report_interval_ms) {
        return Err(Farewell::nonsense(format!(
            "report_interval_ms must be {REPORT_INTERVAL_MS_MIN} to {REPORT_INTERVAL_MS_MAX}"
        )));
    }
    let report = &hello.report;
    let full = matches!(report.sessions, Some(Inventory::Full(_)));
    if report.facts.is_none() || report.load.is_none() || report.health.is_none() || !full {
        return Err(Farewell::nonsense("the hello must hold a full report: facts, load, health and all sessions"));
    }
    check_report(&mut hello.report)?;
    Ok(hello)
}

/// Bounds what an agent can put into the log. Texts for people are cut.
fn check_report(report: &mut Report) -> Result<(), Farewell> {
    cut_texts(report);
    let sessions = match &report.sessions {
        Some(Inventory::Full(sessions)) => sessions.len(),
        Some(Inventory::Changes { changed, gone }) => changed.len() + gone.len(),
        None => 0,
    };
    let facts = report.facts.as_ref();
    let bounds = [
        ("sessions", sessions, SESSIONS_MAX),
        ("tags", facts.map_or(0, |facts| facts.tags.len()), TAGS_MAX),
        ("gpus", facts.map_or(0, |facts| facts.gpus.len()), PARTS_MAX),
        ("endpoints", facts.map_or(0, |facts| facts.endpoints.len()), PARTS_MAX),
        ("logged_in_users", report.load.as_ref().map_or(0, |load| load.logged_in_users.len()), USERS_MAX),
    ];
    for (what, number, max) in bounds {
        if number > max {
            return Err(Farewell::nonsense(format!("a report may hold {max} {what}, this one has {number}")));
        }
    }
    let tags = facts.map(|facts| &facts.tags).into_iter().flatten();
    if tags.into_iter().any(|(key, text)| key.len() > TAG_BYTES_MAX || text.len() > TAG_BYTES_MAX) {
        return Err(Farewell::nonsense(format!("a tag's name and its value may have {TAG_BYTES_MAX} bytes each")));
    }
    Ok(())
}

/// Cuts what only people read to what they read.
fn cut_texts(report: &mut Report) {
    if let Some(Health::Unhealthy(reason)) = &mut report.health {
        cut(reason);
    }
    let (sessions, gone) = match &mut report.sessions {
        Some(Inventory::Full(sessions)) => (sessions, None),
        Some(Inventory::Changes { changed, gone }) => (changed, Some(gone)),
        None => return,
    };
    for session in sessions {
        cut(&mut session.name);
        session.storage_root.iter_mut().for_each(cut);
    }
    gone.into_iter().flatten().filter_map(|ended| ended.reason.as_mut()).for_each(cut);
}

fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
}

/// Cuts the reason of a failure to what a person reads.
fn bounded(answer: Answer) -> Answer {
    match answer {
        Answer::Failed { mut reason } => {
            cut(&mut reason);
            Answer::Failed { reason }
        }
        Answer::Done => Answer::Done,
    }
}

/// Has the log take a hello, as long as its agent waits for that. One that is
/// proposed on after its agent went elsewhere could take the place of the newer
/// connection, and its report of what is there would be out of date. What was
/// under way by then may still be applied, and is ended.
async fn admit(socket: &mut WebSocket, agents: &Agents, hello: Hello) -> Result<Epoch, Farewell> {
    let server = hello.server.clone();
    let admitted = tokio::select! {
        biased;
        admitted = timeout(ADMIT_TIMEOUT, connect(&agents.broker, hello)) => {
            admitted.unwrap_or_else(|_| Err(log_takes_nothing()))
        }
        ended = ended(socket) => Err(ended),
    };
    // Only a refusal by the log says that nothing will come of it.
    if admitted.as_ref().is_err_and(|farewell| farewell.code != close::CLONED) {
        agents.tasks.spawn(stray::disconnect(agents.clone(), server));
    }
    admitted
}

/// Resolves when the agent does not wait any more. It says nothing before it is
/// welcome.
async fn ended(socket: &mut WebSocket) -> Farewell {
    loop {
        match socket.recv().await {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                return Farewell::nonsense("nothing may be said before the welcome");
            }
            Some(Ok(Message::Close(_))) | None => return Farewell::gone(),
            Some(Err(error)) => return Farewell::broken(error),
        }
    }
}

async fn connect(broker: &Broker, hello: Hello) -> Result<Epoch, Farewell> {
    let cloned = || Farewell::new(close::CLONED, CLONED_REASON);
    // Spares the log; an outdated state only makes the agent try once more.
    if broker.fleet().refuses_silently(&hello.server, &hello.instance) {
        return Err(cloned());
    }
    let command = Command::ConnectAgent {
        server: hello.server,
        instance: hello.instance,
        via: broker.id(),
        report_interval: Millis(hello.report_interval_ms),
        report: hello.report,
    };
    match broker.propose(vec![command]).await {
        Ok(outcomes) => match outcomes.first() {
            Some(Outcome::Welcome { epoch }) => Ok(*epoch),
            Some(Outcome::Refused(Refusal::OtherInstance)) => Err(cloned()),
            other => Err(Farewell::new(close::UNAVAILABLE, format!("not welcome: {other:?}"))),
        },
        Err(error) => Err(Farewell::new(close::UNAVAILABLE, error.to_string())),
    }
}

/// What the agent said that must reach the log, with what it is told then.
struct ToRecord {
    command: Command,
    then: FromBroker,
}

async fn converse(
    socket: &mut WebSocket,
    pulse: Pulse,
    agents: &Agents,
    server: &ServerId,
    epoch: Epoch,
    mut registered: Registered,
) -> Farewell {
    let (to_record, recorded, recording) = start_recorder(agents, server, epoch);
    let mut talk = Talk {
        broker: Arc::clone(&agents.broker),
        server: server.clone(),
        epoch,
        to_record,
        held_back: None,
        last_sent: InstructionId(0),
        questions: HashMap::new(),
        last_question: 0,
        last_ping: 0,
        pinged_at: Instant::now(),
        pulse,
        reading_since: Instant::now(),
        answer_due: None,
        told_cut_off: false,
    };
    let farewell = talk.run(socket, &mut registered, recorded, agents).await;
    // Dropping the sender ends the recorder. What it did not record was not
    // answered either, and the agent says it again.
    drop(talk);
    let _ = recording.await;
    farewell
}

type Recorded = mpsc::Receiver<Result<FromBroker, Farewell>>;

/// Puts messages into the log one after the other.
fn start_recorder(
    agents: &Agents,
    server: &ServerId,
    epoch: Epoch,
) -> (mpsc::Sender<ToRecord>, Recorded, tokio::task::JoinHandle<()>) {
    let (to_record, mut waiting) = mpsc::channel::<ToRecord>(WAITING_MAX);
    // Roomy enough for what waits and what is under way: the recorder never
    // waits for a connection that waits for the recorder.
    let (done, recorded) = mpsc::channel(WAITING_MAX * 3);
    let broker = Arc::clone(&agents.broker);
    let server = server.clone();
    let task = agents.tasks.spawn(async move {
        let mut batch = Vec::with_capacity(WAITING_MAX);
        while waiting.recv_many(&mut batch, WAITING_MAX).await > 0 {
            let (commands, answers): (Vec<_>, Vec<_>) =
                batch.drain(..).map(|ToRecord { command, then }| (command, then)).unzip();
            // Once the connection has ended nobody waits for a majority.
            let Some(proposed) = propose(&broker, commands, done.closed()).await else { return };
            let results = match proposed {
                Ok(outcomes) => {
                    let told = |(outcome, then)| match outcome {
                        Outcome::Refused(Refusal::StaleEpoch) => Err(void(&broker, &server, epoch)),
                        _ => Ok(then),
                    };
                    outcomes.into_iter().zip(answers).map(told).collect()
                }
                // Without the log nothing the agent says counts. It comes back
                // with a full report when the log takes it again.
                Err(error) => vec![Err(Farewell::new(close::UNAVAILABLE, error.to_string()))],
            };
            for result in results {
                let ends = result.is_err();
                if done.send(result).await.is_err() || ends {
                    return;
                }
            }
        }
        tracing::trace!(%server, "recorder ends");
    });
    (to_record, recorded, task)
}

/// Puts what an agent said into the log. Waits while no majority can be
/// reached, unless the connection has `ended`: the agent is as well off here as
/// anywhere, or goes by itself. What may have happened is said again; that does no harm, for it is the agent's
/// state, nothing else of this agent came in between, and answers count once.
async fn propose(
    broker: &Broker,
    commands: Vec<Command>,
    ended: impl Future<Output = ()>,
) -> Option<Result<Vec<Outcome>, Unavailable>> {
    let mut contact = broker.contact();
    tokio::pin!(ended);
    loop {
        let has_contact = async { contact.wait_for(|contact| *contact == Contact::Kept).await.is_ok() };
        let is_kept = tokio::select! {
            biased;
            is_kept = has_contact => is_kept,
            () = &mut ended => false,
        };
        if !is_kept {
            return None;
        }
        match broker.propose(commands.clone()).await {
            Err(error) if matches!(error.reason, UnavailableReason::NoQuorum | UnavailableReason::OutcomeUnknown) => {
                tracing::debug!(%error, "what an agent said waits for the log");
                tokio::select! {
                    () = sleep(PROPOSE_RETRY.mul_f64(rand::random_range(0.5..=1.0))) => {}
                    () = &mut ended => return None,
                }
            }
            proposed => return Some(proposed),
        }
    }
}

/// Whether a connection still counts by what this replica knows.
fn counts(broker: &Broker, server: &ServerId, epoch: Epoch) -> bool {
    let fleet = broker.fleet();
    fleet.server(server).is_some_and(|server| server.link.epoch() == epoch && server.link.held_by().is_some())
}

/// Why a connection does not count any more.
fn void(broker: &Broker, server: &ServerId, epoch: Epoch) -> Farewell {
    if broker.fleet().server(server).is_some_and(|server| server.link.epoch() > epoch) {
        return Farewell::new(close::REPLACED, "another connection of this server took over");
    }
    // Nothing was heard of this replica, or of the agent, for too long.
    Farewell::new(close::GOING_AWAY, "this connection was taken for broken; connect again")
}

/// The state of a conversation.
struct Talk {
    broker: Arc<Broker>,
    server: ServerId,
    epoch: Epoch,
    to_record: mpsc::Sender<ToRecord>,
    /// What the recorder has no room for; nothing more is read meanwhile.
    held_back: Option<ToRecord>,
    last_sent: InstructionId,
    questions: HashMap<u64, oneshot::Sender<Reply>>,
    last_question: u64,
    last_ping: u64,
    pinged_at: Instant,
    pulse: Pulse,
    /// Silence before this is no fault of the agent: nobody listened.
    reading_since: Instant,
    /// When the agent must have said something, because another one claims to
    /// be this server.
    answer_due: Option<Instant>,
    /// Whether the agent knows this replica as cut off.
    told_cut_off: bool,
}

impl Talk {
    async fn run(
        &mut self,
        socket: &mut WebSocket,
        registered: &mut Registered,
        mut recorded: Recorded,
        agents: &Agents,
    ) -> Farewell {
        if let Err(farewell) = self.welcome(socket).await {
            return farewell;
        }
        let to_record = self.to_record.clone();
        let mut contact = agents.broker.contact();
        loop {
            let answer_due = self.answer_due;
            let look_due = self.look_due();
            // What was recorded goes out before more is read, so that no more
            // is under way than the channels hold.
            let step = tokio::select! {
                biased;
                () = agents.shutdown.cancelled() => {
                    Err(Farewell::new(close::GOING_AWAY, "this replica ends; connect to another"))
                }
                cut_off = changed(&mut contact, self.told_cut_off) => {
                    self.told_cut_off = cut_off;
                    self.send(socket, &FromBroker::CutOff { cut_off }).await
                }
                Some(result) = recorded.recv() => match result {
                    Ok(message) => self.send(socket, &message).await,
                    Err(farewell) => Err(farewell),
                },
                () = registered.woken.notified() => self.instruct(socket).await,
                () = registered.contested.notified() => self.challenge(socket).await,
                Some(asked) = registered.questions.recv() => self.ask(socket, asked).await,
                room = to_record.reserve(), if self.held_back.is_some() => match (room, self.held_back.take()) {
                    (Ok(room), Some(held_back)) => {
                        room.send(held_back);
                        self.reading_since = Instant::now();
                        Ok(())
                    }
                    _ => Err(log_takes_nothing()),
                },
                // Before the look: after a standstill of ours, what the agent
                // said meanwhile is read before it is taken for silent.
                message = socket.next(), if self.held_back.is_none() => self.heard(socket, message).await,
                () = sleep_until(look_due) => self.look(socket).await,
                // While its words wait for the log nobody knows whether it lives.
                () = sleep_until(answer_due.unwrap_or_else(Instant::now)),
                    if answer_due.is_some() && self.held_back.is_none() =>
                {
                    self.unanswered()
                }
            };
            if let Err(farewell) = step {
                return farewell;
            }
        }
    }

    async fn welcome(&mut self, socket: &mut WebSocket) -> Result<(), Farewell> {
        let welcome = FromBroker::Welcome {
            version: *protocol::VERSIONS.end(),
            epoch: self.epoch,
            oldest_instruction: self.broker.fleet().oldest_instruction(&self.server),
        };
        self.send(socket, &welcome).await?;
        self.instruct(socket).await
    }

    /// Sends what is in the outbox and was not sent on this connection yet.
    async fn instruct(&mut self, socket: &mut WebSocket) -> Result<(), Farewell> {
        let fleet = self.broker.fleet();
        if !counts(&self.broker, &self.server, self.epoch) {
            return Err(void(&self.broker, &self.server, self.epoch));
        }
        for instruction in fleet.outbox_after(&self.server, self.last_sent) {
            let message = FromBroker::Instruction { epoch: self.epoch, instruction: (**instruction).clone() };
            self.send(socket, &message).await?;
            self.last_sent = instruction.id;
        }
        Ok(())
    }

    async fn ask(&mut self, socket: &mut WebSocket, asked: Asked) -> Result<(), Farewell> {
        // Whoever waited too long has gone.
        self.questions.retain(|_, reply| !reply.is_closed());
        self.last_question += 1;
        let number = self.last_question;
        self.questions.insert(number, asked.reply);
        self.send(socket, &FromBroker::Question { number, question: asked.question }).await
    }

    /// When something was last heard, or could have been.
    fn heard_at(&self) -> Instant {
        self.pulse.read_at().max(self.reading_since)
    }

    /// When to look whether the agent is there.
    fn look_due(&self) -> Instant {
        let next_ping = self.heard_at().max(self.pinged_at) + PING_INTERVAL_OF_BROKER;
        if self.held_back.is_some() { next_ping } else { next_ping.min(self.heard_at() + SILENCE_MAX) }
    }

    /// Nothing came for a while: asks whether the agent is there, or gives up.
    async fn look(&mut self, socket: &mut WebSocket) -> Result<(), Farewell> {
        // What nobody reads cannot be heard; pings show that this side lives.
        let is_reading = self.held_back.is_none();
        if is_reading && self.heard_at().elapsed() >= SILENCE_MAX {
            if self.answer_due.is_some() {
                return Err(Farewell::silence());
            }
            return Err(Farewell::new(close::SILENT, "nothing was heard for three pings"));
        }
        if self.look_due() > Instant::now() {
            return Ok(());
        }
        self.ping(socket).await
    }

    async fn ping(&mut self, socket: &mut WebSocket) -> Result<(), Farewell> {
        self.last_ping += 1;
        self.pinged_at = Instant::now();
        self.send(socket, &FromBroker::Ping { number: self.last_ping }).await
    }

    /// Another agent said that it is this server, and was refused: whether
    /// this one lives must be known soon.
    async fn challenge(&mut self, socket: &mut WebSocket) -> Result<(), Farewell> {
        tracing::warn!(
            server = %self.server,
            epoch = %self.epoch,
            "another agent with this server's id was refused: a copied host, unless this one is gone"
        );
        self.answer_due.get_or_insert(Instant::now() + CONTEST_TIMEOUT);
        self.ping(socket).await
    }

    /// The time for an answer is up. An agent that is in the midst of a long
    /// message cannot answer before its end, and lives.
    fn unanswered(&mut self) -> Result<(), Farewell> {
        let now = Instant::now();
        if self.heard_at() + CONTEST_TIMEOUT > now {
            self.answer_due = Some(now + CONTEST_TIMEOUT);
            return Ok(());
        }
        Err(Farewell::silence())
    }

    async fn heard(
        &mut self,
        socket: &mut WebSocket,
        message: Option<Result<Message, axum::Error>>,
    ) -> Result<(), Farewell> {
        self.answer_due = None;
        let text = match message {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(()),
            Some(Ok(Message::Binary(_))) => return Err(Farewell::nonsense("messages are text")),
            Some(Ok(Message::Close(_))) | None => return Err(Farewell::gone()),
            Some(Err(error)) => return Err(Farewell::broken(error)),
        };
        let message: FromAgent =
            serde_json::from_str(&text).map_err(|error| Farewell::nonsense(format!("not understood: {error}")))?;
        match message {
            FromAgent::Hello(_) => Err(Farewell::nonsense("a second hello on one connection")),
            FromAgent::Report { number, mut report } => {
                check_report(&mut report)?;
                let command = Command::Report { server: self.server.clone(), epoch: self.epoch, report };
                self.record(command, FromBroker::Reported { number })
            }
            FromAgent::Answer { instruction, answer } => {
                let answer = bounded(answer);
                let command = Command::Answer { server: self.server.clone(), epoch: self.epoch, instruction, answer };
                self.record(command, FromBroker::Settled { instruction })
            }
            FromAgent::Reply { question, reply } => {
                if let Some(waiting) = self.questions.remove(&question) {
                    // Whoever asked may have gone.
                    let _ = waiting.send(reply);
                }
                Ok(())
            }
            FromAgent::Ping { number } => self.send(socket, &FromBroker::Pong { number }).await,
            FromAgent::Pong { .. } => Ok(()),
        }
    }

    /// Hands something to the recorder, or keeps it until there is room.
    fn record(&mut self, command: Command, then: FromBroker) -> Result<(), Farewell> {
        match self.to_record.try_send(ToRecord { command, then }) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(held_back)) => {
                self.held_back = Some(held_back);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(log_takes_nothing()),
        }
    }

    async fn send(&self, socket: &mut WebSocket, message: &FromBroker) -> Result<(), Farewell> {
        let text = serde_json::to_string(message)
            .map_err(|error| Farewell::nonsense(format!("a message cannot be written: {error}")))?;
        match self.pulse.send(socket.send(Message::Text(text.into())), SILENCE_MAX).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Farewell::gone()),
            Err(Stalled) => Err(Farewell::new(close::SILENT, "the agent does not read")),
        }
    }
}

/// Resolves when this replica is of no use to agents, or is again, and the
/// agent was told otherwise.
async fn changed(contact: &mut watch::Receiver<Contact>, told_cut_off: bool) -> bool {
    let is_news = |contact: &Contact| match contact {
        Contact::Kept => told_cut_off,
        Contact::Lost => false,
        Contact::GivenUp => !told_cut_off,
    };
    if contact.wait_for(is_news).await.is_err() {
        std::future::pending::<()>().await;
    }
    !told_cut_off
}

fn log_takes_nothing() -> Farewell {
    Farewell::new(close::UNAVAILABLE, "the log takes nothing now")
}
