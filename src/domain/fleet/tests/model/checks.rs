//! What must hold after each step, walked out over everything there is, beside
//! what the domain checks of itself.

use std::collections::{BTreeMap, BTreeSet};

use super::agent::{Character, Host};
use super::shadow::{self, Shadow, ShadowSession};
use super::{Check, ensure, placing, world};
use crate::domain::command::{Command, Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::fleet::invariants::violations;
use crate::domain::fleet::{Fleet, Label};
use crate::domain::ids::{ServerId, SessionId};
use crate::domain::server::Link;
use crate::domain::session::{Phase, SessionState};
use crate::domain::time::{Millis, Timestamp};

/// Everything about a state. (Invariants 1, 3, 6, 12 of the design, and those
/// that the domain states itself.)
pub(super) fn state(fleet: &Fleet, shadow: &Shadow) -> Check {
    let found = violations(fleet);
    ensure!(found.is_empty(), "{found:?}");
    sessions_agree(fleet, shadow)?;
    servers_agree(fleet, shadow)?;
    for session in fleet.sessions_from(None) {
        reason_is_given(fleet, shadow, &session.id)?;
    }
    for (server, id) in shadow.set_aside.keys() {
        let is_there = shadow.sessions.get(id).is_some_and(|session| session.phase.occupies() == Some(server));
        ensure!(!is_there, "{id} counts twice on {server}");
    }
    for (id, session) in shadow.waiting() {
        if let Some(server) = placing::taker(shadow, id, session.wish()) {
            return Err(format!("{id} waits although {server} could take it"));
        }
    }
    for (server, id) in &shadow.drained {
        // Its id may have gone to one that another server has.
        let phase = shadow.sessions.get(id).map(|session| &session.phase);
        let there = phase.filter(|phase| phase.occupies() == Some(server));
        let ends = matches!(there, None | Some(Phase::Deleting { .. }));
        ensure!(ends, "{id} does not end although its server's drain is over");
    }
    Ok(())
}

/// The state is what the events told, session by session: nothing vanished,
/// nothing appeared.
fn sessions_agree(fleet: &Fleet, shadow: &Shadow) -> Check {
    for (id, told) in &shadow.sessions {
        let Some(found) = fleet.session(id) else { return Err(format!("{id} is not in the state")) };
        let same = found.phase == told.phase
            && found.spec == told.spec
            && found.arrival == told.arrival
            && found.failed_on == told.failed_on
            && found.state_reason == told.reason
            && found.requested_by == told.client;
        ensure!(same, "{id} is {found:?}, but events told {:?}, {:?}", told.phase, told.reason);
    }
    ensure!(fleet.session_count() == shadow.sessions.len(), "a session appeared without an event");
    let waiting: Vec<&SessionId> = fleet.waiting().map(|session| &session.id).collect();
    let mut told: Vec<_> = shadow.waiting().map(|(id, session)| (session.arrival, id)).collect();
    told.sort_unstable();
    ensure!(waiting.iter().copied().eq(told.into_iter().map(|(_, id)| id)), "the queue is out of order: {waiting:?}");
    let outbox = fleet.outbox.iter().map(|(key, instruction)| (key, &instruction.action));
    ensure!(outbox.eq(&shadow.outbox), "an outbox holds something else than events told");
    let aside = fleet.conflicts.iter().map(|(key, session)| (key, &**session));
    ensure!(aside.eq(&shadow.set_aside), "something else is set aside than events told");
    Ok(())
}

fn servers_agree(fleet: &Fleet, shadow: &Shadow) -> Check {
    ensure!(fleet.servers().map(|server| &server.id).eq(shadow.servers.keys()), "other servers are listed");
    for (id, told) in &shadow.servers {
        let Some(found) = fleet.server(id) else { continue };
        let link = match found.link {
            Link::Up { via, .. } => shadow::Link::Up { via },
            Link::Interrupted { .. } => shadow::Link::Broken,
            Link::Lost { since, ref via, .. } => shadow::Link::Lost { since, via: via.as_ref().map(|(via, _)| *via) },
        };
        let same = *found.facts == told.facts.clone().into()
            && found.load == told.load
            && found.health == told.health
            && found.link.epoch() == told.epoch
            && found.heard_at == told.heard_at
            && found.avoided_until == told.avoided_until
            && found.contested_at == told.contested_at
            && link == told.link;
        ensure!(same, "{id} is {found:?}, but events told something else: {:?}", told.link);
        let (counts, naive) = (fleet.counts(id).total() as usize, shadow.room_taken_on(id).len());
        ensure!(counts == naive, "{id} counts {counts} sessions and has {naive}");
    }
    let closed =
        fleet.closed.iter().map(|(id, closed)| (id, closed.drain.map(|drain| (drain.deadline, drain.is_over))));
    ensure!(closed.eq(shadow.closed.iter().map(|(id, drain)| (id, *drain))), "other servers are closed");
    for id in &shadow.closes {
        ensure!(fleet.is_closed(id), "{id} is open, although its closing was acknowledged");
    }
    Ok(())
}

/// A session that ended without being asked to, or is UNKNOWN, says why.
fn reason_is_given(fleet: &Fleet, shadow: &Shadow, id: &SessionId) -> Check {
    let (Some(session), Some(told)) = (fleet.session(id), shadow.sessions.get(id)) else { return Ok(()) };
    let state = fleet.state_of(session);
    let reason = fleet.state_reason_of(session).is_some_and(|reason| !reason.is_empty());
    let is_away = session.phase.occupies().is_some_and(|server| shadow.lost_since.contains_key(server));
    match state {
        SessionState::Deleted => ensure!(reason || told.ended_as_asked, "{id} is DELETED without a reason"),
        SessionState::Unknown => ensure!(reason && is_away, "{id} is UNKNOWN without a cause"),
        SessionState::Ready => ensure!(!is_away, "{id} is READY on a server that is lost"),
        SessionState::Creating | SessionState::Deleting => {}
    }
    Ok(())
}

/// After time moved on nothing is left that should have happened by then.
pub(super) fn nothing_is_overdue(shadow: &Shadow, at: Timestamp) -> Check {
    let settings = &shadow.settings;
    for (id, session) in &shadow.sessions {
        let deadline = session.phase.deadline();
        ensure!(deadline.is_none_or(|deadline| deadline > at), "{id} is overdue in {:?}", session.phase);
        let bound = match session.phase {
            Phase::Placing { .. } | Phase::Preparing { .. } | Phase::Withdrawing { .. } => world::CREATING_MAX,
            Phase::Deleting { .. } => world::DELETING_MAX,
            _ => continue,
        };
        ensure!(session.waits_since + bound > at, "{id} has waited since {}", session.waits_since.0);
    }
    let lost_for = |id: &ServerId, span: Millis| shadow.lost_since.get(id).is_some_and(|since| *since + span <= at);
    for (id, server) in &shadow.servers {
        let span = Millis(server.interval.0 * u64::from(settings.reports_missed_max));
        let is_lost = matches!(server.link, shadow::Link::Lost { .. });
        ensure!(is_lost || server.heard_at + span > at, "{id} should count as lost");
        ensure!(!lost_for(id, settings.lost_server_retention), "{id} should be forgotten");
        ensure!(server.avoided_until.is_none_or(|until| until > at), "{id} should not be avoided any more");
    }
    if let Some(kept) = settings.lost_session_retention {
        for (id, session) in &shadow.sessions {
            let is_kept = session.phase.occupies().is_some_and(|server| lost_for(server, kept));
            ensure!(!is_kept, "{id} should have ended: its server was lost for long");
        }
    }
    for (id, drain) in &shadow.closed {
        let is_over = drain.is_none_or(|(deadline, is_over)| is_over || deadline > at);
        ensure!(is_over, "the drain of {id} should be over");
    }
    Ok(())
}

/// What a caller is told agrees with what stood there before, and with what
/// can be read right after. (Invariants 2, 7, 8.)
pub(super) fn outcome(before: &Shadow, fleet: &Fleet, command: &Command, outcome: &Outcome, events: &[Event]) -> Check {
    match (command, outcome) {
        (Command::CreateSession { id, .. }, Outcome::Created { id: created, created_at }) => {
            let is_there = fleet.session(id).is_some_and(|found| found.created_at == *created_at);
            ensure!(created == id && is_there, "{id} is not what was acknowledged");
        }
        (Command::CreateSession { id, spec, .. }, Outcome::Refused(Refusal::NoServer(explanation))) => {
            ensure!(!spec.enqueue, "refused, although it may wait");
            placing::check_explanation(before, id, spec, explanation)?;
        }
        (Command::CreateSession { id, spec, .. }, Outcome::Refused(Refusal::QueueFull { max })) => {
            ensure!(before.waiting().count() >= *max as usize, "the queue is not full");
            ensure!(
                placing::taker(before, id, placing::Wish { spec, failed_on: &[] }).is_none(),
                "queued, although a server takes it"
            );
        }
        (Command::CreateSession { id, .. }, Outcome::Refused(Refusal::Exists)) => {
            ensure!(before.sessions.contains_key(id), "{id} does not exist");
        }
        (Command::DeleteSession { id, owner, .. }, outcome) => {
            let known = before.sessions.get(id).filter(|session| !session.phase.is_deleted());
            match (known, outcome) {
                (None, Outcome::Refused(Refusal::UnknownSession)) => {}
                (Some(session), Outcome::Refused(Refusal::OtherOwner)) if session.spec.owner != *owner => {}
                (Some(session), Outcome::Deleting(state)) if session.spec.owner == *owner => {
                    let now = fleet.session(id).map(|session| fleet.state_of(session));
                    // Its id may have gone to one that was set aside.
                    let is_other = events
                        .iter()
                        .any(|event| matches!(event, Event::SessionAdopted { session, .. } if session.id == *id));
                    ensure!(is_other || now == Some(*state), "{id} is {now:?}, but {state:?} was acknowledged");
                    let ends = matches!(state, SessionState::Deleting | SessionState::Deleted);
                    ensure!(ends, "{id} is {state:?} after its end was acknowledged");
                }
                other => return Err(format!("deleting {id} came to {:?}", other.1)),
            }
        }
        (Command::CloseServer { id, force, .. }, outcome) => {
            let there = before.room_taken_on(id).len();
            let expected = match before.servers.contains_key(id) {
                false => Outcome::Refused(Refusal::UnknownServer),
                true if there > 0 && !force => Outcome::Refused(Refusal::ServerHasSessions {
                    sessions: u32::try_from(there).map_err(|error| error.to_string())?,
                }),
                true => Outcome::Done,
            };
            ensure!(*outcome == expected, "closing {id} came to {outcome:?}");
        }
        (Command::ConnectAgent { server, instance, .. }, outcome) => {
            let epoch = fleet.server(server).map(|server| server.link.epoch());
            let expected = match outcome {
                Outcome::Welcome { epoch: new } => epoch == Some(*new),
                Outcome::Refused(Refusal::OtherInstance) => before.is_held_by_other(server, instance),
                _ => false,
            };
            ensure!(expected, "connecting {server} came to {outcome:?}");
        }
        _ => {}
    }
    Ok(())
}

/// What runs on the hosts: the sessions that the broker had made run on one
/// honest host at most. (Invariant 3.)
pub(super) fn hosts(hosts: &[Host]) -> Check {
    let mut runs: BTreeMap<&SessionId, &ServerId> = BTreeMap::new();
    for host in hosts.iter().filter(|host| host.character == Character::Honest) {
        for desktop in host.desktops.values().filter(|desktop| desktop.created_by.is_some()) {
            if let Some(other) = runs.insert(&desktop.id, &host.id) {
                return Err(format!("{} runs on {other} and on {}", desktop.id, host.id));
            }
        }
    }
    Ok(())
}

/// When everybody has said everything, the broker has what the hosts have.
/// (Invariant 12.)
pub(super) fn broker_has_what_runs(fleet: &Fleet, shadow: &Shadow, host: &Host) -> Check {
    let server = &host.id;
    let open = fleet.outbox(server).count();
    ensure!(open == 0, "{server} has {open} open instructions, although it is calm");
    let mut known: BTreeSet<&SessionId> = BTreeSet::new();
    for (id, session) in shadow.sessions.iter().filter(|(_, session)| session.phase.occupies() == Some(server)) {
        let is_ready = matches!(session.phase, Phase::Ready { .. });
        ensure!(is_ready, "{id} is {:?}, although {server} is calm", session.phase);
        known.insert(id);
    }
    known.extend(shadow.set_aside.keys().filter(|(of, _)| of == server).map(|(_, id)| id));
    let runs: BTreeSet<&SessionId> = host.desktops.keys().collect();
    let usable: BTreeSet<&SessionId> =
        host.desktops.values().filter(|found| found.usable).map(|found| &found.id).collect();
    ensure!(
        known.is_subset(&runs) && usable.is_subset(&known),
        "{server} runs {runs:?}, which is not what the broker has: {known:?}"
    );
    Ok(())
}

/// A listing by labels holds what carries them, from some id on, each once and
/// in its state. (Invariant 9.)
pub(super) fn listing(fleet: &Fleet, shadow: &Shadow, groups: &[Vec<Label>], after: Option<&SessionId>) -> Check {
    let carries = |session: &ShadowSession, label: &Label| match label {
        Label::Owner(owner) => session.spec.owner == *owner,
        Label::Server(server) => session.phase.server() == Some(server),
        Label::Tag { name, value } => {
            let server = session.phase.server().and_then(|server| shadow.servers.get(server));
            server.is_some_and(|server| server.facts.tags.get(name) == Some(value))
        }
    };
    let wanted = shadow.sessions.iter().filter(|(id, session)| {
        after.is_none_or(|after| *id > after)
            && groups.iter().all(|group| group.iter().any(|label| carries(session, label)))
    });
    let wanted: Vec<_> = wanted.map(|(id, session)| (id, state_of(shadow, session))).collect();
    let found =
        fleet.walk(groups, after, usize::MAX).map(|found| (&found.session.id, found.session.state(found.is_lost)));
    let found: Vec<_> = found.collect();
    ensure!(found == wanted, "{groups:?} lists {found:?} instead of {wanted:?}");
    Ok(())
}

fn state_of(shadow: &Shadow, session: &ShadowSession) -> SessionState {
    let is_away = session.phase.server().is_some_and(|server| shadow.lost_since.contains_key(server));
    match session.phase {
        Phase::Preparing { .. } | Phase::Withdrawing { .. } | Phase::Ready { .. } if is_away => SessionState::Unknown,
        Phase::Placing { .. } | Phase::Preparing { .. } | Phase::Withdrawing { .. } => SessionState::Creating,
        Phase::Ready { .. } => SessionState::Ready,
        Phase::Deleting { .. } => SessionState::Deleting,
        Phase::Deleted { .. } => SessionState::Deleted,
    }
}

/// A reader that walks through pages while things change. (Invariant 9.)
#[derive(Default)]
pub(super) struct Walk {
    after: Option<SessionId>,
    seen: BTreeSet<SessionId>,
    /// Listed since the walk began.
    throughout: BTreeSet<SessionId>,
}

impl Walk {
    /// Notes what is no longer listed.
    pub(super) fn watch(&mut self, fleet: &Fleet) {
        self.throughout.retain(|id| fleet.session(id).is_some());
    }

    /// Reads one page; at the end, begins anew.
    pub(super) fn read_page(&mut self, fleet: &Fleet, size: usize) -> Check {
        if self.after.is_none() {
            self.throughout = fleet.sessions_from(None).map(|session| session.id.clone()).collect();
        }
        let page: Vec<SessionId> =
            fleet.walk(&[], self.after.as_ref(), usize::MAX).take(size).map(|found| found.session.id.clone()).collect();
        for id in &page {
            ensure!(self.seen.insert(id.clone()), "{id} stands on two pages");
        }
        if page.len() < size {
            let missed = self.throughout.difference(&self.seen).next();
            ensure!(missed.is_none(), "{missed:?} stands on no page");
            *self = Self::default();
        } else {
            self.after = page.last().cloned();
        }
        Ok(())
    }
}
