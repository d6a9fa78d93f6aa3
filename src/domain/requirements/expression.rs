//! A checked expression: terms and how they are put together. What a term means stands in `term`.

use std::{fmt, slice};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::error::Error;
use super::steps;
use super::term::{Key, Subject, Term};
use super::{CANONICAL_BYTES_MAX, TEXT_BYTES_MAX, parser};

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
        // First, so that a long text is refused without being looked at.
        within(TEXT_BYTES_MAX, text)?;
        let trimmed = text.trim();
        steps::took(text.len() - trimmed.len());
        if trimmed.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { root: parser::parse(text)? }))
    }

    /// Reads what [`Display`](fmt::Display) printed, which may be longer than what a client may write.
    ///
    /// # Errors
    /// What is wrong and where; blank text is an error here.
    pub fn from_canonical(text: &str) -> Result<Self, Error> {
        within(CANONICAL_BYTES_MAX, text)?;
        Ok(Self { root: parser::parse(text)? })
    }

    /// Whether the subject meets the requirements. Allocates nothing; takes time linear in the text
    /// and the tags it reads.
    pub fn holds<S: Subject + ?Sized>(&self, subject: &S) -> bool {
        self.root.holds(subject)
    }

    /// The terms in the order of the text.
    pub fn terms(&self) -> Terms<'_> {
        Terms { open: vec![&self.root] }
    }

    /// Whether any term reads what changes with a server's load. If none does, the answer for a
    /// server stays the same as long as its facts and tags do.
    pub fn reads_load(&self) -> bool {
        self.terms().any(|term| matches!(term.key(), Key::Property(property) if property.is_load()))
    }

    /// Tags and text properties that must have exactly this text for the expression to hold: what
    /// stands as `key = 'text'` alone, or beside others in an and-list that is under no `or` and no
    /// `not`. A key may come twice, also with two texts; then nothing meets the expression.
    pub fn required_equalities(&self) -> impl Iterator<Item = (&Key, &str)> {
        // And-lists in and-lists are one list, so nothing is missed behind parentheses.
        let members = match &self.root {
            Node::All(nodes) => nodes.as_slice(),
            node => slice::from_ref(node),
        };
        members.iter().filter_map(|node| match node {
            Node::Term(term) => term.required_text().map(|text| (term.key(), text)),
            Node::Not(_) | Node::All(_) | Node::Any(_) => None,
        })
    }
}

fn within(limit: usize, text: &str) -> Result<(), Error> {
    let bytes = text.len();
    if bytes > limit { Err(Error::TooLong { bytes, limit }) } else { Ok(()) }
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
        Self::from_canonical(&text).map_err(de::Error::custom)
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
    /// The same condition with each list's lists of its own kind spread out in it. Looks at each node
    /// once, however they nest.
    pub(super) fn flattened(self) -> Self {
        match self {
            Self::Term(_) => {
                steps::took(1);
                self
            }
            Self::Not(node) => Self::Not(Box::new(node.flattened())),
            Self::All(nodes) => {
                let members = |node| if let Self::All(nodes) = node { Ok(nodes) } else { Err(node) };
                Self::All(spread(nodes, members, Vec::new()))
            }
            Self::Any(nodes) => {
                let members = |node| if let Self::Any(nodes) = node { Ok(nodes) } else { Err(node) };
                Self::Any(spread(nodes, members, Vec::new()))
            }
        }
    }

    fn holds<S: Subject + ?Sized>(&self, subject: &S) -> bool {
        match self {
            Self::Term(term) => term.holds(subject),
            Self::Not(node) => !node.holds(subject),
            Self::All(nodes) => nodes.iter().all(|node| node.holds(subject)),
            Self::Any(nodes) => nodes.iter().any(|node| node.holds(subject)),
        }
    }
}

/// `into` and behind it `nodes`, lists for which `members` gives their members spread out.
fn spread(nodes: Vec<Node>, members: fn(Node) -> Result<Vec<Node>, Node>, mut into: Vec<Node>) -> Vec<Node> {
    for node in nodes {
        steps::took(1);
        match members(node) {
            Ok(inner) => into = spread(inner, members, into),
            Err(node) => into.push(node.flattened()),
        }
    }
    into
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
