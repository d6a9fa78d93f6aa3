//! Events change the state; nothing else does.

use std::sync::Arc;

use super::apply::Stamp;
use super::{Fleet, agents};
use crate::domain::event::Event;
use crate::domain::host::{HostFacts, HostLoad};
use crate::domain::ids::{Epoch, InstructionId, ReplicaId, ServerId, SessionId};
use crate::domain::report::{Report, ReportedSession};
use crate::domain::server::{Link, Server};
use crate::domain::session::{Phase, Session, SessionSpec};
use crate::domain::time::{Millis, Timestamp};

impl Fleet {
    /// Takes an event into the state. Servers that may now take a session that
    /// they could not take before are noted in the index.
    pub(super) fn fold(&mut self, stamp: Stamp, event: &Event) {
        match event {
            Event::Configured(settings) => {
                self.settings = settings.clone();
                self.rearm_servers();
            }
            Event::SessionCreated { id, spec, client, deadline } => {
                self.last_arrival += 1;
                self.put_session(Session {
                    id: id.clone(),
                    spec: spec.clone(),
                    requested_by: Some(client.clone()),
                    created_at: stamp.at,
                    changed_at: stamp.at,
                    phase: Phase::Placing { arrival: self.last_arrival, deadline: *deadline },
                    state_reason: None,
                    connections: 0,
                    last_disconnected_at: None,
                });
            }
            Event::SessionPlaced { id, server, instruction, deadline } => self.set_phase(
                id,
                Phase::Preparing { server: server.clone(), instruction: *instruction, deadline: *deadline },
            ),
            Event::SessionReady { id } => self.become_ready(id),
            Event::SessionAdopted { server, session } => self.put_session(adopted(stamp, server, session)),
            Event::SessionObserved { id, connections, last_disconnected_at } => self.change_session(id, |session| {
                session.connections = *connections;
                session.last_disconnected_at = *last_disconnected_at;
            }),
            Event::SessionDeleting { id, instruction, deadline } => self.become_deleting(id, *instruction, *deadline),
            Event::SessionDeleted { id, reason, forget_at, unwanted } => self.change_session(id, |session| {
                let server = session.phase.server().cloned();
                session.phase = Phase::Deleted { server, forget_at: *forget_at, unwanted: *unwanted };
                session.state_reason.clone_from(reason);
                session.connections = 0;
            }),
            Event::SessionForgotten { id } => {
                if let Some(old) = self.sessions.remove(id) {
                    self.index.replace_session(Some(&old), None);
                }
            }
            Event::PermissionsChanged { id, permissions } => {
                self.change_session(id, |session| session.spec.permissions = Some(permissions.clone()));
            }
            Event::InstructionIssued { server, instruction } => {
                self.last_instruction = self.last_instruction.max(instruction.id);
                self.outbox.insert((server.clone(), instruction.id), Arc::new(instruction.clone()));
            }
            Event::InstructionSettled { server, instruction, answer: _ } => {
                self.outbox.remove(&(server.clone(), *instruction));
            }
            Event::ServerConnected { server, epoch, via, report_interval, report } => {
                self.connect_server(stamp, server, *epoch, *via, *report_interval, report);
            }
            Event::ServerReported { server, report } => {
                self.change_server(server, |server| {
                    server.heard_at = stamp.at;
                    take_report(server, report);
                });
                // Requirements may hold now that did not hold before. A mere
                // sign of life changes nothing for those who wait.
                if report.facts.is_some() || report.load.is_some() || report.health.is_some() {
                    self.index.note_grown(server);
                }
            }
            Event::ServerRecovered { server } => self.change_server(server, |server| {
                if let Link::Lost { epoch, via: Some(via), .. } = server.link {
                    server.link = Link::Up { epoch, via };
                }
            }),
            Event::ServerInterrupted { server } => self.change_server(server, |server| {
                server.link = Link::Interrupted { epoch: server.link.epoch() };
            }),
            Event::ServerLost { server } => self.change_server(server, |server| {
                let via = match server.link {
                    Link::Up { via, .. } => Some(via),
                    Link::Interrupted { .. } | Link::Lost { .. } => None,
                };
                server.link = Link::Lost { epoch: server.link.epoch(), since: stamp.at, via };
            }),
            Event::ServerForgotten { server } => {
                self.servers.remove(server);
                self.index.set_server(server, None);
                self.index.drop_standing(server);
                self.index.set_server_deadline(server, None);
            }
            Event::ServerOpened { server, client: _ } => {
                self.closed.remove(server);
                self.restand(server);
            }
            Event::ServerClosed { server, client } => {
                self.closed.insert(server.clone(), client.clone());
                self.restand(server);
            }
            Event::ClientRegistered(client) => {
                self.clients.insert(client.id.clone(), Arc::new(client.clone()));
            }
            Event::ClientDeactivated { id } => {
                if let Some(client) = self.clients.get_mut(id) {
                    Arc::make_mut(client).active = false;
                }
            }
            Event::KeyInstalled(key) => {
                self.keys.insert(key.purpose, Arc::new(key.clone()));
            }
            Event::SessionRefused { .. } | Event::SessionConflict { .. } => {}
        }
    }

    fn put_session(&mut self, mut session: Session) {
        let id = session.id.clone();
        session.spec.owner = self.index.lookup().shared_owner(&session.spec.owner);
        let new = Arc::new(session);
        let old = self.sessions.insert(id, Arc::clone(&new));
        self.session_moved(old.as_deref(), &new);
    }

