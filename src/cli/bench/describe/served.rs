//! A fleet that does not change behind the real router, over TLS: what a
//! client waits for, without the log.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reqwest::{Certificate, Client, StatusCode};
use tokio_util::sync::CancellationToken;

use crate::broker::api::door::{
    AskError, Caller, Core, Identity, Proposed, Token, TokenError, Unavailable, UnavailableReason, VerifyError, View,
};
use crate::broker::api::wire::DescribeSessionsRequestData;
use crate::broker::api::{ApiSettings, ApiState, router};
use crate::broker::listen::Bound;
use crate::broker::tls::{ClientAuth, Pki, Source};
use crate::domain::client::Grant;
use crate::domain::journal::Position;
use crate::domain::{ClientId, Command, Fleet, LogIndex, ReplicaId, ServerId, Session, Timestamp};
use crate::protocol::{Question, Reply};

/// A fleet that stays as it is.
struct Still(Arc<Fleet>);

const NO_CHANGE: Unavailable =
    Unavailable { reason: UnavailableReason::NotServing, retry_after: Duration::from_secs(1) };

impl Core for Still {
    async fn propose(&self, _commands: Vec<Command>) -> Result<Proposed, Unavailable> {
        Err(NO_CHANGE)
    }

    async fn read(&self) -> Result<View, Unavailable> {
        Ok(Core::local(self))
    }

    fn local(&self) -> View {
        View { fleet: Arc::clone(&self.0), index: self.0.applied() }
    }

    async fn applied(&self, index: LogIndex) {
        if index > self.0.applied() {
            std::future::pending::<()>().await;
        }
    }

    fn is_cut_off(&self) -> bool {
        false
    }

    async fn journaled_after(&self, _position: Position) {
        std::future::pending::<()>().await;
    }

    async fn ask(&self, _server: &ServerId, _question: Question) -> Result<Reply, AskError> {
        Err(AskError::Unreachable)
    }

    fn replica(&self) -> ReplicaId {
        ReplicaId(1)
    }

    fn new_id(&self) -> String {
        uuid::Uuid::now_v7().to_string()
    }

    fn now(&self) -> Timestamp {
        self.0.at()
    }
}

/// Takes everybody for one client. The signature of a token is not checked,
/// which takes the same time whatever the fleet.
struct Anybody(ClientId);

impl Identity for Anybody {
    async fn token(&self, _client: &ClientId, _secret: &str) -> Result<Token, TokenError> {
        Err(NO_CHANGE.into())
    }

    fn verify(&self, _bearer: &str) -> Result<Caller, VerifyError> {
        Ok(Caller { client: self.0.clone(), grant: Grant::default() })
    }

    fn connection_token(&self, _session: &Session, _user: &str) -> Result<String, Unavailable> {
        Err(NO_CHANGE)
    }
}

/// A served fleet, and a client with a connection to it.
pub(super) struct Served {
    client: Client,
    url: String,
    stop: CancellationToken,
}

impl Served {
    /// Serves a fleet on loopback, with certificates in a folder.
    pub(super) fn start(fleet: Arc<Fleet>, folder: &Path) -> anyhow::Result<Self> {
        let pki = Pki::open(folder, &[])?;
        let tls = pki.server_config("clients", Source::OwnAuthority, &[b"h2", b"http/1.1"], ClientAuth::None)?;
        let port = Bound::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let url = format!("https://127.0.0.1:{}/describeSessions", port.address().port());
        let anybody = Anybody(ClientId::new("bench")?);
        let router = router(ApiState::new(Arc::new(Still(fleet)), Arc::new(anybody), ApiSettings::default()));
        let stop = CancellationToken::new();
        tokio::spawn(port.serve(tls, router, 16, stop.clone()));
        let authority = Certificate::from_pem(&std::fs::read(pki.ca_path())?).context("the authority is no PEM")?;
        let client = Client::builder().tls_certs_only([authority]).http1_only().build()?;
        Ok(Self { client, url, stop })
    }

    /// How long a page takes from the call to its last byte.
    pub(super) async fn time_one(
        &self,
        query: &DescribeSessionsRequestData,
        bytes_min: usize,
    ) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let response = self.client.post(&self.url).bearer_auth("anybody").json(query).send().await?;
        let status = response.status();
        let body = response.bytes().await?;
        let took = began.elapsed();
        if status != StatusCode::OK || body.len() < bytes_min {
            bail!("{status} with {} bytes", body.len());
        }
        Ok(took)
    }

    pub(super) fn stop(self) {
        self.stop.cancel();
    }
}
