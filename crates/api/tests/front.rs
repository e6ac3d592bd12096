//! The listener of the front proxy, with real certificates: who is not the front proxy is not let in,
//! whatever their headers say.

mod server;

use std::collections::BTreeMap;

use nodestats_api::Certificate;
use nodestats_api::aggregated::{Front, aggregated_router, serve};
use nodestats_testkit::Authority;
use nodestats_wire::routes;
use server::{Book, Server};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn only_the_front_proxy_says_who_asks() {
    let (front_proxy, serving, others) = (Authority::new(), Authority::new(), Authority::new());
    let [certificate, key] = serving.leaf("nodestats-api", "localhost");
    let certificate = Certificate::new(certificate.as_bytes(), key.as_bytes()).expect("usable");
    let authentication = [
        ("requestheader-client-ca-file", front_proxy.pem()),
        ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
        ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
        (
            "requestheader-extra-headers-prefix",
            r#"["X-Remote-Extra-"]"#,
        ),
    ];
    let authentication: BTreeMap<String, String> = authentication
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for missing in authentication.keys() {
        let mut less = authentication.clone();
        less.remove(missing);
        assert!(Front::new(&certificate, &less).is_err(), "{missing}");
    }
    let front = Front::new(&certificate, &authentication).expect("usable");
    let server = Server::new().await;
    let closed = server.asking(Book::default().rule("jane", "list nodes", "*"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (known, front_known) = watch::channel(None);
    let stop = CancellationToken::new();
    let router = aggregated_router(closed.app.clone());
    let serving_task = tokio::spawn(serve(listener, router, front_known, stop.clone()));
    let ask = async |identity: Option<[String; 2]>, user: &str| {
        let root = reqwest::Certificate::from_pem(serving.pem().as_bytes()).expect("a root");
        let mut client = reqwest::Client::builder()
            .use_rustls_tls()
            .tls_built_in_root_certs(false)
            .add_root_certificate(root);
        if let Some(identity) = identity {
            let identity = reqwest::Identity::from_pem(identity.concat().as_bytes());
            client = client.identity(identity.expect("an identity"));
        }
        let client = client.build().expect("a client");
        let url = format!("https://localhost:{port}{}/nodes", routes::AGGREGATED);
        let mut request = client.get(url);
        if !user.is_empty() {
            request = request.header("x-remote-user", user);
        }
        request
            .send()
            .await
            .ok()
            .map(|answer| answer.status().as_u16())
    };
    let proxy = || Some(front_proxy.leaf("front-proxy-client", "localhost"));
    // While it is not known who the front proxy is nobody is let in.
    assert_eq!(ask(proxy(), "jane").await, None);
    known.send_replace(Some(front));
    assert_eq!(ask(proxy(), "jane").await, Some(200));
    assert_eq!(ask(proxy(), "joe").await, Some(403));
    assert_eq!(ask(proxy(), "").await, Some(401));
    for forger in [
        None,
        Some(front_proxy.leaf("somebody-else", "localhost")),
        Some(others.leaf("front-proxy-client", "localhost")),
        Some(serving.leaf("front-proxy-client", "localhost")),
    ] {
        assert_eq!(ask(forger, "jane").await, None);
    }
    stop.cancel();
    serving_task.await.expect("ends");
    // At the other listener the headers say nothing.
    let request = http::Request::get("/nodes")
        .header("host", "localhost")
        .header("x-remote-user", "jane")
        .body(axum::body::Body::empty());
    let answer = closed.ask(request.expect("a request")).await;
    assert_eq!(answer.status, 401);
}
