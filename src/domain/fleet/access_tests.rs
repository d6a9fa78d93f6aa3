//! Tests of `access.rs` and `audited.rs`.

use crate::domain::audit::{Actor, Deed, Digest, verify};
use crate::domain::auth_server::{AUTH_SERVERS_MAX, AuthServer};
use crate::domain::client::{AGENT_CLIENTS_MAX, AgentClient, Grant, STATEMENTS_MAX, Scopes, SecretHash};
use crate::domain::command::{Command, Outcome, Refusal};
use crate::domain::dns::{DnsMapping, DnsNames, ServerName};
use crate::domain::event::Event;
use crate::domain::fleet::Stamp;
use crate::domain::gateway::{GATEWAY_CERTIFICATES_MAX, GatewayCertificate, GatewayName};
use crate::domain::ids::{AgentInstance, IdempotencyKey};
use crate::domain::ids::{ClientId, KeyId, LogIndex, ReplicaId, ServerId, StatementId, TokenId};
use crate::domain::key::{KeyPurpose, RETIRED_MAX};
use crate::domain::report::Report;
use crate::domain::request::Fingerprint;
use crate::domain::time::{Millis, Timestamp};
use crate::domain::{Fleet, Owner};

/// A fleet whose log goes on by a millisecond with each command.
#[derive(Default)]
struct Log {
    fleet: Fleet,
    at: u64,
}

impl Log {
    fn run(&mut self, command: Command) -> Outcome {
        self.run_at(self.at + 1, command)
    }

    fn run_at(&mut self, at: u64, command: Command) -> Outcome {
        self.at = at;
        let stamp = Stamp { index: LogIndex(at), at: Timestamp(at) };
        self.fleet.advance(stamp);
        self.fleet.apply(stamp, command).outcome
    }
}

fn client(id: &str) -> ClientId {
    ClientId::new(id).expect("valid")
}

fn statement(id: &str) -> StatementId {
    StatementId::new(id).expect("valid")
}

fn server(id: &str) -> ServerId {
    ServerId::new(id).expect("valid")
}

fn key(id: &str) -> KeyId {
    KeyId::new(id).expect("valid")
}

fn hash(text: &str) -> SecretHash {
    SecretHash(text.to_owned())
}

fn register(id: &str) -> Command {
    Command::RegisterClient { id: client(id), name: "n".to_owned(), secret: hash("one"), grant: Grant::default() }
}

#[test]
fn two_secrets_are_good_while_one_takes_the_place_of_the_other() {
    let mut log = Log::default();
    log.run(register("c"));
    let rotate = |secret: &str, old_for| Command::RotateSecret { id: client("c"), secret: hash(secret), old_for };
    assert_eq!(log.run_at(10, rotate("two", Millis(100))), Outcome::Done);
    let good = |log: &Log, at| -> Vec<String> {
        log.fleet.client(&client("c")).expect("there").secrets(Timestamp(at)).map(|hash| hash.0.clone()).collect()
    };
    assert_eq!(good(&log, 109), ["two", "one"]);
    assert_eq!(good(&log, 110), ["two"]);
    assert_eq!(log.run_at(20, rotate("two", Millis(100))), Outcome::Done, "the same again changes nothing");
    assert_eq!(good(&log, 109), ["two", "one"]);
    assert_eq!(log.run_at(30, rotate("three", Millis(0))), Outcome::Done);
    assert_eq!(good(&log, 30), ["three"], "nothing is kept when nothing is to be kept");
    log.run(Command::DeactivateClient { id: client("c") });
    assert_eq!(log.run(rotate("four", Millis(1))), Outcome::Refused(Refusal::UnknownClient));
    assert_eq!(log.run(rotate("x", Millis(1))), Outcome::Refused(Refusal::UnknownClient));
}

#[test]
fn what_a_client_may_do_can_be_changed() {
    let mut log = Log::default();
    log.run(register("c"));
    let grant = Grant { scopes: Scopes::NONE, owner: Some(Owner::new("ann").expect("valid")) };
    let command = |id: &str| Command::GrantClient { id: client(id), grant: grant.clone() };
    assert_eq!(log.run(command("c")), Outcome::Done);
    assert_eq!(log.fleet.client(&client("c")).expect("there").grant, grant);
    assert_eq!(log.run(command("nobody")), Outcome::Refused(Refusal::UnknownClient));
}

