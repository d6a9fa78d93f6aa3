//! What clients, operators, hosts and connections do of themselves.

use rand::Rng;

use super::agent::{self, Character, Luck};
use super::faults::Fault;
use super::world::{Proposal, World};
use super::{Check, wishes};
use crate::domain::command::Command;
use crate::domain::fleet::Label;
use crate::domain::host::Health;
use crate::domain::ids::{ClientId, Epoch, InstructionId, Owner, ReplicaId, ServerId, SessionId};
use crate::domain::instruction::Answer;
use crate::domain::report::{EndedSession, Inventory, Report};
use crate::domain::request::Fingerprint;
use crate::domain::session::{SessionKind, SessionSpec};
use crate::domain::time::{Millis, Timestamp};

/// Sessions that are listed at a time; more are not asked for.
const SESSIONS_MAX: usize = 20;
/// Requests that may be repeated.
const REQUESTS_MAX: usize = 5;

impl World {
    /// Somebody does something; what reaches the log is put into the batch.
    pub(super) fn act(&mut self, batch: &mut Vec<Proposal>) -> Check {
        let command = match self.rng.random_range(0..1000) {
            0..90 => self.request(),
            90..130 => Some(self.request_with_key()),
            130..150 => self.repeated_request(),
            150..200 => self.deletion(),
            200..225 => self.permissions(),
            225..265 => Some(self.operation()),
            265..268 => Some(Command::Configure(self.any_settings())),
            268..270 => Some(self.replica_started()),
            270..272 => Some(self.replica_silent()),
            272..310 => self.late_word(),
            _ => {
                let number = self.rng.random_range(0..self.hosts.len());
                return self.host_acts(number, batch);
            }
        };
        batch.extend(command.map(|command| Proposal { command, of: None }));
        Ok(())
    }

    fn client(&mut self) -> ClientId {
        ClientId::new(["portal", "script"][self.rng.random_range(0..2)]).expect("valid")
    }

    /// A new request. Ids of requests are never used again.
    fn request(&mut self) -> Option<Command> {
        if self.fleet.session_count() >= SESSIONS_MAX {
            return None;
        }
        self.last_session += 1;
        let id = SessionId::new(&format!("s{}", self.last_session)).expect("valid");
        let command = Command::CreateSession { id, spec: wishes::any_spec(&mut self.rng), client: self.client() };
        self.remember(&command);
        Some(command)
    }

    fn remember(&mut self, command: &Command) {
        if self.requests.len() == REQUESTS_MAX {
            self.requests.pop_front();
        }
        self.requests.push_back(command.clone());
    }

    /// Something that is to be done once, under one of a few keys: some are
    /// used again for something else, soon or after their time.
    fn request_with_key(&mut self) -> Command {
        let commands: Vec<Command> = if self.rng.random_bool(0.2) {
            vec![self.operation()]
        } else {
            let count = self.rng.random_range(0..4);
            (0..count).filter_map(|number| if number == 1 { self.deletion() } else { self.request() }).collect()
        };
        let number = self.rng.random();
        let command = Command::Once {
            client: self.client(),
            key: super::super::key(self.rng.random_range(0..12)),
            fingerprint: Fingerprint([number; 32]),
            request_id: format!("request-{number}"),
            commands,
        };
        self.remember(&command);
        command
    }

    /// The same request again: its answer was lost on the way. Under a key it
    /// bears new ids; without one it is the same command. One whose record is
    /// gone is another request.
    fn repeated_request(&mut self) -> Option<Command> {
        let number = self.rng.random_range(0..REQUESTS_MAX);
        match self.requests.get(number)?.clone() {
            Command::Once { client, key, fingerprint, request_id: _, commands: _ } => {
                let commands = self.request().into_iter().collect();
                let request_id = "again".to_owned();
                Some(Command::Once { client, key, fingerprint, request_id, commands })
            }
            command => {
                let Command::CreateSession { id, .. } = &command else { return None };
                self.shadow.sessions.contains_key(id).then_some(command)
            }
        }
    }

    /// What a reader may ask a listing for.
    pub(super) fn any_labels(&mut self) -> Vec<Vec<Label>> {
        let groups = self.rng.random_range(0..3);
        (0..groups).map(|_| (0..self.rng.random_range(0..3)).map(|_| self.any_label()).collect()).collect()
    }

    fn any_label(&mut self) -> Label {
        match self.rng.random_range(0..3) {
            0 => Label::Owner(wishes::any_owner(&mut self.rng)),
            1 => Label::Server(self.any_server()),
            _ => {
                let value = ["a", "b", "ab"][self.rng.random_range(0..3)].to_owned();
                Label::Tag { name: "pool".to_owned(), value }
            }
        }
    }

