//! The cluster's certificate authority: made by the first replica, in the log,
//! sealed, and in every data folder. Operators hand `ca.pem` to clients, agents
//! and gateways.
//!
//! It signs the replicas' server certificates, and certificates for agents and
//! gateways that prove their key with a request (PKCS #10). What else a request
//! asks for is not looked at: the broker decides what its certificates say.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use zeroize::Zeroizing;

use super::error::TlsError;
use super::facts::Facts;
use super::subject::Subject;
use crate::domain::gateway::NameError;
use crate::files;

const CA_VALIDITY: Duration = Duration::from_hours(10 * 365 * 24);
/// Clocks of those who look at a certificate may be behind by as much.
pub(super) const BACKDATED: Duration = Duration::from_hours(24);
/// How long an agent's certificate is good for: it is renewed by itself.
pub const AGENT_VALIDITY: Duration = Duration::from_hours(24);
/// How long a gateway's certificate is good for: an operator brings a new one.
pub const GATEWAY_VALIDITY: Duration = Duration::from_hours(365 * 24);
/// Longest request for a certificate. One with a large RSA key has some 2 kB.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Why a certificate is not given to somebody.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// More than a request can have.
    #[error("the request for a certificate is larger than {REQUEST_BYTES_MAX} bytes")]
    TooLarge,
    /// It is no request, its signature is not by its key, or the key is of a
    /// kind that is not taken.
    #[error(
        "the request is no PKCS #10 request that is signed with its own key (ECDSA P-256 or P-384, Ed25519, or RSA \
         of 2048 bits or more, with SHA-2)"
    )]
    Request(#[source] rcgen::Error),
    /// The name cannot stand in a certificate.
    #[error(transparent)]
    Subject(#[from] NameError),
    /// The certificate cannot be made.
    #[error("cannot make the certificate")]
    Make(#[source] rcgen::Error),
}

/// A request for a certificate (PKCS #10) that proved its key. What else it
/// asks for is not looked at.
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads a request in DER or PEM.
    pub fn read(request: &[u8]) -> Result<Self, SignError> {
        if request.len() > REQUEST_BYTES_MAX {
            return Err(SignError::TooLarge);
        }
        let request = match CertificateSigningRequestDer::from_pem_slice(request) {
            Ok(request) => request,
            Err(_) => CertificateSigningRequestDer::from(request.to_vec()),
        };
        CertificateSigningRequestParams::from_der(&request).map(Self).map_err(SignError::Request)
    }

    /// SHA-256 of the key (its `SubjectPublicKeyInfo`), which is the same in
    /// every request with it.
    pub fn key_digest(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, &self.0.public_key.subject_public_key_info()).as_ref());
        bytes
    }
}

/// A certificate that was signed for somebody else's key.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// The same in PEM.
    pub pem: String,
    /// Its last moment.
    pub not_after: SystemTime,
}

/// The authority, ready to sign.
#[derive(Debug)]
pub struct Authority {
    path: PathBuf,
    pem: String,
    certificate: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    facts: Facts,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority in a folder, which is made when there is none.
    pub fn open(folder: &Path) -> Result<Self, TlsError> {
        files::make_folder(folder, 0o700)?;
        let path = folder.join("ca.pem");
        let (pem, issuer) = open_authority(&path, &folder.join("ca.key"))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|source| TlsError::Pem { path: path.clone(), source })?;
        let none = || TlsError::NoCertificate { path: path.clone() };
        let facts = Facts::of(&certificate).ok_or_else(none)?;
        let anchor = anchor_from_trusted_cert(&certificate).map_err(|_| none())?.to_owned();
        Ok(Self { path, pem, certificate, anchor, facts, issuer })
    }

    /// Its certificate's file, for clients, agents and gateways.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its certificate.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// From when until when it is good.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Signs a server certificate.
    pub(super) fn sign_server(
        &self,
        key: &KeyPair,
        names: Vec<String>,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Signed, TlsError> {
        let made = |source| TlsError::Make { path: self.path.clone(), source };
        let mut params = CertificateParams::new(names).map_err(made)?;
        params.distinguished_name = named("berth broker");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, key, now, validity).map_err(made)
    }

    /// Signs a certificate with which `subject` proves itself as a client, for
    /// the key of a request. It ends with the authority at the latest.
    pub fn sign_client(
        &self,
        request: &Request,
        subject: &Subject,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Signed, SignError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&subject.to_string());
        let uri = subject.uri()?.try_into().map_err(SignError::Make)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, &request.0.public_key, now, validity).map_err(SignError::Make)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Signed, rcgen::Error> {
        let mut serial = [0; 16];
        SystemRandom::new().fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let not_after = whole_second(now + validity).min(self.facts.not_after);
        set_validity(&mut params, now, not_after);
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(Signed { certificate: certificate.der().clone(), pem: certificate.pem(), not_after })
    }

    /// Whom a client's certificate names, after it was accepted: an agent or a
    /// gateway if this authority signed it, and somebody else otherwise.
    pub fn identity_of(&self, certificate: &CertificateDer<'_>) -> Option<Subject> {
        let facts = Facts::of(certificate)?;
        Some(self.own_subject(certificate, &facts).unwrap_or(Subject::Other(facts.subject)))
    }

    fn own_subject(&self, certificate: &CertificateDer<'_>, facts: &Facts) -> Option<Subject> {
        // The handshake looked whether its time is now. One that ends while the handshake goes on
        // is not somebody else's for that.
        let last = UnixTime::since_unix_epoch(facts.not_after.duration_since(SystemTime::UNIX_EPOCH).ok()?);
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let anchors = std::slice::from_ref(&self.anchor);
        let usage = KeyUsage::client_auth();
        certificate.verify_for_usage(algorithms, anchors, &[], last, usage, None, None).ok()?;
        let mut uris = certificate.valid_uri_names();
        let subject = Subject::of_uri(uris.next()?)?;
        uris.next().is_none().then_some(subject)
    }
}