    fn change_session(&mut self, id: &SessionId, change: impl FnOnce(&mut Session)) {
        let Some(old) = self.sessions.get(id).cloned() else { return };
        let mut new = Session::clone(&old);
        change(&mut new);
        if new.phase != old.phase || new.state_reason != old.state_reason {
            new.changed_at = self.at;
        }
        self.put_session(new);
    }

    /// Keeps the index true after a session changed, and works out anew where
    /// the servers stand on which it took, or now takes, up room.
    fn session_moved(&mut self, old: Option<&Session>, new: &Arc<Session>) {
        self.index.replace_session(old, Some(new));
        let from = old.and_then(|session| session.phase.occupies());
        let to = new.phase.occupies();
        if let Some(server) = from.filter(|server| Some(*server) != to) {
            self.restand(server);
        }
        if let Some(server) = to.filter(|server| Some(*server) != from) {
            self.restand(server);
        }
    }

    fn set_phase(&mut self, id: &SessionId, phase: Phase) {
        self.change_session(id, |session| session.phase = phase);
    }

    fn become_ready(&mut self, id: &SessionId) {
        self.change_session(id, |session| {
            if let Some(server) = session.phase.occupies().cloned() {
                session.phase = Phase::Ready { server };
                session.state_reason = None;
            }
        });
    }

    fn become_deleting(&mut self, id: &SessionId, instruction: InstructionId, deadline: Timestamp) {
        self.change_session(id, |session| {
            if let Some(server) = session.phase.occupies().cloned() {
                session.phase = Phase::Deleting { server, instruction, deadline };
            }
        });
    }

    fn connect_server(
        &mut self,
        stamp: Stamp,
        id: &ServerId,
        epoch: Epoch,
        via: ReplicaId,
        report_interval: Millis,
        report: &Report,
    ) {
        self.last_epoch = self.last_epoch.max(epoch);
        let known = self.servers.get(id);
        let first_seen_at = known.map_or(stamp.at, |server| server.first_seen_at);
        let facts = known.map_or_else(|| Arc::new(HostFacts::default().into()), |server| Arc::clone(&server.facts));
        let mut server = Server {
            id: id.clone(),
            facts,
            load: HostLoad::default(),
            health: crate::domain::host::Health::Healthy,
            link: Link::Up { epoch, via },
            report_interval,
            heard_at: stamp.at,
            first_seen_at,
        };
        take_report(&mut server, report);
        self.servers.insert(id.clone(), Arc::new(server));
        self.show_server(id);
        self.rearm_server(id);
        self.restand(id);
        self.index.note_grown(id);
    }

    fn change_server(&mut self, id: &ServerId, change: impl FnOnce(&mut Server)) {
        let Some(server) = self.servers.get_mut(id) else { return };
        change(Arc::make_mut(server));
        self.show_server(id);
        self.restand(id);
        self.rearm_server(id);
    }

    /// Brings what sessions show of a server up to its record.
    fn show_server(&mut self, id: &ServerId) {
        self.index.set_server(id, self.servers.get(id).map(|server| &**server));
    }

    fn restand(&mut self, id: &ServerId) {
        let Some(server) = self.servers.get(id).cloned() else { return };
        let counts = self.counts(id);
        let closed = self.is_closed(id);
        self.index.restand(&server, closed, counts);
    }

    fn rearm_server(&mut self, id: &ServerId) {
        let at = self.servers.get(id).map(|server| {
            agents::deadline_of(server, self.settings.reports_missed_max, self.settings.lost_server_retention)
        });
        self.index.set_server_deadline(id, at);
    }

    fn rearm_servers(&mut self) {
        let ids: Vec<ServerId> = self.servers.keys().cloned().collect();
        for id in ids {
            self.rearm_server(&id);
        }
    }

    /// Works out everything that is derived, from nothing.
    pub(super) fn rebuild_index(&mut self) {
        self.index = super::index::Index::default();
        let ids: Vec<ServerId> = self.servers.keys().cloned().collect();
        // First the servers, so that each session finds its own.
        for id in &ids {
            self.show_server(id);
        }
        let sessions: Vec<Arc<Session>> = self.sessions.values().cloned().collect();
        for session in sessions {
            self.index.replace_session(None, Some(&session));
        }
        for id in ids {
            self.restand(&id);
            self.rearm_server(&id);
        }
        // Nobody who waits could be placed when the snapshot was taken.
        self.index.take_grown();
    }
}

fn take_report(server: &mut Server, report: &Report) {
    if let Some(facts) = &report.facts
        && **server.facts != *facts
    {
        server.facts = Arc::new(facts.clone().into());
    }
    if let Some(load) = &report.load {
        server.load = load.clone();
    }
    if let Some(health) = &report.health {
        server.health = health.clone();
    }
}

fn adopted(stamp: Stamp, server: &ServerId, reported: &ReportedSession) -> Session {
    Session {
        id: reported.id.clone(),
        spec: SessionSpec {
            clients_max: reported.clients_max,
            storage_root: reported.storage_root.clone(),
            ..SessionSpec::plain(reported.name.clone(), reported.owner.clone(), reported.kind)
        },
        requested_by: None,
        created_at: reported.created_at,
        changed_at: stamp.at,
        phase: Phase::Ready { server: server.clone() },
        state_reason: None,
        connections: reported.connections,
        last_disconnected_at: reported.last_disconnected_at,
    }
}
