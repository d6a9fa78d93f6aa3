//! What the API needs of the rest of the broker: two traits, so that tests
//! can put a fleet in memory behind the same router.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::client::Grant;
use crate::domain::journal::Position;
use crate::domain::{ClientId, Command, Fleet, LogIndex, Outcome, ReplicaId, ServerId, Session, Timestamp};
use crate::protocol::{Question, Reply};

/// The fleet as it was right after an entry of the log.
#[derive(Debug, Clone)]
pub struct View {
    /// The fleet.
    pub fleet: Arc<Fleet>,
    /// The entry. It may be newer than the last one that [`Fleet::applied`]
    /// tells: entries that concern the replicas alone count here.
    pub index: LogIndex,
}

/// What became of commands that were proposed together.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposed {
    /// The entry that holds them all.
    pub index: LogIndex,
    /// One outcome for each command, in their order.
    pub outcomes: Vec<Outcome>,
}

/// Commands into the replicated log, and views of the fleet out of it.
pub trait Core: Send + Sync + 'static {
    /// Proposes commands in this order. They are durable on a majority and
    /// applied when it returns.
    fn propose(&self, commands: Vec<Command>) -> impl Future<Output = Result<Proposed, Unavailable>> + Send;

    /// The same for what nobody waits for: what became of it is found out for
    /// longer, so that it need not be proposed anew, and happen twice.
    fn propose_patiently(&self, commands: Vec<Command>) -> impl Future<Output = Result<Proposed, Unavailable>> + Send {
        self.propose(commands)
    }

    /// The fleet as of now: it holds everything that was acknowledged before
    /// the call, by whichever replica.
    fn read(&self) -> impl Future<Output = Result<View, Unavailable>> + Send;

    /// The fleet as this replica knows it, maybe stale.
    fn local(&self) -> View;

    /// Resolves when [`local`](Self::local) is at least as new as an entry; at
    /// once when it is already.
    fn applied(&self, index: LogIndex) -> impl Future<Output = ()> + Send;

    /// Whether it is known that [`read`](Self::read) would wait in vain,
    /// because no majority of replicas can be reached.
    fn is_cut_off(&self) -> bool;

    /// Resolves when the journal of [`local`](Self::local) has grown beyond a
    /// position; at once when it has already.
    fn journaled_after(&self, position: Position) -> impl Future<Output = ()> + Send;

    /// Asks the agent of a server something that leaves no trace in the log.
    fn ask(&self, server: &ServerId, question: Question) -> impl Future<Output = Result<Reply, AskError>> + Send;

    /// The replica that is asked.
    fn replica(&self) -> ReplicaId;

    /// A new UUID as text.
    fn new_id(&self) -> String;

    /// The time by this host's clock; for telling ages, not for deciding.
    fn now(&self) -> Timestamp;
}

/// Who calls, and the tokens.
pub trait Identity: Send + Sync + 'static {
    /// An access token for a client that knows its secret.
    fn token(&self, client: &ClientId, secret: &str) -> impl Future<Output = Result<Token, TokenError>> + Send;

    /// Who calls with an access token.
    fn verify(&self, bearer: &str) -> Result<Caller, VerifyError>;

    /// Gets keys that a token may be signed with and that may have come since.
    fn refresh_keys(&self, _bearer: &str) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// A new token that opens one session for one user.
    fn connection_token(&self, session: &Session, user: &str) -> Result<String, Unavailable>;
}

/// Who calls, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The client.
    pub client: ClientId,
    /// What it may do, and to whose sessions.
    pub grant: Grant,
}

/// The broker cannot do it now; trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; try again in {} s", retry_after_secs(.retry_after))]
pub struct Unavailable {
    /// Why.
    pub reason: UnavailableReason,
    /// When to try again; told to the client in whole seconds, at least one.
    pub retry_after: Duration,
}

impl Unavailable {
    /// Value of the `Retry-After` header.
    pub fn retry_after_secs(&self) -> u64 {
        retry_after_secs(&self.retry_after)
    }
}

fn retry_after_secs(retry_after: &Duration) -> u64 {
    let rounded_up = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
    rounded_up.max(1)
}

/// Why the broker cannot do it now. The texts are for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnavailableReason {
    /// No leader, or no majority that could be reached.
    #[error("no majority of the broker's replicas can be reached")]
    NoQuorum,
    /// The disk is full or failed.
    #[error("the broker cannot write to its disk")]
    Storage,
    /// Too much is waiting already.
    #[error("the broker is busy")]
    Busy,
    /// It was proposed, but its outcome did not come in time: it may still happen.
    #[error("the outcome is not known yet; look before you repeat the request")]
    OutcomeUnknown,
    /// This replica is starting or ending.
    #[error("this replica is starting or ending")]
    NotServing,
    /// The caller knows of entries that have not arrived here.
    #[error("this replica has not yet what Berth-Min-Index asks for")]
    Behind,
}

