//! The API as an extension of the cluster's own API server (the aggregation layer): below
//! `/apis/stats.nodestats.dev/v1alpha1` the same routes, read-only, with the documents by which
//! Kubernetes discovers them.
//!
//! Who asks is said by the front proxy, which alone may connect. RBAC has decided at the API server by
//! the path as it stands, before a request is forwarded; here it is asked again by the node's own name.

mod front;

use std::sync::LazyLock;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use nodestats_wire::routes;
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub use front::{Front, FrontError, serve};

use crate::access::Identity;
use crate::{ApiError, App, openapi_document, router};

/// The router of the listener that the front proxy reaches.
pub fn aggregated_router(app: App) -> Router {
    let nodes = router(app).route_layer(middleware::from_fn(only_reading));
    // The routes as they are, once the group's path is cut off.
    let nodes = nodes
        .map_request(without_group)
        .map_response(links_with_group);
    Router::new()
        .route("/apis", get(groups))
        .route("/apis/{group}", get(async || Json(group())))
        .route(routes::AGGREGATED, get(async || Json(resources())))
        .route("/openapi/v3", get(async || Json(openapi_index())))
        .route(
            &format!("/openapi/v3{}", routes::AGGREGATED),
            get(async || Json(openapi())),
        )
        .fallback_service(nodes)
        .layer(middleware::from_fn(somebody))
}

fn without_group(mut request: Request) -> Request {
    let uri = request.uri();
    let below = uri.path_and_query().map(http::uri::PathAndQuery::as_str);
    let below = below.and_then(|path| path.strip_prefix(routes::AGGREGATED));
    if let Some(below) = below.and_then(|path| path.parse().ok()) {
        *request.uri_mut() = below;
    }
    request
}

/// What an answer leads on to is below the group too (RFC 8288).
fn links_with_group(mut response: Response) -> Response {
    if let Some(link) = response.headers_mut().get_mut(header::LINK) {
        let below = link.to_str().ok().and_then(|link| link.strip_prefix('<'));
        let whole = below.map(|below| format!("<{}{below}", routes::AGGREGATED));
        if let Some(Ok(whole)) = whole.map(HeaderValue::try_from) {
            *link = whole;
        }
    }
    response
}

/// The front proxy says for whom it asks, always.
async fn somebody(mut request: Request, next: Next) -> Response {
    if let Some(identity) = Identity::of_front_proxy(request.headers()) {
        request.extensions_mut().insert(identity);
        next.run(request).await
    } else {
        ApiError::unknown_caller("the front proxy did not say for whom it asks").into_response()
    }
}

async fn only_reading(request: Request, next: Next) -> Response {
    if request.method() != Method::GET {
        return ApiError::method().into_response();
    }
    let path = request.extensions().get::<MatchedPath>();
    if !path.is_some_and(|path| is_below(path.as_str())) {
        return ApiError::missing("there are nodes, pods, events and top here, and nothing else")
            .into_response();
    }
    next.run(request).await
}

/// `/apis`: the aggregated form (KEP-3352) for those who ask for it, else the list of groups.
async fn groups(headers: HeaderMap) -> Response {
    const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let accept = headers.get(header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("g=apidiscovery.k8s.io;v=v2;")) {
        let body = Json(discovery()).into_response().into_body();
        return ([(header::CONTENT_TYPE, AGGREGATED)], body).into_response();
    }
    Json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group()]})).into_response()
}

fn group() -> Value {
    let version = json!({
        "groupVersion": format!("{}/{}", routes::GROUP, routes::GROUP_VERSION),
        "version": routes::GROUP_VERSION,
    });
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": routes::GROUP,
        "versions": [version], "preferredVersion": version,
    })
}

