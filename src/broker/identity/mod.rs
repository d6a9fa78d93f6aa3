//! Who calls: API clients, their secrets and their tokens.
//!
//! Clients and signing keys are in the replicated log, so they survive
//! restarts and hold on every replica. The log never sees a secret: it holds
//! Argon2id hashes of client secrets, and private keys sealed with the
//! cluster's key, which is a file beside it.

pub mod seal;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::seal::ClusterKey;
pub use self::tokens::TokenKeyError;
use self::tokens::{Signer, TokenRefusal};
use super::api::door::{self, Token, TokenError, Unavailable, UnavailableReason, VerifyError};
use super::core::Broker;
use crate::domain::client::KeyPurpose;
use crate::domain::{ClientId, Command, KeyId, Outcome, Refusal, Session, Timestamp};
use crate::secret::Secret;

/// Secrets that are checked at the same time. Each check takes memory and time
/// by intention; more at once would only push each other aside.
const CHECKS_MAX: usize = 2;

/// Checks that may wait for their turn; more are told to come back.
const CHECKS_WAITING_MAX: usize = 64;

/// Cost of a check: 7 MiB and five passes, which OWASP's password storage cheat
/// sheet holds for as strong as 19 MiB and two. The secrets are 256 random bits
/// anyway, and the allocator does not give the memory back.
const CHECK_MEMORY_KIB: u32 = 7 * 1024;
const CHECK_PASSES: u32 = 5;
const CHECK_LANES: u32 = 1;

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
    checks: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Checked in place of the hash of a client that does not exist, so that
    /// the time of an answer does not tell which ids do.
    decoy_hash: String,
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
    /// Hashing failed.
    #[error("cannot hash the secret")]
    Hash,
}

impl Identity {
    /// Makes sure that the log holds a key for each purpose.
    pub async fn start(
        broker: Arc<Broker>,
        cluster_key: ClusterKey,
        access_token_seconds: u64,
        connection_token_minutes: u64,
    ) -> Result<Self, ClientError> {
        let decoy_hash = hash_secret(Secret::random()).await?;
        let identity = Self {
            broker,
            cluster_key,
            access: Signer::new(KeyPurpose::AccessToken),
            connection: Signer::new(KeyPurpose::ConnectionToken),
            access_token_seconds,
            connection_token_seconds: connection_token_minutes.saturating_mul(60),
            checks: Arc::new(Semaphore::new(CHECKS_MAX)),
            waiting: Arc::new(Semaphore::new(CHECKS_WAITING_MAX)),
            decoy_hash,
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
        if self.broker.fleet().key(purpose).is_some() {
            return Ok(());
        }
        let id = new_key_id();
        let private = tokens::generate().map_err(|_| ClientError::Hash)?;
        let sealed = self.cluster_key.seal(&tokens::context(&id, purpose), &private).map_err(|_| ClientError::Hash)?;
        self.broker.propose(vec![Command::InstallKey { id, purpose, sealed }]).await?;
        Ok(())
    }

    /// Registers an API client.
    pub async fn register(&self, name: &str) -> Result<NewClient, ClientError> {
        if name.is_empty() || name.len() > CLIENT_NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(ClientError::Name);
        }
        let id = ClientId::new(&uuid::Uuid::new_v4().to_string()).expect("a UUID is a valid id");
        let secret = Secret::random();
        let secret_hash = hash_secret(secret.clone()).await?;
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
        let hash = found.as_ref().map_or_else(|| self.decoy_hash.clone(), |found| found.secret_hash.clone());
        let busy = || Unavailable { reason: UnavailableReason::Busy, retry_after: Duration::from_secs(1) };
        let place = Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| busy())?;
        let turn = Arc::clone(&self.checks).acquire_owned().await.map_err(|_| busy())?;
        drop(place);
        let matches = check_secret(Secret::new(secret.to_owned()), hash, turn).await;
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

fn new_key_id() -> KeyId {
    KeyId::new(&uuid::Uuid::new_v4().to_string()).expect("a UUID is a valid id")
}

/// Argon2id of a secret, in PHC text form.
async fn hash_secret(secret: Secret) -> Result<String, ClientError> {
    tokio::task::spawn_blocking(move || {
        let mut salt = [0; 16];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| ClientError::Hash)?;
        let params = Params::new(CHECK_MEMORY_KIB, CHECK_PASSES, CHECK_LANES, None).map_err(|_| ClientError::Hash)?;
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_with_salt(secret.expose().as_bytes(), &salt)
            .map(|hash| hash.to_string())
            .map_err(|_| ClientError::Hash)
    })
    .await
    .map_err(|_| ClientError::Hash)?
}

/// The turn ends with the check itself, also when whoever asked has hung up.
async fn check_secret(secret: Secret, hash: String, turn: OwnedSemaphorePermit) -> bool {
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        // The parameters are those that the hash names.
        Argon2::default().verify_password(secret.expose().as_bytes(), hash.as_str()).is_ok()
    })
    .await
    .unwrap_or(false)
}
