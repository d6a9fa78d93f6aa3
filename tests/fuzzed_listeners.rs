//! Every port gets random and half-right input for a bounded number of cases:
//! no panic, no memory that grows, and an answer to each with a reason that is
//! not the broker's fault. `BERTH_FUZZ_SEED` repeats a run, `BERTH_FUZZ_CASES`
//! makes it longer.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::net::SocketAddr;

use berth::broker::api::routes;
use berth::broker::cluster::authority::{Authorities, Claim, Tls};
use berth::broker::cluster::frame::{
    self, FRAME_BYTES_MAX, Frame, Frames, Hello, Kind, STRANGERS_FRAME_BYTES_MAX, Service, Speaker, Welcome,
};
use berth::broker::cluster::identity::Identity;
use berth::broker::cluster::message::Question;
use berth::broker::cluster::runs::Run;
use berth::domain::ReplicaId;
use berth::domain::ids::FolderId;
use berth::protocol::{FromAgent, enrolment};
use bytes::{Bytes, BytesMut};
use common::api::{Api, http_client};
use common::broker::Broker;
use common::free_port;
use common::peer::{Peer, hello, reported};
use futures_util::{SinkExt as _, StreamExt as _};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use reqwest::{Client, Method, StatusCode, header};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::codec::{Encoder as _, FramedRead};

/// Cases for each port when nobody says otherwise: some seconds each.
const CASES: u32 = 600;
/// What the broker may hold more after all cases than after the first of them.
const GROWTH_BYTES_MAX: u64 = 96 << 20;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Random choices that are told, so that they can be made again.
struct Dice(StdRng);

impl Dice {
    fn new() -> Self {
        let seed = number("BERTH_FUZZ_SEED", rand::random());
        eprintln!("BERTH_FUZZ_SEED={seed}");
        Self(StdRng::seed_from_u64(seed))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound)
    }

    fn bytes(&mut self, length_max: usize) -> Vec<u8> {
        let length = self.below(length_max + 1);
        (0..length).map(|_| self.0.random()).collect()
    }

    fn text(&mut self) -> String {
        const TEXTS: [&str; 16] = [
            "",
            " ",
            "a",
            "ann",
            "VIRTUAL",
            "\u{0}",
            "\n",
            "../..",
            "%home%",
            "ä🦀",
            "tag:a = 'b'",
            "((((((",
            "null",
            "9999999999999999999999",
            "-1",
            "W3Blcm1pc3Npb25zXQ==",
        ];
        match self.below(20) {
            0 => "x".repeat(self.below(70_000)),
            1 => String::from_utf8_lossy(&self.bytes(200)).into_owned(),
            _ => (*TEXTS.choose(&mut self.0).unwrap()).to_owned(),
        }
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth > 4 { 6 } else { 9 }) {
            0 => Value::Null,
            1 => Value::Bool(self.0.random()),
            2 => json!(self.0.random::<i64>()),
            3 => json!(self.0.random::<f64>() * 1e300),
            4 | 5 => Value::String(self.text()),
            6 => (0..self.below(5)).map(|_| self.value(depth + 1)).collect(),
            7 => {
                let mut nested = Value::Null;
                for _ in 0..self.below(60) {
                    nested = json!([nested]);
                }
                nested
            }
            _ => {
                let members = (0..self.below(5)).map(|_| (self.text(), self.value(depth + 1)));
                Value::Object(members.collect::<Map<_, _>>())
            }
        }
    }

    /// Something good with a part of it changed, somewhere.
    fn changed(&mut self, value: &Value) -> Value {
        match value {
            Value::Object(members) if !members.is_empty() && self.below(6) > 0 => {
                let mut members = members.clone();
                let name = members.keys().nth(self.below(members.len())).unwrap().clone();
                match self.below(5) {
                    0 => drop(members.remove(&name)),
                    1 => drop(members.insert(self.text(), self.value(0))),
                    _ => {
                        let changed = self.changed(&members[&name]);
                        members.insert(name, changed);
                    }
                }
                Value::Object(members)
            }
            Value::Array(items) if !items.is_empty() && self.below(6) > 0 => {
                let mut items = items.clone();
                let place = self.below(items.len());
                items[place] = self.changed(&items[place]);
                if self.below(8) == 0 {
                    items = vec![items[place].clone(); self.below(1_200)];
                }
                Value::Array(items)
            }
            _ => self.value(0),
        }
    }

    /// The bytes of a text, most of the time as they are.
    fn damaged(&mut self, text: String) -> Vec<u8> {
        let mut bytes = text.into_bytes();
        match self.below(8) {
            0 => bytes.truncate(self.below(bytes.len() + 1)),
            1 if !bytes.is_empty() => {
                for _ in 0..=self.below(4) {
                    let place = self.below(bytes.len());
                    bytes[place] = self.0.random();
                }
            }
            2 => bytes.extend(self.bytes(50)),
            3 => bytes = self.bytes(2_000),
            _ => {}
        }
        bytes
    }
}

