//! Tokens: ES256 JWTs, signed with keys that the log holds sealed.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::seal::{ClusterKey, SealError};
use crate::broker::cluster::shared::context;
use crate::domain::client::{KeyPurpose, SigningKey};
use crate::domain::{Fleet, KeyId, Timestamp};

/// Who issues the tokens.
const ISSUER: &str = "berth";
/// For whom access tokens are.
const ACCESS_AUDIENCE: &str = "berth-api";
/// For whom connection tokens are.
const CONNECTION_AUDIENCE: &str = "berth-session";
/// Media types of the tokens, so that one is never taken for the other
/// (RFC 9068 section 2.1, RFC 8725 section 3.11).
const ACCESS_TYPE: &str = "at+jwt";
const CONNECTION_TYPE: &str = "JWT";
/// Longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Claims of an access token (RFC 9068 section 2.2).
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AccessClaims {
    iss: String,
    aud: String,
    sub: String,
    pub(super) client_id: String,
    iat: u64,
    exp: u64,
    jti: String,
    scope: String,
}

/// Claims of a connection token; the names are those of the original.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionClaims {
    iss: String,
    aud: String,
    dcv_session_id: String,
    dcv_session_owner: String,
    dcv_session_user: String,
    iat: u64,
    exp: u64,
    jti: String,
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

/// Why a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenRefusal {
    Malformed,
    Expired,
}

struct Usable {
    id: KeyId,
    signing: EncodingKey,
    verifying: DecodingKey,
}

/// The key for one purpose, opened once and kept.
pub(super) struct Signer {
    purpose: KeyPurpose,
    usable: ArcSwapOption<Usable>,
}

impl Signer {
    pub(super) const fn new(purpose: KeyPurpose) -> Self {
        Self { purpose, usable: ArcSwapOption::const_empty() }
    }

    fn usable(&self, fleet: &Fleet, cluster_key: &ClusterKey) -> Result<Arc<Usable>, TokenKeyError> {
        let key = fleet.key(self.purpose).ok_or(TokenKeyError::NoKey)?;
        if let Some(usable) = self.usable.load_full().filter(|usable| usable.id == key.id) {
            return Ok(usable);
        }
        let usable = Arc::new(open(key, cluster_key)?);
        self.usable.store(Some(Arc::clone(&usable)));
        Ok(usable)
    }

    /// Whether the key in the log can be used.
    pub(super) fn check(&self, fleet: &Fleet, cluster_key: &ClusterKey) -> Result<(), TokenKeyError> {
        self.usable(fleet, cluster_key).map(|_| ())
    }

    fn sign<C: Serialize>(
        &self,
        fleet: &Fleet,
        cluster_key: &ClusterKey,
        media_type: &str,
        claims: &C,
    ) -> Result<String, TokenKeyError> {
        let key = self.usable(fleet, cluster_key)?;
        let header = Header {
            kid: Some(key.id.as_str().to_owned()),
            typ: Some(media_type.to_owned()),
            ..Header::new(Algorithm::ES256)
        };
        jsonwebtoken::encode(&header, claims, &key.signing).map_err(|_| TokenKeyError::Key)
    }

    /// Makes an access token.
    pub(super) fn access_token(
        &self,
        fleet: &Fleet,
        cluster_key: &ClusterKey,
        client_id: &str,
        now: Timestamp,
        lifetime_seconds: u64,
    ) -> Result<String, TokenKeyError> {
        let iat = now.0 / 1000;
        let claims = AccessClaims {
            iss: ISSUER.to_owned(),
            aud: ACCESS_AUDIENCE.to_owned(),
            sub: client_id.to_owned(),
            client_id: client_id.to_owned(),
            iat,
            exp: iat + lifetime_seconds,
            jti: uuid::Uuid::new_v4().to_string(),
            scope: "read sessions servers".to_owned(),
        };
        self.sign(fleet, cluster_key, ACCESS_TYPE, &claims)
    }

    /// Makes a token that opens a session for a user.
    pub(super) fn connection_token(
        &self,
        fleet: &Fleet,
        cluster_key: &ClusterKey,
        session: &crate::domain::Session,
        user: &str,
        now: Timestamp,
        lifetime_seconds: u64,
    ) -> Result<String, TokenKeyError> {
        let iat = now.0 / 1000;
        let claims = ConnectionClaims {
            iss: ISSUER.to_owned(),
            aud: CONNECTION_AUDIENCE.to_owned(),
            dcv_session_id: session.id.as_str().to_owned(),
            dcv_session_owner: session.spec.owner.as_str().to_owned(),
            dcv_session_user: user.to_owned(),
            iat,
            exp: iat + lifetime_seconds,
            jti: uuid::Uuid::new_v4().to_string(),
        };
        self.sign(fleet, cluster_key, CONNECTION_TYPE, &claims)
    }

    /// Checks an access token: algorithm, type, key, signature, issuer,
    /// audience and time, each stated here and none taken from the token
    /// (RFC 8725 section 3).
    pub(super) fn verify_access_token(
        &self,
        fleet: &Fleet,
        cluster_key: &ClusterKey,
        token: &str,
    ) -> Result<AccessClaims, Result<TokenRefusal, TokenKeyError>> {
        let refused = Err(Ok(TokenRefusal::Malformed));
        if token.len() > TOKEN_BYTES_MAX {
            return refused;
        }
        let Ok(header) = jsonwebtoken::decode_header(token) else { return refused };
        let key = self.usable(fleet, cluster_key).map_err(Err)?;
        if header.alg != Algorithm::ES256
            || header.typ.as_deref() != Some(ACCESS_TYPE)
            || header.kid.as_deref() != Some(key.id.as_str())
        {
            return refused;
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[ACCESS_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = 0;
        match jsonwebtoken::decode::<AccessClaims>(token, &key.verifying, &validation) {
            Ok(data) => Ok(data.claims),
            Err(error) if *error.kind() == ErrorKind::ExpiredSignature => Err(Ok(TokenRefusal::Expired)),
            Err(_) => refused,
        }
    }
}

/// A new P-256 private key in PKCS#8.
pub(super) fn generate() -> Result<Zeroizing<Vec<u8>>, TokenKeyError> {
    let random = aws_lc_rs::rand::SystemRandom::new();
    EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
        .map(|document| Zeroizing::new(document.as_ref().to_vec()))
        .map_err(|_| TokenKeyError::Key)
}

fn open(key: &SigningKey, cluster_key: &ClusterKey) -> Result<Usable, TokenKeyError> {
    let pkcs8 = cluster_key.open(&context(&key.id, key.purpose), &key.sealed)?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).map_err(|_| TokenKeyError::Key)?;
    Ok(Usable {
        id: key.id.clone(),
        signing: EncodingKey::from_ec_der(&pkcs8),
        verifying: DecodingKey::from_ec_der(pair.public_key().as_ref()),
    })
}
