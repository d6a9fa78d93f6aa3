//! Properties of the fleet over random histories, and the behaviour that
//! callers rely on.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::invariants::violations;
use super::{Fleet, Stamp};
use crate::domain::codec::{decode_command, encode_command};
use crate::domain::command::{Command, Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::host::{Health, HostFacts, HostLoad, Limits, OsFamily};
use crate::domain::ids::{ClientId, Epoch, InstructionId, LogIndex, Owner, ReplicaId, ServerId, SessionId};
use crate::domain::instruction::{Action, Answer};
use crate::domain::report::{EndedSession, Inventory, Report, ReportedSession};
use crate::domain::server::Unavailability;
use crate::domain::session::{Phase, SessionKind, SessionSpec, SessionState};
use crate::domain::settings::Settings;
use crate::domain::time::{Millis, Timestamp};

fn server_id(number: u8) -> ServerId {
    ServerId::new(&format!("server-{number}")).expect("valid")
}

fn session_id(number: u8) -> SessionId {
    SessionId::new(&format!("session-{number}")).expect("valid")
}

fn owner(number: u8) -> Owner {
    Owner::new(&format!("user{number}")).expect("valid")
}

fn client() -> ClientId {
    ClientId::new("portal").expect("valid")
}

fn spec(owner_number: u8, kind: SessionKind) -> SessionSpec {
    SessionSpec {
        name: "work".to_owned(),
        owner: owner(owner_number),
        kind,
        gl: false,
        clients_max: None,
        init_file: None,
        autorun_file: None,
        autorun_arguments: Vec::new(),
        permissions: None,
        requirements: None,
        storage_root: None,
        enqueue: false,
        retry_disabled: false,
    }
}

fn facts(virtual_max: Option<u32>, per_owner: Option<u32>, console: bool) -> HostFacts {
    HostFacts {
        hostname: "host".to_owned(),
        limits: Limits {
            virtual_sessions_max: virtual_max,
            sessions_per_owner_max: per_owner,
            console_sessions: console,
        },
        ..HostFacts::default()
    }
}

fn full_report(facts: HostFacts, sessions: Vec<ReportedSession>) -> Report {
    Report {
        facts: Some(facts),
        load: Some(HostLoad::default()),
        health: Some(Health::Healthy),
        sessions: Some(Inventory::Full(sessions)),
    }
}

fn reported(number: u8, owner_number: u8, usable: bool) -> ReportedSession {
    ReportedSession {
        id: session_id(number),
        name: String::new(),
        owner: owner(owner_number),
        kind: SessionKind::Virtual,
        usable,
        connections: 0,
        clients_max: None,
        created_at: Timestamp(1),
        last_disconnected_at: None,
        storage_root: None,
        created_by: None,
    }
}

/// A fleet and a log that grows.
struct Log {
    fleet: Fleet,
    index: u64,
    at: u64,
}

impl Log {
    fn new() -> Self {
        Self { fleet: Fleet::default(), index: 0, at: 1_000 }
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let stamp = Stamp { index: LogIndex(self.index), at: Timestamp(self.at) };
        self.fleet.advance(stamp);
        let applied = self.fleet.apply(stamp, command);
        assert_eq!(violations(&self.fleet), []);
        applied.outcome
    }

    fn wait(&mut self, millis: u64) {
        self.at += millis;
        self.index += 1;
        self.fleet.advance(Stamp { index: LogIndex(self.index), at: Timestamp(self.at) });
        assert_eq!(violations(&self.fleet), []);
    }

    fn connect(&mut self, number: u8, facts: HostFacts) -> Epoch {
        self.connect_with(number, facts, Vec::new())
    }

    fn connect_with(&mut self, number: u8, facts: HostFacts, sessions: Vec<ReportedSession>) -> Epoch {
        let outcome = self.apply(Command::ConnectAgent {
            server: server_id(number),
            via: ReplicaId(1),
            report_interval: Millis::from_secs(30),
            report: full_report(facts, sessions),
        });
        match outcome {
            Outcome::Welcome { epoch } => epoch,
            other => panic!("not welcome: {other:?}"),
        }
    }

    fn create(&mut self, number: u8, spec: SessionSpec) -> Outcome {
        self.apply(Command::CreateSession { id: session_id(number), spec, client: client() })
    }

    fn delete(&mut self, number: u8, owner_number: u8, force: bool) -> Outcome {
        self.apply(Command::DeleteSession {
            id: session_id(number),
            owner: owner(owner_number),
            force,
            client: client(),
        })
    }

    fn answer(&mut self, number: u8, epoch: Epoch, instruction: InstructionId, answer: Answer) -> Outcome {
        self.apply(Command::Answer { server: server_id(number), epoch, instruction, answer })
    }

    fn state(&self, number: u8) -> Option<SessionState> {
        self.fleet.session(&session_id(number)).map(|session| self.fleet.state_of(session))
    }

    fn reason(&self, number: u8) -> String {
        let session = self.fleet.session(&session_id(number)).expect("listed");
        self.fleet.state_reason_of(session).expect("a reason").into_owned()
    }

    fn only_instruction(&self, number: u8) -> (InstructionId, Action) {
        let all: Vec<_> = self.fleet.outbox(&server_id(number)).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        (all[0].id, all[0].action.clone())
    }

    fn ready(&mut self, session: u8, owner_number: u8, server: u8, epoch: Epoch) {
        self.create(session, spec(owner_number, SessionKind::Virtual));
        let (instruction, _) = self.only_instruction(server);
        self.answer(server, epoch, instruction, Answer::Done);
        assert_eq!(self.state(session), Some(SessionState::Ready));
    }
}

#[test]
fn a_session_is_ready_only_after_its_agent_said_so_and_gone_after_it_was_closed() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    assert!(matches!(log.create(1, spec(1, SessionKind::Virtual)), Outcome::Created(_)));
    assert_eq!(log.state(1), Some(SessionState::Creating));
    let (instruction, action) = log.only_instruction(1);
    assert!(matches!(action, Action::CreateSession { session, .. } if session == session_id(1)));
    log.answer(1, epoch, instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Ready));

    assert_eq!(log.delete(1, 1, false), Outcome::Deleting(SessionState::Deleting));
    let (instruction, action) = log.only_instruction(1);
    assert!(matches!(action, Action::CloseSession { .. }));
    log.answer(1, epoch, instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    log.wait(Settings::default().deleted_retention.0);
    assert_eq!(log.state(1), None, "a deleted session is shown for its time and then forgotten");
    assert_eq!(log.fleet.session_count(), 0);
}

