//! A client of the API on the simulated network: HTTP/1.1 or HTTP/2 over TLS,
//! one connection that is kept as long as it is good.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Method, Request, Response, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use turmoil::net::TcpStream;

use super::world::World;
use super::{BROKER, CLIENT_PORT};

/// How long opening a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(40);
/// Between two looks at something that tells no one when it changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What became of a call.
#[derive(Debug)]
pub enum Answer {
    /// A whole answer.
    Whole(Whole),
    /// None, or only a part of one. It may have had its effect.
    Broken(String),
}

/// A whole answer.
#[derive(Debug)]
pub struct Whole {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, which is always JSON.
    pub body: Value,
}

enum Sender {
    One(http1::SendRequest<String>),
    Two(http2::SendRequest<String>),
}

impl Sender {
    async fn send(&mut self, request: Request<String>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::One(sender) => sender.send_request(request).await,
            Self::Two(sender) => sender.send_request(request).await,
        }
    }

    async fn is_good(&mut self) -> bool {
        match self {
            Self::One(sender) => sender.ready().await.is_ok(),
            Self::Two(sender) => sender.ready().await.is_ok(),
        }
    }
}

/// See the module.
pub struct Caller {
    world: Arc<World>,
    /// Its name, which is its token as well.
    name: String,
    speaks_http2: bool,
    kept: Mutex<Option<Sender>>,
}

