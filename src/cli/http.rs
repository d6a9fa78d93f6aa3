//! A client of the API, for the commands that use it as anybody would.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Certificate, Client, StatusCode};
use serde_json::{Value, json};

use crate::secret::Secret;

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Id and secret of an API client.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) id: String,
    pub(super) secret: Secret,
}

/// A client with an access token.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    url: String,
    token: String,
}

impl Api {
    /// Trusts the authority in `ca_path` alone and obtains a token.
    pub(super) async fn connect(url: &str, ca_path: &Path, credentials: &Credentials) -> anyhow::Result<Self> {
        let pem = std::fs::read(ca_path).with_context(|| format!("cannot read {}", ca_path.display()))?;
        let authority = Certificate::from_pem(&pem).with_context(|| format!("{} is no PEM", ca_path.display()))?;
        let client = Client::builder()
            .tls_certs_only([authority])
            .timeout(CALL_TIMEOUT)
            .build()
            .context("cannot make an HTTP client")?;
        let response = client
            .post(format!("{url}/oauth2/token?grant_type=client_credentials"))
            .basic_auth(&credentials.id, Some(credentials.secret.expose()))
            .send()
            .await
            .with_context(|| format!("cannot reach {url}"))?;
        let answer = json_of(response).await.context("no access token")?;
        let token = answer["access_token"].as_str().context("the answer holds no access_token")?.to_owned();
        Ok(Self { client, url: url.to_owned(), token })
    }

    /// The access token.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// POSTs a body to an operation and reads the answer; an answer other
    /// than 200 is an error with the broker's words.
    pub(super) async fn call(&self, operation: &str, body: &Value) -> anyhow::Result<Value> {
        let response = self
            .client
            .post(format!("{}/{operation}", self.url))
            .bearer_auth(&self.token)
            .json(body)
            .send()
            .await
            .with_context(|| format!("{operation} did not reach the broker"))?;
        json_of(response).await.with_context(|| format!("{operation} failed"))
    }

    /// One session, or `None`.
    pub(super) async fn session(&self, id: &str) -> anyhow::Result<Option<Value>> {
        let mut answer = self.call("describeSessions", &json!({ "SessionIds": [id] })).await?;
        Ok(match answer["Sessions"].as_array_mut() {
            Some(sessions) if !sessions.is_empty() => Some(sessions.swap_remove(0)),
            _ => None,
        })
    }
}

async fn json_of(response: reqwest::Response) -> anyhow::Result<Value> {
    let status = response.status();
    let bytes = response.bytes().await?;
    if status != StatusCode::OK {
        bail!("{status}: {}", String::from_utf8_lossy(&bytes));
    }
    serde_json::from_slice(&bytes).context("the answer is no JSON")
}
