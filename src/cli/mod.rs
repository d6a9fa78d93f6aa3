//! Role: a person at a terminal. One file for each command.

#[macro_use]
mod output;

mod access;
mod agent;
mod audit;
mod backup;
mod bench;
mod clients;
mod cluster;
mod config;
mod dev;
mod gateways;
mod http;
mod original;
mod restore;
mod serve;
mod socket;
mod tls;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// A highly available session broker for fleets of remote desktops.
#[derive(Debug, Parser)]
#[command(name = "berth", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What to log, as in `info` or `berth=debug,berth_raft=info`. By default
    /// `info`, for `dev` and `bench` only warnings.
    #[arg(long, global = true, env = "BERTH_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Log as JSON, one object a line.
    #[arg(long, global = true, env = "BERTH_LOG_JSON")]
    log_json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a replica of the broker.
    Serve(serve::Args),
    /// Run the agent of a desktop host.
    Agent(agent::Args),
    /// Run a broker, an agent and a first desktop on this machine.
    Dev(dev::Args),
    /// Look at the configuration of a replica.
    #[command(subcommand)]
    Config(config::Command),
    /// Register, list, change and unregister clients of the API.
    #[command(subcommand)]
    Clients(clients::Command),
    /// Sign tokens with new keys.
    #[command(subcommand)]
    Keys(access::Keys),
    /// Let agents enrol: software statements.
    #[command(subcommand)]
    Statements(access::Statements),
    /// List and unregister agents that enrolled.
    #[command(subcommand)]
    Agents(access::Agents),
    /// List and revoke certificates of gateways.
    #[command(subcommand)]
    Gateways(gateways::Command),
    /// Take access tokens of other authorization servers.
    #[command(subcommand)]
    AuthServers(access::AuthServers),
    /// Names under which gateways reach servers.
    #[command(subcommand)]
    ServerNames(access::ServerNames),
    /// See who did what, and check that nothing of it was changed.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Form a cluster of replicas, see how it fares, change its members.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// See when certificates end, have them read again, make those of gateways.
    #[command(subcommand)]
    Tls(tls::Command),
    /// Back a cluster up into one file, through a replica on this machine.
    Backup(backup::Args),
    /// Begin a new cluster with a backup, in an empty data folder.
    Restore(restore::RestoreArgs),
    /// Measure: a broker as its clients see it, or parts of one by themselves.
    Bench(bench::Args),
    #[command(flatten)]
    Original(original::Command),
}

/// Runs what the command line asks for.
pub fn main() -> ExitCode {
    let cli = Cli::parse_from(original::translated(std::env::args_os()));
    // The agent's configuration says where its log goes.
    let logging = match &cli.command {
        Command::Agent(args) => agent::start_log(args, cli.log.as_deref()),
        _ => log_to_stderr(&cli),
    };
    if let Err(error) = logging {
        return fail(&error);
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(args).await,
            Command::Agent(args) => agent::run(args).await,
            Command::Dev(args) => dev::run(args).await,
            Command::Config(command) => config::run(command),
            Command::Clients(command) => clients::run(command).await,
            Command::Keys(command) => command.run().await,
            Command::Statements(command) => command.run().await,
            Command::Agents(command) => command.run().await,
            Command::Gateways(command) => gateways::run(command).await,
            Command::AuthServers(command) => command.run().await,
            Command::ServerNames(command) => command.run().await,
            Command::Audit(command) => audit::run(command).await,
            Command::Cluster(command) => cluster::run(command).await,
            Command::Tls(command) => tls::run(command).await,
            Command::Backup(args) => backup::run(args).await,
            Command::Restore(args) => restore::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Original(command) => original::run(command).await,
        }
    });
    // A thread that hangs in the system's hands must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(10));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn log_to_stderr(cli: &Cli) -> anyhow::Result<()> {
    let level = match cli.command {
        // They have something else to say on the terminal.
        Command::Dev(_) | Command::Bench(_) | Command::Cluster(_) | Command::Backup(_) | Command::Restore(_) => "warn",
        _ => "info",
    };
    let filter = EnvFilter::try_new(cli.log.clone().unwrap_or_else(|| quiet_libraries(level)))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if cli.log_json {
        subscriber.json().init();
    } else {
        subscriber.with_target(false).init();
    }
    Ok(())
}

/// A level for the program itself. The consensus library tells its inner life
/// at `info` and `warn`, which means nothing to operators.
fn quiet_libraries(level: &str) -> String {
    format!("{level},openraft=error")
}

/// Says what went wrong and why, from the outside in.
#[allow(clippy::print_stderr)] // the one place that talks to a person about failure
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("berth: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
    ExitCode::FAILURE
}

/// Completes on Ctrl-C or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
