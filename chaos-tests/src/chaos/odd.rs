//! Agents that behave oddly, in this process, over real connections: one that
//! answers late or says everything twice, and one that lies.
//!
//! What they remember and what runs on their hosts is that of the simulated
//! hosts ([`crate::simulation::agents::host`]); here is what they say, and when.
//! The first one's sessions are judged like everybody's. The liar takes no
//! virtual session, so that no client's session can suffer by it being there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::ensure;
use berth::domain::host::{HostFacts, Limits};
use berth::domain::instruction::Answer;
use berth::domain::report::{EndedSession, Inventory, Report};
use berth::domain::{InstructionId, Owner, ServerId, SessionId, Timestamp};
use berth::protocol::{FromAgent, FromBroker, Hello, PING_INTERVAL, SILENCE_MAX, VERSIONS, WELCOME_TIMEOUT};
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::wire::{Line, Opener};
use crate::client::Seen;
use crate::desktops::Desktops;
use crate::lab::Host as LabHost;
use crate::process::Home;
use crate::random::Random;
use crate::simulation::agents::host::Host;
use crate::simulation::judge::Judge;
use crate::simulation::trace::Trace;

/// How often it reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// How often it lies: as often as a report may come.
const LIE_INTERVAL: Duration = Duration::from_millis(200);
/// Before it tries the next replica.
const PAUSE: Duration = Duration::from_millis(200);
/// How long an instruction takes.
const LENGTH_MS: u64 = 30;
/// How long one takes at least when it answers late, and how much longer at most.
const LATE_MS: u64 = 2_000;
const LATER_MS: u64 = 4_000;
/// Instructions that nobody issued are far beyond those that were.
const NOBODYS: u64 = 1 << 40;
/// What a liar claims in one report.
const CLAIMS_MAX: u64 = 5;

/// How an agent behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // `Kind::about` tells
pub enum Manner {
    Proper,
    Late,
    Repeats,
    /// It claims to have these sessions, of other hosts.
    Lies(Arc<Vec<Seen>>),
}

/// What an odd agent may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// So many virtual sessions.
    Virtual(u32),
    /// One console session, and none of the others.
    Console,
}

/// How often it behaved so.
#[derive(Debug, Default)]
pub struct Counts {
    late: AtomicU64,
    repeated: AtomicU64,
    lies: AtomicU64,
}

impl Counts {
    /// Answers given late.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// Messages said once more.
    pub fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Reports of a liar that a broker has confirmed.
    pub fn lies(&self) -> u64 {
        self.lies.load(Ordering::Relaxed)
    }
}

/// An agent that runs.
#[derive(Debug)]
pub struct Odd {
    server: ServerId,
    shared: Arc<Shared>,
    manner: watch::Sender<Manner>,
    stop: CancellationToken,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

struct Shared {
    host: Mutex<Host>,
    judge: Arc<Judge>,
    counts: Counts,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Shared {
    fn host(&self) -> MutexGuard<'_, Host> {
        // Plain data, whole between steps.
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Odd {
    /// Starts one on a host of the lab; it connects when it can.
    pub fn start(
        place: &Arc<LabHost>,
        name: &str,
        brokers: Vec<SocketAddr>,
        home: &Home,
        room: Room,
        random: &mut Random,
    ) -> anyhow::Result<Self> {
        let server = ServerId::new(&format!("{name}-{:016x}", random.next()))?;
        let judge = Arc::new(Judge::new(Arc::new(Trace::new(false))));
        let host = Host::new(name.to_owned(), server.clone(), false, Arc::clone(&judge));
        let shared = Arc::new(Shared { host: Mutex::new(host), judge, counts: Counts::default() });
        let (manner, heeded) = watch::channel(Manner::Proper);
        let stop = CancellationToken::new();
        let opener = Opener::new(home, server.clone(), name)?;
        let life = Life {
            server: server.clone(),
            name: name.to_owned(),
            shared: Arc::clone(&shared),
            manner: heeded,
            room,
            random: random.fork(),
            under_way: BTreeMap::new(),
        };
        let (stopped, place) = (stop.clone(), Arc::clone(place));
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            place.enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::select! {
                    () = stopped.cancelled() => Ok(()),
                    ended = life.live(&opener, &brokers) => ended,
                }
            })
        })?;
        Ok(Self { server, shared, manner, stop, thread: Some(thread) })
    }

    /// Its server.
    pub fn server(&self) -> &str {
        self.server.as_str()
    }

    /// From now on it behaves so.
    pub fn behave(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    /// How often it behaved oddly.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// What really runs on its host.
    pub fn desktops(&self) -> Desktops {
        let live = self.shared.host().desktops().iter().map(ToString::to_string).collect();
        Desktops { server: self.server.to_string(), live, made_again: BTreeSet::new() }
    }

    /// An error when it has ended, or its host was made to do something twice.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let found = self.shared.judge.violations();
        ensure!(found.is_empty(), "on the host of {}: {}", self.server, found.join("; "));
        match self.thread.take_if(|thread| thread.is_finished()).map(JoinHandle::join) {
            Some(Ok(result)) => result.and_then(|()| anyhow::bail!("{} ended by itself", self.server)),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // What went wrong was told by `check`, or nobody asked.
            let _ = thread.join();
        }
    }
}

