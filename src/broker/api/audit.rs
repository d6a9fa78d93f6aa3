//! What the audit learns of a call. What changes the fleet is recorded with the
//! change; what only tells or refuses is noted (`notes`) and recorded soon after.

use axum::extract::{FromRequestParts, MatchedPath, Request};
use axum::http::Extensions;
use axum::http::request::Parts;

use super::ApiState;
use super::envelope::RequestId;
use super::error::Error;
use super::origin::Origin;
use crate::broker::notes::noted;
use crate::domain::Command;
use crate::domain::audit::{Actor, Deed, TEXT_BYTES_MAX};

/// What was called, and from where.
#[derive(Debug, Clone)]
pub(super) struct Route {
    /// The path of the route, without its first slash.
    pub(super) action: String,
    /// The caller's address.
    pub(super) from: String,
}

impl Route {
    pub(super) fn of(extensions: &Extensions) -> Self {
        let path = extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        Self { action: path.trim_start_matches('/').to_owned(), from: origin(extensions) }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Route {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Error> {
        Ok(Self::of(&parts.extensions))
    }
}

impl ApiState {
    /// Records a deed that changes nothing else, before it is answered.
    pub(super) async fn record(&self, deed: Deed, result: &str) -> Result<(), Error> {
        self.propose(vec![noted(deed, result.to_owned())]).await?;
        Ok(())
    }
}

impl ApiState {
    /// Has something that changes nothing recorded soon.
    pub(super) fn note(&self, request: &Request, actor: Actor, result: &str) {
        let Route { action, from } = Route::of(request.extensions());
        let request_id = request.extensions().get::<RequestId>().map_or_else(String::new, |id| id.0.clone());
        let deed = Deed { actor, from, action, target: String::new(), request_id, via: self.core.replica() };
        self.notes.take(deed, result);
    }
}

/// Where the call comes from, as text.
fn origin(extensions: &Extensions) -> String {
    extensions.get::<Origin>().map_or_else(String::new, |origin| origin.0.to_string())
}

/// The sessions and servers that commands name, as far as a record has room
/// for them.
pub(super) fn target(commands: &[Command]) -> String {
    let mut text = String::new();
    for command in commands {
        let name = match command {
            Command::CreateSession { id, .. }
            | Command::DeleteSession { id, .. }
            | Command::UpdatePermissions { id, .. } => id.as_str(),
            Command::OpenServer { id, .. } | Command::CloseServer { id, .. } | Command::DrainServer { id, .. } => {
                id.as_str()
            }
            _ => continue,
        };
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(name);
        if text.len() > TEXT_BYTES_MAX {
            break;
        }
    }
    text
}
