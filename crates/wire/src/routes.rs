//! The paths of the HTTP API, and the header and media-type names it uses: one place for server
//! and clients.

use std::time::Duration;

/// The list of nodes; POST registers one.
pub const NODES: &str = "/nodes";
/// Pods, live and gone; PUT is the controller's, which tells of them.
pub const PODS: &str = "/pods";
/// What happened, on all nodes.
pub const EVENTS: &str = "/events";
/// What used most on all nodes.
pub const TOP: &str = "/top";
/// An agent at its first start exchanges a join token for one of its own.
pub const JOIN: &str = "/join";
/// Tokens of hosts and people; at the server's own socket only.
pub const TOKENS: &str = "/local/tokens";
/// The program is running.
pub const HEALTHZ: &str = "/healthz";
/// The program can do its work: the database answers.
pub const READYZ: &str = "/readyz";
/// The program's own metrics in Prometheus text format.
pub const METRICS: &str = "/metrics";
/// The nodes' own figures in the names of Prometheus' `node_exporter`.
pub const NODE_METRICS: &str = "/metrics/nodes";
/// One target a node, as Prometheus discovers them by HTTP.
pub const TARGETS: &str = "/metrics/targets";
/// The description of this API, `OpenAPI` 3.1.
pub const OPENAPI: &str = "/openapi.json";
/// The page for people.
pub const PAGE: &str = "/";

/// The API's group in a cluster's own API.
pub const GROUP: &str = "stats.nodestats.dev";
/// The version of that group.
pub const GROUP_VERSION: &str = "v1alpha1";
/// Below this the cluster's API server forwards to this API.
pub const AGGREGATED: &str = "/apis/stats.nodestats.dev/v1alpha1";

/// The audience of the tokens that this API takes in a cluster: one that was given to it says nothing
/// to others.
pub const AUDIENCE: &str = "nodestats";

/// Media type of the agent's compact push: one or more encoded frames.
pub const FRAMES_MEDIA_TYPE: &str = "application/vnd.nodestats.frames";
/// Media type of errors (RFC 9457).
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";
/// Request header of a push: the sender's clock when it sent it (RFC 3339), by which the server
/// knows how far that clock is off.
pub const SENT_AT_HEADER: &str = "nodestats-sent-at";
/// Request header: the address that somebody meant by the node's name in the path, where a client has
/// looked that up by what nodes say of themselves. The node must have it by what is known of it here.
pub const ADDRESS_HEADER: &str = "nodestats-address";
/// Request header that says the same as `traceparent` (W3C Trace Context): the API server of a cluster
/// puts its own in that one's place, unless who asks is of system:masters or system:monitoring.
pub const TRACE_HEADER: &str = "nodestats-traceparent";
/// Response header of a push: the server takes frames that say only what differs from one that it has
/// acknowledged. One that says nothing of it knows no such frames.
pub const DELTAS_HEADER: &str = "nodestats-deltas";
/// Kind of the error 409 of a push: the frame that another one says its differences from is not there.
pub const MISSING_KEY_FRAME: &str = "missing-key-frame";
/// Response header: when the sample behind an answer about now was taken (RFC 3339).
pub const SAMPLE_TIME_HEADER: &str = "nodestats-sample-time";
/// Response header: which level of history answers from when to when.
pub const RESOLUTION_HEADER: &str = "nodestats-resolution";

/// The server closes a connection that has been idle for so long.
pub const SERVER_KEEP_ALIVE: Duration = Duration::from_secs(75);
/// A client does not use a connection again that has been idle for so long: the server never
/// closes it at the moment a request is under way.
pub const CLIENT_KEEP_ALIVE: Duration = Duration::from_mins(1);
const _: () = assert!(CLIENT_KEEP_ALIVE.as_secs() + 10 < SERVER_KEEP_ALIVE.as_secs());

/// The path of one node, `name` being a UID, a host name or an address.
pub fn node(name: &str) -> String {
    format!("{NODES}/{}", escape_segment(name))
}

/// The path of a node's registration by a cluster's controller.
pub fn registration(uid: &str) -> String {
    format!("{}/registration", node(uid))
}

