//! Who asks, and what they may: the one place where both are decided, for every way in.
//!
//! An [`Identity`] is made here alone: from a bearer token that Kubernetes knows or that this server
//! has issued, from what the front proxy says, or by a listener that asks nobody. No handler comes to a
//! node's life without one (`App::resolve`), and each says by [`Want`] what it is about to do. People of
//! a cluster are judged by Kubernetes itself (`SubjectAccessReview`), by the node's own name whatever
//! they called it, and in its own terms: the resource `nodes` of the group `stats.nodestats.dev`, and
//! each detail as a subresource.

mod authority;
mod identity;
mod kubernetes;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, header};
use nodestats_core::NodeIdentity;
use nodestats_core::life::{Life, When};
use nodestats_core::token::{Grant, Token};
use nodestats_runtime::telemetry;
use nodestats_wire::routes;
use nodestats_wire::v1::PodRecord;
use tracing::Instrument as _;

pub use authority::{Accounts, Authority, Door, Question, Unreachable, User};
pub(crate) use identity::{
    EVENTS, EXTRA_HEADERS, GROUP_HEADER, Identity, METRICS, PROCESSES, Target, USER_HEADER, Want,
};
pub use kubernetes::Kubernetes;

use crate::access::identity::{Caller, Verdict, Way};
use crate::limits::{self, Slot};
use crate::routes::Node;
use crate::serve::Peer;
use crate::{ApiError, App, Exposure};

/// Nodes that somebody's list is looked through for, one question each, where no rule of theirs is about
/// all: enough for a team's, and no more.
const LOOKED_THROUGH: usize = 500;

impl App {
    async fn ask(&self, user: &Arc<User>, question: &Question) -> Result<bool, ApiError> {
        match self.options.door.kubernetes() {
            // The front proxy has asked before it forwarded.
            None => Ok(true),
            Some(asking) => Ok(asking.may(user, question, &self.metrics).await?),
        }
    }

    /// Whether this may be done with a node; an error says what is missing. `asked` is what they
    /// called it.
    pub(crate) async fn permit(
        &self,
        identity: &Identity,
        want: Want,
        target: Target<'_>,
        asked: &str,
    ) -> Result<(), ApiError> {
        let refused = match identity.verdict(want, target) {
            Verdict::Yes => return Ok(()),
            Verdict::No(why) => why,
            Verdict::Ask(user, question) => {
                if self.ask(user, &question).await? {
                    return Ok(());
                }
                let resource = question.resource();
                format!(
                    "{:?} may not get {resource} of {asked:?}: no ClusterRole that they are bound to \
                     allows get of {resource} in the API group {}",
                    user.name,
                    routes::GROUP
                )
            }
        };
        self.metrics.denied();
        Err(ApiError::forbidden(refused))
    }

    /// Those of `lives` that a list shows to them; an error where it is to show none.
    pub(crate) async fn visible(
        &self,
        identity: &Identity,
        lives: Vec<Life>,
    ) -> Result<Vec<Life>, ApiError> {
        if self.may_list(identity).await? {
            return Ok(lives);
        }
        let refused = match &identity.0 {
            Caller::Person(user, Way::Direct) => {
                if self.ask(user, &Question::get("", "")).await? {
                    return Ok(lives);
                }
                if lives.len() <= LOOKED_THROUGH {
                    return self.each(user, "", lives).await;
                }
                format!(
                    "{:?} may not list nodes, of which there are too many to look through; ask by \
                     name",
                    user.name
                )
            }
            // All or nothing, as the API server has it.
            Caller::Person(user, Way::Aggregated) => format!(
                "{:?} may not list nodes in the API group {}",
                user.name,
                routes::GROUP
            ),
            Caller::Join(_) => {
                "a join token is exchanged by an agent, and good for nothing else".to_owned()
            }
            _ => "an agent knows of no other node".to_owned(),
        };
        self.metrics.denied();
        Err(ApiError::forbidden(refused))
    }

