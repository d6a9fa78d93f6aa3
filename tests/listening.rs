//! What a port does about those who hold what others need: its connections,
//! and answers that they do not take.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use berth::broker::listen::Bound;
use berth::broker::taking::Patience;
use berth::broker::tls::{ClientAuth, Pki, Source};
use bytes::Bytes;
use common::broker::Broker;
use common::{DEADLINE, until};
use futures_util::StreamExt as _;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long the ports of these tests wait: for a connection, not for an answer.
const PATIENCE: Patience = Patience { connection: Duration::from_millis(500), answer: Duration::from_hours(1) };
/// More than all windows and buffers of a connection hold.
const MUCH_BYTES: usize = 8 << 20;

async fn tls(address: SocketAddr, from: IpAddr, config: rustls::ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await
}

/// A connection of HTTP/1.1 that was served once.
struct Standing(SendRequest<Body>);

impl Standing {
    /// From an address of this host.
    async fn open(broker: &Broker, from: &str) -> io::Result<Self> {
        let stream = tls(broker.clients, from.parse().unwrap(), broker.tls(&[b"http/1.1"])).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let mut standing = Self(sender);
        standing.serves().await?;
        Ok(standing)
    }

    async fn serves(&mut self) -> io::Result<()> {
        self.0.ready().await.map_err(io::Error::other)?;
        let request = Request::get("/health").header("host", "localhost").body(Body::empty()).unwrap();
        let answer = timeout(DEADLINE, self.0.send_request(request)).await?.map_err(io::Error::other)?;
        assert_eq!(answer.status(), StatusCode::OK);
        axum::body::to_bytes(Body::new(answer.into_body()), 1 << 20).await.map_err(io::Error::other)?;
        Ok(())
    }

    /// As soon as there is a place.
    async fn wait_for(broker: &Broker, from: &str) -> Self {
        until("there is a place", || async { Self::open(broker, from).await.ok() }).await
    }
}

/// All connections that an address gets.
async fn all_of(broker: &Broker, from: &str) -> Vec<Standing> {
    let mut all = Vec::new();
    while let Ok(standing) = Standing::open(broker, from).await {
        all.push(standing);
    }
    all
}

