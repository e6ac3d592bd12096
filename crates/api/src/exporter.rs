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
use nodestats_core::{Life, Stored, life::When, stored};
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
/// The interval of a node that says none and has one sample.
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
    let seen = app.store.seen().await?;
    let mut nodes = Vec::with_capacity(lives.len());
    for life in lives {
        let seen = seen.get(&life.uid).copied();
        if top > 0 {
            identity.audit("processes", &life, uri.query());
        }
        if let Ok(node) = scrape(&app, life, seen, now, top).await? {
            nodes.push(node);
        }
    }
    let instances = instances(nodes.iter().map(|node| &node.life));
    let labelled: Vec<(Option<&str>, &Scraped)> = nodes
        .iter()
        .map(|node| (instances.get(&*node.life.uid).map(|name| &**name), node))
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
        Ok(node) => Ok(answer(&headers, &[(None, &node)])),
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
    let instances = instances(lives.iter());
    let target = |life: &Life| {
        json!({
            "targets": [host],
            "labels": {
                "__metrics_path__": routes::node_metrics(&life.uid),
                "instance": instances.get(&*life.uid),
                "nodestats_ip": life.registration.ip,
            },
        })
    };
    Ok(Json(lives.iter().map(target).collect::<Vec<_>>()).into_response())
}

/// Nodes that are managed now, as far as the caller may read their figures.
async fn live(app: &App, identity: &Identity, top: usize) -> Result<Vec<Life>, ApiError> {
    let mut lives = app.store.lives().await?;
    lives.retain(Life::is_live);
    lives.sort_by_cached_key(|life| life.registration.hostname.clone());
    let lives = app.readable(identity, METRICS, lives).await?;
    if top == 0 {
        return Ok(lives);
    }
    app.readable(identity, PROCESSES, lives).await
}

/// What each node is called as a target: its name, and where two have the same its address too.
fn instances<'a>(lives: impl Iterator<Item = &'a Life> + Clone) -> BTreeMap<&'a str, String> {
    let mut named: BTreeMap<&str, u32> = BTreeMap::new();
    for life in lives.clone() {
        *named.entry(&life.registration.hostname).or_default() += 1;
    }
    let instance = |life: &'a Life| {
        let registration = &life.registration;
        let name = match named.get(&*registration.hostname) {
            Some(1) => registration.hostname.clone(),
            _ => format!("{}/{}", registration.hostname, registration.ip),
        };
        (&*life.uid, name)
    };
    lives.map(instance).collect()
}

/// A node's newest figures; the inner error says why it has none now.
async fn scrape(
    app: &App,
    life: Life,
    seen: Option<Seen>,
    now: Timestamp,
    top: usize,
) -> Result<Result<Scraped, String>, ApiError> {
    let ever = (Timestamp::MIN, Timestamp::MAX);
    let rows = app
        .store
        .samples(&life.uid, ever, None, Order::Descending, 2);
    let rows = rows.await?;
    let name = &life.registration.hostname;
    let (Some(newest), Some(seen)) = (rows.first(), seen) else {
        return Ok(Err(format!("{name} has sent no sample yet")));
    };
    let unreadable = || ApiError::unavailable("a stored sample cannot be read");
    let Stored::Frame(frame) = stored::read(newest).map_err(|_| unreadable())? else {
        return Ok(Err(format!(
            "{name} is reported by a third party, whose figures are no counters"
        )));
    };
    let before = rows.get(1).and_then(|row| stored::read(row).ok());
    let gap = before.as_ref().and_then(Stored::time);
    let gap = gap.map(|before| frame.time.seconds_since(before));
    let interval = life.registration.interval_seconds.map(f64::from);
    let interval = interval.or(gap).unwrap_or(USUAL_INTERVAL);
    let age = now.seconds_since(seen.fresh_at);
    if age > (interval * STALE_INTERVALS).max(STALE_SECONDS) {
        return Ok(Err(format!("the last sample of {name} is {age:.0} s old")));
    }
    let host = frame.host().map_err(|_| unreadable())?;
    let time = frame.time;
    let mut processes = Vec::new();
    if top > 0 {
        let current = frame.sample().map_err(|_| unreadable())?;
        let before = match &before {
            Some(Stored::Frame(before)) => before.sample().ok(),
            _ => None,
        };
        processes = busiest(before.as_ref(), current, top);
    }
    Ok(Ok(Scraped {
        life,
        time,
        host,
        processes,
    }))
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
