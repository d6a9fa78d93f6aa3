//! The agents' protocol over a real connection, for agents that say what the
//! product's own never would.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use berth::agent::enrolment::Enrolment;
use berth::domain::ServerId;
use berth::protocol::{FromAgent, FromBroker, PATH};
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::process::Home;

/// How long a connection may take to be made, TLS and all.
const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// How long a message may take to be sent.
const SAY_LIMIT: Duration = Duration::from_secs(5);

/// Makes connections.
pub(super) struct Opener {
    /// Shows what the agent has, and nothing.
    connector: TlsConnector,
    plain: TlsConnector,
    enrolment: Enrolment,
    /// Holds its key.
    _folder: tempfile::TempDir,
}

impl Opener {
    /// With what an agent is given by its operator.
    pub(super) fn new(home: &Home, server: ServerId, name: &str) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&home.ca_file)? {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let plain = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let folder = tempfile::tempdir()?;
        let statement = Some(home.statement_file.clone());
        let enrolment = Enrolment::open(folder.path(), server, name.to_owned(), statement)?;
        let mut config = plain.clone();
        config.client_auth_cert_resolver = enrolment.resolver();
        let [connector, plain] = [config, plain].map(|config| TlsConnector::from(Arc::new(config)));
        Ok(Self { connector, plain, enrolment, _folder: folder })
    }

    /// Connects to one broker.
    pub(super) async fn open(&self, broker: SocketAddr) -> anyhow::Result<Line> {
        timeout(OPEN_LIMIT, self.try_open(broker)).await.context("it takes too long")?
    }

    async fn try_open(&self, broker: SocketAddr) -> anyhow::Result<Line> {
        if self.enrolment.is_needed() {
            let stream = TcpStream::connect(broker).await?;
            let stream = self.plain.connect(ServerName::from(broker.ip()), stream).await?;
            self.enrolment.enrol(stream, &broker.to_string()).await?;
        }
        let stream = TcpStream::connect(broker).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(ServerName::from(broker.ip()), stream).await?;
        let (socket, _response) = tokio_tungstenite::client_async(format!("wss://{broker}{PATH}"), stream).await?;
        Ok(Line(socket))
    }
}

/// A connection.
pub(super) struct Line(WebSocketStream<TlsStream<TcpStream>>);

impl Line {
    /// Sends a message.
    pub(super) async fn say(&mut self, message: &FromAgent) -> anyhow::Result<()> {
        let text = serde_json::to_string(message)?;
        timeout(SAY_LIMIT, self.0.send(Message::text(text))).await.context("it takes nothing")??;
        Ok(())
    }

    /// The next message; an error at the end.
    pub(super) async fn hear(&mut self) -> anyhow::Result<FromBroker> {
        loop {
            match self.0.next().await.context("the connection has ended")?? {
                Message::Text(text) => return Ok(serde_json::from_str(&text)?),
                Message::Close(why) => bail!("it was closed: {why:?}"),
                _ => {}
            }
        }
    }

    /// Ends it in order, if it still stands.
    pub(super) async fn close(mut self) {
        let _ = timeout(SAY_LIMIT, self.0.close(None)).await;
    }
}
