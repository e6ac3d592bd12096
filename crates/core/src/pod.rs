//! What is known of a pod, put together from what was told at different times.

use nodestats_wire::v1::{ContainerRun, GroupCpu, GroupMemory, Pod, PodRecord};

use crate::rates::percent;

/// Runs of a container that are kept, the latest: one that fails each ten seconds for weeks must not
/// fill the store.
const RUNS: usize = 50;

/// `told` is what Kubernetes says now; runs that it has forgotten are kept. A pod that has ended does
/// not live again, whatever is told late.
pub fn merge(known: Option<PodRecord>, mut told: PodRecord) -> PodRecord {
    let Some(known) = known else {
        told.workload = told.workload.or_else(|| told.owner.clone());
        return told;
    };
    told.ended_at = earlier(known.ended_at, told.ended_at);
    for container in &mut told.containers {
        let before = known
            .containers
            .iter()
            .find(|before| before.name == container.name);
        for run in before.into_iter().flat_map(|before| &before.runs) {
            match container
                .runs
                .iter_mut()
                .find(|told| told.container_id == run.container_id)
            {
                Some(told) => complete(told, run),
                None => container.runs.push(run.clone()),
            }
        }
        container
            .runs
            .sort_by_key(|run| (run.started_at, run.ended_at));
        let surplus = container.runs.len().saturating_sub(RUNS);
        container.runs.drain(..surplus);
    }
    // A spec's containers stay as they are; what Kubernetes does not tell any more is kept.
    let missing = |name: &str| {
        !told
            .containers
            .iter()
            .any(|container| container.name == name)
    };
    let kept: Vec<_> = known
        .containers
        .iter()
        .filter(|before| missing(&before.name))
        .cloned()
        .collect();
    told.containers.extend(kept);
    told.node = told.node.or(known.node);
    told.node_uid = told.node_uid.or(known.node_uid);
    told.workload = told
        .workload
        .or(known.workload)
        .or_else(|| told.owner.clone());
    told.started_at = told.started_at.or(known.started_at);
    told
}

fn earlier<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn complete(told: &mut ContainerRun, known: &ContainerRun) {
    told.started_at = told.started_at.or(known.started_at);
    told.ended_at = told.ended_at.or(known.ended_at);
    told.exit_code = told.exit_code.or(known.exit_code);
    if told.reason.is_none() {
        told.reason.clone_from(&known.reason);
    }
}

/// Whether these figures are of this pod.
pub fn is_of(figures: &Pod, pod: &PodRecord) -> bool {
    let containers = figures.containers.iter().flatten();
    let ids = containers.filter_map(|container| container.container_id.as_deref());
    figures.uid.as_deref().is_some_and(|uid| pod.owns(uid, ids))
}

/// Says of a pod's figures what Kubernetes knows: names, and what is kept for whom. What is no
/// container of its spec has no name.
pub fn name(figures: &mut Pod, pod: &PodRecord) {
    figures.uid = Some(pod.uid.clone());
    figures.namespace = Some(pod.namespace.clone());
    figures.name = Some(pod.name.clone());
    figures.workload.clone_from(&pod.workload);
    let (cpu, memory) = (
        pod.sum(|container| container.cpu_request_millicores),
        pod.sum(|container| container.memory_request_bytes),
    );
    compare(figures.cpu.as_mut(), cpu, figures.memory.as_mut(), memory);
    for container in figures.containers.iter_mut().flatten() {
        let id = container.container_id.as_deref().unwrap_or_default();
        if let Some(known) = pod.container(id) {
            container.name = Some(known.name.clone());
            compare(
                container.cpu.as_mut(),
                known.cpu_request_millicores,
                container.memory.as_mut(),
                known.memory_request_bytes,
            );
        }
    }
    // The work first, and then what only holds namespaces.
    let containers = figures.containers.as_deref_mut().unwrap_or_default();
    containers.sort_by(|a, b| (a.name.is_none(), &a.name).cmp(&(b.name.is_none(), &b.name)));
}

/// Use against what is kept.
fn compare(
    cpu: Option<&mut GroupCpu>,
    cpu_request: Option<u64>,
    memory: Option<&mut GroupMemory>,
    memory_request: Option<u64>,
) {
    if let (Some(cpu), Some(request)) = (cpu, cpu_request) {
        let request = request as f64;
        cpu.request_millicores = Some(request);
        cpu.request_percent = cpu
            .usage_millicores
            .and_then(|usage| percent(usage, request));
    }
    if let (Some(memory), Some(request)) = (memory, memory_request) {
        memory.request_bytes = Some(request);
        memory.request_percent = memory
            .working_set_bytes
            .and_then(|bytes| percent(bytes as f64, request as f64));
    }
}

#[cfg(test)]
mod tests {
    use nodestats_wire::Timestamp;
    use nodestats_wire::v1::ContainerRecord;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000).expect("a time")
    }

    fn pod(runs: Vec<ContainerRun>) -> PodRecord {
        PodRecord {
            uid: "u".into(),
            containers: vec![ContainerRecord {
                name: "app".into(),
                runs,
                ..ContainerRecord::default()
            }],
            ..PodRecord::default()
        }
    }

    fn run(id: &str, started: i64, exit_code: Option<i32>) -> ContainerRun {
        ContainerRun {
            container_id: id.into(),
            started_at: Some(at(started)),
            exit_code,
            ..ContainerRun::default()
        }
    }

    #[test]
    fn runs_that_kubernetes_forgets_are_kept() {
        let first = pod(vec![run("a", 1, None)]);
        let second = pod(vec![run("a", 1, Some(137)), run("b", 2, None)]);
        let third = pod(vec![run("b", 2, Some(0)), run("c", 3, None)]);
        let merged = merge(Some(merge(Some(first), second)), third);
        let runs = &merged.containers[0].runs;
        let ids: Vec<&str> = runs.iter().map(|run| &*run.container_id).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        assert_eq!(runs[0].exit_code, Some(137));
        let late = merge(Some(merged), pod(vec![run("a", 1, None)]));
        assert_eq!(late.containers[0].runs[0].exit_code, Some(137));
    }

    #[test]
    fn the_latest_of_many_runs_are_kept() {
        let mut known = pod(Vec::new());
        for number in 0..200 {
            known = merge(
                Some(known),
                pod(vec![run(&number.to_string(), number, Some(1))]),
            );
        }
        let runs = &known.containers[0].runs;
        assert_eq!((runs.len(), &*runs[RUNS - 1].container_id), (RUNS, "199"));
    }

    #[test]
    fn what_has_ended_does_not_live_again() {
        let ended = PodRecord {
            ended_at: Some(at(9)),
            node: Some("n".into()),
            ..pod(Vec::new())
        };
        let late = merge(Some(ended.clone()), pod(Vec::new()));
        assert_eq!(
            (late.ended_at, late.node.as_deref()),
            (Some(at(9)), Some("n"))
        );
        // The container ended before the object was deleted.
        let later = PodRecord {
            ended_at: Some(at(20)),
            ..pod(Vec::new())
        };
        assert_eq!(merge(Some(ended), later).ended_at, Some(at(9)));
    }
}
