//! Tokens that the server issues itself: who may what with them, how an agent joins, and the socket
//! by which they are issued.

mod server;

use axum::body::Body;
use http::{Request, header};
use nodestats_api::{Door, Options, local_router, openapi_document};
use nodestats_testkit::Frames;
use nodestats_wire::v1::{Issued, ServerAddress};
use nodestats_wire::{Timestamp, routes};
use serde_json::{Value, json};
use server::{Answer, Server};
use uuid::Uuid;

/// A server that asks everybody for a token, and its own socket.
struct Hosts {
    outside: Server,
    socket: Server,
}

impl Hosts {
    async fn new() -> Self {
        let outside = Server::with(Options {
            door: Door::tokens(),
            exposure: nodestats_api::Exposure::Network,
            ..Options::default()
        })
        .await;
        let address = ServerAddress {
            url: "https://192.0.2.1:8080".to_owned(),
            fingerprint: Some("sha256:00".to_owned()),
        };
        let socket = Server {
            store: outside.store.clone(),
            app: outside.app.clone(),
            router: local_router(&outside.app, address),
        };
        Self { outside, socket }
    }

    async fn issue(&self, purpose: Value, ttl_seconds: Option<u64>) -> Issued {
        let wanted = json!({"purpose": purpose, "ttl_seconds": ttl_seconds});
        let answer = self
            .socket
            .call("POST", routes::TOKENS, wanted.to_string())
            .await;
        assert_eq!(answer.status, 200);
        serde_json::from_value(answer.json()).expect("a token")
    }

    async fn host(&self, node: &str) -> String {
        let purpose = json!({"kind": "host", "node": node});
        self.issue(purpose, None).await.secret
    }

    async fn register(&self, token: &str, ip: &str, hostname: &str, uid: &str) -> Answer {
        let body = json!({"ip": ip, "hostname": hostname, "uid": uid});
        let way = ("POST", "/nodes");
        self.outside.call_as(token, way, body.to_string()).await
    }

    async fn push(&self, token: &str, node: &str) -> u16 {
        let path = format!("/nodes/{node}");
        let sample = json!({
            "memory": {"total_bytes": 1}, "cpu": {"usage_percent": 1.0},
            "processes": [{"pid": 7, "name": "worker"}],
        });
        let way = ("PUT", &*path);
        self.outside
            .call_as(token, way, sample.to_string())
            .await
            .status
    }

    async fn join(&self, by: &str, hostname: &str, token: &str) -> Answer {
        let body = json!({"hostname": hostname, "token": token});
        let way = ("POST", routes::JOIN);
        self.outside.call_as(by, way, body.to_string()).await
    }
}

fn uuid(number: u128) -> String {
    Uuid::from_u128(number).to_string()
}

fn own_token(digit: char) -> String {
    let digits = |count| digit.to_string().repeat(count);
    format!("nst_{}_{}", digits(16), digits(64))
}

#[tokio::test]
async fn a_host_s_token_writes_that_host_and_reads_nothing() {
    let hosts = Hosts::new().await;
    let [a, b] = [hosts.host("web-1").await, hosts.host("web-2").await];
    let [uid_a, uid_b] = [uuid(1), uuid(2)];
    // A 404 tells an agent to register, whoever it is.
    assert_eq!(hosts.push(&a, &uid_a).await, 404);
    let registered = hosts.register(&a, "192.0.2.11", "web-1", &uid_a).await;
    assert_eq!(registered.status, 201);
    assert_eq!(
        hosts
            .register(&b, "192.0.2.12", "web-2", &uid_b)
            .await
            .status,
        201
    );
    assert_eq!(hosts.push(&a, &uid_a).await, 204);
    // By every name of the other, and with every other verb.
    for node in [&*uid_b, "web-2", "192.0.2.12"] {
        assert_eq!(hosts.push(&a, node).await, 403, "{node}");
        let path = format!("/nodes/{node}");
        for (method, path) in [
            ("DELETE", path.clone()),
            ("DELETE", format!("{path}?purge=true")),
            ("GET", path.clone()),
            ("GET", format!("{path}/proc")),
        ] {
            let answer = hosts.outside.call_as(&a, (method, &path), "").await;
            assert_eq!(answer.status, 403, "{method} {path}");
        }
    }
    // Not its own either: neither reading, nor removing what was.
    for (method, path) in [
        ("GET", "/nodes/web-1/cpu"),
        ("GET", "/nodes"),
        ("DELETE", "/nodes/web-1?purge=true"),
    ] {
        let answer = hosts.outside.call_as(&a, (method, path), "").await;
        assert_eq!(answer.status, 403, "{method} {path}");
    }
    // The cluster's controller is somebody else.
    let registration = json!({
        "hostname": "web-1", "ip": "192.0.2.11", "interval_seconds": 10,
        "retention_seconds": 1, "deletion_policy": "retain",
    });
    let path = routes::registration(&uid_a);
    let answer = hosts
        .outside
        .call_as(&a, ("PUT", &path), registration.to_string())
        .await;
    assert_eq!(answer.status, 403);
    // Signing off is its own to do.
    let path = format!("/nodes/{uid_a}");
    let goodbye = hosts.outside.call_as(&a, ("DELETE", &path), "").await;
    assert_eq!(goodbye.status, 204);
}

