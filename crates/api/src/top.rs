//! What used most: processes, or what they have in common, on one node or on all, at a moment or over a span.
//!
//! A moment is answered by samples. Of which nodes they are read follows from what was noted when their hours
//! were sealed (`nodestats_core::rollup::Highs`, and `Peaks` where samples are gone): of a thousand nodes few
//! have one of the ten busiest processes. A span is answered by samples as well where it is short, and by rollups where it is long.

mod fold;
mod read;
mod steps;

use std::collections::{BTreeMap, HashMap};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, Uri, header};
use nodestats_core::Life;
use nodestats_core::rollup::{HOUR, MINUTE};
use nodestats_wire::v1::{Top, TopRow};
use nodestats_wire::{Timestamp, routes};
use tokio::task::JoinSet;

use crate::access::{Identity, PROCESSES};
use crate::history::plan;
use crate::query::{self, By, Ranking, Samples, Span, TopQuery};
use crate::{ApiError, App};
use fold::{Fold, Found, Pods, Sum, units};
use read::{Reader, Told};
use steps::Steps;

/// A node whose last sample is older than this is not there at a moment.
const LOOK_BACK: i64 = 5 * MINUTE;
/// So many hours of nodes are answered by samples.
const OF_SAMPLES: i64 = 64;
/// Nodes that are read at once.
const AT_ONCE: usize = 2;
/// Rows of all steps together: some 15 MB, which is what an answer may hold in memory.
const STEPPED_AT_MOST: i64 = 50_000;

/// `GET /top`.
pub(crate) async fn top(
    State(app): State<App>,
    identity: Identity,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query: TopQuery = query::parse(uri.query())?;
    let now = App::now();
    let (ranking, samples) = (query.ranking()?, query.samples(now)?);
    let subresource = match ranking.by {
        By::Process | By::Name | By::User => PROCESSES,
        By::Pod | By::Container | By::Workload => "pods",
        By::Node => "",
    };
    let lives = app.store.lives().await?;
    let from = match &samples {
        Samples::Now => now,
        Samples::At(moment) => *moment,
        Samples::Span(span) => span.from,
    };
    // Nobody can have used anything before it was known or after it was gone.
    let was_there = |life: &Life| {
        life.is_live()
            || life
                .gone_at
                .is_none_or(|gone| gone.plus_micros(LOOK_BACK) >= from)
    };
    let asked = lives.iter().map(|life| Life::clone(life)).filter(|life| {
        was_there(life)
            && query
                .node
                .as_ref()
                .is_none_or(|name| life.was_called(name) || life.uid == *name)
    });
    let asked: Vec<Life> = asked.collect();
    if let Some(name) = query.node.as_ref().filter(|_| asked.is_empty()) {
        let detail = format!("no node was called {name:?} then");
        return Err(ApiError::parameter("node", detail));
    }
    let lives = app.readable(&identity, subresource, asked).await?;
    if subresource == PROCESSES {
        for life in lives.iter().take(1) {
            identity.audit("processes", life, uri.query());
        }
    }
    match samples {
        Samples::Now => respond_at(&app, lives, ranking, None).await,
        Samples::At(moment) => respond_at(&app, lives, ranking, Some(moment)).await,
        Samples::Span(span) => respond_within(&app, lives, ranking, span).await,
    }
}

/// What used most at a moment; `None` is now.
pub(crate) async fn respond_at(
    app: &App,
    lives: Vec<Life>,
    ranking: Ranking,
    moment: Option<Timestamp>,
) -> Result<Response, ApiError> {
    let mut fold = Fold::new(ranking);
    let known = match (moment, ranking.by) {
        (Some(moment), By::Process) => bounds(app, &lives, ranking, moment).await?,
        _ => HashMap::new(),
    };
    let (mut sure, mut bounded): (Vec<Life>, Vec<(Bound, Life)>) = (Vec::new(), Vec::new());
    for life in lives {
        match known.get(&life.uid) {
            Some(bound) => bounded.push((*bound, life)),
            None => sure.push(life),
        }
    }
    let asked = Asked::At(moment);
    read_all(app, sure, ranking, asked, &mut fold).await?;
    // As rows are ranked: of nodes that have equally much the first by name.
    let name = |life: &Life| life.registration.hostname.clone();
    bounded.sort_by_cached_key(|(bound, life)| (std::cmp::Reverse(bound.highest), name(life)));
    let mut bounded = bounded.into_iter();
    loop {
        let some: Vec<(Bound, Life)> = bounded.by_ref().take(AT_ONCE).collect();
        let Some((bound, life)) = some.first() else {
            break;
        };
        if fold.is_settled(bound.highest, &life.registration.hostname) {
            // Of those that need not be looked at: what their minute had on the mean.
            let rest = some.into_iter().chain(bounded);
            rest.for_each(|(bound, _)| fold.pass_over(&bound.all));
            break;
        }
        let some = some.into_iter().map(|(_, life)| life).collect();
        read_all(app, some, ranking, asked, &mut fold).await?;
    }
    let resolution = fold.levels().name();
    let top = Top {
        at: Some(moment.unwrap_or_else(App::now)),
        ..finish(app, fold, ranking).await?
    };
    Ok(answer(&top, resolution))
}