#[test]
fn the_same_create_twice_makes_one_session() {
    let mut log = Log::new();
    log.connect(1, facts(None, None, false));
    let first = log.create(1, spec(1, SessionKind::Virtual));
    assert_eq!(log.create(1, spec(1, SessionKind::Virtual)), first);
    assert_eq!(log.fleet.outbox(&server_id(1)).count(), 1);
    assert_eq!(log.create(1, spec(2, SessionKind::Virtual)), Outcome::Refused(Refusal::Exists));
}

#[test]
fn a_failed_creation_ends_with_the_reason_that_the_agent_gave() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.create(1, spec(1, SessionKind::Virtual));
    let (instruction, _) = log.only_instruction(1);
    log.answer(1, epoch, instruction, Answer::Failed { reason: "owner x is no user of this host".to_owned() });
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    assert_eq!(log.reason(1), "owner x is no user of this host");
}

#[test]
fn the_server_with_the_fewest_sessions_is_chosen() {
    let mut log = Log::new();
    for number in 1..=3 {
        log.connect(number, facts(None, None, false));
    }
    for number in 0..9 {
        log.create(number, spec(number, SessionKind::Virtual));
    }
    let counts: Vec<u32> = (1..=3).map(|number| log.fleet.counts(&server_id(number)).virtual_).collect();
    assert_eq!(counts, [3, 3, 3]);
}

