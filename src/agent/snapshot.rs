//! The host at a moment, read again and again beside the engine.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::warn;

use super::config::{Config, DesktopKind};
use super::host::{Facts, Host, Names};
use super::tags;
use crate::domain::host::{Cpu, HostFacts, HostLoad, Limits, Os, OsFamily, Usage};

/// Longest time that reading may take; a folder of tags may lie on a network
/// that is gone. The report is sent all the same, with what was known.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Facts and load as they are reported; the address is filled in by the engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Snapshot {
    pub(super) facts: HostFacts,
    pub(super) load: HostLoad,
    warnings: BTreeSet<String>,
}

impl Snapshot {
    /// The facts with the address that clients are told.
    pub(super) fn facts_at(&self, ip: Option<IpAddr>) -> HostFacts {
        let ip = ip.map(|ip| ip.to_canonical().to_string()).unwrap_or_default();
        HostFacts { ip, ..self.facts.clone() }
    }
}

/// Reads snapshots.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    source: Source,
    tags_folder: PathBuf,
    limits: Limits,
    desktop_version: String,
    with_users: bool,
}

#[derive(Debug, Clone)]
enum Source {
    Host(Host),
    /// Always the same, so that a thousand simulated hosts cost nothing.
    Simulated(Arc<Facts>),
}

impl Reader {
    pub(super) fn new(config: &Config, desktop_version: String, console_sessions: bool) -> Self {
        let source = match config.desktops {
            DesktopKind::Xvnc => Source::Host(Host::at(Path::new("/"))),
            DesktopKind::Simulated => Source::Simulated(Arc::new(simulated(config.simulated.hostname.as_deref()))),
        };
        Self {
            source,
            tags_folder: config.tags_folder.clone(),
            limits: Limits {
                virtual_sessions_max: config.max_virtual_sessions,
                sessions_per_owner_max: config.max_concurrent_sessions_per_user,
                console_sessions,
            },
            desktop_version,
            with_users: config.enable_query_logged_in_users,
        }
    }

    /// Blocks for some milliseconds.
    pub(super) fn read(&self) -> Snapshot {
        let tags::Operator { tags, warnings } = tags::read(&self.tags_folder);
        let (facts, load) = match &self.source {
            Source::Host(host) => (host.facts(), host.load(self.with_users)),
            Source::Simulated(facts) => (Facts::clone(facts), simulated_load()),
        };
        let facts = HostFacts {
            hostname: facts.names.hostname,
            ip: String::new(),
            dns_name: facts.names.dns_name,
            endpoints: Vec::new(),
            web_url_path: None,
            desktop_version: self.desktop_version.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            tags: tags::with_built_in(tags, facts.os.family, self.limits),
            os: facts.os,
            cpu: facts.cpu,
            gpus: facts.gpus,
            aws: facts.aws,
            limits: self.limits,
        };
        Snapshot { facts, load, warnings }
    }

    /// Sends a snapshot each `every`, the first at once, until the receiver is gone.
    pub(super) async fn run(self, every: Duration, snapshots: mpsc::Sender<Snapshot>) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut latest = Snapshot::default();
        // A reading that hangs is waited for, never doubled.
        let mut reading = None;
        loop {
            ticks.tick().await;
            let task = reading.get_or_insert_with(|| {
                let reader = self.clone();
                tokio::task::spawn_blocking(move || reader.read())
            });
            let read = timeout(READ_TIMEOUT, task).await;
            if read.is_ok() {
                reading = None;
            }
            match read {
                Ok(Ok(snapshot)) => {
                    for sentence in snapshot.warnings.difference(&latest.warnings) {
                        warn!("{sentence}");
                    }
                    latest = snapshot;
                }
                Ok(Err(error)) => warn!(%error, "reading the facts of the host failed"),
                Err(_) => warn!("reading the facts of the host hangs; reporting what was known"),
            }
            if snapshots.send(latest.clone()).await.is_err() {
                return;
            }
        }
    }
}

fn simulated(hostname: Option<&str>) -> Facts {
    Facts {
        names: Names { hostname: hostname.unwrap_or("simulated").to_owned(), dns_name: None },
        os: Os {
            family: OsFamily::Linux,
            name: "Simulated".to_owned(),
            version: "1".to_owned(),
            kernel_version: Some("6.1.0".to_owned()),
            build_number: None,
        },
        cpu: Cpu {
            vendor: "Simulated".to_owned(),
            model_name: "Simulated".to_owned(),
            architecture: "x86_64".to_owned(),
            logical_count: 8,
            physical_cores_per_cpu: 4,
        },
        gpus: Vec::new(),
        aws: None,
    }
}

fn simulated_load() -> HostLoad {
    let gibibytes = |count: u64| count << 30;
    HostLoad {
        memory: Usage { total_bytes: gibibytes(32), used_bytes: gibibytes(rand::random_range(4..28)) },
        ..HostLoad::default()
    }
}
