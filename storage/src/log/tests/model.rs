//! Random writes and restarts against a model of the log.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Append { count: u64, length: usize },
    Truncate { back: u64 },
    Purge { ahead: u64 },
    Vote(u8),
    Committed(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![6 => 0..2000_usize, 2 => 6000..13_000_usize, 1 => 50_000..200_000_usize];
    prop_oneof![
        8 => (1..20_u64, length).prop_map(|(count, length)| Step::Append { count, length }),
        2 => (0..30_u64).prop_map(|back| Step::Truncate { back }),
        2 => (0..40_u64).prop_map(|ahead| Step::Purge { ahead }),
        1 => any::<u8>().prop_map(Step::Vote),
        1 => any::<u8>().prop_map(Step::Committed),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, Default)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    purged: Option<(u64, Vec<u8>)>,
    vote: Option<Vec<u8>>,
    committed: Option<Vec<u8>>,
    writes: u64,
}

impl Model {
    fn next(&self) -> u64 {
        let after_purged = self.purged.as_ref().map_or(0, |(index, _)| index + 1);
        self.entries.keys().next_back().map_or(after_purged, |last| last + 1)
    }

    fn check(&self, log: &Log) {
        let first = self.purged.as_ref().map_or(0, |(index, _)| index + 1);
        let found = read_all(log, first..self.next() + 10);
        assert!(found.iter().eq(self.entries.values()), "entries differ");
        let last = self.entries.values().next_back();
        assert_eq!(log.last(), last.map(|entry| (entry.index, entry.term)));
        assert_eq!(log.purged(), self.purged);
        assert_eq!(log.vote(), self.vote);
        assert_eq!(log.committed(), self.committed);
        assert_eq!(log.entries_since_purge(), self.entries.len() as u64);
        let bytes: usize = self.entries.values().map(|entry| entry.payload.len()).sum();
        assert_eq!(log.bytes_since_purge(), bytes as u64);
        if let Some((purged, _)) = self.purged {
            let error = log.read(purged..purged + 2, 1).unwrap_err();
            assert!(matches!(error, Error::Purged { .. }));
        }
    }
}

/// Does a step on both. Writes are not waited for, so that groups form.
fn take(step: &Step, model: &mut Model, fixture: Fixture) -> Fixture {
    let log = fixture.log();
    let must = || -> Done { Box::new(|result| result.unwrap()) };
    model.writes += 1;
    match *step {
        Step::Append { count, length } => {
            let start = model.next();
            let entries: Vec<_> = (start..start + count)
                .map(|index| Entry { term: model.writes, ..entry(index + model.writes, length) })
                .zip(start..)
                .map(|(entry, index)| Entry { index, ..entry })
                .collect();
            log.append(entries.clone(), must()).unwrap();
            model.entries.extend(entries.into_iter().map(|entry| (entry.index, entry)));
        }
        Step::Truncate { back } => {
            let floor = model.purged.as_ref().map_or(0, |(index, _)| index + 1);
            let index = model.next().saturating_sub(back).max(floor);
            log.truncate_from(index, must());
            model.entries.split_off(&index);
        }
        Step::Purge { ahead } => {
            let first = model.purged.as_ref().map_or(0, |(index, _)| index + 1);
            let index = first + ahead;
            let marker = index.to_le_bytes().to_vec();
            log.purge_through(index, marker.clone(), must());
            model.entries = model.entries.split_off(&(index + 1));
            model.purged = Some((index, marker));
        }
        Step::Vote(vote) => {
            log.save_vote(vec![vote], must());
            model.vote = Some(vec![vote]);
        }
        Step::Committed(committed) => {
            log.save_committed(vec![committed]);
            model.committed = Some(vec![committed]);
        }
        Step::Reopen => return fixture.reopen(),
    }
    fixture
}

proptest! {
    #![proptest_config(Config { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..Config::default() })]

    #[test]
    fn the_log_behaves_like_its_model(steps in prop::collection::vec(step(), 1..60)) {
        for ground in [Ground::folder(), Ground::memory()] {
            let mut fixture = Fixture::new(ground);
            let mut model = Model::default();
            for step in &steps {
                fixture = take(step, &mut model, fixture);
                model.check(&fixture.log());
            }
            let fixture = fixture.reopen();
            model.check(&fixture.log());
        }
    }
}
