//! The router of the server's own socket: a file in its data directory that nobody else may open, so
//! who comes that way is whoever runs the server. The same routes as everywhere, and tokens.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get};
use axum::{Json, Router};
use http::StatusCode;
use nodestats_wire::routes;
use nodestats_wire::v1::{Issued, ServerAddress, Token};

use crate::access::Identity;
use crate::{ApiError, App, body, router, tokens};

#[derive(Clone)]
struct Local {
    app: App,
    server: Arc<ServerAddress>,
}

/// The router of a socket that only whoever runs the server may open. `server` is how others reach
/// it, for the line that starts their agents.
pub fn local_router(app: &App, server: ServerAddress) -> Router {
    let local = Local {
        app: app.clone(),
        server: Arc::new(server),
    };
    let tokens = Router::new()
        .route(routes::TOKENS, get(list).post(issue))
        .route(&format!("{}/{{id}}", routes::TOKENS), delete(revoke))
        .with_state(local);
    tokens.fallback_service(router(app.clone()).layer(middleware::from_fn(trust)))
}

async fn trust(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Identity::anybody(true));
    next.run(request).await
}

async fn list(State(local): State<Local>) -> Result<Json<Vec<Token>>, ApiError> {
    tokens::list(&local.app.store).await.map(Json)
}

async fn issue(State(local): State<Local>, body: Body) -> Result<Json<Issued>, ApiError> {
    let body = body::receive_small(&local.app, body).await?;
    let issued = tokens::issue(&local.app.store, body::json(&body.bytes)?).await?;
    Ok(Json(Issued {
        server: Some((*local.server).clone()),
        ..issued
    }))
}

async fn revoke(
    State(local): State<Local>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    tokens::revoke(&local.app.store, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
