//! Commands: everything that may change the fleet, as it stands in the log.
//!
//! Ids and random values are put in by whoever makes the command, so that
//! applying it needs none. Variants are appended, never renumbered: the log
//! holds them by number.

use serde::{Deserialize, Serialize};

use super::audit::{Deed, Digest};
use super::auth_server::AuthServer;
use super::client::{Grant, SecretHash};
use super::dns::DnsMapping;
use super::gateway::GatewayName;
use super::ids::{
    AgentInstance, ClientId, Epoch, FolderId, IdempotencyKey, InstructionId, InvitationId, KeyId, Owner, ReplicaId,
    ServerId, SessionId, StatementId, TokenId,
};
use super::instruction::Answer;
use super::key::KeyPurpose;
use super::report::Report;
use super::request::Fingerprint;
use super::session::{SessionSpec, SessionState};
use super::settings::Settings;
use super::time::{Millis, Timestamp};

/// One command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// A replica states the settings it was configured with, at its start.
    Configure(Settings),
    /// A replica begins anew: agents that it held are no longer connected.
    ReplicaStarted {
        /// Which replica.
        replica: ReplicaId,
    },

    /// An API client wants a session. The id is new; the same command twice
    /// makes one session.
    CreateSession {
        /// Id, made by the replica that took the request.
        id: SessionId,
        /// What is wanted; checked already.
        spec: SessionSpec,
        /// Who wants it.
        client: ClientId,
    },
    /// An API client wants a session to end.
    DeleteSession {
        /// Which.
        id: SessionId,
        /// Its owner, as the caller believes; another one is refused.
        owner: Owner,
        /// End the record even if the host does not answer.
        force: bool,
        /// Who wants it.
        client: ClientId,
    },
    /// An API client replaces the permissions of a session.
    UpdatePermissions {
        /// Which.
        id: SessionId,
        /// Its owner, as the caller believes; another one is refused.
        owner: Owner,
        /// Text of the permissions file.
        permissions: String,
        /// Who wants it.
        client: ClientId,
    },
    /// An API client opens a server for placement.
    OpenServer {
        /// Which.
        id: ServerId,
        /// Who wants it.
        client: ClientId,
    },
    /// An API client closes a server for placement.
    CloseServer {
        /// Which.
        id: ServerId,
        /// Also when sessions are on it; they go on.
        force: bool,
        /// Who wants it.
        client: ClientId,
    },

    /// An API client closes a server and gives its sessions a deadline.
    DrainServer {
        /// Which.
        id: ServerId,
        /// When the sessions that are left are deleted.
        within: Millis,
        /// Who wants it.
        client: ClientId,
    },

    /// An agent connected to a replica and said hello. Its new connection
    /// takes the place of an older one of its own; while the connection of
    /// another agent stands, it is refused.
    ConnectAgent {
        /// Its server.
        server: ServerId,
        /// The run of the agent.
        instance: AgentInstance,
        /// The replica that holds the connection.
        via: ReplicaId,
        /// How often it reports.
        report_interval: Millis,
        /// A full report.
        report: Report,
    },
    /// An agent reported.
    Report {
        /// Its server.
        server: ServerId,
        /// Connection it came by.
        epoch: Epoch,
        /// What changed.
        report: Report,
    },
    /// An agent answered an instruction.
    Answer {
        /// Its server.
        server: ServerId,
        /// Connection it came by.
        epoch: Epoch,
        /// Which instruction.
        instruction: InstructionId,
        /// How it ended.
        answer: Answer,
    },
    /// A replica lost the connection to an agent.
    DisconnectAgent {
        /// Its server.
        server: ServerId,
        /// Which connection.
        epoch: Epoch,
    },

    /// An agent gave no sign of life when it was asked for one.
    AgentSilent {
        /// Its server.
        server: ServerId,
        /// Which connection.
        epoch: Epoch,
    },

    /// An operator registers an API client.
    RegisterClient {
        /// Id, made by the replica that took the request.
        id: ClientId,
        /// Name for people.
        name: String,
        /// Its secret, as a hash.
        secret: SecretHash,
        /// What it may do.
        grant: Grant,
    },
    /// An operator deactivates an API client: no further tokens for it.
    DeactivateClient {
        /// Which.
        id: ClientId,
    },
    /// A replica offers a signing key at its first start. The first key for a
    /// purpose is kept, a second one refused.
    InstallKey {
        /// Id.
        id: KeyId,
        /// What it signs.
        purpose: KeyPurpose,
        /// The private key, sealed with the cluster's key.
        sealed: Vec<u8>,
    },

    /// An API client wants all of this once, however often it says so. What
    /// came of it is kept under the key; the same request again changes
    /// nothing and gets that.
    Once {
        /// Who wants it. Each client has keys of its own.
        client: ClientId,
        /// What the client calls the request by.
        key: IdempotencyKey,
        /// Tells another request under the same key.
        fingerprint: Fingerprint,
        /// Id of the request; a repeated answer bears that of the first.
        request_id: String,
        /// What is wanted, in order. Another `Once` among them is refused.
        commands: Vec<Command>,
    },

    /// An operator lets one new replica join.
    InviteReplica {
        /// Id, made by the replica that took the request.
        id: InvitationId,
        /// How long it is good for.
        within: Millis,
        /// The replica whose place the new one takes.
        replaces: Option<ReplicaId>,
        /// The replica that gives the invitation out.
        by: ReplicaId,
    },
    /// A new replica came with an invitation.
    AdmitReplica {
        /// Which.
        invitation: InvitationId,
        /// Its data folder.
        folder: FolderId,
        /// Where other replicas reach it.
        address: String,
        /// Hash of a secret of the one who came: who comes again must have it.
        proof: Fingerprint,
        /// The highest number of a replica that the proposer knows of.
        above: ReplicaId,
    },
    /// A replica is to leave the cluster.
    RetireReplica {
        /// Which.
        replica: ReplicaId,
    },
    /// Replicas are to show certificates of the next authority.
    RotateAuthority {
        /// Its number.
        to: u32,
    },
    /// The replica that leads has not heard of another one for a while. The
    /// agents that it held count as no longer connected: they, or whoever has
    /// come in the place of one, are welcome elsewhere at once.
    ReplicaSilent {
        /// Which replica was not heard of.
        replica: ReplicaId,
    },
    /// An operator takes an invitation back that was not used yet.
    RevokeInvitation {
        /// Which.
        id: InvitationId,
    },

    /// An API client gets another secret; the one that it has is good for a
    /// while longer, one before that is not.
    RotateSecret {
        /// Which client.
        id: ClientId,
        /// The new secret, as a hash.
        secret: SecretHash,
        /// How long the present one is good.
        old_for: Millis,
    },
    /// An operator changes what an API client may do.
    GrantClient {
        /// Which.
        id: ClientId,
        /// What it may do from now on.
        grant: Grant,
    },
    /// Another key takes the place of the one for a purpose.
    RotateKey {
        /// Id of the new one.
        id: KeyId,
        /// What it is for.
        purpose: KeyPurpose,
        /// Its secret, sealed with the cluster's key.
        sealed: Vec<u8>,
        /// How long what the present one signed is good.
        old_for: Millis,
        /// The key that it is to take the place of; when another one is there,
        /// somebody was faster.
        replaces: KeyId,
    },
    /// An operator lets agents enrol.
    IssueStatement {
        /// Id, made by the replica that took the request.
        id: StatementId,
    },
    /// An operator lets no further agents enrol with a statement. Those that
    /// did stay enrolled.
    DeactivateStatement {
        /// Which.
        id: StatementId,
    },
    /// An agent came with a statement.
    EnrolAgent {
        /// Its id, which is made of its public key: whoever comes again is the
        /// same.
        id: ClientId,
        /// Name of its host.
        name: String,
        /// The server that it is.
        server: ServerId,
        /// What it came with; checked already, but for whether it is active.
        statement: StatementId,
    },
    /// An operator unregisters an agent: it may not connect any more.
    UnregisterAgent {
        /// Which.
        id: ClientId,
    },
    /// An operator lets tokens of another authorization server in.
    RegisterAuthServer {
        /// Which, and what is demanded.
        server: AuthServer,
        /// Whether it may take the place of one with the same URL of whose
        /// tokens something else is demanded.
        replace: bool,
    },
    /// An operator lets tokens of another authorization server in no more.
    UnregisterAuthServer {
        /// Where its keys are.
        url: String,
    },
    /// An operator tells names of servers.
    MapServers {
        /// The names; one of a server that has some already takes their place.
        mappings: Vec<DnsMapping>,
        /// Whether all others are dropped.
        replace: bool,
    },
    /// A token that is good once is used.
    SpendToken {
        /// Which.
        id: TokenId,
        /// Until when it would be good otherwise.
        until: Timestamp,
    },
    /// Somebody did something, or tried to: it is carried out if there is
    /// something to carry out, and recorded with what came of it. Only
    /// [`Configure`](Self::Configure) that changes nothing leaves no record:
    /// each replica says it at each start.
    Audited {
        /// Who did what.
        deed: Deed,
        /// What came of it, where that is known already.
        result: Option<String>,
        /// What is to be carried out, in order. Another `Audited` among them
        /// is refused.
        commands: Vec<Command>,
        /// Items of the same call that became no command, because they were
        /// refused before.
        refused_before: u32,
    },
    /// An operator has a certificate signed for a gateway, which is given out
    /// once the log knows it.
    CertifyGateway {
        /// The gateway.
        gateway: GatewayName,
        /// SHA-256 of the certificate.
        certificate: Digest,
        /// The certificate's end.
        until: Timestamp,
    },
    /// An operator lets a gateway in no more with a certificate.
    RevokeGateway {
        /// The gateway.
        gateway: GatewayName,
        /// Which; all that it has when not told.
        certificate: Option<Digest>,
    },
}

