//! From text to tokens. Blanks are never needed: at each place the longest token wins.

use super::error::{Error, Position, excerpt};
use super::number;
use super::steps;
use super::term::Comparison;

/// The smallest parts of the language. Texts and names borrow from the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    And,
    Or,
    Not,
    Open,
    Close,
    /// The name behind `tag:`.
    Tag(&'a str),
    /// The name behind `server:`, not looked up yet.
    Server(&'a str),
    Comparison(Comparison),
    Contains,
    /// What stands between the quotes, quotes inside still doubled.
    Text(&'a str),
    /// A number as written; its range is not checked yet.
    Number(&'a str),
    End,
}

impl Token<'_> {
    /// What to call the token in a message.
    pub(super) const fn describe(self) -> &'static str {
        match self {
            Self::And => "'and'",
            Self::Or => "'or'",
            Self::Not => "'not'",
            Self::Open => "'('",
            Self::Close => "')'",
            Self::Tag(_) => "tag key",
            Self::Server(_) => "server key",
            Self::Comparison(_) | Self::Contains => "operator",
            Self::Text(_) => "text",
            Self::Number(_) => "number",
            Self::End => "end",
        }
    }
}

/// Reads one token after another; behind the last it gives [`Token::End`] for ever.
#[derive(Debug)]
pub(super) struct Lexer<'a> {
    source: &'a str,
    /// What is not read yet, a suffix of `source`.
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(source: &'a str) -> Self {
        Self { source, rest: source }
    }

    /// The place `byte` bytes into the source.
    pub(super) fn position(&self, byte: usize) -> Position {
        steps::took(byte);
        Position::new(self.source, byte)
    }

    /// The next token and the byte at which it begins.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, usize), Error> {
        let text = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        steps::took(self.rest.len() - text.len() + 1);
        self.rest = text;
        let at = self.source.len() - self.rest.len();
        let (token, length) = self.scan(at)?;
        self.rest = self.rest.get(length..).unwrap_or("");
        Ok((token, at))
    }

    /// The token at the beginning of the rest, and its length in bytes.
    fn scan(&self, at: usize) -> Result<(Token<'a>, usize), Error> {
        let rest = self.rest;
        let Some(first) = rest.chars().next() else {
            return Ok((Token::End, 0));
        };
        if let Some((token, length)) = fixed(rest) {
            return Ok((token, length));
        }
        if first == '\'' {
            return self.text(at);
        }
        if let Some(name) = rest.strip_prefix("tag:") {
            let name = tag_name(name).ok_or_else(|| Error::InvalidTagKey { at: self.position(at) })?;
            return Ok((Token::Tag(name), "tag:".len() + name.len()));
        }
        if let Some(path) = rest.strip_prefix("server:") {
            let path = property_path(path).ok_or_else(|| Error::InvalidServerKey { at: self.position(at) })?;
            return Ok((Token::Server(path), "server:".len() + path.len()));
        }
        let number = rest.get(..number::prefix_length(rest)).unwrap_or("");
        if !number.is_empty() {
            return Ok((Token::Number(number), number.len()));
        }
        let word = leading(rest, |c| c.is_alphanumeric() || matches!(c, '_' | '-' | ':' | '.'));
        if first.is_alphabetic() || first == '_' {
            return Err(Error::UnexpectedWord { at: self.position(at), word: excerpt(word) });
        }
        Err(Error::UnexpectedCharacter { at: self.position(at), found: first })
    }

    /// The text whose opening quote stands at `at`.
    fn text(&self, at: usize) -> Result<(Token<'a>, usize), Error> {
        // Behind the opening quote, later behind the pair of quotes found last.
        let mut behind = 1;
        while let Some(length) = self.rest.get(behind..).and_then(|rest| rest.find('\'')) {
            let quote = behind + length;
            steps::took(length + 2);
            if self.rest.as_bytes().get(quote + 1) != Some(&b'\'') {
                let inside = self.rest.get(1..quote).unwrap_or("");
                return Ok((Token::Text(inside), quote + 1));
            }
            behind = quote + 2;
        }
        steps::took(self.rest.len().saturating_sub(behind));
        Err(Error::UnterminatedText { at: self.position(at) })
    }
}

/// Operators, parentheses and keywords; of two that fit, the longer stands first.
fn fixed(rest: &str) -> Option<(Token<'static>, usize)> {
    const SIGNS: [(&str, Token<'static>); 9] = [
        ("!=", Token::Comparison(Comparison::NotEqual)),
        (":=", Token::Contains),
        (">=", Token::Comparison(Comparison::GreaterOrEqual)),
        ("<=", Token::Comparison(Comparison::LessOrEqual)),
        ("=", Token::Comparison(Comparison::Equal)),
        (">", Token::Comparison(Comparison::Greater)),
        ("<", Token::Comparison(Comparison::Less)),
        ("(", Token::Open),
        (")", Token::Close),
    ];
    const KEYWORDS: [(&str, Token<'static>); 3] = [("and", Token::And), ("or", Token::Or), ("not", Token::Not)];

    steps::took(SIGNS.len() + KEYWORDS.len());
    let sign = SIGNS.into_iter().find(|(sign, _)| rest.starts_with(sign));
    let keyword = || {
        let fits = |word: &str| rest.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
        KEYWORDS.into_iter().find(|(word, _)| fits(word))
    };
    sign.or_else(keyword).map(|(written, token)| (token, written.len()))
}

/// The tag's name that `text` begins with: an identifier, or `dcv:` and a name that may hold `-`.
fn tag_name(text: &str) -> Option<&str> {
    if let Some(own) = text.strip_prefix("dcv:") {
        let name = leading(own, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        if !name.is_empty() {
            return text.get(.."dcv:".len() + name.len());
        }
    }
    let name = leading(text, |c| c.is_ascii_alphanumeric() || c == '_');
    name.starts_with(|c: char| !c.is_ascii_digit()).then_some(name)
}

/// The property's name that `text` begins with: identifiers joined by dots.
fn property_path(text: &str) -> Option<&str> {
    let identifier = |text| {
        let name = leading(text, |c| c.is_ascii_alphanumeric());
        name.starts_with(|c: char| c.is_ascii_alphabetic()).then_some(name.len())
    };
    let mut length = identifier(text)?;
    while let Some(next) = text.get(length..).and_then(|rest| rest.strip_prefix('.')).and_then(identifier) {
        length += 1 + next;
    }
    text.get(..length)
}

/// The longest beginning of `text` whose characters all fit.
fn leading(text: &str, fits: impl Fn(char) -> bool) -> &str {
    let end = text.find(|c| !fits(c)).unwrap_or(text.len());
    steps::took(end + 1);
    text.get(..end).unwrap_or(text)
}
