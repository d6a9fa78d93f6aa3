//! Thousands of agents in one process: the agent's own code, with simulated
//! desktops that take no sessions, on a host of their own.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use berth::agent;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

use crate::lab::Host;
use crate::process::Home;

/// What their host names begin with.
pub const NAMES: &str = "swarm-";
/// Open files that an agent needs, with room to spare.
const FILES_PER_AGENT: u64 = 4;

/// Agents that run.
#[derive(Debug)]
pub struct Swarm {
    stop: CancellationToken,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Swarm {
    /// Starts so many agents on a host; they connect when they can.
    pub fn start(host: &Arc<Host>, folder: &Path, home: &Home, count: usize) -> anyhow::Result<Self> {
        raise_files_max(count as u64 * FILES_PER_AGENT + 1000)?;
        let configs = (0..count).map(|number| config(folder, home, number)).collect::<anyhow::Result<Vec<_>>>()?;
        let (stop, host) = (CancellationToken::new(), Arc::clone(host));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("swarm".to_owned()).spawn(move || {
            // The runtime's threads, which come from this one, are there, too.
            host.enter()?;
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(async {
                let mut agents = tokio::task::JoinSet::new();
                for config in configs {
                    agents.spawn(agent::run(config, stopped.clone()));
                }
                while let Some(ended) = agents.join_next().await {
                    ended?.context("an agent of the swarm")?;
                    ensure!(stopped.is_cancelled(), "an agent of the swarm ended by itself");
                }
                Ok(())
            })
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends them all.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // What went wrong was told by `stop`, or nobody asked.
            let _ = thread.join();
        }
    }
}

fn config(folder: &Path, home: &Home, number: usize) -> anyhow::Result<agent::Config> {
    let text = format!(
        "version = '0.1'\n[agent]\n{}ca_file = '{}'\nsoftware_statement_path = '{}'\ndata_folder = 'agent-{number}'\n\
         tags_folder = 'tags'\ndesktops = 'simulated'\nbroker_update_interval = 30\nmax_virtual_sessions = 0\n\
         [simulated]\nhostname = '{NAMES}{number}'\n",
        home.brokers,
        home.ca_file.display(),
        home.statement_file.display(),
    );
    std::fs::create_dir_all(folder)?;
    Ok(agent::Config::parse(&text, &folder.join("agent.conf"))?)
}

/// Lets this process, and those it starts, open so many files.
pub fn raise_files_max(count: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        ensure!(limit.maximum.is_none_or(|most| most >= count), "this run needs {count} open files: ulimit -Hn");
        setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum: limit.maximum })?;
    }
    Ok(())
}
