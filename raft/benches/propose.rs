//! Acknowledged proposals per second of one replica, beside a raw append and fdatasync, and the
//! processor time they take.
//!
//! `cargo bench -p berth-raft`; the folder is made where `BERTH_BENCH_FOLDER` says, or in the
//! system's place for temporary files, which should be on the disk that counts.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

use berth_raft::{CodecError, Config, Replica, ReplicaId, Stamp, StateMachine, SystemClock, UnixMillis};
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

const COMMAND_BYTES: usize = 1024;
const SPAN: Duration = Duration::from_secs(3);

/// Counts: what remains is the cost of everything around the state machine.
#[derive(Clone, Default)]
struct Counter(u64);

impl StateMachine for Counter {
    type Command = Vec<u8>;
    type Outcome = u64;
    type Effect = ();

    fn encode_command(command: &Vec<u8>) -> Vec<u8> {
        command.clone()
    }

    fn decode_command(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.to_vec())
    }

    fn advance(&mut self, _: Stamp, _: &mut Vec<()>) {}

    fn apply(&mut self, _: Stamp, _: Vec<u8>, _: &mut Vec<()>) -> u64 {
        self.0 += 1;
        self.0
    }

    fn next_deadline(&self) -> Option<UnixMillis> {
        None
    }

    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.0.to_le_bytes())
    }

    fn read_snapshot(input: &mut dyn Read) -> Result<Self, CodecError> {
        let mut bytes = [0; 8];
        input.read_exact(&mut bytes)?;
        Ok(Self(u64::from_le_bytes(bytes)))
    }
}

fn folder() -> tempfile::TempDir {
    match std::env::var_os("BERTH_BENCH_FOLDER") {
        Some(parent) => tempfile::tempdir_in(parent).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

fn raw(batch: usize) {
    let folder = folder();
    let mut file = File::create(folder.path().join("raw")).unwrap();
    let bytes = vec![7; COMMAND_BYTES * batch];
    let began = Instant::now();
    let mut groups = 0_u32;
    while began.elapsed() < SPAN {
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
        groups += 1;
    }
    let rate = f64::from(groups) * batch as f64 / began.elapsed().as_secs_f64();
    println!("raw append and fdatasync, batches of {batch:>4}: {rate:>9.0} commands/s");
}

/// The processor time that this process has taken, in milliseconds.
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // User and system time, in hundredths of a second.
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() * 10.0).sum()
}

async fn proposals(replica: &Replica<Counter>, proposers: usize) {
    let began = Instant::now();
    let cpu_before = cpu_ms();
    let tasks = (0..proposers).map(|_| {
        let replica = replica.clone();
        tokio::spawn(async move {
            let mut waits = Vec::new();
            while began.elapsed() < SPAN {
                let asked = Instant::now();
                replica.propose(vec![vec![7; COMMAND_BYTES]]).await.unwrap();
                waits.push(asked.elapsed());
            }
            waits
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.unwrap());
    }
    let rate = waits.len() as f64 / began.elapsed().as_secs_f64();
    waits.sort_unstable();
    let at = |percent: usize| waits[(waits.len() - 1) * percent / 100];
    let cpu_us = (cpu_ms() - cpu_before) * 1000.0 / waits.len() as f64;
    let (p50, p99) = (at(50), at(99));
    println!(
        "proposals, {proposers:>4} at a time: {rate:>9.0} commands/s, {cpu_us:.1} us CPU each, p50 {p50:?}, p99 {p99:?}"
    );
}

async fn reads(replica: &Replica<Counter>, readers: usize) {
    let began = Instant::now();
    let tasks = (0..readers).map(|_| {
        let replica = replica.clone();
        tokio::spawn(async move {
            let mut done = 0_u64;
            while began.elapsed() < SPAN {
                replica.read().await.unwrap();
                done += 1;
            }
            done
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    let rate = done as f64 / began.elapsed().as_secs_f64();
    println!("linearizable reads, {readers:>4} at a time: {rate:>9.0}/s");
}

fn main() {
    println!("commands of {COMMAND_BYTES} bytes, {SPAN:?} each, durable before acknowledged");
    for batch in [1, 16, 128] {
        raw(batch);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let folder = folder();
        let mut config = Config::new(folder.path(), ReplicaId(1));
        // Calls are remembered, as in a broker.
        config.incarnation = 1;
        let clock = Arc::new(SystemClock);
        let started = Instant::now();
        let replica = Replica::start(config, clock, Counter::default(), Arc::new(|_, _| {}));
        let replica = replica.await.unwrap();
        println!("start on an empty folder: {:?}", started.elapsed());
        for proposers in [1, 16, 128, 1024] {
            proposals(&replica, proposers).await;
        }
        for readers in [1, 128] {
            reads(&replica, readers).await;
        }
        replica.stop().await.unwrap();
    });
}
