//! What really runs on a desktop host, and what its agent remembers, as
//! `docs/agent-protocol.md` demands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth::domain::host::{Health, HostFacts, HostLoad, Limits};
use berth::domain::instruction::Answer;
use berth::domain::report::{EndedSession, Inventory, Report, ReportedSession};
use berth::domain::{Action, AgentInstance, Epoch, Instruction, InstructionId, Owner, ServerId, SessionId};
use berth::domain::{SessionKind, SessionSpec, Timestamp};

use crate::simulation::judge::Judge;

struct Entry {
    action: Action,
    answer: Option<Answer>,
}

/// A host. See the module.
#[allow(clippy::struct_excessive_bools)] // each is a trait of its own, in any combination
pub struct Host {
    /// Its name among the hosts; two may have one server id.
    pub name: String,
    /// The server that it says it is.
    pub server: ServerId,
    /// A copy of another host, with its id.
    pub is_copy: bool,
    /// Says what is not so.
    pub lies: bool,
    has_lied: bool,
    /// Forgets what it has carried out.
    pub is_forgetful: bool,
    judge: Arc<Judge>,
    run: u64,
    desktops: BTreeMap<SessionId, ReportedSession>,
    ledger: BTreeMap<InstructionId, Entry>,
    /// What the broker was told of on this connection; `None` for what it is to hear of again, or
    /// that it is gone.
    told: BTreeMap<SessionId, Option<ReportedSession>>,
    epoch: Epoch,
}

impl Host {
    /// A host without desktops.
    pub fn new(name: String, server: ServerId, is_copy: bool, judge: Arc<Judge>) -> Self {
        Self {
            name,
            server,
            is_copy,
            lies: false,
            has_lied: false,
            is_forgetful: false,
            judge,
            run: 1,
            desktops: BTreeMap::new(),
            ledger: BTreeMap::new(),
            told: BTreeMap::new(),
            epoch: Epoch(0),
        }
    }

    /// Whether the judge counts its desktops: not those of a copy, nor of one
    /// that says it has ended what runs.
    const fn is_judged(&self) -> bool {
        !self.is_copy && !self.has_lied
    }

    /// It lies from now on, or no more.
    pub fn set_lying(&mut self, lies: bool) {
        self.lies = lies;
        if lies {
            self.has_lied = true;
            self.judge.mistrusts(&self.name);
        }
    }

    /// This run of its agent.
    pub fn instance(&self) -> AgentInstance {
        AgentInstance::new(&format!("{}-{}", self.name, self.run)).expect("a short text without control characters")
    }

    /// The sessions that have a desktop.
    pub fn desktops(&self) -> BTreeSet<SessionId> {
        self.desktops.keys().cloned().collect()
    }

    /// Instructions that are not answered.
    pub fn open(&self) -> usize {
        self.ledger.values().filter(|entry| entry.answer.is_none()).count()
    }

    /// Everything.
    pub fn full_report(&mut self) -> Report {
        self.tell_all();
        Report {
            facts: Some(facts(&self.name)),
            load: Some(HostLoad::default()),
            health: Some(Health::Healthy),
            sessions: Some(Inventory::Full(self.desktops.values().cloned().collect())),
        }
    }

    /// What changed.
    pub fn report(&mut self) -> Report {
        let is_told = |found: &&ReportedSession| self.told.get(&found.id).and_then(Option::as_ref) == Some(*found);
        let changed = self.desktops.values().filter(|found| !is_told(found)).cloned();
        let changed: Vec<ReportedSession> = changed.collect();
        let gone = self.told.keys().filter(|id| !self.desktops.contains_key(*id));
        let gone: Vec<EndedSession> = gone.map(|id| EndedSession { id: id.clone(), reason: None }).collect();
        let nothing = changed.is_empty() && gone.is_empty();
        self.tell_all();
        Report { sessions: (!nothing).then_some(Inventory::Changes { changed, gone }), ..Report::default() }
    }

    fn tell_all(&mut self) {
        self.told = self.desktops.iter().map(|(id, found)| (id.clone(), Some(found.clone()))).collect();
    }

    /// It is welcome. What it has to answer again.
    pub fn welcomed(&mut self, epoch: Epoch, oldest: InstructionId) -> Vec<InstructionId> {
        self.epoch = self.epoch.max(epoch);
        self.ledger.retain(|id, entry| *id >= oldest || entry.answer.is_none());
        self.ledger.iter().filter(|(_, entry)| entry.answer.is_some()).map(|(id, _)| *id).collect()
    }

    /// An answer is in the log.
    pub fn settled(&mut self, id: InstructionId) {
        if self.ledger.get(&id).is_some_and(|entry| entry.answer.is_some()) {
            self.ledger.remove(&id);
        }
    }

    /// Takes an instruction. True if it is to be carried out, false if it was
    /// and is to be answered; `None` if it is void.
    pub fn admit(&mut self, epoch: Epoch, instruction: &Instruction) -> Option<bool> {
        if epoch != self.epoch {
            return None;
        }
        let id = instruction.id;
        if self.ledger.get(&id).is_some_and(|entry| entry.answer.is_none()) {
            // Under way.
            return None;
        }
        if self.ledger.contains_key(&id) && !self.is_forgetful {
            return Some(false);
        }
        let session = instruction.action.session();
        let is_create = matches!(instruction.action, Action::CreateSession { .. });
        let closes = |entry: &Entry| matches!(&entry.action, Action::CloseSession { session: of } if of == session);
        let superseded = is_create && self.ledger.range(id.next()..).any(|(_, later)| closes(later));
        let answer = superseded.then(|| failed("superseded"));
        self.ledger.insert(id, Entry { action: instruction.action.clone(), answer });
        Some(!superseded)
    }

