//! No secret shows in clear anywhere but where it must: a run with known
//! secrets and tokens, and then a look through everything that was written,
//! logged, answered and backed up.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use common::agent::Agent;
use common::api::{Api, Credentials, http_client};
use common::broker::Broker;
use reqwest::{Method, StatusCode, header};
use rustix::process::Signal;
use serde_json::json;

/// Files that hold secrets because they are for them, by their place in the
/// data folder. All are for their owner alone.
const FOR_SECRETS: [&str; 2] = ["cluster.key", "tls/ca.key"];

/// What must not show, by what it is called here.
#[derive(Default)]
struct Canaries(BTreeMap<String, Vec<u8>>);

impl Canaries {
    fn add(&mut self, name: &str, secret: &str) {
        self.add_bytes(name, secret.trim().as_bytes());
    }

    /// In the forms that programs write such things in.
    fn add_bytes(&mut self, name: &str, secret: &[u8]) {
        assert!(secret.len() >= 16, "{name} is too short to be told from chance");
        let hex = secret.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        let list = secret.iter().map(|byte| format!("{byte}, ")).collect::<Vec<_>>().concat();
        let forms = [
            ("as it is", secret.to_vec()),
            ("in base64", STANDARD.encode(secret).into_bytes()),
            ("in base64 without padding", STANDARD_NO_PAD.encode(secret).into_bytes()),
            ("in base64 for URLs", URL_SAFE_NO_PAD.encode(secret).into_bytes()),
            ("in hexadecimal digits", hex.into_bytes()),
            ("as a list of bytes", list.into_bytes()),
        ];
        for (form, bytes) in forms {
            self.0.insert(format!("{name}, {form}"), bytes);
        }
    }

    /// The part of a token that makes it one.
    fn add_token(&mut self, name: &str, token: &str) {
        self.add(name, token);
        self.add(&format!("the signature of {name}"), token.rsplit('.').next().unwrap());
    }

