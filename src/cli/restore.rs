//! `berth restore`: a new cluster of a backup.

use std::path::PathBuf;

use super::backup::show;
use super::serve;
use crate::broker::backup::restore::restore;

/// Options of `berth restore`.
#[derive(Debug, clap::Args)]
pub(super) struct RestoreArgs {
    /// The backup.
    file: PathBuf,
    #[command(flatten)]
    replica: serve::Args,
    /// File with the secret of the cluster that the backup is of
    /// (`cluster.key` of its replicas, or their `cluster.secret_file`). With
    /// it, tokens, the certificate authority and software statements go on
    /// being good, and agents connect by themselves.
    #[arg(long, value_name = "FILE")]
    old_secret_file: Option<PathBuf>,
}

pub(super) async fn run(args: RestoreArgs) -> anyhow::Result<()> {
    let config = args.replica.config()?;
    config.check()?;
    let restored = restore(&config, &args.file, args.old_secret_file.as_deref()).await?;
    say!("Restored this backup:");
    show(&restored.backup);
    say!("It is this cluster now:");
    say!("cluster: {}", restored.cluster);
    say!("replica: {}", restored.replica);
    say!("index: {}", restored.index);
    if restored.keeps_keys {
        say!("Tokens, the certificate authority and software statements are those of the old cluster.");
    } else {
        say!("Without the old secret its keys cannot be opened; new ones are made at the first start:");
        say!("- access tokens and connection tokens that were given out are not good any more;");
        say!("- clients and agents need the new tls/ca.pem;");
        say!("- agents that are enrolled stay so, and those that are new need a new software statement;");
        say!("- gateways need new certificates.");
    }
    let active = &restored.active;
    say!("Who was let in when the backup was made is let in again, also who was unregistered since:");
    say!("- {} API clients (`berth clients list`, `berth clients unregister --client-id ID`);", active.clients);
    say!("- {} agents (`berth agents list`, `berth agents unregister --client-id ID`);", active.agents);
    say!(
        "- gateways with {} certificates (`berth gateways list`, `berth gateways revoke --name NAME`);",
        active.gateways
    );
    say!(
        "- who enrols with one of {} software statements (`berth statements list`, `berth statements deactivate \
         --software-statement TEXT`).",
        active.statements
    );
    say!("Stop what is left of the old cluster before `berth serve` starts this one.");
    Ok(())
}
