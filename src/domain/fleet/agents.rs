//! What agents say, and what their silence means.

use std::sync::Arc;

use super::Fleet;
use super::apply::Transition;
use super::operators;
use super::sessions::{attempt_failed, close_failed, end, end_by_itself, end_on_its_server, issue, withdraw};
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
        && (known.is_held_by_other(&instance) || is_likely_a_copy(t, known, &report))
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

/// Whether an agent that comes right after a connection broke is the copy that
/// was refused while it stood: it has none of the desktops that run there. Its
/// full report would end them all. The server's own agent has them; one whose
/// host lost its power is let in when its old connection was found dead, or
/// three reports were missed.
fn is_likely_a_copy(t: &Transition<'_>, known: &Server, report: &Report) -> bool {
    if !matches!(known.link, Link::Interrupted { .. }) || !known.is_contested(t.stamp.at) {
        return false;
    }
    let Some(Inventory::Full(listed)) = &report.sessions else { return false };
    let ready = |session: &&Arc<Session>| matches!(session.phase, Phase::Ready { .. });
    let mut ready = t.fleet.sessions_on(&known.id).filter(ready).peekable();
    ready.peek().is_some() && !ready.any(|session| listed.iter().any(|there| there.id == session.id))
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
            attempt_failed(t, session, server, reason);
        }
        (Action::CloseSession { session }, Answer::Done) => closed(t, session, server, id),
        (Action::CloseSession { session }, Answer::Failed { reason }) => close_failed(t, session, id, &reason),
        // The permissions that stand in the log stay; the journal has the failure.
        _ => {}
    }
    Outcome::Done
}

fn is_preparing(t: &Transition<'_>, session: &SessionId, by: InstructionId) -> bool {
    let phase = t.fleet.session(session).map(|session| &session.phase);
    matches!(phase, Some(Phase::Preparing { instruction, .. }) if *instruction == by)
}

/// A host has ended a session, or does not have it.
fn closed(t: &mut Transition<'_>, id: &SessionId, server: &ServerId, by: InstructionId) {
    let Some(session) = t.fleet.session(id).cloned() else { return };
    match session.phase {
        Phase::Deleting { instruction, .. } if instruction == by => end(t, id, session.state_reason.clone()),
        Phase::Withdrawing { instruction, .. } if instruction == by => {
            let reason = session.state_reason.clone().unwrap_or_default();
            attempt_failed(t, id, server, reason);
        }
        _ => {}
    }
}

/// The connection to an agent broke.
pub(super) fn disconnect(t: &mut Transition<'_>, server: ServerId, epoch: Epoch) -> Outcome {
    let found = t.fleet.server(&server);
    if !found.is_some_and(|server| server.link.held_by().is_some() && server.link.epoch() == epoch) {
        return Outcome::Refused(Refusal::StaleEpoch);
    }
    t.emit(Event::ServerInterrupted { server });
    Outcome::Done
}

/// An agent was asked for a sign of life, because another one came with its id,
/// and gave none: it counts as lost, and whoever comes is welcome.
pub(super) fn silent(t: &mut Transition<'_>, server: ServerId, epoch: Epoch) -> Outcome {
    let outcome = disconnect(t, server.clone(), epoch);
    if outcome == Outcome::Done && t.fleet.server(&server).is_some_and(|server| !server.link.is_lost()) {
        t.emit(Event::ServerLost { server });
    }
    outcome
}

/// A replica began anew, or nothing is heard of it: whatever agents it held are
/// connected no longer.
pub(super) fn replica_gone(t: &mut Transition<'_>, replica: ReplicaId) -> Outcome {
    let held = |server: &&Arc<Server>| server.link.held_by() == Some(replica);
    let interrupted: Vec<ServerId> = t.fleet.servers().filter(held).map(|server| server.id.clone()).collect();
    for server in interrupted {
        t.emit(Event::ServerInterrupted { server });
    }
    Outcome::Done
}

/// Operators' marks of a server that is not listed are kept this long after
/// it was lost: a host that comes back from a repair is still closed.
const MARKS_RETENTION: Millis = Millis::from_secs(30 * 24 * 3600);

/// What is due on a server by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ServerDue {
    AvoidanceEnds,
    DrainExpires,
    CountsAsLost,
    SessionsExpire,
    IsForgotten,
    MarksExpire,
}