#[tokio::test]
async fn a_host_takes_neither_name_nor_address_nor_identity_of_another() {
    let hosts = Hosts::new().await;
    let [a, b] = [hosts.host("web-1").await, hosts.host("web-2").await];
    let [uid_a, uid_b] = [uuid(1), uuid(2)];
    let registered = hosts.register(&a, "192.0.2.11", "web-1", &uid_a).await;
    assert_eq!(registered.status, 201);
    for (ip, hostname, uid, status, why) in [
        ("192.0.2.12", "web-1", &*uid_b, 403, "another name"),
        ("192.0.2.12", "web-2", &*uid_a, 403, "another's identity"),
        ("192.0.2.11", "web-2", &*uid_b, 409, "another's address"),
        (
            "192.0.2.12",
            "web-2",
            "web-1",
            422,
            "an identity like a name",
        ),
        (
            "192.0.2.12",
            "web-2",
            "192.0.2.11",
            422,
            "one like an address",
        ),
    ] {
        let answer = hosts.register(&b, ip, hostname, uid).await;
        assert_eq!(answer.status, status, "{why}");
    }
    // A second agent with the same token is not the same host while the first one reports.
    assert_eq!(hosts.push(&a, &uid_a).await, 204);
    let twin = hosts.register(&a, "192.0.2.13", "web-1", &uuid(3)).await;
    assert_eq!(twin.status, 409);
    // It moves with its own address.
    let moved = hosts.register(&a, "192.0.2.14", "web-1", &uid_a).await;
    assert_eq!(moved.status, 200);
    let free = hosts.register(&b, "192.0.2.11", "web-2", &uid_b).await;
    assert_eq!(free.status, 201);
    // What is a cluster's node has no token of ours, and is nobody's by one.
    let registration = json!({
        "hostname": "node-a", "ip": "192.0.2.20", "interval_seconds": 10,
        "retention_seconds": 3_000_000_000_u64, "deletion_policy": "retain",
    });
    let early = hosts.host("node-a").await;
    let path = routes::registration("uid-a");
    assert_eq!(hosts.socket.put(&path, &registration).await.status, 204);
    assert_eq!(hosts.push(&early, "uid-a").await, 403);
    let purpose = json!({"purpose": {"kind": "host", "node": "node-a"}});
    let refused = hosts
        .socket
        .call("POST", routes::TOKENS, purpose.to_string())
        .await;
    assert_eq!(refused.status, 409);
}

#[tokio::test]
async fn a_host_that_keeps_no_identity_begins_so_many_histories_and_no_more() {
    let hosts = Hosts::new().await;
    let token = hosts.host("web-1").await;
    let mut statuses = Vec::new();
    for number in 1..=18 {
        let uid = uuid(number);
        let registered = hosts.register(&token, "192.0.2.11", "web-1", &uid).await;
        statuses.push(registered.status);
        let path = format!("/nodes/{uid}");
        hosts.outside.call_as(&token, ("DELETE", &path), "").await;
    }
    assert_eq!(statuses, [[201; 16].as_slice(), &[409; 2]].concat());
    // Who runs the server removes one, and one that is known goes on as before.
    let purge = format!("/nodes/{}?purge=true", uuid(1));
    assert_eq!(hosts.socket.call("DELETE", &purge, "").await.status, 204);
    for number in [2, 17] {
        let registered = hosts
            .register(&token, "192.0.2.11", "web-1", &uuid(number))
            .await;
        assert_eq!(registered.status, 201, "{number}");
        let path = format!("/nodes/{}", uuid(number));
        hosts.outside.call_as(&token, ("DELETE", &path), "").await;
    }
}

