//! `berth bench`: measurements that anybody can repeat; `docs/measurements.md`
//! holds what came out here.

mod broker;
mod describe;
mod etcd;
mod failover;
mod https;
mod placement;
mod quantiles;
mod replicas;
mod throughput;
mod tokens;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

/// Further attempts to remove the folder of a measurement, and the time between them.
const REMOVALS_MAX: u32 = 10;
const REMOVAL_PAUSE: Duration = Duration::from_millis(200);

/// Options of `berth bench`; without a word, `broker` is measured.
#[derive(Debug, clap::Args)]
#[group(skip)] // all are called Args, and groups must differ
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    broker: broker::Args,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// A broker with simulated desktops: durable creates per second and
    /// describe latency. Measured also when no word is given.
    Broker(broker::Args),
    /// Pages of describeSessions out of few and out of many sessions.
    Describe(describe::Args),
    /// Placements in fleets of few and of many servers.
    Placement(placement::Args),
    /// Three replicas whose leader is killed or hands over, under load: how
    /// long clients have to wait.
    Failover(failover::Args),
    /// Durable creates per second on three replicas, beside etcd.
    Cluster(throughput::Args),
    /// Access tokens that one thread checks per second.
    Tokens(tokens::Args),
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        None => broker::run(args.broker).await,
        Some(What::Broker(args)) => broker::run(args).await,
        Some(What::Describe(args)) => describe::run(args).await,
        // It computes and never waits.
        Some(What::Placement(args)) => tokio::task::spawn_blocking(move || placement::run(&args)).await?,
        Some(What::Failover(args)) => failover::run(args).await,
        Some(What::Cluster(args)) => throughput::run(args).await,
        Some(What::Tokens(args)) => tokens::run(args).await,
    }
}

/// Runs a measurement in a folder of its own in `parent`, which is removed
/// afterwards, also when it is interrupted.
async fn in_folder<F>(parent: Option<PathBuf>, measure: impl FnOnce(PathBuf) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let parent = std::path::absolute(parent.unwrap_or_else(std::env::temp_dir))?;
    let folder = parent.join(format!("berth-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let result = tokio::select! {
        result = measure(folder.clone()) => result,
        () = super::interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    let mut removed = std::fs::remove_dir_all(&folder);
    for _ in 0..REMOVALS_MAX {
        if removed.is_ok() {
            break;
        }
        // A process that was killed a moment ago may still have written into it.
        tokio::time::sleep(REMOVAL_PAUSE).await;
        removed = std::fs::remove_dir_all(&folder);
    }
    result.and(removed.with_context(|| format!("cannot remove {}", folder.display())))
}
