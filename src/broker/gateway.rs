//! The gateways' port: connection gateways ask where a session is.
//!
//! `POST /resolveSession?sessionId=…&transport=HTTP|QUIC&clientIpAddress=…`
//! answers with the name and port of the session's server, as the session
//! resolver of the original does. Gateways show a certificate, unless the
//! operator wants none; whether a user may connect is asked by the desktop
//! server. Each address may ask so often; `/health` always answers.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router, middleware};
use serde::Serialize;

use super::api::{self, form};
use super::core::Broker;
use super::notes::Notes;
use super::throttle::Throttle;
use super::tls::{ClientAuth, Peer, Shown, Subject};
use crate::domain::audit::{Actor, Deed};
use crate::domain::host::{Endpoint, EndpointProtocol};
use crate::domain::session::SessionState;
use crate::domain::{Fleet, Server, SessionId, Timestamp};

/// What is answered when there is no such session, or not with this transport.
/// Byte for byte that of the original.
const NOT_RESOLVED: &str = "The requested combination of transport and sessionId does not exist";

/// What is answered to a gateway whose certificate is good no more.
const REVOKED: &str = "the certificate was revoked or has ended, or this cluster does not know it; \
                       make another one with `berth tls gateway-certificate`";

/// Who is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admits {
    /// Whoever reaches the port.
    Anybody,
    /// Gateways that the cluster gave a certificate.
    Own,
    /// Whoever has a certificate of an authority that the operator names.
    Others,
}

impl From<&ClientAuth> for Admits {
    fn from(asked: &ClientAuth) -> Self {
        match asked.roots() {
            None => Self::Anybody,
            Some(roots) if roots.own_authority => Self::Own,
            Some(_) => Self::Others,
        }
    }
}

/// What the port needs.
#[derive(Clone)]
pub struct Gateway {
    /// Who is let in.
    pub admits: Admits,
    /// The replica.
    pub broker: Arc<Broker>,
    /// Takes what is done for the audit.
    pub notes: Notes,
    /// Limits who asks; nobody when there is none.
    pub throttle: Option<Arc<Throttle>>,
}

/// Routes of the gateways' port.
pub fn router(gateway: Gateway) -> Router {
    Router::new()
        .route("/resolveSession", post(resolve))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is nothing here") })
        .layer(middleware::from_fn_with_state(gateway.clone(), by_address))
        .route("/health", get(|| async { Json(serde_json::json!({ "status": "ok" })) }))
        .with_state(gateway)
}

/// Lets a request through unless too many come from its address.
async fn by_address(
    State(gateway): State<Gateway>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, api::Error> {
    if let Some(throttle) = &gateway.throttle
        && let Err(refused) = throttle.admit_address(peer.address.ip())
    {
        if let Some(text) = refused.told() {
            gateway.notes.take(gateway.deed(actor(&peer).unwrap_or(Actor::Unknown), &peer, String::new()), &text);
        }
        return Err(refused.into());
    }
    Ok(next.run(request).await)
}

/// Who asks; `None` for who may not.
fn actor(peer: &Peer) -> Option<Actor> {
    match peer.certificate.as_ref().map(|shown| &shown.subject) {
        // Agents' certificates are of the same authority, and open another door.
        Some(Subject::Agent(_)) => None,
        Some(Subject::Gateway(name)) => Some(Actor::Gateway(name.as_str().to_owned())),
        Some(Subject::Other(name)) => Some(Actor::Gateway(name.clone())),
        None => Some(Actor::Unknown),
    }
}

/// Whether somebody may ask. A gateway of ours was given the certificate that it
/// shows, which was not revoked and has not ended since the connection began.
/// What another authority signed is for that one to revoke.
fn may_ask(admits: Admits, fleet: &Fleet, peer: &Peer, now: Timestamp) -> bool {
    match (&peer.certificate, admits) {
        (Some(Shown { subject: Subject::Gateway(name), digest }), _) => fleet.knows_gateway(name, *digest, now),
        (Some(Shown { subject: Subject::Other(_), .. }), Admits::Others) | (None, Admits::Anybody) => true,
        // Nobody gets as far; should somebody, it is a stranger.
        _ => false,
    }
}

impl Gateway {
    /// What somebody asked about something.
    fn deed(&self, actor: Actor, peer: &Peer, target: String) -> Deed {
        Deed {
            actor,
            from: peer.address.ip().to_string(),
            action: "resolveSession".to_owned(),
            target,
            request_id: String::new(),
            via: self.broker.id(),
        }
    }
}

/// Where a session is.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Resolved {
    session_id: String,
    transport_protocol: &'static str,
    dcv_server_endpoint: String,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    web_url_path: Option<String>,
}

