//! What must be true by what was acknowledged and what events told: a second
//! account of the fleet in plain maps, kept by whoever reads along. It shares
//! no code with the state that it is compared with, and refuses each event
//! that had no cause.

use std::collections::{BTreeMap, BTreeSet};

use super::reading::reports;
use super::{Check, ensure, placing};
use crate::domain::command::{Command, Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::host::{Health, HostFacts, HostLoad};
use crate::domain::ids::{
    AgentInstance, ClientId, Epoch, IdempotencyKey, InstructionId, Owner, ReplicaId, ServerId, SessionId,
};
use crate::domain::instruction::{Action, Answer};
use crate::domain::report::ReportedSession;
use crate::domain::report::{Inventory, Report};
use crate::domain::request::Fingerprint;
use crate::domain::server::CONTEST_INTERVAL;
use crate::domain::session::{Phase, SessionKind, SessionSpec};
use crate::domain::settings::Settings;
use crate::domain::time::{Millis, Timestamp};

/// Whether an agent is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Up {
        via: ReplicaId,
    },
    Broken,
    /// `via` holds a connection that did not break.
    Lost {
        since: Timestamp,
        via: Option<ReplicaId>,
    },
}

pub(super) struct ShadowServer {
    pub(super) facts: HostFacts,
    pub(super) load: HostLoad,
    pub(super) health: Health,
    pub(super) link: Link,
    pub(super) epoch: Epoch,
    pub(super) instance: AgentInstance,
    pub(super) contested_at: Option<Timestamp>,
    pub(super) avoided_until: Option<Timestamp>,
    pub(super) heard_at: Timestamp,
    pub(super) interval: Millis,
}

pub(super) struct ShadowSession {
    pub(super) spec: SessionSpec,
    pub(super) client: Option<ClientId>,
    pub(super) phase: Phase,
    pub(super) arrival: u64,
    pub(super) failed_on: Vec<ServerId>,
    pub(super) reason: Option<String>,
    /// Since when somebody waits for it to be created, or to be gone.
    pub(super) waits_since: Timestamp,
    /// It was asked to end and did, with nothing to explain.
    pub(super) ended_as_asked: bool,
}

impl ShadowSession {
    pub(super) fn wish(&self) -> placing::Wish<'_> {
        placing::Wish { spec: &self.spec, failed_on: &self.failed_on }
    }
}

/// What came of a request with an idempotency key.
struct Kept {
    at: Timestamp,
    fingerprint: Fingerprint,
    outcome: Outcome,
}

#[derive(Default)]
pub(super) struct Shadow {
    pub(super) settings: Settings,
    pub(super) servers: BTreeMap<ServerId, ShadowServer>,
    pub(super) sessions: BTreeMap<SessionId, ShadowSession>,
    pub(super) set_aside: BTreeMap<(ServerId, SessionId), ReportedSession>,
    pub(super) outbox: BTreeMap<(ServerId, InstructionId), Action>,
    /// Closed servers, with the deadline of a drain and whether it has passed.
    pub(super) closed: BTreeMap<ServerId, Option<(Timestamp, bool)>>,
    /// Servers whose closing was acknowledged and that nobody opened since.
    pub(super) closes: BTreeSet<ServerId>,
    /// Servers that are not heard, listed or not.
    pub(super) lost_since: BTreeMap<ServerId, Timestamp>,
    /// Sessions that are to end, or to be told to, by the end of this step.
    pub(super) drained: Vec<(ServerId, SessionId)>,
    /// Settled in the step under way.
    pub(super) settled: Vec<(Action, Option<Answer>)>,
    /// What came of requests with a key, and when.
    kept: BTreeMap<(ClientId, IdempotencyKey), Kept>,
    pub(super) arrivals: u64,
    last_instruction: InstructionId,
    pub(super) last_epoch: Epoch,
}

impl Shadow {
    pub(super) fn is_closed(&self, id: &ServerId) -> bool {
        self.closed.contains_key(id)
    }

