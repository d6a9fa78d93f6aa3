//! The server certificate of this host, by the cluster's own authority. It is
//! renewed while the broker runs: when a third of its life is left, when the
//! host is called something else, and when the clock was set back so far that it
//! is not valid yet.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::authority::{Authority, BACKDATED};
use super::error::TlsError;
use crate::files;

/// How long a server certificate is good for.
pub const VALIDITY: Duration = Duration::from_hours(90 * 24);

/// A server certificate with its key.
#[derive(Debug, Clone)]
pub(super) struct HostCertificate {
    pub(super) certified: Arc<CertifiedKey>,
    names: BTreeSet<String>,
    made_at: SystemTime,
    not_after: SystemTime,
    /// It ends because the authority does; another one would end as early.
    is_last: bool,
}

impl HostCertificate {
    /// Makes one and writes it to a file, for operators to look at. It is used
    /// all the same when the disk takes nothing.
    pub(super) fn make(
        authority: &Authority,
        names: BTreeSet<String>,
        file: &Path,
        now: SystemTime,
        validity: Duration,
    ) -> Result<Self, TlsError> {
        let made = |source| TlsError::Make { path: authority.path().to_owned(), source };
        let key = KeyPair::generate().map_err(made)?;
        let signed = authority.sign_server(&key, names.iter().cloned().collect(), now, validity)?;
        if let Err(error) = files::replace(file, format!("{}{}", signed.pem, authority.pem()).as_bytes(), 0o644) {
            tracing::warn!(%error, "the server certificate is used, and its file is an older one");
        }
        let chain = vec![signed.certificate, authority.certificate().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(|source| TlsError::Unfit { path: file.to_owned(), source })?;
        let not_after = signed.not_after;
        let is_last = not_after == authority.facts().not_after;
        Ok(Self { certified: Arc::new(certified), names, made_at: now, not_after, is_last })
    }

    /// Whether another one is to be made now, whatever the host is called.
    pub(super) fn is_due(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.made_at).unwrap_or_default();
        let is_old = now >= self.made_at + life / 3 * 2 && !self.is_last;
        is_old || now + BACKDATED < self.made_at
    }

    /// Whether it is for these names.
    pub(super) fn is_for(&self, names: &BTreeSet<String>) -> bool {
        self.names == *names
    }

    /// The names in it.
    pub(super) const fn names(&self) -> &BTreeSet<String> {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_life_is_left_or_the_clock_went_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::open(folder.path()).expect("made");
        let names = BTreeSet::from(["a.example".to_owned(), "10.0.0.7".to_owned()]);
        let (now, hour) = (SystemTime::now(), Duration::from_hours(1));
        let file = folder.path().join("server.pem");
        let host = HostCertificate::make(&authority, names.clone(), &file, now, 30 * hour).expect("made");
        assert!(!host.is_due(now) && !host.is_due(now + 19 * hour) && host.is_due(now + 20 * hour));
        assert!(!host.is_due(now - 23 * hour) && host.is_due(now - 25 * hour));
        assert!(host.is_for(&names) && !host.is_for(&BTreeSet::new()));
        let name = rustls::pki_types::ServerName::try_from("10.0.0.7").expect("valid");
        let leaf = webpki::EndEntityCert::try_from(&host.certified.cert[0]).expect("a certificate");
        leaf.verify_is_valid_for_subject_name(&name).expect("it holds the address");
        assert_eq!(std::fs::read_to_string(&file).expect("written").matches("BEGIN CERTIFICATE").count(), 2);

        // What nobody can write to does not keep the host without one.
        let nowhere = folder.path().join("none/server.pem");
        HostCertificate::make(&authority, names.clone(), &nowhere, now, 30 * hour).expect("made");

        // Near the authority's end another one would end as early.
        let late = authority.facts().not_after - 3 * hour;
        let last = HostCertificate::make(&authority, names, &file, late, 30 * hour).expect("made");
        assert!(!last.is_due(late + 2 * hour));
    }
}