/// Certificate and key of the authority in a folder, as one PEM, for other
/// replicas. It is made when there is none.
pub fn export_authority(folder: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    files::make_folder(folder, 0o700)?;
    let (ca_pem, issuer) = open_authority(&folder.join("ca.pem"), &folder.join("ca.key"))?;
    let key = Zeroizing::new(issuer.key().serialize_pem());
    Ok(Zeroizing::new(format!("{ca_pem}{}", *key).into_bytes()))
}

/// Takes over what [`export_authority`] gave on another replica. `is_used`
/// says whether one that is here was ever shown to anybody; it is then kept
/// beside the new one, under a name with `.old`.
pub fn import_authority(folder: &Path, pem: &[u8], is_used: bool) -> Result<(), TlsError> {
    files::make_folder(folder, 0o700)?;
    let (ca_path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
    let text = Zeroizing::new(String::from_utf8_lossy(pem).into_owned());
    let unusable = || TlsError::Pem { path: ca_path.clone(), source: rustls::pki_types::pem::Error::NoItemsFound };
    let key_at = text.find("-----BEGIN PRIVATE KEY-----").ok_or_else(unusable)?;
    let (certificate, key) = text.split_at(key_at);
    if fs::read(&ca_path).is_ok_and(|found| found == certificate.as_bytes()) && key_path.exists() {
        return Ok(());
    }
    if is_used && let Ok(old) = fs::read(&ca_path) {
        files::replace(&folder.join("ca.pem.old"), &old, 0o644)?;
        tracing::warn!("this replica had another certificate authority; the cluster's is used from now on");
    }
    files::replace(&key_path, key.as_bytes(), 0o600)?;
    files::replace(&ca_path, certificate.as_bytes(), 0o644)?;
    Ok(())
}

fn open_authority(ca_path: &Path, key_path: &Path) -> Result<(String, Issuer<'static, KeyPair>), TlsError> {
    let made = |source| TlsError::Make { path: ca_path.to_owned(), source };
    if ca_path.exists() {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| TlsError::Io { path: path.to_owned(), source });
        let ca_pem = read(ca_path)?;
        let key = KeyPair::from_pem(&read(key_path)?)
            .map_err(|source| TlsError::Make { path: key_path.to_owned(), source })?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(made)?;
        return Ok((ca_pem, issuer));
    }
    // A key without its certificate was left by a start that was cut short.
    let key = match fs::read_to_string(key_path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|source| TlsError::Make { path: key_path.to_owned(), source })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => KeyPair::generate().map_err(made)?,
        Err(source) => return Err(TlsError::Io { path: key_path.to_owned(), source }),
    };
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = named("berth certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, now + CA_VALIDITY);
    let certificate = params.self_signed(&key).map_err(made)?;
    let ca_pem = certificate.pem();
    // The key first: a certificate without its key could not be used.
    files::replace(key_path, key.serialize_pem().as_bytes(), 0o600)?;
    files::replace(ca_path, ca_pem.as_bytes(), 0o644)?;
    Ok((ca_pem, Issuer::new(params, key)))
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Certificates know no parts of a second.
fn whole_second(moment: SystemTime) -> SystemTime {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, not_after: SystemTime) {
    params.not_before = (now - BACKDATED).into();
    params.not_after = not_after.into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ClientId;
    use crate::domain::gateway::GatewayName;

    fn authority() -> (tempfile::TempDir, Authority) {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::open(folder.path()).expect("made");
        (folder, authority)
    }

    fn request(key: &KeyPair) -> rcgen::CertificateSigningRequest {
        // Whoever asks for more gets no more.
        let mut params = CertificateParams::new(vec!["broker.example".to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.serialize_request(key).expect("made")
    }

    fn gateway() -> Subject {
        Subject::Gateway(GatewayName::new("gw-1").expect("valid"))
    }

    #[test]
    fn an_authority_is_kept_and_a_certificate_without_its_key_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tls");
        let first = Authority::open(&path).expect("made");
        let second = Authority::open(&path).expect("found");
        assert_eq!(first.certificate(), second.certificate());
        fs::remove_file(path.join("ca.pem")).expect("removed");
        Authority::open(&path).expect("made anew with the key that is left");
        fs::remove_file(path.join("ca.key")).expect("removed");
        assert!(matches!(Authority::open(&path), Err(TlsError::Io { .. })));
    }

    #[test]
    fn an_authority_is_the_same_on_another_replica() {
        let place = tempfile::tempdir().expect("a folder");
        let (one, two) = (place.path().join("one"), place.path().join("two"));
        let exported = export_authority(&one).expect("made");
        Authority::open(&two).expect("made on its own");
        import_authority(&two, &exported, true).expect("taken over");
        assert!(two.join("ca.pem.old").exists());
        import_authority(&two, &exported, true).expect("the same again");
        assert_eq!(export_authority(&two).expect("read"), exported);
        Authority::open(&two).expect("signs");
        assert!(import_authority(&two, b"nonsense", true).is_err());
    }

    #[test]
    fn agents_and_gateways_get_certificates_for_their_keys_and_for_no_more() {
        let (_folder, authority) = authority();
        let key = KeyPair::generate().expect("made");
        let request = request(&key);
        let agent = Subject::Agent(ClientId::new(&uuid::Uuid::new_v4().to_string()).expect("valid"));
        let now = SystemTime::now();
        let mut serials = std::collections::BTreeSet::new();
        let mut digests = std::collections::BTreeSet::new();
        for subject in [agent, gateway()] {
            for form in [request.der().as_ref(), request.pem().expect("text").as_bytes()] {
                let form = Request::read(form).expect("a request");
                digests.insert(form.key_digest());
                let signed = authority.sign_client(&form, &subject, now, AGENT_VALIDITY).expect("signed");
                assert_eq!(authority.identity_of(&signed.certificate), Some(subject.clone()));
                let (_, certificate) = x509_parser::parse_x509_certificate(&signed.certificate).expect("one");
                assert!(!certificate.is_ca());
                assert_eq!(certificate.public_key().subject_public_key.data, key.public_key_raw());
                assert!(serials.insert(certificate.raw_serial().to_vec()), "a serial twice");
                let names = certificate.subject_alternative_name().expect("readable").expect("there");
                assert_eq!(names.value.general_names.len(), 1, "{names:?}");
                let usage = certificate.extended_key_usage().expect("readable").expect("there").value;
                assert!(usage.client_auth && !usage.server_auth && !usage.any, "{usage:?}");
                assert_eq!(signed.not_after, whole_second(now + AGENT_VALIDITY));
                assert_eq!(Facts::of(&signed.certificate).expect("one").not_after, signed.not_after);
            }
        }
        assert_eq!(digests.len(), 1, "one key");
    }

    #[test]
    fn a_request_that_does_not_prove_its_key_is_refused() {
        let (_folder, authority) = authority();
        let request = request(&KeyPair::generate().expect("made"));
        let mut forged = request.der().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert!(matches!(Request::read(&forged), Err(SignError::Request(_))));
        assert!(matches!(Request::read(b"nonsense"), Err(SignError::Request(_))));
        assert!(matches!(Request::read(&[]), Err(SignError::Request(_))));
        assert!(matches!(Request::read(&vec![0x30; REQUEST_BYTES_MAX + 1]), Err(SignError::TooLarge)));
        for length in 0..request.der().len() {
            assert!(Request::read(&request.der()[..length]).is_err(), "cut at {length}");
        }
        let stranger = Subject::Other("CN=stranger".to_owned());
        let request = Request::read(request.der()).expect("whole");
        let refused = authority.sign_client(&request, &stranger, SystemTime::now(), AGENT_VALIDITY);
        assert!(matches!(refused, Err(SignError::Subject(_))));
    }

    #[test]
    fn another_authority_cannot_name_our_agents() {
        let (_folder, ours) = authority();
        let (_other_folder, theirs) = authority();
        let request = request(&KeyPair::generate().expect("made"));
        let request = Request::read(request.der()).expect("whole");
        let signed = theirs.sign_client(&request, &gateway(), SystemTime::now(), GATEWAY_VALIDITY);
        let certificate = signed.expect("signed").certificate;
        assert_eq!(theirs.identity_of(&certificate), Some(gateway()));
        assert_eq!(ours.identity_of(&certificate), Some(Subject::Other("CN=gw-1".to_owned())));
        assert_eq!(ours.identity_of(&CertificateDer::from(&b"nonsense"[..])), None);
    }

    #[test]
    fn nothing_outlives_the_authority() {
        let (_folder, authority) = authority();
        let request = request(&KeyPair::generate().expect("made"));
        let late = authority.facts().not_after - Duration::from_hours(1);
        let request = Request::read(request.der()).expect("whole");
        let signed = authority.sign_client(&request, &gateway(), late, GATEWAY_VALIDITY).expect("signed");
        assert_eq!(signed.not_after, authority.facts().not_after);
    }
}
