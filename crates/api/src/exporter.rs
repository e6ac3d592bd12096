//! The nodes for people who keep Prometheus: each one's newest figures in the names and types of
//! `node_exporter`, so that dashboards and alerts that exist work, and a list of targets.
//!
//! A node that is silent has no series: its own scrape fails, and among all it is left out, so that
//! Prometheus sees it go instead of figures that stand still.

mod families;

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, Uri, header};
use nodestats_core::rates::process_rows;
use nodestats_core::sample::{Host, Process, Sample};
use nodestats_core::{Life, Stored, Wanted, life::When};
use nodestats_runtime::metrics::Exposition;
use nodestats_store::{Order, Seen};
use nodestats_wire::{Timestamp, routes};
use serde_json::json;

use crate::access::{Identity, METRICS, PROCESSES, Want};
use crate::query::{ExporterQuery, NoQuery};
use crate::routes::Node;
use crate::system::accepted;
use crate::{ApiError, App, query};

/// Silent for so many of its intervals, a node has no series any more.
const STALE_INTERVALS: f64 = 3.0;
/// And for so long, however short its interval is.
const STALE_SECONDS: f64 = 5.0;
/// The interval of a node that says none, at most.
const USUAL_INTERVAL: f64 = 10.0;

/// A node's newest figures.
struct Scraped {
    life: Life,
    time: Timestamp,
    host: Host,
    /// Those that are shown.
    processes: Vec<Process>,
}

/// `GET /metrics/nodes`: all nodes that the caller may read, each with a label `instance`.
pub(crate) async fn all(
    State(app): State<App>,
    identity: Identity,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query: ExporterQuery = query::parse(uri.query())?;
    let top = query.processes()?;
    let now = App::now();
    let lives = live(&app, &identity, top).await?;
    // By all of them: what one is called does not change when another is silent.
    let instances = instances(&lives);
    let seen = app.store.seen().await?;
    let mut nodes = Vec::with_capacity(lives.len());
    for life in lives {
        let seen = seen.get(&life.uid).copied();
        if top > 0 {
            identity.audit("processes", &life, uri.query());
        }
        if let Ok(Some(node)) = scrape(&app, life, seen, now, top).await? {
            nodes.push(node);
        }
    }
    let labelled: Vec<(Option<&str>, &Scraped)> = nodes
        .iter()
        .map(|node| (instances.get(&node.life.uid).map(|name| &**name), node))
        .collect();
    Ok(answer(&headers, &labelled))
}

/// `GET /metrics/nodes/{node}`: one of them, whose `instance` Prometheus knows.
pub(crate) async fn one(
    State(app): State<App>,
    identity: Identity,
    node: Node,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query: ExporterQuery = query::parse(uri.query())?;
    let top = query.processes()?;
    let read = |detail| app.resolve(&identity, Want::Read(detail), &node, When::Now);
    let life = read(METRICS).await?;
    if top > 0 {
        read(PROCESSES).await?;
        identity.audit("processes", &life, uri.query());
    }
    let seen = app.store.seen_of(&life.uid).await?;
    match scrape(&app, life, seen, App::now(), top).await? {
        Ok(Some(node)) => Ok(answer(&headers, &[(None, &node)])),
        Ok(None) => Ok(answer(&headers, &[])),
        Err(reason) => Err(ApiError::silent(reason)),
    }
}

/// `GET /metrics/targets`: HTTP service discovery of Prometheus, one target a node, to be asked where
/// this was asked.
pub(crate) async fn targets(
    State(app): State<App>,
    identity: Identity,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let NoQuery {} = query::parse(uri.query())?;
    let lives = live(&app, &identity, 0).await?;
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let host =
        host.ok_or_else(|| ApiError::malformed("there is no Host header to name targets by"))?;
    let instances = instances(&lives);
    let target = |life: &Life| {
        json!({
            "targets": [host],
            "labels": {
                "__metrics_path__": routes::node_metrics(&life.uid),
                "instance": instances.get(&life.uid),
                "nodestats_ip": life.registration.ip,
            },
        })
    };
    Ok(Json(lives.iter().map(target).collect::<Vec<_>>()).into_response())
}

/// Nodes that are managed now, as far as the caller may read their figures.
async fn live(app: &App, identity: &Identity, top: usize) -> Result<Vec<Life>, ApiError> {
    let lives = app.store.lives().await?;
    let live = lives.iter().filter(|life| life.is_live());
    let mut lives: Vec<Life> = live.map(|life| Life::clone(life)).collect();
    lives.sort_by_cached_key(|life| life.registration.hostname.clone());
    let lives = app.readable(identity, METRICS, lives).await?;
    if top == 0 {
        return Ok(lives);
    }
    app.readable(identity, PROCESSES, lives).await
}

