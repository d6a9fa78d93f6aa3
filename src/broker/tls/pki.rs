//! All certificates of the broker's ports, kept up to date while it runs.
//!
//! Every few seconds the files are looked at, every few minutes what the host
//! is called. Times are the system's: a clock that jumps makes a renewal early
//! or late by one look. What cannot be used leaves what is used as it is, and is
//! told once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use super::authority::Authority;
use super::error::TlsError;
use super::expiry::{Expiry, Told};
use super::facts::Facts;
use super::host::{self, HostCertificate};
use super::listener::{self, ClientAuth, Tls};
use super::names::{self, Names, ThisHost};
use super::source::{Content, Source};
use crate::broker::config::Listener;

/// Between two looks at the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at what this host is called.
const NAMES_INTERVAL: Duration = Duration::from_mins(2);
/// How often files are read in one look before they count as broken: they may
/// be in the middle of being replaced.
const READINGS: usize = 3;

/// The authority, the host's certificate and the ports.
pub struct Pki {
    authority: Arc<Authority>,
    folder: PathBuf,
    /// Names of the configuration.
    further_names: Vec<String>,
    host_names: Box<dyn Names>,
    validity: Duration,
    state: Mutex<State>,
}

struct State {
    host: HostCertificate,
    names_looked_at: Instant,
    /// A certificate for the host could not be made, and operators know.
    is_told: bool,
    authority_told: Told,
    ports: Vec<Port>,
}

/// A port with its own view of its certificate.
struct Port {
    name: String,
    source: Source,
    client_auth: ClientAuth,
    alpn: Vec<Vec<u8>>,
    tls: Tls,
    /// What was read when it was set up.
    digest: Digest,
    shown: Facts,
    told: Told,
    /// What was read when that could not be used, and why not.
    broken: Option<Broken>,
}

struct Broken {
    /// `None` when it could not even be read.
    digest: Option<Digest>,
    text: String,
    /// Its time may come without a change.
    is_early: bool,
}

type Digest = [u8; 32];

/// What a port is set up with.
struct Made {
    config: ServerConfig,
    shown: Facts,
    digest: Digest,
}

/// Where a configured port's certificate comes from.
pub fn source_of(listener: &Listener) -> Source {
    match (&listener.certificate_file, &listener.key_file) {
        (Some(certificate), Some(key)) => Source::Pem { certificate: certificate.clone(), key: key.clone() },
        _ => Source::OwnAuthority,
    }
}

impl Pki {
    /// Makes a server certificate for this host and for `names`, signed by the
    /// authority in a folder, which is made when there is none. Waits for the
    /// system's resolver, for a limited time.
    pub fn open(folder: &Path, names: &[String]) -> Result<Self, TlsError> {
        Self::with(folder, names, Box::new(ThisHost::default()), host::VALIDITY, SystemTime::now())
    }

    fn with(
        folder: &Path,
        names: &[String],
        host_names: Box<dyn Names>,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        if let Some(name) = names.iter().find(|name| !names::can_be_certified(name)) {
            return Err(TlsError::Name { name: name.clone() });
        }
        let authority = Arc::new(Authority::open(folder)?);
        let all = all_names(host_names.as_ref(), names);
        let host = HostCertificate::make(&authority, all, &folder.join("server.pem"), now, validity)?;
        let state = State {
            host,
            names_looked_at: Instant::now(),
            is_told: false,
            authority_told: Told::default(),
            ports: Vec::new(),
        };
        Ok(Self {
            authority,
            folder: folder.to_owned(),
            further_names: names.to_vec(),
            host_names,
            validity,
            state: Mutex::new(state),
        })
    }

    /// The authority.
    pub const fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// The authority's certificate, for clients and agents.
    pub fn ca_path(&self) -> &Path {
        self.authority.path()
    }

    /// TLS for a port, which is kept up to date from then on. `name` is what
    /// operators call the port.
    pub fn server_config(
        &self,
        name: &str,
        source: Source,
        alpn: &[&[u8]],
        client_auth: ClientAuth,
    ) -> Result<Tls, TlsError> {
        let alpn: Vec<_> = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let mut state = self.state();
        let made = self.make(&source, &client_auth, &alpn, &state.host.certified, SystemTime::now());
        let Made { config, shown, digest } = made.map_err(|(_, error)| error)?;
        let tls = Tls::new(config, Arc::clone(&self.authority));
        state.ports.push(Port {
            name: name.to_owned(),
            source,
            client_auth,
            alpn,
            tls: tls.clone(),
            digest,
            shown,
            told: Told::default(),
            broken: None,
        });
        Ok(tls)
    }

