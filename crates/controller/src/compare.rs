//! What follows from complete lists: whose Node is gone, and which Node has no agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodestats_wire::v1::{DeletionPolicy, Freshness, NodeState, Origin};

use crate::observe::Node;

/// A life that the API still manages, and whose Node is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Departed {
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) policy: DeletionPolicy,
}

/// Those of origin `kubernetes` of whose UID there is no Node. Others are nobody's here.
pub(crate) fn departed(
    known: &BTreeMap<String, Freshness>,
    present: &BTreeSet<String>,
) -> Vec<Departed> {
    let gone = known.values().filter(|life| {
        life.origin == Origin::Kubernetes
            && life.state == NodeState::Live
            && !present.contains(&life.uid)
    });
    gone.filter_map(|life| {
        let registration = life.registration.as_ref()?;
        Some(Departed {
            uid: life.uid.clone(),
            name: registration.hostname.clone(),
            policy: registration.deletion_policy,
        })
    })
    .collect()
}

/// Since when each Node has had no agent, and who was told about.
#[derive(Debug, Default)]
pub(crate) struct WithoutAgent {
    nodes: BTreeMap<String, (Instant, bool)>,
}

impl WithoutAgent {
    /// Takes the Nodes that have no agent now, and returns those to tell about: each once.
    pub(crate) fn update(
        &mut self,
        missing: &[Arc<Node>],
        patience: Duration,
        now: Instant,
    ) -> Vec<Arc<Node>> {
        let present: BTreeSet<&str> = missing.iter().map(|node| node.uid()).collect();
        self.nodes.retain(|uid, _| present.contains(&**uid));
        let mut tell = Vec::new();
        for node in missing {
            let entry = self
                .nodes
                .entry(node.uid().to_owned())
                .or_insert((now, false));
            if !entry.1 && now.duration_since(entry.0) >= patience {
                entry.1 = true;
                tell.push(Arc::clone(node));
            }
        }
        tell
    }

    /// How many have had none for longer than the patience.
    pub(crate) fn overdue(&self) -> usize {
        self.nodes.values().filter(|(_, told)| *told).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(uid: &str, origin: Origin) -> (String, Freshness) {
        let registration = Node::test(uid)
            .registration(&nodestats_k8s::MonitoredNodeSpec::default(), None)
            .filter(|_| origin == Origin::Kubernetes);
        let life = Freshness {
            uid: uid.to_owned(),
            origin,
            state: NodeState::Live,
            gone_at: None,
            registration,
            last_sample: None,
            age_seconds: None,
            clock_offset_seconds: None,
        };
        (uid.to_owned(), life)
    }

    #[test]
    fn only_the_cluster_s_own_nodes_depart() {
        let known = BTreeMap::from([
            life("a", Origin::Kubernetes),
            life("b", Origin::Kubernetes),
            life("plain-host", Origin::Rest),
        ]);
        let present = |uid: &str| BTreeSet::from([uid.to_owned()]);
        let gone: Vec<String> = departed(&known, &present("a"))
            .into_iter()
            .map(|gone| gone.uid)
            .collect();
        assert_eq!(gone, ["b"]);
        // A Node that was made anew under the same name has another UID: the old life departs.
        assert_eq!(departed(&known, &present("c")).len(), 2);
    }

    #[test]
    fn a_node_without_an_agent_is_told_about_once() {
        let mut without = WithoutAgent::default();
        let (patience, begin) = (Duration::from_mins(5), Instant::now());
        let node = [Arc::new(Node::test("a"))];
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(without.update(&node, patience, at(0)).is_empty());
        assert!(without.update(&node, patience, at(299)).is_empty());
        assert_eq!(without.update(&node, patience, at(300)).len(), 1);
        assert!(without.update(&node, patience, at(900)).is_empty());
        assert_eq!(without.overdue(), 1);
        assert!(without.update(&[], patience, at(901)).is_empty());
        assert_eq!(without.overdue(), 0);
        assert!(without.update(&node, patience, at(902)).is_empty());
    }
}