    /// Those of `lives` whose `detail` they may read, as if each had been asked for; an error where a
    /// rule is missing for all of them.
    pub(crate) async fn readable(
        &self,
        identity: &Identity,
        detail: &'static str,
        lives: Vec<Life>,
    ) -> Result<Vec<Life>, ApiError> {
        let all = Target::missing("", "");
        let refused = match identity.verdict(Want::Read(detail), all) {
            Verdict::Yes => return Ok(lives),
            Verdict::No(why) => why,
            Verdict::Ask(user, question) => {
                if self.ask(user, &question).await? {
                    return Ok(lives);
                }
                if lives.len() <= LOOKED_THROUGH {
                    let found = self.each(user, detail, lives).await?;
                    if !found.is_empty() {
                        return Ok(found);
                    }
                }
                let resource = question.resource();
                format!(
                    "{:?} may not get {resource}: no ClusterRole that they are bound to allows get of \
                     {resource} in the API group {}",
                    user.name,
                    routes::GROUP
                )
            }
        };
        self.metrics.denied();
        Err(ApiError::forbidden(refused))
    }

    /// Those whose detail a person may read by their names.
    async fn each(
        &self,
        user: &Arc<User>,
        detail: &'static str,
        lives: Vec<Life>,
    ) -> Result<Vec<Life>, ApiError> {
        let mut visible = Vec::new();
        for life in lives {
            let question = Question::get(detail, &life.registration.hostname);
            if self.ask(user, &question).await? {
                visible.push(life);
            }
        }
        Ok(visible)
    }

    /// Whether they may read a detail of this pod; an error says what is missing.
    pub(crate) async fn permit_pod(
        &self,
        identity: &Identity,
        detail: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        let refused = match identity.pod_verdict(detail, namespace, name) {
            Verdict::Yes => return Ok(()),
            Verdict::No(why) => why,
            Verdict::Ask(user, question) => {
                if self.ask(user, &question).await? {
                    return Ok(());
                }
                missing_rule(user, "get", &question)
            }
        };
        self.metrics.denied();
        Err(ApiError::forbidden(refused))
    }

    /// Whether they may see the processes of a node, or of all nodes.
    pub(crate) async fn may_see_processes(
        &self,
        identity: &Identity,
        node: Option<&Life>,
    ) -> Result<bool, ApiError> {
        let target = node.map_or(Target::missing("", ""), Target::of);
        match identity.verdict(Want::Read(PROCESSES), target) {
            Verdict::Yes => Ok(true),
            Verdict::No(_) => Ok(false),
            Verdict::Ask(user, question) => self.ask(user, &question).await,
        }
    }

    /// The same of a pod.
    pub(crate) async fn may_see_processes_of_pod(
        &self,
        identity: &Identity,
        pod: &PodRecord,
    ) -> Result<bool, ApiError> {
        match identity.pod_verdict(PROCESSES, &pod.namespace, &pod.name) {
            Verdict::Yes => Ok(true),
            Verdict::No(_) => Ok(false),
            Verdict::Ask(user, question) => self.ask(user, &question).await,
        }
    }

    /// Whether they may list the pods of a namespace, or by an empty name of all.
    pub(crate) async fn may_list_pods(
        &self,
        identity: &Identity,
        namespace: &str,
    ) -> Result<bool, ApiError> {
        match identity.pod_verdict("", namespace, "") {
            Verdict::Yes => Ok(true),
            Verdict::No(_) => Ok(false),
            Verdict::Ask(user, _) => self.ask(user, &Question::list_pods(namespace)).await,
        }
    }

    /// Why they may not list the pods of a namespace.
    pub(crate) fn refused_list(&self, identity: &Identity, namespace: &str) -> ApiError {
        self.metrics.denied();
        ApiError::forbidden(match identity.person() {
            Some(user) => missing_rule(user, "list", &Question::list_pods(namespace)),
            None => "this service account reads nothing here".to_owned(),
        })
    }

