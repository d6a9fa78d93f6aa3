//! Permissions of sessions.

use axum::extract::State;
use axum::{Extension, Json};

use super::ApiState;
use super::auth::Caller;
use super::body::Items;
use super::envelope::RequestId;
use super::error::Error;
use super::sessions::existing_session;
use super::{validate, wire};
use crate::domain::{Command, Outcome};

/// Replaces the permissions of sessions.
#[utoipa::path(
    put,
    path = "/sessionPermissions",
    operation_id = "updateSessionPermissions",
    tag = "sessionPermissions",
    request_body = Vec<wire::UpdateSessionPermissionsRequestData>,
    responses(
        (status = 200, description = "What became of each item", body = wire::UpdateSessionPermissionsResponse),
        (status = 400, description = "The request cannot be understood")
    )
)]
pub(super) async fn update(
    State(api): State<ApiState>,
    Extension(Caller(client)): Extension<Caller>,
    RequestId(request_id): RequestId,
    Items(items): Items<wire::UpdateSessionPermissionsRequestData>,
) -> Result<Json<wire::UpdateSessionPermissionsResponse>, Error> {
    let results = api
        .carry_out(items, |item| {
            Ok(Command::UpdatePermissions {
                id: existing_session(item.session_id.as_deref())?,
                owner: validate::owner(item.owner.as_deref())?,
                permissions: validate::required_permissions(item.permissions_file.as_deref())?,
                client: client.clone(),
            })
        })
        .await?;
    let mut body =
        wire::UpdateSessionPermissionsResponse { request_id, ..wire::UpdateSessionPermissionsResponse::default() };
    for (item, result) in results {
        let session_id = item.session_id;
        match result {
            Ok(Outcome::Done) => {
                body.successful_list.push(wire::UpdateSessionPermissionsSuccessfulResponse { session_id });
            }
            Ok(other) => return Err(super::unexpected(&other)),
            Err(failure) => body.unsuccessful_list.push(wire::UpdateSessionPermissionsUnsuccessfulResponse {
                session_id,
                failure_reason: Some(failure.to_string()),
            }),
        }
    }
    Ok(Json(body))
}
