//! `nodestats token`: through the running server's socket, or in the database itself.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nodestats_api::tokens;
use nodestats_runtime::metrics::Registry;
use nodestats_runtime::{directories, limits};
use nodestats_store::{Location, MemoryBudget, Store};
use nodestats_wire::client::Client;
use nodestats_wire::v1::{Issued, Purpose, Token, TokenRequest};

use crate::arguments::{self, Role, TokenCommand};
use crate::tls::Files;
use crate::{local, server};

/// The server has this long to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where tokens are kept.
enum Place {
    /// A server runs.
    Server(Client),
    /// Nobody has the database.
    Database(Store),
}

impl Place {
    async fn open(arguments: &mut arguments::Token) -> anyhow::Result<(Self, Option<Files>)> {
        let location = match arguments.database.take() {
            Some(location) => server::database(location, &arguments.account)?,
            None => Location::Directory(
                arguments
                    .data_dir
                    .take()
                    .unwrap_or_else(|| directories::state("nodestats")),
            ),
        };
        let folder = match &location {
            Location::Directory(folder) => Some(folder.clone()),
            Location::Remote { .. } => None,
            Location::Memory => bail!("tokens in mem:// would be gone at once"),
        };
        let own = folder.as_deref().map(Files::own);
        if let Some(folder) = &folder
            && let Some(client) = running(folder).await?
        {
            return Ok((Self::Server(client), own));
        }
        if let Some(folder) = &folder {
            anyhow::ensure!(
                directories::is_own(folder)?,
                "{} is another user's, and no server runs there: be that user, or start the server",
                folder.display()
            );
        }
        let options = nodestats_store::Options {
            retention: Duration::MAX,
            memory: MemoryBudget::from_limit(limits::memory()),
            node_quota: None,
            retention_minute: Duration::MAX,
            retention_hour: Duration::MAX,
            max_size: None,
            meter: Registry::default().meter("nodestats.store"),
        };
        nodestats_runtime::tls::use_ring();
        let store = Store::open(&location, &options).await?;
        Ok((Self::Database(store), own))
    }

    async fn issue(&self, wanted: TokenRequest) -> anyhow::Result<Issued> {
        Ok(match self {
            Self::Server(client) => client.issue(&wanted).await?,
            Self::Database(store) => tokens::issue(store, wanted).await?,
        })
    }

    async fn list(&self) -> anyhow::Result<Vec<Token>> {
        Ok(match self {
            Self::Server(client) => client.tokens().await?,
            Self::Database(store) => tokens::list(store).await?,
        })
    }

    async fn revoke(&self, id: &str) -> anyhow::Result<()> {
        match self {
            Self::Server(client) => client.revoke(id).await?,
            Self::Database(store) => tokens::revoke(store, id).await?,
        }
        Ok(())
    }

    async fn close(self) {
        if let Self::Database(store) = self {
            store.close().await;
        }
    }
}

/// The server that runs on this folder; `None` where none does.
async fn running(folder: &Path) -> anyhow::Result<Option<Client>> {
    // A token in a new database beside the server's would be good for nothing.
    anyhow::ensure!(
        nodestats_store::is_made(folder),
        "{} is no data directory of nodestats that this user may read: --data-dir or --database says \
         where it is",
        folder.display()
    );
    let socket = local::path(folder);
    match tokio::net::UnixStream::connect(&socket).await {
        Ok(_) => Ok(Some(Client::at_socket(&socket, PATIENCE)?)),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(error).context(format!(
                "{} is for who runs the server: be that user",
                socket.display()
            ))
        }
        Err(_) => Ok(None),
    }
}

/// `nodestats token`.
pub(crate) async fn run(mut arguments: arguments::Token) -> anyhow::Result<()> {
    let (place, own) = Place::open(&mut arguments).await?;
    let done = act(&place, own, arguments.what).await;
    place.close().await;
    print!("{}", done?);
    Ok(())
}

/// Does it, and returns what is to be printed.
async fn act(place: &Place, own: Option<Files>, what: TokenCommand) -> anyhow::Result<String> {
    match what {
        TokenCommand::Issue {
            node,
            role,
            name,
            ttl,
        } => {
            let purpose = match (node, role) {
                (Some(node), _) => Purpose::Host { node },
                (None, role) => Purpose::Viewer {
                    name: name.unwrap_or_else(|| "somebody".to_owned()),
                    processes: role == Some(Role::ProcessViewer),
                },
            };
            let ttl_seconds = ttl.map(|ttl| ttl.as_secs());
            let wanted = TokenRequest {
                purpose,
                ttl_seconds,
            };
            let issued = place.issue(wanted).await?;
            Ok(format!("{}\n", issued.secret))
        }
        TokenCommand::Join { ttl, uses, server } => {
            let wanted = TokenRequest {
                purpose: Purpose::Join { uses_left: uses },
                ttl_seconds: Some(ttl.as_secs()),
            };
            let issued = place.issue(wanted).await?;
            Ok(line(&issued, server, own))
        }
        TokenCommand::List => Ok(table(&place.list().await?)),
        TokenCommand::Revoke { id: Some(id), .. } => {
            place.revoke(&id).await?;
            Ok(format!("{id} is revoked\n"))
        }
        TokenCommand::Revoke { id: None, node } => {
            let node = node.unwrap_or_default();
            let mut told = String::new();
            for token in place.list().await? {
                if matches!(&token.purpose, Purpose::Host { node: of } if of.eq_ignore_ascii_case(&node))
                {
                    place.revoke(&token.id).await?;
                    let _ = writeln!(told, "{} is revoked", token.id);
                }
            }
            anyhow::ensure!(!told.is_empty(), "the host {node:?} has no token");
            Ok(told)
        }
    }
}

/// The line that starts an agent on the next host.
fn line(issued: &Issued, told: Option<String>, own: Option<Files>) -> String {
    let server = issued.server.as_ref();
    // Where no server runs, a certificate of its own says what it will show.
    let fingerprint = match server {
        Some(server) => server.fingerprint.clone(),
        None => own
            .and_then(|own| own.fingerprint().ok())
            .map(|own| own.to_string()),
    };
    let url = told
        .or_else(|| server.map(|server| server.url.clone()))
        .unwrap_or_else(|| "https://HOST:8080".to_owned());
    let fingerprint = fingerprint
        .filter(|_| url.starts_with("https:"))
        .map(|fingerprint| format!(" --fingerprint {fingerprint}"))
        .unwrap_or_default();
    format!(
        "nodestats-agent --server {url}{fingerprint} --join {}\n",
        issued.secret
    )
}

fn table(tokens: &[Token]) -> String {
    let now = nodestats_wire::Timestamp::from_system(std::time::SystemTime::now());
    let mut text = format!("{:<18}{:<44}{:<22}ENDS\n", "ID", "FOR", "ISSUED");
    for token in tokens {
        let purpose = match &token.purpose {
            Purpose::Host { node } => format!("host {node}"),
            Purpose::Viewer {
                name,
                processes: false,
            } => format!("viewer {name}"),
            Purpose::Viewer {
                name,
                processes: true,
            } => format!("process-viewer {name}"),
            Purpose::Join { uses_left } => format!("join, {uses_left} left"),
        };
        let ends = match token.expires_at {
            Some(end) if end <= now => "ended".to_owned(),
            Some(end) => end.to_string(),
            None => "-".to_owned(),
        };
        let issued = token.issued_at.to_string();
        let issued = issued.split('.').next().unwrap_or_default();
        let issued = issued.trim_end_matches('Z');
        let _ = writeln!(text, "{:<18}{purpose:<44}{issued:<22}{ends}", token.id);
    }
    text
}
