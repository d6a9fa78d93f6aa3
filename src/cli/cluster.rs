//! `berth cluster`: replicas, through the operators' socket of one of them.

use std::path::PathBuf;

use anyhow::{Context, bail};
use axum::http::Method;
use comfy_table::{Table, TableStyle};

use super::serve;
use super::socket::Socket;
use crate::broker::cluster::Place;
use crate::broker::cluster::admin::{
    ClusterView, InvitationView, InviteAnswer, InviteRequest, RaiseRequest, TransferRequest,
};
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
    /// Show the tokens that were given out: which are open, and which replicas
    /// came with one.
    Invitations {
        #[command(flatten)]
        broker: Socket,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take a token back that was not used yet.
    Revoke {
        /// Id of its invitation, as `berth cluster invitations` shows it.
        id: String,
        #[command(flatten)]
        broker: Socket,
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

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { replica } => {
            let config = joining_config(replica)?;
            let cluster = Place::found(&config)?;
            say!("cluster: {cluster}");
            say!("replica: {}", config.replica);
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
            say!("cluster: {}", token.cluster);
            say!("replica: {joined}");
        }
        Command::Status { broker, json } => {
            let view: ClusterView = broker.call(Method::GET, "/cluster", String::new()).await?;
            if json {
                say!("{}", serde_json::to_string_pretty(&view)?);
            } else {
                show(&view);
            }
        }
        Command::Add { broker, replace } => {
            let body = serde_json::to_string(&InviteRequest { replaces: replace })?;
            let answer: InviteAnswer = broker.call(Method::POST, "/cluster/invitations", body).await?;
            say!("{}", answer.token);
        }
        Command::Invitations { broker, json } => {
            let invitations: Vec<InvitationView> =
                broker.call(Method::GET, "/cluster/invitations", String::new()).await?;
            if json {
                say!("{}", serde_json::to_string_pretty(&invitations)?);
            } else {
                show_invitations(&invitations);
            }
        }
        Command::Revoke { id, broker } => {
            uuid::Uuid::parse_str(&id).context("the id of an invitation is a UUID")?;
            broker.call_raw(Method::DELETE, &format!("/cluster/invitations/{id}"), String::new()).await?;
            say!("Nobody can join with invitation {id} any more.");
        }
        Command::Remove { replica, broker } => {
            broker.call_raw(Method::DELETE, &format!("/cluster/replicas/{replica}"), String::new()).await?;
            say!("Replica {replica} removed.");
        }
        Command::TransferLeader { to, broker } => {
            let body = serde_json::to_string(&TransferRequest { to })?;
            broker.call_raw(Method::POST, "/cluster/leader", body).await?;
            let view: ClusterView = broker.call(Method::GET, "/cluster", String::new()).await?;
            match view.leader {
                Some(leader) => say!("Replica {leader} leads."),
                None => say!("Handed over."),
            }
        }
        Command::RaiseFormat { to, broker } => {
            let body = serde_json::to_string(&RaiseRequest { to })?;
            broker.call_raw(Method::POST, "/cluster/format", body).await?;
            say!("The log is written in format {to}.");
        }
        Command::RotateCertificates { broker } => {
            broker.call_raw(Method::POST, "/cluster/certificates", String::new()).await?;
            say!("Replicas show certificates of the next authority within a second.");
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

fn show_invitations(invitations: &[InvitationView]) {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(["INVITATION", "STATE", "GIVEN OUT BY", "UNTIL", "REPLACES"]);
    for invitation in invitations {
        let replica = |id: Option<u64>| id.map_or_else(|| "-".to_owned(), |id| format!("replica {id}"));
        let state = match invitation.used_by {
            Some(id) => format!("used by replica {id}"),
            None if invitation.seems_expired => "seems expired".to_owned(),
            None => "open".to_owned(),
        };
        table.add_row([
            invitation.id.clone(),
            state,
            replica(invitation.by),
            invitation.expires_at.clone().unwrap_or_else(|| "-".to_owned()),
            replica(invitation.replaces),
        ]);
    }
    say!("{table}");
}

fn show(view: &ClusterView) {
    say!("cluster {}, seen by replica {}", view.cluster, view.replica);
    match view.leader {
        Some(leader) => say!("replica {leader} leads in term {}", view.term),
        None => say!("nobody leads: no majority of the voting replicas can be reached"),
    }
    say!("format {}, certificates of authority {}", view.format, view.authority);
    if let Some(checkpoint) = &view.checkpoint {
        say!("state at entry {}: {}, the same on {:?}", checkpoint.index, checkpoint.hash, checkpoint.same);
        if !checkpoint.different.is_empty() {
            say!("ANOTHER STATE on {:?}: stop the replica that is wrong and let it join anew", checkpoint.different);
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
    say!("{table}");
    for replica in &view.joining {
        say!("replica {replica} was let in and has not come yet");
    }
}
