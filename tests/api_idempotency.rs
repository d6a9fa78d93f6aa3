//! Calls that are repeated with their `Idempotency-Key`, through the router.

#![allow(clippy::unwrap_used)]

mod api_common;

use std::sync::atomic::Ordering;

use api_common::{Answer, Api, CLIENT, World, full_facts, host_session, server_id};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use berth::domain::client::{Grant, Scope, Scopes, SecretHash};
use berth::domain::host::Limits;
use berth::domain::{ClientId, Command, Millis, Owner, Settings};
use serde_json::{Value, json};

/// A call of a client with these headers.
fn request(client: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Request<Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer good:{client}"))
        .header(header::CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body.to_owned())).unwrap()
}

async fn keyed(api: &Api, method: &str, path: &str, key: &str, body: &Value) -> Answer {
    api.send(request(CLIENT, method, path, &[("idempotency-key", key)], &body.to_string())).await
}

async fn create(api: &Api, key: &str, body: &Value) -> Answer {
    keyed(api, "POST", "/createSessions", key, body).await
}

fn item(name: &str) -> Value {
    json!({"Name": name, "Owner": "barbara", "Type": " virtual ", "MaxConcurrents": 7, "StorageRoot": "%home%"})
}

/// The second answer is the first one, and is marked.
fn assert_replayed(first: &Answer, second: &Answer) {
    assert_eq!(first.status, StatusCode::OK, "{}", String::from_utf8_lossy(&first.body));
    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!(String::from_utf8_lossy(&first.body), String::from_utf8_lossy(&second.body));
    assert_eq!(first.status, second.status);
    assert_eq!(first.header("x-request-id"), first.json()["RequestId"].as_str());
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"), "the second request has an id of its own");
}

#[tokio::test]
async fn every_call_that_changes_something_is_done_once_and_answered_alike() {
    let world = World::new();
    let sessions = || vec![host_session("mine", "barbara"), host_session("other", "anna")];
    world.connect("desk-7", full_facts(), sessions());
    let mut full = full_facts();
    full.limits = Limits { virtual_sessions_max: Some(0), sessions_per_owner_max: None, console_sessions: false };
    world.connect("desk-8", full, Vec::new());
    let api = world.api();
    let mut impossible = item("impossible");
    impossible["Requirements"] = json!("tag:color = 'green'");
    let calls = [
        ("POST", "/createSessions", json!([item("a"), {"Name": "no owner"}, impossible, item("b")])),
        (
            "PUT",
            "/sessionPermissions",
            json!([
                {"SessionId": "mine", "Owner": "barbara", "PermissionsFile": "W10="},
                {"SessionId": "mine", "Owner": "barbara", "PermissionsFile": "?"},
                {"SessionId": "mine", "Owner": "anna", "PermissionsFile": "W10="},
            ]),
        ),
        (
            "POST",
            "/deleteSessions",
            json!([{"SessionId": "mine", "Owner": "barbara"}, {"SessionId": "none", "Owner": "o"}, {}]),
        ),
        ("POST", "/closeServers", json!([{"ServerId": "desk-8"}, {"ServerId": "none"}, {}, {"ServerId": "desk-7"}])),
        ("POST", "/openServers", json!([{"ServerId": "desk-8"}, {"ServerId": "none"}, {}])),
    ];
    for (number, (method, path, body)) in calls.iter().enumerate() {
        let key = format!("\"key {number}\"");
        let first = keyed(&api, method, path, &key, body).await;
        assert!(!first.json()["SuccessfulList"].as_array().unwrap().is_empty(), "{path}");
        assert!(!first.json()["UnsuccessfulList"].as_array().unwrap().is_empty(), "{path}");
        let before = world.fleet();
        // What happens in between does not show in the answer.
        let epoch = world.connect("desk-7", full_facts(), sessions());
        world.obey("desk-7", epoch);
        world.wait(Millis::from_secs(1));
        let count = world.fleet().session_count();
        for _ in 0..2 {
            let second = keyed(&api, method, path, &key, body).await;
            assert_replayed(&first, &second);
        }
        assert_eq!(world.fleet().session_count(), count, "{path}");
        assert_eq!(world.fleet().is_closed(&server_id("desk-8")), before.is_closed(&server_id("desk-8")));
        assert_eq!(world.fleet().kept_requests().count(), number + 1);
    }
}

#[tokio::test]
async fn without_a_key_or_with_another_one_a_call_is_a_new_one() {
    let world = World::new();
    world.connect("desk-7", full_facts(), Vec::new());
    let api = world.api();
    let body = json!([item("a")]);
    for _ in 0..2 {
        let answer = api.call("POST", "/createSessions", Some(body.clone())).await;
        assert_eq!((answer.status, answer.header("idempotency-replayed")), (StatusCode::OK, None));
    }
    create(&api, "one", &body).await;
    create(&api, "two", &body).await;
    assert_eq!(world.fleet().session_count(), 4);
    // In quotes or not, it is the same key.
    let again = create(&api, "\"two\"", &body).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    // Each client has keys of its own.
    let other = request("other", "POST", "/createSessions", &[("idempotency-key", "two")], &body.to_string());
    assert_eq!(api.send(other).await.header("idempotency-replayed"), None);
    assert_eq!(world.fleet().session_count(), 5);
}

