//! A page of a listing in some order, and the place where the next one begins.
//!
//! The place is the value and the id of the last item, not a number of items:
//! whatever comes or goes, the next page begins right after it. An item whose
//! value changes meanwhile moves, as it does in the listing.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::field::Value;

/// Longest text that counts for the order, in bytes: the place must fit into
/// a token.
const SORTED_BYTES_MAX: usize = 256;

/// Where an item stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place<'a> {
    value: Value<'a>,
    id: Cow<'a, str>,
}

impl<'a> Place<'a> {
    /// The place of an item with a value.
    pub(super) fn new(value: Value<'a>, id: &'a str) -> Self {
        let value = match value {
            Value::Text(Cow::Borrowed(text)) => Value::Text(Cow::Borrowed(start(text))),
            Value::Text(Cow::Owned(text)) => Value::Text(Cow::Owned(start(&text).to_owned())),
            other => other,
        };
        Self { value, id: Cow::Borrowed(id) }
    }

    /// The id of the item there.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The place as a text for a token.
    pub(super) fn to_text(&self) -> String {
        match &self.value {
            Value::Absent => format!("a{}", self.id),
            Value::Number(number) => format!("n{number}:{}", self.id),
            Value::Text(text) => format!("t{}:{text}{}", text.len(), self.id),
        }
    }

    /// The place that a text means.
    pub(super) fn from_text(text: &str) -> Option<Place<'static>> {
        let (value, id) = if let Some(id) = text.strip_prefix('a') {
            (Value::Absent, id)
        } else if let Some(rest) = text.strip_prefix('n') {
            let (number, id) = rest.split_once(':')?;
            (Value::Number(number.parse().ok()?), id)
        } else {
            let (length, rest) = text.strip_prefix('t')?.split_once(':')?;
            let (text, id) = rest.split_at_checked(length.parse().ok()?)?;
            (Value::Text(Cow::Owned(text.to_owned())), id)
        };
        Some(Place { value, id: Cow::Owned(id.to_owned()) })
    }
}

fn start(text: &str) -> &str {
    text.get(..text.floor_char_boundary(SORTED_BYTES_MAX)).unwrap_or(text)
}

/// Which way a listing goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
}

impl Direction {
    fn order(self, a: &Place<'_>, b: &Place<'_>) -> Ordering {
        match self {
            Self::Up => a.cmp(b),
            Self::Down => b.cmp(a),
        }
    }
}

struct Candidate<'a, T> {
    direction: Direction,
    place: Place<'a>,
    item: &'a T,
}

impl<T> Ord for Candidate<'_, T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.direction.order(&self.place, &other.place)
    }
}

impl<T> PartialOrd for Candidate<'_, T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Candidate<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Candidate<'_, T> {}

/// The first `size` items after a place, and the last one's place if more
/// follow. Holds never more than a page.
pub(super) fn first<'a, T>(
    items: impl Iterator<Item = &'a T>,
    size: usize,
    direction: Direction,
    after: Option<&Place<'_>>,
    place_of: impl Fn(&'a T) -> Place<'a>,
) -> (Vec<&'a T>, Option<Place<'a>>) {
    let mut best = BinaryHeap::with_capacity(size + 2);
    for item in items {
        let place = place_of(item);
        if after.is_some_and(|after| direction.order(&place, after) != Ordering::Greater) {
            continue;
        }
        let candidate = Candidate { direction, place, item };
        if best.len() > size {
            if best.peek().is_some_and(|worst| candidate >= *worst) {
                continue;
            }
            best.pop();
        }
        best.push(candidate);
    }
    let mut page = best.into_sorted_vec();
    let is_last = page.len() <= size;
    page.truncate(size);
    let last = if is_last { None } else { page.last().map(|candidate| candidate.place.clone()) };
    (page.into_iter().map(|candidate| candidate.item).collect(), last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn any_value() -> impl Strategy<Value = Value<'static>> {
        prop_oneof![
            Just(Value::Absent),
            (0..3_u64).prop_map(Value::Number),
            "[a:]{0,2}|é{120,130}".prop_map(|text| Value::Text(Cow::Owned(text))),
        ]
    }

    fn place<'a>((id, value): &'a (String, Value<'static>)) -> Place<'a> {
        Place::new(value.clone(), id)
    }

    proptest! {
        /// Pages one after the other are what sorting everything gives.
        #[test]
        fn pages_follow_one_another_in_order(
            values in prop::collection::vec(any_value(), 0..40), size in 1_usize..9, down in any::<bool>(),
        ) {
            let items: Vec<(String, Value<'static>)> =
                values.into_iter().enumerate().map(|(number, value)| (format!("{number:02}"), value)).collect();
            let direction = if down { Direction::Down } else { Direction::Up };
            let mut sorted: Vec<_> = items.iter().collect();
            sorted.sort_by(|a, b| direction.order(&place(a), &place(b)));
            let mut walked = Vec::new();
            let mut after = None;
            loop {
                let (page, last) = first(items.iter(), size, direction, after.as_ref(), place);
                prop_assert!(page.len() <= size);
                walked.extend(page);
                let Some(last) = last else { break };
                after = Some(Place::from_text(&last.to_text()).unwrap());
            }
            prop_assert_eq!(walked, sorted);
        }

        #[test]
        fn no_text_makes_a_place_panic(text in "[ant]?[0-9]{0,3}:?.{0,10}") {
            let _ = Place::from_text(&text);
        }
    }
}
