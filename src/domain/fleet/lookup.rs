//! Sessions by what listings ask for: owner, server, tags of the server.
//!
//! Part of the derived index: a function of the state, kept up by `fold`,
//! built anew from a snapshot, and equal either way. Each set is ordered by
//! label and then by session id, so that a page of a listing is one range, and
//! `walk.rs` can go through several of them side by side.
//!
//! A session carries the tags of the server that it is, or was, on. A fleet
//! has many sessions and few different tags and owners, so their texts are
//! shared: one allocation for each, whoever carries it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::walk::Run;
use crate::domain::ids::{Owner, ServerId, SessionId};
use crate::domain::session::Session;

/// A tag with its value, as one text: length of the name, name, value. The
/// length keeps ("ab", "c") and ("a", "bc") apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TagKey(Arc<str>);

impl TagKey {
    pub(super) fn new(name: &str, value: &str) -> Self {
        Self(Arc::from(format!("{}:{name}{value}", name.len())))
    }
}

impl Ord for TagKey {
    /// Mostly a text meets itself: the sets share it.
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for TagKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Sessions by label.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lookup {
    by_owner: OrdSet<(Owner, SessionId)>,
    /// Sessions that take up room on a server.
    on_server: OrdSet<(ServerId, SessionId)>,
    /// Deleted sessions, by the server that they were on.
    ended_on_server: OrdSet<(ServerId, SessionId)>,
    by_tag: OrdSet<(TagKey, SessionId)>,
    /// Tags of each server that is listed.
    tags: OrdMap<ServerId, Arc<[TagKey]>>,
    /// Servers that carry a tag; none is not listed. Its keys are the texts
    /// that all others share.
    servers_with: OrdMap<TagKey, u32>,
}

impl Lookup {
    /// Sessions that take up room on a server, by id.
    pub(super) fn sessions_on<'a>(&'a self, server: &ServerId) -> Run<'a, ServerId> {
        Run::new(&self.on_server, server.clone(), None)
    }

    /// Deleted sessions that were on a server, by id.
    pub(super) fn ended_on<'a>(&'a self, server: &ServerId) -> Run<'a, ServerId> {
        Run::new(&self.ended_on_server, server.clone(), None)
    }

    /// Sessions of an owner, by id.
    pub(super) fn sessions_of<'a>(&'a self, owner: &Owner) -> Run<'a, Owner> {
        Run::new(&self.by_owner, owner.clone(), None)
    }

    /// Sessions on servers with a tag, by id; `None` when no server has it.
    pub(super) fn sessions_with<'a>(&'a self, name: &str, value: &str) -> Option<Run<'a, TagKey>> {
        let (shared, _) = self.servers_with.get_key_value(&TagKey::new(name, value))?;
        Some(Run::new(&self.by_tag, shared.clone(), None))
    }

    /// The owner as the others of the same name have it.
    pub(super) fn shared_owner(&self, owner: &Owner) -> Owner {
        let first = self.by_owner.get_next(&(owner.clone(), SessionId::least()));
        first.filter(|(other, _)| other == owner).map_or_else(|| owner.clone(), |(shared, _)| shared.clone())
    }

    /// Takes a session out as it was and puts it in as it is. What did not
    /// change is not touched: most changes of a session concern no listing.
    pub(super) fn replace_session(&mut self, old: Option<&Session>, new: Option<&Session>) {
        let owner_of = |session: Option<&Session>| session.map(|session| session.spec.owner.clone());
        let (was, is) = (owner_of(old), owner_of(new));
        if was != is {
            if let (Some(session), Some(owner)) = (old, was) {
                self.by_owner.remove(&(owner, session.id.clone()));
            }
            if let (Some(session), Some(owner)) = (new, is) {
                self.by_owner.insert((self.shared_owner(&owner), session.id.clone()));
            }
        }
        self.replace_on_server(old, new);
        self.replace_tags(old, new);
    }

    fn replace_on_server(&mut self, old: Option<&Session>, new: Option<&Session>) {
        let place_of = |session: Option<&Session>| {
            session.and_then(|session| Some((session.phase.server()?.clone(), session.phase.is_deleted())))
        };
        let (was, is) = (place_of(old), place_of(new));
        if was == is {
            return;
        }
        if let (Some(session), Some((server, ended))) = (old, was) {
            self.set_on_server(ended).remove(&(server, session.id.clone()));
        }
        if let (Some(session), Some((server, ended))) = (new, is) {
            self.set_on_server(ended).insert((server, session.id.clone()));
        }
    }

    fn set_on_server(&mut self, ended: bool) -> &mut OrdSet<(ServerId, SessionId)> {
        if ended { &mut self.ended_on_server } else { &mut self.on_server }
    }

    fn replace_tags(&mut self, old: Option<&Session>, new: Option<&Session>) {
        let server_of = |session: Option<&Session>| session.and_then(|session| session.phase.server()).cloned();
        let (was, is) = (server_of(old), server_of(new));
        if was == is {
            return;
        }
        if let (Some(session), Some(server)) = (old, was) {
            for tag in self.tags_of(&server).iter() {
                self.by_tag.remove(&(tag.clone(), session.id.clone()));
            }
        }
        if let (Some(session), Some(server)) = (new, is) {
            for tag in self.tags_of(&server).iter() {
                self.by_tag.insert((tag.clone(), session.id.clone()));
            }
        }
    }

    fn tags_of(&self, server: &ServerId) -> Arc<[TagKey]> {
        self.tags.get(server).cloned().unwrap_or_default()
    }

    /// Sets the tags of a server, and with them those of its sessions; `None`
    /// for a server that is no longer listed.
    pub(super) fn set_tags(&mut self, server: &ServerId, tags: Option<&BTreeMap<String, String>>) {
        let old = self.tags_of(server);
        let wanted: Vec<TagKey> = tags.into_iter().flatten().map(|(name, value)| TagKey::new(name, value)).collect();
        if tags.is_some() && self.tags.contains_key(server) && *old == *wanted {
            return;
        }
        let new: Arc<[TagKey]> = wanted.into_iter().map(|tag| self.carried_by_one_more(tag)).collect();
        for tag in old.iter() {
            self.carried_by_one_less(tag);
        }
        let sessions: Vec<SessionId> = self.sessions_on(server).chain(self.ended_on(server)).cloned().collect();
        for session in sessions {
            for tag in old.iter().filter(|tag| !new.contains(tag)) {
                self.by_tag.remove(&(tag.clone(), session.clone()));
            }
            for tag in new.iter().filter(|tag| !old.contains(tag)) {
                self.by_tag.insert((tag.clone(), session.clone()));
            }
        }
        match tags {
            Some(_) => self.tags.insert(server.clone(), new),
            None => self.tags.remove(server),
        };
    }

    /// Counts a server that carries a tag, and gives the text that all share.
    fn carried_by_one_more(&mut self, tag: TagKey) -> TagKey {
        let known = self.servers_with.get_key_value(&tag).map(|(shared, count)| (shared.clone(), *count));
        let (shared, count) = known.unwrap_or((tag, 0));
        self.servers_with.insert(shared.clone(), count + 1);
        shared
    }

    fn carried_by_one_less(&mut self, tag: &TagKey) {
        match self.servers_with.get(tag).copied().unwrap_or_default() {
            0 | 1 => self.servers_with.remove(tag),
            count => self.servers_with.insert(tag.clone(), count - 1),
        };
    }
}
