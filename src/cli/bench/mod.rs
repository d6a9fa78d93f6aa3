//! `berth bench`: measurements that anybody can repeat; `docs/measurements.md`
//! holds what came out here.

mod broker;
mod describe;
mod placement;

/// Options of `berth bench`; without a word, `broker` is measured.
#[derive(Debug, clap::Args)]
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
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        None => broker::run(args.broker).await,
        Some(What::Broker(args)) => broker::run(args).await,
        Some(What::Describe(args)) => describe::run(args).await,
        // It computes and never waits.
        Some(What::Placement(args)) => tokio::task::spawn_blocking(move || placement::run(&args)).await?,
    }
}
