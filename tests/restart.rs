//! What is left of a broker and its agents after they ended, gently or not.
#![allow(clippy::unwrap_used)]

mod common;

use common::agent::Agent;
use common::api::Api;
use common::broker::Broker;
use common::process::Process;
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_is_there_after_a_gentle_end() {
    survives(Signal::TERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_acknowledged_is_there_after_kill_9() {
    survives(Signal::KILL).await;
}

async fn survives(by: Signal) {
    let mut broker = Broker::start_to_be_restarted().await;
    let credentials = broker.register("before").await;
    let leaver = broker.register("leaver").await;
    let api = Api::connect(&broker.url(), &broker.ca_path(), &credentials).await;
    let leaver_api = Api::connect(&broker.url(), &broker.ca_path(), &leaver).await;
    broker.clients_command(&["unregister", "--client-id", &leaver.id]).await.unwrap();
    let mut open = Agent::simulated(&broker, "");
    let mut closed = Agent::simulated(&broker, "");
    let (open_id, closed_id) = (open.linked().await, closed.linked().await);

    let ready = api.create_on(&open_id, "ann").await;
    let deleted = api.create_on(&open_id, "bob").await;
    for id in [&ready, &deleted] {
        api.session_in_state(id, "READY").await;
    }
    api.delete(&deleted, "bob").await;
    api.session_in_state(&deleted, "DELETED").await;
    let answer = api.call("closeServers", json!([{ "ServerId": closed_id }])).await;
    assert_eq!(answer["SuccessfulList"][0]["ServerId"], closed_id.as_str(), "{answer}");
    // Acknowledged a moment before the end, and waiting for a server that does not exist.
    let waiting = json!({
        "Name": "later", "Owner": "carl", "Type": "VIRTUAL",
        "Requirements": "tag:pool = 'future'", "EnqueueRequest": true
    });
    let waiting = api.create(waiting).await;
    let before = api.session(&ready).await.unwrap();

    for _ in 0..2 {
        broker.restart(by).await;
        // The same client, with the token it has.
        let api = Api { url: broker.url(), ..api.clone() };
        let after = api.session_in_state(&ready, "READY").await;
        assert_eq!(after["CreationTime"], before["CreationTime"]);
        assert_eq!(api.session(&deleted).await.unwrap()["State"], "DELETED");
        let queued = api.session(&waiting).await.unwrap();
        assert_eq!((&queued["State"], &queued["Substate"]), (&json!("CREATING"), &json!("SESSION_PLACING")));
        api.server_available(&open_id).await;
        let server = api.server(&closed_id).await.unwrap();
        assert_eq!(server["UnavailabilityReason"], "SERVER_CLOSED");
        assert_eq!(api.session(&ready).await.unwrap()["State"], "READY", "its agent came back with it");

        // A new token for the old client, none for the one that left.
        Api::connect(&broker.url(), &broker.ca_path(), &credentials).await;
        let (status, body) = leaver_api.send(Method::POST, "/describeSessions", &json!({})).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
        let listed = broker.clients_command(&["list"]).await.unwrap();
        assert!(listed.contains(&credentials.id) && listed.contains(&leaver.id), "{listed}");
    }

    // What waited is placed when its server comes.
    let future = Agent::simulated(&broker, "");
    std::fs::write(future.folder.path().join("tags/pool.toml"), "pool = 'future'").unwrap();
    api.session_in_state(&waiting, "READY").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gentle_end_is_a_success_and_says_goodbye_to_agents() {
    let mut broker = Broker::start().await;
    let mut peer = common::peer::Peer::join(&broker, "guest", Vec::new()).await;
    broker.process.signal(Signal::TERM);
    let (code, reason) = peer.closed().await;
    assert_eq!(code, berth::protocol::close::GOING_AWAY, "{reason}");
    drop(peer);
    let status = broker.process.ended().await;
    assert!(status.success(), "{status}");
    assert!(!broker.data_folder().join("admin.sock").exists(), "the operators' socket is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_broker_on_the_same_folder_does_not_start_and_says_why() {
    let broker = Broker::start().await;
    let mut command = common::process::berth();
    command.args(["serve", "--clients-listen", "127.0.0.1:0", "--agents-listen", "127.0.0.1:0", "--data-folder"]);
    command.arg(broker.data_folder());
    let mut second = Process::start(command);
    let status = second.ended().await;
    assert!(!status.success());
    let said = second.stderr();
    assert!(said.contains("berth: ") && said.contains(&broker.data_folder().display().to_string()), "{said}");
    assert!(said.contains("another process") || said.contains("in use"), "{said}");
    // The first goes on.
    broker.api().await.call("describeSessions", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_broker_on_the_same_port_does_not_start_and_says_which() {
    let broker = Broker::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut command = common::process::berth();
    let address = broker.clients.to_string();
    command.args(["serve", "--clients-listen", &address, "--agents-listen", "127.0.0.1:0", "--data-folder"]);
    command.arg(folder.path());
    let mut second = Process::start(command);
    assert!(!second.ended().await.success());
    let said = second.stderr();
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_stops_the_start_with_the_name_of_the_file() {
    // Files that are there after a start, and what is done to them.
    let damages: [(&str, Damage); 6] = [
        ("replica/log/db", |bytes| flip_records(bytes)),
        ("replica/log/db", cut_in_half),
        ("replica/format", |bytes| *bytes = b"format 99".to_vec()),
        ("cluster.key", |bytes| bytes.truncate(3)),
        ("tls/ca.pem", |bytes| *bytes = b"no certificate".to_vec()),
        ("tls/ca.key", |bytes| *bytes = b"no key".to_vec()),
    ];
    for (name, damage) in damages {
        let mut broker = Broker::start().await;
        let api = broker.api().await;
        let _agent = common::peer::Peer::join(&broker, "host", vec![common::peer::reported("s", "ann")]).await;
        api.session_in_state("s", "READY").await;
        broker.process.stop(Signal::KILL).await;
        let path = broker.data_folder().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();

        // Not even the second attempt passes over it.
        for _ in 0..2 {
            broker.process = Process::start(broker.command());
            let status = broker.process.ended().await;
            assert!(!status.success(), "{name}: it started");
            let said = broker.process.stderr();
            let folder = path.parent().unwrap().display().to_string();
            assert!(said.contains(&folder), "{name}: {said}");
            assert!(!said.contains("panicked"), "{name}: {said}");
        }
    }
}

/// Fields of an answer, to be compared with another one.
async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Option<String>, String) {
    let answer = request.send().await.unwrap();
    let replayed = answer.headers().get("idempotency-replayed").map(|value| value.to_str().unwrap().to_owned());
    (answer.status(), replayed, answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_repeated_after_kill_9_is_done_once() {
    let mut broker = Broker::start_to_be_restarted().await;
    let mut api = broker.api().await;
    let item = |name: &str| {
        let requirements = "tag:pool = 'future'";
        json!({ "Name": name, "Owner": "ann", "Type": "VIRTUAL", "Requirements": requirements, "EnqueueRequest": true })
    };
    let mut refused = item("refused");
    refused["EnqueueRequest"] = json!(false);
    let body = json!([item("first"), refused, item("second")]);
    let create = |api: &Api, body: &Value| {
        api.request(Method::POST, "/createSessions").header("Idempotency-Key", "\"night shift\"").json(body)
    };
    let first = answer(create(&api, &body)).await;
    assert_eq!((first.0, &first.1), (StatusCode::OK, &None), "{first:?}");
    assert!(first.2.contains("no dcv server found for placement"), "{first:?}");
    for _ in 0..2 {
        broker.restart(Signal::KILL).await;
        api.url = broker.url();
        let again = answer(create(&api, &body)).await;
        assert_eq!(again, (StatusCode::OK, Some("true".to_owned()), first.2.clone()));
        let other = answer(create(&api, &json!([item("third")]))).await;
        assert_eq!(other.0, StatusCode::UNPROCESSABLE_ENTITY, "{other:?}");
    }
    let sessions = api.call("describeSessions", json!({})).await;
    assert_eq!(sessions["Sessions"].as_array().unwrap().len(), 2, "{sessions}");
}

type Damage = fn(&mut Vec<u8>);

/// Turns over a byte in the middle of each kilobyte that holds any.
fn flip_records(bytes: &mut [u8]) {
    for block in bytes.chunks_mut(1024).filter(|block| block.iter().any(|byte| *byte != 0)) {
        let middle = block.len() / 2;
        block[middle] ^= 0xff;
    }
}

/// Keeps the first half of what was written; the rest of the file is room.
fn cut_in_half(bytes: &mut Vec<u8>) {
    let written = bytes.iter().rposition(|byte| *byte != 0).expect("something was written");
    bytes.truncate(written / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_comes_back_as_the_same_server() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut agent = Agent::simulated(&broker, "");
    let server = agent.linked().await;
    let id = api.create_on(&server, "ann").await;
    api.session_in_state(&id, "READY").await;
    agent.restart(Signal::KILL).await;
    assert_eq!(agent.linked().await, server);
    // Simulated desktops end with their agent.
    let session = api.session_in_state(&id, "DELETED").await;
    assert_eq!(session["StateReason"], "it is no longer on its server");
    let another = api.create_on(&server, "ann").await;
    api.session_in_state(&another, "READY").await;
    let servers = api.call("describeServers", json!({})).await;
    assert_eq!(servers["Servers"].as_array().unwrap().len(), 1, "{servers}");
}
