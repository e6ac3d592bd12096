//! Where the database is: a folder, memory, or a `SurrealDB` server.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `surrealkv://DIR`: embedded, in this folder.
    Directory(PathBuf),
    /// `mem://`: embedded, gone with the process.
    Memory,
    /// `ws://HOST:PORT` or `wss://HOST:PORT`: a `SurrealDB` server.
    Remote {
        /// Over TLS.
        tls: bool,
        /// `HOST:PORT`.
        authority: String,
        /// Who we are there; `None` where the server asks nobody.
        credentials: Option<Credentials>,
        /// PEM of the authorities that sign its certificate; `None` for the public ones.
        authorities: Option<Vec<u8>>,
    },
}

/// A root user of a `SurrealDB` server.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its name.
    pub user: String,
    /// Its password; never shown.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// A text that names no database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a database: write surrealkv://DIR, mem://, ws://HOST:PORT or wss://HOST:PORT"
)]
pub struct LocationError(String);

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let error = || LocationError(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(error)?;
        match scheme {
            "surrealkv" if !rest.is_empty() => Ok(Self::Directory(rest.into())),
            "mem" if rest.is_empty() => Ok(Self::Memory),
            "ws" | "wss" if !rest.is_empty() && !rest.contains('@') => Ok(Self::Remote {
                tls: scheme == "wss",
                authority: rest.trim_end_matches('/').to_owned(),
                credentials: None,
                authorities: None,
            }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "surrealkv://{}", path.display()),
            Self::Memory => f.write_str("mem://"),
            Self::Remote { tls, authority, .. } => {
                write!(f, "{}://{authority}", if *tls { "wss" } else { "ws" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_reads_back_as_written() {
        for text in [
            "surrealkv:///var/lib/nodestats",
            "mem://",
            "ws://db:8000",
            "wss://db",
        ] {
            assert_eq!(
                text.parse::<Location>()
                    .map(|location| location.to_string()),
                Ok(text.into())
            );
        }
        for text in [
            "",
            "mem",
            "surrealkv://",
            "rocksdb:///x",
            "ws://user:password@db",
            "/dir",
        ] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }
}
