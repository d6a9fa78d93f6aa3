//! Why a text is not an expression, and where.

use std::fmt;

use super::property::Property;

/// Most characters of the client's own text that an error repeats.
const EXCERPT_CHARACTERS_MAX: usize = 40;

/// A place in the text that was parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Bytes before the place; always a character boundary, at most the length of the text.
    pub byte: usize,
    /// Number of the character that stands there, counted from 1, as a person counts.
    pub character: usize,
}

impl Position {
    /// The place `byte` bytes into `text`; `byte` is a character boundary.
    pub(super) fn new(text: &str, byte: usize) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        Self { byte: before.len(), character: before.chars().count() + 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "character {}", self.character)
    }
}

/// A text that is no expression. Every message says what is wrong, where, and what to write instead;
/// all are safe to show to the client that sent the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is longer than [`TEXT_BYTES_MAX`](super::TEXT_BYTES_MAX).
    #[error("Requirements too long: {bytes} bytes; at most {limit} are allowed")]
    TooLong {
        /// Bytes of the text.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },

    /// Parentheses nest deeper than [`DEPTH_MAX`](super::DEPTH_MAX).
    #[error("Parentheses nested deeper than {limit} at {at}; write the expression flatter")]
    TooDeep {
        /// The parenthesis that is one too many.
        at: Position,
        /// The limit.
        limit: usize,
    },

    /// A character that no part of the language starts with, or that cannot follow here.
    #[error("Unexpected character {found:?} at {at}; names hold ASCII letters, digits and _, texts stand in '...'")]
    UnexpectedCharacter {
        /// The character's place.
        at: Position,
        /// The character.
        found: char,
    },

    /// A bare word: a key without its prefix, or a text without quotes.
    #[error("Unexpected word {word:?} at {at}; write keys as tag:NAME or server:PROPERTY and texts as '...'")]
    UnexpectedWord {
        /// Where the word begins.
        at: Position,
        /// The word, cut when it is long.
        word: String,
    },

    /// A text whose closing quote is missing.
    #[error("Text that begins at {at} has no closing quote; a quote inside a text is written twice")]
    UnterminatedText {
        /// The opening quote.
        at: Position,
    },

    /// `tag:` without a name right behind it.
    #[error(
        "Invalid tag key at {at}; tag: is followed at once by a letter or _, then letters, digits or _, or by dcv: and a name"
    )]
    InvalidTagKey {
        /// Where `tag:` begins.
        at: Position,
    },

    /// `server:` without a property right behind it.
    #[error("Invalid server key at {at}; server: is followed at once by a property such as Host.Os.Family")]
    InvalidServerKey {
        /// Where `server:` begins.
        at: Position,
    },

    /// A server property that is not among [`Property::ALL`]; case matters.
    #[error("Server property server:{name} not found, at {at}{}", hint(*.similar))]
    UnknownProperty {
        /// Where `server:` begins.
        at: Position,
        /// The property, cut when it is long.
        name: String,
        /// The property that differs in case only.
        similar: Option<Property>,
    },

    /// `:=` between a tag and a number.
    #[error("Unexpected CONTAINS operator at {at}; := looks for a text, write the value as '...'")]
    UnexpectedContains {
        /// The operator.
        at: Position,
    },

    /// A number outside the range of a double-precision number.
    #[error("Number out of range at {at}; its magnitude must lie between 1e-324 and 1e309 or be zero")]
    NumberOutOfRange {
        /// Where the number begins.
        at: Position,
    },

    /// Something of the language in a place where it cannot stand.
    #[error("Unexpected {found} at {at}; expected {expected}")]
    UnexpectedToken {
        /// Where it begins.
        at: Position,
        /// What stands there.
        found: &'static str,
        /// What could stand there.
        expected: &'static str,
    },

    /// The text ends too early.
    #[error("Unexpected end at {at}; expected {expected}")]
    UnexpectedEnd {
        /// Behind the last character.
        at: Position,
        /// What could stand there.
        expected: &'static str,
    },
}

impl Error {
    /// Where the text went wrong; `None` when it is wrong as a whole.
    pub fn position(&self) -> Option<Position> {
        match self {
            Self::TooLong { .. } => None,
            Self::TooDeep { at, .. }
            | Self::UnexpectedCharacter { at, .. }
            | Self::UnexpectedWord { at, .. }
            | Self::UnterminatedText { at }
            | Self::InvalidTagKey { at }
            | Self::InvalidServerKey { at }
            | Self::UnknownProperty { at, .. }
            | Self::UnexpectedContains { at }
            | Self::NumberOutOfRange { at }
            | Self::UnexpectedToken { at, .. }
            | Self::UnexpectedEnd { at, .. } => Some(*at),
        }
    }
}

fn hint(similar: Option<Property>) -> String {
    similar.map_or_else(String::new, |property| format!("; did you mean server:{property}?"))
}

/// The beginning of what the client wrote, short enough for a message.
pub(super) fn excerpt(text: &str) -> String {
    let mut characters = text.chars();
    let mut cut: String = characters.by_ref().take(EXCERPT_CHARACTERS_MAX).collect();
    if characters.next().is_some() {
        cut.push('…');
    }
    cut
}
