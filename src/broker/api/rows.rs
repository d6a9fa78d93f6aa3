//! Sessions as JSON, straight from the fleet: what `view` and `wire` make of
//! them, byte for byte, without a copy of each text on the way.
//!
//! A page touches a thousand sessions and almost as many servers that nobody
//! looked at for a while. So the short form of a server is kept beside its
//! facts once it was made, in one piece, and everything is fetched before it
//! is written: fetches that do not wait for one another overlap.

use std::io::Write as _;

use super::view;
use crate::domain::fleet::Sighting;
use crate::domain::host::HostFacts;
use crate::domain::{ServerId, Session, SessionKind, Timestamp};

/// Bytes that a session usually takes, with its server.
const ROW_BYTES: usize = 768;
/// What memory gives at once.
const CACHE_LINE_BYTES: usize = 64;
/// Rows that are fetched before they are written: enough for memory to be busy
/// all the time, few enough to be in the nearest cache when they are written.
const ROWS_FETCHED: usize = 32;

/// The body of an answer to describeSessions.
pub(super) fn sessions_body(sessions: &[Sighting<'_>], request_id: &str, next_token: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + sessions.len() * ROW_BYTES);
    out.extend_from_slice(b"{\"RequestId\":");
    text(&mut out, request_id);
    out.extend_from_slice(b",\"Sessions\":[");
    let mut forms = Vec::with_capacity(ROWS_FETCHED);
    let mut separator: &[u8] = b"";
    for rows in sessions.chunks(ROWS_FETCHED) {
        fetch(rows, &mut forms);
        for (seen, form) in rows.iter().zip(&forms) {
            out.extend_from_slice(separator);
            separator = b",";
            session(&mut out, seen, *form);
        }
    }
    out.push(b']');
    if let Some(token) = next_token {
        member(&mut out, b",\"NextToken\":", token);
    }
    out.push(b'}');
    out
}

/// Touches what the rows will hold, one kind of thing after the other, and
/// gives the short form of each server that is listed. Memory answers several
/// requests at a time, unless the next one follows from the last.
fn fetch<'a>(sessions: &[Sighting<'a>], forms: &mut Vec<Option<&'a [u8]>>) {
    let mut touched = 0_usize;
    for Sighting { session, .. } in sessions {
        let Session { id, spec, phase, created_at, connections, state_reason, last_disconnected_at, .. } = &***session;
        touched ^= id.as_str().len() ^ spec.name.len() ^ spec.owner.as_str().len();
        touched ^= usize::from(phase.is_deleted() ^ state_reason.is_some() ^ last_disconnected_at.is_some());
        touched ^= usize::from(spec.storage_root.is_some() ^ spec.clients_max.is_some() ^ (created_at.0 == 0));
        touched ^= usize::from((*connections == 0) ^ (spec.kind == SessionKind::Console) ^ phase.server().is_some());
    }
    let first = |bytes: &[u8]| usize::from(bytes.first().copied().unwrap_or_default());
    forms.clear();
    for Sighting { session, facts, .. } in sessions {
        touched ^= first(session.id.as_str().as_bytes()) ^ first(session.spec.name.as_bytes());
        forms.push(facts.zip(session.phase.server()).map(|(facts, id)| facts.form(|host| short_server(id, host))));
    }
    for form in forms.iter().flatten() {
        touched ^= form.iter().step_by(CACHE_LINE_BYTES).fold(0, |touched, byte| touched ^ usize::from(*byte));
    }
    std::hint::black_box(touched);
}

