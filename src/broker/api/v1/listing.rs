//! Parameters of a listing, and its pages.

use std::collections::{BTreeMap, BTreeSet};

use axum::response::{IntoResponse, Response};

use super::field::{Conditions, Field, GivenTwice, Value};
use super::select::{self, Direction, Place};
use crate::broker::api::ApiState;
use crate::broker::api::consistency::Reading;
use crate::broker::api::error::Error;
use crate::broker::api::form;
use crate::broker::api::limits::ITEMS_MAX;
use crate::broker::api::pages::{self, Fingerprint};
use crate::broker::api::scan::JsonBytes;
use crate::domain::Fleet;

/// Begins the name of a filter by tag.
const TAG: &str = "Tag.";

/// An item that can be listed.
pub(super) trait Item: Sized + 'static {
    /// Name of the listing; part of what a token is bound to.
    const LISTING: &'static str;
    /// Name of the field with the id.
    const ID: &'static str;
    /// What can be filtered and sorted by.
    fn fields() -> &'static [Field<Self>];
    /// The id.
    fn id(&self) -> &str;
    /// Value of a tag of its server.
    fn tag<'a>(&'a self, fleet: &'a Fleet, name: &str) -> Option<&'a str>;
}

/// What is asked of a listing; checked.
#[derive(Debug)]
pub(super) struct Query {
    conditions: Conditions,
    tags: BTreeMap<String, BTreeSet<String>>,
    /// Place of a field in the table; `None` for the id.
    sort: Option<usize>,
    direction: Direction,
    size: usize,
    after: Option<Place<'static>>,
    fingerprint: Fingerprint,
}

impl Query {
    /// Reads the query of a URL.
    pub(super) fn parse<T: Item>(query: &str) -> Result<Self, Error> {
        let mut pairs =
            form::pairs(query).ok_or_else(|| Error::BadRequest("the query is not form-encoded UTF-8".to_owned()))?;
        if pairs.len() > ITEMS_MAX {
            return Err(Error::BadRequest(format!(
                "the query has {} parameters; at most {ITEMS_MAX} are allowed",
                pairs.len()
            )));
        }
        let size = take(&mut pairs, "MaxResults")?;
        let token = take(&mut pairs, "NextToken")?.filter(|token| !token.is_empty());
        pairs.sort_unstable();
        pairs.dedup();
        let parts = pairs.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        let fingerprint = Fingerprint::new(T::LISTING, parts);
        let sort = take(&mut pairs, "Sort")?;
        let (sort, direction) = sort.as_deref().map_or(Ok((None, Direction::Up)), order::<T>)?;

        let mut conditions = Conditions::default();
        let mut tags: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, value) in pairs {
            match name.strip_prefix(TAG) {
                Some(tag) if !tag.is_empty() => {
                    tags.entry(tag.to_owned()).or_default().insert(value);
                }
                _ => add::<T>(&mut conditions, &name, &value)?,
            }
        }
        let after = token.map(|token| resume(fingerprint, &token)).transpose()?;
        let size = pages::size(size.map(|size| size.parse().unwrap_or(0)))?;
        Ok(Self { conditions, tags, sort, direction, size, after, fingerprint })
    }

    /// The texts of which a field must have one, when no value is none of them.
    pub(super) fn texts(&self, name: &str) -> Option<&BTreeSet<String>> {
        self.conditions.texts(name)
    }

    /// The tags, each with the values of which it must have one, when no value
    /// is none of them.
    pub(super) fn tags(&self) -> impl Iterator<Item = (&String, &BTreeSet<String>)> {
        self.tags.iter().filter(|(_, values)| !values.contains(""))
    }

    /// Whether the listing goes by id, from the first to the last.
    pub(super) fn is_by_id(&self) -> bool {
        self.sort.is_none() && self.direction == Direction::Up
    }

    /// The id after which a listing by id goes on.
    pub(super) fn after_id(&self) -> Option<&str> {
        self.after.as_ref().filter(|_| self.is_by_id()).map(Place::id)
    }

    fn holds<T: Item>(&self, fleet: &Fleet, item: &T) -> bool {
        self.conditions.hold(T::fields(), fleet, item)
            && self.tags.iter().all(|(tag, values)| values.contains(item.tag(fleet, tag).unwrap_or_default()))
    }

    /// The page out of candidates, and the token for the next one. When the
    /// listing goes by id, the candidates must come by id, after
    /// [`Self::after_id`]; then no more of them are looked at than needed.
    pub(super) fn page<'a, T: Item>(
        &self,
        fleet: &'a Fleet,
        candidates: impl Iterator<Item = &'a T>,
    ) -> (Vec<&'a T>, Option<String>) {
        let matching = candidates.filter(|item| self.holds(fleet, *item));
        let value = self.sort.and_then(|place| T::fields().get(place)).map(|field| field.value);
        let place_of = |item: &'a T| Place::new(value.map_or(Value::Absent, |value| value(fleet, item)), item.id());
        let after = self.after.as_ref();
        let (page, last) = if self.is_by_id() {
            select::first(matching.take(self.size + 1), self.size, self.direction, after, place_of)
        } else {
            select::first(matching, self.size, self.direction, after, place_of)
        };
        (page, last.map(|last| self.fingerprint.token(&last.to_text())))
    }
}

