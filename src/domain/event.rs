//! Events: what happened. They are the only thing that changes the state, and
//! they are what the journal keeps and what the broker acts on after an entry
//! was applied.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::audit::{AuditRecord, Digest};
use super::auth_server::AuthServer;
use super::client::{AgentClient, ApiClient, Grant, OldSecret, SecretHash, SoftwareStatement};
use super::cluster::{Admission, Invitation};
use super::dns::DnsMapping;
use super::gateway::{GatewayCertificate, GatewayName};
use super::ids::InstructionId;
use super::ids::{
    AgentInstance, ClientId, Epoch, InvitationId, Owner, ReplicaId, ServerId, SessionId, StatementId, TokenId,
};
use super::instruction::{Action, Answer, Instruction};
use super::key::SigningKey;
use super::report::{Report, ReportedSession};
use super::request::KeptRequest;
use super::session::SessionSpec;
use super::settings::Settings;
use super::time::{Millis, Timestamp};

/// One thing that happened. Variants are appended, never renumbered: the
/// journal holds them by number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The settings are these now.
    Configured(Settings),

    /// A session was asked for and accepted; it waits for a server until the
    /// deadline, or the next event places it.
    SessionCreated {
        /// Id.
        id: SessionId,
        /// What is wanted.
        spec: SessionSpec,
        /// Who wants it.
        client: ClientId,
        /// When it is given up if no server takes it.
        deadline: Timestamp,
    },
    /// A request was refused.
    SessionRefused {
        /// Id it would have had.
        id: SessionId,
        /// Whose it would have been.
        owner: Owner,
        /// Who wanted it.
        client: ClientId,
        /// Why.
        reason: String,
    },
    /// A server was chosen and told.
    SessionPlaced {
        /// Which session.
        id: SessionId,
        /// Which server.
        server: ServerId,
        /// The instruction to it.
        instruction: InstructionId,
        /// When it is given up.
        deadline: Timestamp,
    },
    /// Its desktop answers.
    SessionReady {
        /// Which session.
        id: SessionId,
    },
    /// A host reported a session that the broker did not know.
    SessionAdopted {
        /// Where.
        server: ServerId,
        /// What the host said.
        session: Box<ReportedSession>,
    },
    /// A host reported a session under an id that another one has elsewhere:
    /// it takes up room there, and is adopted when the other one has ended.
    SessionConflict {
        /// The host that reported it.
        server: ServerId,
        /// What the host said.
        session: Box<ReportedSession>,
    },
    /// A session that was set aside is gone, or is the only one of its id now.
    SessionConflictEnded {
        /// The id.
        id: SessionId,
        /// The host that had reported it.
        server: ServerId,
    },
    /// A server failed to create a session. It may be placed elsewhere; the
    /// next event says so, or that it has ended.
    SessionAttemptFailed {
        /// Which session.
        id: SessionId,
        /// Which server.
        server: ServerId,
        /// Why.
        reason: String,
        /// Until when others are asked first.
        avoid_until: Timestamp,
        /// When the session is given up if no server takes it.
        deadline: Timestamp,
    },
    /// A server did not create a session in time and was told to give it up.
    SessionWithdrawing {
        /// Which session.
        id: SessionId,
        /// The instruction to the server.
        instruction: InstructionId,
        /// When it is given up.
        deadline: Timestamp,
        /// Why.
        reason: String,
    },
    /// A server failed: others are asked first for a while.
    ServerAvoided {
        /// Which server.
        server: ServerId,
        /// Until then.
        until: Timestamp,
    },
    /// A server could not end a session: it lives on.
    SessionDeletionFailed {
        /// Which session.
        id: SessionId,
        /// Why.
        reason: String,
    },
    /// Clients of a session came or went, or its name changed.
    SessionObserved {
        /// Which session.
        id: SessionId,
        /// Clients now.
        connections: u32,
        /// When the last one left.
        last_disconnected_at: Option<Timestamp>,
    },
    /// The server was told to end it.
    SessionDeleting {
        /// Which session.
        id: SessionId,
        /// The instruction to the server.
        instruction: InstructionId,
        /// When it counts as deleted all the same.
        deadline: Timestamp,
        /// How often the server was told, with this time.
        attempt: u32,
        /// Why, when nobody asked for this session to end.
        reason: Option<String>,
    },
    /// It is gone.
    SessionDeleted {
        /// Which session.
        id: SessionId,
        /// Why, when it was not simply asked for.
        reason: Option<String>,
        /// When it is forgotten.
        forget_at: Timestamp,
        /// Whether the broker wanted it gone: should it be seen on a host
        /// again, it is closed there.
        unwanted: bool,
    },
    /// Its record is dropped.
    SessionForgotten {
        /// Which session.
        id: SessionId,
    },
    /// Its permissions are these now.
    PermissionsChanged {
        /// Which session.
        id: SessionId,
        /// Text of the permissions file.
        permissions: String,
    },

    /// Something was put into a server's outbox.
    InstructionIssued {
        /// Which server.
        server: ServerId,
        /// What.
        instruction: Instruction,
    },
    /// Something left a server's outbox.
    InstructionSettled {
        /// Which server.
        server: ServerId,
        /// Which instruction.
        instruction: InstructionId,
        /// How it ended; `None` when it was withdrawn.
        answer: Option<Answer>,
    },

    /// An agent connected.
    ServerConnected {
        /// Which server.
        server: ServerId,
        /// The run of the agent.
        instance: AgentInstance,
        /// Number of the connection.
        epoch: Epoch,
        /// The replica that holds it.
        via: ReplicaId,
        /// How often it reports.
        report_interval: Millis,
        /// A full report, without the inventory, which made events of its own.
        report: Report,
    },
    /// An agent reported.
    ServerReported {
        /// Which server.
        server: ServerId,
        /// What changed, without the inventory, which made events of its own.
        report: Report,
    },
    /// The connection to an agent broke.
    ServerInterrupted {
        /// Which server.
        server: ServerId,
    },
    /// An agent was silent for too long.
    ServerLost {
        /// Which server.
        server: ServerId,
    },
    /// An agent that was silent for too long spoke again, on the same connection.
    ServerRecovered {
        /// Which server.
        server: ServerId,
    },
    /// A server was away for too long and is no longer listed.
    ServerForgotten {
        /// Which server.
        server: ServerId,
    },
    /// Nothing refers any longer to a server that is not listed.
    ServerMarksDropped {
        /// Which server.
        server: ServerId,
    },
    /// A server that failed to create a session is asked like any other again.
    ServerAvoidanceEnded {
        /// Which server.
        server: ServerId,
    },
    /// A server was closed, and its sessions have a deadline.
    ServerDraining {
        /// Which server.
        server: ServerId,
        /// By whom.
        client: ClientId,
        /// When the sessions that are left are deleted.
        deadline: Timestamp,
    },
    /// The deadline of a draining server has passed.
    ServerDrainExpired {
        /// Which server.
        server: ServerId,
    },
    /// A server was opened for placement.
    ServerOpened {
        /// Which server.
        server: ServerId,
        /// By whom.
        client: ClientId,
    },
    /// A server was closed for placement.
    ServerClosed {
        /// Which server.
        server: ServerId,
        /// By whom.
        client: ClientId,
    },
    /// Another agent came with the id of a server whose agent is connected,
    /// and was refused. Told at most once in
    /// [`CONTEST_INTERVAL`](super::server::CONTEST_INTERVAL). The replica that
    /// holds the connection finds out whether its agent still answers.
    ServerContested {
        /// Which server.
        server: ServerId,
    },

    /// An API client was registered.
    ClientRegistered(ApiClient),
    /// An API client was deactivated.
    ClientDeactivated {
        /// Which.
        id: ClientId,
    },
    /// A signing key was installed.
    KeyInstalled(SigningKey),

    /// A request with an idempotency key was carried out.
    RequestKept(Arc<KeptRequest>),

    /// A new replica may join.
    ReplicaInvited {
        /// Which invitation.
        id: InvitationId,
        /// Until when, and in whose place.
        invitation: Invitation,
    },
    /// A replica joins.
    ReplicaAdmitted {
        /// Its number.
        replica: ReplicaId,
        /// How it came.
        admission: Admission,
    },
    /// A replica leaves.
    ReplicaRetired {
        /// Its number.
        replica: ReplicaId,
    },
    /// Replicas show certificates of another authority.
    AuthorityRotated {
        /// Its number.
        to: u32,
    },
    /// An invitation was taken back.
    InvitationRevoked {
        /// Which.
        id: InvitationId,
    },

    /// An API client has another secret.
    ClientSecretRotated {
        /// Which.
        id: ClientId,
        /// The new secret, as a hash.
        secret: SecretHash,
        /// The one before, if it is still good.
        old: Option<OldSecret>,
    },
    /// An API client may do this from now on.
    ClientGranted {
        /// Which.
        id: ClientId,
        /// What it may do.
        grant: Grant,
    },
    /// A key took the place of another one of its purpose.
    KeyRotated {
        /// The new one.
        key: SigningKey,
        /// Until when what the other one signed is good.
        old_until: Timestamp,
    },
    /// Agents can enrol with a statement.
    StatementIssued(SoftwareStatement),
    /// No agent can enrol with a statement any more.
    StatementDeactivated {
        /// Which.
        id: StatementId,
    },
    /// An agent enrolled.
    AgentEnrolled(AgentClient),
    /// An agent may not connect any more.
    AgentUnregistered {
        /// Which.
        id: ClientId,
        /// The server that it is.
        server: ServerId,
    },
    /// Tokens of another authorization server are taken.
    AuthServerRegistered(Arc<AuthServer>),
    /// Tokens of another authorization server are taken no more.
    AuthServerUnregistered {
        /// Where its keys are.
        url: String,
    },
    /// Servers got names.
    ServersMapped {
        /// The names.
        mappings: Arc<Vec<DnsMapping>>,
        /// How many they are.
        count: u64,
        /// Whether all others were dropped.
        replaced: bool,
    },
    /// A token that is good once was used.
    TokenSpent {
        /// Which.
        id: TokenId,
        /// Until when it would be good otherwise.
        until: Timestamp,
    },
    /// Somebody did something, or tried to.
    Audited(Box<AuditRecord>),
    /// A gateway was given a certificate.
    GatewayCertified(GatewayCertificate),
    /// A gateway is let in no more with a certificate.
    GatewayRevoked {
        /// The gateway.
        gateway: GatewayName,
        /// Which; all that it had when not told.
        certificate: Option<Digest>,
    },
}

