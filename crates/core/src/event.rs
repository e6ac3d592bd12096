//! Events: what happened, made of what agents note and Kubernetes tells, and how it is said.

use nodestats_wire::Timestamp;
use nodestats_wire::v1::{
    ContainerRecord, ContainerRun, DropReason, Event, EventKind, EventSource, PhaseChange,
    PodRecord, Victim,
};

use crate::sample::note::{Container, Kill, KillSource, Note, What};

/// What Kubernetes calls a container whose process was killed for memory.
const OOM_KILLED: &str = "OOMKilled";
/// Two tellings of one kill differ by no more than this beyond what each says of its own time: what the
/// kubelet sees it sees later.
const SAME_KILL_SECONDS: f64 = 60.0;
/// Beyond this they are never one: two of the longest intervals, in which a counter is read.
pub const SAME_KILL_MOST_SECONDS: i64 = 2 * 3600 + 60;

/// What happened by the notes of one sample. In a cluster the controller tells of containers of pods.
pub fn of_notes(notes: &[Note], in_cluster: bool) -> Vec<Event> {
    let mut events = Vec::new();
    for note in notes {
        let Some(time) = Timestamp::from_micros(note.time_micros) else {
            continue;
        };
        let event = |kind| Event {
            time: Some(time),
            kind: Some(kind),
            sources: Some(vec![EventSource::Agent]),
            ..Event::default()
        };
        match &note.what {
            What::Started {
                version,
                kills,
                boot_id,
                uptime_micros,
            } => {
                let boot_id = Some(boot_id.clone()).filter(|id| !id.is_empty());
                if boot_id.is_some() {
                    let uptime = i64::try_from(*uptime_micros).unwrap_or(i64::MAX);
                    events.push(Event {
                        time: Some(time.plus_micros(-uptime)),
                        boot_id: boot_id.clone(),
                        ..event(EventKind::Boot)
                    });
                }
                events.push(Event {
                    agent_version: Some(version.clone()),
                    boot_id,
                    ..event(EventKind::AgentStarted)
                });
                if kills.is_blind() {
                    events.push(event(EventKind::OomUnseen));
                }
            }
            What::Stopping => events.push(event(EventKind::AgentStopped)),
            What::Paused => events.push(event(EventKind::Paused)),
            What::Dropped(dropped) => events.push(Event {
                samples: Some(dropped.samples),
                first_dropped: Timestamp::from_micros(dropped.first_micros),
                last_dropped: Timestamp::from_micros(dropped.last_micros),
                dropped_because: Some(if dropped.refused {
                    DropReason::Refused
                } else {
                    DropReason::BufferFull
                }),
                ..event(EventKind::SamplesDropped)
            }),
            What::ClockStep { micros } => events.push(Event {
                step_seconds: Some(*micros as f64 / 1e6),
                ..event(EventKind::ClockStep)
            }),
            What::Kill(kill) => events.push(of_kill(kill, event(EventKind::OomKill))),
            What::ContainerStarted(container) | What::ContainerEnded(container) => {
                if in_cluster && container.pod_uid.is_some() {
                    continue;
                }
                let kind = match note.what {
                    What::ContainerStarted(_) => EventKind::ContainerStarted,
                    _ => EventKind::ContainerEnded,
                };
                events.push(of_container(container, event(kind)));
            }
        }
    }
    events
}

fn of_kill(kill: &Kill, event: Event) -> Event {
    let source = match kill.source {
        KillSource::Log => EventSource::KernelLog,
        KillSource::Cgroup => EventSource::Cgroup,
        KillSource::Counter => EventSource::Vmstat,
    };
    let why_unknown = || {
        if kill.log_read {
            "the kernel's log does not name who was killed"
        } else {
            "the kernel's log, which names who was killed, may not be read on this node"
        }
    };
    Event {
        sources: Some(vec![source]),
        count: Some(kill.count).filter(|count| *count > 1),
        cgroup: kill.cgroup.clone(),
        pod_uid: kill.pod_uid.clone(),
        container_id: kill.container_id.clone(),
        victim: kill.victim.as_ref().map(|(pid, name)| Victim {
            pid: Some(*pid),
            name: Some(name.clone()),
        }),
        victim_unknown: kill.victim.is_none().then(|| why_unknown().to_owned()),
        memory_bytes: kill.memory_bytes,
        limit_bytes: kill.limit_bytes,
        within_seconds: (kill.within_micros > 0).then_some(kill.within_micros as f64 / 1e6),
        ..event
    }
}

