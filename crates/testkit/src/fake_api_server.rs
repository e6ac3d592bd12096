//! A fake kube-apiserver on the HTTP level, for what a real one does too rarely to wait for:
//! conflicts, 410 Gone in a watch, 429, 500, an answer that never comes.
//!
//! It lists, watches, creates, replaces and patches whatever object a path names, and knows nothing
//! of what they mean. What the real one checks (schemas, ownership of fields, permissions) is tested
//! on the real one.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// What a request gets in place of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This status.
    Status(u16),
    /// 429 with `Retry-After: 1`.
    TooManyRequests,
    /// Nothing, for ever.
    Hang,
}

type Events = mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>;
type Body = Either<Full<Bytes>, StreamBody<Stream>>;
type Stream = futures_util::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>;

#[derive(Default)]
struct State {
    /// Objects by path.
    objects: BTreeMap<String, Value>,
    /// Watches by the path of their collection.
    watches: Vec<(String, Events)>,
    version: u64,
    /// What the next requests of a method to a path that ends so get.
    faults: VecDeque<(Method, String, Fault)>,
    requests: BTreeMap<String, usize>,
}

/// The server; it ends with the runtime that it was started on.
#[derive(Clone)]
pub struct FakeApiServer {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

impl FakeApiServer {
    /// Starts it on loopback.
    ///
    /// # Panics
    /// Where loopback has no port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let server = Self {
            state: Arc::default(),
            address: listener.local_addr().expect("bound"),
        };
        let all = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = all.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        server
    }

    /// Writes a kubeconfig for it.
    ///
    /// # Panics
    /// Where the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "clusters": [{"name": "fake", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "fake", "user": {}}],
        });
        std::fs::write(path, config.to_string()).expect("written");
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an object there, as somebody else would.
    pub fn put(&self, path: &str, object: Value) {
        self.state().put(path, object);
    }

    /// Takes an object away, as somebody else would.
    pub fn remove(&self, path: &str) {
        self.state().remove(path);
    }

    /// The object at a path.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// How many objects below a path are so.
    pub fn count(&self, below: &str, is_so: impl Fn(&Value) -> bool) -> usize {
        let state = self.state();
        let below = format!("{below}/");
        let found = state
            .objects
            .iter()
            .filter(|(path, _)| path.starts_with(&below));
        found.filter(|(_, object)| is_so(object)).count()
    }

    /// How many requests of a method to paths that end so there were.
    pub fn requests(&self, method: &str, ending: &str) -> usize {
        let state = self.state();
        let matching = state.requests.iter().filter(|(request, _)| {
            request.starts_with(&format!("{method} ")) && request.ends_with(ending)
        });
        matching.map(|(_, count)| count).sum()
    }

    /// The next `times` requests of a method to a path that ends so get this.
    pub fn fail(&self, method: Method, ending: &str, times: usize, fault: Fault) {
        let one = (method, ending.to_owned(), fault);
        self.state().faults.extend(std::iter::repeat_n(one, times));
    }

    /// How many faults have not been met yet.
    pub fn faults_left(&self) -> usize {
        self.state().faults.len()
    }

    /// Ends each watch of a collection with 410 Gone, as when its version is forgotten.
    pub fn forget_versions(&self, collection: &str) {
        let mut state = self.state();
        let gone = status(410);
        let line = format!("{}\n", json!({"type": "ERROR", "object": gone}));
        state.watches.retain(|(watched, events)| {
            if watched == collection {
                let _ = events.send(Ok(Frame::data(Bytes::from(line.clone()))));
            }
            watched != collection
        });
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let body = body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes);
        let body: Value = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        let fault = {
            let mut state = self.state();
            *state
                .requests
                .entry(format!("{} {path}", parts.method))
                .or_default() += 1;
            let met = state.faults.iter().position(|(method, ending, _)| {
                *method == parts.method && path.ends_with(&**ending)
            });
            met.and_then(|met| state.faults.remove(met))
                .map(|(_, _, fault)| fault)
        };
        match fault {
            Some(Fault::Status(code)) => return failure(code),
            Some(Fault::TooManyRequests) => {
                let mut response = failure(429);
                let headers = response.headers_mut();
                headers.insert("retry-after", hyper::header::HeaderValue::from_static("1"));
                return response;
            }
            Some(Fault::Hang) => std::future::pending().await,
            None => {}
        }
        let mut state = self.state();
        match parts.method {
            Method::GET if query.contains("watch=true") => state.watch(&path, &query),
            Method::GET if state.objects.contains_key(&path) => ok(&state.objects[&path]),
            Method::GET if is_collection(&path) => state.list(&path, &query),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let path = format!("{path}/{name}");
                if state.objects.contains_key(&path) {
                    return failure(409);
                }
                ok(&state.put(&path, body))
            }
            Method::PUT => ok(&state.put(&path, body)),
            Method::PATCH => {
                let whole = path.trim_end_matches("/status");
                let Some(mut object) = state.objects.get(whole).cloned() else {
                    return failure(404);
                };
                merge(&mut object, body);
                ok(&state.put(whole, object))
            }
            _ => failure(404),
        }
    }
}

