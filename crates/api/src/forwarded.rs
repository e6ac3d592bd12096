//! The router of the listener that people reach by a port-forward to the pod's own loopback. Who
//! forwards ports cannot be told apart here, so it is read-only, and shows no processes unless the
//! installation says so.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::{Router, http::Method};

use crate::{ApiError, App, Exposure, Options, router};

/// What may be seen there.
#[derive(Debug, Clone, Copy)]
struct Sight {
    processes: bool,
}

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
    // On the routes, so that it is the pattern of a path that counts, and not a name within it.
    router(app).route_layer(middleware::from_fn_with_state(Sight { processes }, look))
}

async fn look(State(sight): State<Sight>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let is_process = path.is_some_and(|path| path.as_str().split('/').any(|part| part == "proc"));
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return ApiError::method().into_response();
    }
    if is_process && !sight.processes {
        let error = ApiError::foreign(
            "processes are not shown by port-forward, where nobody can be told apart; the value \
             api.portForward.processes of the chart allows it",
        );
        return error.into_response();
    }
    next.run(request).await
}