/// What a gateway asks.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    session: SessionId,
    transport: EndpointProtocol,
    client_address: Option<IpAddr>,
}

impl Asked {
    fn parse(query: &str) -> Result<Self, String> {
        let pairs = form::pairs(query).ok_or("the query is not form-encoded")?;
        let value = |name: &str| {
            let mut values = pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
            let first = values.next().filter(|value| !value.is_empty());
            if values.next().is_some() { Err(format!("{name} is given twice")) } else { Ok(first) }
        };
        let session = value("sessionId")?.ok_or("sessionId is missing")?;
        let session = SessionId::new(session).map_err(|error| format!("sessionId is not valid: {error}"))?;
        let transport = match value("transport")?.map(str::to_ascii_uppercase).as_deref() {
            Some("HTTP") => EndpointProtocol::Http,
            Some("QUIC") => EndpointProtocol::Quic,
            _ => return Err("transport must be HTTP or QUIC".to_owned()),
        };
        // What is no address is not repeated to the audit.
        let client_address = value("clientIpAddress")?.and_then(|text| text.parse().ok());
        Ok(Self { session, transport, client_address })
    }
}

async fn resolve(
    State(gateway): State<Gateway>,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
) -> Response {
    let Some(actor) = actor(&peer) else {
        return refuse(StatusCode::FORBIDDEN, "the certificate is no gateway's");
    };
    // Desktops go on while no majority can be reached, and so do ways to them.
    let fleet = match gateway.broker.current().await {
        Ok(fleet) => fleet,
        Err(error) => {
            tracing::debug!(%error, "where a session is, is told by what this replica knows");
            gateway.broker.fleet()
        }
    };
    if !may_ask(gateway.admits, &fleet, &peer, gateway.broker.now()) {
        let deed = gateway.deed(actor, &peer, String::new());
        gateway.notes.take(deed, "refused: its certificate was revoked, has ended or is not known");
        return refuse(StatusCode::FORBIDDEN, REVOKED);
    }
    let asked = match Asked::parse(query.as_deref().unwrap_or_default()) {
        Ok(asked) => asked,
        Err(text) => return refuse(StatusCode::BAD_REQUEST, &text),
    };
    let resolved = look(&fleet, &asked);
    let deed = gateway.deed(
        actor,
        &peer,
        match asked.client_address {
            Some(address) => format!("{} {address}", asked.session),
            None => asked.session.to_string(),
        },
    );
    let Some(resolved) = resolved else {
        gateway.notes.take(deed, "refused: there is no such session, or not with this transport");
        return refuse(StatusCode::NOT_FOUND, NOT_RESOLVED);
    };
    gateway.notes.take(deed, &format!("is at {}:{}", resolved.dcv_server_endpoint, resolved.port));
    ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(resolved)).into_response()
}

/// Where a session is, if it can be reached with that transport.
fn look(fleet: &Fleet, asked: &Asked) -> Option<Resolved> {
    let session = fleet.session(&asked.session)?;
    // A server whose agent is silent may well serve its desktops.
    if !matches!(fleet.state_of(session), SessionState::Ready | SessionState::Unknown) {
        return None;
    }
    let server = fleet.server_of(session)?;
    let endpoint = server.facts.endpoints.iter().find(|endpoint| endpoint.protocol == asked.transport)?;
    Some(Resolved {
        session_id: session.id.as_str().to_owned(),
        transport_protocol: match asked.transport {
            EndpointProtocol::Http => "HTTP",
            EndpointProtocol::Quic => "QUIC",
        },
        dcv_server_endpoint: name_of(fleet, server, endpoint),
        port: endpoint.port,
        web_url_path: endpoint.web_url_path.clone(),
    })
}

