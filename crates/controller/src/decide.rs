//! What is true of a node: a pure function of what was observed, and of the time.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use nodestats_k8s::condition::{self, Claim, Status, controller};
use nodestats_k8s::{AgentState, MonitoredNode, MonitoredNodeStatus, Phase};
use nodestats_wire::v1::{ClusterRegistration, Freshness};

use crate::observe::{ApiView, Node};

/// A clock that is off by more than this is told about.
const SKEW_BEGINS: f64 = 5.0;
/// And no longer, when it is off by less than this.
const SKEW_ENDS: f64 = 2.0;
/// A node is stale after so many intervals without a sample.
const STALE_INTERVALS: u32 = 3;
/// And lost after so many, if the time for it has passed as well.
const LOST_INTERVALS: u32 = 6;

/// However long the interval: a registration that the API lost is not missed for longer.
const LONGEST_RECHECK: Duration = Duration::from_mins(1);

/// Times that an installation chooses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// Between two looks at the API.
    pub(crate) poll: Duration,
    /// No node is lost before.
    pub(crate) lost_after: Duration,
}

/// What was observed of one node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observed<'a> {
    pub(crate) object: &'a MonitoredNode,
    /// The Node of this name.
    pub(crate) node: Option<&'a Node>,
    pub(crate) api: &'a ApiView,
}

/// What follows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    pub(crate) phase: Phase,
    /// The controller's conditions; and the agent's too, as Unknown, where the node is lost.
    pub(crate) claims: Vec<Claim>,
    /// What the API is to be told first.
    pub(crate) register: Option<ClusterRegistration>,
    /// When time alone may change this.
    pub(crate) recheck: Duration,
    /// Time of the last sample that the API has: of which silence a transition tells.
    pub(crate) last_sample: Option<nodestats_wire::Timestamp>,
}

/// How long a node has been silent, and what that means.
enum Silence {
    /// Nothing was ever heard of it.
    Never,
    /// The last sample is so old.
    Fresh,
    Stale,
    Lost,
    /// Too early to tell: samples were not to be expected, or could not be seen, until now.
    Waiting,
}

/// Decides. `None`: the object belongs to a Node that is no more, and goes with it.
pub(crate) fn decide(observed: Observed<'_>, times: Times, now: Timestamp) -> Option<Decision> {
    let Observed { object, node, api } = observed;
    let node = node.filter(|node| belongs(object, node))?;
    let default = MonitoredNodeStatus::default();
    let status = object.status.as_ref().unwrap_or(&default);
    let version = status
        .agent
        .as_ref()
        .and_then(|agent| agent.version.as_deref());
    let wanted = node.registration(&object.spec, version);
    let (nodes, since) = match api {
        ApiView::Asking => return None,
        ApiView::Away => return Some(away(status, times)),
        ApiView::Answers { since, nodes } => (nodes, *since),
    };
    let known = nodes.get(node.uid());
    let registered = known.and_then(|known| known.registration.as_ref());
    let (silence, recheck) = silence(object, status, known, (since, now), times);
    let phase = phase(object, status, &silence);
    let reporting = reporting(status, phase, &silence);
    let mut claims = vec![
        registered_claim(wanted.as_ref(), registered),
        ready_claim(node, phase, &reporting),
        reporting,
        skew_claim(status, known),
    ];
    if phase == Phase::Lost {
        claims.extend(condition::agent::ALL.map(|type_| Claim {
            type_,
            status: Status::Unknown,
            reason: NODE_LOST,
            message: "The node has sent nothing for a long time.".to_owned(),
        }));
    }
    Some(Decision {
        phase,
        claims,
        register: wanted.filter(|wanted| registered != Some(wanted)),
        recheck,
        last_sample: known.and_then(|known| known.last_sample),
    })
}

/// Whether the object is about this very Node: a re-created Node has another UID.
fn belongs(object: &MonitoredNode, node: &Node) -> bool {
    let owners = object.metadata.owner_references.iter().flatten();
    let owner = owners.into_iter().find(|owner| owner.kind == "Node");
    owner.is_some_and(|owner| owner.uid == node.uid())
}

