//! Sessions by what listings ask for: id, owner, server, tags of the server.
//!
//! Part of the derived index: a function of the state, kept up by `fold` and
//! built anew from a snapshot. Each map is ordered by label and then by session
//! id, so that a page of a listing is one range, and `walk.rs` can go through
//! several of them side by side.
//!
//! A page of a large fleet costs what it fetches from memory, not what it
//! computes. So the maps lead to numbered places, from which a session and
//! what it shows of its server are reached without a further search; and the
//! texts of tags and owners, few and repeated, are shared by all who carry them.
//!
//! A session carries the tags of the server that it is, or was, on.

use std::cmp::Ordering;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::slots::{Slot, Slots};
use super::walk::Run;
use crate::domain::ids::{Owner, ServerId, SessionId};
use crate::domain::server::{Facts, Server};
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
    /// Mostly a text meets itself: the maps share it.
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for TagKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Places of sessions by a label and their id.
pub(super) type Labelled<K> = OrdMap<(K, SessionId), Slot>;

/// A session, and what it shows of its server. Facts change seldom; whether
/// the server is lost may change for many at a time, and is not in it.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    session: Arc<Session>,
    /// `None` when it has no server, or none that is listed.
    facts: Option<Arc<Facts>>,
}

/// A server that is listed.
#[derive(Debug, Clone, PartialEq)]
struct Listed {
    facts: Arc<Facts>,
    tags: Arc<[TagKey]>,
}

/// A session as listings come upon it, with what it shows of its server.
#[derive(Debug, Clone, Copy)]
pub struct Sighting<'a> {
    /// The session.
    pub session: &'a Arc<Session>,
    /// Facts of its server, when that is listed.
    pub facts: Option<&'a Facts>,
    /// Whether its server counts as gone, or is not listed.
    pub is_lost: bool,
}

/// A session, what it shows of its server, and whether that counts as gone.
type Seen<'a> = (&'a Session, Option<&'a Facts>, bool);

/// Sessions by label.
#[derive(Debug, Clone, Default)]
pub(super) struct Lookup {
    by_id: OrdMap<SessionId, Slot>,
    by_owner: Labelled<Owner>,
    /// Sessions that take up room on a server.
    on_server: Labelled<ServerId>,
    /// Deleted sessions, by the server that they were on.
    ended_on_server: Labelled<ServerId>,
    by_tag: Labelled<TagKey>,
    /// Servers that carry a tag; none is not listed. Its keys are the texts
    /// that all others share.
    servers_with: OrdMap<TagKey, u32>,
    servers: OrdMap<ServerId, Listed>,
    /// Servers that are listed and count as gone; mostly none.
    lost: OrdSet<ServerId>,
    rows: Slots<Row>,
}