#[test]
fn a_key_takes_the_place_of_the_one_it_knows_and_few_are_kept() {
    let mut log = Log::default();
    let purpose = KeyPurpose::AccessToken;
    log.run(Command::InstallKey { id: key("k0"), purpose, sealed: vec![0] });
    let rotate = |from: &str, to: &str, old_for| Command::RotateKey {
        id: key(to),
        purpose,
        sealed: vec![1],
        old_for,
        replaces: key(from),
    };
    assert_eq!(log.run_at(100, rotate("k0", "k1", Millis(50))), Outcome::Done);
    assert_eq!(log.run(rotate("k0", "k1", Millis(50))), Outcome::Done, "its answer may have been lost");
    assert_eq!(log.run(rotate("k0", "k2", Millis(50))), Outcome::Refused(Refusal::KeyReplaced));
    assert_eq!(log.fleet.retired_key(&key("k0")).map(|old| old.until), Some(Timestamp(150)));
    assert_eq!(log.run_at(200, rotate("k1", "k2", Millis(0))), Outcome::Done);
    assert!(log.fleet.retired_key(&key("k1")).is_none(), "it is good no longer");
    log.run(rotate("k2", "k3", Millis(10_000)));
    assert!(log.fleet.retired_key(&key("k2")).is_some());
    log.run(rotate("k3", "k4", Millis(0)));
    assert_eq!(log.fleet.retired_keys().count(), 0, "and those before it neither");
    for number in 4..10 {
        log.run(rotate(&format!("k{number}"), &format!("k{}", number + 1), Millis(10_000)));
    }
    let kept: Vec<_> = log.fleet.retired_keys().map(|old| old.key.id.as_str()).collect();
    assert_eq!(kept, ["k6", "k7", "k8", "k9"]);
    assert_eq!(kept.len(), RETIRED_MAX);
}

fn enrol(id: &str, at: &str, with: &str) -> Command {
    Command::EnrolAgent { id: client(id), name: "host".to_owned(), server: server(at), statement: statement(with) }
}

#[test]
fn an_agent_enrols_with_an_active_statement_and_a_server_is_nobody_elses() {
    let mut log = Log::default();
    assert_eq!(log.run(enrol("a", "s", "t")), Outcome::Refused(Refusal::UnknownStatement), "none is good by default");
    log.run(Command::IssueStatement { id: statement("t") });
    assert_eq!(log.run(enrol("a", "s", "t")), Outcome::Done);
    assert_eq!(log.run(enrol("a", "s", "t")), Outcome::Done, "its answer may have been lost");
    assert_eq!(log.run(enrol("a", "other", "t")), Outcome::Refused(Refusal::UnknownAgent));
    assert_eq!(log.run(enrol("b", "s", "t")), Outcome::Refused(Refusal::ServerEnrolled(client("a"))));
    assert_eq!(log.fleet.agent_of(&server("s")).map(|agent| agent.id.clone()), Some(client("a")));
    log.run(Command::DeactivateStatement { id: statement("t") });
    assert_eq!(log.run(enrol("c", "s2", "t")), Outcome::Refused(Refusal::UnknownStatement));
    assert!(log.fleet.agent_client(&client("a")).is_some_and(|agent| agent.active), "who is in stays in");

    assert_eq!(log.run(Command::UnregisterAgent { id: client("a") }), Outcome::Done);
    assert_eq!(log.run(enrol("a", "s", "t")), Outcome::Refused(Refusal::UnknownAgent), "out is out");
    assert!(log.fleet.agent_of(&server("s")).is_none());
    log.run(Command::IssueStatement { id: statement("t2") });
    assert_eq!(log.run(enrol("b", "s", "t2")), Outcome::Done, "the place is free again");
    assert_eq!(log.run(Command::UnregisterAgent { id: client("x") }), Outcome::Refused(Refusal::UnknownAgent));
}

