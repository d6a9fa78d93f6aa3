//! The journal against one that keeps everything in a list and looks at all of
//! it each time.

use proptest::prelude::*;

use super::*;
use crate::domain::ids::Owner;
use crate::domain::session::{SessionKind, SessionSpec};

const UNBOUNDED: Bounds = Bounds { records_max: u32::MAX, bytes_max: u64::MAX, retention: Millis(0) };

fn server(number: u8) -> ServerId {
    ServerId::new(&format!("server-{number}")).expect("valid")
}

fn session(number: u8) -> SessionId {
    SessionId::new(&format!("session-{number}")).expect("valid")
}

fn client() -> ClientId {
    ClientId::new("portal").expect("valid")
}

fn lost(number: u8) -> Event {
    Event::ServerLost { server: server(number) }
}

fn created(number: u8, name: &str) -> Event {
    let owner = Owner::new("ann").expect("valid");
    let spec = SessionSpec::plain(name.to_owned(), owner, SessionKind::Virtual);
    Event::SessionCreated { id: session(number), spec, client: client(), deadline: Timestamp(7) }
}

fn at(index: u64, number: u32) -> Position {
    Position { index: LogIndex(index), number }
}

fn positions<'a>(records: impl Iterator<Item = &'a Arc<Record>>) -> Vec<Position> {
    records.map(|record| record.position).collect()
}

fn push(journal: &mut Journal, index: u64, event: Event, bounds: Bounds) {
    journal.push(LogIndex(index), Timestamp(index), event, Context::default(), bounds);
}

#[test]
fn the_oldest_records_make_room_and_a_cursor_reads_on() {
    let mut journal = Journal::default();
    let bounds = Bounds { records_max: 3, ..UNBOUNDED };
    for index in 1..=3 {
        push(&mut journal, index, lost(1), bounds);
        push(&mut journal, index, lost(2), bounds);
    }
    assert_eq!(positions(journal.after(None)), [at(2, 1), at(3, 0), at(3, 1)]);
    assert_eq!(positions(journal.after(Some(at(2, 1)))), [at(3, 0), at(3, 1)]);
    assert_eq!(positions(journal.after(Some(Position::end_of(LogIndex(2))))), [at(3, 0), at(3, 1)]);
    assert_eq!(journal.horizon(), Some(at(2, 0)));
    assert!(journal.has_lost_after(at(1, 1)), "2.0 was dropped");
    assert!(!journal.has_lost_after(at(2, 0)), "whoever saw 2.0 missed nothing");
}

#[test]
fn a_journal_that_keeps_nothing_still_knows_what_a_cursor_missed() {
    let mut journal = Journal::default();
    let bounds = Bounds { records_max: 0, ..UNBOUNDED };
    push(&mut journal, 4, lost(1), bounds);
    push(&mut journal, 4, lost(2), bounds);
    assert!(journal.is_empty() && journal.bytes() == 0);
    assert_eq!(journal.horizon(), Some(at(4, 1)), "numbers go on within an entry");
    assert!(journal.has_lost_after(Position::end_of(LogIndex(3))));
    assert!(!journal.has_lost_after(Position::end_of(LogIndex(4))));
}

#[test]
fn records_grow_old_when_time_passes() {
    let mut journal = Journal::default();
    let bounds = Bounds { retention: Millis(10), ..UNBOUNDED };
    push(&mut journal, 1, lost(1), bounds);
    push(&mut journal, 5, lost(2), bounds);
    journal.trim(Timestamp(10), bounds);
    assert_eq!(journal.len(), 2);
    journal.trim(Timestamp(11), bounds);
    assert_eq!(positions(journal.after(None)), [at(5, 0)]);
    journal.trim(Timestamp(u64::MAX), bounds);
    assert!(journal.is_empty());
}

