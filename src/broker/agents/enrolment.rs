//! How agents become known, and which of them may connect.
//!
//! `POST /agent/enrol` ([`crate::protocol::enrolment`]): an agent is known by
//! its key. A key that is new needs a software statement, and the log takes it
//! in; one that is known gets another certificate as long as no operator shut it
//! out. So a certificate that is lost or expired is no more than a moment's
//! delay, and a stolen statement lets no one be a server whose agent enrolled.
//!
//! A certificate says who somebody is; whether that one may connect stands in
//! the log, and is looked at when a connection begins and when it changes.

use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::{Agents, deed};
use crate::broker::api::door::Unavailable;
use crate::broker::tls::authority::{AGENT_VALIDITY, Request, SignError};
use crate::broker::tls::{Peer, Subject};
use crate::domain::audit::Actor;
use crate::domain::client::AgentClient;
use crate::domain::{ClientId, Command, Fleet, Outcome, Refusal, ServerId};
use crate::protocol::enrolment::{self, CLIENT_NAME_BYTES_MAX, Refused, Registered, Registration, error};

/// Before another attempt when there is no room for one more agent.
const FULL_RETRY: Duration = Duration::from_mins(1);

/// Why an agent is not enrolled.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the registration is not understood: {0}")]
    Form(String),
    #[error("client_name must have at most {CLIENT_NAME_BYTES_MAX} bytes without control characters")]
    Name,
    #[error("certificate_request: {0}")]
    Request(SignError),
    #[error(
        "this agent is not known here, and sent no software statement; an operator makes one with `berth \
         generate-software-statement`"
    )]
    NoStatement,
    #[error(
        "this is no software statement of this cluster; an operator lists those with `berth describe-software-statements`"
    )]
    WrongStatement,
    #[error("the software statement is not active; an operator makes another with `berth generate-software-statement`")]
    Inactive,
    #[error(
        "server {server} belongs to another agent; if this one takes its place, an operator runs `berth \
         unregister-agent-client --client-id {other}`"
    )]
    ServerTaken { server: ServerId, other: ClientId },
    #[error("this agent's key is that of server {0}; a new server needs a new key")]
    OtherServer(ServerId),
    #[error("an operator unregistered this agent; to enrol again it needs a new key and a software statement")]
    Unregistered,
    #[error("as many agents are enrolled as there is room for; an operator unregisters some that are gone")]
    Full,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("the certificate cannot be signed: {0}")]
    Sign(SignError),
}

impl Fault {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unregistered => StatusCode::FORBIDDEN,
            Self::Full | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Sign(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    const fn word(&self) -> &'static str {
        match self {
            Self::Form(_) | Self::Name | Self::Request(_) | Self::ServerTaken { .. } | Self::OtherServer(_) => {
                error::METADATA
            }
            Self::NoStatement | Self::WrongStatement => error::STATEMENT,
            Self::Inactive => error::UNAPPROVED,
            Self::Unregistered => error::DENIED,
            Self::Full | Self::Unavailable(_) | Self::Sign(_) => error::UNAVAILABLE,
        }
    }

    fn retry_after_secs(&self) -> Option<u64> {
        match self {
            Self::Full => Some(FULL_RETRY.as_secs()),
            Self::Unavailable(unavailable) => Some(unavailable.retry_after_secs()),
            _ => None,
        }
    }
}