/// A connection with TLS to the broker's port for clients.
pub async fn connect(world: &World, protocol: &[u8]) -> io::Result<TlsStream<TcpStream>> {
    let connecting = async {
        let tls = tls(world, protocol).map_err(io::Error::other)?;
        let stream = TcpStream::connect((BROKER, CLIENT_PORT)).await?;
        tls.connect(ServerName::try_from(BROKER).map_err(io::Error::other)?, stream).await
    };
    timeout(CONNECT_LIMIT, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn tls(world: &World, protocol: &[u8]) -> anyhow::Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(world.site.ca_file())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Caller {
    /// A client; `name` is who it is to the broker.
    pub fn new(world: &Arc<World>, name: &str, speaks_http2: bool) -> Self {
        Self { world: Arc::clone(world), name: name.to_owned(), speaks_http2, kept: Mutex::default() }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Sender>> {
        // Replaced whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sender(&self) -> anyhow::Result<Sender> {
        let kept = self.kept().take();
        if let Some(mut kept) = kept
            && kept.is_good().await
        {
            return Ok(kept);
        }
        Ok(if self.speaks_http2 {
            let io = TokioIo::new(connect(&self.world, b"h2").await?);
            let (sender, connection) = timeout(CONNECT_LIMIT, http2::handshake(TokioExecutor::new(), io)).await??;
            tokio::spawn(connection);
            Sender::Two(sender)
        } else {
            let io = TokioIo::new(connect(&self.world, b"http/1.1").await?);
            let (sender, connection) = timeout(CONNECT_LIMIT, http1::handshake(io)).await??;
            tokio::spawn(connection);
            Sender::One(sender)
        })
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> anyhow::Result<Request<String>> {
        let authority = if self.speaks_http2 { format!("https://{BROKER}:{CLIENT_PORT}") } else { String::new() };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{authority}{path}"))
            .header(header::HOST, BROKER)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.name));
        if !body.is_null() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(request.body(if body.is_null() { String::new() } else { body.to_string() })?)
    }

    /// Calls, once. Without a body that is `null`.
    pub async fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let calling = async {
            let mut sender = self.sender().await?;
            let response = sender.send(self.request(&method, path, headers, body)?).await?;
            let (head, incoming) = response.into_parts();
            let bytes = whole(incoming).await?;
            *self.kept() = Some(sender);
            let status = head.status.as_u16();
            let body = serde_json::from_slice(&bytes);
            let body = body.with_context(|| format!("{status} with a body that is no JSON: {} bytes", bytes.len()));
            anyhow::Ok(Whole { status, headers: head.headers, body: body? })
        };
        match timeout(CALL_LIMIT, calling).await {
            Ok(Ok(whole)) => Answer::Whole(whole),
            Ok(Err(error)) => Answer::Broken(format!("{error:#}")),
            Err(_) => Answer::Broken("no answer in time".to_owned()),
        }
    }

    /// Calls again and again until there is a whole answer with status 200.
    pub async fn insist(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> anyhow::Result<Whole> {
        let limit = Instant::now() + Duration::from_mins(2);
        loop {
            let answer = self.call(Method::POST, path, headers, body).await;
            match answer {
                Answer::Whole(whole) if whole.status == 200 => return Ok(whole),
                Answer::Whole(Whole { status: 409 | 503, .. }) | Answer::Broken(_) => {}
                Answer::Whole(other) => bail!("{path}: {other:?}"),
            }
            ensure!(Instant::now() < limit, "{path} is not answered: {answer:?}");
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Asks for one session, which one server can be asked to give.
    pub fn wish(name: &str, server: Option<&str>) -> Value {
        let mut wish = json!({ "Name": name, "Owner": "ann", "Type": "VIRTUAL" });
        if let Some(server) = server {
            wish["Requirements"] = json!(format!("server:Id = '{server}'"));
        }
        json!([wish])
    }

    /// Sessions by their states: id, name, state and server.
    pub async fn sessions(&self) -> anyhow::Result<Vec<[String; 4]>> {
        let answer = self.insist("/describeSessions", &[], &json!({})).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let listed = answer.body["Sessions"].as_array().context("no list of sessions")?;
        ensure!(answer.body["NextToken"].is_null(), "more sessions than one page has");
        let row =
            |session: &Value| [&session["Id"], &session["Name"], &session["State"], &session["Server"]["Id"]].map(text);
        Ok(listed.iter().map(row).collect())
    }

    /// `AVAILABLE`, or why a server is not; `None` when it is not listed.
    pub async fn standing(&self, server: &str) -> anyhow::Result<Option<String>> {
        let answer = self.insist("/describeServers", &[], &json!({})).await?;
        let listed = answer.body["Servers"].as_array().context("no list of servers")?;
        let found = listed.iter().find(|listed| listed["Id"] == server);
        Ok(found.map(|found| {
            let reason = found["UnavailabilityReason"].as_str().or(found["Availability"].as_str());
            reason.unwrap_or_default().to_owned()
        }))
    }

    /// Waits until a server stands as wanted; how long that took.
    pub async fn until_standing(
        &self,
        server: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Duration> {
        let began = Instant::now();
        loop {
            let standing = self.standing(server).await?.unwrap_or_default();
            if wanted(&standing) {
                let took = began.elapsed();
                self.world.note(&format!("{server} is {standing} after {} ms", took.as_millis()));
                return Ok(took);
            }
            ensure!(began.elapsed() < limit, "{server} is still {standing:?} after {limit:?}");
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until a server takes sessions.
    pub async fn until_available(&self, server: &str, limit: Duration) -> anyhow::Result<Duration> {
        self.until_standing(server, limit, |standing| standing == "AVAILABLE").await
    }

    /// Waits until a session is in a state.
    pub async fn until_session(&self, id: &str, state: &str, limit: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let sessions = self.sessions().await?;
            let found = sessions.iter().find(|[listed, ..]| listed == id).map(|[_, _, state, _]| state.clone());
            if found.as_deref() == Some(state) {
                self.world.note(&format!("{id} is {state}"));
                return Ok(());
            }
            ensure!(began.elapsed() < limit, "{id} is still {found:?} and not {state} after {limit:?}");
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Makes a session on a server, and waits until it is ready; its id.
    pub async fn session_on(&self, server: &str) -> anyhow::Result<String> {
        let answer = self.insist("/createSessions", &[], &Self::wish("one", Some(server))).await?;
        let id = created(&answer)?;
        self.until_session(&id, "READY", Duration::from_secs(10)).await?;
        Ok(id)
    }

    /// Begins a stream of events, after a cursor; the head of its answer has come.
    pub async fn follow(&self, after: Option<&str>) -> anyhow::Result<EventStream> {
        let mut headers = vec![("accept", "text/event-stream")];
        headers.extend(after.map(|after| ("last-event-id", after)));
        let opening = async {
            let mut sender = self.sender().await?;
            let response = sender.send(self.request(&Method::GET, "/v1/events", &headers, &Value::Null)?).await?;
            ensure!(response.status() == 200, "no stream: {}", response.status());
            Ok(EventStream { body: response.into_body(), text: String::new(), _sender: sender })
        };
        timeout(CALL_LIMIT, opening).await?
    }
}

/// The id of the one session that was asked for.
pub fn created(answer: &Whole) -> anyhow::Result<String> {
    let id = answer.body["SuccessfulList"][0]["Id"].as_str();
    Ok(id.with_context(|| format!("nothing was created: {}", answer.body))?.to_owned())
}

async fn part(body: &mut Incoming) -> Option<hyper::Result<Vec<u8>>> {
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) => return Some(Ok(data.to_vec())),
            Ok(Err(_trailers)) => {}
            Err(error) => return Some(Err(error)),
        }
    }
}

async fn whole(mut body: Incoming) -> hyper::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(part) = part(&mut body).await {
        bytes.extend(part?);
    }
    Ok(bytes)
}

/// The client's end of a stream of events.
pub struct EventStream {
    body: Incoming,
    text: String,
    // The connection lives as long.
    _sender: Sender,
}

impl EventStream {
    /// The next event: its cursor and what it says. `None` when the stream has
    /// ended or broken.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let rest = self.text.split_off(end + 2);
                let block = std::mem::replace(&mut self.text, rest);
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                if let (Some(id), Some(data)) = (field("id"), field("data")) {
                    return Some((id.to_owned(), serde_json::from_str(data).ok()?));
                }
            }
            let part = part(&mut self.body).await?.ok()?;
            self.text.push_str(std::str::from_utf8(&part).ok()?);
        }
    }
}