    pub(super) fn any_session(&mut self) -> Option<(SessionId, Owner)> {
        let count = self.fleet.session_count();
        let number = self.rng.random_range(0..count.max(1));
        let session = self.fleet.sessions_from(None).nth(number)?;
        Some((session.id.clone(), session.spec.owner.clone()))
    }

    fn deletion(&mut self) -> Option<Command> {
        let (id, mut owner) = self.any_session()?;
        if self.rng.random_bool(0.1) {
            owner = wishes::any_owner(&mut self.rng);
        }
        Some(Command::DeleteSession { id, owner, force: self.rng.random_bool(0.3), client: self.client() })
    }

    fn permissions(&mut self) -> Option<Command> {
        let (id, owner) = self.any_session()?;
        let permissions = format!("[permissions] {}", self.rng.random_range(0..3));
        Some(Command::UpdatePermissions { id, owner, permissions, client: self.client() })
    }

    fn any_server(&mut self) -> ServerId {
        let number = self.rng.random_range(0..self.hosts.len());
        self.hosts[number].id.clone()
    }

    fn operation(&mut self) -> Command {
        let (id, client) = (self.any_server(), self.client());
        match self.rng.random_range(0..10) {
            0..5 => Command::OpenServer { id, client },
            5..8 => Command::CloseServer { id, force: self.rng.random_bool(0.4), client },
            _ => Command::DrainServer { id, within: Millis(self.rng.random_range(0..60_000)), client },
        }
    }

    /// A replica begins anew; the connections that it held break without a word.
    fn replica_started(&mut self) -> Command {
        let replica = self.any_replica();
        for number in 0..self.hosts.len() {
            if self.hosts[number].link.as_ref().is_some_and(|link| link.via == replica) {
                self.part(number);
            }
        }
        Command::ReplicaStarted { replica }
    }

    /// A replica is cut off, or gone. Some of its agents go elsewhere; others
    /// speak on to it, and are heard when it is back.
    fn replica_silent(&mut self) -> Command {
        let replica = self.any_replica();
        for number in 0..self.hosts.len() {
            let is_held = self.hosts[number].link.as_ref().is_some_and(|link| link.via == replica);
            if is_held && self.rng.random_bool(0.5) {
                self.part(number);
            }
        }
        Command::ReplicaSilent { replica }
    }

    fn any_replica(&mut self) -> ReplicaId {
        ReplicaId(self.rng.random_range(1..3))
    }

    fn late_word(&mut self) -> Option<Command> {
        if self.late.is_empty() {
            return None;
        }
        let number = self.rng.random_range(0..self.late.len());
        Some(self.late.swap_remove(number))
    }

    /// A connection ends for the agent. What was under way may still arrive.
    fn part(&mut self, number: usize) -> Option<Epoch> {
        let link = self.hosts[number].link.take()?;
        for command in link.to_broker {
            if self.late.len() < 30 && self.rng.random_bool(0.5) {
                self.late.push(command);
            }
        }
        Some(link.epoch)
    }

