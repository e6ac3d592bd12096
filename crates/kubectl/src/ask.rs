//! What is asked of the server.

use jiff::tz::TimeZone;
use nodestats_wire::{routes, time};

use crate::{Aggregate, Events, Get, PodState, Ranked, Resource, Sort, Top, times};

/// Which shape the answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nodes,
    Node,
    Cpu,
    Memory,
    Disk,
    Network,
    Units,
    Pods,
    Processes,
    Process,
    PodList,
    Pod,
    PodCpu,
    PodMemory,
    PodDisk,
    Events,
    Top,
}

/// Whether this is about pods and not about nodes.
pub(crate) fn is_about_pods(get: &Get) -> bool {
    matches!(get.node.as_deref(), Some("pods" | "pod" | "po"))
}

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) kind: Kind,
    pub(crate) path: String,
    pub(crate) query: Vec<(&'static str, String)>,
    /// The answer is keyed by time.
    pub(crate) history: bool,
}

impl Question {
    /// What `get` means to a person in `zone`.
    ///
    /// `namespace` is that of pods; `None` for all of them.
    pub(crate) fn new(get: &Get, namespace: Option<&str>, zone: &TimeZone) -> anyhow::Result<Self> {
        if is_about_pods(get) {
            return Self::about_pods(get, namespace, zone);
        }
        if let Some(name) = &get.name {
            anyhow::bail!("{name:?} is one name too many\nhint: get pod {name} asks about a pod");
        }
        let pods_alone = [
            (get.namespace.is_some(), "--namespace"),
            (get.all_namespaces, "--all-namespaces"),
            (get.of_node.is_some(), "--node"),
            (get.selector.is_some(), "--selector"),
            (get.state.is_some(), "--state"),
            (get.container.is_some(), "--container"),
        ];
        if let Some((_, option)) = pods_alone.into_iter().find(|(given, _)| *given) {
            anyhow::bail!("{option} goes with get pods and get pod NAME");
        }
        let full = ("view", "full".to_owned());
        let Some(node) = &get.node else {
            let (kind, path) = (Kind::Nodes, routes::NODES.to_owned());
            return Ok(Self {
                kind,
                path,
                query: vec![full],
                history: false,
            });
        };
        let (kind, suffix) = match get {
            Get { cpu: true, .. } => (Kind::Cpu, "/cpu".to_owned()),
            Get { memory: true, .. } => (Kind::Memory, "/memory".to_owned()),
            Get { disk: true, .. } => (Kind::Disk, "/disk".to_owned()),
            Get { network: true, .. } => (Kind::Network, "/network".to_owned()),
            Get { units: true, .. } => (Kind::Units, "/units".to_owned()),
            Get { pods: true, .. } => (Kind::Pods, "/pods".to_owned()),
            Get {
                processes: true, ..
            } => (Kind::Processes, "/proc".to_owned()),
            Get { pid: Some(pid), .. } => (Kind::Process, format!("/proc/{pid}")),
            _ => (Kind::Node, String::new()),
        };
        let (mut query, history) = span(get, zone)?;
        if kind == Kind::Processes {
            query.extend(rows(get));
        }
        Ok(Self {
            kind,
            path: format!("{}{suffix}", routes::node(node)),
            query,
            history,
        })
    }

    /// What happened; `namespace` is that of the pod.
    pub(crate) fn about_events(
        events: &Events,
        namespace: Option<&str>,
        zone: &TimeZone,
    ) -> anyhow::Result<Self> {
        let path = match (&events.pod, &events.node) {
            (Some(pod), _) => {
                let Some(namespace) = namespace else {
                    anyhow::bail!(NAMESPACE_MISSING);
                };
                routes::events_of_pod(namespace, pod)
            }
            (None, Some(node)) => routes::events_of_node(node),
            (None, None) => routes::EVENTS.to_owned(),
        };
        let mut query = times_of(events.from.as_deref(), events.to.as_deref(), zone)?;
        query.extend(events.container.clone().map(|name| ("container", name)));
        query.extend(events.kind.clone().map(|kind| ("kind", kind)));
        query.push(("limit", events.limit.to_string()));
        Ok(Self {
            kind: Kind::Events,
            path,
            query,
            history: false,
        })
    }

