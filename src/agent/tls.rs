//! TLS toward the broker: trusts the operator's CA and nothing else.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::{info, warn};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CA file cannot be read, or is no PEM.
    #[error("cannot read the CA certificates in {}: {problem}", path.display())]
    CaFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The library refuses the settings.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
}

/// Makes TLS connections.
pub(super) struct Connector {
    /// Whose certificates are trusted; `None` trusts everybody.
    ca_file: Option<PathBuf>,
    /// What is shown to whoever asks for a certificate.
    shown: Option<Arc<dyn ResolvesClientCert>>,
    trusting: Mutex<Trusting>,
}

/// What is trusted at present.
struct Trusting {
    /// What stood in the file when it was looked at last, usable or not.
    pem: Option<Vec<u8>>,
    /// By the last contents that were usable.
    connector: TlsConnector,
}

impl Connector {
    /// Trusts the certificates of `ca_file`; `None` trusts everybody. Shows
    /// what `shown` has to whoever asks for a certificate.
    ///
    /// The file is read anew for each connection: a broker's other authority
    /// needs no start of all agents. While it cannot be used, what was read
    /// before stays.
    pub(super) fn new(ca_file: Option<&Path>, shown: Option<Arc<dyn ResolvesClientCert>>) -> Result<Self, Error> {
        let pem = ca_file.map(read).transpose()?;
        let roots = ca_file.zip(pem.as_deref()).map(|(path, pem)| roots_of(path, pem)).transpose()?;
        let connector = connector(roots, shown.clone())?;
        let trusting = Mutex::new(Trusting { pem, connector });
        Ok(Self { ca_file: ca_file.map(Path::to_path_buf), shown, trusting })
    }

    pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        name: ServerName<'static>,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        let connector = self.current();
        connector.connect(name, stream).await
    }

    /// By what stands in the file now, or stood there when it was usable.
    fn current(&self) -> TlsConnector {
        let mut trusting = self.trusting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.ca_file {
            let pem = read(path);
            // Told once, not with each connection.
            if pem.as_ref().ok() != trusting.pem.as_ref() {
                match self.anew(path, pem.as_deref()) {
                    Ok(connector) => {
                        info!(file = %path.display(), "the CA certificates were read anew");
                        trusting.connector = connector;
                    }
                    Err(error) => warn!(%error, "those that were read before stay"),
                }
                trusting.pem = pem.ok();
            }
        }
        trusting.connector.clone()
    }

    fn anew(&self, path: &Path, pem: Result<&[u8], &Error>) -> Result<TlsConnector, String> {
        let pem = pem.map_err(ToString::to_string)?;
        let roots = roots_of(path, pem).map_err(|error| error.to_string())?;
        connector(Some(roots), self.shown.clone()).map_err(|error| error.to_string())
    }
}

/// Makes connections that trust `roots`, or everybody.
fn connector(roots: Option<RootCertStore>, shown: Option<Arc<dyn ResolvesClientCert>>) -> Result<TlsConnector, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match roots {
        Some(roots) => builder.with_root_certificates(roots),
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustEverybody(provider))),
    };
    let mut config = match shown {
        Some(shown) => builder.with_client_cert_resolver(shown),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Whether the other side did not take our certificate.
pub(super) fn is_about_certificate(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = cause else { return false };
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::DecryptError
    )
}

/// The name that the broker's certificate must have.
pub(super) fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The longest file of CA certificates: every authority that a system trusts
/// has room in it.
const CA_BYTES_MAX: u64 = 4 * 1024 * 1024;

fn unusable(path: &Path, problem: &dyn std::fmt::Display) -> Error {
    Error::CaFile { path: path.to_path_buf(), problem: problem.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut pem = Vec::new();
    let file = File::open(path).map_err(|error| unusable(path, &error))?;
    file.take(CA_BYTES_MAX + 1).read_to_end(&mut pem).map_err(|error| unusable(path, &error))?;
    if pem.len() as u64 > CA_BYTES_MAX {
        return Err(unusable(path, &format!("it has more than {CA_BYTES_MAX} bytes")));
    }
    Ok(pem)
}

fn roots_of(path: &Path, pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| unusable(path, &error))?;
        roots.add(certificate).map_err(|error| unusable(path, &error))?;
    }
    if roots.is_empty() {
        return Err(unusable(path, &"there is no certificate in it"));
    }
    Ok(roots)
}

/// `tls_strict = false`: whoever answers is the broker. The handshake's
/// signatures are still checked.
#[derive(Debug)]
struct TrustEverybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustEverybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
