//! The world: a log, three replicas that apply it, hosts, connections, and
//! what passes between them. One step is one entry of the log.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt::Write;
use std::mem::Discriminant;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::agent::{Character, Host, Luck, ToAgent};
use super::checks::{self, Walk};
use super::faults::Fault;
use super::shadow::Shadow;
use super::{Check, ensure, wishes};
use crate::domain::codec::{decode_command, encode_command};
use crate::domain::command::{Command, Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::fleet::{Fleet, Stamp};
use crate::domain::ids::{Epoch, InstructionId, LogIndex, ReplicaId};
use crate::domain::instruction::Action;
use crate::domain::report::Report;
use crate::domain::server::Unavailability;
use crate::domain::settings::Settings;
use crate::domain::time::{Millis, Timestamp};

/// Hosts of a run.
const HOSTS: u8 = 5;
/// Entries that a failure shows.
const TRAIL_MAX: usize = 40;
/// Entries between two snapshots that a replica is restored from.
const ENTRIES_PER_IMAGE: u64 = 150;
/// Entries between two times of calm.
const ENTRIES_PER_CALM: u64 = 500;
/// Rounds of a calm, a second each.
const CALM_ROUNDS: u32 = 20;
/// Longest settings that are ever configured.
pub(super) const RETRIES_MAX: u32 = 2;
pub(super) const QUEUE_TIMEOUT_MAX: Millis = Millis(40_000);
pub(super) const PREPARE_TIMEOUT_MAX: Millis = Millis(20_000);
pub(super) const DELETE_TIMEOUT_MAX: Millis = Millis(15_000);
/// A host is told three times to end a session.
pub(super) const DELETING_MAX: Millis = Millis(3 * DELETE_TIMEOUT_MAX.0);
/// Each attempt may wait for a server, for the host, and for its giving up.
pub(super) const CREATING_MAX: Millis =
    Millis((RETRIES_MAX as u64 + 1) * (QUEUE_TIMEOUT_MAX.0 + PREPARE_TIMEOUT_MAX.0 + DELETE_TIMEOUT_MAX.0));

/// A command on its way to the log.
pub(super) struct Proposal {
    pub(super) command: Command,
    /// The host that it is about, by number.
    pub(super) of: Option<usize>,
}

/// What happened at all: lives in which nothing does prove nothing.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) events: HashSet<Discriminant<Event>>,
    pub(super) unavailable: BTreeSet<Unavailability>,
}

impl Seen {
    fn note(&mut self, events: &[Event], fleet: &Fleet) {
        self.events.extend(events.iter().map(std::mem::discriminant));
        self.unavailable.extend(fleet.servers().filter_map(|server| fleet.unavailability(server)));
    }

    pub(super) fn join(&mut self, other: Self) {
        self.events.extend(other.events);
        self.unavailable.extend(other.unavailable);
    }
}

/// An entry of the log, for whoever looks for the cause of a failure.
struct Trace {
    stamp: Stamp,
    due: Vec<Event>,
    commands: Vec<(Command, Option<Outcome>, Vec<Event>)>,
}

impl Trace {
    /// Whether there was nothing but signs of life.
    fn is_empty(&self) -> bool {
        self.due.is_empty() && self.commands.iter().all(|(command, ..)| is_sign_of_life(command))
    }
}

fn is_sign_of_life(command: &Command) -> bool {
    matches!(command, Command::Report { report, .. } if *report == Report::default())
}

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) fleet: Fleet,
    /// One applies the whole log as bytes; one is restored from a snapshot now
    /// and then.
    replicas: [Fleet; 2],
    index: u64,
    pub(super) at: u64,
    pub(super) shadow: Shadow,
    pub(super) hosts: Vec<Host>,
    /// What old connections still say, some day.
    pub(super) late: Vec<Command>,
    pub(super) requests: VecDeque<Command>,
    pub(super) last_session: u64,
    pub(super) fault: Option<Fault>,
    pub(super) seen: Seen,
    walk: Walk,
    trail: VecDeque<Trace>,
}

