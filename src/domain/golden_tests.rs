//! The bytes of version 1. They are on disks: whatever changes here must be a
//! new version, and version 1 must go on being read.
//!
//! `BERTH_WRITE_GOLDEN=1 cargo test golden` writes the file anew; do that for
//! what was never released only.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::audit::{Actor, Deed, Digest};
use super::auth_server::{AuthServer, SignatureAlgorithm};
use super::client::{Grant, Scope, Scopes, SecretHash};
use super::codec::{decode_command, encode_command};
use super::command::{Command, Outcome, Refusal};
use super::dns::{DnsMapping, DnsNames, ServerName};
use super::fleet::{Fleet, Stamp};
use super::gateway::GatewayName;
use super::host::{
    Aws, Cpu, Endpoint, EndpointProtocol, Gpu, Health, HostFacts, HostLoad, Limits, LoadAverage, Os, OsFamily, Usage,
};
use super::ids::{
    AgentInstance, ClientId, Epoch, FolderId, IdempotencyKey, InstructionId, InvitationId, KeyId, LogIndex, Owner,
    ReplicaId, ServerId, SessionId, StatementId, TokenId,
};
use super::instruction::Answer;
use super::key::KeyPurpose;
use super::placement::Policy;
use super::report::{EndedSession, Inventory, Report, ReportedSession};
use super::request::Fingerprint;
use super::requirements::Expression;
use super::session::{SessionKind, SessionSpec};
use super::settings::Settings;
use super::time::{Millis, Timestamp};

fn requirements(text: &str) -> Option<Arc<Expression>> {
    Expression::parse(text).expect("valid").map(Arc::new)
}

fn spec() -> SessionSpec {
    SessionSpec {
        name: "work".to_owned(),
        owner: Owner::new("ann").expect("valid"),
        kind: SessionKind::Virtual,
        gl: true,
        clients_max: Some(3),
        init_file: Some("start.sh".to_owned()),
        autorun_file: Some("run.sh".to_owned()),
        autorun_arguments: vec!["-a".to_owned(), "b c".to_owned()],
        permissions: Some("[permissions]".to_owned()),
        requirements: requirements("tag:pool = 'a'"),
        storage_root: Some("%home%".to_owned()),
        enqueue: true,
        retry_disabled: true,
        placement: Some(Policy::Pack),
    }
}

fn gateway(name: &str) -> GatewayName {
    GatewayName::new(name).expect("valid")
}

fn certify(name: &str, certificate: u8) -> Command {
    let until = Timestamp(1_800_000_000_000);
    Command::CertifyGateway { gateway: gateway(name), certificate: Digest([certificate; 32]), until }
}

fn facts() -> HostFacts {
    HostFacts {
        hostname: "vdi7".to_owned(),
        ip: "10.0.0.7".to_owned(),
        dns_name: Some("vdi7.example".to_owned()),
        endpoints: vec![
            Endpoint { ip: None, port: 8443, web_url_path: Some("/".to_owned()), protocol: EndpointProtocol::Http },
            Endpoint {
                ip: Some("10.0.0.7".to_owned()),
                port: 8443,
                web_url_path: None,
                protocol: EndpointProtocol::Quic,
            },
        ],
        web_url_path: Some("/".to_owned()),
        desktop_version: "1.12".to_owned(),
        agent_version: "0.1.0".to_owned(),
        os: Os {
            family: OsFamily::Linux,
            name: "Debian".to_owned(),
            version: "12".to_owned(),
            kernel_version: Some("6.1".to_owned()),
            build_number: None,
        },
        cpu: Cpu {
            vendor: "v".to_owned(),
            model_name: "m".to_owned(),
            architecture: "x86_64".to_owned(),
            logical_count: 4,
            physical_cores_per_cpu: 2,
        },
        gpus: vec![Gpu { vendor: "g".to_owned(), model_name: "h".to_owned() }],
        aws: Some(Aws {
            region: "r".to_owned(),
            instance_type: "t".to_owned(),
            instance_id: "i".to_owned(),
            image_id: "a".to_owned(),
        }),
        tags: BTreeMap::from([("pool".to_owned(), "a".to_owned())]),
        limits: Limits { virtual_sessions_max: Some(8), sessions_per_owner_max: Some(1), console_sessions: true },
    }
}

fn reported(id: &str) -> ReportedSession {
    ReportedSession {
        id: SessionId::new(id).expect("valid"),
        name: "console".to_owned(),
        owner: Owner::new("bob").expect("valid"),
        kind: SessionKind::Virtual,
        usable: true,
        connections: 2,
        clients_max: Some(10),
        created_at: Timestamp(1_700_000_000_000),
        last_disconnected_at: Some(Timestamp(1_700_000_000_001)),
        storage_root: Some("/data".to_owned()),
        created_by: Some(InstructionId(9)),
    }
}

