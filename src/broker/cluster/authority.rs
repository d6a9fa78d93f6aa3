//! The certificates that replicas show each other.
//!
//! Everything comes from the cluster's secret, which each replica holds: the
//! cluster's id and its certificate authorities, one after the other. So each
//! replica signs its own certificates, whenever it wants, and trusts the
//! authorities before and after the current one while they change.
//!
//! A certificate names what its holder may claim: a replica of this cluster
//! with this number and this data folder, or the bearer of one invitation.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::domain::ReplicaId;
use crate::domain::ids::{FolderId, InvitationId};
use crate::secret::{Root, Secret};

/// How long a replica's certificate is good for. It is made anew at each start
/// and every day.
const REPLICA_VALIDITY: Duration = Duration::from_hours(30 * 24);
/// Clocks of replicas may differ by as much.
const BACKDATED: Duration = Duration::from_hours(24);
/// Of no meaning to those who trust it; the format wants one.
const AUTHORITY_VALIDITY: Duration = Duration::from_hours(100 * 365 * 24);
/// What every name in a certificate ends in. Reserved for private use by ICANN.
const DOMAIN: &str = "berth.internal";
/// An Ed25519 private key in PKCS #8 (RFC 8410, 7) is this and its 32 bytes.
const ED25519_PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why there is no certificate, or no TLS with it.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The secret is not 256 bits.
    #[error("the cluster's secret must be 32 bytes in base64; restore the file from a backup")]
    Secret,
    /// A certificate cannot be made.
    #[error("cannot make a certificate for the cluster")]
    Make(#[from] rcgen::Error),
    /// TLS cannot be set up with it.
    #[error("cannot set up TLS between replicas")]
    Tls(#[from] rustls::Error),
    /// The authorities cannot be trusted, for a reason of their form.
    #[error("cannot set up the verification of certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A cluster. Another secret is another cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(String);

impl ClusterId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a certificate lets its holder claim.
#[derive(Debug, Clone, Copy)]
pub enum Claim<'a> {
    /// Any replica of the cluster.
    AnyReplica,
    /// The replica of this number.
    Replica(ReplicaId),
    /// The replica with this data folder.
    Folder(&'a FolderId),
    /// A new replica with this invitation.
    Invited(&'a InvitationId),
}

impl Claim<'_> {
    /// The claim as a name in a certificate.
    fn name(&self, cluster: &ClusterId) -> String {
        match self {
            Self::AnyReplica => format!("replica.{cluster}.{DOMAIN}"),
            Self::Replica(id) => format!("r{id}.{cluster}.{DOMAIN}"),
            Self::Folder(folder) => format!("f-{}.{cluster}.{DOMAIN}", folder.as_str()),
            Self::Invited(invitation) => format!("i-{}.{cluster}.{DOMAIN}", invitation.as_str()),
        }
    }

    /// The claim as what TLS expects of the other side.
    pub fn server_name(&self, cluster: &ClusterId) -> Option<ServerName<'static>> {
        ServerName::try_from(self.name(cluster)).ok()
    }

    /// Whether a certificate that was verified already allows the claim.
    pub fn is_made_by(&self, cluster: &ClusterId, certificate: &CertificateDer<'_>) -> bool {
        let Some(name) = self.server_name(cluster) else { return false };
        webpki::EndEntityCert::try_from(certificate)
            .is_ok_and(|holder| holder.verify_is_valid_for_subject_name(&name).is_ok())
    }
}

/// A certificate with its key.
pub struct Certified {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its private key.
    pub key: PrivatePkcs8KeyDer<'static>,
}

/// The cluster's secret, taken apart.
pub struct Authorities {
    root: Root,
    cluster: ClusterId,
}

impl Authorities {
    /// Takes the secret from its text.
    pub fn new(secret: &Secret) -> Result<Self, AuthorityError> {
        let root = secret.root().ok_or(AuthorityError::Secret)?;
        let id = uuid::Builder::from_custom_bytes(*root.key::<16>("cluster id")).into_uuid();
        Ok(Self { root, cluster: ClusterId(id.to_string()) })
    }

    /// The cluster that the secret is of.
    pub const fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    fn issuer(&self, generation: u32) -> Result<(CertificateDer<'static>, Issuer<'static, KeyPair>), AuthorityError> {
        let seed = self.root.key::<32>(&format!("peer authority {generation}"));
        let mut pkcs8 = Zeroizing::new(ED25519_PKCS8.to_vec());
        pkcs8.extend_from_slice(&*seed);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()), &PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("berth cluster {} authority {generation}", self.cluster));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        valid_for(&mut params, AUTHORITY_VALIDITY);
        let certificate = params.self_signed(&key)?;
        Ok((certificate.der().clone(), Issuer::new(params, key)))
    }

    fn sign(
        &self,
        generation: u32,
        claims: &[Claim<'_>],
        usages: Vec<ExtendedKeyUsagePurpose>,
        validity: Duration,
    ) -> Result<Certified, AuthorityError> {
        let (_, issuer) = self.issuer(generation)?;
        let names: Vec<String> = claims.iter().map(|claim| claim.name(&self.cluster)).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "berth replica");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        valid_for(&mut params, validity);
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate = params.signed_by(&key, &issuer)?.der().clone();
        Ok(Certified { certificate, key: PrivatePkcs8KeyDer::from(key.serialize_der()) })
    }

    /// A certificate for a replica.
    pub fn replica(&self, generation: u32, id: ReplicaId, folder: &FolderId) -> Result<Certified, AuthorityError> {
        let claims = [Claim::AnyReplica, Claim::Replica(id), Claim::Folder(folder)];
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(generation, &claims, usages, REPLICA_VALIDITY)
    }

    /// A certificate for the bearer of an invitation.
    pub fn invitation(
        &self,
        generation: u32,
        invitation: &InvitationId,
        validity: Duration,
    ) -> Result<Certified, AuthorityError> {
        self.sign(generation, &[Claim::Invited(invitation)], vec![ExtendedKeyUsagePurpose::ClientAuth], validity)
    }

    /// The authorities that are trusted while `generation` is current: those
    /// before and after it too, since replicas move on one after the other.
    pub fn trusted(&self, generation: u32) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let generations = generation.saturating_sub(1)..=generation.saturating_add(1);
        generations.map(|generation| Ok(self.issuer(generation)?.0)).collect()
    }

    /// TLS of both kinds for a replica.
    pub fn tls(&self, generation: u32, id: ReplicaId, folder: &FolderId) -> Result<Tls, AuthorityError> {
        Tls::new(self.trusted(generation)?, self.replica(generation, id, folder)?)
    }
}

