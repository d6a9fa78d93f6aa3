//! `agent.conf`: the original's TOML file with a few keys of our own.
//!
//! `docs/agent.md` lists every key; a test compares the two. An unknown key is
//! an error that names it, so that a typing mistake is not a silent default.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::brokers::Address;
use super::desktops::simulated;
use crate::files;
use crate::protocol;

/// Where the configuration is looked for when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/berth/agent.conf";

/// The only version of the file format, the original's.
pub const VERSION: &str = "0.1";

/// Longest configuration or statement that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Brokers that one agent may know: each may be tried in a round.
const BROKERS_MAX: usize = 32;

/// Smallest and largest screen in pixels, for both width and height.
pub const GEOMETRY_PIXELS: std::ops::RangeInclusive<u16> = 100..=8192;

/// What a configuration can be refused for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the agent's configuration {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML, lacks a key, or has one that does not exist.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What and where, by the parser.
        message: String,
    },
    /// A value cannot be used.
    #[error("agent configuration: {key} {problem}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The software statement is not safe where it lies.
    #[error(
        "the software statement {} has mode {mode:04o}: others could read or change it; run chmod 600 on it",
        path.display()
    )]
    StatementExposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The software statement cannot be read.
    #[error("cannot read the software statement {}: {source}", path.display())]
    StatementRead {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no usable statement in the file.
    #[error("the software statement {} {problem}", path.display())]
    StatementContent {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// How an agent is set up.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Host name or address of the broker, or of a balancer before it; empty
    /// when all stand in `brokers`.
    pub broker_host: String,
    /// Port for agents there.
    pub broker_port: u16,
    /// Replicas of the broker.
    pub brokers: Vec<Address>,
    /// Certificates (PEM) that the broker's must lead to.
    pub ca_file: Option<PathBuf>,
    /// Whether the broker's certificate is checked.
    pub tls_strict: bool,
    /// What the agent enrols with, once; not read any more afterwards.
    pub software_statement_path: Option<PathBuf>,
    /// State of the agent: id, ledger, sessions. One agent at a time uses it.
    pub data_folder: PathBuf,
    /// Folder with the operator's tags.
    pub tags_folder: PathBuf,
    /// Scripts that start a desktop.
    pub init_folder: PathBuf,
    /// Programs that may run in a new session.
    pub autorun_folder: PathBuf,
    /// Virtual sessions at a time; `None` sets no limit.
    pub max_virtual_sessions: Option<u32>,
    /// Virtual sessions of one owner at a time; `None` sets no limit.
    pub max_concurrent_sessions_per_user: Option<u32>,
    /// Time between reports.
    pub broker_update_interval: Duration,
    /// Whether logged-in users are reported.
    pub enable_query_logged_in_users: bool,
    /// Address that clients are told, when not the one used toward the broker.
    pub advertise_ip: Option<std::net::IpAddr>,
    /// Kind of desktop.
    pub desktops: DesktopKind,
    /// Settings of Xvnc desktops.
    pub xvnc: Xvnc,
    /// Settings of simulated desktops.
    pub simulated: simulated::Settings,
    /// Log file.
    pub log: Log,
    /// What the operator should know about the file, for the log.
    pub warnings: Vec<String>,
}

/// Kind of desktop that an agent gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DesktopKind {
    /// TigerVNC's Xvnc.
    #[default]
    Xvnc,
    /// None, in truth: for load and tests.
    Simulated,
}

/// Settings of Xvnc desktops.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Xvnc {
    /// Size of a new screen.
    #[serde(deserialize_with = "geometry")]
    pub geometry: Geometry,
    /// Program that starts the desktop when a session names no init file; an
    /// absolute path. `None` takes the first one that is installed.
    pub window_manager: Option<PathBuf>,
    /// Whether the user root may own a session. Whoever may create sessions
    /// through the broker is then root on this host.
    pub allow_root: bool,
}

impl Default for Xvnc {
    fn default() -> Self {
        Self { geometry: Geometry { width: 1280, height: 800 }, window_manager: None, allow_root: false }
    }
}

/// Size of a screen in pixels; both within [`GEOMETRY_PIXELS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Pixels from left to right.
    pub width: u16,
    /// Pixels from top to bottom.
    pub height: u16,
}

fn geometry<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Geometry, D::Error> {
    let text = String::deserialize(deserializer)?;
    let pixels = |text: &str| text.parse().ok().filter(|pixels| GEOMETRY_PIXELS.contains(pixels));
    text.split_once('x')
        .and_then(|(width, height)| Some(Geometry { width: pixels(width)?, height: pixels(height)? }))
        .ok_or_else(|| {
            serde::de::Error::custom(format!(
                "geometry must be WIDTHxHEIGHT, each from {} to {} pixels, not '{text}'",
                GEOMETRY_PIXELS.start(),
                GEOMETRY_PIXELS.end()
            ))
        })
}

