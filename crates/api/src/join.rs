//! `POST /join`: an agent at its first start exchanges a join token for one of its own.

use axum::body::Body;
use axum::extract::State;
use http::{StatusCode, Uri};
use nodestats_core::life::check_hostname;
use nodestats_core::token::{Grant, Token};
use nodestats_store::Joined;
use nodestats_wire::v1::{Join, Purpose};

use crate::access::Identity;
use crate::query::NoQuery;
use crate::{ApiError, App, body, query, tokens};

pub(crate) async fn join(
    State(app): State<App>,
    identity: Identity,
    uri: Uri,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    let Some(by) = identity.join_grant() else {
        app.metrics.denied();
        return Err(ApiError::forbidden(
            "a join token is exchanged here (nodestats token join makes one), and this is none",
        ));
    };
    let body = body::receive_small(&app, body).await?;
    let Join { hostname, token } = body::json(&body.bytes)?;
    check_hostname(&hostname)?;
    let token = Token::parse(&token).filter(|token| !token.is_to_join());
    let token = token.ok_or_else(|| ApiError::field("token", "this is no token of a host"))?;
    let purpose = Purpose::Host {
        node: hostname.clone(),
    };
    let mut grant = Grant::new(&token, purpose, App::now(), None);
    grant.token.joined_by = Some(by.token.id.clone());
    // One at a time: two hosts of one name are not both the first.
    let _turn = app.registrations.lock().await;
    if let Some(known) = app.store.grant(token.id()).await? {
        // The answer was lost, and it asks again, perhaps by another join token.
        if known.is_of(&token) && known.token.purpose == grant.token.purpose {
            return Ok(StatusCode::NO_CONTENT);
        }
        return Err(ApiError::taken("this token is another host's"));
    }
    is_new(&app, &hostname).await?;
    match app.store.join(by, &grant).await? {
        Joined::New => {
            tokens::audit("host joined", &by.token.id, &grant.token);
            Ok(StatusCode::NO_CONTENT)
        }
        Joined::UsedUp => {
            app.metrics.denied();
            Err(ApiError::forbidden(
                "as many hosts as it is for have joined by this token",
            ))
        }
    }
}

/// A join token makes hosts and takes none over: whoever has it is not to become a node that others
/// know.
async fn is_new(app: &App, hostname: &str) -> Result<(), ApiError> {
    let lives = app.store.lives().await?;
    let has_history = lives
        .iter()
        .any(|life| life.registration.hostname.eq_ignore_ascii_case(hostname));
    let has_token = !app.store.grants_of_host(hostname).await?.is_empty();
    if has_history || has_token {
        return Err(ApiError::taken(format!(
            "there is a host {hostname:?} already: it has a token of its own, or gets a new one by \
             nodestats token issue --node {hostname}; a host of the same name is started with another \
             --hostname"
        )));
    }
    Ok(())
}
