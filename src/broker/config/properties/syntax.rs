//! The syntax of Java's properties files, as `java.util.Properties` reads it:
//! `=`, `:` or blanks between key and value, comments with `#` and `!`, lines
//! that go on after a backslash, escapes.
//!
//! Of two things it takes a kinder view: a file in UTF-8 is read as such (Java
//! takes every byte for a character, which is what is left when it is no
//! UTF-8), and a byte order mark at the beginning does not count.
//!
//! Values may be passwords: no copy of one stays in memory.

use zeroize::Zeroizing;

/// A key with its value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Property {
    pub(super) key: String,
    pub(super) value: Zeroizing<String>,
    /// The line on which it begins, from 1.
    pub(super) line: usize,
}

/// A line that cannot be read. It does not say what is on it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// The line, from 1.
    pub(super) line: usize,
    pub(super) reason: &'static str,
}

/// Blanks. Java knows no others.
const BLANKS: [char; 3] = [' ', '\t', '\x0c'];

/// The text of a file.
pub(super) fn decode(bytes: &[u8]) -> Zeroizing<String> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Zeroizing::new(text.strip_prefix('\u{feff}').unwrap_or(text).to_owned());
    }
    // Each byte may need two: no growth, which would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * bytes.len()));
    text.extend(bytes.iter().map(|byte| char::from(*byte)));
    text
}

/// What a text holds, in its order; the same key may come several times.
pub(super) fn parse(text: &str) -> Vec<Result<Property, Malformed>> {
    let mut properties = Vec::new();
    let mut lines = natural_lines(text).zip(1..);
    while let Some((first, line)) = lines.next() {
        let first = first.trim_start_matches(BLANKS);
        if first.is_empty() || first.starts_with(['#', '!']) {
            continue;
        }
        let mut parts = vec![first];
        while let Some(begun) = parts.last().copied().and_then(goes_on) {
            parts.pop();
            parts.push(begun);
            parts.push(lines.next().map_or("", |(next, _)| next.trim_start_matches(BLANKS)));
        }
        let mut whole = Zeroizing::new(String::with_capacity(parts.iter().map(|part| part.len()).sum()));
        for part in parts {
            whole.push_str(part);
        }
        if !whole.is_empty() {
            properties.push(property(&whole, line));
        }
    }
    properties
}

/// Lines end with LF, CR, or both.
fn natural_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\n', '\r']) else {
            rest = None;
            return Some(text);
        };
        let behind = &text[end..];
        rest = Some(behind.strip_prefix("\r\n").unwrap_or(&behind[1..]));
        Some(&text[..end])
    })
}

/// The line without the backslash at its end, if it goes on: an even number
/// of them stands for backslashes.
fn goes_on(line: &str) -> Option<&str> {
    let backslashes = line.bytes().rev().take_while(|byte| *byte == b'\\').count();
    (backslashes % 2 == 1).then(|| &line[..line.len() - 1])
}

fn property(whole: &str, line: usize) -> Result<Property, Malformed> {
    let (key, behind) = whole.split_at(end_of_key(whole));
    let behind = behind.trim_start_matches(BLANKS);
    let value = behind.strip_prefix(['=', ':']).unwrap_or(behind).trim_start_matches(BLANKS);
    let malformed = |reason| Malformed { line, reason };
    let key = unescape(key).map_err(malformed)?;
    Ok(Property { key: key.to_string(), value: unescape(value).map_err(malformed)?, line })
}

/// Where the key ends: at the first blank, `=` or `:` that is not escaped.
fn end_of_key(text: &str) -> usize {
    let mut is_escaped = false;
    for (place, letter) in text.char_indices() {
        if is_escaped {
            is_escaped = false;
        } else if letter == '\\' {
            is_escaped = true;
        } else if BLANKS.contains(&letter) || letter == '=' || letter == ':' {
            return place;
        }
    }
    text.len()
}

fn unescape(text: &str) -> Result<Zeroizing<String>, &'static str> {
    // Characters beyond the first 65,536 are written as two escapes.
    let mut units = Zeroizing::new(Vec::<u16>::with_capacity(text.len()));
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let mut buffer = [0; 2];
        if letter != '\\' {
            units.extend_from_slice(letter.encode_utf16(&mut buffer));
            continue;
        }
        match letters.next() {
            Some('t') => units.push(b'\t'.into()),
            Some('n') => units.push(b'\n'.into()),
            Some('r') => units.push(b'\r'.into()),
            Some('f') => units.push(0x0c),
            Some('u') => {
                let mut unit = 0;
                for _ in 0..4 {
                    let digit = letters.next().and_then(|letter| letter.to_digit(16));
                    let digit = digit.and_then(|digit| u16::try_from(digit).ok());
                    unit = unit << 4 | digit.ok_or("after \\u there must be four hexadecimal digits")?;
                }
                units.push(unit);
            }
            Some(other) => units.extend_from_slice(other.encode_utf16(&mut buffer)),
            None => {}
        }
    }
    // Each unit may need three bytes.
    let mut unescaped = Zeroizing::new(String::with_capacity(3 * units.len()));
    for letter in char::decode_utf16(units.iter().copied()) {
        unescaped.push(letter.map_err(|_| "a \\u escape is half a character, without its other half")?);
    }
    Ok(unescaped)
}

#[cfg(test)]
#[path = "syntax_tests.rs"]
mod tests;
