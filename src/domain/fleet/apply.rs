//! Commands and time become events.

use serde::{Deserialize, Serialize};

use super::index::Due;
use super::{Fleet, access, agents, audited, operators, queue, replicas, requests, sessions};
use crate::domain::command::{Command, Outcome};
use crate::domain::event::Event;
use crate::domain::ids::{ClientId, LogIndex};
use crate::domain::journal::Context;
use crate::domain::time::Timestamp;

/// What is due by itself is dealt with at most this many at a time, so that
/// no single entry takes long; the rest follows with the next tick.
const DUE_PER_ENTRY_MAX: usize = 4096;

/// Where and when in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The log entry.
    pub index: LogIndex,
    /// Its leader's clock; never less than that of an earlier entry.
    pub at: Timestamp,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// For the one who proposed it.
    pub outcome: Outcome,
    /// What happened, in order.
    pub events: Vec<Event>,
}

/// A change under way: the state, and what happened to it so far.
pub(super) struct Transition<'a> {
    pub(super) fleet: &'a mut Fleet,
    pub(super) stamp: Stamp,
    /// The API client whose command is being applied.
    client: Option<ClientId>,
    events: Vec<Event>,
}

impl Transition<'_> {
    /// Something happened.
    pub(super) fn emit(&mut self, event: Event) {
        // Some of what it means is no longer known once it has happened.
        let context = event.is_journaled().then(|| self.context_of(&event));
        self.fleet.fold(self.stamp, &event);
        if let Some(context) = context {
            let bounds = self.fleet.settings.journal_bounds();
            self.fleet.journal.push(self.stamp.index, self.stamp.at, event.abridged(), context, bounds);
        }
        self.events.push(event);
    }

    /// What the journal is to know of an event beyond what it says itself.
    fn context_of(&self, event: &Event) -> Context {
        let session = match event {
            Event::InstructionSettled { server, instruction, answer: _ } => {
                let settled = self.fleet.outbox.get(&(server.clone(), *instruction));
                settled.map(|settled| settled.action.session().clone())
            }
            _ => None,
        };
        let server = match (event.session(), event.server()) {
            (Some(id), None) => self.fleet.session(id).and_then(|session| session.phase.server()).cloned(),
            _ => None,
        };
        let client = if event.client().is_none() { self.client.clone() } else { None };
        Context { session, server, client }
    }

    /// Ids that were freed go to sessions that were set aside, and room that
    /// appeared to those who wait for it.
    pub(super) fn settle(&mut self) {
        // That others get something is not what the caller asked for.
        self.client = None;
        loop {
            agents::adopt_set_aside(self);
            let grown = self.fleet.index.take_grown();
            if grown.is_empty() || self.fleet.index.waiting.is_empty() {
                break;
            }
            queue::place_waiting(self, &grown);
        }
    }

    /// Ends the change.
    fn finish(mut self) -> Vec<Event> {
        self.settle();
        self.events
    }
}

impl Fleet {
    /// Time moves on to the stamp's: whatever is due by then happens.
    pub fn advance(&mut self, stamp: Stamp) -> Vec<Event> {
        self.move_to(stamp);
        self.journal.trim(self.at, self.settings.journal_bounds());
        let mut transition = self.transition(stamp);
        for _ in 0..DUE_PER_ENTRY_MAX {
            match transition.fleet.index.first_due(stamp.at) {
                Some(Due::Session(id)) => sessions::deadline_passed(&mut transition, &id),
                Some(Due::Server(id)) => agents::deadline_passed(&mut transition, &id),
                None => break,
            }
        }
        transition.finish()
    }

    /// Applies one command. Total: whatever the command says, the answer is an
    /// outcome. Deterministic: it depends on the state, the stamp and the
    /// command alone.
    pub fn apply(&mut self, stamp: Stamp, command: Command) -> Applied {
        self.move_to(stamp);
        let mut transition = self.transition(stamp);
        let outcome = decide(&mut transition, command);
        Applied { outcome, events: transition.finish() }
    }

