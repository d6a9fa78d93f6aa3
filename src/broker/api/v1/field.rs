//! Fields of a listing: what they are called, what kind of value they have,
//! and what a filter on one of them means.
//!
//! Each listing has a table of them; the parameters that it knows, the texts
//! of its errors and the fields that it can be sorted by all come from there.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::broker::api::error::Error;
use crate::domain::Fleet;

/// A field of a `T`.
pub(super) struct Field<T> {
    /// Name in parameters.
    pub(super) name: &'static str,
    /// What values it has.
    pub(super) kind: Kind,
    /// The value that an item has.
    pub(super) value: for<'a> fn(&'a Fleet, &'a T) -> Value<'a>,
}

/// What values a field has, and so how it is filtered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any text; equal to the letter.
    Text,
    /// One of a few words, in any case.
    Word(&'static [&'static str]),
    /// A whole number; `NAMEMin` and `NAMEMax` bound it.
    Number,
    /// A point in time, which is only compared: `STEMSince`, `STEMBefore`.
    Time(&'static str),
}

/// `true` and `false`.
pub(super) const FLAG: Kind = Kind::Word(&["true", "false"]);

/// A value. The order is that of a sorted listing: what is not there is first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value<'a> {
    /// It has none.
    Absent,
    /// A number, or a time in milliseconds.
    Number(u64),
    /// A text or a word.
    Text(Cow<'a, str>),
}

impl<'a> Value<'a> {
    /// A text; one that is not known is empty.
    pub(super) fn text(text: &'a str) -> Self {
        if text.is_empty() { Self::Absent } else { Self::Text(Cow::Borrowed(text)) }
    }

    /// A text that may not be there.
    pub(super) fn maybe(text: Option<&'a str>) -> Self {
        text.map_or(Self::Absent, Self::text)
    }

    /// `true` or `false`.
    pub(super) const fn flag(is_set: bool) -> Self {
        Self::Text(Cow::Borrowed(if is_set { "true" } else { "false" }))
    }

    fn as_text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Absent | Self::Number(_) => "",
        }
    }
}

/// What the values of a field must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// One of these texts; the empty one stands for no value.
    OneOf(BTreeSet<String>),
    /// One of these numbers.
    Equal(BTreeSet<u64>),
    /// At least this number.
    AtLeast(u64),
    /// At most this number.
    AtMost(u64),
    /// Less than this number.
    Below(u64),
}

impl Condition {
    /// Whether it holds for a value. Nothing is more or less than no value.
    pub(super) fn holds(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Self::OneOf(texts), value) => texts.contains(value.as_text()),
            (Self::Equal(numbers), Value::Number(number)) => numbers.contains(number),
            (Self::AtLeast(min), Value::Number(number)) => number >= min,
            (Self::AtMost(max), Value::Number(number)) => number <= max,
            (Self::Below(end), Value::Number(number)) => number < end,
            _ => false,
        }
    }

    /// Takes up a further parameter of the same name: another alternative.
    /// A bound has none.
    fn or(&mut self, other: Self) -> Result<(), GivenTwice> {
        match (self, other) {
            (Self::OneOf(texts), Self::OneOf(more)) => texts.extend(more),
            (Self::Equal(numbers), Self::Equal(more)) => numbers.extend(more),
            _ => return Err(GivenTwice),
        }
        Ok(())
    }
}

/// A bound that can be given once was given twice.
#[derive(Debug)]
pub(super) struct GivenTwice;

/// How a parameter compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Equal,
    Min,
    Max,
    Since,
    Before,
}

impl<T> Field<T> {
    /// The parameters that filter by it.
    pub(super) fn parameters(&self) -> Vec<String> {
        self.bounds().into_iter().map(|(name, _)| name).collect()
    }

    fn bounds(&self) -> Vec<(String, Bound)> {
        let name = self.name;
        match self.kind {
            Kind::Text | Kind::Word(_) => vec![(name.to_owned(), Bound::Equal)],
            Kind::Number => vec![
                (name.to_owned(), Bound::Equal),
                (format!("{name}Min"), Bound::Min),
                (format!("{name}Max"), Bound::Max),
            ],
            Kind::Time(stem) => vec![(format!("{stem}Since"), Bound::Since), (format!("{stem}Before"), Bound::Before)],
        }
    }

    /// The condition that a parameter means; `None` when it is not this field's.
    pub(super) fn condition(&self, parameter: &str, value: &str) -> Result<Option<Condition>, Error> {
        let Some((_, bound)) = self.bounds().into_iter().find(|(name, _)| name == parameter) else { return Ok(None) };
        let condition = match (self.kind, bound) {
            (Kind::Text, _) => Condition::OneOf(BTreeSet::from([value.to_owned()])),
            (Kind::Word(words), _) => Condition::OneOf(BTreeSet::from([word(words, parameter, value)?.to_owned()])),
            (Kind::Number, Bound::Min) => Condition::AtLeast(number(parameter, value)?),
            (Kind::Number, Bound::Max) => Condition::AtMost(number(parameter, value)?),
            (Kind::Number, _) => Condition::Equal(BTreeSet::from([number(parameter, value)?])),
            (Kind::Time(_), Bound::Since) => Condition::AtLeast(time(parameter, value)?),
            (Kind::Time(_), _) => Condition::Below(time(parameter, value)?),
        };
        Ok(Some(condition))
    }
}

