//! Facts by which servers and waiting requests find each other.
//!
//! Portals often ask for one particular host (`tag:session_id = '…'`), with
//! another text in each request. Such requirements hold for few servers, and
//! the fact that they demand leads straight there.
//!
//! Facts are kept as hashes: whoever is found is still asked whether the
//! requirements hold, so that two facts with one hash cost time only.

use super::stable_hash;
use crate::domain::requirements::{Expression, Key, Property};
use crate::domain::server::Server;

/// A fact: some tag, or some property, has this text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::domain) struct FactKey(u64);

impl FactKey {
    /// Comes before every other key.
    pub(in crate::domain) const LEAST: Self = Self(0);
}

/// Properties by which requests ask for one host.
const PROPERTIES: [Property; 3] = [Property::Id, Property::Hostname, Property::AwsEc2InstanceId];

fn tag(key: &str, text: &str) -> FactKey {
    FactKey(stable_hash(&["tag", key, text]))
}

fn property(property: Property, text: &str) -> FactKey {
    FactKey(stable_hash(&["server", property.as_str(), text]))
}

/// The facts of a server.
pub(in crate::domain) fn fact_keys(server: &Server) -> Vec<FactKey> {
    let facts = &*server.facts;
    let mut keys: Vec<FactKey> = facts.tags.iter().map(|(key, text)| tag(key, text)).collect();
    keys.push(property(Property::Id, server.id.as_str()));
    if !facts.hostname.is_empty() {
        keys.push(property(Property::Hostname, &facts.hostname));
    }
    if let Some(aws) = facts.aws.as_ref().filter(|aws| !aws.instance_id.is_empty()) {
        keys.push(property(Property::AwsEc2InstanceId, &aws.instance_id));
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The facts that a server must have for an expression to hold for it; not
/// all of them, but none that it could do without.
pub(in crate::domain) fn required_facts(expression: &Expression) -> impl Iterator<Item = FactKey> {
    expression.required_equalities().filter_map(|(key, text)| match key {
        Key::Tag(name) => Some(tag(name, text)),
        Key::Property(asked) => PROPERTIES.contains(asked).then(|| property(*asked, text)),
    })
}
