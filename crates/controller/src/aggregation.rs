//! The API as part of the cluster's own API server: its serving certificate, and the `APIService`
//! that leads to it.
//!
//! While an `APIService` is not available no namespace of the cluster can be deleted. So it stands
//! only while the API answers, and goes first when the API's own namespace goes.

mod certificates;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use nodestats_k8s::manager;
use serde_json::json;
use tokio::sync::watch;

use crate::freshness::Shared;
use crate::metrics::Metrics;
use crate::observe::ApiView;
use crate::{REQUEST_PATIENCE, lease};
use certificates::{Material, Step};

/// Name of the `APIService`: its version and its group.
const NAME: &str = "v1alpha1.stats.nodestats.dev";
/// The Service that the front proxy is led to, and its port.
const SERVICE: (&str, u16) = ("nodestats-api", 8443);
/// An API that has been away for so long is no longer part of the cluster's.
const PATIENCE: Duration = Duration::from_secs(30);
/// A cluster-scoped object of the installation: what it owns goes with it.
const OWNER: &str = "nodestats-controller";

/// Where the parts are.
#[derive(Debug, Clone)]
pub struct Aggregation {
    /// The namespace of Secret and Service.
    pub namespace: String,
    /// The Secret of the serving certificate; made by the installation, filled here.
    pub secret: String,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server did not take a request")]
    Request(#[from] kube::Error),
    #[error("the API server did not answer")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("no certificate can be made")]
    Certificate(#[from] certificates::Error),
}

/// Keeps both as they are to be, for ever.
pub(crate) async fn keep(
    client: Client,
    aggregation: &Aggregation,
    shared: &Shared,
    metrics: &Metrics,
    poll: Duration,
) {
    let (terminating_tx, mut terminating) = watch::channel(false);
    let follow = follow_namespace(client.clone(), &aggregation.namespace, terminating_tx);
    let keeper = Keeper {
        secrets: Api::namespaced(client.clone(), &aggregation.namespace),
        services: Api::all(client.clone()),
        roles: Api::all(client),
        aggregation,
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
            match keeper.step(wanted).await {
                Ok(()) => told = None,
                Err(error) => {
                    if let Error::Request(error) = &error {
                        metrics.request_failed(error);
                    }
                    let text = lease::chain(&error);
                    if told.as_ref() != Some(&text) {
                        tracing::warn!(
                            error = text,
                            "the API's part of the cluster's API is not kept"
                        );
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
    services: Api<APIService>,
    roles: Api<ClusterRole>,
    aggregation: &'a Aggregation,
}

impl Keeper<'_> {
    /// One look; `wanted` says whether the `APIService` is to be there, where that is known.
    async fn step(&self, wanted: Option<bool>) -> Result<(), Error> {
        let current = timely(self.services.get_opt(NAME)).await?;
        if wanted == Some(false) {
            if current.is_some() {
                timely(self.services.delete(NAME, &DeleteParams::default())).await?;
                tracing::info!("the API is no longer part of the cluster's API");
            }
            return Ok(());
        }
        let published = current.as_ref().and_then(|service| service.spec.as_ref());
        let published = published.and_then(|spec| spec.ca_bundle.clone());
        let material = self.material(published.as_ref()).await?;
        if wanted == Some(true)
            && published.as_ref().map(|bundle| &*bundle.0) != Some(material.authorities.as_bytes())
        {
            self.publish(&material).await?;
        }
        Ok(())
    }

    /// The certificates, made where they are missing or old.
    async fn material(&self, published: Option<&ByteString>) -> Result<Material, Error> {
        let mut secret = timely(self.secrets.get(&self.aggregation.secret)).await?;
        let data = secret.data.take().unwrap_or_default();
        let host = format!("{}.{}.svc", SERVICE.0, self.aggregation.namespace);
        let published = published.map(|bundle| &*bundle.0);
        match certificates::step(&data, &host, published, Timestamp::now())? {
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

    async fn publish(&self, material: &Material) -> Result<(), Error> {
        let owner = timely(self.roles.get(OWNER)).await?;
        let service = json!({
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {
                "name": NAME,
                "labels": {"app.kubernetes.io/part-of": "nodestats"},
                "ownerReferences": [{
                    "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                    "name": OWNER, "uid": owner.metadata.uid,
                }],
            },
            "spec": {
                "group": "stats.nodestats.dev", "version": "v1alpha1",
                "groupPriorityMinimum": 100, "versionPriority": 100,
                "service": {
                    "name": SERVICE.0, "namespace": self.aggregation.namespace, "port": SERVICE.1,
                },
                "caBundle": ByteString(material.authorities.clone().into_bytes()),
            },
        });
        let params = PatchParams::apply(manager::CONTROLLER).force();
        timely(self.services.patch(NAME, &params, &Patch::Apply(service))).await?;
        tracing::info!("the API is part of the cluster's API");
        Ok(())
    }
}

async fn timely<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    Ok(tokio::time::timeout(REQUEST_PATIENCE, request).await??)
}

/// Kept apart from the rest where a controller is not to touch the cluster's API.
pub(crate) async fn keep_if(
    client: Client,
    aggregation: Option<&Aggregation>,
    shared: &Shared,
    metrics: &Arc<Metrics>,
    poll: Duration,
) {
    match aggregation {
        Some(aggregation) => keep(client, aggregation, shared, metrics, poll).await,
        None => std::future::pending().await,
    }
}
