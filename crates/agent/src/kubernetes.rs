//! The agent in a cluster: applies its own `MonitoredNode`, watches that one object, follows its
//! spec, and keeps its own part of the status.
//!
//! It reads and writes no other object. Sampling and buffering never wait for any of this.

mod status;
mod token;
pub(crate) mod trust;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use kube::api::{Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use nodestats_collect::HostFacts;
use nodestats_k8s::{AgentState, MonitoredNode, manager};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use token::Claims;

use crate::backoff::Backoff;
use crate::metrics::Metrics;
use crate::pressure::Observed;
use crate::settings::Settings;

/// Which node of a cluster the agent is on, from the downward API.
#[derive(Debug, Clone)]
pub struct Membership {
    /// `spec.nodeName`.
    pub node_name: String,
    /// `status.hostIPs`, the one that people know the node by first.
    pub node_ips: Vec<String>,
    /// `NAMESPACE/NAME` of the agent's pod.
    pub pod: Option<String>,
    /// The service account's token, whose claims say which Node this is.
    pub token_file: PathBuf,
    /// `NAMESPACE/NAME` of the `ConfigMap` that says whom to trust to be the server.
    pub ca_config_map: Option<String>,
}

impl Membership {
    /// What the token says; an error where it is another node's or no node's.
    pub(crate) fn claims(&self) -> anyhow::Result<Claims> {
        let token = std::fs::read_to_string(&self.token_file)
            .with_context(|| format!("cannot read {}", self.token_file.display()))?;
        let claims = Claims::read(token.trim())?;
        anyhow::ensure!(
            claims.node_name == self.node_name,
            "the token is of a pod on {}, and this is said to be {}",
            claims.node_name,
            self.node_name
        );
        Ok(claims)
    }
}

/// How long one request may take, and a watch may be silent beyond its end.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// A watch ends after so many seconds and begins anew, so that one that hangs is found.
const WATCH_SECONDS: u32 = 60;
/// At the end the status has this long to be written.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(2);
/// The first sample is there after this, or the node is paused.
const FIRST_SAMPLE: Duration = Duration::from_secs(5);

/// Why the object cannot be kept at the moment. Each text is what a person reads in the log.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    #[error("no connection to the cluster is configured")]
    Configuration(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the cluster knows no MonitoredNode: its definition (crds/) is not installed")]
    NoDefinition,
    #[error(
        "the agent's service account may not do this to MonitoredNodes; it needs get, watch, \
         create and patch, and patch of their status"
    )]
    Forbidden(#[source] kube::Error),
    #[error("the MonitoredNode of an earlier Node of this name is not gone yet")]
    Earlier,
    #[error("the API server did not take the request")]
    Request(#[source] kube::Error),
    #[error("the API server did not answer in time")]
    Timeout,
    #[error("the MonitoredNode was deleted, and is made anew")]
    Deleted,
    #[error("the token cannot be read any more")]
    Token(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the Node was made anew, with UID {0}: its history is another one's")]
    AnotherNode(String),
}

impl From<kube::Error> for Obstacle {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => Self::Forbidden(error),
            kube::Error::Api(status) if status.code == 404 => Self::NoDefinition,
            _ => Self::Request(error),
        }
    }
}

/// The loop that keeps the node's object.
pub(crate) struct Member {
    membership: Membership,
    claims: Claims,
    facts: HostFacts,
    settings: watch::Sender<Settings>,
    observed: watch::Receiver<Option<Observed>>,
    metrics: Arc<Metrics>,
    backoff: Backoff,
    told: Option<String>,
    rivalry: Rivalry,
}

/// Whose part of the status the agent's part is: two agents on one node, as a rolling update may
/// have for a while, would else write against each other for ever. The later one has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rivalry {
    /// Not yet seen to be this pod's.
    Claiming,
    /// Seen to be this pod's.
    Ours,
    /// Another pod has taken it since.
    Taken,
}

impl Rivalry {
    /// What follows when the status names a pod.
    fn after(self, own: Option<&str>, named: Option<&str>) -> Self {
        match (self, own, named) {
            (_, Some(own), Some(named)) if own == named => Self::Ours,
            (Self::Ours, Some(_), Some(_)) => Self::Taken,
            _ => self,
        }
    }
}

