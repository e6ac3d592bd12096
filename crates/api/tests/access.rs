//! Who may what, by every route: nothing is open to whom nobody knows, and nothing is shown or
//! written that is not theirs.

mod server;

use http::Request;
use nodestats_api::aggregated::aggregated_router;
use nodestats_api::openapi_document;
use nodestats_testkit::Frames;
use nodestats_wire::v1::Registration;
use nodestats_wire::{Timestamp, routes};
use serde_json::{Value, json};
use server::{AGENT, Book, CONTROLLER, Server};

/// What is open: none of it says anything about a node.
const OPEN: [&str; 5] = ["/", "/healthz", "/readyz", "/metrics", "/openapi.json"];
/// The name of a process that not everybody may see.
const SECRET: &str = "the-secret-process";

/// Two nodes of a cluster with a sample each.
async fn nodes() -> Server {
    let server = Server::new().await;
    for (uid, name, ip) in [
        ("uid-a", "node-a", "192.168.2.10"),
        ("uid-b", "node-b", "192.168.2.11"),
    ] {
        register(&server, uid, name, ip).await;
        let sample = json!({
            "time": "2026-03-01 13:45:00", "cpu": {"usage_percent": 1.0},
            "memory": {"total_bytes": 1}, "processes": [{"pid": 7, "name": SECRET}],
        });
        let put = server.put(&format!("/nodes/{uid}"), &sample).await;
        assert_eq!(put.status, 204);
    }
    server
}

async fn register(server: &Server, uid: &str, name: &str, ip: &str) {
    let registration = registration(name, ip);
    let put = server.put(&routes::registration(uid), &registration).await;
    assert_eq!(put.status, 204);
}

fn registration(name: &str, ip: &str) -> Value {
    json!({
        "hostname": name, "ip": ip, "interval_seconds": 10, "retention_seconds": 3_000_000_000_u64,
        "deletion_policy": "retain",
    })
}

/// Every operation of the description, about node-a.
fn operations() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(openapi_document()).expect("JSON");
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let filled = path.replace("{node}", "node-a").replace("{pid}", "7");
        let filled = filled
            .replace("{namespace}", "team-a")
            .replace("{pod}", "web");
        for method in methods.as_object().expect("methods").keys() {
            all.push((method.to_uppercase(), filled.clone()));
        }
    }
    assert!(all.len() > 20);
    all
}

fn body(method: &str, path: &str) -> String {
    match method {
        "PUT" if path.ends_with("/registration") => {
            registration("node-a", "192.168.2.10").to_string()
        }
        "PUT" => json!({"memory": {"total_bytes": 1}}).to_string(),
        "POST" => serde_json::to_string(&Registration::new("10.0.0.1", "x")).expect("plain data"),
        _ => String::new(),
    }
}

#[tokio::test]
async fn nothing_is_open_to_whom_nobody_knows() {
    let open = nodes().await;
    let book = Book::default().token("nobody", "nobody", &[]);
    let closed = open.asking(book.clone());
    let blind = open.asking(Book { away: true, ..book });
    for (method, path) in operations() {
        let body = || body(&method, &path);
        let way = (&*method, &*path);
        if OPEN.contains(&&*path) {
            assert_eq!(closed.call(&method, &path, "").await.status, 200, "{path}");
            continue;
        }
        let without = closed.call(&method, &path, body()).await;
        assert_eq!(without.status, 401, "{method} {path}");
        assert_eq!(without.header("www-authenticate"), "Bearer");
        let unknown = closed.call_as("another", way, body()).await;
        assert_eq!(unknown.status, 401, "{method} {path}");
        let known = closed.call_as("nobody", way, body()).await;
        // A list shows what they may see: nothing.
        if [("GET", "/nodes"), ("GET", routes::PODS)].contains(&way) {
            assert_eq!(known.json(), json!([]));
        } else {
            assert_eq!(known.status, 403, "{method} {path}");
        }
        // Who cannot be asked about is not let in.
        let away = blind.call_as("nobody", way, body()).await;
        assert_eq!(away.status, 503, "{method} {path}");
        assert_eq!(away.header("retry-after"), "5");
    }
    // Nothing came of all that.
    let lives = open.get("/nodes?view=full&state=all").await.json();
    assert_eq!(lives.as_array().map(Vec::len), Some(2));
    let history = open.get("/nodes/node-a/memory?from=0").await.json();
    assert_eq!(history.as_object().map(serde_json::Map::len), Some(1));
}

