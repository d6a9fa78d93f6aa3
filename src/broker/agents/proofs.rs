//! What agents and desktop servers show, and who reads it.

use std::pin::Pin;

use crate::domain::ids::StatementId;
use crate::domain::{Owner, SessionId};

/// What a connection token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The session that it opens.
    pub session: SessionId,
    /// Whose session that was when the token was made.
    pub owner: Owner,
    /// The one who connects with it.
    pub user: Owner,
}

/// Reads what was made with the cluster's keys.
pub trait Proofs: Send + Sync + 'static {
    /// Which software statement a text is; `None` if it is none of this
    /// cluster. Whether it is active stands in the log.
    fn statement(&self, text: &str) -> Option<StatementId>;

    /// What a connection token says, or why it does not count.
    fn ticket(&self, token: &str) -> Result<Ticket, String>;

    /// Uses a connection token, if it is good once only. Says why it does not
    /// count.
    fn spend<'a>(&'a self, token: &'a str) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
}
