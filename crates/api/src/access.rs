//! Who asks, and what they may: the one place where both are decided, for every way in.
//!
//! An [`Identity`] is made here alone: from a bearer token that Kubernetes knows, from what the
//! front proxy says, or by a listener that asks nobody. No handler comes to a node's life without one
//! (`App::resolve`), and each says by [`Want`] what it is about to do. People are judged by
//! Kubernetes itself (`SubjectAccessReview`), by the node's own name whatever they called it, and in
//! its own terms: the resource `nodes` of the group `stats.nodestats.dev`, and each detail as a
//! subresource.

mod authority;
mod kubernetes;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, header};
use nodestats_core::life::Life;
use nodestats_wire::routes;

pub use authority::{Accounts, Authority, Door, Question, Unreachable, User};
pub use kubernetes::Kubernetes;

use crate::{ApiError, App, Exposure};

/// Nodes that somebody's list is looked through for, one question each, where no rule of theirs is about
/// all: enough for a team's, and no more.
const LOOKED_THROUGH: usize = 500;
/// The claims of a token that name the Node of its pod (KEP-4193).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
/// The headers by which the front proxy names a user; further ones begin like the last.
pub(crate) const USER_HEADER: &str = "x-remote-user";
pub(crate) const GROUP_HEADER: &str = "x-remote-group";
pub(crate) const EXTRA_HEADERS: &str = "x-remote-extra-";

/// By which way somebody came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Aggregated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Caller {
    /// Whoever reaches a listener that asks nobody; trusted are programs of this machine.
    Anybody {
        trusted: bool,
    },
    /// By a port-forward, where nobody can be told apart.
    Forwarded {
        processes: bool,
    },
    /// An agent, by the UID of the Node that its token names.
    Agent {
        uid: String,
    },
    Controller,
    Person(Arc<User>, Way),
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity(Caller);

/// What is to be done with one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Read a detail, such as `cpu`; empty for the node in short.
    Read(&'static str),
    /// Store samples of it.
    Push,
    /// Register it, sign it off, remove its history.
    Control,
}

/// Processes stand under this detail and under no other.
pub(crate) const PROCESSES: &str = "proc";

/// What follows for somebody and a wish.
#[derive(Debug, PartialEq, Eq)]
enum Verdict<'a> {
    Yes,
    No(String),
    Ask(&'a Arc<User>, Question),
}

impl Identity {
    /// Whoever reaches a listener that shows processes or not, by a port-forward.
    pub(crate) fn forwarded(processes: bool) -> Self {
        Self(Caller::Forwarded { processes })
    }

    /// The user whom the front proxy has authenticated; `None` where it names nobody.
    pub(crate) fn of_front_proxy(headers: &HeaderMap) -> Option<Self> {
        let texts = |name: &str| {
            let values = headers.get_all(name).into_iter();
            values
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .collect::<Vec<_>>()
        };
        let name = texts(USER_HEADER).into_iter().next()?;
        let mut extra = BTreeMap::new();
        for header in headers.keys() {
            if let Some(key) = header.as_str().strip_prefix(EXTRA_HEADERS) {
                let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy();
                extra.insert(key.into_owned(), texts(header.as_str()));
            }
        }
        let user = User {
            name,
            uid: texts("x-remote-uid").into_iter().next(),
            groups: texts(GROUP_HEADER),
            extra,
        };
        Some(Self(Caller::Person(Arc::new(user), Way::Aggregated)))
    }

    fn of_token(user: Arc<User>, accounts: &Accounts) -> Self {
        let claim = |name: &str| user.extra.get(name)?.first().cloned();
        if user.name == accounts.controller {
            return Self(Caller::Controller);
        }
        match (
            user.name == accounts.agent,
            claim(NODE_NAME),
            claim(NODE_UID),
        ) {
            (true, Some(_), Some(uid)) => Self(Caller::Agent { uid }),
            _ => Self(Caller::Person(user, Way::Direct)),
        }
    }

    /// What an audit line calls them.
    fn name(&self) -> &str {
        match &self.0 {
            Caller::Anybody { .. } => "anybody",
            Caller::Forwarded { .. } => "somebody by a port-forward, which cannot be attributed",
            Caller::Agent { uid } => uid,
            Caller::Controller => "the controller",
            Caller::Person(user, _) => &user.name,
        }
    }

