//! A client of the API.

use std::path::Path;

use reqwest::{Certificate, Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::{DEADLINE, until};

#[derive(Debug, Clone)]
pub struct Credentials {
    pub id: String,
    pub secret: String,
}

#[derive(Clone)]
pub struct Api {
    pub client: Client,
    pub url: String,
    pub token: String,
}

/// An HTTP client that trusts one authority alone.
pub fn http_client(ca_path: &Path) -> reqwest::ClientBuilder {
    // The first one in the process counts; they are all the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = Certificate::from_pem(&std::fs::read(ca_path).unwrap()).unwrap();
    Client::builder().tls_certs_only([authority]).timeout(DEADLINE).no_proxy()
}

impl Api {
    pub async fn connect(url: &str, ca_path: &Path, credentials: &Credentials) -> Self {
        let client = http_client(ca_path).build().unwrap();
        let answer = client
            .post(format!("{url}/oauth2/token?grant_type=client_credentials"))
            .basic_auth(&credentials.id, Some(&credentials.secret))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let answer: Value = answer.json().await.unwrap();
        let token = answer["access_token"].as_str().unwrap().to_owned();
        Self { client, url: url.to_owned(), token }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    /// Status and body of an answer.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        let answer = self.request(method, path).json(body).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}")))
    }

    /// POSTs to an operation that must succeed.
    pub async fn call(&self, operation: &str, body: Value) -> Value {
        let (status, answer) = self.send(Method::POST, &format!("/{operation}"), &body).await;
        assert_eq!(status, StatusCode::OK, "{operation}: {answer}");
        answer
    }

    /// Creates one session that is accepted; its id.
    pub async fn create(&self, item: Value) -> String {
        let answer = self.call("createSessions", json!([item])).await;
        let id = answer["SuccessfulList"][0]["Id"].as_str();
        id.unwrap_or_else(|| panic!("not accepted: {answer}")).to_owned()
    }

    /// Creates a virtual session for an owner on a server; its id.
    pub async fn create_on(&self, server: &str, owner: &str) -> String {
        let requirements = format!("server:Id = '{server}'");
        self.create(json!({ "Name": "test", "Owner": owner, "Type": "VIRTUAL", "Requirements": requirements })).await
    }

    pub async fn delete(&self, id: &str, owner: &str) -> Value {
        self.call("deleteSessions", json!([{ "SessionId": id, "Owner": owner }])).await
    }

    /// One picture that could not be taken; why.
    pub async fn screenshot_failure(&self, id: &str) -> String {
        let answer = self.call("getSessionScreenshots", json!([{ "SessionId": id }])).await;
        let reason = answer["UnsuccessfulList"][0]["FailureReason"].as_str();
        reason.unwrap_or_else(|| panic!("it was taken: {answer}")).to_owned()
    }

    pub async fn session(&self, id: &str) -> Option<Value> {
        let mut answer = self.call("describeSessions", json!({ "SessionIds": [id] })).await;
        let sessions = answer["Sessions"].as_array_mut().unwrap();
        assert!(sessions.len() <= 1, "{sessions:?}");
        sessions.pop()
    }

    pub async fn server(&self, id: &str) -> Option<Value> {
        let mut answer = self.call("describeServers", json!({ "ServerIds": [id] })).await;
        answer["Servers"].as_array_mut().unwrap().pop()
    }

    /// Waits until a session is as wanted.
    pub async fn session_when(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let wanted = &wanted;
        until(&format!("session {id}: {what}"), || async move { self.session(id).await.filter(wanted) }).await
    }

    pub async fn session_in_state(&self, id: &str, state: &str) -> Value {
        self.session_when(id, state, |session| session["State"] == state).await
    }

    /// Waits until a server is as wanted.
    pub async fn server_when(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let wanted = &wanted;
        until(&format!("server {id}: {what}"), || async move { self.server(id).await.filter(wanted) }).await
    }

    pub async fn server_available(&self, id: &str) -> Value {
        self.server_when(id, "AVAILABLE", |server| server["Availability"] == "AVAILABLE").await
    }

    pub async fn server_unreachable(&self, id: &str) -> Value {
        let unreachable = |server: &Value| {
            let reason = &server["UnavailabilityReason"];
            reason == "UNKNOWN" || reason == "UNREACHABLE_AGENT"
        };
        let server = self.server_when(id, "out of reach", unreachable).await;
        assert_eq!(server["Availability"], "UNAVAILABLE");
        server
    }
}
