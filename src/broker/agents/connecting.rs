//! `POST /agent/validate-authentication-token`: a desktop server asks whether
//! somebody with a connection token may connect to one of its sessions.
//!
//! Form and answer are those of the external authentication of DCV servers: a
//! form with `sessionId`, `authenticationToken` and `clientAddress`, and XML.
//! A refusal says no more than that.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::{Agents, Ticket, deed};
use crate::broker::api::form;
use crate::broker::tls::Peer;
use crate::domain::audit::Actor;
use crate::domain::permissions::may_connect;
use crate::domain::session::SessionState;
use crate::domain::{Fleet, Owner, SessionId};

/// The path.
pub(super) const PATH: &str = "/agent/validate-authentication-token";

/// Answers a desktop server.
pub(super) async fn validate(State(agents): State<Agents>, Extension(peer): Extension<Peer>, form: Bytes) -> Response {
    let asked = Asked::of(&form);
    let found = check(&agents, &asked).await;
    let client = asked.client_address.map_or_else(String::new, |address| format!(" at {address}"));
    let target = match &found {
        Ok(user) => format!("{} {user}{client}", asked.session),
        Err(_) => format!("{}{client}", asked.session),
    };
    let deed = deed(&agents, &peer, Actor::Unknown, PATH, target);
    match found {
        Ok(user) => {
            agents.notes.take(deed, "the user may connect");
            xml(format!("<auth result=\"yes\"><username>{}</username></auth>", escaped(user.as_str())))
        }
        Err(reason) => {
            tracing::info!(session = asked.session, reason, "a connection was refused");
            agents.notes.take(deed, &format!("refused: {reason}"));
            xml("<auth result=\"no\"/>".to_owned())
        }
    }
}

/// What is asked; what is missing is empty.
#[derive(Debug, Default)]
struct Asked {
    session: String,
    token: String,
    /// Where the user connects from, as the desktop server says.
    client_address: Option<IpAddr>,
}

impl Asked {
    fn of(form: &[u8]) -> Self {
        let mut asked = Self::default();
        let pairs = std::str::from_utf8(form).ok().and_then(form::pairs).unwrap_or_default();
        for (name, value) in pairs {
            match name.as_str() {
                // What cannot be an id is that of no session.
                "sessionId" if SessionId::new(&value).is_ok() => asked.session = value,
                "authenticationToken" => asked.token = value,
                "clientAddress" => asked.client_address = value.parse().ok(),
                _ => {}
            }
        }
        asked
    }
}

/// The user that may connect, or why nobody may.
async fn check(agents: &Agents, asked: &Asked) -> Result<Owner, String> {
    let ticket = agents.proofs.ticket(&asked.token)?;
    if ticket.session.as_str() != asked.session {
        return Err("the token is for another session".to_owned());
    }
    // Desktops go on while no majority can be reached, and so does coming back to one.
    let fleet = match agents.broker.current().await {
        Ok(fleet) => fleet,
        Err(error) => {
            tracing::debug!(%error, "whether a user may connect is told by what this replica knows");
            agents.broker.fleet()
        }
    };
    may(&fleet, &ticket)?;
    agents.proofs.spend(&asked.token).await?;
    Ok(ticket.user)
}

/// Whether the session is there for this user, now.
fn may(fleet: &Arc<Fleet>, ticket: &Ticket) -> Result<(), String> {
    let session = fleet.session(&ticket.session).ok_or("there is no such session")?;
    if session.spec.owner != ticket.owner {
        return Err("the session has another owner by now".to_owned());
    }
    match fleet.state_of(session) {
        // A host that was not heard of may ask by itself.
        SessionState::Ready | SessionState::Unknown => {}
        _ => return Err("the session is not ready".to_owned()),
    }
    // What a host made by itself has permissions that only the host knows.
    let is_known = session.requested_by.is_some() || session.spec.permissions.is_some();
    if is_known && !may_connect(session.spec.permissions.as_deref(), &session.spec.owner, &ticket.user) {
        return Err("the session's permissions do not let the user connect".to_owned());
    }
    Ok(())
}

fn xml(body: String) -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=utf-8"));
    ([kind, (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], body).into_response()
}

/// A text within XML.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_and_nonsense_asks_for_nothing() {
        let asked = Asked::of(b"sessionId=a%20b&authenticationToken=x.y.z&clientAddress=%3A%3A1&more=1");
        assert_eq!((asked.session.as_str(), asked.token.as_str()), ("a b", "x.y.z"));
        assert_eq!(asked.client_address, "::1".parse().ok());
        for nonsense in [&b""[..], b"\xff\xfe", b"%", b"=&=&=", b"sessionId"] {
            assert!(Asked::of(nonsense).token.is_empty());
        }
    }

    #[test]
    fn a_name_cannot_break_out_of_the_answer() {
        assert_eq!(escaped("</username>\"&'"), "&lt;/username&gt;&quot;&amp;&apos;");
        assert_eq!(escaped("CORP\\ann"), "CORP\\ann");
    }
}
