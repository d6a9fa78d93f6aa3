//! Identifiers. Each is a type of its own, so that none is taken for another.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text cannot be an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("{what} must not be empty")]
    Empty {
        /// Which identifier.
        what: &'static str,
    },
    /// More bytes than are allowed.
    #[error("{what} must have at most {max} bytes, this one has {len}")]
    TooLong {
        /// Which identifier.
        what: &'static str,
        /// Allowed bytes.
        max: usize,
        /// Given bytes.
        len: usize,
    },
    /// Holds a control character (a line break, for example).
    #[error("{what} must not hold control characters")]
    Control {
        /// Which identifier.
        what: &'static str,
    },
}

/// The longest identifier, in bytes. Desktop servers accept no longer session ids.
pub const ID_BYTES_MAX: usize = 256;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text: 1 to [`ID_BYTES_MAX`] bytes, no control characters.
            pub fn new(text: &str) -> Result<Self, IdError> {
                if text.is_empty() {
                    return Err(IdError::Empty { what: $what });
                }
                if text.len() > ID_BYTES_MAX {
                    return Err(IdError::TooLong { what: $what, max: ID_BYTES_MAX, len: text.len() });
                }
                if text.chars().any(char::is_control) {
                    return Err(IdError::Control { what: $what });
                }
                Ok(Self(Arc::from(text)))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

text_id! {
    /// A server: one desktop host. Made once by its agent and kept by it, so
    /// that a new address or name does not make a new server.
    ServerId, "server id"
}
text_id! {
    /// One run of an agent: a random UUID that it draws at its start. Tells an
    /// agent that connects again from another one with the same server id.
    AgentInstance, "agent instance"
}
text_id! {
    /// A session. A UUID when the broker made it; whatever the host chose
    /// otherwise (`console`, for example).
    SessionId, "session id"
}
text_id! {
    /// A user of a desktop host, as the host names it (`DOMAIN\user` too).
    Owner, "owner"
}
text_id! {
    /// A registered client of the API.
    ClientId, "client id"
}
text_id! {
    /// A signing key.
    KeyId, "key id"
}
text_id! {
    /// What a client calls a request by, so that it can repeat it.
    IdempotencyKey, "idempotency key"
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one that follows.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

impl ServerId {
    /// Comes before every real id: where a range of ids begins.
    pub(super) fn least() -> Self {
        Self(Arc::from(""))
    }
}

impl SessionId {
    /// Comes before every real id: where a range of ids begins.
    pub(super) fn least() -> Self {
        Self(Arc::from(""))
    }
}

number_id! {
    /// Position of an entry in the replicated log.
    LogIndex
}
number_id! {
    /// Number of an agent's connection. Grows with each connection to the
    /// cluster, so that what an older connection says or was told has no effect.
    Epoch
}
number_id! {
    /// Number of an instruction to an agent; grows through the life of the cluster.
    InstructionId
}
number_id! {
    /// A replica of the broker.
    ReplicaId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_bounded_and_printable() {
        assert_eq!(ServerId::new(""), Err(IdError::Empty { what: "server id" }));
        assert_eq!(SessionId::new("a\nb"), Err(IdError::Control { what: "session id" }));
        let long = "x".repeat(ID_BYTES_MAX + 1);
        assert_eq!(
            Owner::new(&long),
            Err(IdError::TooLong { what: "owner", max: ID_BYTES_MAX, len: ID_BYTES_MAX + 1 })
        );
        assert_eq!(Owner::new("CORP\\müller").expect("valid").as_str(), "CORP\\müller");
    }

    #[test]
    fn decoding_checks_the_text() {
        assert!(serde_json::from_str::<SessionId>("\"\"").is_err());
        assert_eq!(serde_json::from_str::<SessionId>("\"console\"").expect("valid").as_str(), "console");
    }
}
