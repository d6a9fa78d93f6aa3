//! Permissions of sessions.

use axum::extract::State;

use super::ApiState;
use super::change::{Changed, Changing};
use super::error::Error;
use super::sessions::own_session;
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
    request: Changing<wire::UpdateSessionPermissionsRequestData>,
) -> Result<Changed<wire::UpdateSessionPermissionsResponse>, Error> {
    let done = api
        .carry_out(request, |caller, item| {
            let (id, owner) = own_session(caller, item.session_id.as_deref(), item.owner.as_deref())?;
            Ok(Command::UpdatePermissions {
                id,
                owner,
                permissions: validate::required_permissions(item.permissions_file.as_deref())?,
                client: caller.client.clone(),
            })
        })
        .await?;
    let mut body = wire::UpdateSessionPermissionsResponse {
        request_id: done.request_id,
        ..wire::UpdateSessionPermissionsResponse::default()
    };
    for (item, result) in done.results {
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
    Ok(Changed { body, is_repeated: done.is_repeated })
}
