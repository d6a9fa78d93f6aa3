//! The page for those who write another agent says what the code does.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use berth::domain::Settings;
use berth::domain::host::Health;
use berth::domain::ids::ID_BYTES_MAX;
use berth::domain::instruction::{Action, Answer};
use berth::domain::report::Inventory;
use berth::protocol::{
    self, CONTEST_TIMEOUT, FromAgent, FromBroker, HELLO_TIMEOUT, MESSAGE_BYTES_MAX, PING_INTERVAL,
    PING_INTERVAL_OF_BROKER, PINGS_MISSED_MAX, Question, REPORT_INTERVAL_MS_MAX, REPORT_INTERVAL_MS_MIN, Reply,
    SILENCE_MAX, WELCOME_TIMEOUT, close,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const PAGE: &str = include_str!("../docs/agent-protocol.md");

/// The examples of a kind, with the line where each begins.
fn examples(kind: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, bool, String)> = None;
    for (index, line) in PAGE.lines().enumerate() {
        open = match (open, line.strip_prefix("```")) {
            (None, Some(info)) => Some((index + 1, info == format!("json {kind}"), String::new())),
            (None, None) => None,
            (Some((start, wanted, text)), Some(_)) => {
                if wanted {
                    found.push((start, text));
                }
                None
            }
            (Some((start, wanted, text)), None) => Some((start, wanted, text + line + "\n")),
        };
    }
    found
}

/// Decodes an example, encodes it again, and finds everything it shows there.
fn both_ways<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>((line, text): &(usize, String)) -> T {
    let message: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("line {line}: {error}"));
    let shown: Value = serde_json::from_str(text).unwrap();
    let encoded = serde_json::to_value(&message).unwrap();
    assert_shown(&shown, &encoded, &format!("line {line}"));
    assert_eq!(serde_json::from_value::<T>(encoded).unwrap(), message, "line {line}");
    message
}

fn assert_shown(shown: &Value, encoded: &Value, place: &str) {
    match (shown, encoded) {
        (Value::Object(shown), Value::Object(encoded)) => {
            for (name, value) in shown {
                let known = encoded.get(name).unwrap_or_else(|| panic!("{place}: {name} is no field"));
                assert_shown(value, known, &format!("{place}: {name}"));
            }
        }
        (Value::Array(shown), Value::Array(encoded)) => {
            assert_eq!(shown.len(), encoded.len(), "{place}");
            for (shown, encoded) in shown.iter().zip(encoded) {
                assert_shown(shown, encoded, place);
            }
        }
        _ => assert_eq!(shown, encoded, "{place}"),
    }
}

/// Each of these has an arm for each variant: a new one does not compile until
/// it has a name here, and then fails until it has an example.
fn parts_of_agent(message: &FromAgent) -> Vec<&'static str> {
    let report_parts = |report: &berth::domain::report::Report| {
        let mut parts = Vec::new();
        parts.extend(report.health.as_ref().map(|health| match health {
            Health::Healthy => "healthy",
            Health::Unhealthy(_) => "unhealthy",
            Health::InUse => "in_use",
        }));
        parts.extend(report.sessions.as_ref().map(|sessions| match sessions {
            Inventory::Full(_) => "full",
            Inventory::Changes { .. } => "changes",
        }));
        parts
    };
    match message {
        FromAgent::Hello(hello) => [vec!["hello"], report_parts(&hello.report)].concat(),
        FromAgent::Report { report, .. } => [vec!["report"], report_parts(report)].concat(),
        FromAgent::Answer { answer: Answer::Done, .. } => vec!["answer", "answer done"],
        FromAgent::Answer { answer: Answer::Failed { .. }, .. } => vec!["answer", "answer failed"],
        FromAgent::Reply { reply: Reply::Screenshot(_), .. } => vec!["reply", "reply screenshot"],
        FromAgent::Reply { reply: Reply::Failed { .. }, .. } => vec!["reply", "reply failed"],
        FromAgent::Ping { .. } => vec!["ping"],
        FromAgent::Pong { .. } => vec!["pong"],
    }
}

