//! A client of the API that tells apart what was refused from what may or may
//! not have happened.

use std::path::Path;
use std::sync::Once;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use reqwest::{Certificate, Client, ClientBuilder, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::process::{Broker, Process};

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take that a client has alternatives to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a broker may take to serve, with a debug build on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(1);

/// What became of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// 200 with this body.
    Done(Value),
    /// 200 with this body, which says that it may be out of date.
    Stale(Value),
    /// It certainly had no effect.
    Refused(Refusal),
    /// It may have had its effect, or may still have it.
    Unknown(String),
    /// It never left: there was no connection.
    NotSent,
}

/// An answer other than 200.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: u16,
    /// The text of `error` in the body; `None` when the body is something else.
    pub error: Option<String>,
    /// The header `Retry-After`, in seconds.
    pub retry_after_secs: Option<u64>,
}

/// A session in an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Seen {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Owner.
    pub owner: String,
    /// State.
    pub state: String,
    /// Why it is in this state.
    pub reason: Option<String>,
    /// Id of its server.
    pub server: Option<String>,
}

impl Seen {
    fn of(session: &Value) -> anyhow::Result<Self> {
        let text = |field: &str| session[field].as_str().map(str::to_owned);
        let required = |field: &str| text(field).with_context(|| format!("a session without {field}: {session}"));
        Ok(Self {
            id: required("Id")?,
            name: required("Name")?,
            owner: required("Owner")?,
            state: required("State")?,
            reason: text("StateReason"),
            server: session["Server"]["Id"].as_str().map(str::to_owned),
        })
    }
}

/// A client with an access token and a connection of its own.
#[derive(Debug, Clone)]
pub struct Api {
    http: Client,
    url: String,
    token: String,
}

impl Api {
    /// Waits until the broker serves, registers a client and gets it a token.
    pub async fn register(broker: &Broker, process: &mut Process) -> anyhow::Result<Self> {
        serving(broker, process).await?;
        let (id, secret) = broker.register_client()?;
        let http = http(&broker.ca_path())?;
        let url = broker.url();
        let response = http
            .post(format!("{url}/oauth2/token?grant_type=client_credentials"))
            .basic_auth(id, Some(secret))
            .send()
            .await?;
        ensure!(response.status() == StatusCode::OK, "no token: {}", response.status());
        let answer: Value = response.json().await?;
        let token = answer["access_token"].as_str().context("no access_token")?.to_owned();
        Ok(Self { http, url, token })
    }

    /// The same client and token over another connection.
    pub fn again(&self, broker: &Broker) -> anyhow::Result<Self> {
        Ok(Self { http: http(&broker.ca_path())?, ..self.clone() })
    }

    /// The same client and token at another replica, whose calls take less than
    /// `limit`.
    pub fn at(&self, broker: &Broker, ca_path: &Path, limit: Duration) -> anyhow::Result<Self> {
        let builder = builder(ca_path)?.timeout(limit).connect_timeout(CONNECT_TIMEOUT);
        Ok(Self { http: builder.build()?, url: broker.url(), token: self.token.clone() })
    }

    /// GETs a path.
    pub async fn get(&self, path: &str) -> Answer {
        Self::answer(self.http.get(format!("{}/{path}", self.url)).bearer_auth(&self.token)).await
    }

    /// POSTs a body to an operation.
    pub async fn call(&self, operation: &str, body: &Value) -> Answer {
        Self::answer(self.post(operation, body)).await
    }

    /// POSTs a body to an operation that has one effect, however often it is
    /// called with this key.
    pub async fn call_once(&self, operation: &str, body: &Value, key: &str) -> Answer {
        Self::answer(self.post(operation, body).header("Idempotency-Key", key)).await
    }

    fn post(&self, operation: &str, body: &Value) -> RequestBuilder {
        self.http.post(format!("{}/{operation}", self.url)).bearer_auth(&self.token).json(body)
    }

