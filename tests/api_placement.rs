//! Placement as clients see it: policies, explanations, the queue, drains.

#![allow(clippy::unwrap_used, missing_docs)]

mod api_common;

use api_common::{World, full_facts, server_id};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use berth::domain::host::{HostFacts, Limits};
use berth::domain::{Millis, SessionId};
use serde_json::{Value, json};

fn roomy(virtual_max: u32) -> HostFacts {
    let limits =
        Limits { virtual_sessions_max: Some(virtual_max), sessions_per_owner_max: None, console_sessions: false };
    HostFacts { limits, ..full_facts() }
}

fn wish(owner: &str) -> Value {
    json!({ "Name": "work", "Owner": owner, "Type": "VIRTUAL" })
}

fn queued(owner: &str) -> Value {
    json!({ "Name": "work", "Owner": owner, "Type": "VIRTUAL", "EnqueueRequest": true })
}

#[tokio::test]
async fn an_explanation_says_how_each_server_fares_and_changes_nothing() {
    let world = World::new();
    let api = world.api();
    world.connect("s1", roomy(0), Vec::new());
    world.connect("s2", roomy(2), Vec::new());
    let proposals = world.proposals.load(std::sync::atomic::Ordering::Relaxed);
    let answer = api.post("/v1/placement:explain", wish("ann")).await;
    assert_eq!(answer["ChosenServerId"], "s2");
    assert_eq!((&answer["Servers"], &answer["Eligible"], &answer["Policy"]), (&json!(2), &json!(1), &json!("spread")));
    let refused = json!({ "Rule": "TYPE_NOT_OFFERED", "Reason": "sessions of this type not offered", "Servers": 1 });
    assert_eq!(answer["Refused"], json!([refused]));
    assert_eq!(answer["ServersRefused"][0]["ServerId"], "s1");
    assert!(answer.get("FailureReason").is_none());
    assert_eq!(world.proposals.load(std::sync::atomic::Ordering::Relaxed), proposals);

    let picky = json!({ "Name": "w", "Owner": "ann", "Type": "VIRTUAL", "Requirements": "tag:x = '1'" });
    // The body of createSessions with one item is as good.
    for body in [picky.clone(), json!([picky])] {
        let answer = api.post("/v1/placement:explain", body).await;
        assert!(answer.get("ChosenServerId").is_none());
        let text = "no dcv server found for placement: 1 of 2 servers: sessions of this type not offered, \
                    1 of 2 servers: requirements not met";
        assert_eq!(answer["FailureReason"], text);
    }
}

#[tokio::test]
async fn a_bad_explanation_request_names_what_is_wrong() {
    let world = World::new();
    let api = world.api();
    let cases = [
        (json!({ "Name": 7 }), "Name has the wrong type: it must be text"),
        (json!({ "Name": "w", "Owner": "o" }), "Type is missing"),
        (json!([]), "the body must be one JSON object"),
        (json!({ "SessionId": 1 }), "SessionId has the wrong type: it must be text"),
    ];
    for (body, expected) in cases {
        let answer = api.call("POST", "/v1/placement:explain", Some(body)).await;
        assert_eq!((answer.status, answer.error().as_str()), (StatusCode::BAD_REQUEST, expected));
    }
    let answer = api.call("POST", "/v1/placement:explain", Some(json!({ "SessionId": "none" }))).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_queue_tells_position_age_and_deadline_and_a_queued_request_can_be_explained_and_cancelled() {
    let world = World::new();
    let api = world.api();
    world.connect("s1", roomy(1), Vec::new());
    let first = api.post("/createSessions", json!([wish("ann"), queued("bob"), queued("cy"), queued("bob")])).await;
    let ids: Vec<&str> =
        first["SuccessfulList"].as_array().unwrap().iter().map(|session| session["Id"].as_str().unwrap()).collect();
    world.wait(Millis::from_secs(5));
    let queue = api.call("GET", "/v1/queue", None).await.json();
    assert_eq!((&queue["Length"], &queue["MaxLength"]), (&json!(3), &json!(1000)));
    let requests = queue["Requests"].as_array().unwrap();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[0]["SessionId"], ids[1]);
    assert_eq!((&requests[1]["Position"], &requests[1]["Owner"]), (&json!(2), &json!("cy")));
    assert_eq!(requests[0]["AgeSeconds"], 5);
    assert_eq!(requests[0]["Deadline"], "2020-10-06T10:45:31.633Z");

    let page = api.call("GET", "/v1/queue?MaxResults=1&Owner=bob", None).await.json();
    assert_eq!(page["Requests"][0]["Position"], 1);
    let token = page["NextToken"].as_str().unwrap();
    let page = api.call("GET", &format!("/v1/queue?MaxResults=1&Owner=bob&NextToken={token}"), None).await.json();
    assert_eq!((&page["Requests"][0]["Position"], page.get("NextToken")), (&json!(3), None));
    let other = api.call("GET", &format!("/v1/queue?NextToken={token}"), None).await;
    assert_eq!(other.status, StatusCode::BAD_REQUEST);

    let explained = api.post("/v1/placement:explain", json!({ "SessionId": ids[2] })).await;
    assert_eq!(explained["FailureReason"], "no dcv server found for placement: 1 of 1 servers: full");
    let described = api.post("/describeSessions", json!({ "SessionIds": [ids[2]] })).await;
    assert_eq!(described["Sessions"][0]["Substate"], "SESSION_PLACING");
    let deleted = api.post("/deleteSessions", json!([{ "SessionId": ids[2], "Owner": "cy" }])).await;
    assert_eq!(deleted["SuccessfulList"][0]["State"], "DELETED");
    let queue = api.call("GET", "/v1/queue", None).await.json();
    assert_eq!(queue["Length"], 2);
    let placed = api.call("POST", "/v1/placement:explain", Some(json!({ "SessionId": ids[0] }))).await;
    assert_eq!(placed.error(), "the session does not wait for a server");
    for query in ["Colour=1", "MaxResults=0", "MaxResults=x", "NextToken=%"] {
        let answer = api.call("GET", &format!("/v1/queue?{query}"), None).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
    }
}

