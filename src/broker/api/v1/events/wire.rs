//! An event as JSON. Names and meanings are for clients and stay; the events
//! of the domain may change behind them.

use serde::{Serialize, Serializer};

use crate::broker::api::view::{kind_name, time};
use crate::domain::event::Event as Happened;
use crate::domain::instruction::{Action, Answer};
use crate::domain::journal::{Position, Record};
use crate::domain::session::SessionSpec;
use crate::domain::{ClientId, LogIndex, ServerId, SessionId, Settings};

/// A page of events.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listing<'a> {
    /// Id of the request.
    pub(super) request_id: String,
    /// The events, oldest first.
    pub(super) events: Vec<Event<'a>>,
    /// Cursor that leads on after what was looked at.
    pub(super) next: String,
    /// Whether there may be more already.
    pub(super) more: bool,
    /// Cursor of the oldest event that is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) oldest: Option<String>,
}

/// One event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Event<'a> {
    /// Log entry that brought it about.
    index: u64,
    /// Number among the events of that entry.
    number: u32,
    /// When, by the leader's clock.
    time: String,
    /// What kind of event.
    pub(super) kind: Kind,
    /// The session that it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<&'a str>,
    /// The server that it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_id: Option<&'a str>,
    /// The API client whose call brought it about.
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    /// What else there is to say; depends on the kind.
    details: Details<'a>,
}

