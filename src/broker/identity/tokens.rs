//! Access tokens (RFC 9068) and connection tokens: signed JWTs.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Validation;
use jsonwebtoken::errors::ErrorKind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::checked::Said;
use super::keyring::{Keyring, TokenKeyError, Usable};
use super::seal::ClusterKey;
use crate::domain::client::Scopes;
use crate::domain::{ClientId, Fleet, Session, Timestamp};

/// Who issues the tokens.
pub(super) const ISSUER: &str = "berth";
/// For whom access tokens are.
const ACCESS_AUDIENCE: &str = "berth-api";
/// For whom connection tokens are.
const CONNECTION_AUDIENCE: &str = "berth-session";
/// Media types of the tokens, so that one is never taken for the other
/// (RFC 9068 section 2.1, RFC 8725 section 3.11).
const ACCESS_TYPE: &str = "at+jwt";
const CONNECTION_TYPE: &str = "JWT";
/// Longest token that is looked at, in bytes.
pub(super) const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How far the clock of the replica that signed a token may be ahead.
const AHEAD_SECONDS: u64 = 60;

/// Claims of an access token (RFC 9068 section 2.2).
#[derive(Debug, Serialize, Deserialize)]
struct AccessClaims {
    iss: String,
    aud: String,
    sub: String,
    client_id: String,
    iat: u64,
    exp: u64,
    jti: String,
    scope: String,
}

/// Claims of a connection token; the names are those of the original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConnectionClaims {
    iss: String,
    aud: String,
    pub(super) dcv_session_id: String,
    pub(super) dcv_session_owner: String,
    pub(super) dcv_session_user: String,
    iat: u64,
    pub(super) exp: u64,
    pub(super) jti: String,
}

/// Header of a token of ours: these and nothing else, so no key, no place where
/// to find one, and no extension that would have to be understood (`crit`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Heading {
    alg: String,
    typ: String,
    kid: String,
}

impl Heading {
    fn of(token: &str) -> Option<Self> {
        let (header, _) = token.split_once('.')?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()
    }
}

/// Why a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenRefusal {
    Malformed,
    Expired,
}

/// Why there is no answer about a token, or a bad one.
#[derive(Debug)]
pub(super) enum TokenFault {
    /// It does not count.
    Refused(TokenRefusal),
    /// It cannot be checked.
    Key(TokenKeyError),
}

impl From<TokenKeyError> for TokenFault {
    fn from(error: TokenKeyError) -> Self {
        Self::Key(error)
    }
}

/// Makes an access token.
pub(super) fn access_token(
    keys: &Keyring,
    fleet: &Fleet,
    cluster_key: &ClusterKey,
    client: &ClientId,
    scopes: Scopes,
    now: Timestamp,
    lifetime_seconds: u64,
) -> Result<String, TokenKeyError> {
    let iat = now.0 / 1000;
    let claims = AccessClaims {
        iss: ISSUER.to_owned(),
        aud: ACCESS_AUDIENCE.to_owned(),
        sub: client.as_str().to_owned(),
        client_id: client.as_str().to_owned(),
        iat,
        exp: iat + lifetime_seconds,
        jti: uuid::Uuid::new_v4().to_string(),
        scope: scopes.to_string(),
    };
    keys.sign(fleet, cluster_key, ACCESS_TYPE, &claims)
}

/// Makes a token that opens a session for a user.
pub(super) fn connection_token(
    keys: &Keyring,
    fleet: &Fleet,
    cluster_key: &ClusterKey,
    session: &Session,
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
    keys.sign(fleet, cluster_key, CONNECTION_TYPE, &claims)
}

/// Checks an access token: algorithm, type, key, signature, issuer, audience
/// and time, each stated here and none taken from the token (RFC 8725 section
/// 3). A token that was found good before is only looked at for its time.
pub(super) fn verify_access_token(
    keys: &Keyring,
    fleet: &Fleet,
    cluster_key: &ClusterKey,
    token: &str,
) -> Result<Said, TokenFault> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenFault::Refused(TokenRefusal::Malformed));
    }
    let ring = keys.ring(fleet, cluster_key)?;
    let now = jsonwebtoken::get_current_timestamp();
    let known = ring.good(Timestamp(now * 1000)).find_map(|key| key.checked.get(token));
    match known {
        Some(said) if said.exp < now => return Err(TokenFault::Refused(TokenRefusal::Expired)),
        Some(said) => return Ok(said),
        None => {}
    }
    let (key, claims): (_, AccessClaims) =
        checked(keys, fleet, cluster_key, token, ACCESS_TYPE, ACCESS_AUDIENCE, |claims: &AccessClaims| {
            (claims.iat, claims.sub == claims.client_id)
        })?;
    let said = Said { client_id: claims.client_id.into(), exp: claims.exp };
    key.checked.keep(token, said.clone(), now);
    Ok(said)
}

/// Checks a connection token.
pub(super) fn verify_connection_token(
    keys: &Keyring,
    fleet: &Fleet,
    cluster_key: &ClusterKey,
    token: &str,
) -> Result<ConnectionClaims, TokenFault> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenFault::Refused(TokenRefusal::Malformed));
    }
    checked(keys, fleet, cluster_key, token, CONNECTION_TYPE, CONNECTION_AUDIENCE, |claims: &ConnectionClaims| {
        (claims.iat, true)
    })
    .map(|(_, claims)| claims)
}

/// The claims of a token of ours, and the key that it is signed with.
/// `further` gives when it was issued and whether the rest is as it must be.
fn checked<C: DeserializeOwned>(
    keys: &Keyring,
    fleet: &Fleet,
    cluster_key: &ClusterKey,
    token: &str,
    media_type: &str,
    audience: &str,
    further: impl FnOnce(&C) -> (u64, bool),
) -> Result<(Arc<Usable>, C), TokenFault> {
    let refused = |refusal| Err(TokenFault::Refused(refusal));
    let ring = keys.ring(fleet, cluster_key)?;
    let now = jsonwebtoken::get_current_timestamp();
    let Some(header) = Heading::of(token) else { return refused(TokenRefusal::Malformed) };
    let key = ring.find(&header.kid, Timestamp(now * 1000));
    let is_whole = |key: &&Arc<Usable>| header.alg == key.algorithm_name() && header.typ == media_type;
    let Some(key) = key.filter(is_whole) else { return refused(TokenRefusal::Malformed) };
    let mut validation = Validation::new(key.algorithm());
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    validation.leeway = 0;
    validation.validate_nbf = true;
    match jsonwebtoken::decode::<C>(token, key.verifying(), &validation) {
        Ok(data) => {
            let (issued_at, is_whole) = further(&data.claims);
            if !is_whole || issued_at > now + AHEAD_SECONDS {
                return refused(TokenRefusal::Malformed);
            }
            Ok((Arc::clone(key), data.claims))
        }
        Err(error) if *error.kind() == ErrorKind::ExpiredSignature => refused(TokenRefusal::Expired),
        Err(_) => refused(TokenRefusal::Malformed),
    }
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
