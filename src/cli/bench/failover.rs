//! `berth bench failover`: three replicas whose leader is killed, hands over,
//! or is restarted in order, again and again, while clients write and read
//! through all three.
//!
//! A client has one call under way. It goes from replica to replica; a call that
//! brings no answer, or one that says that the replica cannot, is made once more
//! on the next replica, a write with the same idempotency key. The gap of an
//! event is the longest time in which one client had nothing acknowledged, from
//! the event until the cluster is whole again: the pause of the clients between
//! two calls is in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::bail;
use comfy_table::{Table, TableStyle};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::https::{Connection, create_body, is_created};
use super::quantiles::{Quantiles, millis};
use super::replicas::{Replicas, Timers};

/// Load before the first event and after each.
const CALM: Duration = Duration::from_millis(300);
/// Failures that are told in words.
const FAILURES_TOLD_MAX: usize = 5;

/// Options of `berth bench failover`.
#[derive(Debug, clap::Args)]
#[group(skip)] // all are called Args, and groups must differ
pub(super) struct Args {
    /// How many times the leader is killed and started again.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    kills: u32,
    /// How many times the leader is told to hand over.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    hand_overs: u32,
    /// How many times the leader is ended by SIGTERM and started again.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    restarts: u32,
    /// Clients that write, and as many that read.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    clients: u32,
    /// How long a client waits between two calls, in milliseconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=1_000))]
    pause_ms: u64,
    /// Folder for the replicas' data.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    timers: Timers,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    super::in_folder(args.folder.clone(), |folder| async move { measure(&args, &folder).await }).await
}

/// What happens to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Kill,
    HandOver,
    Restart,
}

impl Event {
    const ALL: [Self; 3] = [Self::Kill, Self::HandOver, Self::Restart];

    const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::HandOver => "hand-over",
            Self::Restart => "restart",
        }
    }

    /// What it lets happen to the leader. A leader may refuse to hand over:
    /// then nothing happened.
    async fn befall(self, replicas: &mut Replicas) -> anyhow::Result<bool> {
        let (leader, _) = replicas.leader().await?;
        match self {
            Self::Kill => replicas.all[leader].end(Signal::KILL).await?,
            Self::HandOver => {
                if let Err(error) = replicas.all[leader].hand_over().await {
                    tracing::warn!("the leader did not hand over: {error:#}");
                    return Ok(false);
                }
            }
            Self::Restart => replicas.all[leader].end(Signal::TERM).await?,
        }
        replicas.leader_after(leader).await?;
        if self != Self::HandOver {
            replicas.all[leader].start()?;
            replicas.caught_up(leader).await?;
        }
        Ok(true)
    }
}

