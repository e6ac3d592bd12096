//! A router on a database in memory, and what it answers.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures_util::future::BoxFuture;
use http::{Request, header};
use http_body_util::BodyExt as _;
use nodestats_api::{
    Accounts, App, Authority, Door, Limits, Options, Question, Unreachable, User, forwarded_router,
    router,
};
use nodestats_store::{Location, MemoryBudget, Store};
use nodestats_wire::routes;
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// The service accounts that write.
pub(crate) const AGENT: &str = "system:serviceaccount:nodestats:nodestats-agent";
pub(crate) const CONTROLLER: &str = "system:serviceaccount:nodestats:nodestats-controller";

/// An authority that is a list: tokens by what they are called, and what each user may.
#[derive(Clone, Default)]
pub(crate) struct Book {
    pub(crate) users: BTreeMap<String, User>,
    /// User, `VERB RESOURCE`, and the name, or `NAMESPACE/*` or `*` for all.
    pub(crate) rules: Vec<(String, String, String)>,
    /// Nobody answers.
    pub(crate) away: bool,
}

impl Book {
    pub(crate) fn token(mut self, token: &str, user: &str, extra: &[(&str, &str)]) -> Self {
        let extra = extra
            .iter()
            .map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()]));
        let user = User {
            name: user.to_owned(),
            extra: extra.collect(),
            ..User::default()
        };
        self.users.insert(token.to_owned(), user);
        self
    }

    pub(crate) fn rule(mut self, user: &str, what: &str, name: &str) -> Self {
        let rule = [user, what, name].map(str::to_owned);
        self.rules.push(rule.into());
        self
    }
}

impl Authority for Book {
    fn who<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, Unreachable>> {
        Box::pin(async move {
            if self.away {
                return Err(Unreachable("away".to_owned()));
            }
            Ok(self.users.get(token).cloned())
        })
    }

    fn may<'a>(
        &'a self,
        user: &'a User,
        question: &'a Question,
    ) -> BoxFuture<'a, Result<bool, Unreachable>> {
        let slash = if question.subresource.is_empty() {
            ""
        } else {
            "/"
        };
        let (verb, resource) = (question.verb, question.resource);
        let what = format!("{verb} {resource}{slash}{}", question.subresource);
        let within = format!("{}/*", question.namespace);
        let allowed = self.rules.iter().any(|(who, rule, name)| {
            let is_named = name == "*" || *name == within || *name == question.name;
            *who == user.name && *rule == what && is_named
        });
        Box::pin(std::future::ready(Ok(allowed)))
    }
}

pub(crate) struct Server {
    pub(crate) store: Store,
    pub(crate) app: App,
    pub(crate) router: Router,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("text"))
    }
}

impl Server {
    pub(crate) async fn new() -> Self {
        Self::with(Options {
            body_limit: 1 << 20,
            body_patience: Duration::from_millis(200),
            ..Options::default()
        })
        .await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let retention = Duration::from_hours(876_000);
        let memory = MemoryBudget::from_limit(0);
        let options_of_store = nodestats_store::Options {
            retention,
            memory,
            node_quota: None,
            retention_minute: Duration::from_hours(24 * 90),
            retention_hour: Duration::from_hours(24 * 730),
            max_size: None,
            meter: options.registry.meter("nodestats.store"),
        };
        let store = Store::open(&Location::Memory, &options_of_store)
            .await
            .expect("opens");
        let app = App::new(store.clone(), options);
        let router = router(app.clone());
        Self { store, app, router }
    }

    /// Another program on the same database.
    pub(crate) fn replica(&self) -> Self {
        let app = App::new(self.store.clone(), Options::default());
        Self {
            store: self.store.clone(),
            router: router(app.clone()),
            app,
        }
    }

    /// Another listener of the same server, which asks this authority.
    pub(crate) fn asking(&self, authority: Book) -> Self {
        self.asking_within(authority, Limits::default())
    }

    /// The same where each caller may ask for so much.
    pub(crate) fn asking_within(&self, authority: Book, limits: Limits) -> Self {
        let accounts = Accounts {
            agent: AGENT.to_owned(),
            controller: CONTROLLER.to_owned(),
        };
        let options = Options {
            door: Door::asking(authority, accounts),
            limits,
            body_limit: 1 << 20,
            body_patience: Duration::from_millis(200),
            ..Options::default()
        };
        let app = App::new(self.store.clone(), options);
        Self {
            store: self.store.clone(),
            router: router(app.clone()),
            app,
        }
    }

    /// A request with a bearer token.
    pub(crate) async fn call_as(
        &self,
        token: &str,
        (method, path): (&str, &str),
        body: impl Into<Body>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {token}"));
        self.ask(request.body(body.into()).expect("a request"))
            .await
    }

    /// The listener for port-forwards of the same server.
    pub(crate) fn forwarded(&self, processes: bool) -> Self {
        Self {
            store: self.store.clone(),
            app: self.app.clone(),
            router: forwarded_router(&self.app, processes),
        }
    }

    pub(crate) async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("never fails");
        let (parts, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .expect("a whole body")
            .to_bytes()
            .to_vec();
        let answer = Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        };
        if answer.status >= 400 {
            assert_eq!(answer.header("content-type"), routes::PROBLEM_MEDIA_TYPE);
            let problem = answer.json();
            assert_eq!(problem["status"], answer.status);
            assert!(
                problem["detail"]
                    .as_str()
                    .is_some_and(|detail| !detail.is_empty())
            );
        }
        answer
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost");
        self.ask(request.body(body.into()).expect("a request"))
            .await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, Body::empty()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.call("PUT", path, body.to_string()).await
    }

    pub(crate) async fn register(&self, ip: &str, hostname: &str, uid: &str) -> Answer {
        let body = json!({ "ip": ip, "hostname": hostname, "uid": uid });
        self.call("POST", "/nodes", body.to_string()).await
    }

    pub(crate) async fn put_frames(&self, node: &str, frames: Vec<u8>) -> Answer {
        let request = Request::put(format!("/nodes/{node}"))
            .header(header::CONTENT_TYPE, routes::FRAMES_MEDIA_TYPE)
            .body(frames.into());
        self.ask(request.expect("a request")).await
    }
}