/// Answers a registration.
pub(super) async fn enrol(State(agents): State<Agents>, Extension(peer): Extension<Peer>, body: Bytes) -> Response {
    let asked = serde_json::from_slice::<Registration>(&body).map_err(|error| misunderstood(&error));
    let server = asked.as_ref().map_or_else(|_| String::new(), |asked| asked.server_id.to_string());
    let registered = match asked {
        Ok(asked) => register(&agents, &peer, asked).await,
        Err(fault) => Err(fault),
    };
    let mut response = match registered {
        Ok(registered) => {
            tracing::info!(server, client = %registered.client_id, from = %peer.address.ip(), "certificate for an agent");
            (StatusCode::CREATED, Json(registered)).into_response()
        }
        Err(fault) => {
            tracing::warn!(server, from = %peer.address.ip(), error = %fault, "an agent is not enrolled");
            let deed = deed(&agents, &peer, Actor::Unknown, enrolment::PATH, server);
            agents.notes.take(deed, &format!("refused: {fault}"));
            let refused = Refused { error: fault.word().to_owned(), error_description: fault.to_string() };
            let mut response = (fault.status(), Json(refused)).into_response();
            if let Some(seconds) = fault.retry_after_secs() {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What was posted is not shown, for it may hold a statement; which field is
/// missing is.
fn misunderstood(error: &serde_json::Error) -> Fault {
    let text = error.to_string();
    let text = if text.starts_with("missing field `") {
        text
    } else {
        format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column())
    };
    Fault::Form(text)
}

async fn register(agents: &Agents, peer: &Peer, asked: Registration) -> Result<Registered, Fault> {
    if asked.client_name.len() > CLIENT_NAME_BYTES_MAX || asked.client_name.chars().any(char::is_control) {
        return Err(Fault::Name);
    }
    let request = Request::read(asked.certificate_request.as_bytes()).map_err(Fault::Request)?;
    let id = client_id(&request);
    let mut fleet = agents.broker.current().await?;
    if fleet.agent_client(&id).is_none() {
        take_in(agents, peer, &id, &asked, &fleet).await?;
        fleet = agents.broker.current().await?;
    }
    // Whoever was taken in may be gone again by now.
    let agent = fleet.agent_client(&id).filter(|agent| agent.active).ok_or(Fault::Unregistered)?;
    if agent.server != asked.server_id {
        return Err(Fault::OtherServer(agent.server.clone()));
    }
    certify(agents, agent, &request)
}

/// Has the log take in an agent that is new. What the log would refuse is not
/// proposed: anybody could fill it with that.
async fn take_in(
    agents: &Agents,
    peer: &Peer,
    id: &ClientId,
    asked: &Registration,
    fleet: &Fleet,
) -> Result<(), Fault> {
    let text = asked.software_statement.as_deref().ok_or(Fault::NoStatement)?;
    let statement = agents.proofs.statement(text).ok_or(Fault::WrongStatement)?;
    let (name, server) = (asked.client_name.clone(), asked.server_id.clone());
    if !fleet.statement(&statement).is_some_and(|statement| statement.active) {
        return Err(Fault::Inactive);
    }
    if let Some(other) = fleet.agent_of(&server) {
        return Err(Fault::ServerTaken { server, other: other.id.clone() });
    }
    let deed = deed(agents, peer, Actor::Agent(id.clone()), enrolment::PATH, format!("{server} {name}"));
    let command = Command::EnrolAgent { id: id.clone(), name, server, statement };
    match agents.broker.propose_audited(deed, vec![command]).await?.pop() {
        Some(Outcome::Refused(Refusal::UnknownStatement)) => Err(Fault::Inactive),
        Some(Outcome::Refused(Refusal::ServerEnrolled(other))) => {
            Err(Fault::ServerTaken { server: asked.server_id.clone(), other })
        }
        Some(Outcome::Refused(Refusal::TooMany)) => Err(Fault::Full),
        // Somebody was faster; what came of it is looked at by the caller.
        _ => Ok(()),
    }
}

fn certify(agents: &Agents, agent: &AgentClient, request: &Request) -> Result<Registered, Fault> {
    let (subject, now) = (Subject::Agent(agent.id.clone()), SystemTime::now());
    let signed = agents.authority.sign_client(request, &subject, now, AGENT_VALIDITY).map_err(Fault::Sign)?;
    Ok(Registered {
        client_id: agent.id.clone(),
        client_id_issued_at: agent.enrolled_at.0 / 1000,
        client_name: agent.name.clone(),
        server_id: agent.server.clone(),
        token_endpoint_auth_method: "tls_client_auth".to_owned(),
        tls_client_auth_san_uri: subject.uri().map_err(|error| Fault::Sign(error.into()))?,
        certificate: signed.pem,
        certificate_expires_in: signed.not_after.duration_since(now).unwrap_or_default().as_secs(),
    })
}

/// The id of whoever has a key: a UUID of a form of our own (RFC 9562 section
/// 5.8), made of the key's digest.
fn client_id(request: &Request) -> ClientId {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&request.key_digest()[..16]);
    let id = uuid::Builder::from_bytes(bytes)
        .with_version(uuid::Version::Custom)
        .with_variant(uuid::Variant::RFC4122)
        .into_uuid();
    ClientId::new(&id.to_string()).expect("a UUID is a valid id")
}

/// An agent as its certificate and the log name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Enrolled {
    /// Who.
    pub(super) id: ClientId,
    /// Which server it is.
    pub(super) server: ServerId,
}

impl Enrolled {
    /// Whether it may connect as far as a state of the fleet knows.
    pub(super) fn may_connect(&self, fleet: &Fleet) -> bool {
        fleet.agent_client(&self.id).is_some_and(|agent| agent.active && agent.server == self.server)
    }
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stranger {
    #[error("agents show a certificate here, which they get at {}", enrolment::PATH)]
    NoCertificate,
    #[error("the certificate is no agent's")]
    NoAgent,
    #[error("the agent of the certificate is not known; it enrols at {}", enrolment::PATH)]
    Unknown,
    #[error("an operator unregistered this agent")]
    Unregistered,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The agent that wants to connect; nobody when agents need not prove
/// themselves.
pub(super) async fn admitted(agents: &Agents, peer: &Peer) -> Result<Option<Enrolled>, Stranger> {
    if !agents.authorization {
        return Ok(None);
    }
    let id = match peer.certificate.as_ref().map(|shown| &shown.subject) {
        Some(Subject::Agent(id)) => id,
        Some(_) => return Err(Stranger::NoAgent),
        None => return Err(Stranger::NoCertificate),
    };
    let mut fleet = agents.broker.fleet();
    if !fleet.agent_client(id).is_some_and(|agent| agent.active) {
        // It may have enrolled with another replica a moment ago.
        fleet = agents.broker.current().await?;
    }
    match fleet.agent_client(id) {
        Some(agent) if agent.active => Ok(Some(Enrolled { id: id.clone(), server: agent.server.clone() })),
        Some(_) => Err(Stranger::Unregistered),
        None => Err(Stranger::Unknown),
    }
}
