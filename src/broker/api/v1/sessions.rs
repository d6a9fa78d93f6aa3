//! `GET /v1/sessions`: sessions by any field, in any order.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use serde::Serialize;

use super::field::{Field, Kind, Value};
use super::listing::{self, Item, Query};
use crate::broker::api::auth::Calling;
use crate::broker::api::consistency::Reading;
use crate::broker::api::envelope::RequestId;
use crate::broker::api::error::Error;
use crate::broker::api::scan::json_bytes;
use crate::broker::api::{ApiState, view, wire};
use crate::domain::fleet::Label;
use crate::domain::{Fleet, Owner, ServerId, Session, SessionId};

const ID: &str = "SessionId";
const OWNER: &str = "Owner";
const SERVER_ID: &str = "ServerId";

/// What can be filtered and sorted by.
const FIELDS: &[Field<Session>] = &[
    Field { name: ID, kind: Kind::Text, value: |_, session| Value::text(session.id.as_str()) },
    Field { name: "Name", kind: Kind::Text, value: |_, session| Value::text(&session.spec.name) },
    Field { name: OWNER, kind: Kind::Text, value: |_, session| Value::text(session.spec.owner.as_str()) },
    Field {
        name: "Type",
        kind: Kind::Word(&["CONSOLE", "VIRTUAL"]),
        value: |_, session| Value::text(view::kind_name(session.spec.kind)),
    },
    Field {
        name: "State",
        kind: Kind::Word(&["CREATING", "READY", "DELETING", "DELETED", "UNKNOWN"]),
        value: |fleet, session| Value::text(view::state_name(fleet.state_of(session))),
    },
    Field {
        name: "Substate",
        kind: Kind::Word(&["SESSION_PLACING", "PENDING_PREPARATION"]),
        value: |fleet, session| Value::maybe(view::substate_name(fleet.state_of(session), &session.phase)),
    },
    Field {
        name: "StateReason",
        kind: Kind::Text,
        value: |fleet, session| Value::maybe(session.reason_for(fleet.state_of(session))),
    },
    Field {
        name: SERVER_ID,
        kind: Kind::Text,
        value: |_, session| Value::maybe(session.phase.server().map(ServerId::as_str)),
    },
    Field {
        name: "Hostname",
        kind: Kind::Text,
        value: |fleet, session| Value::maybe(fleet.server_of(session).map(|server| server.facts.hostname.as_str())),
    },
    Field {
        name: "Client",
        kind: Kind::Text,
        value: |_, session| Value::maybe(session.requested_by.as_ref().map(crate::domain::ClientId::as_str)),
    },
    Field {
        name: "StorageRoot",
        kind: Kind::Text,
        value: |_, session| Value::maybe(session.spec.storage_root.as_deref()),
    },
    Field { name: "Connections", kind: Kind::Number, value: |_, session| Value::Number(session.connections.into()) },
    Field {
        name: "MaxConcurrentClients",
        kind: Kind::Number,
        value: |_, session| session.spec.clients_max.map_or(Value::Absent, |max| Value::Number(max.into())),
    },
    Field {
        name: "CreationTime",
        kind: Kind::Time("Created"),
        value: |_, session| Value::Number(session.created_at.0),
    },
    Field { name: "ChangedTime", kind: Kind::Time("Changed"), value: |_, session| Value::Number(session.changed_at.0) },
    Field {
        name: "LastDisconnectionTime",
        kind: Kind::Time("Disconnected"),
        value: |_, session| session.last_disconnected_at.map_or(Value::Absent, |at| Value::Number(at.0)),
    },
];

impl Item for Session {
    const LISTING: &'static str = "v1/sessions";
    const ID: &'static str = ID;

    fn fields() -> &'static [Field<Self>] {
        FIELDS
    }

    fn id(&self) -> &str {
        self.id.as_str()
    }

    fn tag<'a>(&'a self, fleet: &'a Fleet, name: &str) -> Option<&'a str> {
        fleet.server_of(self)?.facts.tags.get(name).map(String::as_str)
    }
}

