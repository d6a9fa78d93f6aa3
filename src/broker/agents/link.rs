//! One connection of one agent.
//!
//! Two tasks: one reads what the agent says and what the log has for it, and
//! alone writes to the socket; the recorder puts what the agent said into the
//! log, in order, and what came in meanwhile as one entry. An agent that says
//! more than the log takes has to wait, because nothing more is read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::enrolment::Enrolled;
use super::farewell::Farewell;
use super::registry::{Asked, Registered};
use super::{Agents, bounds, hello, stray};
use crate::broker::api::door::{Unavailable, UnavailableReason};
use crate::broker::contact::Contact;
use crate::broker::core::Broker;
use crate::domain::{Command, Epoch, InstructionId, Outcome, Refusal, ServerId};
use crate::protocol::{
    self, CONTEST_TIMEOUT, FromAgent, FromBroker, HELLO_TIMEOUT, PING_INTERVAL_OF_BROKER, Reply, SILENCE_MAX, close,
};
use crate::pulse::{Pulse, Stalled};

/// Messages of one agent that may wait for the log, and that become one entry.
const WAITING_MAX: usize = 128;

/// Before what an agent said is proposed again; partly random, so that
/// thousands of agents do not come at once.
const PROPOSE_RETRY: Duration = Duration::from_secs(1);

/// Serves a connection until it ends.
/// `who` is the agent that its certificate names; nobody when agents need not
/// prove themselves.
pub(super) async fn serve(mut socket: WebSocket, pulse: Pulse, agents: Agents, who: Option<Enrolled>) {
    let hello = match timeout(HELLO_TIMEOUT, hello::read(&mut socket)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(farewell)) => return farewell.say(&mut socket, None).await,
        Err(_) => {
            let farewell = Farewell::new(close::SILENT, "no hello came in time");
            return farewell.say(&mut socket, None).await;
        }
    };
    let server = hello.server.clone();
    if let Some(who) = who.as_ref().filter(|who| who.server != server) {
        let farewell = Farewell::new(close::NOT_ENROLLED, format!("this agent enrolled as server {}", who.server));
        return farewell.say(&mut socket, Some(&server)).await;
    }
    // It may have been unregistered since it knocked.
    if who.as_ref().is_some_and(|who| !who.may_connect(&agents.broker.fleet())) {
        return unregistered().say(&mut socket, Some(&server)).await;
    }
    let epoch = match hello::admit(&mut socket, &agents, hello).await {
        Ok(epoch) => epoch,
        Err(farewell) => return farewell.say(&mut socket, Some(&server)).await,
    };
    tracing::info!(%server, %epoch, "agent connected");
    let registered = agents.broker.links().register(&server, epoch);
    let farewell = converse(&mut socket, pulse, &agents, (&server, epoch, who), registered).await;
    agents.broker.links().unregister(&server, epoch);
    let gone = if farewell.is_silence {
        Command::AgentSilent { server: server.clone(), epoch }
    } else {
        Command::DisconnectAgent { server: server.clone(), epoch }
    };
    // A dead agent never takes the farewell: the log does not wait for that.
    let said = farewell.say(&mut socket, Some(&server));
    let ((), proposed) = tokio::join!(said, agents.broker.propose(vec![gone]));
    if let Err(error) = proposed {
        // Until the log knows of it, it refuses other runs of this agent.
        tracing::debug!(%server, %error, "the end of a connection did not reach the log yet");
        stray::look_for(&agents, server);
    }
}

fn unregistered() -> Farewell {
    Farewell::new(close::NOT_ENROLLED, "an operator unregistered this agent")
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
    (server, epoch, who): (&ServerId, Epoch, Option<Enrolled>),
    mut registered: Registered,
) -> Farewell {
    let (to_record, recorded, recording) = start_recorder(agents, server, epoch);
    let mut talk = Talk {
        broker: Arc::clone(&agents.broker),
        server: server.clone(),
        who,
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
    who: Option<Enrolled>,
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
                    _ => Err(Farewell::log_takes_nothing()),
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
        if self.who.as_ref().is_some_and(|who| !who.may_connect(&fleet)) {
            return Err(unregistered());
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
                bounds::check(&mut report)?;
                let command = Command::Report { server: self.server.clone(), epoch: self.epoch, report };
                self.record(command, FromBroker::Reported { number })
            }
            FromAgent::Answer { instruction, answer } => {
                let answer = bounds::bounded(answer);
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
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Farewell::log_takes_nothing()),
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
