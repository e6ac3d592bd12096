//! Query strings: what may stand in them, and what they mean together.

use std::time::Duration;

use nodestats_core::life::When;
use nodestats_core::rates::Aggregate;
use nodestats_wire::v1::{Event, EventKind};
use nodestats_wire::{Timestamp, time};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::ApiError;

/// Which samples of a node are asked for.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpanQuery {
    /// Begin of a span of history, included: `YYYY-MM-DD HH:MM:SS` (UTC), RFC 3339, or seconds
    /// since 1970. Without it the span begins with the first sample.
    from: Option<String>,
    /// End of the span, included. Without it the span ends now.
    to: Option<String>,
    /// A moment: the last sample at or before it is answered.
    at: Option<String>,
    /// Answers one entry for each step, such as `60s`, keyed by the begin of the step: rates over
    /// the whole step, gauges as they were at its last sample. `auto` is a step of which the span has
    /// about 500. Steps of whole minutes are answered from rollups, and the span is rounded out to them.
    step: Option<String>,
    /// What stands for a step: `mean`, `min`, `max` or `last` of rates between two samples and of gauges; of
    /// CPU and memory of nodes, pods and units also `p50`, `p90`, `p95` or `p99`, within a twentieth of the value.
    aggregate: Option<String>,
    /// At most so many entries of history, 1 to 10000; `Link` leads on to the next.
    limit: Option<String>,
}

/// Which processes are asked for, and how.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProcessQuery {
    /// Begin of a span of history, included.
    from: Option<String>,
    /// End of the span, included.
    to: Option<String>,
    /// A moment: the table as it was then.
    at: Option<String>,
    /// One entry for each step, or `auto`.
    step: Option<String>,
    /// What stands for a step: `mean`, `min`, `max` or `last`.
    aggregate: Option<String>,
    /// `full` answers rows instead of process ids.
    view: Option<String>,
    /// Order of the rows: `pid`, or `cpu`, `memory`, `read` or `write`, the highest first. With `from`
    /// and `to` and without `view`: what used most of `cpu`, `memory` or `io` in the span is ranked.
    sort: Option<String>,
    /// Ranks what processes have in common: `name`, `user`, `pod`, `container` or `workload`.
    group: Option<String>,
    /// At most so many rows of each table, 1 to 10000.
    limit: Option<String>,
}

/// What used most, and when.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TopQuery {
    /// What is ranked: `process`, all processes of one `name` or one `user`, or `pod`, `container`,
    /// `workload` or `node`. Without it `process`.
    by: Option<String>,
    /// By what: `cpu`, `memory` or `io`. Without it `cpu`.
    sort: Option<String>,
    /// At most so many rows, 1 to 1000. Without it 20.
    limit: Option<String>,
    /// On this node alone: its name, its address or its UID.
    pub(crate) node: Option<String>,
    /// A moment: each node's last sample at or before it. Without it and a span: now.
    at: Option<String>,
    /// Begin of a span.
    from: Option<String>,
    /// End of the span. Without it now.
    to: Option<String>,
    /// With a span: what those that used most in all of it used in each step, such as `1h`, keyed by the
    /// begin of the step. `auto` is a length of which the span has about 500.
    step: Option<String>,
}

/// What is asked about a pod: the same as about a node, and of which container.
#[derive(Debug, Clone, Default, JsonSchema)]
pub(crate) struct OfPod<T> {
    /// One container of the pod instead of all of it.
    pub(crate) container: Option<String>,
    #[schemars(flatten)]
    pub(crate) of_node: T,
}

impl<T: DeserializeOwned> OfPod<T> {
    /// As [`parse`] does.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let (container, of_node) = parse_beside("container", query)?;
        Ok(Self { container, of_node })
    }
}

/// What is asked about a process: the same as about a node, and of which life of its pid.
#[derive(Debug, Clone, Default, JsonSchema)]
pub(crate) struct OfProcess<T> {
    /// Of several processes that had the pid one after another the one that started then, to a second.
    started_at: Option<String>,
    #[schemars(flatten)]
    pub(crate) of_node: T,
}

