//! The listener for whoever operates a program: `/healthz`, `/readyz`, `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Format, Registry};

/// What a program says of itself.
pub trait Admin: Send + Sync + 'static {
    /// Whether it can do its work; if not, why, in a sentence.
    fn ready(&self) -> Result<(), String>;
}

/// Most connections at a time: probes and scrapes.
const CONNECTIONS: usize = 32;

/// Answers until `stop`.
pub async fn serve(
    listener: TcpListener,
    admin: Arc<dyn Admin>,
    registry: Registry,
    stop: CancellationToken,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, say: the next one may do.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (admin, registry) = (Arc::clone(&admin), registry.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &*admin, &registry);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(hyper_util::rt::TokioTimer::new());
            server.header_read_timeout(std::time::Duration::from_secs(10));
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    admin: &dyn Admin,
    registry: &Registry,
) -> Response<Full<Bytes>> {
    let accept = request.headers().get(hyper::header::ACCEPT);
    let format = Format::accepted(accept.and_then(|accept| accept.to_str().ok()));
    let mut kind = "text/plain; charset=utf-8";
    let (status, text) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match admin.ready() {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        "/metrics" => {
            kind = format.media_type();
            (StatusCode::OK, registry.render(format))
        }
        _ => (
            StatusCode::NOT_FOUND,
            "there are /healthz, /readyz and /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    struct NotReady;

    impl Admin for NotReady {
        fn ready(&self) -> Result<(), String> {
            Err("no database".to_owned())
        }
    }

    #[tokio::test]
    async fn readiness_names_its_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let registry = Registry::default();
        registry.watch_process("test");
        let work = serve(listener, Arc::new(NotReady), registry, stop.clone());
        let server = tokio::spawn(work);
        let ask = async |path: &str| {
            let mut stream = tokio::net::TcpStream::connect(address)
                .await
                .expect("listens");
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("written");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("an answer");
            text
        };
        assert!(ask("/healthz").await.starts_with("HTTP/1.1 200"));
        let ready = ask("/readyz").await;
        assert!(
            ready.starts_with("HTTP/1.1 503") && ready.ends_with("no database\n"),
            "{ready}"
        );
        let metrics = ask("/metrics").await;
        assert!(metrics.contains("\nprocess_open_fds "), "{metrics}");
        assert!(ask("/").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        server.await.expect("ends");
    }
}
