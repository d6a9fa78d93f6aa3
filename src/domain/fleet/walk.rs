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

use imbl::ordmap::RangedIter;
use imbl::shared_ptr::DefaultSharedPtr;

use super::Fleet;
use super::lookup::{Labelled, Lookup, Sighting};
use super::slots::Slot;
use crate::domain::ids::{Owner, ServerId, SessionId};

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

/// A session's id and place.
type Entry<'a> = (&'a SessionId, Slot);

/// Sessions under one label, from some id on.
pub(super) struct Run<'a, K: Ord + Clone> {
    map: &'a Labelled<K>,
    label: K,
    rest: RangedIter<'a, (K, SessionId), Slot, DefaultSharedPtr>,
}

impl<'a, K: Ord + Clone> Run<'a, K> {
    pub(super) fn new(map: &'a Labelled<K>, label: K, after: Option<&SessionId>) -> Self {
        let from = match after {
            Some(after) => Bound::Excluded((label.clone(), after.clone())),
            None => Bound::Included((label.clone(), SessionId::least())),
        };
        Self { rest: map.range((from, Bound::Unbounded)), map, label }
    }
}

impl<'a, K: Ord + Clone> Iterator for Run<'a, K> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        self.rest.next().filter(|((label, _), _)| *label == self.label).map(|((_, id), slot)| (id, *slot))
    }
}

/// A listing by id that can leap forward.
trait Listing<'a> {
    fn next(&mut self) -> Option<Entry<'a>>;
    /// The first session whose id is at least the wanted one.
    fn seek(&mut self, wanted: &SessionId) -> Option<Entry<'a>>;
    /// The first session after an id.
    fn seek_after(&mut self, id: &SessionId) -> Option<Entry<'a>>;
}

impl<'a, K: Ord + Clone> Listing<'a> for Run<'a, K> {
    fn next(&mut self) -> Option<Entry<'a>> {
        Iterator::next(self)
    }

    fn seek(&mut self, wanted: &SessionId) -> Option<Entry<'a>> {
        // Neighbours are often close: one step is cheaper than a new descent.
        match Iterator::next(self) {
            Some((id, _)) if id < wanted => {
                let from = Bound::Included((self.label.clone(), wanted.clone()));
                self.rest = self.map.range((from, Bound::Unbounded));
                Iterator::next(self)
            }
            next => next,
        }
    }

    fn seek_after(&mut self, id: &SessionId) -> Option<Entry<'a>> {
        *self = Self::new(self.map, self.label.clone(), Some(id));
        Iterator::next(self)
    }
}

/// The next session of a listing: id, number of the listing, place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Head<'a>(&'a SessionId, usize, Slot);

/// The listings of one group, merged by id.
struct Group<'a> {
    listings: Vec<Box<dyn Listing<'a> + 'a>>,
    /// The next session of each listing that has one.
    heads: BinaryHeap<Reverse<Head<'a>>>,
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
        if let Some((id, slot)) = first {
            self.heads.push(Reverse(Head(id, self.listings.len(), slot)));
            self.listings.push(listing);
        }
    }

    /// The session that comes next; it stays the next one.
    fn head(&self) -> Option<Entry<'a>> {
        self.heads.peek().map(|Reverse(Head(id, _, slot))| (*id, *slot))
    }

    /// Goes past the head. An id that two alternatives list counts once.
    fn advance(&mut self) {
        let Some((past, _)) = self.head() else { return };
        while let Some(Reverse(Head(id, place, _))) = self.heads.peek().copied()
            && id == past
        {
            self.heads.pop();
            self.pull(place, Listing::next);
        }
    }

    /// Goes to the first id that is at least the wanted one.
    fn seek(&mut self, wanted: &SessionId) {
        while let Some(Reverse(Head(id, place, _))) = self.heads.peek().copied()
            && id < wanted
        {
            self.heads.pop();
            self.pull(place, |listing| listing.seek(wanted));
        }
    }

    fn pull(&mut self, place: usize, next: impl FnOnce(&mut (dyn Listing<'a> + 'a)) -> Option<Entry<'a>>) {
        if let Some(listing) = self.listings.get_mut(place)
            && let Some((id, slot)) = next(&mut **listing)
        {
            self.heads.push(Reverse(Head(id, place, slot)));
        }
    }
}

