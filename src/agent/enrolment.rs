//! How an agent becomes known to its brokers, and stays so: a key of its own,
//! and a certificate for it that is renewed by itself.
//!
//! The key is made once and never leaves the data folder; brokers know the
//! agent by it. With a software statement it enrols once; for a new certificate
//! the key is enough, however long the host was off
//! ([`crate::protocol::enrolment`]).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use axum::body::Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::config;
use crate::domain::ServerId;
use crate::files::{self, FileError};
use crate::protocol::enrolment::{ANSWER_BYTES_MAX, PATH, Refused, Registered, Registration, error};

/// The key's file in the data folder.
const KEY_FILE: &str = "agent.key";
/// The certificate's file there.
const CERTIFICATE_FILE: &str = "agent.pem";
/// Longest of these that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// A certificate is renewed when less than one part in so many of its time is
/// left.
const RENEWED_IN_LAST: u32 = 3;
/// Least time before a certificate is renewed.
const RENEW_MIN: Duration = Duration::from_secs(5);
/// Connections that may break, one after the other, before the certificate is
/// asked for anew.
const BROKEN_MAX: u32 = 3;
/// An end further away than this is looked at again then: clocks of hosts jump.
const AHEAD_MAX: Duration = Duration::from_hours(24);

/// Why an agent has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Key or certificate cannot be kept.
    #[error(transparent)]
    File(#[from] FileError),
    /// The key in the data folder is none.
    #[error("{} holds no key of an agent; restore it, or remove it and enrol again", .0.display())]
    Key(PathBuf),
    /// A key or a request cannot be made.
    #[error("cannot make a key or a request for a certificate")]
    Make(#[from] rcgen::Error),
    /// The statement cannot be had from its file.
    #[error(transparent)]
    Statement(#[from] config::Error),
    /// The broker refused.
    #[error("the broker does not enrol this agent ({status}): {reason}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its word for it, of [`crate::protocol::enrolment::error`].
        error: String,
        /// What it says.
        reason: String,
    },
    /// The connection broke, or carried no HTTP.
    #[error("the connection for enrolling broke: {0}")]
    Broken(String),
    /// The answer cannot be used.
    #[error("the broker's answer to the enrolment cannot be used: {0}")]
    Answer(String),
}

impl Error {
    /// Whether the broker decided so, and another attempt soon will not help.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Refused { status, .. } => status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS,
            Self::Statement(_) => true,
            _ => false,
        }
    }
}

/// What an agent proves itself with.
#[derive(Debug)]
pub struct Enrolment {
    server: ServerId,
    /// Name of the host, for people.
    name: String,
    statement_file: Option<PathBuf>,
    certificate_file: PathBuf,
    key: Key,
    /// Whether brokers know the key, as far as is known here: they need no
    /// statement then.
    is_known: AtomicBool,
    shown: Arc<Shown>,
    state: Mutex<State>,
}

/// How the certificate stands.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// When it ends, and when it is to be renewed.
    times: Option<Times>,
    /// A broker did not take it: it is not to be used again.
    refused: bool,
    /// Connections that broke, one after the other, before they were answered.
    broken: u32,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    renewed_at: Instant,
    ends_at: Instant,
}

impl Times {
    fn new(left: Duration, whole: Duration) -> Self {
        // Agents that enrolled together are not to come together again.
        let last = (whole / RENEWED_IN_LAST).mul_f64(rand::random_range(0.75..=1.25));
        let now = Instant::now();
        let left = left.min(AHEAD_MAX);
        // However little time brokers give, they are not asked all the time.
        Self { renewed_at: now + left.saturating_sub(last).max(RENEW_MIN), ends_at: now + left }
    }
}

/// The agent's key.
struct Key {
    path: PathBuf,
    pair: KeyPair,
    signs: Arc<dyn rustls::sign::SigningKey>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[key]")
    }
}

/// What connections show from now on: nothing until there is a certificate.
#[derive(Debug, Default)]
struct Shown(ArcSwapOption<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}

/// Removes what an agent was known by: a new server has a new key.
pub(super) fn forget(data_folder: &Path) -> Result<(), FileError> {
    files::remove(&data_folder.join(CERTIFICATE_FILE))?;
    files::remove(&data_folder.join(KEY_FILE))
}

