//! What API clients want of sessions, and what time does to them.

use super::apply::Transition;
use crate::domain::command::{Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::ids::{ClientId, InstructionId, Owner, ServerId, SessionId};
use crate::domain::instruction::{Action, Instruction};
use crate::domain::placement::{self, Wish};
use crate::domain::session::{Phase, Session, SessionSpec, SessionState};

/// How often a server is told to end a session that it could not end.
const CLOSE_ATTEMPTS_MAX: u32 = 3;

/// Creates a session: on the best server, or into the queue when the request
/// allows it.
pub(super) fn create(t: &mut Transition<'_>, id: SessionId, spec: SessionSpec, client: ClientId) -> Outcome {
    if let Some(session) = t.fleet.session(&id) {
        // The same command again, after its answer was lost on the way.
        return if session.spec == spec && session.requested_by.as_ref() == Some(&client) {
            Outcome::Created { id, created_at: session.created_at }
        } else {
            Outcome::Refused(Refusal::Exists)
        };
    }
    t.fleet.note_requirements(&spec);
    let refusal = match placement::choose_or_explain(t.fleet, Wish { id: None, spec: &spec, failed_on: &[] }) {
        Ok(server) => {
            accept(t, &id, spec, client);
            place(t, &id, server);
            return Outcome::Created { id, created_at: t.stamp.at };
        }
        Err(explanation) if !spec.enqueue => Refusal::NoServer(explanation),
        Err(explanation) => {
            let max = t.fleet.settings.queue_max;
            if t.fleet.waiting_count() < max as usize {
                accept(t, &id, spec, client);
                return Outcome::Created { id, created_at: t.stamp.at };
            }
            Refusal::QueueFull { max, explanation }
        }
    };
    t.emit(Event::SessionRefused { id, owner: spec.owner, client, reason: refusal.to_string() });
    Outcome::Refused(refusal)
}

fn accept(t: &mut Transition<'_>, id: &SessionId, spec: SessionSpec, client: ClientId) {
    let deadline = t.stamp.at + t.fleet.settings.queue_timeout;
    t.emit(Event::SessionCreated { id: id.clone(), spec, client, deadline });
}

/// Puts a waiting session on a server.
pub(super) fn place(t: &mut Transition<'_>, id: &SessionId, server: ServerId) {
    let Some(session) = t.fleet.session(id) else { return };
    let action = Action::CreateSession { session: id.clone(), spec: session.spec.clone() };
    let deadline = t.stamp.at + t.fleet.settings.prepare_timeout;
    let instruction = issue(t, &server, action);
    t.emit(Event::SessionPlaced { id: id.clone(), server, instruction, deadline });
}

/// A server does not create a session, and never will: another one is tried,
/// or it ends.
///
/// Only a server that said so itself, or confirmed that it gave up, comes here:
/// no session is ever made on two hosts at once.
pub(super) fn attempt_failed(t: &mut Transition<'_>, id: &SessionId, server: &ServerId, reason: String) {
    let at = t.stamp.at;
    let settings = &t.fleet.settings;
    let avoid_until = at + settings.avoid_failed_server;
    // It has waited already.
    let asked_at = t.fleet.session(id).map_or(at, |session| session.created_at);
    let deadline = at.max(asked_at + settings.queue_timeout);
    let (id, server) = (id.clone(), server.clone());
    t.emit(Event::SessionAttemptFailed { id: id.clone(), server, reason: reason.clone(), avoid_until, deadline });
    let Some(session) = t.fleet.session(&id).cloned() else { return };
    if !has_retries_left(t, &session) {
        let attempts = session.failed_on.len();
        let reason = if attempts > 1 { format!("{reason} (after {attempts} attempts)") } else { reason };
        return end(t, &id, Some(reason));
    }
    match placement::choose_or_explain(t.fleet, session.wish()) {
        Ok(server) => place(t, &id, server),
        // It waits as it did before its first attempt.
        Err(_) if session.spec.enqueue => {}
        Err(explanation) => end(t, &id, Some(format!("{reason}; no other server: {}", explanation.counts()))),
    }
}

/// Whether one more server may be tried. Attempts that failed count.
fn has_retries_left(t: &Transition<'_>, session: &Session) -> bool {
    !session.spec.retry_disabled && session.failed_on.len() <= t.fleet.settings.create_retries_max as usize
}

/// Puts an instruction into a server's outbox.
pub(super) fn issue(t: &mut Transition<'_>, server: &ServerId, action: Action) -> InstructionId {
    let id = t.fleet.last_instruction.next();
    let instruction = Instruction { id, issued_at: t.stamp.at, action };
    t.emit(Event::InstructionIssued { server: server.clone(), instruction });
    id
}

/// Ends a session. `force` ends the record at once when the host cannot be
/// reached; the host is told to end it as soon as it is back.
pub(super) fn delete(t: &mut Transition<'_>, id: &SessionId, owner: &Owner, force: bool) -> Outcome {
    let Some(session) = t.fleet.session(id).cloned() else {
        return Outcome::Refused(Refusal::UnknownSession);
    };
    if session.phase.is_deleted() {
        return Outcome::Refused(Refusal::UnknownSession);
    }
    if session.spec.owner != *owner {
        return Outcome::Refused(Refusal::OtherOwner);
    }
    end_on_its_server(t, id, None);
    let unreachable = session.phase.occupies().is_some_and(|server| is_out_of_reach(t, server));
    if force && unreachable && t.fleet.session(id).is_some_and(|session| !session.phase.is_deleted()) {
        end(t, id, Some("deleted by force while its server could not be reached".to_owned()));
    }
    Outcome::Deleting(t.fleet.session(id).map_or(SessionState::Deleted, |session| t.fleet.state_of(session)))
}

/// Ends a session wherever it is in its life; `reason` when nobody asked for
/// this session to end.
pub(super) fn end_on_its_server(t: &mut Transition<'_>, id: &SessionId, reason: Option<&str>) {
    let reason = reason.map(str::to_owned);
    let Some(session) = t.fleet.session(id).cloned() else { return };
    match &session.phase {
        Phase::Placing { .. } => end(t, id, Some("cancelled before a server was found".to_owned())),
        Phase::Preparing { server, instruction, .. } => {
            withdraw(t, server, *instruction);
            close(t, id, server, 1, reason);
        }
        // It was told already.
        Phase::Withdrawing { instruction, .. } => {
            let deadline = t.stamp.at + t.fleet.settings.delete_timeout;
            t.emit(Event::SessionDeleting { id: id.clone(), instruction: *instruction, deadline, attempt: 1, reason });
        }
        Phase::Ready { server } => close(t, id, server, 1, reason),
        Phase::Deleting { .. } | Phase::Deleted { .. } => {}
    }
}

fn is_out_of_reach(t: &Transition<'_>, server: &ServerId) -> bool {
    t.fleet.server(server).is_none_or(|server| !server.link.is_up())
}

/// Tells the host to end a session and waits for it. A host that is no longer
/// listed is told nothing; should it come back, so does the session.
fn close(t: &mut Transition<'_>, id: &SessionId, server: &ServerId, attempt: u32, reason: Option<String>) {
    if t.fleet.server(server).is_none() {
        return end(t, id, Some("deleted after its server had gone".to_owned()));
    }
    let deadline = t.stamp.at + t.fleet.settings.delete_timeout;
    let instruction = issue(t, server, Action::CloseSession { session: id.clone() });
    t.emit(Event::SessionDeleting { id: id.clone(), instruction, deadline, attempt, reason });
}

/// A host could not end a session. It is told again a few times; after that
/// the session is what it was before, because it lives.
pub(super) fn close_failed(t: &mut Transition<'_>, id: &SessionId, by: InstructionId, reason: &str) {
    let Some(session) = t.fleet.session(id).cloned() else { return };
    let reason = format!("its server could not end it: {reason}");
    match &session.phase {
        Phase::Deleting { server, instruction, attempt, .. } if *instruction == by && *attempt < CLOSE_ATTEMPTS_MAX => {
            close(t, id, server, attempt + 1, session.state_reason.clone());
        }
        Phase::Deleting { instruction, was_ready: true, .. } if *instruction == by => {
            t.emit(Event::SessionDeletionFailed { id: id.clone(), reason });
        }
        Phase::Deleting { instruction, .. } if *instruction == by => end(t, id, Some(reason)),
        Phase::Withdrawing { instruction, .. } if *instruction == by => end(t, id, Some(reason)),
        // Its record had ended without it. Shown again, it counts again.
        Phase::Deleted { unwanted: true, .. } => t.emit(Event::SessionDeletionFailed { id: id.clone(), reason }),
        _ => {}
    }
}

/// Takes an instruction back; the agent may have got it already.
pub(super) fn withdraw(t: &mut Transition<'_>, server: &ServerId, instruction: InstructionId) {
    if t.fleet.outbox.contains_key(&(server.clone(), instruction)) {
        t.emit(Event::InstructionSettled { server: server.clone(), instruction, answer: None });
    }
}

/// A session is gone because the broker wanted it so.
pub(super) fn end(t: &mut Transition<'_>, id: &SessionId, reason: Option<String>) {
    let forget_at = t.stamp.at + t.fleet.settings.deleted_retention;
    t.emit(Event::SessionDeleted { id: id.clone(), reason, forget_at, unwanted: true });
}

/// A session ended by itself: should its host show it again, it counts again.
pub(super) fn end_by_itself(t: &mut Transition<'_>, id: &SessionId, reason: Option<String>) {
    let forget_at = t.stamp.at + t.fleet.settings.deleted_retention;
    t.emit(Event::SessionDeleted { id: id.clone(), reason, forget_at, unwanted: false });
}

/// Replaces the permissions of a session.
pub(super) fn update_permissions(
    t: &mut Transition<'_>,
    id: &SessionId,
    owner: &Owner,
    permissions: String,
) -> Outcome {
    let Some(session) = t.fleet.session(id).cloned() else {
        return Outcome::Refused(Refusal::UnknownSession);
    };
    if session.spec.owner != *owner {
        return Outcome::Refused(Refusal::OtherOwner);
    }
    match &session.phase {
        Phase::Deleted { .. } => return Outcome::Refused(Refusal::UnknownSession),
        Phase::Deleting { .. } => return Outcome::Refused(Refusal::WrongState("being deleted".to_owned())),
        Phase::Preparing { server, .. } | Phase::Ready { server } if t.fleet.server(server).is_some() => {
            withdraw_permissions(t, server, id);
            let action = Action::SetPermissions { session: id.clone(), permissions: permissions.clone() };
            issue(t, server, action);
        }
        Phase::Placing { .. } | Phase::Preparing { .. } | Phase::Withdrawing { .. } | Phase::Ready { .. } => {}
    }
    t.emit(Event::PermissionsChanged { id: id.clone(), permissions });
    Outcome::Done
}

/// Takes back permissions that newer ones replace, so that a server which does
/// not answer has at most one such instruction for each session.
fn withdraw_permissions(t: &mut Transition<'_>, server: &ServerId, session: &SessionId) {
    let older = t
        .fleet
        .outbox(server)
        .find(|instruction| matches!(&instruction.action, Action::SetPermissions { session: of, .. } if of == session));
    if let Some(id) = older.map(|instruction| instruction.id) {
        withdraw(t, server, id);
    }
}

/// Whatever a session waited for did not come.
pub(super) fn deadline_passed(t: &mut Transition<'_>, id: &SessionId) {
    let Some(session) = t.fleet.session(id).cloned() else { return };
    match &session.phase {
        Phase::Placing { .. } => {
            let secs = t.fleet.settings.queue_timeout.as_secs();
            let before = session.state_reason.as_ref().map_or_else(String::new, |reason| format!("{reason}; "));
            end(t, id, Some(format!("{before}no dcv server found for placement within {secs} s")));
        }
        Phase::Preparing { server, instruction, .. } => preparation_timed_out(t, &session, server, *instruction),
        Phase::Withdrawing { .. } => {
            let before = session.state_reason.as_deref().unwrap_or("its server did not create it in time");
            end(t, id, Some(format!("{before}, and did not confirm that it gave up")));
        }
        Phase::Deleting { .. } => {
            let secs = t.fleet.settings.delete_timeout.as_secs();
            end(t, id, Some(format!("its server did not confirm the end within {secs} s")));
        }
        Phase::Deleted { .. } => t.emit(Event::SessionForgotten { id: id.clone() }),
        Phase::Ready { .. } => {}
    }
}

/// The host may be about to make the session, or have made it unheard: it is
/// told to end it, and another host is tried once it has confirmed that.
fn preparation_timed_out(t: &mut Transition<'_>, session: &Session, server: &ServerId, instruction: InstructionId) {
    let reason = format!("its server did not create it within {} s", t.fleet.settings.prepare_timeout.as_secs());
    withdraw(t, server, instruction);
    let instruction = issue(t, server, Action::CloseSession { session: session.id.clone() });
    let until = t.stamp.at + t.fleet.settings.avoid_failed_server;
    t.emit(Event::ServerAvoided { server: server.clone(), until });
    // This attempt counts, too.
    let is_last =
        session.spec.retry_disabled || session.failed_on.len() >= t.fleet.settings.create_retries_max as usize;
    if is_last {
        return end(t, &session.id, Some(reason));
    }
    let deadline = t.stamp.at + t.fleet.settings.delete_timeout;
    t.emit(Event::SessionWithdrawing { id: session.id.clone(), instruction, deadline, reason });
}
