//! One condition: a key, an operator and a value, and what it means.
//!
//! A term on a tag or property that the subject lacks is false, whatever its operator. On a present
//! one, `!=` is true exactly when `=` is false. Values in quotes are texts and compared by code
//! point; values without are numbers, and so is then the text of a tag that is written as one.

use std::cmp::Ordering;
use std::fmt::{self, Write};

use super::number::{Decimal, Number, Scratch};
use super::property::Property;

/// One condition: a key and what is asked of its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    key: Key,
    test: Test,
}

impl Term {
    /// Puts a checked key and a checked test together.
    pub(super) fn new(key: Key, test: Test) -> Self {
        Self { key, test }
    }

    /// What the term looks at.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// What it asks.
    pub fn test(&self) -> &Test {
        &self.test
    }

    /// The text that the value must be for the term to hold, if there is one.
    ///
    /// A quoted value on a number property is none: it compares as a number, which has many spellings.
    pub fn required_text(&self) -> Option<&str> {
        match (&self.key, &self.test) {
            (Key::Property(property), _) if !property.is_text() => None,
            (_, Test::Compare(Comparison::Equal, Literal::Text(text))) => Some(text),
            _ => None,
        }
    }

    /// Whether the subject meets this one condition.
    pub fn holds<S: Subject + ?Sized>(&self, subject: &S) -> bool {
        let value = match &self.key {
            Key::Tag(name) => subject.tag(name).map(Value::Text),
            Key::Property(property) => subject.property(*property),
        };
        value.is_some_and(|value| self.test.holds(value))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.test)
    }
}

/// What a term looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The tag of this name, without `tag:`; built-in tags begin with `dcv:`.
    Tag(Box<str>),
    /// A property of the server.
    Property(Property),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(name) => write!(f, "tag:{name}"),
            Self::Property(property) => write!(f, "server:{property}"),
        }
    }
}

/// What a term asks of a present value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Test {
    /// The value compares so with the literal.
    Compare(Comparison, Literal),
    /// The value is a text that contains this one. A number contains nothing.
    Contains(Box<str>),
}

impl Test {
    fn holds(&self, value: Value<'_>) -> bool {
        match self {
            Self::Contains(part) => match value {
                Value::Text(text) => text.contains(&**part),
                Value::Integer(_) | Value::Real(_) => false,
            },
            Self::Compare(comparison, literal) => match value {
                // Not a number: nothing is known, as if the property were absent.
                Value::Real(real) if !real.is_finite() => false,
                _ => match order(value, literal) {
                    Some(ordering) => comparison.accepts(ordering),
                    // A text and a number: different, and neither is greater.
                    None => *comparison == Comparison::NotEqual,
                },
            },
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compare(comparison, Literal::Text(text)) => {
                write!(f, "{comparison} ")?;
                quote(f, text)
            }
            Self::Compare(comparison, Literal::Number(number)) => {
                write!(f, "{comparison} {number}")
            }
            Self::Contains(part) => {
                f.write_str(":= ")?;
                quote(f, part)
            }
        }
    }
}

fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('\'')?;
    for (index, piece) in text.split('\'').enumerate() {
        if index > 0 {
            f.write_str("''")?;
        }
        f.write_str(piece)?;
    }
    f.write_char('\'')
}

/// The order of value and literal; `None` if only one of them is a number.
fn order(value: Value<'_>, literal: &Literal) -> Option<Ordering> {
    let mut scratch = Scratch::default();
    let actual = match (value, literal) {
        // UTF-8 bytes are in the order of code points.
        (Value::Text(actual), Literal::Text(wanted)) => return Some(actual.cmp(wanted)),
        (Value::Text(actual), Literal::Number(_)) => Decimal::parse(actual)?,
        (Value::Integer(actual), _) => scratch.integer(actual)?,
        (Value::Real(actual), _) => scratch.real(actual)?,
    };
    let wanted = match literal {
        Literal::Text(wanted) => Decimal::parse(wanted)?,
        Literal::Number(wanted) => wanted.as_decimal(),
    };
    Some(actual.cmp(&wanted))
}

/// The operators that order two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
}

impl Comparison {
    /// The operator as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
        }
    }

    fn accepts(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The value in a term.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Literal {
    /// Written in quotes; here without them.
    Text(Box<str>),
    /// Written without quotes.
    Number(Number),
}

/// The value of a subject's property.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// A text, such as the host's name.
    Text(&'a str),
    /// A count or a size in bytes; compared exactly.
    Integer(u64),
    /// A measure such as a load average. It stands for its shortest decimal, so that 0.1 is equal to
    /// `0.1`; infinities and NaN meet no condition.
    Real(f64),
}

/// What an expression is asked about: a server, as far as placement looks at it.
pub trait Subject {
    /// The value of the tag of this name (without `tag:`, with `dcv:`); `None` if there is no such tag.
    fn tag(&self, key: &str) -> Option<&str>;

    /// The value of a property; `None` if the server did not report it. A text if the property
    /// [is one](Property::is_text), else a number.
    fn property(&self, property: Property) -> Option<Value<'_>>;
}
