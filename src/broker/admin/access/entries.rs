//! What operators say and are told, as JSON on the operators' socket.

use serde::{Deserialize, Serialize};

use crate::domain::client::{Grant, Scope, Scopes};
use crate::domain::{Millis, Owner};

/// The longest time that a replaced secret or key may be good: a month.
const KEEP_OLD_SECONDS_MAX: u64 = 31 * 24 * 3600;

/// A registered client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientEntry {
    /// Name.
    pub name: String,
    /// Id.
    pub id: String,
    /// Whether it may obtain tokens.
    pub active: bool,
    /// What it may do, with blanks between.
    pub scopes: String,
    /// The one whose sessions it may see and change, if not everybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Until when the secret before is good, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_secret_until: Option<u64>,
}

/// What a client may do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// Names of scopes; the usual ones when absent.
    pub scopes: Option<Vec<String>>,
    /// The one whose sessions it may see and change.
    pub owner: Option<String>,
    /// Those of everybody, where it was bound to an owner.
    #[serde(default)]
    pub any_owner: bool,
}

impl GrantRequest {
    /// What it may do: as `before` where nothing is said.
    pub(super) fn grant(self, before: Grant) -> Result<Grant, String> {
        let parse = |name: &String| {
            let known = || Scope::ALL.map(Scope::as_str).join(", ");
            Scope::parse(name).ok_or_else(|| format!("there is no scope {name:?}; there are {}", known()))
        };
        let scopes = match &self.scopes {
            None => before.scopes,
            Some(names) => names.iter().map(parse).collect::<Result<Scopes, _>>()?,
        };
        if scopes.is_empty() {
            return Err("a client needs a scope; to take all from it, unregister it".to_owned());
        }
        let owner = match self.owner {
            Some(owner) => Some(Owner::new(&owner).map_err(|error| error.to_string())?),
            None if self.any_owner => None,
            None => before.owner,
        };
        Ok(Grant { scopes, owner })
    }
}

/// Asks for a client to be registered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// Its name.
    pub name: String,
    /// What it may do.
    #[serde(default)]
    pub grant: GrantRequest,
}

/// A client that was registered, or got another secret; it is shown this once.
#[derive(Clone, Serialize, Deserialize)]
pub struct RegisterAnswer {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

/// Asks for another secret or key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// How long the present one is good, in seconds; as long as access tokens
    /// are when absent.
    pub keep_old_seconds: Option<u64>,
}

impl RenewRequest {
    pub(super) fn old_for(&self, usual: Millis) -> Result<Millis, String> {
        match self.keep_old_seconds {
            None => Ok(usual),
            Some(seconds) if seconds > KEEP_OLD_SECONDS_MAX => {
                Err(format!("the present one can be kept for at most {KEEP_OLD_SECONDS_MAX} seconds"))
            }
            Some(seconds) => Ok(Millis::from_secs(seconds)),
        }
    }
}

/// A software statement.
#[derive(Clone, Serialize, Deserialize)]
pub struct StatementEntry {
    /// What agents show.
    pub statement: String,
    /// When it was issued, in milliseconds since 1970.
    pub issued_at: u64,
    /// Whether agents can enrol with it.
    pub active: bool,
}

/// The text of a statement.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatementText {
    /// The text.
    pub statement: String,
}

/// An agent that enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentEntry {
    /// Name of its host.
    pub name: String,
    /// Id.
    pub id: String,
    /// Whether it may connect.
    pub active: bool,
    /// The server that it is.
    pub server: String,
}

/// An authorization server; what is absent is not demanded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthServerEntry {
    /// Where its keys are.
    pub url: String,
    /// Algorithms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<String>,
    /// `iss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// `aud`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// `typ`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_type: Option<String>,
    /// A scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Public keys in PEM, instead of those at the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_pem: Option<String>,
    /// Authorities of the URL's certificate in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
}

/// Asks for an authorization server to be registered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthServerRequest {
    /// Which.
    pub server: AuthServerEntry,
    /// Whether it may take the place of one with other demands.
    #[serde(default)]
    pub replace: bool,
}

/// Names an authorization server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthServerUrl {
    /// Where its keys are.
    pub url: String,
}

/// A server and its names, as in the mapping files of the original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct MappingEntry {
    /// `Ip`, `Id` or `Host.Aws.Ec2InstanceId`.
    pub server_id_type: String,
    /// What the server is named by.
    pub server_id: String,
    /// Its names.
    pub dns_names: NamesEntry,
}

/// Names of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct NamesEntry {
    /// Where gateways reach it.
    pub internal_dns_name: String,
    /// Where clients reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_dns_name: Option<String>,
}

/// Asks for names to be taken over.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapRequest {
    /// The names.
    pub mappings: Vec<MappingEntry>,
    /// Whether all others are dropped.
    #[serde(default)]
    pub replace: bool,
}
