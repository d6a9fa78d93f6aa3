//! Finding the sessions and servers of one page. What a page costs is in
//! proportion to the page; only filters with several keys may look at more,
//! at most at what the rarest of them finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::error::Error;
use super::limits::ITEMS_MAX;
use super::pages::{self, Fingerprint};
use super::wire;
use crate::domain::fleet::{Label, Sighting};
use crate::domain::{Fleet, Owner, Server, ServerId, SessionId};

/// What is asked of the sessions; checked.
#[derive(Debug)]
pub(super) struct SessionQuery {
    ids: Option<Vec<SessionId>>,
    filters: Filters,
    size: usize,
    after: Option<SessionId>,
    fingerprint: Fingerprint,
}

/// What is asked of the servers; checked.
#[derive(Debug)]
pub(super) struct ServerQuery {
    ids: Option<Vec<ServerId>>,
    size: usize,
    after: Option<ServerId>,
    fingerprint: Fingerprint,
}

/// Conditions: values of one key are alternatives, all keys must hold.
#[derive(Debug, Default)]
struct Filters {
    owners: Option<BTreeSet<Owner>>,
    tags: BTreeMap<String, BTreeSet<String>>,
}

impl Filters {
    fn parse(pairs: Vec<wire::KeyValuePair>) -> Result<Self, Error> {
        if pairs.len() > ITEMS_MAX {
            return Err(Error::BadRequest(format!(
                "Filters has {} entries; at most {ITEMS_MAX} are allowed",
                pairs.len()
            )));
        }
        let mut filters = Self::default();
        for (place, pair) in pairs.into_iter().enumerate() {
            let missing = |field: &str| Error::BadRequest(format!("Filters[{place}].{field} is missing"));
            let key = pair.key.ok_or_else(|| missing("Key"))?;
            let value = pair.value.ok_or_else(|| missing("Value"))?;
            if key.eq_ignore_ascii_case("owner") {
                let owners = filters.owners.get_or_insert_default();
                // A text that cannot be an owner is nobody's.
                owners.extend(Owner::new(&value));
            } else if let Some(tag) = key.strip_prefix("tag:").filter(|tag| !tag.is_empty()) {
                filters.tags.entry(tag.to_owned()).or_default().insert(value);
            } else {
                let shown: String = key.chars().take(64).collect();
                return Err(Error::BadRequest(format!(
                    "Filters[{place}].Key {shown:?} is not supported; supported are owner and tag:KEY"
                )));
            }
        }
        Ok(filters)
    }

    /// Parts that identify them, in a fixed order.
    fn parts(&self) -> Vec<&str> {
        let mut parts = Vec::new();
        for owner in self.owners.iter().flatten() {
            parts.extend(["owner", owner.as_str()]);
        }
        for (tag, values) in &self.tags {
            for value in values {
                parts.extend(["tag", tag, value]);
            }
        }
        parts
    }

    /// The labels that sessions must carry, one of each group.
    fn groups(&self) -> Vec<Vec<Label>> {
        let owners = self.owners.iter().map(|owners| owners.iter().cloned().map(Label::Owner).collect());
        let tags = self.tags.iter().map(|(name, values)| {
            values.iter().map(|value| Label::Tag { name: name.clone(), value: value.clone() }).collect()
        });
        owners.chain(tags).collect()
    }

    fn hold_for(&self, seen: &Sighting<'_>) -> bool {
        let is_owner = self.owners.as_ref().is_none_or(|owners| owners.contains(&seen.session.spec.owner));
        let tag = |name: &String| seen.facts.and_then(|facts| facts.tags.get(name));
        is_owner && self.tags.iter().all(|(name, values)| tag(name).is_some_and(|value| values.contains(value)))
    }
}

impl TryFrom<wire::DescribeSessionsRequestData> for SessionQuery {
    type Error = Error;