#[test]
fn agents_that_are_gone_make_room_for_others() {
    let mut log = Log::default();
    let connect = |at: &str| Command::ConnectAgent {
        server: server(at),
        instance: AgentInstance::new("run").expect("valid"),
        via: ReplicaId(1),
        report_interval: Millis(1_000),
        report: Report::default(),
    };
    log.run(Command::IssueStatement { id: statement("t") });
    for (id, at) in [("gone", "s1"), ("stays", "s2"), ("never-came", "s3")] {
        log.run(enrol(id, at, "t"));
    }
    for at in ["s1", "s2"] {
        log.run(connect(at));
    }
    let idle = |log: &Log| log.fleet.access.idle.iter().map(|(_, id)| id.to_string()).collect::<Vec<_>>();
    assert_eq!(idle(&log), ["never-came"]);
    log.run(Command::UnregisterAgent { id: client("gone") });
    assert_eq!(idle(&log), ["gone", "never-came"], "the oldest first");
    log.run(connect("s3"));
    assert_eq!(idle(&log), ["gone"]);
    let mut image = Vec::new();
    log.fleet.write_image(&mut image).expect("written");
    assert_eq!(Fleet::read_image(&mut &image[..]).expect("read"), log.fleet, "a snapshot knows the same");

    // As many as there can be, all of the others with a server.
    let access = std::sync::Arc::make_mut(&mut log.fleet.access);
    let others = (access.agents.len()..AGENT_CLIENTS_MAX).map(|number| {
        std::sync::Arc::new(AgentClient {
            id: client(&format!("a{number}")),
            name: String::new(),
            server: server(&format!("h{number}")),
            statement: statement("t"),
            active: true,
            enrolled_at: Timestamp(1),
        })
    });
    *access = std::mem::take(access).with_agents(others, |_| true);
    assert_eq!(log.run(enrol("new", "s4", "t")), Outcome::Done);
    assert!(log.fleet.agent_client(&client("gone")).is_none());
    assert_eq!(log.fleet.agent_clients().count(), AGENT_CLIENTS_MAX);
    assert_eq!(log.run(enrol("newer", "s5", "t")), Outcome::Done, "the new one has not come yet");
    log.run(connect("s5"));
    assert_eq!(log.run(enrol("newest", "s6", "t")), Outcome::Refused(Refusal::TooMany));
}

fn gateway(name: &str) -> GatewayName {
    GatewayName::new(name).expect("valid")
}

fn certify(name: &str, certificate: u8, until: u64) -> Command {
    Command::CertifyGateway { gateway: gateway(name), certificate: Digest([certificate; 32]), until: Timestamp(until) }
}

/// Certificates of gateways: whose, and the first byte of each.
fn certificates(log: &Log) -> Vec<(&str, u8)> {
    log.fleet.gateway_certificates().map(|known| (known.gateway.as_str(), known.digest.0[0])).collect()
}

#[test]
fn a_gateway_has_the_certificates_that_it_was_given_until_they_are_revoked() {
    let mut log = Log::default();
    let revoke = |name: &str, certificate: Option<u8>| Command::RevokeGateway {
        gateway: gateway(name),
        certificate: certificate.map(|byte| Digest([byte; 32])),
    };
    let unknown = Outcome::Refused(Refusal::UnknownGateway);
    assert_eq!(log.run(revoke("a", None)), unknown);
    for (name, certificate) in [("a", 1), ("a", 2), ("b", 3), ("a", 4)] {
        assert_eq!(log.run(certify(name, certificate, 1_000)), Outcome::Done);
    }
    assert_eq!(log.run(certify("a", 1, 1_000)), Outcome::Done, "its answer may have been lost");
    assert_eq!(certificates(&log), [("a", 1), ("a", 2), ("b", 3), ("a", 4)]);
    let knows = |log: &Log, name, byte: u8| log.fleet.knows_gateway(&gateway(name), Digest([byte; 32]), Timestamp(999));
    assert!(knows(&log, "a", 1) && !knows(&log, "a", 3) && !knows(&log, "b", 1));

    assert!(!log.fleet.knows_gateway(&gateway("a"), Digest([1; 32]), Timestamp(1_000)), "it has ended");
    let ended = certify("a", 9, log.at);
    assert_eq!(log.run(ended), Outcome::Refused(Refusal::Ended));

    assert_eq!(log.run(revoke("a", Some(3))), unknown, "that is another one's");
    assert_eq!(log.run(revoke("a", Some(2))), Outcome::Done);
    assert_eq!(certificates(&log), [("a", 1), ("b", 3), ("a", 4)]);
    let mut image = Vec::new();
    log.fleet.write_image(&mut image).expect("written");
    assert_eq!(Fleet::read_image(&mut &image[..]).expect("read"), log.fleet, "a snapshot knows the same");
    assert_eq!(log.run(revoke("a", None)), Outcome::Done);
    assert_eq!(certificates(&log), [("b", 3)]);
    assert_eq!(log.run(revoke("a", None)), unknown);
    assert_eq!(log.run(certify("a", 5, 1_000)), Outcome::Done, "with a new one it is let in again");
}

