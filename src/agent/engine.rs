//! The owner of the agent's state: takes instructions, has them carried out
//! once, answers, and reports what changes.
//!
//! Instructions for one session run in order, those for different sessions
//! beside each other up to [`INSTRUCTIONS_AT_ONCE`]. Nothing here waits for a
//! desktop; that happens in tasks, whose ends come back as events.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, info, warn};

use super::Error;
use super::desktops::{Desktops, Shot, State};
use super::ledger::{self, Admission, Ledger};
use super::link::{Event, Outbound, Outgoing};
use super::reports::Told;
use super::snapshot::Snapshot;
use crate::domain::host::Limits;
use crate::domain::instruction::{Action, Answer, Instruction};
use crate::domain::report::Report;
use crate::domain::{AgentInstance, Epoch, InstructionId, Owner, ServerId, SessionId, SessionKind, SessionSpec};
use crate::protocol::{self, FromAgent, FromBroker, Hello, Question, Reply};

/// Instructions that are carried out at a time. Starting a desktop keeps a
/// processor busy for about a second.
const INSTRUCTIONS_AT_ONCE: usize = 8;
/// Pictures that are taken, or wait to be sent, at a time.
const PICTURES_AT_ONCE: usize = 4;
/// Changes within this time go into one report.
const COALESCE: Duration = Duration::from_millis(100);
/// Messages that may wait for a slow broker: every answer of a full ledger, and
/// as many reports.
const WAITING_MAX: usize = 2 * ledger::ENTRIES_MAX;
/// How long the end of the agent waits for what is being carried out.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// What an engine is made of.
pub(super) struct Parts {
    pub(super) server: ServerId,
    pub(super) instance: AgentInstance,
    pub(super) limits: Limits,
    pub(super) report_interval: Duration,
    pub(super) advertise_ip: Option<IpAddr>,
    pub(super) desktops: Arc<dyn Desktops>,
    pub(super) ledger: Ledger,
    pub(super) first: Snapshot,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) snapshots: mpsc::Receiver<Snapshot>,
}

pub(super) struct Engine {
    server: ServerId,
    instance: AgentInstance,
    limits: Limits,
    report_interval: Duration,
    advertise_ip: Option<IpAddr>,
    local_ip: Option<IpAddr>,
    desktops: Arc<dyn Desktops>,
    state: watch::Receiver<State>,
    ledger: Arc<Mutex<Ledger>>,
    snapshot: Snapshot,
    events: mpsc::Receiver<Event>,
    snapshots: mpsc::Receiver<Snapshot>,
    /// Greatest epoch of all welcomes: instructions of another one are void.
    epoch: Epoch,
    link: Link,
    work: Work,
    pictures: Arc<Semaphore>,
    /// When changes that were seen go out.
    report_due: Option<Instant>,
}

enum Link {
    Down,
    /// The hello is on its way.
    Greeting(Told),
    Up(Connection),
}

struct Connection {
    outbound: Outbound,
    _hold: DropGuard,
    /// Messages that wait for room in `outbound`, which a slow broker may lack.
    waiting: VecDeque<FromAgent>,
    told: Told,
    /// Number of the latest report.
    number: u64,
    /// Whether the broker has taken a report of this connection.
    reported: bool,
}

/// Instructions on their way.
#[derive(Default)]
struct Work {
    /// For each session that has any: what waits behind the one that runs.
    queues: HashMap<SessionId, VecDeque<Instruction>>,
    /// Sessions whose next instruction waits for room.
    ready: VecDeque<SessionId>,
    /// Running, each with the session it is for.
    running: JoinSet<(Instruction, Answer)>,
    /// Virtual sessions being made: they count toward the limits.
    creating: HashMap<SessionId, Owner>,
}