    /// Whether they may know the names of all nodes.
    pub(crate) async fn may_list(&self, identity: &Identity) -> Result<bool, ApiError> {
        match &identity.0 {
            Caller::Anybody { .. }
            | Caller::Controller
            | Caller::Forwarded { .. }
            | Caller::Viewer { .. } => Ok(true),
            Caller::Agent { .. } | Caller::Host { .. } | Caller::Join(_) => Ok(false),
            Caller::Person(user, _) => self.ask(user, &Question::list()).await,
        }
    }

    /// The life whose samples somebody pushes, and the proof that they may, without which the store
    /// takes none.
    pub(crate) async fn resolve_to_push(
        &self,
        identity: &Identity,
        node: &Node,
    ) -> Result<(Life, NodeIdentity), ApiError> {
        let life = self.resolve(identity, Want::Push, node, When::Now).await?;
        let proof = NodeIdentity::proved(&life.uid);
        Ok((life, proof))
    }

    /// Who has a token that this server has issued; looked up each time, so that one that is revoked
    /// ends at once.
    async fn holder(&self, token: &Token) -> Result<Option<Identity>, ApiError> {
        let grant = self.store.grant(token.id()).await?;
        let good = |grant: &_| Grant::is_of(grant, token) && grant.is_good_at(Self::now());
        Ok(grant.filter(good).map(Identity::of_grant))
    }
}

fn missing_rule(user: &User, verb: &str, question: &Question) -> String {
    let resource = question.resource();
    let place = match &*question.namespace {
        "" => String::new(),
        namespace => format!(" in the namespace {namespace:?}"),
    };
    format!(
        "{:?} may not {verb} {resource}{place}: no Role or ClusterRole that they are bound to there \
         allows {verb} of {resource} in the API group {}",
        user.name,
        routes::GROUP
    )
}

/// Who asks is known before anything else is looked at.
impl FromRequestParts<App> for Identity {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let authenticating = telemetry::part(|| tracing::info_span!("authenticate"));
        let identity = Self::find(parts, app).instrument(authenticating).await?;
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
        if let Some(name) = identity.limited_as(peer) {
            let turn = app.callers.enter(&name, Instant::now());
            let turn = turn.map_err(|wait| {
                app.metrics.limited();
                limits::refused(wait)
            })?;
            if let Some(slot) = parts.extensions.get::<Slot>() {
                slot.put(turn);
            }
        }
        Ok(identity)
    }
}

impl Identity {
    async fn find(parts: &Parts, app: &App) -> Result<Self, ApiError> {
        // The other listeners have said it.
        if let Some(identity) = parts.extensions.get::<Self>() {
            return Ok(identity.clone());
        }
        if app.options.door.is_open() {
            return Ok(Self::anybody(app.options.exposure == Exposure::Loopback));
        }
        let unknown = |detail: &str| {
            app.metrics.denied();
            ApiError::unknown_caller(detail)
        };
        let token = bearer(&parts.headers).ok_or_else(|| {
            unknown("a bearer token says who asks (Authorization: Bearer …), and there is none")
        })?;
        let known = if let Some(own) = Token::parse(token) {
            app.holder(&own).await?
        } else if let Some(asking) = app.options.door.kubernetes() {
            let user = asking.who(token, &app.metrics).await?;
            user.map(|user| Self::of_token(user, &asking.accounts))
        } else {
            None
        };
        known.ok_or_else(|| {
            unknown(match app.options.door.kubernetes() {
                Some(_) => {
                    "the bearer token is nobody's, has expired, or is meant for somebody else (its \
                     audience is to be nodestats)"
                }
                None => "the bearer token is none of this server's, was revoked, or has expired",
            })
        })
    }
}

/// The token of a request (RFC 6750 section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

impl From<Unreachable> for ApiError {
    fn from(error: Unreachable) -> Self {
        tracing::warn!(%error, "nobody is let in");
        Self::unavailable("who asks and what they may cannot be found out at the moment")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_is_one() {
        let token = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer  abc").as_deref(), Some("abc"));
        for other in ["abc", "Basic abc", "Bearer ", "Bearer"] {
            assert_eq!(token(other), None, "{other}");
        }
    }
}