/// Longest text that the journal keeps of an event, in bytes.
const JOURNAL_TEXT_BYTES_MAX: usize = 1024;

impl Event {
    /// The session that it names. What it concerns beyond that is in the
    /// journal's [`Context`](super::journal::Context).
    pub const fn session(&self) -> Option<&SessionId> {
        match self {
            Self::SessionCreated { id, .. }
            | Self::SessionRefused { id, .. }
            | Self::SessionPlaced { id, .. }
            | Self::SessionReady { id }
            | Self::SessionConflictEnded { id, .. }
            | Self::SessionAttemptFailed { id, .. }
            | Self::SessionWithdrawing { id, .. }
            | Self::SessionDeletionFailed { id, .. }
            | Self::SessionObserved { id, .. }
            | Self::SessionDeleting { id, .. }
            | Self::SessionDeleted { id, .. }
            | Self::SessionForgotten { id }
            | Self::PermissionsChanged { id, .. } => Some(id),
            Self::SessionAdopted { session, .. } | Self::SessionConflict { session, .. } => Some(&session.id),
            Self::InstructionIssued { instruction, .. } => Some(instruction.action.session()),
            Self::Configured(_)
            | Self::RequestKept(_)
            | Self::InstructionSettled { .. }
            | Self::ServerConnected { .. }
            | Self::ServerReported { .. }
            | Self::ServerInterrupted { .. }
            | Self::ServerLost { .. }
            | Self::ServerRecovered { .. }
            | Self::ServerForgotten { .. }
            | Self::ServerMarksDropped { .. }
            | Self::ServerAvoided { .. }
            | Self::ServerAvoidanceEnded { .. }
            | Self::ServerDraining { .. }
            | Self::ServerDrainExpired { .. }
            | Self::ServerContested { .. }
            | Self::ServerOpened { .. }
            | Self::ServerClosed { .. }
            | Self::ClientRegistered(_)
            | Self::ClientDeactivated { .. }
            | Self::KeyInstalled(_)
            | Self::ReplicaInvited { .. }
            | Self::ReplicaAdmitted { .. }
            | Self::ReplicaRetired { .. }
            | Self::AuthorityRotated { .. }
            | Self::InvitationRevoked { .. }
            | Self::ClientSecretRotated { .. }
            | Self::ClientGranted { .. }
            | Self::KeyRotated { .. }
            | Self::StatementIssued(_)
            | Self::StatementDeactivated { .. }
            | Self::AgentEnrolled(_)
            | Self::AgentUnregistered { .. }
            | Self::AuthServerRegistered(_)
            | Self::AuthServerUnregistered { .. }
            | Self::ServersMapped { .. }
            | Self::TokenSpent { .. }
            | Self::Audited(_)
            | Self::GatewayCertified(_)
            | Self::GatewayRevoked { .. } => None,
        }
    }