    fn transition(&mut self, stamp: Stamp) -> Transition<'_> {
        Transition { fleet: self, stamp, client: None, events: Vec::new() }
    }

    fn move_to(&mut self, stamp: Stamp) {
        self.at = self.at.max(stamp.at);
        self.index_applied = self.index_applied.max(stamp.index);
    }
}

/// What a command comes to.
pub(super) fn decide(t: &mut Transition<'_>, command: Command) -> Outcome {
    t.client = command.client().cloned();
    match command {
        Command::Configure(settings) => operators::configure(t, settings),
        Command::ReplicaStarted { replica } | Command::ReplicaSilent { replica } => agents::replica_gone(t, replica),
        Command::CreateSession { id, spec, client } => sessions::create(t, id, spec, client),
        Command::DeleteSession { id, owner, force, client: _ } => sessions::delete(t, &id, &owner, force),
        Command::UpdatePermissions { id, owner, permissions, client: _ } => {
            sessions::update_permissions(t, &id, &owner, permissions)
        }
        Command::OpenServer { id, client } => operators::open_server(t, id, client),
        Command::CloseServer { id, force, client } => operators::close_server(t, id, force, client),
        Command::DrainServer { id, within, client } => operators::drain_server(t, &id, within, client),
        Command::ConnectAgent { server, instance, via, report_interval, report } => {
            agents::connect(t, &server, instance, via, report_interval, report)
        }
        Command::Report { server, epoch, report } => agents::report(t, &server, epoch, report),
        Command::Answer { server, epoch, instruction, answer } => {
            agents::answer(t, &server, epoch, instruction, answer)
        }
        Command::DisconnectAgent { server, epoch } => agents::disconnect(t, server, epoch),
        Command::AgentSilent { server, epoch } => agents::silent(t, server, epoch),
        Command::RegisterClient { id, name, secret, grant } => access::register_client(t, id, name, secret, grant),
        Command::DeactivateClient { id } => access::deactivate_client(t, id),
        Command::InstallKey { id, purpose, sealed } => access::install_key(t, id, purpose, sealed),
        Command::InviteReplica { id, within, replaces, by } => replicas::invite(t, id, within, replaces, by),
        Command::AdmitReplica { invitation, folder, address, proof, above } => {
            replicas::admit(t, invitation, folder, address, proof, above)
        }
        Command::RetireReplica { replica } => replicas::retire(t, replica),
        Command::RotateAuthority { to } => replicas::rotate_authority(t, to),
        Command::RevokeInvitation { id } => replicas::revoke(t, id),
        Command::Once { client, key, fingerprint, request_id, commands } => {
            requests::once(t, client, key, fingerprint, request_id, commands)
        }
        Command::RotateSecret { id, secret, old_for } => access::rotate_secret(t, id, secret, old_for),
        Command::GrantClient { id, grant } => access::grant(t, id, grant),
        Command::RotateKey { id, purpose, sealed, old_for, replaces } => {
            access::rotate_key(t, id, purpose, sealed, old_for, &replaces)
        }
        Command::IssueStatement { id } => access::issue_statement(t, id),
        Command::DeactivateStatement { id } => access::deactivate_statement(t, id),
        Command::EnrolAgent { id, name, server, statement } => access::enrol_agent(t, id, name, server, statement),
        Command::UnregisterAgent { id } => access::unregister_agent(t, id),
        Command::RegisterAuthServer { server, replace } => access::register_auth_server(t, server, replace),
        Command::UnregisterAuthServer { url } => access::unregister_auth_server(t, url),
        Command::MapServers { mappings, replace } => access::map_servers(t, mappings, replace),
        Command::SpendToken { id, until } => access::spend_token(t, id, until),
        Command::Audited { deed, result, commands, refused_before } => {
            audited::audited(t, deed, result, commands, refused_before)
        }
        Command::CertifyGateway { gateway, certificate, until } => {
            access::certify_gateway(t, gateway, certificate, until)
        }
        Command::RevokeGateway { gateway, certificate } => access::revoke_gateway(t, gateway, certificate),
    }
}
