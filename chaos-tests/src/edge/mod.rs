//! The edge of the broker on a simulated network (turmoil), in simulated time:
//! its ports with their limits, TLS, HTTP and WebSockets, and the product's own
//! agents, while connections are held up, lost and broken at chosen moments.
//!
//! - [`world`]: what all hosts share, and traps that spring at a moment,
//! - [`net`]: the network as the product sees it, and cuts,
//! - [`site`]: the broker's host; [`desk`]: a desktop host; [`caller`]: a client,
//! - [`agents`], [`clients`]: scenarios, [`lives`]: everything at random,
//! - [`apart`]: each world in a process of its own, so that it repeats itself.
//!
//! `cargo run -p berth-chaos-tests --bin edge -- --help` runs them.
//!
//! What is not on it: names are found at once (no DNS), tokens are not signed
//! (their secrets are hashed by a thread), and one replica is all there is;
//! `simulation` has several. The network loses nothing without reason and sends
//! nothing again: whatever lost something is dead, as after many minutes of a
//! real one.

pub mod agents;
pub mod apart;
pub mod caller;
pub mod clients;
pub mod desk;
pub mod lives;
pub mod net;
pub mod site;
pub mod world;

use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::future::LocalBoxFuture;

use world::{Order, World};

/// The broker's host.
pub const BROKER: &str = "broker";
/// The host of the client that tells what happens.
pub const PORTAL: &str = "portal";
/// The host of another client.
pub const OTHER: &str = "other";
/// Where clients are served.
pub const CLIENT_PORT: u16 = 8443;
/// Where agents are served.
pub const AGENT_PORT: u16 = 8445;
/// How often agents report.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// Between two steps of the network.
const TICK: Duration = Duration::from_millis(5);
/// When worlds begin: some day of 2026.
const EPOCH_SECS: u64 = 1_790_000_000;
/// No world lives longer.
const LIFE_MAX: Duration = Duration::from_mins(30);

/// A moment at which a trap springs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The agent writes to a connection for the nth time: not sent yet.
    Write(u32),
    /// The agent writes to a connection.
    AnyWrite,
    /// A desktop was made, and nobody told of it.
    Made,
    /// What a client asked for is in the log, and nobody told of it.
    Proposed,
}

impl Moment {
    fn is(self, happened: Self) -> bool {
        self == happened || matches!((self, happened), (Self::AnyWrite, Self::Write(_)))
    }
}

/// What a world is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Desktop hosts.
    pub desks: u32,
    /// Longest time that something is under way.
    pub latency_max: Duration,
    /// Connections that the port for clients takes.
    pub connections_max: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { desks: 1, latency_max: Duration::from_millis(20), connections_max: 1_000 }
    }
}

/// What a client does.
pub type Script = fn(Arc<World>) -> LocalBoxFuture<'static, anyhow::Result<()>>;

/// What is done in a world.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What the world is like.
    pub shape: Shape,
    /// What is done on [`PORTAL`]; the world ends with it.
    pub portal: Script,
    /// What is done on [`OTHER`] meanwhile.
    pub other: Option<Script>,
}

/// All of them.
pub fn scenarios() -> Vec<Scenario> {
    agents::SCENARIOS.into_iter().chain(clients::SCENARIOS).chain([lives::SCENARIO]).collect()
}

/// How it went.
#[derive(Debug)]
pub struct Report {
    /// What is wrong; empty if all is well.
    pub violations: Vec<String>,
    /// Changes with everything that was noted.
    pub fingerprint: u64,
    /// How long the world lived, in its own time.
    pub simulated: Duration,
    /// The end of what was noted.
    pub trace: Vec<String>,
}

/// Runs a world in this thread. It repeats itself only as the first of its
/// process, and with its chance ([`apart`]).
pub fn run(scenario: Scenario, seed: u64, verbose: bool) -> anyhow::Result<Report> {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        told(info);
    }));
    let folder = tempfile::tempdir()?;
    let shape = scenario.shape;
    let world = Arc::new(World::new(seed, shape, folder.path(), verbose)?);
    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(seed)
        .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_SECS))
        .simulation_duration(LIFE_MAX)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(shape.latency_max);
    let mut sim = builder.build();
    let site = Arc::clone(&world);
    sim.host(BROKER, move || site::live(Arc::clone(&site)));
    for number in 1..=shape.desks {
        let (host, world) = (desk::name(number), Arc::clone(&world));
        sim.host(host.as_str(), {
            let host = host.clone();
            move || desk::live(Arc::clone(&world), host.clone())
        });
    }
    let scripts = [(PORTAL, Some(scenario.portal)), (OTHER, scenario.other)];
    for (host, script) in scripts.into_iter().filter_map(|(host, script)| Some((host, script?))) {
        let world = Arc::clone(&world);
        sim.client(host, async move {
            if let Err(error) = script(Arc::clone(&world)).await {
                world.violation(format!("{host}: {error:#}"));
            }
            Ok(())
        });
    }
    loop {
        match sim.step() {
            Ok(false) => {}
            Ok(true) => break,
            Err(error) => {
                world.violation(format!("a host ended: {error}"));
                break;
            }
        }
        world.set_elapsed(sim.elapsed());
        for order in world.take_orders() {
            obey(&mut sim, &world, &order);
        }
    }
    let panics = PANICS.swap(0, Ordering::Relaxed);
    if panics > 0 {
        world.violation(format!("{panics} tasks panicked"));
    }
    let (violations, fingerprint, trace) = world.end();
    Ok(Report { violations, fingerprint, simulated: sim.elapsed(), trace })
}

fn obey(sim: &mut turmoil::Sim<'_>, world: &World, order: &Order) {
    match order {
        Order::Kill(host) | Order::CutPower(host) => {
            let is_silent = matches!(order, Order::CutPower(_));
            let peers: Vec<String> = (1..=world.shape.desks).map(desk::name).chain([PORTAL.to_owned()]).collect();
            let peers = if host == BROKER { peers } else { vec![BROKER.to_owned()] };
            // Nobody hears of a host that lost its power.
            for peer in peers.iter().filter(|_| is_silent) {
                sim.partition(peer.as_str(), host.as_str());
            }
            if host == BROKER && !is_silent {
                world.site.died();
            } else if host == BROKER {
                world.site.lost_power(world);
            } else {
                world.died(host);
            }
            sim.crash(host.as_str());
            for peer in peers.iter().filter(|_| is_silent) {
                sim.repair(peer.as_str(), host.as_str());
            }
        }
        Order::Start(host) => sim.bounce(host.as_str()),
    }
}
