//! Every limit of the client API, in one place. `docs/api.md` lists them for
//! clients.

use std::time::Duration;

/// Longest body in bytes. A thousand items of ordinary size have 300 KiB.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a body may take to arrive; a slower one only holds a connection.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest form at the token end point, in bytes.
pub const FORM_BYTES_MAX: usize = 16 * 1024;
/// Longest access token, in bytes.
pub const ACCESS_TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Longest request id that is taken over from a client, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Addresses, and clients, whose requests are counted at the same time. Of
/// more, those that have not called for the longest time are forgotten.
pub const CALLERS_MAX: usize = 65_536;
/// Requests under way that tell something: each may have an answer of some
/// megabytes that its client is slow to take.
pub const READS_UNDER_WAY_MAX: usize = 2048;
/// Requests under way that go through the log, those for the way to a desktop
/// among them: at a hundred milliseconds for
/// each, as on a slow disk, twenty thousand a second.
pub const CHANGES_UNDER_WAY_MAX: usize = 2048;
/// Requests for pictures under way: each has up to [`SCREENSHOTS_BYTES_MAX`]
/// in memory.
pub const PICTURES_UNDER_WAY_MAX: usize = 64;
/// Longest idempotency key, in bytes: a UUID needs 36.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// Most items in one call, and most ids or filters in one query: as many as a
/// page may have results.
pub const ITEMS_MAX: usize = 1000;
/// Most results of one page, and as many as a page has when the client does
/// not say.
pub const RESULTS_MAX: usize = 1000;

/// How long a read waits to learn what is current before it is answered from
/// what the replica knows: longer than the election of a leader takes, and
/// shorter than people wait.
pub const READ_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a read waits for the entry that Berth-Min-Index names.
pub const MIN_INDEX_WAIT_MAX: Duration = Duration::from_secs(10);

/// Longest time that a drain may take, in seconds: a week.
pub const DRAIN_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// Sessions or servers that a request looks at before it leaves the threads
/// that serve all requests: some pages' worth, a few milliseconds.
pub const STEPS_INLINE_MAX: usize = 4 * RESULTS_MAX;
/// Requests that look at more than that at the same time; others wait. Two
/// leave the other processors of a small host to everybody else.
pub const SCANS_MAX: usize = 2;
/// How long a request waits for its turn among them.
pub const SCAN_WAIT_MAX: Duration = Duration::from_secs(10);

/// Longest name of a session, in bytes, as desktop servers take it.
pub const NAME_BYTES_MAX: usize = 256;
/// Longest path of an init or autorun file or of a storage root, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Most clients of a session that can be asked for.
pub const CLIENTS_MAX: u32 = 100;
/// Longest permissions file, in bytes once decoded: it is in the log and goes
/// to the host in one message.
pub const PERMISSIONS_BYTES_MAX: usize = 64 * 1024;
/// Arguments that an autorun file may have, unless an operator sets it.
pub const AUTORUN_ARGUMENTS_DEFAULT: usize = 50;
/// Most that an operator can set. The host has the same limit.
pub const AUTORUN_ARGUMENTS_MAX: usize = 1000;
/// Characters that one may have, unless an operator sets it.
pub const AUTORUN_ARGUMENT_CHARS_DEFAULT: usize = 150;
/// Most that an operator can set. The host has the same limit.
pub const AUTORUN_ARGUMENT_CHARS_MAX: usize = 4096;

/// Most events of one page.
pub const EVENTS_MAX: usize = 1000;
/// Events of a page when the client does not say.
pub const EVENTS_DEFAULT: usize = 100;
/// Events that are looked at for one page; a filter may let few of them through.
pub const EVENTS_LOOKED_AT_MAX: usize = 10_000;
/// Events that a stream reads ahead of its client.
pub const EVENTS_AHEAD_MAX: usize = 100;
/// Streams of events at a time on one replica: each holds a connection.
pub const EVENT_STREAMS_MAX: usize = 256;
/// Streams of events of one client at a time on one replica.
pub const EVENT_STREAMS_PER_CLIENT_MAX: usize = 8;
/// How often a stream shows a sign of life when nothing happens; proxies give
/// up on silent connections after 60 s or less.
pub const EVENT_KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Agents that one request for pictures asks at the same time.
pub const AGENTS_ASKED_MAX: usize = 8;
/// How long one agent may take for a picture, unless an operator sets it.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long all pictures of a request may take, unless an operator sets it;
/// most clients wait for 60 s.
pub const SCREENSHOTS_TIMEOUT: Duration = Duration::from_secs(45);
/// Bytes of base64 that one answer with pictures holds at most: it is made in
/// memory.
pub const SCREENSHOTS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest side of a picture that an agent is asked for, in pixels.
pub const SCREENSHOT_SIDE_MAX: u32 = 16_384;
