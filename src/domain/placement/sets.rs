//! The servers that match each expression in use, in order of preference, kept
//! up to date as servers change.
//!
//! Servers that match the same expressions form a class. A server stands in
//! the orders of its class alone, so that a session that comes or goes moves it
//! in one place, however many expressions are in use. For each expression the
//! best of each of its classes are kept in order: the best of these is the best
//! of the set, and the classes are opened one after the other when it does not
//! suit.
//!
//! Which sets are kept is a matter of speed only. The choice does not depend on
//! it, so replicas may keep different ones, and one that was restored from a
//! snapshot keeps none at first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};

use super::facts::{FactKey, fact_keys, required_facts};
use super::rank::{Counts, Order, Rank, Standing};
use super::{Rule, stable_hash};
use crate::domain::ids::ServerId;
use crate::domain::requirements::Expression;
use crate::domain::server::Server;
use crate::domain::session::SessionKind;

/// Expressions whose sets are kept: one bit of a signature each.
const SETS_MAX: u8 = 128;
/// Expressions that were asked for once and are remembered; the second time
/// makes a set worth its upkeep.
const REMEMBERED_MAX: usize = 256;
/// Servers that a required fact may lead to and that are looked at one by one.
const NARROW_MAX: usize = 64;

/// Which sets a server is in, bit by bit.
type Signature = u128;

/// What changed on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::domain) enum Changed {
    /// Its sessions, its connection or its health.
    Standing,
    /// Its load as well.
    Load,
    /// Anything.
    Facts,
}

/// A kind of session and an order.
#[derive(Debug, Clone, Copy)]
struct Lane(SessionKind, Order);

const LANES: [Lane; 4] = [
    Lane(SessionKind::Console, Order::LeastFirst),
    Lane(SessionKind::Console, Order::MostFirst),
    Lane(SessionKind::Virtual, Order::LeastFirst),
    Lane(SessionKind::Virtual, Order::MostFirst),
];

impl Lane {
    const fn number(self) -> usize {
        let kind = match self.0 {
            SessionKind::Console => 0,
            SessionKind::Virtual => 2,
        };
        let order = match self.1 {
            Order::LeastFirst => 0,
            Order::MostFirst => 1,
        };
        kind + order
    }
}

/// Servers in order, lane by lane.
type Orders = [OrdSet<Rank>; LANES.len()];

#[derive(Debug, Clone)]
struct Place {
    standing: Standing,
    signature: Signature,
    facts: Arc<[FactKey]>,
}

#[derive(Debug, Clone)]
struct Set {
    expression: Arc<Expression>,
    reads_load: bool,
    used: u64,
    /// The best of each class in it.
    firsts: Orders,
}

/// All servers and where they stand.
#[derive(Debug, Clone, Default)]
pub(in crate::domain) struct ServerSets {
    places: OrdMap<ServerId, Place>,
    by_fact: OrdSet<(FactKey, ServerId)>,
    /// How many servers take no session of a kind, by the rule that says so.
    refusals: OrdMap<(SessionKind, Rule), u32>,
    /// Classes that somebody can be placed in.
    classes: OrdMap<Signature, Orders>,
    /// The best of each class.
    firsts: Orders,
    sets: OrdMap<u8, Set>,
    numbers: OrdMap<Arc<Expression>, u8>,
    asked_once: Vector<u64>,
    uses: u64,
}

/// Equal when what the state decides is equal: which sets are kept does not count.
impl PartialEq for ServerSets {
    fn eq(&self, other: &Self) -> bool {
        let same_places = self.places.len() == other.places.len()
            && self.places.iter().zip(&other.places).all(|((one, here), (another, there))| {
                one == another && here.standing == there.standing && here.facts == there.facts
            });
        same_places && self.by_fact == other.by_fact && self.refusals == other.refusals
    }
}

