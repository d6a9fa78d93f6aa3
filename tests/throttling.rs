//! Callers who ask for too much, over the network.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicU32, Ordering};

use common::api::{Api, http_client};
use common::broker::Broker;
use common::until;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde_json::{Value, json};

/// Far more than the limit lets through.
const MANY: usize = 1000;
const CONFIGURATION: &str =
    "[limits]\nrequests_per_second = 1\nforwarded_for = true\ntrusted_proxies = ['127.0.0.2', '10.0.0.0/8']\n";

/// A client that calls from an address of this host.
fn calling_from(broker: &Broker, address: &str) -> Client {
    let address: std::net::IpAddr = address.parse().unwrap();
    http_client(&broker.ca_path()).local_address(address).build().unwrap()
}

/// The first refusal of many requests.
async fn refusal(request: impl Fn() -> RequestBuilder) -> Response {
    for _ in 0..MANY {
        let answer = request().send().await.unwrap();
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            return answer;
        }
    }
    panic!("{MANY} requests passed");
}

/// An address that nobody had before, as a proxy tells it.
fn somebody() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0xc633_6400); // 198.51.100.0
    std::net::Ipv4Addr::from_bits(NEXT.fetch_add(1, Ordering::Relaxed)).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_asks_too_often_waits_and_others_go_on() {
    let broker = Broker::start_with(CONFIGURATION).await;
    let [one, other, proxy] = ["127.0.0.1", "127.0.0.3", "127.0.0.2"].map(|address| calling_from(&broker, address));
    let ask = |client: &Client| client.get(format!("{}/v1/sessions", broker.url()));

    // What it says of itself does not help: it is no proxy that is known.
    let answer = refusal(|| ask(&one).header("x-forwarded-for", somebody())).await;
    assert_eq!(answer.headers()[header::RETRY_AFTER], "1");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body, json!({ "error": "too many requests of this address; 1 per second are allowed" }));
    assert_eq!(ask(&other).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    for _ in 0..30 {
        let health = one.get(format!("{}/health", broker.url())).send().await.unwrap();
        assert_eq!(health.status(), StatusCode::OK);
    }
    until("the address may ask again", || async {
        (ask(&one).send().await.unwrap().status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;

    for _ in 0..30 {
        let answer = ask(&proxy).header("x-forwarded-for", format!("{}, 10.1.1.1", somebody())).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "each of somebody else");
    }
    let same = || ask(&proxy).header("x-forwarded-for", format!("{}, 192.0.2.77", somebody()));
    refusal(same).await;
    until("the audit tells who was refused", || async {
        let records = broker.operate(&["audit", "export"]).await.unwrap();
        let of = |address: &str| {
            records
                .lines()
                .any(|line| line.contains(address) && line.contains("refused: too many requests of this address"))
        };
        (of("192.0.2.77") && of("127.0.0.1")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_too_often_waits_and_others_go_on() {
    let broker = Broker::start_with(CONFIGURATION).await;
    let credentials = [broker.register("one").await, broker.register("other").await];
    let [one, other] = [
        Api::connect(&broker.url(), &broker.ca_path(), &credentials[0]).await,
        Api::connect(&broker.url(), &broker.ca_path(), &credentials[1]).await,
    ]
    .map(|api| Api { client: calling_from(&broker, "127.0.0.2"), ..api });
    let ask = |api: &Api| api.request(Method::GET, "/v1/sessions").header("x-forwarded-for", somebody());

    let answer = refusal(|| ask(&one)).await;
    assert_eq!(answer.headers()[header::RETRY_AFTER], "1");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body, json!({ "error": "too many requests of this client; 1 per second are allowed" }));
    assert_eq!(ask(&other).send().await.unwrap().status(), StatusCode::OK);
    until("the client may ask again", || async {
        (ask(&one).send().await.unwrap().status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_long_is_refused_whatever_version_of_http_brings_it() {
    let broker = Broker::start().await;
    let new = http_client(&broker.ca_path()).build().unwrap();
    let old = http_client(&broker.ca_path()).http1_only().build().unwrap();
    for client in [&old, &new] {
        let health = || client.get(format!("{}/health", broker.url()));
        let answer = health().header("x-long", "x".repeat(100 * 1024)).send().await;
        // Otherwise the connection was closed.
        if let Ok(answer) = answer {
            assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        assert_eq!(health().send().await.unwrap().status(), StatusCode::OK);
    }
}