#[tokio::test]
async fn people_read_what_their_role_shows() {
    let hosts = Hosts::new().await;
    let agent = hosts.host("web-1").await;
    let uid = uuid(1);
    hosts.register(&agent, "192.0.2.11", "web-1", &uid).await;
    assert_eq!(hosts.push(&agent, &uid).await, 204);
    let viewer =
        |processes: bool| json!({"kind": "viewer", "name": "jane", "processes": processes});
    let some = hosts.issue(viewer(false), None).await.secret;
    let all = hosts.issue(viewer(true), None).await.secret;
    for (path, without, with) in [
        ("/nodes", 200, 200),
        ("/nodes/web-1/cpu", 200, 200),
        ("/nodes/web-1/proc", 403, 200),
        ("/nodes/web-1/proc/7", 403, 200),
        ("/web-1/proc?view=full", 403, 200),
    ] {
        let way = ("GET", path);
        assert_eq!(
            hosts.outside.call_as(&some, way, "").await.status,
            without,
            "{path}"
        );
        assert_eq!(
            hosts.outside.call_as(&all, way, "").await.status,
            with,
            "{path}"
        );
        assert_eq!(
            hosts.outside.call("GET", path, "").await.status,
            401,
            "{path}"
        );
    }
    // They change nothing.
    assert_eq!(hosts.push(&all, &uid).await, 403);
    for way in [("DELETE", "/nodes/web-1"), ("POST", "/nodes")] {
        let answer = hosts.outside.call_as(&all, way, "{}").await;
        assert_eq!(answer.status, 403, "{way:?}");
    }
    // What is wrong with a token by a character is nobody's.
    let last = if some.ends_with('0') { '1' } else { '0' };
    let wrong = format!("{}{last}", &some[..some.len() - 1]);
    let way = ("GET", "/nodes");
    assert_eq!(hosts.outside.call_as(&wrong, way, "").await.status, 401);
}

#[tokio::test]
async fn a_token_ends_when_it_is_revoked_and_when_its_time_is_up() {
    let hosts = Hosts::new().await;
    let viewer = json!({"kind": "viewer", "name": "jane", "processes": false});
    let issued = hosts.issue(viewer.clone(), None).await;
    let way = ("GET", "/nodes");
    assert_eq!(
        hosts.outside.call_as(&issued.secret, way, "").await.status,
        200
    );
    let listed = hosts.socket.get(routes::TOKENS).await.json();
    assert_eq!(listed[0]["id"], issued.token.id);
    assert!(
        !listed.to_string().contains(&issued.secret[21..]),
        "no secret is listed"
    );
    let path = format!("{}/{}", routes::TOKENS, issued.token.id);
    assert_eq!(hosts.socket.call("DELETE", &path, "").await.status, 204);
    assert_eq!(
        hosts.outside.call_as(&issued.secret, way, "").await.status,
        401
    );
    assert_eq!(hosts.socket.call("DELETE", &path, "").await.status, 404);
    let short = hosts.issue(viewer, Some(1)).await;
    let ended = nodestats_testkit::eventually("its end", async || {
        let answer = hosts.outside.call_as(&short.secret, way, "").await;
        (answer.status == 401).then_some(())
    });
    ended.await;
    let end = short.token.expires_at.expect("a time to live");
    assert!(Timestamp::from_system(std::time::SystemTime::now()) >= end);
}

