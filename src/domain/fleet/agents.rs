//! What agents say, and what their silence means.

use super::Fleet;
use super::apply::Transition;
use super::sessions::{end, end_by_itself, issue, withdraw};
use crate::domain::command::{Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::ids::{AgentInstance, Epoch, InstructionId, ReplicaId, ServerId, SessionId};
use crate::domain::instruction::{Action, Answer};
use crate::domain::report::{EndedSession, Inventory, Report, ReportedSession};
use crate::domain::server::{Link, Server};
use crate::domain::session::{Phase, Session};
use crate::domain::time::{Millis, Timestamp};

impl Fleet {
    /// Whether a hello of this agent would be refused and leave no trace but
    /// its entry in the log, which it can be spared then: another agent with
    /// the same server id is connected, and that was told a moment ago.
    pub fn refuses_silently(&self, server: &ServerId, instance: &AgentInstance) -> bool {
        self.server(server).is_some_and(|server| server.is_held_by_other(instance) && server.is_contest_told(self.at()))
    }
}

/// An agent connected. Its new connection replaces an older one of its own, and
/// one that broke. While another agent is connected it is refused: the host was
/// copied, or the other one is gone and its replica has yet to find out.
pub(super) fn connect(
    t: &mut Transition<'_>,
    server: &ServerId,
    instance: AgentInstance,
    via: ReplicaId,
    report_interval: Millis,
    mut report: Report,
) -> Outcome {
    if let Some(known) = t.fleet.server(server)
        && known.is_held_by_other(&instance)
    {
        if !known.is_contest_told(t.stamp.at) {
            t.emit(Event::ServerContested { server: server.clone() });
        }
        return Outcome::Refused(Refusal::OtherInstance);
    }
    let epoch = t.fleet.last_epoch.next();
    let inventory = report.sessions.take();
    t.emit(Event::ServerConnected { server: server.clone(), instance, epoch, via, report_interval, report });
    if let Some(inventory) = inventory {
        observe(t, server, inventory);
    }
    Outcome::Welcome { epoch }
}

/// An agent reported.
pub(super) fn report(t: &mut Transition<'_>, server: &ServerId, epoch: Epoch, mut report: Report) -> Outcome {
    recover(t, server, epoch);
    if !is_current(t, server, epoch) {
        return Outcome::Refused(Refusal::StaleEpoch);
    }
    let inventory = report.sessions.take();
    t.emit(Event::ServerReported { server: server.clone(), report });
    if let Some(inventory) = inventory {
        observe(t, server, inventory);
    }
    Outcome::Done
}

/// A word on the connection of a server that counts as lost only because
/// nothing was heard for too long, a broker that stood still included.
fn recover(t: &mut Transition<'_>, server: &ServerId, epoch: Epoch) {
    let link = t.fleet.server(server).map(|server| &server.link);
    if matches!(link, Some(Link::Lost { epoch: last, via: Some(_), .. }) if *last == epoch) {
        t.emit(Event::ServerRecovered { server: server.clone() });
    }
}

fn is_current(t: &Transition<'_>, server: &ServerId, epoch: Epoch) -> bool {
    t.fleet.server(server).is_some_and(|server| server.link.is_up() && server.link.epoch() == epoch)
}

/// An agent answered an instruction. An answer to one that was withdrawn, or
/// answered already, changes nothing.
pub(super) fn answer(
    t: &mut Transition<'_>,
    server: &ServerId,
    epoch: Epoch,
    id: InstructionId,
    answer: Answer,
) -> Outcome {
    recover(t, server, epoch);
    if !is_current(t, server, epoch) {
        return Outcome::Refused(Refusal::StaleEpoch);
    }
    let Some(instruction) = t.fleet.outbox.get(&(server.clone(), id)).cloned() else {
        return Outcome::Done;
    };
    t.emit(Event::InstructionSettled { server: server.clone(), instruction: id, answer: Some(answer.clone()) });
    match (&instruction.action, answer) {
        (Action::CreateSession { session, .. }, Answer::Done) if is_preparing(t, session, id) => {
            t.emit(Event::SessionReady { id: session.clone() });
        }
        (Action::CreateSession { session, .. }, Answer::Failed { reason }) if is_preparing(t, session, id) => {
            end(t, session, Some(reason));
        }
        (Action::CloseSession { session }, Answer::Done) if is_deleting(t, session, id) => end(t, session, None),
        (Action::CloseSession { session }, Answer::Failed { reason }) if is_deleting(t, session, id) => {
            end(t, session, Some(format!("its server could not end it: {reason}")));
        }
        // The permissions that stand in the log stay; the journal has the failure.
        _ => {}
    }
    Outcome::Done
}

fn is_preparing(t: &Transition<'_>, session: &SessionId, by: InstructionId) -> bool {
    let phase = t.fleet.session(session).map(|session| &session.phase);
    matches!(phase, Some(Phase::Preparing { instruction, .. }) if *instruction == by)
}

fn is_deleting(t: &Transition<'_>, session: &SessionId, by: InstructionId) -> bool {
    let phase = t.fleet.session(session).map(|session| &session.phase);
    matches!(phase, Some(Phase::Deleting { instruction, .. }) if *instruction == by)
}

/// The connection to an agent broke.
pub(super) fn disconnect(t: &mut Transition<'_>, server: ServerId, epoch: Epoch) -> Outcome {
    recover(t, &server, epoch);
    if !is_current(t, &server, epoch) {
        return Outcome::Refused(Refusal::StaleEpoch);
    }
    t.emit(Event::ServerInterrupted { server });
    Outcome::Done
}

/// A replica began anew: whatever agents it held are connected no longer.
pub(super) fn replica_started(t: &mut Transition<'_>, replica: ReplicaId) -> Outcome {
    let held = |server: &Server| match server.link {
        Link::Up { via, .. } => via == replica,
        Link::Interrupted { .. } | Link::Lost { .. } => false,
    };
    let interrupted: Vec<ServerId> =
        t.fleet.servers().filter(|server| held(server)).map(|server| server.id.clone()).collect();
    for server in interrupted {
        t.emit(Event::ServerInterrupted { server });
    }
    Outcome::Done
}

/// When a server is to be looked at again.
pub(super) fn deadline_of(server: &Server, reports_missed_max: u32, lost_retention: Millis) -> Timestamp {
    match server.link {
        Link::Up { .. } | Link::Interrupted { .. } => {
            let span = server.report_interval.0.saturating_mul(u64::from(reports_missed_max));
            server.heard_at + Millis(span)
        }
        Link::Lost { since, .. } => since + lost_retention,
    }
}

/// A server was silent, or lost, for as long as it may be.
pub(super) fn deadline_passed(t: &mut Transition<'_>, id: &ServerId) {
    let Some(server) = t.fleet.server(id).cloned() else { return };
    match server.link {
        Link::Up { .. } | Link::Interrupted { .. } => t.emit(Event::ServerLost { server: id.clone() }),
        Link::Lost { .. } => {
            give_up_preparing(t, id);
            let unanswered: Vec<InstructionId> = t.fleet.outbox(id).map(|instruction| instruction.id).collect();
            for instruction in unanswered {
                t.emit(Event::InstructionSettled { server: id.clone(), instruction, answer: None });
            }
            t.emit(Event::ServerForgotten { server: id.clone() });
        }
    }
}

/// Sessions that a server was to make are not made any more.
fn give_up_preparing(t: &mut Transition<'_>, server: &ServerId) {
    let preparing: Vec<SessionId> = t
        .fleet
        .sessions_on(server)
        .filter(|session| matches!(session.phase, Phase::Preparing { .. }))
        .map(|session| session.id.clone())
        .collect();
    for id in preparing {
        end(t, &id, Some("its server went away before it was created".to_owned()));
    }
}

/// Brings the log and the host's inventory together.
fn observe(t: &mut Transition<'_>, server: &ServerId, inventory: Inventory) {
    match inventory {
        Inventory::Full(sessions) => {
            let listed: std::collections::BTreeSet<&SessionId> = sessions.iter().map(|session| &session.id).collect();
            let missing: Vec<SessionId> = t
                .fleet
                .sessions_on(server)
                .filter(|session| !listed.contains(&session.id))
                .map(|session| session.id.clone())
                .collect();
            for id in missing {
                gone(t, server, &id, Absence::Missing, "it is no longer on its server".to_owned());
            }
            for session in sessions {
                present(t, server, session);
            }
        }
        Inventory::Changes { changed, gone: ended } => {
            for EndedSession { id, reason } in ended {
                let reason = reason.unwrap_or_else(|| "it ended on its server".to_owned());
                gone(t, server, &id, Absence::Ended, reason);
            }
            for session in changed {
                present(t, server, session);
            }
        }
    }
}

/// What a host says of a session that it does not have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absence {
    /// It had it, and it ended.
    Ended,
    /// It is not in the inventory.
    Missing,
}

