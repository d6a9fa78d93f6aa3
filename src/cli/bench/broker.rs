//! `berth bench broker`: how fast a broker is, measured as its clients see it.
//!
//! Without a URL it starts a broker and agents with simulated desktops of its
//! own, on loopback and in a folder that it removes. Every create that is
//! counted was durable and replicated when its answer came.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::super::http::{Api, Credentials};
use super::quantiles::Quantiles;
use crate::agent::{self, config::DesktopKind};
use crate::broker::{self, config::Config};
use crate::domain::client::Grant;
use crate::secret::Secret;

/// Options of `berth bench broker`.
#[derive(Debug, clap::Args)]
#[group(skip)] // all are called Args, and groups must differ
pub(super) struct Args {
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Clients that create sessions at the same time; one measurement for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 128])]
    clients: Vec<usize>,
    /// Servers with simulated desktops.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    servers: u32,
    /// Sessions to describe.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(2..=1000))]
    rows: u64,
    /// Folder for the broker's data; its disk is what is measured.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    if args.clients.iter().any(|clients| !(1..=10_000).contains(clients)) {
        bail!("--clients must be 1 to 10000");
    }
    let parent = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = parent.join(format!("berth-bench-{}", std::process::id()));
    let result = measure(&args, &folder).await;
    let removed = std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()));
    result.and(removed)
}

async fn measure(args: &Args, folder: &Path) -> anyhow::Result<()> {
    let yardstick = sync_rate(folder, Duration::from_secs(args.seconds.min(3)))?;
    say!("yardstick: {yardstick:.0} appends of 1 KiB with fdatasync per second, one after the other");

    let started = Instant::now();
    let config = broker_config(folder);
    let running = broker::start(config).await?;
    say!("start: {} ms from an empty folder to serving", started.elapsed().as_millis());
    let url = format!("https://127.0.0.1:{}", running.client_address.port());
    let client = running.identity.register("bench", Grant::default()).await?;
    let credentials =
        Credentials { id: client.id.as_str().to_owned(), secret: Secret::new(client.secret.expose().to_owned()) };
    let ca_path = running.ca_path.clone();
    let shutdown = CancellationToken::new();
    let statement = folder.join("software-statement");
    running.identity.active_statement().await?.write(&statement)?;
    let mut agents = tokio::task::JoinSet::new();
    for number in 0..args.servers {
        let folder = folder.join(format!("agent-{number}"));
        let port = running.agent_address.port();
        let config = agent_config(&folder, &running.ca_path, &statement, port);
        agents.spawn(agent::run(config, shutdown.clone()));
    }
    let broker_shutdown = CancellationToken::new();
    let stop = broker_shutdown.clone();
    let broker = tokio::spawn(running.run_until(async move { stop.cancelled().await }));

    let api = Api::connect(&url, &ca_path, &credentials).await?;
    wait_for_servers(&api, args.servers).await?;
    for &clients in &args.clients {
        let connect = || Api::connect(&url, &ca_path, &credentials);
        creates(connect, clients, Duration::from_secs(args.seconds), yardstick).await?;
    }
    describes(&api, args.rows, Duration::from_secs(args.seconds)).await?;

    shutdown.cancel();
    while let Some(ended) = agents.join_next().await {
        ended??;
    }
    broker_shutdown.cancel();
    broker.await??;
    Ok(())
}

fn broker_config(folder: &Path) -> Config {
    let mut config = Config { data_folder: folder.join("broker"), ..Config::default() };
    // What a broker can do is measured, not what it allows.
    config.limits.requests_per_second = 0;
    config.clients.listen.set_port(0);
    config.agents.listen.set_port(0);
    for listen in [&mut config.clients.listen, &mut config.agents.listen] {
        listen.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    config
}

fn agent_config(folder: &Path, ca: &Path, statement: &Path, port: u16) -> agent::Config {
    let mut config = agent::Config::new("127.0.0.1", statement, folder);
    config.broker_port = port;
    config.ca_file = Some(ca.to_owned());
    config.desktops = DesktopKind::Simulated;
    config.max_concurrent_sessions_per_user = None;
    config
}

/// Appends of 1 KiB, each made durable before the next, per second.
fn sync_rate(folder: &Path, time: Duration) -> anyhow::Result<f64> {
    use std::io::Write;
    std::fs::create_dir_all(folder)?;
    let path = folder.join("yardstick");
    let mut file = std::fs::File::create(&path)?;
    let block = [0x5a_u8; 1024];
    let started = Instant::now();
    let mut count = 0_u32;
    while started.elapsed() < time {
        file.write_all(&block)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = f64::from(count) / started.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}

async fn wait_for_servers(api: &Api, number: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        let answer = api.call("describeServers", &json!({})).await?;
        if answer["Servers"].as_array().is_some_and(|servers| servers.len() >= number as usize) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("the agents did not connect within 30 s");
}

/// Sessions created one a call, by so many clients with a connection each.
async fn creates<F>(connect: impl Fn() -> F, clients: usize, time: Duration, yardstick: f64) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Api>>,
{
    // One token is good for all; a connection each comes from a client each.
    let mut apis = Vec::with_capacity(clients);
    for _ in 0..clients {
        apis.push(connect().await?);
    }
    let numbers = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let end = started + time;
    let mut tasks = tokio::task::JoinSet::new();
    for api in apis {
        let numbers = Arc::clone(&numbers);
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let body = json!([{ "Name": "bench", "Owner": format!("user{number}"), "Type": "VIRTUAL" }]);
                let begun = Instant::now();
                let answer = api.call("createSessions", &body).await?;
                latencies.push(begun.elapsed());
                if answer["SuccessfulList"].as_array().is_none_or(Vec::is_empty) {
                    bail!("a session was refused: {answer}");
                }
            }
            Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(result) = tasks.join_next().await {
        latencies.extend(result??);
    }
    let seconds = started.elapsed().as_secs_f64();
    let rate = count(latencies.len()) / seconds;
    let times = Quantiles::of(latencies);
    say!("create, {clients} clients: {rate:.0} durable per second ({:.2} of the yardstick), {times}", rate / yardstick);
    Ok(())
}

/// Pages of sessions, described one after the other.
async fn describes(api: &Api, rows: u64, time: Duration) -> anyhow::Result<()> {
    for page in [1, rows] {
        let body = json!({ "MaxResults": page });
        let end = Instant::now() + time;
        let mut latencies = Vec::new();
        let mut bytes = 0;
        while Instant::now() < end {
            let begun = Instant::now();
            let answer = api.call("describeSessions", &body).await?;
            latencies.push(begun.elapsed());
            bytes = answer.to_string().len();
            let found = answer["Sessions"].as_array().map_or(0, Vec::len);
            if found as u64 != page {
                bail!("asked for {page} sessions, got {found}; measure for longer so that there are enough");
            }
        }
        say!("describe, {page} rows ({bytes} bytes): {}", Quantiles::of(latencies));
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn count(number: usize) -> f64 {
    number as f64
}