/// The route that a path is of, with names in braces where they stand: what spans and metrics are called
/// by, since there are few of them.
pub fn template(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let path = path.strip_prefix(AGGREGATED).unwrap_or(path);
    let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match &segments[..] {
        [] => PAGE.to_owned(),
        ["nodes", _, "proc", _] => "/nodes/{node}/proc/{pid}".to_owned(),
        ["nodes", _] => "/nodes/{node}".to_owned(),
        ["nodes", _, "registration"] => "/nodes/{node}/registration".to_owned(),
        ["nodes", _, part] if DETAILS.contains(part) => format!("/nodes/{{node}}/{part}"),
        ["metrics", "nodes", _] => "/metrics/nodes/{node}".to_owned(),
        ["namespaces", _, "pods"] => "/namespaces/{namespace}/pods".to_owned(),
        ["namespaces", _, "pods", _] => POD.to_owned(),
        ["namespaces", _, "pods", _, part] if POD_DETAILS.contains(part) => {
            format!("{POD}/{part}")
        }
        ["local", "tokens", _] => "/local/tokens/{id}".to_owned(),
        _ if [
            NODES,
            PODS,
            EVENTS,
            TOP,
            JOIN,
            TOKENS,
            HEALTHZ,
            READYZ,
            METRICS,
            NODE_METRICS,
            TARGETS,
            OPENAPI,
        ]
        .contains(&path) =>
        {
            path.to_owned()
        }
        _ => "/{path}".to_owned(),
    }
}

/// The details of a node: what stands after it in a path, and its subresources where rules name them.
pub const DETAILS: [&str; 10] = [
    "cpu",
    "memory",
    "disk",
    "network",
    "filesystems",
    "pressure",
    "units",
    "pods",
    "proc",
    "events",
];

/// The route of one pod.
pub const POD: &str = "/namespaces/{namespace}/pods/{pod}";

/// The details of a pod, as [`DETAILS`] are of a node.
pub const POD_DETAILS: [&str; 6] = ["cpu", "memory", "disk", "network", "proc", "events"];

/// The path of a namespace's pods.
pub fn pods_of(namespace: &str) -> String {
    format!("/namespaces/{}/pods", escape_segment(namespace))
}

/// The path of one pod.
pub fn pod(namespace: &str, name: &str) -> String {
    format!("{}/{}", pods_of(namespace), escape_segment(name))
}

/// The path of what happened to a node.
pub fn events_of_node(name: &str) -> String {
    format!("{}{EVENTS}", node(name))
}

/// The path of what happened to a pod.
pub fn events_of_pod(namespace: &str, name: &str) -> String {
    format!("{}{EVENTS}", pod(namespace, name))
}

/// The path of one node's figures in the names of `node_exporter`.
pub fn node_metrics(name: &str) -> String {
    format!("{NODE_METRICS}/{}", escape_segment(name))
}

/// Percent-encodes what may not stand in one path segment (RFC 3986 section 3.3).
pub fn escape_segment(segment: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                escaped.push(byte as char);
            }
            _ => {
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_holds_no_name() {
        for (path, template_) in [
            ("/nodes/192.168.2.10", "/nodes/{node}"),
            ("/nodes/a/cpu?from=1", "/nodes/{node}/cpu"),
            ("/nodes/a/proc/17", "/nodes/{node}/proc/{pid}"),
            ("/nodes/a/registration", "/nodes/{node}/registration"),
            ("/nodes/a/b", "/{path}"),
            ("/nodes?view=full", "/nodes"),
            ("/pods?namespace=a", "/pods"),
            ("/namespaces/a/pods", "/namespaces/{namespace}/pods"),
            (
                "/apis/stats.nodestats.dev/v1alpha1/namespaces/a/pods/b/cpu",
                "/namespaces/{namespace}/pods/{pod}/cpu",
            ),
            ("/local/tokens/x", "/local/tokens/{id}"),
            (
                "/apis/stats.nodestats.dev/v1alpha1/nodes/a/memory",
                "/nodes/{node}/memory",
            ),
            ("/", "/"),
        ] {
            assert_eq!(template(path), template_, "{path}");
        }
    }

    #[test]
    fn a_segment_cannot_leave_its_place() {
        assert_eq!(node("192.168.2.10"), "/nodes/192.168.2.10");
        assert_eq!(node("fe80::1"), "/nodes/fe80::1");
        assert_eq!(node("../a b?c"), "/nodes/..%2Fa%20b%3Fc");
    }
}