fn valid_for(params: &mut CertificateParams, validity: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + validity).into();
}

/// TLS 1.3 with certificates on both sides, for either side of a connection.
#[derive(Clone)]
pub struct Tls {
    /// For connections to others.
    pub client: Arc<ClientConfig>,
    /// For connections from others.
    pub server: Arc<ServerConfig>,
}

impl Tls {
    /// Trusts `authorities` and shows `certified`.
    pub fn new(authorities: Vec<CertificateDer<'static>>, certified: Certified) -> Result<Self, AuthorityError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority)?;
        }
        let roots = Arc::new(roots);
        let Certified { certificate, key } = certified;
        let key = PrivateKeyDer::Pkcs8(key);
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(vec![certificate.clone()], key.clone_key())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)?;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(text: &str) -> FolderId {
        FolderId::new(text).expect("valid")
    }

    #[test]
    fn the_secret_alone_makes_the_cluster() {
        let secret = Secret::random();
        let (one, same) = (Authorities::new(&secret).expect("made"), Authorities::new(&secret).expect("made"));
        assert_eq!(one.cluster(), same.cluster());
        assert_ne!(one.cluster(), Authorities::new(&Secret::random()).expect("made").cluster());
        assert!(matches!(Authorities::new(&Secret::new("short".to_owned())), Err(AuthorityError::Secret)));
        assert!(!one.cluster().as_str().contains(&secret.expose()[..8]));
    }

    #[test]
    fn a_certificate_allows_what_it_names_and_nothing_else() {
        let authorities = Authorities::new(&Secret::random()).expect("made");
        let cluster = authorities.cluster();
        let certificate = authorities.replica(0, ReplicaId(2), &folder("a")).expect("signed").certificate;
        let allows = |claim: Claim<'_>| claim.is_made_by(cluster, &certificate);
        assert!(
            allows(Claim::AnyReplica) && allows(Claim::Replica(ReplicaId(2))) && allows(Claim::Folder(&folder("a")))
        );
        assert!(!allows(Claim::Replica(ReplicaId(3))) && !allows(Claim::Folder(&folder("b"))));
        let other = Authorities::new(&Secret::random()).expect("made");
        assert!(!Claim::AnyReplica.is_made_by(other.cluster(), &certificate));
        let invitation = InvitationId::new("i").expect("valid");
        let invited = authorities.invitation(0, &invitation, Duration::from_hours(1)).expect("signed").certificate;
        assert!(Claim::Invited(&invitation).is_made_by(cluster, &invited));
        assert!(!Claim::AnyReplica.is_made_by(cluster, &invited));
    }

    #[test]
    fn tls_is_set_up_with_authorities_of_both_sides_of_a_change() {
        let authorities = Authorities::new(&Secret::random()).expect("made");
        let (now, next) = (authorities.trusted(4).expect("made"), authorities.trusted(5).expect("made"));
        assert_eq!((now.len(), authorities.trusted(0).expect("made").len()), (3, 2));
        authorities.tls(4, ReplicaId(1), &folder("a")).expect("set up");
        // Certificates differ in their dates; the keys in them are the same.
        assert_eq!(now.len(), next.len());
    }
}