impl<T: DeserializeOwned> OfProcess<T> {
    /// As [`parse`] does.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let (started_at, of_node) = parse_beside("started_at", query)?;
        Ok(Self {
            started_at,
            of_node,
        })
    }

    pub(crate) fn started_at(&self) -> Result<Option<Timestamp>, ApiError> {
        let parsed = self.started_at.as_deref().map(str::parse::<Timestamp>);
        let parsed = parsed.transpose();
        parsed.map_err(|error| ApiError::parameter("started_at", error.to_string()))
    }
}

/// Reads a query string that may have one parameter beside those of `T`.
fn parse_beside<T: DeserializeOwned>(
    name: &str,
    query: Option<&str>,
) -> Result<(Option<String>, T), ApiError> {
    let pairs: Vec<(String, String)> = parse(query)?;
    let (own, others): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(given, _)| given == name);
    let others = serde_urlencoded::to_string(others).unwrap_or_default();
    let mut own = own.into_iter().map(|(_, value)| value);
    let parsed = (own.next(), parse(Some(&others))?);
    match own.next() {
        Some(_) => {
            let detail = format!("{name} stands there twice");
            Err(ApiError::parameter(name, detail))
        }
        None => Ok(parsed),
    }
}

/// Which pods are listed, and how.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PodListQuery {
    /// Of this namespace alone.
    pub(crate) namespace: Option<String>,
    /// On this node alone: its name, its address or its UID.
    pub(crate) node: Option<String>,
    /// Of this workload alone: `NAME`, or `KIND/NAME` such as `Deployment/web`.
    pub(crate) workload: Option<String>,
    /// With these labels alone, of those that are kept: a label selector as kubectl takes it.
    pub(crate) selector: Option<String>,
    /// `live`, `gone`, or `all`. Without it `live`, and with a time all that lived then.
    state: Option<String>,
    /// Those that lived at this moment.
    at: Option<String>,
    /// Those that lived at some time of a span: its begin.
    from: Option<String>,
    /// The end of the span.
    to: Option<String>,
    /// `full` answers what each uses too; `digests` is the controller's.
    view: Option<String>,
    /// At most so many pods, 1 to 10000.
    limit: Option<String>,
}

/// What happened, and when.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventQuery {
    /// Begin of the span. Without it a day before its end, and of a pod its begin.
    from: Option<String>,
    /// End of the span. Without it now.
    to: Option<String>,
    /// Of these kinds alone, with commas between them, such as `oom_kill,boot`.
    kind: Option<String>,
    /// The newest so many, 1 to 10000. Without it all of the span.
    limit: Option<String>,
}

/// Which nodes are listed, and how.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// `full` answers objects instead of addresses, `freshness` how old the last sample of each
    /// live node is.
    view: Option<String>,
    /// `live` (managed now), `gone` (signed off), or `all`. Without it `live`.
    state: Option<String>,
    /// With `view=full`: only lives with samples at or after this time.
    from: Option<String>,
    /// With `view=full`: only lives with samples at or before this time.
    to: Option<String>,
}

/// What becomes of a node's history.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeleteQuery {
    /// `true` removes the history too.
    purge: Option<String>,
}

/// What is shown to Prometheus beside a node's own figures.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExporterQuery {
    /// So many processes of each node too, those that used most CPU lately, 1 to 100. Without it none.
    processes: Option<String>,
}

impl ExporterQuery {
    pub(crate) fn processes(&self) -> Result<usize, ApiError> {
        let Some(text) = &self.processes else {
            return Ok(0);
        };
        let number = text
            .parse()
            .ok()
            .filter(|number| (1..=100).contains(number));
        number.ok_or_else(|| {
            ApiError::parameter(
                "processes",
                "processes is a number from 1 to 100".to_owned(),
            )
        })
    }
}

/// No query at all.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoQuery {}

/// Reads a query string; an unknown or doubled parameter is an error that names it.
pub(crate) fn parse<T: DeserializeOwned>(query: Option<&str>) -> Result<T, ApiError> {
    serde_urlencoded::from_str(query.unwrap_or_default()).map_err(|error| {
        let message = error.to_string();
        let name = message.split('`').nth(1).unwrap_or_default().to_owned();
        ApiError::parameter(&name, format!("the query cannot be read: {message}"))
    })
}

