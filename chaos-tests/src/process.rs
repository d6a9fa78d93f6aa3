//! The processes under test: the real binary, started on folders and ports of
//! its own, and killed without warning.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use berth::secret::Secret;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::faultfs::Faults;
use crate::lab::Host;
use crate::random::Random;

/// Ports that are handed out. Below the range from which Linux takes the ports
/// of outgoing connections: those would hold a port while its broker is dead.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// How long a command of an operator may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(45);

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

    /// The binary without arguments, and without the caller's settings.
    pub fn command(&self) -> Command {
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
    let profile: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };
    built("berth", &[&["--workspace"], profile].concat())
}

/// Has cargo build a program of the workspace, if it is not fresh. Answers with
/// its path.
pub fn built(program: &str, options: &[&str]) -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has a root")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--message-format=json", "--bin", program]).args(options).current_dir(root);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "{program} does not build");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == program)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo does not say where {program} is"))
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a command whose output is appended to `log`, on a host of a lab or
    /// here.
    pub fn start(command: &mut Command, log: &Path, host: Option<&Host>) -> anyhow::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        command.stdout(log.try_clone()?).stderr(log);
        let child = match host {
            Some(host) => host.spawn(command),
            None => Ok(command.spawn()?),
        };
        Ok(Self(child.context("the binary does not start")?))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).context("a process has a number")?;
        Ok(kill_process(pid, signal)?)
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
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

    /// Whether it was stopped by a signal and has not gone on.
    pub fn stands_still(&self) -> anyhow::Result<bool> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        Ok(state.starts_with('T'))
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

/// Where a broker runs, and under what.
#[derive(Debug, Default)]
pub struct Ground {
    /// The host of a lab; this one without.
    pub host: Option<Arc<Host>>,
    /// Its disk and clock, if they are to have faults.
    pub faults: Option<Faults>,
}

/// A broker: what stays over its deaths.
#[derive(Debug)]
pub struct Broker {
    program: Program,
    folder: PathBuf,
    data_folder: PathBuf,
    clients: SocketAddr,
    agents: SocketAddr,
    ground: Ground,
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
        let addresses = (free_port(random)?, free_port(random)?);
        let settings = format!("[sessions]\n{settings}\n");
        Self::placed(program, folder, data_folder, addresses, Ground::default(), &settings)
    }

    /// A broker with these addresses for clients and agents, and more settings.
    pub fn placed(
        program: &Program,
        folder: &Path,
        data_folder: &Path,
        (clients, agents): (SocketAddr, SocketAddr),
        ground: Ground,
        settings: &str,
    ) -> anyhow::Result<Self> {
        let (folder, data_folder) = (folder.to_owned(), data_folder.to_owned());
        let broker = Self { program: program.clone(), folder, data_folder, clients, agents, ground };
        std::fs::create_dir_all(&broker.folder)?;
        broker.configure(settings)?;
        Ok(broker)
    }

    /// Writes its configuration; the next start has it.
    pub fn configure(&self, settings: &str) -> anyhow::Result<()> {
        let Self { clients, agents, .. } = self;
        let configuration = format!(
            // All clients of a run have one address.
            // It sees the interfaces of this machine, not those of its host in a lab.
            "data_folder = '{}'\nnames = ['{}']\nclients.listen = '{clients}'\nagents.listen = '{agents}'\n\
             limits.requests_per_second = 0\n{settings}",
            self.data_folder.display(),
            clients.ip(),
        );
        Ok(std::fs::write(self.config_path(), configuration)?)
    }

    /// Its configuration.
    pub fn config_path(&self) -> PathBuf {
        self.folder.join("berth.toml")
    }

    /// Where agents find it.
    pub const fn agents_address(&self) -> SocketAddr {
        self.agents
    }

    /// Its disk and clock, where they can have faults.
    pub fn faults(&self) -> anyhow::Result<&Faults> {
        self.ground.faults.as_ref().context("this broker's disk has no faults")
    }

    /// The host of a lab that it runs on.
    pub fn host(&self) -> anyhow::Result<&Arc<Host>> {
        self.ground.host.as_ref().context("this broker runs in no lab")
    }

    /// A command of an operator, and what it printed.
    pub fn operator(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.program.command();
        command.args(arguments).arg("--data-folder").arg(self.data_folder());
        printed(&mut command)
    }

    /// A command that prepares its folder, on its host, and what it printed.
    pub fn prepare(&self, arguments: &[&str], input: Option<&Path>) -> anyhow::Result<String> {
        let mut command = self.program.command();
        command.args(arguments).arg("--config").arg(self.config_path());
        if let Some(input) = input {
            command.stdin(std::fs::File::open(input)?);
        }
        match &self.ground.host {
            Some(host) => host.inside(|| printed(&mut command)),
            None => printed(&mut command),
        }
    }

    /// Starts it; it may not serve yet.
    pub fn start(&self) -> anyhow::Result<Process> {
        let mut command = self.program.command();
        command.args(["--log", "info,berth_raft=info", "serve", "--config"]).arg(self.config_path());
        if let Some(faults) = &self.ground.faults {
            faults.attach(&mut command);
        }
        Process::start(&mut command, &self.log(), self.ground.host.as_deref())
    }

    /// Registers an API client with the running broker: its id and secret.
    pub fn register_client(&self) -> anyhow::Result<(String, String)> {
        let text = self.operator(&["clients", "register", "--client-name", "chaos"]).context("no client")?;
        let value =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned());
        Ok((value("client-id:").context("no client id")?, value("client-password:").context("no secret")?))
    }

    /// A file with what agents enrol with at the running broker.
    pub fn write_statement(&self, path: &Path) -> anyhow::Result<()> {
        let text = self.operator(&["generate-software-statement"]).context("no software statement")?;
        Ok(Secret::new(text).write(path)?)
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

    /// How many lines of what it said in all its lives hold a text.
    pub fn said(&self, text: &str) -> anyhow::Result<u64> {
        lines_with(&self.log(), text)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("broker.log")
    }
}

