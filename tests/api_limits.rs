//! Who asks for too much, and what goes on when the log is behind, through the
//! router.

#![allow(clippy::unwrap_used)]

mod api_common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use api_common::{Answer, Api, CLIENT, World, full_facts, host_session};
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use berth::broker::api::{ApiSettings, LaneWidths};
use berth::broker::config::Limits;
use berth::broker::tls::Peer;
use serde_json::{Value, json};

/// Far more than any limit of these tests lets through.
const MANY: usize = 1000;

fn world() -> Arc<World> {
    let world = World::new();
    world.connect("desk-7", full_facts(), vec![host_session("mine", "barbara")]);
    world
}

fn limited() -> ApiSettings {
    ApiSettings { limits: Limits { requests_per_second: 1, ..Limits::default() }, ..ApiSettings::default() }
}

/// A request that comes from an address, with these headers.
fn from(address: &str, method: &str, path: &str, token: Option<&str>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let mut request = request.body(Body::from("{}")).unwrap();
    let address = SocketAddr::new(address.parse().unwrap(), 4711);
    request.extensions_mut().insert(Peer { address, certificate: None });
    request
}

/// The first refusal of many requests.
async fn refusal(api: &Api, request: impl Fn() -> Request<Body>) -> Answer {
    for _ in 0..MANY {
        let answer = api.send(request()).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            return answer;
        }
    }
    panic!("{MANY} requests passed");
}

#[tokio::test]
async fn an_address_is_limited_before_its_secrets_and_tokens_are_looked_at() {
    let api = world().api_with(limited());
    for (number, (method, path)) in
        [("POST", "/oauth2/token"), ("POST", "/describeSessions"), ("GET", "/nothing")].into_iter().enumerate()
    {
        let (address, other) = (format!("192.0.2.{number}"), format!("198.51.100.{number}"));
        let answer = refusal(&api, || from(&address, method, path, None)).await;
        assert_eq!(answer.header("retry-after"), Some("1"), "{path}");
        assert!(answer.header("x-request-id").is_some());
        assert_eq!(answer.error(), "too many requests of this address; 1 per second are allowed");
        let answer = api.send(from(&other, method, path, None)).await;
        assert_ne!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
    }
    for _ in 0..MANY {
        assert_eq!(api.send(from("192.0.2.0", "GET", "/health", None)).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_client_is_limited_wherever_it_calls_from() {
    let api = world().api_with(limited());
    let addresses = std::sync::atomic::AtomicU32::new(0);
    let anywhere = |token| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + addresses.fetch_add(1, Ordering::Relaxed));
        from(&address.to_string(), "POST", "/describeSessions", Some(token))
    };
    let answer = refusal(&api, || anywhere("good:portal")).await;
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.error(), "too many requests of this client; 1 per second are allowed");
    assert_eq!(api.send(anywhere("good:other")).await.status, StatusCode::OK);
    for _ in 0..MANY {
        assert_eq!(api.send(anywhere("bad")).await.status, StatusCode::UNAUTHORIZED, "nobody's token");
    }
}

#[tokio::test]
async fn without_tokens_nobody_shares_the_limit_of_a_client() {
    let api = world().api_with(ApiSettings { authorization: false, ..limited() });
    for number in 0..100 {
        let answer = api.send(from(&format!("192.0.2.{number}"), "POST", "/describeSessions", None)).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
}

/// Calls that change something, and what they do it to.
fn changes() -> [(&'static str, &'static str, Value); 7] {
    [
        ("POST", "/createSessions", json!([{"Name": "n", "Owner": "barbara", "Type": "VIRTUAL"}])),
        ("POST", "/deleteSessions", json!([{"SessionId": "mine", "Owner": "barbara"}])),
        ("PUT", "/sessionPermissions", json!([{"SessionId": "mine", "Owner": "barbara", "PermissionsFile": "eA=="}])),
        ("POST", "/openServers", json!([{"ServerId": "desk-7"}])),
        ("POST", "/closeServers", json!([{"ServerId": "desk-7", "Force": true}])),
        // The audit has it before it is answered.
        ("GET", "/sessionConnectionData/mine/barbara", Value::Null),
        ("POST", "/v1/servers:drain", json!([{"ServerId": "desk-7", "WithinSeconds": 60}])),
    ]
}

async fn assert_busy(api: &Api) {
    for (method, path, body) in changes() {
        let answer = api.call(method, path, Some(body)).await;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (StatusCode::SERVICE_UNAVAILABLE, Some("1")),
            "{path}"
        );
        assert_eq!(answer.error(), "the broker is busy; try again in 1 s", "{path}");
    }
}

