//! Properties of the fleet: what callers rely on in `behaviour`, what becomes of
//! a session that meets trouble in `lifecycle`, where it goes in `placing`, two
//! agents with one server id in `contests`, requests that are done once in `once`,
//! what the journal tells in `timeline`; in `histories` random commands, whatever
//! sense they make, which proptest cuts down to the few that matter; in `model`
//! random lives of a fleet, checked against an account of their own. Here is what
//! all build with.

mod behaviour;
mod contests;
mod histories;
mod lifecycle;
mod model;
mod once;
mod placing;
mod server_facts;
mod timeline;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::invariants::violations;
use super::{Fleet, Stamp};
use crate::domain::codec::{decode_command, encode_command};
use crate::domain::command::{Command, Outcome, Refusal};
use crate::domain::event::Event;
use crate::domain::host::{Health, HostFacts, HostLoad, Limits, OsFamily};
use crate::domain::ids::{
    AgentInstance, ClientId, Epoch, IdempotencyKey, InstructionId, LogIndex, Owner, ReplicaId, ServerId, SessionId,
};
use crate::domain::instruction::{Action, Answer};
use crate::domain::placement::{Policy, Rule, WEIGHT_TAG};
use crate::domain::report::{EndedSession, Inventory, Report, ReportedSession};
use crate::domain::request::Fingerprint;
use crate::domain::requirements::Expression;
use crate::domain::server::Unavailability;
use crate::domain::session::{Phase, SessionKind, SessionSpec, SessionState};
use crate::domain::settings::Settings;
use crate::domain::time::{Millis, Timestamp};

fn server_id(number: u8) -> ServerId {
    ServerId::new(&format!("server-{number}")).expect("valid")
}

/// A run of an agent; number 0 is the one that servers have here as a rule.
fn instance(number: u8) -> AgentInstance {
    AgentInstance::new(&format!("run-{number}")).expect("valid")
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

fn key(number: u8) -> IdempotencyKey {
    IdempotencyKey::new(&format!("key-{number}")).expect("valid")
}

fn spec(owner_number: u8, kind: SessionKind) -> SessionSpec {
    SessionSpec::plain("work".to_owned(), owner(owner_number), kind)
}

fn requirements(text: &str) -> Option<Arc<Expression>> {
    Expression::parse(text).expect("valid").map(Arc::new)
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

    /// Waits for almost a report's interval, and hears of the server, so many times.
    fn wait_and_report(&mut self, times: u32, number: u8, epoch: Epoch) {
        for _ in 0..times {
            self.wait(29_000);
            self.apply(Command::Report { server: server_id(number), epoch, report: Report::default() });
        }
    }

    fn connect(&mut self, number: u8, facts: HostFacts) -> Epoch {
        self.connect_with(number, facts, Vec::new())
    }

    fn connect_with(&mut self, number: u8, facts: HostFacts, sessions: Vec<ReportedSession>) -> Epoch {
        match self.hello(number, 0, facts, sessions) {
            Outcome::Welcome { epoch } => epoch,
            other => panic!("not welcome: {other:?}"),
        }
    }

    /// A run of a server's agent says hello.
    fn hello(&mut self, number: u8, run: u8, facts: HostFacts, sessions: Vec<ReportedSession>) -> Outcome {
        self.apply(Command::ConnectAgent {
            server: server_id(number),
            instance: instance(run),
            via: ReplicaId(1),
            report_interval: Millis::from_secs(30),
            report: full_report(facts, sessions),
        })
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