impl Enrolment {
    /// That of a server, with its files in a folder. When there is no key a new
    /// one is used, and written down when it is shown to a broker. `name` is the
    /// host's, for people; the statement is read when it is needed.
    pub fn open(folder: &Path, server: ServerId, name: String, statement_file: Option<PathBuf>) -> Result<Self, Error> {
        let key_file = folder.join(KEY_FILE);
        let enrolment = Self {
            server,
            name,
            statement_file,
            certificate_file: folder.join(CERTIFICATE_FILE),
            is_known: AtomicBool::new(key_file.exists()),
            key: Key::open(&key_file)?,
            shown: Arc::default(),
            state: Mutex::default(),
        };
        match files::read_text(&enrolment.certificate_file, FILE_BYTES_MAX) {
            Ok(pem) => {
                if let Err(problem) = enrolment.take(&pem, None) {
                    warn!(file = %enrolment.certificate_file.display(), %problem, "the certificate is asked for anew");
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(FileError::of("read", &enrolment.certificate_file)(source).into()),
        }
        Ok(enrolment)
    }

    /// Shows the certificate of the moment to who asks for one.
    pub fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::clone(&self.shown) as _
    }

    /// Whether there is something to enrol with: a statement, or a key that was
    /// enrolled before.
    pub(super) fn can_enrol(&self) -> bool {
        self.statement_file.is_some() || self.is_known.load(Ordering::Relaxed)
    }

    /// Whether a statement is configured.
    pub(super) const fn has_statement(&self) -> bool {
        self.statement_file.is_some()
    }

    /// Whether connections need another certificate first.
    pub fn is_needed(&self) -> bool {
        let State { times, refused, .. } = *self.state();
        refused || times.is_none_or(|times| times.ends_at <= Instant::now())
    }

    /// Whether the certificate may not be what it should, so that another one
    /// should be had, if that is possible.
    pub(super) fn is_doubtful(&self) -> bool {
        self.state().broken >= BROKEN_MAX
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When to renew the certificate; `None` while there is none.
    pub(super) fn renewed_at(&self) -> Option<Instant> {
        self.state().times.map(|times| times.renewed_at)
    }

    /// A broker did not take the certificate: another one is asked for first.
    pub(super) fn refuse(&self) {
        self.state().refused = true;
    }

    /// No broker gives another certificate: the one that is of no use is not
    /// shown any more, for there may be brokers that let everybody in who shows
    /// none.
    pub(super) fn show_nothing(&self) {
        self.shown.0.store(None);
    }

    /// A connection was answered, or broke after the certificate was shown. A
    /// broker that does not take it may look like one that dies; several in a
    /// row make it doubtful.
    pub(super) fn note(&self, is_answered: bool) {
        let mut state = self.state();
        state.broken = if is_answered { 0 } else { state.broken.saturating_add(1) };
    }

    /// Asks for a certificate over a connection to a broker that shows none,
    /// and takes it.
    pub async fn enrol<S>(&self, stream: S, authority: &str) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Once a broker has heard of the key it must not be lost.
        self.key.keep()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let asking = self.ask(sender, authority);
        tokio::pin!(asking);
        // The connection carries nothing else, and ends with this.
        let registered = tokio::select! {
            registered = &mut asking => registered?,
            ended = connection => {
                ended.map_err(broken)?;
                asking.await?
            }
        };
        if registered.server_id != self.server {
            return Err(Error::Answer(format!("it is for server {}", registered.server_id)));
        }
        let lifetime = Duration::from_secs(registered.certificate_expires_in);
        if lifetime.is_zero() {
            return Err(Error::Answer("the certificate has ended already".to_owned()));
        }
        self.take(&registered.certificate, Some(lifetime)).map_err(Error::Answer)?;
        self.is_known.store(true, Ordering::Relaxed);
        if let Err(error) = files::replace(&self.certificate_file, registered.certificate.as_bytes(), 0o600) {
            warn!(%error, "the certificate is good, and asked for again after a restart");
        }
        info!(client = %registered.client_id, seconds = lifetime.as_secs(), "the agent has a new certificate");
        Ok(())
    }

    /// Asks with the key alone where that should be enough, for operators may
    /// have removed the statement; and with it where it is not.
    async fn ask(&self, mut sender: SendRequest<Body>, authority: &str) -> Result<Registered, Error> {
        if self.is_known.load(Ordering::Relaxed) {
            match post(&mut sender, authority, self.registration(None)?).await {
                Err(Error::Refused { error, .. })
                    if error == error::STATEMENT && self.statement_file.as_deref().is_some_and(Path::exists) => {}
                answered => return answered,
            }
        }
        let statement = self.statement_file.as_deref().map(config::read_statement).transpose()?;
        post(&mut sender, authority, self.registration(statement)?).await
    }

    fn registration(&self, statement: Option<Zeroizing<String>>) -> Result<String, Error> {
        let request = CertificateParams::default().serialize_request(&self.key.pair)?;
        let registration = Registration {
            software_statement: statement.map(|statement| statement.to_string()),
            client_name: self.name.clone(),
            server_id: self.server.clone(),
            certificate_request: request.pem()?,
        };
        serde_json::to_string(&registration).map_err(|error| Error::Answer(error.to_string()))
    }

    /// Shows a certificate from now on. How long it is good follows from itself
    /// when nobody says so.
    fn take(&self, pem: &str, lifetime: Option<Duration>) -> Result<(), String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let chain = chain.map_err(|error| error.to_string())?;
        let first = chain.first().ok_or("it holds no certificate")?;
        let (left, whole) = match lifetime {
            Some(lifetime) => (lifetime, lifetime),
            None => times_of(first)?,
        };
        let certified = CertifiedKey::new(chain, Arc::clone(&self.key.signs));
        certified.keys_match().map_err(|_| "it is for another key")?;
        self.shown.0.store(Some(Arc::new(certified)));
        *self.state() = State { times: Some(Times::new(left, whole)), refused: false, broken: 0 };
        Ok(())
    }
}

