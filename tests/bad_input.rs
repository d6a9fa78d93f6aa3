//! What bad input gets from a real broker, over TLS.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::DEADLINE;
use common::api::{Api, http_client};
use common::broker::Broker;
use common::peer::{Peer, reported};
use reqwest::{Method, StatusCode, Version, header};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const OPERATIONS: [(Method, &str); 9] = [
    (Method::POST, "/describeSessions"),
    (Method::POST, "/describeServers"),
    (Method::POST, "/createSessions"),
    (Method::POST, "/deleteSessions"),
    (Method::PUT, "/sessionPermissions"),
    (Method::GET, "/sessionConnectionData/aSession/aOwner"),
    (Method::POST, "/getSessionScreenshots"),
    (Method::POST, "/openServers"),
    (Method::POST, "/closeServers"),
];

async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, header::HeaderMap, String) {
    let answer = request.send().await.unwrap();
    (answer.status(), answer.headers().clone(), answer.text().await.unwrap())
}

/// The `error` of a body that holds nothing else.
fn error_of(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("no JSON ({error}): {body}"));
    let members = body.as_object().unwrap();
    assert_eq!(members.len(), 1, "{body}");
    members["error"].as_str().unwrap().to_owned()
}

/// A TLS connection to the client port, to speak HTTP/1.1 by hand.
async fn connect(broker: &Broker) -> TlsStream<TcpStream> {
    let connector = TlsConnector::from(Arc::new(broker.tls(&[b"http/1.1"])));
    let stream = TcpStream::connect(broker.clients).await.unwrap();
    connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap()
}

