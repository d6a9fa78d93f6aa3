//! A simulated desktop host: what really runs there, an agent with a ledger as
//! `docs/agent-protocol.md` demands, and its connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Check, ensure};
use crate::domain::command::Command;
use crate::domain::host::{Health, HostFacts, HostLoad};
use crate::domain::ids::{AgentInstance, Epoch, InstructionId, ReplicaId, ServerId, SessionId};
use crate::domain::instruction::{Action, Answer, Instruction};
use crate::domain::report::{EndedSession, Inventory, Report, ReportedSession};
use crate::domain::session::{SessionKind, SessionSpec};
use crate::domain::time::{Millis, Timestamp};

/// How often the simulated agents report.
pub(super) const REPORT_INTERVAL: Millis = Millis(5_000);

/// What a replica says to an agent.
#[derive(Debug, Clone)]
pub(super) enum ToAgent {
    Welcome { oldest: InstructionId },
    Instruction { epoch: Epoch, instruction: Arc<Instruction> },
    Settled(InstructionId),
}

/// One connection, seen from both ends.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) via: ReplicaId,
    pub(super) epoch: Epoch,
    pub(super) to_agent: VecDeque<ToAgent>,
    pub(super) to_broker: VecDeque<Command>,
    /// The last instruction that the replica sent.
    pub(super) sent: InstructionId,
    told: BTreeMap<SessionId, Option<ReportedSession>>,
    told_of_host: (HostFacts, HostLoad, Health),
}

/// How a host behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Character {
    /// Says what is so, however slow, forgetful or broken.
    Honest,
    /// Claims, denies, and says that it did what it did not.
    Liar,
    /// Has the id of another host.
    Twin,
}

#[derive(Debug)]
struct Entry {
    action: Action,
    answer: Option<Answer>,
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) id: ServerId,
    pub(super) character: Character,
    pub(super) has_vanished: bool,
    pub(super) facts: HostFacts,
    pub(super) load: HostLoad,
    pub(super) health: Health,
    pub(super) desktops: BTreeMap<SessionId, ReportedSession>,
    pub(super) link: Option<Link>,
    /// This run of the agent.
    pub(super) instance: AgentInstance,
    runs: u32,
    ledger: BTreeMap<InstructionId, Entry>,
    /// Creations that were ever carried out: the truth, which no crash takes away.
    made: BTreeSet<InstructionId>,
    epoch: Epoch,
}

/// How carrying out an instruction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Luck {
    Good,
    /// It fails, and nothing happens.
    Bad,
    /// It is answered as done, and nothing happens.
    Pretended,
}

impl Host {
    pub(super) fn new(id: ServerId, number: u8, character: Character, facts: HostFacts, load: HostLoad) -> Self {
        // Two hosts with one id are two agents.
        let runs = u32::from(number) * 100_000;
        Self {
            id,
            character,
            has_vanished: false,
            facts,
            load,
            health: Health::Healthy,
            desktops: BTreeMap::new(),
            link: None,
            instance: instance(runs),
            runs,
            ledger: BTreeMap::new(),
            made: BTreeSet::new(),
            epoch: Epoch(0),
        }
    }

    /// A hello through a replica, with everything.
    pub(super) fn hello(&self, via: ReplicaId) -> Command {
        Command::ConnectAgent {
            server: self.id.clone(),
            instance: self.instance.clone(),
            via,
            report_interval: REPORT_INTERVAL,
            report: Report {
                facts: Some(self.facts.clone()),
                load: Some(self.load.clone()),
                health: Some(self.health.clone()),
                sessions: Some(Inventory::Full(self.desktops.values().cloned().collect())),
            },
        }
    }

    /// The hello is in the log; this is what it said.
    pub(super) fn connected(&mut self, via: ReplicaId, epoch: Epoch, oldest: InstructionId, report: &Report) {
        let told = match &report.sessions {
            Some(Inventory::Full(all)) => all.iter().map(|found| (found.id.clone(), Some(found.clone()))).collect(),
            _ => BTreeMap::new(),
        };
        let told_of_host = (
            report.facts.clone().unwrap_or_default(),
            report.load.clone().unwrap_or_default(),
            report.health.clone().unwrap_or_default(),
        );
        self.link = Some(Link {
            via,
            epoch,
            to_agent: VecDeque::from([ToAgent::Welcome { oldest }]),
            to_broker: VecDeque::new(),
            sent: InstructionId(0),
            told,
            told_of_host,
        });
    }

