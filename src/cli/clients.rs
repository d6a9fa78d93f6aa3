//! `berth clients`: clients of the API, through the operators' socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::broker::admin::{ClientEntry, RegisterAnswer, RegisterRequest, SOCKET};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

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

/// Which broker to talk to.
#[derive(Debug, clap::Args)]
pub(super) struct Socket {
    /// Data folder of the broker, which must run on this machine.
    #[arg(long, env = "BERTH_DATA_FOLDER", default_value = "/var/lib/berth", value_name = "FOLDER")]
    data_folder: PathBuf,
}

#[allow(clippy::print_stdout)] // a command's output
pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Register { client_name, broker } => {
            let body = serde_json::to_string(&RegisterRequest { name: client_name })?;
            let answer: RegisterAnswer = call(&broker.data_folder, Method::POST, "/clients", body).await?;
            println!("client-id: {}", answer.id);
            println!("client-password: {}", answer.secret);
        }
        Command::List { broker } => {
            let clients: Vec<ClientEntry> = call(&broker.data_folder, Method::GET, "/clients", String::new()).await?;
            println!("Api clients");
            println!("{}", serde_json::to_string_pretty(&clients)?);
        }
        Command::Unregister { client_id, broker } => {
            uuid::Uuid::parse_str(&client_id).context("a client id is a UUID")?;
            let path = format!("/clients/{client_id}");
            call_raw(&broker.data_folder, Method::DELETE, &path, String::new()).await?;
            println!("Client {client_id} unregistered.");
        }
    }
    Ok(())
}

async fn call<T: DeserializeOwned>(folder: &Path, method: Method, path: &str, body: String) -> anyhow::Result<T> {
    let bytes = call_raw(folder, method, path, body).await?;
    serde_json::from_slice(&bytes).context("the broker's answer cannot be read; is it of the same version?")
}

async fn call_raw(folder: &Path, method: Method, path: &str, body: String) -> anyhow::Result<Vec<u8>> {
    let socket = folder.join(SOCKET);
    let stream = UnixStream::connect(&socket)
        .await
        .with_context(|| format!("cannot reach a broker at {}; does it run, and may you open it?", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Body::from(body))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let bytes = axum::body::to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await?;
    drop(sender);
    connection.abort();
    if status.is_success() || status == StatusCode::NO_CONTENT {
        return Ok(bytes.to_vec());
    }
    bail!("the broker refused ({status}): {}", String::from_utf8_lossy(&bytes));
}