    fn way(&self) -> &'static str {
        match &self.0 {
            Caller::Forwarded { .. } => "port-forward",
            Caller::Person(_, Way::Aggregated) => "aggregation",
            _ => "direct",
        }
    }

    /// One line for what is to be accounted for: reads of processes, and what changes the registry.
    pub(crate) fn audit(&self, what: &str, node: &Life, query: Option<&str>) {
        if self.0 != (Caller::Anybody { trusted: true }) {
            tracing::info!(
                target: "nodestats::audit",
                who = self.name(),
                what,
                node = node.registration.hostname,
                uid = node.uid,
                query,
                way = self.way(),
                "audit"
            );
        }
    }

    /// What is to be done with the node `name`, whose UID is `uid`.
    fn verdict(&self, want: Want, name: &str, uid: &str) -> Verdict<'_> {
        let no = |text: &str| Verdict::No(text.to_owned());
        match (&self.0, want) {
            (Caller::Forwarded { processes: false }, Want::Read(PROCESSES)) => no(
                "processes are not shown by port-forward, where nobody can be told apart; the \
                 value api.portForward.processes of the chart allows it",
            ),
            (Caller::Anybody { .. }, _)
            | (Caller::Controller, Want::Control)
            | (Caller::Forwarded { .. }, Want::Read(_)) => Verdict::Yes,
            (Caller::Agent { uid: own }, Want::Push) if own == uid => Verdict::Yes,
            (Caller::Agent { .. }, Want::Push) => {
                no("an agent pushes samples of its own node only")
            }
            (Caller::Person(user, _), Want::Read(subresource)) => {
                Verdict::Ask(user, Question::get(subresource, name))
            }
            (_, Want::Push) => no("samples of a node are its own agent's to push"),
            (_, Want::Control) => {
                no("nodes of a cluster are its controller's to register and remove")
            }
            (Caller::Agent { .. } | Caller::Controller, Want::Read(_)) => {
                no("this service account reads nothing here")
            }
        }
    }
}

impl App {
    async fn ask(&self, user: &Arc<User>, question: &Question) -> Result<bool, ApiError> {
        match &self.options.door {
            // The front proxy has asked before it forwarded.
            Door::Open => Ok(true),
            Door::Asking(asking) => Ok(asking.may(user, question).await?),
        }
    }

    /// Whether this may be done with a node; an error says what is missing. `asked` is what they
    /// called it.
    pub(crate) async fn permit(
        &self,
        identity: &Identity,
        want: Want,
        (name, uid): (&str, &str),
        asked: &str,
    ) -> Result<(), ApiError> {
        let refused = match identity.verdict(want, name, uid) {
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
                    return self.each(user, lives).await;
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
            _ => "an agent knows of no other node".to_owned(),
        };
        self.metrics.denied();
        Err(ApiError::forbidden(refused))
    }

    /// Those that a person may read by their names.
    async fn each(&self, user: &Arc<User>, lives: Vec<Life>) -> Result<Vec<Life>, ApiError> {
        let mut visible = Vec::new();
        for life in lives {
            let question = Question::get("", &life.registration.hostname);
            if self.ask(user, &question).await? {
                visible.push(life);
            }
        }
        Ok(visible)
    }

    /// Whether they may know the names of all nodes.
    pub(crate) async fn may_list(&self, identity: &Identity) -> Result<bool, ApiError> {
        match &identity.0 {
            Caller::Anybody { .. } | Caller::Controller | Caller::Forwarded { .. } => Ok(true),
            Caller::Agent { .. } => Ok(false),
            Caller::Person(user, _) => self.ask(user, &Question::list()).await,
        }
    }
}

/// Who asks is known before anything else is looked at.
impl FromRequestParts<App> for Identity {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        // The other two listeners have said it.
        if let Some(identity) = parts.extensions.get::<Self>() {
            return Ok(identity.clone());
        }
        let Door::Asking(asking) = &app.options.door else {
            return Ok(Self(Caller::Anybody {
                trusted: app.options.exposure == Exposure::Loopback,
            }));
        };
        let unknown = |detail: &str| {
            app.metrics.denied();
            ApiError::unknown_caller(detail)
        };
        let token = bearer(&parts.headers).ok_or_else(|| {
            unknown("a bearer token says who asks (Authorization: Bearer …), and there is none")
        })?;
        match asking.who(token).await? {
            Some(user) => Ok(Self::of_token(user, &asking.accounts)),
            None => Err(unknown(
                "the bearer token is nobody's, has expired, or is meant for somebody else (its \
                 audience is to be nodestats)",
            )),
        }
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

