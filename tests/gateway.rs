//! The gateways' port as a gateway meets it: who is let in, and where sessions
//! are said to be.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use berth::broker::tls::authority::{AGENT_VALIDITY, Request};
use berth::broker::tls::{Pki, Subject};
use berth::domain::ClientId;
use berth::domain::audit::Digest;
use berth::domain::gateway::GatewayName;
use berth::domain::host::{Endpoint, EndpointProtocol, HostFacts};
use berth::domain::report::{EndedSession, Inventory};
use berth::protocol::{FromAgent, FromBroker};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use reqwest::{Method, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use common::agent::Agent;
use common::broker::Broker;
use common::peer::{Peer, hello, reported};
use common::replicas::{Replica, Replicas};
use common::{DEADLINE, until};

const ENABLED: &str = "[gateway]\nenabled = true\nlisten = '127.0.0.1:0'\n";
const NOT_RESOLVED: &str = "The requested combination of transport and sessionId does not exist";

const REVOKED: &str = "the certificate was revoked or has ended, or this cluster does not know it; \
                       make another one with `berth tls gateway-certificate`";

type Holder = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// A broker with a port for gateways.
async fn broker_with(configuration: &str) -> (Broker, SocketAddr) {
    let mut broker = Broker::start_with(&format!("{ENABLED}{configuration}")).await;
    let record = broker.process.log_record("broker serves").await;
    let address = record["fields"]["gateways"].as_str().expect("the port's address").parse().unwrap();
    (broker, address)
}

/// A gateway that trusts the broker's authority.
struct Gateway {
    client: reqwest::Client,
    url: String,
}

impl Gateway {
    fn new(broker: &Broker, address: SocketAddr, holder: Option<Holder>) -> Self {
        Self::with(&broker.ca_path(), address, holder)
    }

    fn with(ca_path: &Path, address: SocketAddr, holder: Option<Holder>) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca_path).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let config = match holder {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        };
        let builder = reqwest::Client::builder().tls_backend_preconfigured(config).no_proxy().timeout(DEADLINE);
        Self { client: builder.build().unwrap(), url: format!("https://localhost:{}", address.port()) }
    }

    async fn call(&self, method: Method, path: &str) -> Result<(StatusCode, Value), reqwest::Error> {
        let answer = self.client.request(method, format!("{}{path}", self.url)).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    async fn resolve(&self, query: &str) -> (StatusCode, Value) {
        self.call(Method::POST, &format!("/resolveSession?{query}")).await.unwrap()
    }

    async fn is_let_in(&self) -> bool {
        self.call(Method::GET, "/health").await.is_ok()
    }
}

/// Key and certificate that the operator makes for a gateway.
async fn credentials(broker: &Broker, name: &str) -> Holder {
    let folder = broker.folder.path().join(name);
    let arguments = ["tls", "gateway-certificate", "--name", name, "--out-folder", folder.to_str().unwrap()];
    broker.operate(&arguments).await.unwrap();
    credentials_in(&folder)
}

fn credentials_in(folder: &Path) -> Holder {
    let certificate = CertificateDer::from_pem_file(folder.join("dcv_gateway_cert.pem")).unwrap();
    (certificate, PrivateKeyDer::from_pem_file(folder.join("dcv_gateway_key.pem")).unwrap())
}

fn http(port: u16, ip: Option<&str>, path: Option<&str>) -> Endpoint {
    let (ip, web_url_path) = (ip.map(str::to_owned), path.map(str::to_owned));
    Endpoint { ip, port, web_url_path, protocol: EndpointProtocol::Http }
}

fn quic(port: u16) -> Endpoint {
    Endpoint { ip: None, port, web_url_path: None, protocol: EndpointProtocol::Quic }
}

/// A host with one session of Ann's, which listens as is said.
async fn host(broker: &Broker, server: &str, session: &str, facts: impl FnOnce(&mut HostFacts)) -> Peer {
    let mut peer = Peer::connect(broker, server).await;
    let mut hello = hello(server, vec![reported(session, "ann")]);
    facts(hello.report.facts.as_mut().unwrap());
    peer.say(&FromAgent::Hello(hello)).await;
    peer.hear("welcome", |message| matches!(message, FromBroker::Welcome { .. })).await;
    peer
}

