//! What the broker answers. Lists are always there, also when they are empty:
//! clients loop over them without looking.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    CloseServerRequestData, CreateSessionRequestData, GetSessionScreenshotRequestData, OpenServerRequestData, Server,
    Session, object,
};

/// Declares the answer to a call with many items: those that succeeded and
/// those that did not, each in the order of the request.
macro_rules! lists {
    ($(#[$doc:meta])* $name:ident { $success:ty, $failure:ty }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "PascalCase")]
        pub struct $name {
            /// Id of the request.
            pub request_id: String,
            /// Items that succeeded.
            pub successful_list: Vec<$success>,
            /// Items that did not.
            pub unsuccessful_list: Vec<$failure>,
        }
    };
}

/// A page of sessions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeSessionsResponse {
    /// Id of the request.
    pub request_id: String,
    /// The sessions, ordered by id.
    pub sessions: Vec<Session>,
    /// Token for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_token: Option<String>,
}

/// A page of servers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeServersResponse {
    /// Id of the request.
    pub request_id: String,
    /// The servers, ordered by id.
    pub servers: Vec<Server>,
    /// Token for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_token: Option<String>,
}

lists! {
    /// What became of the sessions to create.
    CreateSessionsResponse { Session, UnsuccessfulCreateSessionRequestData }
}

object! {
    /// A session that is not created.
    UnsuccessfulCreateSessionRequestData {
        /// The item of the request.
        create_session_request_data: CreateSessionRequestData,
        /// Why not.
        failure_reason: String,
    }
}

lists! {
    /// What became of the sessions to delete.
    DeleteSessionsResponse { DeleteSessionSuccessfulResponse, DeleteSessionUnsuccessfulResponse }
}

object! {
    /// A session that is being deleted.
    DeleteSessionSuccessfulResponse {
        /// Id of the session.
        session_id: String,
        /// Its state.
        state: String,
    }
}

object! {
    /// A session that is not deleted.
    DeleteSessionUnsuccessfulResponse {
        /// Id of the session.
        session_id: String,
        /// Why not.
        failure_reason: String,
    }
}

lists! {
    /// What became of the new permissions.
    UpdateSessionPermissionsResponse {
        UpdateSessionPermissionsSuccessfulResponse, UpdateSessionPermissionsUnsuccessfulResponse
    }
}

object! {
    /// A session that gets its new permissions.
    UpdateSessionPermissionsSuccessfulResponse {
        /// Id of the session.
        session_id: String,
    }
}

object! {
    /// A session that keeps its permissions.
    UpdateSessionPermissionsUnsuccessfulResponse {
        /// Id of the session.
        session_id: String,
        /// Why.
        failure_reason: String,
    }
}

object! {
    /// What a user needs to connect to a session.
    GetSessionConnectionDataResponse {
        /// The session.
        session: Session,
        /// Token that opens the session for the user.
        connection_token: String,
    }
}

lists! {
    /// The pictures that were taken.
    GetSessionScreenshotsResponse { GetSessionScreenshotSuccessfulResponse, GetSessionScreenshotUnsuccessfulResponse }
}

object! {
    /// A picture that was taken.
    GetSessionScreenshotSuccessfulResponse {
        /// The picture.
        session_screenshot: SessionScreenshot,
    }
}

object! {
    /// Pictures of the screens of a session.
    SessionScreenshot {
        /// Id of the session.
        session_id: String,
        /// One picture for each screen.
        images: Vec<SessionScreenshotImage>,
    }
}

object! {
    /// The picture of a screen.
    SessionScreenshotImage {
        /// Format: png or jpeg.
        #[schema(example = "png")]
        format: String,
        /// The file in base64.
        #[schema(example = "iVBORw0KGgo=")]
        data: String,
        /// When it was taken.
        #[schema(format = DateTime)]
        creation_time: String,
        /// Whether it shows the primary screen.
        primary: bool,
    }
}

object! {
    /// A picture that could not be taken.
    GetSessionScreenshotUnsuccessfulResponse {
        /// The item of the request.
        get_session_screenshot_request_data: GetSessionScreenshotRequestData,
        /// Why not.
        failure_reason: String,
    }
}

lists! {
    /// What became of the servers to open.
    OpenServersResponse { OpenServerSuccessfulResponse, OpenServerUnsuccessfulResponse }
}

object! {
    /// A server that is open.
    OpenServerSuccessfulResponse {
        /// Id of the server.
        server_id: String,
    }
}

object! {
    /// A server that was not opened.
    OpenServerUnsuccessfulResponse {
        /// The item of the request.
        open_server_request_data: OpenServerRequestData,
        /// Kind of the failure.
        failure_code: String,
        /// Why not.
        failure_reason: String,
    }
}

lists! {
    /// What became of the servers to close.
    CloseServersResponse { CloseServerSuccessfulResponse, CloseServerUnsuccessfulResponse }
}

object! {
    /// A server that is closed.
    CloseServerSuccessfulResponse {
        /// Id of the server.
        server_id: String,
    }
}

object! {
    /// A server that was not closed.
    CloseServerUnsuccessfulResponse {
        /// The item of the request.
        close_server_request_data: CloseServerRequestData,
        /// Kind of the failure.
        failure_code: String,
        /// Why not.
        failure_reason: String,
    }
}