/// Declares the kinds by name.
macro_rules! kinds {
    ($($name:ident,)*) => {
        /// Kinds of events, by the names that clients see.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Kind {
            $($name,)*
        }

        impl Kind {
            /// All there are.
            const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name that clients see.
            pub(super) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

kinds! {
    Configured,
    SessionCreated,
    SessionRefused,
    SessionPlaced,
    SessionReady,
    SessionAdopted,
    SessionConflict,
    SessionConflictEnded,
    SessionAttemptFailed,
    SessionWithdrawing,
    SessionObserved,
    SessionDeleting,
    SessionDeletionFailed,
    SessionDeleted,
    SessionForgotten,
    PermissionsChanged,
    RequestKept,
    InstructionIssued,
    InstructionSettled,
    ServerConnected,
    ServerReported,
    ServerInterrupted,
    ServerLost,
    ServerRecovered,
    ServerForgotten,
    ServerMarksDropped,
    ServerAvoided,
    ServerAvoidanceEnded,
    ServerContested,
    ServerOpened,
    ServerClosed,
    ServerDraining,
    ServerDrainExpired,
    ClientRegistered,
    ClientDeactivated,
    KeyInstalled,
    ReplicaInvited,
    ReplicaAdmitted,
    ReplicaRetired,
    AuthorityRotated,
    InvitationRevoked,
    ClientSecretRotated,
    ClientGranted,
    KeyRotated,
    StatementIssued,
    StatementDeactivated,
    AgentEnrolled,
    AgentUnregistered,
    AuthServerRegistered,
    AuthServerUnregistered,
    ServersMapped,
    TokenSpent,
    Audited,
    GatewayCertified,
    GatewayRevoked,
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Kind {
    /// The kind with a name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }

    /// The kind of an event.
    pub(super) const fn of(event: &Happened) -> Self {
        match event {
            Happened::Configured(_) => Self::Configured,
            Happened::SessionCreated { .. } => Self::SessionCreated,
            Happened::SessionRefused { .. } => Self::SessionRefused,
            Happened::SessionPlaced { .. } => Self::SessionPlaced,
            Happened::SessionReady { .. } => Self::SessionReady,
            Happened::SessionAdopted { .. } => Self::SessionAdopted,
            Happened::SessionConflict { .. } => Self::SessionConflict,
            Happened::SessionConflictEnded { .. } => Self::SessionConflictEnded,
            Happened::SessionAttemptFailed { .. } => Self::SessionAttemptFailed,
            Happened::SessionWithdrawing { .. } => Self::SessionWithdrawing,
            Happened::SessionDeletionFailed { .. } => Self::SessionDeletionFailed,
            Happened::SessionObserved { .. } => Self::SessionObserved,
            Happened::SessionDeleting { .. } => Self::SessionDeleting,
            Happened::SessionDeleted { .. } => Self::SessionDeleted,
            Happened::SessionForgotten { .. } => Self::SessionForgotten,
            Happened::PermissionsChanged { .. } => Self::PermissionsChanged,
            Happened::RequestKept(_) => Self::RequestKept,
            Happened::InstructionIssued { .. } => Self::InstructionIssued,
            Happened::InstructionSettled { .. } => Self::InstructionSettled,
            Happened::ServerConnected { .. } => Self::ServerConnected,
            Happened::ServerReported { .. } => Self::ServerReported,
            Happened::ServerInterrupted { .. } => Self::ServerInterrupted,
            Happened::ServerLost { .. } => Self::ServerLost,
            Happened::ServerRecovered { .. } => Self::ServerRecovered,
            Happened::ServerForgotten { .. } => Self::ServerForgotten,
            Happened::ServerMarksDropped { .. } => Self::ServerMarksDropped,
            Happened::ServerAvoided { .. } => Self::ServerAvoided,
            Happened::ServerAvoidanceEnded { .. } => Self::ServerAvoidanceEnded,
            Happened::ServerContested { .. } => Self::ServerContested,
            Happened::ServerDraining { .. } => Self::ServerDraining,
            Happened::ServerDrainExpired { .. } => Self::ServerDrainExpired,
            Happened::ServerOpened { .. } => Self::ServerOpened,
            Happened::ServerClosed { .. } => Self::ServerClosed,
            Happened::ClientRegistered(_) => Self::ClientRegistered,
            Happened::ClientDeactivated { .. } => Self::ClientDeactivated,
            Happened::KeyInstalled(_) => Self::KeyInstalled,
            Happened::ReplicaInvited { .. } => Self::ReplicaInvited,
            Happened::ReplicaAdmitted { .. } => Self::ReplicaAdmitted,
            Happened::ReplicaRetired { .. } => Self::ReplicaRetired,
            Happened::AuthorityRotated { .. } => Self::AuthorityRotated,
            Happened::InvitationRevoked { .. } => Self::InvitationRevoked,
            Happened::ClientSecretRotated { .. } => Self::ClientSecretRotated,
            Happened::ClientGranted { .. } => Self::ClientGranted,
            Happened::KeyRotated { .. } => Self::KeyRotated,
            Happened::StatementIssued(_) => Self::StatementIssued,
            Happened::StatementDeactivated { .. } => Self::StatementDeactivated,
            Happened::AgentEnrolled(_) => Self::AgentEnrolled,
            Happened::AgentUnregistered { .. } => Self::AgentUnregistered,
            Happened::AuthServerRegistered(_) => Self::AuthServerRegistered,
            Happened::AuthServerUnregistered { .. } => Self::AuthServerUnregistered,
            Happened::ServersMapped { .. } => Self::ServersMapped,
            Happened::TokenSpent { .. } => Self::TokenSpent,
            Happened::Audited(_) => Self::Audited,
            Happened::GatewayCertified(_) => Self::GatewayCertified,
            Happened::GatewayRevoked { .. } => Self::GatewayRevoked,
        }
    }
}

/// What else there is to say of an event. Never a secret: no arguments of
/// programs, hashes or keys.
#[derive(Debug, Serialize)]
#[serde(untagged, rename_all_fields = "PascalCase")]
enum Details<'a> {
    Nothing {},
    Settings(Box<SettingsInForce>),
    Wanted(Box<Wanted<'a>>),
    Refused {
        owner: &'a str,
        reason: &'a str,
    },
    Instructed {
        instruction_id: u64,
        deadline: String,
    },
    ToldAgain {
        instruction_id: u64,
        deadline: String,
        attempt: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    },
    Withdrawing {
        reason: &'a str,
        instruction_id: u64,
        deadline: String,
    },
    AttemptFailed {
        reason: &'a str,
        avoided_until: String,
    },
    Avoided {
        avoided_until: String,
    },
    Reason {
        reason: &'a str,
    },
    Draining {
        deadline: String,
    },
    Adopted {
        #[serde(skip_serializing_if = "str::is_empty")]
        name: &'a str,
        owner: &'a str,
        r#type: &'static str,
        creation_time: String,
        num_of_connections: u32,
    },
    Observed {
        num_of_connections: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        last_disconnection_time: Option<String>,
    },
    Deleted {
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
        ended_by: &'static str,
        visible_until: String,
    },
    Permissions {
        permissions: &'a str,
    },
    Issued {
        instruction_id: u64,
        action: &'static str,
    },
    Settled {
        instruction_id: u64,
        result: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    },
    Connected {
        epoch: u64,
        replica: u64,
        report_interval_millis: u64,
    },
    Client {
        client_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a str>,
    },
    Key {
        key_id: &'a str,
        purpose: &'static str,
    },
    Invited {
        invitation_id: &'a str,
        expires_at: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        replaces: Option<u64>,
    },
    Revoked {
        invitation_id: &'a str,
    },
    Replica {
        replica: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        address: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        replaces: Option<u64>,
    },
    Rotated {
        authority: u32,
    },
    SecretRotated {
        client_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        old_until: Option<String>,
    },
    Granted {
        client_id: &'a str,
        scopes: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        owner: Option<&'a str>,
    },
    KeyRotated {
        key_id: &'a str,
        purpose: &'static str,
        old_until: String,
    },
    Statement {
        statement_id: &'a str,
    },
    Agent {
        client_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        statement_id: Option<&'a str>,
    },
    AuthServer {
        url: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        issuer: Option<&'a str>,
    },
    Mapped {
        mappings: u64,
        replaced: bool,
    },
    Gateway {
        gateway: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        certificate: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<String>,
    },
    Audited {
        number: u64,
        actor: String,
        from: &'a str,
        action: &'a str,
        target: &'a str,
        request_id: &'a str,
        replica: u64,
        result: &'a str,
        previous: String,
        digest: String,
    },
}

/// What a session is to be.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Wanted<'a> {
    name: &'a str,
    owner: &'a str,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_concurrent_clients: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requirements: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_root: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    init_file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    autorun_file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<&'a str>,
    dcv_gl_enabled: bool,
    enqueue_request: bool,
    disable_retry_on_failure: bool,
    deadline: String,
}

/// Settings that a replica stated.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct SettingsInForce {
    deleted_retention_seconds: u64,
    prepare_timeout_seconds: u64,
    delete_timeout_seconds: u64,
    queue_max: u32,
    queue_timeout_seconds: u64,
    reports_missed_max: u32,
    lost_server_retention_seconds: u64,
    lost_session_retention_seconds: u64,
    idempotency_retention_seconds: u64,
    idempotency_keys_max: u32,
    create_retries_max: u32,
    avoid_failed_server_seconds: u64,
    placement: &'static str,
    journal_records_max: u32,
    journal_bytes_max: u64,
    journal_retention_seconds: u64,
}

impl<'a> Event<'a> {
    /// A record as clients see it.
    pub(super) fn of(record: &'a Record) -> Self {
        Self {
            index: record.position.index.0,
            number: record.position.number,
            time: time(record.at),
            kind: Kind::of(&record.event),
            session_id: record.session().map(SessionId::as_str),
            server_id: record.server().map(ServerId::as_str),
            client: record.client().map(ClientId::as_str),
            details: Details::of(&record.event),
        }
    }
}

impl<'a> Details<'a> {
    fn of(event: &'a Happened) -> Self {
        match event {
            Happened::Configured(settings) => Self::Settings(Box::new(settings_in_force(settings))),
            Happened::SessionCreated { id: _, spec, client: _, deadline } => {
                Self::Wanted(Box::new(wanted(spec, time(*deadline))))
            }
            Happened::SessionRefused { id: _, owner, client: _, reason } => {
                Self::Refused { owner: owner.as_str(), reason }
            }
            Happened::SessionPlaced { id: _, server: _, instruction, deadline } => {
                Self::Instructed { instruction_id: instruction.0, deadline: time(*deadline) }
            }
            Happened::SessionDeleting { id: _, instruction, deadline, attempt, reason } => Self::ToldAgain {
                instruction_id: instruction.0,
                deadline: time(*deadline),
                attempt: *attempt,
                reason: reason.as_deref(),
            },
            Happened::SessionWithdrawing { id: _, instruction, deadline, reason } => {
                Self::Withdrawing { reason, instruction_id: instruction.0, deadline: time(*deadline) }
            }
            Happened::SessionAttemptFailed { id: _, server: _, reason, avoid_until, deadline: _ } => {
                Self::AttemptFailed { reason, avoided_until: time(*avoid_until) }
            }
            Happened::ServerAvoided { server: _, until } => Self::Avoided { avoided_until: time(*until) },
            Happened::SessionDeletionFailed { id: _, reason } => Self::Reason { reason },
            Happened::ServerDraining { server: _, client: _, deadline } => Self::Draining { deadline: time(*deadline) },
            Happened::SessionAdopted { server: _, session } | Happened::SessionConflict { server: _, session } => {
                Self::Adopted {
                    name: &session.name,
                    owner: session.owner.as_str(),
                    r#type: kind_name(session.kind),
                    creation_time: time(session.created_at),
                    num_of_connections: session.connections,
                }
            }
            Happened::SessionObserved { id: _, connections, last_disconnected_at } => Self::Observed {
                num_of_connections: *connections,
                last_disconnection_time: last_disconnected_at.map(time),
            },
            Happened::SessionDeleted { id: _, reason, forget_at, unwanted } => Self::Deleted {
                reason: reason.as_deref(),
                ended_by: if *unwanted { "BROKER" } else { "HOST" },
                visible_until: time(*forget_at),
            },
            Happened::PermissionsChanged { id: _, permissions } => Self::Permissions { permissions },
            Happened::InstructionIssued { server: _, instruction } => Self::Issued {
                instruction_id: instruction.id.0,
                action: match instruction.action {
                    Action::CreateSession { .. } => "CREATE_SESSION",
                    Action::CloseSession { .. } => "CLOSE_SESSION",
                    Action::SetPermissions { .. } => "SET_PERMISSIONS",
                },
            },
            Happened::InstructionSettled { server: _, instruction, answer } => Self::Settled {
                instruction_id: instruction.0,
                result: match answer {
                    Some(Answer::Done) => "DONE",
                    Some(Answer::Failed { .. }) => "FAILED",
                    None => "WITHDRAWN",
                },
                reason: match answer {
                    Some(Answer::Failed { reason }) => Some(reason),
                    Some(Answer::Done) | None => None,
                },
            },
            Happened::ServerConnected { server: _, instance: _, epoch, via, report_interval, report: _ } => {
                Self::Connected { epoch: epoch.0, replica: via.0, report_interval_millis: report_interval.0 }
            }
            Happened::ClientRegistered(client) => {
                Self::Client { client_id: client.id.as_str(), name: Some(&client.name) }
            }
            Happened::ClientDeactivated { id } => Self::Client { client_id: id.as_str(), name: None },
            Happened::KeyInstalled(key) => Self::Key { key_id: key.id.as_str(), purpose: key.purpose.as_str() },
            Happened::ReplicaInvited { id, invitation } => Self::Invited {
                invitation_id: id.as_str(),
                expires_at: time(invitation.expires_at),
                replaces: invitation.replaces.map(|replica| replica.0),
            },
            Happened::ReplicaAdmitted { replica, admission } => Self::Replica {
                replica: replica.0,
                address: Some(&admission.address),
                replaces: admission.replaces.map(|replica| replica.0),
            },
            Happened::ReplicaRetired { replica } => Self::Replica { replica: replica.0, address: None, replaces: None },
            Happened::AuthorityRotated { to } => Self::Rotated { authority: *to },
            Happened::InvitationRevoked { id } => Self::Revoked { invitation_id: id.as_str() },
            Happened::ClientSecretRotated { id, secret: _, old } => {
                Self::SecretRotated { client_id: id.as_str(), old_until: old.as_ref().map(|old| time(old.until)) }
            }
            Happened::ClientGranted { id, grant } => Self::Granted {
                client_id: id.as_str(),
                scopes: grant.scopes.to_string(),
                owner: grant.owner.as_ref().map(crate::domain::Owner::as_str),
            },
            Happened::KeyRotated { key, old_until } => {
                Self::KeyRotated { key_id: key.id.as_str(), purpose: key.purpose.as_str(), old_until: time(*old_until) }
            }
            Happened::StatementIssued(statement) => Self::Statement { statement_id: statement.id.as_str() },
            Happened::StatementDeactivated { id } => Self::Statement { statement_id: id.as_str() },
            Happened::AgentEnrolled(agent) => Self::Agent {
                client_id: agent.id.as_str(),
                name: Some(&agent.name),
                statement_id: Some(agent.statement.as_str()),
            },
            Happened::AgentUnregistered { id, server: _ } => {
                Self::Agent { client_id: id.as_str(), name: None, statement_id: None }
            }
            Happened::AuthServerRegistered(server) => {
                Self::AuthServer { url: &server.url, issuer: server.issuer.as_deref() }
            }
            Happened::AuthServerUnregistered { url } => Self::AuthServer { url, issuer: None },
            Happened::ServersMapped { mappings: _, count, replaced } => {
                Self::Mapped { mappings: *count, replaced: *replaced }
            }
            Happened::GatewayCertified(certificate) => Self::Gateway {
                gateway: certificate.gateway.as_str(),
                certificate: Some(certificate.digest.to_string()),
                until: Some(time(certificate.until)),
            },
            Happened::GatewayRevoked { gateway, certificate } => Self::Gateway {
                gateway: gateway.as_str(),
                certificate: certificate.map(|certificate| certificate.to_string()),
                until: None,
            },
            Happened::Audited(record) => Self::Audited {
                number: record.number,
                actor: record.deed.actor.to_string(),
                from: &record.deed.from,
                action: &record.deed.action,
                target: &record.deed.target,
                request_id: &record.deed.request_id,
                replica: record.deed.via.0,
                result: &record.result,
                previous: record.previous.to_string(),
                digest: record.digest.to_string(),
            },
            Happened::RequestKept(_)
            | Happened::TokenSpent { .. }
            | Happened::SessionReady { .. }
            | Happened::SessionConflictEnded { .. }
            | Happened::SessionForgotten { .. }
            | Happened::ServerReported { .. }
            | Happened::ServerInterrupted { .. }
            | Happened::ServerLost { .. }
            | Happened::ServerRecovered { .. }
            | Happened::ServerForgotten { .. }
            | Happened::ServerMarksDropped { .. }
            | Happened::ServerAvoidanceEnded { .. }
            | Happened::ServerContested { .. }
            | Happened::ServerDrainExpired { .. }
            | Happened::ServerOpened { .. }
            | Happened::ServerClosed { .. } => Self::Nothing {},
        }
    }
}

fn wanted(spec: &SessionSpec, deadline: String) -> Wanted<'_> {
    Wanted {
        name: &spec.name,
        owner: spec.owner.as_str(),
        r#type: kind_name(spec.kind),
        max_concurrent_clients: spec.clients_max,
        requirements: spec.requirements.as_ref().map(ToString::to_string),
        storage_root: spec.storage_root.as_deref(),
        init_file: spec.init_file.as_deref(),
        autorun_file: spec.autorun_file.as_deref(),
        permissions: spec.permissions.as_deref(),
        dcv_gl_enabled: spec.gl,
        enqueue_request: spec.enqueue,
        disable_retry_on_failure: spec.retry_disabled,
        deadline,
    }
}