/// A session with the short form of its server.
fn session(out: &mut Vec<u8>, seen: &Sighting<'_>, form: Option<&[u8]>) {
    let session = seen.session;
    let state = session.state(seen.is_lost);
    member(out, b"{\"Id\":", session.id.as_str());
    member(out, b",\"Name\":", &session.spec.name);
    member(out, b",\"Owner\":", session.spec.owner.as_str());
    match (form, session.phase.server()) {
        (Some(form), _) => {
            out.extend_from_slice(b",\"Server\":");
            out.extend_from_slice(form);
        }
        // Its record was dropped; the id is all there is.
        (None, Some(id)) => {
            member(out, b",\"Server\":{\"Id\":", id.as_str());
            out.extend_from_slice(b",\"Tags\":[]}");
        }
        (None, None) => {}
    }
    word(out, b",\"Type\":", view::kind_name(session.spec.kind));
    if let Some(max) = session.spec.clients_max {
        number(out, b",\"MaxConcurrentClients\":", max);
    }
    word(out, b",\"State\":", view::state_name(state));
    if let Some(substate) = view::substate_name(state, &session.phase) {
        word(out, b",\"Substate\":", substate);
    }
    if let Some(reason) = session.reason_for(state) {
        member(out, b",\"StateReason\":", reason);
    }
    time(out, b",\"CreationTime\":", session.created_at);
    if let Some(at) = session.last_disconnected_at {
        time(out, b",\"LastDisconnectionTime\":", at);
    }
    number(out, b",\"NumOfConnections\":", session.connections);
    if let Some(root) = &session.spec.storage_root {
        member(out, b",\"StorageRoot\":", root);
    }
    out.push(b'}');
}

/// The short form of a server.
fn short_server(id: &ServerId, facts: &HostFacts) -> Vec<u8> {
    // Texts and numbers can always be encoded.
    serde_json::to_vec(&view::short_server(id, facts)).unwrap_or_else(|_| b"{}".to_vec())
}

fn member(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    text(out, value);
}

