//! What a broker costs that has nothing to do.

#![allow(clippy::print_stdout)] // figures

use std::time::Instant;

use anyhow::ensure;
use berth_chaos_tests::client::{self, Api};
use berth_chaos_tests::process::{Broker, Program};
use berth_chaos_tests::random::{self, Random};

/// Most resident memory of an idle broker, in KiB: for release builds.
const RESIDENT_KIB_MAX: u64 = 64 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_broker_is_small() -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let program = Program::take(place.path())?;
    let mut random = Random::new(random::seed()?);
    let broker = Broker::new(&program, place.path(), &place.path().join("data"), &mut random, "")?;

    let started = Instant::now();
    let mut process = broker.start()?;
    client::serving(&broker, &mut process).await?;
    println!("start: {} ms from an empty folder to serving", started.elapsed().as_millis());
    let at_start = process.resident_kib()?;

    let api = Api::register(&broker, &mut process).await?;
    for _ in 0..10 {
        ensure!(api.sessions(&[]).await?.is_empty(), "sessions in an empty folder");
        ensure!(api.servers().await?.is_empty(), "servers in an empty folder");
    }
    let in_use = process.resident_kib()?;
    println!("resident: {at_start} KiB at the start, {in_use} KiB after a token and a few calls");

    process.kill()?;
    let started = Instant::now();
    let mut process = broker.start()?;
    client::serving(&broker, &mut process).await?;
    println!("start: {} ms from the same folder to serving", started.elapsed().as_millis());

    let kind = if program.is_release() { "release" } else { "debug" };
    println!("these are figures of a {kind} build");
    if program.is_release() {
        ensure!(in_use < RESIDENT_KIB_MAX, "an idle broker takes {in_use} KiB; at most {RESIDENT_KIB_MAX} are allowed");
    }
    Ok(())
}
