//! The keys that sign tokens of one kind: the present one, and those that it
//! took the place of, as long as what they signed is good.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::Serialize;
use zeroize::Zeroizing;

use super::checked::Checked;
use super::seal::{ClusterKey, SealError};
use crate::broker::cluster::shared::context;
pub use crate::broker::config::TokenAlgorithm;
use crate::domain::key::{KeyPurpose, SigningKey};
use crate::domain::{Fleet, KeyId, Timestamp};

impl TokenAlgorithm {
    const fn jose(self) -> Algorithm {
        match self {
            Self::Es256 => Algorithm::ES256,
            Self::EdDsa => Algorithm::EdDSA,
            Self::Rs256 => Algorithm::RS256,
        }
    }

    /// A new private key in PKCS#8.
    pub(super) fn generate(self) -> Result<Zeroizing<Vec<u8>>, TokenKeyError> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let failed = |_| TokenKeyError::Key;
        let bytes = match self {
            Self::Es256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                .map_err(failed)?
                .as_ref()
                .to_vec(),
            Self::EdDsa => Ed25519KeyPair::generate_pkcs8(&random).map_err(failed)?.as_ref().to_vec(),
            Self::Rs256 => {
                let pair = RsaKeyPair::generate(KeySize::Rsa3072).map_err(failed)?;
                let document: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
                document.as_ref().to_vec()
            }
        };
        Ok(Zeroizing::new(bytes))
    }
}

/// Why a token cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// The log holds no key yet: the broker is starting.
    #[error("no signing key yet")]
    NoKey,
    /// The sealed key does not open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The key is none, or cannot sign.
    #[error("the signing key cannot be used")]
    Key,
}

/// A key that was opened.
pub(super) struct Usable {
    id: KeyId,
    algorithm: TokenAlgorithm,
    signing: EncodingKey,
    verifying: DecodingKey,
    /// When what it signed is good no longer; `None` for the present key.
    until: Option<Timestamp>,
    /// Access tokens that were found good with this key.
    pub(super) checked: Checked,
}

impl Usable {
    fn open(key: &SigningKey, cluster_key: &ClusterKey, until: Option<Timestamp>) -> Result<Self, TokenKeyError> {
        let pkcs8 = cluster_key.open(&context(&key.id, key.purpose), &key.sealed)?;
        let (algorithm, signing, verifying) = read(&pkcs8)?;
        Ok(Self { id: key.id.clone(), algorithm, signing, verifying, until, checked: Checked::default() })
    }

    pub(super) const fn algorithm(&self) -> Algorithm {
        self.algorithm.jose()
    }

    pub(super) const fn algorithm_name(&self) -> &'static str {
        self.algorithm.as_str()
    }

    pub(super) const fn verifying(&self) -> &DecodingKey {
        &self.verifying
    }

    fn is_good(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

/// Whose algorithm a private key in PKCS#8 is; the key says so itself.
fn read(pkcs8: &[u8]) -> Result<(TokenAlgorithm, EncodingKey, DecodingKey), TokenKeyError> {
    if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8) {
        let public = DecodingKey::from_ec_der(pair.public_key().as_ref());
        return Ok((TokenAlgorithm::Es256, EncodingKey::from_ec_der(pkcs8), public));
    }
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8(pkcs8) {
        let public = DecodingKey::from_ed_der(pair.public_key().as_ref());
        return Ok((TokenAlgorithm::EdDsa, EncodingKey::from_ed_der(pkcs8), public));
    }
    let pair = RsaKeyPair::from_pkcs8(pkcs8).map_err(|_| TokenKeyError::Key)?;
    let public = DecodingKey::from_rsa_der(pair.public_key().as_ref());
    let inner = rsa_key_of(pkcs8).ok_or(TokenKeyError::Key)?;
    Ok((TokenAlgorithm::Rs256, EncodingKey::from_rsa_der(inner), public))
}

/// The `RSAPrivateKey` inside a `PrivateKeyInfo` (RFC 5958 section 2), which is
/// what the token library wants: it is the last octet string.
fn rsa_key_of(pkcs8: &[u8]) -> Option<&[u8]> {
    let (body, _) = element(0x30, pkcs8)?;
    let (_version, rest) = element(0x02, body)?;
    let (_algorithm, rest) = element(0x30, rest)?;
    element(0x04, rest).map(|(key, _)| key)
}

