//! Answers about one moment: now, or `at` a time of the past.

use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, header};
use nodestats_core::Life;
use nodestats_core::rates::Aggregate;
use nodestats_core::rollup::{HOUR, Part};
use nodestats_store::Order;
use nodestats_wire::v1::Reading;
use nodestats_wire::{Timestamp, routes};

use crate::answer::{Answer, Detail, Unpacked, answer, rolled_answer, unpack};
use crate::history::buckets::Source;
use crate::pods::Names;
use crate::{ApiError, App};

/// A third party may put one group at a time: the newest sample that has the one asked for is
/// looked for among so many.
const LOOK_BACK: usize = 64;

/// Answers `detail` from the last sample at or before `moment`.
pub(crate) async fn respond(
    app: &App,
    life: &Life,
    detail: &Detail,
    moment: Option<Timestamp>,
) -> Result<Response, ApiError> {
    let now = App::now();
    // A host whose clock is ahead has its newest sample in the future.
    let until = moment.map_or(Timestamp::MAX, |moment| moment);
    let mut found = find(app, &life.uid, detail, until).await?;
    let mut is_rolled = false;
    if let (None, Some(moment)) = (&found, moment) {
        found = find_rolled(app, life, detail, moment).await?;
        is_rolled = found.is_some();
    }
    let (time, mut answer) = match found {
        Some((time, answer)) => (Some(time), answer),
        // A node that registered a moment ago exists, and has nothing to say yet.
        None if *detail == Detail::Summary && moment.is_none() => {
            (None, Answer::Summary(Box::default()))
        }
        None => return Err(ApiError::missing(detail.missing())),
    };
    let mut headers = HeaderMap::new();
    if let Some(time) = time.filter(|_| is_rolled) {
        let resolution = format!("rollup;from=\"{time}\"");
        let resolution = HeaderValue::try_from(resolution).expect("a time is ASCII");
        headers.insert(routes::RESOLUTION_HEADER, resolution);
    }
    if let Some(time) = time {
        let age = (moment.unwrap_or(now).seconds_since(time) * 1000.0).round() / 1000.0;
        let age = age.max(0.0);
        answer.stamp(time, age);
        let text = |text: String| HeaderValue::try_from(text).expect("digits and dashes");
        headers.insert(routes::SAMPLE_TIME_HEADER, text(time.to_string()));
        headers.insert(header::AGE, text(format!("{age:.0}")));
    }
    if let Answer::Pods(pods) = &mut answer {
        Names::default().name(app, &life.uid, pods).await?;
    }
    if let Answer::Summary(reading) = &mut answer {
        identify(reading, life);
    }
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let body = serde_json::to_vec(&answer).expect("an answer is plain data");
    Ok((headers, body).into_response())
}

fn identify(reading: &mut Reading, life: &Life) {
    reading.uid = Some(life.uid.clone());
    reading.hostname = Some(life.registration.hostname.clone());
    reading.ip = Some(life.registration.ip.clone());
}

/// The answer of the last sample at or before `until` that has `detail`, with its time.
pub(crate) async fn find(
    app: &App,
    uid: &str,
    detail: &Detail,
    until: Timestamp,
) -> Result<Option<(Timestamp, Answer)>, ApiError> {
    find_within(app, uid, detail, until, LOOK_BACK).await
}

/// What is kept of the minute or the hour of a moment whose samples are gone, with its begin.
async fn find_rolled(
    app: &App,
    life: &Life,
    detail: &Detail,
    moment: Timestamp,
) -> Result<Option<(Timestamp, Answer)>, ApiError> {
    let (store, uid) = (&app.store, &life.uid);
    if let Some(oldest) = store.oldest(uid).await?
        && (oldest <= moment || !store.is_rolled_before(uid, oldest).await?)
    {
        return Ok(None);
    }
    let figures = detail.figures();
    let range = (moment.plus_micros(-HOUR), moment);
    let mut source = Source::new(app, &life.uid, figures, range, None).of_rollups();
    let mut hosts = source.hosts_beside();
    let mut last = None;
    while let Some(page) = source.page(1).await? {
        last = page.into_iter().next_back().or(last);
    }
    let Some(bucket) = last else { return Ok(None) };
    let mut host = None;
    while figures.part() == Part::Processes
        && let Some(page) = hosts.page(1).await?
    {
        host = page
            .into_iter()
            .find(|host| host.begin == bucket.begin)
            .or(host);
    }
    let answer = rolled_answer(detail, &bucket, host.as_ref(), Aggregate::Mean);
    Ok(answer.map(|answer| (bucket.begin, answer)))
}

/// The same among the last samples alone.
pub(crate) async fn find_within(
    app: &App,
    uid: &str,
    detail: &Detail,
    until: Timestamp,
    samples: usize,
) -> Result<Option<(Timestamp, Answer)>, ApiError> {
    let range = (Timestamp::MIN, until);
    let mut walk = app
        .store
        .walk(uid, range, Order::Descending, detail.wanted());
    // Newest first; what a sample says needs the one before it.
    let mut current: Option<(Timestamp, Unpacked)> = None;
    let mut seen = 0;
    while seen <= samples {
        let page = walk.page(2).await?;
        if page.is_empty() {
            break;
        }
        // A block has more than are looked at.
        for sample in page.into_iter().take(samples + 1 - seen) {
            seen += 1;
            let time = sample.time();
            let previous = tracing::info_span!("decode").in_scope(|| unpack(&sample, detail))?;
            if let Some((time, sample)) = &current
                && let Some(answer) = answer(detail, Some(&previous), sample)
            {
                return Ok(Some((*time, answer)));
            }
            current = Some((time, previous));
        }
    }
    let oldest = current.and_then(|(time, sample)| Some((time, answer(detail, None, &sample)?)));
    Ok(oldest)
}
