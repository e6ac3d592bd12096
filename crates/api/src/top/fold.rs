//! What nodes tell, put together by what it has in common.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use nodestats_core::rollup::{CPU_UNITS, Peak};
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{PodRecord, TopRow};

use super::rank;
use super::read::{Entry, Told};
use crate::history::buckets::Levels;
use crate::query::{By, Ranking, Resource};
use crate::{ApiError, App};

/// Figures that add up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    pub(super) count: u64,
    pub(super) cpu_percent: f64,
    pub(super) cpu_seconds: Option<f64>,
    pub(super) memory: f64,
    pub(super) read: Option<f64>,
    pub(super) written: Option<f64>,
}

impl Sum {
    /// Of all processes of a minute.
    pub(super) fn of_peak(peak: &Peak) -> Self {
        let [cpu, memory, read, written] = peak.all;
        Self {
            count: peak.processes,
            cpu_percent: cpu as f64 * 100.0 / CPU_UNITS,
            cpu_seconds: None,
            memory: memory as f64,
            read: Some(read as f64),
            written: Some(written as f64),
        }
    }

    /// Of a row.
    fn of_row(row: &TopRow) -> Self {
        Self {
            count: row.count.unwrap_or_default(),
            cpu_percent: row.cpu_percent.unwrap_or_default(),
            cpu_seconds: row.cpu_seconds,
            memory: row.memory_bytes.unwrap_or_default() as f64,
            read: row.read_bytes_per_second,
            written: row.write_bytes_per_second,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        let both = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(|a, b| a + b);
        self.count += other.count;
        self.cpu_percent += other.cpu_percent;
        self.cpu_seconds = both(self.cpu_seconds, other.cpu_seconds);
        self.memory += other.memory;
        self.read = both(self.read, other.read);
        self.written = both(self.written, other.written);
    }

    /// Says it of a row.
    pub(super) fn fill(&self, row: &mut TopRow) {
        let rounded = |value: f64| (value * 100.0).round() / 100.0;
        row.count = Some(self.count);
        row.cpu_percent = Some(rounded(self.cpu_percent));
        row.cpu_seconds = self.cpu_seconds.map(rounded);
        row.memory_bytes = Some(self.memory.round() as u64);
        row.read_bytes_per_second = self.read.map(rounded);
        row.write_bytes_per_second = self.written.map(rounded);
    }
}

/// Pods that were looked up, by their UIDs.
pub(super) type Pods = HashMap<String, Option<PodRecord>>;

/// Looks up the pods of what a node tells.
async fn look_up(app: &App, told: &Told, pods: &mut Pods) -> Result<(), ApiError> {
    let uids = told
        .entries
        .iter()
        .filter_map(|entry| entry.row.pod.as_deref());
    // A pod has several containers.
    let uids: BTreeSet<&str> = uids.filter(|uid| !pods.contains_key(*uid)).collect();
    if uids.is_empty() {
        return Ok(());
    }
    let uids = Vec::from_iter(uids);
    let mut known = app.store.pods_of(&uids).await?;
    for uid in uids {
        pods.insert(uid.to_owned(), known.remove(uid));
    }
    Ok(())
}

/// What a row has of a resource, as far as rows tell it apart: CPU in hundredths of a percent, memory in bytes,
/// input and output in hundredths of a byte a second.
pub(super) fn units(row: &TopRow, resource: Resource) -> u64 {
    let hundredths = |value: Option<f64>| (value.unwrap_or_default() * 100.0).round() as u64;
    match resource {
        Resource::Cpu => hundredths(row.cpu_percent),
        Resource::Memory => row.memory_bytes.unwrap_or_default(),
        Resource::Io => hundredths(row.read_bytes_per_second)
            .saturating_add(hundredths(row.write_bytes_per_second)),
    }
}

/// Rows under way.
#[derive(Debug)]
pub(super) struct Fold {
    ranking: Ranking,
    /// Those that have a row; without it the highest.
    only: Option<Arc<HashSet<String>>>,
    /// Of processes or nodes: the highest so far.
    rows: Vec<TopRow>,
    /// Of what they have in common: all.
    groups: HashMap<String, Group>,
    /// All that has no row.
    others: Sum,
    nodes: usize,
    /// How many rows there would be.
    total: usize,
    levels: Levels,
}

#[derive(Debug)]
struct Group {
    row: TopRow,
    sum: Sum,
    /// The last node that told of it, and how many did.
    node: String,
    nodes: usize,
}

/// What was found.
pub(super) struct Found {
    pub(super) rows: Vec<TopRow>,
    pub(super) others: Sum,
    pub(super) total: usize,
    pub(super) nodes: usize,
}

impl Fold {
    pub(super) fn new(ranking: Ranking) -> Self {
        Self {
            ranking,
            only: None,
            rows: Vec::new(),
            groups: HashMap::new(),
            others: Sum::default(),
            nodes: 0,
            total: 0,
            levels: Levels::default(),
        }
    }

    /// With rows for these alone.
    pub(super) fn only(ranking: Ranking, keys: Arc<HashSet<String>>) -> Self {
        Self {
            only: Some(keys),
            ..Self::new(ranking)
        }
    }

    /// Which levels answered.
    pub(super) fn levels(&self) -> Levels {
        self.levels
    }

