//! Who may come in, and with what: clients, agents, keys, tokens, and the
//! authorization servers of others.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::apply::Transition;
use crate::domain::audit::{Chain, Digest};
use crate::domain::auth_server::{AUTH_SERVERS_MAX, AuthServer};
use crate::domain::client::{
    AGENT_CLIENTS_MAX, AgentClient, ApiClient, Grant, OldSecret, STATEMENTS_MAX, SecretHash, SoftwareStatement,
};
use crate::domain::command::{Outcome, Refusal};
use crate::domain::dns::{DNS_MAPPINGS_MAX, DNS_MAPPINGS_PER_COMMAND_MAX, DnsMapping, DnsNames, ServerName};
use crate::domain::event::Event;
use crate::domain::gateway::{GATEWAY_CERTIFICATES_MAX, GatewayCertificate, GatewayName};
use crate::domain::ids::{ClientId, KeyId, ServerId, StatementId, TokenId};
use crate::domain::key::{KeyPurpose, RETIRED_MAX, RetiredKey, SigningKey};
use crate::domain::time::{Millis, Timestamp};

/// Tokens that are good once and were used, kept until they would have expired.
/// When there are as many, no further one is taken.
pub(super) const SPENT_MAX: usize = 500_000;
/// Expired ones that a new one pushes out.
const SWEPT_PER_TOKEN: usize = 4;

/// Everything that the log decided about who may come in.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Access {
    pub(super) clients: OrdMap<ClientId, Arc<ApiClient>>,
    pub(super) keys: OrdMap<KeyPurpose, Arc<SigningKey>>,
    pub(super) retired: OrdMap<KeyId, Arc<RetiredKey>>,
    pub(super) statements: OrdMap<StatementId, SoftwareStatement>,
    pub(super) agents: OrdMap<ClientId, Arc<AgentClient>>,
    pub(super) auth_servers: OrdMap<String, Arc<AuthServer>>,
    pub(super) names: OrdMap<ServerName, DnsNames>,
    pub(super) spent: Spent,
    pub(super) audit: Chain,
    /// Those that have ended go when another one comes.
    pub(super) gateways: OrdMap<Digest, Arc<GatewayCertificate>>,
    /// Agents that may connect, by the server that each is. Derived.
    pub(super) by_server: OrdMap<ServerId, ClientId>,
    /// Agents whose place another one may have: those that may not connect, and
    /// those whose server the fleet does not know. The oldest go first. Derived.
    pub(super) idle: OrdSet<(Timestamp, ClientId)>,
}

/// Tokens that were used.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Spent {
    tokens: OrdMap<TokenId, Timestamp>,
    by_end: OrdSet<(Timestamp, TokenId)>,
}

impl Spent {
    fn insert(&mut self, id: TokenId, until: Timestamp, now: Timestamp) {
        for _ in 0..SWEPT_PER_TOKEN {
            match self.by_end.get_min().filter(|(until, _)| *until <= now).cloned() {
                Some(old) => {
                    self.tokens.remove(&old.1);
                    self.by_end.remove(&old);
                }
                None => break,
            }
        }
        if let Some(before) = self.tokens.insert(id.clone(), until) {
            self.by_end.remove(&(before, id.clone()));
        }
        self.by_end.insert((until, id));
    }

    /// Those that are kept, by id.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&TokenId, &Timestamp)> {
        self.tokens.iter()
    }
}

impl FromIterator<(TokenId, Timestamp)> for Spent {
    fn from_iter<I: IntoIterator<Item = (TokenId, Timestamp)>>(tokens: I) -> Self {
        let mut spent = Self::default();
        for (id, until) in tokens {
            spent.insert(id, until, Timestamp(0));
        }
        spent
    }
}

impl Access {
    /// The agent that enrolled as a server and may connect.
    pub(super) fn agent_of(&self, server: &ServerId) -> Option<&Arc<AgentClient>> {
        self.agents.get(self.by_server.get(server)?)
    }