/// The samples that are asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Samples {
    /// The newest.
    Now,
    /// The last one at or before a moment.
    At(Timestamp),
    /// All of a span.
    Span(Span),
}

/// A span of history.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Span {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// In microseconds.
    pub(crate) step: Option<i64>,
    /// A step is still to be chosen.
    pub(crate) is_auto: bool,
    pub(crate) aggregate: Aggregate,
    pub(crate) limit: Option<usize>,
}

impl Samples {
    pub(crate) fn when(&self) -> When {
        match self {
            Self::Now => When::Now,
            Self::At(time) => When::Span(*time, *time),
            Self::Span(span) => When::Span(span.from, span.to),
        }
    }
}

/// How process tables are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    /// Rows instead of ids.
    pub(crate) full: bool,
    pub(crate) sort: Sort,
    pub(crate) limit: Option<usize>,
}

/// Order of process rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    Pid,
    Cpu,
    Memory,
    Read,
    Write,
}

/// What is ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Process,
    Name,
    User,
    Pod,
    Container,
    Workload,
    Node,
}

/// By what something is ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Cpu,
    Memory,
    Io,
}

/// How a ranking is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ranking {
    pub(crate) by: By,
    pub(crate) sort: Resource,
    pub(crate) limit: usize,
}

/// Rows of a ranking where nothing is said.
const RANKED: usize = 20;
/// And at most.
const RANKED_AT_MOST: usize = 1000;

impl Ranking {
    fn new(by: Option<&str>, sort: Option<&str>, count: Option<&str>) -> Result<Self, ApiError> {
        let by = match by {
            None | Some("process") => By::Process,
            Some("name") => By::Name,
            Some("user") => By::User,
            Some("pod") => By::Pod,
            Some("container") => By::Container,
            Some("workload") => By::Workload,
            Some("node") => By::Node,
            Some(_) => {
                let detail = "by is one of process, name, user, pod, container, workload and node";
                return Err(ApiError::parameter("by", detail));
            }
        };
        let sort = match sort {
            None | Some("cpu") => Resource::Cpu,
            Some("memory") => Resource::Memory,
            Some("io") => Resource::Io,
            Some(_) => {
                let detail = "sort is one of cpu, memory and io";
                return Err(ApiError::parameter("sort", detail));
            }
        };
        let limit = limit(count)?.unwrap_or(RANKED);
        if limit > RANKED_AT_MOST {
            let detail = format!("limit is a number from 1 to {RANKED_AT_MOST}");
            return Err(ApiError::parameter("limit", detail));
        }
        Ok(Self { by, sort, limit })
    }
}

impl TopQuery {
    pub(crate) fn ranking(&self) -> Result<Ranking, ApiError> {
        let text = |text: &Option<String>| text.clone();
        let (by, sort, limit) = (text(&self.by), text(&self.sort), text(&self.limit));
        Ranking::new(by.as_deref(), sort.as_deref(), limit.as_deref())
    }

    pub(crate) fn samples(&self, now: Timestamp) -> Result<Samples, ApiError> {
        let times = (&self.from, &self.to, &self.at, &self.step);
        moments(times, now)
    }
}

/// Events that are asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Events {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// Empty for all.
    kinds: Vec<EventKind>,
    pub(crate) limit: Option<usize>,
}

/// Without a begin a span of events begins so long before its end.
const DAY_MICROS: i64 = 24 * 3600 * 1_000_000;

impl EventQuery {
    pub(crate) fn events(&self, now: Timestamp) -> Result<Events, ApiError> {
        let (from, to) = (self.from.as_deref(), self.to.as_deref());
        // Clocks of nodes may be ahead: what they say happened a moment from now is of today.
        let ahead = now.plus_micros(DAY_MICROS);
        let (from, to) = match samples((from, to, None, None), (None, None), ahead)? {
            Samples::Span(span) if self.from.is_some() => (span.from, span.to),
            Samples::Span(span) => (span.to.plus_micros(-DAY_MICROS), span.to),
            Samples::Now | Samples::At(_) => (now.plus_micros(-DAY_MICROS), ahead),
        };
        let kinds = self.kind.as_deref().map(|kinds| kinds.split(','));
        let kind = |name: &str| {
            EventKind::of_name(name.trim()).ok_or_else(|| {
                let known = EventKind::ALL.map(EventKind::name).join(", ");
                ApiError::parameter("kind", format!("kind is one or more of {known}"))
            })
        };
        Ok(Events {
            from,
            to,
            kinds: kinds
                .into_iter()
                .flatten()
                .map(kind)
                .collect::<Result<_, _>>()?,
            limit: limit(self.limit.as_deref())?,
        })
    }