/// A page of sessions.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    request_id: &'a str,
    sessions: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

/// A session: what describeSessions tells, and what is our own.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(flatten)]
    described: wire::Session,
    /// Also there when the server's record is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_id: Option<String>,
    /// Absent when the host made the session by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requirements: Option<String>,
    /// Servers that failed to create it, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed_servers: Vec<String>,
    /// Placement policy that the request asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<&'static str>,
    changed_time: String,
    /// When what it waits for is given up, or a deleted one is forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<String>,
}

impl Row {
    fn of(fleet: &Fleet, session: &Session) -> Self {
        Self {
            described: view::session(fleet, session),
            server_id: session.phase.server().map(|id| id.as_str().to_owned()),
            requested_by: session.requested_by.as_ref().map(|client| client.as_str().to_owned()),
            requirements: session.spec.requirements.as_ref().map(ToString::to_string),
            failed_servers: session.failed_on.iter().map(|server| server.as_str().to_owned()).collect(),
            placement: session.spec.placement.map(crate::domain::placement::Policy::as_str),
            changed_time: view::time(session.changed_at),
            deadline: session.phase.deadline().map(view::time),
        }
    }
}

/// Lists sessions, page by page.
pub(in crate::broker::api) async fn list(
    State(api): State<ApiState>,
    RequestId(request_id): RequestId,
    reading: Reading,
    Calling(caller): Calling,
    RawQuery(query): RawQuery,
) -> Result<Response, Error> {
    let owner = caller.grant.owner;
    let page = move |fleet: &Fleet, query: &Query, request_id: &str, steps_max| {
        page(fleet, query, owner.as_ref(), request_id, steps_max)
    };
    listing::answer::<Session>(&api, request_id, &reading, query, page).await
}

/// The body of an answer, of the sessions of `owner` alone if one is given;
/// `None` when too many sessions would have to be looked at for it.
fn page(
    fleet: &Fleet,
    query: &Query,
    owner: Option<&Owner>,
    request_id: &str,
    steps_max: usize,
) -> Option<Result<Vec<u8>, Error>> {
    let may_be_seen = |session: &&Session| owner.is_none_or(|owner| session.spec.owner == *owner);
    let (sessions, next_token) = if let Some(ids) = query.texts(ID) {
        let after = query.after_id();
        let left = ids.iter().filter(|id| after.is_none_or(|after| id.as_str() > after));
        let listed = left.filter_map(|id| fleet.session(&SessionId::new(id).ok()?)).map(Arc::as_ref);
        query.page(fleet, listed.filter(may_be_seen))
    } else {
        let after = query.after_id().and_then(|id| SessionId::new(id).ok());
        let mut groups = groups(query);
        groups.extend(owner.map(|owner| vec![Label::Owner(owner.clone())]));
        let mut walk = fleet.walk(&groups, after.as_ref(), steps_max);
        let page = query.page(fleet, (&mut walk).map(|seen| &**seen.session).filter(may_be_seen));
        if walk.is_cut() {
            return None;
        }
        page
    };
    let sessions = sessions.into_iter().map(|session| Row::of(fleet, session)).collect();
    Some(json_bytes(&Body { request_id, sessions, next_token }))
}

/// The filters for which there are listings.
fn groups(query: &Query) -> Vec<Vec<Label>> {
    // A text that cannot be an id or an owner is nobody's.
    let owners = query
        .texts(OWNER)
        .into_iter()
        .map(|owners| owners.iter().filter_map(|owner| Owner::new(owner).ok()).map(Label::Owner).collect());
    let servers = query
        .texts(SERVER_ID)
        .into_iter()
        .map(|servers| servers.iter().filter_map(|id| ServerId::new(id).ok()).map(Label::Server).collect());
    let tags = query.tags().map(|(name, values)| {
        values.iter().map(|value| Label::Tag { name: name.clone(), value: value.clone() }).collect()
    });
    owners.chain(servers).chain(tags).collect()
}
