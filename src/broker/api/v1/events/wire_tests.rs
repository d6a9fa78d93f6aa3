//! The JSON of events, as it is promised to clients.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::*;
use crate::domain::audit::{Actor, AuditRecord, Chain, Deed, Digest};
use crate::domain::client::{AgentClient, ApiClient, Grant, OldSecret, SecretHash};
use crate::domain::cluster::{Admission, Invitation};
use crate::domain::gateway::{GatewayCertificate, GatewayName};
use crate::domain::ids::{AgentInstance, FolderId, InvitationId, StatementId};
use crate::domain::instruction::Instruction;
use crate::domain::journal::Context;
use crate::domain::key::{KeyPurpose, SigningKey};
use crate::domain::report::{Report, ReportedSession};
use crate::domain::{Epoch, InstructionId, KeyId, Millis, Owner, ReplicaId, SessionKind, Timestamp};

const PAGE: &str = include_str!("../../../../../docs/api.md");

fn audited() -> AuditRecord {
    let deed = Deed {
        actor: Actor::Operator,
        from: "local".to_owned(),
        action: "a".to_owned(),
        target: "t".to_owned(),
        request_id: "r".to_owned(),
        via: ReplicaId(1),
    };
    Chain::default().record(Timestamp(0), deed, "done".to_owned())
}

fn server() -> ServerId {
    ServerId::new("desk-7").unwrap()
}

fn id() -> SessionId {
    SessionId::new("session-1").unwrap()
}

fn client() -> ClientId {
    ClientId::new("portal").unwrap()
}

fn owner() -> Owner {
    Owner::new("ann").unwrap()
}

fn record(event: Happened) -> Record {
    let position = Position { index: LogIndex(12), number: 3 };
    Record { position, at: Timestamp(1_601_979_331_633), event, context: Context::default() }
}

fn json_of(event: Happened) -> Value {
    serde_json::to_value(Event::of(&record(event))).unwrap()
}

/// What is shown of an event besides its place and time.
fn shown(event: Happened) -> Value {
    let mut shown = json_of(event);
    let members = shown.as_object_mut().unwrap();
    assert_eq!(members.remove("Index"), Some(json!(12)));
    assert_eq!(members.remove("Number"), Some(json!(3)));
    assert_eq!(members.remove("Time"), Some(json!("2020-10-06T10:15:31.633Z")));
    shown
}

fn full_spec() -> SessionSpec {
    SessionSpec {
        clients_max: Some(3),
        init_file: Some("start.sh".to_owned()),
        autorun_file: Some("run.sh".to_owned()),
        autorun_arguments: vec!["--password=tops3cret".to_owned()],
        permissions: Some("[permissions]".to_owned()),
        storage_root: Some("%home%".to_owned()),
        ..SessionSpec::plain("work".to_owned(), owner(), SessionKind::Virtual)
    }
}

