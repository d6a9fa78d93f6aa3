//! Agents that know several brokers: they get through whichever of them is
//! gone or hangs, and move on when the one they are connected to falls silent.
//!
//! The brokers here are gates before one and the same broker, which can be
//! shut in the ways in which hosts and networks fail.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use berth::agent::brokers::Address;
use berth::agent::config::DesktopKind;
use berth::agent::{self, Config};
use common::broker::Broker;
use common::{DEADLINE, until};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// What comes is passed on.
    Open,
    /// Connections stand, new ones too, and nothing passes: the host hangs, or
    /// vanished from the network.
    Frozen,
    /// Connections break, new ones at once: the process is gone.
    Shut,
}

/// Passes connections on to a broker, as long as it is open.
struct Gate {
    address: SocketAddr,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

impl Gate {
    async fn before(broker: SocketAddr, state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = watch::Sender::new(state);
        let states = state.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                tokio::spawn(pass(near, broker, states.subscribe()));
            }
        });
        Self { address, state, accepting }
    }

    fn set(&self, state: State) {
        self.state.send_replace(state);
    }

    fn as_broker(&self) -> Address {
        Address::parse(&self.address.to_string(), 1).unwrap()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(near: TcpStream, broker: SocketAddr, mut state: watch::Receiver<State>) {
    let mut shut = state.clone();
    let passing = async move {
        if state.wait_for(|state| *state == State::Open).await.is_err() {
            return;
        }
        let far = TcpStream::connect(broker).await.unwrap();
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        tokio::select! {
            () = copy(near_read, far_write, state.clone()) => {}
            () = copy(far_read, near_write, state) => {}
        }
    };
    tokio::select! {
        () = passing => {}
        _ = shut.wait_for(|state| *state == State::Shut) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if state.wait_for(|state| *state == State::Open).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// An agent with simulated desktops in this process.
struct Agent {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), agent::Error>>,
    folder: tempfile::TempDir,
}

impl Agent {
    fn start(broker: &Broker, brokers: Vec<Address>, create_delay_ms: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config {
            brokers,
            ca_file: Some(broker.ca_path()),
            desktops: DesktopKind::Simulated,
            broker_update_interval: Duration::from_secs(1),
            max_concurrent_sessions_per_user: None,
            ..Config::new("", &broker.statement_path(), &folder.path().join("data"))
        };
        config.simulated.create_delay_ms = create_delay_ms;
        let shutdown = CancellationToken::new();
        Self { task: tokio::spawn(agent::run(config, shutdown.clone())), shutdown, folder }
    }

    async fn server(&self) -> String {
        let path = self.folder.path().join("data/server-id");
        let read = || std::future::ready(std::fs::read_to_string(&path).ok().filter(|id| !id.is_empty()));
        until("the agent has an id", read).await.trim().to_owned()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(DEADLINE, self.task).await.expect("the agent did not end").unwrap().unwrap();
    }
}

async fn server(api: &common::api::Api, id: &str) -> Option<Value> {
    let (_, mut answer) = api.send(Method::GET, &format!("/v1/servers?ServerId={id}"), &json!({})).await;
    answer["Servers"].as_array_mut().unwrap().pop()
}

/// Waits until a server is linked by a connection after this one; its number.
async fn linked_after(api: &common::api::Api, id: &str, epoch: u64) -> u64 {
    until(&format!("{id} is linked again"), || async {
        let server = server(api, id).await?;
        let now = server["AgentEpoch"].as_u64().unwrap();
        (server["Link"] == "UP" && now > epoch).then_some(now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_get_through_wherever_in_their_order_a_broker_is_gone_or_hangs() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let hanging = Gate::before(broker.agents, State::Frozen).await;
    let failing = Gate::before(broker.agents, State::Shut).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let named = Address { host: "localhost".to_owned(), port: broker.agents.port() };
    let gone = Address::parse(&gone.to_string(), 1).unwrap();
    let nowhere = Address::parse("no-such-host.invalid", 1).unwrap();
    // Each server has an order of its own: with so many of them each broker is
    // the first of some.
    let mut agents = Vec::new();
    for _ in 0..8 {
        let brokers = vec![hanging.as_broker(), named.clone(), failing.as_broker(), gone.clone(), nowhere.clone()];
        agents.push(Agent::start(&broker, brokers, 0));
    }
    for agent in &agents {
        linked_after(&api, &agent.server().await, 0).await;
    }
    for agent in agents {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_broker_vanishes_is_soon_elsewhere_and_nothing_is_lost() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let first = Gate::before(broker.agents, State::Open).await;
    let second = Gate::before(broker.agents, State::Frozen).await;
    let agent = Agent::start(&broker, vec![first.as_broker(), second.as_broker()], 1_500);
    let id = agent.server().await;
    let epoch = linked_after(&api, &id, 0).await;

    // It makes a session, which takes a while, and its answer gets nowhere: not
    // a byte passes, and no connection breaks.
    let session = api.create_on(&id, "ann").await;
    first.set(State::Frozen);
    second.set(State::Open);
    let epoch = linked_after(&api, &id, epoch).await;
    api.session_in_state(&session, "READY").await;

    // The other way round, and this time the connection breaks.
    first.set(State::Open);
    second.set(State::Shut);
    linked_after(&api, &id, epoch).await;
    let another = api.create_on(&id, "ann").await;
    api.session_in_state(&another, "READY").await;
    assert_eq!(api.session(&session).await.unwrap()["State"], "READY");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_how_long_2000_agents_take_to_return_at_once() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let gate = Gate::before(broker.agents, State::Open).await;
    let agents: Vec<Agent> = (0..2_000).map(|_| Agent::start(&broker, vec![gate.as_broker()], 0)).collect();
    let count_up = async |after: u64| {
        let mut token = String::new();
        let mut count = 0;
        loop {
            let path = format!("/v1/servers?Link=UP&NextToken={token}");
            let (_, answer) = api.send(Method::GET, &path, &json!({})).await;
            let servers = answer["Servers"].as_array().unwrap();
            count += servers.iter().filter(|server| server["AgentEpoch"].as_u64() > Some(after)).count();
            let Some(next) = answer["NextToken"].as_str() else { return count };
            next.clone_into(&mut token);
        }
    };
    for after in [0, 2_000] {
        let started = std::time::Instant::now();
        until("all agents are linked", || async { (count_up(after).await == agents.len()).then_some(()) }).await;
        println!("{} agents linked after {} ms", agents.len(), started.elapsed().as_millis());
        gate.set(State::Shut);
        until("none is linked", || async { (count_up(0).await == 0).then_some(()) }).await;
        gate.set(State::Open);
    }
    for agent in &agents {
        agent.shutdown.cancel();
    }
    for agent in agents {
        agent.stop().await;
    }
}
