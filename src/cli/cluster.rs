//! `berth cluster`: replicas, through the operators' socket of one of them.

use std::path::PathBuf;

use anyhow::{Context, bail};
use axum::http::Method;
use comfy_table::{Table, TableStyle};

use super::serve;
use super::socket::Socket;
use crate::broker::cluster::Place;
use crate::broker::cluster::admin::{ClusterView, InviteAnswer, InviteRequest, RaiseRequest, TransferRequest};
use crate::broker::cluster::token::JoinToken;
use crate::broker::config::Config;
use crate::secret::Secret;

/// Verbs of `berth cluster`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Begin a cluster with this replica, in an empty data folder.
    Init {
        #[command(flatten)]
        replica: serve::Args,
    },
    /// Join a cluster with this replica, in an empty data folder. `berth serve`
    /// then takes part.
    Join {
        #[command(flatten)]
        replica: serve::Args,
        /// File with the token that `berth cluster add` printed; `-` reads it
        /// from standard input.
        #[arg(long, value_name = "FILE", default_value = "-")]
        token_file: PathBuf,
    },
    /// Show the members.
    Status {
        #[command(flatten)]
        broker: Socket,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a token with which one new replica can join, once, within an hour.
    Add {
        #[command(flatten)]
        broker: Socket,
        /// The replica whose place the new one takes; it is removed when the
        /// new one has the log.
        #[arg(long, value_name = "REPLICA")]
        replace: Option<u64>,
    },
    /// Remove a replica for good. Stop it before or afterwards.
    Remove {
        /// Its number.
        replica: u64,
        #[command(flatten)]
        broker: Socket,
    },
    /// Have another replica lead.
    TransferLeader {
        /// Its number; the one with most of the log when none is given.
        to: Option<u64>,
        #[command(flatten)]
        broker: Socket,
    },
    /// Write the log in another format from now on, once all replicas read it.
    /// An earlier build cannot take a replica over afterwards.
    RaiseFormat {
        /// The format.
        to: u16,
        #[command(flatten)]
        broker: Socket,
    },
    /// Have all replicas show each other certificates of a new authority.
    RotateCertificates {
        #[command(flatten)]
        broker: Socket,
    },
}

#[allow(clippy::print_stdout)] // a command's output
pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { replica } => {
            let config = joining_config(replica)?;
            let cluster = Place::found(&config)?;
            println!("cluster: {cluster}");
            println!("replica: {}", config.replica);
        }
        Command::Join { replica, token_file } => {
            let config = joining_config(replica)?;
            let address = config.cluster.address.clone().context("the replica needs an address for others")?;
            let text = if token_file.as_os_str() == "-" {
                std::io::read_to_string(std::io::stdin()).context("cannot read the token from standard input")?
            } else {
                let path = token_file.display();
                std::fs::read_to_string(&token_file).with_context(|| format!("cannot read {path}"))?
            };
            let token = JoinToken::parse(&Secret::new(text))?;
            let joined = Place::join(&config, &token, address).await?;
            println!("cluster: {}", token.cluster);
            println!("replica: {joined}");
        }
        Command::Status { broker, json } => {
            let view: ClusterView = broker.call(Method::GET, "/cluster", String::new()).await?;
            if json {
                println!("{}", serde_json::to_string_pretty(&view)?);
            } else {
                show(&view);
            }
        }
        Command::Add { broker, replace } => {
            let body = serde_json::to_string(&InviteRequest { replaces: replace })?;
            let answer: InviteAnswer = broker.call(Method::POST, "/cluster/invitations", body).await?;
            println!("{}", answer.token);
        }
        Command::Remove { replica, broker } => {
            broker.call_raw(Method::DELETE, &format!("/cluster/replicas/{replica}"), String::new()).await?;
            println!("Replica {replica} removed.");
        }
        Command::TransferLeader { to, broker } => {
            let body = serde_json::to_string(&TransferRequest { to })?;
            broker.call_raw(Method::POST, "/cluster/leader", body).await?;
            let view: ClusterView = broker.call(Method::GET, "/cluster", String::new()).await?;
            match view.leader {
                Some(leader) => println!("Replica {leader} leads."),
                None => println!("Handed over."),
            }
        }
        Command::RaiseFormat { to, broker } => {
            let body = serde_json::to_string(&RaiseRequest { to })?;
            broker.call_raw(Method::POST, "/cluster/format", body).await?;
            println!("The log is written in format {to}.");
        }
        Command::RotateCertificates { broker } => {
            broker.call_raw(Method::POST, "/cluster/certificates", String::new()).await?;
            println!("Replicas show certificates of the next authority within a second.");
        }
    }
    Ok(())
}

/// The configuration of a replica that is to have others.
fn joining_config(args: serve::Args) -> anyhow::Result<Config> {
    let config = args.config()?;
    config.check()?;
    if config.cluster.address.is_none() {
        bail!(
            "others must be able to reach this replica: set `address` in `[cluster]`, or --cluster-address HOST:PORT"
        );
    }
    crate::broker::make_data_folder(&config)?;
    Ok(config)
}

#[allow(clippy::print_stdout)] // a command's output
fn show(view: &ClusterView) {
    println!("cluster {}, seen by replica {}", view.cluster, view.replica);
    match view.leader {
        Some(leader) => println!("replica {leader} leads in term {}", view.term),
        None => println!("nobody leads: no majority of the voting replicas can be reached"),
    }
    println!("format {}, certificates of authority {}", view.format, view.authority);
    if let Some(checkpoint) = &view.checkpoint {
        println!("state at entry {}: {}, the same on {:?}", checkpoint.index, checkpoint.hash, checkpoint.same);
        if !checkpoint.different.is_empty() {
            println!(
                "ANOTHER STATE on {:?}: stop the replica that is wrong and let it join anew",
                checkpoint.different
            );
        }
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(["REPLICA", "ADDRESS", "ROLE", "LOG", "HEARD"]);
    for member in &view.members {
        let role = match (Some(member.replica) == view.leader, member.is_voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        let number =
            |value: Option<u64>, unit: &str| value.map_or_else(|| "-".to_owned(), |value| format!("{value}{unit}"));
        table.add_row([
            member.replica.to_string(),
            member.address.clone(),
            role.to_owned(),
            number(member.matched, ""),
            number(member.heard_ms_ago, " ms ago"),
        ]);
    }
    println!("{table}");
    for replica in &view.joining {
        println!("replica {replica} was let in and has not come yet");
    }
}
