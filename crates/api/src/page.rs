//! The page for people: one document with its style and its script, nothing from elsewhere.

use std::sync::LazyLock;

use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use http::{Uri, header};
use sha2::{Digest as _, Sha256};

use crate::query::NoQuery;
use crate::{ApiError, query};

const PAGE: &str = include_str!("page.html");

/// Only this script and this style run, and they talk to this server only.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("<script>", "</script>"),
        hash_of("<style>", "</style>"),
    )
});

fn hash_of(open: &str, close: &str) -> String {
    let text = PAGE
        .split_once(open)
        .and_then(|(_, rest)| rest.split_once(close));
    let (text, _) = text.expect("the page has a style and a script");
    base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text))
}

pub(crate) async fn page(uri: Uri) -> Result<Response, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, PAGE).into_response())
}
