//! Every route of the table against the real program, for those who have no
//! token, whatever else they have: nothing, an agent's certificate, a token of
//! a client that was unregistered, or one for something else. (What those with
//! a token may do is shown in `api_access.rs`.)
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use axum::http::StatusCode;
use berth::broker::api::routes;
use common::api::{Api, http_client};
use common::broker::Broker;
use common::peer::{Peer, enrolled};
use common::until;
use reqwest::{Client, Identity};
use tokio_tungstenite::tungstenite::Error;

struct Caller {
    who: &'static str,
    client: Client,
    token: Option<String>,
    expected: fn(scope: &str) -> StatusCode,
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_is_open_to_who_has_no_token_for_it() {
    let broker = Broker::start_with("limits.requests_per_second = 0").await;
    drop(enrolled(&broker, "desk").await);
    let folder = broker.folder.path().join("peers/desk");
    let file = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let agents = Identity::from_pem(format!("{}{}", file("agent.key"), file("agent.pem")).as_bytes()).unwrap();
    let plain = http_client(&broker.ca_path()).build().unwrap();
    let with_certificate = http_client(&broker.ca_path()).identity(agents).build().unwrap();

    let revoked = broker.register("revoked").await;
    let revoked_api = Api::connect(&broker.url(), &broker.ca_path(), &revoked).await;
    broker.clients_command(&["unregister", "--client-id", &revoked.id]).await.unwrap();
    // Everywhere within a second; here it is at once.
    until("the token is refused", async || {
        let (status, _) = revoked_api.send(reqwest::Method::POST, "/describeSessions", &serde_json::json!({})).await;
        (status == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    let printed = broker.clients_command(&["register", "--client-name", "reader", "--scopes", "read"]).await.unwrap();
    let value = |key: &str| printed.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
    let reader = common::api::Credentials { id: value("client-id:"), secret: value("client-password:") };
    let reader = Api::connect(&broker.url(), &broker.ca_path(), &reader).await.token;
    let usual = broker.api().await.token;

    let unauthorized = |_: &str| StatusCode::UNAUTHORIZED;
    let callers = [
        Caller { who: "nobody", client: plain.clone(), token: None, expected: unauthorized },
        Caller { who: "an agent", client: with_certificate, token: None, expected: unauthorized },
        Caller {
            who: "one unregistered",
            client: plain.clone(),
            token: Some(revoked_api.token),
            expected: unauthorized,
        },
        Caller {
            who: "a reader",
            client: plain.clone(),
            token: Some(reader),
            expected: |scope| match scope {
                "read" => StatusCode::OK,
                _ => StatusCode::FORBIDDEN,
            },
        },
        Caller {
            who: "a portal",
            client: plain,
            token: Some(usual.clone()),
            expected: |scope| match scope {
                "admin" => StatusCode::FORBIDDEN,
                _ => StatusCode::OK,
            },
        },
    ];
    for Caller { who, client, token, expected } in callers {
        for route in routes() {
            let path = route.path.replace("{sessionId}", "none").replace("{user}", "ann");
            let mut request = client.request(route.method.clone(), format!("{}{path}", broker.url()));
            if let Some(token) = &token {
                request = request.bearer_auth(token);
            }
            // Streams answer at once, and go on then.
            let status = request.timeout(Duration::from_mins(1)).send().await.unwrap().status();
            match expected(route.demand.scope.as_str()) {
                // It may come in, and is told what is wrong with what it asks.
                StatusCode::OK => assert!(
                    !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) && !status.is_server_error(),
                    "{who}: {} {path}: {status}",
                    route.method
                ),
                refused => assert_eq!(status, refused, "{who}: {} {path}", route.method),
            }
        }
    }
    // A token of a client opens no other door.
    match Peer::knock_with_token(&broker, &usual).await {
        Err(Error::Http(answer)) => assert_eq!(answer.status(), 401),
        other => panic!("{:?}", other.map(|_| "let in")),
    }
}
