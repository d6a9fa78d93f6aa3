//! A broker and its agents, with their history.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::client::{self, Api};
use crate::desktops::Desktops;
use crate::faults;
use crate::history::{Event, History};
use crate::judge::{Observed, Violation, judge, stories};
use crate::process::{Agent, Broker, Process, Program};
use crate::random::Random;

/// Sessions that one agent takes.
const SESSIONS_PER_SERVER_MAX: u32 = 100;
/// How long everything may take to come to rest. An agent that lost its broker
/// several times waits up to 10 s before it comes again.
const REST_LIMIT: Duration = Duration::from_mins(1);
/// A first start lasts about as long.
const FIRST_START_MS: u64 = 300;
/// Deleted sessions stay visible for longer than any test lasts: what was ever
/// acknowledged must be seen for ever.
const SETTINGS: &str = "deleted_retention_seconds = 604800";

/// A broker and its agents.
#[derive(Debug)]
pub struct Cluster {
    broker: Broker,
    broker_process: Option<Process>,
    agents: Vec<Hosted>,
    history: Arc<History>,
    api: Api,
}

impl Cluster {
    /// Starts a cluster in an empty folder, with the broker's data in another
    /// one. The broker may be killed a few times before it has ever served.
    pub async fn start(
        program: &Program,
        folder: &Path,
        data_folder: &Path,
        agents: usize,
        random: &mut Random,
    ) -> anyhow::Result<Self> {
        let broker = Broker::new(program, folder, data_folder, random, SETTINGS)?;
        for _ in 0..random.below(3) {
            let process = broker.start()?;
            faults::moment(random, FIRST_START_MS).await;
            process.kill()?;
        }
        let mut process = broker.start()?;
        let api = Api::register(&broker, &mut process).await?;
        let agents = (0..agents)
            .map(|number| {
                let folder = folder.join(format!("agent-{number}"));
                Ok((Agent::new(program, &folder, &broker, SESSIONS_PER_SERVER_MAX)?, None))
            })
            .collect::<anyhow::Result<_>>()?;
        let history = Arc::new(History::default());
        let mut cluster = Self { broker, broker_process: Some(process), agents, history, api };
        cluster.start_agents()?;
        cluster.rest().await?;
        Ok(cluster)
    }

    /// What happened so far.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// The broker.
    pub const fn broker(&self) -> &Broker {
        &self.broker
    }

    /// A client with a connection of its own.
    pub fn client(&self) -> anyhow::Result<Api> {
        self.api.again(&self.broker)
    }

    /// Number of agents.
    pub fn agents_count(&self) -> usize {
        self.agents.len()
    }

    /// Kills the broker, if it runs.
    pub fn kill_broker(&mut self) -> anyhow::Result<()> {
        let sent = self.history.now();
        if let Some(mut process) = self.broker_process.take() {
            process.lives().context("the broker")?;
            process.kill()?;
            self.history.add([Event::BrokerKilled { span: self.history.since(sent) }]);
        }
        Ok(())
    }

    /// Starts the broker; it may not serve yet.
    pub fn start_broker(&mut self) -> anyhow::Result<()> {
        self.broker_process = Some(self.broker.start()?);
        Ok(())
    }

    /// An error when the broker has ended by itself.
    pub fn broker_lives(&mut self) -> anyhow::Result<()> {
        self.broker_process.as_mut().context("the broker was not started")?.lives().context("the broker")
    }

