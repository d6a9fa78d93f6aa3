//! Which state an answer shows, by the headers of the request and of the answer.
#![allow(clippy::unwrap_used)]

mod api_common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use api_common::{Answer, Api, CLIENT, World, full_facts, host_session};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};

async fn call(api: &Api, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Answer {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer good:{CLIENT}"))
        .header(header::CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    api.send(request.body(body).unwrap()).await
}

/// Index, and whether it is marked as stale.
fn shown(answer: &Answer) -> (Option<u64>, bool) {
    let stale = answer.header("berth-stale");
    assert!(matches!(stale, None | Some("true")), "{stale:?}");
    (answer.header("berth-index").map(|index| index.parse().unwrap()), stale.is_some())
}

fn world() -> Arc<World> {
    let world = World::new();
    world.connect("desk-7", full_facts(), vec![host_session("mine", "barbara")]);
    world
}

/// Calls that only tell what there is.
const TELLING: [(&str, &str); 7] = [
    ("POST", "/describeSessions"),
    ("POST", "/describeServers"),
    ("GET", "/v1/sessions"),
    ("GET", "/v1/servers"),
    ("GET", "/v1/queue"),
    ("GET", "/v1/events"),
    ("POST", "/v1/placement:explain"),
];

fn body_of(method: &str, path: &str) -> Option<Value> {
    let wanted = json!({"Name": "a", "Owner": "ann", "Type": "VIRTUAL"});
    (method == "POST").then(|| if path.ends_with("explain") { wanted } else { json!({}) })
}

#[tokio::test]
async fn every_answer_tells_the_index_of_what_it_shows() {
    let world = world();
    world.reply("desk-7", Ok(api_common::picture()));
    let api = world.api();
    for (method, path) in TELLING {
        let answer = call(&api, method, path, &[], body_of(method, path)).await;
        assert_eq!((answer.status, shown(&answer)), (StatusCode::OK, (Some(1), false)), "{path}");
    }
    let mut index = 1;
    for (method, path, body) in [
        ("GET", "/sessionConnectionData/mine/barbara", None),
        ("POST", "/getSessionScreenshots", Some(json!([{"SessionId": "mine"}]))),
        ("GET", "/sessionConnectionData/nothing/barbara", None),
        ("GET", "/v1/sessions?MaxResults=1", None),
    ] {
        let answer = call(&api, method, path, &[], body).await;
        assert_eq!(shown(&answer), (Some(index), false), "{path}: {}", answer.status);
        // That a connection token was issued is recorded before it is handed out.
        index = world.fleet().applied().0;
    }
    assert_eq!(index, 2);
    for (method, path, body) in [
        ("POST", "/createSessions", json!([{"Name": "a", "Owner": "ann", "Type": "VIRTUAL"}])),
        ("PUT", "/sessionPermissions", json!([{"SessionId": "mine", "Owner": "barbara", "PermissionsFile": "YQ=="}])),
        ("POST", "/closeServers", json!([{"ServerId": "desk-7", "Force": true}])),
        ("POST", "/openServers", json!([{"ServerId": "desk-7"}])),
        ("POST", "/v1/servers:drain", json!([{"ServerId": "desk-7", "WithinSeconds": 60}])),
        ("POST", "/deleteSessions", json!([{"SessionId": "mine", "Owner": "barbara"}])),
    ] {
        let answer = call(&api, method, path, &[], Some(body)).await;
        index += 1;
        assert_eq!((answer.status, shown(&answer)), (StatusCode::OK, (Some(index), false)), "{path}");
    }
    // Nothing was proposed: what is known shows that.
    let answer = call(&api, "POST", "/deleteSessions", &[], Some(json!([{}]))).await;
    assert_eq!((answer.status, shown(&answer)), (StatusCode::OK, (Some(index), false)));
    let refused = call(&api, "POST", "/deleteSessions", &[], Some(json!({}))).await;
    assert_eq!((refused.status, shown(&refused)), (StatusCode::BAD_REQUEST, (None, false)));
}

#[tokio::test]
async fn an_answer_that_was_given_before_is_seen_by_whoever_sends_its_index_back() {
    let api = world().api();
    let key = [("idempotency-key", "k")];
    let body = json!([{"Name": "a", "Owner": "ann", "Type": "VIRTUAL"}]);
    let first = call(&api, "POST", "/createSessions", &key, Some(body.clone())).await;
    let again = call(&api, "POST", "/createSessions", &key, Some(body)).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!((shown(&first), shown(&again)), ((Some(2), false), (Some(3), false)));
}

#[tokio::test]
async fn a_stale_read_asks_nobody() {
    let world = world();
    world.reads_hang.store(true, Ordering::Relaxed);
    let api = world.api();
    let stale = [("berth-consistency", "stale")];
    for (method, path) in TELLING {
        let answer = call(&api, method, path, &stale, body_of(method, path)).await;
        assert_eq!((answer.status, shown(&answer)), (StatusCode::OK, (Some(1), true)), "{path}");
    }
    // Also where it matters, for whoever asks for it.
    let answer = call(&api, "GET", "/sessionConnectionData/mine/barbara", &stale, None).await;
    assert_eq!((answer.status, shown(&answer)), (StatusCode::OK, (Some(1), true)));
}

#[tokio::test]
async fn a_read_waits_for_the_index_that_it_names_and_asks_nobody() {
    let world = world();
    world.reads_hang.store(true, Ordering::Relaxed);
    let api = world.api();
    let reading = tokio::spawn({
        let api = api.clone();
        async move { call(&api, "POST", "/describeSessions", &[("berth-min-index", "3")], Some(json!({}))).await }
    });
    tokio::task::yield_now().await;
    assert!(!reading.is_finished());
    world.wait(berth::domain::Millis(1));
    world.wait(berth::domain::Millis(1));
    let answer = reading.await.unwrap();
    assert_eq!((answer.status, shown(&answer)), (StatusCode::OK, (Some(3), true)));

    let headers = [("berth-min-index", "2"), ("berth-consistency", "stale")];
    let answer = call(&api, "POST", "/describeSessions", &headers, Some(json!({}))).await;
    assert_eq!((answer.status, shown(&answer)), (StatusCode::OK, (Some(3), true)));
}

#[tokio::test]
async fn a_linearizable_read_is_never_answered_with_less() {
    let world = world();
    let api = world.api();
    let headers = [("berth-consistency", "linearizable"), ("berth-min-index", "1")];
    let answer = call(&api, "POST", "/describeSessions", &headers, Some(json!({}))).await;
    assert_eq!((answer.status, shown(&answer)), (StatusCode::OK, (Some(1), false)));
    world.has_no_quorum.store(true, Ordering::Relaxed);
    for (method, path) in TELLING {
        let answer = call(&api, method, path, &headers, body_of(method, path)).await;
        assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("2")));
        assert_eq!(shown(&answer), (None, false), "{path}");
    }
}

