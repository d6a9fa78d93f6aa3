//! Access tokens of another authorization server, a real one: `oidc-provider`
//! on loopback. Needs Node.js and npm; the server is installed from npm once.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

use common::api::{Api, http_client};
use common::broker::Broker;
use common::process::Process;
use common::{DEADLINE, free_port, until};

const PACKAGE: &str = include_str!("oidc/package.json");
const LOCK: &str = include_str!("oidc/package-lock.json");
const SERVER: &str = include_str!("oidc/server.mjs");

/// Least time between two fetches of keys, as the broker has it.
const FETCH_INTERVAL: Duration = Duration::from_secs(20);

/// A folder with the server and what it needs, kept between runs until one of
/// its files changes.
fn installed() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (PACKAGE, LOCK, SERVER).hash(&mut hasher);
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = parent.join(format!("oidc-{:016x}", hasher.finish()));
    let complete = folder.join("complete");
    // Another test may be about to make the same.
    let lock = File::create(parent.join("oidc.lock")).unwrap();
    lock.lock().unwrap();
    if !complete.exists() {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in [("package.json", PACKAGE), ("package-lock.json", LOCK), ("server.mjs", SERVER)] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let mut install = Command::new("npm");
        install.args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder);
        let output = install.output().expect("npm is missing: install the Debian packages nodejs and npm");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "npm cannot install oidc-provider; is its registry within reach?\n{said}");
        std::fs::write(&complete, "").unwrap();
    }
    folder
}

/// An authorization server with keys of its own, whose ids begin with `kid`.
struct Provider {
    process: Process,
    port: u16,
    client: reqwest::Client,
}

impl Provider {
    async fn start(kid: &str) -> Self {
        Self::start_at(free_port(), kid).await
    }

    async fn start_at(port: u16, kid: &str) -> Self {
        let folder = tokio::task::spawn_blocking(installed).await.unwrap();
        let mut command = Command::new("node");
        command.arg(folder.join("server.mjs")).args([&port.to_string(), kid]);
        let mut process = Process::start(command);
        process.stdout_line("serves", |line| (line == "serves").then_some(())).await;
        // The first one in the process counts; they are all the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        Self { process, port, client }
    }

