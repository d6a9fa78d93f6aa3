//! The files that a configuration names: whether they are there, can be read
//! and hold what they should. The start of a replica finds the same, but one
//! after the other; `berth config check` tells all at once.

use std::error::Error as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::error::ConfigError;
use super::{Config, Listener};
use crate::broker::tls::{ClientAuth, TlsError, TrustFile, gateways_of, source_of};
use crate::secret::Secret;

/// The keys of a listener that name files.
struct FileKeys {
    certificate: &'static str,
    key: &'static str,
    key_store: &'static str,
    key_store_password: &'static str,
}

macro_rules! file_keys {
    ($listener:literal) => {
        FileKeys {
            certificate: concat!($listener, ".certificate_file"),
            key: concat!($listener, ".key_file"),
            key_store: concat!($listener, ".key_store_file"),
            key_store_password: concat!($listener, ".key_store_password_file"),
        }
    };
}

impl Config {
    /// What is wrong with the files that it names.
    pub fn file_problems(&self) -> Vec<ConfigError> {
        let mut problems = Found::default();
        if self.data_folder.exists() && !self.data_folder.is_dir() {
            problems.refuse("data_folder", &self.data_folder, "is no folder");
        }
        problems.look_at(&self.clients, &file_keys!("clients"));
        problems.look_at(&self.agents.listener(), &file_keys!("agents"));
        problems.look_at(&self.gateway.listener(), &file_keys!("gateway"));
        if let Some(path) = &self.gateway.trust_file {
            problems.authorities("gateway.trust_file", path);
        }
        if let (Some(path), ClientAuth::Required(roots)) = (&self.gateway.trust_store_file, gateways_of(&self.gateway))
        {
            let opened = roots.files.iter().filter(|file| file.file == *path).try_for_each(TrustFile::check);
            problems.store("gateway.trust_store_file", path, opened);
        }
        problems.secret("gateway.trust_store_password_file", self.gateway.trust_store_password_file.as_deref());
        self.look_at_cluster_secret(&mut problems);
        problems.0
    }

    fn look_at_cluster_secret(&self, problems: &mut Found) {
        let (key, Some(path)) = ("cluster.secret_file", self.cluster.secret_file.as_deref()) else { return };
        // A replica that is alone makes it.
        if !path.exists() && self.cluster.members.is_empty() {
            return;
        }
        if problems.secret(key, Some(path)).is_some_and(|secret| secret.root().is_none()) {
            problems.refuse(key, path, "does not hold 32 bytes in base64");
        }
    }
}

#[derive(Default)]
struct Found(Vec<ConfigError>);

impl Found {
    fn refuse(&mut self, key: &'static str, path: &Path, reason: impl Into<String>) {
        self.0.push(ConfigError::NamedFile { key, path: path.to_owned(), reason: reason.into() });
    }

    fn look_at(&mut self, listener: &Listener, keys: &FileKeys) {
        let chain = listener.certificate_file.as_deref().map(|path| (path, self.certificates(keys.certificate, path)));
        let key = listener.key_file.as_deref().and_then(|path| self.private_key(keys.key, path));
        if let (Some((path, Some(chain))), Some(key)) = (chain, key)
            && let Err(error) = CertifiedKey::from_der(chain, key, &default_provider())
        {
            self.refuse(keys.certificate, path, format!("does not work together with {}: {error}", keys.key));
        }
        if let Some(path) = &listener.key_store_file {
            self.store(keys.key_store, path, source_of(listener).check());
        }
        self.secret(keys.key_store_password, listener.key_store_password_file.as_deref());
    }

    fn certificates(&mut self, key: &'static str, path: &Path) -> Option<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match read {
            Ok(chain) if chain.is_empty() => self.refuse(key, path, "holds no certificate in PEM"),
            Ok(chain) => return Some(chain),
            Err(error) => self.refuse(key, path, format!("cannot be read: {error}")),
        }
        None
    }

    fn private_key(&mut self, key: &'static str, path: &Path) -> Option<PrivateKeyDer<'static>> {
        let exposed = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777);
        if let Ok(mode) = exposed
            && mode & 0o007 != 0
        {
            self.refuse(key, path, format!("everybody may read or change (mode {mode:04o}); run chmod o-rwx on it"));
        }
        match PrivateKeyDer::from_pem_file(path) {
            Ok(key) => return Some(key),
            Err(pem::Error::NoItemsFound) => self.refuse(key, path, "holds no private key in PEM"),
            Err(error) => self.refuse(key, path, format!("cannot be read: {error}")),
        }
        None
    }

    fn authorities(&mut self, key: &'static str, path: &Path) {
        for certificate in self.certificates(key, path).unwrap_or_default() {
            if let Err(error) = RootCertStore::empty().add(certificate) {
                self.refuse(key, path, format!("holds a certificate that is of no use: {error}"));
            }
        }
    }

    /// A store that was opened as a start would open it.
    fn store(&mut self, key: &'static str, path: &Path, opened: Result<(), TlsError>) {
        if let Err(error) = opened {
            let mut causes = vec![format!("cannot be used: {error}")];
            let mut cause = error.source();
            while let Some(source) = cause {
                causes.push(source.to_string());
                cause = source.source();
            }
            self.refuse(key, path, causes.join(": "));
        }
    }

    fn secret(&mut self, key: &'static str, path: Option<&Path>) -> Option<Secret> {
        let read = Secret::read(path?);
        read.map_err(|source| self.0.push(ConfigError::NamedSecret { key, source })).ok()
    }
}
