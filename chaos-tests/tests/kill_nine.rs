//! Kills the broker, and agents with it, at random moments while clients create
//! and delete sessions; what was acknowledged must be so afterwards, and nothing
//! else.
//!
//! `BERTH_KILL_ROUNDS` sets the number of rounds (default 20), `BERTH_SEED`
//! repeats a run's requests and moments as far as processes allow.

#![allow(clippy::print_stdout)] // seeds and results

use std::path::Path;

use anyhow::Context;
use berth_chaos_tests::cluster::Cluster;
use berth_chaos_tests::faults::{Fault, moment};
use berth_chaos_tests::history::{Event, Outcome};
use berth_chaos_tests::process::Program;
use berth_chaos_tests::random::{self, Random, number_from};
use berth_chaos_tests::traffic::{Client, Traffic};

/// Rounds that hit the same cluster one after the other.
const ROUNDS_PER_CLUSTER: u64 = 5;
const AGENTS: usize = 2;
const CLIENTS: usize = 6;
/// Longest time under load before a fault, and after it.
const BEFORE_MS: u64 = 700;
const AFTER_MS: u64 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn killing_at_any_moment_loses_and_doubles_nothing() -> anyhow::Result<()> {
    let rounds = number_from("BERTH_KILL_ROUNDS")?.unwrap_or(20);
    let seed = random::seed()?;
    println!("BERTH_SEED={seed} BERTH_KILL_ROUNDS={rounds}");
    let place = tempfile::tempdir()?;
    let program = Program::take(place.path())?;
    let mut random = Random::new(seed);
    let mut total = Tally::default();
    let mut round = 0;
    while round < rounds {
        let folder = place.path().join(format!("cluster-{round}"));
        let count = ROUNDS_PER_CLUSTER.min(rounds - round);
        match several_rounds(&program, &folder, round, count, &mut random).await {
            Ok(tally) => total.add(&tally),
            Err(error) => {
                let kept = place.keep();
                return Err(error.context(format!(
                    "BERTH_SEED={seed} BERTH_KILL_ROUNDS={rounds}; histories, logs and data are in {}",
                    kept.display()
                )));
            }
        }
        std::fs::remove_dir_all(&folder)?;
        round += count;
    }
    println!("{rounds} rounds: {total:?}, nothing lost, nothing doubled");
    assert!(total.creates > 0 && total.deletes > 0, "nothing was ever acknowledged: {total:?}");
    Ok(())
}

/// Rounds on one cluster in an empty folder.
async fn several_rounds(
    program: &Program,
    folder: &Path,
    first: u64,
    count: u64,
    random: &mut Random,
) -> anyhow::Result<Tally> {
    let mut cluster =
        Cluster::start(program, folder, &folder.join("data"), AGENTS, random).await.context("a new cluster")?;
    let mut clients = (0..CLIENTS)
        .map(|number| {
            let history = std::sync::Arc::clone(cluster.history());
            Ok(Client::new(cluster.client()?, format!("user{number}"), random.fork(), history))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    for round in first..first + count {
        let fault = Fault::draw(random);
        let result = one_round(&mut cluster, clients, fault, random).await;
        clients = match result {
            Ok(clients) => clients,
            Err(error) => {
                let path = folder.join("history.jsonl");
                cluster.history().write(&path)?;
                return Err(error.context(format!("round {round}, {fault:?}, history in {}", path.display())));
            }
        };
        let tally = Tally::of(&cluster.history().events());
        println!("round {round}: {fault:?}; {tally:?}");
    }
    Ok(Tally::of(&cluster.history().events()))
}

async fn one_round(
    cluster: &mut Cluster,
    clients: Vec<Client>,
    fault: Fault,
    random: &mut Random,
) -> anyhow::Result<Vec<Client>> {
    let traffic = Traffic::start(clients);
    moment(random, BEFORE_MS).await;
    fault.strike(cluster, random).await?;
    cluster.serving().await?;
    moment(random, AFTER_MS).await;
    let clients = traffic.stop().await?;
    cluster.rest().await?;
    Ok(clients)
}

/// How much happened.
#[derive(Debug, Default)]
struct Tally {
    /// Acknowledged.
    creates: u64,
    /// Acknowledged.
    deletes: u64,
    refused: u64,
    in_doubt: u64,
    looks: u64,
    broker_kills: u64,
    agent_kills: u64,
}

impl Tally {
    fn of(events: &[Event]) -> Self {
        let mut tally = Self::default();
        for event in events {
            let counter = match event {
                Event::Create { outcome: Outcome::Acknowledged(_), .. } => &mut tally.creates,
                Event::Delete { outcome: Outcome::Acknowledged(()), .. } => &mut tally.deletes,
                Event::Create { outcome: Outcome::Unknown(_), .. }
                | Event::Delete { outcome: Outcome::Unknown(_), .. } => &mut tally.in_doubt,
                Event::Create { .. } | Event::Delete { .. } => &mut tally.refused,
                Event::Look { .. } => &mut tally.looks,
                Event::BrokerKilled { .. } => &mut tally.broker_kills,
                Event::AgentKilled { .. } => &mut tally.agent_kills,
                _ => continue,
            };
            *counter += 1;
        }
        tally
    }

    fn add(&mut self, other: &Self) {
        self.creates += other.creates;
        self.deletes += other.deletes;
        self.refused += other.refused;
        self.in_doubt += other.in_doubt;
        self.looks += other.looks;
        self.broker_kills += other.broker_kills;
        self.agent_kills += other.agent_kills;
    }
}
