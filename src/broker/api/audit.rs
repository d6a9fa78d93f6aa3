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
use crate::domain::audit::{Actor, Deed, Digest, TEXT_BYTES_MAX};

/// The result of what one wanted of another owner who is bound to one.
pub(super) const OF_ANOTHER: &str = "refused: of another owner";

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

/// The sessions and servers that commands name. Where a record has no room for
/// all of them, how many they are and a digest of their lines.
pub(super) fn target(commands: &[Command]) -> String {
    told(&commands.iter().filter_map(name).collect::<Vec<_>>())
}

/// Names, as a target.
pub(super) fn told(names: &[&str]) -> String {
    let text = names.join(" ");
    if text.len() <= TEXT_BYTES_MAX {
        return text;
    }
    let digest = Digest::of(names.join("\n").as_bytes());
    let head = &text[..text.floor_char_boundary(TEXT_BYTES_MAX / 2)];
    format!("{head}… {} in all, SHA-256 of their lines {digest}", names.len())
}

/// The session or server that a command names.
pub(super) fn name(command: &Command) -> Option<&str> {
    match command {
        Command::CreateSession { id, .. }
        | Command::DeleteSession { id, .. }
        | Command::UpdatePermissions { id, .. } => Some(id.as_str()),
        Command::OpenServer { id, .. } | Command::CloseServer { id, .. } | Command::DrainServer { id, .. } => {
            Some(id.as_str())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ClientId, ServerId};

    #[test]
    fn many_targets_are_told_by_their_number_and_digest() {
        let open = |id: &str| Command::OpenServer {
            id: ServerId::new(id).expect("valid"),
            client: ClientId::new("c").expect("valid"),
        };
        assert_eq!(target(&[open("a"), open("b")]), "a b");
        let many: Vec<_> = (0..1_000).map(|number| open(&format!("server-{number}"))).collect();
        let told = target(&many);
        assert!(told.len() <= TEXT_BYTES_MAX && told.contains("… 1000 in all, SHA-256 of their lines "), "{told}");
        assert_ne!(told, target(&many[..999]));
    }
}
