//! What clients send. Everything may be absent: what is missing is found when
//! the item is validated, so that one bad item does not fail the others.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{KeyValuePair, integer, object};

object! {
    /// Which sessions to describe.
    DescribeSessionsRequestData {
        /// Ids of the sessions; none or absent for all.
        session_ids: Vec<String>,
        /// What sessions must match. Keys: `owner`, and `tag:KEY` for a tag of the session's server.
        filters: Vec<KeyValuePair>,
        /// Most results in the answer, 1 to 1000.
        #[schema(schema_with = integer)]
        max_results: i64,
        /// Where to go on: the token of the page before.
        next_token: String,
    }
}

object! {
    /// Which servers to describe.
    DescribeServersRequestData {
        /// Ids of the servers; none or absent for all.
        server_ids: Vec<String>,
        /// Most results in the answer, 1 to 1000.
        #[schema(schema_with = integer)]
        max_results: i64,
        /// Where to go on: the token of the page before.
        next_token: String,
    }
}

object! {
    /// A session to create.
    CreateSessionRequestData {
        /// Name for people.
        #[schema(example = "test1")]
        name: String,
        /// User of the host whose session it will be.
        #[schema(example = "barbara")]
        owner: String,
        /// Kind of the session: VIRTUAL or CONSOLE.
        #[serde(rename = "Type")]
        kind: String,
        /// Whether a virtual session gets OpenGL acceleration.
        dcv_gl_enabled: bool,
        /// Most clients that may be connected at a time, 1 to 100.
        max_concurrent_clients: i64,
        /// Start script of the session. InitFile takes its place.
        #[schema(deprecated = true)]
        init_file_path: String,
        /// Start script of the session, relative to the host's init folder.
        init_file: String,
        /// Program to run in the session, relative to the host's autorun folder.
        autorun_file: String,
        /// Arguments of the program in AutorunFile.
        autorun_file_arguments: Vec<String>,
        /// Permissions file in base64.
        permissions_file: String,
        /// What the server must fulfil, for example `tag:color = 'pink' and server:Host.Memory.TotalBytes > 8E9`.
        requirements: String,
        /// Wait when no server fits; otherwise such a request fails.
        enqueue_request: bool,
        /// Do not try another server when the creation fails.
        disable_retry_on_failure: bool,
        /// Folder for the exchange of files.
        storage_root: String,
    }
}

object! {
    /// A session to delete.
    DeleteSessionRequestData {
        /// Id of the session.
        session_id: String,
        /// Its owner.
        owner: String,
        /// Forget the session even if its host does not answer.
        #[schema(default = false)]
        force: bool,
    }
}

object! {
    /// New permissions of a session.
    UpdateSessionPermissionsRequestData {
        /// Id of the session.
        session_id: String,
        /// Its owner.
        owner: String,
        /// Permissions file in base64.
        permissions_file: String,
    }
}

/// A session of which a picture is wanted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub struct GetSessionScreenshotRequestData {
    /// Id of the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub session_id: Option<String>,
    /// Largest width of the picture in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_width: Option<i64>,
    /// Largest height of the picture in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_height: Option<i64>,
}

object! {
    /// A server to open for placement.
    OpenServerRequestData {
        /// Id of the server.
        server_id: String,
    }
}

object! {
    /// A server to close for placement.
    CloseServerRequestData {
        /// Id of the server.
        server_id: String,
        /// Close it even if sessions are on it; they go on.
        force: bool,
    }
}