/// What used most in a span, also step by step.
pub(crate) async fn respond_within(
    app: &App,
    lives: Vec<Life>,
    ranking: Ranking,
    span: Span,
) -> Result<Response, ApiError> {
    let to = span.to.min(App::now().plus_micros(HOUR));
    let from = if span.from == Timestamp::MIN {
        to.plus_micros(-24 * HOUR)
    } else {
        span.from
    };
    let step = if span.is_auto {
        Some(plan::automatic_step((from, to)))
    } else {
        span.step
    };
    let length = (to.micros() - from.micros()).max(0);
    if let Some(step) = step
        && (length / step).saturating_mul(ranking.limit as i64) > STEPPED_AT_MOST
    {
        let detail = format!(
            "steps times limit are at most {STEPPED_AT_MOST}: choose longer steps, or fewer rows"
        );
        return Err(ApiError::parameter("step", detail));
    }
    let is_short = (length / HOUR + 1).saturating_mul(lives.len() as i64) <= OF_SAMPLES;
    let mut fold = Fold::new(ranking);
    let asked = Asked::Within(from, to, is_short);
    let asked_of = if step.is_some() {
        lives.clone()
    } else {
        Vec::new()
    };
    read_all(app, lives, ranking, asked, &mut fold).await?;
    let resolution = fold.levels().name();
    let top = Top {
        from: Some(from),
        to: Some(to),
        ..finish(app, fold, ranking).await?
    };
    let Some(step) = step else {
        return Ok(answer(&top, resolution));
    };
    let mut steps = Steps::new(ranking, top.rows.unwrap_or_default());
    for life in asked_of {
        let mut walk = Reader::new(app, life, ranking.by).steps((from, to), step);
        let mut pods = Pods::new();
        while let Some(told) = walk.page().await? {
            for (begin, told) in told {
                steps.add(app, begin, told, &mut pods).await?;
            }
        }
    }
    let resolution = steps.resolution();
    let key = |time: Timestamp| {
        if step % 1_000_000 == 0 {
            time.to_key()
        } else {
            time.to_precise_key()
        }
    };
    let steps = steps.finish().into_iter();
    let steps: BTreeMap<String, Top> = steps.map(|(begin, top)| (key(begin), top)).collect();
    Ok(answer(&steps, resolution))
}

fn answer(top: &impl serde::Serialize, resolution: &'static str) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(
        routes::RESOLUTION_HEADER,
        HeaderValue::from_static(resolution),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (headers, Json(top)).into_response()
}

/// What is read of a node.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// Its last sample at or before a moment, or the newest.
    At(Option<Timestamp>),
    /// All of a span, by samples where it is short.
    Within(Timestamp, Timestamp, bool),
}

/// Reads nodes and folds what they tell.
async fn read_all(
    app: &App,
    lives: Vec<Life>,
    ranking: Ranking,
    asked: Asked,
    fold: &mut Fold,
) -> Result<(), ApiError> {
    let mut left = lives.into_iter();
    let mut reading: JoinSet<Result<Option<Told>, ApiError>> = JoinSet::new();
    loop {
        while reading.len() < AT_ONCE
            && let Some(life) = left.next()
        {
            let reader = Reader::new(app, life, ranking.by);
            reading.spawn(async move {
                match asked {
                    Asked::At(moment) => reader.at(moment).await,
                    Asked::Within(from, to, is_short) => reader.within((from, to), is_short).await,
                }
            });
        }
        let Some(read) = reading.join_next().await else {
            return Ok(());
        };
        let told = read.map_err(|_| ApiError::unavailable("a node's history cannot be read"))??;
        if let Some(told) = told {
            fold.add(app, told, &mut Pods::new()).await?;
        }
    }
}

