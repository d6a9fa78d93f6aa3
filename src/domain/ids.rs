//! Identifiers. Each is a type of its own, so that none is taken for another.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
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
        #[derive(Clone, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);
        text_id!(@text $name, $what, |text| Self(Arc::from(text)), 0);

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                // Often a text meets itself.
                if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
            }
        }
    };
    // One that much is looked up by: it holds its rank beside the text, and so
    // finds its place in an ordered map without following each key's pointer.
    ($(#[$doc:meta])* $name:ident, $what:literal, ranked) => {
        $(#[$doc])*
        #[derive(Clone, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name {
            rank: u64,
            text: Arc<str>,
        }
        text_id!(@text $name, $what, |text| Self { rank: uuid_rank(text), text: Arc::from(text) }, text);

        impl Ord for $name {
            /// The order of the texts.
            fn cmp(&self, other: &Self) -> Ordering {
                match self.rank.cmp(&other.rank) {
                    Ordering::Equal if Arc::ptr_eq(&self.text, &other.text) => Ordering::Equal,
                    Ordering::Equal => self.text.cmp(&other.text),
                    order => order,
                }
            }
        }
    };
    (@text $name:ident, $what:literal, |$text:ident| $make:expr, $field:tt) => {
        impl $name {
            /// Checks the text: 1 to [`ID_BYTES_MAX`] bytes, no control characters.
            pub fn new($text: &str) -> Result<Self, IdError> {
                if $text.is_empty() {
                    return Err(IdError::Empty { what: $what });
                }
                if $text.len() > ID_BYTES_MAX {
                    return Err(IdError::TooLong { what: $what, max: ID_BYTES_MAX, len: $text.len() });
                }
                if $text.chars().any(char::is_control) {
                    return Err(IdError::Control { what: $what });
                }
                Ok($make)
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.$field
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.cmp(other) == Ordering::Equal
            }
        }

        impl Eq for $name {}

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.as_str().hash(state);
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
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.as_str())
            }
        }
    };
}

/// The first 16 hexadecimal digits of a UUID as a number. For other texts a
/// number that does not contradict the order: of two texts, the one that comes
/// first never has the greater rank.
fn uuid_rank(text: &str) -> u64 {
    let mut rank = 0_u64;
    let mut digits = 0;
    let mut bytes = text.bytes();
    while digits < 16 {
        let byte = bytes.next();
        let hyphen_due = digits == 8 || digits == 12;
        let left = 4 * (16 - digits);
        let least = rank.checked_shl(left).unwrap_or(0);
        let greatest = least | u64::MAX.checked_shr(64 - left).unwrap_or(u64::MAX);
        let digit = match byte {
            Some(b'-') if hyphen_due => match bytes.next() {
                Some(byte) => byte,
                None => return least,
            },
            Some(byte) if hyphen_due => return if byte < b'-' { least } else { greatest },
            Some(byte) => byte,
            None => return least,
        };
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            0..b'0' => return least,
            // Between the digits and the letters: after all that go on with 9.
            b':'..b'a' => return least | ((0xA << (left - 4)) - 1),
            _ => return greatest,
        };
        rank = rank << 4 | u64::from(value);
        digits += 1;
    }
    rank
}

text_id! {
    /// A server: one desktop host. Made once by its agent and kept by it, so
    /// that a new address or name does not make a new server.
    ServerId, "server id", ranked
}
text_id! {
    /// One run of an agent: a random UUID that it draws at its start. Tells an
    /// agent that connects again from another one with the same server id.
    AgentInstance, "agent instance"
}
text_id! {
    /// A session. A UUID when the broker made it; whatever the host chose
    /// otherwise (`console`, for example).
    SessionId, "session id", ranked
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
text_id! {
    /// The data folder of a replica: a random UUID, made with the folder. Tells
    /// a replica that lost its folder from the one that it was.
    FolderId, "folder id"
}
text_id! {
    /// Lets agents enrol.
    StatementId, "software statement id"
}
text_id! {
    /// A token that opens a session.
    TokenId, "token id"
}
text_id! {
    /// Lets one new replica join.
    InvitationId, "invitation id"
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
        Self { rank: 0, text: Arc::from("") }
    }
}

impl SessionId {
    /// Comes before every real id: where a range of ids begins.
    pub(super) fn least() -> Self {
        Self { rank: 0, text: Arc::from("") }
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
    use proptest::prelude::*;

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

    proptest! {
        /// Pages, snapshots and every replica rely on it.
        #[test]
        fn ids_are_in_the_order_of_their_texts(
            a in "[0-9a-g/:@-]{1,20}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}|.{1,20}",
            tail in "[0-9a-g/:@A-]{0,20}", cut in any::<prop::sample::Index>(),
        ) {
            // Two texts with a common beginning.
            let cut = cut.index(a.len() + 1);
            let b = format!("{}{tail}", &a[..a.floor_char_boundary(cut)]);
            if let (Ok(one), Ok(other)) = (SessionId::new(&a), SessionId::new(&b)) {
                prop_assert_eq!(one.cmp(&other), a.cmp(&b), "{} {}", a, b);
                prop_assert_eq!(one == other, a == b);
            }
        }
    }

    #[test]
    fn decoding_checks_the_text() {
        assert!(serde_json::from_str::<SessionId>("\"\"").is_err());
        assert_eq!(serde_json::from_str::<SessionId>("\"console\"").expect("valid").as_str(), "console");
    }
}