impl Member {
    pub(crate) fn new(
        membership: Membership,
        claims: Claims,
        facts: HostFacts,
        settings: watch::Sender<Settings>,
        observed: watch::Receiver<Option<Observed>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            membership,
            claims,
            facts,
            settings,
            observed,
            metrics,
            backoff: Backoff::default(),
            told: None,
            rivalry: Rivalry::Claiming,
        }
    }

    /// Keeps the object until `stop`, then marks it as stopping. An error where the Node became
    /// another one: the agent must begin anew, under that one's UID.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let obstacle = tokio::select! {
                obstacle = self.keep() => obstacle,
                () = stop.cancelled() => break,
            };
            if matches!(obstacle, Obstacle::AnotherNode(_)) {
                return Err(obstacle.into());
            }
            self.report(&obstacle);
            let random = uuid::Uuid::new_v4().as_u128() as u64;
            let wait = self.backoff.next(random);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => break,
            }
        }
        let goodbye = tokio::time::timeout(GOODBYE_PATIENCE, self.say_goodbye());
        match goodbye.await {
            Ok(Ok(())) => tracing::info!("marked as stopping"),
            Ok(Err(error)) => tracing::warn!(%error, "could not be marked as stopping"),
            Err(_) => tracing::warn!("could not be marked as stopping in time"),
        }
        Ok(())
    }

    /// One line for each kind of obstacle, not one for each attempt.
    fn report(&mut self, obstacle: &Obstacle) {
        let text = obstacle.to_string();
        self.metrics.hindered(&text);
        if self.told.as_deref() != Some(&*text) {
            let cause = std::error::Error::source(obstacle).map(ToString::to_string);
            tracing::warn!(cause, "{text}; sampling goes on, and this is tried again");
            self.told = Some(text);
        }
    }

    /// Applies the object and follows it; returns when something is in the way.
    async fn keep(&mut self) -> Obstacle {
        // The first status says what the first sample says.
        let first = self.observed.wait_for(Option::is_some);
        let _ = tokio::time::timeout(FIRST_SAMPLE, first).await;
        let api = match client().await {
            Ok(client) => Api::all(client),
            Err(obstacle) => return obstacle,
        };
        loop {
            let followed = async {
                let object = self.ensure(&api).await?;
                self.follow(&api, object).await
            };
            if let Err(obstacle) = followed.await {
                return obstacle;
            }
        }
    }

    /// The object, made where it is missing.
    async fn ensure(&self, api: &Api<MonitoredNode>) -> Result<MonitoredNode, Obstacle> {
        let name = &self.membership.node_name;
        // The kubelet has written it anew where the Node was made anew.
        let claims = self.membership.claims();
        let claims = claims.map_err(|error| Obstacle::Token(error.into()))?;
        if claims.node_uid != self.claims.node_uid {
            return Err(Obstacle::AnotherNode(claims.node_uid));
        }
        let found = timely(api.get_opt(name)).await?;
        let owner = |object: &MonitoredNode| {
            let owners = object.metadata.owner_references.iter().flatten();
            owners
                .into_iter()
                .any(|owner| owner.uid == self.claims.node_uid)
        };
        match found {
            Some(object) if owner(&object) => return Ok(object),
            // The garbage collector takes it, since its owner is no more.
            Some(object) if object.metadata.owner_references.is_some() => {
                return Err(Obstacle::Earlier);
            }
            // None, or one that a person made beforehand to say how the node is sampled.
            Some(_) | None => {}
        }
        let object = json!({
            "apiVersion": "nodestats.dev/v1alpha1",
            "kind": "MonitoredNode",
            "metadata": {
                "name": name,
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Node", "name": name, "uid": self.claims.node_uid,
                }],
            },
        });
        let params = PatchParams::apply(manager::AGENT).force();
        let applied = timely(api.patch(name, &params, &Patch::Apply(object))).await?;
        self.metrics.member_wrote();
        Ok(applied)
    }

    /// Watches the one object, from the version that is known; `Ok` where the watch ended as
    /// watches do.
    async fn follow(
        &mut self,
        api: &Api<MonitoredNode>,
        mut object: MonitoredNode,
    ) -> Result<(), Obstacle> {
        self.take(api, &object).await?;
        self.metrics.joined();
        if self.told.take().is_some() {
            tracing::info!("the node's MonitoredNode is kept again");
        }
        let field = format!("metadata.name={}", self.membership.node_name);
        let params = WatchParams::default().fields(&field).timeout(WATCH_SECONDS);
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        let events = timely(api.watch(&params, &version)).await?;
        let mut events = std::pin::pin!(events);
        loop {
            tokio::select! {
                event = events.try_next() => match event.map_err(Obstacle::Request)? {
                    Some(WatchEvent::Added(changed) | WatchEvent::Modified(changed)) => {
                        object = changed;
                        self.take(api, &object).await?;
                    }
                    Some(WatchEvent::Deleted(_)) => return Err(Obstacle::Deleted),
                    Some(WatchEvent::Bookmark(_)) => {}
                    // 410 Gone: that version is forgotten; the object is read anew.
                    Some(WatchEvent::Error(status)) if status.code == 410 => {
                        self.backoff.reset();
                        return Ok(());
                    }
                    Some(WatchEvent::Error(status)) => {
                        return Err(Obstacle::Request(kube::Error::Api(status)));
                    }
                    None => {
                        // One that is deleted as soon as it is made is made less and less often.
                        self.backoff.reset();
                        return Ok(());
                    }
                },
                changed = self.observed.changed() => {
                    if changed.is_err() {
                        // The sampler ended, and so will this.
                        std::future::pending::<()>().await;
                    }
                    self.take(api, &object).await?;
                }
            }
        }
    }

    /// Follows the spec, and writes the status where it does not say what is so.
    async fn take(
        &mut self,
        api: &Api<MonitoredNode>,
        object: &MonitoredNode,
    ) -> Result<(), Obstacle> {
        let settings = Settings::from(&object.spec);
        self.settings.send_if_modified(|current| {
            let modified = *current != settings;
            *current = settings;
            modified
        });
        let named = object
            .status
            .as_ref()
            .and_then(|status| status.agent.as_ref());
        let named = named.and_then(|agent| agent.pod.as_deref());
        let rivalry = self.rivalry.after(self.membership.pod.as_deref(), named);
        if rivalry == Rivalry::Taken && self.rivalry != Rivalry::Taken {
            tracing::warn!(
                pod = named,
                "another agent has taken over this node's status"
            );
        }
        self.rivalry = rivalry;
        if rivalry == Rivalry::Taken {
            return Ok(());
        }
        self.write_status(api, object, AgentState::Running).await
    }

    async fn write_status(
        &self,
        api: &Api<MonitoredNode>,
        object: &MonitoredNode,
        state: AgentState,
    ) -> Result<(), Obstacle> {
        let observed = self.observed.borrow().clone();
        let wanted = status::Facts {
            membership: &self.membership,
            claims: &self.claims,
            host: &self.facts,
            observed: observed.as_ref(),
            state,
        }
        .status(object);
        let Some(wanted) = wanted else { return Ok(()) };
        let patch = json!({
            "apiVersion": "nodestats.dev/v1alpha1",
            "kind": "MonitoredNode",
            "metadata": {"name": object.metadata.name, "uid": object.metadata.uid},
            "status": wanted,
        });
        let params = PatchParams::apply(manager::AGENT).force();
        let name = &self.membership.node_name;
        timely(api.patch_status(name, &params, &Patch::Apply(patch))).await?;
        self.metrics.member_wrote();
        Ok(())
    }

    async fn say_goodbye(&self) -> Result<(), Obstacle> {
        if self.rivalry == Rivalry::Taken {
            return Ok(());
        }
        let api = Api::all(client().await?);
        match timely(api.get_opt(&self.membership.node_name)).await? {
            Some(object) => self.write_status(&api, &object, AgentState::Stopping).await,
            None => Ok(()),
        }
    }
}

