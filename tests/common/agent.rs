//! `berth agent` with a folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::broker::Broker;
use super::process::{Process, berth};
use super::replicas::Replica;

pub struct Agent {
    // Fields go in this order: the process ends before its folder does.
    pub process: Process,
    pub folder: tempfile::TempDir,
    hides: Option<PathBuf>,
}

impl Agent {
    /// An agent with simulated desktops and these further lines of
    /// configuration.
    pub fn simulated(broker: &Broker, configuration: &str) -> Self {
        Self::start(broker, &format!("desktops = 'simulated'\n{configuration}"), None)
    }

    /// An agent with Xvnc desktops and these further lines of configuration.
    pub fn xvnc(broker: &Broker, configuration: &str) -> Self {
        Self::start(broker, &format!("desktops = 'xvnc'\n{configuration}"), None)
    }

    /// An agent on a host that lacks Xvnc: its program is hidden from it.
    pub fn without_xvnc(broker: &Broker) -> Self {
        let installed = ["/usr/bin/Xvnc", "/usr/local/bin/Xvnc"].map(Path::new);
        let program = installed.into_iter().find(|path| path.exists());
        let program = program.expect("Xvnc is missing: install the Debian package tigervnc-standalone-server");
        Self::start(broker, "desktops = 'xvnc'", Some(program))
    }

    /// An agent on a copy of this one's host: everything in its folder is the
    /// same but the level of the log, which shows each attempt to connect.
    pub fn on_a_copy(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(self.folder.path(), folder.path());
        let configuration = folder.path().join("agent.conf");
        let text = std::fs::read_to_string(&configuration).unwrap();
        std::fs::write(&configuration, text.replace("[log]\n", "[log]\nlevel = 'debug'\n")).unwrap();
        let process = Process::start(command(folder.path(), None));
        Self { process, folder, hides: None }
    }

    /// As [`simulated`](Self::simulated), without anything to enrol with.
    pub fn strange(broker: &Broker, configuration: &str) -> Self {
        let configuration = format!("desktops = 'simulated'\n{configuration}");
        Self::start_at(broker.agents.port(), &broker.ca_path(), None, &configuration, None)
    }

    /// As [`simulated`](Self::simulated), of one of several replicas.
    pub fn simulated_at(replica: &Replica, configuration: &str) -> Self {
        let configuration = format!("desktops = 'simulated'\n{configuration}");
        let (ca, statement) = (replica.ca_path(), replica.statement_path());
        Self::start_at(replica.agents.port(), &ca, Some(&statement), &configuration, None)
    }

    fn start(broker: &Broker, configuration: &str, hides: Option<&Path>) -> Self {
        let (ca, statement) = (broker.ca_path(), broker.statement_path());
        Self::start_at(broker.agents.port(), &ca, Some(&statement), configuration, hides)
    }

    fn start_at(port: u16, ca: &Path, statement: Option<&Path>, configuration: &str, hides: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["init", "autorun", "tags"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let line = |path: &Path| format!("software_statement_path = '{}'", path.display());
        let statement = statement.map(line).unwrap_or_default();
        let text = format!(
            "version = '0.1'\n\
             [xvnc]\n\
             allow_root = true\n\
             [log]\n\
             directory = 'log'\n\
             rotation = 'never'\n\
             [agent]\n\
             broker_host = '127.0.0.1'\n\
             broker_port = {port}\n\
             ca_file = '{ca}'\n\
             {statement}\n\
             data_folder = 'data'\n\
             tags_folder = 'tags'\n\
             init_folder = 'init'\n\
             autorun_folder = 'autorun'\n\
             broker_update_interval = 1\n\
             max_concurrent_sessions_per_user = -1\n\
             {configuration}\n",
            ca = ca.display(),
        );
        std::fs::write(folder.path().join("agent.conf"), text).unwrap();
        let hides = hides.map(Path::to_owned);
        let process = Process::start(command(folder.path(), hides.as_deref()));
        Self { process, folder, hides }
    }

    /// Ends it by a signal and starts it again.
    pub async fn restart(&mut self, by: Signal) {
        self.process.stop(by).await;
        self.start_again();
    }

    /// Starts it again, once it was stopped.
    pub fn start_again(&mut self) {
        self.process = Process::start(command(self.folder.path(), self.hides.as_deref()));
    }

    /// Waits until the broker took a report; the id of its server.
    pub async fn linked(&mut self) -> String {
        let linked = |line: &str| line.contains("sessionsUpdateResponse: success").then_some(());
        self.process.stderr_line("sessionsUpdateResponse: success", linked).await;
        let id = std::fs::read_to_string(self.folder.path().join("data/server-id")).unwrap();
        id.trim().to_owned()
    }

    /// Puts an executable script into one of its folders.
    pub fn script(&self, path: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.path().join(path);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // First the agent, so that it starts nothing more.
        let _ = kill_process(self.process.pid(), Signal::KILL);
        end_desktops(&self.folder.path().join("data/sessions"));
    }
}

/// Another agent with the configuration in a folder.
pub fn another(folder: &Path) -> Command {
    command(folder, None)
}

/// With a program to hide it runs in a mount namespace of its own, where a
/// device lies over that program.
fn command(folder: &Path, hides: Option<&Path>) -> Command {
    let mut agent = berth();
    agent.arg("agent").arg("--config").arg(folder.join("agent.conf"));
    let Some(program) = hides else { return agent };
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-ec", "mount --bind /dev/null \"$0\"; exec \"$@\""]).arg(program);
    command.arg(agent.get_program()).args(agent.get_args());
    command
}

/// Ends what is left of the desktops whose records are in a folder.
pub fn end_desktops(sessions: &Path) {
    for record in records(sessions) {
        for pid in processes_of(&record) {
            // It may have ended since.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// What an agent wrote down of each of its Xvnc sessions.
pub fn records(sessions: &Path) -> Vec<Value> {
    let folders = std::fs::read_dir(sessions).into_iter().flatten().flatten();
    let texts = folders.filter_map(|folder| std::fs::read(folder.path().join("session.json")).ok());
    texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect()
}

/// The processes that bear the mark of a session.
pub fn processes_of(record: &Value) -> Vec<Pid> {
    let mark = format!("BERTH_SESSION={}", record["mark"].as_str().unwrap());
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        })
        .filter_map(|process| Pid::from_raw(process.file_name().to_str()?.parse().ok()?))
        .collect()
}