#[tokio::test]
async fn an_index_that_does_not_come_is_an_error_that_says_so() {
    let api = world().api();
    let answer = call(&api, "POST", "/describeSessions", &[("berth-min-index", "99")], Some(json!({}))).await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    assert_eq!(answer.error(), "this replica has not yet what Berth-Min-Index asks for; try again in 1 s");
}

#[tokio::test]
async fn a_header_that_makes_no_sense_is_refused_by_every_call() {
    let api = world().api();
    for (method, path) in TELLING.into_iter().chain([("POST", "/createSessions"), ("POST", "/getSessionScreenshots")]) {
        for (name, value) in [("berth-consistency", "eventual"), ("berth-min-index", "-1")] {
            let answer = call(&api, method, path, &[(name, value)], body_of(method, path)).await;
            assert_eq!((answer.status, shown(&answer)), (StatusCode::BAD_REQUEST, (None, false)), "{path}");
            assert!(answer.error().to_lowercase().contains(name), "{}", answer.error());
        }
    }
}

#[tokio::test]
async fn a_read_that_nobody_confirms_is_answered_from_what_is_known() {
    let world = world();
    world.reads_hang.store(true, Ordering::Relaxed);
    let api = world.api();
    let answer = call(&api, "POST", "/describeSessions", &[], Some(json!({}))).await;
    assert_eq!((answer.status, shown(&answer)), (StatusCode::OK, (Some(1), true)));
    let answer = call(&api, "GET", "/sessionConnectionData/mine/barbara", &[], None).await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
}

#[tokio::test]
async fn nobody_waits_for_a_majority_that_is_known_to_be_gone() {
    let world = world();
    // Would be confirmed, if it were asked for.
    world.is_cut_off.store(true, Ordering::Relaxed);
    let api = world.api();
    for (method, path) in TELLING {
        let answer = call(&api, method, path, &[], body_of(method, path)).await;
        assert_eq!((answer.status, shown(&answer)), (StatusCode::OK, (Some(1), true)), "{path}");
    }
    for (path, body) in [
        ("/getSessionScreenshots", json!([{"SessionId": "mine"}])),
        ("/deleteSessions", json!([{"SessionId": "mine", "Owner": "barbara"}])),
    ] {
        let answer = call(&api, "POST", path, &[], Some(body)).await;
        assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
        assert!(answer.error().starts_with("no majority of the broker's replicas can be reached"), "{path}");
    }
    assert_eq!(world.proposals.load(Ordering::Relaxed), 0);
}
