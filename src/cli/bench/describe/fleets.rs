//! Fleets to describe.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use rand::Rng;
use rand::rngs::StdRng;

use crate::domain::fleet::Stamp;
use crate::domain::host::{Endpoint, EndpointProtocol, Health, HostFacts, HostLoad, Limits};
use crate::domain::ids::AgentInstance;
use crate::domain::instruction::Answer;
use crate::domain::report::{Inventory, Report};
use crate::domain::{
    ClientId, Command, Epoch, Fleet, LogIndex, Millis, Outcome, Owner, ReplicaId, ServerId, SessionId, SessionKind,
    SessionSpec, Settings, Timestamp,
};

/// Sessions on each server, in both fleets.
pub(super) const SESSIONS_PER_SERVER: usize = 10;

pub(super) fn owner_name(group: usize) -> String {
    format!("user{group:05}")
}

pub(super) fn pool_name(group: usize) -> String {
    format!("pool-{group:05}")
}

/// A fleet with so many sessions, all READY, of as many owners and on servers
/// of as many pools as there are groups.
pub(super) fn build(sessions: usize, groups: usize, random: &mut StdRng) -> anyhow::Result<Fleet> {
    let mut log = Log { fleet: Fleet::default(), index: 0, at: 1_750_000_000_000 };
    log.apply(Command::Configure(Settings { journal_records_max: 1000, ..Settings::default() }));
    let mut epochs: BTreeMap<ServerId, Epoch> = BTreeMap::new();
    for number in 0..sessions / SESSIONS_PER_SERVER {
        let id = ServerId::new(&uuid::Builder::from_random_bytes(random.random()).into_uuid().to_string())?;
        let report = Report {
            facts: Some(facts(number, number % groups)),
            load: Some(HostLoad::default()),
            health: Some(Health::Healthy),
            sessions: Some(Inventory::Full(Vec::new())),
        };
        let outcome = log.apply(Command::ConnectAgent {
            instance: AgentInstance::new("bench")?,
            server: id.clone(),
            via: ReplicaId(1),
            // Nobody is lost while the fleet is made.
            report_interval: Millis::from_secs(1_000_000),
            report,
        });
        let Outcome::Welcome { epoch } = outcome else { bail!("an agent was not let in: {outcome:?}") };
        epochs.insert(id, epoch);
    }
    let client = ClientId::new("bench")?;
    for _ in 0..sessions {
        // Some thousand a second, as a busy broker makes them.
        log.at += u64::from(random.random_ratio(1, 4));
        let id = uuid::Builder::from_unix_timestamp_millis(log.at, &random.random()).into_uuid();
        let id = SessionId::new(&id.to_string())?;
        let owner = Owner::new(&owner_name(random.random_range(0..groups)))?;
        let spec = SessionSpec::plain("a desktop".to_owned(), owner, SessionKind::Virtual);
        log.apply(Command::CreateSession { id: id.clone(), spec, client: client.clone() });
        let session = log.fleet.session(&id).context("a session was refused")?;
        let server = session.phase.server().context("a session was not placed")?.clone();
        let epoch = *epochs.get(&server).context("a server that is not there")?;
        let instruction = log.fleet.outbox(&server).next().context("an agent was told nothing")?.id;
        log.apply(Command::Answer { server, epoch, instruction, answer: Answer::Done });
    }
    Ok(log.fleet)
}

struct Log {
    fleet: Fleet,
    index: u64,
    at: u64,
}

impl Log {
    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let stamp = Stamp { index: LogIndex(self.index), at: Timestamp(self.at) };
        self.fleet.advance(stamp);
        self.fleet.apply(stamp, command).outcome
    }
}

/// What a host of a fleet tells: five tags, two places where it listens.
fn facts(number: usize, group: usize) -> HostFacts {
    let endpoint = |protocol| Endpoint { ip: None, port: 8443, web_url_path: Some("/".to_owned()), protocol };
    let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    HostFacts {
        hostname: format!("desk-{number}"),
        ip: format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255),
        dns_name: Some(format!("desk-{number}.desktops.example.org")),
        endpoints: vec![endpoint(EndpointProtocol::Http), endpoint(EndpointProtocol::Quic)],
        web_url_path: Some("/".to_owned()),
        desktop_version: "2023.0.15487".to_owned(),
        agent_version: "0.1.0".to_owned(),
        tags: BTreeMap::from([
            tag("pool", &pool_name(group)),
            tag("dcv:os-family", "linux"),
            tag("dcv:max-virtual-sessions", "50"),
            tag("site", if number.is_multiple_of(2) { "london" } else { "paris" }),
            tag("image", &format!("2025-{:02}", number % 12 + 1)),
        ]),
        limits: Limits { virtual_sessions_max: Some(50), sessions_per_owner_max: None, console_sessions: false },
        ..HostFacts::default()
    }
}

/// Resident memory of this process.
pub(super) fn resident_bytes() -> anyhow::Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: usize = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}