/// What it does all day.
struct Life {
    server: ServerId,
    name: String,
    shared: Arc<Shared>,
    manner: watch::Receiver<Manner>,
    room: Room,
    random: Random,
    /// Instructions that are being carried out, until when, and whether that is late.
    under_way: BTreeMap<InstructionId, (Instant, bool)>,
}

impl Life {
    async fn live(mut self, opener: &Opener, brokers: &[SocketAddr]) -> anyhow::Result<()> {
        loop {
            let broker = brokers[usize::try_from(self.random.below(brokers.len() as u64))?];
            if let Ok(mut line) = opener.open(broker).await {
                // Whatever ended it: it comes again.
                let _ = self.converse(&mut line).await;
                line.close().await;
            }
            sleep(PAUSE).await;
        }
    }

    /// Speaks until the connection ends, or it becomes another one.
    async fn converse(&mut self, line: &mut Line) -> anyhow::Result<()> {
        let manner = self.manner.borrow_and_update().clone();
        let hello = self.hello(&manner);
        line.say(&FromAgent::Hello(hello)).await?;
        let welcome = timeout(WELCOME_TIMEOUT, line.hear()).await??;
        let FromBroker::Welcome { epoch, oldest_instruction, .. } = welcome else {
            anyhow::bail!("no welcome, but {welcome:?}");
        };
        let again = self.shared.host().welcomed(epoch, oldest_instruction);
        for id in again {
            self.answer(line, id).await?;
        }
        let mut reports = interval(if matches!(manner, Manner::Lies(_)) { LIE_INTERVAL } else { REPORT_INTERVAL });
        let mut pings = interval(PING_INTERVAL);
        let (mut heard_at, mut number) = (Instant::now(), 0);
        loop {
            let next = self.next_done();
            tokio::select! {
                biased;
                heard = line.hear() => {
                    heard_at = Instant::now();
                    self.heed(line, heard?).await?;
                }
                changed = self.manner.changed() => {
                    changed?;
                    let became = self.manner.borrow().clone();
                    // Who begins to lie, or ends, says everything anew.
                    if matches!(became, Manner::Lies(_)) || matches!(manner, Manner::Lies(_)) {
                        return Ok(());
                    }
                }
                () = sleep_until(next.map_or(heard_at, |(at, _)| at)), if next.is_some() => {
                    if let Some((_, id)) = next {
                        self.finish(line, id).await?;
                    }
                }
                _ = reports.tick() => {
                    number += 1;
                    self.report(line, number).await?;
                }
                _ = pings.tick() => {
                    ensure!(heard_at.elapsed() < SILENCE_MAX, "nothing was heard");
                    line.say(&FromAgent::Ping { number }).await?;
                }
            }
        }
    }

    fn hello(&self, manner: &Manner) -> Hello {
        let mut host = self.shared.host();
        host.set_lying(matches!(manner, Manner::Lies(_)));
        let mut report = host.full_report();
        let limits = match self.room {
            Room::Virtual(max) => {
                Limits { virtual_sessions_max: Some(max), sessions_per_owner_max: None, console_sessions: false }
            }
            Room::Console => {
                Limits { virtual_sessions_max: Some(0), sessions_per_owner_max: None, console_sessions: true }
            }
        };
        report.facts = Some(HostFacts { hostname: self.name.clone(), limits, ..HostFacts::default() });
        let report_interval_ms = u64::try_from(REPORT_INTERVAL.as_millis()).unwrap_or(u64::MAX);
        let (server, instance) = (self.server.clone(), host.instance());
        Hello { version: *VERSIONS.end(), server, instance, report_interval_ms, report }
    }

