//! Who votes, entry by entry: what replicas have agreed on one after the other.
//!
//! A decision is safe from the next one only if every majority of those who vote
//! now has somebody in common with every majority of those who voted before.

use std::collections::{BTreeMap, BTreeSet};

use berth_raft::{Configuration, LogIndex, ReplicaId};

/// What was agreed on, by the entry that says so, and who knew it first.
#[derive(Debug, Default)]
pub struct Configurations(BTreeMap<LogIndex, (Configuration, ReplicaId)>);

impl Configurations {
    /// A replica knows of this one. What is wrong with that, if anything is.
    pub fn add(&mut self, replica: ReplicaId, new: Configuration) -> Option<String> {
        let entry = new.entry;
        if let Some((known, first)) = self.0.get(&entry) {
            let differs = || format!("replicas {first} and {replica} know other members as of entry {entry}");
            return (*known != new).then(differs);
        }
        let before = self.0.range(..entry).next_back();
        let after = self.0.range(entry..).next();
        let neighbours = before.into_iter().chain(after);
        let apart = neighbours.map(|(_, (other, _))| other).find(|other| !share_majorities(&other.voters, &new.voters));
        let error = apart.map(|other| {
            format!(
                "the voters {} of entry {} and {} of entry {entry} have majorities without a common replica",
                named(&other.voters),
                other.entry,
                named(&new.voters)
            )
        });
        self.0.insert(entry, (new, replica));
        error
    }
}

fn named(voters: &[BTreeSet<ReplicaId>]) -> String {
    let sets = voters.iter().map(|set| set.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    format!("{{{}}}", sets.collect::<Vec<_>>().join("} and {"))
}

/// Whether whoever has a majority of each of the one sets has a replica in common
/// with whoever has a majority of each of the others.
fn share_majorities(some: &[BTreeSet<ReplicaId>], others: &[BTreeSet<ReplicaId>]) -> bool {
    let all: BTreeSet<ReplicaId> = some.iter().chain(others).flatten().copied().collect();
    let all: Vec<ReplicaId> = all.into_iter().collect();
    // Worlds have few replicas: each way to divide them into two camps.
    (0..1_u32 << all.len()).all(|camps| {
        let is_left = |place: usize| camps & (1 << place) != 0;
        let camp = |left: bool| all.iter().enumerate().filter(move |(place, _)| is_left(*place) == left);
        let left: BTreeSet<ReplicaId> = camp(true).map(|(_, id)| *id).collect();
        let right: BTreeSet<ReplicaId> = camp(false).map(|(_, id)| *id).collect();
        !(decides(&left, some) && decides(&right, others))
    })
}

fn decides(camp: &BTreeSet<ReplicaId>, voters: &[BTreeSet<ReplicaId>]) -> bool {
    voters.iter().all(|set| set.intersection(camp).count() > set.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(entry: u64, voters: &[&[u64]]) -> Configuration {
        let set = |ids: &&[u64]| ids.iter().copied().map(ReplicaId).collect::<BTreeSet<_>>();
        let voters: Vec<_> = voters.iter().map(set).collect();
        let members = voters.iter().flatten().copied().collect();
        Configuration { entry: LogIndex(entry), voters, members }
    }

    #[test]
    fn voters_that_change_one_at_a_time_or_by_two_majorities_are_sound() {
        let mut known = Configurations::default();
        let steps: [&[&[u64]]; 7] = [
            &[&[1, 2, 3]],
            &[&[1, 2, 3], &[1, 2]],
            &[&[1, 2]],
            &[&[1, 2], &[1, 2, 4]],
            &[&[1, 2, 4]],
            &[&[1, 2, 4], &[4, 5, 6]],
            &[&[4, 5, 6]],
        ];
        for (entry, step) in (1..).zip(steps) {
            assert_eq!(known.add(ReplicaId(1), agreed(entry, step)), None);
            assert_eq!(known.add(ReplicaId(2), agreed(entry, step)), None, "another one knows the same");
        }
    }

    #[test]
    fn voters_who_could_decide_without_those_before_are_found() {
        for (before, after) in [([1, 2, 3], [1, 2, 4]), ([1, 2, 3], [4, 5, 6])] {
            let mut known = Configurations::default();
            assert_eq!(known.add(ReplicaId(1), agreed(1, &[&before])), None);
            let found = known.add(ReplicaId(1), agreed(9, &[&after])).expect("found");
            assert!(found.contains("majorities without a common replica"), "{found}");
        }
    }

    #[test]
    fn a_step_that_is_heard_of_late_is_held_against_both_sides() {
        let mut known = Configurations::default();
        assert_eq!(known.add(ReplicaId(1), agreed(5, &[&[1, 2, 4]])), None);
        assert!(known.add(ReplicaId(2), agreed(3, &[&[1, 2, 3]])).is_some());
    }

    #[test]
    fn two_that_know_other_members_of_one_entry_are_found() {
        let mut known = Configurations::default();
        assert_eq!(known.add(ReplicaId(1), agreed(5, &[&[1, 2, 3]])), None);
        let found = known.add(ReplicaId(2), agreed(5, &[&[1, 2, 4]])).expect("found");
        assert!(found.contains("replicas 1 and 2 know other members as of entry 5"), "{found}");
    }
}
