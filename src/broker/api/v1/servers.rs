//! `GET /v1/servers`: servers by any field, in any order.

use std::cell::Cell;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use serde::Serialize;

use super::field::{FLAG, Field, Kind, Value};
use super::listing::{self, Item, Query};
use crate::broker::api::consistency::Reading;
use crate::broker::api::envelope::RequestId;
use crate::broker::api::error::Error;
use crate::broker::api::scan::json_bytes;
use crate::broker::api::{ApiState, view, wire};
use crate::domain::host::{Aws, Health};
use crate::domain::server::{Drain, Link};
use crate::domain::{Fleet, Phase, Server, ServerId};

const ID: &str = "ServerId";

/// What can be filtered and sorted by.
const FIELDS: &[Field<Server>] = &[
    Field { name: ID, kind: Kind::Text, value: |_, server| Value::text(server.id.as_str()) },
    Field { name: "Hostname", kind: Kind::Text, value: |_, server| Value::text(&server.facts.hostname) },
    Field { name: "Ip", kind: Kind::Text, value: |_, server| Value::text(&server.facts.ip) },
    Field {
        name: "DefaultDnsName",
        kind: Kind::Text,
        value: |_, server| Value::maybe(server.facts.dns_name.as_deref()),
    },
    Field { name: "Version", kind: Kind::Text, value: |_, server| Value::text(&server.facts.desktop_version) },
    Field {
        name: "SessionManagerAgentVersion",
        kind: Kind::Text,
        value: |_, server| Value::text(&server.facts.agent_version),
    },
    Field {
        name: "Availability",
        kind: Kind::Word(&["AVAILABLE", "UNAVAILABLE"]),
        value: |fleet, server| Value::text(view::availability_name(fleet.unavailability(server))),
    },
    Field {
        name: "UnavailabilityReason",
        kind: Kind::Text,
        value: |fleet, server| Value::maybe(fleet.unavailability(server).map(view::unavailability_name)),
    },
    Field {
        name: "OsFamily",
        kind: Kind::Word(&["linux", "windows", "macos"]),
        value: |_, server| Value::text(server.facts.os.family.as_str()),
    },
    Field { name: "OsName", kind: Kind::Text, value: |_, server| Value::text(&server.facts.os.name) },
    Field { name: "OsVersion", kind: Kind::Text, value: |_, server| Value::text(&server.facts.os.version) },
    Field { name: "Architecture", kind: Kind::Text, value: |_, server| Value::text(&server.facts.cpu.architecture) },
    Field {
        name: "NumberOfCpus",
        kind: Kind::Number,
        value: |_, server| Value::Number(server.facts.cpu.logical_count.into()),
    },
    Field {
        name: "MemoryTotalBytes",
        kind: Kind::Number,
        value: |_, server| Value::Number(server.load.memory.total_bytes),
    },
    Field {
        name: "MemoryUsedBytes",
        kind: Kind::Number,
        value: |_, server| Value::Number(server.load.memory.used_bytes),
    },
    Field { name: "Region", kind: Kind::Text, value: |_, server| aws(server, |aws| &aws.region) },
    Field { name: "InstanceId", kind: Kind::Text, value: |_, server| aws(server, |aws| &aws.instance_id) },
    Field { name: "InstanceType", kind: Kind::Text, value: |_, server| aws(server, |aws| &aws.instance_type) },
    Field { name: "ImageId", kind: Kind::Text, value: |_, server| aws(server, |aws| &aws.image_id) },
    Field {
        name: "Link",
        kind: Kind::Word(&["UP", "INTERRUPTED", "LOST"]),
        value: |_, server| Value::text(link_name(&server.link)),
    },
    Field {
        name: "Health",
        kind: Kind::Word(&["HEALTHY", "UNHEALTHY", "IN_USE"]),
        value: |_, server| Value::text(health_name(&server.health)),
    },
    Field {
        name: "Draining",
        kind: FLAG,
        value: |fleet, server| Value::flag(fleet.closed(&server.id).is_some_and(|closed| closed.drain.is_some())),
    },
    Field {
        name: "ContestedTime",
        kind: Kind::Time("Contested"),
        value: |_, server| server.contested_at.map_or(Value::Absent, |at| Value::Number(at.0)),
    },
    Field { name: "Closed", kind: FLAG, value: |fleet, server| Value::flag(fleet.is_closed(&server.id)) },
    Field {
        name: "Sessions",
        kind: Kind::Number,
        value: |fleet, server| Value::Number(fleet.counts(&server.id).total().into()),
    },
    Field { name: "LastHeardTime", kind: Kind::Time("Heard"), value: |_, server| Value::Number(server.heard_at.0) },
    Field {
        name: "FirstSeenTime",
        kind: Kind::Time("FirstSeen"),
        value: |_, server| Value::Number(server.first_seen_at.0),
    },
];

fn aws(server: &Server, text: impl Fn(&Aws) -> &str) -> Value<'_> {
    Value::maybe(server.facts.aws.as_ref().map(text))
}

const fn link_name(link: &Link) -> &'static str {
    match link {
        Link::Up { .. } => "UP",
        Link::Interrupted { .. } => "INTERRUPTED",
        Link::Lost { .. } => "LOST",
    }
}

const fn health_name(health: &Health) -> &'static str {
    match health {
        Health::Healthy => "HEALTHY",
        Health::Unhealthy(_) => "UNHEALTHY",
        Health::InUse => "IN_USE",
    }
}

impl Item for Server {
    const LISTING: &'static str = "v1/servers";
    const ID: &'static str = ID;

