//! The agent's own token where a join token brings it in: made here, kept before it is sent, so that
//! an answer that is lost can be asked for again.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nodestats_core::token::{RANDOM_BYTES, Token};
use nodestats_wire::client::{Client, Error};
use nodestats_wire::v1::{Join, Purpose};

/// What ends the name of a file whose token the server does not know yet.
const PENDING: &str = "new";

/// A token that the server is to know.
pub(crate) struct Joiner {
    client: Client,
    join: Join,
    pending: PathBuf,
    kept: PathBuf,
}

/// The agent's own token, where it has joined before or joins now, by a join token that `client`
/// shows; `kept` is its file. None where it was never told to join.
pub(crate) fn open(
    kept: PathBuf,
    client: Client,
    join_token: Option<&str>,
    hostname: &str,
) -> anyhow::Result<Option<(String, Option<Joiner>)>> {
    if kept.exists() {
        let text = fs::read_to_string(&kept);
        let text = text.with_context(|| format!("cannot read {}", kept.display()))?;
        if join_token.is_some() {
            tracing::info!(
                file = %kept.display(),
                "this host has joined before and has a token; without that file it joins anew",
            );
        }
        return Ok(Some((text.trim().to_owned(), None)));
    }
    let Some(join_token) = join_token else {
        return Ok(None);
    };
    let given = Token::parse(join_token.trim()).filter(Token::is_to_join);
    let given = given.context("--join takes a token of nodestats token join, nsj_…")?;
    let pending = kept.with_added_extension(PENDING);
    let token = own_token(&pending, hostname)
        .with_context(|| format!("cannot keep a token in {}", pending.display()))?;
    let joiner = Joiner {
        client: client.with_token(&given.to_string())?,
        join: Join {
            hostname: hostname.to_owned(),
            token: token.clone(),
        },
        pending,
        kept,
    };
    Ok(Some((token, Some(joiner))))
}

/// The token in the file, which is made where it is missing.
fn own_token(path: &Path, hostname: &str) -> io::Result<String> {
    if let Ok(text) = fs::read_to_string(path)
        && let Some(token) = Token::parse(text.trim())
    {
        return Ok(token.to_string());
    }
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let node = hostname.to_owned();
    let token = Token::new(&Purpose::Host { node }, &random).to_string();
    let mut options = File::options();
    let mut file = options
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    Ok(token)
}

impl Joiner {
    /// Has the server know the token.
    pub(crate) async fn join(&self) -> Result<(), Error> {
        self.client.join(&self.join).await?;
        self.keep()
    }

    /// The server knows the token, which then has its last name.
    pub(crate) fn keep(&self) -> Result<(), Error> {
        let renamed = fs::rename(&self.pending, &self.kept);
        renamed.map_err(|error| Error::File(self.kept.clone(), error))?;
        tracing::info!(file = %self.kept.display(), "joined; the host has a token of its own");
        Ok(())
    }
}
