//! The stream of events of a real broker: over its ends, gentle or not, and
//! when the journal keeps too little.
#![allow(clippy::unwrap_used)]

mod common;

use common::agent::Agent;
use common::api::{Api, http_client};
use common::broker::Broker;
use common::{DEADLINE, until};
use reqwest::{Method, Response, StatusCode, header};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::timeout;

/// The client's end of a stream.
struct Stream {
    answer: Response,
    text: String,
}

/// An event of a stream.
#[derive(Debug, Clone, PartialEq)]
struct Heard {
    id: String,
    kind: String,
    data: Value,
}

impl Stream {
    /// Opens a stream; a broker that has just begun to serve may still refuse.
    async fn open(api: &Api, query: &str, last_event_id: Option<&str>) -> Self {
        let path = format!("/v1/events{query}");
        let mut request = api.request(Method::GET, &path).header(header::ACCEPT, "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.headers());
        Self { answer, text: String::new() }
    }

    /// The next block; `None` when the stream ended or broke.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let rest = self.text.split_off(end + 2);
                return Some(std::mem::replace(&mut self.text, rest));
            }
            let chunk = timeout(DEADLINE, self.answer.chunk()).await.expect("the stream said nothing");
            self.text.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }

    /// The next event.
    async fn event(&mut self) -> Option<Heard> {
        loop {
            let block = self.block().await?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            if let (Some(id), Some(kind), Some(data)) = (field("id"), field("event"), field("data")) {
                let data = serde_json::from_str(data).unwrap();
                return Some(Heard { id: id.to_owned(), kind: kind.to_owned(), data });
            }
        }
    }

    /// Events up to and with the first of a kind.
    async fn until(&mut self, kind: &str) -> Vec<Heard> {
        let mut all = Vec::new();
        loop {
            let event = self.event().await.unwrap_or_else(|| panic!("the stream ended before {kind}: {all:?}"));
            let is_last = event.kind == kind;
            all.push(event);
            if is_last {
                return all;
            }
        }
    }
}

async fn page(api: &Api, query: &str) -> Value {
    let answer = api.request(Method::GET, &format!("/v1/events{query}")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_after_the_broker_was_killed_and_misses_nothing() {
    let mut broker = Broker::start_to_be_restarted().await;
    let api = broker.api().await;
    let mut agent = Agent::simulated(&broker, "");
    let server = agent.linked().await;

    let mut stream = Stream::open(&api, "", None).await;
    let first = api.create_on(&server, "ann").await;
    let mut heard = stream.until("SessionReady").await;
    assert_eq!(heard.last().unwrap().data["SessionId"], first.as_str());
    assert_eq!(heard.last().unwrap().data["ServerId"], server.as_str());

    broker.process.stop(Signal::KILL).await;
    assert_eq!(stream.event().await, None, "it ends with the broker");
    broker.restart_after_end().await;

    let last = heard.last().unwrap().id.clone();
    let mut stream = Stream::open(&api, "", Some(&last)).await;
    api.server_available(&server).await;
    let second = api.create_on(&server, "bob").await;
    heard.extend(stream.until("SessionReady").await);
    assert_eq!(heard.last().unwrap().data["SessionId"], second.as_str());

    // What was heard is the journal: every event once, in order.
    let mut kept = page(&api, "?limit=1000").await["Events"].as_array().unwrap().clone();
    kept.truncate(heard.len());
    let heard: Vec<Value> = heard.into_iter().map(|event| event.data).collect();
    assert_eq!(heard, kept);
    let told = serde_json::to_string(&kept).unwrap();
    for secret in ["argon2", api.token.as_str(), broker.statement().as_str()] {
        assert!(!told.contains(secret), "a secret is in the journal");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_do_not_hold_up_the_end_of_the_broker() {
    let mut broker = Broker::start().await;
    let credentials = broker.register("follower").await;
    let api = Api::connect(&broker.url(), &broker.ca_path(), &credentials).await;
    let http1 = Api { client: http_client(&broker.ca_path()).http1_only().build().unwrap(), ..api.clone() };
    let mut streams = [Stream::open(&api, "", None).await, Stream::open(&http1, "", None).await];
    for stream in &mut streams {
        stream.until("ClientRegistered").await;
    }
    broker.process.signal(Signal::TERM);
    for stream in &mut streams {
        while stream.event().await.is_some() {}
    }
    assert!(broker.process.ended().await.success());
    let late = broker.process.log_records("connections did not finish in time");
    assert!(late.is_empty(), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_keeps_little_tells_cursors_what_they_missed() {
    let broker = Broker::start_with("[journal]\nrecords_max = 6").await;
    let api = broker.api().await;
    let mut agent = Agent::simulated(&broker, "");
    let server = agent.linked().await;
    let id = api.create_on(&server, "ann").await;
    api.session_in_state(&id, "READY").await;
    let answer = api.request(Method::GET, "/v1/events?after=1").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::GONE);
    let oldest = answer.headers()["berth-oldest-index"].to_str().unwrap().to_owned();
    let kept = page(&api, "").await;
    // Records of the audit are among those that are kept, and not shown to this client.
    let indexes: Vec<u64> =
        kept["Events"].as_array().unwrap().iter().map(|event| event["Index"].as_u64().unwrap()).collect();
    assert!((1..=6).contains(&indexes.len()), "{indexes:?}");
    assert!(indexes[0] >= oldest.parse::<u64>().unwrap(), "{oldest} {indexes:?}");
    // One that keeps up misses nothing, however little is kept.
    let next = kept["Next"].as_str().unwrap().to_owned();
    api.delete(&id, "ann").await;
    let query = format!("?after={next}");
    let found = until("the first event after the cursor", || async {
        page(&api, &query).await["Events"].as_array().unwrap().first().cloned()
    });
    assert_eq!(found.await["SessionId"], id.as_str());
}
