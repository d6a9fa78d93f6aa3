//! Who may come in besides API clients: keys, software statements, agents,
//! authorization servers, and names of servers for gateways.

use std::path::{Path, PathBuf};

use anyhow::Context;
use axum::http::Method;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::clients::{Described, KeepOld, uuid};
use super::socket::Socket;
use crate::broker::admin::access::{
    AgentEntry, AuthServerEntry, AuthServerRequest, AuthServerUrl, MapRequest, MappingEntry, RenewRequest,
    StatementEntry, StatementText,
};

/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Verbs of `berth keys`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Keys {
    /// Sign access tokens with a new key from now on.
    Renew {
        /// Connection tokens instead.
        #[arg(long)]
        connection: bool,
        #[command(flatten)]
        keep: KeepOld,
        #[command(flatten)]
        broker: Socket,
    },
}

/// Verbs of `berth statements`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Statements {
    /// Let agents enrol with a new statement, and print it.
    Generate {
        #[command(flatten)]
        broker: Socket,
    },
    /// List the statements.
    List {
        #[command(flatten)]
        broker: Socket,
    },
    /// Let no further agents enrol with a statement.
    Deactivate {
        /// The statement.
        #[arg(long)]
        software_statement: String,
        #[command(flatten)]
        broker: Socket,
    },
}

/// Verbs of `berth agents`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Agents {
    /// List the agents that enrolled.
    List {
        #[command(flatten)]
        broker: Socket,
    },
    /// Let an agent in no more.
    Unregister {
        /// Its id.
        #[arg(long)]
        client_id: String,
        #[command(flatten)]
        broker: Socket,
    },
}

/// Verbs of `berth auth-servers`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum AuthServers {
    /// Take access tokens of another authorization server.
    Register(Box<RegisterAuthServer>),
    /// List the authorization servers.
    List {
        /// With what is demanded of their tokens, as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        broker: Socket,
    },
    /// Take its access tokens no more.
    Unregister {
        /// Where its keys are.
        #[arg(long)]
        url: String,
        #[command(flatten)]
        broker: Socket,
    },
}

/// An authorization server to be registered.
#[derive(Debug, clap::Args)]
pub(super) struct RegisterAuthServer {
    /// Where its keys are: ends with `.well-known/jwks.json`.
    #[arg(long)]
    url: String,
    /// Algorithms that its tokens may be signed with, with commas between; each
    /// that fits the key when not given.
    #[arg(long, value_delimiter = ',', alias = "algorithm", alias = "signing-algorithm", value_name = "ALGORITHMS")]
    algorithms: Vec<String>,
    /// `iss` that its tokens must have.
    #[arg(long)]
    issuer: Option<String>,
    /// `aud` that its tokens must have.
    #[arg(long)]
    audience: Option<String>,
    /// `typ` that its tokens must have.
    #[arg(long, value_name = "TYPE")]
    token_type: Option<String>,
    /// A scope that its tokens must have.
    #[arg(long)]
    scope: Option<String>,
    /// File with its public keys in PEM, which are then not fetched.
    #[arg(long, value_name = "FILE")]
    keys_file: Option<PathBuf>,
    /// File with the authorities in PEM that the URL's certificate may come from.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Change what is demanded of the tokens of a server that is registered.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    broker: Socket,
}

/// Verbs of `berth server-names`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum ServerNames {
    /// Take names of servers over from a file.
    Register {
        /// JSON: a list of mappings.
        #[arg(long, value_name = "FILE")]
        file_path: PathBuf,
        /// Drop all other names.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        broker: Socket,
    },
    /// List the names.
    List {
        #[command(flatten)]
        broker: Socket,
    },
}

impl Keys {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self::Renew { connection, keep, broker } = self;
        let path = if connection { "/keys/connection" } else { "/keys/access" };
        broker.call_raw(Method::POST, path, serde_json::to_string(&RenewRequest::from(keep))?).await?;
        say!("Keys renewed.");
        Ok(())
    }
}

/// A statement as the original lists it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct DescribedStatement {
    software_statement: String,
    issued_at: String,
    is_active: String,
}

impl Statements {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Generate { broker } => {
                let answer: StatementText = broker.call(Method::POST, "/statements", String::new()).await?;
                say!("software-statement: {}", answer.statement);
            }
            Self::List { broker } => {
                let entries: Vec<StatementEntry> = broker.call(Method::GET, "/statements", String::new()).await?;
                let described = entries.into_iter().map(described).collect::<anyhow::Result<Vec<_>>>()?;
                say!("Software Statements");
                say!("{}", serde_json::to_string_pretty(&described)?);
            }
            Self::Deactivate { software_statement, broker } => {
                let body = serde_json::to_string(&StatementText { statement: software_statement })?;
                broker.call_raw(Method::POST, "/statements/deactivate", body).await?;
                say!("Software statement deactivated.");
            }
        }
        Ok(())
    }
}

