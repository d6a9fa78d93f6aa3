//! `berth serve`: a replica of the broker.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::broker;
use crate::broker::config::{Config, Flag, Notice, Sources};

/// Options of `berth serve`; each goes before the same key elsewhere. Every
/// key can be a variable of the environment too: `clients.listen` is
/// BERTH_CLIENTS_LISTEN.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file (TOML).
    #[arg(long, env = "BERTH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The original's session-manager-broker.properties; `--config` goes
    /// before it.
    #[arg(long, env = "BERTH_PROPERTIES", value_name = "FILE")]
    properties: Option<PathBuf>,
    /// Set any key of the configuration; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Folder of everything that must survive.
    #[arg(long, value_name = "FOLDER")]
    data_folder: Option<PathBuf>,
    /// Address and port for API clients.
    #[arg(long, value_name = "ADDRESS")]
    clients_listen: Option<SocketAddr>,
    /// Address and port for agents.
    #[arg(long, value_name = "ADDRESS")]
    agents_listen: Option<SocketAddr>,
    /// Address and port for other replicas.
    #[arg(long, value_name = "ADDRESS")]
    cluster_listen: Option<SocketAddr>,
    /// Where other replicas reach this one.
    #[arg(long, value_name = "HOST:PORT")]
    cluster_address: Option<String>,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it must be of the form KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl Args {
    /// Where the configuration comes from.
    pub(super) fn sources(self) -> Sources {
        let address = |address: Option<SocketAddr>| address.map(|address| OsString::from(address.to_string()));
        let named = [
            ("--data-folder", "data_folder", self.data_folder.map(PathBuf::into_os_string)),
            ("--clients-listen", "clients.listen", address(self.clients_listen)),
            ("--agents-listen", "agents.listen", address(self.agents_listen)),
            ("--cluster-listen", "cluster.listen", address(self.cluster_listen)),
            ("--cluster-address", "cluster.address", self.cluster_address.map(OsString::from)),
        ];
        let named =
            named.into_iter().filter_map(|(name, key, value)| Some(Flag { name, key: key.to_owned(), value: value? }));
        let set = self.set.into_iter().map(|(key, value)| Flag { name: "--set", key, value: value.into() });
        Sources {
            properties: self.properties,
            file: self.config,
            environment: std::env::vars_os().collect(),
            flags: named.chain(set).collect(),
        }
    }

    /// The configuration, if it can be used. What somebody should know about
    /// it goes to the log.
    pub(super) fn config(self) -> anyhow::Result<Config> {
        let loaded = self.sources().load();
        for notice in &loaded.notices {
            match notice {
                Notice::Ignored(text) => tracing::info!("configuration: {text}"),
                Notice::Warning(text) => tracing::warn!("configuration: {text}"),
            }
        }
        Ok(loaded.into_config()?)
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let running = tokio::select! {
        running = broker::start(args.config()?) => running?,
        // It may wait for others for long.
        () = super::interrupted() => return Ok(()),
    };
    running.run_until(super::interrupted()).await?;
    Ok(())
}
