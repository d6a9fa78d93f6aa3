//! The operators' socket of a broker on this machine.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use futures_util::StreamExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::broker::admin::SOCKET;
use crate::broker::config::{Config, Sources};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Which broker to talk to.
#[derive(Debug, clap::Args)]
pub(super) struct Socket {
    /// Configuration file of the broker, which must run on this machine.
    #[arg(long, env = "BERTH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The original's session-manager-broker.properties, if the broker reads
    /// it; `--config` goes before it.
    #[arg(long, env = "BERTH_PROPERTIES", value_name = "FILE")]
    properties: Option<PathBuf>,
    /// Its data folder; goes before that of the configuration. `/var/lib/berth`
    /// without either.
    #[arg(long, env = "BERTH_DATA_FOLDER", value_name = "FOLDER")]
    data_folder: Option<PathBuf>,
}

impl Socket {
    /// That of the broker with this data folder.
    pub(super) fn of(folder: PathBuf) -> Self {
        Self { config: None, properties: None, data_folder: Some(folder) }
    }

    /// Where the socket is.
    fn path(&self) -> anyhow::Result<PathBuf> {
        let folder = match &self.data_folder {
            Some(folder) => folder.clone(),
            None => self.configured()?.data_folder,
        };
        Ok(folder.join(SOCKET))
    }

    fn configured(&self) -> anyhow::Result<Config> {
        let sources = Sources { properties: self.properties.clone(), file: self.config.clone(), ..Sources::default() };
        Ok(sources.load().into_config()?)
    }

    /// Calls, and reads the answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> anyhow::Result<T> {
        let bytes = self.call_raw(method, path, body).await?;
        serde_json::from_slice(&bytes).context("the broker's answer cannot be read; is it of the same version?")
    }

    /// Calls; gives the answer as it is.
    pub(super) async fn call_raw(&self, method: Method, path: &str, body: String) -> anyhow::Result<Vec<u8>> {
        let (response, _connection) = self.send(method, path, body).await?;
        let status = response.status();
        let bytes = axum::body::to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await?;
        if status.is_success() || status == StatusCode::NO_CONTENT {
            return Ok(bytes.to_vec());
        }
        Err(refused(status, &bytes))
    }

    /// Calls, and hands the answer over piece by piece, however long it is.
    pub(super) async fn fetch(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        let (response, _connection) = self.send(Method::GET, path, String::new()).await?;
        let status = response.status();
        if !status.is_success() {
            let bytes = axum::body::to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await?;
            return Err(refused(status, &bytes));
        }
        let mut pieces = Body::new(response.into_body()).into_data_stream();
        while let Some(piece) = pieces.next().await {
            take(&piece.context("the broker broke its answer off; its log says why")?)?;
        }
        Ok(())
    }

    /// Sends a request; the connection ends when what comes with the answer is
    /// dropped.
    async fn send(&self, method: Method, path: &str, body: String) -> anyhow::Result<(Response<Incoming>, Connection)> {
        let socket = self.path()?;
        let stream = UnixStream::connect(&socket).await.with_context(|| {
            format!("cannot reach a broker at {}; does it run, and may you open it?", socket.display())
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = Connection(tokio::spawn(async move { drop(connection.await) }));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Body::from(body))?;
        let response = sender.send_request(request).await?;
        Ok((response, connection))
    }
}

/// What drives a connection; it ends with this.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn refused(status: StatusCode, answer: &[u8]) -> anyhow::Error {
    let text = serde_json::from_slice::<serde_json::Value>(answer).ok();
    let text = text.as_ref().and_then(|value| value["error"].as_str());
    anyhow!("the broker refused ({status}): {}", text.map_or_else(|| String::from_utf8_lossy(answer), Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_one_named_or_that_of_the_configuration() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("berth.toml");
        std::fs::write(&config, "data_folder = '/from/config'\n").expect("written");
        let path = |config: Option<&PathBuf>, data_folder: Option<&str>| {
            let data_folder = data_folder.map(PathBuf::from);
            Socket { config: config.cloned(), properties: None, data_folder }.path().expect("found")
        };
        assert_eq!(path(Some(&config), None), PathBuf::from("/from/config/admin.sock"));
        assert_eq!(path(Some(&config), Some("/named")), PathBuf::from("/named/admin.sock"));
        assert_eq!(path(None, None), PathBuf::from("/var/lib/berth/admin.sock"));
        let missing = Socket { config: Some(folder.path().join("none")), properties: None, data_folder: None };
        assert!(missing.path().is_err());
    }
}