#[tokio::test]
async fn a_key_that_was_used_for_another_request_is_refused() {
    let world = World::new();
    world.connect("desk-7", full_facts(), Vec::new());
    let api = world.api();
    let first = create(&api, "k", &json!([item("a")])).await;
    let placed = [("idempotency-key", "k"), ("berth-placement", "pack")];
    let others = [
        request(CLIENT, "POST", "/createSessions", &[("idempotency-key", "k")], &json!([item("b")]).to_string()),
        request(CLIENT, "POST", "/openServers", &[("idempotency-key", "k")], &json!([item("a")]).to_string()),
        request(CLIENT, "POST", "/createSessions", &placed, &json!([item("a")]).to_string()),
    ];
    for other in others {
        let refused = api.send(other).await;
        assert_eq!(
            (refused.status, refused.error().as_str()),
            (StatusCode::UNPROCESSABLE_ENTITY, "this Idempotency-Key was used for another request")
        );
        assert_eq!(refused.header("idempotency-replayed"), None);
    }
    assert_eq!(world.fleet().session_count(), 1);
    assert_replayed(&first, &create(&api, "k", &json!([item("a")])).await);
}

#[tokio::test]
async fn a_call_without_a_good_item_is_kept_too() {
    let world = World::new();
    let api = world.api();
    let body = json!([{"Name": "no owner"}]);
    let first = create(&api, "k", &body).await;
    assert_replayed(&first, &create(&api, "k", &body).await);
    assert_eq!(create(&api, "k", &json!([])).await.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_key_that_is_none_is_told_and_reads_do_not_look_at_it() {
    let world = World::new();
    let api = world.api();
    let body = json!([item("a")]).to_string();
    let long = "k".repeat(256);
    for value in ["", "\"\"", "\"open", "a b", "a, b", &long] {
        let refused = api.send(request(CLIENT, "POST", "/createSessions", &[("idempotency-key", value)], &body)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{value}");
        assert!(refused.error().starts_with("Idempotency-Key must be 1 to 255"), "{}", refused.error());
    }
    let twice = [("idempotency-key", "k"), ("idempotency-key", "k")];
    let refused = api.send(request(CLIENT, "POST", "/createSessions", &twice, &body)).await;
    assert_eq!(
        (refused.status, refused.error().as_str()),
        (StatusCode::BAD_REQUEST, "Idempotency-Key is given more than once")
    );
    assert_eq!(world.proposals.load(Ordering::Relaxed), 0);
    for path in ["/describeSessions", "/describeServers"] {
        let answer = api.send(request(CLIENT, "POST", path, &twice, "{}")).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_call_that_is_under_way_is_not_begun_a_second_time() {
    let world = World::new();
    world.connect("desk-7", full_facts(), Vec::new());
    let api = world.api();
    let body = json!([item("a")]);
    world.is_holding.store(true, Ordering::Relaxed);
    let first = {
        let (api, body) = (api.clone(), body.clone());
        tokio::spawn(async move { create(&api, "k", &body).await })
    };
    world.held.notified().await;
    for body in [&body, &json!([item("b")])] {
        let refused = create(&api, "k", body).await;
        assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::CONFLICT, Some("1")));
        assert_eq!(refused.error(), "a request with this Idempotency-Key is being carried out; try again in 1 s");
    }
    world.is_holding.store(false, Ordering::Relaxed);
    world.released.notify_one();
    let first = first.await.unwrap();
    assert_replayed(&first, &create(&api, "k", &body).await);
    assert_eq!(world.fleet().session_count(), 1);
}

#[tokio::test]
async fn a_caller_that_gives_up_and_a_panic_let_the_key_go() {
    let world = World::new();
    world.connect("desk-7", full_facts(), Vec::new());
    let api = world.api();
    let body = json!([item("a")]);
    world.is_holding.store(true, Ordering::Relaxed);
    let given_up = {
        let (api, body) = (api.clone(), body.clone());
        tokio::spawn(async move { create(&api, "k", &body).await })
    };
    world.held.notified().await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    world.is_holding.store(false, Ordering::Relaxed);

    world.is_panicking.store(true, Ordering::Relaxed);
    assert_eq!(create(&api, "k", &body).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    world.is_panicking.store(false, Ordering::Relaxed);
    let first = create(&api, "k", &body).await;
    assert_replayed(&first, &create(&api, "k", &body).await);
}

#[tokio::test]
async fn a_call_whose_outcome_was_lost_is_answered_when_it_is_repeated() {
    let world = World::new();
    world.connect("desk-7", full_facts(), Vec::new());
    let api = world.api();
    let body = json!([item("a"), item("b")]);
    // It did not happen: the same call may try again.
    world.has_no_quorum.store(true, Ordering::Relaxed);
    assert_eq!(create(&api, "k", &body).await.status, StatusCode::SERVICE_UNAVAILABLE);
    world.has_no_quorum.store(false, Ordering::Relaxed);
    assert_eq!(world.fleet().session_count(), 0);
    // It happened, and nobody was told.
    world.loses_outcomes.store(true, Ordering::Relaxed);
    let lost = create(&api, "k", &body).await;
    assert_eq!(lost.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(lost.error().starts_with("the outcome is not known yet"), "{}", lost.error());
    world.loses_outcomes.store(false, Ordering::Relaxed);
    assert_eq!(world.fleet().session_count(), 2);

    let found = create(&api, "k", &body).await;
    assert_eq!((found.status, found.header("idempotency-replayed")), (StatusCode::OK, Some("true")));
    assert_eq!(found.json()["RequestId"].as_str(), lost.header("x-request-id"));
    let fleet = world.fleet();
    let ids: Vec<_> = fleet.sessions_from(None).map(|session| session.id.as_str()).collect();
    let json = found.json();
    let told: Vec<_> = json["SuccessfulList"].as_array().unwrap().iter().map(|made| made["Id"].as_str()).collect();
    assert_eq!(told, ids.iter().map(|id| Some(*id)).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_error_of_the_whole_call_is_not_kept() {
    let world = World::new();
    world.connect("desk-7", full_facts(), Vec::new());
    let api = world.api();
    let bad = api.send(request(CLIENT, "POST", "/createSessions", &[("idempotency-key", "k")], "{}")).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    let good = create(&api, "k", &json!([item("a")])).await;
    assert_eq!((good.status, good.header("idempotency-replayed")), (StatusCode::OK, None));
}

#[tokio::test]
async fn an_answer_is_kept_for_its_time_and_only_so_many_of_a_client() {
    let world = World::new();
    let settings = Settings { idempotency_keys_max: 2, ..Settings::default() };
    let retention = settings.idempotency_retention;
    world.apply(Command::Configure(settings));
    let api = world.api();
    let body = json!([{"ServerId": "none"}]);
    let replayed = async |key: &str| {
        let answer = keyed(&api, "POST", "/openServers", key, &body).await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.header("idempotency-replayed").is_some()
    };
    assert!(!replayed("a").await);
    world.wait(Millis(retention.0 - 1));
    assert!(replayed("a").await);
    world.wait(Millis(1));
    assert!(!replayed("a").await, "it has expired");
    assert!(!replayed("b").await);
    assert!(replayed("a").await);
    assert!(!replayed("c").await);
    assert!(!replayed("a").await, "it was the oldest of three");
    assert!(replayed("c").await);
}

#[tokio::test]
async fn an_answer_is_not_shown_again_to_one_who_may_no_longer_see_it() {
    let world = World::new();
    world.connect("desk-7", full_facts(), Vec::new());
    let api = world.api();
    let grant = |owner: Option<&str>, scopes| Grant { scopes, owner: owner.map(|owner| Owner::new(owner).unwrap()) };
    let id = || ClientId::new(CLIENT).unwrap();
    world.apply(Command::RegisterClient {
        id: id(),
        name: CLIENT.to_owned(),
        secret: SecretHash(String::new()),
        grant: grant(Some("barbara"), Scopes::USUAL),
    });
    let bind = |owner, scopes| world.apply(Command::GrantClient { id: id(), grant: grant(owner, scopes) });
    let body = json!([item("secret project")]);
    let first = create(&api, "k", &body).await;
    assert_replayed(&first, &create(&api, "k", &body).await);
    let session = first.json()["SuccessfulList"][0]["Id"].as_str().unwrap().to_owned();

    for owner in [Some("anna"), None] {
        bind(owner, Scopes::USUAL);
        let again = create(&api, "k", &body).await;
        assert_eq!(again.status, StatusCode::UNPROCESSABLE_ENTITY, "{owner:?}");
        assert_eq!(again.error(), "this Idempotency-Key was used for another request");
        assert!(!String::from_utf8_lossy(&again.body).contains(&session));
    }
    bind(Some("barbara"), Scopes::NONE.with(Scope::Read));
    assert_eq!(create(&api, "k", &body).await.status, StatusCode::FORBIDDEN, "without the scope");
    assert_eq!(world.fleet().session_count(), 1, "it is not made a second time either");
    bind(Some("barbara"), Scopes::USUAL);
    assert_replayed(&first, &create(&api, "k", &body).await);
}