    /// In its place another one, with other keys.
    async fn replaced(mut self, kid: &str) -> Self {
        self.process.stop(Signal::KILL).await;
        Self::start_at(self.port, kid).await
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn keys_url(&self) -> String {
        format!("{}/.well-known/jwks.json", self.url())
    }

    /// A new access token that is signed with an algorithm.
    async fn token(&self, algorithm: &str) -> String {
        let resource = resource(algorithm);
        let form = format!("grant_type=client_credentials&scope=desktops&resource={resource}");
        let request = self.client.post(format!("{}/token", self.url())).body(form);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer = request.basic_auth("portal", Some("the-secret-of-the-portal")).send().await.unwrap();
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// How often it was asked for its keys.
    async fn fetches(&self) -> u64 {
        let answer = self.client.get(format!("{}/fetches", self.url())).send().await.unwrap();
        answer.text().await.unwrap().parse().unwrap()
    }
}

fn resource(algorithm: &str) -> String {
    format!("https://desks.example/{algorithm}")
}

/// Status and error of a call with a token.
async fn call(broker: &Broker, token: &str) -> (StatusCode, Value) {
    let client = http_client(&broker.ca_path()).build().unwrap();
    let api = Api { client, url: broker.url(), token: token.to_owned() };
    let (status, answer) = api.send(Method::POST, "/describeSessions", &json!({})).await;
    (status, answer["error"].clone())
}

async fn is_good(broker: &Broker, token: &str) -> bool {
    let (status, error) = call(broker, token).await;
    match status {
        StatusCode::OK => true,
        StatusCode::UNAUTHORIZED => {
            assert_eq!(error, "the access token is not valid");
            false
        }
        _ => panic!("{status}: {error}"),
    }
}

async fn register(broker: &Broker, provider: &Provider, demands: &[&str]) {
    let url = provider.keys_url();
    let arguments = [&["register-auth-server", "--url", &url, "--replace"], demands].concat();
    assert_eq!(broker.operate(&arguments).await.unwrap().trim(), "Jwk url registered.");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_server_count_while_it_is_registered() {
    let (provider, broker) = tokio::join!(Provider::start("one"), Broker::start());
    let token = provider.token("ES256").await;
    assert!(!is_good(&broker, &token).await, "nobody registered its server");
    register(&broker, &provider, &[]).await;
    assert!(is_good(&broker, &token).await, "the first call after that");
    for algorithm in ["ES256", "EdDSA", "RS256"] {
        let token = provider.token(algorithm).await;
        assert!(is_good(&broker, &token).await, "{algorithm}");
        assert!(is_good(&broker, &token).await, "{algorithm} again");
    }
    assert!(is_good(&broker, &broker.api().await.token).await, "the broker's own go on being good");

    // A server that nobody registered calls its keys the same.
    let stranger = Provider::start("one").await;
    for algorithm in ["ES256", "EdDSA", "RS256"] {
        assert!(!is_good(&broker, &stranger.token(algorithm).await).await, "{algorithm} by another key");
    }
    assert_eq!(stranger.fetches().await, 0);

    broker.operate(&["unregister-auth-server", "--url", &provider.keys_url()]).await.unwrap();
    assert!(!is_good(&broker, &token).await, "at once, though it was found good before");
    assert!(!is_good(&broker, &provider.token("ES256").await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_demands_must_be_in_the_token() {
    let (provider, broker) = tokio::join!(Provider::start("one"), Broker::start());
    let (es256, rs256) = (provider.token("ES256").await, provider.token("RS256").await);
    let (issuer, audience) = (provider.url(), resource("ES256"));
    // Demands, and whether the first and the second token fit them.
    let cases: [(&[&str], bool, bool); 10] = [
        (&[], true, true),
        (&["--issuer", &issuer], true, true),
        (&["--issuer", "https://auth.example"], false, false),
        (&["--audience", &audience], true, false),
        (&["--scope", "desktops"], true, true),
        (&["--scope", "others"], false, false),
        (&["--token-type", "at+jwt"], true, true),
        (&["--token-type", "JWT"], false, false),
        (&["--algorithms", "RS256,PS256"], false, true),
        (&["--issuer", &issuer, "--audience", &audience, "--scope", "desktops", "--algorithms", "ES256"], true, false),
    ];
    for (demands, is_first_good, is_second_good) in cases {
        register(&broker, &provider, demands).await;
        let found = (is_good(&broker, &es256).await, is_good(&broker, &rs256).await);
        assert_eq!(found, (is_first_good, is_second_good), "{demands:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_are_fetched_and_known_ones_outlive_their_server() {
    let (provider, mut broker) = tokio::join!(Provider::start("one"), Broker::start_to_be_restarted());
    register(&broker, &provider, &[]).await;
    let old = provider.token("ES256").await;
    assert!(is_good(&broker, &old).await);

    let mut provider = provider.replaced("two").await;
    let token = provider.token("ES256").await;
    until("a token with another key is taken", || async { is_good(&broker, &token).await.then_some(()) }).await;
    assert_eq!(provider.fetches().await, 1);
    assert!(!is_good(&broker, &old).await, "its key is not among those of the server any more");

    let unused = provider.token("RS256").await;
    provider.process.stop(Signal::KILL).await;
    for token in [&token, &unused] {
        assert!(is_good(&broker, token).await, "while the server is away");
    }
    broker.restart(Signal::KILL).await;
    for token in [&token, &unused] {
        assert!(is_good(&broker, token).await, "after a start while the server is away");
    }
    assert!(!is_good(&broker, &old).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_tokens_with_unknown_keys_makes_few_fetches() {
    let (provider, broker) = tokio::join!(Provider::start("one"), Broker::start());
    let began = Instant::now();
    register(&broker, &provider, &[]).await;
    let token = provider.token("ES256").await;
    assert!(is_good(&broker, &token).await);
    let client = http_client(&broker.ca_path()).build().unwrap();
    let rest = token.split_once('.').unwrap().1;
    let floods = (0..8).map(|flood| {
        let api = Api { client: client.clone(), url: broker.url(), token: String::new() };
        let (rest, good) = (rest.to_owned(), token.clone());
        tokio::spawn(async move {
            for number in 0..50 {
                let header = json!({ "alg": "ES256", "typ": "at+jwt", "kid": format!("k{flood}-{number}") });
                let forged = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()));
                for (token, expected) in [(forged, StatusCode::UNAUTHORIZED), (good.clone(), StatusCode::OK)] {
                    let api = Api { token, ..api.clone() };
                    let (status, answer) = api.send(Method::POST, "/describeSessions", &json!({})).await;
                    assert_eq!(status, expected, "{answer}");
                }
            }
        })
    });
    for flood in floods.collect::<Vec<_>>() {
        flood.await.unwrap();
    }
    let allowed = 1 + began.elapsed().as_secs() / FETCH_INTERVAL.as_secs();
    let fetches = provider.fetches().await;
    assert!(fetches <= allowed, "{fetches} fetches, where {allowed} are allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_issues_no_tokens_takes_those_of_others_alone() {
    let (provider, mut broker) = tokio::join!(Provider::start("one"), Broker::start_to_be_restarted());
    let credentials = broker.register("portal").await;
    let own = Api::connect(&broker.url(), &broker.ca_path(), &credentials).await.token;
    register(&broker, &provider, &[]).await;
    let configuration = broker.folder.path().join("berth.toml");
    std::fs::write(&configuration, "[authorization]\nserver = false\n").unwrap();
    broker.restart(Signal::TERM).await;

    let client = http_client(&broker.ca_path()).build().unwrap();
    let request = client.post(format!("{}/oauth2/token?grant_type=client_credentials", broker.url()));
    let answer = request.basic_auth(&credentials.id, Some(&credentials.secret)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let told: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(told, json!({ "error": "this broker issues no access tokens; ask the authorization server" }));
    assert!(!is_good(&broker, &own).await);
    assert!(is_good(&broker, &provider.token("ES256").await).await);

    std::fs::write(&configuration, "[authorization]\nenabled = false\n").unwrap();
    broker.restart(Signal::TERM).await;
    let answer = client.post(format!("{}/describeSessions", broker.url())).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "nobody is asked for a token");
}