/// What is due on a server first, and when. A function of the state.
fn next_due(fleet: &Fleet, id: &ServerId) -> Option<(Timestamp, ServerDue)> {
    let settings = &fleet.settings;
    let has_sessions = fleet.counts(id).total() > 0;
    let sessions_expire = |since: Timestamp| {
        settings.lost_session_retention.filter(|_| has_sessions).map(|span| (since + span, ServerDue::SessionsExpire))
    };
    let drain = fleet.closed(id).and_then(|closed| closed.drain).filter(|drain| !drain.is_over);
    let drain = drain.map(|drain| (drain.deadline, ServerDue::DrainExpires));
    let Some(server) = fleet.server(id) else {
        let since = *fleet.departed.get(id)?;
        let kept = MARKS_RETENTION.max(settings.lost_session_retention.unwrap_or_default());
        let marks_expire = fleet.is_closed(id) || !has_sessions;
        let marks_expire = marks_expire.then_some((since + kept, ServerDue::MarksExpire));
        return [sessions_expire(since), drain, marks_expire].into_iter().flatten().min();
    };
    let (link, sessions) = match server.link {
        Link::Up { .. } | Link::Interrupted { .. } => {
            let span = server.report_interval.0.saturating_mul(u64::from(settings.reports_missed_max));
            ((server.heard_at + Millis(span), ServerDue::CountsAsLost), None)
        }
        Link::Lost { since, .. } => {
            ((since + settings.lost_server_retention, ServerDue::IsForgotten), sessions_expire(since))
        }
    };
    let avoidance = server.avoided_until.map(|until| (until, ServerDue::AvoidanceEnds));
    [Some(link), sessions, drain, avoidance].into_iter().flatten().min()
}

/// When a server is to be looked at again.
pub(super) fn deadline_of(fleet: &Fleet, id: &ServerId) -> Option<Timestamp> {
    next_due(fleet, id).map(|(at, _)| at)
}

/// What was due on a server happens.
pub(super) fn deadline_passed(t: &mut Transition<'_>, id: &ServerId) {
    let server = id.clone();
    match next_due(t.fleet, id).filter(|(at, _)| *at <= t.stamp.at).map(|(_, due)| due) {
        Some(ServerDue::AvoidanceEnds) => t.emit(Event::ServerAvoidanceEnded { server }),
        Some(ServerDue::DrainExpires) => operators::drain_deadline_passed(t, id),
        Some(ServerDue::CountsAsLost) => t.emit(Event::ServerLost { server }),
        Some(ServerDue::SessionsExpire) => sessions_expired(t, id),
        Some(ServerDue::IsForgotten) => forget(t, id),
        Some(ServerDue::MarksExpire) => t.emit(Event::ServerMarksDropped { server }),
        None => {}
    }
}

/// The sessions of a server that was lost for long are given up. Should it
/// come back and still have them, they count again.
fn sessions_expired(t: &mut Transition<'_>, server: &ServerId) {
    let secs = t.fleet.settings.lost_session_retention.unwrap_or_default().as_secs();
    let there: Vec<SessionId> = t.fleet.sessions_on(server).map(|session| session.id.clone()).collect();
    for id in there {
        let reason = Some(format!("its server could not be reached for {secs} s"));
        match t.fleet.session(&id).map(|session| session.phase.clone()) {
            Some(Phase::Ready { .. }) => end_by_itself(t, &id, reason),
            Some(Phase::Preparing { instruction, .. }) => {
                withdraw(t, server, instruction);
                end(t, &id, reason);
            }
            _ => end(t, &id, reason),
        }
    }
    set_nothing_aside(t, server);
    // A word of its agent alone would not say what is there: it is to connect
    // again, with a full report.
    if t.fleet.server(server).is_some_and(|server| server.link.held_by().is_some()) {
        t.emit(Event::ServerInterrupted { server: server.clone() });
    }
}

/// A server was away for too long. Its sessions may live on unseen; those that
/// it was still to make or to end are given up.
fn forget(t: &mut Transition<'_>, server: &ServerId) {
    let unfinished: Vec<(SessionId, &str)> = t
        .fleet
        .sessions_on(server)
        .filter_map(|session| match session.phase {
            Phase::Preparing { .. } | Phase::Withdrawing { .. } => {
                Some((session.id.clone(), "its server went away before it was created"))
            }
            Phase::Deleting { .. } => Some((session.id.clone(), "its server went away before it confirmed the end")),
            _ => None,
        })
        .collect();
    for (id, reason) in unfinished {
        end(t, &id, Some(reason.to_owned()));
    }
    let unanswered: Vec<InstructionId> = t.fleet.outbox(server).map(|instruction| instruction.id).collect();
    for instruction in unanswered {
        t.emit(Event::InstructionSettled { server: server.clone(), instruction, answer: None });
    }
    set_nothing_aside(t, server);
    t.emit(Event::ServerForgotten { server: server.clone() });
}