    /// Takes the next word of the replica.
    pub(super) fn listen(&mut self) {
        let Some(link) = &mut self.link else { return };
        let Some(message) = link.to_agent.pop_front() else { return };
        match message {
            ToAgent::Welcome { oldest } => {
                self.epoch = self.epoch.max(link.epoch);
                self.ledger.retain(|id, entry| *id >= oldest || entry.answer.is_none());
                let ended: Vec<InstructionId> =
                    self.ledger.iter().filter(|(_, entry)| entry.answer.is_some()).map(|(id, _)| *id).collect();
                for id in ended {
                    self.answer(id);
                }
            }
            ToAgent::Instruction { epoch, instruction } if epoch == self.epoch => self.admit(&instruction),
            ToAgent::Instruction { .. } => {}
            ToAgent::Settled(id) => {
                if self.ledger.get(&id).is_some_and(|entry| entry.answer.is_some()) {
                    self.ledger.remove(&id);
                }
            }
        }
    }

    fn admit(&mut self, instruction: &Instruction) {
        let (id, action) = (instruction.id, instruction.action.clone());
        if self.ledger.contains_key(&id) {
            return self.answer(id);
        }
        let is_create = matches!(action, Action::CreateSession { .. });
        let closed_later = self
            .ledger
            .range(id.next()..)
            .any(|(_, later)| matches!(&later.action, Action::CloseSession { session } if session == action.session()));
        let superseded = (is_create && closed_later).then(|| failed("superseded"));
        let is_over = superseded.is_some();
        self.ledger.insert(id, Entry { action, answer: superseded });
        if is_over {
            self.answer(id);
        }
    }

    /// What could be carried out next: the oldest of each session.
    pub(super) fn open(&self) -> Vec<InstructionId> {
        let mut sessions = BTreeSet::new();
        let open = self.ledger.iter().filter(|(_, entry)| entry.answer.is_none());
        open.filter(|(_, entry)| sessions.insert(entry.action.session())).map(|(id, _)| *id).collect()
    }

    /// Carries an instruction out, and answers.
    pub(super) fn carry_out(&mut self, id: InstructionId, luck: Luck, now: Timestamp) -> Check {
        let Some(action) = self.ledger.get(&id).map(|entry| entry.action.clone()) else { return Ok(()) };
        let answer = match (luck, action) {
            (Luck::Bad, _) => failed("bad luck"),
            (Luck::Pretended, _) => Answer::Done,
            (Luck::Good, Action::CreateSession { session, spec }) => self.make(id, &session, &spec, now)?,
            (Luck::Good, Action::CloseSession { session }) => {
                self.desktops.remove(&session);
                Answer::Done
            }
            (Luck::Good, Action::SetPermissions { session, .. }) if self.desktops.contains_key(&session) => {
                Answer::Done
            }
            (Luck::Good, Action::SetPermissions { .. }) => failed("no such session"),
        };
        if let Some(entry) = self.ledger.get_mut(&id) {
            entry.answer = Some(answer);
        }
        self.answer(id);
        Ok(())
    }

    fn make(
        &mut self,
        id: InstructionId,
        session: &SessionId,
        spec: &SessionSpec,
        now: Timestamp,
    ) -> Result<Answer, String> {
        ensure!(self.made.insert(id), "{} carried out {id} twice", self.id);
        if self.desktops.contains_key(session) {
            return Ok(failed("exists already"));
        }
        let of_kind = |kind| self.desktops.values().filter(move |found| found.kind == kind);
        let own = of_kind(SessionKind::Virtual).filter(|found| found.owner == spec.owner).count();
        let limits = self.facts.limits;
        let reached = |limit: Option<u32>, count: usize| limit.is_some_and(|limit| count >= limit as usize);
        let is_full = match spec.kind {
            SessionKind::Console => !limits.console_sessions || of_kind(SessionKind::Console).next().is_some(),
            SessionKind::Virtual => {
                reached(limits.virtual_sessions_max, of_kind(SessionKind::Virtual).count())
                    || reached(limits.sessions_per_owner_max, own)
            }
        };
        if is_full {
            return Ok(failed("this host is full"));
        }
        let desktop = desktop(session.clone(), spec, Some(id), now);
        self.desktops.insert(session.clone(), desktop);
        Ok(Answer::Done)
    }

