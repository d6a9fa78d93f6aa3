//! The page for clients says what the code does.

use berth::broker::api::limits;
use berth::broker::config::Limits;
use berth::broker::listen::{ANSWER_STALL_TIMEOUT, STALL_TIMEOUT};
use berth::broker::shares::PARTS;
use berth::domain::ids::ID_BYTES_MAX;

const PAGE: &str = include_str!("../docs/api.md");

#[test]
fn every_limit_stands_on_the_page_with_its_value() {
    let rows = [
        format!("| body of a request | {} bytes |", limits::BODY_BYTES_MAX),
        format!("| time for a body to arrive | {} s |", limits::BODY_TIMEOUT.as_secs()),
        format!("| time for which a client may take nothing of its answer | {} s |", STALL_TIMEOUT.as_secs()),
        format!(
            "| time for which it may take nothing of one answer while it takes others on the same connection (HTTP/2) | {} s |",
            ANSWER_STALL_TIMEOUT.as_secs()
        ),
        format!("| form at the token end point | {} bytes |", limits::FORM_BYTES_MAX),
        format!("| access token | {} bytes |", limits::ACCESS_TOKEN_BYTES_MAX),
        format!("| request id taken over from a client | {} bytes |", limits::REQUEST_ID_BYTES_MAX),
        format!("| Idempotency-Key | {} bytes |", limits::IDEMPOTENCY_KEY_BYTES_MAX),
        format!(
            "| requests per second, of each address and of each client, per replica | {}; an operator can set another limit |",
            Limits::default().requests_per_second
        ),
        format!("| requests under way that tell something, per replica | {} |", limits::READS_UNDER_WAY_MAX),
        format!(
            "| requests under way that change something or open a desktop, per replica | {} |",
            limits::CHANGES_UNDER_WAY_MAX
        ),
        format!("| requests for pictures under way, per replica | {} |", limits::PICTURES_UNDER_WAY_MAX),
        format!(
            "| requests of one kind under way, of each client | {PARTS} times as many as there is room for; alone it gets all but an eighth |"
        ),
        format!("| time that a read waits to learn what is current | {} s |", limits::READ_WAIT_MAX.as_secs()),
        format!("| time that a read waits for Berth-Min-Index | {} s |", limits::MIN_INDEX_WAIT_MAX.as_secs()),
        format!("| items in a call, and ids or filters in a query | {} |", limits::ITEMS_MAX),
        format!("| results in a page, and default of MaxResults | {} |", limits::RESULTS_MAX),
        format!(
            "| sessions or servers that a listing looks at before it takes its turn | {} |",
            limits::STEPS_INLINE_MAX
        ),
        format!("| listings that look at more, at the same time, per replica | {} |", limits::SCANS_MAX),
        format!("| time that a listing waits for its turn | {} s |", limits::SCAN_WAIT_MAX.as_secs()),
        format!("| Name | {} bytes |", limits::NAME_BYTES_MAX),
        format!("| Owner, SessionId, ServerId, and the user in a path | {ID_BYTES_MAX} bytes |"),
        format!("| InitFile, InitFilePath, AutorunFile, StorageRoot | {} bytes |", limits::PATH_BYTES_MAX),
        format!("| MaxConcurrentClients | 1 to {} |", limits::CLIENTS_MAX),
        format!("| PermissionsFile, decoded | {} bytes |", limits::PERMISSIONS_BYTES_MAX),
        format!(
            "| AutorunFileArguments | {} entries; an operator can set another limit, {} at most |",
            limits::AUTORUN_ARGUMENTS_DEFAULT,
            limits::AUTORUN_ARGUMENTS_MAX
        ),
        format!(
            "| an entry of AutorunFileArguments | {} characters; an operator can set another limit, {} at most |",
            limits::AUTORUN_ARGUMENT_CHARS_DEFAULT,
            limits::AUTORUN_ARGUMENT_CHARS_MAX
        ),
        format!("| events in a page | {}, {} when limit is not given |", limits::EVENTS_MAX, limits::EVENTS_DEFAULT),
        format!("| events looked at for a page | {} |", limits::EVENTS_LOOKED_AT_MAX),
        format!("| events that a stream reads ahead | {} |", limits::EVENTS_AHEAD_MAX),
        format!("| streams of events, per replica | {} |", limits::EVENT_STREAMS_MAX),
        format!("| streams of events, per client and replica | {} |", limits::EVENT_STREAMS_PER_CLIENT_MAX),
        format!("| time between signs of life of a stream | {} s |", limits::EVENT_KEEP_ALIVE.as_secs()),
        format!("| agents asked for pictures at the same time, per request | {} |", limits::AGENTS_ASKED_MAX),
        format!("| time for one picture | {} s |", limits::AGENT_TIMEOUT.as_secs()),
        format!("| time for all pictures of a request | {} s |", limits::SCREENSHOTS_TIMEOUT.as_secs()),
        format!("| pictures in one answer, as base64 | {} bytes |", limits::SCREENSHOTS_BYTES_MAX),
        format!("| side of a picture | {} pixels |", limits::SCREENSHOT_SIDE_MAX),
    ];
    for row in rows {
        assert!(PAGE.contains(&row), "docs/api.md lacks: {row}");
    }
}