    pub(crate) fn has_times(&self) -> bool {
        self.from.is_some() || self.to.is_some()
    }
}

impl Events {
    pub(crate) fn takes(&self, event: &Event) -> bool {
        self.kinds.is_empty() || event.kind.is_some_and(|kind| self.kinds.contains(&kind))
    }
}

impl SpanQuery {
    pub(crate) fn samples(&self, now: Timestamp) -> Result<Samples, ApiError> {
        let limit = limit(self.limit.as_deref())?;
        let samples = samples(
            (
                self.from.as_deref(),
                self.to.as_deref(),
                self.at.as_deref(),
                self.step.as_deref(),
            ),
            (limit, self.aggregate.as_deref()),
            now,
        )?;
        if limit.is_some() && !matches!(samples, Samples::Span(_)) {
            return Err(ApiError::parameter("limit", "limit goes with from and to"));
        }
        Ok(samples)
    }
}

impl ProcessQuery {
    pub(crate) fn samples(&self, now: Timestamp) -> Result<Samples, ApiError> {
        let times = (
            self.from.as_deref(),
            self.to.as_deref(),
            self.at.as_deref(),
            self.step.as_deref(),
        );
        samples(times, (None, self.aggregate.as_deref()), now)
    }

    /// How what used most is ranked, where that is asked for.
    pub(crate) fn ranking(&self, samples: &Samples) -> Result<Option<Ranking>, ApiError> {
        let is_span = matches!(samples, Samples::Span(_));
        let is_ranked =
            self.group.is_some() || is_span && self.view.is_none() && self.sort.is_some();
        if !is_ranked {
            return Ok(None);
        }
        if self.group.is_some() && self.view.is_some() {
            return Err(ApiError::parameter("group", "group goes without view"));
        }
        if self.aggregate.is_some() {
            let detail = "aggregate goes with view=full";
            return Err(ApiError::parameter("aggregate", detail));
        }
        let (group, sort) = (self.group.as_deref(), self.sort.as_deref());
        if matches!(group, Some("process" | "node")) {
            let detail = "group is one of name, user, pod, container and workload";
            return Err(ApiError::parameter("group", detail));
        }
        Ranking::new(group, sort, self.limit.as_deref()).map(Some)
    }

    pub(crate) fn table(&self) -> Result<Table, ApiError> {
        let full = full(self.view.as_deref())?;
        let sort = match self.sort.as_deref() {
            None | Some("pid") => Sort::Pid,
            Some("cpu") => Sort::Cpu,
            Some("memory") => Sort::Memory,
            Some("read") => Sort::Read,
            Some("write") => Sort::Write,
            Some(_) => {
                return Err(ApiError::parameter(
                    "sort",
                    "sort is one of pid, cpu, memory, read and write",
                ));
            }
        };
        if self.sort.is_some() && !full {
            return Err(ApiError::parameter("sort", "sort goes with view=full"));
        }
        Ok(Table {
            full,
            sort,
            limit: limit(self.limit.as_deref())?,
        })
    }
}

/// Which lives are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Live,
    Gone,
    All,
}

/// How nodes are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListView {
    Addresses,
    Full,
    Freshness,
}

impl PodListQuery {
    pub(crate) fn samples(&self, now: Timestamp) -> Result<Samples, ApiError> {
        moments((&self.from, &self.to, &self.at, &None), now)
    }

    pub(crate) fn state(&self, samples: &Samples) -> Result<State, ApiError> {
        match (&self.state, samples) {
            (None, Samples::At(_) | Samples::Span(_)) => Ok(State::All),
            (state, _) => State::parse(state.as_deref()),
        }
    }

    pub(crate) fn is_full(&self) -> Result<bool, ApiError> {
        full(self.view.as_deref())
    }