    /// Keeps everything up to date until `shutdown`.
    pub async fn keep(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            if let Err(error) = Arc::clone(&self).look_aside(false).await {
                tracing::error!(%error, "certificates cannot be looked at");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Looks at everything now, the host's names included, and says what is
    /// used then.
    pub async fn reload(self: Arc<Self>) -> Result<Vec<Expiry>, TlsError> {
        Arc::clone(&self).look_aside(true).await?;
        Ok(self.expiries())
    }

    /// Files, a resolver and key derivations take their time.
    async fn look_aside(self: Arc<Self>, at_names: bool) -> Result<(), TlsError> {
        let looking = tokio::task::spawn_blocking(move || {
            let is_time = at_names || self.state().names_looked_at.elapsed() >= NAMES_INTERVAL;
            let names = is_time.then(|| all_names(self.host_names.as_ref(), &self.further_names));
            self.look(names, SystemTime::now());
        });
        Ok(looking.await?)
    }

    /// Looks once: at the host's certificate, for `names` if they were asked
    /// for, and at the files of each port.
    fn look(&self, names: Option<BTreeSet<String>>, now: SystemTime) {
        let mut state = self.state();
        if names.is_some() {
            state.names_looked_at = Instant::now();
        }
        self.renew_host(&mut state, names, now);
        let State { host, ports, authority_told, .. } = &mut *state;
        for port in ports {
            self.refresh(port, &host.certified, now);
        }
        let facts = self.authority.facts();
        if authority_told.is_due(facts.not_after, now) {
            let expiry = Expiry::new("authority", facts, self.ca_path().display().to_string(), now);
            tracing::warn!(
                file = expiry.file,
                not_after = expiry.not_after,
                days_left = expiry.days_left,
                "the certificate authority expires; a new one must be handed to clients, agents and gateways"
            );
        }
    }

    fn renew_host(&self, state: &mut State, names: Option<BTreeSet<String>>, now: SystemTime) {
        let names = names.unwrap_or_else(|| state.host.names().clone());
        let is_for = state.host.is_for(&names);
        if is_for && !state.host.is_due(now) {
            return;
        }
        match HostCertificate::make(&self.authority, names, &self.folder.join("server.pem"), now, self.validity) {
            Ok(host) => {
                let reason = if is_for { "it was old" } else { "the host is called something else" };
                tracing::info!(reason, names = ?host.names(), "the server certificate was renewed");
                state.host = host;
                state.is_told = false;
            }
            Err(error) if !std::mem::replace(&mut state.is_told, true) => {
                tracing::warn!(error = %chain(&error), "the server certificate cannot be renewed; the one in use stays");
            }
            Err(_) => {}
        }
    }

    /// Sets a port up anew when something it is made of has changed.
    fn refresh(&self, port: &mut Port, host: &Arc<CertifiedKey>, now: SystemTime) {
        let Port { name, source, client_auth, .. } = &*port;
        let is_same = |digest: &Digest| *digest == port.digest;
        match self.read(source, client_auth, host) {
            // What is used is there again, or still.
            Ok((digest, _)) if is_same(&digest) => port.broken = None,
            // Broken as before. What was early may have come into its time.
            Ok((digest, _)) if port.broken.as_ref().is_some_and(|broken| broken.stays(digest)) => {}
            _ => match self.make(source, client_auth, &port.alpn, host, now) {
                Ok(Made { config, shown, digest }) => {
                    port.tls.replace(config);
                    let not_after = Expiry::new(name, &shown, String::new(), now).not_after;
                    tracing::info!(listener = name, subject = shown.subject, not_after, "certificate reloaded");
                    (port.shown, port.digest, port.broken, port.told) = (shown, digest, None, Told::default());
                }
                Err((digest, error)) => {
                    let text = chain(&error);
                    let is_same = |broken: &Broken| broken.digest == digest && broken.text == text;
                    let is_told = port.broken.as_ref().is_some_and(is_same);
                    if !is_told {
                        tracing::warn!(
                            listener = name,
                            error = text,
                            "a certificate cannot be used; the one in use stays"
                        );
                    }
                    let is_early = matches!(error, TlsError::NotYetValid { .. });
                    port.broken = Some(Broken { digest, text, is_early });
                }
            },
        }
        if port.source.file().is_some() && port.told.is_due(port.shown.not_after, now) {
            let expiry = self.expiry_of(port, &BTreeSet::new(), now);
            tracing::warn!(
                listener = expiry.listener,
                subject = expiry.subject,
                file = expiry.file,
                not_after = expiry.not_after,
                days_left = expiry.days_left,
                "a certificate expires; put a new one in its place"
            );
        }
    }

    /// Reads the files of a port; their digest, and what is in them.
    fn read(&self, source: &Source, client_auth: &ClientAuth, host: &CertifiedKey) -> Result<(Digest, Read), TlsError> {
        let own = source.read()?;
        let mut roots = Vec::new();
        for file in client_auth.roots().map(|roots| &roots.files).into_iter().flatten() {
            roots.push(file.read()?);
        }
        let mut context = Context::new(&SHA256);
        let mut add = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        };
        match source {
            Source::OwnAuthority => host.cert.iter().for_each(|certificate| add(certificate)),
            Source::Pem { .. } | Source::KeyStore { .. } => {}
        }
        for content in own.iter().chain(&roots) {
            add(&content.bytes);
            add(content.password.as_ref().map_or(&[], |password| password.expose().as_bytes()));
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Ok((digest, Read { own, roots }))
    }

    /// Sets a port up with what its files hold. A failure comes with what was
    /// read, if it could be.
    fn make(
        &self,
        source: &Source,
        client_auth: &ClientAuth,
        alpn: &[Vec<u8>],
        host: &Arc<CertifiedKey>,
        now: SystemTime,
    ) -> Result<Made, (Option<Digest>, TlsError)> {
        let mut last = None;
        for _ in 0..READINGS {
            let (digest, read) = self.read(source, client_auth, host).map_err(|error| (None, error))?;
            match self.make_of(&read, source, client_auth, alpn, host, now) {
                Ok((config, shown)) => return Ok(Made { config, shown, digest }),
                // The same twice: nobody is about to change it.
                Err(error) if last == Some(digest) => return Err((last, error)),
                Err(_) => last = Some(digest),
            }
        }
        let (digest, read) = self.read(source, client_auth, host).map_err(|error| (None, error))?;
        let made = self.make_of(&read, source, client_auth, alpn, host, now);
        made.map(|(config, shown)| Made { config, shown, digest }).map_err(|error| (Some(digest), error))
    }

    fn make_of(
        &self,
        read: &Read,
        source: &Source,
        client_auth: &ClientAuth,
        alpn: &[Vec<u8>],
        host: &Arc<CertifiedKey>,
        now: SystemTime,
    ) -> Result<(ServerConfig, Facts), TlsError> {
        let (certified, shown) = if let Some(own) = source.load(&read.own, now)? {
            (own.certified, own.facts)
        } else {
            let none = || TlsError::NoCertificate { path: self.folder.join("server.pem") };
            (Arc::clone(host), host.cert.first().and_then(Facts::of).ok_or_else(none)?)
        };
        let mut roots = Vec::new();
        if let Some(trusted) = client_auth.roots() {
            if trusted.own_authority {
                roots.push((self.ca_path().to_owned(), self.authority.certificate().clone()));
            }
            for (file, content) in trusted.files.iter().zip(&read.roots) {
                roots.extend(file.load(content)?.into_iter().map(|root| (file.file.clone(), root)));
            }
        }
        Ok((listener::config(certified, client_auth, roots, alpn)?, shown))
    }

    /// Every certificate in use and its end: those of the ports, and the
    /// authority.
    pub fn expiries(&self) -> Vec<Expiry> {
        let (state, now) = (self.state(), SystemTime::now());
        let ports = state.ports.iter().map(|port| self.expiry_of(port, state.host.names(), now));
        let authority = Expiry::new("authority", self.authority.facts(), self.ca_path().display().to_string(), now);
        ports.chain([authority]).collect()
    }

    fn expiry_of(&self, port: &Port, names: &BTreeSet<String>, now: SystemTime) -> Expiry {
        let own = port.source.file();
        let file = own.map_or_else(|| self.folder.join("server.pem"), Path::to_owned);
        Expiry {
            is_renewed: own.is_none(),
            names: if own.is_none() { names.clone() } else { BTreeSet::new() },
            problem: port.broken.as_ref().map(|broken| broken.text.clone()),
            ..Expiry::new(&port.name, &port.shown, file.display().to_string(), now)
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is in it is replaced as a whole, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the files of a port hold.
struct Read {
    own: Vec<Content>,
    roots: Vec<Content>,
}

impl Broken {
    fn stays(&self, digest: Digest) -> bool {
        self.digest == Some(digest) && !self.is_early
    }
}

fn all_names(host: &dyn Names, further: &[String]) -> BTreeSet<String> {
    host.names().into_iter().chain(further.iter().cloned()).collect()
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
#[path = "pki_tests.rs"]
mod tests;