    fn try_from(request: wire::DescribeSessionsRequestData) -> Result<Self, Error> {
        let size = pages::size(request.max_results)?;
        let ids = pages::wanted_ids("SessionIds", request.session_ids)?;
        let filters = Filters::parse(request.filters.unwrap_or_default())?;
        let fingerprint = Fingerprint::new(
            "sessions",
            ids.iter().flatten().map(String::as_str).chain(std::iter::once("\0")).chain(filters.parts()),
        );
        let after = resume(fingerprint, request.next_token, SessionId::new)?;
        // A text that cannot be an id is the id of nothing.
        let ids = ids.map(|ids| ids.iter().filter_map(|id| SessionId::new(id).ok()).collect());
        Ok(Self { ids, filters, size, after, fingerprint })
    }
}

impl TryFrom<wire::DescribeServersRequestData> for ServerQuery {
    type Error = Error;

    fn try_from(request: wire::DescribeServersRequestData) -> Result<Self, Error> {
        let size = pages::size(request.max_results)?;
        let ids = pages::wanted_ids("ServerIds", request.server_ids)?;
        let fingerprint = Fingerprint::new("servers", ids.iter().flatten().map(String::as_str));
        let after = resume(fingerprint, request.next_token, ServerId::new)?;
        let ids = ids.map(|ids| ids.iter().filter_map(|id| ServerId::new(id).ok()).collect());
        Ok(Self { ids, size, after, fingerprint })
    }
}

/// Where to go on. An empty token is none: some clients send it at first.
fn resume<T, E>(
    fingerprint: Fingerprint,
    token: Option<String>,
    id: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, Error> {
    let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(None) };
    let last = fingerprint.resume(&token)?;
    id(&last).map(Some).map_err(|_| Error::BadRequest("NextToken is not a token of this broker".to_owned()))
}

/// A page, and the token for the next one.
pub(super) type Page<T> = (Vec<T>, Option<String>);

impl SessionQuery {
    /// The same among the sessions of an owner, if one is given.
    #[must_use]
    pub(super) fn of_owner(mut self, owner: Option<Owner>) -> Self {
        if let Some(owner) = owner {
            let wanted = self.filters.owners.is_none_or(|owners| owners.contains(&owner));
            self.filters.owners = Some(if wanted { BTreeSet::from([owner]) } else { BTreeSet::new() });
        }
        self
    }

    /// The page; `None` when more than `steps_max` sessions would have to be
    /// looked at for it.
    pub(super) fn page<'a>(&self, fleet: &'a Fleet, steps_max: usize) -> Option<Page<Sighting<'a>>> {
        let after = self.after.as_ref();
        let (page, last) = if let Some(ids) = &self.ids {
            let left = ids.iter().filter(|id| after.is_none_or(|after| *id > after));
            let matching = left.filter_map(|id| fleet.sighting(id)).filter(|seen| self.filters.hold_for(seen));
            pages::cut(matching, self.size, |seen| seen.session.id.as_str())
        } else {
            let mut walk = fleet.walk(&self.filters.groups(), after, steps_max);
            let cut = pages::cut(&mut walk, self.size, |seen| seen.session.id.as_str());
            if walk.is_cut() {
                return None;
            }
            cut
        };
        Some((page, last.map(|last| self.fingerprint.token(&last))))
    }
}

impl ServerQuery {
    /// The page, and the token for the next one.
    pub(super) fn page<'a>(&self, fleet: &'a Fleet) -> Page<&'a Arc<Server>> {
        let after = self.after.as_ref();
        let (page, last) = match &self.ids {
            Some(ids) => {
                let left = ids.iter().filter(|id| after.is_none_or(|after| *id > after));
                pages::cut(left.filter_map(|id| fleet.server(id)), self.size, |server| server.id.as_str())
            }
            None => pages::cut(fleet.servers_from(after), self.size, |server| server.id.as_str()),
        };
        (page, last.map(|last| self.fingerprint.token(&last)))
    }
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;
