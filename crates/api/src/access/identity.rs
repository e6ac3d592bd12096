//! An [`Identity`], and what follows from it without asking anybody.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use nodestats_core::life::Life;
use nodestats_core::token::Grant;
use nodestats_wire::v1::{Origin, PodRecord, Purpose};

use super::authority::{Accounts, Question, User};

/// The claims of a token that name the Node of its pod (KEP-4193).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
/// The headers by which the front proxy names a user; further ones begin like the last.
pub(crate) const USER_HEADER: &str = "x-remote-user";
pub(crate) const GROUP_HEADER: &str = "x-remote-group";
pub(crate) const EXTRA_HEADERS: &str = "x-remote-extra-";

/// By which way somebody came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Aggregated,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Caller {
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
    /// The agent of a host outside Kubernetes, by a token for this name.
    Host {
        node: String,
        token: String,
    },
    /// Somebody who reads, by a token of this server's.
    Viewer {
        name: String,
        processes: bool,
    },
    /// An agent that has no token of its own yet.
    Join(Arc<Grant>),
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity(pub(super) Caller);

/// What is to be done with one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Read a detail, such as `cpu`; empty for the node in short.
    Read(&'static str),
    /// Store samples of it.
    Push,
    /// Say that it exists, and what it is called.
    Register,
    /// Say that it is managed no more; its history stays.
    SignOff,
    /// Register it for a cluster, remove its history.
    Control,
}

/// The node that somebody wants to do something with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// Its own name.
    name: &'a str,
    uid: &'a str,
    /// Whether a cluster's controller registered it.
    of_cluster: bool,
    /// Whether there is one: what follows where there is none tells nobody of one.
    exists: bool,
}

impl<'a> Target<'a> {
    /// One that there is.
    pub(crate) fn of(life: &'a Life) -> Self {
        Self {
            name: &life.registration.hostname,
            uid: &life.uid,
            of_cluster: life.origin() == Origin::Kubernetes,
            exists: true,
        }
    }

    /// One that there is not, or not yet, by what it was called.
    pub(crate) fn missing(name: &'a str, uid: &'a str) -> Self {
        Self {
            name,
            uid,
            of_cluster: false,
            exists: false,
        }
    }
}

/// All figures of a host together, in Prometheus' form.
pub(crate) const METRICS: &str = "metrics";
/// What happened stands under this detail.
pub(crate) const EVENTS: &str = "events";
/// Processes stand under this detail and under no other.
pub(crate) const PROCESSES: &str = "proc";

/// What follows for somebody and a wish.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<'a> {
    Yes,
    No(String),
    Ask(&'a Arc<User>, Question),
}

impl Identity {
    /// Whoever reaches a listener that asks nobody.
    pub(crate) fn anybody(trusted: bool) -> Self {
        Self(Caller::Anybody { trusted })
    }

    /// Who holds a token of this server's that is good.
    pub(super) fn of_grant(grant: Grant) -> Self {
        let token = grant.token.id.clone();
        Self(match &grant.token.purpose {
            Purpose::Host { node } => Caller::Host {
                node: node.clone(),
                token,
            },
            Purpose::Viewer { name, processes } => Caller::Viewer {
                name: format!("{name} (token {token})"),
                processes: *processes,
            },
            Purpose::Join { .. } => Caller::Join(Arc::new(grant)),
        })
    }

    /// The join token that they have shown.
    pub(crate) fn join_grant(&self) -> Option<&Grant> {
        match &self.0 {
            Caller::Join(grant) => Some(grant),
            _ => None,
        }
    }

    /// The name that a host's token is for: such a one takes neither name nor address of another.
    pub(crate) fn host(&self) -> Option<&str> {
        match &self.0 {
            Caller::Host { node, .. } => Some(node),
            _ => None,
        }
    }

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

