//! The role of a desktop host: tells a broker what the host is and how it
//! fares, and makes, changes and ends sessions there.
//!
//! - [`config`]: `agent.conf`. `docs/agent.md` is its page.
//! - [`brokers`]: which brokers there are, and in which order they are tried.
//! - `link`: the connection, opened again whenever it ends, through `connect`
//!   and over a [`network`].
//! - [`enrolment`]: the agent's key and certificate.
//! - `engine`: the owner of all state; instructions in, answers and reports out.
//! - `ledger`: instructions on disk, so that each has its effect once.
//! - `host`, `snapshot`, `tags`: what is reported of the host.
//! - [`desktops`]: the kinds of desktop.
//! - [`logfile`]: log files that begin anew each day.
//!
//! There are no globals: several agents may live in one process.

pub mod brokers;
mod clock;
pub mod config;
mod connect;
pub mod desktops;
mod engine;
pub mod enrolment;
mod host;
mod ledger;
mod link;
pub mod logfile;
pub mod network;
mod reports;
mod snapshot;
mod tags;
mod tls;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::domain::host::Limits;
use crate::domain::{AgentInstance, ServerId};

use crate::files;
pub use crate::files::FileError;
pub use config::Config;
pub use enrolment::Error as EnrolmentError;
pub use ledger::Error as LedgerError;
pub use tls::Error as TlsError;

use brokers::in_order_of;
use config::DesktopKind;
use connect::Opener;
use desktops::Desktops;
use desktops::simulated::Simulated;
use desktops::xvnc::Xvnc;
use engine::{Engine, Parts};
use enrolment::Enrolment;
use ledger::Ledger;
use link::Link;
use network::{Network, System};
use snapshot::Reader;
use tls::Connector;

/// Events of the link that wait for the engine.
const EVENTS_MAX: usize = 64;

/// Why an agent cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// A file of the agent cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The Xvnc desktops cannot be used.
    #[error(transparent)]
    Xvnc(#[from] desktops::xvnc::Error),
    /// The agent's key or certificate cannot be used.
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Another agent uses the data folder.
    #[error("another agent uses {}; stop it or set another data_folder", .0.display())]
    Locked(PathBuf),
    /// The file with the server's id holds none.
    #[error("{} holds no server id; restore it, or remove it to become a new server", .0.display())]
    ServerId(PathBuf),
    /// A part of the agent ended by itself: a defect.
    #[error("the agent's {0} task ended by itself")]
    Task(&'static str),
}

/// Runs an agent until `shutdown` is cancelled. Sessions stay.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    config.check()?;
    let lock = open_data_folder(&config.data_folder)?;
    let desktops: Arc<dyn Desktops> = match config.desktops {
        DesktopKind::Xvnc => Arc::new(Xvnc::open(xvnc_setup(&config)).await?),
        DesktopKind::Simulated => Arc::new(Simulated::new(config.simulated.clone())),
    };
    run_locked(config, desktops, Arc::new(System), shutdown, lock).await
}

/// Runs an agent with desktops of the caller's: tests hold on to theirs.
pub async fn run_with(config: Config, desktops: Arc<dyn Desktops>, shutdown: CancellationToken) -> Result<(), Error> {
    run_over(Arc::new(System), config, desktops, shutdown).await
}

/// The same over a network of the caller's.
pub async fn run_over(
    network: Arc<dyn Network>,
    config: Config,
    desktops: Arc<dyn Desktops>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    config.check()?;
    let lock = open_data_folder(&config.data_folder)?;
    run_locked(config, desktops, network, shutdown, lock).await
}

/// What Xvnc desktops need of an agent's configuration.
pub fn xvnc_setup(config: &Config) -> desktops::xvnc::Setup {
    desktops::xvnc::Setup {
        folder: config.data_folder.join("sessions"),
        init_folder: config.init_folder.clone(),
        autorun_folder: config.autorun_folder.clone(),
        settings: config.xvnc.clone(),
    }
}

