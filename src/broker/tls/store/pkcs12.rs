//! PKCS #12 (RFC 7292), as Java since 9, openssl and Windows write it. The
//! library bounds what a file may ask of its key derivation.

use p12_keystore::Pkcs12Archive;
use p12_keystore::error::Error;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{OwnKey, StoreError, chain_of, only};
use crate::secret::Secret;

/// A store that was opened.
pub(super) struct Store(Pkcs12Archive);

impl Store {
    /// Opens a store; without a password one that was made with an empty one.
    pub(super) fn read(bytes: &[u8], password: Option<&Secret>) -> Result<Self, StoreError> {
        Pkcs12Archive::from_pkcs12(bytes, password.map_or("", Secret::expose)).map(Self).map_err(|error| match error {
            Error::MacError(_) | Error::UnpadError | Error::Pkcs5Error(_) if password.is_none() => {
                StoreError::NoPassword
            }
            Error::MacError(_) | Error::UnpadError | Error::Pkcs5Error(_) => StoreError::Password,
            Error::UnsupportedEncryptionScheme | Error::UnsupportedMacAlgorithm | Error::InvalidParameters => {
                StoreError::Unsupported(error.to_string())
            }
            Error::InvalidPrivateKey => StoreError::Damaged("a key in it is no PKCS #8"),
            Error::UnsupportedCertificateType => StoreError::Damaged("it holds a certificate that is not X.509"),
            _ => StoreError::Damaged("it is no PKCS #12 file in DER"),
        })
    }

    /// The one private key with its chain.
    pub(super) fn own_key(self) -> Result<OwnKey, StoreError> {
        let unnamed = || "without a name".to_owned();
        let keys = self.0.keys.into_iter().map(|bag| (bag.friendly_name.unwrap_or_else(unnamed), bag.key));
        let (alias, key) = only(keys.collect())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.as_der().to_vec()));
        let certificates: Vec<_> =
            self.0.certs.iter().map(|bag| CertificateDer::from(bag.cert.as_der().to_vec())).collect();
        let chain = chain_of(&certificates, &key).ok_or(StoreError::NoCertificate { alias })?;
        Ok((chain, key))
    }

    /// The certificates that it trusts: those that are not a key's own. Only
    /// Java marks the ones it means, and then counts no others.
    pub(super) fn trusted(self) -> Vec<CertificateDer<'static>> {
        let is_marked = self.0.certs.iter().any(|bag| bag.trusted);
        let chosen = self.0.certs.iter().filter(|bag| if is_marked { bag.trusted } else { bag.local_key_id.is_none() });
        chosen.map(|bag| CertificateDer::from(bag.cert.as_der().to_vec())).collect()
    }
}
