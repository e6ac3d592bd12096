//! Serves a router on a listener: bounded connections, no endless headers, an orderly end.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use nodestats_wire::routes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Connections at once; further ones wait in the kernel. Each agent keeps one between its pushes.
const CONNECTIONS: usize = 8192;
/// Of these from one address: who holds as many as they can leaves places for others.
const CONNECTIONS_OF_ONE: usize = CONNECTIONS / 8;
/// Most bytes of the head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// Requests under way at the end have this long to finish.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Where connections come from.
pub(crate) trait Accept: Send + 'static {
    /// A connection as it comes.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one, and the address that it comes from, where it comes from one.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<IpAddr>)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Option<IpAddr>)> {
        let (stream, address) = self.accept().await?;
        let _ = stream.set_nodelay(true);
        Ok((stream, Some(address.ip().to_canonical())))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Option<IpAddr>)> {
        let (stream, _) = self.accept().await?;
        Ok((stream, None))
    }
}

/// What becomes of a connection before its first request.
pub(crate) trait Secure<S>: Clone + Send + Sync + 'static {
    /// What requests are read from.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// `None` where the other side is not let in.
    fn secure(&self, stream: S) -> impl Future<Output = Option<Self::Stream>> + Send;
}

/// Whoever reaches the listener.
#[derive(Clone)]
struct Anybody;

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Secure<S> for Anybody {
    type Stream = S;

    async fn secure(&self, stream: S) -> Option<S> {
        Some(stream)
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// How many connections each address has.
#[derive(Default, Clone)]
struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them, until it is dropped.
struct OfPeer(Peers, IpAddr);

impl Peers {
    /// `None` where this address has as many as it may.
    fn enter(&self, address: IpAddr) -> Option<OfPeer> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= CONNECTIONS_OF_ONE {
            return None;
        }
        *count += 1;
        Some(OfPeer(self.clone(), address))
    }
}

impl Drop for OfPeer {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.1) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Serves until `stop`, then lets the requests under way finish.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    serve_by(listener, Anybody, router, routes::SERVER_KEEP_ALIVE, stop).await;
}

/// The same on a socket of this machine.
pub async fn serve_locally(listener: UnixListener, router: Router, stop: CancellationToken) {
    serve_by(listener, Anybody, router, routes::SERVER_KEEP_ALIVE, stop).await;
}

/// The same for those whom `secure` lets in. A request, and the rest of its head, has `patience` to come.
pub(crate) async fn serve_by<A: Accept>(
    listener: A,
    secure: impl Secure<A::Stream>,
    router: Router,
    patience: Duration,
    stop: CancellationToken,
) {
    let peers = Peers::default();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        // hyper has one patience for the wait for a request and for the rest of its head.
        .header_read_timeout(patience)
        .max_buf_size(HEAD_BYTES);
    loop {
        let accept = async {
            let place = Arc::clone(&places)
                .acquire_owned()
                .await
                .expect("never closed");
            (listener.next().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accept => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: it passes when connections end.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let of_peer = match address.map(|address| peers.enter(address)) {
            Some(None) => {
                tracing::debug!(?address, "an address has too many connections");
                continue;
            }
            Some(entered) => entered,
            None => None,
        };
        let service = router
            .clone()
            .map_request(move |mut request: hyper::Request<Incoming>| {
                if let Some(address) = address {
                    request.extensions_mut().insert(Peer(address));
                }
                request.map(axum::body::Body::new)
            });
        let service = TowerToHyperService::new(service.map_err(|never: Infallible| match never {}));
        let (http, secure, watcher) = (http.clone(), secure.clone(), graceful.watcher());
        tokio::spawn(async move {
            if let Some(stream) = secure.secure(stream).await {
                let connection = http.serve_connection(TokioIo::new(stream), service);
                if let Err(error) = watcher.watch(connection).await {
                    tracing::debug!(%error, "a connection broke off");
                }
            }
            drop((place, of_peer));
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn one_address_leaves_places_for_others() {
        let peers = Peers::default();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().expect("an address"));
        let mut held: Vec<_> = (0..CONNECTIONS_OF_ONE)
            .map(|_| peers.enter(one).expect("a place"))
            .collect();
        assert!(peers.enter(one).is_none());
        assert!(peers.enter(other).is_some());
        held.pop();
        assert!(peers.enter(one).is_some());
        drop(held);
        assert!(
            peers.0.lock().expect("whole").is_empty(),
            "nobody is remembered"
        );
    }
    async fn listening(patience: Duration) -> (std::net::SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let router = Router::new().route("/", axum::routing::get(async || "here"));
        let stop = CancellationToken::new();
        tokio::spawn(serve_by(listener, Anybody, router, patience, stop.clone()));
        (address, stop)
    }

    /// What comes back for these bytes until the connection ends.
    async fn send(address: std::net::SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        // Who is not listened to any more may not get rid of all of it.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_is_given_up() {
        let (address, stop) = listening(Duration::from_millis(100)).await;
        for head in ["", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "] {
            let answer = send(address, head.as_bytes()).await;
            assert!(!answer.contains("200"), "{answer}");
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn a_head_of_endless_size_is_431() {
        let (address, stop) = listening(Duration::from_mins(1)).await;
        let head = |size: usize| {
            let filler = "a".repeat(size);
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: {filler}\r\n\r\n")
        };
        let small = send(address, head(1 << 10).as_bytes()).await;
        assert!(small.starts_with("HTTP/1.1 200"), "{small}");
        let large = send(address, head(HEAD_BYTES).as_bytes()).await;
        assert!(large.starts_with("HTTP/1.1 431"), "{large}");
        stop.cancel();
    }
}