/// Takes a parameter out that can be given once.
fn take(pairs: &mut Vec<(String, String)>, name: &str) -> Result<Option<String>, Error> {
    let Some(place) = pairs.iter().position(|(other, _)| other == name) else { return Ok(None) };
    let (_, value) = pairs.remove(place);
    if pairs.iter().any(|(other, _)| other == name) {
        return Err(Error::BadRequest(format!("{name} must not be given twice")));
    }
    Ok(Some(value))
}

fn add<T: Item>(conditions: &mut Conditions, name: &str, value: &str) -> Result<(), Error> {
    for (place, field) in T::fields().iter().enumerate() {
        if let Some(condition) = field.condition(name, value)? {
            return conditions
                .add(name, place, condition)
                .map_err(|GivenTwice| Error::BadRequest(format!("{name} must not be given twice")));
        }
    }
    let shown: String = name.chars().take(64).collect();
    let known: Vec<String> = T::fields().iter().flat_map(Field::parameters).collect();
    Err(Error::BadRequest(format!(
        "the parameter {shown:?} is not known; known are {}, {TAG}KEY, Sort, MaxResults and NextToken",
        known.join(", ")
    )))
}

/// `Field` or `-Field`.
fn order<T: Item>(sort: &str) -> Result<(Option<usize>, Direction), Error> {
    let (name, direction) = match sort.strip_prefix('-') {
        Some(name) => (name, Direction::Down),
        None => (sort, Direction::Up),
    };
    if name == T::ID {
        return Ok((None, direction));
    }
    let place = T::fields().iter().position(|field| field.name == name).ok_or_else(|| {
        let known: Vec<&str> = T::fields().iter().map(|field| field.name).collect();
        Error::BadRequest(format!("Sort must be one of {}, or one of them after a minus sign", known.join(", ")))
    })?;
    Ok((Some(place), direction))
}

fn resume(fingerprint: Fingerprint, token: &str) -> Result<Place<'static>, Error> {
    let place = fingerprint.resume(token)?;
    Place::from_text(&place).ok_or_else(|| Error::BadRequest("NextToken is not a token of this broker".to_owned()))
}
/// Answers a request for a page. `page` makes the body; `None` when more would
/// have to be looked at than it may.
pub(super) async fn answer<T: Item>(
    api: &ApiState,
    request_id: String,
    reading: &Reading,
    query: Option<String>,
    page: impl Fn(&Fleet, &Query, &str, usize) -> Option<Result<Vec<u8>, Error>> + Send + 'static,
) -> Result<Response, Error> {
    let query = Query::parse::<T>(query.as_deref().unwrap_or_default())?;
    let fleet = api.see(reading).await?;
    let body = api.scans.look(fleet, move |fleet, steps_max| page(fleet, &query, &request_id, steps_max)).await?;
    Ok(JsonBytes(body?).into_response())
}