fn report(sessions: Inventory) -> Report {
    Report {
        facts: Some(facts()),
        load: Some(HostLoad {
            memory: Usage { total_bytes: 16_000_000_000, used_bytes: 1 },
            swap: Usage { total_bytes: 2, used_bytes: 3 },
            load_average: LoadAverage {
                one_minute_hundredths: 25,
                five_minutes_hundredths: 50,
                fifteen_minutes_hundredths: 300,
            },
            logged_in_users: vec!["carl".to_owned()],
        }),
        health: Some(Health::Healthy),
        sessions: Some(sessions),
    }
}

/// Commands whose outcomes are of each kind that a client's commands have.
fn once(client: &ClientId) -> Vec<Command> {
    let create = |id: &str, spec: SessionSpec| Command::CreateSession {
        id: SessionId::new(id).expect("valid"),
        spec,
        client: client.clone(),
    };
    let nowhere = SessionSpec { requirements: requirements("tag:pool = 'b'"), enqueue: false, ..spec() };
    let delete = |id: &str| Command::DeleteSession {
        id: SessionId::new(id).expect("valid"),
        owner: spec().owner,
        force: false,
        client: client.clone(),
    };
    let close =
        |id: &str, force| Command::CloseServer { id: ServerId::new(id).expect("valid"), force, client: client.clone() };
    vec![
        create("session-2", spec()),
        create("session-3", nowhere),
        delete("session-2"),
        delete("nothing"),
        close("server-1", false),
        close("server-1", true),
        close("nothing", true),
    ]
}

/// One of each command, in an order in which each does something.
fn commands() -> Vec<(&'static str, Command)> {
    let server = ServerId::new("server-1").expect("valid");
    let session = SessionId::new("session-1").expect("valid");
    let owner = Owner::new("ann").expect("valid");
    let client = ClientId::new("client-1").expect("valid");
    let gone = EndedSession { id: SessionId::new("console").expect("valid"), reason: Some("logged out".to_owned()) };
    vec![
        // The journal keeps less than happens, so that the snapshot holds a horizon.
        ("configure", Command::Configure(Settings { queue_max: 7, journal_records_max: 20, ..Settings::default() })),
        ("replica-started", Command::ReplicaStarted { replica: ReplicaId(1) }),
        (
            "register-client",
            Command::RegisterClient {
                id: client.clone(),
                name: "portal".to_owned(),
                secret: SecretHash("$argon2id$v=19$x".to_owned()),
                grant: Grant::default(),
            },
        ),
        (
            "install-key",
            Command::InstallKey {
                id: KeyId::new("key-1").expect("valid"),
                purpose: KeyPurpose::AccessToken,
                sealed: vec![1, 2, 3],
            },
        ),
        (
            "connect-agent",
            Command::ConnectAgent {
                server: server.clone(),
                instance: AgentInstance::new("run-1").expect("valid"),
                via: ReplicaId(1),
                report_interval: Millis(30_000),
                report: report(Inventory::Full(vec![reported("console")])),
            },
        ),
        (
            "connect-agent-of-a-copy",
            Command::ConnectAgent {
                server: server.clone(),
                instance: AgentInstance::new("run-2").expect("valid"),
                via: ReplicaId(2),
                report_interval: Millis(30_000),
                report: report(Inventory::Full(Vec::new())),
            },
        ),
        ("create-session", Command::CreateSession { id: session.clone(), spec: spec(), client: client.clone() }),
        (
            "update-permissions",
            Command::UpdatePermissions {
                id: session.clone(),
                owner: owner.clone(),
                permissions: "[groups]".to_owned(),
                client: client.clone(),
            },
        ),
        (
            "answer-done",
            Command::Answer {
                server: server.clone(),
                epoch: Epoch(1),
                instruction: InstructionId(1),
                answer: Answer::Done,
            },
        ),
        (
            "answer-failed",
            Command::Answer {
                server: server.clone(),
                epoch: Epoch(1),
                instruction: InstructionId(2),
                answer: Answer::Failed { reason: "no".to_owned() },
            },
        ),
        (
            "report",
            Command::Report {
                server: server.clone(),
                epoch: Epoch(1),
                report: Report {
                    health: Some(Health::Unhealthy("broken".to_owned())),
                    sessions: Some(Inventory::Changes { changed: vec![reported("other")], gone: vec![gone] }),
                    ..Report::default()
                },
            },
        ),
        ("close-server", Command::CloseServer { id: server.clone(), force: true, client: client.clone() }),
        ("delete-session", Command::DeleteSession { id: session, owner, force: false, client: client.clone() }),
        ("open-server", Command::OpenServer { id: server.clone(), client: client.clone() }),
        (
            "once",
            Command::Once {
                client: client.clone(),
                key: IdempotencyKey::new("key-1").expect("valid"),
                fingerprint: Fingerprint([7; 32]),
                request_id: "request-1".to_owned(),
                commands: once(&client),
            },
        ),
        (
            "invite-replica",
            Command::InviteReplica {
                id: InvitationId::new("i-1").expect("valid"),
                within: Millis(3_600_000),
                replaces: Some(ReplicaId(3)),
                by: ReplicaId(1),
            },
        ),
        (
            "admit-replica",
            Command::AdmitReplica {
                invitation: InvitationId::new("i-1").expect("valid"),
                folder: FolderId::new("f-1").expect("valid"),
                address: "b4:47100".to_owned(),
                proof: Fingerprint([5; 32]),
                above: ReplicaId(3),
            },
        ),
        (
            "invite-another-replica",
            Command::InviteReplica {
                id: InvitationId::new("i-2").expect("valid"),
                within: Millis(3_600_000),
                replaces: None,
                by: ReplicaId(2),
            },
        ),
        ("retire-replica", Command::RetireReplica { replica: ReplicaId(3) }),
        ("rotate-authority", Command::RotateAuthority { to: 1 }),
        ("disconnect-agent", Command::DisconnectAgent { server: server.clone(), epoch: Epoch(1) }),
        ("deactivate-client", Command::DeactivateClient { id: client }),
        (
            "connect-agent-elsewhere",
            Command::ConnectAgent {
                server,
                instance: AgentInstance::new("run-1").expect("valid"),
                via: ReplicaId(2),
                report_interval: Millis(30_000),
                report: report(Inventory::Full(vec![reported("other")])),
            },
        ),
        ("replica-silent", Command::ReplicaSilent { replica: ReplicaId(2) }),
        ("revoke-invitation", Command::RevokeInvitation { id: InvitationId::new("i-2").expect("valid") }),
    ]
    .into_iter()
    .chain(access(&ClientId::new("client-2").expect("valid")))
    .collect()
}