#[tokio::test]
async fn a_join_token_makes_hosts_and_takes_none_over() {
    let hosts = Hosts::new().await;
    let join = |uses_left: u32| json!({"kind": "join", "uses_left": uses_left});
    let by = hosts.issue(join(2), Some(3600)).await.secret;
    let [own, other] = [own_token('a'), own_token('b')];
    assert_eq!(hosts.join(&by, "web-1", &own).await.status, 204);
    // The answer was lost.
    assert_eq!(hosts.join(&by, "web-1", &own).await.status, 204);
    // A name that has a token is taken, and so is a token that has a name.
    assert_eq!(hosts.join(&by, "WEB-1", &other).await.status, 409);
    assert_eq!(hosts.join(&by, "web-2", &own).await.status, 409);
    let uid = uuid(1);
    let registered = hosts.register(&own, "192.0.2.11", "web-1", &uid).await;
    assert_eq!(registered.status, 201);
    assert_eq!(hosts.push(&own, &uid).await, 204);
    // A name that has a history is taken, also without a token.
    let local = json!({"ip": "192.0.2.12", "hostname": "old", "uid": uuid(9)});
    hosts.socket.call("POST", "/nodes", local.to_string()).await;
    hosts.socket.call("DELETE", "/nodes/old", "").await;
    assert_eq!(hosts.join(&by, "old", &other).await.status, 409);
    assert_eq!(hosts.join(&by, "web-2", &other).await.status, 204);
    let used_up = hosts.join(&by, "web-3", &own_token('c')).await;
    assert_eq!(used_up.status, 403);
    assert_eq!(
        hosts.join(&by, "web-2", &other).await.status,
        204,
        "asked again"
    );
    // A join token is good for nothing else, and nothing else is a join token.
    for way in [
        ("GET", "/nodes"),
        ("GET", "/nodes/web-1/cpu"),
        ("POST", "/nodes"),
    ] {
        let answer = hosts.outside.call_as(&by, way, "{}").await;
        assert_eq!(answer.status, 403, "{way:?}");
    }
    assert_eq!(hosts.push(&by, &uid).await, 403);
    assert_eq!(hosts.join(&own, "web-4", &own_token('d')).await.status, 403);
    for text in ["nonsense", &by, "nst_1_2"] {
        let by = hosts.issue(join(1), None).await.secret;
        assert_eq!(hosts.join(&by, "web-5", text).await.status, 422, "{text}");
    }
    let ended = hosts.issue(join(1), Some(1)).await.secret;
    nodestats_testkit::eventually("its end", async || {
        let answer = hosts.join(&ended, "web-1", &own).await;
        (answer.status == 401).then_some(())
    })
    .await;
}

#[tokio::test]
async fn tokens_are_issued_at_the_socket_and_nowhere_else() {
    let hosts = Hosts::new().await;
    let all = json!({"kind": "viewer", "name": "jane", "processes": true});
    let viewer = hosts.issue(all, None).await.secret;
    for method in ["GET", "POST"] {
        let way = (method, routes::TOKENS);
        let answer = hosts.outside.call_as(&viewer, way, "{}").await;
        assert_eq!(answer.status, 404, "{method}");
    }
    assert!(!openapi_document().contains(routes::TOKENS));
    for (body, field) in [
        (
            json!({"purpose": {"kind": "host", "node": "a b"}}),
            "hostname",
        ),
        (
            json!({"purpose": {"kind": "join", "uses_left": 0}}),
            "purpose.uses_left",
        ),
        (
            json!({"purpose": {"kind": "viewer", "name": "", "processes": false}}),
            "purpose.name",
        ),
        (
            json!({"purpose": {"kind": "host", "node": "a"}, "ttl_seconds": 0}),
            "ttl_seconds",
        ),
    ] {
        let answer = hosts
            .socket
            .call("POST", routes::TOKENS, body.to_string())
            .await;
        assert_eq!(
            (answer.status, &answer.json()["field"]),
            (422, &json!(field)),
            "{body}"
        );
    }
    // The socket is the way of who runs the server: everything else is there too.
    assert_eq!(hosts.socket.get("/nodes").await.status, 200);
    let frames = Frames::new(Timestamp::from_system(std::time::SystemTime::now())).next_frame();
    let local = json!({"ip": "192.0.2.12", "hostname": "own", "uid": uuid(9)});
    hosts.socket.call("POST", "/nodes", local.to_string()).await;
    assert_eq!(hosts.socket.put_frames("own", frames).await.status, 204);
}

#[tokio::test]
async fn pages_of_sites_that_are_named_may_read_and_no_others() {
    let friend = "https://friend.example";
    let server = |cors_origins: Vec<String>| {
        Server::with(Options {
            door: Door::tokens(),
            exposure: nodestats_api::Exposure::Network,
            cors_origins,
            ..Options::default()
        })
    };
    let preflight = |origin: &str| {
        Request::options("/nodes")
            .header(header::HOST, "stats.example")
            .header(header::ORIGIN, origin)
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization")
            .body(Body::empty())
            .expect("a request")
    };
    let named = server(vec![friend.to_owned()]).await;
    let answer = named.ask(preflight(friend)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), friend);
    assert_eq!(
        answer.header("access-control-allow-headers"),
        "authorization"
    );
    assert_eq!(
        named.ask(preflight("https://evil.example")).await.status,
        403
    );
    let closed = server(Vec::new()).await;
    assert_eq!(closed.ask(preflight(friend)).await.status, 403);
}
