//! Domain types as the API shows them. Nothing here can fail.

use super::wire;
use crate::domain::host::{self, EndpointProtocol, HostFacts};
use crate::domain::server::Unavailability;
use crate::domain::session::SessionState;
use crate::domain::{Fleet, Phase, Server, ServerId, Session, SessionId, SessionKind, SessionSpec, Timestamp};

/// A session with the short form of its server.
pub(super) fn session(fleet: &Fleet, session: &Session) -> wire::Session {
    let state = fleet.state_of(session);
    let substate = substate_name(state, &session.phase);
    let server = session.phase.server().map(|id| match fleet.server(id) {
        Some(server) => short_server(&server.id, &server.facts),
        // Its record was dropped; the id is all there is.
        None => wire::Server { id: Some(id.as_str().to_owned()), tags: Some(Vec::new()), ..wire::Server::default() },
    });
    wire::Session {
        server,
        state: Some(state_name(state).to_owned()),
        substate: substate.map(str::to_owned),
        state_reason: fleet.state_reason_of(session).map(std::borrow::Cow::into_owned),
        last_disconnection_time: session.last_disconnected_at.map(time),
        num_of_connections: Some(i64::from(session.connections)),
        ..plain_session(&session.id, session.created_at, &session.spec)
    }
}

/// A session that was accepted a moment ago. It says nothing of a server even
/// if one is chosen already: portals cannot take a server there.
pub(super) fn created_session(id: &SessionId, created_at: Timestamp, spec: &SessionSpec) -> wire::Session {
    wire::Session {
        state: Some(state_name(SessionState::Creating).to_owned()),
        substate: Some("SESSION_PLACING".to_owned()),
        num_of_connections: Some(0),
        ..plain_session(id, created_at, spec)
    }
}

/// What a session is without its place in the fleet.
fn plain_session(id: &SessionId, created_at: Timestamp, spec: &SessionSpec) -> wire::Session {
    wire::Session {
        id: Some(id.as_str().to_owned()),
        name: Some(spec.name.clone()),
        owner: Some(spec.owner.as_str().to_owned()),
        server: None,
        kind: Some(kind_name(spec.kind).to_owned()),
        max_concurrent_clients: spec.clients_max.map(i64::from),
        state: None,
        substate: None,
        state_reason: None,
        creation_time: Some(time(created_at)),
        last_disconnection_time: None,
        num_of_connections: None,
        storage_root: spec.storage_root.clone(),
    }
}

/// A server with everything that is known of it.
pub(super) fn server(fleet: &Fleet, server: &Server) -> wire::Server {
    let unavailability = fleet.unavailability(server);
    let counts = fleet.counts(&server.id);
    wire::Server {
        version: filled(&server.facts.desktop_version),
        session_manager_agent_version: filled(&server.facts.agent_version),
        availability: Some(availability_name(unavailability).to_owned()),
        unavailability_reason: unavailability.map(|reason| unavailability_name(reason).to_owned()),
        console_session_count: Some(int32(counts.console)),
        virtual_session_count: Some(int32(counts.virtual_)),
        host: Some(host(server)),
        ..short_server(&server.id, &server.facts)
    }
}

/// What a session says of its server: where it is, and its tags.
pub(super) fn short_server(id: &ServerId, facts: &HostFacts) -> wire::Server {
    let http_port = facts.endpoints.iter().find(|endpoint| endpoint.protocol == EndpointProtocol::Http);
    let tags =
        facts.tags.iter().map(|(key, value)| wire::KeyValuePair { key: Some(key.clone()), value: Some(value.clone()) });
    wire::Server {
        id: Some(id.as_str().to_owned()),
        ip: filled(&facts.ip),
        hostname: filled(&facts.hostname),
        default_dns_name: facts.dns_name.clone(),
        port: http_port.map(|endpoint| endpoint.port.to_string()),
        endpoints: Some(facts.endpoints.iter().map(endpoint).collect()),
        web_url_path: facts.web_url_path.clone(),
        tags: Some(tags.collect()),
        ..wire::Server::default()
    }
}

fn endpoint(endpoint: &host::Endpoint) -> wire::Endpoint {
    let protocol = match endpoint.protocol {
        EndpointProtocol::Http => "HTTP",
        EndpointProtocol::Quic => "QUIC",
    };
    wire::Endpoint {
        ip_address: endpoint.ip.clone(),
        port: Some(endpoint.port),
        web_url_path: endpoint.web_url_path.clone(),
        protocol: Some(protocol.to_owned()),
    }
}