    /// Takes over agents from a snapshot; `is_known` tells which servers the
    /// fleet knows.
    pub(super) fn with_agents(
        mut self,
        agents: impl IntoIterator<Item = Arc<AgentClient>>,
        is_known: impl Fn(&ServerId) -> bool,
    ) -> Self {
        for agent in agents {
            let is_known = is_known(&agent.server);
            self.put_agent(agent, is_known);
        }
        self
    }

    fn put_agent(&mut self, agent: Arc<AgentClient>, is_known: bool) {
        if agent.active {
            self.by_server.insert(agent.server.clone(), agent.id.clone());
        } else if self.by_server.get(&agent.server) == Some(&agent.id) {
            self.by_server.remove(&agent.server);
        }
        let place = (agent.enrolled_at, agent.id.clone());
        if agent.active && is_known {
            self.idle.remove(&place);
        } else {
            self.idle.insert(place);
        }
        self.agents.insert(agent.id.clone(), agent);
    }

    /// The fleet knows a server from now on, or no longer. An agent of it that
    /// may connect keeps its place while it does.
    pub(super) fn note_server(this: &mut Arc<Self>, server: &ServerId, is_known: bool) {
        let Some(place) = this.agent_of(server).map(|agent| (agent.enrolled_at, agent.id.clone())) else { return };
        match (this.idle.contains(&place), is_known) {
            (true, true) => drop(Arc::make_mut(this).idle.remove(&place)),
            (false, false) => drop(Arc::make_mut(this).idle.insert(place)),
            _ => {}
        }
    }

    /// Whether one more agent can be kept.
    fn has_room_for_agents(&self) -> bool {
        self.agents.len() < AGENT_CLIENTS_MAX || !self.idle.is_empty()
    }

    /// Forgets idle agents until there is room for one more.
    fn make_room_for_agents(&mut self) {
        while self.agents.len() >= AGENT_CLIENTS_MAX {
            let Some((_, id)) = self.idle.remove_min() else { return };
            if let Some(agent) = self.agents.remove(&id)
                && self.by_server.get(&agent.server) == Some(&id)
            {
                self.by_server.remove(&agent.server);
            }
        }
    }

    fn change_client(&mut self, id: &ClientId, change: impl FnOnce(&mut ApiClient)) {
        if let Some(client) = self.clients.get_mut(id) {
            change(Arc::make_mut(client));
        }
    }

    fn retire(&mut self, key: &SigningKey, until: Timestamp, now: Timestamp) {
        let expired =
            self.retired.values().filter(|retired| retired.until <= now).map(|retired| retired.key.id.clone());
        for id in expired.collect::<Vec<_>>() {
            self.retired.remove(&id);
        }
        self.retired.insert(key.id.clone(), Arc::new(RetiredKey { key: key.clone(), until }));
        let mut same: Vec<_> = self
            .retired
            .values()
            .filter(|retired| retired.key.purpose == key.purpose)
            .map(|retired| (retired.key.installed_at, retired.key.id.clone()))
            .collect();
        same.sort();
        for (_, id) in same.iter().rev().skip(RETIRED_MAX) {
            self.retired.remove(id);
        }
    }

    fn end_retired(&mut self, purpose: KeyPurpose) {
        let retired = self.retired.values().filter(|retired| retired.key.purpose == purpose);
        for id in retired.map(|retired| retired.key.id.clone()).collect::<Vec<_>>() {
            self.retired.remove(&id);
        }
    }

    fn forget_gateways(&mut self, is_out: impl Fn(&GatewayCertificate) -> bool) {
        let out = self.gateways.values().filter(|known| is_out(known)).map(|known| known.digest);
        for digest in out.collect::<Vec<_>>() {
            self.gateways.remove(&digest);
        }
    }