fn part_of_broker(message: &FromBroker) -> &'static str {
    match message {
        FromBroker::Welcome { .. } => "welcome",
        FromBroker::Reported { .. } => "reported",
        FromBroker::Instruction { instruction, .. } => match instruction.action {
            Action::CreateSession { .. } => "create_session",
            Action::CloseSession { .. } => "close_session",
            Action::SetPermissions { .. } => "set_permissions",
        },
        FromBroker::Settled { .. } => "settled",
        FromBroker::Question { question: Question::Screenshot { .. }, .. } => "question",
        FromBroker::Ping { .. } => "ping",
        FromBroker::Pong { .. } => "pong",
        FromBroker::CutOff { .. } => "cut_off",
    }
}

#[test]
fn every_example_is_a_message_and_every_message_has_an_example() {
    let agent: BTreeSet<&str> =
        examples("from-agent").iter().flat_map(|example| parts_of_agent(&both_ways(example))).collect();
    let wanted = [
        "hello",
        "healthy",
        "unhealthy",
        "full",
        "changes",
        "report",
        "answer",
        "answer done",
        "answer failed",
        "reply",
        "reply screenshot",
        "reply failed",
        "ping",
        "pong",
    ];
    assert_eq!(agent, BTreeSet::from(wanted));
    let broker: BTreeSet<&str> =
        examples("from-broker").iter().map(|example| part_of_broker(&both_ways(example))).collect();
    let wanted = [
        "welcome",
        "reported",
        "create_session",
        "close_session",
        "set_permissions",
        "settled",
        "question",
        "ping",
        "pong",
        "cut_off",
    ];
    assert_eq!(broker, BTreeSet::from(wanted));
    let blocks = PAGE.lines().filter(|line| line.starts_with("```")).count() / 2;
    assert_eq!(examples("from-agent").len() + examples("from-broker").len(), blocks, "a block of neither kind");
}

#[test]
fn the_first_hello_is_complete() {
    let hello = examples("from-agent").into_iter().find_map(|example| match both_ways(&example) {
        FromAgent::Hello(hello) => Some((hello, example)),
        _ => None,
    });
    let (hello, (_, text)) = hello.unwrap();
    // Every field that there is stands in it.
    let shown: Value = serde_json::from_str(&text).unwrap();
    let mut encoded = serde_json::to_value(FromAgent::Hello(hello)).unwrap();
    // The second end point shows what may be left out.
    encoded["report"]["facts"]["endpoints"].as_array_mut().unwrap().truncate(1);
    let mut whole = shown.clone();
    whole["report"]["facts"]["endpoints"].as_array_mut().unwrap().truncate(1);
    assert_eq!(whole, encoded);
}

#[test]
fn every_number_of_the_protocol_stands_on_the_page() {
    let settings = Settings::default();
    let rows = [
        format!("wss://HOST:{}{}", protocol::DEFAULT_PORT, protocol::PATH),
        format!("version {}.", protocol::VERSIONS.end()),
        format!("| longest message | {MESSAGE_BYTES_MAX} bytes, both ways |"),
        format!("1 to {ID_BYTES_MAX} bytes of text"),
        format!("says hello within {} s", HELLO_TIMEOUT.as_secs()),
        format!("from {REPORT_INTERVAL_MS_MIN} to {REPORT_INTERVAL_MS_MAX}"),
        format!("An agent that has heard nothing for {} s sends a ping", PING_INTERVAL.as_secs()),
        format!("A broker that has heard nothing for {} s", PING_INTERVAL_OF_BROKER.as_secs_f64()),
        format!("three pings ({} s)", SILENCE_MAX.as_secs()),
        format!("When no welcome comes within {} s, try the next broker", WELCOME_TIMEOUT.as_secs()),
        format!("no answer within {} s of", CONTEST_TIMEOUT.as_secs()),
        format!("No answer within {} s", settings.prepare_timeout.as_secs()),
        format!("| {} | this side ends,", close::GOING_AWAY),
        format!("| {} | nonsense", close::NONSENSE),
        format!("| {} | silence", close::SILENT),
        format!("| {} | another connection", close::REPLACED),
        format!("| {} | another agent", close::CLONED),
        format!("| {} | the version", close::VERSION),
        format!("| {} | the log takes nothing", close::UNAVAILABLE),
    ];
    for row in rows {
        assert!(PAGE.contains(&row), "docs/agent-protocol.md lacks: {row}");
    }
    assert_eq!((settings.reports_missed_max, PINGS_MISSED_MAX), (3, 3), "the page says three");
}