    pub(super) fn of_token(user: Arc<User>, accounts: &Accounts) -> Self {
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

    /// Whose share of the server their requests are; `None` for who runs it, and for the one
    /// controller, which registers thousands of nodes at its start.
    pub(super) fn limited_as(&self, peer: Option<IpAddr>) -> Option<String> {
        match &self.0 {
            Caller::Anybody { trusted: true } | Caller::Controller => None,
            Caller::Anybody { trusted: false } => peer.map(|peer| peer.to_string()),
            // Everybody who forwards a port is one.
            Caller::Forwarded { .. } => Some("port-forward".to_owned()),
            Caller::Agent { uid } => Some(format!("agent {uid}")),
            Caller::Person(user, _) => Some(format!("person {}", user.name)),
            Caller::Host { token, .. } => Some(format!("token {token}")),
            Caller::Viewer { name, .. } => Some(format!("viewer {name}")),
            Caller::Join(grant) => Some(format!("token {}", grant.token.id)),
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
            Caller::Host { token, .. } => token,
            Caller::Viewer { name, .. } => name,
            Caller::Join(grant) => &grant.token.id,
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

    /// What follows where they want to do this.
    pub(super) fn verdict(&self, want: Want, target: Target<'_>) -> Verdict<'_> {
        let Target { name, uid, .. } = target;
        let no = |text: &str| Verdict::No(text.to_owned());
        match (&self.0, want) {
            (Caller::Forwarded { processes: false }, Want::Read(PROCESSES)) => no(
                "processes are not shown by port-forward, where nobody can be told apart; the \
                 value api.portForward.processes of the chart allows it",
            ),
            (
                Caller::Viewer {
                    processes: false, ..
                },
                Want::Read(PROCESSES),
            ) => no("this token does not show processes; one of the role process-viewer does"),
            (Caller::Anybody { .. }, _)
            | (Caller::Controller, Want::Control | Want::SignOff)
            | (Caller::Forwarded { .. } | Caller::Viewer { .. }, Want::Read(_)) => Verdict::Yes,
            (Caller::Host { node, .. }, Want::Push | Want::Register | Want::SignOff) => {
                host_verdict(node, want, target)
            }
            (Caller::Agent { uid: own }, Want::Push) if own == uid => Verdict::Yes,
            (Caller::Agent { .. }, Want::Push) => {
                no("an agent pushes samples of its own node only")
            }
            (Caller::Person(user, _), Want::Read(subresource)) => {
                Verdict::Ask(user, Question::get(subresource, name))
            }
            (_, Want::Push) => no("samples of a node are its own agent's to push"),
            (Caller::Host { .. }, Want::Control) => {
                no("histories are removed by who runs the server, and not by agents")
            }
            (Caller::Host { .. } | Caller::Join(_), Want::Read(_)) => {
                no("an agent's token reads nothing; one of the role viewer does")
            }
            (_, Want::Register | Want::SignOff | Want::Control) => {
                no("nodes of a cluster are its controller's to register and remove")
            }
            (Caller::Agent { .. } | Caller::Controller, Want::Read(_)) => {
                no("this service account reads nothing here")
            }
        }
    }
}

impl Identity {
    /// What follows where they want to read a detail of a pod; of all pods by an empty name.
    pub(super) fn pod_verdict(
        &self,
        detail: &'static str,
        namespace: &str,
        name: &str,
    ) -> Verdict<'_> {
        match &self.0 {
            Caller::Person(user, _) => {
                Verdict::Ask(user, Question::get_pod(detail, namespace, name))
            }
            // Everybody else is judged as about nodes.
            _ => self.verdict(Want::Read(detail), Target::missing(name, "")),
        }
    }

    /// Whether what they may see is looked for one by one where they may not see all: at the API
    /// server it is all or nothing.
    pub(crate) fn is_looked_through(&self) -> bool {
        matches!(self.0, Caller::Person(_, Way::Direct))
    }

    /// The person who asks.
    pub(super) fn person(&self) -> Option<&Arc<User>> {
        match &self.0 {
            Caller::Person(user, _) => Some(user),
            _ => None,
        }
    }

    /// One line for who reads the processes of a pod.
    pub(crate) fn audit_pod(&self, what: &str, pod: &PodRecord, query: Option<&str>) {
        if self.0 != (Caller::Anybody { trusted: true }) {
            tracing::info!(
                target: "nodestats::audit",
                who = self.name(),
                what,
                namespace = pod.namespace,
                pod = pod.name,
                uid = pod.uid,
                query,
                way = self.way(),
                "audit"
            );
        }
    }
}

/// A host's token is for one name, outside clusters.
fn host_verdict<'a>(node: &str, want: Want, target: Target<'_>) -> Verdict<'a> {
    // What is not there is not theirs either, but an agent has to hear of it to register.
    let own = node.eq_ignore_ascii_case(target.name) && !target.of_cluster;
    if own || (!target.exists && want != Want::Register) {
        return Verdict::Yes;
    }
    Verdict::No(format!(
        "this token is for the host {node:?} and for no other: an agent that is to be it is started \
         with --hostname {node}"
    ))
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
            let verdict = identity.verdict(want, Target::missing("node-a", uid));
            match verdict {
                Verdict::Yes => assert!(allowed, "{identity:?} {want:?} {uid}"),
                Verdict::No(_) => assert!(!allowed, "{identity:?} {want:?} {uid}"),
                Verdict::Ask(..) => panic!("{identity:?} {want:?}: nobody is to be asked"),
            }
        }
        // By the node's own name.
        let Verdict::Ask(_, question) =
            person.verdict(Want::Read("cpu"), Target::missing("node-a", "uid-a"))
        else {
            panic!("a person is asked about");
        };
        assert_eq!(question, Question::get("cpu", "node-a"));
        // And a pod by its namespace.
        let Verdict::Ask(_, question) = person.pod_verdict("cpu", "team-a", "web") else {
            panic!("a person is asked about");
        };
        assert_eq!(question, Question::get_pod("cpu", "team-a", "web"));
        for (identity, detail, allowed) in [
            (&agent, "cpu", false),
            (&controller, "cpu", false),
            (&forwarded, PROCESSES, true),
            (&Identity::forwarded(false), PROCESSES, false),
            (&Identity::forwarded(false), "cpu", true),
            (&anybody, PROCESSES, true),
        ] {
            let verdict = identity.pod_verdict(detail, "team-a", "web");
            assert_eq!(verdict == Verdict::Yes, allowed, "{identity:?} {detail}");
        }
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
}