    /// The server that it names.
    pub const fn server(&self) -> Option<&ServerId> {
        match self {
            Self::SessionPlaced { server, .. }
            | Self::SessionAdopted { server, .. }
            | Self::SessionConflict { server, .. }
            | Self::SessionConflictEnded { server, .. }
            | Self::SessionAttemptFailed { server, .. }
            | Self::InstructionIssued { server, .. }
            | Self::InstructionSettled { server, .. }
            | Self::ServerConnected { server, .. }
            | Self::ServerReported { server, .. }
            | Self::ServerInterrupted { server }
            | Self::ServerLost { server }
            | Self::ServerRecovered { server }
            | Self::ServerForgotten { server }
            | Self::ServerMarksDropped { server }
            | Self::ServerAvoided { server, .. }
            | Self::ServerAvoidanceEnded { server }
            | Self::ServerDraining { server, .. }
            | Self::ServerDrainExpired { server }
            | Self::ServerContested { server }
            | Self::ServerOpened { server, .. }
            | Self::ServerClosed { server, .. }
            | Self::AgentUnregistered { server, .. } => Some(server),
            Self::AgentEnrolled(agent) => Some(&agent.server),
            Self::Configured(_)
            | Self::RequestKept(_)
            | Self::SessionCreated { .. }
            | Self::SessionRefused { .. }
            | Self::SessionReady { .. }
            | Self::SessionObserved { .. }
            | Self::SessionWithdrawing { .. }
            | Self::SessionDeletionFailed { .. }
            | Self::SessionDeleting { .. }
            | Self::SessionDeleted { .. }
            | Self::SessionForgotten { .. }
            | Self::PermissionsChanged { .. }
            | Self::ClientRegistered(_)
            | Self::ClientDeactivated { .. }
            | Self::KeyInstalled(_)
            | Self::ReplicaInvited { .. }
            | Self::ReplicaAdmitted { .. }
            | Self::ReplicaRetired { .. }
            | Self::AuthorityRotated { .. }
            | Self::InvitationRevoked { .. }
            | Self::ClientSecretRotated { .. }
            | Self::ClientGranted { .. }
            | Self::KeyRotated { .. }
            | Self::StatementIssued(_)
            | Self::StatementDeactivated { .. }
            | Self::AuthServerRegistered(_)
            | Self::AuthServerUnregistered { .. }
            | Self::ServersMapped { .. }
            | Self::TokenSpent { .. }
            | Self::Audited(_)
            | Self::GatewayCertified(_)
            | Self::GatewayRevoked { .. } => None,
        }
    }

