//! `GET /v1/sessions` and `GET /v1/servers`: filters on any field, any order,
//! pages that stay exact.

#![allow(clippy::unwrap_used)]

mod api_common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use api_common::{Answer, Api, World, full_facts, host_session, server_id};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use berth::broker::api::limits;
use berth::domain::report::ReportedSession;
use berth::domain::{ClientId, Command, Millis, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

async fn get(api: &Api, path: &str) -> Answer {
    api.call("GET", path, None).await
}

async fn list(api: &Api, path: &str) -> Value {
    let answer = get(api, path).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

async fn ids(api: &Api, path: &str) -> Vec<String> {
    let json = list(api, path).await;
    let name = if path.starts_with("/v1/sessions") { "Sessions" } else { "Servers" };
    json[name].as_array().unwrap().iter().map(|item| item["Id"].as_str().unwrap().to_owned()).collect()
}

async fn refused(api: &Api, path: &str) -> String {
    let answer = get(api, path).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}: {}", String::from_utf8_lossy(&answer.body));
    answer.error()
}

fn session(id: &str, owner: &str, connections: u32, created_at: u64) -> ReportedSession {
    ReportedSession {
        name: format!("of {owner}"),
        connections,
        created_at: Timestamp(created_at),
        ..host_session(id, owner)
    }
}

/// Two servers with four sessions; a portal waits for a fifth.
async fn world() -> (Arc<World>, Api) {
    let world = World::new();
    let mut blue = full_facts();
    "blue".clone_into(&mut blue.hostname);
    blue.tags.insert("color".to_owned(), "blue".to_owned());
    world.connect("desk-1", full_facts(), vec![session("a", "anna", 0, 40_000), session("d", "dora", 3, 10_000)]);
    world.connect("desk-2", blue, vec![session("b", "barbara", 1, 30_000), session("c", "anna", 2, 20_000)]);
    let api = world.api();
    let wanted = json!([{
        "Name": "waits", "Owner": "anna", "Type": "VIRTUAL", "Requirements": "tag:color = 'green'",
        "EnqueueRequest": true,
    }]);
    api.post("/createSessions", wanted).await;
    (world, api)
}

const WAITS: &str = "00000000-0000-4000-8000-000000000001";

#[tokio::test]
async fn sessions_are_filtered_by_any_field() {
    let (_, api) = world().await;
    for (query, expected) in [
        ("", &[WAITS, "a", "b", "c", "d"][..]),
        ("Owner=anna", &[WAITS, "a", "c"]),
        ("Owner=dora&Owner=barbara", &["b", "d"]),
        ("Owner=nobody", &[]),
        ("Owner=anna&ServerId=desk-2", &["c"]),
        ("ServerId=desk-1", &["a", "d"]),
        ("ServerId=", &[WAITS]),
        ("ServerId=&ServerId=desk-1", &[WAITS, "a", "d"]),
        ("Tag.color=blue", &["b", "c"]),
        ("Tag.color=blue&Tag.color=pink&Owner=anna", &["a", "c"]),
        ("Tag.color=", &[WAITS]),
        ("State=ready", &["a", "b", "c", "d"]),
        ("State=CREATING&Substate=SESSION_PLACING", &[WAITS]),
        ("Substate=", &["a", "b", "c", "d"]),
        ("SessionId=c&SessionId=x&SessionId=a", &["a", "c"]),
        ("SessionId=c&Owner=dora", &[]),
        ("Name=of+anna", &["a", "c"]),
        ("Type=console", &[]),
        ("Client=portal", &[WAITS]),
        ("Client=", &["a", "b", "c", "d"]),
        ("Connections=2", &["c"]),
        ("ConnectionsMin=1", &["b", "c", "d"]),
        ("ConnectionsMin=1&ConnectionsMax=2", &["b", "c"]),
        ("CreatedSince=1970-01-01T00:00:20Z&CreatedBefore=1970-01-01T00:00:40Z", &["b", "c"]),
        ("Hostname=blue", &["b", "c"]),
        ("StateReason=", &[WAITS, "a", "b", "c", "d"]),
    ] {
        assert_eq!(ids(&api, &format!("/v1/sessions?{query}")).await, expected, "{query}");
    }
}

#[tokio::test]
async fn sessions_are_sorted_by_a_field_and_then_by_id() {
    let (_, api) = world().await;
    for (sort, expected) in [
        ("SessionId", [WAITS, "a", "b", "c", "d"]),
        ("-SessionId", ["d", "c", "b", "a", WAITS]),
        ("Owner", [WAITS, "a", "c", "b", "d"]),
        ("-Owner", ["d", "b", "c", "a", WAITS]),
        ("Connections", [WAITS, "a", "b", "c", "d"]),
        ("CreationTime", ["d", "c", "b", "a", WAITS]),
        // What has no value comes first.
        ("ServerId", [WAITS, "a", "d", "b", "c"]),
        ("Client", ["a", "b", "c", "d", WAITS]),
    ] {
        assert_eq!(ids(&api, &format!("/v1/sessions?Sort={sort}")).await, expected, "{sort}");
        // The same one by one.
        let mut walked = Vec::new();
        let mut token = String::new();
        loop {
            let page = list(&api, &format!("/v1/sessions?Sort={sort}&MaxResults=1&NextToken={token}")).await;
            walked.push(page["Sessions"][0]["Id"].as_str().unwrap().to_owned());
            match page.get("NextToken") {
                Some(next) => next.as_str().unwrap().clone_into(&mut token),
                None => break,
            }
        }
        assert_eq!(walked, expected, "{sort} one by one");
    }
}

#[tokio::test]
async fn a_session_tells_what_describing_it_tells_and_more() {
    let (world, api) = world().await;
    let described = api.post("/describeSessions", json!({})).await;
    let listed = list(&api, "/v1/sessions").await;
    for (listed, described) in
        listed["Sessions"].as_array().unwrap().iter().zip(described["Sessions"].as_array().unwrap())
    {
        for (name, value) in described.as_object().unwrap() {
            assert_eq!(&listed[name], value, "{name}");
        }
    }
    let waits = &listed["Sessions"][0];
    assert_eq!(waits["RequestedBy"], json!("portal"));
    assert_eq!(waits["Requirements"], json!("tag:color = 'green'"));
    assert_eq!(waits["ChangedTime"], json!("2020-10-06T10:15:31.633Z"));
    assert_eq!(waits["Deadline"], json!("2020-10-06T10:45:31.633Z"));
    assert_eq!(listed["Sessions"][1]["ServerId"], json!("desk-1"));
    assert!(waits.get("PermissionsFile").is_none());

    // What happens to a session changes it, what its clients do does not.
    world.wait(Millis(1_000));
    let changed = "/v1/sessions?ChangedSince=2020-10-06T10:15:32Z";
    assert_eq!(ids(&api, changed).await, [""; 0]);
    api.post("/deleteSessions", json!([{"SessionId": "a", "Owner": "anna"}])).await;
    assert_eq!(ids(&api, changed).await, ["a"]);
    assert_eq!(ids(&api, "/v1/sessions?State=DELETING&State=DELETED").await, ["a"]);
}

#[tokio::test]
async fn deleted_sessions_are_found_by_the_server_that_they_were_on() {
    let (world, api) = world().await;
    let epoch = world.fleet().server(&server_id("desk-2")).unwrap().link.epoch();
    api.post("/deleteSessions", json!([{"SessionId": "b", "Owner": "barbara"}])).await;
    world.obey("desk-2", epoch);
    for query in ["ServerId=desk-2", "Tag.color=blue", "Tag.color=blue&ServerId=desk-2"] {
        assert_eq!(ids(&api, &format!("/v1/sessions?{query}")).await, ["b", "c"], "{query}");
    }
    assert_eq!(ids(&api, "/v1/sessions?ServerId=desk-2&State=DELETED").await, ["b"]);
    let filter = json!({"Filters": [{"Key": "tag:color", "Value": "blue"}]});
    let described = api.post("/describeSessions", filter).await;
    assert_eq!(described["Sessions"][0]["State"], json!("DELETED"));
}

#[tokio::test]
async fn servers_are_filtered_and_sorted_by_any_field() {
    let (world, api) = world().await;
    let client = ClientId::new("portal").unwrap();
    world.apply(Command::CloseServer { id: server_id("desk-1"), force: true, client });
    let epoch = world.fleet().server(&server_id("desk-2")).unwrap().link.epoch();
    world.apply(Command::DisconnectAgent { server: server_id("desk-2"), epoch });
    for (query, expected) in [
        ("", &["desk-1", "desk-2"][..]),
        ("Sort=-ServerId", &["desk-2", "desk-1"]),
        ("Sort=Hostname", &["desk-2", "desk-1"]),
        ("Hostname=blue", &["desk-2"]),
        ("ServerId=desk-2&ServerId=x", &["desk-2"]),
        ("Closed=true", &["desk-1"]),
        ("Closed=false", &["desk-2"]),
        ("Link=INTERRUPTED", &["desk-2"]),
        ("Availability=UNAVAILABLE&UnavailabilityReason=SERVER_CLOSED", &["desk-1"]),
        ("Availability=AVAILABLE", &[]),
        ("Tag.color=pink", &["desk-1"]),
        ("Tag.color=", &[]),
        ("OsFamily=LINUX&InstanceId=i-1&Ip=10.0.0.7", &["desk-1", "desk-2"]),
        ("SessionsMin=2&MemoryTotalBytesMin=16000000000", &["desk-1", "desk-2"]),
        ("HeardSince=2100-01-01T00:00:00Z", &[]),
        ("Health=healthy&MaxResults=1", &["desk-1"]),
    ] {
        assert_eq!(ids(&api, &format!("/v1/servers?{query}")).await, expected, "{query}");
    }
}

#[tokio::test]
async fn a_server_tells_what_describing_it_tells_and_more() {
    let (_, api) = world().await;
    let described = api.post("/describeServers", json!({"MaxResults": 1})).await;
    let listed = list(&api, "/v1/servers?MaxResults=1").await;
    for (name, value) in described["Servers"][0].as_object().unwrap() {
        assert_eq!(&listed["Servers"][0][name], value, "{name}");
    }
    let server = &listed["Servers"][0];
    let own = [
        ("Link", json!("UP")),
        ("LinkReplica", json!(1)),
        ("AgentEpoch", json!(1)),
        ("LastHeardTime", json!("2020-10-06T10:15:31.633Z")),
        ("FirstSeenTime", json!("2020-10-06T10:15:31.633Z")),
        ("ReportIntervalSeconds", json!(30)),
        ("Closed", json!(false)),
        ("Health", json!("HEALTHY")),
        ("Limits", json!({"ConsoleSessions": true})),
        ("Sessions", json!(2)),
    ];
    for (name, value) in own {
        assert_eq!(server[name], value, "{name}");
    }
}

#[tokio::test]
async fn what_is_not_understood_is_told_with_what_would_be() {
    let (_, api) = world().await;
    let unknown = refused(&api, "/v1/sessions?Colour=red").await;
    assert!(
        unknown.starts_with("the parameter \"Colour\" is not known; known are SessionId, Name, Owner,"),
        "{unknown}"
    );
    assert!(unknown.ends_with("Tag.KEY, Sort, MaxResults and NextToken"), "{unknown}");
    assert!(refused(&api, "/v1/servers?Owner=anna").await.contains("known are ServerId, Hostname,"));
    for (query, text) in [
        ("State=broken", "State must be one of CREATING, READY, DELETING, DELETED, UNKNOWN"),
        ("ConnectionsMin=-1", "ConnectionsMin must be a whole number, 0 or more"),
        ("ConnectionsMin=1&ConnectionsMin=2", "ConnectionsMin must not be given twice"),
        ("CreatedSince=yesterday", "CreatedSince must be a time such as 2025-06-30T12:00:00Z (RFC 3339)"),
        ("MaxResults=0", "MaxResults must be between 1 and 1000"),
        ("MaxResults=many", "MaxResults must be between 1 and 1000"),
        ("MaxResults=1&MaxResults=2", "MaxResults must not be given twice"),
        ("Owner=%ff", "the query is not form-encoded UTF-8"),
        ("NextToken=%3F", "NextToken is not a token of this broker"),
    ] {
        assert_eq!(refused(&api, &format!("/v1/sessions?{query}")).await, text);
    }
    assert!(refused(&api, "/v1/sessions?Sort=Colour").await.starts_with("Sort must be one of SessionId, Name,"));
    let many = vec!["Owner=a"; 1001].join("&");
    assert!(refused(&api, &format!("/v1/sessions?{many}")).await.contains("at most 1000"));
}

#[tokio::test]
async fn a_token_is_bound_to_filters_and_order() {
    let (_, api) = world().await;
    let page = list(&api, "/v1/sessions?Owner=anna&Sort=Name&MaxResults=1").await;
    let token = page["NextToken"].as_str().unwrap();
    for query in ["Owner=dora&Sort=Name", "Owner=anna&Sort=-Name", "Owner=anna", "Sort=Name"] {
        let text = refused(&api, &format!("/v1/sessions?{query}&NextToken={token}")).await;
        assert!(text.starts_with("NextToken belongs to another query"), "{query}: {text}");
    }
    // Other sizes and another order of the parameters are the same query.
    ids(&api, &format!("/v1/sessions?NextToken={token}&Sort=Name&Owner=anna&MaxResults=3")).await;
}

#[tokio::test]
async fn the_listings_want_a_token_and_say_what_they_show() {
    let (world, api) = world().await;
    for path in ["/v1/sessions", "/v1/servers"] {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        assert_eq!(api.send(request).await.status, StatusCode::UNAUTHORIZED, "{path}");
        let fresh = get(&api, path).await;
        assert!(fresh.header("berth-index").is_some() && fresh.header("berth-stale").is_none());
        assert_eq!(fresh.header("content-type"), Some("application/json"));
        assert_eq!(fresh.header("x-request-id"), fresh.json()["RequestId"].as_str());
        assert_eq!(api.call("POST", path, None).await.status, StatusCode::METHOD_NOT_ALLOWED);
    }
    world.has_no_quorum.store(true, Ordering::Relaxed);
    assert_eq!(get(&api, "/v1/sessions").await.header("berth-stale"), Some("true"));
}

#[tokio::test]
async fn a_listing_that_looks_at_many_sessions_is_whole() {
    let world = World::new();
    let count = limits::STEPS_INLINE_MAX + 10;
    let sessions =
        (0..count).map(|number| session(&format!("s{number:05}"), &format!("o{}", number % 7), 0, 1)).collect();
    world.connect("desk-1", full_facts(), sessions);
    let api = world.api();
    let last = format!("s{:05}", count - 1);
    assert_eq!(ids(&api, "/v1/sessions?Sort=-SessionId&MaxResults=1").await, [last.as_str()]);
    assert_eq!(ids(&api, "/v1/sessions?StateReason=none").await, [""; 0]);
    let filters = json!([{"Key": "owner", "Value": "o1"}, {"Key": "tag:color", "Value": "pink"}]);
    let found = api.post("/describeSessions", json!({"Filters": filters})).await;
    assert_eq!(found["Sessions"].as_array().unwrap().len(), (count + 5) / 7);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Sessions come and go between the pages; those that stay are seen once,
    /// in order.
    #[test]
    fn pages_in_any_order_show_what_stays_exactly_once(
        owners in prop::collection::vec(0_u8..4, 1..30), gone in prop::collection::vec(0_usize..30, 0..10),
        sort in prop::sample::select(vec!["Owner", "-Owner", "Connections", "-CreationTime", "SessionId", "-SessionId"]),
        size in 1_usize..6,
    ) {
        let world = World::new();
        let id = |number: usize| format!("s{number:02}");
        let sessions = |without: &[usize]| -> Vec<ReportedSession> {
            let made = owners.iter().enumerate().filter(|(number, _)| !without.contains(number));
            made.map(|(number, owner)| session(&id(number), &format!("o{owner}"), u32::from(*owner), u64::from(*owner))).collect()
        };
        world.connect("desk-1", full_facts(), sessions(&[]));
        let api = world.api();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(async {
            let mut seen: Vec<String> = Vec::new();
            let mut token = String::new();
            for round in 0.. {
                let path = format!("/v1/sessions?State=READY&Sort={sort}&MaxResults={size}&NextToken={token}");
                let page = list(&api, &path).await;
                seen.extend(page["Sessions"].as_array().unwrap().iter().map(|item| item["Id"].as_str().unwrap().to_owned()));
                match page.get("NextToken") {
                    Some(next) => next.as_str().unwrap().clone_into(&mut token),
                    None => break,
                }
                let without = gone.get(..=round).unwrap_or(&gone);
                world.connect("desk-1", full_facts(), sessions(without));
            }
            seen
        });
        let mut once = seen.clone();
        once.sort_unstable();
        once.dedup();
        prop_assert_eq!(once.len(), seen.len(), "twice: {:?}", seen);
        for number in (0..owners.len()).filter(|number| !gone.contains(number)) {
            prop_assert!(seen.contains(&id(number)), "{} is missing in {:?}", id(number), seen);
        }
        let key = |name: &String| {
            let number: usize = name[1..].parse().unwrap();
            let owner = if sort.ends_with("SessionId") { 0 } else { owners[number] };
            (owner, name.clone())
        };
        let mut sorted = seen.clone();
        sorted.sort_by_key(key);
        if sort.starts_with('-') {
            sorted.reverse();
        }
        prop_assert_eq!(seen, sorted);
    }
}