impl Command {
    /// The API client that wants it, if one does.
    pub const fn client(&self) -> Option<&ClientId> {
        match self {
            Self::CreateSession { client, .. }
            | Self::DeleteSession { client, .. }
            | Self::UpdatePermissions { client, .. }
            | Self::OpenServer { client, .. }
            | Self::CloseServer { client, .. }
            | Self::DrainServer { client, .. } => Some(client),
            _ => None,
        }
    }
}

/// What a command came to, for the one who proposed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done; there is nothing to add.
    Done,
    /// The session is being created.
    Created {
        /// Its id: that of the command.
        id: SessionId,
        /// When it was asked for.
        created_at: Timestamp,
    },
    /// The session is in this state now.
    Deleting(SessionState),
    /// The server takes nothing new and its sessions have a deadline.
    Draining {
        /// Sessions that take up room on it now.
        sessions: u32,
        /// When those that are left are deleted.
        deadline: Timestamp,
    },
    /// The agent is connected.
    Welcome {
        /// Number of the connection.
        epoch: Epoch,
    },
    /// Not done.
    Refused(Refusal),
    /// The commands of a [`Command::Once`] came to this now, one by one.
    Once(Vec<Outcome>),
    /// The commands of a [`Command::Once`] came to this before; nothing was
    /// done now.
    Repeated {
        /// Id of the request that did it.
        request_id: String,
        /// What its commands came to, one by one.
        outcomes: Vec<Outcome>,
    },
    /// The replica may join.
    Admitted {
        /// Its number.
        replica: ReplicaId,
    },
    /// The commands of a [`Command::Audited`] came to this, one by one.
    Audited(Vec<Outcome>),
}

