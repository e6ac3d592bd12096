//! The agent's part of the status: facts of its node and itself, and the pressure that it sees.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use nodestats_collect::HostFacts;
use nodestats_k8s::condition;
use nodestats_k8s::{AgentState, AgentStatus, MonitoredNode, MonitoredNodeStatus, Phase};

use super::{Claims, Membership};
use crate::pressure::Observed;

/// What the agent knows.
pub(crate) struct Facts<'a> {
    pub(crate) membership: &'a Membership,
    pub(crate) claims: &'a Claims,
    pub(crate) host: &'a HostFacts,
    pub(crate) observed: Option<&'a Observed>,
    pub(crate) state: AgentState,
}

impl Facts<'_> {
    /// What the status is to say; `None` where it says so already.
    pub(crate) fn status(&self, object: &MonitoredNode) -> Option<MonitoredNodeStatus> {
        let default = MonitoredNodeStatus::default();
        let current = object.status.as_ref().unwrap_or(&default);
        let wanted = self.wanted(object, current);
        // The rest of it is the controller's.
        let mut own = current.clone();
        own.phase = None;
        own.observed_generation = None;
        own.conditions
            .retain(|one| condition::agent::ALL.contains(&&*one.type_));
        own.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        let mut sorted = wanted.clone();
        if current.phase == Some(Phase::Lost) {
            own.conditions.clear();
        }
        sorted.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        (own != sorted).then_some(wanted)
    }

    fn wanted(&self, object: &MonitoredNode, current: &MonitoredNodeStatus) -> MonitoredNodeStatus {
        let observed = self.observed;
        let boot_time = observed.and_then(|observed| observed.boot_time_seconds);
        let boot_time = boot_time.and_then(|seconds| Timestamp::from_second(seconds as i64).ok());
        let memory = observed.and_then(|observed| observed.memory_bytes);
        // While the node is called lost its pressure is the controller's to say: two writers that
        // disagree would write for ever.
        let lost = current.phase == Some(Phase::Lost);
        let conditions = match observed {
            _ if lost => Vec::new(),
            Some(observed) => observed
                .conditions
                .iter()
                // Pressure follows from no spec.
                .map(|claim| claim.since(&current.conditions, None, Timestamp::now()))
                .collect(),
            // Nothing is known yet: what was said last stands.
            None => own_conditions(current),
        };
        let generation = object.metadata.generation;
        MonitoredNodeStatus {
            phase: None,
            observed_generation: None,
            addresses: self.membership.node_ips.clone(),
            hostname: Some(self.host.hostname.clone()),
            node_uid: Some(self.claims.node_uid.clone()),
            machine_id: self.host.machine_id.clone(),
            // What is not known yet stands as it was said last.
            boot_id: observed
                .map(|observed| observed.boot_id.clone())
                .or_else(|| current.boot_id.clone()),
            boot_time: boot_time
                .map(|time| time.to_string())
                .or_else(|| current.boot_time.clone()),
            kernel: self.host.kernel.clone(),
            os: self.host.os.clone(),
            architecture: Some(self.host.architecture.clone()),
            cpus: observed
                .and_then(|observed| i32::try_from(observed.cpus).ok())
                .or(current.cpus),
            memory: memory
                .map(|bytes| format!("{}Mi", bytes >> 20))
                .or_else(|| current.memory.clone()),
            agent: Some(AgentStatus {
                version: Some(env!("CARGO_PKG_VERSION").to_owned()),
                pod: self.membership.pod.clone(),
                state: Some(self.state),
                observed_generation: generation,
            }),
            conditions,
        }
    }
}

fn own_conditions(status: &MonitoredNodeStatus) -> Vec<Condition> {
    let own = |one: &&Condition| condition::agent::ALL.contains(&&*one.type_);
    status.conditions.iter().filter(own).cloned().collect()
}

#[cfg(test)]
mod tests {
    use nodestats_core::sample::Host;
    use nodestats_k8s::MonitoredNodeSpec;

    use super::*;

    fn status(object: &MonitoredNode, host: &Host) -> Option<MonitoredNodeStatus> {
        let observed = Observed::of(host, None);
        Facts {
            membership: &Membership {
                ca_config_map: None,
                node_name: "a".to_owned(),
                node_ips: vec!["192.168.2.10".to_owned()],
                pod: None,
                token_file: "/nowhere".into(),
            },
            claims: &Claims {
                node_name: "a".to_owned(),
                node_uid: "u".to_owned(),
            },
            host: &HostFacts {
                hostname: "a".to_owned(),
                kernel: None,
                os: None,
                architecture: "x86_64".to_owned(),
                machine_id: None,
            },
            observed: Some(&observed),
            state: AgentState::Running,
        }
        .status(object)
    }

    #[test]
    fn what_is_said_already_is_not_said_again() {
        let mut object = MonitoredNode::new("a", MonitoredNodeSpec::default());
        let first = status(&object, &Host::default()).expect("nothing is said yet");
        assert_eq!(first.conditions.len(), 4);
        object.status = Some(first);
        // What the controller adds is not the agent's.
        let with_controller = object.status.as_mut().expect("set");
        with_controller.phase = Some(Phase::Ready);
        with_controller.conditions.reverse();
        assert_eq!(status(&object, &Host::default()), None);
        object.metadata.generation = Some(2);
        assert!(status(&object, &Host::default()).is_some());
    }

    #[test]
    fn the_pressure_of_a_lost_node_is_left_to_the_controller() {
        let mut object = MonitoredNode::new("a", MonitoredNodeSpec::default());
        object.status = status(&object, &Host::default());
        let said = object.status.as_mut().expect("set");
        said.phase = Some(Phase::Lost);
        for condition in &mut said.conditions {
            condition.reason = "NodeLost".to_owned();
        }
        assert_eq!(status(&object, &Host::default()), None);
        object.status.as_mut().expect("set").phase = Some(Phase::Ready);
        let back = status(&object, &Host::default()).expect("pressure is known again");
        assert!(
            back.conditions
                .iter()
                .all(|condition| condition.reason != "NodeLost")
        );
    }
}
