//! `berth gateways`: which certificates let gateways in.

use anyhow::Context;
use axum::http::Method;
use comfy_table::{Table, TableStyle};
use jiff::Timestamp;

use super::socket::Socket;
use crate::broker::tls::admin::{GatewayEntry, RevokeRequest};

/// Verbs of `berth gateways`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the certificates of gateways that are good.
    List {
        #[command(flatten)]
        broker: Socket,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let a gateway in no more, or not with one of its certificates.
    Revoke {
        /// What the gateway is called.
        #[arg(long)]
        name: String,
        /// SHA-256 of the certificate, as `list` shows it; all that the gateway
        /// has when not given.
        #[arg(long, value_name = "SHA256")]
        certificate: Option<String>,
        #[command(flatten)]
        broker: Socket,
    },
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List { broker, json } => {
            let known: Vec<GatewayEntry> = broker.call(Method::GET, "/gateways", String::new()).await?;
            if json {
                say!("{}", serde_json::to_string_pretty(&known)?);
                return Ok(());
            }
            let mut table = Table::new();
            table.load_style(TableStyle::new()).set_header(["GATEWAY", "UNTIL", "SIGNED", "CERTIFICATE"]);
            for GatewayEntry { name, certificate, signed_at, until } in known {
                table.add_row([name, time(until)?, time(signed_at)?, certificate]);
            }
            say!("{table}");
        }
        Command::Revoke { name, certificate, broker } => {
            let request = serde_json::to_string(&RevokeRequest { name, certificate })?;
            broker.call_raw(Method::POST, "/gateways/revoke", request).await?;
            say!("Revoked.");
        }
    }
    Ok(())
}

fn time(millis: u64) -> anyhow::Result<String> {
    let at = i64::try_from(millis).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    Ok(at.with_context(|| format!("{millis} is no time"))?.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
