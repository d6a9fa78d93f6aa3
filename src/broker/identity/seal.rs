//! Sealing: private keys go into the log only encrypted with the cluster's key.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The key that seals what the log must not show in clear: derived from the
/// cluster's secret, which lives in a file beside the log.
pub struct ClusterKey {
    sealing: RandomizedNonceKey,
    statements: hmac::Key,
}

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file does not hold 256 bits in base64.
    #[error("the cluster key must be 32 bytes in base64; restore the file from a backup")]
    Key,
    /// The sealed bytes were changed, or sealed with another key.
    #[error(
        "the signing key does not open with this cluster key; restore the cluster.key that belongs to this data folder"
    )]
    Open,
    /// Encryption failed, which it never does with a good key.
    #[error("cannot seal")]
    Seal,
}

impl ClusterKey {
    /// Derives the key from the cluster's secret.
    pub fn new(secret: &Secret) -> Result<Self, SealError> {
        let root = secret.root().ok_or(SealError::Key)?;
        let sealing = RandomizedNonceKey::new(&AES_256_GCM, &*root.key::<32>("sealing")).map_err(|_| SealError::Key)?;
        let statements = hmac::Key::new(hmac::HMAC_SHA256, &*root.key::<32>("software statements"));
        Ok(Self { sealing, statements })
    }

    /// What proves that a software statement is of this cluster.
    pub(super) fn sign_statement(&self, content: &[u8]) -> hmac::Tag {
        hmac::sign(&self.statements, content)
    }

    /// Whether a software statement is of this cluster; in constant time.
    pub(super) fn is_statement(&self, content: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&self.statements, content, tag).is_ok()
    }

    /// Encrypts; `context` must be the same when it is opened.
    pub fn seal(&self, context: &str, clear: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut body = clear.to_vec();
        let nonce = self
            .sealing
            .seal_in_place_append_tag(Aad::from(context.as_bytes()), &mut body)
            .map_err(|_| SealError::Seal)?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// Decrypts what [`ClusterKey::seal`] made.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError::Open)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Open)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self
            .sealing
            .open_in_place(nonce, Aad::from(context.as_bytes()), &mut body)
            .map_err(|_| SealError::Open)?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_itself_is_no_key() {
        let secret = Secret::random();
        let sealed = ClusterKey::new(&secret).expect("32 bytes").seal("a", b"private").expect("sealed");
        let bytes = secret.bytes_256().expect("32 bytes");
        let same = ClusterKey {
            sealing: RandomizedNonceKey::new(&AES_256_GCM, &*bytes).expect("32 bytes"),
            statements: hmac::Key::new(hmac::HMAC_SHA256, &*bytes),
        };
        assert!(same.open("a", &sealed).is_err());
    }

    #[test]
    fn what_is_sealed_opens_only_with_the_same_key_and_context() {
        let key = ClusterKey::new(&Secret::random()).expect("32 bytes");
        let sealed = key.seal("a", b"private").expect("sealed");
        assert!(!sealed.windows(7).any(|window| window == b"private"));
        assert_eq!(&**key.open("a", &sealed).expect("opened"), b"private");
        assert!(key.open("b", &sealed).is_err());
        assert!(ClusterKey::new(&Secret::random()).expect("32 bytes").open("a", &sealed).is_err());
        let mut changed = sealed.clone();
        changed[NONCE_LEN] ^= 1;
        assert!(key.open("a", &changed).is_err());
        assert!(key.open("a", b"short").is_err());
        assert!(ClusterKey::new(&Secret::new("no key".to_owned())).is_err());
    }
}
