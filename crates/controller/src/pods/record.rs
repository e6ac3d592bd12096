//! A Pod of Kubernetes in the few fields that matter here, and what the API is told of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::{Resource, ResourceExt as _};
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{ContainerRecord, ContainerRole, ContainerRun, Owner, PodRecord};
use serde::Deserialize;

use super::quantity;

/// The UID by which the kubelet calls a pod that it has from a file.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// Containers of a pod that are told, and characters of each text that people write: what is told of one
/// pod has a bound.
const CONTAINERS: usize = 100;
const TEXT: usize = 512;

/// A Pod, of which the rest is never kept.
#[derive(Debug, Clone, Resource, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub(crate) struct Pod {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    image: Option<String>,
    restart_policy: Option<String>,
    resources: Resources,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Resources {
    requests: BTreeMap<String, Quantity>,
    limits: BTreeMap<String, Quantity>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    reason: Option<String>,
    start_time: Option<Time>,
    conditions: Vec<PodCondition>,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
    ephemeral_container_statuses: Vec<ContainerStatus>,
}

impl Pod {
    pub(crate) fn node(&self) -> Option<&str> {
        self.spec
            .node_name
            .as_deref()
            .filter(|name| !name.is_empty())
    }

    /// What controls it.
    pub(crate) fn controller(&self) -> Option<&OwnerReference> {
        controller_of(&self.metadata)
    }

    /// What the API is to know of it; `None` of an object without the fields that every one has.
    /// `workload` is `None` where it cannot be found out now.
    /// `kept` are the labels that are told; a name that ends with `*` is a beginning.
    pub(crate) fn record(
        &self,
        node_uid: Option<String>,
        workload: Option<Owner>,
        kept: &[String],
    ) -> Option<PodRecord> {
        let uid = self.metadata.uid.clone()?;
        let created_at = timestamp(self.metadata.creation_timestamp.as_ref()?)?;
        let static_uid = self.annotations().get(STATIC_UID).cloned();
        let owner = self.controller().map(owner);
        let containers = [
            (
                &self.spec.containers,
                &self.status.container_statuses,
                ContainerRole::Main,
            ),
            (
                &self.spec.init_containers,
                &self.status.init_container_statuses,
                ContainerRole::Init,
            ),
            (
                &self.spec.ephemeral_containers,
                &self.status.ephemeral_container_statuses,
                ContainerRole::Ephemeral,
            ),
        ];
        let containers = containers.into_iter().flat_map(|(specs, statuses, role)| {
            specs.iter().map(move |spec| {
                let status = statuses.iter().find(|status| status.name == spec.name);
                container(spec, status, role)
            })
        });
        let mut pod = PodRecord {
            // A hash, and never another pod's UID: whoever may make a pod may write annotations.
            static_uid: static_uid.filter(|hash| {
                hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            }),
            uid,
            namespace: self.namespace().unwrap_or_default(),
            name: self.name_any(),
            node: self.node().map(str::to_owned),
            node_uid,
            workload,
            owner,
            labels: labels(self.metadata.labels.as_ref(), kept),
            phase: self.status.phase.clone(),
            reason: self.status.reason.as_deref().map(cut),
            created_at,
            started_at: self.status.start_time.as_ref().and_then(timestamp),
            ended_at: None,
            containers: containers.take(CONTAINERS).collect(),
        };
        if matches!(pod.phase.as_deref(), Some("Succeeded" | "Failed")) {
            let runs = pod.containers.iter().flat_map(|container| &container.runs);
            let conditions = self.status.conditions.iter();
            let changed =
                conditions.filter_map(|one| timestamp(one.last_transition_time.as_ref()?));
            // One that was never let in has no runs.
            pod.ended_at = runs
                .filter_map(|run| run.ended_at)
                .max()
                .or_else(|| changed.max())
                .or(pod.started_at)
                .or(Some(pod.created_at));
        }
        Some(pod)
    }

    /// When it ended, as far as the object says so that is deleted.
    pub(crate) fn deleted_at(&self) -> Option<Timestamp> {
        timestamp(self.metadata.deletion_timestamp.as_ref()?)
    }
}

pub(super) fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|owner| owner.controller == Some(true))
}

pub(super) fn owner(reference: &OwnerReference) -> Owner {
    Owner {
        kind: reference.kind.clone(),
        name: reference.name.clone(),
    }
}

