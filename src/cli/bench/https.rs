//! A client of one replica on one connection, over TLS. It does as little as
//! can be: it runs on the same cores as what is measured.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use bytes::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long one attempt of a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What all connections of a bench have in common.
pub(super) struct Access {
    tls: Arc<ClientConfig>,
    /// The authorization header; known once a token was obtained.
    bearer: String,
}

impl Access {
    /// Trusts the authority in `ca_path` alone; `token` is good for all replicas.
    pub(super) fn new(ca_path: &Path, token: &str) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(ca_path)
            .with_context(|| format!("{} is no certificate in PEM", ca_path.display()))?;
        roots.add(authority)?;
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self { tls: Arc::new(tls), bearer: format!("Bearer {token}") })
    }
}

/// A connection that is made when it is needed.
pub(super) struct Connection {
    access: Arc<Access>,
    address: SocketAddr,
    sender: Option<SendRequest<Body>>,
}

impl Connection {
    pub(super) const fn new(access: Arc<Access>, address: SocketAddr) -> Self {
        Self { access, address, sender: None }
    }

    /// Connects, if it is not connected.
    pub(super) async fn connect(&mut self) -> anyhow::Result<()> {
        if self.sender.as_ref().is_some_and(|sender| !sender.is_closed()) {
            return Ok(());
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = TlsConnector::from(Arc::clone(&self.access.tls)).connect(name, stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        self.sender = Some(sender);
        Ok(())
    }

    /// One attempt to POST to an operation; `key` lets it be repeated. What is
    /// not 200 is an error.
    pub(super) async fn post(&mut self, operation: &str, body: String, key: Option<&str>) -> anyhow::Result<Bytes> {
        let posted = tokio::time::timeout(CALL_TIMEOUT, self.try_post(operation, body, key)).await;
        let posted = posted.unwrap_or_else(|_| bail!("no answer within {} s", CALL_TIMEOUT.as_secs()));
        if posted.is_err() {
            self.sender = None;
        }
        posted
    }

    async fn try_post(&mut self, operation: &str, body: String, key: Option<&str>) -> anyhow::Result<Bytes> {
        self.connect().await.context("no connection")?;
        let sender = self.sender.as_mut().context("connected above")?;
        sender.ready().await?;
        let mut request = Request::post(format!("/{operation}"))
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("authorization", &self.access.bearer);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let response = sender.send_request(request.body(Body::from(body))?).await?;
        let status = response.status();
        let bytes = axum::body::to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await?;
        if status != StatusCode::OK {
            bail!("{status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(bytes)
    }
}

/// The body of a createSessions call that is always accepted: the session
/// waits for a server, of which there are none.
pub(super) fn create_body(number: u64) -> String {
    format!(r#"[{{"Name":"bench","Owner":"user{number}","Type":"VIRTUAL","EnqueueRequest":true}}]"#)
}

/// Whether the answer says that the session was created.
pub(super) fn is_created(answer: &[u8]) -> anyhow::Result<()> {
    let answer: serde_json::Value = serde_json::from_slice(answer).context("the answer is no JSON")?;
    if answer["SuccessfulList"].as_array().is_none_or(Vec::is_empty) {
        bail!("a session was refused: {answer}");
    }
    Ok(())
}
