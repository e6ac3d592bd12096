//! Writing what was decided: to the API first, then the cluster's defaults, then the status. Each
//! only where it changes something.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use nodestats_k8s::condition::{self, Claim};
use nodestats_k8s::{MonitoredNode, MonitoredNodeStatus, Phase, manager};
use nodestats_wire::client::{self, Attempt};
use nodestats_wire::v1::PhaseChange;
use serde_json::{Value, json};
use tracing::Instrument as _;

use crate::decide::{Decision, NODE_LOST, WAITING};
use crate::events::Event;
use crate::metrics::Metrics;

/// Where what is written here is written, as spans are called by.
const OBJECT: &str = "/apis/nodestats.dev/v1alpha1/monitorednodes/{name}";

/// Why a node could not be reconciled. It is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the API server did not take a write")]
    Write(#[source] kube::Error),
    #[error("the API server did not answer")]
    Timeout,
    #[error("the API did not take the node's registration")]
    Register(#[source] client::Error),
}

impl Error {
    /// What failed, one of few words: `error.type` of OpenTelemetry.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Write(_) => "write",
            Self::Timeout => "timeout",
            Self::Register(_) => "register",
        }
    }
}

/// The status that says what was decided; `None` where it says so already.
pub(crate) fn status(
    object: &MonitoredNode,
    decision: &Decision,
    now: Timestamp,
) -> Option<(Phase, Vec<Condition>)> {
    let default = MonitoredNodeStatus::default();
    let current = object.status.as_ref().unwrap_or(&default);
    let generation = object.metadata.generation;
    let condition = |claim: &Claim| {
        // Pressure follows from no spec, and its agent says no generation either.
        let of_agent = condition::agent::ALL.contains(&claim.type_);
        let generation = generation.filter(|_| !of_agent);
        let mut condition = claim.since(&current.conditions, generation, now);
        let before = condition::find(&current.conditions, claim.type_);
        if claim.reason == WAITING && before.is_none_or(|before| before.reason != WAITING) {
            // From now on it counts: unknown for another reason before is no reason to count from
            // then on.
            condition.last_transition_time = Time(now);
        }
        condition
    };
    let conditions: Vec<Condition> = decision.claims.iter().map(condition).collect();
    let same =
        |wanted: &Condition| condition::find(&current.conditions, &wanted.type_) == Some(wanted);
    let unchanged = current.phase == Some(decision.phase)
        && current.observed_generation == generation
        && conditions.iter().all(same);
    if unchanged {
        return None;
    }
    // What was said of a lost node's pressure stands until its agent says something else. To let go
    // of it here would leave an entry that has a type, which the agent owns too, and nothing more.
    let kept = current.conditions.iter().filter(|condition| {
        let type_ = &*condition.type_;
        condition.reason == NODE_LOST
            && condition::agent::ALL.contains(&type_)
            && condition::find(&conditions, type_).is_none()
    });
    let kept: Vec<Condition> = kept.cloned().collect();
    Some((decision.phase, conditions.into_iter().chain(kept).collect()))
}

/// Writes a status, and returns the object's version with it. By force: what the controller says of a node is its own, and the pressure of a
/// lost node is no longer its agent's to know.
pub(crate) async fn write_status(
    nodes: &Api<MonitoredNode>,
    metrics: &Metrics,
    object: &MonitoredNode,
    (phase, conditions): (Phase, Vec<Condition>),
) -> Result<Option<String>, Error> {
    let status = json!({
        "phase": phase,
        "observedGeneration": object.metadata.generation,
        "conditions": conditions,
    });
    let patch = Patch::Apply(document(object, "status", status));
    let params = PatchParams::apply(manager::CONTROLLER).force();
    let name = object.name_any();
    let written = timely(
        metrics,
        "/status",
        nodes.patch_status(&name, &params, &patch),
    )
    .await?;
    metrics.status_written();
    Ok(written.metadata.resource_version)
}

/// Applies the cluster's defaults. Never by force.
pub(crate) async fn write_defaults(
    nodes: &Api<MonitoredNode>,
    metrics: &Metrics,
    object: &MonitoredNode,
    spec: Value,
) -> Result<(), Error> {
    let patch = Patch::Apply(document(object, "spec", spec));
    let params = PatchParams::apply(manager::DEFAULTS);
    let name = object.name_any();
    timely(metrics, "", nodes.patch(&name, &params, &patch)).await?;
    metrics.spec_written();
    Ok(())
}

/// What is applied; the UID keeps it from an object that was made anew in between.
fn document(object: &MonitoredNode, part: &str, value: Value) -> Value {
    json!({
        "apiVersion": "nodestats.dev/v1alpha1",
        "kind": "MonitoredNode",
        "metadata": {"name": object.metadata.name, "uid": object.metadata.uid},
        part: value,
    })
}

