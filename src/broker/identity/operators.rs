//! What operators do with clients, keys and software statements. Each is one
//! command in the log, recorded in the audit.

use super::keyring::TokenAlgorithm;
use super::{CLIENT_NAME_BYTES_MAX, ClientError, Command, Identity, Millis, Refusal, refused, statements};
use crate::broker::cluster::shared::context;
use crate::broker::deeds;
use crate::domain::client::{Grant, SecretHash};
use crate::domain::ids::StatementId;
use crate::domain::key::KeyPurpose;
use crate::domain::{ClientId, KeyId};
use crate::secret::Secret;

/// A client that was just registered. Its secret is shown this once.
#[derive(Debug)]
pub struct NewClient {
    /// Its id.
    pub id: ClientId,
    /// Its secret.
    pub secret: Secret,
}

/// A client got another secret. It is shown this once.
#[derive(Debug)]
pub struct SecretRotated {
    /// The new secret.
    pub secret: Secret,
}

/// Access tokens are signed with another key.
#[derive(Debug)]
pub struct Renewed {
    /// The new key.
    pub key: KeyId,
}

impl Identity {
    /// Registers an API client.
    pub async fn register(&self, name: &str, grant: Grant) -> Result<NewClient, ClientError> {
        if name.is_empty() || name.len() > CLIENT_NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(ClientError::Name);
        }
        let id = ClientId::new(&new_id()).expect("a UUID is a valid id");
        let (secret, hash) = self.new_secret().await?;
        let target = match &grant.owner {
            Some(owner) => format!("{id} {name} ({}, of {owner})", grant.scopes),
            None => format!("{id} {name} ({})", grant.scopes),
        };
        let command = Command::RegisterClient { id: id.clone(), name: name.to_owned(), secret: hash, grant };
        self.carry_out("register-api-client", target, command).await?;
        Ok(NewClient { id, secret })
    }

    /// Gives a client another secret; the present one is good for `old_for`
    /// longer.
    pub async fn rotate_secret(&self, id: &ClientId, old_for: Millis) -> Result<SecretRotated, ClientError> {
        let (secret, hash) = self.new_secret().await?;
        let command = Command::RotateSecret { id: id.clone(), secret: hash, old_for };
        self.carry_out("rotate-api-client", id.to_string(), command).await.map_err(of_client(id))?;
        Ok(SecretRotated { secret })
    }

    /// Changes what a client may do, from now on and with the tokens that it has.
    pub async fn grant(&self, id: &ClientId, grant: Grant) -> Result<(), ClientError> {
        let target = match &grant.owner {
            Some(owner) => format!("{id} ({}, of {owner})", grant.scopes),
            None => format!("{id} ({})", grant.scopes),
        };
        let command = Command::GrantClient { id: id.clone(), grant };
        self.carry_out("grant-api-client", target, command).await.map_err(of_client(id))
    }

    /// Deactivates an API client: its tokens are refused from now on.
    pub async fn deactivate(&self, id: &ClientId) -> Result<(), ClientError> {
        let command = Command::DeactivateClient { id: id.clone() };
        self.carry_out("unregister-api-client", id.to_string(), command).await.map_err(of_client(id))
    }

    /// Signs access tokens with a new key; those that the present key signed
    /// are good for `old_for` longer.
    pub async fn renew_access_key(&self, old_for: Millis) -> Result<Renewed, ClientError> {
        self.renew_key(KeyPurpose::AccessToken, self.settings.algorithm, old_for).await
    }

    /// The same for connection tokens.
    pub async fn renew_connection_key(&self, old_for: Millis) -> Result<Renewed, ClientError> {
        self.renew_key(KeyPurpose::ConnectionToken, TokenAlgorithm::Es256, old_for).await
    }

    async fn renew_key(
        &self,
        purpose: KeyPurpose,
        algorithm: TokenAlgorithm,
        old_for: Millis,
    ) -> Result<Renewed, ClientError> {
        let fleet = self.broker.fleet();
        let replaces = fleet.key(purpose).ok_or(super::TokenKeyError::NoKey)?.id.clone();
        let id = KeyId::new(&new_id()).expect("a UUID is a valid id");
        let sealed = self.cluster_key.seal(&context(&id, purpose), &algorithm.generate()?)?;
        let target = format!("{} {id}", purpose.as_str());
        let command = Command::RotateKey { id: id.clone(), purpose, sealed, old_for, replaces };
        self.carry_out("renew-auth-server-api-key", target, command).await?;
        Ok(Renewed { key: id })
    }

    /// Lets agents enrol with a new statement.
    pub async fn issue_statement(&self) -> Result<Secret, ClientError> {
        let id = StatementId::new(&new_id()).expect("a UUID is a valid id");
        let command = Command::IssueStatement { id: id.clone() };
        self.carry_out("generate-software-statement", id.to_string(), command).await?;
        let fleet = self.broker.fleet();
        let statement = fleet.statement(&id).ok_or(ClientError::Statement)?;
        Ok(statements::text(statement, &self.cluster_key))
    }

    /// The text of a statement that is active: the newest, or a new one when
    /// there is none.
    pub async fn active_statement(&self) -> Result<Secret, ClientError> {
        let active = self.statements().into_iter().filter(|(statement, _)| statement.active);
        match active.max_by_key(|(statement, _)| statement.issued_at) {
            Some((_, text)) => Ok(text),
            None => self.issue_statement().await,
        }
    }

    /// All statements and their texts.
    pub fn statements(&self) -> Vec<(crate::domain::client::SoftwareStatement, Secret)> {
        let fleet = self.broker.fleet();
        let with_text = |statement: &crate::domain::client::SoftwareStatement| {
            (statement.clone(), statements::text(statement, &self.cluster_key))
        };
        fleet.statements().map(with_text).collect()
    }

    /// Lets no further agents enrol with a statement.
    pub async fn deactivate_statement(&self, text: &str) -> Result<(), ClientError> {
        let id = statements::read(text, &self.cluster_key).ok_or(ClientError::Statement)?;
        let command = Command::DeactivateStatement { id: id.clone() };
        self.carry_out("deactivate-software-statement", id.to_string(), command).await
    }

    /// Lets an agent in no more.
    pub async fn unregister_agent(&self, id: &ClientId) -> Result<(), ClientError> {
        let command = Command::UnregisterAgent { id: id.clone() };
        self.carry_out("unregister-agent-client", id.to_string(), command).await
    }

    async fn new_secret(&self) -> Result<(Secret, SecretHash), ClientError> {
        let secret = Secret::random();
        let hash = self.secrets.hash(secret.clone()).await.map_err(refused)?;
        Ok((secret, SecretHash(hash)))
    }

    /// Has the log do what an operator wants.
    pub async fn carry_out(&self, action: &str, target: String, command: Command) -> Result<(), ClientError> {
        let deed = deeds::of_operator(&self.broker, action, target);
        Ok(deeds::carry_out(&self.broker, deed, command).await?)
    }
}

fn of_client(id: &ClientId) -> impl FnOnce(ClientError) -> ClientError {
    let id = id.clone();
    move |error| match error {
        ClientError::Refused(Refusal::UnknownClient) => ClientError::Unknown(id),
        error => error,
    }
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
