//! Commands of the original's broker, under the names and with the output that
//! scripts of its users know. Each does what a command of ours does.

use std::path::PathBuf;

use super::access::{Agents, AuthServers, Keys, RegisterAuthServer, ServerNames, Statements};
use super::clients::{self, KeepOld, Register, Unregister};
use super::socket::Socket;

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// As `berth clients register`.
    #[command(hide = true, args_override_self = true)]
    RegisterApiClient(Register),
    /// As `berth clients list`, in the form of the original.
    #[command(hide = true)]
    DescribeApiClients {
        #[command(flatten)]
        broker: Socket,
    },
    /// As `berth clients unregister`.
    #[command(hide = true)]
    UnregisterApiClient(Unregister),
    /// As `berth keys renew --keep-old-seconds 0`.
    #[command(hide = true)]
    RenewAuthServerApiKey {
        #[command(flatten)]
        keep: KeepOld,
        #[command(flatten)]
        broker: Socket,
    },
    /// As `berth statements generate`.
    #[command(hide = true)]
    GenerateSoftwareStatement {
        #[command(flatten)]
        broker: Socket,
    },
    /// As `berth statements list`.
    #[command(hide = true)]
    DescribeSoftwareStatements {
        #[command(flatten)]
        broker: Socket,
    },
    /// As `berth statements deactivate`.
    #[command(hide = true)]
    DeactivateSoftwareStatement {
        /// The statement.
        #[arg(long)]
        software_statement: String,
        #[command(flatten)]
        broker: Socket,
    },
    /// As `berth agents list`.
    #[command(hide = true)]
    DescribeAgentClients {
        #[command(flatten)]
        broker: Socket,
    },
    /// As `berth agents unregister`.
    #[command(hide = true)]
    UnregisterAgentClient {
        /// Its id.
        #[arg(long)]
        client_id: String,
        #[command(flatten)]
        broker: Socket,
    },
    /// As `berth auth-servers register`.
    #[command(hide = true)]
    RegisterAuthServer(Box<RegisterAuthServer>),
    /// As `berth auth-servers list`.
    #[command(hide = true)]
    ListAuthServers {
        #[command(flatten)]
        broker: Socket,
    },
    /// As `berth auth-servers unregister`.
    #[command(hide = true)]
    UnregisterAuthServer {
        /// Where its keys are.
        #[arg(long)]
        url: String,
        #[command(flatten)]
        broker: Socket,
    },
    /// As `berth server-names register`.
    #[command(hide = true)]
    RegisterServerDnsMappings {
        /// JSON: a list of mappings.
        #[arg(long, value_name = "FILE")]
        file_path: PathBuf,
        #[command(flatten)]
        broker: Socket,
    },
    /// As `berth server-names list`.
    #[command(hide = true)]
    DescribeServerDnsMappings {
        #[command(flatten)]
        broker: Socket,
    },
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::RegisterApiClient(register) => register.run().await,
        Command::DescribeApiClients { broker } => clients::describe(&broker).await,
        Command::UnregisterApiClient(unregister) => unregister.run().await,
        // There, tokens that were issued before are refused from then on.
        Command::RenewAuthServerApiKey { keep, broker } => {
            Keys::Renew { connection: false, keep: keep.or_seconds(0), broker }.run().await
        }
        Command::GenerateSoftwareStatement { broker } => Statements::Generate { broker }.run().await,
        Command::DescribeSoftwareStatements { broker } => Statements::List { broker }.run().await,
        Command::DeactivateSoftwareStatement { software_statement, broker } => {
            Statements::Deactivate { software_statement, broker }.run().await
        }
        Command::DescribeAgentClients { broker } => Agents::List { broker }.run().await,
        Command::UnregisterAgentClient { client_id, broker } => Agents::Unregister { client_id, broker }.run().await,
        Command::RegisterAuthServer(register) => AuthServers::Register(register).run().await,
        Command::ListAuthServers { broker } => AuthServers::List { json: false, broker }.run().await,
        Command::UnregisterAuthServer { url, broker } => AuthServers::Unregister { url, broker }.run().await,
        Command::RegisterServerDnsMappings { file_path, broker } => {
            ServerNames::Register { file_path, replace: false, broker }.run().await
        }
        Command::DescribeServerDnsMappings { broker } => ServerNames::List { broker }.run().await,
    }
}

/// `-cn`, which the original takes for `--client-name`, as a command line that
/// is read here: options of one letter cannot have two.
pub(super) fn translated(arguments: impl Iterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    arguments.map(|argument| if argument == "-cn" { "--client-name".into() } else { argument }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_option_of_the_original_is_understood() {
        let line = ["berth", "register-api-client", "-cn", "portal"].map(Into::into);
        let read = translated(line.into_iter());
        assert_eq!(read, ["berth", "register-api-client", "--client-name", "portal"].map(std::ffi::OsString::from));
    }
}