    fn fields() -> &'static [Field<Self>] {
        FIELDS
    }

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn tag<'a>(&'a self, _fleet: &'a Fleet, name: &str) -> Option<&'a str> {
        self.facts.tags.get(name).map(String::as_str)
    }
}

/// A page of servers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    request_id: &'a str,
    servers: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

/// A server: what describeServers tells, and what is our own.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(flatten)]
    described: wire::Server,
    /// The connection to its agent: UP, INTERRUPTED or LOST.
    link: &'static str,
    /// Replica that holds the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    link_replica: Option<u64>,
    /// Since when it counts as lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_time: Option<String>,
    /// Number of the agent's current or last connection.
    agent_epoch: u64,
    last_heard_time: String,
    first_seen_time: String,
    report_interval_seconds: u64,
    closed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    closed_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    closed_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drain: Option<DrainProgress>,
    /// It failed to create a session: until then, others are asked first.
    #[serde(skip_serializing_if = "Option::is_none")]
    avoided_until: Option<String>,
    /// When another agent last came with its id: a copied host as a rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    contested_time: Option<String>,
    /// HEALTHY, UNHEALTHY or IN_USE.
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_reason: Option<String>,
    limits: Limits,
    /// Sessions that take up room on it.
    sessions: u32,
    /// Those of them whose ids sessions elsewhere have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conflicting_session_ids: Vec<String>,
}

/// How far a drain is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct DrainProgress {
    /// When the sessions that are left are deleted.
    deadline: String,
    /// Sessions that are left.
    sessions_left: u32,
    /// DRAINING until the deadline, ENDING while what is left is being
    /// deleted, STUCK when the host could not end some of it, DRAINED when
    /// nothing is left.
    state: &'static str,
}

impl DrainProgress {
    fn of(fleet: &Fleet, server: &ServerId, drain: Drain) -> Self {
        let (mut sessions_left, mut ready) = (0, 0);
        for session in fleet.sessions_on(server) {
            sessions_left += 1;
            ready += u32::from(matches!(session.phase, Phase::Ready { .. }));
        }
        let state = match (sessions_left, drain.is_over) {
            (0, _) => "DRAINED",
            (_, false) => "DRAINING",
            (_, true) if ready > 0 => "STUCK",
            (_, true) => "ENDING",
        };
        Self { deadline: view::time(drain.deadline), sessions_left, state }
    }
}

/// Sessions that a server takes; what is absent is not limited.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_sessions_max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions_per_owner_max: Option<u32>,
    console_sessions: bool,
}

impl Row {
    fn of(fleet: &Fleet, server: &Server) -> Self {
        let (link_replica, lost_time) = match &server.link {
            Link::Up { via, .. } => (Some(via.0), None),
            Link::Interrupted { .. } => (None, None),
            Link::Lost { since, .. } => (None, Some(view::time(*since))),
        };
        let limits = server.facts.limits;
        let closed = fleet.closed(&server.id);
        let sessions = fleet.counts(&server.id).total();
        Self {
            described: view::server(fleet, server),
            link: link_name(&server.link),
            link_replica,
            lost_time,
            agent_epoch: server.link.epoch().0,
            last_heard_time: view::time(server.heard_at),
            first_seen_time: view::time(server.first_seen_at),
            report_interval_seconds: server.report_interval.as_secs(),
            closed: closed.is_some(),
            closed_by: closed.map(|closed| closed.client.as_str().to_owned()),
            closed_time: closed.map(|closed| view::time(closed.since)),
            drain: closed.and_then(|closed| closed.drain).map(|drain| DrainProgress::of(fleet, &server.id, drain)),
            avoided_until: server.avoided_until.map(view::time),
            contested_time: server.contested_at.map(view::time),
            health: health_name(&server.health),
            health_reason: match &server.health {
                Health::Unhealthy(reason) => Some(reason.clone()),
                Health::Healthy | Health::InUse => None,
            },
            limits: Limits {
                virtual_sessions_max: limits.virtual_sessions_max,
                sessions_per_owner_max: limits.sessions_per_owner_max,
                console_sessions: limits.console_sessions,
            },
            sessions,
            conflicting_session_ids: fleet
                .conflicts_on(&server.id)
                .map(|session| session.id.as_str().to_owned())
                .collect(),
        }
    }
}

/// Lists servers, page by page.
pub(in crate::broker::api) async fn list(
    State(api): State<ApiState>,
    RequestId(request_id): RequestId,
    reading: Reading,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    listing::answer::<Server>(&api, request_id, &reading, query, page).await
}

/// The body of an answer; `None` when too many servers would have to be
/// looked at for it.
fn page(fleet: &Fleet, query: &Query, request_id: &str, steps_max: usize) -> Option<Result<Vec<u8>, Error>> {
    let after = query.after_id();
    let (servers, next_token) = if let Some(ids) = query.texts(ID) {
        let left = ids.iter().filter(|id| after.is_none_or(|after| id.as_str() > after));
        let listed = left.filter_map(|id| fleet.server(&ServerId::new(id).ok()?)).map(Arc::as_ref);
        query.page(fleet, listed)
    } else {
        let after = after.and_then(|id| ServerId::new(id).ok());
        let looked_at = Cell::new(0_usize);
        let candidates = fleet.servers_from(after.as_ref()).map(Arc::as_ref);
        let page = query.page(
            fleet,
            candidates.take_while(|_| {
                looked_at.set(looked_at.get() + 1);
                looked_at.get() <= steps_max
            }),
        );
        if looked_at.get() > steps_max {
            return None;
        }
        page
    };
    let servers = servers.into_iter().map(|server| Row::of(fleet, server)).collect();
    Some(json_bytes(&Body { request_id, servers, next_token }))
}