/// Why a command was refused. The texts that clients compare are made at the
/// edge, from these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No server can take the session.
    #[error("no dcv server found for placement: {0}")]
    NoServer(super::placement::Explanation),
    /// The queue holds as many requests as it may.
    #[error("no dcv server found for placement, and the queue is full ({max} requests): {explanation}")]
    QueueFull {
        /// Its size.
        max: u32,
        /// Why no server takes it now.
        explanation: super::placement::Explanation,
    },
    /// There is no such session, or it is deleted.
    #[error("The requested dcvSession does not exist")]
    UnknownSession,
    /// The session is somebody else's.
    #[error("the session belongs to another owner")]
    OtherOwner,
    /// The session is not in a state that allows it.
    #[error("the session is {0}")]
    WrongState(String),
    /// There is no such server.
    #[error("Dcv server not found.")]
    UnknownServer,
    /// The server has sessions and the call was not forced.
    #[error("Dcv server has {sessions} sessions.")]
    ServerHasSessions {
        /// How many.
        sessions: u32,
    },
    /// What was said belongs to a connection that is no longer the current one.
    #[error("another connection of this server took over")]
    StaleEpoch,
    /// There is no such client.
    #[error("there is no such client")]
    UnknownClient,
    /// It exists already, with another content.
    #[error("it exists already")]
    Exists,
    /// Another agent with the same server id is connected.
    #[error("another agent with this server id is connected")]
    OtherInstance,
    /// The client used the idempotency key for another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// A [`Command::Once`] inside another one.
    #[error("what is done once holds something that is to be done once")]
    Nested,
    /// There are as many as may be.
    #[error("there are as many as may be; remove some first")]
    TooMany,
    /// The invitation is unknown or has expired.
    #[error("the join token is unknown or has expired; ask for a new one with `berth cluster add`")]
    UnknownInvitation,
    /// Another data folder came with the invitation before.
    #[error("the join token was used by another replica; ask for a new one with `berth cluster add`")]
    InvitationUsed,
    /// There is no such statement, or no agent can enrol with it any more.
    #[error("the software statement is unknown or was deactivated; ask an operator for another one")]
    UnknownStatement,
    /// Another agent enrolled as this server.
    #[error(
        "another agent enrolled as this server; if it is gone, unregister it first (`berth agents unregister \
         --client-id {0}`)"
    )]
    ServerEnrolled(ClientId),
    /// It is registered, and something else is demanded of its tokens.
    #[error("it is registered with other demands; say --replace to change them")]
    AuthServerKnown,
    /// There is no such authorization server.
    #[error("there is no such authorization server")]
    UnknownAuthServer,
    /// The key is not the present one any more.
    #[error("the key was replaced meanwhile")]
    KeyReplaced,
    /// The token was used before.
    #[error("the token was used before")]
    TokenSpent,
    /// There is no such agent.
    #[error("there is no such agent")]
    UnknownAgent,
    /// The gateway has no such certificate that is good.
    #[error("there is no such certificate of that gateway; `berth gateways list` shows those that are good")]
    UnknownGateway,
    /// The certificate's end is before the log's time.
    #[error("by the time of the cluster the certificate has ended already; look at the clocks of its hosts")]
    Ended,
}

