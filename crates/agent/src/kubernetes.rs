//! The agent in a cluster: applies its own `MonitoredNode`, watches that one object, follows its
//! spec, and keeps its own part of the status.
//!
//! It reads and writes no other object. Sampling and buffering never wait for any of this.

mod status;
mod token;

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
        }
    }

    /// Keeps the object until `stop`, then marks it as stopping.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let obstacle = tokio::select! {
                obstacle = self.keep() => obstacle,
                () = stop.cancelled() => break,
            };
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

    async fn api() -> Result<Api<MonitoredNode>, Obstacle> {
        nodestats_runtime::tls::use_ring();
        let configured =
            |error: Box<dyn std::error::Error + Send + Sync>| Obstacle::Configuration(error);
        let mut config = kube::Config::infer()
            .await
            .map_err(|error| configured(error.into()))?;
        config.connect_timeout = Some(REQUEST_PATIENCE);
        config.read_timeout =
            Some(Duration::from_secs(u64::from(WATCH_SECONDS)) + REQUEST_PATIENCE);
        let client = Client::try_from(config).map_err(|error| configured(error.into()))?;
        Ok(Api::all(client))
    }

    /// Applies the object and follows it; returns when something is in the way.
    async fn keep(&mut self) -> Obstacle {
        // The first status says what the first sample says.
        let first = self.observed.wait_for(Option::is_some);
        let _ = tokio::time::timeout(FIRST_SAMPLE, first).await;
        let api = match Self::api().await {
            Ok(api) => api,
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
        self.backoff.reset();
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
                    Some(WatchEvent::Error(status)) if status.code == 410 => return Ok(()),
                    Some(WatchEvent::Error(status)) => {
                        return Err(Obstacle::Request(kube::Error::Api(status)));
                    }
                    None => return Ok(()),
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
        let api = Self::api().await?;
        match timely(api.get_opt(&self.membership.node_name)).await? {
            Some(object) => self.write_status(&api, &object, AgentState::Stopping).await,
            None => Ok(()),
        }
    }
}

async fn timely<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Obstacle> {
    match tokio::time::timeout(REQUEST_PATIENCE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Obstacle::Timeout),
    }
}
