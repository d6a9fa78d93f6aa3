//! The broker's own certificate authority and server certificate.
//!
//! The authority is made by the first replica, is in the log, sealed, and in
//! every data folder; the
//! server certificate is made anew at each start, so that it always names the
//! host as it is now. Operators hand `ca.pem` to clients and agents.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::config::Listener;
use crate::files::{self, FileError};

const CA_VALIDITY: Duration = Duration::from_hours(10 * 365 * 24);
const SERVER_VALIDITY: Duration = Duration::from_hours(397 * 24);
/// Clocks of clients may be behind by as much.
const BACKDATED: Duration = Duration::from_hours(24);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be replaced.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file cannot be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Certificate or key cannot be made.
    #[error("cannot make a certificate from {}; restore the file, or remove ca.pem and ca.key together to begin with a new authority", path.display())]
    Make {
        /// File that takes part.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A PEM file holds no certificate or no key.
    #[error("{} holds no usable PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not work together.
    #[error("certificate and key of {} do not work together", path.display())]
    Tls {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// The authority and the server certificate that it signed.
#[derive(Debug)]
pub struct Pki {
    ca_path: PathBuf,
    certificate_path: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Pki {
    /// Makes a server certificate for this host and for `names`, signed by the
    /// authority in a folder, which is made when there is none.
    pub fn open(folder: &Path, names: &[String]) -> Result<Self, PkiError> {
        files::make_folder(folder, 0o700)?;
        let ca_path = folder.join("ca.pem");
        let ca_key_path = folder.join("ca.key");
        let (ca_pem, issuer) = open_authority(&ca_path, &ca_key_path)?;

        let certificate_path = folder.join("server.pem");
        let made = |source| PkiError::Make { path: ca_path.clone(), source };
        let names: Vec<String> =
            host_names().into_iter().chain(names.iter().cloned()).collect::<BTreeSet<_>>().into_iter().collect();
        let key = KeyPair::generate().map_err(made)?;
        let mut params = CertificateParams::new(names).map_err(made)?;
        params.distinguished_name = named("berth broker");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, SERVER_VALIDITY);
        let certificate = params.signed_by(&key, &issuer).map_err(made)?;

        let chain_pem = format!("{}{}", certificate.pem(), ca_pem);
        files::replace(&certificate_path, chain_pem.as_bytes(), 0o644)?;
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|source| PkiError::Pem { path: ca_path.clone(), source })?;
        let chain = vec![certificate.der().clone(), ca];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Self { ca_path, certificate_path, chain, key })
    }

    /// The authority's certificate, for clients and agents.
    pub fn ca_path(&self) -> &Path {
        &self.ca_path
    }

    /// TLS for a listener: with its own certificate when it has one.
    pub fn server_config(&self, listener: &Listener, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, PkiError> {
        let (path, chain, key) = match (&listener.certificate_file, &listener.key_file) {
            (Some(certificate), Some(key)) => (certificate.clone(), read_chain(certificate)?, read_key(key)?),
            _ => (self.certificate_path.clone(), self.chain.clone(), self.key.clone_key()),
        };
        let tls = |source| PkiError::Tls { path: path.clone(), source };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(tls)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(tls)?;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

/// Certificate and key of the authority in a folder, as one PEM, for other
/// replicas. It is made when there is none.
pub fn export_authority(folder: &Path) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    files::make_folder(folder, 0o700)?;
    let (ca_pem, issuer) = open_authority(&folder.join("ca.pem"), &folder.join("ca.key"))?;
    let key = Zeroizing::new(issuer.key().serialize_pem());
    Ok(Zeroizing::new(format!("{ca_pem}{}", *key).into_bytes()))
}

/// Takes over what [`export_authority`] gave on another replica. `is_used`
/// says whether one that is here was ever shown to anybody; it is then kept
/// beside the new one, under a name with `.old`.
pub fn import_authority(folder: &Path, pem: &[u8], is_used: bool) -> Result<(), PkiError> {
    files::make_folder(folder, 0o700)?;
    let (ca_path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
    let text = Zeroizing::new(String::from_utf8_lossy(pem).into_owned());
    let unusable = || PkiError::Pem { path: ca_path.clone(), source: rustls::pki_types::pem::Error::NoItemsFound };
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

fn open_authority(ca_path: &Path, key_path: &Path) -> Result<(String, Issuer<'static, KeyPair>), PkiError> {
    let made = |source| PkiError::Make { path: ca_path.to_owned(), source };
    if ca_path.exists() {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| PkiError::Io { path: path.to_owned(), source });
        let ca_pem = read(ca_path)?;
        let key = KeyPair::from_pem(&read(key_path)?)
            .map_err(|source| PkiError::Make { path: key_path.to_owned(), source })?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(made)?;
        return Ok((ca_pem, issuer));
    }
    // A key without its certificate was left by a start that was cut short.
    let key = match fs::read_to_string(key_path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|source| PkiError::Make { path: key_path.to_owned(), source })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => KeyPair::generate().map_err(made)?,
        Err(source) => return Err(PkiError::Io { path: key_path.to_owned(), source }),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = named("berth certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_VALIDITY);
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

fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + validity).into();
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let pem = |source| PkiError::Pem { path: path.to_owned(), source };
    let chain: Vec<_> = CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if chain.is_empty() {
        return Err(pem(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| PkiError::Pem { path: path.to_owned(), source })
}

/// Every name and address under which this host may be called: its name, the
/// names that `/etc/hosts` gives it (the full one among them), `localhost`,
/// and the addresses of its interfaces.
fn host_names() -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].into_iter().map(str::to_owned).collect();
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    if let Ok(hostname) = fs::read_to_string("/proc/sys/kernel/hostname") {
        let hostname = hostname.trim();
        if !hostname.is_empty() && hostname != "(none)" {
            names.insert(hostname.to_owned());
            names.extend(aliases(&hosts, hostname));
        }
    }
    match sysinfo::Networks::new_with_refreshed_list() {
        Ok(networks) => {
            let addresses = networks.values().flat_map(sysinfo::NetworkData::ip_networks).map(|network| network.addr);
            names.extend(addresses.filter(is_usable).map(|ip| ip.to_string()));
        }
        Err(error) => tracing::warn!(%error, "the addresses of this host cannot be told; its certificate lacks them"),
    }
    names
}

/// Names on the lines of a hosts file that hold a host's name.
fn aliases(hosts: &str, hostname: &str) -> BTreeSet<String> {
    hosts
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>())
        .filter(|names| names.contains(&hostname))
        .flatten()
        .filter(|name| name.is_ascii())
        .map(str::to_owned)
        .collect()
}

/// Link-local addresses need a zone to be called and are of no use in a certificate.
fn is_usable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_kept_and_a_certificate_without_its_key_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tls");
        let first = Pki::open(&path, &["broker.example".to_owned()]).expect("made");
        let ca = fs::read(first.ca_path()).expect("written");
        let second = Pki::open(&path, &[]).expect("found");
        assert_eq!(fs::read(second.ca_path()).expect("kept"), ca);
        second.server_config(&Listener::default(), &[b"h2"]).expect("usable");
        fs::remove_file(path.join("ca.pem")).expect("removed");
        Pki::open(&path, &[]).expect("made anew with the key that is left");
        fs::remove_file(path.join("ca.key")).expect("removed");
        assert!(matches!(Pki::open(&path, &[]), Err(PkiError::Io { .. })));
    }

    #[test]
    fn an_authority_is_the_same_on_another_replica() {
        let place = tempfile::tempdir().expect("a folder");
        let (one, two) = (place.path().join("one"), place.path().join("two"));
        let exported = export_authority(&one).expect("made");
        Pki::open(&two, &[]).expect("made on its own");
        import_authority(&two, &exported, true).expect("taken over");
        assert!(two.join("ca.pem.old").exists());
        import_authority(&two, &exported, true).expect("the same again");
        assert_eq!(export_authority(&two).expect("read"), exported);
        Pki::open(&two, &[]).expect("signs");
        assert!(import_authority(&two, b"nonsense", true).is_err());
    }

    #[test]
    fn the_full_name_comes_from_the_hosts_file() {
        let hosts = "127.0.0.1 localhost\n10.0.0.7 vdi7.corp.example vdi7 # the host\n10.0.0.8 vdi8";
        let names = aliases(hosts, "vdi7");
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["vdi7", "vdi7.corp.example"]);
    }
}
