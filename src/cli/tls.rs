//! `berth tls`: certificates, through the operators' socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use axum::http::Method;
use comfy_table::{Table, TableStyle};
use rcgen::{CertificateParams, KeyPair};

use super::socket::Socket;
use crate::broker::admin::StatusAnswer;
use crate::broker::tls::admin::{GatewayAnswer, GatewayRequest};
use crate::broker::tls::expiry::Expiry;
use crate::files;

/// Files of a gateway, called as by the original's `gen-gateway-certificates.sh`.
const GATEWAY_KEY: &str = "dcv_gateway_key.pem";
const GATEWAY_CERTIFICATE: &str = "dcv_gateway_cert.pem";
const AUTHORITY: &str = "ca.pem";

/// Verbs of `berth tls`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show the certificates in use and when they end.
    Status {
        #[command(flatten)]
        broker: Socket,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look at all files now, and at what the host is called, instead of within
    /// seconds or minutes. Fails when something there cannot be used.
    Reload {
        #[command(flatten)]
        broker: Socket,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a key for a gateway and have the cluster's authority sign it, for a
    /// year. The key does not leave this process but for its file.
    GatewayCertificate {
        /// What the gateway is called.
        #[arg(long)]
        name: String,
        /// Folder for `dcv_gateway_key.pem`, `dcv_gateway_cert.pem` and `ca.pem`,
        /// the authority by which the gateway knows the broker.
        #[arg(long, value_name = "FOLDER")]
        out_folder: PathBuf,
        /// Replace a key that is there.
        #[arg(long)]
        overwrite: bool,
        #[command(flatten)]
        broker: Socket,
    },
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Status { broker, json } => {
            let status: StatusAnswer = broker.call(Method::GET, "/status", String::new()).await?;
            show(&status.certificates, json)
        }
        Command::Reload { broker, json } => {
            let certificates: Vec<Expiry> = broker.call(Method::POST, "/tls/reload", String::new()).await?;
            show(&certificates, json)?;
            if certificates.iter().any(|certificate| certificate.problem.is_some()) {
                bail!("not everything can be used; what was in use before stays in use");
            }
            Ok(())
        }
        Command::GatewayCertificate { name, out_folder, overwrite, broker } => {
            gateway_certificate(name, &out_folder, overwrite, &broker).await
        }
    }
}

async fn gateway_certificate(name: String, folder: &Path, overwrite: bool, broker: &Socket) -> anyhow::Result<()> {
    let [key_path, certificate_path, authority_path] =
        [GATEWAY_KEY, GATEWAY_CERTIFICATE, AUTHORITY].map(|file| folder.join(file));
    if key_path.exists() && !overwrite {
        bail!("{} is there already; a gateway may use it. Replace it with --overwrite", key_path.display());
    }
    let key = KeyPair::generate().context("cannot make a key")?;
    let request = CertificateParams::default().serialize_request(&key).context("cannot make a request")?;
    let request = GatewayRequest { name, request: request.pem().context("cannot make a request")? };
    let body = serde_json::to_string(&request)?;
    // Before the cluster knows of a certificate that could not be kept.
    files::make_folder(folder, 0o755)?;
    let answer: GatewayAnswer = broker.call(Method::POST, "/tls/gateway-certificate", body).await?;
    files::replace(&key_path, zeroize::Zeroizing::new(key.serialize_pem()).as_bytes(), 0o600)?;
    files::replace(&certificate_path, answer.certificate.as_bytes(), 0o644)?;
    files::replace(&authority_path, answer.authority.as_bytes(), 0o644)?;
    say!("key: {}", key_path.display());
    say!("certificate: {}, until {}", certificate_path.display(), answer.not_after);
    say!("SHA-256: {}", answer.digest);
    say!("authority: {}", authority_path.display());
    Ok(())
}

fn show(certificates: &[Expiry], json: bool) -> anyhow::Result<()> {
    if json {
        say!("{}", serde_json::to_string_pretty(certificates)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(["PORT", "SUBJECT", "UNTIL", "DAYS LEFT", "RENEWED", "FILE"]);
    for certificate in certificates {
        table.add_row([
            certificate.listener.clone(),
            certificate.subject.clone(),
            certificate.not_after.clone(),
            certificate.days_left.to_string(),
            if certificate.is_renewed { "by the broker" } else { "by you" }.to_owned(),
            certificate.file.clone(),
        ]);
    }
    say!("{table}");
    for Expiry { listener, problem, .. } in certificates {
        if let Some(problem) = problem {
            say!("NOT IN USE for {listener}: {problem}");
        }
    }
    Ok(())
}
