//! Scenarios of clients: those that hold connections and give nothing, an answer
//! that is lost, and a stream of events over a connection that is held up.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use berth::broker::listen::STALL_TIMEOUT;
use futures_util::FutureExt;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use turmoil::net::TcpStream;

use super::agents::{BACK_WITHIN, as_it_should_be, events, pause};
use super::caller::{Answer, Caller, connect, created};
use super::net::Cut;
use super::world::World;
use super::{BROKER, CLIENT_PORT, Moment, OTHER, PORTAL, Scenario, Shape, desk};

/// Connections of each kind that give nothing.
const HOGS: usize = 8;
/// All of them, which come from one address and so leave an eighth to the
/// client that asks for something.
const CONNECTIONS_MAX: usize = HOGS * 8;
/// By then the broker is rid of all of them: the longest limit (90 s to bring a
/// further request), and the slowness before it.
const RID_WITHIN: Duration = Duration::from_mins(3);
/// A call takes no longer, whatever others do.
const SERVED_WITHIN: Duration = Duration::from_secs(1);
/// So many events happen while a stream is held up.
const EVENTS: usize = 800;

/// See the module.
pub const SCENARIOS: [Scenario; 4] = [
    Scenario {
        name: "hogs",
        shape: Shape { desks: 1, latency_max: Duration::from_millis(20), connections_max: CONNECTIONS_MAX },
        portal: |world| beside_hogs(world).boxed_local(),
        other: Some(|world| hogs(world).boxed_local()),
    },
    Scenario {
        name: "full",
        shape: Shape { desks: 1, latency_max: Duration::from_millis(20), connections_max: CONNECTIONS_MAX },
        portal: |world| shut_out(world).boxed_local(),
        other: None,
    },
    Scenario {
        name: "lost-answer",
        shape: Shape { desks: 2, latency_max: Duration::from_millis(50), connections_max: 1_000 },
        portal: |world| lost_answer(world).boxed_local(),
        other: None,
    },
    Scenario {
        name: "stream",
        shape: Shape { desks: 1, latency_max: Duration::from_millis(20), connections_max: 1_000 },
        portal: |world| tell(world).boxed_local(),
        other: Some(|world| follow(world).boxed_local()),
    },
];

/// Connections of the port for clients that stand, also where nobody asks anything.
fn connections() -> usize {
    turmoil::established_tcp_stream_count_on(BROKER)
}

/// One way to hold a connection.
#[derive(Debug, Clone, Copy)]
enum Hog {
    /// Opens it and says nothing.
    Silent,
    /// Says nothing after the TLS handshake.
    SilentWithin,
    /// A byte of a request each second.
    SlowHead,
    /// A byte of the body each second.
    SlowBody,
    /// Asks for much, and takes nothing of the answers.
    NeverReads,
    /// Asks once, and then begins a request a byte each second.
    SlowSecond,
}

