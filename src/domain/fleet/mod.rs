//! The state of the fleet, and how to read it.
//!
//! - `apply.rs`: commands and time become events,
//! - `sessions.rs`, `agents.rs`, `operators.rs`, `replicas.rs`, `access.rs`: one function a command,
//! - `audited.rs`: commands that are recorded in the audit,
//! - `queue.rs`: room that appeared goes to those who wait,
//! - `requests.rs`: commands that are done once, and what is kept of them,
//! - `fold.rs`: events change the state, nothing else does,
//! - `index.rs`: what is derived from it to find things without walking,
//! - `waiting.rs`: the queue, a part of the index,
//! - `lookup.rs`, `walk.rs`, `slots.rs`: the part of it that listings use, and how,
//! - `image.rs`: the state as a snapshot,
//! - `restored.rs`: the state of a backup as the beginning of a new cluster,
//! - `invariants.rs`: what must hold at every log index.
//!
//! All maps are persistent, so a clone costs nothing to speak of and is an
//! immutable view: readers and snapshots work on clones while entries go on
//! being applied.

mod access;
mod agents;
mod apply;
mod audited;
mod fold;
mod image;
mod index;
pub mod invariants;
mod lookup;
mod operators;
mod queue;
mod replicas;
mod requests;
mod restored;
mod sessions;
mod slots;
mod waiting;
mod walk;

use std::borrow::Cow;
use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

pub use self::lookup::Sighting;
pub use self::restored::LEAP;
pub use self::walk::{Label, Walk};
pub use apply::{Applied, Stamp};
pub use image::{ImageError, VERSION as IMAGE_VERSION};

use self::access::Access;
use self::index::Index;
use self::requests::Requests;
use super::audit::{Chain, Digest};
use super::auth_server::AuthServer;
use super::client::{AgentClient, ApiClient, SoftwareStatement};
use super::cluster::Cluster;
use super::dns::{DnsNames, ServerName};
use super::gateway::{GatewayCertificate, GatewayName};
use super::ids::{ClientId, Epoch, InstructionId, KeyId, LogIndex, Owner, ServerId, SessionId, StatementId};
use super::instruction::Instruction;
use super::journal::Journal;
use super::key::{KeyPurpose, RetiredKey, SigningKey};
use super::placement::{Counts, Rule, ServerSets, Standing};
use super::report::ReportedSession;
use super::request::KeptRequest;
use super::server::{Closed, Server, Unavailability};
use super::session::{Session, SessionKind, SessionState};
use super::settings::Settings;
use super::time::Timestamp;

/// Everything that is known.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    at: Timestamp,
    index_applied: LogIndex,
    settings: Settings,
    last_epoch: Epoch,
    last_instruction: InstructionId,
    last_arrival: u64,
    servers: OrdMap<ServerId, Arc<Server>>,
    /// Kept beyond the server's record, so that a closed server that was away
    /// for a day does not come back open.
    closed: OrdMap<ServerId, Arc<Closed>>,
    /// Servers that are not listed any more but that sessions or operators'
    /// marks refer to, and since when they were lost.
    departed: OrdMap<ServerId, Timestamp>,
    sessions: OrdMap<SessionId, Arc<Session>>,
    /// Sessions that a host reported under an id that another session has.
    conflicts: OrdMap<(ServerId, SessionId), Arc<ReportedSession>>,
    outbox: OrdMap<(ServerId, InstructionId), Arc<Instruction>>,
    /// Behind one pointer: views of the fleet are made for each request.
    access: Arc<Access>,
    journal: Journal,
    requests: Requests,
    cluster: Cluster,
    index: Index,
}

/// Two states are equal when everything that the log decides is equal; what
/// is derived from it follows.
impl PartialEq for Fleet {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
            && self.index_applied == other.index_applied
            && self.settings == other.settings
            && self.last_epoch == other.last_epoch
            && self.last_instruction == other.last_instruction
            && self.last_arrival == other.last_arrival
            && self.servers == other.servers
            && self.closed == other.closed
            && self.departed == other.departed
            && self.sessions == other.sessions
            && self.conflicts == other.conflicts
            && self.outbox == other.outbox
            && self.access == other.access
            && self.journal == other.journal
            && self.requests == other.requests
            && self.cluster == other.cluster
    }
}

impl Fleet {
    /// What was decided about replicas.
    pub const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Time of the last entry, by its leader's clock.
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// The last entry that was applied.
    pub const fn applied(&self) -> LogIndex {
        self.index_applied
    }

    /// Settings in force.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A server.
    pub fn server(&self, id: &ServerId) -> Option<&Arc<Server>> {
        self.servers.get(id)
    }

    /// All servers, by id.
    pub fn servers(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.servers.values()
    }

