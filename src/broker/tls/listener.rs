//! TLS of one port: 1.2 and 1.3, as it is at the moment.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::pki_types::CertificateDer;
use rustls::server::{NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};

use super::authority::Authority;
use super::error::TlsError;
use super::source::TrustFile;
use super::subject::Shown;
use crate::domain::audit::Digest;

/// Whether clients show certificates.
#[derive(Debug, Clone, Default)]
pub enum ClientAuth {
    /// They are not asked for one.
    #[default]
    None,
    /// They may show one; a wrong one is refused.
    Optional(Roots),
    /// They must show one.
    Required(Roots),
}

/// Who is trusted to sign clients' certificates.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// The cluster's own authority.
    pub own_authority: bool,
    /// Further authorities.
    pub files: Vec<TrustFile>,
}

impl ClientAuth {
    /// Who is trusted, when certificates are asked for.
    pub const fn roots(&self) -> Option<&Roots> {
        match self {
            Self::None => None,
            Self::Optional(roots) | Self::Required(roots) => Some(roots),
        }
    }
}

/// TLS of one port. Each connection asks for what is current.
#[derive(Clone)]
pub struct Tls {
    current: Arc<ArcSwap<ServerConfig>>,
    authority: Arc<Authority>,
}

impl Tls {
    pub(super) fn new(config: ServerConfig, authority: Arc<Authority>) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(config)), authority }
    }

    /// What a connection that begins now uses.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// The certificate that a client showed, after it was accepted.
    pub fn shown(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<Shown> {
        let certificate = chain?.first()?;
        Some(Shown { subject: self.authority.identity_of(certificate)?, digest: Digest::of(certificate) })
    }

    /// Connections that begin from now on use this.
    pub(super) fn replace(&self, config: ServerConfig) {
        self.current.store(Arc::new(config));
    }
}

/// TLS with a certificate, for clients that are trusted by `roots`: the file
/// that names each, and the authority itself.
pub(super) fn config(
    certified: Arc<CertifiedKey>,
    client_auth: &ClientAuth,
    roots: Vec<(PathBuf, CertificateDer<'static>)>,
    alpn: &[Vec<u8>],
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ClientCertVerifier> = match client_auth {
        ClientAuth::None => Arc::new(NoClientAuth),
        ClientAuth::Optional(_) | ClientAuth::Required(_) => {
            let mut store = RootCertStore::empty();
            for (path, root) in roots {
                store.add(root).map_err(|source| TlsError::Root { path, source })?;
            }
            if store.is_empty() {
                return Err(TlsError::NoRoots);
            }
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider));
            let is_optional = matches!(client_auth, ClientAuth::Optional(_));
            if is_optional { builder.allow_unauthenticated() } else { builder }.build()?
        }
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = alpn.to_vec();
    if matches!(client_auth, ClientAuth::None) {
        // Clients that come back often save a signature; nothing is kept for them here.
        config.ticketer = Ticketer::new()?;
    } else {
        // A resumed session would not look at the client's certificate again,
        // which may have expired in between.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}