#[test]
fn a_refusal_counts_the_rules_that_refused() {
    let mut log = Log::new();
    let refusal = |outcome| match outcome {
        Outcome::Refused(refusal) => refusal.to_string(),
        other => panic!("not refused: {other:?}"),
    };
    assert_eq!(
        refusal(log.create(1, spec(1, SessionKind::Virtual))),
        "no dcv server found for placement: no server is connected"
    );
    log.connect(1, facts(Some(1), None, false));
    log.create(2, spec(1, SessionKind::Virtual));
    log.connect(
        2,
        HostFacts {
            os: crate::domain::host::Os { family: OsFamily::Windows, ..Default::default() },
            ..facts(None, None, true)
        },
    );
    assert_eq!(
        refusal(log.create(3, spec(1, SessionKind::Virtual))),
        "no dcv server found for placement: 1 of 2 servers: virtual sessions need Linux, 1 of 2 servers: full"
    );
    let picky = SessionSpec { requirements: Some("tag:color = 'pink'".to_owned()), ..spec(1, SessionKind::Console) };
    assert_eq!(
        refusal(log.create(4, picky)),
        "no dcv server found for placement: 1 of 2 servers: sessions of this type not offered, \
         1 of 2 servers: requirements not met"
    );
}

#[test]
fn limits_of_servers_and_owners_hold() {
    let mut log = Log::new();
    log.connect(1, facts(Some(3), Some(2), true));
    assert!(matches!(log.create(1, spec(1, SessionKind::Virtual)), Outcome::Created(_)));
    assert!(matches!(log.create(2, spec(1, SessionKind::Virtual)), Outcome::Created(_)));
    assert!(matches!(log.create(3, spec(1, SessionKind::Virtual)), Outcome::Refused(_)), "owner's limit");
    assert!(matches!(log.create(4, spec(2, SessionKind::Console)), Outcome::Refused(_)), "virtual excludes console");
    assert!(matches!(log.create(5, spec(2, SessionKind::Virtual)), Outcome::Created(_)));
    let server = log.fleet.server(&server_id(1)).expect("listed").clone();
    assert_eq!(log.fleet.unavailability(&server), Some(Unavailability::ServerFull));
}

#[test]
fn a_queued_request_is_placed_as_soon_as_there_is_room_in_the_order_of_arrival() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(Some(1), None, false));
    log.ready(1, 1, 1, epoch);
    let queued = |owner| SessionSpec { enqueue: true, ..spec(owner, SessionKind::Virtual) };
    assert!(matches!(log.create(2, queued(2)), Outcome::Created(_)));
    let elsewhere = SessionSpec { requirements: Some("tag:x = '1'".to_owned()), ..queued(3) };
    assert!(matches!(log.create(3, elsewhere), Outcome::Created(_)));
    assert!(matches!(log.create(4, queued(4)), Outcome::Created(_)));
    assert_eq!(log.fleet.waiting().count(), 3);
    log.delete(1, 1, false);
    let (close, _) = log.only_instruction(1);
    log.answer(1, epoch, close, Answer::Done);
    assert!(matches!(log.fleet.session(&session_id(2)).expect("listed").phase, Phase::Preparing { .. }));
    assert!(matches!(log.fleet.session(&session_id(4)).expect("listed").phase, Phase::Placing { .. }));
    let tagged = HostFacts { tags: BTreeMap::from([("x".to_owned(), "1".to_owned())]), ..facts(Some(9), None, false) };
    log.connect(2, tagged);
    assert_eq!(log.fleet.waiting().count(), 0);
    assert_eq!(log.state(3), Some(SessionState::Creating));
}

#[test]
fn a_request_leaves_the_queue_when_its_time_is_up() {
    let mut log = Log::new();
    log.create(1, SessionSpec { enqueue: true, ..spec(1, SessionKind::Virtual) });
    assert_eq!(log.fleet.next_deadline(), Some(Timestamp(1_000) + Settings::default().queue_timeout));
    log.wait(Settings::default().queue_timeout.0);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    assert!(log.reason(1).contains("no dcv server found for placement"), "{}", log.reason(1));
}