/// The name that an operator told or, without one, the server's own.
fn name_of(fleet: &Fleet, server: &Server, endpoint: &Endpoint) -> String {
    let told = fleet.names_of(server).map(|names| names.internal.clone());
    // A server that listens on all its addresses may say so with this one, which leads nowhere.
    let is_one = |ip: &&String| !ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    told.or_else(|| server.facts.dns_name.clone())
        .or_else(|| endpoint.ip.as_ref().filter(is_one).cloned())
        .unwrap_or_else(|| server.facts.ip.clone())
}

fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(serde_json::json!({ "error": error }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::audit::Digest;
    use crate::domain::fleet::Stamp;
    use crate::domain::gateway::GatewayName;
    use crate::domain::{ClientId, Command, LogIndex};

    #[test]
    fn who_is_not_known_may_not_ask() {
        let name = |text| GatewayName::new(text).expect("valid");
        let digest = |byte| Digest([byte; 32]);
        let mut fleet = Fleet::default();
        let command = Command::CertifyGateway { gateway: name("gw"), certificate: digest(1), until: Timestamp(10) };
        fleet.apply(Stamp { index: LogIndex(1), at: Timestamp(1) }, command);
        let may = |admits, certificate, now| {
            let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificate };
            may_ask(admits, &fleet, &peer, Timestamp(now))
        };
        let shown = |subject, byte| Some(Shown { subject, digest: digest(byte) });
        let gateway = |text, byte| shown(Subject::Gateway(name(text)), byte);
        let other = || shown(Subject::Other("CN=gw".to_owned()), 1);
        let agent = || shown(Subject::Agent(ClientId::new("a").expect("valid")), 1);
        for admits in [Admits::Own, Admits::Others, Admits::Anybody] {
            assert!(may(admits, gateway("gw", 1), 9));
            assert!(!may(admits, gateway("gw", 1), 10), "it has ended");
            assert!(!may(admits, gateway("gw", 2), 9) && !may(admits, gateway("wg", 1), 9), "not given out");
            assert!(!may(admits, agent(), 9));
            assert_eq!(may(admits, other(), 9), admits == Admits::Others);
            assert_eq!(may(admits, None, 9), admits == Admits::Anybody);
        }
    }

    #[test]
    fn a_question_names_a_session_and_a_transport() {
        let asked = |session: &str, transport, client_address: &str| Asked {
            session: SessionId::new(session).expect("valid"),
            transport,
            client_address: client_address.parse().ok(),
        };
        assert_eq!(
            Asked::parse("sessionId=a%20b&transport=http&clientIpAddress=%3A%3A1"),
            Ok(asked("a b", EndpointProtocol::Http, "::1"))
        );
        let nonsense = Asked::parse("transport=QUIC&sessionId=s&clientIpAddress=x%0Ay");
        assert_eq!(nonsense, Ok(asked("s", EndpointProtocol::Quic, "")));
        assert_eq!(Asked::parse("transport=QUIC&sessionId=s&x=1"), Ok(asked("s", EndpointProtocol::Quic, "")));
        for (query, says) in [
            ("", "sessionId is missing"),
            ("sessionId=&transport=HTTP", "sessionId is missing"),
            ("sessionId=s", "transport must be HTTP or QUIC"),
            ("sessionId=s&transport=TCP", "transport must be HTTP or QUIC"),
            ("sessionId=s&sessionId=t&transport=HTTP", "sessionId is given twice"),
            ("sessionId=%0A&transport=HTTP", "sessionId is not valid: session id must not hold control characters"),
            ("sessionId=%", "the query is not form-encoded"),
        ] {
            assert_eq!(Asked::parse(query), Err(says.to_owned()), "{query}");
        }
    }
}
