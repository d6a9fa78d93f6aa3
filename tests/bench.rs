//! The benches of a cluster and of tokens, so small that they only show that they work.
#![allow(clippy::unwrap_used)]

mod common;

use common::process::{Process, berth};
use serde_json::Value;

/// Runs a bench to its end; what it printed.
async fn bench(arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let mut command = berth();
    command.arg("bench").args(arguments).args(["--json", "--folder"]).arg(folder.path());
    let mut process = Process::start(command);
    let status = process.ended().await;
    assert!(status.success(), "{}", process.stderr());
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "it removes what it made");
    serde_json::from_str(&process.stdout()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failover_bench_tells_of_each_kind_of_event() {
    let told = bench(&["failover", "--kills", "2", "--hand-overs", "2", "--restarts", "1", "--clients", "1"]).await;
    let events = told["events"].as_array().unwrap();
    let times: Vec<_> =
        events.iter().map(|event| (event["event"].as_str().unwrap(), event["times"].as_u64())).collect();
    assert_eq!(times, [("kill", Some(2)), ("hand-over", Some(2)), ("restart", Some(1))]);
    for event in events {
        for what in ["writes", "reads"] {
            let max = event[what]["max_ms"].as_f64().unwrap();
            assert!(max > 0.0 && max >= event[what]["p50_ms"].as_f64().unwrap(), "{event}");
        }
    }
    assert!(told["calls"].as_u64() > told["failed_after_one_retry"].as_u64(), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_bench_measures_beside_etcd_where_that_is_installed() {
    let told = bench(&["cluster", "--seconds", "1", "--rounds", "1", "--clients", "2"]).await;
    let row = &told["clients"][0];
    assert_eq!(row["clients"], 2);
    assert!(row["berth"]["per_second"].as_f64().unwrap() > 0.0, "{told}");
    let is_installed = told["etcd_version"].is_string();
    assert_eq!(row["etcd"].is_object(), is_installed, "{told}");
    assert_eq!(row["ratio"].is_number(), is_installed, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_bench_tells_of_each_algorithm_and_of_another_server() {
    let told = bench(&["tokens", "--tokens", "5", "--repetitions", "2", "--rounds", "1"]).await;
    let rows = told["rows"].as_array().unwrap();
    let kinds: Vec<_> =
        rows.iter().map(|row| (row["issuer"].as_str().unwrap(), row["algorithm"].as_str().unwrap())).collect();
    let own = |algorithm| ("this broker", algorithm);
    assert_eq!(kinds, [own("ES256"), ("another server", "ES256"), own("EdDSA"), own("RS256")]);
    for row in rows {
        for what in ["seen_per_second", "unseen_per_second"] {
            assert!(row[what].as_f64().unwrap() > 0.0, "{row}");
        }
    }
}