/// Holds a connection until the broker ends it.
async fn hog(world: &World, hog: Hog) -> anyhow::Result<()> {
    if matches!(hog, Hog::Silent) {
        let mut stream = TcpStream::connect((BROKER, CLIENT_PORT)).await?;
        return ended(&mut stream).await;
    }
    let mut stream = connect(world, b"http/1.1").await?;
    let head =
        |method: &str, path: &str, more: &str| format!("{method} {path} HTTP/1.1\r\nhost: {BROKER}\r\n{more}\r\n");
    let slowly = match hog {
        Hog::Silent | Hog::SilentWithin => String::new(),
        Hog::SlowHead => head("GET", "/health", &format!("x-slow: {}\r\n", "s".repeat(1_000))),
        Hog::SlowBody => {
            let more =
                format!("authorization: Bearer {OTHER}\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n");
            stream.write_all(head("POST", "/describeSessions", &more).as_bytes()).await?;
            " ".repeat(1_000)
        }
        Hog::NeverReads => {
            stream.write_all(head("GET", "/dcv-session-manager-api.yaml", "").repeat(200).as_bytes()).await?;
            sleep(STALL_TIMEOUT * 2).await;
            // To who reads nothing, the end shows when it says something.
            for _ in 0..5 {
                if stream.write_all(b"GET").await.is_err() || stream.flush().await.is_err() {
                    return Ok(());
                }
                sleep(Duration::from_secs(1)).await;
            }
            bail!("it still stands");
        }
        Hog::SlowSecond => {
            stream.write_all(head("GET", "/health", "").as_bytes()).await?;
            head("GET", "/health", &format!("x-slow: {}\r\n", "s".repeat(1_000)))
        }
    };
    let (mut reads, mut writes) = tokio::io::split(stream);
    let saying = async {
        for byte in slowly.as_bytes() {
            if writes.write_all(&[*byte]).await.is_err() || writes.flush().await.is_err() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        ended = ended(&mut reads) => ended,
        () = saying => Ok(()),
    }
}

/// Reads until there is nothing more to read.
async fn ended(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> anyhow::Result<()> {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(1..) = stream.read(&mut bytes).await {}
    Ok(())
}

const KINDS: [Hog; 6] =
    [Hog::Silent, Hog::SilentWithin, Hog::SlowHead, Hog::SlowBody, Hog::NeverReads, Hog::SlowSecond];

/// Holds connections of every kind, all at once; the broker ends each.
async fn hogs(world: Arc<World>) -> anyhow::Result<()> {
    sleep(Duration::from_secs(5)).await;
    let mut all = JoinSet::new();
    for kind in KINDS {
        for _ in 0..HOGS {
            let world = Arc::clone(&world);
            all.spawn_local(async move { (kind, timeout(RID_WITHIN, hog(&world, kind)).await) });
        }
    }
    let mut left = Vec::new();
    while let Some(ended) = all.join_next().await {
        let (kind, ended) = ended?;
        match ended {
            Ok(held) => {
                world.note(&format!("the broker ended a connection: {kind:?}"));
                held.with_context(|| format!("{kind:?} came to nothing"))?;
            }
            Err(_) => left.push(format!("{kind:?}")),
        }
    }
    ensure!(left.is_empty(), "after {RID_WITHIN:?} there are connections left that give nothing: {}", left.join(", "));
    Ok(())
}

/// Is served while others hold connections.
async fn beside_hogs(world: Arc<World>) -> anyhow::Result<()> {
    let host = desk::name(1);
    let portal = Caller::new(&world, PORTAL, world.dice.in_thousand(500));
    portal.until_available(&host, BACK_WITHIN).await?;
    let mut ids = Vec::new();
    let until = world.elapsed() + RID_WITHIN;
    let mut most = 0;
    while world.elapsed() < until {
        let began = world.elapsed();
        let answer = portal.call(Method::POST, "/describeServers", &[], &json!({})).await;
        ensure!(matches!(&answer, Answer::Whole(whole) if whole.status == 200), "not served beside others: {answer:?}");
        let took = world.elapsed().saturating_sub(began);
        ensure!(took < SERVED_WITHIN, "an answer took {took:?}");
        if ids.len() < 5 {
            ids.push(portal.session_on(&host).await?);
        }
        most = most.max(connections());
        sleep(Duration::from_secs(1)).await;
    }
    ensure!(most > HOGS * KINDS.len(), "there were never more than {most} connections");
    as_it_should_be(&world, &portal, &ids).await
}

/// Has no place while others say nothing on all of them, and gets one in time.
async fn shut_out(world: Arc<World>) -> anyhow::Result<()> {
    let host = desk::name(1);
    let portal = Caller::new(&world, PORTAL, world.dice.in_thousand(500));
    portal.until_available(&host, BACK_WITHIN).await?;
    let agents = 1;
    let mut silent = Vec::new();
    // Until there is no place; more than there are.
    for _ in 0..CONNECTIONS_MAX {
        silent.push(TcpStream::connect((BROKER, CLIENT_PORT)).await?);
    }
    sleep(Duration::from_secs(1)).await;
    let held = connections();
    ensure!(held <= CONNECTIONS_MAX + agents, "{held} connections are held, {CONNECTIONS_MAX} are allowed");
    let other = Caller::new(&world, PORTAL, false);
    let refused = other.call(Method::GET, "/health", &[], &Value::Null).await;
    ensure!(matches!(refused, Answer::Broken(_)), "there should be no place: {refused:?}");
    let began = world.elapsed();
    other.insist("/describeServers", &[], &json!({})).await?;
    let took = world.elapsed().saturating_sub(began);
    ensure!(took < Duration::from_secs(15), "who says nothing keeps others out for {took:?}");
    drop(silent);
    Ok(())
}

/// What was asked for has happened, and the answer is lost. It is asked again.
async fn lost_answer(world: Arc<World>) -> anyhow::Result<()> {
    let hosts = [desk::name(1), desk::name(2)];
    let portal = Caller::new(&world, PORTAL, world.dice.in_thousand(500));
    for host in &hosts {
        portal.until_available(host, BACK_WITHIN).await?;
    }
    let mut ids = Vec::new();
    for (number, cut) in Cut::ALL.into_iter().enumerate() {
        let key = format!("key-{number}");
        let headers = [("idempotency-key", key.as_str())];
        let wish = Caller::wish(&key, None);
        world.set_trap(PORTAL, Moment::Proposed, cut);
        let calling = portal.call(Method::POST, "/createSessions", &headers, &wish);
        // Some clients wait until they are answered, others no longer than for a while.
        let waits = Duration::from_millis(500 + world.dice.below(45_000));
        let mended = async {
            sleep(waits).await;
            world.mend(PORTAL);
        };
        let (answer, ()) = tokio::join!(calling, mended);
        world.note(&format!("answered: {}", matches!(answer, Answer::Whole(_))));
        ensure!(!world.has_trap(PORTAL), "nothing was asked for");
        // What is held up arrives in the end; what was lost does not.
        if cut != Cut::Held {
            ensure!(
                matches!(answer, Answer::Broken(_)) || cut == Cut::LostToBroker,
                "an answer came through a network that loses it: {answer:?}"
            );
        }
        let again = portal.insist("/createSessions", &headers, &wish).await?;
        let id = created(&again)?;
        ensure!(again.headers.get("idempotency-replayed").is_some_and(|told| told == "true"), "it was done anew");
        if let Answer::Whole(first) = answer {
            ensure!(created(&first)? == id, "two answers to one key: {first:?}, {again:?}");
        }
        portal.until_session(&id, "READY", Duration::from_secs(10)).await?;
        ids.push(id);
    }
    as_it_should_be(&world, &portal, &ids).await
}

/// Opens and closes a server, over and over: each is an event.
async fn tell(world: Arc<World>) -> anyhow::Result<()> {
    let host = desk::name(1);
    let portal = Caller::new(&world, PORTAL, true);
    portal.until_available(&host, BACK_WITHIN).await?;
    // The other client follows by then.
    sleep(Duration::from_secs(2)).await;
    for number in 0..EVENTS {
        let path = if number % 2 == 0 { "/closeServers" } else { "/openServers" };
        portal.insist(path, &[], &json!([{ "ServerId": host }])).await?;
    }
    world.note("all has happened");
    // Longer than anybody keeps a connection whose client takes nothing.
    sleep(Duration::from_mins(3)).await;
    world.mend(OTHER);
    let told = events(&portal).await?;
    ensure!(told.len() > EVENTS, "only {} events", told.len());
    // The other one ends when it has them all.
    let last = told.last().context("there are some")?["Index"].as_u64();
    world.set_target(last.unwrap_or_default());
    Ok(())
}

/// Follows the events; its connection is held up while most of them happen.
async fn follow(world: Arc<World>) -> anyhow::Result<()> {
    sleep(Duration::from_secs(3)).await;
    let other = Caller::new(&world, OTHER, world.dice.in_thousand(500));
    let mut heard: Vec<(String, Value)> = Vec::new();
    let mut stream = other.follow(None).await?;
    heard.extend(stream.next().await);
    pause(&world, 500).await;
    world.cut(OTHER, Cut::Held);
    let own = turmoil::lookup(OTHER);
    let before = world.sent_to(own);
    let mut most = 0;
    loop {
        let next = timeout(Duration::from_secs(20), stream.next()).await;
        if !world.is_mended(OTHER) {
            most = world.sent_to(own) - before;
        }
        if let Ok(Some(event)) = next {
            heard.push(event);
            continue;
        }
        // It has ended, or gave no sign of life for longer than it may.
        let last = heard.last().map(|(cursor, event)| (cursor.as_str(), event["Index"].as_u64()));
        if world.target().is_some_and(|target| last.and_then(|(_, index)| index) >= Some(target)) {
            break;
        }
        world.note(&format!("the stream is followed anew after {} events", heard.len()));
        if let Ok(anew) = other.follow(last.map(|(cursor, _)| cursor)).await {
            stream = anew;
        }
    }
    let bytes: usize = heard.iter().map(|(_, event)| event.to_string().len()).sum();
    world.note(&format!("{most} bytes of {bytes} were sent to who took nothing"));
    let told = events(&other).await?;
    let heard: Vec<&Value> = heard.iter().map(|(_, event)| event).collect();
    let told: Vec<&Value> = told.iter().take(heard.len()).collect();
    let at = heard.iter().zip(&told).position(|(heard, told)| heard != told);
    ensure!(at.is_none(), "what was heard is not what happened, from event {at:?} on");
    ensure!(most < bytes / 4, "{most} bytes of {bytes} were sent to who took nothing");
    ensure!(heard.len() > EVENTS && told.len() == heard.len(), "{} events were heard of {}", heard.len(), told.len());
    Ok(())
}
