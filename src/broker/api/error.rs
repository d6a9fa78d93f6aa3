//! Errors of a whole request, and the one place where they become HTTP.
//!
//! The body is always `{"error": "<text>"}`. What went wrong inside the broker
//! is logged, not told.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::OLDEST_INDEX_HEADER;
use super::door::{Unavailable, VerifyError};

/// When to look again for the answer to a request that is under way: requests
/// end within moments, or with an error that the client sees.
const KEY_RETRY_AFTER_SECS: u64 = 1;

/// Why a request as a whole failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No `Authorization` header. Installers wait for exactly this text.
    #[error("No authorization header")]
    NoAuthorization,
    /// The `Authorization` header does not hold a good access token.
    #[error("{0}")]
    InvalidToken(String),
    /// The caller is not allowed to do this (RFC 6750 section 3.1).
    #[error("the client may not do this: it lacks the scope {scope}")]
    ScopeMissing {
        /// What it lacks.
        scope: &'static str,
    },
    /// The caller is bound to an owner, and this is not about that owner's sessions.
    #[error("the client may not do this: it may see and change the sessions of one owner only")]
    OwnersSessionsOnly,
    /// The request cannot be understood; the text names the field or the limit.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(&'static str),
    /// The cursor lies before what is kept of the events.
    #[error(
        "events up to {dropped} are no longer kept, and some of them come after this cursor; the oldest index \
         kept is {oldest}; begin again without a cursor, or go on with after={dropped}"
    )]
    EventsGone {
        /// Cursor of the last event that is no longer kept.
        dropped: String,
        /// The oldest log index whose events are kept.
        oldest: u64,
    },
    /// The client follows events with as many streams as it may.
    #[error("this client has {max} streams of events already; end one of them first")]
    TooManyStreams {
        /// Allowed streams.
        max: usize,
    },
    /// The caller sends more requests than it may.
    #[error("too many requests of this {whose}; {per_second} per second are allowed")]
    TooManyRequests {
        /// Who is limited: `address` or `client`.
        whose: &'static str,
        /// Allowed requests.
        per_second: u32,
    },
    /// The path exists, but not with this method.
    #[error("this method is not allowed here")]
    MethodNotAllowed,
    /// The body did not come in time.
    #[error("the body did not arrive within {seconds} s")]
    BodyTimeout {
        /// How long the broker waited.
        seconds: u64,
    },
    /// The body has more bytes than allowed.
    #[error("the body is longer than {limit} bytes")]
    BodyTooLarge {
        /// Allowed bytes.
        limit: usize,
    },
    /// The body is of another kind.
    #[error("the body must be JSON; send it with Content-Type: application/json")]
    UnsupportedMediaType,
    /// A request with the same idempotency key is under way.
    #[error("a request with this Idempotency-Key is being carried out; try again in {KEY_RETRY_AFTER_SECS} s")]
    KeyInUse,
    /// The idempotency key belongs to another request.
    #[error("this Idempotency-Key was used for another request")]
    KeyReused,
    /// Not now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// A fault of the broker; the log tells more.
    #[error("internal error")]
    Internal,
    /// The client has its share of the requests of this kind that may be under way.
    #[error("this client has too many requests under way; wait for the answers to some of them")]
    TooManyUnderWay,
}

/// JSON body of an error.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody<'a> {
    pub(super) error: &'a str,
}

impl Error {
    const fn status(&self) -> StatusCode {
        match self {
            Self::NoAuthorization | Self::InvalidToken(_) => StatusCode::UNAUTHORIZED,
            Self::ScopeMissing { .. } | Self::OwnersSessionsOnly => StatusCode::FORBIDDEN,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::EventsGone { .. } => StatusCode::GONE,
            Self::TooManyStreams { .. } | Self::TooManyRequests { .. } | Self::TooManyUnderWay => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::KeyInUse => StatusCode::CONFLICT,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<VerifyError> for Error {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Unavailable(unavailable) => Self::Unavailable(unavailable),
            VerifyError::Invalid | VerifyError::KeysWanted | VerifyError::Expired | VerifyError::InactiveClient => {
                Self::InvalidToken(error.to_string())
            }
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let text = self.to_string();
        let mut response = (self.status(), Json(ErrorBody { error: &text })).into_response();
        let headers = response.headers_mut();
        match self {
            Self::NoAuthorization => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::InvalidToken(_) => {
                let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            Self::ScopeMissing { scope } => {
                let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"");
                headers.extend(HeaderValue::try_from(challenge).map(|value| (header::WWW_AUTHENTICATE, value)));
            }
            Self::EventsGone { dropped: _, oldest } => {
                headers.insert(OLDEST_INDEX_HEADER, HeaderValue::from(oldest));
            }
            Self::Unavailable(unavailable) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(unavailable.retry_after_secs()));
            }
            // Within a second at least one request is allowed again.
            Self::KeyInUse | Self::TooManyStreams { .. } | Self::TooManyRequests { .. } | Self::TooManyUnderWay => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(KEY_RETRY_AFTER_SECS));
            }
            _ => {}
        }
        response
    }
}
