//! Stable ids of servers: an agent keeps its own whatever changes around it,
//! and of two agents with one id the first stays.
#![allow(clippy::unwrap_used)]

mod common;

use berth::domain::AgentInstance;
use berth::domain::instruction::Answer;
use berth::protocol::{CLONED_REASON, FromAgent, close};
use common::agent::{self, Agent};
use common::broker::Broker;
use common::peer::{Peer, hello, reported};
use common::process::Process;
use rustix::process::Signal;
use serde_json::{Value, json};

/// A connection of another agent, which said hello with the id of a server.
async fn copy_of(broker: &Broker, server: &str) -> Peer {
    let mut peer = Peer::connect(broker, server).await;
    let mut greeting = hello(server, Vec::new());
    greeting.instance = AgentInstance::new("run of a copy").unwrap();
    peer.say(&FromAgent::Hello(greeting)).await;
    peer
}

const CONTESTED: &str = "another agent with this server's id was refused: a copied host, unless this one is gone";

async fn server_ids(api: &common::api::Api) -> Vec<String> {
    let answer = api.call("describeServers", json!({})).await;
    let servers = answer["Servers"].as_array().unwrap();
    servers.iter().map(|server| server["Id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_agent_with_the_id_of_a_connected_server_is_refused_and_disturbs_nothing() {
    let mut broker = Broker::start().await;
    let api = broker.api().await;
    let mut first = Peer::join(&broker, "one", vec![reported("desk", "ann")]).await;
    let refused = async {
        for _ in 0..3 {
            let mut copy = copy_of(&broker, "one").await;
            assert_eq!(copy.closed().await, (close::CLONED, CLONED_REASON.to_owned()));
        }
    };
    tokio::select! {
        () = refused => {}
        // Answers pings meanwhile.
        message = first.hear("nothing in particular", |_| false) => unreachable!("{message:?}"),
    }
    // It answers still, and the instructions are its own.
    first.ping().await;
    api.server_available("one").await;
    assert_eq!(api.session("desk").await.unwrap()["State"], "READY");
    let id = api.create_on("one", "bob").await;
    let (epoch, instruction) = first.instruction().await;
    assert_eq!((epoch, instruction.action.session().as_str()), (first.epoch, &*id));
    first.settle(instruction.id, Answer::Done).await;
    api.session_in_state(&id, "READY").await;

    // Told once, by the connection that stands; the refused ones are no news.
    let told = broker.process.log_record(CONTESTED).await;
    assert_eq!(told["fields"]["server"], "one");
    assert_eq!(broker.process.log_records(CONTESTED).len(), 1);
    let endings = broker.process.log_records("agent connection ends");
    assert!(endings.is_empty(), "{endings:?}");

    // Without a connection that stands it is refused as well, because it has
    // none of the desktops. Another run of the first agent has them.
    first.leave().await;
    api.server_unreachable("one").await;
    let mut copy = copy_of(&broker, "one").await;
    assert_eq!(copy.closed().await, (close::CLONED, CLONED_REASON.to_owned()));
    let mut first = Peer::connect(&broker, "one").await;
    let mut greeting = hello("one", vec![reported("desk", "ann")]);
    greeting.instance = AgentInstance::new("next run").unwrap();
    first.say(&FromAgent::Hello(greeting)).await;
    first.ping().await;
    api.server_available("one").await;
    assert_eq!(api.session("desk").await.unwrap()["State"], "READY");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_answer_when_another_comes_makes_room_for_it() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    // As a host without power: the connection stands, nobody answers.
    let mut first = Peer::join(&broker, "one", Vec::new()).await;
    let mut second = copy_of(&broker, "one").await;
    assert_eq!(second.closed().await.0, close::CLONED);

    let (code, reason) = first.closed().await;
    let expected = "another agent came for this server, and this one did not answer";
    assert_eq!((code, reason.as_str()), (close::SILENT, expected));
    api.server_unreachable("one").await;
    let mut second = copy_of(&broker, "one").await;
    second.ping().await;
    api.server_available("one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_of_a_copied_host_is_told_what_to_do_and_becomes_a_server_of_its_own() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut original = Agent::simulated(&broker, "");
    let server = original.linked().await;
    let session = api.create_on(&server, "ann").await;
    api.session_in_state(&session, "READY").await;

    let mut copy = original.on_a_copy();
    let id_file = copy.folder.path().join("data/server-id");
    assert!(id_file.exists(), "there is no copy of the id");
    let refusal = |line: &str| line.contains("another agent uses the id of this server").then(|| line.to_owned());
    let said = copy.process.stderr_line("what to do", refusal).await;
    for words in ["ERROR", CLONED_REASON, "delete", "data/server-id", "restart"] {
        assert!(said.contains(words), "no {words} in: {said}");
    }
    // It tries on, and says no more of it.
    let again = |line: &str| line.contains("still no link to the broker").then_some(());
    copy.process.stderr_line("another attempt", again).await;
    assert_eq!(copy.process.stderr().lines().filter_map(refusal).count(), 1);
    let log = std::fs::read_to_string(copy.folder.path().join("log/agent.log")).unwrap();
    assert!(log.contains("another agent uses the id of this server"), "{log}");

    // The original has heard nothing of it, and its session goes on.
    assert_eq!(server_ids(&api).await, std::slice::from_ref(&server));
    assert_eq!(api.session(&session).await.unwrap()["State"], "READY");
    assert!(!original.process.stderr().contains("no link to the broker"));

    std::fs::remove_file(id_file).unwrap();
    copy.restart(Signal::TERM).await;
    let own = copy.linked().await;
    assert_ne!(own, server);
    api.server_available(&own).await;
    let mut expected = [own.clone(), server.clone()];
    expected.sort();
    assert_eq!(server_ids(&api).await, expected);
    assert_eq!(api.session(&session).await.unwrap()["State"], "READY");
    let on_copy = api.create_on(&own, "bob").await;
    api.session_in_state(&on_copy, "READY").await;
    assert!(!original.process.stderr().contains("no link to the broker"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_keeps_its_id_when_its_address_and_name_change() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let before = "advertise_ip = '10.0.0.7'\n[simulated]\nhostname = 'before'";
    let mut agent = Agent::simulated(&broker, before);
    let server = agent.linked().await;
    let named =
        |name: &'static str, ip: &'static str| move |server: &Value| server["Hostname"] == name && server["Ip"] == ip;
    api.server_when(&server, "as configured", named("before", "10.0.0.7")).await;

    let file = agent.folder.path().join("agent.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("10.0.0.7", "10.9.9.9").replace("'before'", "'after'")).unwrap();
    agent.restart(Signal::TERM).await;
    assert_eq!(agent.linked().await, server);
    api.server_when(&server, "as configured anew", named("after", "10.9.9.9")).await;
    assert_eq!(server_ids(&api).await, [server]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_same_data_folder_does_not_start_and_says_why() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut first = Agent::simulated(&broker, "");
    let server = first.linked().await;
    let mut second = Process::start(agent::another(first.folder.path()));
    assert!(!second.ended().await.success());
    let said = second.stderr();
    let folder = first.folder.path().join("data").display().to_string();
    assert!(said.contains("another agent uses") && said.contains(&folder), "{said}");
    api.server_available(&server).await;
}