/// What each node is called as a target, by its UID: its name, and where two have the same its address
/// too, and where that is the same as well the UID itself.
fn instances(lives: &[Life]) -> BTreeMap<String, String> {
    let mut names: BTreeMap<&str, u32> = BTreeMap::new();
    let mut addresses: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for life in lives {
        let (name, ip) = (&*life.registration.hostname, &*life.registration.ip);
        *names.entry(name).or_default() += 1;
        *addresses.entry((name, ip)).or_default() += 1;
    }
    let instance = |life: &Life| {
        let (name, ip) = (&*life.registration.hostname, &*life.registration.ip);
        let instance = match (names.get(name), addresses.get(&(name, ip))) {
            (Some(1), _) => name.to_owned(),
            (_, Some(1)) => format!("{name}/{ip}"),
            _ => format!("{name}/{ip}/{}", life.uid),
        };
        (life.uid.clone(), instance)
    };
    lives.iter().map(instance).collect()
}

/// A node's newest figures, none where they are no counters; the inner error says why there are none
/// now.
async fn scrape(
    app: &App,
    life: Life,
    seen: Option<Seen>,
    now: Timestamp,
    top: usize,
) -> Result<Result<Option<Scraped>, String>, ApiError> {
    let name = &life.registration.hostname;
    let Some(seen) = seen else {
        return Ok(Err(format!("{name} has sent no sample yet")));
    };
    // By the node's own clock: what it sent before that was set back is not its newest.
    let until = seen.clock_offset_micros;
    let until = until.map_or(Timestamp::MAX, |offset| now.plus_micros(offset));
    let range = (Timestamp::MIN, until);
    let wanted = if top > 0 {
        Wanted::Processes
    } else {
        Wanted::Host
    };
    let rows = app
        .store
        .samples(&life.uid, range, Order::Descending, wanted, 2);
    let rows = rows.await?;
    let Some(newest) = rows.first() else {
        return Ok(Err(format!("{name} has sent no sample yet")));
    };
    let before = rows.get(1);
    let gap = before.map(|before| newest.time().seconds_since(before.time()));
    let gap = gap.map(|gap| gap.clamp(1.0, USUAL_INTERVAL));
    let interval = life.registration.interval_seconds.map(f64::from);
    let interval = interval.or(gap).unwrap_or(USUAL_INTERVAL);
    let age = now.seconds_since(seen.fresh_at);
    if age > (interval * STALE_INTERVALS).max(STALE_SECONDS) {
        return Ok(Err(format!("the last sample of {name} is {age:.0} s old")));
    }
    let Some(counters) = newest.counters() else {
        // A third party's figures are gauges, and none of these names.
        return Ok(Ok(None));
    };
    let host = counters.host().map_err(unreadable_of(name));
    let host = match host {
        Ok(host) => host,
        Err(reason) => return Ok(Err(reason)),
    };
    let time = counters.time;
    let mut processes = Vec::new();
    if top > 0
        && let Ok(current) = counters.sample(wanted)
    {
        let before = before.and_then(Stored::counters);
        let before = before.and_then(|before| before.sample(wanted).ok());
        processes = busiest(before.as_ref(), current, top);
    }
    Ok(Ok(Some(Scraped {
        life,
        time,
        host,
        processes,
    })))
}

/// What is said of a row that is damaged: it is one node's, and hides no other.
fn unreadable_of<E: std::fmt::Display>(name: &str) -> impl Fn(E) -> String + '_ {
    move |error| {
        tracing::error!(%error, node = name, "a stored sample cannot be read");
        format!("the last sample of {name} cannot be read")
    }
}

/// The processes that used most CPU between two samples, and of those that used none the largest.
fn busiest(before: Option<&Sample>, current: Sample, top: usize) -> Vec<Process> {
    let rows = process_rows(before, &current);
    let cpu: BTreeMap<u32, f64> = rows
        .iter()
        .map(|row| (row.pid, row.cpu_percent.unwrap_or_default()))
        .collect();
    let percent = |process: &Process| cpu.get(&process.pid).copied().unwrap_or_default();
    let mut processes = current.processes;
    processes.sort_by(|a, b| {
        let by_cpu = percent(b).total_cmp(&percent(a));
        by_cpu.then(b.resident_bytes.cmp(&a.resident_bytes))
    });
    processes.truncate(top);
    processes
}

fn answer(headers: &HeaderMap, nodes: &[(Option<&str>, &Scraped)]) -> Response {
    let format = accepted(headers);
    let mut exposition = Exposition::new(format);
    families::write(nodes, &mut exposition);
    let kind = [(header::CONTENT_TYPE, format.media_type())];
    (kind, exposition.finish()).into_response()
}