/// A client of the cluster's API, as the pod or a kubeconfig says.
async fn client() -> Result<Client, Obstacle> {
    nodestats_runtime::tls::use_ring();
    let configured =
        |error: Box<dyn std::error::Error + Send + Sync>| Obstacle::Configuration(error);
    let mut config = kube::Config::infer()
        .await
        .map_err(|error| configured(error.into()))?;
    config.connect_timeout = Some(REQUEST_PATIENCE);
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH_SECONDS)) + REQUEST_PATIENCE);
    Client::try_from(config).map_err(|error| configured(error.into()))
}

async fn timely<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Obstacle> {
    match tokio::time::timeout(REQUEST_PATIENCE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Obstacle::Timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_of_two_agents_has_the_status() {
        let own = Some("ns/own");
        let other = Some("ns/other");
        // What stands there before the first write counts for nothing.
        let claiming = Rivalry::Claiming.after(own, other);
        assert_eq!(claiming, Rivalry::Claiming);
        let ours = claiming.after(own, own);
        assert_eq!(ours.after(own, other), Rivalry::Taken);
        assert_eq!(ours.after(own, None), Rivalry::Ours);
        assert_eq!(ours.after(own, other).after(own, other), Rivalry::Taken);
        // It ended, and this one's name stands there again.
        assert_eq!(Rivalry::Taken.after(own, own), Rivalry::Ours);
        // Outside of pods there are no names to go by.
        assert_eq!(Rivalry::Claiming.after(None, other), Rivalry::Claiming);
    }
}