fn reasons(broker: &Broker) -> Vec<String> {
    let records = broker.process.log_records("connection refused");
    records.iter().map(|record| record["fields"]["why"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_as_many_connections_as_allowed_and_one_that_ends_makes_room() {
    let broker = Broker::start_with("[clients]\nconnections_max = 4\n").await;
    let mut all = all_of(&broker, "127.0.0.1").await;
    assert_eq!(all.len(), 4);
    assert!(Standing::open(&broker, "127.0.0.3").await.is_err(), "nobody gets another one");
    for standing in &mut all {
        standing.serves().await.unwrap();
    }
    all.pop();
    all.push(Standing::wait_for(&broker, "127.0.0.1").await);
    assert!(Standing::open(&broker, "127.0.0.1").await.is_err());
    assert_eq!(reasons(&broker), ["there are as many as allowed"], "told once in a while");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_lose_their_places() {
    let broker = Broker::start_with("[clients]\nconnections_max = 4\n").await;
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(TcpStream::connect(broker.clients).await.unwrap());
        // And silent after the handshake of TLS.
        let within = tls(broker.clients, [127, 0, 0, 1].into(), broker.tls(&[b"h2"])).await.unwrap();
        silent.push(within.into_inner().0);
    }
    assert!(Standing::open(&broker, "127.0.0.3").await.is_err(), "they have all places");
    for mut stream in silent {
        let end = async { while let Ok(1..) = stream.read(&mut [0; 1024]).await {} };
        timeout(DEADLINE, end).await.expect("a connection that says nothing stands for ever");
    }
    Standing::wait_for(&broker, "127.0.0.3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_leaves_places_to_others_unless_it_is_a_known_proxy() {
    let configuration = "clients.connections_max = 16\nlimits.trusted_proxies = ['127.0.0.2']\n";
    let broker = Broker::start_with(configuration).await;
    let mut one = all_of(&broker, "127.0.0.1").await;
    assert_eq!(one.len(), 14, "all but an eighth");
    assert_eq!(reasons(&broker), ["its address has its share of those that are allowed"]);
    let _other = Standing::open(&broker, "127.0.0.3").await.unwrap();
    let proxied = all_of(&broker, "127.0.0.2").await;
    assert_eq!(proxied.len(), 1, "all that is left");
    assert!(Standing::open(&broker, "127.0.0.4").await.is_err());
    one.truncate(8);
    for standing in &mut one {
        standing.serves().await.unwrap();
    }
    Standing::wait_for(&broker, "127.0.0.4").await;
    drop((one, proxied));

    // Behind a proxy all places can be had.
    until("the proxy has all that the other one leaves", || async {
        (all_of(&broker, "127.0.0.2").await.len() == 15).then_some(())
    })
    .await;
}

/// A port in this process. Its stream of events tells something when it is told.
struct Port {
    address: SocketAddr,
    authority: CertificateDer<'static>,
    tell: Arc<Semaphore>,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Port {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::open(folder.path(), &["127.0.0.1".to_owned()]).unwrap();
        let tls = pki.server_config("clients", Source::OwnAuthority, &[b"h2"], ClientAuth::None).unwrap();
        let tell = Arc::new(Semaphore::new(0));
        let router = axum::Router::new()
            .route("/much", get(|| async { vec![b'x'; MUCH_BYTES] }))
            .route("/little", get(|| async { "little" }))
            .route("/events", get(events))
            .with_state(Arc::clone(&tell));
        let bound = Bound::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().waiting(PATIENCE);
        let (address, stop) = (bound.address(), CancellationToken::new());
        tokio::spawn(bound.serve(tls, router, 100, stop.clone()));
        let authority = CertificateDer::from_pem_file(pki.ca_path()).unwrap();
        Self { address, authority, tell, stop, _folder: folder }
    }

    /// A client of HTTP/2 that takes so many bytes of each answer, and more when it says so.
    async fn connect(&self, window: u32) -> Client {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tls(self.address, [127, 0, 0, 1].into(), config).await.unwrap();
        let mut builder = h2::client::Builder::new();
        let (sender, connection) = builder.initial_window_size(window).handshake(stream).await.unwrap();
        Client { sender: sender.ready().await.unwrap(), connection: tokio::spawn(connection) }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Says hello, and a word each time that it is to.
async fn events(State(tell): State<Arc<Semaphore>>) -> Body {
    let words = futures_util::stream::unfold(tell, |tell| async {
        tell.acquire().await.unwrap().forget();
        Some((Ok("word"), tell))
    });
    Body::from_stream(futures_util::stream::iter([Ok::<_, io::Error>("hello")]).chain(words))
}

struct Client {
    sender: h2::client::SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    /// The body of an answer whose head has come.
    async fn ask(&mut self, path: &str) -> h2::RecvStream {
        let request = Request::get(format!("https://127.0.0.1{path}")).body(()).unwrap();
        let (answer, _) = self.sender.send_request(request, true).unwrap();
        let answer = timeout(DEADLINE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.into_body()
    }

    async fn ends(self) {
        // It answers pings all the time.
        let ended = timeout(DEADLINE, self.connection).await;
        let _how = ended.expect("the connection stands for ever").unwrap();
    }
}

async fn word(body: &mut h2::RecvStream) -> Bytes {
    let bytes = timeout(DEADLINE, body.data()).await.unwrap().expect("the stream goes on").unwrap();
    body.flow_control().release_capacity(bytes.len()).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_its_answer_where_it_is_loses_its_connection_and_who_waits_for_events_does_not() {
    let port = Port::start();
    let mut patient = port.connect(1_000).await;
    let mut told = patient.ask("/events").await;
    assert_eq!(word(&mut told).await, "hello");

    // Nothing is taken; all but the end; and the last piece waits where its body is done already.
    let hogs = [(0, "/much"), (100_000, "/much"), (1, "/little"), (0, "/little")].map(|(window, path)| {
        let port = &port;
        async move {
            let mut hog = port.connect(window).await;
            let _left = hog.ask(path).await;
            hog.ends().await;
        }
    });
    futures_util::future::join_all(hogs).await;

    port.tell.add_permits(1);
    assert_eq!(word(&mut told).await, "word", "nothing of it waited meanwhile");
    let taken = axum::body::to_bytes(Body::from_stream(all(patient.ask("/much").await)), MUCH_BYTES).await.unwrap();
    assert_eq!(taken.len(), MUCH_BYTES, "in small steps");
}

/// All of an answer, each piece of which makes room for another one.
fn all(body: h2::RecvStream) -> impl futures_util::Stream<Item = Result<Bytes, h2::Error>> {
    futures_util::stream::unfold(body, |mut body| async {
        let bytes = body.data().await?;
        if let Ok(bytes) = &bytes {
            body.flow_control().release_capacity(bytes.len()).unwrap();
        }
        Some((bytes, body))
    })
}