    /// What uses most.
    pub(crate) fn about_top(top: &Top, zone: &TimeZone) -> anyhow::Result<Self> {
        let by = match top.what {
            Ranked::Processes => "process",
            Ranked::Names => "name",
            Ranked::Users => "user",
            Ranked::Pods => "pod",
            Ranked::Containers => "container",
            Ranked::Workloads => "workload",
            Ranked::Nodes => "node",
        };
        let sort = match top.sort {
            Resource::Cpu => "cpu",
            Resource::Memory => "memory",
            Resource::Io => "io",
        };
        let mut query = vec![
            ("by", by.to_owned()),
            ("sort", sort.to_owned()),
            ("limit", top.limit.to_string()),
        ];
        query.extend(top.node.clone().map(|node| ("node", node)));
        query.extend(moment(top.at.as_deref(), zone)?);
        let times = times_of(top.from.as_deref(), top.to.as_deref(), zone)?;
        let is_span = !times.is_empty();
        query.extend(times);
        query.extend(step(top.step.as_deref(), is_span)?);
        Ok(Self {
            kind: Kind::Top,
            path: routes::TOP.to_owned(),
            query,
            history: top.step.is_some(),
        })
    }

    fn about_pods(get: &Get, namespace: Option<&str>, zone: &TimeZone) -> anyhow::Result<Self> {
        let (mut query, mut history) = span(get, zone)?;
        let Some(name) = &get.name else {
            let one = [get.cpu, get.memory, get.disk, get.network, get.processes];
            anyhow::ensure!(
                !one.contains(&true) && get.container.is_none() && get.step.is_none(),
                "the details are of one pod: get pod NAME"
            );
            if !history {
                query.push(("view", "full".to_owned()));
            }
            let state = get.state.map(|state| match state {
                PodState::Live => "live",
                PodState::Gone => "gone",
                PodState::All => "all",
            });
            query.extend(state.map(|state| ("state", state.to_owned())));
            query.extend(get.of_node.clone().map(|node| ("node", node)));
            query.extend(get.selector.clone().map(|selector| ("selector", selector)));
            return Ok(Self {
                kind: Kind::PodList,
                path: namespace.map_or_else(|| routes::PODS.to_owned(), routes::pods_of),
                query,
                history: false,
            });
        };
        anyhow::ensure!(
            get.of_node.is_none() && get.selector.is_none() && get.state.is_none(),
            "--node, --selector and --state go with get pods"
        );
        let Some(namespace) = namespace else {
            anyhow::bail!(NAMESPACE_MISSING);
        };
        anyhow::ensure!(
            !get.units && !get.pods && get.pid.is_none(),
            "a pod has --cpu, --memory, --disk, --network and --processes"
        );
        let (kind, suffix) = match get {
            Get { cpu: true, .. } => (Kind::PodCpu, "/cpu"),
            Get { memory: true, .. } => (Kind::PodMemory, "/memory"),
            Get { disk: true, .. } => (Kind::PodDisk, "/disk"),
            Get { network: true, .. } => (Kind::Network, "/network"),
            Get {
                processes: true, ..
            } => (Kind::Processes, "/proc"),
            _ => (Kind::Pod, ""),
        };
        if kind == Kind::Processes {
            query.extend(rows(get));
        }
        if kind == Kind::Pod {
            anyhow::ensure!(!history, "--from and --to go with a detail, such as --cpu");
            history = false;
        }
        query.extend(get.container.clone().map(|name| ("container", name)));
        Ok(Self {
            kind,
            path: format!("{}{suffix}", routes::pod(namespace, name)),
            query,
            history,
        })
    }
}

const NAMESPACE_MISSING: &str = "a pod's name is one within its namespace: -n says which";

/// Begin and end of a span, as the server takes them.
fn times_of(
    from: Option<&str>,
    to: Option<&str>,
    zone: &TimeZone,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut query = Vec::new();
    for (name, text) in [("from", from), ("to", to)] {
        if let Some(text) = text {
            query.push((name, times::parse(text, zone)?.to_string()));
        }
    }
    Ok(query)
}