    fn found_in(&self, place: &str, bytes: &[u8]) -> Vec<String> {
        let holds = |canary: &[u8]| memchr::memmem::find(bytes, canary).is_some();
        self.0.iter().filter(|(_, canary)| holds(canary)).map(|(name, _)| format!("{place}: {name}")).collect()
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_anywhere() {
    // Everything that can be logged is.
    let broker = Broker::start_logging("trace").await;
    let mut canaries = Canaries::default();
    let mut answers = Vec::new();
    let credentials = broker.register("portal").await;
    canaries.add("a client's secret", &credentials.secret);
    let basic = STANDARD.encode(format!("{}:{}", credentials.id, credentials.secret));
    canaries.add("a client's authorization", &basic);
    let rotated = broker.clients_command(&["rotate", "--client-id", &credentials.id]).await.unwrap();
    let rotated = rotated.lines().find_map(|line| line.strip_prefix("client-password: ")).unwrap();
    canaries.add("a rotated secret", rotated);
    let statement = broker.operate(&["generate-software-statement"]).await.unwrap();
    let statement = statement.trim().strip_prefix("software-statement: ").unwrap();
    canaries.add("a software statement", statement);
    for file in FOR_SECRETS {
        let secret = std::fs::read_to_string(broker.data_folder().join(file)).unwrap();
        canaries.add(file, &secret);
        if let Ok(bytes) = STANDARD.decode(secret.trim()).or_else(|_| URL_SAFE_NO_PAD.decode(secret.trim())) {
            canaries.add_bytes(&format!("{file}, decoded"), &bytes);
        }
        let body: String = secret.lines().filter(|line| !line.starts_with("-----")).collect();
        if let Ok(der) = STANDARD.decode(&body).as_ref().map(|der| &der[der.len().min(36)..]) {
            canaries.add_bytes(&format!("the key in {file}"), der);
        }
    }

    let api = Api::connect(&broker.url(), &broker.ca_path(), &credentials).await;
    canaries.add_token("an access token", &api.token);
    let mut agent = Agent::simulated(&broker, "");
    let server = agent.linked().await;
    let id = api.create_on(&server, "ann").await;
    api.session_in_state(&id, "READY").await;
    let (_, answer) = api.send(Method::GET, &format!("/sessionConnectionData/{id}/ann"), &json!({})).await;
    let connection = answer["ConnectionToken"].as_str().unwrap().to_owned();
    canaries.add_token("a connection token", &connection);

    // The same, told to those who must not repeat it.
    let client = http_client(&broker.ca_path()).build().unwrap();
    let url = |path: &str| format!("{}{path}", broker.url());
    let wrong = Credentials { id: "nobody".to_owned(), secret: credentials.secret.clone() };
    let token_url = url("/oauth2/token?grant_type=client_credentials");
    let requests = [
        client.post(&token_url).basic_auth(&wrong.id, Some(&wrong.secret)),
        client.post(format!("{token_url}&client_secret={}", credentials.secret)),
        client.post(&token_url).header(header::AUTHORIZATION, format!("Basic {basic}x")),
        client.post(url("/describeSessions")).header(header::AUTHORIZATION, format!("Bearer {}x", api.token)),
        client.post(url("/describeSessions")).header(header::AUTHORIZATION, format!("Token {}", api.token)),
        client.get(url(&format!("/v1/events?access_token={}", api.token))).bearer_auth(&api.token),
        client.post(url("/createSessions")).bearer_auth(&api.token).body(format!("[{{\"{connection}\": 1}}")),
        client.get(url(&format!("/nowhere/{connection}"))).bearer_auth(&api.token),
        client
            .post(format!("https://127.0.0.1:{}/agent/validate-authentication-token", broker.agents.port()))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(format!("sessionId=another&authenticationToken={connection}&clientAddress=1")),
        client.post(format!("https://127.0.0.1:{}/agent/enrol", broker.agents.port())).body(format!("\"{statement}\"")),
        client.post(format!("https://127.0.0.1:{}/agent/enrol", broker.agents.port())).body(format!(
            "{{\"software_statement\":\"{statement}\",\"server_id\":\"s\",\"certificate_request\":\"\"}}"
        )),
    ];
    for request in requests {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status(), format!("{:?}", answer.headers()));
        answers.push((format!("the answer {status}"), format!("{headers}{}", answer.text().await.unwrap())));
    }
    let (status, events) = api.send(Method::GET, "/v1/events", &json!({})).await;
    assert_eq!(status, StatusCode::OK);
    answers.push(("the events".to_owned(), events.to_string()));
    for command in
        [&["clients", "list", "--json"][..], &["audit", "export"], &["agents", "list"], &["cluster", "status"]]
    {
        answers.push((command.join(" "), broker.operate(command).await.unwrap()));
    }
    let backup = broker.folder.path().join("backup.berth");
    broker.operate(&["backup", "--output", backup.to_str().unwrap()]).await.unwrap();

    let mut broker = broker;
    let log = broker.process.stderr();
    assert!(log.contains("TRACE"), "the log is as loud as it can be");
    broker.process.stop(Signal::TERM).await;
    let mut found = Vec::new();
    for (place, text) in &answers {
        found.extend(canaries.found_in(place, text.as_bytes()));
    }
    found.extend(canaries.found_in("the broker's log", broker.process.stderr().as_bytes()));
    found.extend(canaries.found_in("the agent's log", agent.process.stderr().as_bytes()));
    found.extend(canaries.found_in("the backup", &std::fs::read(&backup).unwrap()));
    let data_folder = broker.data_folder();
    let mut paths = Vec::new();
    files(&data_folder, &mut paths);
    let is_for_secrets = |path: &PathBuf| FOR_SECRETS.iter().any(|file| *path == data_folder.join(file));
    assert!(paths.len() > 8, "{paths:?}");
    for path in paths.iter().filter(|path| !is_for_secrets(path)) {
        found.extend(canaries.found_in(&path.display().to_string(), &std::fs::read(path).unwrap()));
    }
    assert!(found.is_empty(), "{found:#?}");

    // The look itself finds what is there.
    let planted = data_folder.join("planted");
    std::fs::write(&planted, format!("x{}x", URL_SAFE_NO_PAD.encode(&credentials.secret))).unwrap();
    let seen = canaries.found_in("planted", &std::fs::read(&planted).unwrap());
    assert!(seen.iter().any(|name| name.starts_with("planted: a client's secret")), "{seen:?}");
    let secret = std::fs::read(data_folder.join("cluster.key")).unwrap();
    assert!(!canaries.found_in("cluster.key", &secret).is_empty());
}
