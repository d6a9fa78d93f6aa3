//! `berth bench cluster`: durable creates per second on three replicas, beside
//! puts per second on three members of etcd.
//!
//! Both clusters run on loopback, with their folders on the same disk, and take
//! turns. One operation of Berth is one createSessions call with one session,
//! over HTTPS with a bearer token, to one of the replicas; its answer comes when
//! the session is durable on a majority and applied where it was asked for. One
//! operation of etcd is one gRPC `Put` of a new key with 1 KiB, over plain
//! HTTP/2, to one of the members; its answer comes when it is durable on a
//! majority. Each client has a connection of its own and one operation under
//! way; clients are spread over all replicas or members.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use comfy_table::{Table, TableStyle};
use serde_json::{Value, json};

use super::etcd::{self, Etcd, VALUE_BYTES};
use super::https::{Access, Connection, create_body, is_created};
use super::quantiles::{Quantiles, millis};
use super::replicas::{Replicas, Timers};

/// Parts of a second that the system counts processors' time in.
const TICKS_PER_SECOND: f64 = 100.0;

/// Options of `berth bench cluster`.
#[derive(Debug, clap::Args)]
#[group(skip)] // all are called Args, and groups must differ
pub(super) struct Args {
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Clients at the same time; one measurement for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 128, 256])]
    clients: Vec<usize>,
    /// Rounds of each measurement; the median is told.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Leave etcd out; it is left out also when it is not installed.
    #[arg(long)]
    no_etcd: bool,
    /// Folder for all data; its disk is what is measured.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    timers: Timers,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    if args.clients.iter().any(|clients| !(1..=10_000).contains(clients)) {
        bail!("--clients must be 1 to 10000");
    }
    super::in_folder(args.folder.clone(), |folder| async move { measure(&args, &folder).await }).await
}

async fn measure(args: &Args, folder: &Path) -> anyhow::Result<()> {
    let version = if args.no_etcd { None } else { etcd::version().await };
    let etcd = match &version {
        Some(_) => Some(Etcd::start(&folder.join("etcd")).await?),
        None => None,
    };
    let mut replicas = Replicas::start(&folder.join("berth"), &args.timers).await?;
    let access = replicas.access().await?;
    let (_, term_before) = replicas.leader().await?;
    let numbers = Arc::new(AtomicU64::new(0));
    let mut rows = Vec::new();
    for &clients in &args.clients {
        let mut row = Row { clients, berth: Vec::new(), etcd: Vec::new() };
        for _ in 0..args.rounds {
            if let Some(etcd) = &etcd {
                let mut puts = Vec::new();
                for number in 0..clients {
                    puts.push(Client::Etcd(etcd::Client::connect(etcd.clients[number % etcd.clients.len()]).await?));
                }
                row.etcd.push(load(puts, args.seconds, &numbers, &etcd.process_ids()).await?);
            }
            let creates = connected(&replicas, &access, clients).await?;
            row.berth.push(load(creates, args.seconds, &numbers, &replicas.process_ids()).await?);
        }
        rows.push(row);
    }
    let (_, term_after) = replicas.leader().await?;
    tell(args, version.as_deref(), &rows, term_after - term_before)?;
    if let Some(etcd) = etcd {
        etcd.stop().await?;
    }
    replicas.stop().await
}

async fn connected(replicas: &Replicas, access: &Arc<Access>, clients: usize) -> anyhow::Result<Vec<Client>> {
    let mut connected = Vec::new();
    for number in 0..clients {
        let address = replicas.all[number % replicas.all.len()].clients;
        let mut connection = Connection::new(Arc::clone(access), address);
        connection.connect().await?;
        connected.push(Client::Berth(connection));
    }
    Ok(connected)
}

enum Client {
    Berth(Connection),
    Etcd(etcd::Client),
}

impl Client {
    async fn write(&mut self, number: u64) -> anyhow::Result<()> {
        match self {
            Self::Berth(connection) => is_created(&connection.post("createSessions", create_body(number), None).await?),
            Self::Etcd(client) => client.put(&format!("user{number}")).await,
        }
    }
}

/// What came of one measurement.
#[derive(Clone, Copy)]
struct Load {
    per_second: f64,
    times: Quantiles,
    /// Processors' time of the servers for one operation.
    server_cpu: Duration,
}