/// How many lines of a file hold a text.
fn lines_with(path: &Path, text: &str) -> anyhow::Result<u64> {
    let said = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(said.lines().filter(|line| line.contains(text)).count() as u64)
}

/// An agent with simulated desktops: what stays over its deaths.
#[derive(Debug)]
pub struct Agent {
    program: Program,
    folder: PathBuf,
    host: Option<Arc<Host>>,
}

/// Where an agent finds brokers, and what it trusts.
#[derive(Debug, Clone)]
pub struct Home {
    /// Lines of `[agent]` that say where the brokers are.
    pub brokers: String,
    /// Certificate of their authority.
    pub ca_file: PathBuf,
    /// What it enrols with.
    pub statement_file: PathBuf,
}

impl Agent {
    /// An agent of a broker that serves. At most `sessions_max` sessions at a
    /// time.
    pub fn new(program: &Program, folder: &Path, broker: &Broker, sessions_max: u32) -> anyhow::Result<Self> {
        let home = Home {
            brokers: format!("broker_host = '{}'\nbroker_port = {}\n", broker.agents.ip(), broker.agents.port()),
            ca_file: broker.ca_path(),
            statement_file: broker.folder.join("software-statement"),
        };
        if !home.statement_file.exists() {
            broker.write_statement(&home.statement_file)?;
        }
        Self::placed(program, folder, &home, None, sessions_max)
    }

    /// An agent on a host of a lab, or here.
    pub fn placed(
        program: &Program,
        folder: &Path,
        home: &Home,
        host: Option<Arc<Host>>,
        sessions_max: u32,
    ) -> anyhow::Result<Self> {
        let agent = Self { program: program.clone(), folder: folder.to_owned(), host };
        std::fs::create_dir_all(folder)?;
        let configuration = format!(
            "version = '0.1'\n[agent]\n{}ca_file = '{}'\nsoftware_statement_path = '{}'\n\
             data_folder = 'data'\ntags_folder = 'tags'\ndesktops = 'simulated'\nbroker_update_interval = 5\n\
             max_concurrent_sessions_per_user = -1\nmax_virtual_sessions = {sessions_max}\n\
             [log]\ndirectory = 'log'\nrotation = 'never'\n[simulated]\ntrace_file = '{}'\n",
            home.brokers,
            home.ca_file.display(),
            home.statement_file.display(),
            agent.trace().display(),
        );
        std::fs::write(folder.join("agent.conf"), configuration)?;
        Ok(agent)
    }

    /// Starts it; it connects when it can.
    pub fn start(&self) -> anyhow::Result<Process> {
        let mut command = self.program.command();
        command.args(["agent", "--config"]).arg(self.folder.join("agent.conf"));
        Process::start(&mut command, &self.folder.join("output.log"), self.host.as_deref())
    }

    /// Id of the server that it speaks for, once it has begun.
    pub fn server(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join("data/server-id")).ok()?;
        Some(text.trim().to_owned())
    }

    /// How many lines of what it said in all its lives hold a text.
    pub fn said(&self, text: &str) -> anyhow::Result<u64> {
        let mut count = 0;
        for entry in std::fs::read_dir(self.folder.join("log"))? {
            count += lines_with(&entry?.path(), text)?;
        }
        Ok(count)
    }

    /// Whether it has a connection, by its own last word on that. The log of the
    /// brokers may know one that ended with the replica which had it, until that
    /// replica has begun anew.
    pub fn is_linked(&self) -> anyhow::Result<bool> {
        const LINKED: &str = "linked to the broker";
        const NOT_LINKED: [&str; 3] = ["the agent starts", "no link to the broker", "another agent uses the id"];
        // One that has just begun has not said anything yet.
        let Ok(files) = std::fs::read_dir(self.folder.join("log")) else { return Ok(false) };
        let mut is_linked = false;
        for entry in files {
            let said = std::fs::read_to_string(entry?.path())?;
            let words = said.lines().rev().filter_map(|line| {
                let is_no = NOT_LINKED.iter().any(|word| line.contains(word));
                (is_no || line.contains(LINKED)).then_some(!is_no)
            });
            is_linked |= words.take(1).any(|linked| linked);
        }
        Ok(is_linked)
    }

    /// What really happened to its desktops.
    pub fn trace(&self) -> PathBuf {
        self.folder.join("trace")
    }
}

/// What a command prints, which ends soon.
fn printed(command: &mut Command) -> anyhow::Result<String> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + COMMAND_LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{:?} has not ended after {COMMAND_LIMIT:?}", command.get_args().collect::<Vec<_>>());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // It is short enough for a pipe.
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{:?} failed: {}",
        command.get_args().collect::<Vec<_>>(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(text)
}

/// A port of the loopback address that nobody holds. None is given twice in a process.
fn free_port(random: &mut Random) -> anyhow::Result<SocketAddr> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..1000 {
        let port = u16::try_from(PORTS.start + random.below(PORTS.end - PORTS.start))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let is_new = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        if is_new && TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}