impl Refusal {
    /// Its name in the audit. It is part of what replicas must agree on: unlike
    /// the texts it never changes.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoServer(_) => "NO_SERVER",
            Self::QueueFull { .. } => "QUEUE_FULL",
            Self::UnknownSession => "UNKNOWN_SESSION",
            Self::OtherOwner => "OTHER_OWNER",
            Self::WrongState(_) => "WRONG_STATE",
            Self::UnknownServer => "UNKNOWN_SERVER",
            Self::ServerHasSessions { .. } => "SERVER_HAS_SESSIONS",
            Self::StaleEpoch => "STALE_EPOCH",
            Self::UnknownClient => "UNKNOWN_CLIENT",
            Self::Exists => "EXISTS",
            Self::OtherInstance => "OTHER_INSTANCE",
            Self::KeyReused => "KEY_REUSED",
            Self::Nested => "NESTED",
            Self::TooMany => "TOO_MANY",
            Self::UnknownInvitation => "UNKNOWN_INVITATION",
            Self::InvitationUsed => "INVITATION_USED",
            Self::UnknownStatement => "UNKNOWN_STATEMENT",
            Self::ServerEnrolled(_) => "SERVER_ENROLLED",
            Self::AuthServerKnown => "AUTH_SERVER_KNOWN",
            Self::UnknownAuthServer => "UNKNOWN_AUTH_SERVER",
            Self::KeyReplaced => "KEY_REPLACED",
            Self::TokenSpent => "TOKEN_SPENT",
            Self::UnknownAgent => "UNKNOWN_AGENT",
            Self::UnknownGateway => "UNKNOWN_GATEWAY",
            Self::Ended => "ENDED",
        }
    }
}
