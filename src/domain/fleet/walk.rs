//! Walking through sessions by id, with labels that all must carry.
//!
//! A label is an owner, a server or a tag of the server; each has a listing in
//! `lookup.rs`. Labels of one group are alternatives and their listings are
//! merged; of several groups each must be met, and their listings leap over
//! one another: whoever is behind seeks the id of whoever is ahead. A walk so
//! costs in proportion to the smallest group, and a page in proportion to
//! itself where groups overlap well.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdSet;
use imbl::ordset::RangedIter;
use imbl::shared_ptr::DefaultSharedPtr;

use super::Fleet;
use super::lookup::Lookup;
use crate::domain::ids::{Owner, ServerId, SessionId};
use crate::domain::session::Session;

/// What sessions can be found by without looking at all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Label {
    /// Sessions of a user.
    Owner(Owner),
    /// Sessions that are, or were, on a server.
    Server(ServerId),
    /// Sessions that are, or were, on a server that has a tag now.
    Tag {
        /// Name of the tag.
        name: String,
        /// Its value.
        value: String,
    },
}

/// Ids under one key of a set, from some id on.
pub(super) struct Run<'a, K: Ord + Clone> {
    set: &'a OrdSet<(K, SessionId)>,
    key: K,
    rest: RangedIter<'a, (K, SessionId), DefaultSharedPtr>,
}

impl<'a, K: Ord + Clone> Run<'a, K> {
    pub(super) fn new(set: &'a OrdSet<(K, SessionId)>, key: K, after: Option<&SessionId>) -> Self {
        let from = match after {
            Some(after) => Bound::Excluded((key.clone(), after.clone())),
            None => Bound::Included((key.clone(), SessionId::least())),
        };
        Self { rest: set.range((from, Bound::Unbounded)), set, key }
    }
}

impl<'a, K: Ord + Clone> Iterator for Run<'a, K> {
    type Item = &'a SessionId;

    fn next(&mut self) -> Option<&'a SessionId> {
        self.rest.next().filter(|(key, _)| *key == self.key).map(|(_, id)| id)
    }
}

/// A listing by id that can leap forward.
trait Listing<'a> {
    fn next(&mut self) -> Option<&'a SessionId>;
    /// The first id that is at least the wanted one.
    fn seek(&mut self, wanted: &SessionId) -> Option<&'a SessionId>;
    /// The first id after another one.
    fn seek_after(&mut self, id: &SessionId) -> Option<&'a SessionId>;
}

impl<'a, K: Ord + Clone> Listing<'a> for Run<'a, K> {
    fn next(&mut self) -> Option<&'a SessionId> {
        Iterator::next(self)
    }

    fn seek(&mut self, wanted: &SessionId) -> Option<&'a SessionId> {
        // Neighbours are often close: one step is cheaper than a new descent.
        match Iterator::next(self) {
            Some(id) if id < wanted => {
                let from = Bound::Included((self.key.clone(), wanted.clone()));
                self.rest = self.set.range((from, Bound::Unbounded));
                Iterator::next(self)
            }
            next => next,
        }
    }

    fn seek_after(&mut self, id: &SessionId) -> Option<&'a SessionId> {
        *self = Self::new(self.set, self.key.clone(), Some(id));
        Iterator::next(self)
    }
}

/// The listings of one group, merged by id.
struct Group<'a> {
    listings: Vec<Box<dyn Listing<'a> + 'a>>,
    /// The next id of each listing that has one.
    heads: BinaryHeap<Reverse<(&'a SessionId, usize)>>,
}

impl<'a> Group<'a> {
    fn new(lookup: &'a Lookup, labels: &[Label], after: Option<&SessionId>) -> Self {
        let mut group = Self { listings: Vec::with_capacity(labels.len()), heads: BinaryHeap::new() };
        for label in labels {
            match label {
                Label::Owner(owner) => group.add(Box::new(lookup.sessions_of(owner)), after),
                Label::Server(server) => {
                    group.add(Box::new(lookup.sessions_on(server)), after);
                    group.add(Box::new(lookup.ended_on(server)), after);
                }
                Label::Tag { name, value } => {
                    if let Some(listing) = lookup.sessions_with(name, value) {
                        group.add(Box::new(listing), after);
                    }
                }
            }
        }
        group
    }