#[test]
fn certificates_of_gateways_that_ended_make_room_for_others() {
    let mut log = Log::default();
    for (name, certificate, until) in [("a", 1, 100), ("b", 2, 200)] {
        log.run(certify(name, certificate, until));
    }
    assert_eq!(log.run_at(100, certify("c", 3, 300)), Outcome::Done);
    assert_eq!(certificates(&log), [("b", 2), ("c", 3)]);
    let access = std::sync::Arc::make_mut(&mut log.fleet.access);
    for number in access.gateways.len()..GATEWAY_CERTIFICATES_MAX {
        let (gateway, digest) = (gateway(&format!("g{number}")), Digest::of(&number.to_le_bytes()));
        let known = GatewayCertificate { gateway, digest, signed_at: Timestamp(1), until: Timestamp(300) };
        access.gateways.insert(digest, std::sync::Arc::new(known));
    }
    assert_eq!(log.run(certify("d", 4, 300)), Outcome::Refused(Refusal::TooMany));
    assert_eq!(log.run_at(200, certify("d", 4, 300)), Outcome::Done, "that of b has ended");
    assert_eq!(log.fleet.gateway_certificates().count(), GATEWAY_CERTIFICATES_MAX);
}

#[test]
fn active_statements_are_bounded_and_inactive_ones_do_not_count() {
    let mut log = Log::default();
    for number in 0..STATEMENTS_MAX {
        assert_eq!(log.run(Command::IssueStatement { id: statement(&number.to_string()) }), Outcome::Done);
    }
    let more = Command::IssueStatement { id: statement("more") };
    assert_eq!(log.run(more.clone()), Outcome::Refused(Refusal::TooMany));
    log.run(Command::DeactivateStatement { id: statement("7") });
    assert_eq!(log.run(more), Outcome::Done);
}

#[test]
fn authorization_servers_are_bounded_and_the_same_again_is_no_error() {
    let mut log = Log::default();
    let named = |number: usize| AuthServer {
        url: format!("https://{number}/.well-known/jwks.json"),
        algorithms: Vec::new(),
        issuer: None,
        audience: None,
        token_type: None,
        scope: None,
        keys_pem: None,
        ca_pem: None,
    };
    let register = |server, replace| Command::RegisterAuthServer { server, replace };
    for number in 0..AUTH_SERVERS_MAX {
        assert_eq!(log.run(register(named(number), false)), Outcome::Done);
    }
    assert_eq!(log.run(register(named(0), false)), Outcome::Done);
    let changed = AuthServer { issuer: Some("i".to_owned()), ..named(0) };
    assert_eq!(log.run(register(changed.clone(), true)), Outcome::Done);
    assert!(log.fleet.auth_servers().any(|server| **server == changed));
    assert_eq!(log.run(register(named(0), false)), Outcome::Done, "as installers say it again and again");
    assert!(log.fleet.auth_servers().any(|server| **server == changed), "what is demanded stays demanded");
    let other = AuthServer { issuer: Some("j".to_owned()), ..named(0) };
    assert_eq!(log.run(register(other, false)), Outcome::Refused(Refusal::AuthServerKnown));
    assert_eq!(log.run(register(named(99), false)), Outcome::Refused(Refusal::TooMany));
    let unregister = Command::UnregisterAuthServer { url: named(0).url };
    assert_eq!(log.run(unregister.clone()), Outcome::Done);
    assert_eq!(log.run(unregister), Outcome::Refused(Refusal::UnknownAuthServer));
}

