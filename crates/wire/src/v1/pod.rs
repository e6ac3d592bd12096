//! What Kubernetes says of pods, as a cluster's controller tells it, and what is answered about them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cgroup::Pod;
use super::node::NodeState;
use crate::Timestamp;

/// A pod by what Kubernetes knows of it. It stays when the pod is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PodRecord {
    /// Its UID: a name that is used again is another pod.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The UID by which the kubelet of a static pod calls it, where that is another one
    /// (annotation `kubernetes.io/config.hash`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub static_uid: Option<String>,
    /// The name of the node it is on; absent until it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// That node's UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_uid: Option<String>,
    /// What controls it, such as a `ReplicaSet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// What controls that in turn, to the top, such as a `Deployment`: what people deploy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Owner>,
    /// Those of its labels that the controller is told to keep.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`, as Kubernetes last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why it is as it is, such as `Evicted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its node took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When its last container ended for good, or when it was deleted; absent while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Its containers, those that prepare it among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerRecord>,
}

/// What controls a pod.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct Owner {
    /// Its kind, such as `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A container of a pod's spec, and its runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerRecord {
    /// Its name in the pod.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub role: ContainerRole,
    /// The image that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The image that runs, by its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// CPU that is kept for it, in millicores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_request_millicores: Option<u64>,
    /// CPU that it may use, in millicores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_millicores: Option<u64>,
    /// Memory that is kept for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_request_bytes: Option<u64>,
    /// Memory that it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// How often it was started anew.
    #[serde(default)]
    pub restarts: u32,
    /// Its runs that are known, oldest first: the latest ones of many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<ContainerRun>,
}

/// What a container is for (KEP-753).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ContainerRole {
    /// The pod's work.
    #[default]
    Main,
    /// It ends before the work begins.
    Init,
    /// It begins before the work and goes on beside it.
    Sidecar,
    /// Somebody added it to look around.
    Ephemeral,
}

/// One run of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerRun {
    /// The id that its runtime gave it, without the runtime's name.
    pub container_id: String,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// With which code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why, as Kubernetes says it, such as `OOMKilled`, `Error`, `Completed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The body of `PUT /pods`: what a cluster's controller has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PodChanges {
    /// Pods as they are now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<ToldPod>,
    /// Pods that are no more, of which nothing else is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<GonePod>,
}

/// A pod as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToldPod {
    /// What the controller knows this state of it by: it is not told twice.
    pub digest: String,
    /// The pod.
    pub pod: PodRecord,
}

/// A pod that is no more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GonePod {
    /// Its UID.
    pub uid: String,
    /// When that was noticed.
    pub ended_at: Timestamp,
}

/// What the controller has told of a pod that has not ended, as `GET /pods?view=digests` lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PodDigest {
    /// Its UID.
    pub uid: String,
    /// The state that was told last.
    pub digest: String,
}

/// A pod as it is answered: what Kubernetes says of it, and what it uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PodView {
    /// What Kubernetes says.
    #[serde(flatten)]
    pub pod: PodRecord,
    /// Whether it lives.
    pub state: NodeState,
    /// What it used; absent where there is no sample of it at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Pod>,
}

/// A figure about one moment, with that moment; in a history the time is the key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stamped<T> {
    /// When the sample was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// How old the sample was when it was answered, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// The figure.
    #[serde(flatten)]
    pub figure: T,
}

impl<T> Stamped<T> {
    /// Not stamped yet.
    pub fn new(figure: T) -> Self {
        Self {
            time: None,
            age_seconds: None,
            figure,
        }
    }
}

impl PodRecord {
    /// Whether it lived at some time of this span.
    pub fn lived(&self, from: Timestamp, to: Timestamp) -> bool {
        self.created_at <= to && self.ended_at.is_none_or(|ended| ended >= from)
    }

    /// Whether figures of this UID, of containers of these ids, are its own. By the other name of a
    /// static pod they are only where a container is one that its node has told of: whoever may make a
    /// pod may write that name.
    pub fn owns<'a>(&self, uid: &str, mut containers: impl Iterator<Item = &'a str>) -> bool {
        self.uid == uid
            || self.static_uid.as_deref() == Some(uid)
                && containers.any(|id| self.container(id).is_some())
    }

    /// The container of a run.
    pub fn container(&self, id: &str) -> Option<&ContainerRecord> {
        let ran =
            |container: &&ContainerRecord| container.runs.iter().any(|run| run.container_id == id);
        self.containers.iter().find(ran)
    }

    /// The sum over the containers that run side by side; `None` where one of them says nothing, and
    /// so for the pod as a whole nothing is said.
    pub fn sum(&self, of: fn(&ContainerRecord) -> Option<u64>) -> Option<u64> {
        let mut side_by_side = self
            .containers
            .iter()
            .filter(|container| {
                matches!(container.role, ContainerRole::Main | ContainerRole::Sidecar)
            })
            .peekable();
        side_by_side.peek()?;
        side_by_side.map(of).sum()
    }
}
