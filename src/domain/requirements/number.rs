//! Numbers as the decimals they are written as.
//!
//! A byte count must not become equal to its neighbour and `0.1` must equal `0.1`, so nothing is
//! converted to binary floating point: two numbers are compared by sign, power of ten and digits.
//! [`Decimal`] borrows its digits, so a tag's text is compared where it lies.

use std::cmp::Ordering;
use std::fmt::{self, Write};

use super::steps;

/// Greatest power of ten of a number's first digit: that of the greatest double, 1.8e308.
const EXPONENT_MAX: i64 = 308;
/// Least power of ten of a number's first digit: that of the least double above zero, 5e-324.
const EXPONENT_MIN: i64 = -324;
/// Powers of ten from which a number is printed with an exponent; below the first, every `u64` is
/// printed plainly.
const PLAIN_EXPONENT_MAX: i64 = 20;
const PLAIN_EXPONENT_MIN: i64 = -6;

/// Bytes of the number that `text` begins with, the longest possible; 0 if it begins with none.
///
/// A number is an optional sign, digits, then optionally `.` and digits, then optionally `e` or `E`,
/// an optional sign and digits.
pub(super) fn prefix_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let whole = past_digits(bytes, past_sign(bytes, 0));
    let Some(whole) = whole else { return 0 };
    let fraction = match bytes.get(whole) {
        Some(b'.') => past_digits(bytes, whole + 1).unwrap_or(whole),
        _ => whole,
    };
    match bytes.get(fraction) {
        Some(b'e' | b'E') => past_digits(bytes, past_sign(bytes, fraction + 1)).unwrap_or(fraction),
        _ => fraction,
    }
}

fn past_sign(bytes: &[u8], at: usize) -> usize {
    at + usize::from(matches!(bytes.get(at), Some(b'+' | b'-')))
}

/// The index behind the digits at `at`; `None` if there are none.
fn past_digits(bytes: &[u8], at: usize) -> Option<usize> {
    let digits = bytes.iter().skip(at).take_while(|byte| byte.is_ascii_digit()).count();
    steps::took(digits + 1);
    (digits > 0).then_some(at + digits)
}

/// A borrowed number: ±`d.ddd` × 10^`exponent`, its digits being `head` followed by `tail`.
///
/// There is one form for each value: no leading and no trailing zeros; zero has no digits, exponent
/// 0 and no sign.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decimal<'a> {
    negative: bool,
    head: &'a str,
    tail: &'a str,
    exponent: i64,
}

impl<'a> Decimal<'a> {
    /// Reads `text` if the whole of it is a number of the language and within range.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        if text.is_empty() || prefix_length(text) != text.len() {
            return None;
        }
        // Splitting at the exponent and the point, trimming zeros, and reading what is left.
        steps::took(4 * text.len());
        let (mantissa, written_exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, saturating_integer(exponent)),
            None => (text, 0),
        };
        let negative = mantissa.starts_with('-');
        let mantissa = mantissa.trim_start_matches(['+', '-']);
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));

        let whole = whole.trim_start_matches('0');
        let (head, tail, first_place) = if whole.is_empty() {
            let digits = fraction.trim_start_matches('0');
            ("", digits, -length(fraction) + length(digits) - 1)
        } else {
            (whole, fraction, length(whole) - 1)
        };
        let tail = tail.trim_end_matches('0');
        let head = if tail.is_empty() { head.trim_end_matches('0') } else { head };
        if head.is_empty() && tail.is_empty() {
            return Some(Self { negative: false, head, tail, exponent: 0 });
        }
        let exponent = first_place.saturating_add(written_exponent);
        (EXPONENT_MIN..=EXPONENT_MAX).contains(&exponent).then_some(Self { negative, head, tail, exponent })
    }

    fn digits(&self) -> impl Iterator<Item = u8> + use<'a> {
        self.head.bytes().chain(self.tail.bytes())
    }

    fn sign(&self) -> i8 {
        match (self.head.is_empty() && self.tail.is_empty(), self.negative) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => -1,
        }
    }
}