#[test]
fn a_server_is_found_by_its_id_before_its_address() {
    let mut log = Log::default();
    let mapping = |server, internal: &str| DnsMapping {
        server,
        names: DnsNames { internal: internal.to_owned(), external: None },
    };
    let connect = Command::ConnectAgent {
        server: server("s"),
        instance: AgentInstance::new("run").expect("valid"),
        via: ReplicaId(1),
        report_interval: Millis(30_000),
        report: Report {
            facts: Some(crate::domain::host::HostFacts { ip: "10.0.0.7".to_owned(), ..Default::default() }),
            ..Report::default()
        },
    };
    log.run(connect);
    let name = |log: &Log| {
        let server = log.fleet.server(&server("s")).expect("there").clone();
        log.fleet.names_of(&server).map(|names| names.internal.clone())
    };
    assert_eq!(name(&log), None);
    let map = |mappings, replace| Command::MapServers { mappings, replace };
    log.run(map(vec![mapping(ServerName::Ip("10.0.0.7".to_owned()), "by-ip")], false));
    assert_eq!(name(&log).as_deref(), Some("by-ip"));
    log.run(map(vec![mapping(ServerName::Id("s".to_owned()), "by-id")], false));
    assert_eq!(name(&log).as_deref(), Some("by-id"));
    log.run(map(Vec::new(), true));
    assert_eq!(name(&log), None);
}

#[test]
fn a_token_is_good_once_and_forgotten_when_it_would_have_expired() {
    let mut log = Log::default();
    let spend = |id: &str, until| Command::SpendToken { id: TokenId::new(id).expect("valid"), until: Timestamp(until) };
    assert_eq!(log.run_at(1, spend("a", 100)), Outcome::Done);
    assert_eq!(log.run_at(2, spend("a", 100)), Outcome::Refused(Refusal::TokenSpent));
    assert_eq!(log.run_at(50, spend("b", 200)), Outcome::Done);
    assert_eq!(log.fleet.access.spent.iter().count(), 2);
    assert_eq!(log.run_at(150, spend("c", 300)), Outcome::Done);
    assert_eq!(log.fleet.access.spent.iter().count(), 2, "the first is forgotten");
}

fn deed(target: &str) -> Deed {
    Deed {
        actor: Actor::Operator,
        from: "local".to_owned(),
        action: "test".to_owned(),
        target: target.to_owned(),
        request_id: String::new(),
        via: ReplicaId(1),
    }
}

#[test]
fn what_is_audited_is_done_and_recorded_with_what_came_of_it() {
    let mut log = Log::default();
    let audited = |result: Option<&str>, commands| Command::Audited {
        deed: deed("t"),
        result: result.map(str::to_owned),
        commands,
        refused_before: 0,
    };
    let deactivate = Command::DeactivateClient { id: client("nobody") };
    assert_eq!(log.run(audited(None, vec![register("c")])), Outcome::Audited(vec![Outcome::Done]));
    assert!(log.fleet.client(&client("c")).is_some());
    let refused = Outcome::Refused(Refusal::UnknownClient);
    assert_eq!(log.run(audited(None, vec![deactivate.clone()])), Outcome::Audited(vec![refused.clone()]));
    assert_eq!(
        log.run(audited(None, vec![register("d"), deactivate.clone()])),
        Outcome::Audited(vec![Outcome::Done, refused])
    );
    assert_eq!(log.run(audited(Some("no token"), Vec::new())), Outcome::Audited(Vec::new()));
    let nested = audited(None, Vec::new());
    assert_eq!(log.run(audited(None, vec![nested.clone()])), Outcome::Audited(vec![Outcome::Refused(Refusal::Nested)]));
    let once = Command::Once {
        client: client("c"),
        key: IdempotencyKey::new("k").expect("valid"),
        fingerprint: Fingerprint([1; 32]),
        request_id: "r1".to_owned(),
        commands: vec![deactivate, nested],
    };
    log.run(audited(None, vec![once.clone()]));
    log.run(audited(None, vec![once]));

    let records: Vec<_> = log
        .fleet
        .journal()
        .records()
        .filter_map(|record| match &record.event {
            Event::Audited(record) => Some((**record).clone()),
            _ => None,
        })
        .collect();
    assert_eq!(verify(&records), Ok(Some(log.fleet.audit().clone())));
    let results: Vec<_> = records.iter().map(|record| record.result.as_str()).collect();
    assert_eq!(
        results,
        [
            "done",
            "refused: UNKNOWN_CLIENT",
            "1 done, 1 refused",
            "no token",
            "refused: NESTED",
            "0 done, 2 refused",
            "repeats r1: 0 done, 2 refused",
        ]
    );
}