/// Why an agent did not answer a question. The texts are for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum AskError {
    /// No connection to it.
    #[error("the agent of its server cannot be reached")]
    Unreachable,
    /// Too many questions wait for it.
    #[error("the agent of its server has too many questions to answer")]
    Busy,
    /// It did not answer in time.
    #[error("the agent of its server did not answer in time")]
    TimedOut,
}

/// An access token. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub access_token: String,
    /// How long it is good for.
    pub expires_in: Duration,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Tokens are issued elsewhere.
    #[error("this broker issues no access tokens; ask the authorization server")]
    NotIssued,
    /// No such active client, or another secret. Which of them is not told.
    #[error("unknown client or wrong secret")]
    InvalidClient,
    /// Not now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why an access token does not count. The texts are for clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It is no token of this broker: malformed, or signed by another key.
    #[error("the access token is not valid")]
    Invalid,
    /// It was good once.
    #[error("the access token has expired")]
    Expired,
    /// A key that it may be signed with is not known yet:
    /// [`Identity::refresh_keys`], and look again.
    #[error("the access token is not valid")]
    KeysWanted,
    /// Its client may no longer call.
    #[error("the client of the access token is not active")]
    InactiveClient,
    /// It cannot be checked now.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Result of a call that waits, boxed.
pub(super) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Core`] without its type, so that handlers need not be generic.
pub(super) trait AnyCore: Send + Sync + 'static {
    fn propose(&self, commands: Vec<Command>) -> Later<'_, Result<Proposed, Unavailable>>;
    fn read(&self) -> Later<'_, Result<View, Unavailable>>;
    fn local(&self) -> View;
    fn applied(&self, index: LogIndex) -> Later<'_, ()>;
    fn is_cut_off(&self) -> bool;
    fn journaled_after(&self, position: Position) -> Later<'_, ()>;
    fn ask<'a>(&'a self, server: &'a ServerId, question: Question) -> Later<'a, Result<Reply, AskError>>;
    fn replica(&self) -> ReplicaId;
    fn new_id(&self) -> String;
    fn now(&self) -> Timestamp;
}

impl<C: Core> AnyCore for C {
    fn propose(&self, commands: Vec<Command>) -> Later<'_, Result<Proposed, Unavailable>> {
        Box::pin(Core::propose(self, commands))
    }

    fn read(&self) -> Later<'_, Result<View, Unavailable>> {
        Box::pin(Core::read(self))
    }

    fn local(&self) -> View {
        Core::local(self)
    }

    fn applied(&self, index: LogIndex) -> Later<'_, ()> {
        Box::pin(Core::applied(self, index))
    }

    fn is_cut_off(&self) -> bool {
        Core::is_cut_off(self)
    }

    fn journaled_after(&self, position: Position) -> Later<'_, ()> {
        Box::pin(Core::journaled_after(self, position))
    }

    fn ask<'a>(&'a self, server: &'a ServerId, question: Question) -> Later<'a, Result<Reply, AskError>> {
        Box::pin(Core::ask(self, server, question))
    }

    fn replica(&self) -> ReplicaId {
        Core::replica(self)
    }

    fn new_id(&self) -> String {
        Core::new_id(self)
    }

    fn now(&self) -> Timestamp {
        Core::now(self)
    }
}

/// [`Identity`] without its type.
pub(super) trait AnyIdentity: Send + Sync + 'static {
    fn token<'a>(&'a self, client: &'a ClientId, secret: &'a str) -> Later<'a, Result<Token, TokenError>>;
    fn verify(&self, bearer: &str) -> Result<Caller, VerifyError>;
    fn refresh_keys<'a>(&'a self, bearer: &'a str) -> Later<'a, ()>;
    fn connection_token(&self, session: &Session, user: &str) -> Result<String, Unavailable>;
}

impl<I: Identity> AnyIdentity for I {
    fn token<'a>(&'a self, client: &'a ClientId, secret: &'a str) -> Later<'a, Result<Token, TokenError>> {
        Box::pin(Identity::token(self, client, secret))
    }

    fn verify(&self, bearer: &str) -> Result<Caller, VerifyError> {
        Identity::verify(self, bearer)
    }

    fn refresh_keys<'a>(&'a self, bearer: &'a str) -> Later<'a, ()> {
        Box::pin(Identity::refresh_keys(self, bearer))
    }

    fn connection_token(&self, session: &Session, user: &str) -> Result<String, Unavailable> {
        Identity::connection_token(self, session, user)
    }
}