    /// Whether an older instruction for the same session is still open.
    pub fn has_to_wait(&self, id: InstructionId) -> bool {
        let Some(entry) = self.ledger.get(&id) else { return false };
        let session = entry.action.session();
        self.ledger.range(..id).any(|(_, older)| older.answer.is_none() && older.action.session() == session)
    }

    /// Carries an instruction out.
    pub fn carry_out(&mut self, id: InstructionId, succeeds: bool, now: Timestamp) {
        let Some(entry) = self.ledger.get(&id) else { return };
        let answer = match entry.action.clone() {
            _ if self.lies => Answer::Done,
            _ if !succeeds => failed("bad luck"),
            Action::CreateSession { session, spec } => self.make(id, &session, &spec, now),
            Action::CloseSession { session } => {
                self.end(&session);
                Answer::Done
            }
            Action::SetPermissions { session, .. } if self.desktops.contains_key(&session) => Answer::Done,
            Action::SetPermissions { .. } => failed("no such session"),
        };
        if let Some(entry) = self.ledger.get_mut(&id) {
            entry.answer = Some(answer);
        }
    }

    fn make(&mut self, id: InstructionId, session: &SessionId, spec: &SessionSpec, now: Timestamp) -> Answer {
        if self.is_judged() {
            self.judge.made(&self.name, &self.server, session, id);
        }
        if self.desktops.contains_key(session) {
            return failed("exists already");
        }
        self.desktops.insert(session.clone(), desktop(session.clone(), spec, Some(id), now));
        Answer::Done
    }

    fn end(&mut self, session: &SessionId) {
        self.desktops.remove(session);
        if self.is_judged() {
            self.judge.ended(&self.name, session);
        }
    }

    /// How an instruction ended, if it has. A creation is done only while its
    /// desktop is there.
    pub fn answer(&mut self, id: InstructionId) -> Option<Answer> {
        let entry = self.ledger.get(&id)?;
        let mut answer = entry.answer.clone()?;
        let session = entry.action.session().clone();
        if let (Action::CreateSession { .. }, Answer::Done, false) = (&entry.action, &answer, self.lies) {
            match self.desktops.get(&session) {
                // More of it is told with the next report: the answer may count for nothing.
                Some(found) if found.created_by == Some(id) => {
                    self.told.insert(session, None);
                    return Some(answer);
                }
                _ => answer = failed("it was made and has ended"),
            }
        }
        // Whether it is there all the same, or not, is told again.
        if let Some(told) = self.told.get_mut(&session) {
            *told = None;
        }
        Some(answer)
    }

    /// The agent is killed, and its host may lose what ran there.
    pub fn crash(&mut self, loses_desktops: bool) {
        self.run += 1;
        if loses_desktops {
            for id in self.desktops() {
                self.end(&id);
            }
            self.ledger.clear();
            // Nothing is left of what it carried out: it may do so again.
            self.judge.lost_all(&self.name);
            return;
        }
        // A creation that was running is done if its desktop is there, and fails
        // otherwise; the others are carried out again.
        for (id, entry) in &mut self.ledger {
            if let (Action::CreateSession { session, .. }, None) = (&entry.action, &entry.answer) {
                let is_there = self.desktops.get(session).is_some_and(|found| found.created_by == Some(*id));
                entry.answer = Some(if is_there { Answer::Done } else { failed("the agent ended meanwhile") });
            }
        }
    }

    /// Instructions that are to be carried out after a start.
    pub fn left_over(&self) -> Vec<InstructionId> {
        self.ledger.iter().filter(|(_, entry)| entry.answer.is_none()).map(|(id, _)| *id).collect()
    }

    /// A session ends by itself, or, where there is none, is made by hand.
    pub fn stir(&mut self, choice: u64, now: Timestamp) {
        let ids: Vec<SessionId> = self.desktops.keys().cloned().collect();
        if let Some(id) = ids.get(usize::try_from(choice).unwrap_or_default()) {
            return self.end(id);
        }
        let id = SessionId::new(&format!("own-{}-{choice}", self.name)).expect("a short text");
        let owner = Owner::new("somebody").expect("a short text");
        let spec = SessionSpec::plain(String::new(), owner, SessionKind::Virtual);
        self.desktops.insert(id.clone(), desktop(id, &spec, None, now));
    }

    /// What a liar says of a session that it does not have.
    pub fn claim(session: SessionId, owner: Owner, now: Timestamp) -> Report {
        let spec = SessionSpec::plain("claimed".to_owned(), owner, SessionKind::Virtual);
        let claimed = desktop(session, &spec, None, now);
        Report { sessions: Some(Inventory::Changes { changed: vec![claimed], gone: vec![] }), ..Report::default() }
    }
}

fn desktop(id: SessionId, spec: &SessionSpec, created_by: Option<InstructionId>, now: Timestamp) -> ReportedSession {
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

fn facts(name: &str) -> HostFacts {
    let limits = Limits { virtual_sessions_max: Some(6), sessions_per_owner_max: None, console_sessions: false };
    HostFacts { hostname: name.to_owned(), limits, ..HostFacts::default() }
}

fn failed(reason: &str) -> Answer {
    Answer::Failed { reason: reason.to_owned() }
}
