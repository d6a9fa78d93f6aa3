//! A checked expression and what it means.
//!
//! A term on a tag or property that the subject lacks is false, whatever its operator. On a present
//! one, `!=` is true exactly when `=` is false. Values in quotes are texts and compared by code
//! point; values without are numbers, and so is then the text of a tag that is written as one.

use std::cmp::Ordering;
use std::fmt::{self, Write};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::error::Error;
use super::number::{Decimal, Number, Scratch};
use super::property::Property;
use super::{TEXT_BYTES_MAX, parser};

/// A condition on a server, as a client wrote it and as it was checked.
///
/// `Display` prints the canonical text: single blanks, lower-case keywords, no parentheses that say
/// nothing. serde stores that text and checks it again on reading, so every value keeps the limits.
/// The order that is derived serves as a key only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expression {
    root: Node,
}

impl Expression {
    /// Checks `text`. White space alone is no requirement: `None`.
    ///
    /// # Errors
    /// What is wrong and where; see [`Error`].
    pub fn parse(text: &str) -> Result<Option<Self>, Error> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        within_limit(text.len())?;
        let expression = Self { root: parser::parse(text)? };
        // A dense text grows by the blanks of its canonical form, which must be readable again.
        let mut canonical = Length(0);
        write!(canonical, "{expression}").map_err(|fmt::Error| too_long(usize::MAX))?;
        within_limit(canonical.0)?;
        Ok(Some(expression))
    }

    /// Whether the subject meets the requirements. Allocates nothing; takes time linear in the text
    /// and the tags it reads.
    pub fn holds<S: Subject + ?Sized>(&self, subject: &S) -> bool {
        self.root.holds(subject)
    }

    /// Whether any term reads what changes with the load of a server.
    pub fn reads_load(&self) -> bool {
        self.terms().any(|term| matches!(term.key(), Key::Property(property) if property.is_load()))
    }

    /// Texts that tags and text properties must be equal to for the whole to hold.
    pub fn required_equalities(&self) -> impl Iterator<Item = (&Key, &str)> {
        let members = match &self.root {
            Node::All(nodes) => nodes.as_slice(),
            node => std::slice::from_ref(node),
        };
        members.iter().filter_map(|node| match node {
            Node::Term(Term { key, test: Test::Compare(Comparison::Equal, Literal::Text(text)) }) => {
                Some((key, &**text))
            }
            _ => None,
        })
    }

    /// The terms in the order of the text.
    pub fn terms(&self) -> Terms<'_> {
        Terms { open: vec![&self.root] }
    }
}

fn too_long(bytes: usize) -> Error {
    Error::TooLong { bytes, limit: TEXT_BYTES_MAX }
}

fn within_limit(bytes: usize) -> Result<(), Error> {
    if bytes > TEXT_BYTES_MAX { Err(too_long(bytes)) } else { Ok(()) }
}

/// Counts the bytes that are written to it.
struct Length(usize);

impl Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(f)
    }
}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .map_err(de::Error::custom)?
            .ok_or_else(|| de::Error::custom("blank requirements; leave the field out instead"))
    }
}

/// The terms of an [`Expression`], in the order of its text.
#[derive(Debug, Clone)]
pub struct Terms<'a> {
    /// What is still to be visited, the next on top.
    open: Vec<&'a Node>,
}

impl<'a> Iterator for Terms<'a> {
    type Item = &'a Term;

    fn next(&mut self) -> Option<&'a Term> {
        loop {
            match self.open.pop()? {
                Node::Term(term) => return Some(term),
                Node::Not(node) => self.open.push(node),
                Node::All(nodes) | Node::Any(nodes) => self.open.extend(nodes.iter().rev()),
            }
        }
    }
}

/// The tree. Lists hold at least two nodes and none of their own kind, so equal meaning by
/// associativity is equal form. Its depth is bounded by that of the parentheses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Node {
    Term(Term),
    Not(Box<Node>),
    All(Vec<Node>),
    Any(Vec<Node>),
}

impl Node {
    fn holds<S: Subject + ?Sized>(&self, subject: &S) -> bool {
        match self {
            Self::Term(term) => term.holds(subject),
            Self::Not(node) => !node.holds(subject),
            Self::All(nodes) => nodes.iter().all(|node| node.holds(subject)),
            Self::Any(nodes) => nodes.iter().any(|node| node.holds(subject)),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Term(term) => term.fmt(f),
            Self::Not(node) => match **node {
                Self::Term(_) => write!(f, "not {node}"),
                _ => write!(f, "not ({node})"),
            },
            Self::All(nodes) => join(f, " and ", nodes, |node| matches!(node, Self::Any(_))),
            Self::Any(nodes) => join(f, " or ", nodes, |_| false),
        }
    }
}

fn join(
    f: &mut fmt::Formatter<'_>,
    connective: &str,
    nodes: &[Node],
    parenthesised: impl Fn(&Node) -> bool,
) -> fmt::Result {
    for (index, node) in nodes.iter().enumerate() {
        if index > 0 {
            f.write_str(connective)?;
        }
        if parenthesised(node) {
            write!(f, "({node})")?;
        } else {
            write!(f, "{node}")?;
        }
    }
    Ok(())
}

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

    /// The value of a property; `None` if the server did not report it.
    fn property(&self, property: Property) -> Option<Value<'_>>;
}