/// All that comes until the broker closes or `end` was read.
async fn read_until(stream: &mut TlsStream<TcpStream>, end: &str) -> String {
    let mut text = String::new();
    let read = timeout(DEADLINE, async {
        let mut bytes = [0; 4096];
        while !text.contains(end) {
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(count) => text.push_str(&String::from_utf8_lossy(&bytes[..count])),
            }
        }
    });
    read.await.expect("no answer");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_valid_token_is_turned_away_from_every_operation() {
    let broker = Broker::start().await;
    let foreign = Broker::start().await;
    let api = broker.api().await;
    let foreign_token = foreign.api().await.token;
    let half = api.token[..api.token.len() - 4].to_owned();
    for (method, path) in OPERATIONS {
        let request = |method: &Method| api.client.request(method.clone(), format!("{}{path}", api.url)).body("[]");
        let (status, headers, body) = answer(request(&method)).await;
        assert_eq!((status, &*body), (StatusCode::UNAUTHORIZED, r#"{"error":"No authorization header"}"#), "{path}");
        assert_eq!(headers[header::WWW_AUTHENTICATE], "Bearer");
        for token in ["nonsense", "a.b.c", &*foreign_token, &*half] {
            let (status, headers, body) = answer(request(&method).bearer_auth(token)).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}: {body}");
            assert_eq!(headers[header::WWW_AUTHENTICATE], r#"Bearer error="invalid_token""#);
            assert!(!error_of(&body).is_empty());
        }
    }
    // What needs no token.
    for path in ["/health", "/dcv-session-manager-api.yaml"] {
        let (status, _, _) = answer(api.client.get(format!("{}{path}", api.url))).await;
        assert_eq!(status, StatusCode::OK, "{path}");
    }
    let health = format!("https://127.0.0.1:{}/health", broker.agents.port());
    assert_eq!(answer(api.client.get(health)).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_says_how_long_it_lives_and_is_kept_by_no_cache() {
    let broker = Broker::start_with("tokens.access_seconds = 60").await;
    let credentials = broker.register("short").await;
    let request = http_client(&broker.ca_path()).build().unwrap();
    let (status, headers, body) = answer(
        request
            .post(format!("{}/oauth2/token?grant_type=client_credentials", broker.url()))
            .basic_auth(&credentials.id, Some(&credentials.secret)),
    )
    .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers[header::CACHE_CONTROL], "no-store");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["expires_in"], &body["token_type"]), (&json!(60), &json!("Bearer")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_end_point_answers_in_the_words_of_its_standard() {
    let broker = Broker::start().await;
    let credentials = broker.register("client").await;
    let client = http_client(&broker.ca_path()).build().unwrap();
    let url = format!("{}/oauth2/token", broker.url());
    let granted = format!("{url}?grant_type=client_credentials");
    let id = &credentials.id;
    let secret = &credentials.secret;

    let no_client = uuid::Uuid::nil().to_string();
    for (id, secret) in [(id, "wrong"), (&no_client, &**secret), (id, ""), (&"no uuid".to_owned(), "x")] {
        let (status, headers, body) = answer(client.post(&granted).basic_auth(id, Some(secret))).await;
        assert_eq!((status, &*body), (StatusCode::UNAUTHORIZED, r#"{"error":"invalid_client"}"#), "{id}");
        assert!(headers[header::WWW_AUTHENTICATE].to_str().unwrap().starts_with("Basic"));
    }
    let (status, _, body) = answer(client.post(&granted)).await;
    assert_eq!((status, &*body), (StatusCode::UNAUTHORIZED, r#"{"error":"invalid_client"}"#));

    let other = answer(client.post(format!("{url}?grant_type=password")).basic_auth(id, Some(secret))).await;
    assert_eq!((other.0, &*other.2), (StatusCode::BAD_REQUEST, r#"{"error":"unsupported_grant_type"}"#));
    let (status, _, body) = answer(client.post(&url).basic_auth(id, Some(secret))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["error"], "invalid_request");

    // Every form that clients use.
    let form = [(header::CONTENT_TYPE, "application/x-www-form-urlencoded")];
    let typed = |request: reqwest::RequestBuilder| request.header(form[0].0.clone(), form[0].1);
    let basic = |request: reqwest::RequestBuilder| request.basic_auth(id, Some(secret));
    let forms = [
        basic(client.post(&granted)),
        basic(typed(client.post(&granted))),
        basic(typed(client.post(&url)).body("grant_type=client_credentials&scope=dcv-session-manager%2Fall")),
        typed(client.post(&url)).body(format!("grant_type=client_credentials&client_id={id}&client_secret={secret}")),
    ];
    for request in forms {
        let (status, _, body) = answer(request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert!(serde_json::from_str::<Value>(&body).unwrap()["expires_in"].is_u64());
    }
    assert!(!broker.process.stderr().contains(secret.as_str()), "the secret is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_cannot_be_read_is_refused_by_what_is_wrong_with_it() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let items = |count: usize| Value::from(vec![json!({}); count]).to_string();
    let long = format!("[{}]", " ".repeat(1024 * 1024));
    // Operation, body, status, a word of the error.
    let cases = [
        ("createSessions", String::new(), 400, "empty"),
        ("createSessions", "[{\"Name\":".to_owned(), 400, "ends too early"),
        ("createSessions", "no JSON".to_owned(), 400, "no JSON"),
        ("createSessions", deep, 400, "no JSON"),
        ("createSessions", "{}".to_owned(), 400, "array"),
        ("createSessions", "[1]".to_owned(), 400, "[0]"),
        ("createSessions", json!([{ "Name": 7 }]).to_string(), 400, "[0].Name"),
        (
            "createSessions",
            json!([{}, { "MaxConcurrentClients": "many" }]).to_string(),
            400,
            "[1].MaxConcurrentClients",
        ),
        ("createSessions", items(1001), 400, "1000"),
        ("createSessions", long.clone(), 413, "1048576"),
        ("describeSessions", "[]".to_owned(), 400, "object"),
        ("describeSessions", json!({ "MaxResults": 0 }).to_string(), 400, "MaxResults"),
        ("describeSessions", json!({ "MaxResults": 1.5 }).to_string(), 400, "MaxResults"),
        ("describeSessions", json!({ "NextToken": "made up" }).to_string(), 400, "NextToken"),
        ("describeSessions", json!({ "SessionIds": "one" }).to_string(), 400, "SessionIds"),
        ("describeSessions", json!({ "SessionIds": vec!["x"; 1001] }).to_string(), 400, "SessionIds"),
        ("describeSessions", json!({ "Filters": [{ "Key": "color", "Value": "x" }] }).to_string(), 400, "color"),
        ("describeServers", json!({ "ServerIds": [1] }).to_string(), 400, "ServerIds"),
        ("deleteSessions", items(1001), 400, "1000"),
        ("deleteSessions", json!([{ "Force": "yes" }]).to_string(), 400, "[0].Force"),
        ("getSessionScreenshots", json!([{ "SessionId": [] }]).to_string(), 400, "[0].SessionId"),
        ("openServers", "\"server\"".to_owned(), 400, "array"),
        ("closeServers", long, 413, "1048576"),
    ];
    for (operation, body, status, word) in cases {
        let start: String = body.chars().take(50).collect();
        let request =
            api.request(Method::POST, &format!("/{operation}")).header(header::CONTENT_TYPE, "application/json");
        let (got, _, text) = answer(request.body(body)).await;
        assert_eq!(got, status, "{operation} {start}: {text}");
        assert!(error_of(&text).contains(word), "{operation} {start}: {text}");
    }
    let request = api.request(Method::POST, "/createSessions").header(header::CONTENT_TYPE, "text/plain").body("[]");
    assert_eq!(answer(request).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let (status, _, body) = answer(api.request(Method::GET, "/createSessions")).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{body}");
    let (status, _, body) = answer(api.request(Method::GET, "/nothing")).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
    // The broker is as well as before.
    api.call("describeSessions", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_item_does_not_stop_its_neighbours() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let _peer = Peer::join(&broker, "host", vec![reported("hosted", "ann")]).await;
    api.session_in_state("hosted", "READY").await;
    let good = json!({ "Name": "good", "Owner": "ann", "Type": "VIRTUAL", "Unknown": { "field": [1] } });
    let with = |key: &str, value: Value| {
        let mut item = good.clone();
        item[key] = value;
        item
    };
    let bad = [
        (with("Name", Value::Null), "Name"),
        (with("Owner", Value::Null), "Owner"),
        (with("Type", Value::Null), "Type"),
        (with("Type", json!("SPLENDID")), "Type"),
        (with("Owner", json!(" ")), "Owner"),
        (with("Owner", json!("two\nlines")), "Owner"),
        (with("Name", json!("x".repeat(257))), "Name"),
        (with("MaxConcurrentClients", json!(0)), "MaxConcurrentClients"),
        (with("InitFile", json!("../../etc/passwd")), "InitFile"),
        (with("AutorunFile", json!("/bin/sh")), "AutorunFile"),
        (with("PermissionsFile", json!("no base64!")), "PermissionsFile"),
        (with("Requirements", json!("server:Ip = 'x'")), "Property"),
        (with("Requirements", json!("tag:color = ")), "Requirements"),
        (with("Requirements", json!("tag:color = 'pink'")), "no dcv server found for placement"),
        (with("Requirements", json!("server:Id = 'another'")), "no dcv server found for placement"),
        (with("Type", json!("CONSOLE")), "no dcv server found for placement"),
    ];
    let mut items = vec![good.clone()];
    items.extend(bad.iter().map(|(item, _)| item.clone()));
    items.push(good.clone());
    let answer = api.call("createSessions", Value::from(items)).await;
    assert_eq!(answer["SuccessfulList"].as_array().unwrap().len(), 2, "{answer}");
    let refused = answer["UnsuccessfulList"].as_array().unwrap();
    assert_eq!(refused.len(), bad.len());
    for (refused, (item, word)) in refused.iter().zip(&bad) {
        let reason = refused["FailureReason"].as_str().unwrap();
        assert!(reason.contains(word), "{item}: {reason}");
    }

    let unknown = "The requested dcvSession does not exist";
    let no_session = json!([{ "SessionId": "gone", "Owner": "ann" }, { "SessionId": "hosted", "Owner": "bob" }, {}]);
    let answer = api.call("deleteSessions", no_session.clone()).await;
    assert_eq!(answer["SuccessfulList"], json!([]));
    assert_eq!(answer["UnsuccessfulList"][0]["FailureReason"], unknown);
    assert_eq!(answer["UnsuccessfulList"][1]["FailureReason"], "the session belongs to another owner");
    assert!(answer["UnsuccessfulList"][2]["FailureReason"].as_str().unwrap().contains("SessionId"));

    let (status, answer) = api
        .send(
            Method::PUT,
            "/sessionPermissions",
            &json!([{ "SessionId": "gone", "Owner": "ann", "PermissionsFile": "eA==" }]),
        )
        .await;
    assert_eq!((status, &answer["UnsuccessfulList"][0]["FailureReason"]), (StatusCode::OK, &json!(unknown)));
    assert_eq!(api.screenshot_failure("gone").await, "Dcv session not found.");
    for operation in ["openServers", "closeServers"] {
        let answer = api.call(operation, json!([{ "ServerId": "gone" }, { "ServerId": "host" }])).await;
        let refused = &answer["UnsuccessfulList"][0];
        assert_eq!(
            (&refused["FailureReason"], &refused["FailureCode"]),
            (&json!("Dcv server not found."), &json!("DCV_SERVER_NOT_FOUND"))
        );
    }
    let answer = api.call("closeServers", json!([{ "ServerId": "host" }])).await;
    assert_eq!(answer["UnsuccessfulList"][0]["FailureCode"], "DCV_SERVER_HAS_SESSIONS", "{answer}");
    for (path, status) in [
        ("/sessionConnectionData/gone/ann", StatusCode::NOT_FOUND),
        ("/sessionConnectionData/%FF/ann", StatusCode::BAD_REQUEST),
    ] {
        let (got, body) = api.send(Method::GET, path, &Value::Null).await;
        assert_eq!(got, status, "{path}: {body}");
    }
    let waiting = api.create(json!({ "Name": "w", "Owner": "ann", "Type": "VIRTUAL", "Requirements": "tag:a = '1'", "EnqueueRequest": true })).await;
    let (status, body) = api.send(Method::GET, &format!("/sessionConnectionData/{waiting}/ann"), &Value::Null).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body["error"].as_str().unwrap().contains("not in READY"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_versions_of_http_keep_their_connection_and_every_answer_its_id() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    for (version, builder) in [
        (Version::HTTP_2, http_client(&broker.ca_path())),
        (Version::HTTP_11, http_client(&broker.ca_path()).http1_only()),
    ] {
        let api = Api { client: builder.build().unwrap(), ..api.clone() };
        let answer = api.request(Method::POST, "/describeSessions").send().await.unwrap();
        assert_eq!((answer.version(), answer.status()), (version, StatusCode::OK));
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["RequestId"], id.as_str());
        let again =
            api.request(Method::POST, "/describeServers").header("x-request-id", "mine-1").send().await.unwrap();
        assert_eq!(again.headers()["x-request-id"], "mine-1");
        // One that could break a log or a header is not taken over.
        let odd = api.request(Method::POST, "/describeServers").header("x-request-id", "a b\"c").send().await.unwrap();
        assert_ne!(odd.headers()["x-request-id"], "a b\"c");
        let missing = api.request(Method::GET, "/nothing").send().await.unwrap();
        assert!(missing.headers().contains_key("x-request-id"));
    }

    // Many answers on one HTTP/2 connection at a time.
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let api = api.clone();
            tokio::spawn(async move { api.call("describeSessions", json!({})).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }

    // Two requests, sent before an answer, on one HTTP/1.1 connection.
    let mut stream = connect(&broker).await;
    let request = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(format!("{request}{request}").as_bytes()).await.unwrap();
    let mut text = read_until(&mut stream, "\r\n\r\n").await;
    while text.matches("HTTP/1.1 200 OK").count() < 2 {
        let more = read_until(&mut stream, "HTTP/1.1").await;
        assert!(!more.is_empty(), "closed after: {text}");
        text.push_str(&more);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_ends_its_own_connection_only() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    // No TLS at all.
    let mut plain = TcpStream::connect(broker.clients).await.unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    timeout(DEADLINE, plain.read_to_end(&mut bytes)).await.expect("left open").ok();
    assert!(!bytes.starts_with(b"HTTP/"), "it answered without TLS");

    let head = |extra: &str| format!("POST /describeSessions HTTP/1.1\r\nhost: localhost\r\n{extra}\r\n");
    let cases = [
        "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        head("content-length: -1\r\n"),
        head("content-length: 5\r\ncontent-length: 6\r\n"),
        head(&format!("x-long: {}\r\n", "x".repeat(100 * 1024))),
        head(&"x-many: 1\r\n".repeat(1000)),
        head("bad header\r\n"),
    ];
    for text in cases {
        let mut stream = connect(&broker).await;
        // It may be closed before all is written.
        let _ = stream.write_all(text.as_bytes()).await;
        let said = read_until(&mut stream, "\r\n\r\n").await;
        let start: String = text.chars().take(60).collect();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{start}: {said}");
    }
    api.call("describeSessions", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_half_way_costs_only_its_connection() {
    let mut broker = Broker::start().await;
    let api = broker.api().await;
    let head = format!(
        "POST /createSessions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n[{{",
        api.token
    );
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = connect(&broker).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    api.call("describeSessions", json!({})).await;
    drop(streams);
    api.call("createSessions", json!([{}])).await;

    // Requests under way do not hold up the end of the broker either.
    let mut stream = connect(&broker).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(broker.process.stop(Signal::TERM).await.success());
}
