//! The operators' socket of a broker on this machine.

use std::path::PathBuf;

use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::broker::admin::SOCKET;

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Which broker to talk to.
#[derive(Debug, clap::Args)]
pub(super) struct Socket {
    /// Data folder of the broker, which must run on this machine.
    #[arg(long, env = "BERTH_DATA_FOLDER", default_value = "/var/lib/berth", value_name = "FOLDER")]
    pub(super) data_folder: PathBuf,
}

impl Socket {
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
        let socket = self.data_folder.join(SOCKET);
        let stream = UnixStream::connect(&socket).await.with_context(|| {
            format!("cannot reach a broker at {}; does it run, and may you open it?", socket.display())
        })?;
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
        let text = serde_json::from_slice::<serde_json::Value>(&bytes).ok();
        let text = text.as_ref().and_then(|value| value["error"].as_str());
        bail!("the broker refused ({status}): {}", text.map_or_else(|| String::from_utf8_lossy(&bytes), Into::into));
    }
}