/// The order of the values, which is total.
impl Ord for Decimal<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Without trailing zeros, digits behind the same power of ten are in the order of texts.
        let magnitude = || self.exponent.cmp(&other.exponent).then_with(|| self.digits().cmp(other.digits()));
        self.sign().cmp(&other.sign()).then_with(|| if self.negative { magnitude().reverse() } else { magnitude() })
    }
}

impl PartialOrd for Decimal<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Decimal<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Decimal<'_> {}

/// The length of a text; no text in memory is longer than `i64::MAX`.
fn length(text: &str) -> i64 {
    i64::try_from(text.len()).unwrap_or(i64::MAX)
}

/// The value of an optional sign and digits. Far outside the range of exponents it sticks to a bound
/// that no mantissa that fits in memory brings back into the range.
fn saturating_integer(text: &str) -> i64 {
    let magnitude = text
        .bytes()
        .filter(u8::is_ascii_digit)
        .fold(0_i64, |value, digit| value.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    if text.starts_with('-') { -magnitude } else { magnitude }
}

/// A number written in an expression. Equal values are equal however they are written: `1e3`, `+1000.0`.
///
/// `Display` prints it plainly where that is short, else with an exponent; it reads back as an equal
/// number. The order that is derived serves as a key only; it is not the order of the values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number {
    negative: bool,
    /// Without leading and trailing zeros; empty for zero.
    digits: Box<str>,
    /// Power of ten of the first digit.
    exponent: i64,
}

impl Number {
    /// Reads `text` if the whole of it is a number of the language and within the range of doubles.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let Decimal { negative, head, tail, exponent } = Decimal::parse(text)?;
        Some(Self { negative, digits: format!("{head}{tail}").into_boxed_str(), exponent })
    }

    pub(super) fn as_decimal(&self) -> Decimal<'_> {
        Decimal { negative: self.negative, head: &self.digits, tail: "", exponent: self.exponent }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.negative {
            f.write_char('-')?;
        }
        if self.digits.is_empty() {
            return f.write_char('0');
        }
        let plain = (PLAIN_EXPONENT_MIN..=PLAIN_EXPONENT_MAX).contains(&self.exponent);
        if plain && self.exponent < 0 {
            let zeros = usize::try_from(-self.exponent - 1).unwrap_or(0);
            return write!(f, "0.{:0<zeros$}{}", "", self.digits);
        }
        // How many digits stand before the point.
        let before = if plain { usize::try_from(self.exponent + 1).unwrap_or(1) } else { 1 };
        match self.digits.split_at_checked(before) {
            Some((whole, "")) => f.write_str(whole)?,
            Some((whole, fraction)) => write!(f, "{whole}.{fraction}")?,
            None => write!(f, "{:0<before$}", self.digits)?,
        }
        if plain { Ok(()) } else { write!(f, "e{}", self.exponent) }
    }
}

/// Room on the stack for a number in decimal: a `u64` takes 20 bytes, a double in its shortest form
/// with an exponent at most 24.
#[derive(Default)]
pub(super) struct Scratch {
    bytes: [u8; 32],
    used: usize,
}

impl Scratch {
    /// `value` as a decimal.
    pub(super) fn integer(&mut self, value: u64) -> Option<Decimal<'_>> {
        self.decimal(format_args!("{value}"))
    }

    /// The shortest decimal that stands for `value`; `None` for infinities and NaN.
    pub(super) fn real(&mut self, value: f64) -> Option<Decimal<'_>> {
        self.decimal(format_args!("{value:e}"))
    }

    fn decimal(&mut self, text: fmt::Arguments<'_>) -> Option<Decimal<'_>> {
        self.used = 0;
        self.write_fmt(text).ok()?;
        Decimal::parse(std::str::from_utf8(self.bytes.get(..self.used)?).ok()?)
    }
}

impl Write for Scratch {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.used + text.len();
        self.bytes.get_mut(self.used..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.used = end;
        Ok(())
    }
}
