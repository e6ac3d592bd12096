//! `kubectl nodestats doctor`: looks at the way from here to a sample step by step, and says what
//! to do about the first thing that is not right.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use nodestats_wire::routes;
use nodestats_wire::v1::NodeView;

use crate::cluster::{Access, timely};
use crate::table;

/// Samples are late after so many intervals.
const LATE_INTERVALS: f64 = 3.0;
/// And never before.
const LATE_SECONDS: f64 = 30.0;
/// Where a node does not say its interval.
const INTERVAL_SECONDS: u32 = 10;

/// Prints a line for each step; an error is what to do about the first that failed.
pub(crate) async fn run(access: &Access) -> anyhow::Result<()> {
    ok("plugin", &format!("version {}", env!("CARGO_PKG_VERSION")));
    let client = access.client().await?;
    let version = timely(client.apiserver_version()).await?;
    let version = version.context(
        "the cluster's API server does not take this kubeconfig\n\
         hint: kubectl version --context NAME shows whether kubectl can reach it",
    )?;
    ok("cluster", &format!("Kubernetes {}", version.git_version));
    let objects = definition(&client).await?;
    ok(
        "definition",
        match objects {
            Some(_) => "MonitoredNode is known",
            None => UNSEEN,
        },
    );
    ok("agents", &agents(access, &client).await?);
    if objects == Some(0) {
        bail!(
            "no agent has registered its node yet\nhint: kubectl logs -n {} ds/nodestats-agent",
            access.namespace()
        );
    }
    let pods = Api::namespaced(client.clone(), access.namespace());
    let may_list = may(
        &client,
        "list",
        ("", "pods", None),
        Some(access.namespace()),
    );
    if may_list.await? {
        let pod = access.pod(&pods).await?;
        ok("api", &format!("pod {pod} is ready"));
    } else {
        ok("api", UNSEEN);
    }
    let is_aggregated = access.may_aggregate() && aggregated(&client).await?;
    permission(access, &client, is_aggregated).await?;
    let body = access
        .get(routes::NODES, &[("view", "full".to_owned())])
        .await?;
    ok("answer", "the API answers");
    let nodes: Vec<NodeView> = serde_json::from_slice(&body).context("its answer is no list")?;
    ok("samples", &samples(&nodes)?);
    Ok(())
}

/// Who may not look at an object may ask by a node's name all the same.
const UNSEEN: &str = "not to be seen by you, which is no obstacle";

fn ok(step: &str, text: &str) {
    println!("ok  {step:<13} {}", table::plain(text));
}

