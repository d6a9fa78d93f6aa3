//! `berth clients`: clients of the API, through the operators' socket.

use anyhow::Context;
use axum::http::Method;

use super::socket::Socket;
use crate::broker::admin::{ClientEntry, RegisterAnswer, RegisterRequest};

/// Verbs of `berth clients`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Register a client and print its id and secret, which is shown this once.
    Register {
        /// Its name, for people.
        #[arg(long, alias = "name", short_alias = 'c')]
        client_name: String,
        #[command(flatten)]
        broker: Socket,
    },
    /// List the clients.
    List {
        #[command(flatten)]
        broker: Socket,
    },
    /// Deactivate a client: its tokens are refused from now on.
    Unregister {
        /// Its id.
        #[arg(long)]
        client_id: String,
        #[command(flatten)]
        broker: Socket,
    },
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Register { client_name, broker } => {
            let body = serde_json::to_string(&RegisterRequest { name: client_name })?;
            let answer: RegisterAnswer = broker.call(Method::POST, "/clients", body).await?;
            say!("client-id: {}", answer.id);
            say!("client-password: {}", answer.secret);
        }
        Command::List { broker } => {
            let clients: Vec<ClientEntry> = broker.call(Method::GET, "/clients", String::new()).await?;
            say!("Api clients");
            say!("{}", serde_json::to_string_pretty(&clients)?);
        }
        Command::Unregister { client_id, broker } => {
            uuid::Uuid::parse_str(&client_id).context("a client id is a UUID")?;
            let path = format!("/clients/{client_id}");
            broker.call_raw(Method::DELETE, &path, String::new()).await?;
            say!("Client {client_id} unregistered.");
        }
    }
    Ok(())
}