    fn host_acts(&mut self, number: usize, batch: &mut Vec<Proposal>) -> Check {
        if self.hosts[number].has_vanished {
            // For ever, or so it seemed.
            self.hosts[number].has_vanished = !self.rng.random_bool(0.002);
            return Ok(());
        }
        if self.hosts[number].link.is_none() {
            let is_under_way = batch.iter().any(|proposal| proposal.of == Some(number));
            if !is_under_way && self.rng.random_bool(0.5) {
                let via = self.any_replica();
                let command = self.hosts[number].hello(via);
                batch.push(Proposal { command, of: Some(number) });
            }
            return Ok(());
        }
        match self.rng.random_range(0..1000) {
            0..250 => {
                if self.fault == Some(Fault::LedgerLost) {
                    self.hosts[number].forget_ledger();
                }
                self.hosts[number].listen();
            }
            250..420 => self.carry_out(number)?,
            420..700 => self.send(number, batch),
            700..800 => self.hosts[number].report(),
            800..900 => self.change(number),
            900..910 => self.hosts[number].report_all(),
            910..935 => self.disconnect(number, batch),
            935..945 => {
                self.part(number);
                let loses_desktops = self.rng.random_bool(0.4);
                self.hosts[number].crash(loses_desktops);
            }
            945..947 => {
                self.part(number);
                self.hosts[number].has_vanished = true;
            }
            _ => {
                if self.hosts[number].character == Character::Liar {
                    self.lie(number);
                }
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, number: usize) -> Check {
        let open = self.hosts[number].open();
        if open.is_empty() {
            return Ok(());
        }
        let instruction = open[self.rng.random_range(0..open.len())];
        let luck = match self.rng.random_range(0..10) {
            0..2 => Luck::Bad,
            2 if self.hosts[number].character == Character::Liar => Luck::Pretended,
            _ => Luck::Good,
        };
        self.hosts[number].carry_out(instruction, luck, Timestamp(self.at))
    }

    /// Some of what the agent said reaches the log.
    fn send(&mut self, number: usize, batch: &mut Vec<Proposal>) {
        let count = self.rng.random_range(1..4);
        let Some(link) = &mut self.hosts[number].link else { return };
        for _ in 0..count {
            let Some(command) = link.to_broker.pop_front() else { return };
            if self.rng.random_bool(0.03) {
                // Said twice: at once, or an answer much later.
                match command {
                    Command::Answer { .. } => self.late.push(command.clone()),
                    _ => batch.push(Proposal { command: command.clone(), of: Some(number) }),
                }
            }
            batch.push(Proposal { command, of: Some(number) });
        }
    }

    fn disconnect(&mut self, number: usize, batch: &mut Vec<Proposal>) {
        let server = self.hosts[number].id.clone();
        let Some(epoch) = self.part(number) else { return };
        let command = Command::DisconnectAgent { server, epoch };
        match self.rng.random_range(0..10) {
            // It was asked for a sign of life first.
            0 => {
                let Command::DisconnectAgent { server, epoch } = command else { return };
                batch.push(Proposal { command: Command::AgentSilent { server, epoch }, of: None });
            }
            1..6 => batch.push(Proposal { command, of: None }),
            6..9 => self.late.push(command),
            // The replica does not notice, or cannot say so.
            _ => {}
        }
    }

    /// Something changes on a host by itself.
    fn change(&mut self, number: usize) {
        let now = Timestamp(self.at);
        let owner = wishes::any_owner(&mut self.rng);
        let host = &mut self.hosts[number];
        let count = host.desktops.len().max(1);
        let some = host.desktops.keys().nth(self.rng.random_range(0..count)).cloned();
        match self.rng.random_range(0..100) {
            0..30 => host.load = wishes::any_load(&mut self.rng),
            30..35 => host.facts = wishes::any_facts(&mut self.rng),
            35..45 => {
                let choices = [Health::Healthy, Health::Healthy, Health::Unhealthy("broken".to_owned()), Health::InUse];
                host.health = choices[self.rng.random_range(0..4)].clone();
            }
            45..60 => {
                some.map(|id| host.desktops.remove(&id));
            }
            60..75 => {
                if let Some(desktop) = some.and_then(|id| host.desktops.get_mut(&id)) {
                    desktop.connections = self.rng.random_range(0..3);
                    desktop.usable = self.rng.random_bool(0.8);
                }
            }
            _ => {
                // Made without the broker: under an id of its own, that of
                // another host's, or of a session that the broker made.
                let (text, kind) = match self.rng.random_range(0..10) {
                    0..4 => ("console".to_owned(), SessionKind::Console),
                    4..9 => (format!("own-{}", self.rng.random_range(0..3)), SessionKind::Virtual),
                    _ => (format!("s{}", self.last_session), SessionKind::Virtual),
                };
                let id = SessionId::new(&text).expect("valid");
                let spec = SessionSpec::plain(String::new(), owner, kind);
                let desktop = agent::desktop(id.clone(), &spec, None, now);
                host.desktops.entry(id).or_insert(desktop);
            }
        }
    }

    /// A liar says what is not so.
    fn lie(&mut self, number: usize) {
        let Some((id, owner)) = self.any_session() else { return };
        let kind = wishes::any_kind(&mut self.rng);
        let made_by = self.rng.random_bool(0.5).then_some(InstructionId(self.rng.random_range(1..50)));
        let claimed =
            agent::desktop(id.clone(), &SessionSpec::plain(String::new(), owner, kind), made_by, Timestamp(self.at));
        let sessions = match self.rng.random_range(0..4) {
            0 => Inventory::Full(vec![claimed]),
            1 => Inventory::Changes { changed: vec![claimed.clone()], gone: vec![] },
            2 => Inventory::Changes { changed: vec![], gone: vec![EndedSession { id, reason: None }] },
            _ => {
                let server = self.hosts[number].id.clone();
                let open = self.fleet.outbox(&server).map(|instruction| instruction.id).next();
                let Some(link) = &mut self.hosts[number].link else { return };
                let (epoch, instruction) = (link.epoch, open.unwrap_or(InstructionId(1)));
                link.to_broker.push_back(Command::Answer { server, epoch, instruction, answer: Answer::Done });
                return;
            }
        };
        self.hosts[number].say(Report { sessions: Some(sessions), ..Report::default() });
    }
}