/// Commands about who may come in.
fn access(client: &ClientId) -> Vec<(&'static str, Command)> {
    let statement = StatementId::new("statement-1").expect("valid");
    let agent = ClientId::new("agent-1").expect("valid");
    let server = ServerId::new("server-1").expect("valid");
    let hash = |text: &str| SecretHash(text.to_owned());
    let url = "https://auth.example/.well-known/jwks.json".to_owned();
    let grant = Grant {
        scopes: [Scope::Read, Scope::Admin].into_iter().collect::<Scopes>(),
        owner: Some(Owner::new("ann").expect("valid")),
    };
    let mapping = |server, internal: &str| DnsMapping {
        server,
        names: DnsNames { internal: internal.to_owned(), external: Some("vdi7.example".to_owned()) },
    };
    let deed = Deed {
        actor: Actor::Client(client.clone()),
        from: "10.0.0.9".to_owned(),
        action: "openServers".to_owned(),
        target: "server-1".to_owned(),
        request_id: "request-2".to_owned(),
        via: ReplicaId(1),
    };
    let auth_server = AuthServer {
        url: url.clone(),
        algorithms: vec![SignatureAlgorithm::RS256, SignatureAlgorithm::EdDSA],
        issuer: Some("https://auth.example".to_owned()),
        audience: Some("berth".to_owned()),
        token_type: Some("at+jwt".to_owned()),
        scope: Some("sessions".to_owned()),
        keys_pem: Some("pem".to_owned()),
        ca_pem: Some("ca".to_owned()),
    };
    let other_url = "https://other.example/.well-known/jwks.json".to_owned();
    let other_server = AuthServer { url: other_url.clone(), ..auth_server.clone() };
    vec![
        (
            "register-another-client",
            Command::RegisterClient { id: client.clone(), name: "p".to_owned(), secret: hash("$1"), grant },
        ),
        ("rotate-secret", Command::RotateSecret { id: client.clone(), secret: hash("$2"), old_for: Millis(60_000) }),
        ("grant-client", Command::GrantClient { id: client.clone(), grant: Grant::default() }),
        (
            "rotate-key",
            Command::RotateKey {
                id: KeyId::new("key-2").expect("valid"),
                purpose: KeyPurpose::AccessToken,
                sealed: vec![4, 5, 6],
                old_for: Millis(60_000),
                replaces: KeyId::new("key-1").expect("valid"),
            },
        ),
        ("issue-statement", Command::IssueStatement { id: statement.clone() }),
        (
            "enrol-agent",
            Command::EnrolAgent { id: agent.clone(), name: "vdi7".to_owned(), server, statement: statement.clone() },
        ),
        ("deactivate-statement", Command::DeactivateStatement { id: statement }),
        ("unregister-agent", Command::UnregisterAgent { id: agent }),
        ("register-auth-server", Command::RegisterAuthServer { server: auth_server, replace: false }),
        ("register-another-auth-server", Command::RegisterAuthServer { server: other_server, replace: true }),
        ("unregister-auth-server", Command::UnregisterAuthServer { url: other_url }),
        (
            "map-servers",
            Command::MapServers {
                mappings: vec![
                    mapping(ServerName::Ip("10.0.0.7".to_owned()), "a.example"),
                    mapping(ServerName::Id("server-1".to_owned()), "b.example"),
                    mapping(ServerName::Ec2InstanceId("i".to_owned()), "c.example"),
                ],
                replace: true,
            },
        ),
        (
            "spend-token",
            Command::SpendToken { id: TokenId::new("t-1").expect("valid"), until: Timestamp(1_800_000_000_000) },
        ),
        (
            "audited",
            Command::Audited {
                deed: deed.clone(),
                result: None,
                commands: vec![Command::OpenServer {
                    id: ServerId::new("server-1").expect("valid"),
                    client: client.clone(),
                }],
                refused_before: 2,
            },
        ),
        (
            "noted",
            Command::Audited {
                deed,
                result: Some("refused: no token".to_owned()),
                commands: Vec::new(),
                refused_before: 0,
            },
        ),
        ("certify-gateway", certify("gw-1", 1)),
        ("certify-another-gateway", certify("gw-2", 2)),
        (
            "revoke-gateway-certificate",
            Command::RevokeGateway { gateway: gateway("gw-1"), certificate: Some(Digest([1; 32])) },
        ),
        ("certify-gateway-anew", certify("gw-1", 3)),
        ("revoke-gateway", Command::RevokeGateway { gateway: gateway("gw-2"), certificate: None }),
    ]
}

