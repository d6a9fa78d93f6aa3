//! How agents become known to a broker, and who is let in to the agents' port,
//! with the real programs.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::{StatusCode, header};
use berth::agent::enrolment::Enrolment;
use berth::broker::tls::authority::{AGENT_VALIDITY, Request};
use berth::broker::tls::{Pki, Subject};
use berth::domain::gateway::GatewayName;
use berth::domain::{ClientId, ServerId};
use berth::protocol::enrolment::{PATH, REGISTRATION_BYTES_MAX};
use berth::protocol::{FromAgent, close};
use berth::secret::Secret;
use common::agent::Agent;
use common::api::http_client;
use common::broker::Broker;
use common::peer::{Peer, Shown, connect_tls, hello};
use common::replicas::Replicas;
use common::until;
use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

/// Agents as an operator sees them: id and whether each is active.
async fn agents(broker: &Broker) -> Vec<(String, String, bool)> {
    let printed = broker.operate(&["describe-agent-clients"]).await.unwrap();
    let (_, listed) = printed.split_once('\n').unwrap();
    let listed: Vec<Value> = serde_json::from_str(listed).unwrap();
    let text = |agent: &Value, key: &str| agent[key].as_str().unwrap().to_owned();
    listed.iter().map(|agent| (text(agent, "id"), text(agent, "name"), agent["active"] == true)).collect()
}

/// A signed request for a certificate, in PEM.
fn request(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

/// A certificate that the broker's own authority, or another one's, signed for
/// somebody's key.
fn signed(authority: &Path, key: &KeyPair, subject: &Subject, now: SystemTime) -> String {
    let pki = Pki::open(authority, &[]).unwrap();
    let request = Request::read(request(key).as_bytes()).unwrap();
    pki.authority().sign_client(&request, subject, now, AGENT_VALIDITY).unwrap().pem
}

#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesClientCert for One {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn shows(pem: &str, key: &KeyPair) -> Shown {
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    Arc::new(One(Arc::new(CertifiedKey::new(vec![certificate], key))))
}