    /// The API client that it names as the one who wanted it.
    pub const fn client(&self) -> Option<&ClientId> {
        match self {
            Self::SessionCreated { client, .. }
            | Self::SessionRefused { client, .. }
            | Self::ServerOpened { client, .. }
            | Self::ServerDraining { client, .. }
            | Self::ServerClosed { client, .. } => Some(client),
            _ => None,
        }
    }

    /// The event as the journal keeps it. Texts are cut, so that the size of a
    /// record is bounded; what another record or the host's own holds is left
    /// out, and so is what may be secret: hashes, sealed keys, and arguments of
    /// programs.
    #[must_use]
    pub fn abridged(&self) -> Self {
        let mut event = self.clone();
        match &mut event {
            Self::SessionCreated { spec, .. } => {
                spec.permissions.iter_mut().for_each(cut);
                spec.autorun_arguments.clear();
            }
            Self::SessionAdopted { session, .. } | Self::SessionConflict { session, .. } => {
                cut(&mut session.name);
                session.storage_root.iter_mut().for_each(cut);
            }
            Self::PermissionsChanged { permissions, .. } => cut(permissions),
            Self::InstructionIssued { instruction, .. } => match &mut instruction.action {
                Action::CreateSession { spec, .. } => {
                    *spec = SessionSpec::plain(std::mem::take(&mut spec.name), spec.owner.clone(), spec.kind);
                }
                Action::SetPermissions { permissions, .. } => permissions.clear(),
                Action::CloseSession { .. } => {}
            },
            Self::InstructionSettled { answer: Some(Answer::Failed { reason }), .. }
            | Self::SessionRefused { reason, .. }
            | Self::SessionAttemptFailed { reason, .. }
            | Self::SessionWithdrawing { reason, .. }
            | Self::SessionDeletionFailed { reason, .. }
            | Self::SessionDeleting { reason: Some(reason), .. }
            | Self::SessionDeleted { reason: Some(reason), .. } => cut(reason),
            Self::ServerConnected { report, .. } => *report = Report::default(),
            Self::ClientRegistered(client) => client.secret.0.clear(),
            Self::ClientSecretRotated { secret, old, .. } => {
                secret.0.clear();
                if let Some(old) = old {
                    old.hash.0.clear();
                }
            }
            Self::KeyInstalled(key) | Self::KeyRotated { key, .. } => key.sealed.clear(),
            Self::AuthServerRegistered(server) => {
                let server = Arc::make_mut(server);
                server.keys_pem.iter_mut().for_each(cut);
                server.ca_pem.iter_mut().for_each(cut);
            }
            Self::ServersMapped { mappings, .. } => *mappings = Arc::default(),
            Self::ReplicaAdmitted { admission, .. } => cut(&mut admission.address),
            _ => {}
        }
        event
    }

    /// Whether the journal keeps it. What agents say at each interval would
    /// push everything else out and is left aside, and so is a kept request,
    /// which says nothing beyond the events of its commands.
    pub const fn is_journaled(&self) -> bool {
        !matches!(
            self,
            Self::ServerReported { .. }
                | Self::SessionObserved { .. }
                | Self::SessionForgotten { .. }
                | Self::ServerAvoidanceEnded { .. }
                | Self::ServerMarksDropped { .. }
                | Self::RequestKept(_)
                | Self::TokenSpent { .. }
        )
    }
}

/// Shortens a text to what the journal keeps of it.
fn cut(text: &mut String) {
    if text.len() <= JOURNAL_TEXT_BYTES_MAX {
        return;
    }
    let total = text.len();
    text.truncate(text.floor_char_boundary(JOURNAL_TEXT_BYTES_MAX));
    text.push_str("… (");
    text.push_str(&total.to_string());
    text.push_str(" bytes)");
}