    /// Answers, if there is a connection; a creation is done only while its
    /// session is there.
    fn answer(&mut self, id: InstructionId) {
        let Some(entry) = self.ledger.get(&id) else { return };
        let (Some(link), Some(mut answer)) = (&mut self.link, entry.answer.clone()) else { return };
        if let (Action::CreateSession { session, .. }, Answer::Done, Character::Honest) =
            (&entry.action, &answer, self.character)
        {
            if self.desktops.get(session).is_some_and(|found| found.created_by == Some(id)) {
                link.told.entry(session.clone()).or_insert(None);
            } else {
                answer = failed("it was made and has ended");
            }
        }
        // What a host says of a session meanwhile is passed over: if one of its
        // id is there all the same, it is told again.
        let passed_over = match &entry.action {
            Action::CreateSession { .. } => answer != Answer::Done,
            Action::CloseSession { .. } => true,
            Action::SetPermissions { .. } => false,
        };
        let session = entry.action.session();
        if passed_over && self.desktops.contains_key(session) {
            link.told.insert(session.clone(), None);
        }
        let (server, epoch) = (self.id.clone(), link.epoch);
        link.to_broker.push_back(Command::Answer { server, epoch, instruction: id, answer });
    }

    /// Reports what changed since the last time, or that the host is alive.
    pub(super) fn report(&mut self) {
        let Some(link) = &mut self.link else { return };
        let changed: Vec<ReportedSession> = self
            .desktops
            .values()
            .filter(|found| link.told.get(&found.id).and_then(Option::as_ref) != Some(*found))
            .cloned()
            .collect();
        let gone: Vec<SessionId> = link.told.keys().filter(|id| !self.desktops.contains_key(*id)).cloned().collect();
        for found in &changed {
            link.told.insert(found.id.clone(), Some(found.clone()));
        }
        for id in &gone {
            link.told.remove(id);
        }
        let now = (self.facts.clone(), self.load.clone(), self.health.clone());
        let before = std::mem::replace(&mut link.told_of_host, now.clone());
        let nothing = changed.is_empty() && gone.is_empty();
        let gone = gone.into_iter().map(|id| EndedSession { reason: None, id }).collect();
        let report = Report {
            facts: (before.0 != now.0).then_some(now.0),
            load: (before.1 != now.1).then_some(now.1),
            health: (before.2 != now.2).then_some(now.2),
            sessions: (!nothing).then_some(Inventory::Changes { changed, gone }),
        };
        self.say(report);
    }

    /// Reports everything again.
    pub(super) fn report_all(&mut self) {
        let Some(link) = &mut self.link else { return };
        link.told = self.desktops.iter().map(|(id, found)| (id.clone(), Some(found.clone()))).collect();
        let sessions = Some(Inventory::Full(self.desktops.values().cloned().collect()));
        self.say(Report { sessions, ..Report::default() });
    }

    /// Says something, whether or not it is so.
    pub(super) fn say(&mut self, report: Report) {
        let Some(link) = &mut self.link else { return };
        let (server, epoch) = (self.id.clone(), link.epoch);
        link.to_broker.push_back(Command::Report { server, epoch, report });
    }

    /// The agent is killed. What ran may be gone with it, and then so is the ledger.
    pub(super) fn crash(&mut self, loses_desktops: bool) {
        self.runs += 1;
        self.instance = instance(self.runs);
        if loses_desktops {
            self.desktops.clear();
            self.ledger.clear();
            self.made.clear();
            return;
        }
        // A creation that was running is done if its session is there, and
        // fails otherwise; the others are carried out again.
        for (id, entry) in &mut self.ledger {
            if let (Action::CreateSession { session, .. }, None) = (&entry.action, &entry.answer) {
                let is_there = self.desktops.get(session).is_some_and(|found| found.created_by == Some(*id));
                entry.answer = Some(if is_there { Answer::Done } else { failed("the agent ended meanwhile") });
            }
        }
    }

    /// The agent forgets what was asked of it, and is asked again.
    pub(super) fn forget_ledger(&mut self) {
        self.ledger.clear();
        if let Some(link) = &mut self.link {
            link.sent = InstructionId(0);
        }
    }
}

pub(super) fn desktop(
    id: SessionId,
    spec: &SessionSpec,
    created_by: Option<InstructionId>,
    now: Timestamp,
) -> ReportedSession {
    ReportedSession {
        id,
        name: spec.name.clone(),
        owner: spec.owner.clone(),
        kind: spec.kind,
        usable: true,
        connections: 0,
        clients_max: None,
        created_at: now,
        last_disconnected_at: None,
        storage_root: None,
        created_by,
    }
}

fn instance(run: u32) -> AgentInstance {
    AgentInstance::new(&format!("run-{run}")).expect("valid")
}

fn failed(reason: &str) -> Answer {
    Answer::Failed { reason: reason.to_owned() }
}