/// What the commands make of an empty fleet.
fn fleet() -> Fleet {
    let mut fleet = Fleet::default();
    for (number, (name, command)) in commands().into_iter().enumerate() {
        let number = number as u64;
        let stamp = Stamp { index: LogIndex(number + 1), at: Timestamp(1_700_000_000_000 + number) };
        fleet.advance(stamp);
        let outcome = fleet.apply(stamp, command).outcome;
        match outcome {
            Outcome::Refused(Refusal::OtherInstance) => assert_eq!(name, "connect-agent-of-a-copy"),
            Outcome::Refused(refusal) => panic!("{name}: {refusal}"),
            _ => {}
        }
    }
    fleet
}

fn image(fleet: &Fleet) -> Vec<u8> {
    let mut bytes = Vec::new();
    fleet.write_image(&mut bytes).expect("memory");
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("memory");
        text
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/domain-v1.txt")
}

#[test]
fn golden_bytes_of_version_1_are_written_and_read() {
    let mut current: Vec<(&str, Vec<u8>)> =
        commands().iter().map(|(name, command)| (*name, encode_command(command).expect("small"))).collect();
    assert!(fleet().journal().horizon().is_some(), "the snapshot holds everything that it can hold");
    current.push(("image", image(&fleet())));
    if std::env::var_os("BERTH_WRITE_GOLDEN").is_some() {
        let lines: Vec<String> = current.iter().map(|(name, bytes)| format!("{name} {}", hex(bytes))).collect();
        let text = lines.join("\n") + "\n";
        std::fs::write(path(), text).expect("writable");
    }
    let stored = std::fs::read_to_string(path()).expect("the fixture is there");
    let stored: BTreeMap<&str, Vec<u8>> =
        stored.lines().filter_map(|line| line.split_once(' ')).map(|(name, hex)| (name, bytes(hex))).collect();
    assert_eq!(stored.len(), current.len());
    for (name, bytes) in &current {
        assert!(stored[name] == *bytes, "{name} is written as other bytes than before");
    }
    for (name, command) in commands() {
        assert_eq!(decode_command(&stored[name]).expect("readable"), command, "{name} is read as something else");
    }
    let read = Fleet::read_image(&mut stored["image"].as_slice()).expect("readable");
    assert!(read == fleet(), "the snapshot is read as something else");
}

#[test]
fn a_newer_version_is_refused_with_what_to_do() {
    let mut bytes = encode_command(&commands()[0].1).expect("small");
    bytes[1] = 2;
    let error = decode_command(&bytes).expect_err("newer").to_string();
    assert_eq!(error, "version 2 of Command is newer than this build can read; run the version that wrote it");
    bytes[0] = b'I';
    assert!(decode_command(&bytes).expect_err("another kind").to_string().contains("expected a Command"));
}
