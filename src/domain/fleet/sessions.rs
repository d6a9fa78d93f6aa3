//! What API clients want of sessions, and what time does to them.

use imbl::OrdSet;

use super::apply::Transition;
use crate::domain::command::{Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::ids::{ClientId, InstructionId, Owner, ServerId, SessionId};
use crate::domain::instruction::{Action, Instruction};
use crate::domain::placement;
use crate::domain::session::{Phase, SessionSpec, SessionState};

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
    let refusal = match placement::choose(t.fleet, &spec) {
        Ok(server) => {
            accept(t, &id, spec, client);
            place(t, &id, server);
            return Outcome::Created { id, created_at: t.stamp.at };
        }
        Err(explanation) if !spec.enqueue => Refusal::NoServer(explanation),
        Err(_) => {
            let max = t.fleet.settings.queue_max;
            if t.fleet.index.waiting_count() < max as usize {
                accept(t, &id, spec, client);
                return Outcome::Created { id, created_at: t.stamp.at };
            }
            Refusal::QueueFull { max }
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
fn place(t: &mut Transition<'_>, id: &SessionId, server: ServerId) {
    let Some(session) = t.fleet.session(id) else { return };
    let action = Action::CreateSession { session: id.clone(), spec: session.spec.clone() };
    let deadline = t.stamp.at + t.fleet.settings.prepare_timeout;
    let instruction = issue(t, &server, action);
    t.emit(Event::SessionPlaced { id: id.clone(), server, instruction, deadline });
}

/// Goes through those who wait, in the order of arrival, and places whom it
/// can on the servers that may now take more; one that fits nowhere does not
/// hold up the others. The other servers could take none of them before, and
/// cannot now.
pub(super) fn place_waiting(t: &mut Transition<'_>, grown: &OrdSet<ServerId>) {
    let waiting: Vec<SessionId> = t.fleet.waiting().map(|session| session.id.clone()).collect();
    for id in waiting {
        let Some(session) = t.fleet.session(&id) else { continue };
        if let Some(server) = placement::choose_among(t.fleet, &session.spec, grown.iter()) {
            place(t, &id, server);
        }
    }
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
    match &session.phase {
        Phase::Placing { .. } => end(t, id, Some("cancelled before a server was found".to_owned())),
        Phase::Preparing { server, instruction, .. } => {
            withdraw(t, server, *instruction);
            close(t, id, server);
        }
        Phase::Ready { server } => close(t, id, server),
        Phase::Deleting { .. } | Phase::Deleted { .. } => {}
    }
    let unreachable = session.phase.occupies().is_some_and(|server| is_out_of_reach(t, server));
    if force && unreachable {
        end(t, id, Some("deleted by force while its server could not be reached".to_owned()));
    }
    Outcome::Deleting(t.fleet.session(id).map_or(SessionState::Deleted, |session| t.fleet.state_of(session)))
}

fn is_out_of_reach(t: &Transition<'_>, server: &ServerId) -> bool {
    t.fleet.server(server).is_none_or(|server| !server.link.is_up())
}

/// Tells the host to end a session and waits for it. A host that is no longer
/// listed is told nothing; should it come back, so does the session.
fn close(t: &mut Transition<'_>, id: &SessionId, server: &ServerId) {
    if t.fleet.server(server).is_none() {
        return end(t, id, Some("deleted after its server had gone".to_owned()));
    }
    let deadline = t.stamp.at + t.fleet.settings.delete_timeout;
    let instruction = issue(t, server, Action::CloseSession { session: id.clone() });
    t.emit(Event::SessionDeleting { id: id.clone(), instruction, deadline });
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
        Phase::Placing { .. } | Phase::Preparing { .. } | Phase::Ready { .. } => {}
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
            end(t, id, Some(format!("no dcv server found for placement within {secs} s")));
        }
        Phase::Preparing { server, instruction, .. } => {
            let secs = t.fleet.settings.prepare_timeout.as_secs();
            withdraw(t, server, *instruction);
            // The host may be about to make it, or have made it unheard.
            issue(t, server, Action::CloseSession { session: id.clone() });
            end(t, id, Some(format!("its server did not create it within {secs} s")));
        }
        Phase::Deleting { .. } => {
            let secs = t.fleet.settings.delete_timeout.as_secs();
            end(t, id, Some(format!("its server did not confirm the end within {secs} s")));
        }
        Phase::Deleted { .. } => t.emit(Event::SessionForgotten { id: id.clone() }),
        Phase::Ready { .. } => {}
    }
}
