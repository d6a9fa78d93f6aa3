//! The processes under test: the real binary, started on folders and ports of
//! its own, and killed without warning.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::random::Random;

/// Ports that are handed out. Below the range from which Linux takes the ports
/// of outgoing connections: those would hold a port while its broker is dead.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// The binary, as it was when the test began.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    is_release: bool,
}

impl Program {
    /// The binary that `BERTH_PROGRAM` names, a release build. Without it, the
    /// one of this source, built as the test is; it is copied into a folder, so
    /// that another build does not change it under the test.
    pub fn take(folder: &Path) -> anyhow::Result<Self> {
        match std::env::var_os("BERTH_PROGRAM") {
            Some(path) => Self::copy(Path::new(&path), folder, true),
            None => Self::copy(&build()?, folder, !cfg!(debug_assertions)),
        }
    }

    fn copy(path: &Path, folder: &Path, is_release: bool) -> anyhow::Result<Self> {
        let copy = folder.join("berth");
        std::fs::copy(path, &copy).with_context(|| format!("cannot copy {}", path.display()))?;
        Ok(Self { path: copy, is_release })
    }

    /// Whether it is as users get it.
    pub const fn is_release(&self) -> bool {
        self.is_release
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // Nothing of the caller's settings.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BERTH_") {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null());
        command
    }
}

/// Has cargo build the binary, if it is not fresh. Answers with its path.
fn build() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has a root")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--workspace", "--bin", "berth", "--message-format=json"]).current_dir(root);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the binary does not build");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "berth")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo does not say where the binary is")
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a command whose output is appended to `log`.
    fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.spawn().context("the binary does not start")?))
    }

    /// SIGKILL, and waits until nothing is left of it.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// An error when it has ended by itself.
    pub fn lives(&mut self) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            Some(status) => bail!("it ended by itself with {status}"),
            None => Ok(()),
        }
    }

    /// Memory of the process that is resident, in KiB.
    pub fn resident_kib(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A broker: what stays over its deaths.
#[derive(Debug)]
pub struct Broker {
    program: Program,
    folder: PathBuf,
    data_folder: PathBuf,
    clients: SocketAddr,
    agents: SocketAddr,
}

impl Broker {
    /// A broker that has its configuration and its log in `folder`. `settings`
    /// is TOML for the section `[sessions]`.
    pub fn new(
        program: &Program,
        folder: &Path,
        data_folder: &Path,
        random: &mut Random,
        settings: &str,
    ) -> anyhow::Result<Self> {
        let (clients, agents) = (free_port(random)?, free_port(random)?);
        let (folder, data_folder) = (folder.to_owned(), data_folder.to_owned());
        let broker = Self { program: program.clone(), folder, data_folder, clients, agents };
        let configuration = format!(
            "data_folder = '{}'\n[clients]\nlisten = '{clients}'\n[agents]\nlisten = '{agents}'\n[sessions]\n{settings}\n",
            broker.data_folder.display(),
        );
        std::fs::create_dir_all(&broker.folder)?;
        std::fs::write(broker.folder.join("berth.toml"), configuration)?;
        Ok(broker)
    }

    /// Starts it; it may not serve yet.
    pub fn start(&self) -> anyhow::Result<Process> {
        let mut command = self.program.command();
        command.args(["--log", "info,berth_raft=info", "serve", "--config"]).arg(self.folder.join("berth.toml"));
        Process::start(&mut command, &self.log())
    }

    /// Registers an API client with the running broker: its id and secret.
    pub fn register_client(&self) -> anyhow::Result<(String, String)> {
        let mut command = self.program.command();
        command.args(["clients", "register", "--client-name", "chaos", "--data-folder"]).arg(self.data_folder());
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "no client: {}", String::from_utf8_lossy(&output.stderr));
        let value =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned());
        Ok((value("client-id:").context("no client id")?, value("client-password:").context("no secret")?))
    }

    /// What it keeps.
    pub fn data_folder(&self) -> &Path {
        &self.data_folder
    }

    /// Certificate of its authority.
    pub fn ca_path(&self) -> PathBuf {
        self.data_folder().join("tls/ca.pem")
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("https://{}", self.clients)
    }

    /// The last lines of what it said.
    pub fn last_words(&self) -> anyhow::Result<String> {
        const LINES: usize = 10;
        let text = std::fs::read_to_string(self.log())?;
        let lines: Vec<&str> = text.lines().collect();
        Ok(lines[lines.len().saturating_sub(LINES)..].join("\n"))
    }

    fn log(&self) -> PathBuf {
        self.folder.join("broker.log")
    }
}

/// An agent with simulated desktops: what stays over its deaths.
#[derive(Debug)]
pub struct Agent {
    program: Program,
    folder: PathBuf,
}

impl Agent {
    /// An agent of a broker that has started once. At most `sessions_max`
    /// sessions at a time.
    pub fn new(program: &Program, folder: &Path, broker: &Broker, sessions_max: u32) -> anyhow::Result<Self> {
        let agent = Self { program: program.clone(), folder: folder.to_owned() };
        std::fs::create_dir_all(folder)?;
        let configuration = format!(
            "version = '0.1'\n[agent]\nbroker_host = '{}'\nbroker_port = {}\nca_file = '{}'\nsecret_file = '{}'\n\
             data_folder = 'data'\ntags_folder = 'tags'\ndesktops = 'simulated'\nbroker_update_interval = 5\n\
             max_concurrent_sessions_per_user = -1\nmax_virtual_sessions = {sessions_max}\n\
             [log]\ndirectory = 'log'\nrotation = 'never'\n[simulated]\ntrace_file = '{}'\n",
            broker.agents.ip(),
            broker.agents.port(),
            broker.ca_path().display(),
            broker.data_folder().join("agent-secret").display(),
            agent.trace().display(),
        );
        std::fs::write(folder.join("agent.conf"), configuration)?;
        Ok(agent)
    }

    /// Starts it; it connects when it can.
    pub fn start(&self) -> anyhow::Result<Process> {
        let mut command = self.program.command();
        command.args(["agent", "--config"]).arg(self.folder.join("agent.conf"));
        Process::start(&mut command, &self.folder.join("output.log"))
    }

    /// Id of the server that it speaks for, once it has begun.
    pub fn server(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join("data/server-id")).ok()?;
        Some(text.trim().to_owned())
    }

    /// What really happened to its desktops.
    pub fn trace(&self) -> PathBuf {
        self.folder.join("trace")
    }
}

/// A port of the loopback address that nobody holds.
fn free_port(random: &mut Random) -> anyhow::Result<SocketAddr> {
    for _ in 0..1000 {
        let port = u16::try_from(PORTS.start + random.below(PORTS.end - PORTS.start))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}