/// Sessions by id that carry a label of each group. Ends early when it has
/// taken as many steps as it may.
pub struct Walk<'a> {
    lookup: &'a Lookup,
    source: Source<'a>,
    steps_left: usize,
    /// Found already, the next one last.
    batch: Vec<Sighting<'a>>,
    batch_size: usize,
    is_cut: bool,
}

/// Sessions found at a time, at first and at most: growing, so that a walk
/// finds little more than it is asked for.
const BATCH_SIZES: (usize, usize) = (8, 512);

enum Source<'a> {
    All(RangedIter<'a, SessionId, Slot, DefaultSharedPtr>),
    Labels(Vec<Group<'a>>),
}

impl Fleet {
    /// Sessions by id, after one if it is given, that carry a label of each
    /// group; without groups all sessions, with an empty group none. `steps_max`
    /// bounds the ids looked at.
    pub fn walk(&self, groups: &[Vec<Label>], after: Option<&SessionId>, steps_max: usize) -> Walk<'_> {
        let lookup = self.index.lookup();
        let source = if groups.is_empty() {
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            Source::All(lookup.all().range::<_, SessionId>((from, Bound::Unbounded)))
        } else {
            Source::Labels(groups.iter().map(|labels| Group::new(lookup, labels, after)).collect())
        };
        Walk { lookup, source, steps_left: steps_max, batch: Vec::new(), batch_size: BATCH_SIZES.0, is_cut: false }
    }

    /// A session with what it shows of its server.
    pub fn sighting(&self, id: &SessionId) -> Option<Sighting<'_>> {
        let lookup = self.index.lookup();
        lookup.sighting(*lookup.all().get(id)?)
    }
}

impl Walk<'_> {
    /// Whether it ended because it took as many steps as it may.
    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }

    fn next_slot(&mut self) -> Option<Slot> {
        while self.steps_left > 0 {
            self.steps_left -= 1;
            match &mut self.source {
                Source::All(sessions) => return sessions.next().map(|(_, slot)| *slot),
                Source::Labels(groups) => {
                    let ((wanted, slot), is_common) = common(groups)?;
                    if is_common {
                        groups.iter_mut().for_each(Group::advance);
                        return Some(slot);
                    }
                    for group in groups.iter_mut() {
                        group.seek(wanted);
                    }
                }
            }
        }
        None
    }

    /// First the places, then what stands there: the latter comes from all
    /// over the memory, which answers several requests at a time unless other
    /// work stands between them.
    fn fill(&mut self) {
        let mut slots = Vec::with_capacity(self.batch_size);
        while slots.len() < self.batch_size
            && let Some(slot) = self.next_slot()
        {
            slots.push(slot);
        }
        self.batch_size = (2 * self.batch_size).min(BATCH_SIZES.1);
        // Listings name only places that are taken.
        self.batch.extend(slots.iter().rev().filter_map(|slot| self.lookup.sighting(*slot)));
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Sighting<'a>;

    fn next(&mut self) -> Option<Sighting<'a>> {
        if self.batch.is_empty() {
            self.fill();
        }
        let next = self.batch.pop();
        self.is_cut = next.is_none() && self.steps_left == 0;
        next
    }
}

/// The session of the group that is ahead, and whether all groups are there;
/// `None` when some group has no more.
fn common<'a>(groups: &[Group<'a>]) -> Option<(Entry<'a>, bool)> {
    let mut heads = groups.iter().map(Group::head);
    let mut ahead = heads.next()??;
    let mut is_common = true;
    for head in heads {
        let head = head?;
        if head.0 != ahead.0 {
            is_common = false;
            if head.0 > ahead.0 {
                ahead = head;
            }
        }
    }
    Some((ahead, is_common))
}
