//! Every error answer: one table of statuses, as problem documents (RFC 9457).
//!
//! What a client reads says what is wrong with its request. Paths, statements and messages of the
//! database stay in the log.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use nodestats_core::life::{RegistrationError, ResolveError};
use nodestats_store as store;
use nodestats_wire::{Problem, routes};

/// The kind of error where another has what this one would have.
const NAME_TAKEN: &str = "name-taken";
/// A node that has used up its share of the disk need not ask more often.
const SHARE_WAIT: Duration = Duration::from_mins(1);

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    detail: String,
    field: Option<String>,
    names: Vec<String>,
    /// After so many seconds the same request may be sent again.
    retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            status,
            kind: "about:blank",
            detail,
            field: None,
            names: Vec::new(),
            retry_after: None,
        }
    }

    /// 400: the request cannot be parsed.
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 400: one parameter of the query is wrong.
    pub(crate) fn parameter(name: &str, detail: impl Into<String>) -> Self {
        Self::malformed(detail).at(name)
    }

    /// 401: nobody knows who asks.
    pub(crate) fn unknown_caller(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// 403: a request that no program of the user has sent, or one that they may not make.
    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// 404: there is nothing under this name.
    pub(crate) fn missing(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 405: the path exists, the method there does not.
    pub(crate) fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this path does not take this method; see Allow",
        )
    }

    /// 408: the body did not arrive.
    pub(crate) fn slow_body() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive in time",
        )
    }

    /// 409: a cluster's controller speaks for this node.
    pub(crate) fn registered_by_controller(uid: &str) -> Self {
        Self {
            kind: "registered-by-controller",
            ..Self::new(
                StatusCode::CONFLICT,
                format!("{uid} is a node of a cluster, and its controller registers it"),
            )
        }
    }

    /// 409: another has what this one would have.
    pub(crate) fn taken(detail: impl Into<String>) -> Self {
        Self {
            kind: NAME_TAKEN,
            ..Self::new(StatusCode::CONFLICT, detail)
        }
    }

    /// 409: the frame from which others say their differences is not there.
    pub(crate) fn missing_key_frame() -> Self {
        Self {
            kind: routes::MISSING_KEY_FRAME,
            ..Self::new(
                StatusCode::CONFLICT,
                "a frame of the body says what differs from one that is not stored here; send it whole",
            )
        }
    }

    /// 413: the body is larger than this server takes.
    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    /// 422: the body is well formed, and a field of it is wrong.
    pub(crate) fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail).at(field)
    }

    /// 429: the caller takes more than its share, and may send the request again after this time.
    pub(crate) fn too_many(detail: impl Into<String>, wait: Duration) -> Self {
        Self {
            retry_after: Some((wait.as_secs_f64().ceil() as u64).max(1)),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail)
        }
    }

    /// 503: the request may be sent again later.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self {
            retry_after: Some(5),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        }
    }

    /// 503: the node says nothing at the moment.
    pub(crate) fn silent(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// The same for somebody who may not know of other nodes.
    pub(crate) fn without_names(mut self, asked: &str) -> Self {
        self.names.clear();
        let asked: String = asked.chars().take(80).collect();
        self.detail = match self.status {
            StatusCode::CONFLICT if self.kind == NAME_TAKEN => return self,
            StatusCode::CONFLICT => format!("{asked:?} is more than one node; ask by UID"),
            _ => format!("there is no node {asked:?} at that time"),
        };
        self
    }

    fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<ResolveError> for ApiError {
    fn from(error: ResolveError) -> Self {
        let detail = error.to_string();
        match error {
            ResolveError::Unknown { nearest, .. } => Self {
                names: nearest,
                ..Self::missing(detail)
            },
            ResolveError::Gone { .. } => Self::missing(detail),
            ResolveError::Ambiguous { uids, .. } => Self {
                kind: "ambiguous-node",
                names: uids,
                ..Self::new(StatusCode::CONFLICT, detail)
            },
        }
    }
}

impl From<RegistrationError> for ApiError {
    fn from(error: RegistrationError) -> Self {
        Self::field(error.field(), error.to_string())
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        if let store::Error::ShareUsedUp { share_bytes } = error {
            return Self::too_many(
                format!(
                    "this node has more history than its share of the disk, {share_bytes} bytes: it \
                     stores nothing until its oldest samples are gone, or the disk is larger"
                ),
                SHARE_WAIT,
            );
        }
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::error!(%error, source, "the store failed");
        Self::unavailable("the history cannot be read or written at the moment")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: self.kind.to_owned(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            field: self.field,
            names: self.names,
        };
        let body = serde_json::to_vec(&problem).expect("a problem is plain data");
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(routes::PROBLEM_MEDIA_TYPE),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 section 11.6.1.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