/// The most that a process of a node can have at a moment.
#[derive(Debug, Clone, Copy)]
struct Bound {
    /// In units of [`fold::units`].
    highest: u64,
    /// What all its processes had together.
    all: Sum,
}

/// The bounds of those nodes whose samples of the moment are sealed.
async fn bounds(
    app: &App,
    lives: &[Life],
    ranking: Ranking,
    moment: Timestamp,
) -> Result<HashMap<String, Bound>, ApiError> {
    let begin = moment.plus_micros(-LOOK_BACK);
    let is_sealed = |life: &&Life| !app.store.may_have_unsealed(&life.uid, (begin, moment));
    let lives: Vec<&Life> = lives.iter().filter(is_sealed).collect();
    let own = moment.floor_to(HOUR);
    let hours: &[Timestamp] = if begin < own {
        &[own, begin.floor_to(HOUR)]
    } else {
        &[own]
    };
    // By the peaks of all minutes that the sample may be of, the latest last.
    let mut bounds: HashMap<String, Bound> = HashMap::new();
    // By the sample itself.
    let mut exact: HashMap<String, u64> = HashMap::new();
    for hour in hours {
        let asked: Vec<(&str, Timestamp)> = lives.iter().map(|life| (&*life.uid, *hour)).collect();
        let (peaks, highs) = tokio::try_join!(app.store.peaks(&asked), app.store.highs(&asked))?;
        for (life, (peaks, highs)) in lives.iter().zip(peaks.into_iter().zip(highs)) {
            // Where the moment's own hour is not sealed, nothing is known.
            let Some(peaks) = peaks else { continue };
            if *hour != own && !bounds.contains_key(&life.uid) {
                continue;
            }
            let high = highs.as_ref().and_then(|highs| highs.at(moment));
            if let Some(high) = high.filter(|high| high.time >= begin) {
                let highest = match ranking.sort {
                    query::Resource::Cpu => high.cpu,
                    query::Resource::Memory => high.memory,
                    query::Resource::Io => high.io,
                };
                exact.entry(life.uid.clone()).or_insert(highest);
            }
            for peak in &peaks.minutes {
                let minute = hour.plus_micros(i64::from(peak.minute) * MINUTE);
                if minute > moment || minute.plus_micros(MINUTE) <= begin {
                    continue;
                }
                let highest = match ranking.sort {
                    query::Resource::Cpu => peak.cpu + 1,
                    query::Resource::Memory => peak.memory,
                    query::Resource::Io => (peak.io + 1).saturating_mul(100),
                };
                let all = Sum::of_peak(peak);
                let known = bounds
                    .entry(life.uid.clone())
                    .or_insert(Bound { highest, all });
                known.highest = known.highest.max(highest);
                known.all = all;
            }
        }
    }
    for (uid, bound) in &mut bounds {
        bound.highest = exact.get(uid).copied().unwrap_or(bound.highest);
    }
    Ok(bounds)
}

/// The rows of the highest, with what is known of pods.
async fn finish(app: &App, fold: Fold, ranking: Ranking) -> Result<Top, ApiError> {
    let Found {
        mut rows,
        others,
        total,
        nodes,
    } = fold.finish();
    if ranking.by == By::Process {
        name_pods(app, &mut rows).await?;
    }
    let mut rest = TopRow::default();
    others.fill(&mut rest);
    Ok(Top {
        nodes: Some(nodes),
        total: Some(total),
        rows: Some(rows),
        rest: (others.count > 0).then_some(rest),
        ..Top::default()
    })
}

/// Says of processes which pods they are of.
async fn name_pods(app: &App, rows: &mut [TopRow]) -> Result<(), ApiError> {
    let uids: Vec<String> = rows.iter().filter_map(|row| row.pod.clone()).collect();
    let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
    if uids.is_empty() {
        return Ok(());
    }
    let known = app.store.pods_of(&uids).await?;
    for row in rows {
        if let Some(pod) = row.pod.as_ref().and_then(|uid| known.get(uid)) {
            fold::name(row, pod);
        }
    }
    Ok(())
}

/// By what rows are ranked.
pub(crate) fn rank(a: &TopRow, b: &TopRow, ranking: Ranking) -> std::cmp::Ordering {
    let by_value = units(b, ranking.sort).cmp(&units(a, ranking.sort));
    let names = |row: &TopRow| (row.node.clone(), row.namespace.clone(), row.pod.clone());
    by_value
        .then_with(|| names(a).cmp(&names(b)))
        .then_with(|| (&a.name, a.pid).cmp(&(&b.name, b.pid)))
}
