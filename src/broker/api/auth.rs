//! Who calls: the access token in the `Authorization` header.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use super::ApiState;
use super::door::{Caller, VerifyError};
use super::error::Error;
use super::limits::ACCESS_TOKEN_BYTES_MAX;
use crate::domain::ClientId;
use crate::domain::audit::Actor;
use crate::domain::client::Grant;

/// The client of calls without a token, where they are allowed.
const ANYBODY: &str = "anonymous";

/// The one who calls, as [`authorise`] found out.
pub(super) fn caller_of(extensions: &Extensions) -> Result<&Caller, Error> {
    extensions.get::<Caller>().ok_or_else(|| {
        tracing::error!("a request came to a handler without its caller");
        Error::Internal
    })
}

/// The one who calls, for handlers.
#[derive(Debug, Clone)]
pub(super) struct Calling(pub(super) Caller);

impl<S: Send + Sync> FromRequestParts<S> for Calling {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        caller_of(&parts.extensions).cloned().map(Self)
    }
}

/// Lets only requests with a good access token through.
pub(super) async fn authorise(
    State(api): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    if !api.settings.authorization {
        request.extensions_mut().insert(anybody()?);
        return Ok(next.run(request).await);
    }
    let verified = match bearer(request.headers()) {
        Ok(token) => match api.identity.verify(token) {
            Err(VerifyError::KeysWanted) => {
                api.identity.refresh_keys(token).await;
                api.identity.verify(token)
            }
            verified => verified,
        }
        .map_err(Error::from),
        Err(error) => Err(error),
    };
    let caller = match verified {
        Ok(caller) => caller,
        Err(error) => {
            // No token at all is what health checks and installers send.
            if matches!(error, Error::InvalidToken(_)) {
                api.note(&request, Actor::Unknown, &format!("refused: {error}"));
            }
            return Err(error);
        }
    };
    tracing::Span::current().record("client_id", tracing::field::display(&caller.client));
    api.throttle_client(&request, &caller.client)?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// Who calls where nobody has to say it.
fn anybody() -> Result<Caller, Error> {
    let client = ClientId::new(ANYBODY).map_err(|_| Error::Internal)?;
    Ok(Caller { client, grant: Grant::default() })
}

/// The token of `Authorization: Bearer <token>`; the scheme in any case.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, Error> {
    let invalid = |text: &str| Error::InvalidToken(text.to_owned());
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(Error::NoAuthorization)?;
    if values.next().is_some() {
        return Err(invalid("there must be one authorization header only"));
    }
    let text = value.to_str().map_err(|_| invalid("the authorization header is not valid"))?;
    let (scheme, token) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(invalid("the authorization header must be: Bearer, a blank, the access token"));
    }
    let token = token.trim();
    if token.is_empty() || token.len() > ACCESS_TOKEN_BYTES_MAX || token.contains(' ') {
        return Err(invalid("the access token is not valid"));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::http::HeaderValue;

    use super::*;

    fn with(values: &[&'static str]) -> Result<String, Error> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        bearer(&headers).map(str::to_owned)
    }

    #[test]
    fn the_scheme_is_compared_without_case() {
        for value in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(with(&[value]).unwrap(), "abc");
        }
    }

    #[test]
    fn a_missing_header_is_told_from_a_bad_one() {
        assert_eq!(with(&[]).unwrap_err(), Error::NoAuthorization);
        for value in ["", "Bearer", "Bearer ", "Basic abc", "abc", "Bearer a b"] {
            assert!(matches!(with(&[value]), Err(Error::InvalidToken(_))), "{value}");
        }
        assert!(matches!(with(&["Bearer a", "Bearer b"]), Err(Error::InvalidToken(_))));
    }
}