impl Lookup {
    /// Places of all sessions, by id.
    pub(super) const fn all(&self) -> &OrdMap<SessionId, Slot> {
        &self.by_id
    }

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
        Run::new(&self.by_owner, self.shared_owner(owner), None)
    }

    /// Sessions on servers with a tag, by id; `None` when no server has it.
    pub(super) fn sessions_with<'a>(&'a self, name: &str, value: &str) -> Option<Run<'a, TagKey>> {
        let (shared, _) = self.servers_with.get_key_value(&TagKey::new(name, value))?;
        Some(Run::new(&self.by_tag, shared.clone(), None))
    }

    /// The session at a place.
    pub(super) fn sighting(&self, slot: Slot) -> Option<Sighting<'_>> {
        let Row { session, facts } = self.rows.get(slot)?;
        let is_lost = facts.is_none()
            || (!self.lost.is_empty() && session.phase.server().is_some_and(|server| self.lost.contains(server)));
        Some(Sighting { session, facts: facts.as_deref(), is_lost })
    }

    /// The owner as the others of the same name have it.
    pub(super) fn shared_owner(&self, owner: &Owner) -> Owner {
        let first = self.by_owner.get_next(&(owner.clone(), SessionId::least()));
        first.filter(|((other, _), _)| other == owner).map_or_else(|| owner.clone(), |((shared, _), _)| shared.clone())
    }

    /// Takes a session out as it was and puts it in as it is. What did not
    /// change is not touched: most changes of a session concern no listing.
    pub(super) fn replace_session(&mut self, old: Option<&Session>, new: Option<&Arc<Session>>) {
        let Some(id) = old.or(new.map(|new| &**new)).map(|session| session.id.clone()) else { return };
        let known = self.by_id.get(&id).copied();
        let slot = match (known, new) {
            (Some(slot), Some(session)) => {
                let facts = self.rows.get(slot).and_then(|row| row.facts.clone());
                self.rows.set(slot, Row { session: Arc::clone(session), facts });
                slot
            }
            (None, Some(session)) => {
                let slot = self.rows.add(Row { session: Arc::clone(session), facts: None });
                self.by_id.insert(id.clone(), slot);
                slot
            }
            (Some(slot), None) => slot,
            (None, None) => return,
        };
        let new = new.map(|new| &**new);
        self.replace_owner(&id, slot, old, new);
        self.replace_place(&id, slot, old, new);
        self.replace_server(&id, slot, old, new);
        if new.is_none() {
            self.by_id.remove(&id);
            self.rows.remove(slot);
        }
    }

    fn replace_owner(&mut self, id: &SessionId, slot: Slot, old: Option<&Session>, new: Option<&Session>) {
        let owner_of = |session: Option<&Session>| session.map(|session| session.spec.owner.clone());
        let (was, is) = (owner_of(old), owner_of(new));
        if was == is {
            return;
        }
        if let Some(owner) = was {
            self.by_owner.remove(&(owner, id.clone()));
        }
        if let Some(owner) = is {
            self.by_owner.insert((self.shared_owner(&owner), id.clone()), slot);
        }
    }

    fn replace_place(&mut self, id: &SessionId, slot: Slot, old: Option<&Session>, new: Option<&Session>) {
        let place_of = |session: Option<&Session>| {
            session.and_then(|session| Some((session.phase.server()?.clone(), session.phase.is_deleted())))
        };
        let (was, is) = (place_of(old), place_of(new));
        if was == is {
            return;
        }
        if let Some((server, ended)) = was {
            self.labelled_by_server(ended).remove(&(server, id.clone()));
        }
        if let Some((server, ended)) = is {
            self.labelled_by_server(ended).insert((server, id.clone()), slot);
        }
    }

    fn labelled_by_server(&mut self, ended: bool) -> &mut Labelled<ServerId> {
        if ended { &mut self.ended_on_server } else { &mut self.on_server }
    }

    fn replace_server(&mut self, id: &SessionId, slot: Slot, old: Option<&Session>, new: Option<&Session>) {
        let server_of = |session: Option<&Session>| session.and_then(|session| session.phase.server()).cloned();
        let (was, is) = (server_of(old), server_of(new));
        if was == is {
            return;
        }
        if let Some(listed) = was.and_then(|server| self.servers.get(&server).cloned()) {
            for tag in listed.tags.iter() {
                self.by_tag.remove(&(tag.clone(), id.clone()));
            }
        }
        let listed = is.and_then(|server| self.servers.get(&server).cloned());
        for tag in listed.iter().flat_map(|listed| listed.tags.iter()) {
            self.by_tag.insert((tag.clone(), id.clone()), slot);
        }
        self.set_facts(slot, listed.map(|listed| listed.facts));
    }

    fn set_facts(&mut self, slot: Slot, facts: Option<Arc<Facts>>) {
        if let Some(session) = self.rows.get(slot).map(|row| Arc::clone(&row.session)) {
            self.rows.set(slot, Row { session, facts });
        }
    }

    /// Brings what is shown of a server, and the tags of its sessions, up to
    /// its record; `None` for a server that is no longer listed.
    pub(super) fn set_server(&mut self, id: &ServerId, server: Option<&Server>) {
        let is_lost = server.is_some_and(|server| server.link.is_lost());
        if is_lost {
            self.lost.insert(id.clone());
        } else if !self.lost.is_empty() {
            self.lost.remove(id);
        }
        let facts = server.map(|server| Arc::clone(&server.facts));
        let known = self.servers.get(id).map(|listed| &listed.facts);
        match (known, &facts) {
            (None, None) => return,
            (Some(known), Some(facts)) if Arc::ptr_eq(known, facts) => return,
            _ => {}
        }
        let sessions = self.sessions_ever_on(id);
        for (_, slot) in &sessions {
            self.set_facts(*slot, facts.clone());
        }
        let old = self.servers.get(id).map(|listed| Arc::clone(&listed.tags)).unwrap_or_default();
        let tags = facts.iter().flat_map(|facts| &facts.tags).map(|(name, value)| TagKey::new(name, value));
        let new = self.replace_tags(&sessions, &old, tags.collect());
        match facts {
            Some(facts) => self.servers.insert(id.clone(), Listed { facts, tags: new }),
            None => self.servers.remove(id),
        };
    }

    /// Gives sessions other tags; returns them as they are shared.
    fn replace_tags(
        &mut self,
        sessions: &[(SessionId, Slot)],
        old: &Arc<[TagKey]>,
        wanted: Vec<TagKey>,
    ) -> Arc<[TagKey]> {
        if **old == *wanted {
            return Arc::clone(old);
        }
        let new: Arc<[TagKey]> = wanted.into_iter().map(|tag| self.carried_by_one_more(tag)).collect();
        for tag in old.iter() {
            self.carried_by_one_less(tag);
        }
        for (session, slot) in sessions {
            for tag in old.iter().filter(|tag| !new.contains(tag)) {
                self.by_tag.remove(&(tag.clone(), session.clone()));
            }
            for tag in new.iter().filter(|tag| !old.contains(tag)) {
                self.by_tag.insert((tag.clone(), session.clone()), *slot);
            }
        }
        new
    }

    /// Sessions that are, or were, on a server.
    fn sessions_ever_on(&self, server: &ServerId) -> Vec<(SessionId, Slot)> {
        self.sessions_on(server).chain(self.ended_on(server)).map(|(id, slot)| (id.clone(), slot)).collect()
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

    /// What is found under all labels, without the numbers of places: those
    /// depend on what was before.
    fn found(&self) -> impl Iterator<Item = (&SessionId, Option<Seen<'_>>)> {
        let places = self
            .by_id
            .iter()
            .chain(self.by_owner.iter().map(|((_, id), slot)| (id, slot)))
            .chain(self.on_server.iter().chain(self.ended_on_server.iter()).map(|((_, id), slot)| (id, slot)))
            .chain(self.by_tag.iter().map(|((_, id), slot)| (id, slot)));
        places.map(|(id, slot)| (id, self.sighting(*slot).map(|seen| (&**seen.session, seen.facts, seen.is_lost))))
    }
}

/// Two are equal when they find the same, wherever they keep it.
impl PartialEq for Lookup {
    fn eq(&self, other: &Self) -> bool {
        self.by_id.keys().eq(other.by_id.keys())
            && self.by_owner.keys().eq(other.by_owner.keys())
            && self.on_server.keys().eq(other.on_server.keys())
            && self.ended_on_server.keys().eq(other.ended_on_server.keys())
            && self.by_tag.keys().eq(other.by_tag.keys())
            && self.servers_with == other.servers_with
            && self.rows.len() == other.rows.len()
            && self.servers == other.servers
            && self.lost == other.lost
            && self.found().eq(other.found())
    }
}

impl Eq for Lookup {}