    /// Whether no row of this node or a later one by name, and with at most so many [`units`], can be among the
    /// highest any more.
    pub(super) fn is_settled(&self, highest: u64, node: &str) -> bool {
        let last = self.rows.get(self.ranking.limit - 1);
        last.is_some_and(|last| {
            let own = units(last, self.ranking.sort);
            own > highest || own == highest && last.node.as_deref() < Some(node)
        })
    }

    /// A node that was passed over: it has no row among the highest.
    pub(super) fn pass_over(&mut self, all: &Sum) {
        self.nodes += 1;
        self.total += usize::try_from(all.count).unwrap_or(usize::MAX);
        self.others.add(all);
    }

    /// Adds what a node tells.
    pub(super) async fn add(
        &mut self,
        app: &App,
        told: Told,
        pods: &mut Pods,
    ) -> Result<(), ApiError> {
        self.nodes += 1;
        self.levels.add(told.levels);
        self.others.add(&told.others);
        self.total += usize::try_from(told.others.count).unwrap_or(usize::MAX);
        let by = self.ranking.by;
        if matches!(by, By::Pod | By::Container | By::Workload) {
            look_up(app, &told, pods).await?;
        }
        for Entry { mut row, sum } in told.entries {
            if by == By::Process || by == By::Node {
                self.total += 1;
                if self.has_row(key(by, &row).as_deref()) {
                    sum.fill(&mut row);
                    self.rows.push(row);
                } else {
                    self.others.add(&sum);
                }
                continue;
            }
            let pod = row.pod.as_ref().and_then(|uid| pods.get(uid));
            if let Some(Some(pod)) = pod {
                name(&mut row, pod);
                row.name = row.name.map(|id| match pod.container(&id) {
                    Some(container) => container.name.clone(),
                    None => id,
                });
            }
            match key(by, &row) {
                Some(key) if self.has_row(Some(&key)) => self.add_to_group(key, by, row, &sum),
                _ => self.others.add(&sum),
            }
        }
        self.cut();
        Ok(())
    }

    fn has_row(&self, key: Option<&str>) -> bool {
        let Some(only) = &self.only else { return true };
        key.is_some_and(|key| only.contains(key))
    }

    fn add_to_group(&mut self, key: String, by: By, mut row: TopRow, sum: &Sum) {
        let node = row.node.clone().unwrap_or_default();
        // What tells members apart is not said of all.
        match by {
            By::Name => (row.pid, row.user, row.command_line) = (None, None, None),
            By::User => (row.pid, row.name, row.command_line) = (None, None, None),
            By::Workload if row.workload.is_some() => row.pod = None,
            _ => {}
        }
        if matches!(by, By::Name | By::User) {
            (row.started_at, row.pod) = (None, None);
        }
        let group = self.groups.entry(key).or_insert_with(|| Group {
            row,
            sum: Sum::default(),
            node: String::new(),
            nodes: 0,
        });
        group.sum.add(sum);
        if group.node != node {
            group.nodes += 1;
            group.node = node;
        }
        if group.nodes > 1 {
            group.row.node = None;
        }
    }

    /// Keeps the highest alone: what is below them counts in the rest.
    fn cut(&mut self) {
        let ranking = self.ranking;
        self.rows.sort_by(|a, b| rank(a, b, ranking));
        let length = self.rows.len();
        for row in self.rows.drain(ranking.limit.min(length)..) {
            self.others.add(&Sum::of_row(&row));
        }
    }

    /// The highest, all others together, and how many there were.
    pub(super) fn finish(mut self) -> Found {
        let is_grouped = !matches!(self.ranking.by, By::Process | By::Node);
        for group in std::mem::take(&mut self.groups).into_values() {
            let mut row = group.row;
            group.sum.fill(&mut row);
            row.nodes = Some(group.nodes);
            self.rows.push(row);
            self.total += 1;
        }
        self.cut();
        if !is_grouped {
            for row in &mut self.rows {
                row.count = None;
            }
        }
        Found {
            rows: self.rows,
            others: self.others,
            total: self.total,
            nodes: self.nodes,
        }
    }
}

/// Says which pod a row is of.
pub(super) fn name(row: &mut TopRow, pod: &PodRecord) {
    row.namespace = Some(pod.namespace.clone());
    row.pod = Some(pod.name.clone());
    row.workload.clone_from(&pod.workload);
}

/// What a row is of: its process or node, or what rows of a group have in common.
pub(super) fn key(by: By, row: &TopRow) -> Option<String> {
    let namespace = row.namespace.as_deref().unwrap_or_default();
    let pod = row.pod.as_deref().unwrap_or_default();
    match by {
        By::Process => {
            let node = row.node.as_deref().unwrap_or_default();
            let start = row.started_at.map(Timestamp::micros);
            Some(format!("{node}/{:?}/{start:?}", row.pid))
        }
        By::Node => row.node.clone(),
        By::Name => row.name.clone(),
        By::User => row.user.clone(),
        By::Pod => Some(format!("{namespace}/{pod}")),
        By::Container => {
            let name = row.name.as_deref().unwrap_or_default();
            Some(format!("{namespace}/{pod}/{name}"))
        }
        By::Workload => Some(match &row.workload {
            Some(owner) => format!("{namespace}/{}/{}", owner.kind, owner.name),
            // A pod that nothing controls is what was deployed.
            None => format!("{namespace}//{pod}"),
        }),
    }
}
