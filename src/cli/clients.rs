//! `berth clients`: clients of the API, through the operators' socket.

use anyhow::Context;
use axum::http::Method;
use comfy_table::{Table, TableStyle};
use serde::Serialize;

use super::socket::Socket;
use crate::broker::admin::access::{ClientEntry, GrantRequest, RegisterAnswer, RegisterRequest, RenewRequest};

/// Verbs of `berth clients`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Register a client and print its id and secret, which is shown this once.
    Register(Register),
    /// List the clients.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        broker: Socket,
    },
    /// Give a client another secret and print it, this once. The one that it
    /// has is good for a while longer.
    Rotate {
        /// Its id.
        #[arg(long)]
        client_id: String,
        #[command(flatten)]
        keep: KeepOld,
        #[command(flatten)]
        broker: Socket,
    },
    /// Change what a client may do, also with the tokens that it has.
    Grant {
        /// Its id.
        #[arg(long)]
        client_id: String,
        #[command(flatten)]
        granted: Granted,
        #[command(flatten)]
        broker: Socket,
    },
    /// Deactivate a client: its tokens are refused from now on.
    Unregister(Unregister),
}

/// A client to be registered.
#[derive(Debug, clap::Args)]
pub(super) struct Register {
    /// Its name, for people.
    #[arg(long, alias = "name", short_alias = 'c')]
    client_name: String,
    #[command(flatten)]
    granted: Granted,
    #[command(flatten)]
    broker: Socket,
}

/// What a client may do.
#[derive(Debug, clap::Args)]
pub(super) struct Granted {
    /// What it may do: `read`, `sessions`, `servers` and `admin`, with commas
    /// between. All but `admin` when not given, or what it may do already.
    #[arg(long, value_delimiter = ',', value_name = "SCOPES")]
    scopes: Option<Vec<String>>,
    /// See and change the sessions of this owner alone.
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// See and change the sessions of everybody, where it was bound to an owner.
    #[arg(long, conflicts_with = "owner")]
    any_owner: bool,
}

impl From<Granted> for GrantRequest {
    fn from(granted: Granted) -> Self {
        Self { scopes: granted.scopes, owner: granted.owner, any_owner: granted.any_owner }
    }
}

/// How long what is replaced is good.
#[derive(Debug, clap::Args)]
pub(super) struct KeepOld {
    /// How long the present one is good, in seconds; 0 ends it at once. As long
    /// as tokens are good when not given.
    #[arg(long, value_name = "SECONDS")]
    keep_old_seconds: Option<u64>,
}

impl KeepOld {
    /// The same, where nothing is said so many seconds.
    pub(super) fn or_seconds(self, seconds: u64) -> Self {
        Self { keep_old_seconds: self.keep_old_seconds.or(Some(seconds)) }
    }
}

impl From<KeepOld> for RenewRequest {
    fn from(keep: KeepOld) -> Self {
        Self { keep_old_seconds: keep.keep_old_seconds }
    }
}

/// A client to be deactivated.
#[derive(Debug, clap::Args)]
pub(super) struct Unregister {
    /// Its id.
    #[arg(long)]
    client_id: String,
    #[command(flatten)]
    broker: Socket,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Register(register) => register.run().await?,
        Command::List { json, broker } => {
            let clients = list(&broker).await?;
            if json {
                say!("{}", serde_json::to_string_pretty(&clients)?);
            } else {
                say!("{}", table(&clients));
            }
        }
        Command::Rotate { client_id, keep, broker } => {
            let client_id = uuid(&client_id)?;
            let body = serde_json::to_string(&RenewRequest::from(keep))?;
            let answer: RegisterAnswer =
                broker.call(Method::POST, &format!("/clients/{client_id}/secret"), body).await?;
            answer_with_secret(&answer);
        }
        Command::Grant { client_id, granted, broker } => {
            let client_id = uuid(&client_id)?;
            let body = serde_json::to_string(&GrantRequest::from(granted))?;
            broker.call_raw(Method::PUT, &format!("/clients/{client_id}/grant"), body).await?;
            say!("Client {client_id} changed.");
        }
        Command::Unregister(unregister) => unregister.run().await?,
    }
    Ok(())
}

impl Register {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let request = RegisterRequest { name: self.client_name, grant: self.granted.into() };
        let body = serde_json::to_string(&request)?;
        let answer: RegisterAnswer = self.broker.call(Method::POST, "/clients", body).await?;
        answer_with_secret(&answer);
        Ok(())
    }
}

impl Unregister {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let client_id = uuid(&self.client_id)?;
        self.broker.call_raw(Method::DELETE, &format!("/clients/{client_id}"), String::new()).await?;
        say!("Client {client_id} unregistered.");
        Ok(())
    }
}

/// The two lines that installers read.
fn answer_with_secret(answer: &RegisterAnswer) {
    say!("client-id: {}", answer.id);
    say!("client-password: {}", answer.secret);
}

/// A client or an agent as the original lists it.
#[derive(Debug, Serialize)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) active: bool,
}

/// Lists the clients as the original does.
pub(super) async fn describe(broker: &Socket) -> anyhow::Result<()> {
    let clients = list(broker).await?;
    let described: Vec<_> = clients
        .into_iter()
        .map(|client| Described { name: client.name, id: client.id, active: client.active })
        .collect();
    say!("Api clients");
    say!("{}", serde_json::to_string_pretty(&described)?);
    Ok(())
}

async fn list(broker: &Socket) -> anyhow::Result<Vec<ClientEntry>> {
    broker.call(Method::GET, "/clients", String::new()).await
}

fn table(clients: &[ClientEntry]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(["NAME", "ID", "ACTIVE", "SCOPES", "OWNER"]);
    for client in clients {
        let active = if client.active { "yes" } else { "no" };
        let owner = client.owner.as_deref().unwrap_or("-");
        table.add_row([client.name.as_str(), client.id.as_str(), active, client.scopes.as_str(), owner]);
    }
    table
}

/// An id that goes into a path.
pub(super) fn uuid(id: &str) -> anyhow::Result<uuid::Uuid> {
    uuid::Uuid::parse_str(id).with_context(|| format!("{id:?} is no client id: a UUID"))
}
