//! Events change the state; nothing else does.

use std::sync::Arc;

use imbl::OrdMap;

use super::access::Access;
use super::apply::Stamp;

use super::{Fleet, agents};
use crate::domain::event::Event;
use crate::domain::host::{HostFacts, HostLoad};
use crate::domain::ids::{ClientId, InstructionId, ServerId, SessionId};
use crate::domain::placement::Changed;
use crate::domain::report::{Report, ReportedSession};
use crate::domain::server::{Closed, Drain, Link, Server};
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
                self.requests.trim(settings);
            }
            Event::SessionCreated { id, spec, client, deadline } => {
                self.last_arrival += 1;
                self.put_session(Session {
                    id: id.clone(),
                    spec: spec.clone(),
                    requested_by: Some(client.clone()),
                    created_at: stamp.at,
                    arrival: self.last_arrival,
                    changed_at: stamp.at,
                    phase: Phase::Placing { deadline: *deadline },
                    failed_on: Vec::new(),
                    state_reason: None,
                    connections: 0,
                    last_disconnected_at: None,
                });
            }
            Event::SessionPlaced { id, server, instruction, deadline } => self.set_phase(
                id,
                Phase::Preparing { server: server.clone(), instruction: *instruction, deadline: *deadline },
            ),
            Event::SessionAttemptFailed { id, server, reason, avoid_until, deadline } => {
                self.change_session(id, |session| {
                    session.failed_on.push(server.clone());
                    session.phase = Phase::Placing { deadline: *deadline };
                    session.state_reason = Some(reason.clone());
                });
                self.change_server(server, Changed::Standing, |server| server.avoided_until = Some(*avoid_until));
            }
            Event::SessionWithdrawing { id, instruction, deadline, reason } => self.change_session(id, |session| {
                if let Some(server) = session.phase.occupies().cloned() {
                    session.phase = Phase::Withdrawing { server, instruction: *instruction, deadline: *deadline };
                    session.state_reason = Some(reason.clone());
                }
            }),
            Event::SessionReady { id } => self.become_ready(id),
            Event::SessionAdopted { server, session } => self.put_session(adopted(stamp, server, session)),
            Event::SessionObserved { id, connections, last_disconnected_at } => self.change_session(id, |session| {
                session.connections = *connections;
                session.last_disconnected_at = *last_disconnected_at;
            }),
            Event::SessionDeleting { id, instruction, deadline, attempt, reason } => {
                self.become_deleting(id, *instruction, *deadline, *attempt);
                self.change_session(id, |session| session.state_reason.clone_from(reason));
            }
            Event::SessionDeletionFailed { id, reason } => self.change_session(id, |session| {
                match &mut session.phase {
                    Phase::Deleting { server, .. } => session.phase = Phase::Ready { server: server.clone() },
                    Phase::Deleted { unwanted, .. } => *unwanted = false,
                    _ => return,
                }
                session.state_reason = Some(reason.clone());
            }),
            Event::SessionConflict { server, session } => {
                let key = (server.clone(), session.id.clone());
                if let Some(old) = self.conflicts.insert(key, Arc::new(ReportedSession::clone(session))) {
                    self.index.count(server, old.kind, &old.owner, false);
                    // As many sessions as before, but of other owners.
                    self.index.note_grown(server);
                }
                self.index.note_conflict(&session.id, server, true);
                self.index.count(server, session.kind, &session.owner, true);
                self.restand(server, Changed::Standing);
                self.rearm_server(server);
            }
            Event::SessionConflictEnded { id, server } => {
                if let Some(old) = self.conflicts.remove(&(server.clone(), id.clone())) {
                    self.index.note_conflict(id, server, false);
                    self.index.count(server, old.kind, &old.owner, false);
                    self.restand(server, Changed::Standing);
                    self.rearm_server(server);
                }
            }
            Event::SessionDeleted { id, reason, forget_at, unwanted } => self.change_session(id, |session| {
                // One that failed everywhere is still of the server where it failed last.
                let server = session.phase.server().or(session.failed_on.last()).cloned();
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
            Event::ServerConnected { server, instance, epoch, via, report_interval, report } => {
                let link = Link::Up { epoch: *epoch, via: *via, instance: instance.clone() };
                self.connect_server(stamp, server, link, *report_interval, report);
            }
            Event::ServerReported { server, report } => {
                let changed = match report {
                    Report { facts: Some(_), .. } => Changed::Facts,
                    Report { load: Some(_), .. } => Changed::Load,
                    _ => Changed::Standing,
                };
                self.change_server(server, changed, |server| {
                    server.heard_at = stamp.at;
                    take_report(server, report);
                });
                // Requirements and limits of owners may allow now what they
                // did not allow before.
                if changed == Changed::Facts || (changed == Changed::Load && self.index.waiting.for_load()) {
                    self.index.note_grown(server);
                }
            }
            Event::ServerRecovered { server } => self.change_server(server, Changed::Standing, |server| {
                if let Link::Lost { epoch, via: Some((via, instance)), .. } = &server.link {
                    server.link = Link::Up { epoch: *epoch, via: *via, instance: instance.clone() };
                    server.heard_at = stamp.at;
                }
            }),
            Event::ServerInterrupted { server } => self.change_server(server, Changed::Standing, |server| {
                server.link = match server.link {
                    Link::Up { epoch, .. } | Link::Interrupted { epoch } => Link::Interrupted { epoch },
                    // Lost since before, and no word brings it back now.
                    Link::Lost { epoch, since, .. } => Link::Lost { epoch, since, via: None },
                };
            }),
            Event::ServerAvoided { server, until } => {
                self.change_server(server, Changed::Standing, |server| server.avoided_until = Some(*until));
            }
            Event::ServerAvoidanceEnded { server } => {
                self.change_server(server, Changed::Standing, |server| server.avoided_until = None);
            }
            Event::ServerLost { server } => self.change_server(server, Changed::Standing, |server| {
                let via = match &server.link {
                    Link::Up { via, instance, .. } => Some((*via, instance.clone())),
                    Link::Interrupted { .. } | Link::Lost { .. } => None,
                };
                server.link = Link::Lost { epoch: server.link.epoch(), since: stamp.at, via };
            }),
            Event::ServerForgotten { server } => {
                let lost_since = self.servers.remove(server).map(|server| match server.link {
                    Link::Lost { since, .. } => since,
                    Link::Up { .. } | Link::Interrupted { .. } => stamp.at,
                });
                if self.closed.contains_key(server) || self.counts(server).total() > 0 {
                    self.departed.insert(server.clone(), lost_since.unwrap_or(stamp.at));
                }
                Access::note_server(&mut self.access, server, false);
                self.index.set_server(server, None);
                self.index.sets.remove(server);
                self.rearm_server(server);
            }
            Event::ServerMarksDropped { server } => {
                // Since when it is lost still decides how long its sessions stay.
                if self.counts(server).total() == 0 {
                    self.departed.remove(server);
                }
                self.closed.remove(server);
                self.rearm_server(server);
            }
            Event::ServerContested { server } => {
                self.change_server(server, Changed::Standing, |server| server.contested_at = Some(stamp.at));
            }
            Event::ServerOpened { server, client: _ } => {
                self.closed.remove(server);
                self.restand(server, Changed::Standing);
                self.rearm_server(server);
            }
            Event::ServerClosed { server, client } => self.close_server(stamp, server, client, None),
            Event::ServerDraining { server, client, deadline } => {
                self.close_server(stamp, server, client, Some(Drain { deadline: *deadline, is_over: false }));
            }
            Event::ServerDrainExpired { server } => {
                if let Some(closed) = self.closed.get_mut(server) {
                    let closed = Arc::make_mut(closed);
                    closed.drain = closed.drain.map(|drain| Drain { is_over: true, ..drain });
                }
                self.rearm_server(server);
            }
            Event::ClientRegistered(_)
            | Event::ClientDeactivated { .. }
            | Event::ClientSecretRotated { .. }
            | Event::ClientGranted { .. }
            | Event::KeyInstalled(_)
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
            | Event::GatewayRevoked { .. } => {
                let servers = &self.servers;
                Arc::make_mut(&mut self.access).fold(self.at, event, |server| servers.contains_key(server));
            }
            Event::RequestKept(request) => self.requests.keep(request, &self.settings),
            Event::ReplicaInvited { id, invitation } => {
                let now = self.at;
                let open = std::mem::take(&mut self.cluster.invitations);
                let mut open: OrdMap<_, _> = open.into_iter().filter(|(_, open)| open.expires_at > now).collect();
                open.insert(id.clone(), invitation.clone());
                self.cluster.invitations = open;
            }
            Event::ReplicaAdmitted { replica, admission } => {
                self.cluster.last_replica = self.cluster.last_replica.max(*replica);
                self.cluster.invitations.remove(&admission.invitation);
                // Nobody is to bring the other one in again.
                if let Some(replaced) = &admission.replaces {
                    self.cluster.admitted.remove(replaced);
                }
                self.cluster.admitted.insert(*replica, admission.clone());
            }
            Event::ReplicaRetired { replica } => {
                self.cluster.last_replica = self.cluster.last_replica.max(*replica);
                self.cluster.admitted.remove(replica);
            }
            Event::AuthorityRotated { to } => self.cluster.authority = *to,
            Event::InvitationRevoked { id } => drop(self.cluster.invitations.remove(id)),
            Event::SessionRefused { .. } => {}
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
        if from == to {
            return;
        }
        for server in [from, to].into_iter().flatten() {
            self.restand(server, Changed::Standing);
            self.rearm_server(server);
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

    fn become_deleting(&mut self, id: &SessionId, instruction: InstructionId, deadline: Timestamp, attempt: u32) {
        self.change_session(id, |session| {
            let was_ready = match session.phase {
                Phase::Ready { .. } => true,
                Phase::Deleting { was_ready, .. } => was_ready,
                _ => false,
            };
            if let Some(server) = session.phase.occupies().cloned() {
                session.phase = Phase::Deleting { server, instruction, deadline, attempt, was_ready };
            }
        });
    }

    fn close_server(&mut self, stamp: Stamp, server: &ServerId, client: &ClientId, drain: Option<Drain>) {
        let closed = Closed { client: client.clone(), since: stamp.at, drain };
        self.closed.insert(server.clone(), Arc::new(closed));
        self.restand(server, Changed::Standing);
        self.rearm_server(server);
    }

    /// Notes that requirements are asked for; see [`ServerSets`](crate::domain::placement::ServerSets).
    pub(super) fn note_requirements(&mut self, spec: &SessionSpec) {
        if let Some(expression) = &spec.requirements {
            self.index.sets.note_use(expression, self.servers.values());
        }
    }

    fn connect_server(&mut self, stamp: Stamp, id: &ServerId, link: Link, report_interval: Millis, report: &Report) {
        self.last_epoch = self.last_epoch.max(link.epoch());
        let known = self.servers.get(id);
        let first_seen_at = known.map_or(stamp.at, |server| server.first_seen_at);
        let contested_at = known.and_then(|server| server.contested_at);
        let avoided_until = known.and_then(|server| server.avoided_until);
        let facts = known.map_or_else(|| Arc::new(HostFacts::default().into()), |server| Arc::clone(&server.facts));
        let mut server = Server {
            id: id.clone(),
            facts,
            load: HostLoad::default(),
            health: crate::domain::host::Health::Healthy,
            link,
            report_interval,
            heard_at: stamp.at,
            first_seen_at,
            avoided_until,
            contested_at,
        };
        take_report(&mut server, report);
        self.servers.insert(id.clone(), Arc::new(server));
        Access::note_server(&mut self.access, id, true);
        self.departed.remove(id);
        self.show_server(id);
        self.rearm_server(id);
        self.restand(id, Changed::Facts);
        self.index.note_grown(id);
    }

    fn change_server(&mut self, id: &ServerId, changed: Changed, change: impl FnOnce(&mut Server)) {
        let Some(server) = self.servers.get_mut(id) else { return };
        change(Arc::make_mut(server));
        self.show_server(id);
        self.restand(id, changed);
        self.rearm_server(id);
    }

    /// Brings what sessions show of a server up to its record.
    fn show_server(&mut self, id: &ServerId) {
        self.index.set_server(id, self.servers.get(id).map(|server| &**server));
    }

    fn restand(&mut self, id: &ServerId, changed: Changed) {
        let Some(server) = self.servers.get(id).cloned() else { return };
        let closed = self.is_closed(id);
        self.index.restand(&server, closed, changed);
    }

    fn rearm_server(&mut self, id: &ServerId) {
        let at = agents::deadline_of(self, id);
        self.index.set_server_deadline(id, at);
    }

    fn rearm_servers(&mut self) {
        let ids: Vec<ServerId> = self.servers.keys().chain(self.departed.keys()).cloned().collect();
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
        for ((server, id), session) in &self.conflicts {
            self.index.note_conflict(id, server, true);
            self.index.count(server, session.kind, &session.owner, true);
        }
        let ids: Vec<ServerId> = self.servers.keys().cloned().collect();
        for id in ids {
            self.restand(&id, Changed::Facts);
        }
        self.rearm_servers();
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
        arrival: 0,
        changed_at: stamp.at,
        phase: Phase::Ready { server: server.clone() },
        failed_on: Vec::new(),
        state_reason: None,
        connections: reported.connections,
        last_disconnected_at: reported.last_disconnected_at,
    }
}