/// A host does not have a session (any more).
fn gone(t: &mut Transition<'_>, server: &ServerId, id: &SessionId, absence: Absence, reason: String) {
    let Some(session) = t.fleet.session(id).cloned() else { return };
    if session.phase.occupies() != Some(server) {
        return;
    }
    match session.phase {
        Phase::Ready { .. } => end_by_itself(t, id, Some(reason)),
        Phase::Deleting { .. } => end(t, id, None),
        // It came up and ended before the answer was heard.
        Phase::Preparing { instruction, .. } if absence == Absence::Ended => {
            withdraw(t, server, instruction);
            end_by_itself(t, id, Some(reason));
        }
        // Not there yet; the answer to the instruction will come.
        Phase::Preparing { .. } | Phase::Placing { .. } | Phase::Deleted { .. } => {}
    }
}

/// A host has a session.
fn present(t: &mut Transition<'_>, server: &ServerId, reported: ReportedSession) {
    let known = t.fleet.session(&reported.id).cloned();
    match known.as_deref() {
        Some(session) if session.phase.occupies() == Some(server) => update(t, session, &reported),
        Some(session) if !session.phase.is_deleted() => {
            t.emit(Event::SessionConflict { id: reported.id, server: server.clone() });
        }
        Some(_) | None => adopt(t, server, reported),
    }
}

fn update(t: &mut Transition<'_>, session: &Session, reported: &ReportedSession) {
    let changed =
        session.connections != reported.connections || session.last_disconnected_at != reported.last_disconnected_at;
    if changed {
        t.emit(Event::SessionObserved {
            id: session.id.clone(),
            connections: reported.connections,
            last_disconnected_at: reported.last_disconnected_at,
        });
    }
}

/// A session that the broker did not know, or holds for deleted, lives on a
/// host: it counts from now on. One that the broker made and wanted gone is
/// closed instead; it was away with its server when it should have been told.
fn adopt(t: &mut Transition<'_>, server: &ServerId, reported: ReportedSession) {
    let id = &reported.id;
    let being_closed = t
        .fleet
        .outbox(server)
        .any(|instruction| matches!(&instruction.action, Action::CloseSession { session } if session == id));
    if being_closed || !reported.usable {
        return;
    }
    let unwanted =
        t.fleet.session(id).is_some_and(|session| matches!(session.phase, Phase::Deleted { unwanted: true, .. }));
    if unwanted && reported.created_by.is_some() {
        issue(t, server, Action::CloseSession { session: reported.id });
        return;
    }
    t.emit(Event::SessionAdopted { server: server.clone(), session: Box::new(reported) });
}
