//! A port whose TLS follows its files. What cannot be used leaves what is in
//! use as it is, and is told once for each change.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use super::authority::Authority;
use super::error::TlsError;
use super::expiry::{Expiry, Told};
use super::facts::{Facts, timestamp};
use super::listener::{self, ClientAuth, Roots, Tls};
use super::source::{Content, Password, Source, TrustFile};
use crate::broker::config::{GatewayListener, Listener};
use crate::secret::Secret;

/// How often files are read in one look before they count as broken: they may
/// be in the middle of being replaced.
const READINGS: usize = 3;

/// Where a configured port's certificate comes from.
pub fn source_of(listener: &Listener) -> Source {
    if let Some(file) = &listener.key_store_file {
        let password = password_of(listener.key_store_password_file.as_ref(), listener.key_store_password.as_ref());
        return Source::KeyStore { file: file.clone(), password };
    }
    match (&listener.certificate_file, &listener.key_file) {
        (Some(certificate), Some(key)) => Source::Pem { certificate: certificate.clone(), key: key.clone() },
        _ => Source::OwnAuthority,
    }
}

fn password_of(file: Option<&PathBuf>, text: Option<&Secret>) -> Password {
    match (file, text) {
        (Some(path), _) => Password::File(path.clone()),
        (None, Some(secret)) => Password::Text(secret.clone()),
        (None, None) => Password::None,
    }
}

/// Whose certificates the gateways' port asks for: those of the authorities
/// that the configuration names or, when it names none, of the cluster's own.
pub fn gateways_of(listener: &GatewayListener) -> ClientAuth {
    if !listener.require_client_certificate {
        return ClientAuth::None;
    }
    let stores = listener.trust_store_file.iter().map(|file| TrustFile {
        file: file.clone(),
        password: password_of(listener.trust_store_password_file.as_ref(), listener.trust_store_password.as_ref()),
    });
    let pem = listener.trust_file.iter().map(|file| TrustFile { file: file.clone(), password: Password::None });
    let files: Vec<_> = pem.chain(stores).collect();
    ClientAuth::Required(Roots { own_authority: files.is_empty(), files })
}

/// What all ports have in common.
pub(super) struct Common<'a> {
    pub(super) authority: &'a Arc<Authority>,
    /// The host's certificate by that authority.
    pub(super) host: &'a Arc<CertifiedKey>,
    /// The names in it.
    pub(super) host_names: &'a BTreeSet<String>,
    /// The file that it is written to.
    pub(super) host_file: &'a Path,
}

/// What is asked of a port's TLS.
pub(super) struct Wanted {
    /// What operators call the port.
    pub(super) name: String,
    pub(super) source: Source,
    pub(super) client_auth: ClientAuth,
    pub(super) alpn: Vec<Vec<u8>>,
}

/// A port and what it shows now.
pub(super) struct Port {
    wanted: Wanted,
    tls: Tls,
    /// What was read when it was set up.
    digest: Digest,
    shown: Facts,
    told: Told,
    broken: Option<Broken>,
}

/// What was read and could not be used.
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

/// Why it is not, and by what if that could be read.
struct Refused {
    digest: Option<Digest>,
    error: TlsError,
}

/// What the files of a port hold.
struct Read {
    own: Vec<Content>,
    roots: Vec<Content>,
}

impl Port {
    pub(super) fn open(wanted: Wanted, common: &Common<'_>, now: SystemTime) -> Result<Self, TlsError> {
        let Made { config, shown, digest } = wanted.make(common, now).map_err(|refused| refused.error)?;
        let tls = Tls::new(config, Arc::clone(common.authority));
        Ok(Self { wanted, tls, digest, shown, told: Told::default(), broken: None })
    }

    /// Its TLS, which follows.
    pub(super) fn tls(&self) -> Tls {
        self.tls.clone()
    }

    /// Looks once, and takes what has changed.
    pub(super) fn refresh(&mut self, common: &Common<'_>, now: SystemTime) {
        match self.wanted.read(common) {
            // What is used is there again, or still.
            Ok((digest, _)) if digest == self.digest => self.broken = None,
            Ok((digest, _)) if self.broken.as_ref().is_some_and(|broken| broken.stays(digest)) => {}
            _ => self.set_up(common, now),
        }
        if self.wanted.source.file().is_some() && self.told.is_due(self.shown.not_after, now) {
            let Expiry { listener, subject, file, not_after, days_left, .. } = self.view(common).expiry(now);
            tracing::warn!(
                listener,
                subject,
                file,
                not_after,
                days_left,
                "a certificate expires; put a new one in its place"
            );
        }
    }

