//! Where a port's certificate comes from, and what clients are trusted by.
//!
//! Files are read as a whole each time they are looked at and compared by what
//! is in them: they are small, and neither a swapped link, a clock that went
//! back nor two writes within one tick of the file system's clock is missed.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::error::TlsError;
use super::facts::Facts;
use super::store;
use crate::secret::Secret;

/// Longest file of certificates or keys. A trust store with all public
/// authorities has some 200 kB.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Where a port's certificate comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The cluster's own authority signs it.
    OwnAuthority,
    /// Files in PEM.
    Pem {
        /// The chain, the server's own certificate first.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
    /// A key store with one private key, JKS or PKCS #12.
    KeyStore {
        /// The store.
        file: PathBuf,
        /// What it opens with.
        password: Password,
    },
}

/// What a key store opens with.
#[derive(Debug, Clone)]
pub enum Password {
    /// It has none.
    None,
    /// This.
    Text(Secret),
    /// What stands in a file, which is read along with the store.
    File(PathBuf),
}

/// A file of authorities that sign clients' certificates: PEM, JKS or PKCS #12.
#[derive(Debug, Clone)]
pub struct TrustFile {
    /// The file.
    pub file: PathBuf,
    /// What it opens with, unless it is PEM.
    pub password: Password,
}

/// A file's bytes, and the password for them.
#[derive(Clone)]
pub(super) struct Content {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    pub(super) password: Option<Secret>,
}

/// An operator's own certificate with its key.
pub(super) struct Own {
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) facts: Facts,
}

impl Source {
    /// The file that is named to operators; `None` for the own authority.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::OwnAuthority => None,
            Self::Pem { certificate, .. } => Some(certificate),
            Self::KeyStore { file, .. } => Some(file),
        }
    }

    /// Refuses a private key that everybody on the host may read or change.
    pub fn require_hidden(&self) -> Result<(), TlsError> {
        match self {
            Self::OwnAuthority => Ok(()),
            Self::Pem { key: file, .. } | Self::KeyStore { file, .. } => require_hidden(file),
        }
    }

    /// Whether it can be used now, as a start would find out.
    pub fn check(&self) -> Result<(), TlsError> {
        self.require_hidden()?;
        let read = self.read()?;
        self.load(&read, SystemTime::now()).map(drop)
    }

    /// Reads its files.
    pub(super) fn read(&self) -> Result<Vec<Content>, TlsError> {
        match self {
            Self::OwnAuthority => Ok(Vec::new()),
            Self::Pem { certificate, key } => {
                let plain = |path| read(path).map(|bytes| Content { bytes, password: None });
                Ok(vec![plain(certificate)?, plain(key)?])
            }
            Self::KeyStore { file, password } => Ok(vec![Content::read(file, password)?]),
        }
    }

    /// Takes certificate and key from what was read. `None` for the own
    /// authority.
    pub(super) fn load(&self, read: &[Content], now: SystemTime) -> Result<Option<Own>, TlsError> {
        let (path, (chain, key)) = match (self, read) {
            (Self::Pem { certificate, key }, [chain_file, key_file]) => {
                (certificate, (chain_of_pem(chain_file, certificate)?, key_of_pem(key_file, key)?))
            }
            (Self::KeyStore { file, .. }, [store]) => {
                let opened = store::own_key(&store.bytes, store.password.as_ref());
                (file, opened.map_err(|source| TlsError::Store { path: file.clone(), source })?)
            }
            _ => return Ok(None),
        };
        let first = chain.first().ok_or_else(|| TlsError::NoCertificate { path: path.clone() })?;
        let facts = Facts::valid(first, path, now)?;
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(|source| TlsError::Unfit { path: path.clone(), source })?;
        Ok(Some(Own { certified: Arc::new(certified), facts }))
    }
}

impl TrustFile {
    /// Whether it can be used, as a start would find out.
    pub fn check(&self) -> Result<(), TlsError> {
        self.load(&self.read()?).map(drop)
    }

    pub(super) fn read(&self) -> Result<Content, TlsError> {
        Content::read(&self.file, &self.password)
    }

    /// The authorities in what was read; at least one.
    pub(super) fn load(&self, read: &Content) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        if store::is_store(&read.bytes) {
            return store::trusted(&read.bytes, read.password.as_ref())
                .map_err(|source| TlsError::Store { path: self.file.clone(), source });
        }
        chain_of_pem(read, &self.file)
    }
}

impl Content {
    fn read(path: &Path, password: &Password) -> Result<Self, TlsError> {
        let failed = |source| TlsError::Password { path: path.to_owned(), source };
        let password = match password {
            Password::None => None,
            Password::Text(secret) => Some(secret.clone()),
            Password::File(file) => Some(Secret::read(file).map_err(failed)?),
        };
        Ok(Self { bytes: read(path)?, password })
    }
}