fn host(server: &Server) -> wire::Host {
    let HostFacts { os, cpu, gpus, aws, .. } = &**server.facts;
    let load = &server.load;
    let average = load.load_average;
    wire::Host {
        os: Some(wire::Os {
            family: Some(os.family.as_str().to_owned()),
            name: filled(&os.name),
            version: filled(&os.version),
            kernel_version: os.kernel_version.clone(),
            build_number: os.build_number.clone(),
        }),
        memory: Some(wire::Memory {
            total_bytes: Some(int64(load.memory.total_bytes)),
            used_bytes: Some(int64(load.memory.used_bytes)),
        }),
        swap: Some(wire::Swap {
            total_bytes: Some(int64(load.swap.total_bytes)),
            used_bytes: Some(int64(load.swap.used_bytes)),
        }),
        aws: aws.as_ref().map(|aws| wire::Aws {
            region: filled(&aws.region),
            ec2_instance_type: filled(&aws.instance_type),
            ec2_instance_id: filled(&aws.instance_id),
            ec2_image_id: filled(&aws.image_id),
        }),
        cpu_info: Some(wire::CpuInfo {
            vendor: filled(&cpu.vendor),
            model_name: filled(&cpu.model_name),
            architecture: filled(&cpu.architecture),
            number_of_cpus: Some(cpu.logical_count),
            physical_cores_per_cpu: Some(cpu.physical_cores_per_cpu),
        }),
        cpu_load_average: Some(wire::CpuLoadAverage {
            one_minute: Some(hundredths(average.one_minute_hundredths)),
            five_minutes: Some(hundredths(average.five_minutes_hundredths)),
            fifteen_minutes: Some(hundredths(average.fifteen_minutes_hundredths)),
        }),
        gpus: Some(gpus.iter().map(gpu).collect()),
        logged_in_users: Some(
            load.logged_in_users.iter().map(|user| wire::LoggedInUser { username: Some(user.clone()) }).collect(),
        ),
    }
}

fn gpu(gpu: &host::Gpu) -> wire::Gpu {
    wire::Gpu { vendor: filled(&gpu.vendor), model_name: filled(&gpu.model_name) }
}

/// Name of a state.
pub(super) const fn state_name(state: SessionState) -> &'static str {
    match state {
        SessionState::Creating => "CREATING",
        SessionState::Ready => "READY",
        SessionState::Deleting => "DELETING",
        SessionState::Deleted => "DELETED",
        SessionState::Unknown => "UNKNOWN",
    }
}

/// Name of what a session that is being created waits for.
pub(super) const fn substate_name(state: SessionState, phase: &Phase) -> Option<&'static str> {
    match (state, phase) {
        (SessionState::Creating, Phase::Placing { .. }) => Some("SESSION_PLACING"),
        (SessionState::Creating, _) => Some("PENDING_PREPARATION"),
        _ => None,
    }
}

/// Name of a kind.
pub(super) const fn kind_name(kind: SessionKind) -> &'static str {
    match kind {
        SessionKind::Console => "CONSOLE",
        SessionKind::Virtual => "VIRTUAL",
    }
}

/// Whether something can be placed on a server.
pub(super) const fn availability_name(reason: Option<Unavailability>) -> &'static str {
    if reason.is_none() { "AVAILABLE" } else { "UNAVAILABLE" }
}

/// Name of the reason why nothing is placed on a server.
pub(super) const fn unavailability_name(reason: Unavailability) -> &'static str {
    match reason {
        Unavailability::ServerFull => "SERVER_FULL",
        Unavailability::ServerClosed => "SERVER_CLOSED",
        Unavailability::UnreachableAgent => "UNREACHABLE_AGENT",
        Unavailability::UnhealthyDcvServer => "UNHEALTHY_DCV_SERVER",
        Unavailability::ExistingLoggedInUser => "EXISTING_LOGGED_IN_USER",
        Unavailability::Unknown => "UNKNOWN",
    }
}

/// RFC 3339 with milliseconds, in UTC. A time beyond the year 9999 is shown as
/// the last one before it.
pub(super) fn time(at: Timestamp) -> String {
    String::from_utf8_lossy(&time_digits(at)).into_owned()
}

/// [`time`] as bytes.
pub(super) fn time_digits(at: Timestamp) -> [u8; 24] {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    let at = jiff::tz::Offset::UTC.to_datetime(at);
    let mut digits = *b"0000-00-00T00:00:00.000Z";
    let parts = [
        (0, 4, at.year()),
        (5, 2, at.month().into()),
        (8, 2, at.day().into()),
        (11, 2, at.hour().into()),
        (14, 2, at.minute().into()),
        (17, 2, at.second().into()),
        (20, 3, at.millisecond()),
    ];
    for (from, length, value) in parts {
        let mut rest = u16::try_from(value).unwrap_or(0);
        for digit in digits.iter_mut().skip(from).take(length).rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
    digits
}

/// A text, unless the host did not tell it.
fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn int32(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn int64(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn hundredths(value: u32) -> f64 {
    f64::from(value) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_text_with_milliseconds_and_an_offset() {
        assert_eq!(time(Timestamp(1_601_979_331_633)), "2020-10-06T10:15:31.633Z");
        assert_eq!(time(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(Timestamp(1_601_979_331_000)), "2020-10-06T10:15:31.000Z");
    }

    proptest::proptest! {
        #[test]
        fn times_are_what_the_calendar_says(millis in 0..253_402_207_200_000_u64) {
            let expected = jiff::Timestamp::from_millisecond(millis.cast_signed()).expect("in range");
            proptest::prop_assert_eq!(time(Timestamp(millis)), expected.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string());
        }
    }

    #[test]
    fn a_time_beyond_the_calendar_is_still_a_time() {
        assert!(time(Timestamp(u64::MAX)).starts_with("9999-12-"));
    }

    #[test]
    fn loads_come_out_as_the_host_told_them() {
        assert_eq!(serde_json::to_string(&hundredths(224)).expect("a number"), "2.24");
        assert_eq!(serde_json::to_string(&hundredths(0)).expect("a number"), "0.0");
    }
}