    /// Something happened that concerns this part of the state; `is_known`
    /// tells which servers the fleet knows.
    pub(super) fn fold(&mut self, now: Timestamp, event: &Event, is_known: impl Fn(&ServerId) -> bool) {
        match event {
            Event::ClientRegistered(client) => {
                self.clients.insert(client.id.clone(), Arc::new(client.clone()));
            }
            Event::ClientDeactivated { id } => self.change_client(id, |client| {
                client.active = false;
                client.old_secret = None;
            }),
            Event::ClientSecretRotated { id, secret, old } => self.change_client(id, |client| {
                client.secret = secret.clone();
                client.old_secret.clone_from(old);
            }),
            Event::ClientGranted { id, grant } => self.change_client(id, |client| client.grant = grant.clone()),
            Event::KeyInstalled(key) => {
                self.keys.insert(key.purpose, Arc::new(key.clone()));
            }
            Event::KeyRotated { key, old_until } => {
                let old = self.keys.insert(key.purpose, Arc::new(key.clone()));
                match old.filter(|_| *old_until > now) {
                    Some(old) => self.retire(&old, *old_until, now),
                    // Who ends the present one at once ends those before, too.
                    None => self.end_retired(key.purpose),
                }
            }
            Event::StatementIssued(statement) => {
                self.statements.insert(statement.id.clone(), statement.clone());
            }
            Event::StatementDeactivated { id } => {
                if let Some(statement) = self.statements.get_mut(id) {
                    statement.active = false;
                }
            }
            Event::AgentEnrolled(agent) => {
                self.make_room_for_agents();
                self.put_agent(Arc::new(agent.clone()), is_known(&agent.server));
            }
            Event::AgentUnregistered { id, .. } => {
                if let Some(agent) = self.agents.get(id) {
                    let agent = AgentClient { active: false, ..(**agent).clone() };
                    self.put_agent(Arc::new(agent), false);
                }
            }
            Event::AuthServerRegistered(server) => {
                self.auth_servers.insert(server.url.clone(), Arc::clone(server));
            }
            Event::AuthServerUnregistered { url } => drop(self.auth_servers.remove(url)),
            Event::ServersMapped { mappings, replaced, .. } => {
                if *replaced {
                    self.names = OrdMap::new();
                }
                for mapping in &**mappings {
                    self.names.insert(mapping.server.clone(), mapping.names.clone());
                }
            }
            Event::TokenSpent { id, until } => self.spent.insert(id.clone(), *until, now),
            Event::Audited(record) => self.audit = Chain::after(record),
            Event::GatewayCertified(certificate) => {
                self.forget_gateways(|known| known.until <= now);
                self.gateways.insert(certificate.digest, Arc::new(certificate.clone()));
            }
            Event::GatewayRevoked { gateway, certificate } => {
                self.forget_gateways(|known| known.is(gateway, *certificate));
            }
            _ => {}
        }
    }
}

