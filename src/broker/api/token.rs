//! `POST /oauth2/token`: client credentials for an access token (RFC 6749 §4.4).
//!
//! Clients put the grant into the query or into a form, send a form type with
//! an empty body or no type at all, and name scopes that mean nothing here.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;

use super::ApiState;
use super::audit::Route;
use super::body;
use super::door::{Token, TokenError, Unavailable};
use super::envelope::RequestId;
use super::error::{Error, ErrorBody};
use super::form;
use super::limits::FORM_BYTES_MAX;
use crate::domain::ClientId;
use crate::domain::audit::{Actor, Deed};

/// Answer with a token.
#[derive(Serialize)]
struct TokenBody<'a> {
    access_token: &'a str,
    token_type: &'static str,
    expires_in: u64,
}

/// Answer to a request that cannot be understood.
#[derive(Serialize)]
struct ErrorDescription<'a> {
    error: &'static str,
    error_description: &'a str,
}

/// Why there is no token.
enum Refusal {
    NotIssued(TokenError),
    InvalidClient,
    InvalidRequest(&'static str),
    UnsupportedGrant,
    Unavailable(Unavailable),
    Request(Error),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = match self {
            Self::InvalidClient => {
                let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"berth\""))];
                (StatusCode::UNAUTHORIZED, challenge, Json(ErrorBody { error: "invalid_client" })).into_response()
            }
            Self::InvalidRequest(error_description) => {
                let body = ErrorDescription { error: "invalid_request", error_description };
                (StatusCode::BAD_REQUEST, Json(body)).into_response()
            }
            Self::NotIssued(error) => {
                (StatusCode::NOT_FOUND, Json(ErrorBody { error: &error.to_string() })).into_response()
            }
            Self::UnsupportedGrant => {
                (StatusCode::BAD_REQUEST, Json(ErrorBody { error: "unsupported_grant_type" })).into_response()
            }
            Self::Unavailable(unavailable) => Error::Unavailable(unavailable).into_response(),
            Self::Request(error) => error.into_response(),
        };
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// Issues an access token.
pub(super) async fn token(State(api): State<ApiState>, request: Request) -> Response {
    let (route, request_id) = (Route::of(request.extensions()), request.extensions().get::<RequestId>().cloned());
    let note = |actor, result: &str| {
        let Route { action, from } = route;
        let request_id = request_id.map_or_else(String::new, |id| id.0);
        let deed = Deed { actor, from, action, target: String::new(), request_id, via: api.core.replica() };
        api.notes.take(deed, result);
    };
    match issue(&api, request).await {
        Ok((client, token)) => {
            note(Actor::Client(client), "an access token was issued");
            let body = TokenBody {
                access_token: &token.access_token,
                token_type: "Bearer",
                expires_in: token.expires_in.as_secs(),
            };
            ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response()
        }
        Err(refusal) => {
            if let Refusal::InvalidClient = refusal {
                note(Actor::Unknown, "refused: unknown client or wrong secret");
            }
            refusal.into_response()
        }
    }
}

async fn issue(api: &ApiState, request: Request) -> Result<(ClientId, Token), Refusal> {
    let headers = request.headers().clone();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = body::read_bytes(request, &()).await.map_err(Refusal::Request)?;
    if body.len() > FORM_BYTES_MAX {
        return Err(Refusal::Request(Error::BodyTooLarge { limit: FORM_BYTES_MAX }));
    }
    let parameters = Parameters::parse(&query, &headers, &body)?;
    match parameters.get("grant_type")? {
        Some("client_credentials") => {}
        Some(_) => return Err(Refusal::UnsupportedGrant),
        None => return Err(Refusal::InvalidRequest("grant_type is missing")),
    }
    let candidates = if headers.contains_key(header::AUTHORIZATION) {
        basic(&headers).ok_or(Refusal::InvalidClient)?
    } else {
        match (parameters.get("client_id")?, parameters.get("client_secret")?) {
            (Some(client), Some(secret)) => vec![(client.to_owned(), secret.to_owned())],
            _ => return Err(Refusal::InvalidClient),
        }
    };
    for (client, secret) in candidates {
        let Ok(client) = ClientId::new(&client) else { continue };
        match api.identity.token(&client, &secret).await {
            Ok(token) => {
                tracing::Span::current().record("client_id", tracing::field::display(&client));
                return Ok((client, token));
            }
            Err(TokenError::InvalidClient) => {}
            Err(error @ TokenError::NotIssued) => return Err(Refusal::NotIssued(error)),
            Err(TokenError::Unavailable(unavailable)) => return Err(Refusal::Unavailable(unavailable)),
        }
    }
    Err(Refusal::InvalidClient)
}

/// Client and secret of `Authorization: Basic`, in the order in which they are
/// tried: most clients send them as they are, the standard (§2.3.1) wants them
/// form-encoded first.
fn basic(headers: &HeaderMap) -> Option<Vec<(String, String)>> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (client, secret) = decoded.split_once(':')?;
    let raw = (client.to_owned(), secret.to_owned());
    let form_decoded = form::decode(client).zip(form::decode(secret)).filter(|decoded| *decoded != raw);
    Some(std::iter::once(raw).chain(form_decoded).collect())
}

/// Parameters of query and form.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: &str, headers: &HeaderMap, body: &[u8]) -> Result<Self, Refusal> {
        let mut pairs = form::pairs(query).ok_or(Refusal::InvalidRequest("the query is not form-encoded"))?;
        if pairs.iter().any(|(key, _)| key == "client_secret") {
            // Queries end up in the logs of proxies.
            return Err(Refusal::InvalidRequest("client_secret must not be in the query"));
        }
        if !body.is_empty() {
            let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let essence = kind.split(';').next().unwrap_or_default().trim();
            if !essence.is_empty() && !essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
                return Err(Refusal::InvalidRequest("the body must be application/x-www-form-urlencoded"));
            }
            let form = std::str::from_utf8(body).ok().and_then(form::pairs);
            pairs.extend(form.ok_or(Refusal::InvalidRequest("the body is not form-encoded"))?);
        }
        Ok(Self(pairs))
    }

    /// A parameter; given twice, it must be the same.
    fn get(&self, name: &str) -> Result<Option<&str>, Refusal> {
        let mut values = self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let first = values.next();
        if values.any(|other| Some(other) != first) {
            return Err(Refusal::InvalidRequest("a parameter is given twice with different values"));
        }
        Ok(first.filter(|value| !value.is_empty()))
    }
}
