//! `berth serve`: a replica of the broker.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::broker::{self, config::Config};

/// Options of `berth serve`; each goes before the same key of the configuration.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file (TOML).
    #[arg(long, env = "BERTH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of everything that must survive.
    #[arg(long, env = "BERTH_DATA_FOLDER", value_name = "FOLDER")]
    data_folder: Option<PathBuf>,
    /// Address and port for API clients.
    #[arg(long, env = "BERTH_CLIENTS_LISTEN", value_name = "ADDRESS")]
    clients_listen: Option<SocketAddr>,
    /// Address and port for agents.
    #[arg(long, env = "BERTH_AGENTS_LISTEN", value_name = "ADDRESS")]
    agents_listen: Option<SocketAddr>,
    /// Address and port for other replicas.
    #[arg(long, env = "BERTH_CLUSTER_LISTEN", value_name = "ADDRESS")]
    cluster_listen: Option<SocketAddr>,
    /// Where other replicas reach this one.
    #[arg(long, env = "BERTH_CLUSTER_ADDRESS", value_name = "HOST:PORT")]
    cluster_address: Option<String>,
}

impl Args {
    /// The configuration that the options and the file give.
    pub(super) fn config(self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if let Some(folder) = self.data_folder {
            config.data_folder = folder;
        }
        if let Some(address) = self.clients_listen {
            config.clients.listen = address;
        }
        if let Some(address) = self.agents_listen {
            config.agents.listen = address;
        }
        if let Some(address) = self.cluster_listen {
            config.cluster.listen = address;
        }
        if let Some(address) = self.cluster_address {
            config.cluster.address = Some(address);
        }
        Ok(config)
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let running = broker::start(args.config()?).await?;
    running.run_until(super::interrupted()).await?;
    Ok(())
}