/// A write that takes no longer than requests may, with a span of its own.
async fn timely<T>(
    metrics: &Metrics,
    subresource: &'static str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    let attempt = Attempt::elsewhere("PATCH", &format!("{OBJECT}{subresource}"));
    let request = request.instrument(attempt.span());
    let answer = tokio::time::timeout(crate::REQUEST_PATIENCE, request).await;
    match &answer {
        Ok(Ok(_)) => attempt.answered(200),
        Ok(Err(kube::Error::Api(status))) => attempt.answered(status.code),
        Ok(Err(_)) => attempt.failed("connect"),
        Err(_) => attempt.failed("timeout"),
    }
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            metrics.request_failed(&error);
            Err(Error::Write(error))
        }
        Err(_) => {
            metrics.request_timed_out();
            Err(Error::Timeout)
        }
    }
}

/// What a change of phase is worth telling. The occurrence is what happened, not when it was seen:
/// a silence is that since one last sample, a pause that of one generation of the spec. So nothing
/// is told again after the API was away.
pub(crate) fn transition(object: &MonitoredNode, decision: &Decision) -> Option<Event> {
    let status = object.status.as_ref();
    let before = status.and_then(|status| status.phase);
    let silence = || {
        let last = decision.last_sample;
        last.map_or_else(String::new, |last| last.to_string())
    };
    let generation = || object.metadata.generation.unwrap_or_default().to_string();
    // Which silence ends.
    let reported = || {
        let conditions = status.map_or(&[][..], |status| &status.conditions);
        let reporting = condition::find(conditions, condition::controller::REPORTING);
        reporting.map_or_else(String::new, |one| one.last_transition_time.0.to_string())
    };
    let (warning, reason, note, occurrence) = match (before, decision.phase) {
        (before, after) if before == Some(after) => return None,
        (_, Phase::Lost) => (
            true,
            "NodeLost",
            "The node has sent no samples for a long time.",
            silence(),
        ),
        (_, Phase::Stale) => (true, "NodeStale", "The node sends no samples.", silence()),
        (Some(Phase::Lost | Phase::Stale), Phase::Ready) => (
            false,
            "NodeReports",
            "The node sends samples again.",
            reported(),
        ),
        (None | Some(Phase::Pending), Phase::Ready) => (
            false,
            "NodeReports",
            "The node's first samples arrived.",
            "first".to_owned(),
        ),
        (_, Phase::Paused) => (
            false,
            "NodePaused",
            "No samples are taken of the node.",
            generation(),
        ),
        // The API's absence is told once, not for each node.
        _ => return None,
    };
    Some(Event {
        occurrence,
        warning,
        reason,
        note: note.to_owned(),
    })
}

/// How the phase of a node changed, for its history: what follows from the API's own absence is no news
/// to it, and what it knows it does not keep twice.
pub(crate) fn phase_change(
    node_uid: &str,
    object: &MonitoredNode,
    decision: &Decision,
    now: Timestamp,
) -> Option<PhaseChange> {
    let before = object.status.as_ref().and_then(|status| status.phase);
    let after = decision.phase;
    let nothing_new = before == Some(after) || after == Phase::Unknown;
    let time = nodestats_wire::Timestamp::from_micros(now.as_microsecond());
    let told = transition(object, decision);
    let (reason, message) = match &told {
        Some(event) => (event.reason, &*event.note),
        None => ("PhaseChanged", "The node's phase changed."),
    };
    Some(PhaseChange {
        node_uid: node_uid.to_owned(),
        time: time.filter(|_| !nothing_new)?,
        phase: format!("{after:?}"),
        reason: reason.to_owned(),
        message: message.to_owned(),
    })
}

/// How long to wait after the given number of failures in a row.
pub(crate) fn backoff(failures: u32) -> Duration {
    Duration::from_millis(500)
        .saturating_mul(1 << failures.min(7))
        .min(Duration::from_mins(1))
}

#[cfg(test)]
mod tests {
    use Phase::{Lost, Paused, Pending, Ready, Unknown};

    use super::*;

    #[test]
    fn a_phase_is_news_to_the_history_unless_the_api_itself_was_away() {
        let told = |before: Option<Phase>, after| {
            let mut object = MonitoredNode::new("a", nodestats_k8s::MonitoredNodeSpec::default());
            object.status = Some(MonitoredNodeStatus {
                phase: before,
                ..MonitoredNodeStatus::default()
            });
            let decision = Decision {
                phase: after,
                claims: Vec::new(),
                register: None,
                recheck: Duration::ZERO,
                last_sample: None,
            };
            let change = phase_change("u", &object, &decision, Timestamp::UNIX_EPOCH);
            change.map(|change| (change.phase, change.reason))
        };
        let told_as = |phase: &str, reason: &str| Some((phase.to_owned(), reason.to_owned()));
        assert_eq!(told(None, Pending), told_as("Pending", "PhaseChanged"));
        assert_eq!(told(Some(Ready), Lost), told_as("Lost", "NodeLost"));
        assert_eq!(told(Some(Lost), Ready), told_as("Ready", "NodeReports"));
        assert_eq!(told(Some(Paused), Ready), told_as("Ready", "PhaseChanged"));
        assert_eq!(told(Some(Unknown), Lost), told_as("Lost", "NodeLost"));
        assert_eq!(told(Some(Unknown), Ready), told_as("Ready", "PhaseChanged"));
        for (before, after) in [(Ready, Ready), (Ready, Unknown)] {
            assert_eq!(told(Some(before), after), None, "{before:?} {after:?}");
        }
    }
}
