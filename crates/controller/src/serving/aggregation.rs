//! The `APIService` that makes the API part of the cluster's own API.

use k8s_openapi::ByteString;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use nodestats_k8s::manager;
use serde_json::json;

use super::{Error, SERVICE, timely};

/// Name of the `APIService`: its version and its group.
const NAME: &str = "v1alpha1.stats.nodestats.dev";
/// The Service's port for the front proxy.
const PORT: u16 = 8444;
/// A cluster-scoped object of the installation: what it owns goes with it.
const OWNER: &str = "nodestats-controller";

/// Keeps it as it is to be.
pub(super) struct Keeper {
    services: Api<APIService>,
    roles: Api<ClusterRole>,
    namespace: String,
}

impl Keeper {
    pub(super) fn new(client: &Client, namespace: &str) -> Self {
        Self {
            services: Api::all(client.clone()),
            roles: Api::all(client.clone()),
            namespace: namespace.to_owned(),
        }
    }

    /// The authorities by which the API server knows the API, where it is led to it.
    pub(super) async fn authorities(&self) -> Result<Option<Vec<u8>>, Error> {
        let current = timely(self.services.get_opt(NAME)).await?;
        let bundle = current.map(|current| current.spec.and_then(|spec| spec.ca_bundle));
        Ok(bundle.map(|bundle| bundle.map(|bundle| bundle.0).unwrap_or_default()))
    }

    pub(super) async fn withdraw(&self) -> Result<(), Error> {
        timely(self.services.delete(NAME, &DeleteParams::default())).await?;
        tracing::info!("the API is no longer part of the cluster's API");
        Ok(())
    }

    pub(super) async fn publish(&self, authorities: &str) -> Result<(), Error> {
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
                "service": {"name": SERVICE, "namespace": self.namespace, "port": PORT},
                "caBundle": ByteString(authorities.as_bytes().to_vec()),
            },
        });
        let params = PatchParams::apply(manager::CONTROLLER).force();
        timely(self.services.patch(NAME, &params, &Patch::Apply(service))).await?;
        tracing::info!("the API is part of the cluster's API");
        Ok(())
    }
}