    fn set_up(&mut self, common: &Common<'_>, now: SystemTime) {
        let listener = &self.wanted.name;
        match self.wanted.make(common, now) {
            Ok(Made { config, shown, digest }) => {
                self.tls.replace(config);
                let not_after = timestamp(shown.not_after);
                tracing::info!(listener, subject = shown.subject, %not_after, "certificate reloaded");
                (self.shown, self.digest, self.broken, self.told) = (shown, digest, None, Told::default());
            }
            Err(refused) => {
                let Refused { digest, error } = *refused;
                let text = in_one_line(&error);
                let is_same = |broken: &Broken| broken.digest == digest && broken.text == text;
                if !self.broken.as_ref().is_some_and(is_same) {
                    tracing::warn!(listener, error = text, "a certificate cannot be used; the one in use stays");
                }
                let is_early = matches!(error, TlsError::NotYetValid { .. });
                self.broken = Some(Broken { digest, text, is_early });
            }
        }
    }

    /// What operators see of it.
    pub(super) fn view(&self, common: &Common<'_>) -> View {
        let own = self.wanted.source.file();
        View {
            listener: self.wanted.name.clone(),
            facts: self.shown.clone(),
            file: own.unwrap_or(common.host_file).display().to_string(),
            is_renewed: own.is_none(),
            names: if own.is_none() { common.host_names.clone() } else { BTreeSet::new() },
            problem: self.broken.as_ref().map(|broken| broken.text.clone()),
        }
    }
}

/// A certificate in use.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) listener: String,
    pub(super) facts: Facts,
    pub(super) file: String,
    pub(super) is_renewed: bool,
    pub(super) names: BTreeSet<String>,
    pub(super) problem: Option<String>,
}

impl View {
    pub(super) fn expiry(&self, now: SystemTime) -> Expiry {
        Expiry {
            is_renewed: self.is_renewed,
            names: self.names.clone(),
            problem: self.problem.clone(),
            ..Expiry::new(&self.listener, &self.facts, self.file.clone(), now)
        }
    }
}

impl Broken {
    fn stays(&self, digest: Digest) -> bool {
        self.digest == Some(digest) && !self.is_early
    }
}

impl Wanted {
    /// Reads the files; their digest, and what is in them.
    fn read(&self, common: &Common<'_>) -> Result<(Digest, Read), TlsError> {
        let own = self.source.read()?;
        let mut roots = Vec::new();
        for file in self.client_auth.roots().map(|roots| &roots.files).into_iter().flatten() {
            roots.push(file.read()?);
        }
        let mut context = Context::new(&SHA256);
        let mut add = |bytes: &[u8]| {
            context.update(&(bytes.len() as u64).to_be_bytes());
            context.update(bytes);
        };
        match self.source {
            Source::OwnAuthority => common.host.cert.iter().for_each(|certificate| add(certificate)),
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

    /// TLS with what the files hold. When that cannot be used they are read
    /// again, until they are twice the same.
    fn make(&self, common: &Common<'_>, now: SystemTime) -> Result<Made, Box<Refused>> {
        let mut last: Option<Refused> = None;
        for _ in 0..READINGS {
            let read = self.read(common).map_err(|error| Box::new(Refused { digest: None, error }));
            let (digest, read) = read?;
            match self.make_of(&read, common, now) {
                Ok((config, shown)) => return Ok(Made { config, shown, digest }),
                Err(error) => {
                    let is_same = last.is_some_and(|last| last.digest == Some(digest));
                    last = Some(Refused { digest: Some(digest), error });
                    if is_same {
                        break;
                    }
                }
            }
        }
        Err(Box::new(last.expect("each reading returns or leaves one")))
    }

    fn make_of(&self, read: &Read, common: &Common<'_>, now: SystemTime) -> Result<(ServerConfig, Facts), TlsError> {
        let (certified, shown) = if let Some(own) = self.source.load(&read.own, now)? {
            (own.certified, own.facts)
        } else {
            let none = || TlsError::NoCertificate { path: common.host_file.to_owned() };
            (Arc::clone(common.host), common.host.cert.first().and_then(Facts::of).ok_or_else(none)?)
        };
        let roots = self.roots(&read.roots, common.authority)?;
        Ok((listener::config(certified, &self.client_auth, roots, &self.alpn)?, shown))
    }

    /// Who is trusted to sign clients' certificates, each with the file that
    /// names it.
    fn roots(
        &self,
        read: &[Content],
        authority: &Authority,
    ) -> Result<Vec<(std::path::PathBuf, CertificateDer<'static>)>, TlsError> {
        let mut roots = Vec::new();
        let Some(trusted) = self.client_auth.roots() else { return Ok(roots) };
        if trusted.own_authority {
            roots.push((authority.path().to_owned(), authority.certificate().clone()));
        }
        for (file, content) in trusted.files.iter().zip(read) {
            roots.extend(file.load(content)?.into_iter().map(|root| (file.file.clone(), root)));
        }
        Ok(roots)
    }
}

/// An error with its causes.
pub(super) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
