//! `GET /v1/events` through the real router: pages, cursors, and streams.

#![allow(clippy::unwrap_used)]

mod api_common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api_common::{Api, CLIENT, World, full_facts};
use axum::body::{Body, BodyDataStream};
use axum::http::{Response, StatusCode, header};
use berth::broker::api::{ApiSettings, limits};
use berth::domain::client::{Grant, Scope, SecretHash};
use berth::domain::{ClientId, Command, Millis, Owner, Settings};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A world with one server and one session of each owner, ready.
async fn world_with(owners: &[&str]) -> (Arc<World>, Api, Vec<String>) {
    let world = World::new();
    let epoch = world.connect("desk-7", full_facts(), Vec::new());
    let api = world.api();
    let mut ids = Vec::new();
    for owner in owners {
        ids.push(create(&api, owner).await);
        world.obey("desk-7", epoch);
    }
    (world, api, ids)
}

async fn create(api: &Api, owner: &str) -> String {
    let answer = api.post("/createSessions", json!([{ "Name": "work", "Owner": owner, "Type": "VIRTUAL" }])).await;
    answer["SuccessfulList"][0]["Id"].as_str().unwrap().to_owned()
}

async fn events(api: &Api, query: &str) -> Value {
    let answer = api.call("GET", &format!("/v1/events{query}"), None).await;
    assert_eq!(answer.status, StatusCode::OK, "{query}: {}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("berth-index").map(str::is_empty), Some(false));
    answer.json()
}

fn kinds(page: &Value) -> Vec<&str> {
    page["Events"].as_array().unwrap().iter().map(|event| event["Kind"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_sessions_timeline_tells_its_life() {
    let (world, api, ids) = world_with(&["ann", "bob"]).await;
    let item = json!([{ "SessionId": ids[0], "Owner": "ann" }]);
    api.post("/deleteSessions", item).await;
    let epoch = world.fleet().server(&api_common::server_id("desk-7")).unwrap().link.epoch();
    world.obey("desk-7", epoch);
    let page = events(&api, &format!("?session={}", ids[0])).await;
    assert_eq!(
        kinds(&page),
        [
            "SessionCreated",
            "InstructionIssued",
            "SessionPlaced",
            "InstructionSettled",
            "SessionReady",
            "InstructionIssued",
            "SessionDeleting",
            "SessionDeleted",
            "InstructionSettled",
        ]
    );
    let first = &page["Events"][0];
    assert_eq!((&first["SessionId"], &first["Client"]), (&json!(ids[0]), &json!(CLIENT)));
    assert_eq!(first["Time"], "2020-10-06T10:15:31.633Z");
    assert_eq!(first["Details"]["Owner"], "ann");
    assert_eq!(page["Events"][4]["ServerId"], "desk-7");
    assert_eq!(page["Events"][6]["Client"], CLIENT);
    assert_eq!(page["More"], false);
    assert_eq!(page["RequestId"].as_str().map(str::is_empty), Some(false));
}

#[tokio::test]
async fn pages_follow_one_another_and_the_last_cursor_leads_to_what_happens_next() {
    let (_world, api, ids) = world_with(&["ann", "bob"]).await;
    let all = events(&api, "?limit=1000").await;
    assert_eq!(all["Oldest"], format!("{}.{}", all["Events"][0]["Index"], all["Events"][0]["Number"]));
    let mut walked = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = events(&api, &format!("?limit=3{cursor}")).await;
        walked.extend(page["Events"].as_array().unwrap().clone());
        cursor = format!("&after={}", page["Next"].as_str().unwrap());
        if page["More"] == false {
            break;
        }
        assert_eq!(page["Events"].as_array().unwrap().len(), 3);
    }
    assert_eq!(json!(walked), all["Events"]);
    assert_eq!(events(&api, &format!("?limit=3{cursor}")).await["Events"], json!([]));
    api.post("/deleteSessions", json!([{ "SessionId": ids[0], "Owner": "ann" }])).await;
    let page = events(&api, &format!("?limit=3{cursor}")).await;
    assert_eq!(kinds(&page), ["InstructionIssued", "SessionDeleting"]);
}

#[tokio::test]
async fn a_cursor_moves_on_even_when_nothing_is_found() {
    let (world, api, _) = world_with(&["ann"]).await;
    let page = events(&api, "?kind=ServerLost").await;
    assert_eq!(page["Events"], json!([]));
    assert_eq!(page["Next"], world.fleet().applied().to_string());
}

#[tokio::test]
async fn filters_hold_together() {
    let (world, api, ids) = world_with(&["ann", "bob"]).await;
    world.connect("desk-8", full_facts(), Vec::new());
    let query = format!("?session={}&kind=SessionReady&kind=SessionCreated", ids[1]);
    assert_eq!(kinds(&events(&api, &query).await), ["SessionCreated", "SessionReady"]);
    assert_eq!(kinds(&events(&api, "?server=desk-8").await), ["ServerConnected"]);
    let query = format!("?session={}&server=desk-8", ids[0]);
    assert_eq!(events(&api, &query).await["Events"], json!([]));

    world.wait(Millis::from_secs(20));
    world.apply(Command::CloseServer {
        id: api_common::server_id("desk-8"),
        force: false,
        client: berth::domain::ClientId::new(CLIENT).unwrap(),
    });
    assert_eq!(kinds(&events(&api, "?since=2020-10-06T10:15:40Z").await), ["ServerClosed"]);
    assert_eq!(kinds(&events(&api, "?since=2020-10-06T12:15:51.633%2B02:00").await), ["ServerClosed"]);
    assert_eq!(events(&api, "?since=2020-10-06T10:16:00Z").await["Events"], json!([]));
}

#[tokio::test]
async fn a_wrong_query_is_refused_with_the_parameters_name() {
    let api = World::new().api();
    for (query, text) in [
        ("?after=x", "after must be a log index or a cursor, for example 12 or 12.3"),
        ("?limit=0", "limit must be between 1 and 1000"),
        ("?kind=Ready", "kind \"Ready\" is not known; kinds are written like SessionReady"),
        (
            "?Session=x",
            "\"Session\" is not a parameter of this call; there are after, session, server, kind, since and limit",
        ),
    ] {
        let answer = api.call("GET", &format!("/v1/events{query}"), None).await;
        assert_eq!((answer.status, answer.error()), (StatusCode::BAD_REQUEST, text.to_owned()));
    }
    let answer = api.follow(CLIENT, "/v1/events?limit=5", &[]).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let answer = api.follow(CLIENT, "/v1/events", &[("last-event-id", "seven")]).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let answer = api.send(axum::http::Request::get("/v1/events").body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

fn keep(world: &World, journal_records_max: u32) {
    world.apply(Command::Configure(Settings { journal_records_max, ..Settings::default() }));
}

#[tokio::test]
async fn a_cursor_before_what_is_kept_is_told_so_and_where_to_go_on() {
    let (world, api, _) = world_with(&["ann", "bob"]).await;
    keep(&world, 3);
    let answer = api.call("GET", "/v1/events?after=0", None).await;
    assert_eq!(answer.status, StatusCode::GONE);
    let kept = events(&api, "").await;
    assert_eq!(kept["Events"].as_array().unwrap().len(), 3);
    let oldest = kept["Events"][0]["Index"].to_string();
    assert_eq!(answer.header("berth-oldest-index"), Some(oldest.as_str()));
    let error = answer.error();
    assert!(error.contains(&format!("the oldest index kept is {oldest};")), "{error}");
    let (_, go_on) = error.rsplit_once("after=").unwrap();
    assert_eq!(events(&api, &format!("?after={go_on}")).await["Events"], kept["Events"]);
    // A stream is refused in the same way, before it begins.
    let answer = api.follow(CLIENT, "/v1/events", &[("last-event-id", "1")]).await;
    assert_eq!(answer.status(), StatusCode::GONE);
    assert_eq!(answer.headers()["berth-oldest-index"], oldest.as_str());

    keep(&world, 0);
    let answer = api.call("GET", "/v1/events?after=1.0", None).await;
    assert_eq!(answer.status, StatusCode::GONE, "also when nothing is kept");
    let next = world.fleet().applied().next().to_string();
    assert_eq!(answer.header("berth-oldest-index"), Some(next.as_str()));
    let page = events(&api, "").await;
    assert_eq!((&page["Events"], page.get("Oldest")), (&json!([]), None));
}

#[tokio::test]
async fn a_cursor_that_is_ahead_of_this_replica_loses_nothing() {
    let (world, api, _) = world_with(&["ann"]).await;
    let ahead = world.fleet().applied().next();
    let page = events(&api, &format!("?after={ahead}")).await;
    assert_eq!(page["Events"], json!([]));
    assert_eq!(page["Next"], ahead.to_string(), "the cursor does not go back");
    assert_eq!(page["More"], false);
}

#[tokio::test]
async fn without_a_majority_the_answer_says_that_it_may_be_old() {
    let (world, api, _) = world_with(&["ann"]).await;
    world.has_no_quorum.store(true, Ordering::Relaxed);
    let answer = api.call("GET", "/v1/events", None).await;
    assert_eq!((answer.status, answer.header("berth-stale")), (StatusCode::OK, Some("true")));
}

/// The client's end of a stream.
struct Stream {
    body: BodyDataStream,
    text: String,
}

/// A block of a stream.
#[derive(Debug, Default, PartialEq)]
struct Block {
    id: Option<String>,
    event: Option<String>,
    data: Option<String>,
    retry: Option<String>,
}

impl Block {
    fn json(&self) -> Value {
        serde_json::from_str(self.data.as_ref().unwrap()).unwrap()
    }
}

impl Stream {
    async fn open(api: &Api, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut stream = Self::of(api.follow(CLIENT, path, headers).await);
        let first = stream.block().await.unwrap();
        assert_eq!(first.retry.as_deref(), Some("1000"));
        stream
    }

    fn of(answer: Response<Body>) -> Self {
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream");
        assert_eq!(answer.headers()["x-accel-buffering"], "no");
        Self { body: answer.into_body().into_data_stream(), text: String::new() }
    }

    /// The next block; `None` at the end.
    async fn block(&mut self) -> Option<Block> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let rest = self.text.split_off(end + 2);
                let block = std::mem::replace(&mut self.text, rest);
                let mut read = Block::default();
                for line in block.trim_end().lines() {
                    let (name, value) = line.split_once(": ").unwrap();
                    let slot = match name {
                        "id" => &mut read.id,
                        "event" => &mut read.event,
                        "data" => &mut read.data,
                        "retry" => &mut read.retry,
                        "" => continue,
                        other => panic!("a field {other} in {block}"),
                    };
                    assert_eq!(slot.replace(value.to_owned()), None);
                }
                return Some(read);
            }
            match timeout(PATIENCE, self.body.next()).await.expect("the stream said nothing") {
                Some(bytes) => self.text.push_str(std::str::from_utf8(&bytes.unwrap()).unwrap()),
                None => return None,
            }
        }
    }

    /// Events up to and with the first of a kind.
    async fn until(&mut self, kind: &str) -> Vec<Block> {
        let mut blocks = Vec::new();
        loop {
            let block = self.block().await.expect("the stream ended");
            let is_last = block.event.as_deref() == Some(kind);
            blocks.extend(block.event.is_some().then_some(block));
            if is_last {
                return blocks;
            }
        }
    }
}

#[tokio::test]
async fn a_stream_tells_what_happens_and_goes_on_after_the_last_event_that_was_heard() {
    let (world, api, _) = world_with(&["ann"]).await;
    let applied = world.fleet().applied();
    let mut stream = Stream::open(&api, &format!("/v1/events?after={applied}"), &[]).await;
    let (id, heard) = tokio::join!(create(&api, "bob"), stream.until("SessionPlaced"));
    let names: Vec<_> = heard.iter().map(|block| block.event.as_deref().unwrap()).collect();
    assert_eq!(names, ["SessionCreated", "InstructionIssued", "SessionPlaced"]);
    for block in &heard {
        let event = block.json();
        assert_eq!(event["SessionId"], id);
        assert_eq!(block.id, Some(format!("{}.{}", event["Index"], event["Number"])));
    }
    drop(stream);

    // The header goes before the cursor that the client once began with.
    let last = heard[0].id.as_deref().unwrap();
    let path = format!("/v1/events?after={applied}");
    let mut stream = Stream::open(&api, &path, &[("last-event-id", last)]).await;
    assert_eq!(stream.until("SessionPlaced").await, heard[1..]);
}

#[tokio::test]
async fn a_stream_gives_only_what_it_was_asked_for_and_everything_of_it() {
    let (world, api, _) = world_with(&[]).await;
    let mut stream = Stream::open(&api, "/v1/events?kind=SessionReady", &[]).await;
    let epoch = world.fleet().server(&api_common::server_id("desk-7")).unwrap().link.epoch();
    // More than a stream reads ahead.
    let mut wanted = Vec::new();
    for number in 0..limits::EVENTS_AHEAD_MAX + 20 {
        wanted.push(create(&api, &format!("user{number}")).await);
        world.obey("desk-7", epoch);
    }
    for id in wanted {
        assert_eq!(stream.block().await.unwrap().json()["SessionId"], id);
    }
}

#[tokio::test]
async fn a_stream_that_falls_behind_what_is_kept_is_told_so_and_ends() {
    let (world, api, _) = world_with(&["ann"]).await;
    let mut stream = Stream::open(&api, "/v1/events", &[]).await;
    keep(&world, 2);
    let block = stream.block().await.unwrap();
    assert_eq!((block.event.as_deref(), block.id.as_ref()), (Some("gone"), None));
    let text = block.json()["Error"].as_str().unwrap().to_owned();
    assert!(text.contains("are no longer kept"), "{text}");
    let kept = events(&api, "").await;
    assert_eq!(block.json()["OldestIndex"], kept["Events"][0]["Index"]);
    let path = format!("?after={}", block.json()["Next"].as_str().unwrap());
    assert_eq!(events(&api, &path).await["Events"], kept["Events"]);
    assert_eq!(stream.block().await, None);
}

/// Streams that show signs of life all the time.
fn lively() -> ApiSettings {
    ApiSettings { event_keep_alive: Duration::from_millis(10), ..ApiSettings::default() }
}

#[tokio::test]
async fn a_silent_stream_shows_signs_of_life_and_moves_its_clients_cursor_on() {
    let (world, _, _) = world_with(&["ann"]).await;
    let mut stream = Stream::open(&world.api_with(lively()), "/v1/events?kind=ServerLost", &[]).await;
    loop {
        let sign = stream.block().await.unwrap();
        assert_eq!((&sign.event, &sign.data), (&None, &None));
        if sign.id == Some(world.fleet().applied().to_string()) {
            break;
        }
    }
}

#[tokio::test]
async fn a_stream_ends_when_its_token_is_no_longer_good() {
    let (world, _, _) = world_with(&["ann"]).await;
    let mut stream = Stream::open(&world.api_with(lively()), "/v1/events?kind=ServerLost", &[]).await;
    world.tokens_are_refused.store(true, Ordering::Relaxed);
    while stream.block().await.is_some() {}
}

#[tokio::test]
async fn streams_end_when_the_broker_does() {
    let (world, _, _) = world_with(&["ann"]).await;
    let ending = CancellationToken::new();
    let api = world.api_until(ApiSettings::default(), ending.clone());
    let mut silent = Stream::open(&api, "/v1/events?kind=ServerLost", &[]).await;
    let mut busy = Stream::open(&api, "/v1/events", &[]).await;
    assert!(busy.block().await.is_some());
    let (end, ()) = tokio::join!(silent.block(), async {
        tokio::task::yield_now().await;
        ending.cancel();
    });
    assert_eq!(end, None);
    assert_eq!(busy.block().await, None, "what was read ahead can be had again later");
}

#[tokio::test]
async fn streams_are_bounded_in_number_and_an_ended_one_makes_room() {
    let (_world, api, _) = world_with(&["ann"]).await;
    let of_client = limits::EVENT_STREAMS_PER_CLIENT_MAX;
    let mut streams = Vec::new();
    for number in 0..limits::EVENT_STREAMS_MAX {
        let client = format!("client-{}", number / of_client);
        streams.push(Stream::of(api.follow(&client, "/v1/events", &[]).await));
    }
    let refused = api.follow("client-0", "/v1/events", &[]).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let refused = api.follow("another", "/v1/events", &[]).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()[header::RETRY_AFTER], "5");
    // Pages need no place.
    events(&api, "").await;
    streams.remove(0);
    Stream::of(api.follow("client-0", "/v1/events", &[]).await);
}

#[tokio::test]
async fn a_stream_ends_when_its_client_may_no_longer_hear_it() {
    let grant = |scopes: &[Scope], owner: Option<&str>| Grant {
        scopes: scopes.iter().copied().collect(),
        owner: owner.map(|owner| Owner::new(owner).unwrap()),
    };
    let before = grant(&[Scope::Read, Scope::Sessions, Scope::Admin], None);
    let taken = [
        grant(&[Scope::Read, Scope::Sessions], None),
        grant(&[Scope::Sessions, Scope::Admin], None),
        grant(&[Scope::Read, Scope::Sessions, Scope::Admin], Some("bob")),
    ];
    for after in taken {
        let (world, api, _) = world_with(&[]).await;
        let id = ClientId::new(CLIENT).unwrap();
        let secret = SecretHash(String::new());
        let grant = before.clone();
        world.apply(Command::RegisterClient { id: id.clone(), name: "portal".to_owned(), secret, grant });
        let applied = world.fleet().applied();
        let mut stream = Stream::open(&api, &format!("/v1/events?after={applied}"), &[]).await;
        create(&api, "bob").await;
        stream.until("Audited").await;
        world.apply(Command::GrantClient { id, grant: after.clone() });
        create(&api, "bob").await;
        let mut heard = Vec::new();
        while let Some(block) = stream.block().await {
            heard.extend(block.event);
        }
        assert!(!heard.contains(&"ClientGranted".to_owned()), "{after:?}: {heard:?}");
    }
}
