//! Serves a router on a listener: bounded connections, no endless headers, an orderly end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use nodestats_wire::routes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Connections at once; further ones wait in the kernel. Each agent keeps one between its pushes.
const CONNECTIONS: usize = 8192;
/// Most bytes of the head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// Requests under way at the end have this long to finish.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// What becomes of a connection before its first request.
pub(crate) trait Secure: Clone + Send + Sync + 'static {
    /// What requests are read from.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// `None` where the other side is not let in.
    fn secure(&self, stream: TcpStream) -> impl Future<Output = Option<Self::Stream>> + Send;
}

/// Whoever reaches the listener.
#[derive(Clone)]
struct Anybody;

impl Secure for Anybody {
    type Stream = TcpStream;

    async fn secure(&self, stream: TcpStream) -> Option<TcpStream> {
        Some(stream)
    }
}

/// Serves until `stop`, then lets the requests under way finish.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    serve_by(listener, Anybody, router, stop).await;
}

/// The same for those whom `secure` lets in.
pub(crate) async fn serve_by(
    listener: TcpListener,
    secure: impl Secure,
    router: Router,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        // hyper has one patience for the wait for a request and for the rest of its head.
        .header_read_timeout(routes::SERVER_KEEP_ALIVE)
        .max_buf_size(HEAD_BYTES);
    loop {
        let accept = async {
            let place = Arc::clone(&places)
                .acquire_owned()
                .await
                .expect("never closed");
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accept => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: it passes when connections end.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = router
            .clone()
            .map_request(|request: hyper::Request<Incoming>| request.map(axum::body::Body::new));
        let service = TowerToHyperService::new(service.map_err(|never: Infallible| match never {}));
        let (http, secure, watcher) = (http.clone(), secure.clone(), graceful.watcher());
        tokio::spawn(async move {
            if let Some(stream) = secure.secure(stream).await {
                let connection = http.serve_connection(TokioIo::new(stream), service);
                if let Err(error) = watcher.watch(connection).await {
                    tracing::debug!(%error, "a connection broke off");
                }
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(END_PATIENCE, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some requests did not finish in time and were cut off");
    }
}