impl World {
    pub(super) fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let bad = [Character::Honest, Character::Honest, Character::Liar, Character::Twin][rng.random_range(0..4)];
        let hosts = (0..HOSTS).map(|number| {
            // The last one is the bad one; a twin has the first one's id, whose
            // words then count as little.
            let is_bad = number == HOSTS - 1 || (bad == Character::Twin && number == 0);
            let id = if bad == Character::Twin && number == HOSTS - 1 { 0 } else { number };
            let character = if is_bad { bad } else { Character::Honest };
            let (facts, load) = (wishes::any_facts(&mut rng), wishes::any_load(&mut rng));
            Host::new(super::super::server_id(id), number, character, facts, load)
        });
        let hosts = hosts.collect();
        Self {
            rng,
            fleet: Fleet::default(),
            replicas: [Fleet::default(), Fleet::default()],
            index: 0,
            at: 1_000_000,
            shadow: Shadow::default(),
            hosts,
            late: Vec::new(),
            requests: VecDeque::new(),
            last_session: 0,
            fault,
            seen: Seen::default(),
            walk: Walk::default(),
            trail: VecDeque::new(),
        }
    }

    /// So many steps of a life.
    pub(super) fn live(&mut self, steps: u64) -> Check {
        let settings = self.any_settings();
        self.enter(vec![Proposal { command: Command::Configure(settings), of: None }])?;
        let until = self.index + steps;
        while self.index < until {
            self.pass_time()?;
            let mut batch = Vec::new();
            for _ in 0..[1, 1, 1, 2, 3][self.rng.random_range(0..5)] {
                self.act(&mut batch)?;
            }
            self.enter(batch)?;
            if self.index.is_multiple_of(ENTRIES_PER_IMAGE) {
                self.restore()?;
            }
            if self.index.is_multiple_of(ENTRIES_PER_CALM) {
                self.calm()?;
            }
        }
        Ok(())
    }

    /// Entries of the log so far.
    pub(super) const fn steps(&self) -> u64 {
        self.index
    }

    pub(super) fn any_settings(&mut self) -> Settings {
        let lost = [None, Some(Millis(50_000)), Some(Millis(200_000))];
        Settings {
            deleted_retention: Millis([10_000, 60_000][self.rng.random_range(0..2)]),
            prepare_timeout: PREPARE_TIMEOUT_MAX,
            delete_timeout: DELETE_TIMEOUT_MAX,
            queue_max: self.rng.random_range(2..7),
            queue_timeout: QUEUE_TIMEOUT_MAX,
            reports_missed_max: self.rng.random_range(2..4),
            lost_server_retention: Millis([30_000, 90_000][self.rng.random_range(0..2)]),
            lost_session_retention: lost[self.rng.random_range(0..3)],
            create_retries_max: self.rng.random_range(0..=RETRIES_MAX),
            avoid_failed_server: Millis(30_000),
            placement: wishes::any_policy(&mut self.rng),
            journal_records_max: 20,
            journal_bytes_max: [4_000, 100_000][self.rng.random_range(0..2)],
            journal_retention: Millis([0, 20_000][self.rng.random_range(0..2)]),
            idempotency_retention: Millis(20_000),
            idempotency_keys_max: 100,
        }
    }

    /// Time moves on: a little, or past what is due, with a leader that deals
    /// with each thing in its time or one that stood still meanwhile.
    fn pass_time(&mut self) -> Check {
        let span = match self.rng.random_range(0..1000) {
            0..900 => self.rng.random_range(0..400),
            900..985 => self.rng.random_range(400..4_000),
            985..998 => self.rng.random_range(4_000..60_000),
            998 => self.rng.random_range(60_000..4_000_000),
            _ => 31 * 24 * 3_600_000,
        };
        let until = self.at + span;
        let is_awake = self.rng.random_bool(0.7);
        while is_awake && self.shadow_deadline().is_some_and(|due| due <= until) {
            let due = self.shadow_deadline().unwrap_or(until);
            self.at = self.at.max(due);
            self.enter(Vec::new())?;
        }
        if !is_awake {
            // Nobody can be held to times in which nothing happened.
            let stood_still = Millis(until - self.at);
            self.shadow
                .sessions
                .values_mut()
                .for_each(|session| session.waits_since = session.waits_since + stood_still);
        }
        self.at = until;
        Ok(())
    }

    fn shadow_deadline(&self) -> Option<u64> {
        self.fleet.next_deadline().map(|due| due.0)
    }

    /// One entry of the log.
    pub(super) fn enter(&mut self, batch: Vec<Proposal>) -> Check {
        self.index += 1;
        let stamp = Stamp { index: LogIndex(self.index), at: Timestamp(self.at) };
        ensure!(self.fleet.applied() < stamp.index, "the state is ahead of the log");
        // One in which nothing happened makes room for the next.
        if self.trail.back().is_some_and(Trace::is_empty) {
            self.trail.pop_back();
        } else if self.trail.len() == TRAIL_MAX {
            self.trail.pop_front();
        }
        self.trail.push_back(Trace { stamp, due: Vec::new(), commands: Vec::new() });
        let told = if self.fault == Some(Fault::TimersStopped) { Timestamp(0) } else { stamp.at };
        let moved = Stamp { at: told, ..stamp };
        let due = self.fleet.advance(moved);
        for replica in &mut self.replicas {
            ensure!(replica.advance(moved) == due, "a replay lets something else happen when time passes");
        }
        self.read(stamp, &[], due)?;
        checks::nothing_is_overdue(&self.shadow, stamp.at)?;
        for proposal in batch {
            self.apply(stamp, proposal)?;
        }
        for replica in &self.replicas {
            ensure!(*replica == self.fleet, "a replay comes to another state");
        }
        ensure!(self.fleet.applied() == stamp.index, "the state does not know its entry");
        self.walk.watch(&self.fleet);
        if self.rng.random_bool(0.3) {
            let size = self.rng.random_range(1..6);
            self.walk.read_page(&self.fleet, size)?;
            let (labels, after) = (self.any_labels(), self.any_session().map(|(id, _)| id));
            checks::listing(&self.fleet, &self.shadow, &labels, after.as_ref())?;
        }
        self.send_instructions();
        checks::hosts(&self.hosts)
    }

    fn apply(&mut self, stamp: Stamp, Proposal { command, of }: Proposal) -> Check {
        let void = match &command {
            Command::Report { server, epoch, .. }
            | Command::Answer { server, epoch, .. }
            | Command::DisconnectAgent { server, epoch } => !self.shadow.is_current(server, *epoch),
            _ => false,
        };
        let before = self.fleet.clone();
        let proposed = self.tampered(command.clone());
        let bytes = encode_command(&proposed).map_err(|error| error.to_string())?;
        let applied = self.fleet.apply(stamp, proposed);
        for number in 0..self.replicas.len() {
            if self.fault == Some(Fault::CommandMissed) && number == 0 && matches!(command, Command::Answer { .. }) {
                continue;
            }
            let command = decode_command(&bytes).map_err(|error| error.to_string())?;
            let again = self.replicas[number].apply(stamp, command);
            ensure!(again == applied, "a replay gives {again:?} for {applied:?}");
        }
        if self.fault == Some(Fault::CreateForgotten) && matches!(applied.outcome, Outcome::Created { .. }) {
            self.fleet = before.clone();
        }
        if let Some(trace) = self.trail.back_mut() {
            trace.commands.push((command.clone(), Some(applied.outcome.clone()), Vec::new()));
        }
        // Without timers the word itself would move time.
        if void && self.fault != Some(Fault::TimersStopped) {
            let refused = applied.outcome == Outcome::Refused(Refusal::StaleEpoch) && applied.events.is_empty();
            ensure!(refused && self.fleet == before, "a word of an old connection had an effect: {command:?}");
        }
        let repeated = matches!(&command, Command::CreateSession { id, .. } if before.session(id).is_some());
        ensure!(!repeated || applied.events.is_empty(), "a repeated request had an effect");
        if let Some(expected) = self.shadow.expected(stamp.at, &command) {
            let same = applied.outcome == expected && applied.events.is_empty();
            ensure!(same, "a request with a key was repeated and came to something else: {expected:?}");
        }
        let (causes, outcomes) = match (&command, &applied.outcome) {
            (Command::Once { .. }, Outcome::Repeated { .. } | Outcome::Refused(_)) => (&[][..], &[][..]),
            (Command::Once { commands, .. }, Outcome::Once(outcomes)) => (&commands[..], &outcomes[..]),
            (command, outcome) => (std::slice::from_ref(command), std::slice::from_ref(outcome)),
        };
        ensure!(causes.len() == outcomes.len(), "{causes:?} came to {outcomes:?}");
        for (cause, outcome) in causes.iter().zip(outcomes) {
            // What came before of the same command changed what it met.
            if causes.len() == 1 {
                checks::outcome(&self.shadow, &self.fleet, cause, outcome, &applied.events)?;
            }
            self.shadow.acknowledge(cause, outcome);
        }
        self.shadow.keep(stamp.at, &command, &applied.outcome);
        self.read(stamp, causes, applied.events)?;
        self.heard(command, &applied.outcome, of);
        Ok(())
    }

    /// Reads along and checks what is there now.
    fn read(&mut self, stamp: Stamp, causes: &[Command], events: Vec<Event>) -> Check {
        self.shadow.begin();
        let events = self.misread(events);
        if let Some(trace) = self.trail.back_mut() {
            match trace.commands.last_mut() {
                Some((_, _, told)) => told.clone_from(&events),
                None => trace.due.clone_from(&events),
            }
        }
        self.seen.note(&events, &self.fleet);
        for event in &events {
            self.shadow.read(stamp.at, causes, event)?;
        }
        if causes.is_empty() && events.is_empty() { Ok(()) } else { checks::state(&self.fleet, &self.shadow) }
    }

    /// The proposer hears what came of a command.
    fn heard(&mut self, command: Command, outcome: &Outcome, of: Option<usize>) {
        let Some(host) = of.and_then(|number| self.hosts.get_mut(number)) else { return };
        match (command, outcome) {
            (Command::ConnectAgent { server, via, report, .. }, Outcome::Welcome { epoch }) => {
                let oldest = self.fleet.oldest_instruction(&server);
                host.connected(via, *epoch, oldest, &report);
            }
            (Command::ConnectAgent { server, .. }, Outcome::Refused(Refusal::OtherInstance)) => {
                // The replica asks the agent that it holds, and lets go of one that is not there.
                let Some(epoch) = self.fleet.server(&server).map(|server| server.link.epoch()) else { return };
                let is_there = |host: &Host| host.id == server && host.link.as_ref().is_some_and(|l| l.epoch == epoch);
                if !self.hosts.iter().any(is_there) {
                    self.late.push(Command::DisconnectAgent { server, epoch });
                }
            }
            (Command::Report { epoch, .. } | Command::Answer { epoch, .. }, Outcome::Refused(Refusal::StaleEpoch)) => {
                self.drop_link(of, epoch);
            }
            (Command::Answer { epoch, instruction, .. }, _) => {
                if let Some(link) = host.link.as_mut().filter(|link| link.epoch == epoch) {
                    link.to_agent.push_back(ToAgent::Settled(instruction));
                }
            }
            _ => {}
        }
    }

    fn drop_link(&mut self, of: Option<usize>, epoch: Epoch) {
        let host = of.and_then(|number| self.hosts.get_mut(number));
        if let Some(host) = host.filter(|host| host.link.as_ref().is_some_and(|link| link.epoch == epoch)) {
            host.link = None;
        }
    }

    /// Replicas send what the outboxes hold, each on the connections that it
    /// holds and that still count.
    fn send_instructions(&mut self) {
        let mut doubled = Vec::new();
        for host in &mut self.hosts {
            let Some(link) = &mut host.link else { continue };
            if self.fleet.server(&host.id).is_none_or(|server| server.link.epoch() != link.epoch) {
                host.link = None;
                continue;
            }
            for instruction in self.fleet.outbox_after(&host.id, link.sent) {
                let message = ToAgent::Instruction { epoch: link.epoch, instruction: Arc::clone(instruction) };
                if matches!(instruction.action, Action::CreateSession { .. }) {
                    doubled.push((host.id.clone(), Arc::clone(instruction)));
                }
                link.to_agent.push_back(message);
                link.sent = link.sent.max(instruction.id);
            }
        }
        if self.fault == Some(Fault::InstructionDoubled) {
            for (server, instruction) in doubled {
                let others = self.hosts.iter_mut().filter(|host| host.id != server);
                for link in others.filter_map(|host| host.link.as_mut()) {
                    let (epoch, instruction) = (link.epoch, instruction.clone());
                    link.to_agent.push_back(ToAgent::Instruction { epoch, instruction });
                }
            }
        }
    }

    /// A replica is restored from a snapshot, whose bytes are the same everywhere.
    fn restore(&mut self) -> Check {
        let image = image(&self.fleet)?;
        for replica in &self.replicas {
            ensure!(self::image(replica)? == image, "the bytes of two replicas differ");
        }
        let restored = Fleet::read_image(&mut image.as_slice()).map_err(|error| error.to_string())?;
        ensure!(restored == self.fleet, "what was restored differs");
        self.replicas[1] = restored;
        Ok(())
    }

    /// Nothing goes wrong for a while and everybody says everything: what the
    /// broker has must then be what runs. Agents tell changes only, as ever.
    fn calm(&mut self) -> Check {
        for _ in 0..CALM_ROUNDS {
            self.at += 1_000;
            self.enter(Vec::new())?;
            let mut begins = true;
            while self.let_everybody_speak(std::mem::take(&mut begins))? {}
        }
        for host in self.hosts.iter().filter(|host| host.character == Character::Honest && !host.has_vanished) {
            checks::broker_has_what_runs(&self.fleet, &self.shadow, host)?;
        }
        Ok(())
    }

    /// Whether anybody had anything to say or to do.
    fn let_everybody_speak(&mut self, is_first: bool) -> Result<bool, String> {
        let late = self.late.drain(..).map(|command| Proposal { command, of: None });
        let mut batch: Vec<Proposal> = late.collect();
        for number in 0..self.hosts.len() {
            let host = &mut self.hosts[number];
            if host.character != Character::Honest || host.has_vanished {
                continue;
            }
            if host.link.is_none() {
                let command = host.hello(ReplicaId(1));
                batch.push(Proposal { command, of: Some(number) });
                continue;
            }
            while host.link.as_ref().is_some_and(|link| !link.to_agent.is_empty()) {
                host.listen();
            }
            let open: Vec<InstructionId> = host.open();
            let did_something = !open.is_empty();
            for instruction in open {
                host.carry_out(instruction, Luck::Good, Timestamp(self.at))?;
            }
            if is_first || did_something {
                host.report();
            }
            let words = host.link.iter_mut().flat_map(|link| link.to_broker.drain(..));
            batch.extend(words.map(|command| Proposal { command, of: Some(number) }));
        }
        if batch.is_empty() {
            return Ok(false);
        }
        self.enter(batch)?;
        Ok(true)
    }

    /// The last entries, readable.
    pub(super) fn trail(&self) -> String {
        let mut text = String::new();
        for Trace { stamp, due, commands } in &self.trail {
            let _ = writeln!(text, "entry {} at {}", stamp.index, stamp.at.0);
            for event in due {
                let _ = writeln!(text, "      {}", brief(event));
            }
            for (command, outcome, events) in commands.iter().filter(|(command, ..)| !is_sign_of_life(command)) {
                let _ = writeln!(text, "  {}", brief(command));
                let _ = writeln!(text, "    = {}", outcome.as_ref().map_or_else(String::new, brief));
                for event in events {
                    let _ = writeln!(text, "      {}", brief(event));
                }
            }
        }
        text
    }
}

fn image(fleet: &Fleet) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    fleet.write_image(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// A value on one line, without what is not set.
fn brief(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    let parts = text.split(", ").filter(|part| !part.ends_with(": None") && !part.ends_with(": \"\""));
    let mut text = parts.collect::<Vec<_>>().join(", ");
    text.truncate(text.floor_char_boundary(700));
    text
}
