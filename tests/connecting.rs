//! A desktop server asks whether somebody may connect, as DCV servers do.
#![allow(clippy::unwrap_used)]

mod common;

use common::agent::Agent;
use common::api::{Api, http_client};
use common::broker::Broker;
use reqwest::{Method, StatusCode, header};
use serde_json::json;

struct Desk {
    client: reqwest::Client,
    url: String,
}

impl Desk {
    fn of(broker: &Broker) -> Self {
        let url = format!("https://127.0.0.1:{}/agent/validate-authentication-token", broker.agents.port());
        Self { client: http_client(&broker.ca_path()).build().unwrap(), url }
    }

    async fn ask(&self, session: &str, token: &str) -> String {
        let form = [("sessionId", session), ("authenticationToken", token), ("clientAddress", "192.0.2.7")];
        let encode = |text: &str| text.bytes().fold(String::new(), |text, byte| text + &format!("%{byte:02X}"));
        let body: Vec<_> = form.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        let request = self.client.post(&self.url).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let answer = request.body(body.join("&")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
        assert!(answer.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/xml"));
        answer.text().await.unwrap()
    }
}

const NO: &str = "<auth result=\"no\"/>";

fn yes(user: &str) -> String {
    format!("<auth result=\"yes\"><username>{user}</username></auth>")
}

async fn token(api: &Api, session: &str, user: &str) -> String {
    let (status, answer) = api.send(Method::GET, &format!("/sessionConnectionData/{session}/{user}"), &json!({})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer["ConnectionToken"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_its_session_for_its_user_as_long_as_both_may() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut agent = Agent::simulated(&broker, "");
    let server = agent.linked().await;
    let id = api.create_on(&server, "ann").await;
    let other = api.create_on(&server, "ann").await;
    for id in [&id, &other] {
        api.session_in_state(id, "READY").await;
    }
    let desk = Desk::of(&broker);
    let anns = token(&api, &id, "ann").await;
    assert_eq!(desk.ask(&id, &anns).await, yes("ann"));
    assert_eq!(desk.ask(&id, &anns).await, yes("ann"), "as often as one likes");
    assert_eq!(desk.ask(&other, &anns).await, NO, "another session");
    for nonsense in ["", "x", "a.b.c", &api.token, &format!("{anns}x"), &"A".repeat(9_000)] {
        assert_eq!(desk.ask(&id, nonsense).await, NO);
    }

    let bobs = token(&api, &id, "CORP%5Cbob").await;
    assert_eq!(desk.ask(&id, &bobs).await, NO, "the session is ann's alone");
    let permissions = "W3Blcm1pc3Npb25zXQpDT1JQXGJvYiBhbGxvdyBidWlsdGluCg=="; // [permissions] CORP\bob allow builtin
    let share = json!([{ "SessionId": id, "Owner": "ann", "PermissionsFile": permissions }]);
    let (status, answer) = api.send(Method::PUT, "/sessionPermissions", &share).await;
    assert_eq!((status, answer["UnsuccessfulList"].as_array().unwrap().len()), (StatusCode::OK, 0), "{answer}");
    assert_eq!(desk.ask(&id, &bobs).await, yes("CORP\\bob"));
    assert_eq!(desk.ask(&id, &anns).await, NO, "the file lets nobody else in");

    let others = token(&api, &other, "ann").await;
    api.delete(&other, "ann").await;
    api.session_in_state(&other, "DELETED").await;
    assert_eq!(desk.ask(&other, &others).await, NO, "the session has ended");

    broker.operate(&["keys", "renew", "--connection", "--keep-old-seconds", "0"]).await.unwrap();
    assert_eq!(desk.ask(&id, &bobs).await, NO, "its key is gone");
    let bobs = token(&api, &id, "CORP%5Cbob").await;
    assert_eq!(desk.ask(&id, &bobs).await, yes("CORP\\bob"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_question_is_refused_and_bounded() {
    let broker = Broker::start().await;
    let desk = Desk::of(&broker);
    let post = |body: Vec<u8>| {
        let request = desk.client.post(&desk.url).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        async move { request.body(body).send().await.unwrap() }
    };
    for body in [b"".to_vec(), b"\xff\xfe\x00".to_vec(), b"sessionId=a&sessionId=b".to_vec()] {
        let answer = post(body).await;
        assert_eq!((answer.status(), answer.text().await.unwrap().as_str()), (StatusCode::OK, NO));
    }
    assert_eq!(post(vec![b'a'; 40_000]).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let got = desk.client.get(&desk.url).send().await.unwrap();
    assert_eq!(got.status(), StatusCode::METHOD_NOT_ALLOWED);
}
