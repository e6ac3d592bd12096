//! `kubectl nodestats doctor`: looks at the way from here to a sample step by step, and says what
//! to do about the first thing that is not right.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
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
    let pods = Api::namespaced(client, access.namespace());
    let pod = access.pod(&pods).await?;
    ok("api", &format!("pod {pod} is ready"));
    let body = access
        .get(routes::NODES, &[("view", "full".to_owned())])
        .await?;
    ok("port-forward", "the API answers");
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
