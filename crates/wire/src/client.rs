//! The one typed HTTP client: agent, plugin and tests ask through it.

mod pin;
mod traced;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use reqwest::{Method, StatusCode, Url, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument as _;

use crate::Timestamp;
use crate::problem::Problem;
use crate::routes;
use crate::v1::{
    ClusterRegistration, Freshness, Issued, Join, PhaseChanges, PodChanges, PodDigest, Reading,
    Registration, Token, TokenRequest, ToldPhases,
};

pub use pin::{Fingerprint, FingerprintError};
pub use traced::{Attempt, trace_headers};

/// Why a request had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server's address is no http or https URL.
    #[error("{0:?} is not a server address: write http://HOST:PORT or https://HOST:PORT")]
    Address(String),
    /// The HTTP client could not be set up.
    #[error("cannot set up the HTTP client")]
    Setup(#[source] reqwest::Error),
    /// A file that says whom to trust, or who asks, cannot be read.
    #[error("cannot read {0}")]
    File(PathBuf, #[source] std::io::Error),
    /// A token would travel openly.
    #[error("the token is not sent to {0}, where others can read it on the way: use https")]
    OpenToken(String),
    /// A fingerprint is of a certificate, and there is none without TLS.
    #[error("{0} has no certificate that a fingerprint could be of: use https")]
    NothingToPin(String),
    /// No certificates in what says whom to trust.
    #[error("there is no certificate of an authority")]
    Authorities,
    /// No answer: refused, unreachable, timed out, or cut off.
    #[error("no answer from {server}")]
    NoAnswer {
        /// The server asked.
        server: String,
        /// What the network said.
        #[source]
        source: reqwest::Error,
    },
    /// The server answered with an error.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>, Option<Duration>),
    /// The answer is not of this API.
    #[error("{server} answered {status}, which is no answer of nodestats")]
    Foreign {
        /// The server asked.
        server: String,
        /// Its status.
        status: StatusCode,
        /// When it is to be asked again at the earliest.
        retry_after: Option<Duration>,
    },
}

impl Error {
    /// The HTTP status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(problem, _) => Some(problem.status),
            Self::Foreign { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }

    /// Whether a push was refused since the server has not got the frame from which another one says its
    /// differences: that one may be sent whole.
    pub fn misses_key_frame(&self) -> bool {
        matches!(self, Self::Refused(problem, _) if problem.kind == routes::MISSING_KEY_FRAME)
    }

    /// How long the server asks to wait (`Retry-After`, RFC 9110 section 10.2.3, in seconds).
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(_, retry_after) | Self::Foreign { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Why there was no answer, one of few words: `error.type` of OpenTelemetry.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoAnswer { source, .. } if source.is_timeout() => "timeout",
            Self::NoAnswer { source, .. } if source.is_connect() => "connect",
            Self::NoAnswer { .. } => "broken_off",
            Self::Refused(..) | Self::Foreign { .. } => "refused",
            Self::File(..) => "token_file",
            _ => "_OTHER",
        }
    }

    /// Whether the same request may go through later: no answer, overload, a failing server, or a
    /// token that is not there yet.
    pub fn is_temporary(&self) -> bool {
        match self.status() {
            None => matches!(self, Self::NoAnswer { .. } | Self::File(..)),
            Some(status) => status == 408 || status == 429 || status >= 500,
        }
    }
}

/// The answer to a push that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Of later samples the server takes frames that say only what differs from one of these.
    pub takes_deltas: bool,
}

/// A connection to one server. Cloning is cheap; all clones trust whom one of them is told to.
#[derive(Debug, Clone)]
pub struct Client {
    http: Arc<RwLock<reqwest::Client>>,
    base: Url,
    timeout: Duration,
    token: Option<TokenSource>,
    address: Option<SocketAddr>,
}

/// Where a client has its token from.
#[derive(Debug, Clone)]
enum TokenSource {
    /// A file, which is read for each request.
    File(PathBuf),
    /// As it stands.
    Text(Secret),
}