    /// Kind and owner of all that takes up room on a server.
    pub(super) fn room_taken_on(&self, id: &ServerId) -> Vec<(SessionKind, Owner)> {
        let placed = self.sessions.values().filter(|session| session.phase.occupies() == Some(id));
        let placed = placed.map(|session| (session.spec.kind, session.spec.owner.clone()));
        let aside = self.set_aside.iter().filter(|((server, _), _)| server == id);
        placed.chain(aside.map(|(_, session)| (session.kind, session.owner.clone()))).collect()
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = (&SessionId, &ShadowSession)> {
        self.sessions.iter().filter(|(_, session)| matches!(session.phase, Phase::Placing { .. }))
    }

    /// Whether a connection may speak for its server.
    pub(super) fn is_current(&self, server: &ServerId, epoch: Epoch) -> bool {
        self.servers.get(server).is_some_and(|server| {
            server.epoch == epoch && matches!(server.link, Link::Up { .. } | Link::Lost { via: Some(_), .. })
        })
    }

    /// Whether another agent than this is connected under a server's id.
    pub(super) fn is_held_by_other(&self, server: &ServerId, instance: &AgentInstance) -> bool {
        let found = self.servers.get(server);
        found.is_some_and(|server| matches!(server.link, Link::Up { .. }) && server.instance != *instance)
    }

    /// Whether an agent without any of a server's desktops comes right after
    /// its connection broke, while another one had come with its id.
    pub(super) fn is_likely_a_copy(&self, server: &ServerId, report: &Report, at: Timestamp) -> bool {
        let Some(found) = self.servers.get(server) else { return false };
        let may_stand = found.link == Link::Broken;
        let is_contested = found.contested_at.is_some_and(|told| at.0 < told.0 + 2 * CONTEST_INTERVAL.0);
        let ready = Phase::Ready { server: server.clone() };
        let mut ready = self.sessions.iter().filter(|(_, session)| session.phase == ready).map(|(id, _)| id).peekable();
        let Some(Inventory::Full(listed)) = &report.sessions else { return false };
        may_stand
            && is_contested
            && ready.peek().is_some()
            && !ready.any(|id| listed.iter().any(|there| there.id == *id))
    }

    /// A new command, or time alone, is what causes the next events.
    pub(super) fn begin(&mut self) {
        self.settled.clear();
        self.drained.clear();
    }

    /// What a request with a key must come to if it came to something before;
    /// nothing is done then. (Invariant 2.)
    pub(super) fn expected(&self, at: Timestamp, command: &Command) -> Option<Outcome> {
        let Command::Once { client, key, fingerprint, .. } = command else { return None };
        let kept = self.kept.get(&(client.clone(), key.clone()))?;
        let is_kept = at < kept.at + self.settings.idempotency_retention;
        let outcome =
            if kept.fingerprint == *fingerprint { kept.outcome.clone() } else { Outcome::Refused(Refusal::KeyReused) };
        is_kept.then_some(outcome)
    }

    /// A request with a key was carried out.
    pub(super) fn keep(&mut self, at: Timestamp, command: &Command, outcome: &Outcome) {
        if let (Command::Once { client, key, fingerprint, request_id, .. }, Outcome::Once(outcomes)) =
            (command, outcome)
        {
            let outcome = Outcome::Repeated { request_id: request_id.clone(), outcomes: outcomes.clone() };
            let kept = Kept { at, fingerprint: *fingerprint, outcome };
            self.kept.insert((client.clone(), key.clone()), kept);
        }
    }

    /// A caller was told what came of a command.
    pub(super) fn acknowledge(&mut self, command: &Command, outcome: &Outcome) {
        match (command, outcome) {
            (Command::CloseServer { id, .. }, Outcome::Done)
            | (Command::DrainServer { id, .. }, Outcome::Draining { .. }) => {
                self.closes.insert(id.clone());
            }
            (Command::OpenServer { id, .. }, Outcome::Done) => {
                self.closes.remove(id);
            }
            _ => {}
        }
    }

    /// Reads an event: checks that it has a cause and notes what it says.
    pub(super) fn read(&mut self, at: Timestamp, causes: &[Command], event: &Event) -> Check {
        match event {
            Event::Configured(settings) => self.settings = settings.clone(),
            Event::SessionRefused { id, .. } => {
                let asked =
                    causes.iter().any(|cause| matches!(cause, Command::CreateSession { id: of, .. } if of == id));
                ensure!(asked, "{id} was refused, not asked for");
            }
            Event::InstructionIssued { server, instruction } => {
                ensure!(instruction.id > self.last_instruction, "instruction {} is not new", instruction.id);
                ensure!(self.servers.contains_key(server), "{server} is instructed and is not listed");
                self.last_instruction = instruction.id;
                self.outbox.insert((server.clone(), instruction.id), instruction.action.clone());
            }
            Event::InstructionSettled { server, instruction, answer } => {
                let action = self.outbox.remove(&(server.clone(), *instruction));
                let Some(action) = action else { return Err(format!("{instruction} was not open on {server}")) };
                if let Some(answer) = answer {
                    let said = causes.iter().any(|cause| {
                        matches!(cause, Command::Answer { instruction: of, answer: said, .. }
                            if of == instruction && said == answer)
                    });
                    ensure!(said, "{server} did not answer {instruction} with {answer:?}");
                }
                self.settled.push((action, answer.clone()));
            }
            Event::ServerConnected { .. }
            | Event::ServerReported { .. }
            | Event::ServerInterrupted { .. }
            | Event::ServerLost { .. }
            | Event::ServerContested { .. }
            | Event::ServerRecovered { .. }
            | Event::ServerForgotten { .. }
            | Event::ServerMarksDropped { .. }
            | Event::ServerAvoided { .. }
            | Event::ServerAvoidanceEnded { .. }
            | Event::ServerDraining { .. }
            | Event::ServerDrainExpired { .. }
            | Event::ServerOpened { .. }
            | Event::ServerClosed { .. } => self.read_of_server(at, causes, event)?,
            Event::SessionConflict { server, session } => {
                let other = self.sessions.get(&session.id).map(|other| &other.phase);
                let is_elsewhere = other.is_some_and(|phase| !phase.is_deleted() && phase.occupies() != Some(server));
                ensure!(is_elsewhere, "{} on {server} is set aside for nobody", session.id);
                ensure!(reports(causes, server, &session.id), "{server} did not report {}", session.id);
                self.set_aside.insert((server.clone(), session.id.clone()), (**session).clone());
            }
            Event::SessionConflictEnded { id, server } => {
                let removed = self.set_aside.remove(&(server.clone(), id.clone()));
                ensure!(removed.is_some(), "{id} was not set aside on {server}");
            }
            Event::RequestKept(_)
            | Event::ClientRegistered(_)
            | Event::ClientDeactivated { .. }
            | Event::KeyInstalled(_)
            | Event::ReplicaInvited { .. }
            | Event::ReplicaAdmitted { .. }
            | Event::ReplicaRetired { .. }
            | Event::AuthorityRotated { .. }
            | Event::InvitationRevoked { .. }
            | Event::ClientSecretRotated { .. }
            | Event::ClientGranted { .. }
            | Event::KeyRotated { .. }
            | Event::StatementIssued(_)
            | Event::StatementDeactivated { .. }
            | Event::AgentEnrolled(_)
            | Event::AgentUnregistered { .. }
            | Event::AuthServerRegistered(_)
            | Event::AuthServerUnregistered { .. }
            | Event::ServersMapped { .. }
            | Event::TokenSpent { .. }
            | Event::Audited(_)
            | Event::GatewayCertified(_)
            | Event::GatewayRevoked { .. } => {}
            _ => self.read_of_session(at, causes, event)?,
        }
        Ok(())
    }

    pub(super) fn server(&mut self, id: &ServerId) -> Result<&mut ShadowServer, String> {
        self.servers.get_mut(id).ok_or_else(|| format!("{id} is not listed"))
    }

    pub(super) fn session(&mut self, id: &SessionId) -> Result<&mut ShadowSession, String> {
        self.sessions.get_mut(id).ok_or_else(|| format!("{id} is not listed"))
    }

    /// Moves a session on, if it is where it must be for that.
    pub(super) fn moves(
        &mut self,
        id: &SessionId,
        what: &str,
        may: impl Fn(&Phase) -> bool,
        to: impl FnOnce(ServerId) -> Phase,
    ) -> Check {
        let session = self.session(id)?;
        ensure!(may(&session.phase), "{id} cannot be {what} in {:?}", session.phase);
        // Who waits is on no server, and gets a place that does not ask for it.
        let nowhere = || ServerId::new("nowhere").expect("valid");
        session.phase = to(session.phase.occupies().cloned().unwrap_or_else(nowhere));
        Ok(())
    }
}
