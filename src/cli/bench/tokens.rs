//! `berth bench tokens`: access tokens that one thread checks per second.
//!
//! Timed is what a request waits for: `Identity::verify` of a replica that
//! serves, with clients in its log. A token that was found good before is known
//! by its digest; one that was never seen has its signature checked.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use comfy_table::{Table, TableStyle};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::broker;
use crate::broker::api::door::Identity as _;
use crate::broker::config::{Config, TokenAlgorithm};
use crate::broker::identity::Identity;
use crate::domain::auth_server::AuthServer;
use crate::domain::client::{Grant, Scopes, SecretHash};
use crate::domain::{ClientId, Command};

/// Clients in the log; tokens are of all of them.
const CLIENTS: usize = 1_000;
/// Where the other authorization server would have its keys.
const OTHER: &str = "https://auth.example/.well-known/jwks.json";
const OTHERS_ISSUER: &str = "https://auth.example";

/// Options of `berth bench tokens`.
#[derive(Debug, clap::Args)]
#[group(skip)] // all are called Args, and groups must differ
pub(super) struct Args {
    /// Tokens in each round; each is checked for the first time, and again.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tokens: u32,
    /// How often a token is checked that was seen before, in each round.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// Rounds; medians are told.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Folder for the broker's data.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Tokens per second.
struct Row {
    issuer: &'static str,
    algorithm: &'static str,
    seen: f64,
    unseen: f64,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    super::in_folder(args.folder.clone(), |folder| async move { measure(&args, &folder).await }).await
}

async fn measure(args: &Args, folder: &Path) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for algorithm in [TokenAlgorithm::Es256, TokenAlgorithm::EdDsa, TokenAlgorithm::Rs256] {
        let mut config = Config { data_folder: folder.join(algorithm.as_str()), ..Config::default() };
        for listen in [&mut config.clients.listen, &mut config.agents.listen] {
            *listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        }
        config.tokens.algorithm = algorithm;
        let running = broker::start(config).await?;
        let clients = clients()?;
        let register = |id: &ClientId| Command::RegisterClient {
            id: id.clone(),
            name: "bench".to_owned(),
            secret: SecretHash(String::new()),
            grant: Grant::default(),
        };
        running.broker.propose(clients.iter().map(register).collect()).await?;
        let other = Other::new()?;
        let server = Command::RegisterAuthServer { server: other.settings(), replace: false };
        running.broker.propose(vec![server]).await?;

        let identity = Arc::clone(&running.identity);
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let broker = tokio::spawn(running.run_until(async move { stop.cancelled().await }));
        let (tokens, rounds, repetitions) = (args.tokens, args.rounds, args.repetitions);
        let timed = tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<Row>> {
            let bench = Bench { identity: &identity, clients: &clients, tokens, repetitions, rounds };
            let own =
                bench.row("this broker", algorithm.as_str(), |client| Ok(identity.issue(client, Scopes::USUAL)?))?;
            let mut rows = vec![own];
            if algorithm == TokenAlgorithm::Es256 {
                rows.push(bench.row("another server", "ES256", |client| other.token(client))?);
            }
            Ok(rows)
        });
        rows.extend(timed.await??);
        shutdown.cancel();
        broker.await??;
    }
    tell(args, &rows)
}

fn clients() -> anyhow::Result<Vec<ClientId>> {
    let id = |number| ClientId::new(&format!("7c5b6f10-0000-4000-8000-{number:012}"));
    Ok((0..CLIENTS).map(id).collect::<Result<_, _>>()?)
}

struct Bench<'a> {
    identity: &'a Identity,
    clients: &'a [ClientId],
    tokens: u32,
    repetitions: u32,
    rounds: u32,
}

impl Bench<'_> {
    /// Checks new tokens, and then the same again, in each round.
    fn row(
        &self,
        issuer: &'static str,
        algorithm: &'static str,
        make: impl Fn(&ClientId) -> anyhow::Result<String>,
    ) -> anyhow::Result<Row> {
        let (mut unseen, mut seen) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let clients = self.clients.iter().cycle().take(self.tokens as usize);
            let tokens = clients.map(&make).collect::<anyhow::Result<Vec<_>>>()?;
            unseen.push(self.check(&tokens, 1)?);
            seen.push(self.check(&tokens, self.repetitions)?);
        }
        let rate = |times: Vec<Duration>, repetitions: u32| -> anyhow::Result<f64> {
            Ok(f64::from(self.tokens) * f64::from(repetitions) / median(times)?.as_secs_f64())
        };
        Ok(Row { issuer, algorithm, seen: rate(seen, self.repetitions)?, unseen: rate(unseen, 1)? })
    }

    /// How long it takes to check all of them so often.
    fn check(&self, tokens: &[String], repetitions: u32) -> anyhow::Result<Duration> {
        let mut good = 0;
        let began = Instant::now();
        for _ in 0..repetitions {
            for token in tokens {
                good += u64::from(black_box(self.identity.verify(black_box(token))).is_ok());
            }
        }
        let elapsed = began.elapsed();
        let all = u64::from(self.tokens) * u64::from(repetitions);
        ensure!(good == all, "only {good} of {all} tokens were found good");
        Ok(elapsed)
    }
}

fn median(mut times: Vec<Duration>) -> anyhow::Result<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("there must be a round")
}

/// Another authorization server, whose key is given by hand.
struct Other {
    public_pem: String,
    private: EncodingKey,
}

impl Other {
    fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("cannot make a key")?;
        Ok(Self { public_pem: key.public_key_pem(), private: EncodingKey::from_ec_der(&key.serialize_der()) })
    }

    fn settings(&self) -> AuthServer {
        AuthServer {
            url: OTHER.to_owned(),
            algorithms: Vec::new(),
            issuer: Some(OTHERS_ISSUER.to_owned()),
            audience: None,
            token_type: None,
            scope: None,
            keys_pem: Some(self.public_pem.clone()),
            ca_pem: None,
        }
    }

    fn token(&self, client: &ClientId) -> anyhow::Result<String> {
        let header = Header { typ: Some("at+jwt".to_owned()), ..Header::new(Algorithm::ES256) };
        let now = jsonwebtoken::get_current_timestamp();
        let claims = json!({
            "iss": OTHERS_ISSUER,
            "aud": "https://desks.example",
            "sub": client.as_str(),
            "client_id": client.as_str(),
            "iat": now,
            "exp": now + 3600,
            "jti": uuid::Uuid::new_v4().to_string(),
            "scope": "desktops",
        });
        jsonwebtoken::encode(&header, &claims, &self.private).context("cannot make a token")
    }
}

fn tell(args: &Args, rows: &[Row]) -> anyhow::Result<()> {
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "issuer": row.issuer,
                    "algorithm": row.algorithm,
                    "seen_per_second": row.seen,
                    "unseen_per_second": row.unseen,
                })
            })
            .collect();
        let told = json!({ "threads": 1, "tokens": args.tokens, "rounds": args.rounds, "rows": rows });
        say!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(["ISSUED BY", "ALGORITHM", "SEEN BEFORE/S", "NEVER SEEN/S"]);
    for row in rows {
        let cells = [row.issuer.to_owned(), row.algorithm.to_owned()];
        table.add_row(cells.into_iter().chain([row.seen, row.unseen].map(|rate| format!("{rate:.0}"))));
    }
    say!("{table}");
    Ok(())
}
