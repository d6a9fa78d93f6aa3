//! Three members of etcd as a yardstick, and the least that a client of it
//! needs: one gRPC call, `Put`, over plain HTTP/2.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use axum::body::Body;
use axum::http::{Request, StatusCode};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::replicas::free_address;

/// Members of the cluster.
const MEMBERS: usize = 3;
/// Bytes of each value.
pub(super) const VALUE_BYTES: usize = 1024;
/// How long the cluster may take to form.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long a put may take.
const PUT_TIMEOUT: Duration = Duration::from_secs(10);
/// What precedes a message of gRPC: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The members; they end with this value.
pub(super) struct Etcd {
    members: Vec<Child>,
    /// Where clients are served.
    pub(super) clients: Vec<SocketAddr>,
}

/// What etcd says its version is; `None` when it is not installed.
pub(super) async fn version() -> Option<String> {
    let output = Command::new("etcd").arg("--version").stdin(Stdio::null()).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().find_map(|line| line.strip_prefix("etcd Version: ")).map(str::to_owned)
}

impl Etcd {
    /// Starts three members in `folder` and waits until they take a value.
    pub(super) async fn start(folder: &Path) -> anyhow::Result<Self> {
        let mut addresses = Vec::new();
        for number in 1..=MEMBERS {
            addresses.push((format!("m{number}"), free_address()?, free_address()?));
        }
        let member = |(name, _, peers): &(String, SocketAddr, SocketAddr)| format!("{name}=http://{peers}");
        let cluster = addresses.iter().map(member).collect::<Vec<_>>().join(",");
        std::fs::create_dir_all(folder)?;
        let mut etcd = Self { members: Vec::new(), clients: Vec::new() };
        for (name, clients, peers) in addresses {
            let (clients_url, peers_url) = (format!("http://{clients}"), format!("http://{peers}"));
            let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
            let mut command = Command::new("etcd");
            for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
                command.env_remove(variable);
            }
            command.args(["--name", &name, "--log-level", "error", "--quota-backend-bytes", "8589934592"]);
            command.arg("--data-dir").arg(folder.join(&name));
            command.args(["--listen-client-urls", &clients_url, "--advertise-client-urls", &clients_url]);
            command.args(["--listen-peer-urls", &peers_url, "--initial-advertise-peer-urls", &peers_url]);
            command.args(["--initial-cluster", &cluster, "--initial-cluster-state", "new"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
            etcd.members.push(command.spawn().context("cannot start etcd")?);
            etcd.clients.push(clients);
        }
        etcd.serves().await?;
        Ok(etcd)
    }

    async fn serves(&self) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        for address in &self.clients {
            while let Err(error) = async { Client::connect(*address).await?.put("first").await }.await {
                if Instant::now() >= end {
                    return Err(error.context(format!("etcd does not serve within {} s", PATIENCE.as_secs())));
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Ids of the processes.
    pub(super) fn process_ids(&self) -> Vec<u32> {
        self.members.iter().filter_map(Child::id).collect()
    }

    /// Ends all of them.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for member in &mut self.members {
            member.kill().await.context("etcd does not end")?;
        }
        Ok(())
    }
}

/// A client of one member, on a connection of its own.
pub(super) struct Client {
    sender: SendRequest<Body>,
    uri: String,
}

impl Client {
    pub(super) async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, uri: format!("http://{address}/etcdserverpb.KV/Put") })
    }

    /// Puts a value of 1 KiB under a key.
    pub(super) async fn put(&mut self, key: &str) -> anyhow::Result<()> {
        let request = Request::post(&self.uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::from(put_request(key.as_bytes(), &[b'v'; VALUE_BYTES])))?;
        let answered = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let bytes = axum::body::to_bytes(Body::new(body), ANSWER_BYTES_MAX).await?;
            // One that failed has its reason in the headers and no message.
            if parts.status != StatusCode::OK || bytes.len() < PREFIX_BYTES {
                let reason = parts.headers.get("grpc-message").map(|text| String::from_utf8_lossy(text.as_bytes()));
                bail!("etcd refused a put: {} {}", parts.status, reason.unwrap_or_default());
            }
            Ok(())
        };
        tokio::time::timeout(PUT_TIMEOUT, answered).await.context("etcd did not answer")?
    }
}

/// A `PutRequest` as gRPC sends it: field 1 is the key, field 2 the value.
fn put_request(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(key.len() + value.len() + 16);
    for (tag, bytes) in [(0x0a_u8, key), (0x12, value)] {
        message.push(tag);
        let mut length = bytes.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or_default());
        message.extend_from_slice(bytes);
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_is_framed_as_the_protocol_says() {
        let framed = put_request(b"k", &[7; 300]);
        // 1 + 1 + 1 for the key, 1 + 2 + 300 for the value.
        assert_eq!(framed[..PREFIX_BYTES], [0, 0, 0, 1, 50]);
        assert_eq!(framed[PREFIX_BYTES..PREFIX_BYTES + 6], [0x0a, 1, b'k', 0x12, 0xac, 0x02]);
        assert_eq!(framed.len(), PREFIX_BYTES + 306);
    }
}