    /// Waits until the broker has ended by itself, and answers with its last words.
    pub async fn broker_ends(&mut self) -> anyhow::Result<String> {
        let mut process = self.broker_process.take().context("the broker was not started")?;
        let deadline = Instant::now() + REST_LIMIT;
        while process.lives().is_ok() {
            ensure!(Instant::now() < deadline, "the broker has not ended after {REST_LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.broker.last_words()
    }

    /// Kills agents, by their numbers.
    pub fn kill_agents(&mut self, numbers: &[usize]) -> anyhow::Result<()> {
        for &number in numbers {
            kill_agent(self.agents.get_mut(number).context("no such agent")?, &self.history)?;
        }
        Ok(())
    }

    /// Starts the agents that do not run.
    pub fn start_agents(&mut self) -> anyhow::Result<()> {
        start_agents(&mut self.agents)
    }

    /// Waits until the broker serves.
    pub async fn serving(&mut self) -> anyhow::Result<()> {
        let process = self.broker_process.as_mut().context("the broker was not started")?;
        client::serving(&self.broker, process).await
    }

    /// Waits until everything has come to rest as the history wants it: no
    /// session on its way, every agent connected, desktops and READY sessions
    /// the same. The token is the one from the beginning.
    pub async fn rest(&mut self) -> anyhow::Result<Observed> {
        self.serving().await?;
        let deadline = Instant::now() + REST_LIMIT;
        loop {
            let observed = self.observe().await?;
            let violations = judge(&self.history.events(), &observed, SESSIONS_PER_SERVER_MAX as usize);
            let late = Instant::now() > deadline;
            if late || !violations.iter().all(Violation::may_pass) {
                ensure!(violations.is_empty(), "{}", list(&violations));
            }
            let absent = self.absent().await?;
            if violations.is_empty() && absent.is_empty() {
                let untold = stories(&self.history.events(), &observed);
                ensure!(untold.is_empty(), "{}", list(&untold));
                return Ok(observed);
            }
            if late {
                bail!("agents are not connected after {REST_LIMIT:?}: {absent:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Agents that are not connected, by the brokers' word or their own.
    async fn absent(&self) -> anyhow::Result<Vec<String>> {
        let known = |(agent, _): &Hosted| agent.server().unwrap_or_else(|| "an agent without an id".to_owned());
        let absent = self.api.absent(self.agents.iter().map(known)).await?;
        if !absent.is_empty() {
            return Ok(absent);
        }
        unlinked(&self.agents)
    }

    async fn observe(&mut self) -> anyhow::Result<Observed> {
        let sessions = self.api.sessions(&[]).await?;
        let mut desktops = Vec::new();
        for (agent, process) in &mut self.agents {
            if let Some(process) = process {
                process.lives().context("an agent")?;
            }
            // One that was just started has neither yet.
            if let Some(server) = agent.server()
                && agent.trace().exists()
            {
                desktops.push(Desktops::read(&server, &agent.trace())?);
            }
        }
        Ok(Observed { sessions, desktops })
    }
}

/// An agent, and its process while it runs.
pub(crate) type Hosted = (Agent, Option<Process>);

/// Kills an agent and its desktops; tells whether it ran.
pub(crate) fn kill_agent((agent, process): &mut Hosted, history: &History) -> anyhow::Result<bool> {
    let Some(mut process) = process.take() else { return Ok(false) };
    process.lives().context("an agent")?;
    let sent = history.now();
    process.kill()?;
    let span = history.since(sent);
    // Without an id it had not begun yet.
    history.add(agent.server().map(|server| Event::AgentKilled { span, server }));
    Ok(true)
}

/// Agents that have no connection by their own word.
pub(crate) fn unlinked(agents: &[Hosted]) -> anyhow::Result<Vec<String>> {
    let mut unlinked = Vec::new();
    for (agent, _) in agents {
        if !agent.is_linked()? {
            unlinked.push(format!("{}: says that it has no connection", agent.server().unwrap_or_default()));
        }
    }
    Ok(unlinked)
}

/// Starts those agents that do not run.
pub(crate) fn start_agents(agents: &mut [Hosted]) -> anyhow::Result<()> {
    for (agent, process) in agents {
        if process.is_none() {
            *process = Some(agent.start()?);
        }
    }
    Ok(())
}

pub(crate) fn list(violations: &[Violation]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = violations.iter().take(SHOWN).map(ToString::to_string).collect();
    format!("{} violations:\n  {}", violations.len(), shown.join("\n  "))
}
