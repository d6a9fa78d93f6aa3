//! Which hosts do not hear which.

use std::collections::BTreeSet;

/// Number of a host in its lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub usize);

/// The one-way paths on which every packet is lost. Empty: the network is whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cut(BTreeSet<(HostId, HostId)>);

impl Cut {
    /// Nothing is cut.
    pub fn none() -> Self {
        Self::default()
    }

    /// `from` is not heard by `to`; the other direction is whole.
    pub fn one_way(from: HostId, to: HostId) -> Self {
        Self(BTreeSet::from([(from, to)]))
    }

    /// None on one side hears one of the other.
    pub fn halves(left: &[HostId], right: &[HostId]) -> Self {
        let pairs = left.iter().flat_map(|&a| right.iter().map(move |&b| (a, b)));
        Self(pairs.filter(|(a, b)| a != b).flat_map(|(a, b)| [(a, b), (b, a)]).collect())
    }

    /// One hears nobody of all, and nobody hears it.
    pub fn one_off(host: HostId, all: &[HostId]) -> Self {
        Self::halves(&[host], all)
    }

    /// Each hears its two neighbours only, so that majorities overlap and none
    /// sees what another sees. Three are all neighbours: there the ring is open,
    /// the first and the last do not hear each other, the one between hears both.
    pub fn ring(members: &[HostId]) -> Self {
        let count = members.len();
        let is_cut = |a: usize, b: usize| {
            let apart = a.abs_diff(b);
            if count <= 3 { apart == 2 } else { apart > 1 && apart < count - 1 }
        };
        let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
        Self(pairs.filter(|&(a, b)| is_cut(a, b)).map(|(a, b)| (members[a], members[b])).collect())
    }

    /// Both at once.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.0.extend(&other.0);
        self
    }

    /// Whether nothing is cut.
    pub fn is_whole(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether packets of `from` are lost on their way to `to`.
    pub fn separates(&self, from: HostId, to: HostId) -> bool {
        self.0.contains(&(from, to))
    }

    /// Those that `to` does not hear.
    pub fn unheard_by(&self, to: HostId) -> impl Iterator<Item = HostId> {
        self.0.iter().filter(move |(_, listener)| *listener == to).map(|(speaker, _)| *speaker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(count: usize) -> Vec<HostId> {
        (0..count).map(HostId).collect()
    }

    /// How many of all hear each other both ways.
    fn links(cut: &Cut, count: usize) -> usize {
        let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (HostId(a), HostId(b))));
        pairs.filter(|&(a, b)| !cut.separates(a, b) && !cut.separates(b, a)).count()
    }

    #[test]
    fn one_that_is_off_hears_nobody() {
        let cut = Cut::one_off(HostId(1), &hosts(3));
        assert_eq!(cut.unheard_by(HostId(1)).collect::<Vec<_>>(), [HostId(0), HostId(2)]);
        assert_eq!(links(&cut, 3), 1);
        assert!(!cut.separates(HostId(1), HostId(1)));
    }

    #[test]
    fn halves_are_whole_inside() {
        let all = hosts(5);
        let cut = Cut::halves(&all[..2], &all[2..]);
        assert_eq!(links(&cut, 5), 1 + 3);
    }

    #[test]
    fn in_a_ring_everybody_has_a_majority_and_none_the_same() {
        assert_eq!(links(&Cut::ring(&hosts(5)), 5), 5);
        assert_eq!(links(&Cut::ring(&hosts(4)), 4), 4);
        let open = Cut::ring(&hosts(3));
        assert!(open.separates(HostId(0), HostId(2)) && open.separates(HostId(2), HostId(0)));
        assert_eq!(links(&open, 3), 2);
    }

    #[test]
    fn one_direction_can_be_cut_alone() {
        let cut = Cut::one_way(HostId(0), HostId(1));
        assert!(cut.separates(HostId(0), HostId(1)) && !cut.separates(HostId(1), HostId(0)));
        let both = cut.and(&Cut::one_way(HostId(1), HostId(0)));
        assert_eq!(both, Cut::halves(&[HostId(0)], &[HostId(1)]));
        assert!(Cut::none().is_whole() && !both.is_whole());
    }
}
