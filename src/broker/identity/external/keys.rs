//! Public keys of an authorization server: a set of JWKs (RFC 7517), or PEM.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use crate::broker::identity::checked::Checked;
use crate::domain::auth_server::SignatureAlgorithm;

/// Keys of one server that are looked at.
const KEYS_MAX: usize = 64;
/// Keys that are tried for a token which does not say its own.
const TRIED_MAX: usize = 4;

/// Why there are no keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// The text is no set of keys.
    #[error("it is no set of keys (RFC 7517): {0}")]
    Json(String),
    /// None can check a signature of the algorithms that are allowed.
    #[error("it holds no public key that can be used for signatures of the algorithms that are allowed")]
    None,
    /// The PEM is none, or of a kind that is not known.
    #[error("the keys in PEM cannot be read; each must be a `PUBLIC KEY` of RSA, of P-256 or P-384, or Ed25519")]
    Pem,
}

/// What a token's header says, as far as it matters. Where to find keys is no
/// part of it: they come from where the operator said, or not at all.
#[derive(Debug)]
pub(super) struct Heading {
    pub(super) alg: Algorithm,
    pub(super) typ: Option<String>,
    kid: Option<String>,
}

impl Heading {
    /// Reads it; `None` for what is no token, has an algorithm that is not
    /// asymmetric, or demands what is not understood (`crit`).
    pub(super) fn of(token: &str) -> Option<Self> {
        let (header, _) = token.split_once('.')?;
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        let text = |name: &str| fields.get(name).map(|value| value.as_str().map(str::to_owned));
        let alg = jose(SignatureAlgorithm::parse(&text("alg")??)?);
        if fields.contains_key("crit") {
            return None;
        }
        // A name that is no text is none of ours.
        let (typ, kid) = (text("typ"), text("kid"));
        if typ == Some(None) || kid == Some(None) {
            return None;
        }
        Some(Self { alg, typ: typ.flatten(), kid: kid.flatten() })
    }
}

const fn jose(algorithm: SignatureAlgorithm) -> Algorithm {
    match algorithm {
        SignatureAlgorithm::RS256 => Algorithm::RS256,
        SignatureAlgorithm::RS384 => Algorithm::RS384,
        SignatureAlgorithm::RS512 => Algorithm::RS512,
        SignatureAlgorithm::PS256 => Algorithm::PS256,
        SignatureAlgorithm::PS384 => Algorithm::PS384,
        SignatureAlgorithm::PS512 => Algorithm::PS512,
        SignatureAlgorithm::ES256 => Algorithm::ES256,
        SignatureAlgorithm::ES384 => Algorithm::ES384,
        SignatureAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}

const RSA: [SignatureAlgorithm; 6] = [
    SignatureAlgorithm::RS256,
    SignatureAlgorithm::RS384,
    SignatureAlgorithm::RS512,
    SignatureAlgorithm::PS256,
    SignatureAlgorithm::PS384,
    SignatureAlgorithm::PS512,
];

struct Key {
    id: Option<String>,
    /// What it may check.
    algorithms: Vec<Algorithm>,
    verifying: DecodingKey,
    /// The key as it was given, to tell whether another one came.
    text: String,
}

/// The keys of one server.
pub(super) struct Keys {
    keys: Vec<Key>,
    /// Tokens that were found good with one of them.
    pub(super) checked: Checked,
}

/// Two sets are equal when they hold the same keys.
impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        self.keys.iter().map(|key| &key.text).eq(other.keys.iter().map(|key| &key.text))
    }
}

impl Keys {
    /// The keys of a set that can check signatures of `allowed` algorithms, or
    /// of any when none is named. Others are passed over.
    pub(super) fn of_json(bytes: &[u8], allowed: &[SignatureAlgorithm]) -> Result<Self, KeysError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(bytes).map_err(|error| KeysError::Json(error.to_string()))?;
        let keys = set.keys.into_iter().take(KEYS_MAX).filter_map(|value| {
            let text = value.to_string();
            let jwk: Jwk = serde_json::from_value(value).ok()?;
            key(&jwk, text, allowed)
        });
        // A server that has withdrawn all of its keys says so.
        Ok(Self { keys: keys.collect(), checked: Checked::default() })
    }

    /// The keys in PEM.
    pub(super) fn of_pem(pem: &str, allowed: &[SignatureAlgorithm]) -> Result<Self, KeysError> {
        const END: &str = "-----END PUBLIC KEY-----";
        let mut keys = Vec::new();
        for block in pem.split_inclusive(END).filter(|block| !block.trim().is_empty()).take(KEYS_MAX) {
            use SignatureAlgorithm::{ES256, ES384, EdDSA};
            let bytes = block.trim().as_bytes();
            let (verifying, fitting) = if let Ok(key) = DecodingKey::from_rsa_pem(bytes) {
                (key, &RSA[..])
            } else if let Ok(key) = DecodingKey::from_ec_pem(bytes) {
                (key, &[ES256, ES384][..])
            } else {
                (DecodingKey::from_ed_pem(bytes).map_err(|_| KeysError::Pem)?, &[EdDSA][..])
            };
            let algorithms: Vec<_> =
                fitting.iter().filter(|fits| is_allowed(**fits, allowed)).map(|fits| jose(*fits)).collect();
            if !algorithms.is_empty() {
                keys.push(Key { id: None, algorithms, verifying, text: block.to_owned() });
            }
        }
        Self::of(keys)
    }

    fn of(keys: Vec<Key>) -> Result<Self, KeysError> {
        if keys.is_empty() {
            return Err(KeysError::None);
        }
        Ok(Self { keys, checked: Checked::default() })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys that may have signed a token: the one it names or, where it
    /// names none or the keys have no names, those that fit.
    pub(super) fn find(&self, heading: &Heading) -> impl Iterator<Item = &DecodingKey> {
        let is_meant = |key: &&Key| match (&key.id, &heading.kid) {
            (Some(id), Some(wanted)) => id == wanted,
            _ => true,
        };
        let fits = |key: &&Key| key.algorithms.contains(&heading.alg);
        self.keys.iter().filter(is_meant).filter(fits).map(|key| &key.verifying).take(TRIED_MAX)
    }
}

fn is_allowed(algorithm: SignatureAlgorithm, allowed: &[SignatureAlgorithm]) -> bool {
    allowed.is_empty() || allowed.contains(&algorithm)
}

/// A key of a set, if it is public, for signatures, and of an algorithm that is
/// allowed. A key says itself which algorithms fit it; a token never decides.
fn key(jwk: &Jwk, text: String, allowed: &[SignatureAlgorithm]) -> Option<Key> {
    use SignatureAlgorithm::{ES256, ES384, EdDSA};
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return None;
    }
    let fitting = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &RSA[..],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => &[ES256][..],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => &[ES384][..],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[EdDSA][..],
        // What is shared, or not known.
        _ => return None,
    };
    let named = jwk.common.key_algorithm.as_ref().map(ToString::to_string);
    let is_named = |algorithm: SignatureAlgorithm| named.as_ref().is_none_or(|named| named == algorithm.as_str());
    let algorithms: Vec<_> =
        fitting.iter().filter(|fits| is_allowed(**fits, allowed) && is_named(**fits)).map(|fits| jose(*fits)).collect();
    if algorithms.is_empty() {
        return None;
    }
    let verifying = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key { id: jwk.common.key_id.clone(), algorithms, verifying, text })
}