#[test]
fn a_long_journal_is_dropped_in_portions() {
    let mut journal = Journal::default();
    let old = u64::from(DROPS_MAX) + 10;
    for index in 1..=old {
        push(&mut journal, index, lost(1), UNBOUNDED);
    }
    let bounds = Bounds { retention: Millis(1), ..UNBOUNDED };
    journal.trim(Timestamp(old + 1), bounds);
    assert_eq!(journal.len(), 10);
    journal.trim(Timestamp(old + 1), bounds);
    assert!(journal.is_empty());
}

#[test]
fn what_the_journal_keeps_of_an_event_holds_no_secrets() {
    use crate::domain::client::{ApiClient, Grant, OldSecret, SecretHash};
    use crate::domain::ids::{InstructionId, KeyId};
    use crate::domain::instruction::{Action, Instruction};
    use crate::domain::key::{KeyPurpose, SigningKey};

    let spec = SessionSpec {
        autorun_arguments: vec!["--password=tops3cret".to_owned()],
        permissions: Some("x".repeat(5_000)),
        ..SessionSpec::plain("work".to_owned(), Owner::new("ann").expect("valid"), SessionKind::Virtual)
    };
    let issued = |action| Event::InstructionIssued {
        server: server(1),
        instruction: Instruction { id: InstructionId(1), issued_at: Timestamp(1), action },
    };
    let events = [
        Event::ClientRegistered(ApiClient {
            id: client(),
            name: "portal".to_owned(),
            secret: SecretHash("tops3cret".to_owned()),
            old_secret: None,
            active: true,
            grant: Grant::default(),
            registered_at: Timestamp(1),
        }),
        Event::KeyInstalled(SigningKey {
            id: KeyId::new("key").expect("valid"),
            purpose: KeyPurpose::AccessToken,
            sealed: b"tops3cret".to_vec(),
            installed_at: Timestamp(1),
        }),
        Event::ClientSecretRotated {
            id: client(),
            secret: SecretHash("tops3cret".to_owned()),
            old: Some(OldSecret { hash: SecretHash("tops3cret".to_owned()), until: Timestamp(1) }),
        },
        Event::KeyRotated {
            key: SigningKey {
                id: KeyId::new("key").expect("valid"),
                purpose: KeyPurpose::AccessToken,
                sealed: b"tops3cret".to_vec(),
                installed_at: Timestamp(1),
            },
            old_until: Timestamp(1),
        },
        Event::SessionCreated { id: session(1), spec: spec.clone(), client: client(), deadline: Timestamp(1) },
        issued(Action::CreateSession { session: session(1), spec }),
        issued(Action::SetPermissions { session: session(1), permissions: "x".repeat(5_000) }),
    ];
    for event in events {
        let mut bytes = Vec::new();
        codec::write(&event.abridged(), &mut bytes).expect("memory");
        assert!(!bytes.windows(9).any(|window| window == b"tops3cret"), "{event:?}");
        assert!(bytes.len() < 1_300, "{} bytes of {event:?}", bytes.len());
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Something happens, in this entry or some entries later.
    Push { later: u64, what: u8, text: usize },
    /// Time passes.
    Wait(u64),
    /// Other bounds from now on.
    Bound(Bounds),
}

fn any_step() -> impl Strategy<Value = Step> {
    let bounds = (0..30u32, 100..3_000u64, prop_oneof![Just(0u64), 1..200u64]).prop_map(
        |(records_max, bytes_max, retention)| Bounds { records_max, bytes_max, retention: Millis(retention) },
    );
    prop_oneof![
        10 => (0..3u64, 0..12u8, 0..60usize).prop_map(|(later, what, text)| Step::Push { later, what, text }),
        2 => (1..80u64).prop_map(Step::Wait),
        1 => bounds.prop_map(Step::Bound),
    ]
}

/// What happens, and what is known beside it: each of the ways in which a
/// record comes to its session and its server.
fn happening(what: u8, text: usize) -> (Event, Context) {
    let number = what % 3;
    match what / 3 {
        0 => (lost(number), Context::default()),
        1 => (created(number, &"n".repeat(text)), Context::default()),
        2 => (
            Event::SessionReady { id: session(number) },
            Context { server: Some(server(number)), client: Some(client()), ..Context::default() },
        ),
        _ => (
            Event::InstructionSettled {
                server: server(number),
                instruction: crate::domain::ids::InstructionId(1),
                answer: None,
            },
            Context { session: Some(session(number)), ..Context::default() },
        ),
    }
}

fn size(record: &Record) -> u64 {
    let mut bytes = Vec::new();
    codec::write(record, &mut bytes).expect("memory");
    bytes.len() as u64
}

/// Everything that ever happened, and how much of it went.
#[derive(Default)]
struct Model {
    records: Vec<Record>,
    gone: usize,
}

impl Model {
    fn trim(&mut self, now: Timestamp, bounds: Bounds) {
        while let Some(oldest) = self.records.get(self.gone) {
            let kept = &self.records[self.gone..];
            let is_old = bounds.retention.0 > 0 && now.0 - oldest.at.0 >= bounds.retention.0;
            if !is_old
                && kept.len() <= bounds.records_max as usize
                && kept.iter().map(size).sum::<u64>() <= bounds.bytes_max
            {
                return;
            }
            self.gone += 1;
        }
    }

    fn after(&self, after: Option<Position>, wanted: impl Fn(&Record) -> bool) -> Vec<Position> {
        let kept = self.records[self.gone..].iter();
        kept.filter(|record| after.is_none_or(|after| record.position > after) && wanted(record))
            .map(|record| record.position)
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_journal_keeps_lists_and_forgets_what_a_plain_list_does(
        steps in proptest::collection::vec(any_step(), 1..80),
        cursor in (0..100u64, 0..4u32),
    ) {
        let (mut index, mut now) = (1, 1_000);
        let mut bounds = UNBOUNDED;
        let mut journal = Journal::default();
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Push { later, what, text } => {
                    index += later;
                    now += later;
                    let (event, context) = happening(what, text);
                    let number = model.records.iter().filter(|record| record.position.index.0 == index).count();
                    model.records.push(Record {
                        position: at(index, u32::try_from(number).expect("few")),
                        at: Timestamp(now),
                        event: event.clone(),
                        context: context.clone(),
                    });
                    journal.push(LogIndex(index), Timestamp(now), event, context, bounds);
                }
                Step::Wait(span) => {
                    // A wait is an entry, too.
                    (index, now) = (index + 1, now + span);
                    journal.trim(Timestamp(now), bounds);
                }
                Step::Bound(new) => {
                    bounds = new;
                    journal.trim(Timestamp(now), bounds);
                }
            }
            model.trim(Timestamp(now), bounds);

            let cursor = at(cursor.0, cursor.1);
            for after in [None, Some(cursor), Some(Position::end_of(cursor.index))] {
                prop_assert_eq!(positions(journal.after(after)), model.after(after, |_| true));
                for number in 0..3 {
                    let (session, server) = (session(number), server(number));
                    prop_assert_eq!(
                        positions(journal.of_session_after(&session, after)),
                        model.after(after, |record| record.session() == Some(&session))
                    );
                    prop_assert_eq!(
                        positions(journal.of_server_after(&server, after)),
                        model.after(after, |record| record.server() == Some(&server))
                    );
                }
            }
            let gone = &model.records[..model.gone];
            prop_assert_eq!(journal.horizon(), gone.last().map(|record| record.position));
            prop_assert_eq!(journal.has_lost_after(cursor), gone.iter().any(|record| record.position > cursor));
            let since = Timestamp(now.saturating_sub(cursor.index.0));
            prop_assert_eq!(
                positions(journal.after(journal.position_before(since))),
                model.after(None, |record| record.at >= since)
            );
            let restored = Journal::restored(journal.horizon(), journal.records().cloned());
            prop_assert!(restored == journal, "restored, it is another one");
        }
    }
}