/// Whether a route of the API is one of the group's too.
fn is_below(route: &str) -> bool {
    let first = ["/nodes", "/pods", "/namespaces", "/events", "/top"];
    first.iter().any(|first| {
        route
            .strip_prefix(first)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// A resource of the group: its name, the name of one, its kind, whether it is in namespaces, and its
/// details.
struct Resource {
    name: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
    details: &'static [&'static str],
}

const RESOURCES: [Resource; 4] = [
    Resource {
        name: "nodes",
        singular: "node",
        kind: "NodeStatistics",
        namespaced: false,
        verbs: &["get", "list"],
        details: &routes::DETAILS,
    },
    Resource {
        name: "pods",
        singular: "pod",
        kind: "PodStatistics",
        namespaced: true,
        verbs: &["get", "list"],
        details: &routes::POD_DETAILS,
    },
    Resource {
        name: "events",
        singular: "event",
        kind: "NodeEvent",
        namespaced: false,
        verbs: &["list"],
        details: &[],
    },
    Resource {
        name: "top",
        singular: "top",
        kind: "Top",
        namespaced: false,
        verbs: &["list"],
        details: &[],
    },
];

fn resources() -> Value {
    let entry = |resource: &Resource, detail: Option<&str>| {
        let (name, singular, verbs) = match detail {
            None => (resource.name.to_owned(), resource.singular, resource.verbs),
            Some(detail) => (format!("{}/{detail}", resource.name), "", &["get"][..]),
        };
        json!({
            "name": name, "singularName": singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": verbs,
        })
    };
    let mut all = Vec::new();
    // Only reading verbs: the garbage collector and the deletion of namespaces call what is there.
    for resource in &RESOURCES {
        all.push(entry(resource, None));
        all.extend(
            resource
                .details
                .iter()
                .map(|detail| entry(resource, Some(detail))),
        );
    }
    json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": format!("{}/{}", routes::GROUP, routes::GROUP_VERSION),
        "resources": all,
    })
}

fn discovery() -> Value {
    let resource = |resource: &Resource| {
        let kind = json!({
            "group": routes::GROUP, "version": routes::GROUP_VERSION, "kind": resource.kind,
        });
        let detail =
            |detail: &&str| json!({"subresource": detail, "responseKind": kind, "verbs": ["get"]});
        let details: Vec<Value> = resource.details.iter().map(detail).collect();
        json!({
            "resource": resource.name, "responseKind": kind,
            "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": resource.singular, "verbs": resource.verbs,
            "subresources": details,
        })
    };
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": [{
            "metadata": {"name": routes::GROUP},
            "versions": [{
                "version": routes::GROUP_VERSION, "freshness": "Current",
                "resources": RESOURCES.iter().map(resource).collect::<Vec<_>>(),
            }],
        }],
    })
}

fn openapi_index() -> Value {
    let path = routes::AGGREGATED.trim_start_matches('/');
    json!({"paths": {path: {"serverRelativeURL": format!("/openapi/v3{}", routes::AGGREGATED)}}})
}

/// The paths of the description that are below the group, in the older version of `OpenAPI` that
/// the API server reads.
fn openapi() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        let whole: Value = serde_json::from_str(openapi_document()).expect("our own JSON");
        let mut paths = serde_json::Map::new();
        for (path, operations) in whole["paths"].as_object().into_iter().flatten() {
            let operation = &operations["get"];
            if !is_below(path) || operation.is_null() {
                continue;
            }
            let names = path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
            let parameters: Vec<Value> = names
                .map(|name| {
                    json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})
                })
                .collect();
            let get = json!({
                "operationId": operation["operationId"], "description": operation["summary"],
                "responses": {"200": {"description": "OK"}},
            });
            let entry = json!({"get": get, "parameters": parameters});
            paths.insert(format!("{}{path}", routes::AGGREGATED), entry);
        }
        json!({
            "openapi": "3.0.0",
            "info": {"title": "nodestats", "version": env!("CARGO_PKG_VERSION")},
            "paths": paths,
        })
    });
    &DOCUMENT
}