/// How many nodes are registered, where that may be seen.
async fn definition(client: &Client) -> anyhow::Result<Option<usize>> {
    let kind = GroupVersionKind::gvk("nodestats.dev", "v1alpha1", "MonitoredNode");
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    match timely(objects.list_metadata(&ListParams::default().limit(500))).await? {
        Ok(listed) => Ok(Some(listed.items.len())),
        Err(kube::Error::Api(status)) if status.code == 404 => bail!(
            "the cluster knows no MonitoredNode\n\
             hint: helm install nodestats charts/nodestats -n nodestats --create-namespace"
        ),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn agents(access: &Access, client: &Client) -> anyhow::Result<String> {
    let namespace = access.namespace();
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let set = match timely(sets.get_opt("nodestats-agent")).await? {
        Ok(Some(set)) => set,
        Ok(None) => bail!(
            "there is no nodestats in the namespace {namespace}\nhint: --namespace names another"
        ),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            return Ok(UNSEEN.to_owned());
        }
        Err(error) => return Err(error.into()),
    };
    let status = set.status.unwrap_or_default();
    let (desired, current, ready) = (
        status.desired_number_scheduled,
        status.current_number_scheduled,
        status.number_ready,
    );
    if current < desired && is_refused(client, namespace).await? {
        bail!(
            "the namespace {namespace} refuses hostPath volumes, which the agents need\n\
             hint: kubectl label namespace {namespace} \
             pod-security.kubernetes.io/enforce=privileged --overwrite"
        );
    }
    if ready < desired {
        bail!(
            "{ready} of {desired} agents are ready\nhint: kubectl get pods -n {namespace} \
             -l app.kubernetes.io/component=agent -o wide"
        );
    }
    Ok(format!("{ready} of {desired} are ready"))
}

/// Whether nodestats is part of the cluster's own API.
async fn aggregated(client: &Client) -> anyhow::Result<bool> {
    let kind = GroupVersionKind::gvk("apiregistration.k8s.io", "v1", "APIService");
    let services: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    let name = format!("{}.{}", routes::GROUP_VERSION, routes::GROUP);
    let service = match timely(services.get_opt(&name)).await? {
        Ok(Some(service)) => service,
        Ok(None) => {
            ok("apiservice", "none; there is the port-forward");
            return Ok(false);
        }
        Err(kube::Error::Api(status)) if status.code == 403 => {
            ok("apiservice", UNSEEN);
            return Ok(true);
        }
        Err(error) => return Err(error.into()),
    };
    let conditions = service.data["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let available = conditions.find(|condition| condition["type"] == "Available");
    if available.is_some_and(|available| available["status"] == "True") {
        ok("apiservice", &format!("{name} is available"));
        return Ok(true);
    }
    let message = available.and_then(|available| available["message"].as_str());
    bail!(
        "the API server does not reach nodestats: {}\n\
         hint: --via port-forward goes another way; kubectl describe apiservice {name}",
        table::plain(message.unwrap_or("it has not tried yet"))
    )
}

/// Whether this person may go that way.
async fn permission(access: &Access, client: &Client, is_aggregated: bool) -> anyhow::Result<()> {
    let (verb, resource, namespace) = if is_aggregated {
        ("list", (routes::GROUP, "nodes", None), None)
    } else {
        let forward = ("", "pods", Some("portforward"));
        ("create", forward, Some(access.namespace()))
    };
    let (group, kind, part) = resource;
    let name = part.map_or_else(|| kind.to_owned(), |part| format!("{kind}/{part}"));
    if may(client, verb, resource, namespace).await? {
        ok("permission", &format!("you may {verb} {name}"));
        return Ok(());
    }
    let place = if is_aggregated {
        "a ClusterRole".to_owned()
    } else {
        format!("a Role in the namespace {}", access.namespace())
    };
    bail!(
        "you may not {verb} {name}\nhint: you need {place} that allows {verb} of {name} in the API \
         group {group:?}; kubectl nodestats get NODE --cpu may do without"
    )
}

/// Whether RBAC allows this person something; `resource` is group, name and subresource.
async fn may(
    client: &Client,
    verb: &str,
    (group, resource, subresource): (&str, &str, Option<&str>),
    namespace: Option<&str>,
) -> anyhow::Result<bool> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: subresource.map(str::to_owned),
                namespace: namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let review = timely(reviews.create(&PostParams::default(), &review)).await??;
    Ok(review.status.is_some_and(|status| status.allowed))
}

/// Whether Pod Security keeps agents from being made.
async fn is_refused(client: &Client, namespace: &str) -> anyhow::Result<bool> {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default()
        .fields("involvedObject.name=nodestats-agent,reason=FailedCreate")
        .limit(50);
    let Ok(listed) = timely(events.list(&params)).await? else {
        return Ok(false);
    };
    let refused = |event: &Event| {
        let message = event.message.as_deref().unwrap_or_default();
        message.contains("violates PodSecurity")
    };
    Ok(listed.items.iter().any(refused))
}

/// Whether each node's newest sample is as new as it should be.
fn samples(nodes: &[NodeView]) -> anyhow::Result<String> {
    if nodes.is_empty() {
        bail!(
            "the API knows no node\nhint: kubectl logs -n NAMESPACE deploy/nodestats-controller \
             says why the controller registers none"
        );
    }
    let late = |node: &&NodeView| {
        let interval = f64::from(node.interval_seconds.unwrap_or(INTERVAL_SECONDS));
        let patience = (interval * LATE_INTERVALS).max(LATE_SECONDS);
        node.age_seconds.is_none_or(|age| age > patience)
    };
    let late: Vec<&str> = nodes
        .iter()
        .filter(late)
        .map(|node| node.hostname.as_str())
        .collect();
    if !late.is_empty() {
        bail!(
            "no new samples of {}\nhint: kubectl describe monitorednode {} says why",
            table::plain(&late.join(", ")),
            table::plain(late[0])
        );
    }
    let oldest = nodes.iter().filter_map(|node| node.age_seconds);
    let oldest = Duration::try_from_secs_f64(oldest.fold(0.0, f64::max).max(0.0));
    Ok(format!(
        "of {} nodes, none older than {} s",
        nodes.len(),
        oldest.unwrap_or_default().as_secs() + 1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, age: Option<f64>) -> NodeView {
        let mut node: NodeView = serde_json::from_value(serde_json::json!({
            "uid": name, "hostname": name, "ip": "10.0.0.1", "origin": "kubernetes",
            "state": "live", "registered_at": "2026-03-01T13:45:00Z", "interval_seconds": 60,
        }))
        .expect("a node");
        node.age_seconds = age;
        node
    }

    #[test]
    fn late_nodes_are_named() {
        let fresh = samples(&[node("a", Some(5.0)), node("b", Some(179.0))]).expect("fresh");
        assert_eq!(fresh, "of 2 nodes, none older than 180 s");
        for late in [Some(181.0), None] {
            let error = samples(&[node("a", Some(5.0)), node("b", late)]).expect_err("late");
            assert!(
                error.to_string().starts_with("no new samples of b\n"),
                "{error}"
            );
        }
        assert!(samples(&[]).is_err());
    }
}