impl State {
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let kind = if self.objects.contains_key(path) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.tell(path, kind, &object);
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn remove(&mut self, path: &str) {
        if let Some(mut object) = self.objects.remove(path) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.tell(path, "DELETED", &object);
        }
    }

    /// Tells those who watch.
    fn tell(&mut self, path: &str, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        let collection = path
            .rsplit_once('/')
            .map_or("", |(collection, _)| collection);
        self.watches.retain(|(watched, events)| {
            let line = Frame::data(Bytes::from(line.clone()));
            watched != collection || events.send(Ok(line)).is_ok()
        });
    }

    fn list(&self, collection: &str, query: &str) -> Response<Body> {
        // A token says how many were listed before.
        let (limit, begin) = (
            number(query, "limit="),
            number(query, "continue=").unwrap_or_default(),
        );
        let below = format!("{collection}/");
        let all: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(path, _)| path.starts_with(&below))
            .map(|(_, object)| object)
            .collect();
        let end = limit.map_or(all.len(), |limit| all.len().min(begin + limit));
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if end < all.len() {
            metadata["continue"] = json!(end.to_string());
        }
        ok(&json!({
            "apiVersion": "v1", "kind": "List", "metadata": metadata,
            "items": all.get(begin..end).unwrap_or_default(),
        }))
    }

    fn watch(&mut self, collection: &str, query: &str) -> Response<Body> {
        let (events, stream) = mpsc::unbounded_channel();
        // What changed since the version that the client has.
        let since = number(query, "resourceVersion=").unwrap_or_default() as u64;
        let below = format!("{collection}/");
        for (path, object) in &self.objects {
            let version = object["metadata"]["resourceVersion"].as_str();
            let version = version.and_then(|version| version.parse::<u64>().ok());
            if path.starts_with(&below) && version.is_some_and(|version| version > since) {
                let line = format!("{}\n", json!({"type": "MODIFIED", "object": object}));
                let _ = events.send(Ok(Frame::data(Bytes::from(line))));
            }
        }
        self.watches.push((collection.to_owned(), events));
        let seconds = number(query, "timeoutSeconds=").unwrap_or(300);
        let end = tokio::time::Instant::now() + Duration::from_secs(seconds as u64);
        let stream = futures_util::stream::unfold((stream, end), async |(mut stream, end)| {
            let event = tokio::time::timeout_at(end, stream.recv()).await.ok()?;
            event.map(|frame| (frame, (stream, end)))
        });
        Response::new(Either::Right(StreamBody::new(Box::pin(stream))))
    }
}

/// A number in a query.
fn number(query: &str, name: &str) -> Option<usize> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name));
    value.and_then(|value| value.parse().ok())
}

/// Collections are named in the plural, below a group and its version.
fn is_collection(path: &str) -> bool {
    path.ends_with('s') && !path.contains("/leases/")
}

fn ok(object: &Value) -> Response<Body> {
    Response::new(Either::Left(Full::new(Bytes::from(object.to_string()))))
}

fn status(code: u16) -> Value {
    let reason = StatusCode::from_u16(code)
        .ok()
        .and_then(|code| code.canonical_reason());
    let reason = reason.unwrap_or_default().replace(' ', "");
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": format!("a fault of the test: {reason}"), "reason": reason, "code": code,
    })
}

fn failure(code: u16) -> Response<Body> {
    let mut response = ok(&status(code));
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    response
}

/// What an apply does, as far as this server knows: objects are merged, lists of conditions by
/// type, all else is replaced.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(from))
            if from.iter().all(|one| one["type"].is_string()) =>
        {
            for one in from {
                into.retain(|old| old["type"] != one["type"]);
                into.push(one);
            }
        }
        (into, from) => *into = from,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_watch_ends_when_its_time_is_up() {
        let server = FakeApiServer::start().await;
        server.put("/api/v1/nodes/a", json!({"metadata": {"name": "a"}}));
        let mut stream = std::net::TcpStream::connect(server.address).expect("it listens");
        let path = "/api/v1/nodes?&watch=true&timeoutSeconds=1&resourceVersion=0";
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("written");
        let mut text = String::new();
        stream
            .read_to_string(&mut text)
            .expect("an answer that ends");
        assert!(text.ends_with("0\r\n\r\n"), "{text}");
    }
}