/// Refuses a file with a private key that everybody may read or change.
fn require_hidden(path: &Path) -> Result<(), TlsError> {
    let metadata = std::fs::metadata(path).map_err(|source| TlsError::Io { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(TlsError::Exposed { path: path.to_owned(), mode });
    }
    Ok(())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let io = |source| TlsError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    // Room for all of it at once: a vector that grows leaves copies of a key behind.
    let room = usize::try_from(length.min(FILE_BYTES_MAX)).unwrap_or_default() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::TooLarge { path: path.to_owned(), bytes_max: FILE_BYTES_MAX });
    }
    Ok(bytes)
}

fn chain_of_pem(read: &Content, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.to_owned(), source };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read.bytes).collect::<Result<_, _>>().map_err(pem)?;
    if chain.is_empty() {
        return Err(pem(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(chain)
}

fn key_of_pem(read: &Content, path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read.bytes).map_err(|source| TlsError::Pem { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::tls::store::StoreError;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
    }

    fn now() -> SystemTime {
        SystemTime::now()
    }

    fn load(source: &Source) -> Result<Option<Own>, TlsError> {
        source.load(&source.read()?, now())
    }

    #[test]
    fn pem_files_must_exist_hold_what_is_said_and_fit() {
        let folder = tempfile::tempdir().expect("a folder");
        let (certificate, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
        let source = Source::Pem { certificate: certificate.clone(), key: key.clone() };
        assert!(matches!(load(&source), Err(TlsError::Io { path, .. }) if path == certificate));
        let one = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).expect("made");
        let other = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).expect("made");
        std::fs::write(&certificate, one.cert.pem()).expect("written");
        std::fs::write(&key, other.signing_key.serialize_pem()).expect("written");
        assert!(matches!(load(&source), Err(TlsError::Unfit { .. })));
        std::fs::write(&key, one.cert.pem()).expect("written");
        assert!(matches!(load(&source), Err(TlsError::Pem { path, .. }) if path == key));
        std::fs::write(&key, one.signing_key.serialize_pem()).expect("written");
        let own = load(&source).expect("they fit").expect("not the authority's");
        assert_eq!(own.certified.cert, [one.cert.der().clone()]);
        std::fs::write(&certificate, "").expect("written");
        assert!(matches!(load(&source), Err(TlsError::Pem { path, .. }) if path == certificate));
        let large = vec![b'x'; usize::try_from(FILE_BYTES_MAX).expect("fits") + 1];
        std::fs::write(&certificate, large).expect("written");
        assert!(matches!(load(&source), Err(TlsError::TooLarge { .. })));
    }

    #[test]
    fn a_certificate_out_of_its_time_is_refused_by_name() {
        let source =
            Source::KeyStore { file: fixture("one.p12"), password: Password::Text(Secret::new("changeit".to_owned())) };
        let read = source.read().expect("there");
        let year = std::time::Duration::from_hours(365 * 24);
        let late = source.load(&read, now() + 200 * year);
        assert!(matches!(late, Err(TlsError::Expired { path, .. }) if path == fixture("one.p12")));
        let early = source.load(&read, SystemTime::UNIX_EPOCH);
        assert!(matches!(early, Err(TlsError::NotYetValid { .. })));
    }

    #[test]
    fn the_password_of_a_store_is_read_from_its_file_and_only_from_a_secret_one() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("password");
        let source = |name: &str| Source::KeyStore { file: fixture(name), password: Password::File(file.clone()) };
        Secret::new("changeit".to_owned()).write(&file).expect("written");
        for name in ["one.jks", "one.p12"] {
            assert!(load(&source(name)).expect("opens").is_some());
        }
        Secret::new("wrong".to_owned()).write(&file).expect("written");
        for name in ["one.jks", "one.p12"] {
            let refused = load(&source(name));
            assert!(matches!(refused, Err(TlsError::Store { source: StoreError::Password, .. })), "{name}");
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(load(&source("one.jks")), Err(TlsError::Password { .. })));
    }

    #[test]
    fn authorities_are_taken_from_every_form_of_file() {
        let trust = |name: &str, password| TrustFile { file: fixture(name), password };
        let changeit = || Password::Text(Secret::new("changeit".to_owned()));
        let load = |file: &TrustFile| file.load(&file.read()?);
        let [pem, jks, p12] = [("ca.pem", Password::None), ("trust.jks", changeit()), ("trust.p12", changeit())]
            .map(|(name, password)| load(&trust(name, password)).expect(name));
        assert_eq!(pem.len(), 1);
        assert!(pem == jks && pem == p12);
        // Without a password a JKS store is not proved to be whole, and so not believed.
        assert!(load(&trust("trust.jks", Password::None)).is_err());
        assert!(matches!(load(&trust("one.key", Password::None)), Err(TlsError::Pem { .. })));
    }
}
