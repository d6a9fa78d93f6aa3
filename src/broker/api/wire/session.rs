//! A session as answers show it.

use super::{Server, object};

object! {
    /// A remote desktop session.
    Session {
        /// Id of the session.
        id: String,
        /// Name for people; empty when the host made the session by itself.
        #[schema(example = "test1")]
        name: String,
        /// User of the host whose session it is.
        #[schema(example = "barbara")]
        owner: String,
        /// The server that the session is on.
        server: Server,
        /// Kind of the session: VIRTUAL or CONSOLE.
        #[serde(rename = "Type")]
        kind: String,
        /// Most clients that may be connected at a time.
        max_concurrent_clients: i64,
        /// State: CREATING, READY, DELETING, DELETED or UNKNOWN.
        state: String,
        /// While CREATING: SESSION_PLACING or PENDING_PREPARATION.
        substate: String,
        /// Why the session is in this state.
        state_reason: String,
        /// When the session was made.
        #[schema(format = DateTime)]
        creation_time: String,
        /// When the last client left.
        #[schema(format = DateTime)]
        last_disconnection_time: String,
        /// Clients that are connected now.
        num_of_connections: i64,
        /// Folder for the exchange of files.
        storage_root: String,
    }
}
