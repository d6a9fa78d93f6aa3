//! Who calls: API clients, their secrets and their tokens; what agents enrol
//! with.
//!
//! Clients and signing keys are in the replicated log, so they survive
//! restarts and hold on every replica. The log never sees a secret: it holds
//! Argon2id hashes of client secrets, and private keys sealed with the
//! cluster's key, which is a file beside it.
//!
//! - `external.rs`: access tokens of other authorization servers,
//! - `operators.rs`: what operators do with them,
//! - `secrets.rs`: hashes of secrets, `statements.rs`: software statements,
//! - `keyring.rs`: keys that sign, `tokens.rs`: tokens, `checked.rs`: those that
//!   were found good already,
//! - `seal.rs`: how keys are in the log.

mod checked;
pub mod external;
mod keyring;
mod operators;
pub mod seal;
mod secrets;
mod statements;
mod tokens;

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::external::External;
use self::keyring::Keyring;
pub use self::keyring::{TokenAlgorithm, TokenKeyError};
pub use self::operators::{NewClient, Renewed, SecretRotated};
pub use self::seal::ClusterKey;
use self::secrets::{CheckError, Secrets};
use self::tokens::{TokenFault, TokenRefusal};
use super::agents::{Proofs, Ticket};
use super::api::door::{self, Caller, Token, TokenError, Unavailable, UnavailableReason, VerifyError};
use super::cluster::shared::{self, SharedKeyError};
use super::core::Broker;
use super::deeds::NotDone;
use crate::domain::client::Scopes;
use crate::domain::ids::{StatementId, TokenId};
use crate::domain::key::KeyPurpose;
use crate::domain::{ClientId, Command, Millis, Outcome, Owner, Refusal, Session, SessionId, Timestamp};
use crate::secret::Secret;

/// How long a token that was used is kept after its end, in seconds.
const SPENT_SECONDS: u64 = 300;

/// Longest client name, in bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 128;

/// How tokens are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSettings {
    /// With what access tokens are signed. Another one than before takes the
    /// place of the key at the next start.
    pub algorithm: TokenAlgorithm,
    /// How long access tokens are good.
    pub access_lifetime: Duration,
    /// How long connection tokens are good.
    pub connection_lifetime: Duration,
    /// Whether a connection token opens a session once only.
    pub connection_single_use: bool,
    /// Whether access tokens are issued here, and those that were are taken.
    pub issues_access: bool,
}

/// Issues and checks tokens.
pub struct Identity {
    broker: Arc<Broker>,
    cluster_key: ClusterKey,
    access: Keyring,
    connection: Keyring,
    external: External,
    settings: TokenSettings,
    secrets: Secrets,
}

