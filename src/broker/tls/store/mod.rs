//! Key stores: JKS, the format of Java up to 8 and of the original's keys, and
//! PKCS #12, that of Java since 9 and of openssl. Told apart by how they begin.

mod jks;
mod pkcs12;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::facts::is_issued_by;
use crate::secret::Secret;

/// More certificates than a chain has.
const CHAIN_LENGTH_MAX: usize = 10;

/// Why a key store cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It begins like no store that is known.
    #[error("it is neither JKS nor PKCS #12")]
    Unknown,
    /// A format of Java's that is not read.
    #[error(
        "it is JCEKS; convert it: keytool -importkeystore -srckeystore FILE -destkeystore NEW -deststoretype pkcs12"
    )]
    Jceks,
    /// It is not what its beginning says.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It opens with a password, and none is configured.
    #[error("it needs a password, and none is configured")]
    NoPassword,
    /// It does not open, or somebody changed it.
    #[error("the password is wrong, or the file was changed")]
    Password,
    /// The store opens, the key does not.
    #[error("the key `{alias}` has another password than the store; give it the same: keytool -keypasswd")]
    KeyPassword {
        /// What the key is called.
        alias: String,
    },
    /// It protects its keys in a way that is not known.
    #[error("it is encrypted in a way that is not read ({0}); convert it to PKCS #12 with AES")]
    Unsupported(String),
    /// There is no private key in it.
    #[error("it holds no private key; a trust store is not a key store")]
    NoKey,
    /// Nobody says which key is meant.
    #[error("it holds several private keys ({}); make a store with one of them", .aliases.join(", "))]
    SeveralKeys {
        /// What they are called.
        aliases: Vec<String>,
    },
    /// There is no certificate for the key.
    #[error("it holds no certificate for the key `{alias}`")]
    NoCertificate {
        /// What the key is called.
        alias: String,
    },
    /// There is nobody to trust in it.
    #[error("it holds no trusted certificate; a key store is not a trust store")]
    NothingTrusted,
}

/// A certificate chain, the own certificate first, and its key.
pub(super) type OwnKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Whether a file begins like a key store.
pub(super) fn is_store(bytes: &[u8]) -> bool {
    !matches!(kind(bytes), Err(StoreError::Unknown))
}

enum Kind {
    Jks,
    Pkcs12,
}

fn kind(bytes: &[u8]) -> Result<Kind, StoreError> {
    match bytes {
        [0xfe, 0xed, 0xfe, 0xed, ..] => Ok(Kind::Jks),
        [0xce, 0xce, 0xce, 0xce, ..] => Err(StoreError::Jceks),
        // A sequence of 128 bytes or more.
        [0x30, 0x80..=0x84, ..] => Ok(Kind::Pkcs12),
        _ => Err(StoreError::Unknown),
    }
}

/// The one private key of a store with its chain.
pub(super) fn own_key(bytes: &[u8], password: Option<&Secret>) -> Result<OwnKey, StoreError> {
    match kind(bytes)? {
        Kind::Jks => jks::Store::read(bytes, password)?.own_key(),
        Kind::Pkcs12 => pkcs12::Store::read(bytes, password)?.own_key(),
    }
}

/// The certificates that a store is to trust; at least one.
pub(super) fn trusted(bytes: &[u8], password: Option<&Secret>) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let trusted = match kind(bytes)? {
        Kind::Jks => jks::Store::read(bytes, password)?.trusted(),
        Kind::Pkcs12 => pkcs12::Store::read(bytes, password)?.trusted(),
    };
    if trusted.is_empty() { Err(StoreError::NothingTrusted) } else { Ok(trusted) }
}

/// The only one of several keys.
fn only<T>(mut keys: Vec<(String, T)>) -> Result<(String, T), StoreError> {
    if keys.len() > 1 {
        return Err(StoreError::SeveralKeys { aliases: keys.into_iter().map(|(alias, _)| alias).collect() });
    }
    keys.pop().ok_or(StoreError::NoKey)
}

/// The chain of a key out of loose certificates: the one with its public key,
/// then each one's issuer.
fn chain_of(
    certificates: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Option<Vec<CertificateDer<'static>>> {
    let provider = aws_lc_rs::default_provider();
    let fits = |certificate: &CertificateDer<'static>| {
        CertifiedKey::from_der(vec![certificate.clone()], key.clone_key(), &provider).is_ok()
    };
    let mut chain = vec![certificates.iter().find(|certificate| fits(certificate))?.clone()];
    while let Some(last) = chain.last()
        && chain.len() < CHAIN_LENGTH_MAX
        && let Some(issuer) =
            certificates.iter().find(|candidate| is_issued_by(last, candidate) && !chain.contains(candidate))
    {
        chain.push(issuer.clone());
    }
    Some(chain)
}

#[cfg(test)]
mod tests;
