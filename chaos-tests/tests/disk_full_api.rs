//! Fills the broker's disk while clients create and delete sessions: writes are
//! refused in words that clients understand, reads go on, nothing acknowledged
//! is lost, and writes succeed again by themselves when there is room.

#![allow(clippy::print_stdout)] // seeds and results

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use berth_chaos_tests::client::{Answer, Api, Refusal};
use berth_chaos_tests::cluster::Cluster;
use berth_chaos_tests::disk::Disk;
use berth_chaos_tests::faults::moment;
use berth_chaos_tests::process::Program;
use berth_chaos_tests::random::{self, Random};
use berth_chaos_tests::traffic::{Client, Traffic};
use serde_json::json;

const DISK_MEGABYTES: u64 = 512;
/// Less than the broker's reserve of 64 MiB.
const BELOW_RESERVE_BYTES: u64 = 24 << 20;
const DEADLINE: Duration = Duration::from_mins(1);
const CLIENTS: usize = 4;
/// Reads that must go well while the disk is full.
const READS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_below_the_reserve_refuses_writes_and_reads_go_on() -> anyhow::Result<()> {
    full_disk(BELOW_RESERVE_BYTES, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_filled_to_the_last_byte_refuses_writes_and_reads_go_on() -> anyhow::Result<()> {
    full_disk(0, 2).await
}

async fn full_disk(left_bytes: u64, times: u64) -> anyhow::Result<()> {
    let seed = random::seed()?;
    println!("BERTH_SEED={seed}");
    let mut random = Random::new(seed);
    let disk = Disk::new(DISK_MEGABYTES)?;
    let place = tempfile::tempdir()?;
    let program = Program::take(place.path())?;
    let data_folder = disk.path().join("data");
    let mut cluster = Cluster::start(&program, place.path(), &data_folder, 1, &mut random).await?;
    let mut clients = (0..CLIENTS)
        .map(|number| {
            let history = std::sync::Arc::clone(cluster.history());
            Ok(Client::new(cluster.client()?, format!("user{number}"), random.fork(), history))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    for time in 0..times {
        let killed_meanwhile = time % 2 == 1;
        clients = match fill_and_empty(&mut cluster, &disk, clients, left_bytes, killed_meanwhile, &mut random).await {
            Ok(clients) => clients,
            Err(error) => {
                let kept = place.keep();
                cluster.history().write(&kept.join("history.jsonl"))?;
                return Err(error
                    .context(format!("time {time} of BERTH_SEED={seed}; history and logs are in {}", kept.display())));
            }
        };
    }
    // What was acknowledged is on the disk, not only in memory.
    cluster.kill_broker()?;
    cluster.start_broker()?;
    let observed = cluster.rest().await?;
    println!("{} sessions, none missing", observed.sessions.len());
    Ok(())
}

async fn fill_and_empty(
    cluster: &mut Cluster,
    disk: &Disk,
    clients: Vec<Client>,
    left_bytes: u64,
    killed_meanwhile: bool,
    random: &mut Random,
) -> anyhow::Result<Vec<Client>> {
    let api = cluster.client()?;
    let traffic = Traffic::start(clients);
    moment(random, 300).await;
    let ballast = disk.fill(left_bytes)?;
    serves_reads_only(&api).await?;
    cluster.broker_lives()?;
    if killed_meanwhile {
        cluster.kill_broker()?;
        cluster.start_broker()?;
        if left_bytes > 0 {
            cluster.serving().await.context("a start on a full disk")?;
            serves_reads_only(&api).await.context("after a start on a full disk")?;
        } else {
            // The database cannot even be opened; somebody starts it again later.
            let words = cluster.broker_ends().await.context("a start without a byte left")?;
            ensure!(words.contains("No space left on device"), "it says: {words}");
        }
    }

    ballast.remove()?;
    if killed_meanwhile && left_bytes == 0 {
        cluster.start_broker()?;
        cluster.serving().await.context("a start after there was room")?;
    }
    let waited = Instant::now();
    writable(&api).await?;
    println!("writable {} ms after there was room", waited.elapsed().as_millis());
    let clients = traffic.stop().await?;
    cluster.broker_lives()?;
    cluster.rest().await?;
    Ok(clients)
}

/// Writes are refused in the right words, and reads go on beside clients that
/// try to write.
async fn serves_reads_only(api: &Api) -> anyhow::Result<()> {
    let refusal = refused(api).await?;
    println!("full: {refusal:?}");
    ensure!(refusal.error.as_ref().is_some_and(|error| !error.is_empty()), "no reason: {refusal:?}");
    ensure!(refusal.retry_after_secs.is_some_and(|seconds| seconds >= 1), "no Retry-After: {refusal:?}");
    for _ in 0..READS {
        api.sessions(&[]).await.context("a read on a full disk")?;
        api.servers().await.context("a read on a full disk")?;
    }
    Ok(())
}

/// A command of no consequence.
async fn write(api: &Api) -> Answer {
    api.call("openServers", &json!([{ "ServerId": "nowhere" }])).await
}

/// Writes until that is refused.
async fn refused(api: &Api) -> anyhow::Result<Refusal> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match write(api).await {
            Answer::Refused(refusal) if refusal.status == 503 => return Ok(refusal),
            Answer::Done(_) => {}
            // It was under way when the disk became full.
            Answer::Unknown(reason) if reason.contains("outcome is not known") => {}
            other => bail!("while the disk fills up: {other:?}"),
        }
        ensure!(Instant::now() < deadline, "writes on a full disk are not refused");
    }
}

/// Writes until that succeeds.
async fn writable(api: &Api) -> anyhow::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match write(api).await {
            Answer::Done(_) => return Ok(()),
            Answer::Refused(refusal) if refusal.status == 503 => {}
            Answer::Unknown(reason) if reason.contains("outcome is not known") => {}
            other => bail!("after there was room: {other:?}"),
        }
        ensure!(Instant::now() < deadline, "there is room, but writes are refused");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