async fn measure(args: &Args, folder: &Path) -> anyhow::Result<()> {
    let mut replicas = Replicas::start(folder, &args.timers).await?;
    let access = replicas.access().await?;
    let stop = CancellationToken::new();
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut clients = JoinSet::new();
    let mut logs = Vec::new();
    for number in 0..args.clients * 2 {
        let task = if number % 2 == 0 { Task::Write } else { Task::Read };
        let acknowledged: Acknowledged = Arc::default();
        logs.push((task, Arc::clone(&acknowledged)));
        let client = Client {
            task,
            number,
            lines: replicas.all.iter().map(|one| Connection::new(Arc::clone(&access), one.clients)).collect(),
            acknowledged,
            tally: Arc::clone(&tally),
            pause: Duration::from_millis(args.pause_ms),
        };
        clients.spawn(client.run(stop.clone()));
    }
    tokio::time::sleep(CALM).await;
    let mut gaps = Vec::new();
    for (event, times) in Event::ALL.into_iter().zip([args.kills, args.hand_overs, args.restarts]) {
        for _ in 0..times {
            let began = Instant::now();
            let has_happened = tokio::select! {
                befallen = event.befall(&mut replicas) => befallen?,
                Some(ended) = clients.join_next() => {
                    ended??;
                    false
                }
            };
            // Until every client had an answer after it, whatever happened.
            tokio::time::sleep(CALM).await;
            let gap = |wanted: Task| longest_gap(&logs, wanted, began, Instant::now());
            let (write, read) = (gap(Task::Write), gap(Task::Read));
            tracing::info!(event = event.name(), ?write, ?read, "the cluster is whole again");
            if has_happened {
                gaps.push((event, write, read));
            } else {
                lock(&tally).refused += 1;
            }
            for (_, acknowledged) in &logs {
                lock(acknowledged).clear();
            }
            tokio::time::sleep(CALM).await;
        }
    }
    stop.cancel();
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    replicas.stop().await?;
    let tally = std::mem::take(&mut *lock(&tally));
    tell(args, &gaps, &tally)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Plain data: a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a client's calls were acknowledged.
type Acknowledged = Arc<Mutex<Vec<Instant>>>;

/// The longest time within `from` and `to` in which one client had nothing.
fn longest_gap(logs: &[(Task, Acknowledged)], wanted: Task, from: Instant, to: Instant) -> Duration {
    let logs = logs.iter().filter(|(task, _)| *task == wanted);
    let gaps = logs.map(|(_, acknowledged)| {
        let acknowledged = lock(acknowledged);
        // What is under way when the event begins counts from the call before.
        let before = acknowledged.iter().rev().find(|at| **at < from).copied().unwrap_or(from);
        let within = acknowledged.iter().filter(|at| **at >= from).copied();
        let mut last = before;
        let mut longest = Duration::ZERO;
        for at in within.chain([to]) {
            longest = longest.max(at.saturating_duration_since(last));
            last = at;
        }
        longest
    });
    gaps.max().unwrap_or_default()
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Write,
    Read,
}

/// Counts of all clients.
#[derive(Default)]
struct Tally {
    calls: u64,
    retried: u64,
    failed: u64,
    /// Hand-overs that the leader refused.
    refused: u64,
    /// Some of those that failed, in words.
    failures: Vec<String>,
}

struct Client {
    task: Task,
    number: u32,
    /// One for each replica.
    lines: Vec<Connection>,
    acknowledged: Acknowledged,
    tally: Arc<Mutex<Tally>>,
    pause: Duration,
}

impl Client {
    async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut calls = u64::from(self.number);
        while !stop.is_cancelled() {
            calls += 1;
            self.call(calls).await?;
            tokio::time::sleep(self.pause).await;
        }
        Ok(())
    }

    /// One call, with one retry on another replica.
    async fn call(&mut self, number: u64) -> anyhow::Result<()> {
        let key = format!("bench-{}-{number}", self.number);
        let begun = Instant::now();
        let mut errors = Vec::new();
        for attempt in 0..2 {
            let place = usize::try_from(number)? + attempt;
            let count = self.lines.len();
            let line = &mut self.lines[place % count];
            let answered = match self.task {
                Task::Write => line.post("createSessions", create_body(number), Some(&key)).await,
                Task::Read => line.post("describeSessions", r#"{"MaxResults":1}"#.to_owned(), None).await,
            };
            match answered {
                Ok(answer) => {
                    if self.task == Task::Write {
                        is_created(&answer)?;
                    }
                    lock(&self.acknowledged).push(Instant::now());
                    let mut tally = lock(&self.tally);
                    tally.calls += 1;
                    tally.retried += u64::from(attempt > 0);
                    return Ok(());
                }
                Err(error) => errors.push(format!("after {} ms: {error:#}", begun.elapsed().as_millis())),
            }
        }
        let mut tally = lock(&self.tally);
        tally.calls += 1;
        tally.retried += 1;
        tally.failed += 1;
        if tally.failures.len() < FAILURES_TOLD_MAX {
            tally.failures.push(format!("{:?}: {}", self.task, errors.join("; ")));
        }
        Ok(())
    }
}

fn tell(args: &Args, gaps: &[(Event, Duration, Duration)], tally: &Tally) -> anyhow::Result<()> {
    let rows = Event::ALL.into_iter().filter_map(|event| {
        let of = |pick: fn(&(Event, Duration, Duration)) -> Duration| -> Vec<Duration> {
            gaps.iter().filter(|gap| gap.0 == event).map(pick).collect()
        };
        let (writes, reads) = (of(|gap| gap.1), of(|gap| gap.2));
        let count = writes.len();
        (count > 0).then(|| (event, count, Quantiles::of(writes), Quantiles::of(reads)))
    });
    if args.json {
        let value = |times: Quantiles| json!({ "p50_ms": millis(times.median), "p99_ms": millis(times.p99), "max_ms": millis(times.max) });
        let rows = rows.map(|(event, count, writes, reads)| {
            json!({ "event": event.name(), "times": count, "writes": value(writes), "reads": value(reads) })
        });
        let told = json!({
            "clients": args.clients * 2,
            "pause_ms": args.pause_ms,
            "events": rows.collect::<Vec<Value>>(),
            "calls": tally.calls,
            "retried": tally.retried,
            "failed_after_one_retry": tally.failed,
            "failures": tally.failures,
            "hand_overs_refused": tally.refused,
        });
        say!("{}", serde_json::to_string_pretty(&told)?);
    } else {
        let mut table = Table::new();
        let heads = ["EVENT", "TIMES", "WRITES P50", "P99", "MAX", "READS P50", "P99", "MAX"];
        table.load_style(TableStyle::new()).set_header(heads);
        for (event, count, writes, reads) in rows {
            let mut line = vec![event.name().to_owned(), count.to_string()];
            for times in [writes, reads] {
                line.extend([times.median, times.p99, times.max].map(|time| format!("{:.0} ms", millis(time))));
            }
            table.add_row(line);
        }
        say!("{table}");
        say!("{} calls, {} retried, {} failed after one retry", tally.calls, tally.retried, tally.failed);
        if tally.refused > 0 {
            say!("{} hand-overs were refused by the leader and are not in the table", tally.refused);
        }
        for failure in &tally.failures {
            say!("  {failure}");
        }
    }
    if tally.calls == 0 {
        bail!("not one call was acknowledged");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_that_of_the_client_who_waits_longest_and_counts_its_open_end() {
        let from = Instant::now();
        let at = |ms: u64| from + Duration::from_millis(ms);
        let log = |times: &[u64]| Arc::new(Mutex::new(times.iter().map(|ms| at(*ms)).collect::<Vec<_>>()));
        let logs = [(Task::Write, log(&[10, 20, 500])), (Task::Write, log(&[30])), (Task::Read, log(&[1, 5, 9]))];
        let gap = |task, to| longest_gap(&logs, task, at(5), at(to)).as_millis();
        assert_eq!(gap(Task::Write, 510), 480);
        assert_eq!(gap(Task::Write, 700), 670, "one has no answer yet");
        assert_eq!(gap(Task::Read, 10), 4);
    }
}