fn not_resolved() -> (StatusCode, Value) {
    (StatusCode::NOT_FOUND, json!({ "error": NOT_RESOLVED }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_asks_too_often_waits_and_others_go_on() {
    let limited = "require_client_certificate = false\n[limits]\nrequests_per_second = 1\n";
    let (broker, address) = broker_with(limited).await;
    let [busy, other] = ["127.0.0.1", "127.0.0.3"].map(|from| {
        let from: std::net::IpAddr = from.parse().unwrap();
        let builder = reqwest::Client::builder().tls_backend_preconfigured(broker.tls(&[])).no_proxy();
        let client = builder.local_address(from).timeout(DEADLINE).build().unwrap();
        Gateway { client, url: format!("https://127.0.0.1:{}", address.port()) }
    });
    let refused = until("too many were asked", || async {
        let answer = busy.client.post(format!("{}/resolveSession?sessionId=s&transport=HTTP", busy.url));
        let answer = answer.send().await.unwrap();
        (answer.status() == StatusCode::TOO_MANY_REQUESTS).then_some(answer)
    })
    .await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body, json!({ "error": "too many requests of this address; 1 per second are allowed" }));
    assert_eq!(other.resolve("sessionId=s&transport=HTTP").await, not_resolved());
    for _ in 0..30 {
        assert!(busy.is_let_in().await, "who looks whether it lives is not counted");
    }
    until("it may ask again", || async {
        (busy.resolve("sessionId=s&transport=HTTP").await == not_resolved()).then_some(())
    })
    .await;
    until("the audit tells who was refused", || async {
        let records = broker.operate(&["audit", "export"]).await.unwrap();
        records.contains("refused: too many requests of this address").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_told_where_a_session_is() {
    let (broker, address) = broker_with("").await;
    let gateway = Gateway::new(&broker, address, Some(credentials(&broker, "gw-1").await));
    assert_eq!(gateway.call(Method::GET, "/health").await.unwrap(), (StatusCode::OK, json!({ "status": "ok" })));

    let mut named = host(&broker, "named", "desk-1", |facts| {
        facts.dns_name = Some("vdi1.example".to_owned());
        facts.endpoints = vec![quic(8444), http(8443, Some("10.0.0.7"), Some("/desks"))];
    })
    .await;
    let found = |transport: &str, name: &str, port: u16| json!({ "SessionId": "desk-1", "TransportProtocol": transport, "DcvServerEndpoint": name, "Port": port });
    let mut over_http = found("HTTP", "vdi1.example", 8443);
    over_http["WebUrlPath"] = json!("/desks");
    let answer = gateway.resolve("sessionId=desk-1&transport=HTTP&clientIpAddress=198.51.100.7").await;
    assert_eq!(answer, (StatusCode::OK, over_http.clone()));
    assert_eq!(gateway.resolve("sessionId=desk-1&transport=quic").await.1, found("QUIC", "vdi1.example", 8444));

    // Without a name it is the address, of the endpoint or else of the server.
    let unnamed = [(Some("10.0.0.8"), "10.0.0.8"), (None, "127.0.0.1"), (Some("0.0.0.0"), "127.0.0.1")];
    let mut peers = Vec::new();
    for (number, (ip, expected)) in unnamed.into_iter().enumerate() {
        let session = format!("plain-{number}");
        let listens = |facts: &mut HostFacts| facts.endpoints = vec![http(9443, ip, None)];
        peers.push(host(&broker, &format!("host-{number}"), &session, listens).await);
        let (status, answer) = gateway.resolve(&format!("sessionId={session}&transport=HTTP")).await;
        assert_eq!((status, &answer["DcvServerEndpoint"]), (StatusCode::OK, &json!(expected)), "{answer}");
        assert_eq!((&answer["Port"], answer.get("WebUrlPath")), (&json!(9443), None), "{answer}");
        // That server does not speak QUIC.
        assert_eq!(gateway.resolve(&format!("sessionId={session}&transport=QUIC")).await, not_resolved());
    }

    // What the operator says goes before what the server says.
    let file = broker.folder.path().join("mappings.json");
    let mapping = |kind: &str, id: &str, name: &str| json!({ "ServerIdType": kind, "ServerId": id, "DnsNames": { "InternalDnsName": name } });
    std::fs::write(&file, json!([mapping("Id", "named", "front.example")]).to_string()).unwrap();
    let register = ["register-server-dns-mappings", "--file-path", file.to_str().unwrap()];
    broker.operate(&register).await.unwrap();
    over_http["DcvServerEndpoint"] = json!("front.example");
    assert_eq!(gateway.resolve("sessionId=desk-1&transport=HTTP").await.1, over_http);

    assert_eq!(gateway.resolve("sessionId=nobody&transport=HTTP").await, not_resolved());
    let gone = vec![EndedSession { id: reported("desk-1", "ann").id, reason: None }];
    named.report_sessions(1, Inventory::Changes { changed: Vec::new(), gone }).await;
    assert_eq!(broker.api().await.session("desk-1").await.unwrap()["State"], "DELETED");
    assert_eq!(gateway.resolve("sessionId=desk-1&transport=HTTP").await, not_resolved());

    for (query, says) in [
        ("transport=HTTP", "sessionId is missing"),
        ("sessionId=desk-1", "transport must be HTTP or QUIC"),
        ("sessionId=desk-1&transport=TCP", "transport must be HTTP or QUIC"),
        ("sessionId=a&sessionId=b&transport=HTTP", "sessionId is given twice"),
        ("sessionId=%&transport=HTTP", "the query is not form-encoded"),
    ] {
        assert_eq!(gateway.resolve(query).await, (StatusCode::BAD_REQUEST, json!({ "error": says })), "{query}");
    }
    assert_eq!(gateway.call(Method::GET, "/resolveSession").await.unwrap().0, StatusCode::METHOD_NOT_ALLOWED);
    for path in ["/describeSessions", "/oauth2/token", "/agent/validate-authentication-token"] {
        let answer = gateway.call(Method::POST, path).await.unwrap();
        assert_eq!(answer, (StatusCode::NOT_FOUND, json!({ "error": "there is nothing here" })), "{path}");
    }
    drop(peers);

    let records = until("the questions in the audit", || async {
        let text = broker.operate(&["audit", "export"]).await.unwrap();
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let asked: Vec<Value> = records.into_iter().filter(|record| record["action"] == "resolveSession").collect();
        asked.iter().any(|record| record["target"] == "nobody").then_some(asked)
    })
    .await;
    let first = records.iter().find(|record| record["target"] == "desk-1 198.51.100.7").unwrap();
    assert_eq!((&first["actor"], &first["from"]), (&json!("gateway gw-1"), &json!("127.0.0.1")));
    assert_eq!(first["result"], "is at vdi1.example:8443");
    let refused = records.iter().find(|record| record["target"] == "nobody").unwrap();
    assert_eq!(refused["result"], "refused: there is no such session, or not with this transport");
    assert!(broker.operate(&["audit", "verify"]).await.unwrap().contains("are as they were written"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_server_listens_nowhere_is_not_resolved() {
    let (broker, address) = broker_with("").await;
    let gateway = Gateway::new(&broker, address, Some(credentials(&broker, "gw").await));
    let mut agent = Agent::simulated(&broker, "");
    let (api, server) = (broker.api().await, agent.linked().await);
    api.server_available(&server).await;
    let session = api.create_on(&server, "ann").await;
    api.session_in_state(&session, "READY").await;
    for transport in ["HTTP", "QUIC"] {
        let query = format!("sessionId={session}&transport={transport}");
        assert_eq!(gateway.resolve(&query).await, not_resolved(), "simulated desktops cannot be reached");
    }
}

/// An authority that the broker knows nothing of, and a certificate by it.
fn foreign(name: &str) -> (String, Holder) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "another authority");
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (pem, (certificate.der().clone(), PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap()))
}

/// A certificate of the broker's authority that was not given out by it.
fn by_authority(data_folder: &Path, subject: &Subject) -> Holder {
    let pki = Pki::open(&data_folder.join("tls"), &[]).unwrap();
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap();
    let request = Request::read(request.der()).unwrap();
    let signed = pki.authority().sign_client(&request, subject, SystemTime::now(), AGENT_VALIDITY).unwrap();
    (signed.certificate, PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_gateways_with_a_certificate_of_the_authority_get_in() {
    let (broker, address) = broker_with("").await;
    let with = |holder| Gateway::new(&broker, address, holder);
    let good = with(Some(credentials(&broker, "gw").await));
    assert!(good.is_let_in().await, "so that the rest proves something");
    assert!(!with(None).is_let_in().await);
    let (_, stranger) = foreign("gw");
    assert!(!with(Some(stranger)).is_let_in().await);
    let agent = Subject::Agent(ClientId::new("0191e1a2-6c1d-7aa2-bb1c-a8f2a4d9b1c3").unwrap());
    let agent = with(Some(by_authority(&broker.data_folder(), &agent)));
    let refused = agent.resolve("sessionId=s&transport=HTTP").await;
    assert_eq!(refused, (StatusCode::FORBIDDEN, json!({ "error": "the certificate is no gateway's" })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_certificate_was_revoked_stays_out_everywhere() {
    let mut replicas = Replicas::with(3, "gateway.enabled = true\ngateway.listen = '127.0.0.1:0'\n");
    replicas.all.iter_mut().for_each(Replica::start);
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for replica in &mut replicas.all {
        let record = replica.process().log_record("broker serves").await;
        addresses.push(record["fields"]["gateways"].as_str().expect("the port's address").parse().unwrap());
    }
    let [first, second, third] = &replicas.all[..] else { unreachable!("three of them") };
    let place = tempfile::tempdir().unwrap();
    let certified = async |by: &Replica, name: &str, folder: &str| {
        let folder = place.path().join(folder);
        let arguments = ["tls", "gateway-certificate", "--name", name, "--out-folder", folder.to_str().unwrap()];
        by.operator(&arguments).await.unwrap();
        credentials_in(&folder)
    };
    let digest = |holder: &Holder| Digest::of(&holder.0).to_string();
    let listed = async |at: &Replica| {
        let text = at.operator(&["gateways", "list", "--json"]).await.unwrap();
        let known: Vec<Value> = serde_json::from_str(&text).unwrap();
        let of = |known: &Value| {
            assert!(known["until"].as_u64() > known["signed_at"].as_u64(), "{known}");
            format!("{} {}", known["name"].as_str().unwrap(), known["certificate"].as_str().unwrap())
        };
        known.iter().map(of).collect::<BTreeSet<_>>()
    };
    // Two that overlap, as when a new one is brought, and one of another gateway.
    let [old, new] = [certified(first, "gw-1", "old").await, certified(second, "gw-1", "new").await];
    let other = certified(third, "gw-2", "other").await;
    // Each keeps its connections, to all replicas.
    let gateways = |holder: &Holder| -> Vec<Gateway> {
        let with = |(replica, address): (&Replica, &SocketAddr)| {
            let holder = Some((holder.0.clone(), holder.1.clone_key()));
            Gateway::with(&replica.ca_path(), *address, holder)
        };
        replicas.all.iter().zip(&addresses).map(with).collect()
    };
    let [by_old, by_new, by_other] = [gateways(&old), gateways(&new), gateways(&other)];
    let answers = async |gateways: &[Gateway]| {
        let mut answers = BTreeSet::new();
        for gateway in gateways {
            let (status, answer) = gateway.resolve("sessionId=s&transport=HTTP").await;
            answers.insert(format!("{status}: {}", answer["error"].as_str().unwrap()));
        }
        answers
    };
    // One that has no contact with the others for a moment answers by what it knows.
    let all_say = async |what: &str, gateways: &[Gateway], wanted: &BTreeSet<String>| {
        until(what, async || (answers(gateways).await == *wanted).then_some(())).await;
    };
    let let_in = BTreeSet::from([format!("404 Not Found: {NOT_RESOLVED}")]);
    let out = BTreeSet::from([format!("403 Forbidden: {REVOKED}")]);
    for gateways in [&by_old, &by_new, &by_other] {
        all_say("all are let in", gateways, &let_in).await;
    }
    let left = BTreeSet::from([format!("gw-2 {}", digest(&other))]);
    let all = [&old, &new].map(|holder| format!("gw-1 {}", digest(holder))).into_iter().chain(left.clone()).collect();
    until("all are listed", async || (listed(first).await == all).then_some(())).await;

    let revoke = ["gateways", "revoke", "--name", "gw-1"];
    // As it is printed by openssl.
    let digest_of_old = digest(&old);
    let pairs: Vec<_> = digest_of_old.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect();
    let fingerprint = pairs.join(":").to_ascii_uppercase();
    let of_old = [&revoke[..], &["--certificate", &fingerprint]].concat();
    third.operator(&of_old).await.unwrap();
    all_say("that certificate is out", &by_old, &out).await;
    assert_eq!(answers(&by_new).await, let_in, "that one is good");
    let refused = third.operator(&of_old).await.unwrap_err();
    assert!(refused.contains("there is no such certificate of that gateway"), "{refused}");

    second.operator(&revoke).await.unwrap();
    all_say("that gateway is out", &by_new, &out).await;
    assert_eq!(answers(&by_other).await, let_in);
    until("the others know it", async || (listed(first).await == left).then_some(())).await;
    for wrong in [["--name", "gw 1"], ["--name", "gw-3"]] {
        third.operator(&[&["gateways", "revoke"], &wrong[..]].concat()).await.unwrap_err();
    }
    third.operator(&[&revoke[..], &["--certificate", "abc"]].concat()).await.unwrap_err();
    // With another certificate it is let in again.
    let again = gateways(&certified(first, "gw-1", "again").await);
    all_say("with a new one it is in", &again, &let_in).await;
    let audit = second.operator(&["audit", "export"]).await.unwrap();
    let deeds: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = |target: String| deeds.iter().any(|deed| deed["action"] == "revoke-gateway" && deed["target"] == target);
    assert!(told(format!("gw-1, SHA-256 {digest_of_old}")) && told("gw-1".to_owned()), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_the_cluster_did_not_give_out_is_good_for_nothing() {
    let (broker, address) = broker_with("").await;
    let gateway = Subject::Gateway(GatewayName::new("gw").unwrap());
    let signed = Gateway::new(&broker, address, Some(by_authority(&broker.data_folder(), &gateway)));
    let (status, answer) = signed.resolve("nonsense").await;
    assert_eq!(status, StatusCode::FORBIDDEN, "before anything that it says is looked at: {answer}");
    assert!(answer["error"].as_str().unwrap().contains("this cluster does not know it"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_is_trusted_where_the_operator_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("authorities.pem");
    let (pem, holder) = foreign("front-door");
    std::fs::write(&file, pem).unwrap();
    let (broker, address) = broker_with(&format!("trust_file = '{}'\n", file.display())).await;
    let gateway = Gateway::new(&broker, address, Some(holder));
    assert_eq!(gateway.resolve("sessionId=s&transport=HTTP").await, not_resolved());
    let own = credentials(&broker, "gw").await;
    assert!(!Gateway::new(&broker, address, Some(own)).is_let_in().await, "that authority and no other");
    let found = until("the question in the audit", || async {
        let text = broker.operate(&["audit", "export"]).await.unwrap();
        text.contains(r#""actor":"gateway CN=front-door""#).then_some(text)
    });
    found.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_balancer_nobody_shows_a_certificate() {
    let (broker, address) = broker_with("require_client_certificate = false\n").await;
    let gateway = Gateway::new(&broker, address, None);
    assert!(gateway.is_let_in().await);
    let _peer = host(&broker, "named", "desk-1", |facts| facts.endpoints = vec![http(8443, None, None)]).await;
    let (status, answer) = gateway.resolve("sessionId=desk-1&transport=HTTP").await;
    assert_eq!((status, &answer["Port"]), (StatusCode::OK, &json!(8443)));
}