#[test]
fn nothing_stays_creating_or_deleting_for_ever() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.create(2, spec(2, SessionKind::Virtual));
    log.delete(1, 1, false);
    for _ in 0..5 {
        log.wait(29_000);
        log.apply(Command::Report { server: server_id(1), epoch, report: Report::default() });
    }
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    assert_eq!(log.reason(1), "its server did not confirm the end within 120 s");
    assert_eq!(log.state(2), Some(SessionState::Deleted));
    assert_eq!(log.reason(2), "its server did not create it within 120 s");
    let closes = log.fleet.outbox(&server_id(1)).filter(|i| matches!(i.action, Action::CloseSession { .. })).count();
    assert_eq!(closes, 2, "the host is still told to end both");
}

#[test]
fn a_silent_agent_makes_its_sessions_unknown_and_a_word_from_it_brings_them_back() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.apply(Command::DisconnectAgent { server: server_id(1), epoch });
    let server = log.fleet.server(&server_id(1)).expect("listed").clone();
    assert_eq!(log.fleet.unavailability(&server), Some(Unavailability::UnreachableAgent));
    assert_eq!(log.state(1), Some(SessionState::Ready), "a moment's interruption is no loss");
    log.wait(90_000);
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    log.connect_with(1, facts(None, None, false), vec![reported(1, 1, true)]);
    assert_eq!(log.state(1), Some(SessionState::Ready));
}

#[test]
fn what_an_older_connection_says_has_no_effect() {
    let mut log = Log::new();
    let old = log.connect(1, facts(None, None, false));
    log.create(1, spec(1, SessionKind::Virtual));
    let (instruction, _) = log.only_instruction(1);
    let new = log.connect(1, facts(None, None, false));
    assert!(new > old);
    let stale = Outcome::Refused(Refusal::StaleEpoch);
    assert_eq!(log.answer(1, old, instruction, Answer::Done), stale);
    assert_eq!(log.apply(Command::Report { server: server_id(1), epoch: old, report: Report::default() }), stale);
    assert_eq!(log.apply(Command::DisconnectAgent { server: server_id(1), epoch: old }), stale);
    assert_eq!(log.state(1), Some(SessionState::Creating));
    log.answer(1, new, instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Ready));
}

#[test]
fn a_session_that_a_host_made_is_adopted_also_over_a_deleted_one() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.delete(1, 1, false);
    let (close, _) = log.only_instruction(1);
    log.answer(1, epoch, close, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    let changes = Inventory::Changes { changed: vec![reported(1, 1, true), reported(7, 2, true)], gone: Vec::new() };
    let report = Report { sessions: Some(changes), ..Report::default() };
    log.apply(Command::Report { server: server_id(1), epoch, report });
    assert_eq!(log.state(1), Some(SessionState::Ready));
    assert_eq!(log.state(7), Some(SessionState::Ready));
}

#[test]
fn a_session_that_is_to_be_closed_is_not_adopted_again() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.apply(Command::DisconnectAgent { server: server_id(1), epoch });
    assert_eq!(log.delete(1, 1, true), Outcome::Deleting(SessionState::Deleted));
    let epoch = log.connect_with(1, facts(None, None, false), vec![reported(1, 1, true)]);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    let (close, _) = log.only_instruction(1);
    log.answer(1, epoch, close, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
}

#[test]
fn a_session_that_is_missing_on_its_host_ends_with_a_reason() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.ready(2, 2, 1, epoch);
    let gone = vec![EndedSession { id: session_id(2), reason: Some("the user logged out".to_owned()) }];
    let changes = Inventory::Changes { changed: Vec::new(), gone };
    log.apply(Command::Report {
        server: server_id(1),
        epoch,
        report: Report { sessions: Some(changes), ..Report::default() },
    });
    assert_eq!(log.reason(2), "the user logged out");
    log.connect(1, facts(None, None, false));
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    assert_eq!(log.reason(1), "it is no longer on its server");
}