/// A text that is not debugged.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Client {
    /// For the server at `address`, such as `http://127.0.0.1:8080`. Each request has `timeout`.
    pub fn new(address: &str, timeout: Duration) -> Result<Self, Error> {
        let bad_address = || Error::Address(address.to_owned());
        let mut base = Url::parse(address).map_err(|_| bad_address())?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(bad_address());
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let mut http = builder(timeout);
        if base.scheme() == "http" && is_local(&base) {
            // What goes to this machine goes by no proxy: a token would be read there.
            http = http.no_proxy();
        }
        let http = http
            // The host's certificates are read only where they are needed: they cost a megabyte.
            .tls_built_in_root_certs(base.scheme() == "https")
            .build()
            .map_err(Error::Setup)?;
        Ok(Self {
            http: Arc::new(RwLock::new(http)),
            base,
            timeout,
            token: None,
            address: None,
        })
    }

    /// For the server of this machine whose socket this file is.
    #[cfg(unix)]
    pub fn at_socket(path: &Path, timeout: Duration) -> Result<Self, Error> {
        let client = Self::new("http://localhost", timeout)?;
        let http = builder(timeout).no_proxy().unix_socket(path);
        client.use_http(http)?;
        Ok(client)
    }

    /// Its connections leave from this address of this host, for whoever has several; before anybody is
    /// trusted.
    pub fn leaving_from(self, address: IpAddr) -> Result<Self, Error> {
        let http = builder(self.timeout).no_proxy().local_address(address);
        self.use_http(http)?;
        Ok(self)
    }

    fn use_http(&self, http: reqwest::ClientBuilder) -> Result<(), Error> {
        let http = http.build().map_err(Error::Setup)?;
        *self.http.write().unwrap_or_else(PoisonError::into_inner) = http;
        Ok(())
    }

    /// From now on whom these authorities (PEM) have signed is trusted, and nobody else; requests
    /// under way end as they began.
    pub fn trust(&self, authorities: &[u8]) -> Result<(), Error> {
        let authorities = reqwest::Certificate::from_pem_bundle(authorities);
        let authorities = authorities.map_err(|_| Error::Authorities)?;
        if authorities.is_empty() {
            return Err(Error::Authorities);
        }
        let mut http = builder(self.timeout).tls_built_in_root_certs(false);
        if let Some(address) = self.address {
            http = http.resolve(self.base.host_str().unwrap_or_default(), address);
        }
        for authority in authorities {
            http = http.add_root_certificate(authority);
        }
        self.use_http(http)
    }

    /// From now on the server that has this certificate is trusted, whoever signed it and whatever it
    /// is called, and nobody else.
    pub fn pin(&self, fingerprint: Fingerprint) -> Result<(), Error> {
        if self.base.scheme() != "https" {
            return Err(Error::NothingToPin(self.base.to_string()));
        }
        self.use_http(builder(self.timeout).use_preconfigured_tls(fingerprint.configuration()))
    }

    /// The same for the authorities of a file.
    pub fn trust_file(&self, file: &Path) -> Result<(), Error> {
        let authorities = std::fs::read(file);
        self.trust(&authorities.map_err(|error| Error::File(file.to_owned(), error))?)
    }

    /// Trusts these authorities and connects to `address`, whatever the server's name resolves to: for
    /// whoever has no part in the cluster's DNS.
    pub fn trust_at(mut self, authorities: &[u8], address: SocketAddr) -> Result<Self, Error> {
        self.address = Some(address);
        self.trust(authorities)?;
        Ok(self)
    }

    /// Each request carries what this file says at that time, as a bearer token (RFC 6750). Never to
    /// another host without TLS.
    pub fn with_token_file(self, file: PathBuf) -> Result<Self, Error> {
        self.with_source(TokenSource::File(file))
    }

    /// The same with a token that stays.
    pub fn with_token(self, token: &str) -> Result<Self, Error> {
        self.with_source(TokenSource::Text(Secret(token.to_owned())))
    }

    fn with_source(mut self, token: TokenSource) -> Result<Self, Error> {
        if self.base.scheme() == "http" && !is_local(&self.base) {
            return Err(Error::OpenToken(self.base.to_string()));
        }
        self.token = Some(token);
        Ok(self)
    }

    /// What the arguments of every program say of how a server is reached: [`Client::trust_file`],
    /// [`Client::pin`] and [`Client::with_token_file`], where they say such things.
    pub fn with_files(
        self,
        certificate_authority: Option<&Path>,
        fingerprint: Option<Fingerprint>,
        token: Option<&Path>,
    ) -> Result<Self, Error> {
        if let Some(file) = certificate_authority {
            self.trust_file(file)?;
        }
        if let Some(fingerprint) = fingerprint {
            self.pin(fingerprint)?;
        }
        match token {
            Some(file) => self.with_token_file(file.to_owned()),
            None => Ok(self),
        }
    }

    /// The server's host name or address and its port.
    pub fn host_and_port(&self) -> (String, u16) {
        let host = self.base.host_str().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (
            host.to_owned(),
            self.base.port_or_known_default().unwrap_or(80),
        )
    }

    /// Registers a node, and says whether it is new to the server.
    pub async fn register(&self, registration: &Registration) -> Result<bool, Error> {
        let request = self.json(Method::POST, routes::NODES, registration);
        Ok(self.send(request).await?.status() == StatusCode::CREATED)
    }

    /// By a join token: makes the token in `join` the host's own.
    pub async fn join(&self, join: &Join) -> Result<(), Error> {
        let request = self.json(Method::POST, routes::JOIN, join);
        self.send(request).await.map(drop)
    }

    /// At a server's own socket: a new token.
    pub async fn issue(&self, wanted: &TokenRequest) -> Result<Issued, Error> {
        let request = self.json(Method::POST, routes::TOKENS, wanted);
        let response = self.send(request).await?;
        self.read(response).await
    }

    /// At a server's own socket: the tokens that there are.
    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        let request = self.request(Method::GET, routes::TOKENS);
        let response = self.send(request).await?;
        self.read(response).await
    }

    /// At a server's own socket: ends a token.
    pub async fn revoke(&self, id: &str) -> Result<(), Error> {
        let path = format!("{}/{}", routes::TOKENS, routes::escape_segment(id));
        let request = self.request(Method::DELETE, &path);
        self.send(request).await.map(drop)
    }

    /// Pushes frames that are encoded already, and says what this clock shows; returns when the
    /// server has stored them.
    pub async fn push_frames(&self, node: &str, frames: Vec<u8>) -> Result<Acknowledged, Error> {
        let now = Timestamp::from_system(SystemTime::now());
        let request = self.frames(node, frames);
        let request = request.header(
            header::HeaderName::from_static(routes::SENT_AT_HEADER),
            now.to_string(),
        );
        let response = self.send(request).await?;
        Ok(Acknowledged {
            takes_deltas: response.headers().contains_key(routes::DELTAS_HEADER),
        })
    }

    /// The same for frames of which only their own times are known.
    pub async fn push_old_frames(&self, node: &str, frames: Vec<u8>) -> Result<(), Error> {
        self.send(self.frames(node, frames)).await.map(drop)
    }

    fn frames(&self, node: &str, frames: Vec<u8>) -> Request {
        self.request(Method::PUT, &routes::node(node))
            .header(header::CONTENT_TYPE, routes::FRAMES_MEDIA_TYPE)
            .body(frames)
    }

    /// Puts samples in their JSON form; returns when the server has stored them.
    pub async fn put_readings(&self, node: &str, readings: &[Reading]) -> Result<(), Error> {
        let request = self.json(Method::PUT, &routes::node(node), readings);
        self.send(request).await.map(drop)
    }

    /// Signs a node off; its history stays.
    pub async fn deregister(&self, node: &str) -> Result<(), Error> {
        self.send(self.request(Method::DELETE, &routes::node(node)))
            .await
            .map(drop)
    }

    /// Removes a node and its history.
    pub async fn purge(&self, node: &str) -> Result<(), Error> {
        let path = format!("{}?purge=true", routes::node(node));
        self.send(self.request(Method::DELETE, &path))
            .await
            .map(drop)
    }

    /// Registers a cluster's node under its UID.
    pub async fn register_in_cluster(
        &self,
        uid: &str,
        registration: &ClusterRegistration,
    ) -> Result<(), Error> {
        let request = self.json(Method::PUT, &routes::registration(uid), registration);
        self.send(request).await.map(drop)
    }

    /// How fresh each node is that is managed now, in one request.
    pub async fn freshness(&self) -> Result<Vec<Freshness>, Error> {
        let query = [("view", "freshness")];
        let query = serde_urlencoded::to_string(query).expect("pairs of texts encode");
        let request = self.request(Method::GET, &format!("{}?{query}", routes::NODES));
        let response = self.send(request).await?;
        self.read(response).await
    }

    /// Tells what has changed of a cluster's pods.
    pub async fn tell_of_pods(&self, changes: &PodChanges) -> Result<(), Error> {
        let request = self.json(Method::PUT, routes::PODS, changes);
        self.send(request).await.map(drop)
    }

    /// Tells how phases of nodes in their cluster changed.
    pub async fn tell_of_phases(&self, changes: &PhaseChanges) -> Result<ToldPhases, Error> {
        let request = self.json(Method::PUT, routes::EVENTS, changes);
        let response = self.send(request).await?;
        self.read(response).await
    }

    /// What was told last of the pods that have not ended.
    pub async fn pod_digests(&self) -> Result<Vec<PodDigest>, Error> {
        let request = self.request(Method::GET, &format!("{}?view=digests", routes::PODS));
        let response = self.send(request).await?;
        self.read(response).await
    }

    async fn read<T: DeserializeOwned>(&self, response: reqwest::Response) -> Result<T, Error> {
        let status = response.status();
        let body = response.bytes().await;
        let body = body.map_err(|source| self.no_answer(source))?;
        serde_json::from_slice(&body).map_err(|_| Error::Foreign {
            server: self.base.to_string(),
            status,
            retry_after: None,
        })
    }

    /// Asks for `path` and returns the body as the server sent it.
    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Vec<u8>, Error> {
        let query = serde_urlencoded::to_string(query).expect("pairs of texts encode");
        let request = match &*query {
            "" => self.request(Method::GET, path),
            query => self.request(Method::GET, &format!("{path}?{query}")),
        };
        let response = self.send(request).await?;
        let body = response
            .bytes()
            .await
            .map_err(|source| self.no_answer(source))?;
        Ok(body.to_vec())
    }

    fn json(&self, method: Method, path: &str, body: &(impl Serialize + ?Sized)) -> Request {
        let body = serde_json::to_vec(body).expect("what is sent is plain data");
        self.request(method, path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
    }

    fn request(&self, method: Method, path: &str) -> Request {
        let url = self
            .base
            .join(path.trim_start_matches('/'))
            .unwrap_or_else(|_| self.base.clone());
        let (host, port) = self.host_and_port();
        let attempt = Attempt::new(&method, path, (&host, port));
        let http = self.http.read().unwrap_or_else(PoisonError::into_inner);
        Request {
            builder: http.request(method, url),
            attempt,
        }
    }

    async fn send(&self, request: Request) -> Result<reqwest::Response, Error> {
        let Request { builder, attempt } = request;
        let result = self.answer(builder).instrument(attempt.span()).await;
        match &result {
            Ok(response) => attempt.answered(response.status().as_u16()),
            Err(error) => match error.status() {
                Some(status) => attempt.answered(status),
                None => attempt.failed(error.kind()),
            },
        }
        result
    }

    async fn answer(
        &self,
        mut request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, Error> {
        request = request.headers(trace_headers());
        request = match &self.token {
            Some(TokenSource::File(file)) => {
                let token = std::fs::read_to_string(file);
                let token = token.map_err(|error| Error::File(file.clone(), error))?;
                request.bearer_auth(token.trim())
            }
            Some(TokenSource::Text(Secret(token))) => request.bearer_auth(token),
            None => request,
        };
        let response = request
            .send()
            .await
            .map_err(|source| self.no_answer(source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let foreign = Error::Foreign {
            server: self.base.to_string(),
            status,
            retry_after,
        };
        let Ok(body) = response.bytes().await else {
            return Err(foreign);
        };
        Err(refusal(&body, retry_after).unwrap_or(foreign))
    }

    fn no_answer(&self, source: reqwest::Error) -> Error {
        // The URL stands in our own text already.
        Error::NoAnswer {
            server: self.base.to_string(),
            source: source.without_url(),
        }
    }
}

/// A request under way, and what is told of it.
struct Request {
    builder: reqwest::RequestBuilder,
    attempt: Attempt,
}

impl Request {
    fn header(mut self, name: header::HeaderName, value: impl AsRef<str>) -> Self {
        self.builder = self.builder.header(name, value.as_ref());
        self
    }

    fn body(mut self, body: Vec<u8>) -> Self {
        self.builder = self.builder.body(body);
        self
    }
}

/// Whether the server is on this machine.
fn is_local(base: &Url) -> bool {
    let host = base.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse();
    address.map_or(host == "localhost", |ip: IpAddr| ip.is_loopback())
}

/// What all clients have in common.
fn builder(timeout: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout.min(Duration::from_secs(5)))
        .user_agent(concat!("nodestats/", env!("CARGO_PKG_VERSION")))
        .pool_idle_timeout(routes::CLIENT_KEEP_ALIVE)
        .redirect(reqwest::redirect::Policy::none())
}

/// What an error's body says, where it is one of this API.
fn refusal(body: &[u8], retry_after: Option<Duration>) -> Option<Error> {
    let problem = serde_json::from_slice::<Problem>(body).ok()?;
    Some(Error::Refused(Box::new(problem), retry_after))
}

/// An answer that came by another way than a [`Client`], as [`Client::get`] gives it: the body
/// where the status is one of success, else what it says.
pub fn answer(server: &str, status: u16, body: Vec<u8>) -> Result<Vec<u8>, Error> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    if status.is_success() {
        return Ok(body);
    }
    let server = server.to_owned();
    let retry_after = None;
    let foreign = Error::Foreign {
        server,
        status,
        retry_after,
    };
    Err(refusal(&body, retry_after).unwrap_or(foreign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_no_url_is_refused() {
        let client = |address| Client::new(address, Duration::from_secs(1));
        for address in ["", "localhost:8080", "ftp://a", "http://", "127.0.0.1"] {
            assert!(
                matches!(client(address), Err(Error::Address(_))),
                "{address}"
            );
        }
        let parts = |address| client(address).map(|client| client.host_and_port()).ok();
        assert_eq!(parts("http://[::1]:81"), Some(("::1".to_owned(), 81)));
        assert_eq!(
            parts("https://a.example/below"),
            Some(("a.example".to_owned(), 443))
        );
    }
}
