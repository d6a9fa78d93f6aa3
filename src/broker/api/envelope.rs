//! What surrounds every request: its id, its span in the log, and the answer
//! when a handler panics.

use std::panic::AssertUnwindSafe;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use tracing::Instrument as _;

use super::ApiState;
use super::error::Error;
use super::limits::REQUEST_ID_BYTES_MAX;

/// Header with the request's id, in requests and in answers.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Id of a request; the field `RequestId` of answers.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            tracing::error!("a request came to a handler without an id");
            Error::Internal
        })
    }
}

/// Gives a request its id and its span, and turns a panic into an answer.
pub(super) async fn envelop(State(api): State<ApiState>, mut request: Request, next: Next) -> Response {
    let id = offered_id(request.headers()).unwrap_or_else(|| api.core.new_id());
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!(
        "request",
        method = %request.method(),
        route,
        request_id = %id,
        client_id = tracing::field::Empty,
        status = tracing::field::Empty,
    );
    request.extensions_mut().insert(RequestId(id.clone()));
    let handled = async {
        // The panic hook has logged what happened and where.
        let caught = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let response = caught.unwrap_or_else(|_| {
            tracing::error!("a handler panicked");
            Error::Internal.into_response()
        });
        tracing::Span::current().record("status", response.status().as_u16());
        tracing::debug!("request answered");
        response
    };
    let mut response = handled.instrument(span).await;
    if let Ok(value) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    response
}

/// The id that the client gave, if it is fit for logs.
fn offered_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID_HEADER)?.to_str().ok()?;
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    ((1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(is_safe)).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_and_plain_ids_are_taken_over() {
        let offered = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID_HEADER, HeaderValue::from_str(value).expect("a header value"));
            offered_id(&headers)
        };
        assert_eq!(offered("Root=1-67891233-abc").as_deref(), Some("Root=1-67891233-abc"));
        assert!(offered(&"a".repeat(128)).is_some());
        for refused in ["", "a b", "a\tb", "{}", &"a".repeat(129)] {
            assert_eq!(offered(refused), None, "{refused}");
        }
    }
}
