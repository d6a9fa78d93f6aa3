//! What operators want: settings, servers open or closed, clients and keys.

use super::apply::Transition;
use super::sessions;
use crate::domain::client::{ApiClient, KeyPurpose, SigningKey};
use crate::domain::command::{Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::ids::{ClientId, KeyId, ServerId, SessionId};
use crate::domain::settings::Settings;
use crate::domain::time::Millis;

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
        sessions::end_on_its_server(t, &id);
    }
}

/// Registers an API client. The same again is no error: its answer was lost.
pub(super) fn register_client(t: &mut Transition<'_>, id: ClientId, name: String, secret_hash: String) -> Outcome {
    match t.fleet.client(&id) {
        Some(client) if client.name == name && client.secret_hash == secret_hash => Outcome::Done,
        Some(_) => Outcome::Refused(Refusal::Exists),
        None => {
            let registered_at = t.stamp.at;
            t.emit(Event::ClientRegistered(ApiClient { id, name, secret_hash, active: true, registered_at }));
            Outcome::Done
        }
    }
}

/// Deactivates an API client; it stays listed.
pub(super) fn deactivate_client(t: &mut Transition<'_>, id: ClientId) -> Outcome {
    match t.fleet.client(&id) {
        None => Outcome::Refused(Refusal::UnknownClient),
        Some(client) if !client.active => Outcome::Done,
        Some(_) => {
            t.emit(Event::ClientDeactivated { id });
            Outcome::Done
        }
    }
}

/// Installs the first key for a purpose; replicas that start together may
/// each offer one.
pub(super) fn install_key(t: &mut Transition<'_>, id: KeyId, purpose: KeyPurpose, sealed: Vec<u8>) -> Outcome {
    match t.fleet.key(purpose) {
        Some(key) if key.id == id => Outcome::Done,
        Some(_) => Outcome::Refused(Refusal::Exists),
        None => {
            t.emit(Event::KeyInstalled(SigningKey { id, purpose, sealed, installed_at: t.stamp.at }));
            Outcome::Done
        }
    }
}