fn memory(broker: &Broker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.process.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Configuration of a replica that is alone, with a port for others and this
/// secret.
fn alone(peers: u16, secret: &std::path::Path) -> String {
    format!(
        "[cluster]\nlisten = '127.0.0.1:{peers}'\nmembers = [{{ replica = 1, address = '127.0.0.1:{peers}' }}]\n\
         secret_file = '{}'\n",
        secret.display()
    )
}

/// The broker is as it was before.
async fn is_sound(broker: &Broker, api: &Api, before: u64) {
    let after = memory(broker);
    assert!(after < before + GROWTH_BYTES_MAX, "{before} bytes before, {after} after");
    let log = broker.process.stderr();
    let panic = log.lines().find(|line| line.contains("panicked"));
    assert!(panic.is_none(), "{panic:?}");
    let (status, _) = api.send(Method::POST, "/describeSessions", &json!({ "MaxResults": 1 })).await;
    assert_eq!(status, StatusCode::OK);
}

/// An answer that blames the caller, or none at all.
async fn is_answered(request: reqwest::RequestBuilder, what: &dyn Fn() -> String) {
    let Ok(answer) = request.send().await else { return };
    let status = answer.status();
    assert!(!status.is_server_error() || status == StatusCode::SERVICE_UNAVAILABLE, "{status} for {}", what());
    let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
    let Ok(body) = answer.text().await else { return };
    let is_json = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if status.is_client_error() && is_json {
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body} for {}", what()));
        assert!(body["error"].as_str().is_some_and(|text| !text.is_empty()), "{body} for {}", what());
    }
}

