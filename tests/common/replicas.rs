//! Several replicas of one cluster, each in a folder of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::api::{Api, Credentials};
use super::broker::statement_path;
use super::process::{Process, berth};
use super::{free_port, until};

/// A replica: what stays over its deaths.
pub struct Replica {
    pub process: Option<Process>,
    pub number: u64,
    pub folder: tempfile::TempDir,
    pub clients: SocketAddr,
    pub agents: SocketAddr,
    pub peers: SocketAddr,
}

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

impl Replica {
    /// A replica with these lines in its configuration; it does not run yet.
    pub fn new(number: u64, configuration: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let replica = Self { process: None, number, folder, clients: local(), agents: local(), peers: local() };
        replica.configure(configuration);
        replica
    }

    /// Writes its configuration.
    pub fn configure(&self, configuration: &str) {
        let Self { number, clients, agents, peers, .. } = self;
        let text = format!(
            "data_folder = '{}'\nreplica = {number}\nclients.listen = '{clients}'\nagents.listen = '{agents}'\n\
             cluster.listen = '{peers}'\ncluster.election_timeout_ms = 600\ncluster.heartbeat_ms = 200\n\
             cluster.request_timeout_seconds = 5\n{configuration}",
            self.data_folder().display(),
        );
        std::fs::write(self.config_path(), text).unwrap();
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("berth.toml")
    }

    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.clients)
    }

    pub fn ca_path(&self) -> PathBuf {
        self.data_folder().join("tls/ca.pem")
    }

    /// A file with what agents enrol with, made when there is none: the
    /// replica must serve then.
    pub fn statement_path(&self) -> PathBuf {
        statement_path(self.folder.path(), &self.data_folder())
    }

    /// Starts it; it may not serve yet.
    pub fn start(&mut self) {
        let mut command = berth();
        command.args(["--log-json", "serve", "--config"]).arg(self.config_path());
        self.process = Some(Process::start(command));
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it was started")
    }

    pub async fn serves(&mut self) {
        self.process().log_record("broker serves").await;
    }

    pub async fn stop(&mut self, by: Signal) {
        let mut process = self.process.take().expect("it was started");
        process.stop(by).await;
    }

    /// A command of an operator; what it printed.
    pub async fn operator(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = berth();
        command.args(arguments).arg("--data-folder").arg(self.data_folder());
        run(command).await
    }

    /// A command that prepares this replica's folder.
    pub async fn prepare(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = berth();
        command.args(arguments).arg("--config").arg(self.config_path());
        run(command).await
    }

    /// The cluster as it sees it.
    pub async fn view(&self) -> Value {
        let printed = self.operator(&["cluster", "status", "--json"]).await.unwrap();
        serde_json::from_str(&printed).unwrap()
    }

    /// Waits until it sees the cluster as wanted.
    pub async fn view_when(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let wanted = &wanted;
        until(&format!("replica {}: {what}", self.number), || async move { Some(self.view().await).filter(wanted) })
            .await
    }

    /// Registers a client as an operator does.
    pub async fn register(&self, name: &str) -> Credentials {
        let printed = self.operator(&["clients", "register", "--client-name", name]).await.unwrap();
        let value = |key: &str| {
            let line = printed.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            line.unwrap_or_else(|| panic!("no {key} in {printed}")).to_owned()
        };
        Credentials { id: value("client-id"), secret: value("client-password") }
    }

    /// A client of this replica.
    pub async fn api(&self, credentials: &Credentials) -> Api {
        Api::connect(&self.url(), &self.ca_path(), credentials).await
    }
}

async fn run(command: Command) -> Result<String, String> {
    let mut process = Process::start(command);
    if process.ended().await.success() { Ok(process.stdout()) } else { Err(process.stderr()) }
}

/// Voting members in a view.
pub fn voters(view: &Value) -> Vec<u64> {
    let members = view["members"].as_array().unwrap();
    members
        .iter()
        .filter(|member| member["is_voter"] == true)
        .map(|member| member["replica"].as_u64().unwrap())
        .collect()
}

/// Replicas that form a cluster by themselves, as their configuration says.
pub struct Replicas {
    pub all: Vec<Replica>,
    /// Holds the cluster's secret.
    place: tempfile::TempDir,
    /// More lines of each configuration.
    configuration: String,
}

impl Replicas {
    /// Replicas that do not run yet.
    pub fn new(count: u64) -> Self {
        Self::with(count, "")
    }

    /// The same with these lines in each configuration.
    pub fn with(count: u64, configuration: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let secret = place.path().join("secret");
        berth::secret::Secret::read_or_create(&secret).unwrap();
        let all: Vec<Replica> = (1..=count).map(|number| Replica::new(number, "")).collect();
        let replicas = Self { all, place, configuration: configuration.to_owned() };
        let places: Vec<usize> = (0..replicas.all.len()).collect();
        replicas.configure(&places);
        replicas
    }

    /// Writes the configurations of some, with the addresses of now.
    fn configure(&self, places: &[usize]) {
        let address = |replica: &Replica| format!("{{ replica = {}, address = '{}' }}", replica.number, replica.peers);
        let members: Vec<String> = self.all.iter().map(address).collect();
        let secret = self.place.path().join("secret");
        for place in places {
            self.all[*place].configure(&format!(
                "cluster.members = [{}]\ncluster.secret_file = '{}'\n{}",
                members.join(", "),
                secret.display(),
                self.configuration
            ));
        }
    }

    /// Has some, which do not run, be elsewhere when they start. The others are
    /// not told. Returns where they were.
    pub fn relocate(&mut self, places: &[usize]) -> Vec<SocketAddr> {
        let before = places.iter().map(|place| std::mem::replace(&mut self.all[*place].peers, local())).collect();
        self.configure(places);
        before
    }

    /// Replicas that serve.
    pub async fn started(count: u64) -> Self {
        let mut replicas = Self::new(count);
        replicas.start().await;
        replicas
    }

    /// The cluster's secret.
    pub fn secret(&self) -> berth::secret::Secret {
        berth::secret::Secret::read(&self.place.path().join("secret")).unwrap()
    }

    pub async fn start(&mut self) {
        self.all.iter_mut().for_each(Replica::start);
        for replica in &mut self.all {
            replica.serves().await;
        }
    }

    /// The position of the one that leads.
    pub async fn leader(&self) -> usize {
        until("a leader that all agree on", || async {
            let mut leaders = Vec::new();
            for replica in self.all.iter().filter(|replica| replica.process.is_some()) {
                leaders.push(replica.view().await["leader"].as_u64());
            }
            leaders.dedup();
            match leaders[..] {
                [Some(leader)] => self.all.iter().position(|replica| replica.number == leader),
                _ => None,
            }
        })
        .await
    }
}