fn labels(all: Option<&BTreeMap<String, String>>, kept: &[String]) -> BTreeMap<String, String> {
    let is_kept = |label: &str| {
        kept.iter().any(|kept| match kept.strip_suffix('*') {
            Some(begin) => label.starts_with(begin),
            None => label == kept,
        })
    };
    let all = all
        .into_iter()
        .flatten()
        .filter(|(label, _)| is_kept(label));
    all.map(|(label, value)| (label.clone(), value.clone()))
        .collect()
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

fn timestamp(time: &Time) -> Option<Timestamp> {
    Timestamp::from_micros(time.0.as_microsecond())
}

fn container(
    spec: &Container,
    status: Option<&ContainerStatus>,
    role: ContainerRole,
) -> ContainerRecord {
    let scaled = |of: &BTreeMap<String, Quantity>, name: &str, scale| {
        of.get(name)
            .and_then(|quantity| quantity::scaled(&quantity.0, scale))
    };
    let (requests, limits) = (&spec.resources.requests, &spec.resources.limits);
    let role = match (role, spec.restart_policy.as_deref()) {
        // KEP-753.
        (ContainerRole::Init, Some("Always")) => ContainerRole::Sidecar,
        (role, _) => role,
    };
    ContainerRecord {
        name: spec.name.clone(),
        role,
        image: spec.image.as_deref().map(cut),
        image_id: status
            .map(|status| cut(&status.image_id))
            .filter(|id| !id.is_empty()),
        cpu_request_millicores: scaled(requests, "cpu", 1000.0),
        cpu_limit_millicores: scaled(limits, "cpu", 1000.0),
        memory_request_bytes: scaled(requests, "memory", 1.0),
        memory_limit_bytes: scaled(limits, "memory", 1.0),
        restarts: status.map_or(0, |status| {
            u32::try_from(status.restart_count).unwrap_or_default()
        }),
        runs: status.map(runs).unwrap_or_default(),
    }
}

/// The last run that ended, and the present one.
fn runs(of: &ContainerStatus) -> Vec<ContainerRun> {
    let states = [of.last_state.as_ref(), of.state.as_ref()];
    let mut runs = Vec::new();
    for state in states.into_iter().flatten() {
        let run = if let Some(ended) = &state.terminated {
            ContainerRun {
                container_id: id(ended.container_id.as_deref().or(of.container_id.as_deref())),
                started_at: ended.started_at.as_ref().and_then(timestamp),
                ended_at: ended.finished_at.as_ref().and_then(timestamp),
                exit_code: Some(ended.exit_code),
                reason: ended.reason.as_deref().map(cut),
            }
        } else if let Some(running) = &state.running {
            ContainerRun {
                container_id: id(of.container_id.as_deref()),
                started_at: running.started_at.as_ref().and_then(timestamp),
                ..ContainerRun::default()
            }
        } else {
            continue;
        };
        if !run.container_id.is_empty() {
            runs.push(run);
        }
    }
    runs
}

/// `containerd://ID` without the runtime's name.
fn id(container_id: Option<&str>) -> String {
    let id = container_id.unwrap_or_default();
    id.rsplit('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "web-1", "namespace": "team-a", "uid": "u",
                "creationTimestamp": "2026-03-01T13:00:00Z",
                "labels": {"app": "web", "app.kubernetes.io/name": "web", "secret": "x"},
                "annotations": {"kubernetes.io/config.hash": "0123456789abcdef0123456789abcdef"},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "1"},
                    {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "uid": "2", "controller": true},
                ],
            },
            "spec": {
                "nodeName": "node-1",
                "initContainers": [
                    {"name": "prepare"}, {"name": "proxy", "restartPolicy": "Always"},
                ],
                "containers": [{
                    "name": "app", "image": "web:1", "env": [{"name": "PASSWORD", "value": "x"}],
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "0.2"}},
                }],
            },
            "status": {
                "phase": "Running", "startTime": "2026-03-01T13:00:01Z",
                "containerStatuses": [{
                    "name": "app", "image": "web:1", "imageID": "sha256:abc", "ready": true,
                    "restartCount": 3, "containerID": "containerd://bbb",
                    "state": {"running": {"startedAt": "2026-03-01T13:10:00Z"}},
                    "lastState": {"terminated": {
                        "containerID": "containerd://aaa", "exitCode": 137, "reason": "OOMKilled",
                        "startedAt": "2026-03-01T13:00:02Z", "finishedAt": "2026-03-01T13:09:59Z",
                    }},
                }],
            },
        }))
        .expect("a Pod")
    }

    #[test]
    fn what_is_told_of_a_pod_is_what_matters() {
        let kept = ["app".to_owned(), "app.kubernetes.io/*".to_owned()];
        let workload = Owner {
            kind: "Deployment".into(),
            name: "web".into(),
        };
        let record = pod()
            .record(Some("n".into()), Some(workload), &kept)
            .expect("whole");
        assert_eq!(
            (&*record.uid, record.static_uid.as_deref()),
            ("u", Some("0123456789abcdef0123456789abcdef"))
        );
        assert_eq!(
            record.owner.map(|owner| owner.name).as_deref(),
            Some("web-abc")
        );
        assert_eq!(
            record.workload.map(|workload| workload.kind).as_deref(),
            Some("Deployment")
        );
        assert_eq!(
            record.labels.keys().collect::<Vec<_>>(),
            ["app", "app.kubernetes.io/name"]
        );
        assert_eq!(record.ended_at, None);
        let app = &record.containers[0];
        assert_eq!(
            (app.cpu_request_millicores, app.cpu_limit_millicores),
            (Some(100), Some(200))
        );
        assert_eq!(
            (app.memory_request_bytes, app.memory_limit_bytes),
            (Some(64 << 20), None)
        );
        let runs: Vec<_> = app
            .runs
            .iter()
            .map(|run| (&*run.container_id, run.exit_code))
            .collect();
        assert_eq!(runs, [("aaa", Some(137)), ("bbb", None)]);
        let roles: Vec<_> = record
            .containers
            .iter()
            .map(|container| container.role)
            .collect();
        assert_eq!(
            roles,
            [
                ContainerRole::Main,
                ContainerRole::Init,
                ContainerRole::Sidecar
            ]
        );
    }

    #[test]
    fn a_pod_that_did_its_work_has_ended() {
        let mut pod = pod();
        pod.status.phase = Some("Succeeded".to_owned());
        let record = pod.record(None, None, &[]).expect("whole");
        assert_eq!(
            record.ended_at.map(|at| at.to_string()).as_deref(),
            Some("2026-03-01T13:09:59Z")
        );
        // One that was not let in has ended too, when its last condition changed.
        pod.status.phase = Some("Failed".to_owned());
        pod.status.container_statuses.clear();
        let record = pod.record(None, None, &[]).expect("whole");
        assert_eq!(record.ended_at, record.started_at);
        assert_eq!(record.workload, None);
        pod.metadata.uid = None;
        assert!(pod.record(None, None, &[]).is_none());
    }
}
