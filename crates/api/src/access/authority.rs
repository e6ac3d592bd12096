//! Who is asked about tokens and rules, and what they have said lately: an [`Authority`] behind caches
//! that are bounded in size and time, and never more than so many questions at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metrics::{Cached, Metrics};
use futures_util::future::BoxFuture;
use moka::Expiry;
use moka::future::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};

/// What is known of a token is asked for again after so long: the token of a pod that was deleted
/// is good until then. An agent shows its token with each push.
const TOKEN_KNOWN: Duration = Duration::from_mins(1);
/// The same of a token that is not good, and of what somebody may: a new rule counts by then.
const DECISION_KNOWN: Duration = Duration::from_secs(10);
/// Tokens and decisions that are known at once.
const KNOWN: u64 = 20_000;
/// Questions to the authority at once.
const QUESTIONS: usize = 16;

/// Somebody whom Kubernetes knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// The name.
    pub name: String,
    /// What tells two users of one name apart.
    pub uid: Option<String>,
    /// The groups that the user is in.
    pub groups: Vec<String>,
    /// Further attributes.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What is asked of Kubernetes' authorisation about one of our resources.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// `get` or `list`.
    pub verb: &'static str,
    /// `nodes` or `pods`.
    pub resource: &'static str,
    /// The namespace of pods; empty for all of them, and for nodes, which are in none.
    pub namespace: String,
    /// The detail, such as `cpu`; empty for the node or the pod in short.
    pub subresource: &'static str,
    /// Its own name; empty for all.
    pub name: String,
}

impl Question {
    /// About one node, or by an empty name about whichever.
    pub(super) fn get(subresource: &'static str, name: &str) -> Self {
        Self {
            verb: "get",
            resource: "nodes",
            namespace: String::new(),
            subresource,
            name: name.to_owned(),
        }
    }

    /// About one pod.
    pub(super) fn get_pod(subresource: &'static str, namespace: &str, name: &str) -> Self {
        Self {
            resource: "pods",
            namespace: namespace.to_owned(),
            ..Self::get(subresource, name)
        }
    }

    /// About which pods there are in a namespace, or by an empty name in all of them.
    pub(super) fn list_pods(namespace: &str) -> Self {
        Self {
            verb: "list",
            ..Self::get_pod("", namespace, "")
        }
    }

    /// About which nodes there are.
    pub(super) fn list() -> Self {
        Self {
            verb: "list",
            ..Self::get("", "")
        }
    }

    /// The resource as rules write it.
    pub(super) fn resource(&self) -> String {
        match self.subresource {
            "" => self.resource.to_owned(),
            detail => format!("{}/{detail}", self.resource),
        }
    }
}

/// Nobody can be asked at the moment.
#[derive(Debug, Clone, thiserror::Error)]
#[error("Kubernetes does not say who this is or what they may: {0}")]
pub struct Unreachable(pub String);

/// Who knows users and what they may.
pub trait Authority: Send + Sync + 'static {
    /// Whose token this is; `None` where it is nobody's, or not meant for us.
    fn who<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, Unreachable>>;

    /// Whether the user may do this.
    fn may<'a>(
        &'a self,
        user: &'a User,
        question: &'a Question,
    ) -> BoxFuture<'a, Result<bool, Unreachable>>;
}

/// Names of the two service accounts that write.
#[derive(Debug, Clone)]
pub struct Accounts {
    /// The agents', as Kubernetes names its user.
    pub agent: String,
    /// The controller's.
    pub controller: String,
}

/// How a listener comes to know who asks.
#[derive(Clone)]
pub struct Door(Kind);

#[derive(Clone)]
enum Kind {
    Open,
    Tokens,
    Asking(Arc<Asking>),
}

/// An authority, and what it has said lately.
pub(super) struct Asking {
    authority: Box<dyn Authority>,
    pub(super) accounts: Accounts,
    /// By the token's hash: a token is kept nowhere.
    tokens: Cache<[u8; 32], Option<Arc<User>>>,
    decisions: Cache<(Arc<User>, Question), bool>,
    /// Questions that are under way at once: who floods us does not flood Kubernetes.
    places: Semaphore,
}

/// A token that is not good is forgotten sooner.
struct TokenExpiry;

impl Expiry<[u8; 32], Option<Arc<User>>> for TokenExpiry {
    fn expire_after_create(
        &self,
        _token: &[u8; 32],
        user: &Option<Arc<User>>,
        _now: Instant,
    ) -> Option<Duration> {
        Some(user.as_ref().map_or(DECISION_KNOWN, |_| TOKEN_KNOWN))
    }
}

impl Door {
    /// Nobody is asked: whoever reaches it may do everything.
    pub fn open() -> Self {
        Self(Kind::Open)
    }

    /// Tokens that this server has issued say who asks.
    pub fn tokens() -> Self {
        Self(Kind::Tokens)
    }

    /// Such tokens, and beyond them this authority.
    pub fn asking(authority: impl Authority, accounts: Accounts) -> Self {
        Self(Kind::Asking(Arc::new(Asking {
            authority: Box::new(authority),
            accounts,
            tokens: Cache::builder()
                .max_capacity(KNOWN)
                .expire_after(TokenExpiry)
                .build(),
            decisions: Cache::builder()
                .max_capacity(KNOWN)
                .time_to_live(DECISION_KNOWN)
                .build(),
            places: Semaphore::new(QUESTIONS),
        })))
    }

    /// Whether nobody is asked.
    pub fn is_open(&self) -> bool {
        matches!(self.0, Kind::Open)
    }

    pub(super) fn kubernetes(&self) -> Option<&Asking> {
        match &self.0 {
            Kind::Asking(asking) => Some(asking),
            Kind::Open | Kind::Tokens => None,
        }
    }
}

impl Asking {
    async fn place(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.places.acquire().await.ok()
    }

    pub(super) async fn who(
        &self,
        token: &str,
        metrics: &Metrics,
    ) -> Result<Option<Arc<User>>, Unreachable> {
        let key: [u8; 32] = Sha256::digest(token).into();
        metrics.looked_up(Cached::Tokens, self.tokens.contains_key(&key));
        let ask = async {
            let _place = self.place().await;
            Ok(self.authority.who(token).await?.map(Arc::new))
        };
        let known = self.tokens.try_get_with(key, ask).await;
        known.map_err(|error: Arc<Unreachable>| (*error).clone())
    }

    pub(super) async fn may(
        &self,
        user: &Arc<User>,
        question: &Question,
        metrics: &Metrics,
    ) -> Result<bool, Unreachable> {
        let key = (Arc::clone(user), question.clone());
        metrics.looked_up(Cached::Decisions, self.decisions.contains_key(&key));
        let ask = async {
            let _place = self.place().await;
            self.authority.may(user, question).await
        };
        let decided = self.decisions.try_get_with(key, ask);
        decided
            .await
            .map_err(|error: Arc<Unreachable>| (*error).clone())
    }
}