impl ServerSets {
    /// Whether the sets hold just the servers that match, in the right order.
    pub(in crate::domain) fn are_true<'a>(&self, servers: impl Iterator<Item = &'a Arc<Server>>) -> bool {
        let without_firsts = |set: &Set| Set { firsts: Orders::default(), ..set.clone() };
        let sets = self.sets.iter().map(|(number, set)| (*number, without_firsts(set))).collect();
        let mut rebuilt = Self { sets, ..Self::default() };
        for server in servers {
            let Some(place) = self.places.get(&server.id) else { return false };
            let signature = rebuilt.signature(server, 0, |_| true);
            rebuilt.enter(&server.id, &Place { signature, ..place.clone() });
        }
        let same_firsts =
            self.sets.iter().zip(&rebuilt.sets).all(|((_, here), (_, there))| here.firsts == there.firsts);
        same_firsts && self.classes == rebuilt.classes && self.firsts == rebuilt.firsts
    }

    /// A server's standing.
    pub(in crate::domain) fn standing(&self, server: &ServerId) -> Option<&Standing> {
        self.places.get(server).map(|place| &place.standing)
    }

    /// The facts of a server.
    pub(in crate::domain) fn facts_of(&self, server: &ServerId) -> &[FactKey] {
        self.places.get(server).map_or(&[], |place| &place.facts)
    }

    /// How many servers take no session of a kind, by the rule that says so.
    pub(in crate::domain) fn refusals(&self, kind: SessionKind) -> impl Iterator<Item = (Rule, u32)> {
        self.refusals.iter().filter(move |((of, _), _)| *of == kind).map(|((_, rule), count)| (*rule, *count))
    }

    /// How many servers take some session of a kind.
    pub(in crate::domain) fn that_take(&self, kind: SessionKind) -> usize {
        let refused: usize = self.refusals(kind).map(|(_, count)| count as usize).sum();
        self.places.len().saturating_sub(refused)
    }

    /// Puts a server where it belongs now. Says whether a session may fit now
    /// that did not fit before, as far as its standing tells.
    pub(in crate::domain) fn put(&mut self, server: &Server, closed: bool, counts: Counts, changed: Changed) -> bool {
        let standing = Standing::of(server, closed, counts);
        let old = self.places.get(&server.id).cloned();
        let signature = match (&old, changed) {
            (None, _) | (_, Changed::Facts) => self.signature(server, 0, |_| true),
            (Some(old), Changed::Load) => self.signature(server, old.signature, |set| set.reads_load),
            (Some(old), Changed::Standing) => old.signature,
        };
        let facts = match &old {
            Some(old) if changed < Changed::Facts => Arc::clone(&old.facts),
            _ => Arc::from(fact_keys(server)),
        };
        let more = old.as_ref().is_none_or(|old| standing.takes_more_than(&old.standing));
        let place = Place { standing, signature, facts };
        if let Some(old) = &old {
            if old.standing == place.standing && old.signature == place.signature && old.facts == place.facts {
                return false;
            }
            self.withdraw(&server.id, old);
            self.index_facts(&server.id, &old.facts, &place.facts);
        } else {
            self.index_facts(&server.id, &[], &place.facts);
        }
        self.enter(&server.id, &place);
        self.places.insert(server.id.clone(), place);
        more
    }

    /// A server is gone.
    pub(in crate::domain) fn remove(&mut self, server: &ServerId) {
        let Some(place) = self.places.remove(server) else { return };
        self.withdraw(server, &place);
        self.index_facts(server, &place.facts, &[]);
    }

    /// Notes that an expression is asked for, and makes its set when it was
    /// asked for before and no fact leads to its servers.
    pub(in crate::domain) fn note_use<'a>(
        &mut self,
        expression: &Arc<Expression>,
        servers: impl Iterator<Item = &'a Arc<Server>>,
    ) {
        self.uses += 1;
        if let Some(number) = self.numbers.get(expression).copied() {
            if let Some(set) = self.sets.get_mut(&number) {
                set.used = self.uses;
            }
            return;
        }
        if self.narrow(expression).is_some() {
            return;
        }
        let hash = stable_hash(&[&expression.to_string()]);
        if !self.asked_once.contains(&hash) {
            if self.asked_once.len() >= REMEMBERED_MAX {
                self.asked_once.pop_front();
            }
            self.asked_once.push_back(hash);
            return;
        }
        self.asked_once.retain(|other| *other != hash);
        let number = self.free_number();
        self.make(number, expression, servers);
    }

    /// The few servers that an expression can hold for, when a fact that it
    /// demands leads to them.
    pub(super) fn narrow(&self, expression: &Expression) -> Option<Vec<&ServerId>> {
        required_facts(expression).find_map(|fact| {
            let found: Vec<&ServerId> = self.with_fact(fact).take(NARROW_MAX + 1).collect();
            (found.len() <= NARROW_MAX).then_some(found)
        })
    }

    /// Servers in order: those of the expression's set when it is kept, all
    /// that take some session of the kind otherwise.
    pub(super) fn in_order(
        &self,
        kind: SessionKind,
        order: Order,
        expression: Option<&Expression>,
    ) -> impl Iterator<Item = &Rank> {
        let lane = Lane(kind, order);
        let set =
            expression.and_then(|expression| self.numbers.get(expression)).and_then(|number| self.sets.get(number));
        let firsts = set.map_or(&self.firsts, |set| &set.firsts);
        Walk { sets: self, lane, unopened: firsts[lane.number()].iter().peekable(), open: BinaryHeap::new() }
    }

    fn with_fact(&self, fact: FactKey) -> impl Iterator<Item = &ServerId> {
        self.by_fact.range((fact, ServerId::least())..).take_while(move |(other, _)| *other == fact).map(|(_, id)| id)
    }

    /// The signature of a server; bits of sets that `asked` leaves out stay as
    /// they were.
    fn signature(&self, server: &Server, before: Signature, asked: impl Fn(&Set) -> bool) -> Signature {
        let mut signature = before;
        for (number, set) in &self.sets {
            if asked(set) {
                let bit = 1 << number;
                signature = if set.expression.holds(server) { signature | bit } else { signature & !bit };
            }
        }
        signature
    }

    fn index_facts(&mut self, server: &ServerId, old: &[FactKey], new: &[FactKey]) {
        for fact in old.iter().filter(|fact| !new.contains(fact)) {
            self.by_fact.remove(&(*fact, server.clone()));
        }
        for fact in new.iter().filter(|fact| !old.contains(fact)) {
            self.by_fact.insert((*fact, server.clone()));
        }
    }

    fn enter(&mut self, server: &ServerId, place: &Place) {
        self.count_refusals(&place.standing, true);
        self.move_in_class(server, place, |orders, rank| {
            orders.insert(rank);
        });
    }

    fn withdraw(&mut self, server: &ServerId, place: &Place) {
        self.count_refusals(&place.standing, false);
        self.move_in_class(server, place, |orders, rank| {
            orders.remove(&rank);
        });
    }

    fn count_refusals(&mut self, standing: &Standing, came: bool) {
        for kind in [SessionKind::Console, SessionKind::Virtual] {
            let Some(rule) = standing.refusal(kind) else { continue };
            let count = self.refusals.get(&(kind, rule)).copied().unwrap_or_default();
            match if came { count + 1 } else { count.saturating_sub(1) } {
                0 => self.refusals.remove(&(kind, rule)),
                count => self.refusals.insert((kind, rule), count),
            };
        }
    }

    /// Changes the orders of a server's class in the lanes in which it stands,
    /// and keeps the firsts true.
    fn move_in_class(&mut self, server: &ServerId, place: &Place, change: impl Fn(&mut OrdSet<Rank>, Rank)) {
        for lane in LANES {
            if place.standing.refusal(lane.0).is_some() {
                continue;
            }
            let orders = &mut self.classes.entry(place.signature).or_default()[lane.number()];
            let old = orders.get_min().cloned();
            change(orders, place.standing.rank(server, lane.1));
            let new = orders.get_min().cloned();
            self.replace_first(place.signature, lane, old.as_ref(), new.as_ref());
        }
        if self.classes.get(&place.signature).is_some_and(|orders| orders.iter().all(OrdSet::is_empty)) {
            self.classes.remove(&place.signature);
        }
    }

    fn replace_first(&mut self, class: Signature, lane: Lane, old: Option<&Rank>, new: Option<&Rank>) {
        if old == new {
            return;
        }
        let replace = |firsts: &mut OrdSet<Rank>| {
            if let Some(old) = old {
                firsts.remove(old);
            }
            if let Some(new) = new {
                firsts.insert(new.clone());
            }
        };
        replace(&mut self.firsts[lane.number()]);
        let mut bits = class;
        while bits != 0 {
            let number = bits.trailing_zeros();
            bits &= bits - 1;
            if let Some(set) = u8::try_from(number).ok().and_then(|number| self.sets.get_mut(&number)) {
                replace(&mut set.firsts[lane.number()]);
            }
        }
    }

    /// A number for a new set; the one that was not used for longest makes room.
    fn free_number(&mut self) -> u8 {
        if let Some(free) = (0..SETS_MAX).find(|number| !self.sets.contains_key(number)) {
            return free;
        }
        let oldest = self.sets.iter().min_by_key(|(_, set)| set.used).map_or(0, |(number, _)| *number);
        self.drop_set(oldest);
        oldest
    }

    fn make<'a>(&mut self, number: u8, expression: &Arc<Expression>, servers: impl Iterator<Item = &'a Arc<Server>>) {
        let reads_load = expression.reads_load();
        let set = Set { expression: Arc::clone(expression), reads_load, used: self.uses, firsts: Orders::default() };
        self.sets.insert(number, set);
        self.numbers.insert(Arc::clone(expression), number);
        for server in servers.filter(|server| expression.holds(&***server)) {
            self.change_signature(&server.id, |signature| signature | 1 << number);
        }
    }

    fn drop_set(&mut self, number: u8) {
        let members: Vec<ServerId> = self
            .places
            .iter()
            .filter(|(_, place)| place.signature & 1 << number != 0)
            .map(|(server, _)| server.clone())
            .collect();
        for server in members {
            self.change_signature(&server, |signature| signature & !(1 << number));
        }
        if let Some(set) = self.sets.remove(&number) {
            self.numbers.remove(&set.expression);
        }
    }

    fn change_signature(&mut self, server: &ServerId, change: impl Fn(Signature) -> Signature) {
        let Some(old) = self.places.get(server).cloned() else { return };
        let place = Place { signature: change(old.signature), ..old.clone() };
        self.withdraw(server, &old);
        self.enter(server, &place);
        self.places.insert(server.clone(), place);
    }
}

