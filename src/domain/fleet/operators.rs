//! What operators want: settings, servers open or closed.

use super::apply::Transition;
use super::sessions;
use crate::domain::command::{Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::ids::{ClientId, ServerId, SessionId};
use crate::domain::settings::Settings;
use crate::domain::time::Millis;

/// Why sessions end that a drain ends.
pub(super) const DRAINED: &str = "its server was drained";

pub(super) fn configure(t: &mut Transition<'_>, settings: Settings) -> Outcome {
    if t.fleet.settings != settings {
        t.emit(Event::Configured(settings));
    }
    Outcome::Done
}

/// Opens a server for placement. Opening an open one changes nothing.
pub(super) fn open_server(t: &mut Transition<'_>, server: ServerId, client: ClientId) -> Outcome {
    if t.fleet.server(&server).is_none() {
        return Outcome::Refused(Refusal::UnknownServer);
    }
    if t.fleet.is_closed(&server) {
        t.emit(Event::ServerOpened { server, client });
    }
    Outcome::Done
}

/// Closes a server for placement. Sessions on it go on; without `force` there
/// must be none.
pub(super) fn close_server(t: &mut Transition<'_>, server: ServerId, force: bool, client: ClientId) -> Outcome {
    if t.fleet.server(&server).is_none() {
        return Outcome::Refused(Refusal::UnknownServer);
    }
    let sessions = t.fleet.counts(&server).total();
    if sessions > 0 && !force {
        return Outcome::Refused(Refusal::ServerHasSessions { sessions });
    }
    if !t.fleet.is_closed(&server) {
        t.emit(Event::ServerClosed { server, client });
    }
    Outcome::Done
}

/// Closes a server and gives its sessions a deadline. Draining one that drains
/// sets another deadline.
pub(super) fn drain_server(t: &mut Transition<'_>, server: &ServerId, within: Millis, client: ClientId) -> Outcome {
    if t.fleet.server(server).is_none() {
        return Outcome::Refused(Refusal::UnknownServer);
    }
    let deadline = t.stamp.at + within;
    t.emit(Event::ServerDraining { server: server.clone(), client, deadline });
    Outcome::Draining { sessions: t.fleet.counts(server).total(), deadline }
}

/// The time of a draining server is up: what is left on it ends.
pub(super) fn drain_deadline_passed(t: &mut Transition<'_>, server: &ServerId) {
    t.emit(Event::ServerDrainExpired { server: server.clone() });
    let left: Vec<SessionId> = t.fleet.sessions_on(server).map(|session| session.id.clone()).collect();
    for id in left {
        sessions::end_on_its_server(t, &id, Some(DRAINED));
    }
}
