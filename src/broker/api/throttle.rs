//! How much callers of the API may ask for: each address, as proxies tell it,
//! and each client.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::error::Error;
use super::origin::Origin;
use super::{ApiState, HEALTH_PATH};
use crate::broker::throttle::Refused;
use crate::domain::ClientId;
use crate::domain::audit::Actor;

/// Finds out where a request comes from, and lets it through unless too many
/// come from there. Health checks always pass.
pub(super) async fn by_address(
    State(api): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    if let Some(origin) = Origin::of(request.extensions(), request.headers(), &api.settings.limits) {
        request.extensions_mut().insert(origin);
        if let Some(throttle) = api.throttle.as_deref().filter(|_| request.uri().path() != HEALTH_PATH) {
            throttle.admit_address(origin.0).map_err(|refused| api.refuse(&request, Actor::Unknown, refused))?;
        }
    }
    Ok(next.run(request).await)
}

impl ApiState {
    /// Lets a client's request through, unless it sends too many.
    pub(super) fn throttle_client(&self, request: &Request, client: &ClientId) -> Result<(), Error> {
        let Some(throttle) = self.throttle.as_deref() else { return Ok(()) };
        throttle.admit_client(client).map_err(|refused| self.refuse(request, Actor::Client(client.clone()), refused))
    }

    fn refuse(&self, request: &Request, actor: Actor, refused: Refused) -> Error {
        if let Some(text) = refused.told() {
            self.note(request, actor, &text);
        }
        refused.into()
    }
}
