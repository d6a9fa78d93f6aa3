//! The JSON of the client API: names, types and shapes of the 2023.0
//! description, and nothing beyond it.
//!
//! Clients that were generated from that description refuse a field they do
//! not know, so an answer holds only what stands here. A value that is not
//! there is left out, never `null`. The types carry no rules: requests become
//! domain types at once (see `validate`), answers are made from domain types
//! (see `view`). `description` makes the served description from these types,
//! and a test compares it with the original one.

mod requests;
mod responses;
mod server;
mod session;

use utoipa::openapi::schema::{Object, Type};

pub use requests::{
    CloseServerRequestData, CreateSessionRequestData, DeleteSessionRequestData, DescribeServersRequestData,
    DescribeSessionsRequestData, GetSessionScreenshotRequestData, OpenServerRequestData,
    UpdateSessionPermissionsRequestData,
};
pub use responses::{
    CloseServerSuccessfulResponse, CloseServerUnsuccessfulResponse, CloseServersResponse, CreateSessionsResponse,
    DeleteSessionSuccessfulResponse, DeleteSessionUnsuccessfulResponse, DeleteSessionsResponse,
    DescribeServersResponse, DescribeSessionsResponse, GetSessionConnectionDataResponse,
    GetSessionScreenshotSuccessfulResponse, GetSessionScreenshotUnsuccessfulResponse, GetSessionScreenshotsResponse,
    OpenServerSuccessfulResponse, OpenServerUnsuccessfulResponse, OpenServersResponse, SessionScreenshot,
    SessionScreenshotImage, UnsuccessfulCreateSessionRequestData, UpdateSessionPermissionsResponse,
    UpdateSessionPermissionsSuccessfulResponse, UpdateSessionPermissionsUnsuccessfulResponse,
};
pub use server::{Aws, CpuInfo, CpuLoadAverage, Endpoint, Gpu, Host, LoggedInUser, Memory, Os, Server, Swap};
pub use session::Session;

/// Declares a JSON object of the API. Each field may be absent, and is left
/// out of the JSON when it is.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "PascalCase")]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(skip_serializing_if = "Option::is_none")]
                #[schema(nullable = false)]
                pub $field: Option<$type>,
            )*
        }
    };
}
use object;

object! {
    /// A key with its value.
    KeyValuePair {
        /// The key.
        key: String,
        /// The value.
        value: String,
    }
}

/// Schema of a whole number of no stated size.
fn integer() -> Object {
    Object::with_type(Type::Integer)
}