fn good_body(path: &str) -> Value {
    let session = json!({ "SessionId": "s", "Owner": "ann", "PermissionsFile": "YQ==", "Force": true, "MaxWidth": 10 });
    let create = json!({
        "Name": "n", "Owner": "ann", "Type": "VIRTUAL", "MaxConcurrentClients": 3, "InitFile": "a", "AutorunFile": "b",
        "AutorunFileArguments": ["c"], "Requirements": "tag:a = 'b' and server:Host.Memory.TotalBytes > 10",
        "StorageRoot": "/x", "EnqueueRequest": false, "DisableRetryOnFailure": true, "DcvGlEnabled": false,
        "PermissionsFile": "YQ==",
    });
    match path {
        "/createSessions" => json!([create]),
        "/v1/placement:explain" => create,
        "/describeSessions" | "/describeServers" => json!({
            "SessionIds": ["a"], "ServerIds": ["b"], "Filters": [{ "Key": "owner", "Value": "ann" }], "MaxResults": 3,
            "NextToken": "x",
        }),
        "/openServers" | "/closeServers" | "/v1/servers:drain" => {
            json!([{ "ServerId": "b", "Force": false, "WithinSeconds": 10 }])
        }
        _ => json!([session]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_and_the_token_form_take_anything() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut dice = Dice::new();
    let routes = routes();
    let mut before = 0;
    for case in 0..number("BERTH_FUZZ_CASES", CASES.into()) {
        let route = routes.choose(&mut dice.0).unwrap();
        let path = match (route.method == Method::GET, dice.below(3)) {
            (true, 0) => format!("{}?{}={}", route.path.replace(['{', '}'], ""), "limit", dice.below(9)),
            (true, _) => {
                let query = dice.bytes(60).iter().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat();
                format!("{}?{query}={query}&after={query}", route.path.replace(['{', '}'], ""))
            }
            _ => route.path.to_owned(),
        };
        let body = dice.changed(&good_body(route.path)).to_string();
        let body = dice.damaged(body);
        let mut request = api.request(route.method.clone(), &path);
        for name in
            ["Idempotency-Key", "Berth-Min-Index", "Berth-Consistency", "Berth-Placement", "X-Request-Id", "Accept"]
        {
            let value = dice.bytes(40);
            if dice.below(8) == 0 && header::HeaderValue::from_bytes(&value).is_ok() {
                request = request.header(name, value);
            }
        }
        // What waits for events has no end.
        if !path.starts_with("/v1/events") {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.clone());
        }
        is_answered(request, &|| format!("{} {path} {}", route.method, String::from_utf8_lossy(&body))).await;

        let form = format!("grant_type=client_credentials&client_id={}&client_secret={}", case, "x");
        let form = dice.damaged(form);
        let mut request = api.client.post(format!("{}/oauth2/token", api.url));
        if dice.below(2) == 0 {
            request = request.header(
                header::AUTHORIZATION,
                format!("Basic {}", dice.text().replace(|c: char| !c.is_ascii_graphic(), "")),
            );
        }
        is_answered(request.body(form.clone()), &|| format!("the form {}", String::from_utf8_lossy(&form))).await;
        let token: String = dice.bytes(60).iter().map(|byte| char::from(33 + byte % 90)).collect();
        let tokens = [token.clone(), format!("{}.{token}.{token}", api.token.split('.').next().unwrap())];
        for token in tokens {
            let request = api.client.post(format!("{}/describeSessions", api.url)).bearer_auth(&token);
            is_answered(request, &|| format!("the token {token}")).await;
        }
        if case == 50 {
            before = memory(&broker);
        }
    }
    is_sound(&broker, &api, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_port_takes_anything() {
    let broker = Broker::start().await;
    let api = broker.api().await;
    let mut dice = Dice::new();
    let good = [
        serde_json::to_value(FromAgent::Hello(hello("fuzzed", vec![reported("s", "ann")]))).unwrap(),
        json!({ "type": "report", "number": 1, "report": { "sessions": { "full": [] } } }),
        json!({ "type": "answer", "instruction": 1, "answer": "done" }),
        json!({ "type": "ping", "number": 1 }),
    ];
    let form_url = format!("https://127.0.0.1:{}/agent/validate-authentication-token", broker.agents.port());
    let enrol_url = format!("https://127.0.0.1:{}{}", broker.agents.port(), enrolment::PATH);
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let registration = json!({
        "software_statement": broker.statement(),
        "client_name": "host",
        "server_id": "enrolled",
        "certificate_request": request.pem().unwrap(),
    });
    let mut before = 0;
    for case in 0..number("BERTH_FUZZ_CASES", CASES.into()) / 4 {
        let mut peer = Peer::connect(&broker, "fuzzed").await;
        // Some begin well, and go wrong then.
        if dice.below(2) == 0 {
            peer.socket.send(Message::text(good[0].to_string())).await.unwrap();
        }
        for _ in 0..dice.below(6) {
            let message = &good[dice.below(good.len())];
            let message = dice.changed(message).to_string();
            let message = match dice.below(5) {
                0 => Message::binary(dice.bytes(300)),
                1 => Message::text(String::from_utf8_lossy(&dice.damaged(message)).into_owned()),
                _ => Message::text(message),
            };
            if peer.socket.send(message).await.is_err() {
                break;
            }
        }
        let _ = peer.socket.close(None).await;
        // Whatever it says, the connection comes to an end.
        let end = async { while let Some(Ok(_)) = peer.socket.next().await {} };
        timeout(common::DEADLINE, end).await.expect("the connection stands for ever");

        let form = format!("sessionId=s&authenticationToken={}&clientAddress=1", api.token);
        let form = dice.damaged(form);
        let request = api.client.post(&form_url).body(form.clone());
        is_answered(request, &|| format!("the form {}", String::from_utf8_lossy(&form))).await;
        let registration = dice.changed(&registration).to_string();
        let registration = if dice.below(2) == 0 { dice.damaged(registration) } else { registration.into_bytes() };
        let request = api.client.post(&enrol_url).body(registration.clone());
        is_answered(request, &|| format!("the registration {}", String::from_utf8_lossy(&registration))).await;
        if case == 20 {
            before = memory(&broker);
        }
    }
    is_sound(&broker, &api, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_and_the_replicas_port_take_anything() {
    let (gateway, peers) = (free_port(), free_port());
    let place = tempfile::tempdir().unwrap();
    let secret = place.path().join("secret");
    berth::secret::Secret::random().write(&secret).unwrap();
    let configuration = format!(
        "[gateway]\nenabled = true\nlisten = '127.0.0.1:{gateway}'\nrequire_client_certificate = false\n\
         {}",
        alone(peers, &secret)
    );
    let broker = Broker::start_with(&configuration).await;
    let api = broker.api().await;
    let client: Client = http_client(&broker.ca_path()).build().unwrap();
    let mut dice = Dice::new();
    let mut before = 0;
    for case in 0..number("BERTH_FUZZ_CASES", CASES.into()) / 2 {
        let query = format!("sessionId={}&transport=HTTP&clientIpAddress=::1", dice.below(3));
        let query: String = dice.damaged(query).iter().map(|byte| char::from(33 + byte % 90)).collect();
        let request = client.post(format!("https://127.0.0.1:{gateway}/resolveSession?{query}")).body(dice.bytes(100));
        is_answered(request, &|| format!("the query {query}")).await;

        // Nobody without a certificate gets a word out of the replicas' port.
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], peers))).await.unwrap();
        let mut bytes = dice.bytes(600);
        if dice.below(2) == 0 {
            // The head of a TLS record, so that what follows is looked at.
            bytes.splice(0..0, [0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc, 3, 3]);
        }
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ =
            timeout(common::DEADLINE, stream.take(4_096).read_to_end(&mut answer)).await.expect("it stands for ever");
        assert!(answer.len() < 4_096, "{} bytes for nonsense", answer.len());
        if case == 50 {
            before = memory(&broker);
        }
    }
    is_sound(&broker, &api, before).await;
}

/// One that may speak as a replica.
struct Replica {
    address: SocketAddr,
    authorities: Authorities,
    tls: Tls,
    hello: Hello,
}

impl Replica {
    fn new(broker: &Broker, address: SocketAddr, secret: &berth::secret::Secret) -> Self {
        let authorities = Authorities::new(secret).unwrap();
        let generation = Identity::read(&broker.data_folder()).unwrap().unwrap().authority;
        let (id, folder) = (ReplicaId(7), FolderId::new("fuzzed").unwrap());
        let tls = authorities.tls(generation, id, &folder).unwrap();
        let hello = Hello { speaker: Speaker::Replica { id, folder, run: Run::random() }, to: None };
        Self { address, authorities, tls, hello }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = Claim::AnyReplica.server_name(self.authorities.cluster()).unwrap();
        TlsConnector::from(self.tls.client.clone()).connect(name, stream).await.unwrap()
    }

    /// A connection that was welcomed.
    async fn join(&self) -> TlsStream<TcpStream> {
        let mut stream = self.connect().await;
        stream.write_all(&bytes_of(Kind::Hello, 0, 0, frame::encode(&self.hello))).await.unwrap();
        let welcome = FramedRead::new(&mut stream, Frames::new(FRAME_BYTES_MAX)).next().await.unwrap().unwrap();
        assert_eq!(frame::decode::<Welcome>(&welcome.bytes).unwrap(), Welcome::Welcome);
        stream
    }
}

fn bytes_of(kind: Kind, call: u64, tag: u8, bytes: Bytes) -> Vec<u8> {
    let mut all = BytesMut::new();
    Frames::new(FRAME_BYTES_MAX).encode(Frame { kind, call, tag, bytes }, &mut all).unwrap();
    all.to_vec()
}

/// What no replica says, and some of what one does.
fn said(dice: &mut Dice) -> Vec<u8> {
    let call = dice.0.random();
    let nonsense = |dice: &mut Dice, length_max| {
        // Nothing that could be understood and done: there are no such versions, messages, questions.
        let mut bytes = [vec![1, 0, 200], dice.bytes(length_max)].concat();
        bytes.drain(0..dice.below(3));
        Bytes::from(bytes)
    };
    match dice.below(9) {
        0 => bytes_of(Kind::Ping, call, 0, Bytes::new()),
        1 => bytes_of(Kind::Call, call, Service::Cluster as u8, frame::encode(&Question::Introduce)),
        2 => {
            let service = [Service::Log, Service::Agents][dice.below(2)];
            let bytes = nonsense(dice, 2_000);
            bytes_of(Kind::Call, call, service as u8, bytes)
        }
        3 => {
            let bytes = nonsense(dice, 300);
            bytes_of(Kind::Call, call, Service::Cluster as u8, bytes)
        }
        4 => {
            let tag = dice.below(256);
            let bytes = nonsense(dice, 100);
            bytes_of(Kind::Call, call, u8::try_from(tag).unwrap().max(3), bytes)
        }
        5 => {
            let kind = [Kind::Hello, Kind::Welcome, Kind::Answer, Kind::Pong][dice.below(4)];
            let bytes = nonsense(dice, 100);
            bytes_of(kind, call, 0, bytes)
        }
        6 => {
            let lengths = [0, 9, 10, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1, u32::MAX as usize];
            let length = u32::try_from(lengths[dice.below(lengths.len())]).unwrap();
            let rest = dice.bytes(3_000);
            [length.to_le_bytes().to_vec(), rest].concat()
        }
        7 => {
            let mut frame = bytes_of(Kind::Ping, call, 0, nonsense(dice, 50));
            frame[4] = u8::try_from(6 + dice.below(250)).unwrap();
            frame
        }
        _ => dice.bytes(3_000),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replicas_port_takes_anything_of_who_has_a_certificate() {
    let peers = free_port();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("secret");
    let secret = berth::secret::Secret::random();
    secret.write(&path).unwrap();
    let broker = Broker::start_with(&alone(peers, &path)).await;
    let api = broker.api().await;
    let replica = Replica::new(&broker, SocketAddr::from(([127, 0, 0, 1], peers)), &secret);
    let mut dice = Dice::new();
    let mut before = 0;
    let lines = || broker.process.stderr().lines().count();
    let (lines_before, began) = (lines(), std::time::Instant::now());
    let cases = number("BERTH_FUZZ_CASES", CASES.into()) / 2;
    for case in 0..cases {
        let mut stream = match dice.below(6) {
            0 => {
                let mut stream = replica.connect().await;
                let hello = match dice.below(3) {
                    0 => dice.bytes(STRANGERS_FRAME_BYTES_MAX + 100),
                    1 => dice.damaged(String::from_utf8_lossy(&frame::encode(&replica.hello)).into_owned()),
                    _ => {
                        let other = Speaker::Replica {
                            id: ReplicaId(1),
                            folder: FolderId::new("fuzzed").unwrap(),
                            run: Run::random(),
                        };
                        frame::encode(&Hello { speaker: other, to: None }).to_vec()
                    }
                };
                let _ = stream.write_all(&bytes_of(Kind::Hello, 0, 0, hello.into())).await;
                stream
            }
            _ => replica.join().await,
        };
        for _ in 0..=dice.below(6) {
            let times = if dice.below(20) == 0 { 200 } else { 1 };
            if stream.write_all(&said(&mut dice).repeat(times)).await.is_err() {
                break;
            }
        }
        let _ = stream.shutdown().await;
        // Whatever it says, the connection comes to an end.
        let mut answers = Vec::new();
        let _ =
            timeout(common::DEADLINE, stream.read_to_end(&mut answers)).await.expect("the connection stands for ever");
        if case == 50 {
            before = memory(&broker);
        }
    }
    // It is served as before: a good question is answered.
    let mut stream = replica.join().await;
    let question = frame::encode(&Question::Introduce);
    stream.write_all(&bytes_of(Kind::Call, 42, Service::Cluster as u8, question)).await.unwrap();
    let mut answers = FramedRead::new(&mut stream, Frames::new(FRAME_BYTES_MAX));
    let answer = timeout(common::DEADLINE, answers.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((answer.kind, answer.call, answer.tag), (Kind::Answer, 42, 0));
    let nonsense = broker.process.log_records("request of a peer not understood").len();
    let minutes = usize::try_from(began.elapsed().as_secs() / 60).unwrap();
    assert!((1..=1 + minutes).contains(&nonsense), "told {nonsense} times");
    let told = lines() - lines_before;
    // A line for a connection at most, and what a replica says by itself.
    assert!(told < usize::try_from(cases).unwrap() + 50, "{told} lines of log for {cases} connections");
    is_sound(&broker, &api, before).await;
}
