//! Health, metrics and the description of the API.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{Uri, header};

use crate::query::NoQuery;
use crate::{ApiError, App, query, routes};

pub(crate) async fn healthz(uri: Uri) -> Result<&'static str, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    Ok("ok\n")
}

pub(crate) async fn readyz(State(app): State<App>, uri: Uri) -> Result<&'static str, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    app.store.check().await?;
    Ok("ok\n")
}

pub(crate) async fn metrics(State(app): State<App>, uri: Uri) -> Result<Response, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    Ok((kind, app.metrics.render()).into_response())
}

pub(crate) async fn openapi(uri: Uri) -> Result<Response, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, routes::openapi_document()).into_response())
}