#[tokio::test]
async fn processes_are_shown_by_their_own_rule_and_by_no_other() {
    let open = nodes().await;
    let mut book = Book::default()
        .token("viewer", "viewer", &[])
        .token("processes", "processes", &[])
        .rule("viewer", "list nodes", "*")
        .rule("viewer", "list pods", "*")
        .rule("processes", "get pods/proc", "*")
        .rule("processes", "get nodes/metrics", "*")
        .rule("processes", "get nodes/proc", "*");
    for part in [
        "",
        "/cpu",
        "/memory",
        "/disk",
        "/network",
        "/filesystems",
        "/pressure",
        "/units",
        "/pods",
        "/metrics",
        "/events",
    ] {
        book = book.rule("viewer", &format!("get nodes{part}"), "*");
        book = book.rule("viewer", &format!("get pods{part}"), "*");
    }
    let closed = open.asking(book);
    let mut asked = 0;
    for (method, path) in operations() {
        if method != "GET" {
            continue;
        }
        for query in [
            "",
            "?view=full",
            "?at=2026-03-01 13:45:00",
            "?from=0",
            "?view=full&from=0",
            "?processes=5",
        ] {
            let path = format!("{path}{}", query.replace(' ', "%20"));
            let answer = closed.call_as("viewer", ("GET", &path), "").await;
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(!text.contains(SECRET), "{path}");
            let mut parts = path.split(['/', '?']);
            // What is ranked is processes, where nothing else is said.
            let is_process = parts.any(|part| ["proc", "top", "processes=5"].contains(&part));
            // A query that this path does not take is refused before anybody is asked.
            if answer.status == 400 {
                continue;
            }
            assert_eq!(answer.status == 403, is_process, "{path}: {text}");
            if is_process {
                let resource = if path.contains("/namespaces/") {
                    "pods/proc"
                } else {
                    "nodes/proc"
                };
                assert!(
                    text.contains(&format!("allows get of {resource}")),
                    "{text}"
                );
                // Who may see them does.
                let answer = closed.call_as("processes", ("GET", &path), "").await;
                assert_ne!(answer.status, 403, "{path}");
                asked += 1;
            }
        }
    }
    assert!(asked >= 10, "{asked}");
    let rows = (
        "GET",
        "/nodes/node-a/proc?view=full&at=2026-03-01%2013:45:00",
    );
    let rows = closed.call_as("processes", rows, "").await;
    assert!(String::from_utf8_lossy(&rows.body).contains(SECRET));
}

#[tokio::test]
async fn a_rule_reaches_the_node_that_it_names_whatever_it_is_called() {
    let open = nodes().await;
    let mut book = Book::default()
        .token("all", "all", &[])
        .rule("all", "list nodes", "*");
    for (user, name) in [
        ("jane", "node-a"),
        ("joe", "192.168.2.10"),
        ("jim", "uid-a"),
    ] {
        book = book.token(user, user, &[]);
        book = book
            .rule(user, "get nodes", name)
            .rule(user, "get nodes/cpu", name);
    }
    let closed = open.asking(book);
    let status = async |who: &str, path: &str| closed.call_as(who, ("GET", path), "").await.status;
    let at = "at=2026-03-01%2013:45:00";
    for name in ["node-a", "192.168.2.10", "uid-a"] {
        let path = format!("/nodes/{name}/cpu?{at}");
        assert_eq!(status("jane", &path).await, 200, "{name}");
        // A rule for an address or a UID is a rule for a node that is called so, and none is.
        for who in ["joe", "jim"] {
            assert_eq!(status(who, &path).await, 403, "{who} {name}");
        }
    }
    assert_eq!(
        status("jane", &format!("/nodes/node-b/cpu?{at}")).await,
        403
    );
    assert_eq!(
        status("jane", &format!("/nodes/node-a/memory?{at}")).await,
        403
    );
    // Lists and suggestions name what may be seen.
    let list = async |who: &str| closed.call_as(who, ("GET", "/nodes"), "").await.json();
    assert_eq!(list("jane").await, json!(["192.168.2.10"]));
    assert_eq!(list("joe").await, json!([]));
    assert_eq!(list("all").await, json!(["192.168.2.10", "192.168.2.11"]));
    // A rule about all nodes that is no right to list them is one question.
    let each = open.asking(
        Book::default()
            .token("ann", "ann", &[])
            .rule("ann", "get nodes", "*"),
    );
    let list_of_ann = each.call_as("ann", ("GET", "/nodes"), "").await.json();
    assert_eq!(list_of_ann, json!(["192.168.2.10", "192.168.2.11"]));
    for path in ["/nodes/node-c", "/nodes/node-c/cpu"] {
        assert_eq!(status("jane", path).await, 403, "{path}");
    }
    let missing = closed
        .call_as("jane", ("GET", "/nodes/node-a/cpu?at=2020-01-01"), "")
        .await;
    assert!(
        !missing.json().to_string().contains("node-b"),
        "{}",
        missing.json()
    );
    // The address moves to another node: the rule stays with the node that it names.
    register(&open, "uid-a", "node-a", "192.168.2.99").await;
    register(&open, "uid-b", "node-b", "192.168.2.10").await;
    assert_eq!(status("jane", "/nodes/192.168.2.10").await, 403);
    assert_eq!(status("jane", "/nodes/192.168.2.99").await, 200);
}