#[test]
fn each_event_has_the_form_that_clients_were_promised() {
    let deadline = Timestamp(1_601_979_391_633);
    let forms = vec![
        (
            Happened::SessionCreated { id: id(), spec: full_spec(), client: client(), deadline },
            json!({
                "Kind": "SessionCreated", "SessionId": "session-1", "Client": "portal",
                "Details": {
                    "Name": "work", "Owner": "ann", "Type": "VIRTUAL", "MaxConcurrentClients": 3,
                    "StorageRoot": "%home%", "InitFile": "start.sh", "AutorunFile": "run.sh",
                    "Permissions": "[permissions]", "DcvGlEnabled": false, "EnqueueRequest": false,
                    "DisableRetryOnFailure": false, "Deadline": "2020-10-06T10:16:31.633Z",
                },
            }),
        ),
        (
            Happened::SessionRefused { id: id(), owner: owner(), client: client(), reason: "full".to_owned() },
            json!({
                "Kind": "SessionRefused", "SessionId": "session-1", "Client": "portal",
                "Details": { "Owner": "ann", "Reason": "full" },
            }),
        ),
        (
            Happened::SessionPlaced { id: id(), server: server(), instruction: InstructionId(7), deadline },
            json!({
                "Kind": "SessionPlaced", "SessionId": "session-1", "ServerId": "desk-7",
                "Details": { "InstructionId": 7, "Deadline": "2020-10-06T10:16:31.633Z" },
            }),
        ),
        (
            Happened::SessionReady { id: id() },
            json!({ "Kind": "SessionReady", "SessionId": "session-1", "Details": {} }),
        ),
        (
            Happened::SessionAdopted {
                server: server(),
                session: Box::new(ReportedSession {
                    id: id(),
                    name: String::new(),
                    owner: owner(),
                    kind: SessionKind::Console,
                    usable: true,
                    connections: 2,
                    clients_max: None,
                    created_at: Timestamp(0),
                    last_disconnected_at: None,
                    storage_root: None,
                    created_by: None,
                }),
            },
            json!({
                "Kind": "SessionAdopted", "SessionId": "session-1", "ServerId": "desk-7",
                "Details": {
                    "Owner": "ann", "Type": "CONSOLE", "CreationTime": "1970-01-01T00:00:00.000Z",
                    "NumOfConnections": 2,
                },
            }),
        ),
        (
            Happened::SessionConflictEnded { id: id(), server: server() },
            json!({ "Kind": "SessionConflictEnded", "SessionId": "session-1", "ServerId": "desk-7", "Details": {} }),
        ),
        (
            Happened::SessionAttemptFailed {
                id: id(),
                server: server(),
                reason: "no".to_owned(),
                avoid_until: deadline,
                deadline,
            },
            json!({
                "Kind": "SessionAttemptFailed", "SessionId": "session-1", "ServerId": "desk-7",
                "Details": { "Reason": "no", "AvoidedUntil": "2020-10-06T10:16:31.633Z" },
            }),
        ),
        (
            Happened::ServerDraining { server: server(), client: client(), deadline },
            json!({
                "Kind": "ServerDraining", "ServerId": "desk-7", "Client": "portal",
                "Details": { "Deadline": "2020-10-06T10:16:31.633Z" },
            }),
        ),
        (
            Happened::SessionDeleting { id: id(), instruction: InstructionId(8), deadline, attempt: 1, reason: None },
            json!({
                "Kind": "SessionDeleting", "SessionId": "session-1",
                "Details": { "InstructionId": 8, "Deadline": "2020-10-06T10:16:31.633Z", "Attempt": 1 },
            }),
        ),
        (
            Happened::SessionDeleted { id: id(), reason: None, forget_at: deadline, unwanted: true },
            json!({
                "Kind": "SessionDeleted", "SessionId": "session-1",
                "Details": { "EndedBy": "BROKER", "VisibleUntil": "2020-10-06T10:16:31.633Z" },
            }),
        ),
        (
            Happened::SessionDeleted {
                id: id(),
                reason: Some("logged out".to_owned()),
                forget_at: deadline,
                unwanted: false,
            },
            json!({
                "Kind": "SessionDeleted", "SessionId": "session-1",
                "Details": {
                    "Reason": "logged out", "EndedBy": "HOST", "VisibleUntil": "2020-10-06T10:16:31.633Z",
                },
            }),
        ),
        (
            Happened::PermissionsChanged { id: id(), permissions: "[permissions]".to_owned() },
            json!({
                "Kind": "PermissionsChanged", "SessionId": "session-1",
                "Details": { "Permissions": "[permissions]" },
            }),
        ),
        (
            Happened::InstructionIssued {
                server: server(),
                instruction: Instruction {
                    id: InstructionId(7),
                    issued_at: Timestamp(0),
                    action: Action::CloseSession { session: id() },
                },
            },
            json!({
                "Kind": "InstructionIssued", "SessionId": "session-1", "ServerId": "desk-7",
                "Details": { "InstructionId": 7, "Action": "CLOSE_SESSION" },
            }),
        ),
        (
            Happened::InstructionSettled {
                server: server(),
                instruction: InstructionId(7),
                answer: Some(Answer::Failed { reason: "no".to_owned() }),
            },
            json!({
                "Kind": "InstructionSettled", "ServerId": "desk-7",
                "Details": { "InstructionId": 7, "Result": "FAILED", "Reason": "no" },
            }),
        ),
        (
            Happened::InstructionSettled { server: server(), instruction: InstructionId(7), answer: None },
            json!({
                "Kind": "InstructionSettled", "ServerId": "desk-7",
                "Details": { "InstructionId": 7, "Result": "WITHDRAWN" },
            }),
        ),
        (
            Happened::ServerConnected {
                server: server(),
                instance: AgentInstance::new("run-1").unwrap(),
                epoch: Epoch(4),
                via: ReplicaId(1),
                report_interval: Millis(30_000),
                report: Report::default(),
            },
            json!({
                "Kind": "ServerConnected", "ServerId": "desk-7",
                "Details": { "Epoch": 4, "Replica": 1, "ReportIntervalMillis": 30_000 },
            }),
        ),
        (
            Happened::ServerClosed { server: server(), client: client() },
            json!({ "Kind": "ServerClosed", "ServerId": "desk-7", "Client": "portal", "Details": {} }),
        ),
        (
            Happened::ClientRegistered(ApiClient {
                id: client(),
                name: "Portal".to_owned(),
                secret: SecretHash("tops3cret".to_owned()),
                old_secret: None,
                active: true,
                grant: Grant::default(),
                registered_at: Timestamp(0),
            }),
            json!({ "Kind": "ClientRegistered", "Details": { "ClientId": "portal", "Name": "Portal" } }),
        ),
        (
            Happened::KeyInstalled(SigningKey {
                id: KeyId::new("key-1").unwrap(),
                purpose: KeyPurpose::ConnectionToken,
                sealed: b"tops3cret".to_vec(),
                installed_at: Timestamp(0),
            }),
            json!({ "Kind": "KeyInstalled", "Details": { "KeyId": "key-1", "Purpose": "CONNECTION_TOKEN" } }),
        ),
        (
            Happened::ClientSecretRotated {
                id: client(),
                secret: SecretHash("tops3cret".to_owned()),
                old: Some(OldSecret { hash: SecretHash("tops3cret".to_owned()), until: Timestamp(0) }),
            },
            json!({
                "Kind": "ClientSecretRotated",
                "Details": { "ClientId": "portal", "OldUntil": "1970-01-01T00:00:00.000Z" },
            }),
        ),
        (
            Happened::ClientGranted { id: client(), grant: Grant::default() },
            json!({ "Kind": "ClientGranted", "Details": { "ClientId": "portal", "Scopes": "read sessions servers" } }),
        ),
        (
            Happened::KeyRotated {
                key: SigningKey {
                    id: KeyId::new("key-2").unwrap(),
                    purpose: KeyPurpose::AccessToken,
                    sealed: b"tops3cret".to_vec(),
                    installed_at: Timestamp(0),
                },
                old_until: Timestamp(0),
            },
            json!({
                "Kind": "KeyRotated",
                "Details": { "KeyId": "key-2", "Purpose": "ACCESS_TOKEN", "OldUntil": "1970-01-01T00:00:00.000Z" },
            }),
        ),
        (
            Happened::AgentEnrolled(AgentClient {
                id: client(),
                name: "vdi7".to_owned(),
                server: server(),
                statement: StatementId::new("st-1").unwrap(),
                active: true,
                enrolled_at: Timestamp(0),
            }),
            json!({
                "Kind": "AgentEnrolled", "ServerId": "desk-7",
                "Details": { "ClientId": "portal", "Name": "vdi7", "StatementId": "st-1" },
            }),
        ),
        (
            Happened::AgentUnregistered { id: client(), server: server() },
            json!({ "Kind": "AgentUnregistered", "ServerId": "desk-7", "Details": { "ClientId": "portal" } }),
        ),
        (
            Happened::ServersMapped { mappings: std::sync::Arc::default(), count: 3, replaced: false },
            json!({ "Kind": "ServersMapped", "Details": { "Mappings": 3, "Replaced": false } }),
        ),
        (
            Happened::GatewayCertified(GatewayCertificate {
                gateway: GatewayName::new("gw-1").unwrap(),
                digest: Digest([7; 32]),
                signed_at: Timestamp(0),
                until: Timestamp(1_000),
            }),
            json!({
                "Kind": "GatewayCertified",
                "Details": { "Gateway": "gw-1", "Certificate": "07".repeat(32), "Until": "1970-01-01T00:00:01.000Z" },
            }),
        ),
        (
            Happened::GatewayRevoked { gateway: GatewayName::new("gw-1").unwrap(), certificate: Some(Digest([7; 32])) },
            json!({ "Kind": "GatewayRevoked", "Details": { "Gateway": "gw-1", "Certificate": "07".repeat(32) } }),
        ),
        (
            Happened::GatewayRevoked { gateway: GatewayName::new("gw-1").unwrap(), certificate: None },
            json!({ "Kind": "GatewayRevoked", "Details": { "Gateway": "gw-1" } }),
        ),
        (
            Happened::Audited(Box::new(audited())),
            json!({
                "Kind": "Audited",
                "Details": {
                    "Number": 1, "Actor": "operator", "From": "local", "Action": "a", "Target": "t", "RequestId": "r",
                    "Replica": 1, "Result": "done", "Previous": "0".repeat(64),
                    "Digest": audited().digest.to_string(),
                },
            }),
        ),
        (
            Happened::ReplicaInvited {
                id: InvitationId::new("i-1").unwrap(),
                invitation: Invitation { expires_at: Timestamp(0), replaces: Some(ReplicaId(3)), by: ReplicaId(1) },
            },
            json!({
                "Kind": "ReplicaInvited",
                "Details": { "InvitationId": "i-1", "ExpiresAt": "1970-01-01T00:00:00.000Z", "Replaces": 3 }
            }),
        ),
        (
            Happened::ReplicaAdmitted {
                replica: ReplicaId(4),
                admission: Admission {
                    invitation: InvitationId::new("i-1").unwrap(),
                    folder: FolderId::new("f-1").unwrap(),
                    proof: crate::domain::request::Fingerprint([5; 32]),
                    address: "b4:47100".to_owned(),
                    replaces: None,
                },
            },
            json!({ "Kind": "ReplicaAdmitted", "Details": { "Replica": 4, "Address": "b4:47100" } }),
        ),
        (
            Happened::ReplicaRetired { replica: ReplicaId(3) },
            json!({ "Kind": "ReplicaRetired", "Details": { "Replica": 3 } }),
        ),
        (
            Happened::InvitationRevoked { id: InvitationId::new("i-1").unwrap() },
            json!({ "Kind": "InvitationRevoked", "Details": { "InvitationId": "i-1" } }),
        ),
        (Happened::AuthorityRotated { to: 1 }, json!({ "Kind": "AuthorityRotated", "Details": { "Authority": 1 } })),
    ];
    for (event, expected) in forms {
        assert_eq!(shown(event), expected);
    }
    let configured = shown(Happened::Configured(Settings::default()));
    assert_eq!(configured["Details"]["JournalRetentionSeconds"], 604_800);
}

