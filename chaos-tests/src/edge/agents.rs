//! Scenarios of agents: connections that fall silent, that break in the midst of
//! something, and brokers that die.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use berth::domain::SessionId;
use berth::protocol::SILENCE_MAX;
use futures_util::FutureExt;
use hyper::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::caller::{Answer, Caller};
use super::net::Cut;
use super::world::{Order, World};
use super::{BROKER, Moment, PORTAL, REPORT_INTERVAL, Scenario, Shape, desk};

/// Both sides find out about silence within its limit; and what it takes to see that.
const FOUND_WITHIN: Duration = SILENCE_MAX.saturating_add(Duration::from_millis(500));
/// An agent is back after that: a handshake that hangs, and the longest pause.
pub const BACK_WITHIN: Duration = Duration::from_secs(15);
/// Between two looks at something that tells no one when it changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Writes of an agent up to its hello and a little beyond: two for TLS, one for
/// the upgrade, one for the hello.
const WRITES: u32 = 6;

/// See the module.
pub const SCENARIOS: [Scenario; 7] = [
    one("held", |world| silence(world, Cut::Held).boxed_local()),
    one("lost", |world| silence(world, Cut::Lost).boxed_local()),
    one("lost-to-broker", |world| silence(world, Cut::LostToBroker).boxed_local()),
    one("lost-from-broker", |world| silence(world, Cut::LostFromBroker).boxed_local()),
    one("midst-of-hello", |world| midst_of_hello(world).boxed_local()),
    one("midst-of-word", |world| midst_of_word(world).boxed_local()),
    Scenario {
        name: "death",
        shape: Shape { desks: 6, latency_max: Duration::from_millis(20), connections_max: 1_000 },
        portal: |world| death(world).boxed_local(),
        other: None,
    },
];

const fn one(name: &'static str, portal: super::Script) -> Scenario {
    let shape = Shape { desks: 1, latency_max: Duration::from_millis(20), connections_max: 1_000 };
    Scenario { name, shape, portal, other: None }
}

/// Waits for something that the world knows.
pub async fn until(what: &str, limit: Duration, holds: impl Fn() -> bool) -> anyhow::Result<()> {
    let looking = async {
        while !holds() {
            sleep(LOOK_INTERVAL).await;
        }
    };
    timeout(limit, looking).await.with_context(|| format!("not within {limit:?}: {what}"))
}

/// Some while, at random.
pub async fn pause(world: &World, ms_max: u64) {
    sleep(Duration::from_millis(world.dice.below(ms_max))).await;
}

/// The network between an agent and the broker fails without a word.
async fn silence(world: Arc<World>, cut: Cut) -> anyhow::Result<()> {
    let host = desk::name(1);
    let portal = Caller::new(&world, PORTAL, world.dice.in_thousand(500));
    portal.until_available(&host, BACK_WITHIN).await?;
    let id = portal.session_on(&host).await?;
    pause(&world, 3_000).await;

    let began = world.elapsed();
    world.cut(&host, cut);
    portal.until_standing(&host, FOUND_WITHIN, |standing| standing != "AVAILABLE").await?;
    let left = FOUND_WITHIN.saturating_sub(world.elapsed().saturating_sub(began));
    until("the agent finds out", left, || world.parted_after(&host, began)).await?;
    let lost_within = REPORT_INTERVAL * 3 + Duration::from_secs(1);
    portal.until_standing(&host, lost_within, |standing| standing == "UNREACHABLE_AGENT").await?;
    portal.until_session(&id, "UNKNOWN", Duration::from_secs(1)).await?;
    pause(&world, 60_000).await;

    world.mend(&host);
    portal.until_available(&host, BACK_WITHIN).await?;
    portal.until_session(&id, "READY", Duration::from_secs(1)).await?;
    // Nothing of what arrives late brings anything about.
    sleep(Duration::from_secs(20)).await;
    portal.until_available(&host, Duration::from_secs(1)).await?;
    as_it_should_be(&world, &portal, &[id]).await
}

