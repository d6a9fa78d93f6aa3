//! The agents' port of a real broker, met by agents of every kind: without the
//! secret, of another version, talking nonsense, silent, replaced, forgetful.
#![allow(clippy::unwrap_used)]

mod common;

use berth::domain::instruction::{Action, Answer, Instruction};
use berth::domain::report::{EndedSession, Inventory, Report};
use berth::domain::{InstructionId, SessionId};
use berth::protocol::{FromAgent, FromBroker, Image, ImageFormat, MESSAGE_BYTES_MAX, Question, Reply, close};
use common::broker::Broker;
use common::peer::{Peer, hello, reported};
use common::until;
use futures_util::SinkExt;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Bytes, Message};

/// What the broker's log says of connections that ended with a code.
fn endings(broker: &Broker, code: u16) -> Vec<Value> {
    let mut records = broker.process.log_records("agent connection ends");
    records.retain(|record| record["fields"]["code"] == code);
    records
}

/// Waits until as many connections ended with a code; more must not have.
async fn endings_logged(broker: &Broker, code: u16, count: usize) {
    let enough = || std::future::ready((endings(broker, code).len() >= count).then_some(()));
    until("each end is logged", enough).await;
    assert_eq!(endings(broker, code).len(), count, "logged more than once");
}

fn hello_text(change: impl FnOnce(&mut Value)) -> String {
    let mut message = serde_json::to_value(FromAgent::Hello(hello("changed", Vec::new()))).unwrap();
    change(&mut message);
    message.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_refused_by_name_whatever_its_hello_looks_like() {
    let broker = Broker::start().await;
    let hellos = [
        (2, hello_text(|hello| hello["version"] = json!(2))),
        (0, hello_text(|hello| hello["version"] = json!(0))),
        (9, json!({ "type": "hello", "version": 9, "host": ["of", "another", "shape"] }).to_string()),
    ];
    for (version, text) in hellos {
        let mut peer = Peer::connect(&broker, "changed").await;
        peer.say_text(text).await;
        let (code, reason) = peer.closed().await;
        assert_eq!(code, close::VERSION, "{reason}");
        assert!(reason.contains(&format!("version {version}")) && reason.contains("speaks 1 to 1"), "{reason}");
    }
    endings_logged(&broker, close::VERSION, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_ends_its_own_connection_with_a_reason_and_no_other() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut steady = Peer::join(&broker, "steady", Vec::new()).await;
    let without = |part: &'static str| hello_text(move |hello| hello["report"][part] = Value::Null);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    // What is said first, and a word that the reason must hold.
    let first = [
        ("not JSON at all".to_owned(), "not understood"),
        (String::new(), "not understood"),
        ("null".to_owned(), "not understood"),
        (deep.clone(), "not understood"),
        (json!({ "type": "sing" }).to_string(), "sing"),
        (json!({ "type": "ping", "number": 1 }).to_string(), "hello"),
        (json!({ "type": "report", "number": 1, "report": {} }).to_string(), "hello"),
        (hello_text(|hello| hello["version"] = json!("one")), "not understood"),
        (hello_text(|hello| hello["server"] = json!("")), "server id"),
        (hello_text(|hello| hello["server"] = json!("x".repeat(257))), "256"),
        (hello_text(|hello| hello["server"] = json!("two\nlines")), "control"),
        (hello_text(|hello| hello["instance"] = Value::Null), "not understood"),
        (hello_text(|hello| hello["instance"] = json!("")), "agent instance"),
        (hello_text(|hello| hello["report_interval_ms"] = json!(999)), "report_interval_ms"),
        (hello_text(|hello| hello["report_interval_ms"] = json!(600_001)), "report_interval_ms"),
        (without("facts"), "full report"),
        (without("load"), "full report"),
        (without("health"), "full report"),
        (without("sessions"), "full report"),
        (
            hello_text(|hello| hello["report"]["sessions"] = json!({ "changes": { "changed": [], "gone": [] } })),
            "full report",
        ),
    ];
    let mut endings_expected = first.len();
    for (text, word) in first {
        let mut peer = Peer::connect(&broker, "changed").await;
        peer.say_text(text.clone()).await;
        let (code, reason) = peer.closed().await;
        let said: String = text.chars().take(60).collect();
        assert_eq!(code, close::NONSENSE, "{said}: {reason}");
        assert!(reason.contains(word), "{said}: {reason}");
        steady.ping().await;
    }

    // What a welcome agent says next.
    let next = [
        (Message::text("not JSON at all"), "not understood"),
        (Message::text(deep), "not understood"),
        (Message::text(json!({ "type": "sing" }).to_string()), "sing"),
        (Message::text(json!({ "type": "report", "number": -1, "report": {} }).to_string()), "not understood"),
        (Message::text(hello_text(|_| ())), "second hello"),
        (Message::binary(vec![0, 159, 146, 150]), "text"),
        (Message::Binary(Bytes::new()), "text"),
    ];
    endings_expected += next.len();
    for (message, word) in next {
        let mut peer = Peer::join(&broker, "odd", Vec::new()).await;
        peer.socket.send(message).await.unwrap();
        let (code, reason) = peer.closed().await;
        assert_eq!(code, close::NONSENSE, "{reason}");
        assert!(reason.contains(word), "{reason}");
        api.server_unreachable("odd").await;
        steady.ping().await;
    }

    endings_logged(&broker, close::NONSENSE, endings_expected).await;
    steady.ping().await;
    assert_eq!(api.server("steady").await.unwrap()["Availability"], "AVAILABLE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_long_ends_the_connection_and_the_broker_goes_on() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut steady = Peer::join(&broker, "steady", Vec::new()).await;

    // As long as it may be: read to the end.
    let mut peer = Peer::join(&broker, "wordy", Vec::new()).await;
    let report = json!({ "type": "report", "number": 1, "report": {} }).to_string();
    peer.say_text(format!("{}{report}", " ".repeat(MESSAGE_BYTES_MAX - report.len()))).await;
    peer.hear("reported", |message| *message == FromBroker::Reported { number: 1 }).await;

    // One byte more; the broker may cut the connection before all of it is written.
    let _ = peer.socket.send(Message::text(" ".repeat(MESSAGE_BYTES_MAX + 1))).await;
    let (code, reason) = peer.closed().await;
    assert_eq!(code, close::NONSENSE, "{reason}");
    assert!(reason.to_lowercase().contains("too long"), "{reason}");
    api.server_unreachable("wordy").await;
    endings_logged(&broker, close::NONSENSE, 1).await;
    steady.ping().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_says_no_hello_or_nothing_more_is_let_go() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut mute = Peer::connect(&broker, "mute").await;
    let mut deaf = Peer::join(&broker, "deaf", Vec::new()).await;
    let unplugged = Peer::join(&broker, "unplugged", Vec::new()).await;

    let (code, reason) = mute.closed().await;
    assert_eq!((code, reason.as_str()), (close::SILENT, "no hello came in time"));

    // It reads, but answers no ping.
    let mut pings = 0;
    let (code, reason) = loop {
        use futures_util::StreamExt;
        match deaf.socket.next().await.expect("closed without a word").unwrap() {
            Message::Text(text) => match serde_json::from_str(&text).unwrap() {
                FromBroker::Ping { .. } => pings += 1,
                other => panic!("{other:?}"),
            },
            Message::Close(Some(frame)) => break (u16::from(frame.code), frame.reason.to_string()),
            _ => {}
        }
    };
    assert_eq!((code, reason.as_str()), (close::SILENT, "nothing was heard for three pings"));
    assert!(pings <= 3, "{pings} pings were missed");
    api.server_unreachable("deaf").await;

    // It does not even read, as a host without power. Its connection stands all the while.
    api.server_unreachable("unplugged").await;
    drop(unplugged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connection_of_an_agent_takes_the_place_of_its_first() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut first = Peer::join(&broker, "twice", Vec::new()).await;
    let mut second = Peer::join(&broker, "twice", Vec::new()).await;
    assert!(second.epoch > first.epoch);
    let (code, reason) = first.closed().await;
    assert_eq!(code, close::REPLACED, "{reason}");
    drop(first);

    // The end of the first does not make the second look gone.
    second.ping().await;
    api.server_available("twice").await;
    let id = api.create_on("twice", "ann").await;
    let (epoch, instruction) = second.instruction().await;
    assert_eq!((epoch, instruction.action.session().as_str()), (second.epoch, &*id));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instruction_is_sent_again_until_it_is_answered() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut peer = Peer::join(&broker, "again", Vec::new()).await;
    let id = api.create_on("again", "ann").await;
    let (_, first) = peer.instruction().await;
    assert!(matches!(&first.action, Action::CreateSession { session, .. } if session.as_str() == id));
    let epoch_before = peer.epoch;
    // It breaks off without a farewell.
    drop(peer);

    let mut peer = Peer::join(&broker, "again", Vec::new()).await;
    assert!(peer.epoch > epoch_before);
    assert_eq!(peer.oldest_instruction, first.id);
    let (epoch, second) = peer.instruction().await;
    assert_eq!((epoch, &second), (peer.epoch, &first));
    peer.settle(second.id, Answer::Done).await;
    api.session_in_state(&id, "READY").await;
    assert_eq!(endings(&broker, close::NONSENSE), Vec::<Value>::new(), "a broken connection is no nonsense");
    peer.leave().await;

    // Answered: it does not come again, whether the session is reported or not.
    let mut peer = Peer::join(&broker, "again", vec![reported(&id, "ann")]).await;
    assert!(peer.oldest_instruction > first.id);
    peer.say(&FromAgent::Ping { number: 5 }).await;
    assert_eq!(peer.next().await, FromBroker::Pong { number: 5 });
    assert_eq!(api.session(&id).await.unwrap()["State"], "READY");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_instruction_reaches_its_agent_however_quickly_it_is_woken() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut peer = Peer::join(&broker, "quick", Vec::new()).await;
    for number in 0..200 {
        let id = api.create_on("quick", &format!("user{number}")).await;
        let (_, instruction) = peer.instruction().await;
        assert_eq!(instruction.action.session().as_str(), id);
        peer.settle(instruction.id, Answer::Done).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_connection_answers_has_no_effect() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut older = Peer::join(&broker, "stale", Vec::new()).await;
    let id = api.create_on("stale", "ann").await;
    let (_, instruction) = older.instruction().await;
    let mut newer = Peer::join(&broker, "stale", Vec::new()).await;
    // The broker may have closed it already; whichever comes first, it has no effect.
    let late = FromAgent::Answer { instruction: instruction.id, answer: Answer::Done };
    let _ = older.socket.send(Message::text(serde_json::to_string(&late).unwrap())).await;
    assert_eq!(older.closed().await.0, close::REPLACED);
    let (_, again) = newer.instruction().await;
    assert_eq!(again, instruction);
    assert_eq!(api.session(&id).await.unwrap()["State"], "CREATING");

    // Answers to what nobody asked are taken and change nothing.
    newer.settle(InstructionId(987_654), Answer::Done).await;
    let mut other = Peer::join(&broker, "other", Vec::new()).await;
    other.settle(instruction.id, Answer::Done).await;
    assert_eq!(api.session(&id).await.unwrap()["State"], "CREATING");

    newer.settle(instruction.id, Answer::Failed { reason: "there is no such user".to_owned() }).await;
    let session = api.session_in_state(&id, "DELETED").await;
    let reason = session["StateReason"].as_str().unwrap();
    assert!(reason.starts_with("there is no such user; no other server: 1 of 2 servers: failed to create"), "{reason}");
    // The first answer counts.
    newer.settle(instruction.id, Answer::Done).await;
    assert_eq!(api.session(&id).await.unwrap()["State"], "DELETED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_a_host_made_is_adopted_also_over_a_deleted_one() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut peer = Peer::join(&broker, "maker", vec![reported("ann-desktop", "ann")]).await;
    let session = api.session_in_state("ann-desktop", "READY").await;
    assert_eq!((&session["Owner"], &session["Name"]), (&json!("ann"), &json!("")));
    assert_eq!(session["Server"]["Id"], "maker");

    // While it is being ended, a report that still lists it does not bring it back.
    api.delete("ann-desktop", "ann").await;
    let (_, instruction) = peer.instruction().await;
    assert!(matches!(instruction.action, Action::CloseSession { .. }));
    let listed = || vec![reported("ann-desktop", "ann")];
    peer.report_sessions(1, Inventory::Changes { changed: listed(), gone: Vec::new() }).await;
    assert_eq!(api.session("ann-desktop").await.unwrap()["State"], "DELETING");
    peer.settle(instruction.id, Answer::Done).await;
    api.session_in_state("ann-desktop", "DELETED").await;

    // The host makes it again under the same id.
    peer.report_sessions(2, Inventory::Changes { changed: listed(), gone: Vec::new() }).await;
    let session = api.session_in_state("ann-desktop", "READY").await;
    assert_eq!(session.get("StateReason"), None);

    // One that the broker had ordered, and wanted gone, is not taken back but closed.
    let ordered = api.create_on("maker", "carl").await;
    let (_, create) = peer.instruction().await;
    peer.settle(create.id, Answer::Done).await;
    api.delete(&ordered, "carl").await;
    let (_, close_it) = peer.instruction().await;
    peer.settle(close_it.id, Answer::Done).await;
    api.session_in_state(&ordered, "DELETED").await;
    let back = berth::domain::report::ReportedSession { created_by: Some(create.id), ..reported(&ordered, "carl") };
    let back = Inventory::Changes { changed: vec![back], gone: Vec::new() };
    peer.report(3, Report { sessions: Some(back), ..Report::default() }).await;
    let (_, again) = peer.instruction().await;
    assert!(matches!(&again.action, Action::CloseSession { session } if session.as_str() == ordered));
    assert_eq!(api.session(&ordered).await.unwrap()["State"], "DELETED");

    // One that is not usable yet is not adopted.
    let unusable = berth::domain::report::ReportedSession { usable: false, ..reported("bob-desktop", "bob") };
    peer.report_sessions(4, Inventory::Changes { changed: vec![unusable], gone: Vec::new() }).await;
    assert_eq!(api.session("bob-desktop").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_its_host_lost_ends_with_a_reason() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut peer = Peer::join(&broker, "loser", Vec::new()).await;
    let mut ids = Vec::new();
    for owner in ["ann", "bob"] {
        let id = api.create_on("loser", owner).await;
        let (_, Instruction { id: instruction, .. }) = peer.instruction().await;
        peer.settle(instruction, Answer::Done).await;
        api.session_in_state(&id, "READY").await;
        ids.push(id);
    }
    let gone =
        vec![EndedSession { id: SessionId::new(&ids[0]).unwrap(), reason: Some("its user logged out".to_owned()) }];
    peer.report_sessions(1, Inventory::Changes { changed: Vec::new(), gone }).await;
    assert_eq!(api.session_in_state(&ids[0], "DELETED").await["StateReason"], "its user logged out");
    assert_eq!(api.session(&ids[1]).await.unwrap()["State"], "READY");

    peer.leave().await;
    let _peer = Peer::join(&broker, "loser", Vec::new()).await;
    let session = api.session_in_state(&ids[1], "DELETED").await;
    assert_eq!(session["StateReason"], "it is no longer on its server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_health_and_tags_shows_and_steers_placement() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut peer = Peer::join(&broker, "changing", Vec::new()).await;
    api.server_available("changing").await;
    let ill = berth::domain::host::Health::Unhealthy("the desktop server has crashed".to_owned());
    peer.report(1, Report { health: Some(ill), ..Report::default() }).await;
    let unhealthy = |server: &Value| server["UnavailabilityReason"] == "UNHEALTHY_DCV_SERVER";
    api.server_when("changing", "UNHEALTHY_DCV_SERVER", unhealthy).await;
    let item = json!({ "Name": "s", "Owner": "ann", "Type": "VIRTUAL", "Requirements": "tag:pool = 'red'" });
    let refused = api.call("createSessions", json!([item])).await;
    let reason = refused["UnsuccessfulList"][0]["FailureReason"].as_str().unwrap();
    assert!(reason.contains("no dcv server found for placement"), "{reason}");

    let mut facts = hello("changing", Vec::new()).report.facts.unwrap();
    facts.tags.insert("pool".to_owned(), "red".to_owned());
    let well = Report { facts: Some(facts), health: Some(berth::domain::host::Health::Healthy), ..Report::default() };
    peer.report(2, well).await;
    api.server_available("changing").await;
    api.create(item).await;
    peer.instruction().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_no_agent_takes_is_a_failure_of_that_picture() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut peer = Peer::join(&broker, "painter", vec![reported("canvas", "ann")]).await;
    api.session_in_state("canvas", "READY").await;

    let ask = |api: &common::api::Api| {
        let api = api.clone();
        tokio::spawn(async move {
            api.call("getSessionScreenshots", json!([{ "SessionId": "canvas", "MaxWidth": 64 }])).await
        })
    };
    let asking = ask(&api);
    let (number, question) = peer.question().await;
    let Question::Screenshot { session, width_max, .. } = question;
    assert_eq!((session.as_str(), width_max), ("canvas", 64));
    // Replies to what was not asked are passed over.
    peer.say(&FromAgent::Reply { question: number + 7, reply: Reply::Screenshot(Vec::new()) }).await;
    let image = Image { format: ImageFormat::Png, data: "cGljdHVyZQ==".to_owned(), taken_at_ms: 1, primary: true };
    peer.say(&FromAgent::Reply { question: number, reply: Reply::Screenshot(vec![image]) }).await;
    let answer = asking.await.unwrap();
    let images = &answer["SuccessfulList"][0]["SessionScreenshot"]["Images"];
    assert_eq!((&images[0]["Data"], &images[0]["Format"]), (&json!("cGljdHVyZQ=="), &json!("png")), "{answer}");

    let asking = ask(&api);
    let (number, _) = peer.question().await;
    let reason = "the screen is locked".to_owned();
    peer.say(&FromAgent::Reply { question: number, reply: Reply::Failed { reason } }).await;
    let failure = asking.await.unwrap()["UnsuccessfulList"][0]["FailureReason"].to_string();
    assert!(failure.contains("the screen is locked"), "{failure}");

    let asking = ask(&api);
    // It answers pings, but not this.
    let answer = tokio::select! {
        answer = asking => answer.unwrap(),
        _ = peer.hear("nothing in particular", |_| false) => unreachable!("nothing is wanted"),
    };
    let failure = answer["UnsuccessfulList"][0]["FailureReason"].to_string();
    assert!(failure.contains("did not answer in time"), "{failure}");

    peer.leave().await;
    api.server_unreachable("painter").await;
    assert!(api.screenshot_failure("canvas").await.contains("cannot be reached"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_gone_for_three_reports_makes_its_sessions_unknown_until_it_returns() {
    let broker = Broker::start_with("[sessions]\nreports_missed_max = 1").await;
    let api = broker.api().await;
    let mut peer = Peer::connect(&broker, "traveller").await;
    let mut greeting = hello("traveller", vec![reported("trip", "ann")]);
    greeting.report_interval_ms = 1_000;
    peer.say(&FromAgent::Hello(greeting)).await;
    api.session_in_state("trip", "READY").await;
    drop(peer);
    api.server_unreachable("traveller").await;
    api.session_in_state("trip", "UNKNOWN").await;
    let _peer = Peer::join(&broker, "traveller", vec![reported("trip", "ann")]).await;
    api.session_in_state("trip", "READY").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_pings_but_reports_nothing_counts_as_lost_until_it_reports() {
    let broker = Broker::start_with("[sessions]\nreports_missed_max = 1").await;
    let api = broker.api().await;
    let mut peer = Peer::connect(&broker, "idle").await;
    let mut greeting = hello("idle", vec![reported("left", "ann")]);
    greeting.report_interval_ms = 1_000;
    peer.say(&FromAgent::Hello(greeting)).await;
    peer.hear("welcome", |message| matches!(message, FromBroker::Welcome { .. })).await;
    api.session_in_state("left", "UNKNOWN").await;
    peer.ping().await;
    assert_eq!(api.session("left").await.unwrap()["State"], "UNKNOWN");
    // It may be lost again a second later, so it reports on until it was seen.
    let mut number = 0;
    let recovered = loop {
        number += 1;
        peer.report(number, Report::default()).await;
        peer.hear("reported", |message| *message == FromBroker::Reported { number }).await;
        let session = api.session("left").await.unwrap();
        if session["State"] == "READY" || number == 20 {
            break session;
        }
    };
    assert_eq!(recovered["State"], "READY");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_is_given_up_by_its_agent_and_found_again() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut agent = common::agent::Agent::simulated(&broker, "");
    let server = agent.linked().await;
    let id = api.create_on(&server, "ann").await;
    api.session_in_state(&id, "READY").await;

    broker.process.signal(Signal::STOP);
    let noticed = |line: &str| line.contains("nothing was heard of the broker").then_some(());
    agent.process.stderr_line("the silence is noticed", noticed).await;
    broker.process.signal(Signal::CONT);
    let linked = |line: &str| line.contains("linked to the broker").then(|| line.to_owned());
    let first = agent.process.stderr_line("linked", linked).await;
    let again = |line: &str| (line.contains("linked to the broker") && line != first).then_some(());
    agent.process.stderr_line("linked again", again).await;
    api.server_available(&server).await;
    assert_eq!(api.session(&id).await.unwrap()["State"], "READY");
}
