//! What the controller looks at: Nodes, in the few fields that matter here, and what the API last
//! said of all nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeAddress, NodeCondition, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use nodestats_k8s::{DeletionPolicy, MonitoredNodeSpec, label};
use nodestats_wire::v1;
use serde::Deserialize;

/// A Node, of which the rest (images, volumes, managed fields) is never kept.
#[derive(Debug, Clone, Resource, Deserialize)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
pub(crate) struct Node {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) status: NodeStatus,
}

/// Its status.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct NodeStatus {
    addresses: Vec<NodeAddress>,
    conditions: Vec<NodeCondition>,
    node_info: Option<NodeSystemInfo>,
}

/// The operating system's label (KEP-2133) and its value where no agent of ours runs.
const OS: (&str, &str) = ("kubernetes.io/os", "windows");
/// The label of nodes that no machine stands behind, by convention of the virtual kubelet.
const VIRTUAL: (&str, &str) = ("type", "virtual-kubelet");

impl Node {
    pub(crate) fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether an agent is to be there: not on Windows, not on virtual nodes, not where the
    /// installation's selector or a label says so.
    pub(crate) fn wants_agent(&self, selector: &BTreeMap<String, String>) -> bool {
        self.label(OS.0) != Some(OS.1)
            && self.label(VIRTUAL.0) != Some(VIRTUAL.1)
            && self.label(label::NO_AGENT) != Some("true")
            && selector
                .iter()
                .all(|(key, value)| self.label(key) == Some(value))
    }

    /// Whether Kubernetes calls it Ready.
    pub(crate) fn is_ready(&self) -> bool {
        let ready = self
            .status
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Ready");
        ready.is_some_and(|condition| condition.status == "True")
    }

    /// Its addresses: internal ones first, since people inside the cluster ask.
    fn addresses(&self) -> Vec<String> {
        let mut addresses = Vec::new();
        for kind in ["InternalIP", "ExternalIP"] {
            for address in &self.status.addresses {
                // One spelling for each address: IPv6 has many (RFC 5952).
                let Ok(ip) = address.address.parse::<std::net::IpAddr>() else {
                    continue;
                };
                let ip = ip.to_string();
                if address.type_ == kind && !addresses.contains(&ip) {
                    addresses.push(ip);
                }
            }
        }
        addresses
    }

    /// What the API is to know of it; `None` while it has no address.
    pub(crate) fn registration(
        &self,
        spec: &MonitoredNodeSpec,
        agent_version: Option<&str>,
    ) -> Option<v1::ClusterRegistration> {
        let mut addresses = self.addresses();
        if addresses.is_empty() {
            return None;
        }
        let ip = addresses.remove(0);
        let info = self.status.node_info.as_ref();
        let text = |of: fn(&NodeSystemInfo) -> &String| {
            info.map(|info| of(info).clone())
                .filter(|text| !text.is_empty())
        };
        Some(v1::ClusterRegistration {
            hostname: self.name().to_owned(),
            ip,
            addresses,
            kernel: text(|info| &info.kernel_version),
            os: text(|info| &info.os_image),
            architecture: text(|info| &info.architecture),
            agent_version: agent_version.map(str::to_owned),
            interval_seconds: u32::try_from(spec.interval.as_secs()).unwrap_or(u32::MAX),
            retention_seconds: spec.retention.raw.as_secs(),
            retention_minute_seconds: Some(spec.retention.rollups.minute.as_secs()),
            retention_hour_seconds: Some(spec.retention.rollups.hour.as_secs()),
            deletion_policy: match spec.deletion_policy {
                DeletionPolicy::Retain => v1::DeletionPolicy::Retain,
                DeletionPolicy::Purge => v1::DeletionPolicy::Purge,
            },
        })
    }
}

/// What the API last said.
#[derive(Debug, Clone)]
pub(crate) enum ApiView {
    /// Nothing yet: the controller has just begun to ask.
    Asking,
    /// It does not answer.
    Away,
    /// It answers since then, with this of each node by UID.
    Answers {
        since: Timestamp,
        nodes: BTreeMap<String, v1::Freshness>,
    },
}

#[cfg(test)]
impl Node {
    /// A Node for tests: ready, with an address, named after its UID.
    pub(crate) fn test(uid: &str) -> Self {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": format!("node-{uid}"), "uid": uid},
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "node"},
                    {"type": "ExternalIP", "address": "203.0.113.7"},
                    {"type": "InternalIP", "address": "192.168.2.10"},
                    {"type": "InternalIP", "address": "2001:DB8:0::7"},
                ],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }))
        .expect("a Node")
    }

    pub(crate) fn labelled(mut self, key: &str, value: &str) -> Self {
        let labels = self.metadata.labels.get_or_insert_default();
        labels.insert(key.to_owned(), value.to_owned());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_without_an_agent_by_choice_are_known() {
        let everywhere = BTreeMap::new();
        let selector = BTreeMap::from([("pool".to_owned(), "a".to_owned())]);
        let node = || Node::test("x");
        assert!(node().wants_agent(&everywhere));
        assert!(!node().wants_agent(&selector));
        assert!(node().labelled("pool", "a").wants_agent(&selector));
        for (key, value) in [OS, VIRTUAL, (label::NO_AGENT, "true")] {
            assert!(
                !node().labelled(key, value).wants_agent(&everywhere),
                "{key}"
            );
        }
        assert!(
            node()
                .labelled(label::NO_AGENT, "false")
                .wants_agent(&everywhere)
        );
    }

    #[test]
    fn a_registration_has_the_node_s_own_addresses_the_internal_one_first() {
        let spec = MonitoredNodeSpec::default();
        let registration = Node::test("x")
            .registration(&spec, Some("1.0"))
            .expect("an address");
        assert_eq!(registration.ip, "192.168.2.10");
        assert_eq!(registration.addresses, ["2001:db8::7", "203.0.113.7"]);
        assert_eq!(
            (
                registration.interval_seconds,
                registration.retention_seconds
            ),
            (10, 1_209_600)
        );
        assert_eq!(
            (
                registration.retention_minute_seconds,
                registration.retention_hour_seconds
            ),
            (Some(90 * 86_400), Some(730 * 86_400))
        );
        let mut without = Node::test("x");
        without.status.addresses.clear();
        assert_eq!(without.registration(&spec, None), None);
    }
}