/// The API is away: nothing is known of any node, and none is called lost.
fn away(status: &MonitoredNodeStatus, times: Times) -> Decision {
    let unknown = |type_| Claim {
        type_,
        status: Status::Unknown,
        reason: API_UNAVAILABLE,
        message: "The nodestats API does not answer.".to_owned(),
    };
    let mut claims = vec![
        unknown(controller::REPORTING),
        unknown(controller::READY),
        unknown(controller::CLOCK_SKEWED),
    ];
    // What the API was told it has not forgotten.
    claims.push(
        match condition::find(&status.conditions, controller::REGISTERED) {
            Some(kept) if kept.status == "True" => registered_true(),
            _ => unknown(controller::REGISTERED),
        },
    );
    Decision {
        phase: Phase::Unknown,
        claims,
        register: None,
        recheck: times.poll,
        last_sample: None,
    }
}

fn silence(
    object: &MonitoredNode,
    status: &MonitoredNodeStatus,
    known: Option<&Freshness>,
    (answers_since, now): (Timestamp, Timestamp),
    times: Times,
) -> (Silence, Duration) {
    let Some(age) = known.and_then(|known| known.age_seconds) else {
        return (Silence::Never, times.poll);
    };
    // One poll more: what is known of a node is as old as the last look.
    let interval = object.spec.interval.0;
    let stale_after = interval * STALE_INTERVALS + times.poll;
    let lost_after = (interval * LOST_INTERVALS).max(times.lost_after);
    let age = Duration::try_from_secs_f64(age.max(0.0)).unwrap_or(Duration::MAX);
    if let Some(left) = stale_after.checked_sub(age) {
        return (Silence::Fresh, left.min(LONGEST_RECHECK).max(times.poll));
    }
    // Nobody is silent for longer than it was listened to.
    let mut floor = answers_since;
    let reporting = condition::find(&status.conditions, controller::REPORTING);
    let since = reporting.map(|reporting| reporting.last_transition_time.0);
    let waits = reporting.is_some_and(|reporting| reporting.reason == WAITING);
    if let Some(since) = since.filter(|_| waits) {
        floor = floor.max(since);
    }
    // What was found stale then had been silent for that long, and no longer.
    if let Some(since) = since.filter(|_| status.phase == Some(Phase::Stale)) {
        let began = since.checked_sub(stale_after).unwrap_or(since);
        floor = floor.max(began);
    }
    let listened = Duration::try_from(now.duration_since(floor)).unwrap_or_default();
    let age = age.min(listened);
    let resumed = matches!(status.phase, Some(Phase::Paused | Phase::Unknown));
    let changed = status.observed_generation != object.metadata.generation;
    let silence = match status.phase {
        // The spec changed, or was paused, or the API was away: only from now on does it count.
        _ if (resumed || changed) && !waits => Silence::Waiting,
        Some(Phase::Lost) if !waits => Silence::Lost,
        _ if age > lost_after => Silence::Lost,
        _ if age > stale_after => Silence::Stale,
        Some(Phase::Stale) => Silence::Stale,
        Some(Phase::Ready) => Silence::Fresh,
        _ => Silence::Waiting,
    };
    (silence, times.poll)
}

fn phase(object: &MonitoredNode, status: &MonitoredNodeStatus, silence: &Silence) -> Phase {
    if object.spec.paused {
        return Phase::Paused;
    }
    match silence {
        Silence::Never => Phase::Pending,
        Silence::Fresh => Phase::Ready,
        Silence::Stale => Phase::Stale,
        // A node that was lost before its spec changed is still lost.
        Silence::Waiting if status.phase == Some(Phase::Lost) => Phase::Lost,
        Silence::Waiting => Phase::Unknown,
        Silence::Lost => Phase::Lost,
    }
}

