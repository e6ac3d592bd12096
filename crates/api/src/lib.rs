//! The HTTP API: routes, handlers, their description, and the page for people.
//!
//! Answers come from stored samples, never from a look at a host. Holds no process wiring: a
//! program builds an [`App`] on an open store and serves its router.

mod access;
pub mod aggregated;
mod answer;
mod body;
mod error;
mod events;
mod exporter;
mod forwarded;
pub mod fuzz;
mod guard;
mod history;
mod ingest;
mod join;
mod key_frames;
mod limits;
mod local;
mod metrics;
mod nodes;
mod now;
mod observe;
mod openapi;
mod page;
mod pieces;
mod pods;
mod query;
mod routes;
mod serve;
mod system;
mod tls;
pub mod tokens;
mod top;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nodestats_runtime::metrics::Registry;
use nodestats_store::Store;
use nodestats_wire::Timestamp;

pub use access::{Accounts, Authority, Door, Kubernetes, Question, Unreachable, User};
pub use error::ApiError;
pub use forwarded::forwarded_router;
pub use guard::Exposure;
pub use limits::Limits;
pub use local::local_router;
pub use metrics::{CertificateEnd, Metrics};
pub use routes::{openapi_document, router};
pub use serve::{serve, serve_locally};
pub use tls::{Certificate, TlsError, serve_tls};

/// What the handlers work with. Cloning is cheap; all clones are one app.
#[derive(Clone)]
pub struct App {
    store: Store,
    options: Arc<Options>,
    metrics: Arc<Metrics>,
    bodies: body::Budget,
    registrations: Arc<tokio::sync::Mutex<()>>,
    callers: limits::Callers,
    pushed: limits::Nodes,
    key_frames: key_frames::KeyFrames,
    /// One tells of pods at a time.
    pods: Arc<tokio::sync::Mutex<()>>,
    /// Since when it listens, by its clock.
    started: Timestamp,
    /// Large bodies that are read at once.
    large_bodies: Arc<tokio::sync::Semaphore>,
    /// Pieces of histories that are made at once.
    reading: Arc<tokio::sync::Semaphore>,
}

/// How the API behaves.
#[derive(Clone)]
pub struct Options {
    /// The largest body of a request, in bytes.
    pub body_limit: usize,
    /// A body arrives within this time, or it is given up.
    pub body_patience: Duration,
    /// Who can reach the listener.
    pub exposure: Exposure,
    /// How it comes to know who asks.
    pub door: Door,
    /// Sites whose pages may read from here in a browser (RFC 6454 origins, in lower case).
    pub cors_origins: Vec<String>,
    /// What one caller may ask for.
    pub limits: Limits,
    /// Where it counts; what `/metrics` shows is all that is counted there.
    pub registry: Registry,
    /// The certificate that its listener shows.
    pub certificate: CertificateEnd,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            body_limit: 8 << 20,
            body_patience: Duration::from_secs(30),
            exposure: Exposure::Loopback,
            door: Door::open(),
            cors_origins: Vec::new(),
            limits: Limits::default(),
            registry: Registry::default(),
            certificate: CertificateEnd::default(),
        }
    }
}

/// Pieces of histories that are made at once, by whomever: one for each of the program's two threads
/// would leave none for pushes.
const HISTORIES: usize = 1;

/// Bodies of more than a MiB, unpacked, that are read at once: each takes a thread, and some times its
/// size.
const LARGE_BODIES: usize = 2;

impl App {
    /// An app on an open store.
    pub fn new(store: Store, options: Options) -> Self {
        let bodies = body::Budget::new(options.body_limit);
        let metrics = Arc::new(Metrics::new(&options.registry));
        Self {
            started: Self::now(),
            large_bodies: Arc::new(tokio::sync::Semaphore::new(LARGE_BODIES)),
            pushed: limits::Nodes::default(),
            key_frames: key_frames::KeyFrames::default(),
            reading: Arc::new(tokio::sync::Semaphore::new(HISTORIES)),
            callers: limits::Callers::new(options.limits),
            store,
            options: Arc::new(options),
            metrics,
            bodies,
            registrations: Arc::default(),
            pods: Arc::default(),
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_system(SystemTime::now())
    }
}