async fn assert_tells(api: &Api) {
    for path in ["/describeSessions", "/describeServers"] {
        api.post(path, json!({})).await;
    }
    for path in ["/v1/events", "/v1/sessions", "/v1/queue"] {
        assert_eq!(api.call("GET", path, None).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_log_that_is_behind_refuses_changes_at_once_and_telling_goes_on() {
    let world = world();
    let api = world.api();
    world.is_overloaded.store(true, Ordering::Relaxed);
    assert_busy(&api).await;
    assert_tells(&api).await;
    let (_, path, body) = &changes()[0];
    let keyed = || {
        let request = Request::builder().method("POST").uri(*path).header("idempotency-key", "k");
        let request = request.header(header::AUTHORIZATION, format!("Bearer good:{CLIENT}"));
        request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string())).unwrap()
    };
    assert_eq!(api.send(keyed()).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.proposals.load(Ordering::Relaxed), 0);
    world.is_overloaded.store(false, Ordering::Relaxed);
    let answer = api.send(keyed()).await;
    assert_eq!(answer.status, StatusCode::OK, "its key was not used up");
    assert_eq!(answer.header("idempotency-replayed"), None);
}

#[tokio::test]
async fn changes_that_wait_for_a_slow_log_are_bounded_and_telling_goes_on() {
    let world = world();
    let lanes = LaneWidths { changing: 1, ..LaneWidths::default() };
    let api = world.api_with(ApiSettings { lanes, ..ApiSettings::default() });
    world.is_holding.store(true, Ordering::Relaxed);
    let [(_, path, body), ..] = changes();
    let waiting = tokio::spawn({
        let api = api.clone();
        async move { api.post(path, body).await }
    });
    world.held.notified().await;
    assert_busy(&api).await;
    assert_tells(&api).await;
    world.is_holding.store(false, Ordering::Relaxed);
    world.released.notify_one();
    waiting.await.unwrap();
    assert_eq!(world.proposals.load(Ordering::Relaxed), 1);
    let [_, (_, path, body), ..] = changes();
    api.post(path, body).await;
}

#[tokio::test]
async fn a_client_with_too_much_under_way_waits_and_others_go_on() {
    let world = world();
    let lanes = LaneWidths { pictures: 8, ..LaneWidths::default() };
    let api = world.api_with(ApiSettings { lanes, ..ApiSettings::default() });
    let ask = |client: &str| {
        let request = Request::builder().method("POST").uri("/getSessionScreenshots");
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let request = request.header(header::AUTHORIZATION, format!("Bearer good:{client}"));
        let request = request.body(Body::from(json!([{"SessionId": "mine"}]).to_string())).unwrap();
        let api = api.clone();
        async move { api.send(request).await }
    };
    // This agent never answers, so each of these has its place for as long as it waits.
    let is_asked = |times: usize| {
        let world = Arc::clone(&world);
        async move {
            while world.questions.lock().unwrap().len() < times {
                tokio::task::yield_now().await;
            }
        }
    };
    let mut waiting = Vec::new();
    for number in 1..=7 {
        waiting.push(tokio::spawn(ask("greedy")));
        is_asked(number).await;
    }
    let answer = ask("greedy").await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, Some("1")));
    assert_eq!(answer.error(), "this client has too many requests under way; wait for the answers to some of them");
    waiting.push(tokio::spawn(ask("other")));
    is_asked(8).await;
    assert_eq!(ask("third").await.status, StatusCode::SERVICE_UNAVAILABLE, "now there is no place at all");
    assert_tells(&api).await;
    for request in waiting {
        request.abort();
    }
}

#[tokio::test]
async fn pictures_that_agents_are_slow_with_hold_up_nothing_else() {
    let world = world();
    let lanes = LaneWidths { pictures: 1, ..LaneWidths::default() };
    let api = world.api_with(ApiSettings { lanes, ..ApiSettings::default() });
    // This agent never answers.
    let waiting = tokio::spawn({
        let api = api.clone();
        async move { api.post("/getSessionScreenshots", json!([{"SessionId": "mine"}])).await }
    });
    while world.questions.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let answer = api.call("POST", "/getSessionScreenshots", Some(json!([{"SessionId": "mine"}]))).await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    assert_tells(&api).await;
    let [(_, path, body), ..] = changes();
    api.post(path, body).await;
    waiting.abort();
}