/// What somebody with this certificate is told who wants to connect.
async fn refused(broker: &Broker, shown: Option<Shown>) -> String {
    match Peer::knock(broker, shown).await {
        Err(Error::Http(answer)) => {
            assert_eq!(answer.status(), 401);
            let body: Value = serde_json::from_slice(answer.body().as_deref().unwrap_or_default()).unwrap();
            body["error"].as_str().unwrap().to_owned()
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("let in"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_enrols_once_and_its_key_is_enough_from_then_on() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    assert!(agents(&broker).await.is_empty());
    let mut agent = Agent::simulated(&broker, "");
    let server = agent.linked().await;
    api.server_available(&server).await;
    let known = agents(&broker).await;
    assert_eq!(known.len(), 1);
    assert!(known[0].1 == "simulated" && known[0].2, "{known:?}");

    // Neither the statement nor the certificate is needed any more.
    broker.operate(&["deactivate-software-statement", "--software-statement", &broker.statement()]).await.unwrap();
    std::fs::remove_file(broker.folder.path().join("software-statement")).unwrap();
    for lost in ["agent.pem", "nothing"] {
        agent.process.stop(Signal::KILL).await;
        let _ = std::fs::remove_file(agent.folder.path().join("data").join(lost));
        agent.start_again();
        assert_eq!(agent.linked().await, server);
        assert_eq!(agents(&broker).await, known, "it is the same agent");
    }

    // Without its id it is a new server, and so it is a new agent: not with that statement.
    std::fs::remove_file(agent.folder.path().join("data/server-id")).unwrap();
    agent.restart(Signal::TERM).await;
    let says = |line: &str| line.contains("cannot read the software statement").then_some(());
    agent.process.stderr_line("that it cannot enrol", says).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_being_enrolled_and_nothing_is_good_by_default() {
    let mut broker = Broker::start().await;
    let printed = broker.operate(&["describe-software-statements"]).await.unwrap();
    assert!(printed.contains("[]"), "{printed}");
    let tls = broker.data_folder().join("tls");
    let (key, now) = (KeyPair::generate().unwrap(), SystemTime::now());
    let stranger = Subject::Agent(ClientId::new("0191e1a2-6c1d-7aa2-bb1c-a8f2a4d9b1c3").unwrap());
    let gateway = Subject::Gateway(GatewayName::new("gw-1").unwrap());
    assert!(refused(&broker, None).await.contains("/agent/enrol"));
    let by_gateway = shows(&signed(&tls, &key, &gateway, now), &key);
    assert_eq!(refused(&broker, Some(by_gateway)).await, "the certificate is no agent's");
    let unknown = shows(&signed(&tls, &key, &stranger, now), &key);
    assert!(refused(&broker, Some(unknown)).await.contains("not known"));
    broker.process.log_record("an agent was refused").await;
    // A certificate of nobody's, and one that has ended, do not even get as far.
    let other = tempfile::tempdir().unwrap();
    let foreign = shows(&signed(other.path(), &key, &stranger, now), &key);
    let ended = shows(&signed(&tls, &key, &stranger, now - Duration::from_hours(25)), &key);
    for shown in [foreign, ended] {
        assert!(!matches!(Peer::knock(&broker, Some(shown)).await, Ok(_) | Err(Error::Http(_))));
    }

    // Its operator is told what to do.
    let mut agent = Agent::strange(&broker, "");
    let says = |line: &str| line.contains("berth generate-software-statement").then(|| line.to_owned());
    let told = agent.process.stderr_line("what to do", says).await;
    assert!(told.contains("software_statement_path"), "{told}");
    // It does so, while the agent goes on trying.
    let configuration = agent.folder.path().join("agent.conf");
    let text = std::fs::read_to_string(&configuration).unwrap();
    let path = format!("[agent]\nsoftware_statement_path = '{}'\n", broker.statement_path().display());
    std::fs::write(&configuration, text.replace("[agent]\n", &path)).unwrap();
    agent.restart(Signal::TERM).await;
    agent.linked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_unregistered_is_cut_off_and_stays_out_until_it_has_another_key() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut agent = Agent::simulated(&broker, "");
    let server = agent.linked().await;
    let known = agents(&broker).await;
    let printed = broker.operate(&["unregister-agent-client", "--client-id", &known[0].0]).await.unwrap();
    assert!(printed.contains("unregistered"), "{printed}");
    api.server_unreachable(&server).await;
    let says = |line: &str| line.contains("an operator unregistered this agent").then_some(());
    agent.process.stderr_line("why", says).await;
    agent.restart(Signal::TERM).await;
    agent.process.stderr_line("why, again", says).await;
    assert!(!agents(&broker).await[0].2);

    agent.process.stop(Signal::TERM).await;
    std::fs::remove_file(agent.folder.path().join("data/agent.key")).unwrap();
    agent.start_again();
    assert_eq!(agent.linked().await, server, "the same server, another agent");
    assert_eq!(agents(&broker).await.iter().filter(|agent| agent.2).count(), 1);
}

/// What it would say is not carried out any more.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_unregistered_after_it_knocked_says_nothing() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut late = Peer::connect(&broker, "late").await;
    let known = agents(&broker).await;
    broker.operate(&["unregister-agent-client", "--client-id", &known[0].0]).await.unwrap();
    late.say(&FromAgent::Hello(hello("late", Vec::new()))).await;
    assert_eq!(late.closed().await.0, close::NOT_ENROLLED);
    let servers = api.call("describeServers", json!({})).await;
    assert_eq!(servers["Servers"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_come_is_given_up() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let broker = Broker::start().await;
    let mut stream = connect_tls(broker.agents, &broker.ca_path(), None).await.unwrap();
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: broker\r\nContent-Length: 100\r\n\r\n{{");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_nobody_elses() {
    let broker = Broker::start().await;
    let _one = Peer::join(&broker, "one", Vec::new()).await;
    let mut liar = Peer::connect(&broker, "two").await;
    liar.say(&FromAgent::Hello(hello("one", Vec::new()))).await;
    assert_eq!(liar.closed().await, (close::NOT_ENROLLED, "this agent enrolled as server two".to_owned()));
    let known = agents(&broker).await;
    let client = http_client(&broker.ca_path()).build().unwrap();
    let body = json!({
        "software_statement": broker.statement(),
        "client_name": "thief",
        "server_id": "one",
        "certificate_request": request(&KeyPair::generate().unwrap()),
    });
    let url = format!("https://127.0.0.1:{}{PATH}", broker.agents.port());
    let answer = client.post(url).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["error"], "invalid_client_metadata");
    let told = answer["error_description"].as_str().unwrap();
    assert!(known.iter().any(|(id, ..)| told.contains(&format!("unregister-agent-client --client-id {id}"))), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_answered_as_the_standard_says() {
    let broker = Broker::start_with("limits.requests_per_second = 0").await;
    let client = http_client(&broker.ca_path()).build().unwrap();
    let url = format!("https://127.0.0.1:{}{PATH}", broker.agents.port());
    let post = async |body: String| {
        let answer =
            client.post(&url).header(header::CONTENT_TYPE, "application/json").body(body).send().await.unwrap();
        let (status, cached) = (answer.status(), answer.headers().get(header::CACHE_CONTROL).cloned());
        let body = answer.text().await.unwrap();
        if status != StatusCode::PAYLOAD_TOO_LARGE {
            assert_eq!(cached.unwrap(), "no-store", "{status} {body}");
        }
        (status, serde_json::from_str::<Value>(&body).unwrap_or(Value::String(body)))
    };
    let (key, statement) = (KeyPair::generate().unwrap(), broker.statement());
    let with = |change: &[(&str, Value)]| {
        let mut body = json!({
            "software_statement": statement,
            "client_name": "host-7",
            "server_id": "desk",
            "certificate_request": request(&key),
            "redirect_uris": ["https://of.no.meaning.here"],
        });
        for (name, value) in change {
            body[*name] = value.clone();
        }
        body.to_string()
    };
    // What was signed is something else.
    let damaged = request(&key).replace("IHNlbGYgc2lnbmVk", "IHNlbGYgc2lnbmVl");
    assert_ne!(damaged, request(&key));
    let inactive = {
        let printed = broker.operate(&["generate-software-statement"]).await.unwrap();
        let text = printed.trim().strip_prefix("software-statement: ").unwrap().to_owned();
        broker.operate(&["deactivate-software-statement", "--software-statement", &text]).await.unwrap();
        text
    };
    let bad = [
        (String::new(), "invalid_client_metadata"),
        ("[]".to_owned(), "invalid_client_metadata"),
        (json!(statement).to_string(), "invalid_client_metadata"),
        (with(&[("server_id", json!(""))]), "invalid_client_metadata"),
        (with(&[("server_id", json!("a\nb"))]), "invalid_client_metadata"),
        (with(&[("client_name", json!("x".repeat(256)))]), "invalid_client_metadata"),
        (with(&[("client_name", json!("a\u{7}"))]), "invalid_client_metadata"),
        (with(&[("certificate_request", json!(""))]), "invalid_client_metadata"),
        (with(&[("certificate_request", json!(damaged))]), "invalid_client_metadata"),
        (with(&[("software_statement", Value::Null)]), "invalid_software_statement"),
        (with(&[("software_statement", json!("e30="))]), "invalid_software_statement"),
        (with(&[("software_statement", json!(format!("{statement}x")))]), "invalid_software_statement"),
        (with(&[("software_statement", json!(inactive))]), "unapproved_software_statement"),
    ];
    for (body, word) in bad {
        let (status, answer) = post(body.clone()).await;
        assert_eq!((status, answer["error"].as_str()), (StatusCode::BAD_REQUEST, Some(word)), "{body} {answer}");
        let told = answer["error_description"].as_str().unwrap();
        assert!(!told.is_empty() && !told.contains(&statement), "{told}");
    }
    let (status, _) = post(with(&[("client_name", json!("x".repeat(REGISTRATION_BYTES_MAX)))])).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(agents(&broker).await.is_empty());

    let (status, first) = post(with(&[])).await;
    assert_eq!(status, StatusCode::CREATED, "{first}");
    let id = first["client_id"].as_str().unwrap();
    assert_eq!(first["tls_client_auth_san_uri"], format!("berth:agent:{id}"));
    assert_eq!(first["token_endpoint_auth_method"], "tls_client_auth");
    assert_eq!((first["client_name"].as_str(), first["server_id"].as_str()), (Some("host-7"), Some("desk")));
    assert!((86_300..=86_400).contains(&first["certificate_expires_in"].as_u64().unwrap()), "{first}");
    let (status, again) = post(with(&[("software_statement", Value::Null)])).await;
    assert_eq!((status, again["client_id"].as_str()), (StatusCode::CREATED, Some(id)), "the key is enough");
    assert_ne!(first["certificate"], again["certificate"]);
    let (status, other) = post(with(&[("server_id", json!("other"))])).await;
    assert_eq!((status, other["error"].as_str()), (StatusCode::BAD_REQUEST, Some("invalid_client_metadata")));
    let shown = shows(again["certificate"].as_str().unwrap(), &key);
    let mut peer = Peer::knock(&broker, Some(shown)).await.unwrap();
    peer.say(&FromAgent::Hello(hello("desk", Vec::new()))).await;
    peer.ping().await;
    broker.operate(&["unregister-agent-client", "--client-id", id]).await.unwrap();
    assert_eq!(peer.closed().await.0, close::NOT_ENROLLED);
    let (status, denied) = post(with(&[])).await;
    assert_eq!((status, denied["error"].as_str()), (StatusCode::FORBIDDEN, Some("access_denied")));

    // All of it is in the audit, but for the statement.
    let audit = until("the audit knows the refusal", async || {
        let printed = broker.operate(&["audit", "export"]).await.unwrap();
        printed.contains("an operator unregistered this agent").then_some(printed)
    })
    .await;
    assert!(audit.contains("agent/enrol") && audit.contains("desk host-7") && audit.contains(id), "{audit}");
    assert!(!audit.contains(&statement));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_address_may_ask_for_is_limited() {
    let broker = Broker::start_with("limits.requests_per_second = 5").await;
    let client = http_client(&broker.ca_path()).build().unwrap();
    for path in [PATH, "/agent/validate-authentication-token"] {
        let url = format!("https://127.0.0.1:{}{path}", broker.agents.port());
        // Each takes a token, and no more than the first few and some a second pass.
        let refused = until("too many are refused", async || {
            let answer = client.post(&url).body("{}").send().await.unwrap();
            (answer.status() == StatusCode::TOO_MANY_REQUESTS).then_some(answer)
        })
        .await;
        assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_while_the_connection_stands_and_replaced_when_it_is_not_taken() {
    let broker = Broker::start().await;
    let mut agent = Agent::simulated(&broker, "");
    let server = agent.linked().await;
    let (id, ..) = agents(&broker).await.remove(0);
    let subject = Subject::Agent(ClientId::new(&id).unwrap());
    let data = agent.folder.path().join("data");
    let key = KeyPair::from_pem(&std::fs::read_to_string(data.join("agent.key")).unwrap()).unwrap();
    agent.process.stop(Signal::TERM).await;

    // One with an hour left.
    let own = broker.data_folder().join("tls");
    let old = signed(&own, &key, &subject, SystemTime::now() - Duration::from_hours(23));
    std::fs::write(data.join("agent.pem"), &old).unwrap();
    let before = broker.process.log_records("agent connected").len();
    agent.start_again();
    let renewed = |line: &str| line.contains("the agent has a new certificate").then_some(());
    agent.process.stderr_line("that it is renewed", renewed).await;
    assert_eq!(agent.linked().await, server);
    until("the file", async || (std::fs::read_to_string(data.join("agent.pem")).unwrap() != old).then_some(())).await;
    assert_eq!(broker.process.log_records("agent connected").len(), before + 1, "the connection stands");
    agent.process.stop(Signal::TERM).await;

    // One of another authority: the broker refuses the connection, and the agent gets another.
    let other = tempfile::tempdir().unwrap();
    std::fs::write(data.join("agent.pem"), signed(other.path(), &key, &subject, SystemTime::now())).unwrap();
    agent.start_again();
    assert_eq!(agent.linked().await, server);
    assert_eq!(agents(&broker).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_authorization_everybody_is_let_in_and_each_start_says_so() {
    let mut broker = Broker::start_with("agents.authorization = false").await;
    for _ in 0..2 {
        assert!(broker.process.stderr().contains("agents.authorization is false"), "{}", broker.process.stderr());
        let mut agent = Agent::strange(&broker, "");
        agent.linked().await;
        broker.restart(Signal::TERM).await;
    }
    // Also who has a certificate of elsewhere, and nothing to get another one with.
    let mut agent = Agent::strange(&broker, "");
    agent.linked().await;
    agent.process.stop(Signal::TERM).await;
    let (data, other, key) =
        (agent.folder.path().join("data"), tempfile::tempdir().unwrap(), KeyPair::generate().unwrap());
    let subject = Subject::Agent(ClientId::new("0191e1a2-6c1d-7aa2-bb1c-a8f2a4d9b1c3").unwrap());
    std::fs::write(data.join("agent.key"), key.serialize_pem()).unwrap();
    std::fs::write(data.join("agent.pem"), signed(other.path(), &key, &subject, SystemTime::now())).unwrap();
    agent.start_again();
    agent.linked().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_decides_holds_on_the_others() {
    let mut replicas = Replicas::started(3).await;
    let statement = replicas.all[0].statement_path();
    let place = tempfile::tempdir().unwrap();
    let server = ServerId::new("wanderer").unwrap();
    let enrolment = Enrolment::open(place.path(), server, "host".to_owned(), Some(statement.clone())).unwrap();
    let stream = connect_tls(replicas.all[0].agents, &replicas.all[0].ca_path(), None).await.unwrap();
    enrolment.enrol(stream, "replica-1").await.unwrap();
    // Once it is known it needs no statement, and others do not lose it.
    let statement_text = Secret::read(&statement).unwrap();
    std::fs::remove_file(&statement).unwrap();
    let stream = connect_tls(replicas.all[1].agents, &replicas.all[1].ca_path(), None).await.unwrap();
    enrolment.enrol(stream, "replica-2").await.unwrap();
    // At once with another one.
    let shown = enrolment.resolver();
    let ca = replicas.all[2].ca_path();
    let mut peer = Peer::knock_at(replicas.all[2].agents, &ca, Some(Arc::clone(&shown))).await.unwrap();
    peer.say(&FromAgent::Hello(hello("wanderer", Vec::new()))).await;
    peer.ping().await;
    let listed = replicas.all[1].operator(&["describe-agent-clients"]).await.unwrap();
    let listed: Vec<Value> = serde_json::from_str(listed.split_once('\n').unwrap().1).unwrap();
    let id = listed[0]["id"].as_str().unwrap();
    replicas.all[1].operator(&["unregister-agent-client", "--client-id", id]).await.unwrap();
    assert_eq!(peer.closed().await.0, close::NOT_ENROLLED);
    for replica in &replicas.all {
        until("it stays out", async || {
            match Peer::knock_at(replica.agents, &replica.ca_path(), Some(Arc::clone(&shown))).await {
                Err(Error::Http(answer)) if answer.status() == 401 => Some(()),
                _ => None,
            }
        })
        .await;
    }
    // Without a majority nobody enrols, and is told when to come again.
    for place in [1, 2] {
        replicas.all[place].stop(Signal::KILL).await;
    }
    let client = http_client(&replicas.all[0].ca_path()).build().unwrap();
    let body = json!({
        "software_statement": statement_text.expose(),
        "server_id": "late",
        "certificate_request": request(&KeyPair::generate().unwrap()),
    });
    let url = format!("https://{}{PATH}", replicas.all[0].agents);
    let answer = client.post(url).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(answer.json::<Value>().await.unwrap()["error"], "temporarily_unavailable");
}
