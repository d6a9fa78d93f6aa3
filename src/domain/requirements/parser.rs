//! From tokens to an expression, by recursive descent with one token of look-ahead:
//!
//! ```text
//! any  = all  { "or"  all }
//! all  = unit { "and" unit }
//! unit = "(" any ")" | "not" "(" any ")" | "not" term | term
//! term = key operator value
//! ```
//!
//! The only recursion is through parentheses, which [`DEPTH_MAX`] bounds.

use std::str::FromStr;

use super::DEPTH_MAX;
use super::error::{Error, excerpt};
use super::expression::Node;
use super::lexer::{Lexer, Token};
use super::number::Number;
use super::property::Property;
use super::steps;
use super::term::{Comparison, Key, Literal, Term, Test};

const UNIT: &str = "a key, tag:NAME or server:PROPERTY, or 'not' or '('";
const NEGATED: &str = "a key, tag:NAME or server:PROPERTY, or '('; for a double negation write not (not ...)";
const OPERATOR: &str = "an operator: = != := > >= < <=";
const VALUE: &str = "a value: a text in '...' or a number";
const CONNECTIVE_OR_CLOSE: &str = "'and', 'or' or ')'";
const CONNECTIVE_OR_END: &str = "'and', 'or' or the end";

/// Parses the whole of `source`. Parentheses that say nothing, around an or-list in an or-list or an
/// and-list in an and-list, leave no trace.
pub(super) fn parse(source: &str) -> Result<Node, Error> {
    let mut lexer = Lexer::new(source);
    let (token, at) = lexer.next()?;
    let mut parser = Parser { lexer, token, at };
    let node = parser.any(0)?;
    match parser.token {
        Token::End => Ok(node.flattened()),
        _ => Err(parser.unexpected(CONNECTIVE_OR_END)),
    }
}

/// A key as written, not looked up yet.
enum Name<'a> {
    Tag(&'a str),
    Server(&'a str),
}

enum Operator {
    Compare(Comparison),
    Contains,
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token that is looked at, and the byte at which it begins.
    token: Token<'a>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn any(&mut self, depth: usize) -> Result<Node, Error> {
        let mut nodes = Vec::new();
        loop {
            nodes.push(self.all(depth)?);
            if self.token != Token::Or {
                return Ok(single(nodes, Node::Any));
            }
            self.advance()?;
        }
    }

    fn all(&mut self, depth: usize) -> Result<Node, Error> {
        let mut nodes = Vec::new();
        loop {
            nodes.push(self.unit(depth)?);
            if self.token != Token::And {
                return Ok(single(nodes, Node::All));
            }
            self.advance()?;
        }
    }

    fn unit(&mut self, depth: usize) -> Result<Node, Error> {
        match self.token {
            Token::Open => self.parenthesised(depth),
            Token::Not => {
                self.advance()?;
                let negated = match self.token {
                    Token::Open => self.parenthesised(depth)?,
                    _ => Node::Term(self.term(NEGATED)?),
                };
                Ok(Node::Not(Box::new(negated)))
            }
            _ => Ok(Node::Term(self.term(UNIT)?)),
        }
    }

    fn parenthesised(&mut self, depth: usize) -> Result<Node, Error> {
        if depth == DEPTH_MAX {
            return Err(Error::TooDeep { at: self.lexer.position(self.at), limit: DEPTH_MAX });
        }
        self.advance()?;
        let node = self.any(depth + 1)?;
        if self.token != Token::Close {
            return Err(self.unexpected(CONNECTIVE_OR_CLOSE));
        }
        self.advance()?;
        Ok(node)
    }

    fn term(&mut self, expected: &'static str) -> Result<Term, Error> {
        let (key, key_at) = self.take(expected, |token| match token {
            Token::Tag(name) => Some(Name::Tag(name)),
            Token::Server(name) => Some(Name::Server(name)),
            _ => None,
        })?;
        let (operator, operator_at) = self.take(OPERATOR, |token| match token {
            Token::Comparison(comparison) => Some(Operator::Compare(comparison)),
            Token::Contains => Some(Operator::Contains),
            _ => None,
        })?;
        // The value stays the token that is looked at until the term has been checked, so that what
        // is wrong in the term is reported before what is wrong behind it.
        let test = match (operator, self.token) {
            (Operator::Contains, Token::Text(raw)) => Test::Contains(unescape(raw)),
            // What is looked for is the number as it is written. This comes before the property is
            // looked up: existing clients know this order of errors.
            (Operator::Contains, Token::Number(written)) => match key {
                Name::Server(name) if Property::from_str(name).is_ok() => Test::Contains(written.into()),
                _ => {
                    return Err(Error::UnexpectedContains { at: self.lexer.position(operator_at) });
                }
            },
            (Operator::Compare(comparison), Token::Text(raw)) => {
                Test::Compare(comparison, Literal::Text(unescape(raw)))
            }
            (Operator::Compare(comparison), Token::Number(written)) => {
                let number = Number::parse(written)
                    .ok_or_else(|| Error::NumberOutOfRange { at: self.lexer.position(self.at) })?;
                Test::Compare(comparison, Literal::Number(number))
            }
            _ => return Err(self.unexpected(VALUE)),
        };
        let key = match key {
            Name::Tag(name) => Key::Tag(name.into()),
            Name::Server(name) => Key::Property(Property::from_str(name).map_err(|_| Error::UnknownProperty {
                at: self.lexer.position(key_at),
                name: excerpt(name),
                similar: Property::similar_to(name),
            })?),
        };
        self.advance()?;
        Ok(Term::new(key, test))
    }

    /// Takes the token if `fits` makes something of it, with the byte at which it begins.
    fn take<T>(&mut self, expected: &'static str, fits: impl Fn(Token<'a>) -> Option<T>) -> Result<(T, usize), Error> {
        let fitting = fits(self.token).ok_or_else(|| self.unexpected(expected))?;
        let at = self.at;
        self.advance()?;
        Ok((fitting, at))
    }

    fn advance(&mut self) -> Result<(), Error> {
        (self.token, self.at) = self.lexer.next()?;
        Ok(())
    }

    fn unexpected(&self, expected: &'static str) -> Error {
        let at = self.lexer.position(self.at);
        match self.token {
            Token::End => Error::UnexpectedEnd { at, expected },
            token => Error::UnexpectedToken { at, found: token.describe(), expected },
        }
    }
}

/// A list of one is its only member.
fn single(mut nodes: Vec<Node>, list: fn(Vec<Node>) -> Node) -> Node {
    match nodes.pop() {
        Some(node) if nodes.is_empty() => node,
        Some(node) => {
            nodes.push(node);
            list(nodes)
        }
        None => list(nodes),
    }
}

/// The text that stands between quotes, its doubled quotes made single.
fn unescape(raw: &str) -> Box<str> {
    steps::took(raw.len());
    raw.replace("''", "'").into_boxed_str()
}