fn described(entry: StatementEntry) -> anyhow::Result<DescribedStatement> {
    let at = Timestamp::from_millisecond(i64::try_from(entry.issued_at)?)?.to_zoned(TimeZone::UTC);
    Ok(DescribedStatement {
        software_statement: entry.statement,
        issued_at: at.strftime("%Y.%m.%d %H:%M:%S +0000").to_string(),
        is_active: entry.active.to_string(),
    })
}

impl Agents {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List { broker } => {
                let agents: Vec<AgentEntry> = broker.call(Method::GET, "/agents", String::new()).await?;
                let described =
                    agents.into_iter().map(|agent| Described { name: agent.name, id: agent.id, active: agent.active });
                say!("Session manager agent clients");
                say!("{}", serde_json::to_string_pretty(&described.collect::<Vec<_>>())?);
            }
            Self::Unregister { client_id, broker } => {
                let client_id = uuid(&client_id)?;
                broker.call_raw(Method::DELETE, &format!("/agents/{client_id}"), String::new()).await?;
                say!("agent client {client_id} unregistered");
            }
        }
        Ok(())
    }
}

impl AuthServers {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Register(register) => register.run().await?,
            Self::List { json, broker } => {
                let servers: Vec<AuthServerEntry> = broker.call(Method::GET, "/auth-servers", String::new()).await?;
                if json {
                    say!("{}", serde_json::to_string_pretty(&servers)?);
                } else {
                    let urls: Vec<String> = servers.iter().map(|server| format!("{:?}", server.url)).collect();
                    say!("Urls: [ {} ]", urls.join(", "));
                }
            }
            Self::Unregister { url, broker } => {
                let body = serde_json::to_string(&AuthServerUrl { url: url.clone() })?;
                broker.call_raw(Method::POST, "/auth-servers/unregister", body).await?;
                // Without a blank: so it is in the original, whose users may look for it.
                say!("Jwk url{url} unregistered");
            }
        }
        Ok(())
    }
}

impl RegisterAuthServer {
    async fn run(self) -> anyhow::Result<()> {
        let entry = AuthServerEntry {
            url: self.url,
            algorithms: self.algorithms,
            issuer: self.issuer,
            audience: self.audience,
            token_type: self.token_type,
            scope: self.scope,
            keys_pem: self.keys_file.as_deref().map(text).transpose()?,
            ca_pem: self.ca_file.as_deref().map(text).transpose()?,
        };
        let request = AuthServerRequest { server: entry, replace: self.replace };
        self.broker.call_raw(Method::POST, "/auth-servers", serde_json::to_string(&request)?).await?;
        say!("Jwk url registered.");
        Ok(())
    }
}

/// A mapping as the original lists it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedMapping {
    server_id_type: String,
    server_id: String,
    dns_names: DescribedNames,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedNames {
    internal_dns_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_dns_name: Option<String>,
}

impl ServerNames {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Register { file_path, replace, broker } => {
                let mappings: Vec<MappingEntry> = serde_json::from_str(&text(&file_path)?)
                    .with_context(|| format!("{} is no list of mappings", file_path.display()))?;
                let count = mappings.len();
                let body = serde_json::to_string(&MapRequest { mappings, replace })?;
                broker.call_raw(Method::POST, "/server-names", body).await?;
                say!("{count} server DNS mappings registered.");
            }
            Self::List { broker } => {
                let mappings: Vec<MappingEntry> = broker.call(Method::GET, "/server-names", String::new()).await?;
                let described = mappings.into_iter().map(|mapping| DescribedMapping {
                    server_id_type: mapping.server_id_type,
                    server_id: mapping.server_id,
                    dns_names: DescribedNames {
                        internal_dns_name: mapping.dns_names.internal_dns_name,
                        external_dns_name: mapping.dns_names.external_dns_name,
                    },
                });
                say!("{}", serde_json::to_string_pretty(&described.collect::<Vec<_>>())?);
            }
        }
        Ok(())
    }
}

/// What is in a file that an operator names.
fn text(path: &Path) -> anyhow::Result<String> {
    let read = || format!("cannot read {}", path.display());
    let length = std::fs::metadata(path).with_context(read)?.len();
    anyhow::ensure!(length <= FILE_BYTES_MAX, "{} has more than {FILE_BYTES_MAX} bytes", path.display());
    std::fs::read_to_string(path).with_context(read)
}