/// How long a certificate is good from now on by this host's clock, and from
/// its beginning.
fn times_of(certificate: &CertificateDer<'_>) -> Result<(Duration, Duration), String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    let since = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let (from, until) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let until = since(until);
    // It is backdated, so that its whole time is longer than it is of use.
    Ok((until.saturating_sub(now), until.saturating_sub(since(from)) / 2))
}

impl Key {
    fn open(path: &Path) -> Result<Self, Error> {
        let pair = match files::read_text(path, FILE_BYTES_MAX).map(Zeroizing::new) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(|_| Error::Key(path.to_path_buf()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => KeyPair::generate()?,
            Err(source) => return Err(FileError::of("read", path)(source).into()),
        };
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let signs = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der);
        let signs = signs.map_err(|_| Error::Key(path.to_path_buf()))?;
        Ok(Self { path: path.to_path_buf(), pair, signs })
    }

    /// Writes it down, if it is new.
    fn keep(&self) -> Result<(), Error> {
        if !self.path.exists() {
            files::replace(&self.path, Zeroizing::new(self.pair.serialize_pem()).as_bytes(), 0o600)?;
        }
        Ok(())
    }
}

/// Posts a registration.
async fn post(sender: &mut SendRequest<Body>, authority: &str, body: String) -> Result<Registered, Error> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(PATH)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .map_err(|error| Error::Broken(error.to_string()))?;
    sender.ready().await.map_err(broken)?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let body = axum::body::to_bytes(Body::new(answer.into_body()), ANSWER_BYTES_MAX).await;
    let body = body.map_err(|error| Error::Broken(error.to_string()))?;
    if status == StatusCode::CREATED {
        return serde_json::from_slice(&body).map_err(|error| Error::Answer(error.to_string()));
    }
    let Refused { error, error_description } = serde_json::from_slice(&body).unwrap_or_default();
    let said = if error_description.is_empty() { &error } else { &error_description };
    let reason = if said.is_empty() { "it does not say why" } else { said };
    Err(Error::Refused { status, reason: reason.chars().take(500).collect(), error })
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn broken(error: hyper::Error) -> Error {
    Error::Broken(error.to_string())
}

#[cfg(test)]
#[path = "enrolment_tests.rs"]
mod tests;