    async fn answer(request: RequestBuilder) -> Answer {
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Answer::NotSent,
            Err(error) => return Answer::Unknown(format!("{:#}", anyhow::Error::from(error))),
        };
        let status = response.status();
        let is_stale = response.headers().get("berth-stale").is_some_and(|value| value == "true");
        let retry_after_secs = response.headers().get("retry-after").and_then(|text| text.to_str().ok()?.parse().ok());
        let body = match response.bytes().await {
            Ok(bytes) => serde_json::from_slice::<Value>(&bytes),
            Err(error) => return Answer::Unknown(format!("half an answer: {:#}", anyhow::Error::from(error))),
        };
        match (status, body) {
            (StatusCode::OK, Ok(body)) if is_stale => Answer::Stale(body),
            (StatusCode::OK, Ok(body)) => Answer::Done(body),
            (StatusCode::OK, Err(error)) => Answer::Unknown(format!("an answer that is no JSON: {error}")),
            (_, body) => {
                let error = body.ok().and_then(|body| body["error"].as_str().map(str::to_owned));
                if status == StatusCode::INTERNAL_SERVER_ERROR
                    || error.as_ref().is_some_and(|error| error.contains("outcome is not known"))
                {
                    return Answer::Unknown(format!("{status}: {error:?}"));
                }
                Answer::Refused(Refusal { status: status.as_u16(), error, retry_after_secs })
            }
        }
    }

    /// All sessions, or those named, page by page, in the order of the pages.
    /// Also an error: an answer that may be out of date, though none is said to be.
    pub async fn sessions(&self, ids: &[String]) -> anyhow::Result<Vec<Seen>> {
        let mut sessions = Vec::new();
        let mut next_token = None;
        loop {
            let mut body = json!({ "SessionIds": ids });
            if let Some(token) = &next_token {
                body["NextToken"] = json!(token);
            }
            let page = self.ask("describeSessions", &body).await?;
            for session in page["Sessions"].as_array().context("no list of sessions")? {
                sessions.push(Seen::of(session)?);
            }
            next_token = page["NextToken"].as_str().map(str::to_owned);
            if next_token.is_none() {
                return Ok(sessions);
            }
        }
    }

    /// All servers, page by page.
    pub async fn servers(&self) -> anyhow::Result<Vec<Value>> {
        let mut servers = Vec::new();
        let mut body = json!({});
        loop {
            let page = self.ask("describeServers", &body).await?;
            servers.extend(page["Servers"].as_array().context("no list of servers")?.iter().cloned());
            match page["NextToken"].as_str() {
                Some(token) => body = json!({ "NextToken": token }),
                None => return Ok(servers),
            }
        }
    }

    /// Those of the servers `wanted` whose agents are not connected, with what is
    /// said of them. A server that is full, or closed, is connected.
    pub async fn absent(&self, wanted: impl IntoIterator<Item = String>) -> anyhow::Result<Vec<String>> {
        let servers = self.servers().await?;
        let standing = |id: &str| match servers.iter().find(|server| server["Id"] == *id) {
            None => Some("is not listed".to_owned()),
            Some(server) if server["Availability"] == "AVAILABLE" => None,
            Some(server) => match server["UnavailabilityReason"].as_str() {
                Some("SERVER_FULL" | "SERVER_CLOSED") => None,
                other => Some(other.unwrap_or("unavailable for no reason that is told").to_owned()),
            },
        };
        Ok(wanted.into_iter().filter_map(|id| standing(&id).map(|why| format!("{id}: {why}"))).collect())
    }

    async fn ask(&self, operation: &str, body: &Value) -> anyhow::Result<Value> {
        match self.call(operation, body).await {
            Answer::Done(answer) => Ok(answer),
            other => bail!("{operation}: {other:?}"),
        }
    }
}

/// Waits until a broker that was started answers its health check.
pub async fn serving(broker: &Broker, process: &mut Process) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        process.lives()?;
        let Some(problem) = unready(broker).await else { return Ok(()) };
        ensure!(Instant::now() < deadline, "the broker does not serve within {START_LIMIT:?}: {problem:#}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Why a broker does not serve; none when it does.
pub async fn unready(broker: &Broker) -> Option<anyhow::Error> {
    let ask = async {
        let response = http(&broker.ca_path())?.get(format!("{}/health", broker.url())).send().await?;
        ensure!(response.status() == StatusCode::OK, "its health check answers {}", response.status());
        Ok(())
    };
    ask.await.err()
}

fn http(ca_path: &Path) -> anyhow::Result<Client> {
    Ok(builder(ca_path)?.timeout(CALL_TIMEOUT).build()?)
}

fn builder(ca_path: &Path) -> anyhow::Result<ClientBuilder> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Another one is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
    let authority = std::fs::read(ca_path).with_context(|| format!("no certificate {}", ca_path.display()))?;
    let authority = Certificate::from_pem(&authority)?;
    Ok(Client::builder().tls_certs_only([authority]))
}