/// A text as JSON.
fn text(out: &mut Vec<u8>, value: &str) {
    let is_special = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    // Looking at all of them is faster than stopping at the first.
    if !value.bytes().fold(false, |found, byte| found | is_special(byte)) {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else if serde_json::to_writer(&mut *out, value).is_err() {
        // Memory takes everything; an answer without the text is still JSON.
        out.extend_from_slice(b"\"\"");
    }
}

/// A word that needs no escapes.
fn word(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    out.push(b'"');
    out.extend_from_slice(value.as_bytes());
    out.push(b'"');
}

fn number(out: &mut Vec<u8>, name: &[u8], value: u32) {
    out.extend_from_slice(name);
    if value < 10 {
        out.push(b'0' + u8::try_from(value).unwrap_or(0));
    } else {
        // A vector takes everything.
        let _ = write!(out, "{value}");
    }
}

fn time(out: &mut Vec<u8>, name: &[u8], at: Timestamp) {
    out.extend_from_slice(name);
    out.push(b'"');
    out.extend_from_slice(&view::time_digits(at));
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use crate::domain::requirements::Expression;
    use proptest::prelude::*;

    use super::*;
    use crate::broker::api::wire;
    use crate::domain::fleet::Stamp;
    use crate::domain::host::{Endpoint, EndpointProtocol, Health, HostLoad};
    use crate::domain::report::{EndedSession, Inventory, Report, ReportedSession};
    use crate::domain::{
        ClientId, Command, Fleet, LogIndex, Millis, Outcome, Owner, ReplicaId, SessionId, SessionSpec,
    };

    fn reported(number: usize, text: &str, at: u64) -> ReportedSession {
        ReportedSession {
            id: SessionId::new(&format!("s{number}\"\\ü")).expect("valid"),
            name: text.to_owned(),
            owner: Owner::new("CORP\\anna").expect("valid"),
            kind: if number.is_multiple_of(2) { SessionKind::Virtual } else { SessionKind::Console },
            usable: true,
            connections: u32::try_from(at % 200).expect("small"),
            clients_max: number.is_multiple_of(3).then_some(u32::try_from(number).expect("small")),
            created_at: Timestamp(at),
            last_disconnected_at: (number % 2 == 1).then_some(Timestamp(at / 2)),
            storage_root: (number % 3 == 1).then(|| text.to_owned()),
            created_by: None,
        }
    }

    fn facts(text: &str, endpoints: usize) -> HostFacts {
        let endpoint = |number: usize| Endpoint {
            ip: (number > 0).then(|| text.to_owned()),
            port: 8443,
            web_url_path: None,
            protocol: if number.is_multiple_of(2) { EndpointProtocol::Quic } else { EndpointProtocol::Http },
        };
        HostFacts {
            hostname: text.to_owned(),
            dns_name: (endpoints > 1).then(|| text.to_owned()),
            endpoints: (0..endpoints).map(endpoint).collect(),
            tags: [(text.to_owned(), text.to_owned())].into(),
            ..HostFacts::default()
        }
    }

    /// Sessions in every state, on a server that is there or not.
    fn fleet(text: &str, times: &[u64], endpoints: usize, is_lost: bool) -> Fleet {
        let mut fleet = Fleet::default();
        let mut at = 1_000;
        let mut apply = |fleet: &mut Fleet, wait: u64, command: Command| {
            at += wait;
            let stamp = Stamp { index: LogIndex(at), at: Timestamp(at) };
            fleet.advance(stamp);
            fleet.apply(stamp, command).outcome
        };
        let server = ServerId::new("desk").expect("valid");
        let sessions: Vec<_> = times.iter().enumerate().map(|(number, at)| reported(number, text, *at)).collect();
        let ended = sessions.first().map(|first| EndedSession { id: first.id.clone(), reason: Some(text.to_owned()) });
        let report = Report {
            facts: Some(facts(text, endpoints)),
            load: Some(HostLoad::default()),
            health: Some(Health::Healthy),
            sessions: Some(Inventory::Full(sessions)),
        };
        let outcome = apply(
            &mut fleet,
            1,
            Command::ConnectAgent {
                instance: crate::domain::ids::AgentInstance::new("run-1").expect("valid"),
                server: server.clone(),
                via: ReplicaId(1),
                report_interval: Millis::from_secs(30),
                report,
            },
        );
        let Outcome::Welcome { epoch } = outcome else { panic!("not welcome: {outcome:?}") };
        let client = ClientId::new("portal").expect("valid");
        for (number, requirements) in
            [None, Expression::parse("tag:none = 'x'").expect("valid").map(std::sync::Arc::new)].into_iter().enumerate()
        {
            let spec = SessionSpec::plain("n".to_owned(), Owner::new("ann").expect("valid"), SessionKind::Virtual);
            let spec = SessionSpec { requirements, enqueue: true, ..spec };
            let id = SessionId::new(&format!("made-{number}")).expect("valid");
            apply(&mut fleet, 1, Command::CreateSession { id, spec, client: client.clone() });
        }
        let sessions = Some(Inventory::Changes { changed: Vec::new(), gone: ended.into_iter().collect() });
        apply(&mut fleet, 1, Command::Report { server, epoch, report: Report { sessions, ..Report::default() } });
        if is_lost {
            apply(&mut fleet, 200_000, Command::ReplicaStarted { replica: ReplicaId(2) });
            apply(&mut fleet, 2_000_000, Command::ReplicaStarted { replica: ReplicaId(2) });
        }
        fleet
    }

    proptest! {
        #[test]
        fn rows_are_what_the_description_makes_of_sessions(
            text in "[ -~\n\u{7}üß€]{0,12}", times in prop::collection::vec(any::<u64>(), 0..6),
            endpoints in 0_usize..3, is_lost in any::<bool>(), token in prop::option::of("[a-z\"]{1,5}"),
        ) {
            let fleet = fleet(&text, &times, endpoints, is_lost);
            let page: Vec<Sighting<'_>> = fleet.walk(&[], None, usize::MAX).collect();
            let body = wire::DescribeSessionsResponse {
                request_id: text.clone(),
                sessions: page.iter().map(|seen| view::session(&fleet, seen.session)).collect(),
                next_token: token.clone(),
            };
            let expected = serde_json::to_string(&body).expect("memory");
            // Twice: the second time with what was kept.
            for _ in 0..2 {
                let rows = sessions_body(&page, &text, token.as_deref());
                prop_assert_eq!(String::from_utf8(rows).expect("text"), expected.as_str());
            }
        }
    }
}