/// Just these sessions are ready, and have a desktop each; and nothing came twice.
pub async fn as_it_should_be(world: &World, portal: &Caller, ids: &[String]) -> anyhow::Result<()> {
    let listed = portal.sessions().await?;
    let ready = listed.iter().filter(|[_, _, state, _]| state != "DELETED");
    let ready: BTreeMap<&str, &str> = ready.map(|[id, _, state, _]| (id.as_str(), state.as_str())).collect();
    let expected: BTreeMap<&str, &str> = ids.iter().map(|id| (id.as_str(), "READY")).collect();
    ensure!(ready == expected, "there should be {expected:?}, and there are {ready:?}");
    let live = world.live();
    let live: Vec<&str> = live.keys().map(SessionId::as_str).collect();
    let mut expected: Vec<&str> = ids.iter().map(String::as_str).collect();
    expected.sort_unstable();
    ensure!(live == expected, "desktops of {expected:?} should run, and there are {live:?}");
    no_event_twice(portal).await
}

/// No session was made, became ready or ended more than once, and each
/// instruction was settled once.
async fn no_event_twice(portal: &Caller) -> anyhow::Result<()> {
    let mut seen = BTreeMap::new();
    for event in events(portal).await? {
        let what = match event["Kind"].as_str().unwrap_or_default() {
            "InstructionSettled" => event["Details"]["InstructionId"].to_string(),
            "SessionCreated" | "SessionPlaced" | "SessionReady" | "SessionDeleted" => event["SessionId"].to_string(),
            _ => continue,
        };
        let times: &mut u32 = seen.entry((event["Kind"].to_string(), what)).or_default();
        *times += 1;
        ensure!(*times == 1, "came twice: {event}");
    }
    ensure!(!seen.is_empty(), "no event tells of a session");
    Ok(())
}

/// All events of the journal.
pub async fn events(portal: &Caller) -> anyhow::Result<Vec<Value>> {
    let mut all = Vec::new();
    let mut path = "/v1/events?limit=1000".to_owned();
    loop {
        let page = match portal.call(Method::GET, &path, &[], &Value::Null).await {
            Answer::Whole(page) => page,
            Answer::Broken(_) => continue,
        };
        all.extend(page.body["Events"].as_array().context("no list of events")?.iter().cloned());
        if page.body["More"] != true {
            return Ok(all);
        }
        path = format!("/v1/events?limit=1000&after={}", page.body["Next"].as_str().context("no cursor")?);
    }
}

/// Breaks the agent's connection, so that it opens another one. It may still
/// wait for its welcome, which takes longer to give up.
async fn breaks(world: &World, host: &str) -> anyhow::Result<()> {
    let began = world.elapsed();
    world.cut(host, Cut::Lost);
    until("the connection breaks", BACK_WITHIN, || world.parted_after(host, began)).await?;
    world.mend(host);
    Ok(())
}

/// The network fails at each step that an agent takes to its welcome.
async fn midst_of_hello(world: Arc<World>) -> anyhow::Result<()> {
    let host = desk::name(1);
    let portal = Caller::new(&world, PORTAL, world.dice.in_thousand(500));
    portal.until_available(&host, BACK_WITHIN).await?;
    let id = portal.session_on(&host).await?;
    for write in 1..=WRITES {
        let cut = Cut::ALL[world.dice.index(Cut::ALL.len()).context("there are some")?];
        world.set_trap(&host, Moment::Write(write), cut);
        breaks(&world, &host).await?;
        until("the trap springs", BACK_WITHIN, || !world.has_trap(&host)).await?;
        pause(&world, 12_000).await;
        world.mend(&host);
        portal.until_available(&host, BACK_WITHIN).await?;
    }
    portal.until_session(&id, "READY", Duration::from_secs(1)).await?;
    as_it_should_be(&world, &portal, &[id]).await
}

