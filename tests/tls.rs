//! TLS as clients and operators meet it: certificates that change under load,
//! key stores, what is refused, and what `berth tls` says.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::Extension;
use axum::http::Request;
use axum::routing::get;
use berth::broker::listen::Bound;
use berth::broker::tls::authority::{self, AGENT_VALIDITY};
use berth::broker::tls::{ClientAuth, Password, Peer, Pki, Roots, Source, Subject, Tls};
use berth::domain::gateway::GatewayName;
use berth::domain::report::Inventory;
use berth::protocol::{FromAgent, FromBroker};
use berth::secret::Secret;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use reqwest::StatusCode;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use common::api::{Api, http_client};
use common::broker::Broker;
use common::peer::{self, reported};
use common::process::{Process, berth};
use common::{DEADLINE, until};

/// An authority of the operator's own.
struct Operator {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

struct Pair {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

impl Operator {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "an operator's authority");
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for loopback, good for so many days and an hour.
    fn pair(&self, name: &str, days: u64) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = (SystemTime::now() - Duration::from_hours(1)).into();
        params.not_after = (SystemTime::now() + Duration::from_hours(24 * days + 1)).into();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }
}

/// The files of a port: a folder behind a link, as Kubernetes mounts secrets.
struct Files {
    folder: TempDir,
    versions: AtomicUsize,
}

impl Files {
    fn new(operator: &Operator, pair: &Pair) -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap(), versions: AtomicUsize::new(0) };
        std::fs::write(files.authority(), &operator.pem).unwrap();
        files.swap(pair);
        files
    }

    fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("live/chain.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("live/key.pem")
    }

    fn configuration(&self) -> String {
        self.configuration_of("clients")
    }

    fn configuration_of(&self, port: &str) -> String {
        let (certificate, key) = (self.certificate(), self.key());
        format!(
            "limits.requests_per_second = 0\n[{port}]\ncertificate_file = '{}'\nkey_file = '{}'\n",
            certificate.display(),
            key.display()
        )
    }

    /// Another folder in the place of the one in use, at once.
    fn swap(&self, pair: &Pair) {
        let version = self.versions.fetch_add(1, Ordering::Relaxed).to_string();
        let folder = self.folder.path().join(&version);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("chain.pem"), &pair.certificate_pem).unwrap();
        write_key(&folder.join("key.pem"), pair);
        let link = self.folder.path().join("link");
        std::os::unix::fs::symlink(&version, &link).unwrap();
        std::fs::rename(&link, self.folder.path().join("live")).unwrap();
    }

    /// Another pair for a round of several: as a folder, or file by file.
    fn change(&self, operator: &Operator, round: u64) -> Pair {
        let next = operator.pair(&format!("round {round}"), 90);
        if round.is_multiple_of(2) {
            self.swap(&next);
        } else {
            self.write(&next);
        }
        next
    }

    /// One file after the other, so that they do not fit in between.
    fn write(&self, pair: &Pair) {
        std::fs::write(self.certificate(), &pair.certificate_pem).unwrap();
        write_key(&self.key(), pair);
    }
}

/// Writes a private key where its owner alone can read it.
fn write_key(path: &Path, pair: &Pair) {
    std::fs::write(path, &pair.key_pem).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn trusting(pem: &[u8]) -> ClientConfig {
    trusting_with(pem, None)
}

fn trusting_with(pem: &[u8], holder: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    match holder {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => builder.with_no_client_auth(),
    }
}

/// The certificate that a new connection is shown.
async fn shown(address: SocketAddr, config: ClientConfig) -> CertificateDer<'static> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// One connection, which does not come back when it is lost.
struct Standing(SendRequest<Body>);

impl Standing {
    async fn open(address: SocketAddr, config: ClientConfig) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut standing = Self(sender);
        standing.serves().await;
        standing
    }

    /// Asks for what is not there; some answer has to come.
    async fn serves(&mut self) {
        self.0.ready().await.expect("the connection stands");
        let request = Request::get("/none").header("host", "localhost").body(Body::empty()).unwrap();
        let answer = timeout(DEADLINE, self.0.send_request(request)).await.unwrap().expect("an answer");
        let body = axum::body::to_bytes(Body::new(answer.into_body()), 1 << 20).await;
        body.expect("all of the answer");
    }
}