/// Operations, one after the other by each client, for so long.
async fn load(clients: Vec<Client>, seconds: u64, numbers: &Arc<AtomicU64>, servers: &[u32]) -> anyhow::Result<Load> {
    let cpu_before = cpu_time(servers)?;
    let started = Instant::now();
    let end = started + Duration::from_secs(seconds);
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        let numbers = Arc::clone(numbers);
        tasks.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let begun = Instant::now();
                client.write(number).await?;
                times.push(begun.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(result) = tasks.join_next().await {
        times.extend(result??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    let cpu = cpu_time(servers)?.saturating_sub(cpu_before);
    let number = u32::try_from(times.len().max(1)).context("too many operations to count")?;
    Ok(Load { per_second: f64::from(number) / elapsed, times: Quantiles::of(times), server_cpu: cpu / number })
}

/// Processors' time that processes have taken.
fn cpu_time(processes: &[u32]) -> anyhow::Result<Duration> {
    let mut ticks = 0_u32;
    for id in processes {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        // The name, which may hold anything, stands in brackets.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        for field in fields.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<u32>().context("/proc has another form")?;
        }
    }
    Ok(Duration::from_secs_f64(f64::from(ticks) / TICKS_PER_SECOND))
}

struct Row {
    clients: usize,
    berth: Vec<Load>,
    etcd: Vec<Load>,
}

/// The round of the median rate.
fn middle(loads: &[Load]) -> Option<Load> {
    let mut sorted = loads.to_vec();
    sorted.sort_by(|one, other| one.per_second.total_cmp(&other.per_second));
    sorted.get(sorted.len() / 2).copied()
}

fn tell(args: &Args, etcd_version: Option<&str>, rows: &[Row], elections: u64) -> anyhow::Result<()> {
    let micros = |load: &Load| load.server_cpu.as_secs_f64() * 1e6;
    if args.json {
        let value = |load: Load| {
            json!({
                "per_second": load.per_second,
                "median_ms": millis(load.times.median),
                "p99_ms": millis(load.times.p99),
                "max_ms": millis(load.times.max),
                "server_cpu_us": micros(&load),
            })
        };
        let rows = rows.iter().map(|row| {
            let (berth, etcd) = (middle(&row.berth), middle(&row.etcd));
            let ratio = berth.zip(etcd).map(|(berth, etcd)| berth.per_second / etcd.per_second);
            json!({ "clients": row.clients, "berth": berth.map(value), "etcd": etcd.map(value), "ratio": ratio })
        });
        let told = json!({
            "seconds": args.seconds,
            "rounds": args.rounds,
            "etcd_version": etcd_version,
            "etcd_value_bytes": VALUE_BYTES,
            "elections_under_load": elections,
            "clients": rows.collect::<Vec<Value>>(),
        });
        say!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header([
        "CLIENTS",
        "CREATES/S",
        "MEDIAN",
        "P99",
        "CPU/CREATE",
        "ETCD PUTS/S",
        "MEDIAN",
        "P99",
        "CPU/PUT",
        "RATIO",
    ]);
    for row in rows {
        let cells = |load: Option<Load>| match load {
            Some(load) => [
                format!("{:.0}", load.per_second),
                format!("{:.2} ms", millis(load.times.median)),
                format!("{:.2} ms", millis(load.times.p99)),
                format!("{:.0} µs", micros(&load)),
            ],
            None => ["-"; 4].map(str::to_owned),
        };
        let (berth, etcd) = (middle(&row.berth), middle(&row.etcd));
        let ratio = berth
            .zip(etcd)
            .map_or_else(|| "-".to_owned(), |(berth, etcd)| format!("{:.2}", berth.per_second / etcd.per_second));
        let line = [vec![row.clients.to_string()], cells(berth).to_vec(), cells(etcd).to_vec(), vec![ratio]].concat();
        table.add_row(line);
    }
    say!("{table}");
    match etcd_version {
        Some(version) => say!("etcd {version}, values of {VALUE_BYTES} bytes"),
        None => say!("etcd was left out"),
    }
    say!("elections under load: {elections}");
    Ok(())
}