const fn settings_in_force(settings: &Settings) -> SettingsInForce {
    SettingsInForce {
        deleted_retention_seconds: settings.deleted_retention.as_secs(),
        prepare_timeout_seconds: settings.prepare_timeout.as_secs(),
        delete_timeout_seconds: settings.delete_timeout.as_secs(),
        queue_max: settings.queue_max,
        queue_timeout_seconds: settings.queue_timeout.as_secs(),
        reports_missed_max: settings.reports_missed_max,
        lost_server_retention_seconds: settings.lost_server_retention.as_secs(),
        lost_session_retention_seconds: match settings.lost_session_retention {
            Some(span) => span.as_secs(),
            None => 0,
        },
        idempotency_retention_seconds: settings.idempotency_retention.as_secs(),
        idempotency_keys_max: settings.idempotency_keys_max,
        create_retries_max: settings.create_retries_max,
        avoid_failed_server_seconds: settings.avoid_failed_server.as_secs(),
        placement: settings.placement.as_str(),
        journal_records_max: settings.journal_records_max,
        journal_bytes_max: settings.journal_bytes_max,
        journal_retention_seconds: settings.journal_retention.as_secs(),
    }
}

/// A position as clients give it back: `INDEX.NUMBER`, or `INDEX` for all of
/// that log entry.
pub(super) fn cursor(position: Position) -> String {
    if position == Position::end_of(position.index) {
        position.index.to_string()
    } else {
        format!("{}.{}", position.index, position.number)
    }
}

/// The position that a cursor means.
pub(super) fn position(cursor: &str) -> Option<Position> {
    match cursor.split_once('.') {
        Some((index, number)) => Some(Position { index: LogIndex(digits(index)?), number: digits(number)? }),
        None => Some(Position::end_of(LogIndex(digits(cursor)?))),
    }
}

/// A number of digits alone: no sign.
fn digits<N: std::str::FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