/// What `berth tls VERB …` prints; `Err` when it fails.
async fn tls_command(broker: &Broker, arguments: &[&str]) -> Result<String, String> {
    let mut command = berth();
    command.arg("tls").args(arguments).arg("--data-folder").arg(broker.data_folder());
    let mut process = Process::start(command);
    let succeeded = process.ended().await.success();
    let printed = format!("{}\n{}", process.stdout(), process.stderr());
    if succeeded { Ok(process.stdout()) } else { Err(printed) }
}

async fn certificates(broker: &Broker) -> Vec<Value> {
    let printed = tls_command(broker, &["status", "--json"]).await.unwrap();
    serde_json::from_str(&printed).unwrap()
}

/// A client that calls without a pause until it is told to end. A call that
/// fails fails the test.
struct Load {
    count: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    fn start(api: Api, ended: &Arc<AtomicBool>) -> Self {
        let (count, ended) = (Arc::new(AtomicUsize::new(0)), Arc::clone(ended));
        let counted = Arc::clone(&count);
        let task = tokio::spawn(async move {
            while !ended.load(Ordering::Relaxed) {
                api.call("describeSessions", json!({})).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { count, task }
    }

    /// Waits until a call was made that had not begun before this.
    async fn goes_on(&self) {
        let now = self.count.load(Ordering::Relaxed);
        until("another call succeeds", || async {
            assert!(!self.task.is_finished(), "a call failed");
            (self.count.load(Ordering::Relaxed) >= now + 2).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_load_without_one_failed_request() {
    let operator = Operator::new();
    let first = operator.pair("first", 90);
    let files = Files::new(&operator, &first);
    let broker = Broker::start_with(&files.configuration()).await;
    let connect = || trusting(operator.pem.as_bytes());
    assert_eq!(shown(broker.clients, connect()).await, first.certificate);

    let credentials = broker.register("tests").await;
    let api = Api::connect(&broker.url(), &files.authority(), &credentials).await;
    let client = |builder: reqwest::ClientBuilder| Api { client: builder.build().unwrap(), ..api.clone() };
    let plain = || http_client(&files.authority());
    let ended = Arc::new(AtomicBool::new(false));
    // Connections that are kept, of both protocols, and one for each request.
    let clients = [
        client(plain().http1_only()),
        client(plain().http1_only()),
        client(plain()),
        client(plain().http1_only().pool_max_idle_per_host(0)),
        client(plain().pool_max_idle_per_host(0)),
    ];
    let loads = clients.map(|client| Load::start(client, &ended));

    // The libraries' clients come back without a word; this one cannot.
    let mut standing = Standing::open(broker.clients, connect()).await;

    for round in 0..20 {
        let next = files.change(&operator, round);
        tls_command(&broker, &["reload"]).await.unwrap();
        assert_eq!(shown(broker.clients, connect()).await, next.certificate, "round {round}");
        standing.serves().await;
        for load in &loads {
            load.goes_on().await;
        }
    }
    // Nobody says that there is something new.
    let next = operator.pair("last", 90);
    files.swap(&next);
    let (broker, next) = (&broker, &next);
    until("the broker looks by itself", || async move {
        (shown(broker.clients, connect()).await == next.certificate).then_some(())
    })
    .await;

    // What cannot be used is told, and changes nothing.
    for (content, why) in [("nonsense", "no usable PEM"), (first.key_pem.as_str(), "do not work together")] {
        std::fs::write(files.key(), content).unwrap();
        let printed = tls_command(broker, &["reload"]).await.unwrap_err();
        assert!(printed.contains("NOT IN USE for clients") && printed.contains(why), "{printed}");
        assert_eq!(shown(broker.clients, connect()).await, next.certificate);
    }
    let warnings = broker.process.log_records("a certificate cannot be used; the one in use stays");
    assert!(warnings.iter().all(|record| record["fields"]["listener"] == "clients"), "{warnings:?}");
    assert!(warnings.len() >= 2, "{warnings:?}");
    files.write(next);
    tls_command(broker, &["reload"]).await.unwrap();

    standing.serves().await;
    ended.store(true, Ordering::Relaxed);
    for load in loads {
        timeout(DEADLINE, load.task).await.unwrap().expect("each call succeeded");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_s_connection_stands_while_certificates_change() {
    let operator = Operator::new();
    let files = Files::new(&operator, &operator.pair("first", 90));
    let broker = Broker::start_with(&files.configuration_of("agents")).await;
    let connect = || trusting(operator.pem.as_bytes());
    let credentials = peer::enrolled_trusting(&broker, &files.authority(), "desk-1").await.resolver();
    // It does not come back by itself: if its connection is lost it does not answer.
    let mut standing = peer::Peer::knock_at(broker.agents, &files.authority(), Some(credentials)).await.unwrap();
    standing.say(&FromAgent::Hello(peer::hello("desk-1", Vec::new()))).await;
    standing.hear("welcome", |message| matches!(message, FromBroker::Welcome { .. })).await;
    for round in 0..5 {
        let next = files.change(&operator, round);
        tls_command(&broker, &["reload"]).await.unwrap();
        assert_eq!(shown(broker.agents, connect()).await, next.certificate, "round {round}");
        standing.ping().await;
        standing.report_sessions(round + 1, Inventory::Full(vec![reported("s", "ann")])).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_at_the_start_is_told_with_its_file() {
    let operator = Operator::new();
    let (one, other) = (operator.pair("one", 90), operator.pair("other", 90));
    let files = Files::new(&operator, &one);
    let mixed = Pair { key_pem: other.key_pem, ..one };
    files.swap(&mixed);
    let folder = tempfile::tempdir().unwrap();
    let configuration = folder.path().join("berth.toml");
    std::fs::write(&configuration, files.configuration()).unwrap();
    let mut command = berth();
    command.args(["serve", "--config"]).arg(&configuration).arg("--data-folder").arg(folder.path().join("data"));
    command.args(["--clients-listen", "127.0.0.1:0", "--agents-listen", "127.0.0.1:0"]);
    let mut process = Process::start(command);
    assert!(!process.ended().await.success());
    let told = process.stderr();
    assert!(told.contains("do not work together") && told.contains("chain.pem"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_certificate_holds_the_names_of_the_host_and_status_says_when_it_ends() {
    let operator = Operator::new();
    let files = Files::new(&operator, &operator.pair("near its end", 5));
    let configuration = format!("names = ['broker.example', '10.1.2.3', '*.apps.example']\n{}", files.configuration());
    let mut broker = Broker::start_with(&configuration).await;
    // Of the operator's own, which nobody renews.
    let record = broker.process.log_record("a certificate expires; put a new one in its place").await;
    assert_eq!((&record["fields"]["listener"], &record["fields"]["days_left"]), (&json!("clients"), &json!(5)));

    let listed = certificates(&broker).await;
    let of = |name: &str| listed.iter().find(|entry| entry["listener"] == name).unwrap_or_else(|| panic!("{name}"));
    assert_eq!((&of("clients")["is_renewed"], &of("clients")["subject"]), (&json!(false), &json!("CN=near its end")));
    assert!(of("authority")["days_left"].as_i64().unwrap() > 3000);
    let agents = of("agents");
    assert_eq!(agents["is_renewed"], json!(true));
    assert!((89..=90).contains(&agents["days_left"].as_i64().unwrap()), "{agents}");
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let names = ["broker.example", "10.1.2.3", "localhost", "127.0.0.1", "::1", hostname.trim()];
    let authority = std::fs::read(broker.ca_path()).unwrap();
    let certificate = shown(broker.agents, trusting(&authority)).await;
    let leaf = names_in(&certificate);
    for name in names {
        assert!(agents["names"].as_array().unwrap().contains(&json!(name)), "{name}: {agents}");
        assert!(leaf.iter().any(|held| held == name), "{name}: {leaf:?}");
    }
    assert!(leaf.iter().any(|held| held == "*.apps.example"));
    let table = tls_command(&broker, &["status"]).await.unwrap();
    assert!(table.contains("DAYS LEFT") && table.contains("near its end"), "{table}");
}

/// Names and addresses in a certificate.
fn names_in(certificate: &CertificateDer<'_>) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap().value;
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(four) => std::net::IpAddr::from(four).to_string(),
            Err(_) => std::net::IpAddr::from(<[u8; 16]>::try_from(*bytes).unwrap()).to_string(),
        },
        other => panic!("{other:?}"),
    };
    names.general_names.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_gets_a_key_a_certificate_and_the_authority() {
    let broker = Broker::start().await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("resolver-creds");
    let arguments = ["gateway-certificate", "--name", "gw-1", "--out-folder", out.to_str().unwrap()];
    tls_command(&broker, &arguments).await.unwrap();
    let key_path = out.join("dcv_gateway_key.pem");
    assert_eq!(std::fs::metadata(&key_path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read(out.join("ca.pem")).unwrap(), std::fs::read(broker.ca_path()).unwrap());
    let key = || PrivateKeyDer::from_pem_file(&key_path).unwrap();
    let certificate = || CertificateDer::from_pem_file(out.join("dcv_gateway_cert.pem")).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    rustls::sign::CertifiedKey::from_der(vec![certificate()], key(), &provider).expect("they fit");
    // The authority of the data folder knows it.
    let pki = Pki::open(&broker.data_folder().join("tls"), &[]).unwrap();
    let named = Subject::Gateway(GatewayName::new("gw-1").unwrap());
    assert_eq!(pki.authority().identity_of(&certificate()), Some(named));

    let before = std::fs::read(&key_path).unwrap();
    let refused = tls_command(&broker, &arguments).await.unwrap_err();
    assert!(refused.contains("--overwrite"), "{refused}");
    assert_eq!(std::fs::read(&key_path).unwrap(), before);
    tls_command(&broker, &[&arguments[..], &["--overwrite"]].concat()).await.unwrap();
    assert_ne!(std::fs::read(&key_path).unwrap(), before);
    let arguments = ["gateway-certificate", "--name", "two words", "--out-folder", folder.path().to_str().unwrap()];
    let refused = tls_command(&broker, &arguments).await.unwrap_err();
    assert!(refused.contains("cannot stand in a certificate"), "{refused}");
}

/// A port that says who asks.
struct Port {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Port {
    fn start(tls: Tls) -> Self {
        let router = axum::Router::new().route(
            "/",
            get(|Extension(peer): Extension<Peer>| async move {
                let named =
                    peer.certificate.map_or_else(|| "nobody".to_owned(), |shown| format!("{:?}", shown.subject));
                format!("{} {named}", peer.address.ip())
            }),
        );
        let bound = Bound::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let (address, stop) = (bound.address(), CancellationToken::new());
        tokio::spawn(bound.serve(tls, router, 100, stop.clone()));
        Self { address, stop }
    }

    /// What it answers; `Err` when there is no connection.
    async fn ask(&self, config: ClientConfig) -> Result<String, reqwest::Error> {
        let builder = reqwest::Client::builder().tls_backend_preconfigured(config).no_proxy().timeout(DEADLINE);
        let url = format!("https://localhost:{}/", self.address.port());
        let answer = builder.build().unwrap().get(url).send().await?;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.text().await
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_served_with_key_stores_of_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::open(folder.path(), &[]).unwrap();
    let authority = std::fs::read(fixture("ca.pem")).unwrap();
    for name in ["one.jks", "one.p12", "openssl.p12", "legacy.p12"] {
        let password = Password::Text(Secret::new("changeit".to_owned()));
        let source = Source::KeyStore { file: fixture(name), password };
        let port = Port::start(pki.server_config("clients", source, &[b"http/1.1"], ClientAuth::None).unwrap());
        assert_eq!(port.ask(trusting(&authority)).await.unwrap(), "127.0.0.1 nobody", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_carry_who_showed_a_certificate_and_strangers_do_not_get_in() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::open(folder.path(), &[]).unwrap();
    let roots = Roots { own_authority: true, files: Vec::new() };
    let [required, optional] = [ClientAuth::Required(roots.clone()), ClientAuth::Optional(roots)]
        .map(|auth| Port::start(pki.server_config("gateways", Source::OwnAuthority, &[], auth).unwrap()));
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap();
    let request = authority::Request::read(request.der()).unwrap();
    let subject = Subject::Gateway(GatewayName::new("gw-1").unwrap());
    let sign = |now| pki.authority().sign_client(&request, &subject, now, AGENT_VALIDITY).unwrap().certificate;
    let private = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let authority = std::fs::read(pki.ca_path()).unwrap();
    let with = |certificate| trusting_with(&authority, Some((certificate, private())));

    let expected = format!("127.0.0.1 {subject:?}");
    let good = sign(SystemTime::now());
    assert_eq!(required.ask(with(good.clone())).await.unwrap(), expected);
    assert_eq!(optional.ask(with(good)).await.unwrap(), expected);
    assert_eq!(optional.ask(trusting(&authority)).await.unwrap(), "127.0.0.1 nobody");
    assert!(required.ask(trusting(&authority)).await.is_err());
    let expired = sign(SystemTime::now() - Duration::from_hours(30));
    let stranger = {
        let pair = Operator::new().pair("stranger", 90);
        let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
        trusting_with(&authority, Some((pair.certificate, key)))
    };
    for config in [with(expired), stranger] {
        assert!(required.ask(config.clone()).await.is_err());
        assert!(optional.ask(config).await.is_err());
    }
}

/// A ClientHello: the version, the suites, and extensions as they are.
fn hello(version: [u8; 2], suites: &[[u8; 2]], extensions: &[u8]) -> Vec<u8> {
    let number = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let suites = suites.concat();
    let body =
        [&version[..], &[7; 32], &[0], &number(suites.len()), &suites, &[1, 0], &number(extensions.len()), extensions]
            .concat();
    let message = [&[1, 0][..], &number(body.len()), &body].concat();
    [&[0x16, 3, 1][..], &number(message.len()), &message].concat()
}

/// The first record of the answer: its kind, and the two bytes that tell an
/// alert.
async fn answer_to(address: SocketAddr, hello: &[u8]) -> (u8, [u8; 2]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(hello).await.unwrap();
    let mut record = [0; 7];
    timeout(DEADLINE, stream.read_exact(&mut record)).await.unwrap().unwrap();
    (record[0], [record[5], record[6]])
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_and_suites_that_protect_nothing_are_refused() {
    const ALERT: u8 = 0x15;
    const HANDSHAKE: u8 = 0x16;
    const PROTOCOL_VERSION: [u8; 2] = [2, 70];
    const HANDSHAKE_FAILURE: [u8; 2] = [2, 40];
    // supported_groups: secp256r1; signature_algorithms: ecdsa_secp256r1_sha256; extended_master_secret.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3, 0, 23, 0, 0];
    let good = [[0xc0, 0x2b]];
    let broker = Broker::start().await;
    for port in [broker.clients, broker.agents] {
        let answer = answer_to(port, &hello([3, 3], &good, &extensions)).await;
        assert_eq!(answer, (HANDSHAKE, [2, 0]), "TLS 1.2 is spoken, so that the rest proves something");
        for old in [[3, 0], [3, 1], [3, 2]] {
            let answer = answer_to(port, &hello(old, &good, &extensions)).await;
            assert_eq!(answer, (ALERT, PROTOCOL_VERSION), "{old:?}");
        }
        // Anonymous, without encryption, RC4, 3DES, CBC, and without forward secrecy.
        for suite in [0xc018_u16, 0x0034, 0x0018, 0xc006, 0x0002, 0xc007, 0x000a, 0xc009, 0x009c, 0x002f] {
            let answer = answer_to(port, &hello([3, 3], &[suite.to_be_bytes()], &extensions)).await;
            assert_eq!(answer, (ALERT, HANDSHAKE_FAILURE), "{suite:#06x}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_believes_whoever_answers_says_so_at_each_start() {
    for (tls_strict, is_warned) in [(false, true), (true, false)] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("ca.pem"), Operator::new().pem).unwrap();
        let text = format!(
            "version = '0.1'\n[agent]\nbroker_host = 'localhost'\nbroker_port = {}\nca_file = 'ca.pem'\n\
             tls_strict = {tls_strict}\ndata_folder = 'data'\ntags_folder = 'tags'\n\
             desktops = 'simulated'\n[log]\ndirectory = 'log'\n",
            common::free_port()
        );
        std::fs::write(path("agent.conf"), text).unwrap();
        let mut command = berth();
        command.args(["agent", "--config"]).arg(path("agent.conf"));
        let mut process = Process::start(command);
        process.stderr_line("the agent starts", |line| line.contains("the agent starts").then_some(())).await;
        // It is said before that line.
        assert_eq!(process.stderr().contains("tls_strict is false"), is_warned, "{}", process.stderr());
    }
}

/// The one place where a client of ours does not look at certificates is the
/// agent's, behind its key.
#[test]
fn nothing_else_in_the_program_turns_verification_off() {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            if ["dangerous()", "danger_accept", "ServerCertVerified::assertion"].iter().any(|way| text.contains(way)) {
                found.push(path);
            }
        }
    }
    assert_eq!(found, [Path::new(env!("CARGO_MANIFEST_DIR")).join("src/agent/tls.rs")]);
}
