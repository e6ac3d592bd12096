//! The command line of `nodestats token`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use nodestats_store::Location;

use super::{DatabaseAccount, span};

/// Tokens of hosts and people outside Kubernetes: issues, lists and revokes them, through the running
/// server's socket in its data directory, or in the database where no server holds it.
#[derive(Debug, Args)]
pub(crate) struct Token {
    /// The server's data directory [default: /var/lib/nodestats as root, else nodestats in the XDG state
    /// directory].
    #[arg(
        long,
        env = "NODESTATS_DATA_DIR",
        value_name = "DIR",
        global = true,
        conflicts_with = "database"
    )]
    pub(crate) data_dir: Option<PathBuf>,

    /// The server's database, as `nodestats api` is told it.
    #[arg(long, env = "NODESTATS_DATABASE", value_name = "URL", global = true)]
    pub(crate) database: Option<Location>,

    #[command(flatten)]
    pub(crate) account: DatabaseAccount,

    #[command(subcommand)]
    pub(crate) what: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Prints a new token: of one host's agent (`nodestats-agent --server-token-file`), or of somebody
    /// who reads (`kubectl-nodestats --token-file`, `curl -H 'Authorization: Bearer …'`).
    #[command(group = clap::ArgGroup::new("whose").required(true))]
    Issue {
        /// The host's name, as its agent registers it: pushes its samples, and nothing else.
        #[arg(long, value_name = "NAME", group = "whose")]
        node: Option<String>,
        /// Reads: `viewer` everything but processes, `process-viewer` these too.
        #[arg(long, value_enum, group = "whose")]
        role: Option<Role>,
        /// With --role: whose it is, for the list and the audit lines.
        #[arg(long, value_name = "NAME", requires = "role")]
        name: Option<String>,
        /// How long it is good, such as 12h or 90d [default: until it is revoked].
        #[arg(long, value_name = "TIME", value_parser = span)]
        ttl: Option<Duration>,
    },
    /// Prints the line that starts the agents of further hosts, each of which gets a token of its own.
    Join {
        /// How long the line is good.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = span)]
        ttl: Duration,
        /// For how many hosts.
        #[arg(long, value_name = "N", default_value_t = 1)]
        uses: u32,
        /// How those hosts reach the server [default: by what it listens on].
        #[arg(long, value_name = "URL")]
        server: Option<String>,
    },
    /// Lists all tokens, without their secrets.
    List,
    /// Ends a token: the next request with it is refused.
    #[command(group = clap::ArgGroup::new("which").required(true))]
    Revoke {
        /// Its id, as `list` shows it.
        #[arg(value_name = "ID", group = "which")]
        id: Option<String>,
        /// All of this host's.
        #[arg(long, value_name = "NAME", group = "which")]
        node: Option<String>,
    },
}

/// What somebody who reads may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Viewer,
    ProcessViewer,
}
