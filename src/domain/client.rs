//! Who may call the API, what each may do, and which agents are enrolled.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::{ClientId, Owner, ServerId, StatementId};
use super::time::Timestamp;

/// A registered client of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiClient {
    /// Id.
    pub id: ClientId,
    /// Name for people.
    pub name: String,
    /// Its secret, as a hash.
    pub secret: SecretHash,
    /// The secret before, which is good for a while after a rotation.
    pub old_secret: Option<OldSecret>,
    /// Whether it may obtain tokens and use those that it has.
    pub active: bool,
    /// What it may do.
    pub grant: Grant,
    /// When it was registered.
    pub registered_at: Timestamp,
}

impl ApiClient {
    /// The hashes of the secrets that are good at a time, the newest first.
    pub fn secrets(&self, now: Timestamp) -> impl Iterator<Item = &SecretHash> {
        let old = self.old_secret.iter().filter(move |old| old.until > now).map(|old| &old.hash);
        std::iter::once(&self.secret).chain(old)
    }
}

/// Argon2id hash of a secret, in PHC text form. The secret itself is shown
/// once and kept nowhere. `Debug` does not show it: it is not secret, but
/// whoever has it can try secrets at leisure.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(pub String);

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hash]")
    }
}

/// A secret that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldSecret {
    /// Its hash.
    pub hash: SecretHash,
    /// Until when it is good.
    pub until: Timestamp,
}

/// One thing that a client may be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Scope {
    /// See sessions, servers and what happened.
    Read = 1,
    /// Create, delete and share sessions, look at them and connect to them.
    Sessions = 2,
    /// Open, close and drain servers.
    Servers = 4,
    /// See what operators see.
    Admin = 8,
}

impl Scope {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Read, Self::Sessions, Self::Servers, Self::Admin];

    /// Its name, in tokens and on command lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Sessions => "sessions",
            Self::Servers => "servers",
            Self::Admin => "admin",
        }
    }

    /// The scope with a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }
}

/// A set of [`Scope`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scopes(u8);

impl Scopes {
    /// None.
    pub const NONE: Self = Self(0);
    /// What a client may do when nothing is said: everything that the original
    /// has, which is all but [`Scope::Admin`].
    pub const USUAL: Self = Self(Scope::Read as u8 | Scope::Sessions as u8 | Scope::Servers as u8);

    /// With one more.
    #[must_use]
    pub const fn with(self, scope: Scope) -> Self {
        Self(self.0 | scope as u8)
    }

    /// Those in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether one is among them.
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & scope as u8 != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        Scope::ALL.into_iter().all(|scope| !self.has(scope))
    }

    /// Those that are in it.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        scopes.into_iter().fold(Self::NONE, Self::with)
    }
}

/// The names with blanks between them, as in a token's `scope`.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, scope) in self.iter().enumerate() {
            f.write_str(if place > 0 { " " } else { "" })?;
            f.write_str(scope.as_str())?;
        }
        Ok(())
    }
}

/// What a client may do, and to whose sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// What.
    pub scopes: Scopes,
    /// The one whose sessions it may see and change; `None` for everybody's.
    pub owner: Option<Owner>,
}

impl Default for Grant {
    fn default() -> Self {
        Self { scopes: Scopes::USUAL, owner: None }
    }
}

/// Software statements (RFC 7591 section 2.3) that are kept; older ones have
/// to be deactivated before there is room.
pub const STATEMENTS_MAX: usize = 256;

/// Lets agents enrol. What an agent shows is made of this and of a key that is
/// not in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoftwareStatement {
    /// Id.
    pub id: StatementId,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// Whether agents can enrol with it.
    pub active: bool,
}

/// An agent that enrolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentClient {
    /// Id, which its certificates name.
    pub id: ClientId,
    /// Name of its host, for people.
    pub name: String,
    /// The server that it is: its certificates open no other one's connection.
    pub server: ServerId,
    /// The statement that it came with.
    pub statement: StatementId,
    /// Whether it may connect.
    pub active: bool,
    /// When it enrolled.
    pub enrolled_at: Timestamp,
}

/// Agents that are kept, those that may no longer connect included. These, and
/// agents whose server was forgotten, make room for others when there are as many.
pub const AGENT_CLIENTS_MAX: usize = 200_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_told_as_in_tokens() {
        assert_eq!(Scopes::USUAL.to_string(), "read sessions servers");
        assert_eq!(Scopes::NONE.to_string(), "");
        let some: Scopes = [Scope::Admin, Scope::Read].into_iter().collect();
        assert_eq!(some.to_string(), "read admin");
        assert_eq!(some.and(Scopes::USUAL).to_string(), "read");
        assert!(some.has(Scope::Admin) && !some.has(Scope::Servers));
        for scope in Scope::ALL {
            assert_eq!(Scope::parse(scope.as_str()), Some(scope));
        }
        assert_eq!(Scope::parse("Read"), None);
    }

    #[test]
    fn an_old_secret_is_good_until_its_time_is_up() {
        let hash = |text: &str| SecretHash(text.to_owned());
        let client = ApiClient {
            id: ClientId::new("c").expect("valid"),
            name: "portal".to_owned(),
            secret: hash("new"),
            old_secret: Some(OldSecret { hash: hash("old"), until: Timestamp(10) }),
            active: true,
            grant: Grant::default(),
            registered_at: Timestamp(1),
        };
        assert_eq!(client.secrets(Timestamp(9)).collect::<Vec<_>>(), [&hash("new"), &hash("old")]);
        assert_eq!(client.secrets(Timestamp(10)).collect::<Vec<_>>(), [&hash("new")]);
    }
}