/// Conditions by the parameter that they came with; all must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Conditions(Vec<(String, usize, Condition)>);

impl Conditions {
    /// Takes up a parameter of the field at a place of the table.
    pub(super) fn add(&mut self, parameter: &str, field: usize, condition: Condition) -> Result<(), GivenTwice> {
        if let Some((_, _, known)) = self.0.iter_mut().find(|(known, _, _)| known == parameter) {
            return known.or(condition);
        }
        self.0.push((parameter.to_owned(), field, condition));
        Ok(())
    }

    /// The texts of which a field must have one, when no value is none of them.
    pub(super) fn texts(&self, name: &str) -> Option<&BTreeSet<String>> {
        let (_, _, condition) = self.0.iter().find(|(parameter, _, _)| parameter == name)?;
        match condition {
            Condition::OneOf(texts) if !texts.contains("") => Some(texts),
            _ => None,
        }
    }

    /// Whether all hold.
    pub(super) fn hold<T>(&self, fields: &[Field<T>], fleet: &Fleet, item: &T) -> bool {
        self.0.iter().all(|(_, place, condition)| {
            fields.get(*place).is_some_and(|field| condition.holds(&(field.value)(fleet, item)))
        })
    }
}

/// A word as the table writes it; the empty text stands for no value.
fn word(words: &'static [&'static str], parameter: &str, value: &str) -> Result<&'static str, Error> {
    if value.is_empty() {
        return Ok("");
    }
    words
        .iter()
        .find(|word| word.eq_ignore_ascii_case(value))
        .copied()
        .ok_or_else(|| Error::BadRequest(format!("{parameter} must be one of {}", words.join(", "))))
}

fn number(parameter: &str, value: &str) -> Result<u64, Error> {
    value.parse().map_err(|_| Error::BadRequest(format!("{parameter} must be a whole number, 0 or more")))
}

/// Milliseconds of a time; what was before 1970 is at its beginning.
fn time(parameter: &str, value: &str) -> Result<u64, Error> {
    let at: jiff::Timestamp = value.parse().map_err(|_| {
        Error::BadRequest(format!("{parameter} must be a time such as 2025-06-30T12:00:00Z (RFC 3339)"))
    })?;
    // Times that are kept have whole milliseconds: rounding up keeps both
    // "since" and "before" exact.
    let nanos = at.as_nanosecond();
    Ok(u64::try_from((nanos + 999_999).div_euclid(1_000_000)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn field(kind: Kind) -> Field<()> {
        Field { name: "Thing", kind, value: |_, ()| Value::Absent }
    }

    fn holds(kind: Kind, parameter: &str, value: &str, of: &Value<'_>) -> bool {
        field(kind).condition(parameter, value).unwrap().unwrap().holds(of)
    }

    #[test]
    fn a_kind_has_its_parameters() {
        assert_eq!(field(Kind::Text).parameters(), ["Thing"]);
        assert_eq!(field(Kind::Number).parameters(), ["Thing", "ThingMin", "ThingMax"]);
        assert_eq!(field(Kind::Time("Seen")).parameters(), ["SeenSince", "SeenBefore"]);
        assert_eq!(field(Kind::Text).condition("Other", "x").unwrap(), None);
    }

    #[test]
    fn texts_are_equal_to_the_letter_and_words_are_not() {
        assert!(holds(Kind::Text, "Thing", "a", &Value::text("a")));
        assert!(!holds(Kind::Text, "Thing", "A", &Value::text("a")));
        assert!(holds(Kind::Text, "Thing", "", &Value::Absent));
        assert!(holds(Kind::Word(&["READY"]), "Thing", "ready", &Value::text("READY")));
        assert!(holds(FLAG, "Thing", "TRUE", &Value::flag(true)));
        assert!(field(FLAG).condition("Thing", "maybe").unwrap_err().to_string().contains("true, false"));
    }

    #[test]
    fn bounds_include_the_first_and_not_the_last_moment() {
        let second = Value::Number(1_000);
        for (parameter, value, expected) in [
            ("SeenSince", "1970-01-01T00:00:01Z", true),
            ("SeenSince", "1970-01-01T00:00:01.0001Z", false),
            ("SeenSince", "1969-01-01T00:00:00Z", true),
            ("SeenBefore", "1970-01-01T00:00:01Z", false),
            ("SeenBefore", "1970-01-01T01:00:01.0001+01:00", true),
        ] {
            assert_eq!(holds(Kind::Time("Seen"), parameter, value, &second), expected, "{parameter}={value}");
            assert!(!holds(Kind::Time("Seen"), parameter, value, &Value::Absent), "{parameter}={value} of nothing");
        }
        assert!(holds(Kind::Number, "ThingMin", "1000", &second) && holds(Kind::Number, "ThingMax", "1000", &second));
        assert!(holds(Kind::Number, "Thing", "1000", &second) && !holds(Kind::Number, "Thing", "0", &Value::Absent));
        assert!(field(Kind::Number).condition("Thing", "-1").is_err());
        assert!(field(Kind::Time("Seen")).condition("SeenSince", "yesterday").is_err());
    }
}