#[test]
fn a_closed_server_takes_nothing_new_and_stays_closed_while_it_is_away() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    let close = |force| Command::CloseServer { id: server_id(1), force, client: client() };
    assert_eq!(log.apply(close(false)), Outcome::Refused(Refusal::ServerHasSessions { sessions: 1 }));
    assert_eq!(log.apply(close(true)), Outcome::Done);
    assert!(matches!(log.create(2, spec(2, SessionKind::Virtual)), Outcome::Refused(_)));
    assert_eq!(log.state(1), Some(SessionState::Ready));
    log.wait(90_000);
    log.wait(Settings::default().lost_server_retention.0);
    assert!(log.fleet.server(&server_id(1)).is_none(), "a lost server is forgotten after its time");
    log.connect(1, facts(None, None, false));
    assert!(matches!(log.create(3, spec(2, SessionKind::Virtual)), Outcome::Refused(_)));
    log.apply(Command::OpenServer { id: server_id(1), client: client() });
    assert!(matches!(log.create(4, spec(2, SessionKind::Virtual)), Outcome::Created(_)));
}

#[test]
fn a_restarted_replica_has_no_agents_until_they_come_back() {
    let mut log = Log::new();
    log.connect(1, facts(None, None, false));
    log.apply(Command::ReplicaStarted { replica: ReplicaId(1) });
    assert!(matches!(log.create(1, spec(1, SessionKind::Virtual)), Outcome::Refused(_)));
    log.connect(1, facts(None, None, false));
    assert!(matches!(log.create(1, spec(1, SessionKind::Virtual)), Outcome::Created(_)));
}

#[test]
fn a_session_that_ended_before_its_creation_was_answered_does_not_become_ready() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.create(1, spec(1, SessionKind::Virtual));
    let (instruction, _) = log.only_instruction(1);
    let gone = vec![EndedSession { id: session_id(1), reason: Some("the user logged out".to_owned()) }];
    let changes = Inventory::Changes { changed: Vec::new(), gone };
    let report = Report { sessions: Some(changes), ..Report::default() };
    log.apply(Command::Report { server: server_id(1), epoch, report });
    assert_eq!(log.reason(1), "the user logged out");
    log.answer(1, epoch, instruction, Answer::Done);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
}

#[test]
fn a_session_that_was_deleted_while_its_host_was_away_for_long_is_closed_when_it_shows_again() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.apply(Command::DisconnectAgent { server: server_id(1), epoch });
    log.wait(90_000);
    log.delete(1, 1, true);
    log.wait(Settings::default().lost_server_retention.0);
    assert!(log.fleet.server(&server_id(1)).is_none());
    let made_here = ReportedSession { created_by: Some(InstructionId(1)), ..reported(1, 1, true) };
    log.connect_with(1, facts(None, None, false), vec![made_here]);
    assert_eq!(log.state(1), Some(SessionState::Deleted));
    let (_, action) = log.only_instruction(1);
    assert!(matches!(action, Action::CloseSession { session } if session == session_id(1)));
}

#[test]
fn a_word_on_the_same_connection_brings_a_lost_server_back() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    log.wait(1_000_000);
    assert_eq!(log.state(1), Some(SessionState::Unknown));
    let report = Command::Report { server: server_id(1), epoch, report: Report::default() };
    assert_eq!(log.apply(report), Outcome::Done);
    assert_eq!(log.state(1), Some(SessionState::Ready));
    assert!(matches!(log.create(2, spec(2, SessionKind::Virtual)), Outcome::Created(_)));
}

#[test]
fn only_the_newest_permissions_wait_for_a_server_that_does_not_answer() {
    let mut log = Log::new();
    let epoch = log.connect(1, facts(None, None, false));
    log.ready(1, 1, 1, epoch);
    for number in 0..5 {
        log.apply(Command::UpdatePermissions {
            id: session_id(1),
            owner: owner(1),
            permissions: format!("[permissions] {number}").repeat(1000),
            client: client(),
        });
    }
    let (_, action) = log.only_instruction(1);
    assert!(matches!(action, Action::SetPermissions { permissions, .. } if permissions.contains(" 4")));
    let journaled = log.fleet.journal().newest().expect("kept").event.clone();
    let Event::PermissionsChanged { permissions, .. } = journaled else { panic!("{journaled:?}") };
    assert!(permissions.len() < 1100, "the journal keeps {} bytes", permissions.len());
}

