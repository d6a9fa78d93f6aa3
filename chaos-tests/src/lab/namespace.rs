//! Network namespaces, made with `ip netns` under names that say whose they are.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Beginning of the names of all namespaces of tests; the pid of the test follows.
const PREFIX: &str = "berth-lab-";
/// Where `ip netns` keeps them.
const FOLDER: &str = "/run/netns";
/// How long a process may take to be gone after it was killed.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// A network namespace; removed when dropped, and what still runs in it is killed.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// A new one. `lab` tells the labs of this process apart.
    pub(super) fn create(lab: u32, host: &str) -> anyhow::Result<Self> {
        let name = format!("{PREFIX}{}-{lab}-{host}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let opened = File::open(Path::new(FOLDER).join(&name));
        match opened {
            Ok(file) => {
                let namespace = Self { name, file };
                namespace.ip(&["link", "set", "lo", "up"])?;
                Ok(namespace)
            }
            Err(error) => {
                delete(&name)?;
                Err(error).with_context(|| format!("the namespace {name} cannot be opened"))
            }
        }
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` for it.
    pub(super) fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments)).map(drop)
    }

    /// Moves the calling thread into it for good. Threads and processes that it
    /// starts from then on are in it as well.
    pub fn enter(&self) -> anyhow::Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter the namespace {}", self.name))
    }

    /// Does something in it, on a thread of its own, and waits for the end of it.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a process in it, without a shell or another process between.
    pub fn spawn(&self, command: &mut Command) -> anyhow::Result<Child> {
        self.inside(|| command.spawn().with_context(|| format!("cannot run {}", command.get_program().display())))
    }

    /// Runs a command in it that gets `input`.
    pub(super) fn run(&self, command: &mut Command, input: &str) -> anyhow::Result<Output> {
        use std::io::Write;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        let mut stdin = child.stdin.take().context("no input")?;
        // It may refuse to read all of it; its status tells.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        succeeded(command, child.wait_with_output()?)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What cannot be removed now, a later start removes.
        let _ = delete(&self.name);
    }
}

/// Removes what killed tests have left: namespaces with the pid of a process
/// that is no more.
pub(super) fn remove_left_over() -> anyhow::Result<()> {
    let entries = match std::fs::read_dir(FOLDER) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {FOLDER}")),
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !is_alive(pid)) {
            let deleted = delete(&name);
            // Another test may have been faster.
            if Path::new(FOLDER).join(&name).exists() {
                deleted.with_context(|| format!("a killed test left the namespace {name}"))?;
            }
        }
    }
    Ok(())
}

/// The process that made a namespace, if it was a test.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    PathBuf::from(format!("/proc/{pid}")).exists()
}

fn delete(name: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + DEATH_LIMIT;
    loop {
        let output = run(Command::new("ip").args(["netns", "pids", name]))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let pids = text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
        // `ip` itself is listed when a thread in there runs it.
        let others: Vec<u32> = pids.filter(|&pid| pid != std::process::id() && lives(pid)).collect();
        if others.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "processes {others:?} in {name} do not end");
        for pid in others {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    run(Command::new("ip").args(["netns", "del", name])).map(drop)
}

/// Whether a process is there, and not only its parent has not noticed its end.
fn lives(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

pub(super) fn run(command: &mut Command) -> anyhow::Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}; the lab needs it", command.get_program().display()))?;
    succeeded(command, output)
}

fn succeeded(command: &Command, output: Output) -> anyhow::Result<Output> {
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_whose_it_is() {
        assert_eq!(owner("berth-lab-4711-0-replica-1"), Some(4711));
        assert_eq!(owner("berth-lab-x-0-a"), None);
        assert_eq!(owner("other-4711"), None);
        assert!(is_alive(std::process::id()) && lives(std::process::id()));
        assert!(!is_alive(4_194_305) && !lives(4_194_305), "no pid is that great");
    }
}