/// Log file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Least severe level that is written.
    pub level: LogLevel,
    /// Folder of the log files.
    pub directory: PathBuf,
    /// When a new file begins.
    pub rotation: Rotation,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, directory: "/var/log/berth-agent".into(), rotation: Rotation::Daily }
    }
}

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Only errors.
    Error,
    /// And warnings.
    #[serde(alias = "warn")]
    Warning,
    /// And what an operator wants to read.
    #[default]
    Info,
    /// And what a developer wants to read.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The same for `tracing`.
    pub const fn as_tracing(self) -> tracing::Level {
        match self {
            Self::Error => tracing::Level::ERROR,
            Self::Warning => tracing::Level::WARN,
            Self::Info => tracing::Level::INFO,
            Self::Debug => tracing::Level::DEBUG,
            Self::Trace => tracing::Level::TRACE,
        }
    }
}

/// When a new log file begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// Each day, UTC.
    #[default]
    Daily,
    /// Each hour.
    Hourly,
    /// Never.
    Never,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: String,
    #[serde(default)]
    agent: Agent,
    #[serde(default)]
    log: Log,
    #[serde(default)]
    xvnc: Xvnc,
    #[serde(default)]
    simulated: simulated::Settings,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Agent {
    broker_host: String,
    broker_port: u16,
    brokers: Vec<String>,
    ca_file: Option<PathBuf>,
    tls_strict: bool,
    data_folder: PathBuf,
    tags_folder: PathBuf,
    init_folder: PathBuf,
    autorun_folder: PathBuf,
    max_virtual_sessions: i64,
    max_concurrent_sessions_per_user: i64,
    broker_update_interval: u64,
    enable_query_logged_in_users: bool,
    advertise_ip: Option<std::net::IpAddr>,
    desktops: DesktopKind,
    software_statement_path: Option<PathBuf>,
    dcv_root: Option<PathBuf>,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            broker_host: String::new(),
            broker_port: protocol::DEFAULT_PORT,
            brokers: Vec::new(),
            ca_file: None,
            tls_strict: true,
            data_folder: "/var/lib/berth-agent".into(),
            tags_folder: "/etc/berth/tags".into(),
            init_folder: "/var/lib/berth-agent/init".into(),
            autorun_folder: "/var/lib/berth-agent/autorun".into(),
            max_virtual_sessions: -1,
            max_concurrent_sessions_per_user: 1,
            broker_update_interval: 30,
            enable_query_logged_in_users: true,
            advertise_ip: None,
            desktops: DesktopKind::Xvnc,
            software_statement_path: None,
            dcv_root: None,
        }
    }
}

impl Config {
    /// A configuration with the defaults of the file for everything else;
    /// [`Self::check`] has not seen it yet.
    pub fn new(broker_host: &str, software_statement: &Path, data_folder: &Path) -> Self {
        let agent = Agent {
            broker_host: broker_host.to_owned(),
            software_statement_path: Some(software_statement.to_path_buf()),
            init_folder: data_folder.join("init"),
            autorun_folder: data_folder.join("autorun"),
            data_folder: data_folder.to_path_buf(),
            ..Agent::default()
        };
        Self {
            broker_host: agent.broker_host,
            broker_port: agent.broker_port,
            brokers: Vec::new(),
            ca_file: agent.ca_file,
            tls_strict: agent.tls_strict,
            software_statement_path: agent.software_statement_path,
            data_folder: agent.data_folder,
            tags_folder: agent.tags_folder,
            init_folder: agent.init_folder,
            autorun_folder: agent.autorun_folder,
            max_virtual_sessions: None,
            max_concurrent_sessions_per_user: Some(1),
            broker_update_interval: Duration::from_secs(agent.broker_update_interval),
            enable_query_logged_in_users: agent.enable_query_logged_in_users,
            advertise_ip: agent.advertise_ip,
            desktops: agent.desktops,
            xvnc: Xvnc::default(),
            simulated: simulated::Settings::default(),
            log: Log::default(),
            warnings: Vec::new(),
        }
    }

