//! What events say of servers and of sessions, and what must have caused them.

use super::placing;
use super::shadow::{Link, Shadow, ShadowServer, ShadowSession};
use super::{Check, ensure};
use crate::domain::command::Command;
use crate::domain::event::Event;
use crate::domain::ids::{ServerId, SessionId};
use crate::domain::instruction::{Action, Answer};
use crate::domain::report::{Inventory, Report};
use crate::domain::server::CONTEST_INTERVAL;
use crate::domain::session::{Phase, SessionSpec};
use crate::domain::time::{Millis, Timestamp};

impl Shadow {
    pub(super) fn read_of_server(&mut self, at: Timestamp, causes: &[Command], event: &Event) -> Check {
        match event {
            Event::ServerConnected { server, instance, epoch, via, report_interval, report } => {
                ensure!(*epoch > self.last_epoch, "epoch {epoch} is not new");
                self.last_epoch = *epoch;
                let new = ShadowServer {
                    facts: report.facts.clone().unwrap_or_default(),
                    load: report.load.clone().unwrap_or_default(),
                    health: report.health.clone().unwrap_or_default(),
                    link: Link::Up { via: *via },
                    epoch: *epoch,
                    instance: instance.clone(),
                    contested_at: self.servers.get(server).and_then(|old| old.contested_at),
                    avoided_until: self.servers.get(server).and_then(|old| old.avoided_until),
                    heard_at: at,
                    interval: *report_interval,
                };
                self.servers.insert(server.clone(), new);
                self.lost_since.remove(server);
            }
            Event::ServerReported { server, report } => {
                let found = self.server(server)?;
                found.heard_at = at;
                let Report { facts, load, health, .. } = report.clone();
                found.facts = facts.unwrap_or_else(|| found.facts.clone());
                found.load = load.unwrap_or_else(|| found.load.clone());
                found.health = health.unwrap_or_else(|| found.health.clone());
            }
            Event::ServerContested { server } => {
                let other = causes.iter().any(|cause| {
                    matches!(cause, Command::ConnectAgent { server: of, instance, report, .. }
                        if of == server && (self.is_held_by_other(server, instance)
                            || self.is_likely_a_copy(server, report, at)))
                });
                let found = self.server(server)?;
                let is_new = found.contested_at.is_none_or(|told| told + CONTEST_INTERVAL <= at);
                ensure!(other && is_new, "{server} is not contested, or it was told a moment ago");
                found.contested_at = Some(at);
            }
            Event::ServerRecovered { server } => {
                ensure!(speaks(causes, server), "{server} did not speak and recovered");
                self.lost_since.remove(server);
                let found = self.server(server)?;
                let Link::Lost { via: Some(via), .. } = found.link else {
                    return Err(format!("{server} recovered from {:?}", found.link));
                };
                found.link = Link::Up { via };
                found.heard_at = at;
            }
            Event::ServerInterrupted { server } => {
                let found = self.server(server)?;
                let (Link::Up { via } | Link::Lost { via: Some(via), .. }) = found.link else {
                    return Err(format!("{server} was interrupted and had no connection"));
                };
                // Time ends it together with the sessions of a lost server.
                let has_cause = causes.is_empty()
                    || causes.iter().any(|cause| match cause {
                        Command::DisconnectAgent { server: of, .. } | Command::AgentSilent { server: of, .. } => {
                            of == server
                        }
                        Command::ReplicaStarted { replica } | Command::ReplicaSilent { replica } => *replica == via,
                        _ => false,
                    });
                ensure!(has_cause, "{server} was interrupted by nobody");
                found.link = match found.link {
                    Link::Lost { since, .. } => Link::Lost { since, via: None },
                    Link::Up { .. } | Link::Broken => Link::Broken,
                };
            }
            Event::ServerLost { server } => {
                let missed = u64::from(self.settings.reports_missed_max);
                let found = self.server(server)?;
                let silent_until = found.heard_at + Millis(found.interval.0 * missed);
                let is_silent =
                    causes.iter().any(|cause| matches!(cause, Command::AgentSilent { server: of, .. } if of == server));
                ensure!(
                    is_silent || silent_until <= at,
                    "{server} counts as lost, but was heard at {}",
                    found.heard_at.0
                );
                let via = match found.link {
                    Link::Up { via } => Some(via),
                    Link::Broken => None,
                    Link::Lost { .. } => return Err(format!("{server} was lost twice")),
                };
                found.link = Link::Lost { since: at, via };
                self.lost_since.insert(server.clone(), at);
            }
            Event::ServerForgotten { server } => {
                let kept = self.settings.lost_server_retention;
                let due = self.lost_since.get(server).is_some_and(|since| *since + kept <= at);
                ensure!(due, "{server} was forgotten too early");
                self.servers.remove(server);
            }
            Event::ServerAvoided { server, until } => self.server(server)?.avoided_until = Some(*until),
            Event::ServerAvoidanceEnded { server } => self.server(server)?.avoided_until = None,
            Event::ServerMarksDropped { server } => {
                self.closed.remove(server);
                self.closes.remove(server);
            }
            Event::ServerOpened { server, .. } => {
                self.closed.remove(server);
            }
            Event::ServerClosed { server, .. } => {
                self.closed.insert(server.clone(), None);
            }
            Event::ServerDraining { server, deadline, .. } => {
                self.closed.insert(server.clone(), Some((*deadline, false)));
            }
            Event::ServerDrainExpired { server } => {
                let drain = self.closed.get_mut(server).and_then(Option::as_mut);
                let Some((deadline, is_over)) = drain else { return Err(format!("{server} does not drain")) };
                ensure!(*deadline <= at && !*is_over, "the drain of {server} ends at the wrong time");
                *is_over = true;
                let there = self.sessions.iter().filter(|(_, session)| session.phase.occupies() == Some(server));
                self.drained.extend(there.map(|(id, _)| (server.clone(), id.clone())));
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn read_of_session(&mut self, at: Timestamp, causes: &[Command], event: &Event) -> Check {
        let settings = self.settings.clone();
        match event {
            Event::SessionCreated { id, spec, client, deadline } => {
                ensure!(!self.sessions.contains_key(id), "{id} was created twice");
                ensure!(*deadline == at + settings.queue_timeout, "{id} waits for another time than it should");
                self.arrivals += 1;
                let phase = Phase::Placing { deadline: *deadline };
                let new = ShadowSession {
                    arrival: self.arrivals,
                    client: Some(client.clone()),
                    ..new_session(at, spec.clone(), phase)
                };
                self.sessions.insert(id.clone(), new);
            }
            Event::SessionAdopted { server, session } => {
                let id = &session.id;
                let is_free = self.sessions.get(id).is_none_or(|old| old.phase.is_deleted());
                ensure!(is_free, "{id} was adopted over one that lives");
                ensure!(session.usable, "{id} was adopted and cannot be used");
                let is_closing = self.outbox.iter().any(|((of, _), action)| {
                    of == server && matches!(action, Action::CloseSession { session } if session == id)
                });
                ensure!(!is_closing, "{id} was adopted while {server} is told to close it");
                let spec = SessionSpec {
                    clients_max: session.clients_max,
                    storage_root: session.storage_root.clone(),
                    ..SessionSpec::plain(session.name.clone(), session.owner.clone(), session.kind)
                };
                self.sessions.insert(id.clone(), new_session(at, spec, Phase::Ready { server: server.clone() }));
                if matches!(self.closed.get(server), Some(Some((_, true)))) {
                    self.drained.push((server.clone(), id.clone()));
                }
            }
            Event::SessionPlaced { id, server, instruction, deadline } => {
                ensure!(*deadline == at + settings.prepare_timeout, "{id} is made for another time than it should");
                let told = self.outbox.get(&(server.clone(), *instruction));
                let is_told = matches!(told, Some(Action::CreateSession { session, .. }) if session == id);
                ensure!(is_told, "{id} was placed on {server}, which was not told");
                placing::check(self, at, id, server)?;
                let (server, instruction, deadline) = (server.clone(), *instruction, *deadline);
                self.moves(
                    id,
                    "placed",
                    |old| matches!(old, Phase::Placing { .. }),
                    |_| Phase::Preparing { server, instruction, deadline },
                )?;
            }
            Event::SessionReady { id } => {
                let made = |(action, answer): &(Action, Option<Answer>)| matches!((action, answer), (Action::CreateSession { session, .. }, Some(Answer::Done)) if session == id);
                ensure!(self.settled.iter().any(made), "{id} is ready, but its server did not say so");
                self.moves(id, "ready", |old| matches!(old, Phase::Preparing { .. }), ready)?;
                self.session(id)?.reason = None;
            }
            Event::SessionAttemptFailed { id, server, reason, avoid_until, deadline } => {
                let gave_up = |(action, answer): &(Action, Option<Answer>)| match (action, answer) {
                    (Action::CreateSession { session, .. }, Some(Answer::Failed { .. }))
                    | (Action::CloseSession { session }, Some(Answer::Done)) => session == id,
                    _ => false,
                };
                ensure!(self.settled.iter().any(gave_up), "{server} did not say that it does not make {id}");
                let deadline = *deadline;
                let is_there = |old: &Phase| {
                    matches!(old, Phase::Preparing { .. } | Phase::Withdrawing { .. }) && old.occupies() == Some(server)
                };
                self.moves(id, "failed", is_there, |_| Phase::Placing { deadline })?;
                let session = self.session(id)?;
                session.failed_on.push(server.clone());
                session.reason = Some(reason.clone());
                self.server(server)?.avoided_until = Some(*avoid_until);
            }
            Event::SessionWithdrawing { id, instruction, deadline, reason } => {
                let is_late = |old: &Phase| matches!(old, Phase::Preparing { deadline, .. } if *deadline <= at);
                let (instruction, deadline) = (*instruction, *deadline);
                self.moves(id, "withdrawn", is_late, |server| Phase::Withdrawing { server, instruction, deadline })?;
                self.session(id)?.reason = Some(reason.clone());
            }
            Event::SessionDeleting { id, instruction, deadline, attempt, reason } => {
                let is_drained = self.drained.iter().any(|(_, drained)| drained == id);
                let asked =
                    causes.iter().any(|cause| matches!(cause, Command::DeleteSession { id: of, .. } if of == id));
                let failed = self
                    .settled
                    .iter()
                    .any(|(action, answer)| matches!(answer, Some(Answer::Failed { .. })) && action.session() == id);
                ensure!(asked || failed || is_drained, "nobody wants {id} to end");
                let session = self.session(id)?;
                let was_ready = match session.phase {
                    Phase::Deleting { was_ready, .. } => was_ready,
                    ref other => matches!(other, Phase::Ready { .. }),
                };
                if *attempt == 1 {
                    session.waits_since = at;
                }
                session.reason.clone_from(reason);
                let (instruction, deadline, attempt) = (*instruction, *deadline, *attempt);
                self.moves(
                    id,
                    "deleting",
                    |old| old.occupies().is_some(),
                    |server| Phase::Deleting { server, instruction, deadline, attempt, was_ready },
                )?;
            }
            Event::SessionDeletionFailed { id, reason } => {
                let session = self.session(id)?;
                session.reason = Some(reason.clone());
                match &mut session.phase {
                    Phase::Deleting { server, was_ready: true, .. } => {
                        session.phase = Phase::Ready { server: server.clone() };
                    }
                    Phase::Deleted { unwanted, .. } => *unwanted = false,
                    other => return Err(format!("the end of {id} failed in {other:?}")),
                }
            }
            Event::SessionDeleted { id, reason, forget_at, unwanted } => {
                ensure!(*forget_at == at + settings.deleted_retention, "{id} is kept for another time than it should");
                let session = self.session(id)?;
                ensure!(!session.phase.is_deleted(), "{id} ended twice");
                let was_ending = matches!(session.phase, Phase::Deleting { .. });
                ensure!(reason.is_some() || was_ending, "{id} ended in {:?} without a reason", session.phase);
                session.ended_as_asked = reason.is_none();
                session.reason.clone_from(reason);
                let server = session.phase.server().or(session.failed_on.last()).cloned();
                session.phase = Phase::Deleted { server, forget_at: *forget_at, unwanted: *unwanted };
            }
            Event::SessionForgotten { id } => {
                let old = self.sessions.remove(id).map(|session| session.phase);
                let is_due = matches!(old, Some(Phase::Deleted { forget_at, .. }) if forget_at <= at);
                ensure!(is_due, "{id} was forgotten in {old:?}");
            }
            Event::SessionObserved { id, .. } => {
                self.session(id)?;
            }
            Event::PermissionsChanged { id, permissions } => {
                self.session(id)?.spec.permissions = Some(permissions.clone());
            }
            other => return Err(format!("no test says what {other:?} means")),
        }
        Ok(())
    }
}

fn ready(server: ServerId) -> Phase {
    Phase::Ready { server }
}

fn new_session(at: Timestamp, spec: SessionSpec, phase: Phase) -> ShadowSession {
    ShadowSession {
        spec,
        client: None,
        phase,
        arrival: 0,
        failed_on: Vec::new(),
        reason: None,
        waits_since: at,
        ended_as_asked: false,
    }
}

/// Whether a command is a server's own word, rather than what a replica says
/// of its connection.
fn speaks(causes: &[Command], id: &ServerId) -> bool {
    causes
        .iter()
        .any(|cause| matches!(cause, Command::Report { server, .. } | Command::Answer { server, .. } if server == id))
}

/// Whether a command reports a session of a server.
pub(super) fn reports(causes: &[Command], id: &ServerId, session: &SessionId) -> bool {
    let report = match causes {
        [Command::Report { server, report, .. } | Command::ConnectAgent { server, report, .. }] if server == id => {
            report
        }
        _ => return false,
    };
    match &report.sessions {
        Some(Inventory::Full(there) | Inventory::Changes { changed: there, .. }) => {
            there.iter().any(|found| found.id == *session && found.usable)
        }
        None => false,
    }
}
