//! `berth serve` in a folder of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::api::{Api, Credentials};
use super::free_port;
use super::process::{Process, berth};

pub struct Broker {
    // Fields go in this order: the process ends before its folder does.
    pub process: Process,
    pub folder: tempfile::TempDir,
    pub clients: SocketAddr,
    pub agents: SocketAddr,
}

impl Broker {
    /// With ports that the system chooses.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// With these lines in its configuration.
    pub async fn start_with(configuration: &str) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_at(any, any, configuration).await
    }

    /// That logs as much as a filter lets through.
    pub async fn start_logging(filter: &str) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("berth.toml"), "").unwrap();
        let mut command = command(folder.path(), any, any);
        command.env("BERTH_LOG", filter);
        let mut broker = Self { process: Process::start(command), folder, clients: any, agents: any };
        broker.serves().await;
        broker
    }

    /// With ports that it can have again after a restart.
    pub async fn start_to_be_restarted() -> Self {
        let [clients, agents] = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        Self::start_at(clients, agents, "").await
    }

    async fn start_at(clients: SocketAddr, agents: SocketAddr, configuration: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("berth.toml"), configuration).unwrap();
        let process = Process::start(command(folder.path(), clients, agents));
        let mut broker = Self { process, folder, clients, agents };
        broker.serves().await;
        broker
    }

    /// Waits until it says where it serves.
    async fn serves(&mut self) {
        let record = self.process.log_record("broker serves").await;
        let address = |key: &str| record["fields"][key].as_str().unwrap().parse().unwrap();
        (self.clients, self.agents) = (address("clients"), address("agents"));
    }

    /// Ends it by a signal and starts it again at the same ports.
    pub async fn restart(&mut self, by: Signal) {
        self.process.stop(by).await;
        self.restart_after_end().await;
    }

    /// Starts it again, once it has ended, at the same ports.
    pub async fn restart_after_end(&mut self) {
        self.process = Process::start(self.command());
        self.serves().await;
    }

    /// The command that starts it.
    pub fn command(&self) -> Command {
        command(self.folder.path(), self.clients, self.agents)
    }

    pub fn data_folder(&self) -> PathBuf {
        data_folder(self.folder.path())
    }

    pub fn ca_path(&self) -> PathBuf {
        self.data_folder().join("tls/ca.pem")
    }

    /// A file with what agents enrol with, made when there is none: the broker
    /// must serve then.
    pub fn statement_path(&self) -> PathBuf {
        statement_path(self.folder.path(), &self.data_folder())
    }

    /// What agents enrol with.
    pub fn statement(&self) -> String {
        std::fs::read_to_string(self.statement_path()).unwrap().trim().to_owned()
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.clients.port())
    }

    /// TLS that trusts this broker alone.
    pub fn tls(&self, alpn: &[&[u8]]) -> rustls::ClientConfig {
        tls_of(&self.ca_path(), alpn)
    }

    /// What `berth clients VERB …` prints.
    pub async fn clients_command(&self, arguments: &[&str]) -> Result<String, String> {
        self.operate(&[&["clients"], arguments].concat()).await
    }

    /// What an operator's command prints.
    pub async fn operate(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = berth();
        command.args(arguments).arg("--data-folder").arg(self.data_folder());
        let mut process = Process::start(command);
        if process.ended().await.success() { Ok(process.stdout()) } else { Err(process.stderr()) }
    }

    /// Registers a client as an operator does.
    pub async fn register(&self, name: &str) -> Credentials {
        let printed = self.clients_command(&["register", "--client-name", name]).await.unwrap();
        let value = |key: &str| {
            let line = printed.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            line.unwrap_or_else(|| panic!("no {key} in {printed}")).to_owned()
        };
        Credentials { id: value("client-id"), secret: value("client-password") }
    }

    /// A client with an access token.
    pub async fn api(&self) -> Api {
        let credentials = self.register("tests").await;
        Api::connect(&self.url(), &self.ca_path(), &credentials).await
    }
}

/// TLS that trusts one authority alone.
pub fn tls_of(authority: &Path, alpn: &[&[u8]]) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

/// A file in a folder with what agents enrol with, made by an operator when
/// there is none.
pub fn statement_path(folder: &Path, data_folder: &Path) -> PathBuf {
    let path = folder.join("software-statement");
    if !path.exists() {
        let mut command = berth();
        let output = command.arg("generate-software-statement").arg("--data-folder").arg(data_folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        let statement = printed.trim().strip_prefix("software-statement: ").unwrap();
        berth::secret::Secret::new(statement.to_owned()).write(&path).unwrap();
    }
    path
}

fn data_folder(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn command(folder: &Path, clients: SocketAddr, agents: SocketAddr) -> Command {
    let mut command = berth();
    command.args(["--log-json", "serve", "--config"]).arg(folder.join("berth.toml"));
    command.arg("--data-folder").arg(data_folder(folder));
    command.args(["--clients-listen", &clients.to_string(), "--agents-listen", &agents.to_string()]);
    command
}