    pub(crate) fn is_digests(&self, of_namespace: bool) -> Result<bool, ApiError> {
        let is_digests = self.view.as_deref() == Some("digests");
        let others = [
            &self.namespace,
            &self.node,
            &self.workload,
            &self.selector,
            &self.state,
            &self.at,
            &self.from,
            &self.to,
            &self.limit,
        ];
        if is_digests && (of_namespace || others.into_iter().any(Option::is_some)) {
            return Err(ApiError::parameter("view", "view=digests goes alone"));
        }
        Ok(is_digests)
    }

    pub(crate) fn limit(&self) -> Result<Option<usize>, ApiError> {
        limit(self.limit.as_deref())
    }
}

impl State {
    fn parse(text: Option<&str>) -> Result<Self, ApiError> {
        match text {
            None | Some("live") => Ok(Self::Live),
            Some("gone") => Ok(Self::Gone),
            Some("all") => Ok(Self::All),
            Some(_) => Err(ApiError::parameter(
                "state",
                "state is one of live, gone and all",
            )),
        }
    }
}

impl ListQuery {
    pub(crate) fn view(&self) -> Result<ListView, ApiError> {
        match self.view.as_deref() {
            None => Ok(ListView::Addresses),
            Some("full") => Ok(ListView::Full),
            Some("freshness") => Ok(ListView::Freshness),
            Some(_) => Err(ApiError::parameter(
                "view",
                "view is full or freshness, or absent",
            )),
        }
    }

    pub(crate) fn state(&self) -> Result<State, ApiError> {
        State::parse(self.state.as_deref())
    }

    /// The span that lives must have samples in; `None` without one.
    pub(crate) fn span(&self, now: Timestamp) -> Result<Option<(Timestamp, Timestamp)>, ApiError> {
        if self.from.is_none() && self.to.is_none() {
            return Ok(None);
        }
        let times = (self.from.as_deref(), self.to.as_deref(), None, None);
        match samples(times, (None, None), now)? {
            Samples::Span(span) => Ok(Some((span.from, span.to))),
            Samples::Now | Samples::At(_) => Ok(None),
        }
    }
}

impl DeleteQuery {
    pub(crate) fn purge(&self) -> Result<bool, ApiError> {
        match self.purge.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::parameter("purge", "purge is true or false")),
        }
    }
}

fn full(view: Option<&str>) -> Result<bool, ApiError> {
    match view {
        None => Ok(false),
        Some("full") => Ok(true),
        Some(_) => Err(ApiError::parameter("view", "view is full, or absent")),
    }
}

fn limit(limit: Option<&str>) -> Result<Option<usize>, ApiError> {
    let Some(text) = limit else { return Ok(None) };
    let limit = text
        .parse()
        .ok()
        .filter(|limit| (1..=10_000).contains(limit));
    limit
        .map(Some)
        .ok_or_else(|| ApiError::parameter("limit", "limit is a number from 1 to 10000"))
}

type Texts<'a> = (
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
    Option<&'a str>,
);

type OwnTexts<'a> = (
    &'a Option<String>,
    &'a Option<String>,
    &'a Option<String>,
    &'a Option<String>,
);

/// A moment, a span or now, of which there is nothing else to say.
fn moments((from, to, at, step): OwnTexts, now: Timestamp) -> Result<Samples, ApiError> {
    let (from, to) = (from.as_deref(), to.as_deref());
    let times = (from, to, at.as_deref(), step.as_deref());
    samples(times, (None, None), now)
}