/// The content of a DER element with this tag, and what follows it.
fn element(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(2)?;
    if head[0] != tag {
        return None;
    }
    let (length, rest) = match head[1] {
        short @ 0..=0x7f => (usize::from(short), rest),
        long @ 0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(long - 0x80))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// The keys of one purpose, each opened once.
pub(super) struct Keyring {
    purpose: KeyPurpose,
    ring: ArcSwapOption<Ring>,
}

pub(super) struct Ring {
    current: Arc<Usable>,
    retired: Vec<Arc<Usable>>,
}

impl Ring {
    /// The key with an id, if what it signed is good.
    pub(super) fn find(&self, id: &str, now: Timestamp) -> Option<&Arc<Usable>> {
        std::iter::once(&self.current).chain(&self.retired).find(|key| key.id.as_str() == id && key.is_good(now))
    }

    /// All keys of which tokens are good.
    pub(super) fn good(&self, now: Timestamp) -> impl Iterator<Item = &Arc<Usable>> {
        std::iter::once(&self.current).chain(&self.retired).filter(move |key| key.is_good(now))
    }
}

impl Keyring {
    pub(super) const fn new(purpose: KeyPurpose) -> Self {
        Self { purpose, ring: ArcSwapOption::const_empty() }
    }

    pub(super) const fn purpose(&self) -> KeyPurpose {
        self.purpose
    }

    /// The keys as the log has them.
    pub(super) fn ring(&self, fleet: &Fleet, cluster_key: &ClusterKey) -> Result<Arc<Ring>, TokenKeyError> {
        let key = fleet.key(self.purpose).ok_or(TokenKeyError::NoKey)?;
        let known = self.ring.load_full();
        // Keys are retired only when another one comes.
        if let Some(ring) = known.as_ref().filter(|ring| ring.current.id == key.id) {
            return Ok(Arc::clone(ring));
        }
        // What was found good with a key stays found.
        let opened = |key: &SigningKey, until| {
            let kept = known.iter().flat_map(|ring| std::iter::once(&ring.current).chain(&ring.retired));
            match kept.into_iter().find(|kept| kept.id == key.id && kept.until == until) {
                Some(kept) => Ok(Arc::clone(kept)),
                None => Usable::open(key, cluster_key, until).map(Arc::new),
            }
        };
        let current = opened(key, None)?;
        let retired = fleet.retired_keys().filter(|retired| retired.key.purpose == self.purpose);
        let retired = retired.map(|retired| opened(&retired.key, Some(retired.until))).collect::<Result<_, _>>()?;
        let ring = Arc::new(Ring { current, retired });
        self.ring.store(Some(Arc::clone(&ring)));
        Ok(ring)
    }

    /// The algorithm of the present key.
    pub(super) fn algorithm(&self, fleet: &Fleet, cluster_key: &ClusterKey) -> Result<TokenAlgorithm, TokenKeyError> {
        Ok(self.ring(fleet, cluster_key)?.current.algorithm)
    }

    /// Signs claims with the present key.
    pub(super) fn sign<C: Serialize>(
        &self,
        fleet: &Fleet,
        cluster_key: &ClusterKey,
        media_type: &str,
        claims: &C,
    ) -> Result<String, TokenKeyError> {
        let key = Arc::clone(&self.ring(fleet, cluster_key)?.current);
        let header = Header {
            kid: Some(key.id.as_str().to_owned()),
            typ: Some(media_type.to_owned()),
            ..Header::new(key.algorithm())
        };
        jsonwebtoken::encode(&header, claims, &key.signing).map_err(|_| TokenKeyError::Key)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Validation;

    use super::*;

    #[test]
    fn each_algorithm_signs_and_its_key_says_which_it_is() {
        for algorithm in [TokenAlgorithm::Es256, TokenAlgorithm::EdDsa, TokenAlgorithm::Rs256] {
            let (found, signing, verifying) = read(&algorithm.generate().expect("made")).expect("read");
            assert_eq!(found, algorithm);
            let claims = serde_json::json!({ "exp": jsonwebtoken::get_current_timestamp() + 60 });
            let token = jsonwebtoken::encode(&Header::new(algorithm.jose()), &claims, &signing).expect("signed");
            let validation = Validation::new(algorithm.jose());
            jsonwebtoken::decode::<serde_json::Value>(&token, &verifying, &validation).expect("good");
        }
        assert!(read(b"no key").is_err());
    }
}
