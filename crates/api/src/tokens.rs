//! Tokens of hosts and people: issued, listed and revoked by whoever may open the server's own
//! socket, or the database where no server holds it.

use nodestats_core::life::check_hostname;
use nodestats_core::token::{Grant, RANDOM_BYTES, Token};
use nodestats_store::Store;
use nodestats_wire::v1::{self, Issued, Origin, Purpose, TokenRequest};

use crate::{ApiError, App};

/// Most hosts of one join token: more than any cluster of plain hosts that is set up at once.
const USES_LIMIT: u32 = 100_000;

/// A new token, and the one time that its secret is told.
pub async fn issue(store: &Store, wanted: TokenRequest) -> Result<Issued, ApiError> {
    let TokenRequest {
        purpose,
        ttl_seconds,
    } = wanted;
    check(store, &purpose).await?;
    if ttl_seconds == Some(0) {
        return Err(ApiError::field(
            "ttl_seconds",
            "a token is good for a second at least",
        ));
    }
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|_| ApiError::unavailable("no random bytes are there"))?;
    let token = Token::new(&purpose, &random);
    let grant = Grant::new(&token, purpose, App::now(), ttl_seconds);
    store.save_grant(&grant).await?;
    audit("token issued", "local", &grant.token);
    Ok(Issued {
        secret: token.to_string(),
        token: grant.token,
        server: None,
    })
}

/// All tokens, oldest first, those that have ended among them.
pub async fn list(store: &Store) -> Result<Vec<v1::Token>, ApiError> {
    let grants = store.grants().await?;
    let mut tokens: Vec<_> = grants.into_iter().map(|grant| grant.token).collect();
    tokens.sort_by(|a, b| (a.issued_at, &a.id).cmp(&(b.issued_at, &b.id)));
    Ok(tokens)
}

/// Ends a token, from the next request on.
pub async fn revoke(store: &Store, id: &str) -> Result<(), ApiError> {
    let Some(grant) = store.revoke(id).await? else {
        return Err(ApiError::missing(format!("there is no token {id:?}")));
    };
    audit("token revoked", "local", &grant.token);
    Ok(())
}

/// One line for what is done with a token, by whom.
pub(crate) fn audit(what: &str, who: &str, token: &v1::Token) {
    tracing::info!(
        target: "nodestats::audit",
        who,
        what,
        token = token.id,
        purpose = ?token.purpose,
        expires_at = token.expires_at.map(|end| end.to_string()),
        way = if who == "local" { "local" } else { "direct" },
        "audit"
    );
}

async fn check(store: &Store, purpose: &Purpose) -> Result<(), ApiError> {
    match purpose {
        Purpose::Host { node } => {
            check_hostname(node)?;
            let of_cluster = store.lives().await?.iter().any(|life| {
                let is_live = life.is_live() && life.origin() == Origin::Kubernetes;
                is_live && life.is_called(node)
            });
            if of_cluster {
                return Err(ApiError::taken(format!(
                    "{node:?} is a node of a cluster, whose agent has a token of Kubernetes"
                )));
            }
            Ok(())
        }
        Purpose::Viewer { name, .. } => {
            let is_plain = |c: char| !c.is_control();
            if name.is_empty() || name.len() > 100 || !name.chars().all(is_plain) {
                return Err(ApiError::field(
                    "purpose.name",
                    "a name has 1 to 100 characters",
                ));
            }
            Ok(())
        }
        Purpose::Join { uses_left } if (1..=USES_LIMIT).contains(uses_left) => Ok(()),
        Purpose::Join { .. } => Err(ApiError::field(
            "purpose.uses_left",
            format!("a join token is for 1 to {USES_LIMIT} hosts"),
        )),
    }
}