/// The ranks of some classes, merged. A class is opened when its best is next.
struct Walk<'a, Unopened: Iterator<Item = &'a Rank>> {
    sets: &'a ServerSets,
    lane: Lane,
    unopened: std::iter::Peekable<Unopened>,
    open: BinaryHeap<Reverse<Opened<'a>>>,
}

/// A class that is being walked through: its next server, and the rest.
struct Opened<'a> {
    next: &'a Rank,
    rest: Box<dyn Iterator<Item = &'a Rank> + 'a>,
}

impl PartialEq for Opened<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.next == other.next
    }
}

impl Eq for Opened<'_> {}

impl PartialOrd for Opened<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Opened<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.next.cmp(other.next)
    }
}

impl<'a, Unopened: Iterator<Item = &'a Rank>> Iterator for Walk<'a, Unopened> {
    type Item = &'a Rank;

    fn next(&mut self) -> Option<&'a Rank> {
        let opened = self.open.peek().map(|Reverse(opened)| opened.next);
        let from_unopened = self.unopened.next_if(|first| opened.is_none_or(|opened| **first < *opened));
        if let Some(first) = from_unopened {
            let class = self.sets.places.get(&first.server).map(|place| place.signature);
            let orders = class.and_then(|class| self.sets.classes.get(&class));
            if let Some(orders) = orders {
                // The first one is handed out now; the rest follows it.
                let mut rest = orders[self.lane.number()].iter();
                rest.next();
                self.push(Box::new(rest));
            }
            return Some(first);
        }
        let Reverse(Opened { next, rest }) = self.open.pop()?;
        self.push(rest);
        Some(next)
    }
}

impl<'a, Unopened: Iterator<Item = &'a Rank>> Walk<'a, Unopened> {
    fn push(&mut self, mut rest: Box<dyn Iterator<Item = &'a Rank> + 'a>) {
        if let Some(next) = rest.next() {
            self.open.push(Reverse(Opened { next, rest }));
        }
    }
}
