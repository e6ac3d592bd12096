//! The router of the listener that people reach by a port-forward to the pod's own loopback. Who
//! forwards ports cannot be told apart here, so it is read-only, and shows no processes unless the
//! installation says so.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::{Router, http::Method};

use crate::access::Identity;
use crate::{ApiError, App, Exposure, Options, router};

/// The router of a loopback listener that others reach through Kubernetes.
pub fn forwarded_router(app: &App, processes: bool) -> Router {
    let options = Options {
        exposure: Exposure::Loopback,
        ..(*app.options).clone()
    };
    let app = App {
        options: Arc::new(options),
        ..app.clone()
    };
    let identity = Identity::forwarded(processes);
    router(app).layer(middleware::from_fn_with_state(identity, look))
}

async fn look(State(identity): State<Identity>, mut request: Request, next: Next) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return ApiError::method().into_response();
    }
    request.extensions_mut().insert(identity);
    next.run(request).await
}