    /// Reads and checks a file. Relative paths in it start at its folder.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = files::read_text(path, FILE_BYTES_MAX)
            .map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is where it lies.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let file: File = toml::from_str(text)
            .map_err(|error| Error::Syntax { path: path.to_path_buf(), message: error.to_string() })?;
        if file.version != VERSION {
            let problem = format!("must be '{VERSION}', not '{}'", file.version);
            return Err(Error::Value { key: "version", problem });
        }
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        let agent = file.agent;
        let mut warnings = Vec::new();
        if agent.dcv_root.is_some() {
            warnings.push("dcv_root is not used here and can be removed from the configuration".to_owned());
        }
        let config = Self {
            broker_host: agent.broker_host,
            broker_port: agent.broker_port,
            brokers: brokers(&agent.brokers, agent.broker_port)?,
            ca_file: agent.ca_file.map(|file| folder.join(file)),
            tls_strict: agent.tls_strict,
            software_statement_path: agent.software_statement_path.map(|file| folder.join(file)),
            data_folder: folder.join(agent.data_folder),
            tags_folder: folder.join(agent.tags_folder),
            init_folder: folder.join(agent.init_folder),
            autorun_folder: folder.join(agent.autorun_folder),
            max_virtual_sessions: limit("max_virtual_sessions", agent.max_virtual_sessions)?,
            max_concurrent_sessions_per_user: limit(
                "max_concurrent_sessions_per_user",
                agent.max_concurrent_sessions_per_user,
            )?,
            broker_update_interval: Duration::from_secs(agent.broker_update_interval),
            enable_query_logged_in_users: agent.enable_query_logged_in_users,
            advertise_ip: agent.advertise_ip,
            desktops: agent.desktops,
            xvnc: file.xvnc,
            simulated: simulated::Settings {
                trace_file: file.simulated.trace_file.map(|file| folder.join(file)),
                ..file.simulated
            },
            log: Log { directory: folder.join(&file.log.directory), ..file.log },
            warnings,
        };
        config.check()?;
        Ok(config)
    }

    /// Checks what depends on more than one key, or on a range.
    pub fn check(&self) -> Result<(), Error> {
        let value = |key, problem: &str| Err(Error::Value { key, problem: problem.to_owned() });
        if self.broker_host.is_empty() && self.brokers.is_empty() {
            return value(
                "broker_host",
                "must be set to the broker's host name or address, or brokers to a list of them",
            );
        }
        if self.all_brokers().len() > BROKERS_MAX {
            return value("brokers", "must name at most 32");
        }
        if self.broker_port == 0 {
            return value("broker_port", "must be from 1 to 65535");
        }
        if self.tls_strict && self.ca_file.is_none() {
            return value("ca_file", "must name the broker's CA certificates (PEM) while tls_strict is true");
        }
        let interval_ms = self.broker_update_interval.as_millis();
        let allowed = u128::from(protocol::REPORT_INTERVAL_MS_MIN)..=u128::from(protocol::REPORT_INTERVAL_MS_MAX);
        if !allowed.contains(&interval_ms) {
            return value("broker_update_interval", "must be from 1 to 600 seconds");
        }
        if self.xvnc.window_manager.as_ref().is_some_and(|program| !program.is_absolute()) {
            return value("xvnc.window_manager", "must be an absolute path");
        }
        self.simulated.check().map_err(|problem| Error::Value { key: "simulated", problem })
    }

    /// All brokers that the configuration names, each once.
    pub fn all_brokers(&self) -> Vec<Address> {
        let host = self.broker_host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let first = (!host.is_empty()).then_some(Address { host, port: self.broker_port });
        let mut all: Vec<Address> = first.into_iter().chain(self.brokers.iter().cloned()).collect();
        all.sort();
        all.dedup();
        all
    }
}

/// Reads a software statement: what `berth generate-software-statement`
/// prints, with or without the words before it. It is 16 to 4,096 visible ASCII
/// characters, in a file that nobody but its owner (and for reading its group)
/// can use. The owner is root or the agent's user.
pub(super) fn read_statement(path: &Path) -> Result<Zeroizing<String>, Error> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let path = path.to_path_buf();
    let metadata = std::fs::metadata(&path).map_err(|source| Error::StatementRead { path: path.clone(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o037 != 0 {
        return Err(Error::StatementExposed { path, mode });
    }
    if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::StatementContent { path, problem: "must belong to root or to the agent's user" });
    }
    let text = files::read_text(&path, FILE_BYTES_MAX)
        .map(Zeroizing::new)
        .map_err(|source| Error::StatementRead { path: path.clone(), source })?;
    let text = text.trim();
    let statement = text.strip_prefix("software-statement:").map_or(text, str::trim);
    if !(16..=4096).contains(&statement.len()) {
        return Err(Error::StatementContent { path, problem: "must hold 16 to 4096 characters" });
    }
    if !statement.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::StatementContent { path, problem: "must hold one line of visible ASCII characters" });
    }
    Ok(Zeroizing::new(statement.to_owned()))
}

fn brokers(texts: &[String], default_port: u16) -> Result<Vec<Address>, Error> {
    let read = |text: &String| {
        let problem = |problem| Error::Value { key: "brokers", problem: format!("entry '{text}' {problem}") };
        Address::parse(text, default_port).map_err(problem)
    };
    texts.iter().map(read).collect()
}

/// The original writes -1 for "no limit".
fn limit(key: &'static str, number: i64) -> Result<Option<u32>, Error> {
    if number == -1 {
        return Ok(None);
    }
    let problem = || format!("must be -1 (no limit) or from 0 to {}, not {number}", u32::MAX);
    u32::try_from(number).map(Some).map_err(|_| Error::Value { key, problem: problem() })
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
