//! `berth agent`: the agent of a desktop host.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriterExt;

use crate::agent::{self, Config, config::DEFAULT_PATH, logfile::LogFile};

/// Options of `berth agent`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file (agent.conf, TOML).
    #[arg(long, env = "BERTH_AGENT_CONFIG", default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
}

/// Logs to the agent's log file and to standard error, at the level of
/// `agent.conf` unless the command line names another.
pub(super) fn start_log(args: &Args, filter: Option<&str>) -> anyhow::Result<()> {
    let log = Config::load(&args.config)?.log;
    let level = log.level.as_tracing().to_string();
    let filter = filter.map_or(level, str::to_owned);
    let file = LogFile::open(&log)?;
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_ansi(false)
        .with_target(false)
        .with_writer(Arc::new(file).and(std::io::stderr))
        .init();
    Ok(())
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        super::interrupted().await;
        stop.cancel();
    });
    agent::run(config, shutdown).await?;
    Ok(())
}