    async fn heed(&mut self, line: &mut Line, heard: FromBroker) -> anyhow::Result<()> {
        match heard {
            FromBroker::Instruction { epoch, instruction } => {
                let admitted = self.shared.host().admit(epoch, &instruction);
                match admitted {
                    Some(true) => self.begin(instruction.id),
                    Some(false) => self.answer(line, instruction.id).await?,
                    None => {}
                }
            }
            FromBroker::Settled { instruction } => self.shared.host().settled(instruction),
            FromBroker::Reported { .. } => {
                if matches!(*self.manner.borrow(), Manner::Lies(_)) {
                    self.shared.counts.lies.fetch_add(1, Ordering::Relaxed);
                }
            }
            FromBroker::Ping { number } => line.say(&FromAgent::Pong { number }).await?,
            // It does not look around first: whoever takes it will do.
            FromBroker::CutOff { cut_off: true } => anyhow::bail!("this broker has no majority"),
            FromBroker::Welcome { .. }
            | FromBroker::Question { .. }
            | FromBroker::Pong { .. }
            | FromBroker::CutOff { cut_off: false } => {}
        }
        Ok(())
    }

    fn begin(&mut self, id: InstructionId) {
        let is_late = *self.manner.borrow() == Manner::Late;
        let length_ms = if is_late { LATE_MS + self.random.below(LATER_MS) } else { self.random.below(LENGTH_MS) };
        self.under_way.insert(id, (Instant::now() + Duration::from_millis(length_ms), is_late));
    }

    /// What is done next, and when.
    fn next_done(&self) -> Option<(Instant, InstructionId)> {
        let host = self.shared.host();
        let ready = self.under_way.iter().filter(|(id, _)| !host.has_to_wait(**id));
        ready.map(|(id, (at, _))| (*at, *id)).min()
    }

    async fn finish(&mut self, line: &mut Line, id: InstructionId) -> anyhow::Result<()> {
        let is_late = self.under_way.remove(&id).is_some_and(|(_, is_late)| is_late);
        self.shared.host().carry_out(id, true, now());
        self.answer(line, id).await?;
        self.shared.counts.late.fetch_add(u64::from(is_late), Ordering::Relaxed);
        Ok(())
    }

    async fn answer(&self, line: &mut Line, instruction: InstructionId) -> anyhow::Result<()> {
        let Some(answer) = self.shared.host().answer(instruction) else { return Ok(()) };
        self.say(line, FromAgent::Answer { instruction, answer }).await
    }

    async fn say(&self, line: &mut Line, message: FromAgent) -> anyhow::Result<()> {
        line.say(&message).await?;
        if *self.manner.borrow() == Manner::Repeats {
            line.say(&message).await?;
            self.shared.counts.repeated.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn report(&mut self, line: &mut Line, number: u64) -> anyhow::Result<()> {
        let manner = self.manner.borrow().clone();
        let report = match &manner {
            Manner::Lies(others) if !others.is_empty() => {
                let instruction = InstructionId(NOBODYS + self.random.below(NOBODYS));
                line.say(&FromAgent::Answer { instruction, answer: Answer::Done }).await?;
                self.lie(others)?
            }
            _ => self.shared.host().report(),
        };
        self.say(line, FromAgent::Report { number, report }).await
    }

    /// Some of the others' sessions are here, as made by the broker's order; some
    /// were here and have ended.
    fn lie(&mut self, others: &[Seen]) -> anyhow::Result<Report> {
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for _ in 0..=self.random.below(CLAIMS_MAX) {
            let other = &others[usize::try_from(self.random.below(others.len() as u64))?];
            let (id, owner) = (SessionId::new(&other.id)?, Owner::new(&other.owner)?);
            if self.random.below(3) == 0 {
                gone.push(EndedSession { id, reason: Some("a lie".to_owned()) });
                continue;
            }
            let claim = Host::claim(id, owner, now());
            let Some(Inventory::Changes { changed: claimed, .. }) = claim.sessions else { continue };
            let by = InstructionId(1 + self.random.below(NOBODYS));
            changed.extend(claimed.into_iter().map(|mut session| {
                session.created_by = Some(by);
                session
            }));
        }
        Ok(Report { sessions: Some(Inventory::Changes { changed, gone }), ..Report::default() })
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
