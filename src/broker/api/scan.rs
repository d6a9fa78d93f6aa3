//! Readings that look at more than a page's worth. They would hold up every
//! other request on their thread, so they move to a thread of their own, few
//! at a time.

use std::sync::Arc;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::door::{Unavailable, UnavailableReason};
use super::error::Error;
use super::limits::{SCAN_WAIT_MAX, SCANS_MAX, STEPS_INLINE_MAX};
use crate::domain::Fleet;

/// Turns for long readings.
#[derive(Debug, Clone)]
pub(super) struct Scans(Arc<Semaphore>);

impl Default for Scans {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SCANS_MAX)))
    }
}

impl Scans {
    /// Reads the fleet here if few steps suffice, elsewhere and in turn if not.
    /// `read` gives `None` when the steps that it may take do not suffice.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        fleet: Arc<Fleet>,
        read: impl Fn(&Fleet, usize) -> Option<T> + Send + 'static,
    ) -> Result<T, Error> {
        if let Some(found) = read(&fleet, STEPS_INLINE_MAX) {
            return Ok(found);
        }
        let turn = tokio::time::timeout(SCAN_WAIT_MAX, Arc::clone(&self.0).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            let retry_after = SCAN_WAIT_MAX;
            return Err(Unavailable { reason: UnavailableReason::Busy, retry_after }.into());
        };
        let reading = tokio::task::spawn_blocking(move || {
            // The turn ends with the work, also when nobody waits for it any more.
            let _turn = turn;
            read(&fleet, usize::MAX)
        });
        if let Ok(Some(found)) = reading.await {
            return Ok(found);
        }
        tracing::error!("a long reading did not come to an end");
        Err(Error::Internal)
    }
}

/// A body that is JSON already.
pub(super) struct JsonBytes(pub(super) Vec<u8>);

impl IntoResponse for JsonBytes {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], self.0).into_response()
    }
}

/// Encodes a body.
pub(super) fn json_bytes(body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|error| {
        tracing::error!(%error, "an answer cannot be encoded");
        Error::Internal
    })
}
