//! Tokens of hosts and people outside Kubernetes: their text, what is kept of them, and whether
//! one that is shown is good. What is kept is a hash: the secret has 256 random bits, so a plain
//! SHA-256 (FIPS 180-4) tells nothing of it.

use std::fmt::{self, Write as _};

use nodestats_wire::Timestamp;
use nodestats_wire::v1::{self, Purpose};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Random bytes of a token: 8 for its id, which is no secret, and 32 that are.
pub const RANDOM_BYTES: usize = ID_BYTES + SECRET_BYTES;
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
/// How a token begins that is good for itself, and one that is exchanged for such a one.
const OWN: &str = "nst";
const JOIN: &str = "nsj";

/// The text of a token: `nst_ID_SECRET`, or `nsj_ID_SECRET` of one to join by.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    to_join: bool,
    id: String,
    secret: String,
}

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// As it is listed.
    pub token: v1::Token,
    /// SHA-256 of the secret, hexadecimal.
    hash: String,
}

impl Token {
    /// From random bytes.
    pub fn new(purpose: &Purpose, random: &[u8; RANDOM_BYTES]) -> Self {
        let (id, secret) = random.split_at(ID_BYTES);
        Self {
            to_join: matches!(purpose, Purpose::Join { .. }),
            id: hex(id),
            secret: hex(secret),
        }
    }

    /// Reads a token's text; `None` where it is none of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('_');
        let to_join = match parts.next()? {
            OWN => false,
            JOIN => true,
            _ => return None,
        };
        let is_hex = |text: &&str, bytes: usize| {
            let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            text.len() == 2 * bytes && text.bytes().all(digit)
        };
        let id = parts.next().filter(|id| is_hex(id, ID_BYTES))?;
        let secret = parts.next().filter(|secret| is_hex(secret, SECRET_BYTES))?;
        parts.next().is_none().then(|| Self {
            to_join,
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// By what the rest of it is found.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether it is one to join by.
    pub fn is_to_join(&self) -> bool {
        self.to_join
    }

    fn hash(&self) -> String {
        hex(&Sha256::digest(self.secret.as_bytes()))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.to_join { JOIN } else { OWN };
        write!(f, "{kind}_{}_{}", self.id, self.secret)
    }
}

/// Without the secret: what is debugged ends in logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

impl Grant {
    /// What is kept of a token that is issued now.
    pub fn new(token: &Token, purpose: Purpose, now: Timestamp, ttl_seconds: Option<u64>) -> Self {
        let end = |seconds: u64| {
            let micros = i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
            now.plus_micros(micros)
        };
        Self {
            token: v1::Token {
                id: token.id.clone(),
                purpose,
                issued_at: now,
                expires_at: ttl_seconds.map(end),
                joined_by: None,
            },
            hash: token.hash(),
        }
    }

    /// Whether this is the secret of the grant, by a comparison that takes the same time wherever
    /// they differ.
    pub fn is_of(&self, token: &Token) -> bool {
        let is_join = matches!(self.token.purpose, Purpose::Join { .. });
        let same = self.hash.as_bytes().ct_eq(token.hash().as_bytes());
        self.token.id == token.id && is_join == token.to_join && bool::from(same)
    }

    /// Whether it is good at this time.
    pub fn is_good_at(&self, now: Timestamp) -> bool {
        self.token.expires_at.is_none_or(|end| now < end)
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host() -> Purpose {
        Purpose::Host {
            node: "web-1".to_owned(),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000).expect("a time")
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(random: [u8; RANDOM_BYTES]) {
            let token = Token::new(&host(), &random);
            prop_assert_eq!(Token::parse(&token.to_string()), Some(token.clone()));
            let debugged = format!("{token:?}");
            prop_assert!(!debugged.contains(&token.secret));
        }

        #[test]
        fn nothing_else_is_a_token(text in "(nst|nsj|x)?_?[0-9a-fA-F_é]{0,90}") {
            if let Some(token) = Token::parse(&text) {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }

    #[test]
    fn a_grant_is_of_its_own_token_for_its_time() {
        let token = Token::new(&host(), &[1; RANDOM_BYTES]);
        let grant = Grant::new(&token, host(), at(100), Some(50));
        assert!(grant.is_of(&token));
        assert!(grant.is_good_at(at(149)) && !grant.is_good_at(at(150)));
        assert!(Grant::new(&token, host(), at(100), None).is_good_at(at(1 << 33)));
        let mut other = [1; RANDOM_BYTES];
        other[RANDOM_BYTES - 1] = 2;
        assert!(!grant.is_of(&Token::new(&host(), &other)));
        // A token of one kind is no token of the other by writing it so.
        let text = token.to_string().replace("nst_", "nsj_");
        assert!(!grant.is_of(&Token::parse(&text).expect("a token to join by")));
        let kept = serde_json::to_string(&grant).expect("plain data");
        assert!(!kept.contains(&token.secret) && kept.contains(&grant.hash));
    }
}