fn of_container(container: &Container, event: Event) -> Event {
    Event {
        sources: Some(vec![EventSource::Cgroup]),
        container_id: Some(container.id.clone()),
        cgroup: Some(container.cgroup.clone()),
        pod_uid: container.pod_uid.clone(),
        ..event
    }
}

/// What happened to a pod's containers between two states of what is known of it.
pub fn of_pod(before: Option<&PodRecord>, after: &PodRecord) -> Vec<Event> {
    let mut events = Vec::new();
    for container in &after.containers {
        let before = before.and_then(|before| {
            let mut containers = before.containers.iter();
            containers.find(|known| known.name == container.name)
        });
        let known = |run: &ContainerRun| {
            let runs = &before?.runs;
            runs.iter()
                .find(|known| known.container_id == run.container_id)
        };
        for (number, run) in container.runs.iter().enumerate() {
            let event = |kind, time| Event {
                time: Some(time),
                kind: Some(kind),
                pod_uid: Some(after.uid.clone()),
                container: Some(container.name.clone()),
                container_id: Some(run.container_id.clone()),
                sources: Some(vec![EventSource::Kubernetes]),
                ..Event::default()
            };
            let known = known(run);
            if let Some(started) = run.started_at
                && known.is_none_or(|known| known.started_at.is_none())
            {
                events.push(started_event(
                    container,
                    number,
                    event(EventKind::ContainerStarted, started),
                ));
            }
            if let Some(ended) = run.ended_at
                && known.is_none_or(|known| known.ended_at.is_none())
            {
                events.push(Event {
                    exit_code: run.exit_code,
                    reason: run.reason.clone(),
                    ..event(EventKind::ContainerEnded, ended)
                });
                if run.reason.as_deref() == Some(OOM_KILLED) {
                    events.push(Event {
                        limit_bytes: container.memory_limit_bytes,
                        ..event(EventKind::OomKill, ended)
                    });
                }
            }
        }
    }
    events
}

/// The runs that are known are the latest: how many there were before says the count of restarts.
fn started_event(container: &ContainerRecord, number: usize, event: Event) -> Event {
    let later = container.runs.len() - 1 - number;
    let restarts = usize::try_from(container.restarts).unwrap_or(usize::MAX);
    let restarts = restarts.saturating_sub(later).max(number);
    if restarts == 0 {
        return event;
    }
    Event {
        kind: Some(EventKind::ContainerRestarted),
        restarts: u32::try_from(restarts).ok(),
        ..event
    }
}

/// What a controller says of a node's phase.
pub fn of_phase(change: PhaseChange) -> Event {
    Event {
        time: Some(change.time),
        kind: Some(EventKind::NodePhase),
        phase: Some(change.phase),
        reason: Some(change.reason),
        message: Some(change.message),
        sources: Some(vec![EventSource::Kubernetes]),
        ..Event::default()
    }
}

/// A node came or went, as this server knows.
pub fn of_node(kind: EventKind, time: Timestamp) -> Event {
    Event {
        time: Some(time),
        kind: Some(kind),
        sources: Some(vec![EventSource::Server]),
        ..Event::default()
    }
}

/// Where an event is to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Under its own key.
    New,
    /// Where the known one of this index stands.
    Known(usize),
}

