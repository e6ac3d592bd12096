//! Tokens of hosts and people outside Kubernetes: how they are asked for, listed and exchanged.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Purpose {
    /// The agent of one host: registers it, pushes its samples, signs it off.
    Host {
        /// The host's name, as the agent registers it.
        node: String,
    },
    /// A person or a program that reads.
    Viewer {
        /// Whose it is, for the list and the audit lines.
        name: String,
        /// Whether processes are shown too.
        processes: bool,
    },
    /// An agent at its first start, which gets a token of its own for it.
    Join {
        /// So many hosts can still join by it.
        uses_left: u32,
    },
}

/// A token as it is listed: everything but its secret, which nobody keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// By this it is revoked; the second part of the token's own text.
    pub id: String,
    /// What it is good for.
    pub purpose: Purpose,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it ends; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The join token that its host came by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined_by: Option<String>,
}

/// Asks for a token, at the server's own socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What it is to be good for.
    pub purpose: Purpose,
    /// For so many seconds; absent for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A new token: the one time that its secret is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// The whole of it.
    pub secret: String,
    /// As it is listed.
    pub token: Token,
    /// How others reach the server; absent where it is not running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerAddress>,
}

/// How others reach a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerAddress {
    /// Its URL.
    pub url: String,
    /// The fingerprint of a certificate that it has signed itself; absent where an authority has
    /// signed it, or without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// The body of `POST /join`: an agent at its first start, by a join token. The agent makes its own
/// token and keeps it before it sends it, so that an answer that is lost can be asked for again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The host's name, as the agent will register it.
    pub hostname: String,
    /// The token that is to be its own from now on: `nst_`, 16 hexadecimal digits, `_`, 64
    /// hexadecimal digits, of random bytes.
    pub token: String,
}