fn samples(
    (from, to, at, step): Texts,
    (limit, aggregate): (Option<usize>, Option<&str>),
    now: Timestamp,
) -> Result<Samples, ApiError> {
    let time = |name, text: Option<&str>| {
        let parsed = text.map(str::parse::<Timestamp>).transpose();
        parsed.map_err(|error| ApiError::parameter(name, error.to_string()))
    };
    let aggregate = match aggregate {
        None => Aggregate::Natural,
        Some("mean") => Aggregate::Mean,
        Some("min") => Aggregate::Min,
        Some("max") => Aggregate::Max,
        Some("last") => Aggregate::Last,
        Some("p50") => Aggregate::Quantile(50),
        Some("p90") => Aggregate::Quantile(90),
        Some("p95") => Aggregate::Quantile(95),
        Some("p99") => Aggregate::Quantile(99),
        Some(_) => {
            let detail = "aggregate is one of mean, min, max, last, p50, p90, p95 and p99";
            return Err(ApiError::parameter("aggregate", detail));
        }
    };
    if aggregate != Aggregate::Natural && step.is_none() {
        return Err(ApiError::parameter("aggregate", "aggregate goes with step"));
    }
    let is_auto = step == Some("auto");
    let has_step = step.is_some();
    let step = step.filter(|_| !is_auto).map(|text| {
        let micros = time::parse_span(text).map(|span: Duration| span.as_micros() as i64);
        micros.map_err(|error| ApiError::parameter("step", error.to_string()))
    });
    let step = step.transpose()?;
    if let Some(at) = time("at", at)? {
        if from.is_some() || to.is_some() || has_step {
            return Err(ApiError::parameter(
                "at",
                "at goes without from, to and step",
            ));
        }
        return Ok(Samples::At(at));
    }
    if from.is_none() && to.is_none() {
        return if has_step {
            Err(ApiError::parameter("step", "step goes with from and to"))
        } else {
            Ok(Samples::Now)
        };
    }
    let from = time("from", from)?.unwrap_or(Timestamp::MIN);
    // A time to the second means the whole second: what stands under it in an answer is in it.
    let whole_second = to.is_some_and(|to| !to.contains('.'));
    let to = time("to", to)?.unwrap_or(now);
    let to = if whole_second {
        to.plus_micros(999_999)
    } else {
        to
    };
    if from > to {
        return Err(ApiError::parameter("from", "from is later than to"));
    }
    Ok(Samples::Span(Span {
        from,
        to,
        step,
        is_auto,
        aggregate,
        limit,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(query: &str) -> Result<Samples, ApiError> {
        parse::<SpanQuery>(Some(query))?.samples(Timestamp::MAX)
    }

    #[test]
    fn the_transcripts_times_are_a_span() {
        let samples =
            span("from=2022-03-01+13%3A45%3A00&to=2022-03-28+00%3A00%3A00").expect("valid");
        let Samples::Span(span) = samples else {
            panic!("a span: {samples:?}")
        };
        assert_eq!(span.from.to_key(), "2022-03-01 13:45:00");
        assert_eq!(span.to.to_precise_key(), "2022-03-28 00:00:00.999999");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for query in [
            "from=yesterday",
            "from=2022-03-02&to=2022-03-01",
            "from=2022-03-01T00:00:00+01:00",
            "step=10s",
            "from=0&step=0s",
            "from=0&step=x",
            "at=0&from=0",
            "limit=5",
            "from=0&limit=0",
            "from=0&limit=10001",
            "form=0",
            "from=0&from=1",
            "from=0&aggregate=mean",
            "from=0&step=60s&aggregate=median",
            "from=0&step=60s&aggregate=p0",
            "from=0&step=60s&aggregate=p101",
            "from=0&aggregate=p95",
            "at=0&step=auto",
        ] {
            assert_eq!(
                span(query).map_err(|error| error.status().as_u16()),
                Err(400),
                "{query}"
            );
        }
        let of_pod = |query| OfPod::<SpanQuery>::parse(Some(query));
        let asked = of_pod("from=0&container=a%26b&step=5s").expect("valid");
        assert_eq!(asked.container.as_deref(), Some("a&b"));
        assert!(asked.of_node.samples(Timestamp::MAX).is_ok());
        for query in [
            "container=a&container=b",
            "container=a&form=0",
            "from=0&from=1",
        ] {
            assert!(of_pod(query).is_err(), "{query}");
        }
        for query in [
            "kind=oom",
            "kind=boot,,paused",
            "limit=0",
            "from=x",
            "kinds=boot",
        ] {
            let events = parse::<EventQuery>(Some(query));
            let events = events.and_then(|query| query.events(Timestamp::MAX));
            assert!(events.is_err(), "{query}");
        }
        for query in ["sort=cpu", "view=full&sort=name", "view=all", "limit=x"] {
            let table = parse::<ProcessQuery>(Some(query)).and_then(|query| query.table());
            assert!(table.is_err(), "{query}");
        }
    }
}