/// What a server had under ids of others is not known any more.
fn set_nothing_aside(t: &mut Transition<'_>, server: &ServerId) {
    let set_aside: Vec<SessionId> = t.fleet.conflicts_on(server).map(|session| session.id.clone()).collect();
    for id in set_aside {
        t.emit(Event::SessionConflictEnded { id, server: server.clone() });
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
            let no_conflict: Vec<SessionId> = t
                .fleet
                .conflicts_on(server)
                .filter(|session| !listed.contains(&session.id))
                .map(|session| session.id.clone())
                .collect();
            for id in missing {
                gone(t, server, &id, Absence::Missing, "it is no longer on its server".to_owned());
            }
            for id in no_conflict {
                t.emit(Event::SessionConflictEnded { id, server: server.clone() });
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
    if t.fleet.conflicts.contains_key(&(server.clone(), id.clone())) {
        return t.emit(Event::SessionConflictEnded { id: id.clone(), server: server.clone() });
    }
    let Some(session) = t.fleet.session(id).cloned() else { return };
    if session.phase.occupies() != Some(server) {
        return;
    }
    match session.phase {
        Phase::Ready { .. } => end_by_itself(t, id, Some(reason)),
        Phase::Deleting { .. } => end(t, id, session.state_reason.clone()),
        // It came up and ended before the answer was heard.
        Phase::Preparing { instruction, .. } if absence == Absence::Ended => {
            withdraw(t, server, instruction);
            end_by_itself(t, id, Some(reason));
        }
        // Not there (yet); the answer to the instruction will come.
        Phase::Preparing { .. } | Phase::Withdrawing { .. } | Phase::Placing { .. } | Phase::Deleted { .. } => {}
    }
}

/// A host has a session.
fn present(t: &mut Transition<'_>, server: &ServerId, reported: ReportedSession) {
    let known = t.fleet.session(&reported.id).cloned();
    match known.as_deref() {
        Some(session) if session.phase.occupies() == Some(server) => update(t, session, &reported),
        Some(session) if !session.phase.is_deleted() => set_aside(t, server, reported),
        Some(_) | None => adopt(t, server, reported),
    }
}

/// A host has a session under an id that another session has. One that the
/// broker once ordered there is closed: it runs somewhere else now.
fn set_aside(t: &mut Transition<'_>, server: &ServerId, reported: ReportedSession) {
    let key = (server.clone(), reported.id.clone());
    // One that its host could not close is not closed again and again.
    let is_new = !t.fleet.conflicts.contains_key(&key);
    if is_new && reported.created_by.is_some() && !is_being_closed(t, server, &reported.id) {
        issue(t, server, Action::CloseSession { session: reported.id.clone() });
    }
    let known = t.fleet.conflicts.get(&key);
    if reported.usable && known.is_none_or(|known| known.kind != reported.kind || known.owner != reported.owner) {
        t.emit(Event::SessionConflict { server: server.clone(), session: Box::new(reported) });
    }
}

/// Ids that were freed go to the sessions that were set aside for them.
pub(super) fn adopt_set_aside(t: &mut Transition<'_>) {
    for id in t.fleet.index.take_freed() {
        let candidates: Vec<ServerId> = t.fleet.index.conflicts_over(&id).cloned().collect();
        for server in candidates {
            if t.fleet.session(&id).is_some_and(|session| !session.phase.is_deleted()) {
                break;
            }
            let Some(session) = t.fleet.conflicts.get(&(server.clone(), id.clone())).cloned() else { break };
            t.emit(Event::SessionConflictEnded { id: id.clone(), server: server.clone() });
            adopt(t, &server, ReportedSession::clone(&session));
        }
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
    if is_being_closed(t, server, &reported.id) || !reported.usable {
        return;
    }
    let unwanted = t
        .fleet
        .session(&reported.id)
        .is_some_and(|session| matches!(session.phase, Phase::Deleted { unwanted: true, .. }));
    if unwanted && reported.created_by.is_some() {
        issue(t, server, Action::CloseSession { session: reported.id });
        return;
    }
    let id = reported.id.clone();
    t.emit(Event::SessionAdopted { server: server.clone(), session: Box::new(reported) });
    if t.fleet.closed(server).and_then(|closed| closed.drain).is_some_and(|drain| drain.is_over) {
        end_on_its_server(t, &id, Some(operators::DRAINED));
    }
}

fn is_being_closed(t: &Transition<'_>, server: &ServerId, id: &SessionId) -> bool {
    t.fleet
        .outbox(server)
        .any(|instruction| matches!(&instruction.action, Action::CloseSession { session } if session == id))
}