/// The network fails when an agent is about to say that a session was made, or
/// that one has ended.
async fn midst_of_word(world: Arc<World>) -> anyhow::Result<()> {
    let host = desk::name(1);
    let portal = Caller::new(&world, PORTAL, world.dice.in_thousand(500));
    portal.until_available(&host, BACK_WITHIN).await?;
    let mut ids = Vec::new();
    for cut in Cut::ALL {
        world.set_trap(&host, Moment::Made, cut);
        let answer = portal.insist("/createSessions", &[], &Caller::wish("one", Some(&host))).await?;
        let id = super::caller::created(&answer)?;
        until("the desktop is made", Duration::from_secs(5), || !world.has_trap(&host)).await?;
        pause(&world, 12_000).await;
        world.mend(&host);
        portal.until_session(&id, "READY", BACK_WITHIN).await?;
        portal.until_available(&host, BACK_WITHIN).await?;
        ids.push(id);
    }
    as_it_should_be(&world, &portal, &ids).await?;
    for cut in Cut::ALL {
        let id = ids.pop().context("one for each")?;
        let session = SessionId::new(&id)?;
        world.set_trap(&host, Moment::AnyWrite, cut);
        world.desktops(&host).context("it runs")?.end_by_itself(&session, "the user logged out");
        world.ended(&host, &session);
        until("the agent says something", BACK_WITHIN, || !world.has_trap(&host)).await?;
        pause(&world, 12_000).await;
        world.mend(&host);
        portal.until_session(&id, "DELETED", BACK_WITHIN).await?;
        portal.until_available(&host, BACK_WITHIN).await?;
    }
    as_it_should_be(&world, &portal, &[]).await
}

/// The broker dies and loses its power, over and over, while it is called.
async fn death(world: Arc<World>) -> anyhow::Result<()> {
    let hosts: Vec<String> = (1..=world.shape.desks).map(desk::name).collect();
    let portal = Caller::new(&world, PORTAL, world.dice.in_thousand(500));
    let mut ids = Vec::new();
    for round in 0..4 {
        for host in &hosts {
            portal.until_available(host, BACK_WITHIN + REPORT_INTERVAL * 3).await?;
        }
        let (order, down_ms) = if round % 2 == 0 {
            (Order::Kill(BROKER.to_owned()), 10_000)
        } else {
            (Order::CutPower(BROKER.to_owned()), 20_000)
        };
        let dies_after = Duration::from_millis(world.dice.below(400));
        let dies = async {
            sleep(dies_after).await;
            world.order(order);
            pause(&world, down_ms).await;
            world.order(Order::Start(BROKER.to_owned()));
        };
        let keys: Vec<String> = (0..10).map(|number| format!("{round}-{number}")).collect();
        let calls = async {
            let mut broken = 0_u32;
            for key in &keys {
                let headers = [("idempotency-key", key.as_str())];
                match portal.call(Method::POST, "/createSessions", &headers, &Caller::wish(key, None)).await {
                    Answer::Whole(answer) => ensure!(matches!(answer.status, 200 | 503), "{answer:?}"),
                    Answer::Broken(_) => broken += 1,
                }
            }
            world.note(&format!("{broken} calls of {} were broken", keys.len()));
            Ok(())
        };
        let (called, ()) = tokio::join!(calls, dies);
        called?;
        for key in &keys {
            let headers = [("idempotency-key", key.as_str())];
            let answer = portal.insist("/createSessions", &headers, &Caller::wish(key, None)).await?;
            if let Some(id) = answer.body["SuccessfulList"][0]["Id"].as_str() {
                ids.push(id.to_owned());
            } else {
                // It came when no agent was back yet.
                let reason = answer.body["UnsuccessfulList"][0]["FailureReason"].as_str().unwrap_or_default();
                ensure!(!reason.is_empty(), "{}", answer.body);
            }
        }
    }
    for host in &hosts {
        portal.until_available(host, BACK_WITHIN).await?;
    }
    for id in &ids {
        portal.until_session(id, "READY", Duration::from_secs(10)).await?;
    }
    let returned: std::collections::BTreeSet<_> = hosts.iter().filter_map(|host| world.last_connected(host)).collect();
    ensure!(returned.len() > 1, "all agents came back at the same moment");
    // One that is asked for again by its key is still the one that there is.
    let answer = portal.call(Method::POST, "/describeSessions", &[], &json!({})).await;
    ensure!(matches!(answer, Answer::Whole(_)), "{answer:?}");
    as_it_should_be(&world, &portal, &ids).await
}
