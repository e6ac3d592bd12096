//! The page for people: one document with its style and its script, nothing from elsewhere.

use std::sync::LazyLock;

use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use http::{Uri, header};
use sha2::{Digest as _, Sha256};

use crate::query::NoQuery;
use crate::{ApiError, query};

/// The page, with uPlot 1.6.32 (its `dist/uPlot.iife.min.js` and `dist/uPlot.min.css`), which draws lines over
/// time: no asset is asked for anywhere.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let page = include_str!("page/page.html");
    page.replace("/* uplot.css */", include_str!("page/uplot.css"))
        .replace("/* uplot.js */", include_str!("page/uplot.js"))
});

/// Only these scripts and this style run, and they talk to this server only.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hashes_of("<script>", "</script>"),
        hashes_of("<style>", "</style>"),
    )
});

/// The hashes of all that stands between two tags, as a policy has them.
fn hashes_of(open: &str, close: &str) -> String {
    let parts = PAGE.split(open).skip(1);
    let texts = parts.filter_map(|part| part.split_once(close).map(|(text, _)| text));
    let hash = |text| {
        let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text));
        format!("'sha256-{digest}'")
    };
    texts.map(hash).collect::<Vec<_>>().join(" ")
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
    Ok((headers, PAGE.as_str()).into_response())
}
