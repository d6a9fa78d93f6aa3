//! What the API writes into the log of the process: enough to follow a
//! request, and never a secret.

#![allow(clippy::unwrap_used)]

mod api_common;

use std::io;
use std::sync::{Arc, Mutex};

use api_common::{CLIENT, SECRET, World, full_facts, host_session};
use axum::body::Body;
use axum::http::{Request, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tracing_subscriber::fmt::MakeWriter;

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_request_is_followed_by_its_span_and_no_secret_is_logged() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(lines.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);

    let world = World::new();
    world.connect("desk-7", full_facts(), vec![host_session("mine", "barbara")]);
    let api = world.api();
    let basic = BASE64_STANDARD.encode(format!("{CLIENT}:{SECRET}"));
    let token_request = Request::builder()
        .method("POST")
        .uri("/oauth2/token?grant_type=client_credentials")
        .header(header::AUTHORIZATION, format!("Basic {basic}"))
        .header("x-request-id", "token-request");
    api.send(token_request.body(Body::empty()).unwrap()).await;
    let connect = Request::builder()
        .uri("/sessionConnectionData/mine/anna")
        .header(header::AUTHORIZATION, format!("Bearer good:{CLIENT}"))
        .header("x-request-id", "connect-request");
    let answer = api.send(connect.body(Body::empty()).unwrap()).await;
    drop(guard);

    let connection_token = answer.json()["ConnectionToken"].as_str().unwrap().to_owned();
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let line = log.lines().find(|line| line.contains("connect-request")).unwrap();
    for part in ["method=GET", "route=\"/sessionConnectionData/{sessionId}/{user}\"", "client_id=portal", "status=200"]
    {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
    assert!(log.contains("token-request"));
    for secret in [SECRET, basic.as_str(), "good:portal", connection_token.as_str()] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}
