//! Who calls: API clients, their secrets and their tokens.
//!
//! Clients and signing keys are in the replicated log, so they survive
//! restarts and hold on every replica. The log never sees a secret: it holds
//! Argon2id hashes of client secrets, and private keys sealed with the
//! cluster's key, which is a file beside it.

pub mod seal;
mod secrets;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

pub use self::seal::ClusterKey;
use self::secrets::{CheckError, Secrets};
pub use self::tokens::TokenKeyError;
use self::tokens::{Signer, TokenRefusal};
use super::api::door::{self, Token, TokenError, Unavailable, UnavailableReason, VerifyError};
use super::cluster::shared::{self, SharedKeyError};
use super::core::Broker;
use crate::domain::client::KeyPurpose;
use crate::domain::{ClientId, Command, Outcome, Refusal, Session, Timestamp};
use crate::secret::Secret;

/// Longest client name, in bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 128;

/// Issues and checks tokens.
pub struct Identity {
    broker: Arc<Broker>,
    cluster_key: ClusterKey,
    access: Signer,
    connection: Signer,
    access_token_seconds: u64,
    connection_token_seconds: u64,
    secrets: Secrets,
}

/// A client that was just registered. Its secret is shown this once.
#[derive(Debug)]
pub struct NewClient {
    /// Its id.
    pub id: ClientId,
    /// Its secret.
    pub secret: Secret,
}

/// Why a client was not registered or deactivated.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The name is empty, too long or holds control characters.
    #[error("the client name must have 1 to {CLIENT_NAME_BYTES_MAX} bytes without control characters")]
    Name,
    /// There is no such client.
    #[error("there is no client {0}")]
    Unknown(ClientId),
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
    /// A signing key cannot be made.
    #[error("cannot make a signing key")]
    Key,
}

impl Identity {
    /// Makes sure that the log holds a key for each purpose.
    pub async fn start(
        broker: Arc<Broker>,
        cluster_key: ClusterKey,
        access_token_seconds: u64,
        connection_token_minutes: u64,
    ) -> Result<Self, ClientError> {
        let identity = Self {
            broker,
            cluster_key,
            access: Signer::new(KeyPurpose::AccessToken),
            connection: Signer::new(KeyPurpose::ConnectionToken),
            access_token_seconds,
            connection_token_seconds: connection_token_minutes.saturating_mul(60),
            secrets: Secrets::start().map_err(ClientError::Thread)?,
        };
        for purpose in [KeyPurpose::AccessToken, KeyPurpose::ConnectionToken] {
            identity.ensure_key(purpose).await?;
        }
        let fleet = identity.broker.fleet();
        for signer in [&identity.access, &identity.connection] {
            signer.check(&fleet, &identity.cluster_key)?;
        }
        Ok(identity)
    }

    async fn ensure_key(&self, purpose: KeyPurpose) -> Result<(), ClientError> {
        let private = tokens::generate().map_err(|_| ClientError::Key)?;
        shared::agree(&self.broker, &self.cluster_key, purpose, &private).await?;
        Ok(())
    }

    /// Registers an API client.
    pub async fn register(&self, name: &str) -> Result<NewClient, ClientError> {
        if name.is_empty() || name.len() > CLIENT_NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(ClientError::Name);
        }
        let id = ClientId::new(&uuid::Uuid::new_v4().to_string()).expect("a UUID is a valid id");
        let secret = Secret::random();
        let secret_hash = self.secrets.hash(secret.clone()).await.map_err(refused)?;
        let command = Command::RegisterClient { id: id.clone(), name: name.to_owned(), secret_hash };
        self.broker.propose(vec![command]).await?;
        Ok(NewClient { id, secret })
    }

    /// Deactivates an API client: its tokens are refused from now on.
    pub async fn deactivate(&self, id: &ClientId) -> Result<(), ClientError> {
        let outcomes = self.broker.propose(vec![Command::DeactivateClient { id: id.clone() }]).await?;
        match outcomes.first() {
            Some(Outcome::Refused(Refusal::UnknownClient)) => Err(ClientError::Unknown(id.clone())),
            _ => Ok(()),
        }
    }

    fn now(&self) -> Timestamp {
        self.broker.now()
    }
}

impl door::Identity for Identity {
    async fn token(&self, client: &ClientId, secret: &str) -> Result<Token, TokenError> {
        let found = self.broker.fleet().client(client).cloned();
        let hash = found.as_ref().map(|found| found.secret_hash.clone());
        let given = Secret::new(secret.to_owned());
        let matches = self.secrets.check(given, hash).await.map_err(refused)?;
        if !matches || !found.is_some_and(|found| found.active) {
            return Err(TokenError::InvalidClient);
        }
        let access_token = self
            .access
            .access_token(
                &self.broker.fleet(),
                &self.cluster_key,
                client.as_str(),
                self.now(),
                self.access_token_seconds,
            )
            .map_err(|error| not_serving(&error))?;
        Ok(Token { access_token, expires_in: Duration::from_secs(self.access_token_seconds) })
    }

    fn verify(&self, bearer: &str) -> Result<ClientId, VerifyError> {
        let fleet = self.broker.fleet();
        let claims =
            self.access.verify_access_token(&fleet, &self.cluster_key, bearer).map_err(|error| match error {
                Ok(TokenRefusal::Malformed) => VerifyError::Invalid,
                Ok(TokenRefusal::Expired) => VerifyError::Expired,
                Err(error) => VerifyError::Unavailable(not_serving(&error)),
            })?;
        let client = ClientId::new(&claims.client_id).map_err(|_| VerifyError::Invalid)?;
        match fleet.client(&client) {
            Some(found) if found.active => Ok(client),
            _ => Err(VerifyError::InactiveClient),
        }
    }

    fn connection_token(&self, session: &Session, user: &str) -> Result<String, Unavailable> {
        self.connection
            .connection_token(
                &self.broker.fleet(),
                &self.cluster_key,
                session,
                user,
                self.now(),
                self.connection_token_seconds,
            )
            .map_err(|error| not_serving(&error))
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