    fn add(&mut self, mut listing: Box<dyn Listing<'a> + 'a>, after: Option<&SessionId>) {
        let first = match after {
            Some(after) => listing.seek_after(after),
            None => listing.next(),
        };
        if let Some(id) = first {
            self.heads.push(Reverse((id, self.listings.len())));
            self.listings.push(listing);
        }
    }

    /// The id that comes next; it stays the next one.
    fn head(&self) -> Option<&'a SessionId> {
        self.heads.peek().map(|Reverse((id, _))| *id)
    }

    /// Goes past the head. An id that two alternatives list counts once.
    fn advance(&mut self) {
        let Some(past) = self.head() else { return };
        while let Some(Reverse((id, place))) = self.heads.peek().copied()
            && id == past
        {
            self.heads.pop();
            self.pull(place, |listing| listing.next());
        }
    }

    /// Goes to the first id that is at least the wanted one.
    fn seek(&mut self, wanted: &SessionId) {
        while let Some(Reverse((id, place))) = self.heads.peek().copied()
            && id < wanted
        {
            self.heads.pop();
            self.pull(place, |listing| listing.seek(wanted));
        }
    }

    fn pull(&mut self, place: usize, next: impl FnOnce(&mut (dyn Listing<'a> + 'a)) -> Option<&'a SessionId>) {
        if let Some(listing) = self.listings.get_mut(place)
            && let Some(id) = next(&mut **listing)
        {
            self.heads.push(Reverse((id, place)));
        }
    }
}

/// Sessions by id that carry a label of each group. Ends early when it has
/// taken as many steps as it may.
pub struct Walk<'a> {
    fleet: &'a Fleet,
    from: From<'a>,
    steps_left: usize,
    is_cut: bool,
}

enum From<'a> {
    All(imbl::ordmap::RangedIter<'a, SessionId, Arc<Session>, DefaultSharedPtr>),
    Labels(Vec<Group<'a>>),
}

impl Fleet {
    /// Sessions by id, after one if it is given, that carry a label of each
    /// group; without groups all sessions, with an empty group none. `steps_max`
    /// bounds the ids looked at.
    pub fn walk(&self, groups: &[Vec<Label>], after: Option<&SessionId>, steps_max: usize) -> Walk<'_> {
        let from = if groups.is_empty() {
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            From::All(self.sessions.range::<_, SessionId>((from, Bound::Unbounded)))
        } else {
            let lookup = self.index.lookup();
            From::Labels(groups.iter().map(|labels| Group::new(lookup, labels, after)).collect())
        };
        Walk { fleet: self, from, steps_left: steps_max, is_cut: false }
    }
}

impl Walk<'_> {
    /// Whether it ended because it took as many steps as it may.
    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = &'a Arc<Session>;

    fn next(&mut self) -> Option<&'a Arc<Session>> {
        loop {
            if self.is_cut {
                return None;
            }
            if self.steps_left == 0 {
                self.is_cut = true;
                return None;
            }
            self.steps_left -= 1;
            match &mut self.from {
                From::All(sessions) => return sessions.next().map(|(_, session)| session),
                From::Labels(groups) => {
                    let (wanted, is_common) = common(groups)?;
                    if !is_common {
                        groups.iter_mut().for_each(|group| group.seek(wanted));
                        continue;
                    }
                    groups.iter_mut().for_each(Group::advance);
                    // Listings name only sessions that there are.
                    if let Some(session) = self.fleet.sessions.get(wanted) {
                        return Some(session);
                    }
                }
            }
        }
    }
}

/// The id of the group that is ahead, and whether all groups are there; `None`
/// when some group has no more.
fn common<'a>(groups: &[Group<'a>]) -> Option<(&'a SessionId, bool)> {
    let mut heads = groups.iter().map(Group::head);
    let mut ahead = heads.next()??;
    let mut is_common = true;
    for head in heads {
        let head = head?;
        if head != ahead {
            is_common = false;
            ahead = ahead.max(head);
        }
    }
    Some((ahead, is_common))
}
