//! The header `Berth-Placement`: which of several servers the sessions of a
//! request get.

use axum::extract::FromRequestParts;
use axum::http::HeaderName;
use axum::http::request::Parts;

use super::error::Error;
use crate::domain::placement::Policy;

/// The header: `spread`, `pack` or `affinity`.
pub const PLACEMENT_HEADER: HeaderName = HeaderName::from_static("berth-placement");

/// The policy that the request asks for; without it the broker's settings
/// decide.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlacementHeader(pub(super) Option<Policy>);

impl<S: Send + Sync> FromRequestParts<S> for PlacementHeader {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        let mut values = parts.headers.get_all(PLACEMENT_HEADER).iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        let policy =
            value.to_str().ok().and_then(|name| Policy::named(name.trim())).filter(|_| values.next().is_none());
        let invalid = || Error::BadRequest("the header Berth-Placement must be spread, pack or affinity".to_owned());
        policy.map(|policy| Self(Some(policy))).ok_or_else(invalid)
    }
}