    /// Servers whose ids come after one, by id.
    pub fn servers_from(&self, after: Option<&ServerId>) -> impl Iterator<Item = &Arc<Server>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.servers.range::<_, ServerId>((from, Bound::Unbounded)).map(|(_, server)| server)
    }

    /// How many servers are listed.
    pub fn server_count(&self) -> usize {
        self.servers.len()
    }

    /// Whether an operator closed a server.
    pub fn is_closed(&self, id: &ServerId) -> bool {
        self.closed.contains_key(id)
    }

    /// Who closed a server and what becomes of its sessions; `None` when it is
    /// open.
    pub fn closed(&self, id: &ServerId) -> Option<&Arc<Closed>> {
        self.closed.get(id)
    }

    /// Sessions that a server reported under ids that sessions elsewhere have.
    /// They take up room there, and nothing else is known of them here.
    pub fn conflicts_on(&self, server: &ServerId) -> impl Iterator<Item = &Arc<ReportedSession>> {
        let from = (server.clone(), SessionId::least());
        let server = server.clone();
        self.conflicts.range(from..).take_while(move |((of, _), _)| *of == server).map(|(_, session)| session)
    }

    /// A session, a deleted one too while it is kept.
    pub fn session(&self, id: &SessionId) -> Option<&Arc<Session>> {
        self.sessions.get(id)
    }

    /// Sessions whose ids come after one, by id.
    pub fn sessions_from(&self, after: Option<&SessionId>) -> impl Iterator<Item = &Arc<Session>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.sessions.range::<_, SessionId>((from, Bound::Unbounded)).map(|(_, session)| session)
    }

    /// How many sessions are listed, deleted ones included.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Sessions that take up room on a server.
    pub fn sessions_on(&self, server: &ServerId) -> impl Iterator<Item = &Arc<Session>> {
        self.index.sessions_on(server).filter_map(|id| self.sessions.get(id))
    }

    /// How many sessions take up room on a server.
    pub fn counts(&self, server: &ServerId) -> Counts {
        self.index.counts(server)
    }

    /// How many virtual sessions of an owner take up room on a server.
    pub(super) fn virtual_sessions_of(&self, server: &ServerId, owner: &Owner) -> u32 {
        self.index.owner_count(server, owner)
    }

    /// Sessions that wait for a server, in the order of arrival.
    pub fn waiting(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.index.waiting.iter().filter_map(|id| self.sessions.get(id))
    }

    /// How many sessions wait for a server.
    pub fn waiting_count(&self) -> usize {
        self.index.waiting.len()
    }

    /// Instructions that a server has not answered yet, oldest first.
    pub fn outbox(&self, server: &ServerId) -> impl Iterator<Item = &Arc<Instruction>> {
        self.outbox_after(server, InstructionId(0))
    }

    /// Unanswered instructions of a server after one, oldest first.
    pub fn outbox_after(&self, server: &ServerId, after: InstructionId) -> impl Iterator<Item = &Arc<Instruction>> {
        let from = Bound::Excluded((server.clone(), after));
        let to = Bound::Included((server.clone(), InstructionId(u64::MAX)));
        self.outbox.range::<_, (ServerId, InstructionId)>((from, to)).map(|(_, instruction)| instruction)
    }

    /// The oldest instruction that a server has not answered, or else the one
    /// that would come next: its agent may forget what came before.
    pub fn oldest_instruction(&self, server: &ServerId) -> InstructionId {
        self.outbox(server).next().map_or(self.last_instruction.next(), |instruction| instruction.id)
    }

    /// A client of the API.
    pub fn client(&self, id: &ClientId) -> Option<&Arc<ApiClient>> {
        self.access.clients.get(id)
    }

    /// All clients of the API, by id.
    pub fn clients(&self) -> impl Iterator<Item = &Arc<ApiClient>> {
        self.access.clients.values()
    }

    /// The key for a purpose.
    pub fn key(&self, purpose: KeyPurpose) -> Option<&Arc<SigningKey>> {
        self.access.keys.get(&purpose)
    }

    /// The keys for all purposes.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<SigningKey>> {
        self.access.keys.values()
    }

    /// A key that another one took the place of, as long as it is kept.
    pub fn retired_key(&self, id: &KeyId) -> Option<&Arc<RetiredKey>> {
        self.access.retired.get(id)
    }

    /// All keys that others took the place of and that are kept.
    pub fn retired_keys(&self) -> impl Iterator<Item = &Arc<RetiredKey>> {
        self.access.retired.values()
    }

    /// A software statement.
    pub fn statement(&self, id: &StatementId) -> Option<&SoftwareStatement> {
        self.access.statements.get(id)
    }

    /// All software statements, by id.
    pub fn statements(&self) -> impl Iterator<Item = &SoftwareStatement> {
        self.access.statements.values()
    }

    /// An agent that enrolled.
    pub fn agent_client(&self, id: &ClientId) -> Option<&Arc<AgentClient>> {
        self.access.agents.get(id)
    }

    /// All agents that enrolled, by id.
    pub fn agent_clients(&self) -> impl Iterator<Item = &Arc<AgentClient>> {
        self.access.agents.values()
    }

    /// The agent that enrolled as a server and may connect.
    pub fn agent_of(&self, server: &ServerId) -> Option<&Arc<AgentClient>> {
        self.access.agent_of(server)
    }

    /// Certificates of gateways that were not revoked, by digest. Some may have
    /// ended.
    pub fn gateway_certificates(&self) -> impl Iterator<Item = &GatewayCertificate> {
        self.access.gateways.values().map(|certificate| &**certificate)
    }

    /// Whether a gateway was given a certificate that was not revoked since, and
    /// has not ended.
    pub fn knows_gateway(&self, gateway: &GatewayName, certificate: Digest, now: Timestamp) -> bool {
        let known = self.access.gateways.get(&certificate);
        known.is_some_and(|known| known.gateway == *gateway && known.until > now)
    }

    /// Authorization servers of others, by URL.
    pub fn auth_servers(&self) -> impl Iterator<Item = &Arc<AuthServer>> {
        self.access.auth_servers.values()
    }

    /// Names of servers, as operators told them.
    pub fn server_names(&self) -> impl Iterator<Item = (&ServerName, &DnsNames)> {
        self.access.names.iter()
    }

    /// The names of a server, by whatever it is named by.
    pub fn names_of(&self, server: &Server) -> Option<&DnsNames> {
        let names = &self.access.names;
        let by_instance = || {
            let aws = server.facts.aws.as_ref()?;
            names.get(&ServerName::Ec2InstanceId(aws.instance_id.clone()))
        };
        names
            .get(&ServerName::Id(server.id.as_str().to_owned()))
            .or_else(by_instance)
            .or_else(|| names.get(&ServerName::Ip(server.facts.ip.clone())))
    }

    /// Where the audit's chain of records ends.
    pub fn audit(&self) -> &Chain {
        &self.access.audit
    }

    /// What happened.
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Requests with an idempotency key that are kept, oldest first; some may
    /// have expired.
    pub fn kept_requests(&self) -> impl Iterator<Item = &Arc<KeptRequest>> {
        self.requests.by_age()
    }

    /// When something is due by itself.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.index.next_deadline()
    }

    /// State of a session as callers see it.
    pub fn state_of(&self, session: &Session) -> SessionState {
        session.state(self.server_of(session).is_none_or(|server| server.link.is_lost()))
    }

    /// Why a session is in its state, when something went wrong or ended.
    pub fn state_reason_of<'a>(&self, session: &'a Session) -> Option<Cow<'a, str>> {
        session.reason_for(self.state_of(session)).map(Cow::Borrowed)
    }

    /// The record of the server that a session is, or was, on.
    pub fn server_of(&self, session: &Session) -> Option<&Arc<Server>> {
        self.servers.get(session.phase.server()?)
    }

    /// Why nothing is placed on a server; `None` when it is available.
    pub fn unavailability(&self, server: &Server) -> Option<Unavailability> {
        self.standing(&server.id).and_then(Standing::unavailability)
    }

    /// Where a server stands.
    pub(super) fn standing(&self, server: &ServerId) -> Option<&Standing> {
        self.index.sets.standing(server)
    }

    /// The servers that match the expressions in use.
    pub(super) const fn server_sets(&self) -> &ServerSets {
        &self.index.sets
    }

    /// Whether a server has a session under an id that another one has elsewhere.
    pub(super) fn is_set_aside(&self, server: &ServerId, id: &SessionId) -> bool {
        self.conflicts.contains_key(&(server.clone(), id.clone()))
    }

    /// Servers that have a session under an id that another one has elsewhere.
    pub(super) fn servers_that_set_aside(&self, id: &SessionId) -> impl Iterator<Item = &Arc<Server>> {
        self.index.conflicts_over(id).filter_map(|server| self.servers.get(server))
    }

    /// Servers on which an owner has virtual sessions.
    pub(super) fn servers_of(&self, owner: &Owner) -> impl Iterator<Item = &Arc<Server>> {
        self.index.servers_of(owner).filter_map(|id| self.servers.get(id))
    }

    /// How many servers take no session of a kind, by the rule that says so.
    pub(super) fn refusals(&self, kind: SessionKind) -> impl Iterator<Item = (Rule, u32)> {
        self.index.sets.refusals(kind)
    }

    /// How many servers take some session of a kind.
    pub(super) fn servers_that_take(&self, kind: SessionKind) -> usize {
        self.index.sets.that_take(kind)
    }
}

#[cfg(test)]
mod tests;