// ---------------------------------------------------------------- random histories

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // a few hundred of them
enum Step {
    Wait(u64),
    Command(Command),
    /// An answer to whatever is oldest in a server's outbox.
    AnswerOldest {
        server: u8,
        stale: bool,
        fails: bool,
    },
    /// A report of what the server should have, short of some sessions.
    ReportTruth {
        server: u8,
        without: Option<u8>,
    },
    /// A report of what changed: some session came or went, or health did.
    ReportChange {
        server: u8,
        session: u8,
        present: bool,
        by_broker: bool,
        healthy: bool,
    },
    Disconnect {
        server: u8,
    },
}

fn any_kind() -> impl Strategy<Value = SessionKind> {
    prop_oneof![1 => Just(SessionKind::Console), 4 => Just(SessionKind::Virtual)]
}

fn any_step() -> impl Strategy<Value = Step> {
    let servers = 0..4u8;
    let sessions = 0..12u8;
    let owners = 0..3u8;
    let requirements = prop_oneof![
        4 => Just(None),
        1 => Just(Some("tag:pool = 'a'".to_owned())),
        1 => Just(Some("not tag:pool = 'a'".to_owned())),
    ];
    prop_oneof![
        2 => prop_oneof![Just(10u64), Just(5_000), Just(100_000), Just(4_000_000)].prop_map(Step::Wait),
        8 => (sessions.clone(), owners.clone(), any_kind(), any::<bool>(), requirements).prop_map(
            |(id, owner, kind, enqueue, requirements)| Step::Command(Command::CreateSession {
                id: session_id(id),
                spec: SessionSpec { requirements, enqueue, ..spec(owner, kind) },
                client: client(),
            })
        ),
        5 => (sessions.clone(), owners.clone(), any::<bool>()).prop_map(|(id, o, force)| Step::Command(
            Command::DeleteSession { id: session_id(id), owner: owner(o), force, client: client() }
        )),
        1 => (sessions.clone(), owners.clone()).prop_map(|(id, o)| Step::Command(Command::UpdatePermissions {
            id: session_id(id), owner: owner(o), permissions: "[permissions]".to_owned(), client: client(),
        })),
        4 => (servers.clone(), 0..4u32, proptest::option::of(1..3u32), any::<bool>(), any::<bool>(),
              proptest::collection::vec((sessions.clone(), owners.clone(), any::<bool>()), 0..3)).prop_map(
            |(server, max, per_owner, console, pool, there)| {
                let mut facts = facts((max > 0).then_some(max), per_owner, console);
                facts.tags.insert("pool".to_owned(), if pool { "a" } else { "b" }.to_owned());
                let there = there.into_iter().map(|(id, owner, usable)| reported(id, owner, usable)).collect();
                Step::Command(Command::ConnectAgent {
                    server: server_id(server), via: ReplicaId(1), report_interval: Millis(30_000),
                    report: full_report(facts, there),
                })
            }
        ),
        8 => (servers.clone(), proptest::bool::weighted(0.1), proptest::bool::weighted(0.2))
            .prop_map(|(server, stale, fails)| Step::AnswerOldest { server, stale, fails }),
        4 => (servers.clone(), proptest::option::weighted(0.2, sessions))
            .prop_map(|(server, without)| Step::ReportTruth { server, without }),
        4 => (servers.clone(), 0..12u8, any::<bool>(), any::<bool>(), proptest::bool::weighted(0.8)).prop_map(
            |(server, session, present, by_broker, healthy)| Step::ReportChange {
                server, session, present, by_broker, healthy,
            }
        ),
        1 => servers.clone().prop_map(|server| Step::Disconnect { server }),
        1 => Just(Step::Command(Command::ReplicaStarted { replica: ReplicaId(1) })),
        1 => (servers.clone(), any::<bool>())
            .prop_map(|(id, force)| Step::Command(Command::CloseServer { id: server_id(id), force, client: client() })),
        1 => servers.prop_map(|id| Step::Command(Command::OpenServer { id: server_id(id), client: client() })),
        1 => (1..20u32).prop_map(|queue_max| Step::Command(Command::Configure(Settings {
            queue_max, journal_records_max: 50, ..Settings::default()
        }))),
    ]
}