#[tokio::test]
async fn an_agent_pushes_for_its_own_node_and_the_controller_registers() {
    let open = nodes().await;
    let claims = [
        ("authentication.kubernetes.io/node-name", "node-a"),
        ("authentication.kubernetes.io/node-uid", "uid-a"),
    ];
    let book = Book::default()
        .token("agent", AGENT, &claims)
        .token("no-node", AGENT, &[])
        .token("controller", CONTROLLER, &[])
        .token("admin", "admin", &claims);
    let closed = open.asking(book);
    let mut frames = Frames::new(Timestamp::from_system(std::time::SystemTime::now()));
    let mut push = async |who: &str, node: &str| {
        let request = Request::put(format!("/nodes/{node}"))
            .header("content-type", routes::FRAMES_MEDIA_TYPE)
            .header("authorization", format!("Bearer {who}"))
            .body(frames.next_frame().into());
        closed.ask(request.expect("a request")).await.status
    };
    for name in ["uid-a", "node-a", "192.168.2.10"] {
        assert_eq!(push("agent", name).await, 204, "{name}");
    }
    for (who, name) in [
        ("agent", "uid-b"),
        ("agent", "node-b"),
        ("agent", "192.168.2.11"),
        ("agent", "unknown"),
        ("no-node", "uid-a"),
        ("controller", "uid-a"),
        ("admin", "uid-a"),
    ] {
        assert_eq!(push(who, name).await, 403, "{who} {name}");
    }
    // Its own node, which the controller has not told of yet: later.
    open.call("DELETE", "/nodes/uid-a", "").await;
    assert_eq!(push("agent", "uid-a").await, 404);
    let document = registration("node-a", "192.168.2.10").to_string();
    for (who, expected) in [("agent", 403), ("admin", 403), ("controller", 204)] {
        let way = ("PUT", "/nodes/uid-a/registration");
        let put = closed.call_as(who, way, document.clone()).await;
        assert_eq!(put.status, expected, "{who}");
    }
    for (who, expected) in [("agent", 403), ("admin", 403), ("controller", 200)] {
        let list = closed
            .call_as(who, ("GET", "/nodes?view=freshness"), "")
            .await;
        let list = if who == "admin" { 403 } else { list.status };
        assert_eq!(list, expected, "{who}");
    }
    for (who, expected) in [("agent", 403), ("admin", 403), ("controller", 204)] {
        let purge = closed
            .call_as(who, ("DELETE", "/nodes/uid-b?purge=true"), "")
            .await;
        assert_eq!(purge.status, expected, "{who}");
    }
    let metrics = closed.get("/metrics").await;
    let metrics = String::from_utf8(metrics.body).expect("text");
    let denied = metrics
        .lines()
        .find_map(|line| line.strip_prefix("nodestats_denied_requests_total "))
        .expect("a counter");
    assert!(denied.parse::<u32>().expect("a number") >= 10, "{denied}");
}

#[tokio::test]
async fn what_the_front_proxy_forwards_is_asked_about_by_the_node_s_own_name() {
    let open = nodes().await;
    let book = Book::default()
        .rule("jane", "get nodes/cpu", "node-a")
        .rule("jane", "get nodes/cpu", "192.168.2.11");
    let closed = open.asking(book);
    let behind = Server {
        router: aggregated_router(closed.app.clone()),
        ..closed
    };
    let status = async |path: &str| {
        let request = Request::get(format!("{}{path}", routes::AGGREGATED))
            .header("host", "10.0.0.1:8443")
            .header("x-remote-user", "jane")
            .body(axum::body::Body::empty());
        behind.ask(request.expect("a request")).await.status
    };
    let at = "?at=2026-03-01%2013:45:00";
    assert_eq!(status(&format!("/nodes/node-a/cpu{at}")).await, 200);
    assert_eq!(status(&format!("/nodes/192.168.2.10/cpu{at}")).await, 200);
    // RBAC at the API server would let this path through; it is node-b's.
    assert_eq!(status(&format!("/nodes/192.168.2.11/cpu{at}")).await, 403);
    // A list is all or nothing there.
    assert_eq!(status("/nodes").await, 403);
}

#[tokio::test]
async fn what_a_node_says_of_itself_gives_it_no_address() {
    let server = nodes().await;
    for (node, meant, status) in [
        ("node-a", "192.168.2.10", 200),
        ("uid-a", "192.168.2.10", 200),
        // As its agent said in its own object, and the controller did not.
        ("node-b", "192.168.2.10", 409),
        ("node-b", "nonsense", 409),
    ] {
        let request = Request::get(format!("/nodes/{node}/cpu"))
            .header("host", "localhost")
            .header(routes::ADDRESS_HEADER, meant);
        let answer = server
            .ask(request.body(axum::body::Body::empty()).expect("a request"))
            .await;
        assert_eq!(answer.status, status, "{node} {meant}");
    }
}
