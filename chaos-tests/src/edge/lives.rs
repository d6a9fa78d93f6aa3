//! Everything at random: delays, cuts of every kind, deaths of the broker and of
//! desktop hosts, while two clients make and end sessions. In the end everything
//! acknowledged is there once, and all are connected again within a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::FutureExt;
use hyper::Method;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::agents::pause;
use super::caller::{Answer, Caller, created};
use super::net::Cut;
use super::world::{Order, World};
use super::{BROKER, OTHER, PORTAL, Scenario, Shape, desk};

/// How long things break.
const FAULTS_FOR: Duration = Duration::from_mins(1);
/// All is whole again after that.
const WHOLE_WITHIN: Duration = Duration::from_mins(1);
/// The longest pause of a client, and between two faults.
const THINK_MS: u64 = 1_500;
const FAULT_MS: u64 = 4_000;

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "lives",
    shape: Shape { desks: 3, latency_max: Duration::from_millis(150), connections_max: 1_000 },
    portal: |world| portal(world).boxed_local(),
    other: Some(|world| other(world).boxed_local()),
};

/// What a client was told.
#[derive(Debug, Default)]
struct Told {
    /// Acknowledged creations.
    created: BTreeSet<String>,
    /// Deletions that were asked for, acknowledged or not.
    unwanted: BTreeSet<String>,
    /// Acknowledged deletions.
    deleted: BTreeSet<String>,
    calls: u32,
    broken: u32,
}

/// One client's day: sessions are made and ended; without an answer it asks
/// again with the same key.
async fn work(world: &Arc<World>, caller: &Caller, name: &str) -> anyhow::Result<Told> {
    let mut told = Told::default();
    let until = FAULTS_FOR;
    let mut number = 0;
    while world.elapsed() < until {
        pause(world, THINK_MS).await;
        number += 1;
        let key = format!("{name}-{number}");
        let deletes = world.dice.in_thousand(350).then(|| told.created.difference(&told.unwanted).next().cloned());
        let (path, body) = match deletes.flatten() {
            Some(id) => {
                told.unwanted.insert(id.clone());
                ("/deleteSessions", json!([{ "SessionId": id, "Owner": "ann" }]))
            }
            None => ("/createSessions", Caller::wish(&key, None)),
        };
        let headers = [("idempotency-key", key.as_str())];
        // Half of the time it is as impatient as people are.
        let answer = loop {
            told.calls += 1;
            let calling = caller.call(Method::POST, path, &headers, &body);
            let limit = if world.dice.in_thousand(500) { 2_000 } else { 60_000 };
            match tokio::time::timeout(Duration::from_millis(limit), calling).await {
                Ok(Answer::Whole(answer)) if answer.status == 200 => break Some(answer),
                Ok(Answer::Whole(answer)) => {
                    ensure!(matches!(answer.status, 409 | 503), "{path}: {answer:?}");
                }
                Ok(Answer::Broken(_)) | Err(_) => told.broken += 1,
            }
            if world.elapsed() > until + WHOLE_WITHIN {
                break None;
            }
            sleep(Duration::from_millis(200 + world.dice.below(800))).await;
        };
        let answer = answer.with_context(|| format!("{path} is not answered a minute after the last fault"))?;
        if path == "/createSessions" {
            // Nobody may have taken it: then it was refused, and is told so.
            told.created.extend(created(&answer).ok());
        } else if let Some(id) = answer.body["SuccessfulList"][0]["SessionId"].as_str() {
            told.deleted.insert(id.to_owned());
        }
    }
    Ok(told)
}

async fn other(world: Arc<World>) -> anyhow::Result<()> {
    let caller = Caller::new(&world, OTHER, true);
    let told = work(&world, &caller, OTHER).await?;
    judge(&world, &caller, &told).await
}

async fn portal(world: Arc<World>) -> anyhow::Result<()> {
    let caller = Caller::new(&world, PORTAL, false);
    let rage = rage(&world);
    let (told, ()) = tokio::join!(work(&world, &caller, PORTAL), rage);
    let told = told?;
    let began = world.elapsed();
    for number in 1..=world.shape.desks {
        let left = WHOLE_WITHIN.saturating_sub(world.elapsed().saturating_sub(began));
        caller.until_available(&desk::name(number), left).await?;
    }
    judge(&world, &caller, &told).await?;
    desktops_are_sessions(&world, &caller).await
}

