//! How the API is reached in the cluster: its certificate in a Secret, whom to trust in a `ConfigMap`
//! for the agents, and the `APIService` by which it is part of the cluster's own API.
//!
//! While an `APIService` is not available no namespace of the cluster can be deleted. So it stands
//! only while the API answers, and goes first when the API's own namespace goes.

mod aggregation;
mod certificates;

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use nodestats_k8s::manager;
use nodestats_wire::client;
use serde_json::json;
use tokio::sync::watch;

use crate::freshness::Shared;
use crate::metrics::Metrics;
use crate::observe::ApiView;
use crate::{REQUEST_PATIENCE, lease};
use certificates::{Material, Step};

pub use certificates::Lifetimes;

/// The API's Service.
const SERVICE: &str = "nodestats-api";
/// The key of the `ConfigMap`.
const AUTHORITIES: &str = "ca.crt";
/// An API that has been away for so long is no longer part of the cluster's.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the parts are.
#[derive(Debug, Clone)]
pub struct Serving {
    /// The namespace of them all.
    pub namespace: String,
    /// The Secret of the certificate; made by the installation, filled here.
    pub secret: String,
    /// The `ConfigMap` of the authorities to trust; made by the installation, filled here.
    pub ca_config_map: String,
    /// Somebody else makes and renews what is in the Secret.
    pub foreign_certificates: bool,
    /// The API is part of the cluster's own.
    pub aggregated: bool,
    /// How long certificates are good that are made here.
    pub lifetimes: Lifetimes,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server did not take a request")]
    Request(#[from] kube::Error),
    #[error("the API server did not answer")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("no certificate can be made")]
    Certificate(#[from] certificates::Error),
    #[error("the Secret {0} holds no certificate yet")]
    Empty(String),
    #[error("what the Secret says of whom to trust cannot be used")]
    Trust(#[from] client::Error),
}

/// Keeps all as it is to be, for ever; `api` trusts whom it is to trust.
pub(crate) async fn keep(
    client: Client,
    serving: Option<&Serving>,
    (api, shared): (&client::Client, &Shared),
    metrics: &Metrics,
    poll: Duration,
) {
    let Some(serving) = serving else {
        return std::future::pending().await;
    };
    let (terminating_tx, mut terminating) = watch::channel(false);
    let aggregation = serving
        .aggregated
        .then(|| aggregation::Keeper::new(&client, &serving.namespace));
    let follow = async {
        if serving.aggregated {
            follow_namespace(client.clone(), &serving.namespace, terminating_tx).await;
        }
    };
    let mut keeper = Keeper {
        secrets: Api::namespaced(client.clone(), &serving.namespace),
        maps: Api::namespaced(client.clone(), &serving.namespace),
        aggregation,
        serving,
        api,
        trusted: String::new(),
        published: None,
    };
    let work = async {
        let mut answered = Instant::now();
        let mut told = None;
        loop {
            let is_up = shared.with(|view| matches!(view, ApiView::Answers { .. }));
            if is_up {
                answered = Instant::now();
            }
            let is_terminating = *terminating.borrow_and_update();
            let wanted = if is_terminating || answered.elapsed() > PATIENCE {
                Some(false)
            } else {
                is_up.then_some(true)
            };
            match keeper.step(wanted, is_terminating).await {
                Ok(()) => told = None,
                Err(error) => {
                    if let Error::Request(error) = &error {
                        metrics.request_failed(error);
                    }
                    let text = lease::chain(&error);
                    if told.as_ref() != Some(&text) {
                        tracing::warn!(error = text, "the way to the API is not kept");
                        told = Some(text);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(poll) => {}
                Ok(()) = terminating.changed() => {}
            }
        }
    };
    tokio::join!(follow, work).1;
}

/// Whether the namespace is being deleted, as soon as it is.
async fn follow_namespace(client: Client, name: &str, terminating: watch::Sender<bool>) {
    let namespaces: Api<Namespace> = Api::all(client);
    let mut changes = watcher::watch_object(namespaces, name)
        .default_backoff()
        .boxed();
    while let Some(change) = changes.next().await {
        if let Ok(Some(namespace)) = change {
            let is_terminating = namespace.metadata.deletion_timestamp.is_some();
            terminating.send_if_modified(|before| {
                std::mem::replace(before, is_terminating) != is_terminating
            });
        }
    }
}

struct Keeper<'a> {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    aggregation: Option<aggregation::Keeper>,
    serving: &'a Serving,
    api: &'a client::Client,
    /// Whom `api` trusts.
    trusted: String,
    /// Whom everybody is told to trust, and since when this replica has seen that.
    published: Option<(String, Instant)>,
}

impl Keeper<'_> {
    /// One look; `wanted` says whether the `APIService` is to be there, where that is known. Nothing
    /// is made in a namespace that goes.
    async fn step(&mut self, wanted: Option<bool>, is_terminating: bool) -> Result<(), Error> {
        let bundle = match &self.aggregation {
            Some(aggregation) => aggregation.authorities().await?,
            None => None,
        };
        if wanted == Some(false)
            && bundle.is_some()
            && let Some(aggregation) = &self.aggregation
        {
            aggregation.withdraw().await?;
        }
        if is_terminating {
            return Ok(());
        }
        let material = self.material().await?;
        let authorities = &material.authorities;
        if self.trusted != *authorities {
            self.api.trust(authorities.as_bytes())?;
            self.trusted.clone_from(authorities);
        }
        self.tell_agents(authorities).await?;
        if wanted == Some(true)
            && bundle.as_deref() != Some(authorities.as_bytes())
            && let Some(aggregation) = &self.aggregation
        {
            aggregation.publish(authorities).await?;
        }
        if self.published.as_ref().map(|(known, _)| known) != Some(authorities) {
            self.published = Some((authorities.clone(), Instant::now()));
        }
        Ok(())
    }

    /// The certificates, made where they are missing or old and ours to make.
    async fn material(&self) -> Result<Material, Error> {
        let name = &self.serving.secret;
        let mut secret = timely(self.secrets.get(name)).await?;
        let data = secret.data.take().unwrap_or_default();
        if self.serving.foreign_certificates {
            return Material::read(&data).ok_or_else(|| Error::Empty(name.clone()));
        }
        let host = format!("{SERVICE}.{}.svc", self.serving.namespace);
        let published = self.published.as_ref();
        let is_known = published.is_some_and(|(authorities, since)| {
            since.elapsed() >= self.serving.lifetimes.published
                && data
                    .get(AUTHORITIES)
                    .is_some_and(|own| own.0 == authorities.as_bytes())
        });
        let lifetimes = &self.serving.lifetimes;
        match certificates::step(&data, &host, is_known, lifetimes, Timestamp::now())? {
            Step::Keep(material) => Ok(material),
            Step::Write(material) => {
                secret.data = Some(material.data());
                let name = secret.name_any();
                // With the version that was read: of two writers one begins anew.
                timely(self.secrets.replace(&name, &PostParams::default(), &secret)).await?;
                tracing::info!(secret = name, "a certificate of the API was made");
                Ok(material)
            }
        }
    }

    async fn tell_agents(&self, authorities: &str) -> Result<(), Error> {
        let name = &self.serving.ca_config_map;
        let map = timely(self.maps.get(name)).await?;
        let told = map.data.as_ref().and_then(|data| data.get(AUTHORITIES));
        if told.is_some_and(|told| told == authorities) {
            return Ok(());
        }
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {AUTHORITIES: authorities},
        });
        let params = PatchParams::apply(manager::CONTROLLER).force();
        timely(self.maps.patch(name, &params, &Patch::Apply(map))).await?;
        tracing::info!(config_map = name, "the agents are told whom to trust");
        Ok(())
    }
}

async fn timely<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    Ok(tokio::time::timeout(REQUEST_PATIENCE, request).await??)
}