/// Registers an API client. The same again is no error: its answer was lost.
pub(super) fn register_client(
    t: &mut Transition<'_>,
    id: ClientId,
    name: String,
    secret: SecretHash,
    grant: Grant,
) -> Outcome {
    match t.fleet.client(&id) {
        Some(client) if client.name == name && client.secret == secret => Outcome::Done,
        Some(_) => Outcome::Refused(Refusal::Exists),
        None => {
            let registered_at = t.stamp.at;
            let client = ApiClient { id, name, secret, old_secret: None, active: true, grant, registered_at };
            t.emit(Event::ClientRegistered(client));
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

/// Gives an active API client another secret. The same again changes nothing.
pub(super) fn rotate_secret(t: &mut Transition<'_>, id: ClientId, secret: SecretHash, old_for: Millis) -> Outcome {
    let Some(client) = t.fleet.client(&id).filter(|client| client.active) else {
        return Outcome::Refused(Refusal::UnknownClient);
    };
    if client.secret == secret {
        return Outcome::Done;
    }
    let until = t.stamp.at + old_for;
    let old = (old_for > Millis(0)).then(|| OldSecret { hash: client.secret.clone(), until });
    t.emit(Event::ClientSecretRotated { id, secret, old });
    Outcome::Done
}

/// Changes what an API client may do.
pub(super) fn grant(t: &mut Transition<'_>, id: ClientId, grant: Grant) -> Outcome {
    match t.fleet.client(&id) {
        None => Outcome::Refused(Refusal::UnknownClient),
        Some(client) if client.grant == grant => Outcome::Done,
        Some(_) => {
            t.emit(Event::ClientGranted { id, grant });
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

/// Puts another key in the place of the one that is there.
pub(super) fn rotate_key(
    t: &mut Transition<'_>,
    id: KeyId,
    purpose: KeyPurpose,
    sealed: Vec<u8>,
    old_for: Millis,
    replaces: &KeyId,
) -> Outcome {
    match t.fleet.key(purpose) {
        Some(key) if key.id == id => Outcome::Done,
        Some(key) if key.id == *replaces => {
            let key = SigningKey { id, purpose, sealed, installed_at: t.stamp.at };
            t.emit(Event::KeyRotated { key, old_until: t.stamp.at + old_for });
            Outcome::Done
        }
        _ => Outcome::Refused(Refusal::KeyReplaced),
    }
}

/// Lets agents enrol with a new statement.
pub(super) fn issue_statement(t: &mut Transition<'_>, id: StatementId) -> Outcome {
    let statements = &t.fleet.access.statements;
    if statements.contains_key(&id) {
        return Outcome::Done;
    }
    if statements.values().filter(|statement| statement.active).count() >= STATEMENTS_MAX {
        return Outcome::Refused(Refusal::TooMany);
    }
    t.emit(Event::StatementIssued(SoftwareStatement { id, issued_at: t.stamp.at, active: true }));
    Outcome::Done
}

/// Lets no further agents enrol with a statement.
pub(super) fn deactivate_statement(t: &mut Transition<'_>, id: StatementId) -> Outcome {
    match t.fleet.access.statements.get(&id) {
        None => Outcome::Refused(Refusal::UnknownStatement),
        Some(statement) if !statement.active => Outcome::Done,
        Some(_) => {
            t.emit(Event::StatementDeactivated { id });
            Outcome::Done
        }
    }
}

/// Enrols an agent. A server belongs to the first agent that comes as it.
pub(super) fn enrol_agent(
    t: &mut Transition<'_>,
    id: ClientId,
    name: String,
    server: ServerId,
    statement: StatementId,
) -> Outcome {
    let access = &t.fleet.access;
    if let Some(known) = access.agents.get(&id) {
        let is_the_same = known.active && known.server == server;
        return if is_the_same { Outcome::Done } else { Outcome::Refused(Refusal::UnknownAgent) };
    }
    if !access.statements.get(&statement).is_some_and(|statement| statement.active) {
        return Outcome::Refused(Refusal::UnknownStatement);
    }
    if let Some(other) = access.agent_of(&server) {
        return Outcome::Refused(Refusal::ServerEnrolled(other.id.clone()));
    }
    if !access.has_room_for_agents() {
        return Outcome::Refused(Refusal::TooMany);
    }
    let enrolled_at = t.stamp.at;
    t.emit(Event::AgentEnrolled(AgentClient { id, name, server, statement, active: true, enrolled_at }));
    Outcome::Done
}

/// Lets an agent in no more; it stays listed.
pub(super) fn unregister_agent(t: &mut Transition<'_>, id: ClientId) -> Outcome {
    match t.fleet.access.agents.get(&id) {
        None => Outcome::Refused(Refusal::UnknownAgent),
        Some(agent) if !agent.active => Outcome::Done,
        Some(agent) => {
            let server = agent.server.clone();
            t.emit(Event::AgentUnregistered { id, server });
            Outcome::Done
        }
    }
}

/// Lets tokens of another authorization server in. One that is known stays as it
/// is when nothing is said but its URL, as installers say it again and again.
pub(super) fn register_auth_server(t: &mut Transition<'_>, server: AuthServer, replace: bool) -> Outcome {
    let servers = &t.fleet.access.auth_servers;
    match servers.get(&server.url) {
        Some(known) if **known == server => Outcome::Done,
        Some(_) if !replace && server.demands_nothing() => Outcome::Done,
        Some(_) if !replace => Outcome::Refused(Refusal::AuthServerKnown),
        None if servers.len() >= AUTH_SERVERS_MAX => Outcome::Refused(Refusal::TooMany),
        _ => {
            t.emit(Event::AuthServerRegistered(Arc::new(server)));
            Outcome::Done
        }
    }
}

/// Lets tokens of another authorization server in no more.
pub(super) fn unregister_auth_server(t: &mut Transition<'_>, url: String) -> Outcome {
    if !t.fleet.access.auth_servers.contains_key(&url) {
        return Outcome::Refused(Refusal::UnknownAuthServer);
    }
    t.emit(Event::AuthServerUnregistered { url });
    Outcome::Done
}

/// Takes names of servers over.
pub(super) fn map_servers(t: &mut Transition<'_>, mappings: Vec<DnsMapping>, replaced: bool) -> Outcome {
    let names = &t.fleet.access.names;
    let kept = if replaced { 0 } else { names.len() };
    let added = mappings.iter().filter(|mapping| replaced || !names.contains_key(&mapping.server)).count();
    if mappings.len() > DNS_MAPPINGS_PER_COMMAND_MAX || kept + added > DNS_MAPPINGS_MAX {
        return Outcome::Refused(Refusal::TooMany);
    }
    let count = mappings.len() as u64;
    t.emit(Event::ServersMapped { mappings: Arc::new(mappings), count, replaced });
    Outcome::Done
}

/// Uses a token that is good once.
pub(super) fn spend_token(t: &mut Transition<'_>, id: TokenId, until: Timestamp) -> Outcome {
    let spent = &t.fleet.access.spent;
    if spent.tokens.contains_key(&id) {
        return Outcome::Refused(Refusal::TokenSpent);
    }
    let oldest_has_expired = spent.by_end.get_min().is_some_and(|(until, _)| *until <= t.stamp.at);
    if spent.tokens.len() >= SPENT_MAX && !oldest_has_expired {
        return Outcome::Refused(Refusal::TooMany);
    }
    t.emit(Event::TokenSpent { id, until });
    Outcome::Done
}

/// Lets a gateway in with a certificate, until that ends.
pub(super) fn certify_gateway(
    t: &mut Transition<'_>,
    gateway: GatewayName,
    certificate: Digest,
    until: Timestamp,
) -> Outcome {
    let (gateways, now) = (&t.fleet.access.gateways, t.stamp.at);
    if gateways.contains_key(&certificate) {
        return Outcome::Done;
    }
    if until <= now {
        return Outcome::Refused(Refusal::Ended);
    }
    if gateways.values().filter(|known| known.until > now).count() >= GATEWAY_CERTIFICATES_MAX {
        return Outcome::Refused(Refusal::TooMany);
    }
    t.emit(Event::GatewayCertified(GatewayCertificate { gateway, digest: certificate, signed_at: now, until }));
    Outcome::Done
}

/// Lets a gateway in no more, or not with this certificate.
pub(super) fn revoke_gateway(t: &mut Transition<'_>, gateway: GatewayName, certificate: Option<Digest>) -> Outcome {
    if !t.fleet.gateway_certificates().any(|known| known.is(&gateway, certificate)) {
        return Outcome::Refused(Refusal::UnknownGateway);
    }
    t.emit(Event::GatewayRevoked { gateway, certificate });
    Outcome::Done
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