async fn run_locked(
    config: Config,
    desktops: Arc<dyn Desktops>,
    network: Arc<dyn Network>,
    shutdown: CancellationToken,
    _lock: File,
) -> Result<(), Error> {
    for sentence in &config.warnings {
        warn!("{sentence}");
    }
    if !config.tls_strict {
        warn!("tls_strict is false: whoever answers at the broker's address is believed to be the broker");
    }
    let server_id_file = config.data_folder.join("server-id");
    let server = server_id(&server_id_file)?;
    let instance = AgentInstance::new(&uuid::Uuid::new_v4().to_string()).expect("a UUID is short and printable");
    info!(%server, %instance, desktops = desktops.version(), "the agent starts");
    // Simulated sessions end with the agent; their ledger does, too.
    let ledger_folder = config.data_folder.join("ledger");
    let ledger = Ledger::open((config.desktops != DesktopKind::Simulated).then_some(ledger_folder.as_path()))?;
    let ca_file = if config.tls_strict { config.ca_file.as_deref() } else { None };
    let (event_sender, events) = mpsc::channel(EVENTS_MAX);
    let plain = Connector::new(ca_file, None)?;
    let console_sessions = desktops.console_sessions();
    let reader = Reader::new(&config, desktops.version(), console_sessions);
    let (snapshot_sender, mut snapshots) = mpsc::channel(1);
    let reading = tokio::spawn(reader.run(config.broker_update_interval, snapshot_sender));
    let first = snapshots.recv().await.ok_or(Error::Task("snapshot"))?;
    let enrolment = Enrolment::open(
        &config.data_folder,
        server.clone(),
        first.facts.hostname.clone(),
        config.software_statement_path.clone(),
    )?;
    let connector = Connector::new(ca_file, Some(enrolment.resolver()))?;
    let opener = Arc::new(Opener { network, server: server.clone(), enrolment, connector, plain });
    let brokers = in_order_of(&server, config.all_brokers());
    let link = Link { brokers: brokers.clone(), opener: Arc::clone(&opener), server_id_file, events: event_sender };
    let engine = Engine::new(Parts {
        server,
        instance,
        limits: Limits {
            virtual_sessions_max: config.max_virtual_sessions,
            sessions_per_owner_max: config.max_concurrent_sessions_per_user,
            console_sessions,
        },
        report_interval: config.broker_update_interval,
        advertise_ip: config.advertise_ip,
        desktops,
        ledger,
        first,
        events,
        snapshots,
    });
    // Not a child of `shutdown`: the engine ends first, and would take the
    // link's end for a defect.
    let stop = CancellationToken::new();
    let linking = tokio::spawn(link.run(stop.clone()));
    let renewing = {
        let stop = stop.clone();
        tokio::spawn(async move { opener.keep_enrolled(&brokers, stop).await })
    };
    let outcome = engine.run(shutdown).await;
    stop.cancel();
    reading.abort();
    // Lets the link close its socket in order; it ends within seconds.
    let _ = linking.await;
    renewing.abort();
    info!("the agent ended; its sessions stay");
    outcome
}

/// Makes the data folder and takes hold of it.
fn open_data_folder(folder: &Path) -> Result<File, Error> {
    // Owners of sessions pass through it to their own files, but cannot list it.
    files::make_folder(folder, 0o711)?;
    files::lock(&folder.join("lock"))?.ok_or_else(|| Error::Locked(folder.to_path_buf()))
}

/// The id of this server: made once, kept for ever.
fn server_id(path: &Path) -> Result<ServerId, Error> {
    match files::read_text(path, 4096) {
        Ok(text) => ServerId::new(text.trim()).map_err(|_| Error::ServerId(path.to_path_buf())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // A copy of a host that is to be a server of its own is another agent.
            enrolment::forget(path.parent().unwrap_or_else(|| Path::new(".")))?;
            let id = uuid::Uuid::new_v4().to_string();
            files::replace(path, format!("{id}\n").as_bytes(), 0o600)?;
            ServerId::new(&id).map_err(|_| Error::ServerId(path.to_path_buf()))
        }
        Err(source) => Err(FileError::of("read", path)(source).into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_server_keeps_its_id() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server-id");
        let id = server_id(&path).unwrap();
        assert_eq!(server_id(&path).unwrap(), id);
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(server_id(&path), Err(Error::ServerId(_))));
    }

    #[test]
    fn a_data_folder_has_one_agent() {
        let folder = tempfile::tempdir().unwrap();
        let lock = open_data_folder(folder.path()).unwrap();
        assert!(matches!(open_data_folder(folder.path()), Err(Error::Locked(_))));
        drop(lock);
        open_data_folder(folder.path()).unwrap();
    }
}