/// Reason of what is not known while the API is away.
pub(crate) const API_UNAVAILABLE: &str = "ApiUnavailable";
/// Reason of the pressure of a lost node.
pub(crate) const NODE_LOST: &str = "NodeLost";
/// Reason of a node of which it is too early to tell.
pub(crate) const WAITING: &str = "WaitingForSamples";

fn reporting(status: &MonitoredNodeStatus, phase: Phase, silence: &Silence) -> Claim {
    let stopping = status
        .agent
        .as_ref()
        .is_some_and(|agent| agent.state == Some(AgentState::Stopping));
    let (status, reason, message) = match phase {
        Phase::Paused => (
            Status::False,
            "Paused",
            "The spec says that no samples are taken.",
        ),
        Phase::Ready => (Status::True, "SamplesArrive", "Samples arrive."),
        Phase::Pending => (Status::False, "NoSampleYet", "No sample has arrived yet."),
        Phase::Stale if stopping => (
            Status::False,
            "AgentStopping",
            "The agent was told to end, and no other has begun.",
        ),
        Phase::Stale => (
            Status::False,
            "Stale",
            "The last sample is older than three intervals.",
        ),
        Phase::Lost if matches!(silence, Silence::Waiting | Silence::Lost) => (
            Status::False,
            "Lost",
            "The last sample is older than the limit for lost nodes and than six intervals.",
        ),
        Phase::Lost | Phase::Unknown => (Status::Unknown, WAITING, "Samples are waited for."),
    };
    Claim {
        type_: controller::REPORTING,
        status,
        reason,
        message: message.to_owned(),
    }
}

fn ready_claim(node: &Node, phase: Phase, reporting: &Claim) -> Claim {
    let (status, reason, message) = if phase == Phase::Ready && !node.is_ready() {
        let message = "Samples arrive, and Kubernetes says that the Node is not ready.";
        (Status::False, "NodeNotReady", message.to_owned())
    } else {
        (
            reporting.status,
            reporting.reason,
            reporting.message.clone(),
        )
    };
    Claim {
        type_: controller::READY,
        status,
        reason,
        message,
    }
}

fn registered_true() -> Claim {
    Claim {
        type_: controller::REGISTERED,
        status: Status::True,
        reason: "Registered",
        message: "The API knows the node by its name and addresses.".to_owned(),
    }
}

fn registered_claim(
    wanted: Option<&ClusterRegistration>,
    registered: Option<&ClusterRegistration>,
) -> Claim {
    let (reason, message) = match (wanted, registered) {
        (Some(wanted), Some(registered)) if wanted == registered => return registered_true(),
        (None, _) => ("NoAddress", "The Node has no address yet."),
        (Some(_), _) => (
            "NotRegistered",
            "The API has not taken the node's registration.",
        ),
    };
    Claim {
        type_: controller::REGISTERED,
        status: Status::False,
        reason,
        message: message.to_owned(),
    }
}

fn skew_claim(status: &MonitoredNodeStatus, known: Option<&Freshness>) -> Claim {
    let was = condition::find(&status.conditions, controller::CLOCK_SKEWED);
    let was_skewed = was.is_some_and(|was| was.status == "True");
    let limit = if was_skewed { SKEW_ENDS } else { SKEW_BEGINS };
    let offset = known.and_then(|known| known.clock_offset_seconds);
    let (status, reason, message) = match offset {
        None => (
            Status::Unknown,
            "NotMeasured",
            "No push has said what its node's clock shows.",
        ),
        Some(offset) if offset > limit => (
            Status::True,
            "ClockAhead",
            "The node's clock is ahead of the API's by more than some seconds.",
        ),
        Some(offset) if offset < -limit => (
            Status::True,
            "ClockBehind",
            "The node's clock is behind the API's by more than some seconds.",
        ),
        Some(_) => (
            Status::False,
            "InStep",
            "The node's clock agrees with the API's.",
        ),
    };
    Claim {
        type_: controller::CLOCK_SKEWED,
        status,
        reason,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests;
