//! Health, metrics and the description of the API.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, Uri, header};
use nodestats_runtime::metrics::Format;

use crate::query::NoQuery;
use crate::{ApiError, App, query, routes};

pub(crate) async fn healthz(uri: Uri) -> Result<&'static str, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    Ok("ok\n")
}

pub(crate) async fn readyz(State(app): State<App>, uri: Uri) -> Result<&'static str, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    app.store.check().await?;
    match app.options.certificate.obstacle(App::now().second()) {
        Some(obstacle) => Err(ApiError::unavailable(obstacle)),
        None => Ok("ok\n"),
    }
}

pub(crate) async fn metrics(
    State(app): State<App>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    let format = accepted(&headers);
    let kind = [(header::CONTENT_TYPE, format.media_type())];
    Ok((kind, app.options.registry.render(format)).into_response())
}

/// The form of metrics that a client asks for.
pub(crate) fn accepted(headers: &HeaderMap) -> Format {
    let accept = headers.get(header::ACCEPT);
    Format::accepted(accept.and_then(|accept| accept.to_str().ok()))
}

pub(crate) async fn openapi(uri: Uri) -> Result<Response, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, routes::openapi_document()).into_response())
}