/// Why something about clients, keys or statements was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The name is empty, too long or holds control characters.
    #[error("the client name must have 1 to {CLIENT_NAME_BYTES_MAX} bytes without control characters")]
    Name,
    /// There is no such client.
    #[error("there is no client {0}")]
    Unknown(ClientId),
    /// The state does not allow it.
    #[error(transparent)]
    Refused(Refusal),
    /// What was given is no statement of this cluster.
    #[error("this is no software statement of this cluster")]
    Statement,
    /// The log did not take it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The signing keys in the log cannot be used with this cluster key.
    #[error(transparent)]
    Keys(#[from] TokenKeyError),
    /// The thread that checks secrets cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// The keys that all replicas have in common cannot be had.
    #[error(transparent)]
    Shared(#[from] SharedKeyError),
    /// A key cannot be sealed.
    #[error(transparent)]
    Seal(#[from] seal::SealError),
}

impl From<NotDone> for ClientError {
    fn from(error: NotDone) -> Self {
        match error {
            NotDone::Unavailable(error) => Self::Unavailable(error),
            NotDone::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

impl Identity {
    /// Makes sure that the log holds a key for each purpose, and that access
    /// tokens are signed with the algorithm that is set.
    pub async fn start(
        broker: Arc<Broker>,
        cluster_key: ClusterKey,
        data_folder: &Path,
        settings: TokenSettings,
    ) -> Result<Self, ClientError> {
        let identity = Self {
            external: External::new(Arc::clone(&broker), data_folder),
            broker,
            cluster_key,
            access: Keyring::new(KeyPurpose::AccessToken),
            connection: Keyring::new(KeyPurpose::ConnectionToken),
            settings,
            secrets: Secrets::start().map_err(ClientError::Thread)?,
        };
        for (keys, algorithm) in
            [(&identity.access, identity.settings.algorithm), (&identity.connection, TokenAlgorithm::Es256)]
        {
            let private = algorithm.generate()?;
            shared::agree(&identity.broker, &identity.cluster_key, keys.purpose(), &private).await?;
            keys.ring(&identity.broker.fleet(), &identity.cluster_key)?;
        }
        identity.change_algorithm().await;
        Ok(identity)
    }

    /// Renews the key of access tokens if it is of another algorithm than is set.
    async fn change_algorithm(&self) {
        let wanted = self.settings.algorithm;
        match self.access.algorithm(&self.broker.fleet(), &self.cluster_key) {
            Ok(found) if found != wanted => {
                tracing::info!(found = found.as_str(), wanted = wanted.as_str(), "access tokens get another key");
                if let Err(error) = self.renew_access_key(self.access_lifetime()).await {
                    tracing::warn!(%error, "access tokens are signed as before; the next start tries again");
                }
            }
            _ => {}
        }
    }

    /// Keeps the keys of other authorization servers fresh, until told to stop.
    pub async fn keep_keys(self: Arc<Self>, shutdown: CancellationToken) {
        self.external.keep(shutdown).await;
    }

    /// How long access tokens are good.
    pub const fn access_lifetime(&self) -> Millis {
        Millis::from_secs(self.settings.access_lifetime.as_secs())
    }

    /// How long connection tokens are good.
    pub const fn connection_lifetime(&self) -> Millis {
        Millis::from_secs(self.settings.connection_lifetime.as_secs())
    }

    /// An access token for a client, whoever asks: to be called for one that
    /// has proved who it is.
    pub(crate) fn issue(&self, client: &ClientId, scopes: Scopes) -> Result<String, Unavailable> {
        tokens::access_token(
            &self.access,
            &self.broker.fleet(),
            &self.cluster_key,
            client,
            scopes,
            self.now(),
            self.settings.access_lifetime.as_secs(),
        )
        .map_err(|error| not_serving(&error))
    }

    fn now(&self) -> Timestamp {
        self.broker.now()
    }
}

impl door::Identity for Identity {
    async fn token(&self, client: &ClientId, secret: &str) -> Result<Token, TokenError> {
        if !self.settings.issues_access {
            return Err(TokenError::NotIssued);
        }
        let found = self.broker.fleet().client(client).cloned();
        let hashes = found.iter().flat_map(|found| found.secrets(self.now()).map(|hash| hash.0.clone())).collect();
        let given = Secret::new(secret.to_owned());
        let matches = self.secrets.check(given, hashes).await.map_err(refused)?;
        let Some(found) = found.filter(|found| matches && found.active) else {
            return Err(TokenError::InvalidClient);
        };
        let access_token = self.issue(client, found.grant.scopes)?;
        Ok(Token { access_token, expires_in: self.settings.access_lifetime })
    }

    fn verify(&self, bearer: &str) -> Result<Caller, VerifyError> {
        let fleet = self.broker.fleet();
        if !self.settings.issues_access {
            return self.external.verify(&fleet, bearer);
        }
        let said = match tokens::verify_access_token(&self.access, &fleet, &self.cluster_key, bearer) {
            Ok(said) => said,
            Err(TokenFault::Refused(TokenRefusal::Malformed)) => return self.external.verify(&fleet, bearer),
            Err(fault) => return Err(self::fault(fault)),
        };
        let client = ClientId::new(&said.client_id).map_err(|_| VerifyError::Invalid)?;
        // What it may do is what is registered now, not what was so when the token was made.
        match fleet.client(&client) {
            Some(found) if found.active => Ok(Caller { client, grant: found.grant.clone() }),
            _ => Err(VerifyError::InactiveClient),
        }
    }

    async fn refresh_keys(&self, bearer: &str) {
        self.external.refresh(bearer).await;
    }

    fn connection_token(&self, session: &Session, user: &str) -> Result<String, Unavailable> {
        tokens::connection_token(
            &self.connection,
            &self.broker.fleet(),
            &self.cluster_key,
            session,
            user,
            self.now(),
            self.settings.connection_lifetime.as_secs(),
        )
        .map_err(|error| not_serving(&error))
    }
}

impl Proofs for Identity {
    fn statement(&self, text: &str) -> Option<StatementId> {
        statements::read(text, &self.cluster_key)
    }

    fn ticket(&self, token: &str) -> Result<Ticket, String> {
        let claims = self.connection_claims(token)?;
        let session = SessionId::new(&claims.dcv_session_id).map_err(|error| error.to_string())?;
        let owner = Owner::new(&claims.dcv_session_owner).map_err(|error| error.to_string())?;
        let user = Owner::new(&claims.dcv_session_user).map_err(|error| error.to_string())?;
        Ok(Ticket { session, owner, user })
    }

    fn spend<'a>(&'a self, token: &'a str) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        Box::pin(async move {
            if !self.settings.connection_single_use {
                return Ok(());
            }
            let claims = self.connection_claims(token)?;
            let id = TokenId::new(&claims.jti).map_err(|error| error.to_string())?;
            // Clocks of replicas may differ.
            let until = Timestamp(claims.exp.saturating_add(SPENT_SECONDS).saturating_mul(1000));
            let spent = self.broker.propose(vec![Command::SpendToken { id, until }]).await;
            match spent.map_err(|error| error.to_string())?.pop() {
                Some(Outcome::Done) => Ok(()),
                Some(Outcome::Refused(refusal)) => Err(refusal.to_string()),
                _ => Err("it is not known whether the token was used".to_owned()),
            }
        })
    }
}

impl Identity {
    fn connection_claims(&self, token: &str) -> Result<tokens::ConnectionClaims, String> {
        let fleet = self.broker.fleet();
        tokens::verify_connection_token(&self.connection, &fleet, &self.cluster_key, token).map_err(|refused| {
            match refused {
                TokenFault::Refused(TokenRefusal::Malformed) => "the connection token is not valid".to_owned(),
                TokenFault::Refused(TokenRefusal::Expired) => "the connection token has expired".to_owned(),
                TokenFault::Key(error) => {
                    not_serving(&error);
                    "connection tokens cannot be checked now".to_owned()
                }
            }
        })
    }
}

fn fault(fault: TokenFault) -> VerifyError {
    match fault {
        TokenFault::Refused(TokenRefusal::Malformed) => VerifyError::Invalid,
        TokenFault::Refused(TokenRefusal::Expired) => VerifyError::Expired,
        TokenFault::Key(error) => VerifyError::Unavailable(not_serving(&error)),
    }
}

fn not_serving(error: &TokenKeyError) -> Unavailable {
    tracing::error!(%error, "tokens cannot be signed or checked");
    Unavailable { reason: UnavailableReason::NotServing, retry_after: Duration::from_secs(1) }
}

fn refused(error: CheckError) -> Unavailable {
    let reason = match error {
        CheckError::Busy => UnavailableReason::Busy,
        CheckError::Failed => {
            tracing::error!("client secrets cannot be checked");
            UnavailableReason::NotServing
        }
    };
    Unavailable { reason, retry_after: Duration::from_secs(1) }
}