impl Engine {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            server: parts.server,
            instance: parts.instance,
            limits: parts.limits,
            report_interval: parts.report_interval,
            advertise_ip: parts.advertise_ip,
            local_ip: None,
            state: parts.desktops.watch(),
            desktops: parts.desktops,
            ledger: Arc::new(Mutex::new(parts.ledger)),
            snapshot: parts.first,
            events: parts.events,
            snapshots: parts.snapshots,
            epoch: Epoch::default(),
            link: Link::Down,
            work: Work::default(),
            pictures: Arc::new(Semaphore::new(PICTURES_AT_ONCE)),
            report_due: None,
        }
    }

    /// Runs until told to stop; then lets what is being carried out finish.
    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        self.resume().await?;
        loop {
            let report_due = self.report_due;
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = self.events.recv() => match event {
                    Some(event) => self.on_link(event).await?,
                    None => return Err(Error::Task("link")),
                },
                snapshot = self.snapshots.recv() => match snapshot {
                    Some(snapshot) => {
                        self.snapshot = snapshot;
                        self.report(true);
                    }
                    None => return Err(Error::Task("snapshot")),
                },
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return Err(Error::Task("desktops"));
                    }
                    self.report_due.get_or_insert_with(|| Instant::now() + COALESCE);
                }
                () = sleep_until(report_due.unwrap_or_else(Instant::now)), if report_due.is_some() => self.report(false),
                permit = room(&self.link) => {
                    if let Link::Up(connection) = &mut self.link
                        && let Some(message) = connection.waiting.pop_front()
                    {
                        permit.send(message.into());
                    }
                }
                Some(ended) = self.work.running.join_next() => self.on_ended(ended).await?,
            }
        }
        self.link = Link::Down;
        let drained = timeout(DRAIN_TIMEOUT, async {
            while let Some(ended) = self.work.running.join_next().await {
                self.finish(ended).await?;
            }
            Ok(())
        });
        drained.await.unwrap_or_else(|_| {
            warn!("instructions that still run are left; the next start resolves them");
            Ok(())
        })
    }

    /// Resolves what the agent's last end interrupted. A create counts as done
    /// when its session is here, and otherwise as failed, with nothing left of
    /// it: the broker may have placed the session elsewhere meanwhile, and
    /// decides itself whether to try again. Everything else is done again.
    async fn resume(&mut self) -> Result<(), Error> {
        let interrupted = self.with_ledger(|ledger| ledger.running()).await?;
        for instruction in interrupted {
            info!(instruction = %instruction.id, "resolving an instruction that the agent's last end interrupted");
            let Action::CreateSession { session, .. } = &instruction.action else {
                self.enqueue(instruction);
                continue;
            };
            let made_by = self.state.borrow().sessions.get(session).map(|found| found.created_by);
            let answer = match made_by {
                Some(created_by) if created_by == Some(instruction.id) => Answer::Done,
                Some(_) => Answer::Failed { reason: exists(session) },
                None => Answer::Failed { reason: "the agent ended while it made the session".to_owned() },
            };
            self.write_answer(&instruction, answer).await?;
        }
        Ok(())
    }

    async fn on_link(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Connected { local, hello } => {
                self.local_ip = Some(local);
                let facts = self.snapshot.facts_at(self.ip());
                let (report, told) = Told::all(facts, self.snapshot.load.clone(), &self.state.borrow_and_update());
                self.report_due = None;
                self.link = Link::Greeting(told);
                let report_interval_ms = u64::try_from(self.report_interval.as_millis()).unwrap_or(u64::MAX);
                // The link may have given up meanwhile; it says so by itself.
                let _ = hello.send(Hello {
                    version: *protocol::VERSIONS.end(),
                    server: self.server.clone(),
                    instance: self.instance.clone(),
                    report_interval_ms,
                    report,
                });
            }
            Event::Welcomed { epoch, oldest_instruction, outbound, hold } => {
                self.on_welcome(epoch, oldest_instruction, outbound, hold).await?;
            }
            Event::Heard(message) => self.on_message(*message).await?,
            Event::Disconnected => self.link = Link::Down,
        }
        Ok(())
    }

    async fn on_welcome(
        &mut self,
        epoch: Epoch,
        oldest: InstructionId,
        outbound: Outbound,
        hold: DropGuard,
    ) -> Result<(), Error> {
        let Link::Greeting(told) = std::mem::replace(&mut self.link, Link::Down) else {
            return Ok(());
        };
        if epoch < self.epoch {
            warn!(%epoch, greatest = %self.epoch, "welcomed with an old epoch; its instructions are void");
        }
        self.epoch = self.epoch.max(epoch);
        let waiting = VecDeque::new();
        self.link = Link::Up(Connection { outbound, _hold: hold, waiting, told, number: 0, reported: false });
        self.ledger_write(move |ledger| ledger.forget_below(oldest)).await?;
        let answers: Vec<(InstructionId, Action, Answer)> = self
            .with_ledger(|ledger| {
                let all = ledger.answers();
                all.map(|(instruction, answer)| (instruction.id, instruction.action.clone(), answer.clone())).collect()
            })
            .await?;
        for (instruction, action, answer) in answers {
            self.answer(instruction, &action, answer);
        }
        self.report(true);
        Ok(())
    }

    async fn on_message(&mut self, message: FromBroker) -> Result<(), Error> {
        match message {
            FromBroker::Reported { number } => {
                if let Link::Up(connection) = &mut self.link
                    && !std::mem::replace(&mut connection.reported, true)
                {
                    // Installers look for these two words in the agent's log.
                    info!(number, "sessionsUpdateResponse: success");
                }
            }
            FromBroker::Instruction { epoch, instruction } => {
                if epoch == self.epoch {
                    self.on_instruction(instruction).await?;
                } else {
                    debug!(%epoch, current = %self.epoch, instruction = %instruction.id, "void instruction");
                }
            }
            FromBroker::Settled { instruction } => {
                self.ledger_write(move |ledger| ledger.settle(instruction)).await?;
            }
            FromBroker::Question { number, question } => self.on_question(number, question),
            // The link's matter.
            FromBroker::Welcome { .. }
            | FromBroker::Ping { .. }
            | FromBroker::Pong { .. }
            | FromBroker::CutOff { .. } => {}
        }
        Ok(())
    }

    async fn on_instruction(&mut self, instruction: Instruction) -> Result<(), Error> {
        let given = instruction.clone();
        match self.with_ledger(move |ledger| ledger.admit(&given)).await? {
            Ok(Admission::Run) => {
                info!(instruction = %instruction.id, session = %instruction.action.session(), action = name(&instruction.action), "instructed");
                self.enqueue(instruction);
            }
            Ok(Admission::Running) => {}
            Ok(Admission::Answered(answer)) => self.answer(instruction.id, &instruction.action, answer),
            Err(error) => {
                error!(%error, instruction = %instruction.id, "an instruction is refused; letting go of the link");
                self.link = Link::Down;
            }
        }
        Ok(())
    }

    fn enqueue(&mut self, instruction: Instruction) {
        let session = instruction.action.session().clone();
        if let Some(queue) = self.work.queues.get_mut(&session) {
            queue.push_back(instruction);
        } else {
            self.work.queues.insert(session.clone(), VecDeque::from([instruction]));
            self.work.ready.push_back(session);
        }
        self.start_ready();
    }

    fn start_ready(&mut self) {
        while self.work.running.len() < INSTRUCTIONS_AT_ONCE {
            let Some(session) = self.work.ready.pop_front() else { return };
            let Some(instruction) = self.work.queues.get_mut(&session).and_then(VecDeque::pop_front) else {
                self.work.queues.remove(&session);
                continue;
            };
            self.start(instruction);
        }
    }

    fn start(&mut self, instruction: Instruction) {
        let desktops = Arc::clone(&self.desktops);
        let refusal = match &instruction.action {
            Action::CreateSession { session, spec } => self.refuse(instruction.id, session, spec),
            _ => None,
        };
        if let (None, Action::CreateSession { session, spec }) = (&refusal, &instruction.action)
            && spec.kind == SessionKind::Virtual
        {
            self.work.creating.insert(session.clone(), spec.owner.clone());
        }
        self.work.running.spawn(async move {
            if let Some(answer) = refusal {
                return (instruction, answer);
            }
            let outcome = match instruction.action.clone() {
                Action::CreateSession { session, spec } => desktops.create(session, spec, Some(instruction.id)).await,
                Action::CloseSession { session } => desktops.close(session).await,
                Action::SetPermissions { session, permissions } => desktops.set_permissions(session, permissions).await,
            };
            let answer = match outcome {
                Ok(()) => Answer::Done,
                Err(failure) => Answer::Failed { reason: failure.0 },
            };
            (instruction, answer)
        });
    }

    /// The answer to a create that cannot, or need not, be carried out. The
    /// broker places within the limits; but a session that the host made by
    /// itself may have come in between.
    fn refuse(&self, instruction: InstructionId, session: &SessionId, spec: &SessionSpec) -> Option<Answer> {
        let failed = |reason: String| Some(Answer::Failed { reason });
        let state = self.state.borrow();
        if let Some(found) = state.sessions.get(session) {
            return if found.created_by == Some(instruction) { Some(Answer::Done) } else { failed(exists(session)) };
        }
        let of_kind = |kind| state.sessions.values().filter(move |session| session.kind == kind);
        if spec.kind == SessionKind::Console {
            if !self.limits.console_sessions {
                return failed("this host gives no console sessions".to_owned());
            }
            return of_kind(SessionKind::Console)
                .next()
                .and_then(|_| failed("this host has a console session already".to_owned()));
        }
        let creating = self.work.creating.iter().filter(|(id, _)| !state.sessions.contains_key(*id));
        let owners: Vec<&Owner> = of_kind(SessionKind::Virtual)
            .map(|session| &session.owner)
            .chain(creating.map(|(_, owner)| owner))
            .collect();
        let reached = |limit: Option<u32>, count: usize| limit.filter(|limit| count >= *limit as usize);
        if let Some(limit) = reached(self.limits.virtual_sessions_max, owners.len()) {
            return failed(format!("this host accepts at most {limit} virtual sessions"));
        }
        let own = owners.iter().filter(|owner| ***owner == spec.owner).count();
        if let Some(limit) = reached(self.limits.sessions_per_owner_max, own) {
            return failed(format!("this host accepts at most {limit} sessions of user {}", spec.owner));
        }
        None
    }

    async fn on_ended(&mut self, ended: Result<(Instruction, Answer), tokio::task::JoinError>) -> Result<(), Error> {
        let session = self.finish(ended).await?;
        if self.work.queues.get(&session).is_some_and(VecDeque::is_empty) {
            self.work.queues.remove(&session);
        } else {
            self.work.ready.push_back(session);
        }
        self.start_ready();
        Ok(())
    }

    async fn finish(
        &mut self,
        ended: Result<(Instruction, Answer), tokio::task::JoinError>,
    ) -> Result<SessionId, Error> {
        // A panic is a defect; which instruction it was is no longer known, so
        // the agent ends and resolves it at its next start.
        let (instruction, answer) = ended.map_err(|_| Error::Task("instruction"))?;
        let session = instruction.action.session().clone();
        self.work.creating.remove(&session);
        match &answer {
            Answer::Done => info!(instruction = %instruction.id, %session, action = name(&instruction.action), "done"),
            Answer::Failed { reason } => {
                warn!(instruction = %instruction.id, %session, action = name(&instruction.action), %reason, "failed");
            }
        }
        self.write_answer(&instruction, answer).await?;
        Ok(session)
    }

    async fn write_answer(&mut self, instruction: &Instruction, answer: Answer) -> Result<(), Error> {
        let (id, written) = (instruction.id, answer.clone());
        self.ledger_write(move |ledger| ledger.finish(id, &written)).await?;
        self.answer(id, &instruction.action, answer);
        Ok(())
    }

    /// Sends an answer. The broker takes a session for ready when it hears that
    /// it was made, and no report before that counts. So that it does not wait
    /// for ever on one that has ended since, a create is done only while its
    /// session is here, and from then on reports tell of its end.
    ///
    /// What is said of a session while the broker has it made or closed is
    /// passed over. Is another one of its id here, or is it here all the same,
    /// because it could not be closed or was made anew, the next report tells of
    /// it again.
    fn answer(&mut self, instruction: InstructionId, action: &Action, mut answer: Answer) {
        if let (Answer::Done, Action::CreateSession { session, .. }) = (&answer, action) {
            let state = self.state.borrow();
            if state.sessions.get(session).is_some_and(|found| found.created_by == Some(instruction)) {
                if let Link::Up(connection) = &mut self.link {
                    connection.told.made(session);
                }
            } else {
                let why = state.reason_of_end(session).unwrap_or("it was closed");
                answer = Answer::Failed { reason: format!("the session was made and has ended: {why}") };
            }
        }
        let passed_over = match action {
            Action::CreateSession { .. } => answer != Answer::Done,
            Action::CloseSession { .. } => true,
            Action::SetPermissions { .. } => false,
        };
        if let (true, Link::Up(connection)) = (passed_over, &mut self.link) {
            connection.told.again(action.session());
        }
        self.send(FromAgent::Answer { instruction, answer });
    }

    fn on_question(&mut self, question: u64, asked: Question) {
        let Link::Up(connection) = &self.link else { return };
        let outbound = connection.outbound.clone();
        let Ok(permit) = Arc::clone(&self.pictures).try_acquire_owned() else {
            let reason = format!("the agent takes {PICTURES_AT_ONCE} pictures already; ask again");
            self.send(FromAgent::Reply { question, reply: Reply::Failed { reason } });
            return;
        };
        let desktops = Arc::clone(&self.desktops);
        tokio::spawn(async move {
            let Question::Screenshot { session, width_max, height_max, format } = asked;
            let reply = match desktops.screenshot(session, Shot { width_max, height_max, format }).await {
                Ok(images) => Reply::Screenshot(images),
                Err(failure) => Reply::Failed { reason: failure.0 },
            };
            // Without a connection nobody waits for the picture any more.
            let message = FromAgent::Reply { question, reply };
            let _ = outbound.send(Outgoing { message, permit: Some(permit) }).await;
        });
    }

    /// Sends what changed. With `alive` also when nothing did, and with the
    /// figures of the host.
    fn report(&mut self, alive: bool) {
        self.report_due = None;
        let ip = self.ip();
        let Link::Up(connection) = &mut self.link else { return };
        let mut report = Report::default();
        if alive {
            connection.told.host(&mut report, self.snapshot.facts_at(ip), self.snapshot.load.clone());
        }
        connection.told.desktops(&mut report, &self.state.borrow_and_update());
        if alive || report != Report::default() {
            connection.number += 1;
            let number = connection.number;
            self.send(FromAgent::Report { number, report });
        }
    }

    /// Has a message sent when there is room. A link that is too far behind is
    /// let go of: the next connection starts with a full report and all answers.
    fn send(&mut self, message: FromAgent) {
        let Link::Up(connection) = &mut self.link else { return };
        if connection.waiting.len() < WAITING_MAX {
            connection.waiting.push_back(message);
        } else {
            warn!("the broker takes nothing; letting go of the link");
            self.link = Link::Down;
        }
    }

    fn ip(&self) -> Option<IpAddr> {
        self.advertise_ip.or(self.local_ip)
    }

    async fn with_ledger<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ledger) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let ledger = Arc::clone(&self.ledger);
        {
            let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            if !ledger.is_on_disk() {
                return Ok(work(&mut ledger));
            }
        }
        let done =
            tokio::task::spawn_blocking(move || work(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner)));
        done.await.map_err(|_| Error::Task("ledger"))
    }

    /// Writes to the ledger. A disk that does not take it costs the memory of
    /// the outcome over a restart only, so the agent goes on, loudly.
    async fn ledger_write(
        &self,
        work: impl FnOnce(&mut Ledger) -> Result<(), ledger::Error> + Send + 'static,
    ) -> Result<(), Error> {
        if let Err(error) = self.with_ledger(work).await? {
            error!(%error, "the ledger cannot be written");
        }
        Ok(())
    }
}

/// Waits until a waiting message can be sent.
async fn room(link: &Link) -> mpsc::OwnedPermit<Outgoing> {
    if let Link::Up(connection) = link
        && !connection.waiting.is_empty()
        && let Ok(permit) = connection.outbound.clone().reserve_owned().await
    {
        return permit;
    }
    // Nothing waits, or the link is gone and says so by itself.
    std::future::pending().await
}

fn exists(session: &SessionId) -> String {
    format!("session {session} exists already on this host")
}

fn name(action: &Action) -> &'static str {
    match action {
        Action::CreateSession { .. } => "create",
        Action::CloseSession { .. } => "close",
        Action::SetPermissions { .. } => "set permissions",
    }
}