/// A moment, as the server takes it.
fn moment(at: Option<&str>, zone: &TimeZone) -> anyhow::Result<Option<(&'static str, String)>> {
    let at = at.map(|at| times::parse(at, zone)).transpose()?;
    Ok(at.map(|at| ("at", at.to_string())))
}

/// The span that is asked about, and whether there is one.
fn span(get: &Get, zone: &TimeZone) -> anyhow::Result<(Vec<(&'static str, String)>, bool)> {
    let mut query = times_of(get.from.as_deref(), get.to.as_deref(), zone)?;
    let history = !query.is_empty();
    query.extend(moment(get.at.as_deref(), zone)?);
    query.extend(step(get.step.as_deref(), history)?);
    let aggregate = get.aggregate.map(|aggregate| match aggregate {
        Aggregate::Mean => "mean",
        Aggregate::Min => "min",
        Aggregate::Max => "max",
        Aggregate::Last => "last",
        Aggregate::P50 => "p50",
        Aggregate::P90 => "p90",
        Aggregate::P95 => "p95",
        Aggregate::P99 => "p99",
    });
    query.extend(aggregate.map(|aggregate| ("aggregate", aggregate.to_owned())));
    Ok((query, history))
}

/// A length of steps, as the server takes it.
fn step(step: Option<&str>, is_span: bool) -> anyhow::Result<Option<(&'static str, String)>> {
    let Some(step) = step else { return Ok(None) };
    if step != "auto" {
        time::parse_span(step)?;
    }
    anyhow::ensure!(is_span, "--step goes with --from or --to");
    Ok(Some(("step", step.to_owned())))
}

/// How rows of processes are answered.
fn rows(get: &Get) -> impl Iterator<Item = (&'static str, String)> {
    let sort = match get.sort.unwrap_or(Sort::Cpu) {
        Sort::Pid => "pid",
        Sort::Cpu => "cpu",
        Sort::Memory => "memory",
        Sort::Read => "read",
        Sort::Write => "write",
    };
    let limit = get.limit.map(|limit| ("limit", limit.to_string()));
    let rows = [("view", "full".to_owned()), ("sort", sort.to_owned())];
    rows.into_iter().chain(limit)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{Arguments, Command};

    fn question(line: &str) -> Question {
        let words = ["kubectl-nodestats", "get"]
            .into_iter()
            .chain(line.split(' '));
        let Command::Get(get) = Arguments::try_parse_from(words).expect(line).command else {
            panic!("{line} is no get");
        };
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        Question::new(&get, get.namespace.as_deref(), &zone).expect(line)
    }

    #[test]
    fn pods_are_asked_about_by_namespace_and_name() {
        let list = question("pods -n shop -l app=web --node web-1");
        assert_eq!(
            (list.kind, &*list.path),
            (Kind::PodList, "/namespaces/shop/pods")
        );
        assert!(list.query.contains(&("selector", "app=web".to_owned())));
        assert!(list.query.contains(&("node", "web-1".to_owned())));
        assert_eq!(question("pods -A --state gone").path, "/pods");
        let cpu = question("pod web-x -n shop --cpu -c app --from 2026-03-01");
        assert_eq!(cpu.path, "/namespaces/shop/pods/web-x/cpu");
        assert!(cpu.history && cpu.query.contains(&("container", "app".to_owned())));
        assert_eq!(question("pod x -n a --processes").kind, Kind::Processes);
        for line in [
            "pods --cpu",
            "pod x --cpu",
            "pod x -n a -l b",
            "pod x -n a --pid 1",
            "node-1 -n a",
            "node-1 extra",
        ] {
            let words = ["kubectl-nodestats", "get"]
                .into_iter()
                .chain(line.split(' '));
            let Command::Get(get) = Arguments::try_parse_from(words).expect(line).command else {
                panic!("{line} is no get");
            };
            let asked = Question::new(&get, get.namespace.as_deref(), &TimeZone::UTC);
            assert!(asked.is_err(), "{line}");
        }
    }

    #[test]
    fn events_are_of_all_nodes_of_one_or_of_a_pod() {
        let asked = |line: &str| {
            let words = ["kubectl-nodestats", "events"].into_iter();
            let words = words.chain(line.split_whitespace());
            let Command::Events(events) = Arguments::try_parse_from(words).ok()?.command else {
                return None;
            };
            Question::about_events(&events, events.namespace.as_deref(), &TimeZone::UTC).ok()
        };
        let path = |line| asked(line).map(|question| question.path);
        assert_eq!(path("").as_deref(), Some("/events"));
        assert_eq!(path("web-1").as_deref(), Some("/nodes/web-1/events"));
        assert_eq!(
            path("--pod x -n shop -c app").as_deref(),
            Some("/namespaces/shop/pods/x/events")
        );
        let question = asked("--kind boot --from 2026-03-01 --limit 5").expect("a question");
        let from = ("from", "2026-03-01T00:00:00Z".to_owned());
        assert_eq!(
            question.query,
            [from, ("kind", "boot".to_owned()), ("limit", "5".to_owned())]
        );
        for line in [
            "--pod x",
            "web-1 --pod x -n a",
            "-n a",
            "-c app",
            "--limit 0",
            "--from yesterday",
        ] {
            assert_eq!(asked(line), None, "{line}");
        }
    }

    #[test]
    fn what_uses_most_is_of_all_nodes_or_of_one_now_or_then() {
        let asked = |line: &str| {
            let words = ["kubectl-nodestats", "top"].into_iter();
            let words = words.chain(line.split_whitespace());
            let Command::Top(top) = Arguments::try_parse_from(words).ok()?.command else {
                return None;
            };
            Question::about_top(&top, &TimeZone::UTC).ok()
        };
        let query = |line| asked(line).map(|question| question.query);
        let begin = [
            ("by", "process".to_owned()),
            ("sort", "cpu".to_owned()),
            ("limit", "20".to_owned()),
        ];
        assert_eq!(query(""), Some(begin.to_vec()));
        let at = query("pods --sort memory --at 2026-03-01T03:12 --node a").expect("a question");
        assert!(at.contains(&("by", "pod".to_owned())) && at.contains(&("node", "a".to_owned())));
        assert!(at.contains(&("at", "2026-03-01T03:12:00Z".to_owned())));
        let span = query("workloads --from 2026-03-01 --to 2026-03-08").expect("a question");
        assert!(span.contains(&("from", "2026-03-01T00:00:00Z".to_owned())));
        let steps = asked("workloads --from 2026-02-01 --step 1d").expect("a question");
        assert!(steps.history && steps.query.contains(&("step", "1d".to_owned())));
        for line in [
            "--step 1d",
            "threads",
            "--at now --from 2026-03-01",
            "--limit 0",
            "--sort pid",
        ] {
            assert_eq!(asked(line), None, "{line}");
        }
        let at = question("a --processes --at 2026-03-01T03:12");
        assert!(!at.history && at.query.iter().any(|(name, _)| *name == "at"));
        let step = question("a --cpu --from 2026-03-01 --step auto --aggregate max");
        assert!(step.query.contains(&("aggregate", "max".to_owned())));
    }

    #[test]
    fn flags_become_paths_and_times_become_utc() {
        let cpu = question("192.168.2.10 --cpu --from 2026-03-01T13:45 --step 5m");
        assert_eq!(cpu.path, "/nodes/192.168.2.10/cpu");
        assert_eq!(cpu.query[0], ("from", "2026-03-01T11:45:00Z".to_owned()));
        assert!(cpu.history);
        let processes = question("a --processes --limit 5");
        assert_eq!(processes.path, "/nodes/a/proc");
        assert!(processes.query.contains(&("sort", "cpu".to_owned())));
        assert_eq!(question("a --pid 0").path, "/nodes/a/proc/0");
        assert_eq!(question("a --units").path, "/nodes/a/units");
        assert_eq!(question("a --pods").path, "/nodes/a/pods");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "--cpu",
            "a --cpu --memory",
            "a --sort cpu",
            "a --limit 5",
            "a --processes --limit 0",
        ] {
            let words = ["kubectl-nodestats", "get"]
                .into_iter()
                .chain(line.split(' '));
            assert!(Arguments::try_parse_from(words).is_err(), "{line}");
        }
    }
}