#[tokio::test]
async fn a_request_chooses_its_policy_by_a_header() {
    let world = World::new();
    let api = world.api();
    for server in ["s1", "s2", "s3"] {
        world.connect(server, roomy(9), Vec::new());
    }
    let create = |policy: &'static str| {
        let body = json!([wish("ann"), wish("bob"), wish("cy")]).to_string();
        Request::post("/createSessions")
            .header(header::AUTHORIZATION, "Bearer good:portal")
            .header(header::CONTENT_TYPE, "application/json")
            .header("Berth-Placement", policy)
            .body(Body::from(body))
            .unwrap()
    };
    assert_eq!(api.send(create("Pack")).await.status, StatusCode::OK);
    let fleet = world.fleet();
    let mut counts: Vec<u32> = ["s1", "s2", "s3"].map(|id| fleet.counts(&server_id(id)).total()).to_vec();
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 3]);
    let answer = api.send(create("best")).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.error(), "the header Berth-Placement must be spread, pack or affinity");
}

#[tokio::test]
async fn a_drain_closes_a_server_and_ends_its_sessions_at_the_deadline() {
    let world = World::new();
    let api = world.api();
    let epoch = world.connect("s1", roomy(9), Vec::new());
    let created = api.post("/createSessions", json!([wish("ann")])).await;
    world.obey("s1", epoch);
    let id = SessionId::new(created["SuccessfulList"][0]["Id"].as_str().unwrap()).unwrap();
    let items = json!([
        { "ServerId": "s1", "WithinSeconds": 60 },
        { "ServerId": "s9", "WithinSeconds": 60 },
        { "ServerId": "s1" },
        { "ServerId": "s1", "WithinSeconds": -1 },
    ]);
    let answer = api.post("/v1/servers:drain", items).await;
    assert_eq!(answer["SuccessfulList"].as_array().unwrap().len(), 1);
    assert_eq!(answer["SuccessfulList"][0]["Sessions"], 1);
    let failures: Vec<_> = answer["UnsuccessfulList"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failed| (failed["FailureCode"].as_str().unwrap(), failed["FailureReason"].as_str().unwrap()))
        .collect();
    assert_eq!(
        failures,
        [
            ("DCV_SERVER_NOT_FOUND", "Dcv server not found."),
            ("INVALID_PARAMETER", "WithinSeconds is missing"),
            ("INVALID_PARAMETER", "WithinSeconds must be between 0 and 604800"),
        ]
    );
    let refused = api.post("/createSessions", json!([wish("bob")])).await;
    let reason = refused["UnsuccessfulList"][0]["FailureReason"].as_str().unwrap();
    assert_eq!(reason, "no dcv server found for placement: 1 of 1 servers: closed (s1: closed)");
    world.wait(Millis::from_secs(60));
    let described = api.post("/describeSessions", json!({ "SessionIds": [id.as_str()] })).await;
    assert_eq!(described["Sessions"][0]["State"], "DELETING");
    world.obey("s1", epoch);
    let described = api.post("/describeSessions", json!({ "SessionIds": [id.as_str()] })).await;
    assert_eq!(described["Sessions"][0]["State"], "DELETED");
}
