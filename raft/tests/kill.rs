//! `kill -9` at random moments: nothing acknowledged is lost, nothing is doubled.
//!
//! `BERTH_KILL_ROUNDS` sets the number of kills, `BERTH_KILL_SEED` repeats a run's moments.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use berth_raft::testing::{Command, Ledger};
use berth_raft::{Config, Replica, ReplicaId, SystemClock};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FOLDER: &str = "BERTH_KILL_FOLDER";
const FIRST_ID: &str = "BERTH_KILL_FIRST_ID";
const WRITERS: u64 = 16;

fn config(folder: &Path) -> Config {
    let mut config = Config::new(folder, ReplicaId(1));
    config.snapshot_after_entries = 200;
    config.keep_entries = 20;
    config
}

async fn start(folder: &Path) -> Replica<Ledger> {
    let clock = Arc::new(SystemClock);
    let observer = Arc::new(|_: &Ledger, _: &[_]| {});
    Replica::start(config(folder), clock, Ledger::default(), observer).await.unwrap()
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that the other test kills"]
async fn writes_until_it_is_killed() {
    let folder = std::env::var(FOLDER).expect("run by the other test, which says where");
    let next = Arc::new(AtomicU64::new(variable(FIRST_ID).unwrap()));
    let replica = start(Path::new(&folder)).await;
    let writers = (0..WRITERS).map(|writer| {
        let (replica, next) = (replica.clone(), Arc::clone(&next));
        tokio::spawn(async move {
            loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                let length = if writer == 0 { 100_000 } else { 100 };
                let command = Command::Add { id, amount: 1, padding: vec![7; length] };
                let proposed = replica.propose(vec![command]).await.unwrap();
                assert_eq!(proposed.outcomes[0].times, 1, "id {id} was doubled");
                let line = format!("acknowledged {id}\n");
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        })
    });
    futures_util::future::join_all(writers.collect::<Vec<_>>()).await;
}

#[test]
fn what_was_acknowledged_before_a_kill_is_there_once_after_it() {
    let rounds: u64 = variable("BERTH_KILL_ROUNDS").unwrap_or(5);
    let mut random: u64 = variable("BERTH_KILL_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos())
    });
    println!("BERTH_KILL_SEED={random}");
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 1..=rounds {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let moment = Duration::from_millis((random >> 33) % 400);
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "writes_until_it_is_killed", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(FIRST_ID, (round * 1_000_000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (first, seen_first) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            // A last line that was cut short would be another number: it is left out.
            let ids = lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<u64>().ok());
            let ids = ids.inspect(|_| {
                let _ = first.send(());
            });
            ids.collect::<Vec<u64>>()
        });
        seen_first.recv_timeout(Duration::from_mins(1)).unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        let ids = reader.join().unwrap();
        println!("round {round}: killed {moment:?} after the first of {}", ids.len());
        acknowledged.extend(ids);

        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let replica = start(folder.path()).await;
            let state = replica.local().state;
            let lost: Vec<u64> = acknowledged.iter().copied().filter(|id| !state.seen.contains(*id)).collect();
            assert_eq!(lost, [0_u64; 0], "lost in round {round}");
            assert!(state.seen.values().all(|times| *times == 1));
            assert_eq!(state.total, state.seen.len() as u64);
            assert!(!state.ran_backwards);
            replica.stop().await.unwrap();
        });
    }
}