#[test]
fn what_is_shown_holds_no_secrets_even_if_the_record_does() {
    let created = Happened::SessionCreated { id: id(), spec: full_spec(), client: client(), deadline: Timestamp(0) };
    assert!(!json_of(created).to_string().contains("tops3cret"));
}

#[test]
fn what_the_record_knows_beside_its_event_is_shown() {
    let settled = Happened::InstructionSettled { server: server(), instruction: InstructionId(7), answer: None };
    let context = Context { session: Some(id()), server: None, client: Some(client()) };
    let record = Record { context, ..record(settled) };
    let shown = serde_json::to_value(Event::of(&record)).unwrap();
    assert_eq!((&shown["SessionId"], &shown["Client"]), (&json!("session-1"), &json!("portal")));
}

#[test]
fn a_cursor_is_read_as_it_is_written() {
    for text in ["0", "12", "12.0", "12.3", "18446744073709551615", "7.4294967294"] {
        assert_eq!(cursor(position(text).unwrap()), text);
    }
}

#[test]
fn kinds_are_found_by_their_names_and_the_page_lists_those_that_are_kept() {
    for kind in Kind::ALL {
        assert_eq!(Kind::parse(kind.as_str()), Some(*kind));
        let never_kept = matches!(
            kind,
            Kind::ServerReported
                | Kind::SessionObserved
                | Kind::SessionForgotten
                | Kind::RequestKept
                | Kind::ServerAvoidanceEnded
                | Kind::ServerMarksDropped
                | Kind::TokenSpent
        );
        let is_on_page = PAGE.contains(&format!("| `{}` |", kind.as_str()));
        assert_eq!(is_on_page, !never_kept, "{kind:?} on docs/api.md");
    }
}