/// Breaks one thing after the other for a while, then mends all.
async fn rage(world: &Arc<World>) {
    let hosts: Vec<String> = (1..=world.shape.desks).map(desk::name).collect();
    let all: Vec<String> = hosts.iter().cloned().chain([PORTAL.to_owned(), OTHER.to_owned()]).collect();
    let any = |names: &[String]| world.dice.index(names.len()).map(|place| names[place].clone()).unwrap_or_default();
    let mut down = BTreeMap::new();
    sleep(Duration::from_secs(2)).await;
    while world.elapsed() < FAULTS_FOR {
        pause(world, FAULT_MS).await;
        // Those that have been down for long enough.
        let now = world.elapsed();
        let back: Vec<String> =
            down.iter().filter(|(_, until)| **until <= now).map(|(host, _)| String::clone(host)).collect();
        for host in back {
            down.remove(&host);
            world.order(Order::Start(host));
        }
        match world.dice.below(10) {
            0..=4 => world.cut(&any(&all), Cut::ALL[world.dice.index(Cut::ALL.len()).unwrap_or_default()]),
            5 | 6 => world.mend(&any(&all)),
            7 => all.iter().for_each(|host| world.mend(host)),
            kind => {
                let host = if world.dice.in_thousand(500) { BROKER.to_owned() } else { any(&hosts) };
                if down.contains_key(&host) {
                    continue;
                }
                let order = if kind == 8 { Order::Kill } else { Order::CutPower };
                world.order(order(host.clone()));
                down.insert(host, now + Duration::from_millis(500 + world.dice.below(8_000)));
            }
        }
    }
    for host in down.into_keys() {
        world.order(Order::Start(host));
    }
    // They are started after this step.
    sleep(Duration::from_millis(20)).await;
    for host in &all {
        world.mend(host);
    }
    world.note("nothing breaks any more");
}

/// What was acknowledged is there, once.
async fn judge(world: &World, caller: &Caller, told: &Told) -> anyhow::Result<()> {
    world.note(&format!(
        "{} created, {} deleted; {} calls, {} of them broken",
        told.created.len(),
        told.deleted.len(),
        told.calls,
        told.broken
    ));
    ensure!(told.calls > 10, "only {} calls", told.calls);
    let sessions = caller.sessions().await?;
    let mut states: BTreeMap<&str, &str> = BTreeMap::new();
    let mut names = BTreeSet::new();
    for [id, name, state, _] in &sessions {
        ensure!(states.insert(id, state).is_none(), "{id} is listed twice");
        ensure!(names.insert(name), "{name} was asked for once, and was made twice");
    }
    for id in &told.created {
        ensure!(states.contains_key(id.as_str()), "{id} was acknowledged, and is not there");
    }
    for id in &told.deleted {
        let state = states.get(id.as_str());
        ensure!(matches!(state, Some(&"DELETED" | &"DELETING" | &"UNKNOWN")), "{id} was deleted, and is {state:?}");
    }
    Ok(())
}

/// When all has come to rest, desktops are just the sessions that are ready.
async fn desktops_are_sessions(world: &World, caller: &Caller) -> anyhow::Result<()> {
    let limit = Instant::now() + WHOLE_WITHIN;
    loop {
        let sessions = caller.sessions().await?;
        let moves = sessions.iter().find(|[_, _, state, _]| !matches!(state.as_str(), "READY" | "DELETED"));
        let ready: BTreeMap<String, String> = sessions
            .iter()
            .filter(|[_, _, state, _]| state == "READY")
            .map(|[id, _, _, server]| (id.clone(), server.clone()))
            .collect();
        let live: BTreeMap<String, String> =
            world.live().into_iter().map(|(id, host)| (id.to_string(), host)).collect();
        if moves.is_none() && ready == live {
            return Ok(());
        }
        ensure!(Instant::now() < limit, "not at rest: {moves:?}; ready are {ready:?}, desktops run for {live:?}");
        sleep(Duration::from_millis(500)).await;
    }
}
