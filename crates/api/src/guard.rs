//! Keeps pages in a browser from using a listener that trusts whoever reaches it.
//!
//! On loopback nobody is asked who they are, so a request must come from a program of this
//! machine: a page that made its own name point to 127.0.0.1 (DNS rebinding) is known by its
//! `Host`, a page of another site by its `Origin` (RFC 6454).

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, Method, header};
use nodestats_wire::routes;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::{ApiError, App};

/// Who can reach the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// Programs of this machine.
    Loopback,
    /// Whoever is in the network.
    Network,
}

pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    match check(
        request.headers(),
        app.options.exposure,
        &app.options.cors_origins,
    ) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Lets pages of the sites that are named read, with a token where one is asked for (CORS, Fetch
/// standard section 3.2); none by default.
pub(crate) fn cors(origins: &[String]) -> CorsLayer {
    let origins = origins.iter().filter_map(|origin| origin.parse().ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET])
        .allow_headers([header::AUTHORIZATION])
        .expose_headers([
            header::LINK,
            HeaderName::from_static(routes::SAMPLE_TIME_HEADER),
            HeaderName::from_static(routes::RESOLUTION_HEADER),
        ])
}

fn check(headers: &HeaderMap, exposure: Exposure, friends: &[String]) -> Result<(), ApiError> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let host = text(header::HOST).unwrap_or_default();
    if exposure == Exposure::Loopback && !host.is_empty() && !is_local(host) {
        return Err(ApiError::forbidden(
            "this server listens on loopback and answers to localhost and addresses only, \
             not to the name in the Host header",
        ));
    }
    if let Some(origin) = text(header::ORIGIN) {
        let origin_host = origin.split_once("://").map(|(_, host)| host);
        let is_friend = friends.iter().any(|friend| friend == origin);
        if origin_host != Some(host) && !is_friend {
            return Err(ApiError::forbidden(
                "this request comes from a page of another site",
            ));
        }
    }
    Ok(())
}

/// `localhost`, or an address: only a name can be made to point somewhere else.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(host: &str, origin: Option<&str>, exposure: Exposure) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().expect("a header"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().expect("a header"));
        }
        check(&headers, exposure, &["https://friend.example".to_owned()]).is_ok()
    }

    #[test]
    fn on_loopback_only_names_of_this_machine_are_answered() {
        for host in [
            "localhost:8080",
            "LOCALHOST",
            "127.0.0.1:8080",
            "[::1]:8080",
            "192.168.2.10",
        ] {
            assert!(allowed(host, None, Exposure::Loopback), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8080", "[evil]"] {
            assert!(!allowed(host, None, Exposure::Loopback), "{host}");
            assert!(allowed(host, None, Exposure::Network), "{host}");
        }
    }

    #[test]
    fn pages_of_other_sites_are_refused_everywhere() {
        for exposure in [Exposure::Loopback, Exposure::Network] {
            assert!(allowed(
                "localhost:8080",
                Some("http://localhost:8080"),
                exposure
            ));
            let friend = Some("https://friend.example");
            assert!(allowed("localhost:8080", friend, exposure));
            for origin in [
                "http://evil.example",
                "null",
                "http://localhost:9",
                "http://friend.example",
            ] {
                assert!(
                    !allowed("localhost:8080", Some(origin), exposure),
                    "{origin}"
                );
            }
        }
    }
}