    fn accounts() -> Accounts {
        Accounts {
            agent: "system:serviceaccount:nodestats:nodestats-agent".to_owned(),
            controller: "system:serviceaccount:nodestats:nodestats-controller".to_owned(),
        }
    }

    fn of_token(name: &str, claims: &[(&str, &str)]) -> Identity {
        let extra = claims
            .iter()
            .map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()]))
            .collect();
        let user = User {
            name: name.to_owned(),
            extra,
            ..User::default()
        };
        Identity::of_token(Arc::new(user), &accounts())
    }

    #[test]
    fn an_agent_is_of_the_node_that_its_token_names_and_else_a_person() {
        let claims = [(NODE_NAME, "node-a"), (NODE_UID, "uid-a")];
        let agent = of_token(&accounts().agent, &claims);
        let uid = "uid-a".to_owned();
        assert_eq!(agent, Identity(Caller::Agent { uid }));
        for (name, claims) in [
            (accounts().agent, &claims[..1]),
            (accounts().agent, &claims[1..]),
            (accounts().agent, &[]),
            ("jane".to_owned(), &claims[..]),
        ] {
            let identity = of_token(&name, claims);
            assert!(
                matches!(identity.0, Caller::Person(_, Way::Direct)),
                "{name} {claims:?}"
            );
        }
    }

    #[test]
    fn each_writes_what_is_theirs() {
        let agent = of_token(
            &accounts().agent,
            &[(NODE_NAME, "node-a"), (NODE_UID, "uid-a")],
        );
        let controller = of_token(&accounts().controller, &[]);
        let person = of_token("jane", &[]);
        let forwarded = Identity::forwarded(true);
        let anybody = Identity(Caller::Anybody { trusted: true });
        for (identity, want, uid, allowed) in [
            (&agent, Want::Push, "uid-a", true),
            (&agent, Want::Push, "uid-b", false),
            (&agent, Want::Control, "uid-a", false),
            (&agent, Want::Read(""), "uid-a", false),
            (&controller, Want::Control, "uid-a", true),
            (&controller, Want::Push, "uid-a", false),
            (&controller, Want::Read(PROCESSES), "uid-a", false),
            (&person, Want::Push, "uid-a", false),
            (&person, Want::Control, "uid-a", false),
            (&forwarded, Want::Push, "uid-a", false),
            (&forwarded, Want::Control, "uid-a", false),
            (&forwarded, Want::Read(PROCESSES), "uid-a", true),
            (
                &Identity::forwarded(false),
                Want::Read(PROCESSES),
                "uid-a",
                false,
            ),
            (
                &Identity::forwarded(false),
                Want::Read("cpu"),
                "uid-a",
                true,
            ),
            (&anybody, Want::Control, "uid-a", true),
        ] {
            let verdict = identity.verdict(want, "node-a", uid);
            match verdict {
                Verdict::Yes => assert!(allowed, "{identity:?} {want:?} {uid}"),
                Verdict::No(_) => assert!(!allowed, "{identity:?} {want:?} {uid}"),
                Verdict::Ask(..) => panic!("{identity:?} {want:?}: nobody is to be asked"),
            }
        }
        // By the node's own name.
        let Verdict::Ask(_, question) = person.verdict(Want::Read("cpu"), "node-a", "uid-a") else {
            panic!("a person is asked about");
        };
        let expected = Question {
            verb: "get",
            subresource: "cpu",
            name: "node-a".to_owned(),
        };
        assert_eq!(question, expected);
    }

    #[test]
    fn the_front_proxy_s_headers_are_a_user() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "jane"),
            ("x-remote-group", "team-a"),
            ("x-remote-group", "system:authenticated"),
            ("x-remote-uid", "42"),
            ("x-remote-extra-acme.example%2fproject", "x"),
        ] {
            headers.append(name, value.parse().expect("a header"));
        }
        let Some(Identity(Caller::Person(user, Way::Aggregated))) =
            Identity::of_front_proxy(&headers)
        else {
            panic!("a person");
        };
        assert_eq!(user.name, "jane");
        assert_eq!(user.uid.as_deref(), Some("42"));
        assert_eq!(user.groups, ["team-a", "system:authenticated"]);
        assert_eq!(user.extra["acme.example/project"], ["x"]);
        assert_eq!(Identity::of_front_proxy(&HeaderMap::new()), None);
    }

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