/// What becomes of a kill that is told now, beside those that are known of that node and time: what is
/// to stand where, and nothing where one has moved to another place. Node and Kubernetes tell of one
/// kill each in its own time; it stands where the node's telling has its place, so that it is known
/// when that is sent again.
pub fn join_kill(new: &Event, known: &[Event]) -> Vec<(Place, Option<Event>)> {
    let near = |known: &Event| match (known.time, new.time) {
        (Some(before), Some(time)) => {
            let within = |event: &Event| event.within_seconds.unwrap_or_default();
            let most = SAME_KILL_SECONDS + within(known).max(within(new));
            before.seconds_since(time).abs() <= most
        }
        _ => false,
    };
    let find = |is_so: &dyn Fn(&Event) -> bool| {
        let known = known.iter().enumerate();
        let mut found = known.filter(|(_, known)| near(known) && is_so(known));
        found.next()
    };
    if is_of_kubernetes(new) {
        if let Some((at, of_node)) = find(&|known| !is_of_kubernetes(known) && is_same(known, new))
        {
            let merged = merge_kills(of_node.clone(), new.clone());
            return vec![(Place::Known(at), Some(merged))];
        }
        if let Some((at, unnamed)) = find(&is_unnamed) {
            let named = name_kill(unnamed, new);
            let left = unnamed.count.unwrap_or(1) - 1;
            if left == 0 {
                return vec![(Place::Known(at), Some(named))];
            }
            let rest = with_count(unnamed, left);
            let named = Event {
                time: new.time,
                ..named
            };
            return vec![(Place::Known(at), Some(rest)), (Place::New, Some(named))];
        }
        return vec![(Place::New, Some(new.clone()))];
    }
    if !is_unnamed(new) {
        let told = find(&|known| is_of_kubernetes_alone(known) && is_same(new, known));
        return match told {
            Some((at, told)) => vec![
                (Place::New, Some(merge_kills(new.clone(), told.clone()))),
                (Place::Known(at), None),
            ],
            None => vec![(Place::New, Some(new.clone()))],
        };
    }
    let mut left = new.count.unwrap_or(1);
    let mut joined = Vec::new();
    for (at, told) in known.iter().enumerate() {
        if left > 0 && near(told) && is_of_kubernetes_alone(told) {
            left -= 1;
            let named = Event {
                time: told.time,
                ..name_kill(new, told)
            };
            joined.push((Place::Known(at), Some(named)));
        }
    }
    if left > 0 {
        joined.push((Place::New, Some(with_count(new, left))));
    } else if let Some((Place::Known(at), Some(named))) = joined.pop() {
        let time = new.time;
        joined.push((Place::New, Some(Event { time, ..named })));
        joined.push((Place::Known(at), None));
    }
    joined
}

/// Whether Kubernetes has told of it.
fn is_of_kubernetes(event: &Event) -> bool {
    let sources = event.sources.as_deref().unwrap_or_default();
    sources.contains(&EventSource::Kubernetes)
}

fn is_of_kubernetes_alone(event: &Event) -> bool {
    event.sources.as_deref() == Some(&[EventSource::Kubernetes])
}

/// Whether the node knows that it was, and nothing else.
fn is_unnamed(event: &Event) -> bool {
    event.sources.as_deref() == Some(&[EventSource::Vmstat])
}

/// Whether both may be of one container. A static pod has another UID on its node, and a container has
/// one id.
fn is_same(a: &Event, b: &Event) -> bool {
    match (&a.container_id, &b.container_id) {
        (Some(a), Some(b)) => a == b,
        _ => a.pod_uid.is_some() && a.pod_uid == b.pod_uid,
    }
}

fn with_count(event: &Event, count: u64) -> Event {
    Event {
        count: Some(count).filter(|count| *count > 1),
        ..event.clone()
    }
}

/// A kill that the node counted, by what Kubernetes says of it.
fn name_kill(unnamed: &Event, told: &Event) -> Event {
    merge_kills(with_count(unnamed, 1), told.clone())
}

