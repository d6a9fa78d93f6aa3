//! The headers that tell and choose which state an answer shows, on a broker
//! as it is run.
#![allow(clippy::unwrap_used)]

mod common;

use common::agent::Agent;
use common::api::Api;
use common::broker::Broker;
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

struct Answer {
    status: StatusCode,
    index: Option<u64>,
    is_stale: bool,
    retry_after: Option<String>,
    body: Value,
}

async fn call(api: &Api, method: Method, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let mut request = api.request(method, path).json(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, index, stale) = (answer.status(), header("berth-index"), header("berth-stale"));
    let retry_after = header("retry-after");
    Answer {
        status,
        index: index.map(|index| index.parse().unwrap()),
        is_stale: stale.is_some(),
        retry_after,
        body: answer.json().await.unwrap(),
    }
}

async fn describe(api: &Api, headers: &[(&str, &str)]) -> Answer {
    call(api, Method::POST, "/describeSessions", headers, &json!({})).await
}

fn ids(answer: &Answer) -> Vec<&str> {
    answer.body["Sessions"].as_array().unwrap().iter().map(|session| session["Id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_back_the_index_reads_its_own_writes_and_never_goes_back() {
    let mut broker = Broker::start_to_be_restarted().await;
    let api = broker.api().await;
    let mut agent = Agent::simulated(&broker, "");
    let server = agent.linked().await;
    api.server_available(&server).await;

    let item = json!([{ "Name": "test", "Owner": "ann", "Type": "VIRTUAL" }]);
    let created = call(&api, Method::POST, "/createSessions", &[("idempotency-key", "k")], &item).await;
    let id = created.body["SuccessfulList"][0]["Id"].as_str().unwrap().to_owned();
    let index = created.index.unwrap();
    let sent_back = index.to_string();
    let seen = describe(&api, &[("berth-min-index", &sent_back)]).await;
    assert_eq!((seen.status, ids(&seen).contains(&&*id), seen.is_stale), (StatusCode::OK, true, true));
    assert!(seen.index.unwrap() >= index);

    let repeated = call(&api, Method::POST, "/createSessions", &[("idempotency-key", "k")], &item).await;
    assert_eq!(repeated.body["SuccessfulList"][0]["Id"], json!(id));
    assert!(repeated.index.unwrap() > index, "the index of the repetition, which shows what it repeats");

    let fresh = describe(&api, &[]).await;
    assert!(!fresh.is_stale && fresh.index.unwrap() >= repeated.index.unwrap());
    let known = describe(&api, &[("berth-consistency", "stale")]).await;
    assert!(known.is_stale && known.index.unwrap() >= fresh.index.unwrap());
    let current = describe(&api, &[("berth-consistency", "linearizable")]).await;
    assert!(!current.is_stale && current.index.unwrap() >= known.index.unwrap());

    api.session_in_state(&id, "READY").await;
    let path = format!("/sessionConnectionData/{id}/ann");
    let connection = call(&api, Method::GET, &path, &[], &json!({})).await;
    assert_eq!((connection.status, connection.is_stale), (StatusCode::OK, false));
    let pictures = json!([{ "SessionId": id }]);
    let pictures = call(&api, Method::POST, "/getSessionScreenshots", &[], &pictures).await;
    assert!(pictures.index.unwrap() >= connection.index.unwrap(), "{}", pictures.body);

    // A replica that begins anew knows what it acknowledged.
    broker.restart(Signal::KILL).await;
    let again = describe(&api, &[("berth-min-index", &pictures.index.unwrap().to_string())]).await;
    assert_eq!((again.status, ids(&again).contains(&&*id)), (StatusCode::OK, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shown_is_refused_with_a_reason() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let ahead = describe(&api, &[("berth-min-index", "1000000")]).await;
    assert_eq!((ahead.status, ahead.retry_after.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    assert_eq!(ahead.body["error"], "this replica has not yet what Berth-Min-Index asks for; try again in 1 s");
    for headers in [("berth-min-index", "soon"), ("berth-consistency", "strong")] {
        for (method, path) in [(Method::POST, "/describeServers"), (Method::GET, "/v1/queue")] {
            let refused = call(&api, method, path, &[headers], &json!({})).await;
            assert_eq!((refused.status, refused.index), (StatusCode::BAD_REQUEST, None), "{}", refused.body);
        }
    }
    let health = call(&api, Method::GET, "/health", &[], &json!({})).await;
    assert_eq!((health.status, health.index), (StatusCode::OK, None), "it says nothing of the fleet");
}