/// What a step means in a given state.
fn command_of(fleet: &Fleet, step: &Step) -> Option<Command> {
    let epoch_of = |server: u8| fleet.server(&server_id(server)).map(|server| server.link.epoch());
    match step {
        Step::Wait(_) => None,
        Step::Command(command) => Some(command.clone()),
        Step::AnswerOldest { server, stale, fails } => {
            let epoch = epoch_of(*server)?;
            let instruction = fleet.outbox(&server_id(*server)).next()?.id;
            let answer = if *fails { Answer::Failed { reason: "no".to_owned() } } else { Answer::Done };
            let epoch = if *stale { Epoch(epoch.0.saturating_sub(1)) } else { epoch };
            Some(Command::Answer { server: server_id(*server), epoch, instruction, answer })
        }
        Step::ReportTruth { server, without } => {
            let there = fleet
                .sessions_on(&server_id(*server))
                .filter(|session| matches!(session.phase, Phase::Ready { .. }))
                .filter(|session| without.is_none_or(|without| session.id != session_id(without)))
                .map(|session| ReportedSession {
                    id: session.id.clone(),
                    name: session.spec.name.clone(),
                    owner: session.spec.owner.clone(),
                    kind: session.spec.kind,
                    connections: 1,
                    ..reported(0, 0, true)
                })
                .collect();
            let report = Report { sessions: Some(Inventory::Full(there)), ..Report::default() };
            Some(Command::Report { server: server_id(*server), epoch: epoch_of(*server)?, report })
        }
        Step::ReportChange { server, session, present, by_broker, healthy } => {
            let id = session_id(*session);
            let there = || ReportedSession {
                created_by: by_broker.then_some(InstructionId(1)),
                ..reported(*session, *session % 3, true)
            };
            let changes = Inventory::Changes {
                changed: if *present { vec![there()] } else { Vec::new() },
                gone: if *present { Vec::new() } else { vec![EndedSession { id, reason: None }] },
            };
            let health = if *healthy { Health::Healthy } else { Health::Unhealthy("broken".to_owned()) };
            let report = Report { health: Some(health), sessions: Some(changes), ..Report::default() };
            Some(Command::Report { server: server_id(*server), epoch: epoch_of(*server)?, report })
        }
        Step::Disconnect { server } => {
            Some(Command::DisconnectAgent { server: server_id(*server), epoch: epoch_of(*server)? })
        }
    }
}

/// A placement must satisfy the rules, worked out here without the index.
fn check_placement(before: &Fleet, spec: &SessionSpec, server: &ServerId) {
    let found = before.server(server).expect("placed on a server that is listed");
    assert!(found.link.is_up() && !before.is_closed(server), "placed on a server that is away or closed");
    assert_eq!(found.health, Health::Healthy, "placed on a server that is not well");
    let pool_a = found.facts.tags.get("pool").is_some_and(|pool| pool == "a");
    match spec.requirements.as_deref() {
        None => {}
        Some("tag:pool = 'a'") => assert!(pool_a, "requirements not met"),
        Some("not tag:pool = 'a'") => assert!(!pool_a, "requirements not met"),
        Some(other) => panic!("no test says what {other} means"),
    }
    let there: Vec<_> = before
        .sessions_from(None)
        .filter(|session| session.phase.occupies() == Some(server))
        .map(|session| (session.spec.kind, session.spec.owner.clone()))
        .collect();
    let limits = found.facts.limits;
    match spec.kind {
        SessionKind::Console => assert!(limits.console_sessions && there.is_empty(), "console needs an empty server"),
        SessionKind::Virtual => {
            assert!(there.iter().all(|(kind, _)| *kind == SessionKind::Virtual), "virtual beside console");
            assert!(limits.virtual_sessions_max.is_none_or(|max| there.len() < max as usize), "beyond the limit");
            let same_owner = there.iter().filter(|(_, owner)| *owner == spec.owner).count();
            assert!(limits.sessions_per_owner_max.is_none_or(|max| same_owner < max as usize), "beyond owner's limit");
        }
    }
}