/// Two tellings of one kill as one: what the node saw, with what Kubernetes adds.
fn merge_kills(mut of_node: Event, of_kubernetes: Event) -> Event {
    of_node.pod_uid = of_kubernetes.pod_uid.or(of_node.pod_uid);
    of_node.container = of_node.container.or(of_kubernetes.container);
    of_node.container_id = of_node.container_id.or(of_kubernetes.container_id);
    of_node.limit_bytes = of_kubernetes.limit_bytes.or(of_node.limit_bytes);
    of_node.memory_bytes = of_node.memory_bytes.or(of_kubernetes.memory_bytes);
    let sources = of_node.sources.get_or_insert_default();
    for source in of_kubernetes.sources.into_iter().flatten() {
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    of_node
}

/// An event in a sentence.
pub fn message(event: &Event) -> String {
    let Some(kind) = event.kind else {
        return String::new();
    };
    match kind {
        EventKind::Boot => format!("the node started{}", end_before(event, "it went down")),
        EventKind::AgentStarted => {
            let version = event.agent_version.as_deref().unwrap_or_default();
            format!(
                "an agent {version} started{}",
                end_before(event, "the one before ended")
            )
        }
        EventKind::AgentStopped => "the agent was told to end".to_owned(),
        EventKind::Paused => "the agent was told to take no samples".to_owned(),
        EventKind::ClockStep => {
            let step = event.step_seconds.unwrap_or_default();
            let way = if step < 0.0 { "back" } else { "forward" };
            format!("the clock was set {way} by {:.3} s", step.abs())
        }
        EventKind::SamplesDropped => {
            let why = match event.dropped_because {
                Some(DropReason::Refused) => "the server refused them",
                Some(DropReason::BufferFull) | None => "the agent's buffer was full",
            };
            let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
            format!(
                "{} samples from {} to {} were dropped: {why}",
                event.samples.unwrap_or_default(),
                time(event.first_dropped).unwrap_or_default(),
                time(event.last_dropped).unwrap_or_default(),
            )
        }
        EventKind::OomKill => kill_message(event),
        EventKind::OomUnseen => "kills for memory go unseen on this node: neither control groups \
             nor the kernel's counter nor its log can be read"
            .to_owned(),
        EventKind::ContainerStarted => format!("{} started", container(event)),
        EventKind::ContainerRestarted => format!(
            "{} started again, for the {} time",
            container(event),
            ordinal(event.restarts.unwrap_or_default())
        ),
        EventKind::ContainerEnded => {
            let code = event
                .exit_code
                .map(|code| format!(" with exit code {code}"));
            let reason = event.reason.as_deref().map(|reason| format!(" ({reason})"));
            format!(
                "{} ended{}{}",
                container(event),
                code.unwrap_or_default(),
                reason.unwrap_or_default()
            )
        }
        EventKind::NodeRegistered => "the node registered".to_owned(),
        EventKind::NodeGone => "the node signed off".to_owned(),
        EventKind::NodePhase => {
            let said = event.message.clone().unwrap_or_default();
            let phase = event.phase.as_deref().unwrap_or_default();
            format!("{phase}: {said}")
        }
    }
}

fn end_before(event: &Event, what: &str) -> String {
    let Some(end) = event.previous_end else {
        return String::new();
    };
    match event.orderly {
        Some(true) => format!("; {what} in order at {end}"),
        Some(false) => format!("; {what} in disorder after {end}"),
        None => format!("; {what} after {end}"),
    }
}

fn container(event: &Event) -> String {
    match (&event.container, &event.container_id) {
        (Some(name), _) => format!("container {name}"),
        (None, Some(id)) => format!("container {}", short(id)),
        (None, None) => "a container".to_owned(),
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn kill_message(event: &Event) -> String {
    let victim = event.victim.as_ref().map(|victim| {
        let (name, pid) = (victim.name.clone().unwrap_or_default(), victim.pid);
        format!("{name} ({})", pid.unwrap_or_default())
    });
    let many = event.count.unwrap_or(1);
    let who = match victim {
        Some(victim) => format!("process {victim}"),
        None if many > 1 => format!("{many} processes"),
        None => "a process".to_owned(),
    };
    let place = match (&event.container, &event.pod, &event.cgroup) {
        (Some(container), ..) => format!(" of container {container}"),
        (None, Some(_), _) => " of the pod".to_owned(),
        (None, None, Some(cgroup)) => format!(" of {cgroup}"),
        (None, None, None) if event.pod_uid.is_some() => " of a pod".to_owned(),
        (None, None, None) => String::new(),
    };
    let with = event
        .memory_bytes
        .map(|bytes| format!(" with {}", mebibytes(bytes)));
    let limit = event
        .limit_bytes
        .map(|bytes| format!(", limit {}", mebibytes(bytes)));
    let was = if many > 1 && event.victim.is_none() {
        "were"
    } else {
        "was"
    };
    let unknown = event
        .victim_unknown
        .as_deref()
        .map(|why| format!("; {why}"));
    format!(
        "{who}{place} {was} killed for memory{}{}{}",
        with.unwrap_or_default(),
        limit.unwrap_or_default(),
        unknown.unwrap_or_default()
    )
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn ordinal(number: u32) -> String {
    let end = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{end}")
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use crate::sample::note::KillSources;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000).expect("a time")
    }

    fn note(seconds: i64, what: What) -> Note {
        Note {
            time_micros: seconds * 1_000_000,
            what,
        }
    }

    fn kinds(events: &[Event]) -> Vec<EventKind> {
        events.iter().filter_map(|event| event.kind).collect()
    }

    fn run(id: &str, started: i64, ended: Option<(i64, i32, &str)>) -> ContainerRun {
        ContainerRun {
            container_id: id.into(),
            started_at: Some(at(started)),
            ended_at: ended.map(|(time, ..)| at(time)),
            exit_code: ended.map(|(_, code, _)| code),
            reason: ended.map(|(_, _, reason)| reason.into()),
        }
    }

    fn pod(restarts: u32, runs: Vec<ContainerRun>) -> PodRecord {
        PodRecord {
            uid: "u".into(),
            containers: vec![ContainerRecord {
                name: "app".into(),
                restarts,
                memory_limit_bytes: Some(64 << 20),
                runs,
                ..ContainerRecord::default()
            }],
            ..PodRecord::default()
        }
    }

    #[test]
    fn an_agent_that_starts_tells_of_its_boot_and_of_what_it_cannot_see() {
        let started = |kills| {
            let what = What::Started {
                version: "1".to_owned(),
                kills,
                boot_id: "b".to_owned(),
                uptime_micros: 40_000_000,
            };
            of_notes(&[note(100, what)], false)
        };
        let blind = started(KillSources::default());
        assert_eq!(
            kinds(&blind),
            [
                EventKind::Boot,
                EventKind::AgentStarted,
                EventKind::OomUnseen
            ]
        );
        assert_eq!(blind[0].time, Some(at(60)));
        let seeing = started(KillSources {
            counter: true,
            ..KillSources::default()
        });
        assert_eq!(kinds(&seeing), [EventKind::Boot, EventKind::AgentStarted]);
    }

    #[test]
    fn containers_of_pods_are_the_controllers_to_tell_of() {
        let container = |pod_uid: Option<&str>| Container {
            id: "c".into(),
            cgroup: "/c".into(),
            pod_uid: pod_uid.map(str::to_owned),
        };
        let notes = [
            note(1, What::ContainerStarted(container(None))),
            note(1, What::ContainerEnded(container(Some("u")))),
        ];
        assert_eq!(of_notes(&notes, false).len(), 2);
        assert_eq!(
            kinds(&of_notes(&notes, true)),
            [EventKind::ContainerStarted]
        );
    }

    #[test]
    fn what_changed_of_a_pod_is_told_once() {
        let first = pod(0, vec![run("a", 10, None)]);
        assert_eq!(kinds(&of_pod(None, &first)), [EventKind::ContainerStarted]);
        assert_eq!(of_pod(Some(&first), &first), []);
        let second = pod(
            1,
            vec![
                run("a", 10, Some((20, 137, "OOMKilled"))),
                run("b", 21, None),
            ],
        );
        let events = of_pod(Some(&first), &second);
        assert_eq!(
            kinds(&events),
            [
                EventKind::ContainerEnded,
                EventKind::OomKill,
                EventKind::ContainerRestarted
            ]
        );
        assert_eq!(
            (
                events[0].exit_code,
                events[1].limit_bytes,
                events[2].restarts
            ),
            (Some(137), Some(64 << 20), Some(1))
        );
        // Of one that was seen late the count says which start it was.
        let late = of_pod(
            None,
            &pod(
                7,
                vec![run("x", 10, Some((20, 1, "Error"))), run("y", 21, None)],
            ),
        );
        let restarts: Vec<_> = late.iter().filter_map(|event| event.restarts).collect();
        assert_eq!(restarts, [6, 7]);
    }

    fn of_node(seconds: i64, pod_uid: Option<&str>, count: u64) -> Event {
        let source = match pod_uid {
            Some(_) => KillSource::Cgroup,
            None => KillSource::Counter,
        };
        let kill = Kill {
            source,
            count,
            cgroup: pod_uid.map(|uid| format!("/kubepods/pod{uid}")),
            pod_uid: pod_uid.map(str::to_owned),
            container_id: None,
            victim: None,
            memory_bytes: pod_uid.map(|_| 60 << 20),
            limit_bytes: None,
            within_micros: 10_000_000,
            log_read: false,
        };
        of_notes(&[note(seconds, What::Kill(kill))], true).remove(0)
    }

    fn of_kubernetes(seconds: i64, container: &str) -> Event {
        let run = run(container, 10, Some((seconds, 137, "OOMKilled")));
        let events = of_pod(None, &pod(1, vec![run]));
        let mut kills = events.into_iter();
        let kill = kills.find(|event| event.kind == Some(EventKind::OomKill));
        kill.expect("a kill")
    }

    /// Seconds, number of sources, and count.
    type Short = (i64, usize, u64);

    fn joined(new: &Event, known: &[Event]) -> Vec<(Place, Option<Short>)> {
        let joined = join_kill(new, known).into_iter();
        let short = |event: Event| {
            let seconds = event.time.expect("a time").second();
            let sources = event.sources.map_or(0, |sources| sources.len());
            (seconds, sources, event.count.unwrap_or(1))
        };
        joined
            .map(|(place, event)| (place, event.map(short)))
            .collect()
    }

    #[test]
    fn two_tellings_of_one_kill_are_one_at_the_place_of_the_nodes() {
        let (node, told) = (of_node(19, Some("u"), 1), of_kubernetes(20, "a"));
        let at_known = [(Place::Known(0), Some((19, 2, 1)))];
        assert_eq!(joined(&told, from_ref(&node)), at_known);
        let moved = [(Place::New, Some((19, 2, 1))), (Place::Known(0), None)];
        assert_eq!(joined(&node, from_ref(&told)), moved);
        let merged = join_kill(&told, from_ref(&node)).remove(0).1.expect("one");
        assert_eq!(
            (
                merged.container.as_deref(),
                merged.limit_bytes,
                merged.memory_bytes
            ),
            (Some("app"), Some(64 << 20), Some(60 << 20))
        );
        assert_eq!(
            message(&merged),
            "a process of container app was killed for memory with 60.0 MiB, limit 64.0 MiB; the \
             kernel's log, which names who was killed, may not be read on this node"
        );
        // Others are not one: of another time, another pod, or told already.
        for known in [
            of_node(200, Some("u"), 1),
            of_node(19, Some("v"), 1),
            merged,
        ] {
            assert_eq!(joined(&told, &[known]), [(Place::New, Some((20, 1, 1)))]);
        }
        assert_eq!(
            joined(&node, from_ref(&node)),
            [(Place::New, Some((19, 1, 1)))]
        );
    }

    #[test]
    fn a_counter_that_is_read_each_hour_tells_of_the_same_kill() {
        let told = of_kubernetes(20, "a");
        let mut node = of_node(2000, Some("u"), 1);
        assert_eq!(
            joined(&node, from_ref(&told)),
            [(Place::New, Some((2000, 1, 1)))]
        );
        node.within_seconds = Some(3600.0);
        assert_eq!(joined(&node, from_ref(&told)).len(), 2);
        // A static pod is called by another UID on its node; its container is not.
        node.pod_uid = Some("hash".to_owned());
        assert_eq!(joined(&node, from_ref(&told)).len(), 1);
        node.container_id = Some("a".to_owned());
        assert_eq!(joined(&node, from_ref(&told)).len(), 2);
        let merged = join_kill(&node, &[told]).remove(0).1.expect("one");
        assert_eq!(merged.pod_uid.as_deref(), Some("u"));
    }

    #[test]
    fn what_the_node_only_counted_is_named_by_kubernetes() {
        let (one, two) = (of_node(19, None, 1), of_node(19, None, 2));
        let (first, second) = (of_kubernetes(20, "a"), of_kubernetes(21, "b"));
        assert_eq!(
            joined(&first, from_ref(&one)),
            [(Place::Known(0), Some((19, 2, 1)))]
        );
        let named = join_kill(&first, from_ref(&one)).remove(0).1.expect("one");
        assert_eq!(
            (named.pod_uid.as_deref(), named.container.as_deref()),
            (Some("u"), Some("app"))
        );
        assert_eq!(
            joined(&first, from_ref(&two)),
            [
                (Place::Known(0), Some((19, 1, 1))),
                (Place::New, Some((20, 2, 1)))
            ]
        );
        // The other way around, the last of them stands where the node's telling is known again.
        let known = [first, second];
        assert_eq!(
            joined(&two, &known),
            [
                (Place::Known(0), Some((20, 2, 1))),
                (Place::New, Some((19, 2, 1))),
                (Place::Known(1), None),
            ]
        );
        let three = of_node(19, None, 3);
        assert_eq!(
            joined(&three, &known).last(),
            Some(&(Place::New, Some((19, 1, 1))))
        );
        assert_eq!(
            joined(&one, &[of_kubernetes(200, "a")]),
            [(Place::New, Some((19, 1, 1)))]
        );
    }

    #[test]
    fn every_kind_has_a_sentence() {
        for kind in EventKind::ALL {
            let event = Event {
                kind: Some(kind),
                ..Event::default()
            };
            assert!(!message(&event).is_empty(), "{kind:?}");
            assert_eq!(EventKind::of_name(kind.name()), Some(kind));
            assert_eq!(serde_json::to_value(kind).expect("a text"), kind.name());
        }
        let boot = Event {
            kind: Some(EventKind::Boot),
            previous_end: Some(at(0)),
            orderly: Some(false),
            ..Event::default()
        };
        assert_eq!(
            message(&boot),
            "the node started; it went down in disorder after 1970-01-01T00:00:00Z"
        );
    }
}
