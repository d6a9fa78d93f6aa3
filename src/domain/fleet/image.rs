//! The state as a snapshot: everything that the log decided, in one canonical
//! form. Two replicas at the same log index write the same bytes.

use std::io::{Read, Write};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::Fleet;
use super::access::Access;
use crate::domain::audit::Chain;
use crate::domain::auth_server::AuthServer;
use crate::domain::client::{AgentClient, ApiClient, SoftwareStatement};
use crate::domain::cluster::{Admission, Cluster, Invitation};
use crate::domain::codec;
use crate::domain::dns::{DnsNames, ServerName};
use crate::domain::gateway::GatewayCertificate;
use crate::domain::ids::{Epoch, InstructionId, InvitationId, LogIndex, ReplicaId, ServerId, TokenId};
use crate::domain::instruction::Instruction;
use crate::domain::journal::{Journal, Position, Record};
use crate::domain::key::{RetiredKey, SigningKey};
use crate::domain::report::ReportedSession;
use crate::domain::request::KeptRequest;
use crate::domain::server::{Closed, Server};
use crate::domain::session::Session;
use crate::domain::settings::Settings;
use crate::domain::time::Timestamp;

/// Why a snapshot cannot be read.
pub type ImageError = codec::CodecError;

/// Version of snapshots that this build writes.
pub const VERSION: u16 = 1;

/// The part of version 1 that is not a collection. Fields are never
/// reordered; a new version is a new type, and this one stays to be read.
#[derive(Serialize, Deserialize)]
struct HeadV1 {
    at: Timestamp,
    index_applied: LogIndex,
    settings: Settings,
    last_epoch: Epoch,
    last_instruction: InstructionId,
    last_arrival: u64,
}

impl Fleet {
    /// Writes the snapshot.
    pub fn write_image(&self, out: &mut dyn Write) -> Result<(), ImageError> {
        let head = HeadV1 {
            at: self.at,
            index_applied: self.index_applied,
            settings: self.settings.clone(),
            last_epoch: self.last_epoch,
            last_instruction: self.last_instruction,
            last_arrival: self.last_arrival,
        };
        codec::write_header(codec::Kind::Image, VERSION, out)?;
        codec::write(&head, out)?;
        codec::write_all(self.servers.values(), out)?;
        codec::write_all(self.closed.iter(), out)?;
        codec::write_all(self.departed.iter(), out)?;
        codec::write_all(self.sessions.values(), out)?;
        codec::write_all(self.conflicts.iter().map(|((server, _), session)| (server, session)), out)?;
        codec::write_all(self.outbox.iter().map(|((server, _), instruction)| (server, instruction)), out)?;
        self.access.write_image(out)?;
        codec::write(&self.journal.horizon(), out)?;
        codec::write_all(self.journal.records(), out)?;
        codec::write_all(self.requests.by_age(), out)?;
        codec::write(&(self.cluster.last_replica, self.cluster.authority), out)?;
        codec::write_all(self.cluster.invitations.iter(), out)?;
        codec::write_all(self.cluster.admitted.iter(), out)
    }

    /// Reads a snapshot of any version that was ever written.
    pub fn read_image(input: &mut dyn Read) -> Result<Self, ImageError> {
        match codec::read_header(codec::Kind::Image, input)? {
            1 => Self::read_image_v1(input),
            version => Err(codec::CodecError::Version { kind: codec::Kind::Image, version }),
        }
    }