fn run(steps: &[Step]) -> (Fleet, Vec<(Stamp, Option<Command>)>) {
    let mut fleet = Fleet::default();
    let mut history = Vec::new();
    let mut at = 1_000;
    for (number, step) in steps.iter().enumerate() {
        if let Step::Wait(millis) = step {
            at += millis;
        }
        at += 1;
        let stamp = Stamp { index: LogIndex(number as u64 + 1), at: Timestamp(at) };
        let command = command_of(&fleet, step);
        let mut events = fleet.advance(stamp);
        assert_eq!(violations(&fleet), [], "after time moved on before {step:?}");
        let before = fleet.clone();
        if let Some(command) = &command {
            let applied = fleet.apply(stamp, command.clone());
            // The first placement of a command sees the state as it was before.
            if let (Command::CreateSession { spec, .. }, Outcome::Created(_)) = (command, &applied.outcome)
                && let Some(Event::SessionPlaced { server, .. }) =
                    applied.events.iter().find(|event| matches!(event, Event::SessionPlaced { .. }))
            {
                check_placement(&before, spec, server);
            }
            events.extend(applied.events);
        }
        assert_eq!(violations(&fleet), [], "after {step:?}");
        // A queued request that could be placed is placed.
        for session in fleet.waiting() {
            assert!(
                super::placement_possible(&fleet, &session.spec).is_none(),
                "{} waits although it could be placed",
                session.id
            );
        }
        history.push((stamp, command));
    }
    (fleet, history)
}

fn image(fleet: &Fleet) -> Vec<u8> {
    let mut bytes = Vec::new();
    fleet.write_image(&mut bytes).expect("memory");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_after_every_step_and_replay_gives_equal_bytes(
        steps in proptest::collection::vec(any_step(), 1..120),
        cut in any::<prop::sample::Index>(),
    ) {
        let (fleet, history) = run(&steps);

        // Replay of the encoded log.
        let mut replayed = Fleet::default();
        // The same from a snapshot taken somewhere on the way.
        let cut = cut.index(history.len());
        let mut restored: Option<Fleet> = None;
        for (number, (stamp, command)) in history.iter().enumerate() {
            let command = command.as_ref().map(|command| {
                decode_command(&encode_command(command).expect("small")).expect("just written")
            });
            for fleet in [Some(&mut replayed), restored.as_mut()].into_iter().flatten() {
                fleet.advance(*stamp);
                if let Some(command) = &command {
                    fleet.apply(*stamp, command.clone());
                }
            }
            if number == cut {
                let bytes = image(&replayed);
                restored = Some(Fleet::read_image(&mut bytes.as_slice()).expect("just written"));
            }
        }
        prop_assert!(replayed == fleet, "the replay differs");
        prop_assert!(image(&replayed) == image(&fleet), "the replay's bytes differ");
        let restored = restored.expect("the cut is within the history");
        prop_assert!(restored == fleet, "what was restored at entry {} differs", cut);
        prop_assert!(image(&restored) == image(&fleet), "the bytes of what was restored at entry {} differ", cut);
    }

    #[test]
    fn random_bytes_are_no_command_and_no_snapshot_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_command(&bytes);
        let _ = Fleet::read_image(&mut bytes.as_slice());
        let mut headed = vec![b'C', 1, 0];
        headed.extend_from_slice(&bytes);
        let _ = decode_command(&headed);
        headed[0] = b'I';
        let _ = Fleet::read_image(&mut headed.as_slice());
    }
}