    fn read_image_v1(input: &mut dyn Read) -> Result<Self, ImageError> {
        let head: HeadV1 = codec::read(input)?;
        let servers: Vec<Arc<Server>> = codec::read_all(input)?;
        let servers: OrdMap<_, _> = servers.into_iter().map(|server| (server.id.clone(), server)).collect();
        let closed: Vec<(ServerId, Arc<Closed>)> = codec::read_all(input)?;
        let departed: Vec<(ServerId, Timestamp)> = codec::read_all(input)?;
        let sessions: Vec<Arc<Session>> = codec::read_all(input)?;
        let conflicts: Vec<(ServerId, Arc<ReportedSession>)> = codec::read_all(input)?;
        let outbox: Vec<(ServerId, Arc<Instruction>)> = codec::read_all(input)?;
        let access = Access::read_image(input, &servers)?;
        let horizon: Option<Position> = codec::read(input)?;
        let journal: Vec<Arc<Record>> = codec::read_all(input)?;
        let requests: Vec<Arc<KeptRequest>> = codec::read_all(input)?;
        let (last_replica, authority): (ReplicaId, u32) = codec::read(input)?;
        let invitations: Vec<(InvitationId, Invitation)> = codec::read_all(input)?;
        let admitted: Vec<(ReplicaId, Admission)> = codec::read_all(input)?;
        let mut fleet = Self {
            at: head.at,
            index_applied: head.index_applied,
            settings: head.settings,
            last_epoch: head.last_epoch,
            last_instruction: head.last_instruction,
            last_arrival: head.last_arrival,
            servers,
            closed: closed.into_iter().collect(),
            departed: departed.into_iter().collect(),
            conflicts: conflicts.into_iter().map(|(server, session)| ((server, session.id.clone()), session)).collect(),
            sessions: sessions.into_iter().map(|session| (session.id.clone(), session)).collect(),
            outbox: outbox.into_iter().map(|(server, instruction)| ((server, instruction.id), instruction)).collect(),
            access: Arc::new(access),
            journal: Journal::restored(horizon, journal),
            requests: requests.into_iter().collect(),
            cluster: Cluster {
                last_replica,
                authority,
                invitations: invitations.into_iter().collect(),
                admitted: admitted.into_iter().collect(),
            },
            index: super::index::Index::default(),
        };
        fleet.rebuild_index();
        Ok(fleet)
    }
}

impl Access {
    fn write_image(&self, out: &mut dyn Write) -> Result<(), ImageError> {
        codec::write_all(self.clients.values(), out)?;
        codec::write_all(self.keys.values(), out)?;
        codec::write_all(self.retired.values(), out)?;
        codec::write_all(self.statements.values(), out)?;
        codec::write_all(self.agents.values(), out)?;
        codec::write_all(self.auth_servers.values(), out)?;
        codec::write_all(self.names.iter(), out)?;
        codec::write_all(self.spent.iter(), out)?;
        codec::write(&self.audit, out)?;
        codec::write_all(self.gateways.values(), out)
    }

    fn read_image(input: &mut dyn Read, servers: &OrdMap<ServerId, Arc<Server>>) -> Result<Self, ImageError> {
        let clients: Vec<Arc<ApiClient>> = codec::read_all(input)?;
        let keys: Vec<Arc<SigningKey>> = codec::read_all(input)?;
        let retired: Vec<Arc<RetiredKey>> = codec::read_all(input)?;
        let statements: Vec<SoftwareStatement> = codec::read_all(input)?;
        let agents: Vec<Arc<AgentClient>> = codec::read_all(input)?;
        let auth_servers: Vec<Arc<AuthServer>> = codec::read_all(input)?;
        let names: Vec<(ServerName, DnsNames)> = codec::read_all(input)?;
        let spent: Vec<(TokenId, Timestamp)> = codec::read_all(input)?;
        let audit: Chain = codec::read(input)?;
        let gateways: Vec<Arc<GatewayCertificate>> = codec::read_all(input)?;
        let access = Self {
            clients: clients.into_iter().map(|client| (client.id.clone(), client)).collect(),
            keys: keys.into_iter().map(|key| (key.purpose, key)).collect(),
            retired: retired.into_iter().map(|retired| (retired.key.id.clone(), retired)).collect(),
            statements: statements.into_iter().map(|statement| (statement.id.clone(), statement)).collect(),
            auth_servers: auth_servers.into_iter().map(|server| (server.url.clone(), server)).collect(),
            names: names.into_iter().collect(),
            spent: spent.into_iter().collect(),
            agents: OrdMap::new(),
            by_server: OrdMap::new(),
            idle: OrdSet::new(),
            audit,
            gateways: gateways.into_iter().map(|known| (known.digest, known)).collect(),
        };
        Ok(access.with_agents(agents, |server| servers.contains_key(server)))
    }
}
