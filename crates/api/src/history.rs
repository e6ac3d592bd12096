//! Answers about a span of the past: an object keyed by time, oldest first, streamed, so that
//! neither its length nor a slow reader costs memory. Where samples are missing an entry says why.

pub(crate) mod buckets;
mod coarse;
mod entries;
mod gaps;
pub(crate) mod plan;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Uri, header};
use nodestats_core::rates::Aggregate;
use nodestats_core::rollup::MINUTE;
use nodestats_core::{Life, Stored};
use nodestats_runtime::telemetry;
use nodestats_store::{Order, Walk};
use nodestats_wire::v1::{Gap, GapEntry};
use nodestats_wire::{Timestamp, routes};
use tracing::Instrument as _;

use crate::answer::{Answer, Detail, Unpacked, answer, unpack};
use crate::pieces::{self, Pieces};
use crate::pods::Names;
use crate::query::Span;
use crate::{ApiError, App};
use coarse::Coarse;
use entries::Entries;
use gaps::Gaps;

/// Samples that are read from the store at once.
const PAGE: usize = 64;
/// A piece of the answer is sent when it has this many bytes.
const PIECE: usize = 32 << 10;

/// Answers `detail` for each sample of the span.
pub(crate) async fn respond(
    app: &App,
    life: &Life,
    detail: Detail,
    mut span: Span,
    uri: &Uri,
) -> Result<Response, ApiError> {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if matches!(span.aggregate, Aggregate::Quantile(_)) && !detail.has_quantiles() {
        let told = "quantiles are those of CPU and memory of nodes, pods and units";
        return Err(ApiError::parameter("aggregate", told));
    }
    let kept = plan::Kept::of(app, life, &mut span).await?;
    let next = next_page(app, &life.uid, &span, &kept).await?;
    if let Some(next) = next {
        // The page ends before the next one begins.
        span.to = next.plus_micros(-1);
        headers.insert(header::LINK, link(uri, next));
    }
    let to = span.to.min(App::now());
    let resolution = kept.resolution(&span, to);
    let mut answer = Answers {
        coarse: None,
        samples: None,
        entries: Entries::default(),
        request: tracing::Span::current(),
    };
    let (coarse, samples) = kept.parts(&span);
    if let Some((from, to)) = coarse {
        let how = (span.step, span.aggregate);
        let coarse = Coarse::new(app, life, &detail, (from, to), how);
        answer.coarse = Some(if samples.is_some() {
            coarse.of_rollups()
        } else {
            coarse
        });
    }
    if let Some(from) = samples {
        let span = Span { from, ..span };
        answer.samples = Some(Cursor::start(app.clone(), life, detail, (span, next)).await?);
    }
    let piece = answer.next_piece().await?;
    let first = answer.samples.as_ref().and_then(|samples| samples.first);
    let resolution = match resolution {
        Some(told) => Some(told),
        None => first.map(|first| format!("raw;from=\"{first}\";to=\"{to}\"")),
    };
    if let Some(Ok(value)) = resolution.map(HeaderValue::try_from) {
        headers.insert(routes::RESOLUTION_HEADER, value);
    }
    Ok((headers, pieces::body(piece, answer)).into_response())
}

/// The entries of a history: first those by buckets, if any, and then those by samples.
struct Answers {
    coarse: Option<Coarse>,
    samples: Option<Cursor>,
    entries: Entries,
    /// The request, which lasts until the last piece is read.
    request: tracing::Span,
}

impl Pieces for Answers {
    async fn next(&mut self) -> Result<Bytes, ApiError> {
        let request = self.request.clone();
        self.next_piece().instrument(request).await
    }
}

impl Answers {
    /// The next piece of the body; an empty one is the end.
    async fn next_piece(&mut self) -> Result<Bytes, ApiError> {
        let mut piece = Vec::new();
        if let Some(coarse) = &mut self.coarse {
            coarse.write(&mut piece, &mut self.entries).await?;
            if coarse.is_finished() {
                self.coarse = None;
                if self.samples.is_none() {
                    piece.extend_from_slice(self.entries.end());
                }
            }
            if !piece.is_empty() {
                return Ok(piece.into());
            }
        }
        if let Some(samples) = &mut self.samples {
            let span = tracing::info_span!("piece");
            let begin = SystemTime::now();
            samples.decoding = Duration::ZERO;
            let written = samples.write_piece(&mut piece, &mut self.entries);
            written.instrument(span.clone()).await?;
            // One span for all samples of the piece, as if they had been read one after another.
            span.in_scope(|| telemetry::past("decode", begin, samples.decoding, [], None));
        }
        Ok(piece.into())
    }
}

/// Where the page after a limited one begins; `None` where it is the last.
async fn next_page(
    app: &App,
    uid: &str,
    span: &Span,
    kept: &plan::Kept,
) -> Result<Option<Timestamp>, ApiError> {
    let Some(limit) = span.limit else {
        return Ok(None);
    };
    if let (Some((from, to)), _) = kept.parts(span) {
        // By time: how many steps have an entry is not known before they are read.
        let step = span.step.unwrap_or(MINUTE);
        let end = from.floor_to(step);
        let end = end.plus_micros(step.saturating_mul(limit as i64));
        let last = to.max(span.to);
        return Ok((end <= last).then_some(end));
    }
    let nth = |from, n| app.store.nth_time(uid, (from, span.to), n);
    let Some(step) = span.step else {
        return Ok(nth(span.from, limit).await?);
    };
    let Some(first) = nth(span.from, 0).await? else {
        return Ok(None);
    };
    let end = first
        .floor_to(step)
        .plus_micros(step.saturating_mul(limit as i64));
    Ok(if end <= span.to {
        nth(end, 0).await?
    } else {
        None
    })
}

/// The same request from `next` on (RFC 8288).
fn link(uri: &Uri, next: Timestamp) -> HeaderValue {
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(uri.query().unwrap_or_default()).unwrap_or_default();
    let others = pairs.into_iter().filter(|(name, _)| name != "from");
    let from = ("from".to_owned(), next.to_string());
    let query =
        serde_urlencoded::to_string(std::iter::once(from).chain(others).collect::<Vec<_>>());
    let link = format!(
        "<{}?{}>; rel=\"next\"",
        uri.path(),
        query.unwrap_or_default()
    );
    HeaderValue::try_from(link).expect("a path and an encoded query are ASCII")
}

/// A walk through stored samples that writes JSON as it goes.
struct Cursor {
    app: App,
    uid: String,
    detail: Detail,
    span: Span,
    /// The first sample of the span, once it was met.
    first: Option<Timestamp>,
    /// The first sample of the next page.
    next: Option<Timestamp>,
    walk: Walk,
    page: VecDeque<Stored>,
    /// The last sample of the step under way, not written yet: a later one may replace it, and
    /// whether its key needs a fraction depends on what follows.
    held: Option<(Timestamp, Stored)>,
    previous: Option<Unpacked>,
    gaps: Gaps,
    /// What pods are called.
    names: Names,
    finished: bool,
    /// What unpacking the samples of a piece took.
    decoding: Duration,
}

impl Cursor {
    async fn start(
        app: App,
        life: &Life,
        detail: Detail,
        (span, next): (Span, Option<Timestamp>),
    ) -> Result<Self, ApiError> {
        let mut before = None;
        // The first entry's rates need the sample before the span.
        if span.from > Timestamp::MIN {
            let range = (Timestamp::MIN, span.from.plus_micros(-1));
            let wanted = detail.wanted();
            let samples = app
                .store
                .samples(&life.uid, range, Order::Descending, wanted, 1);
            before = samples.await?.into_iter().next();
        }
        let previous = before
            .as_ref()
            .map(|sample| unpack(sample, &detail))
            .transpose()?;
        let range = (span.from, span.to);
        let walk = app
            .store
            .walk(&life.uid, range, Order::Ascending, detail.wanted());
        Ok(Self {
            app,
            walk,
            gaps: Gaps::new(life, before.as_ref()),
            uid: life.uid.clone(),
            detail,
            span,
            first: None,
            next,
            page: VecDeque::new(),
            held: None,
            previous,
            names: Names::default(),
            finished: false,
            decoding: Duration::ZERO,
        })
    }

    /// Writes the next piece of the body; an empty one is the end.
    async fn write_piece(
        &mut self,
        piece: &mut Vec<u8>,
        entries: &mut Entries,
    ) -> Result<(), ApiError> {
        if self.finished {
            return Ok(());
        }
        // Each in turn, page by page: readers share what pushes leave.
        let reading = Arc::clone(&self.app.reading);
        let mut turn = reading.acquire().await;
        while piece.len() < PIECE {
            if self.page.is_empty() {
                drop(turn);
                turn = reading.acquire().await;
            }
            let Some(sample) = self.next_sample().await? else {
                if let Some(held) = self.held.take() {
                    self.write(piece, entries, held, None).await?;
                }
                if let Some(gap) = self.gaps.after(&self.app, self.span.to).await? {
                    let step = self.span.step;
                    let next = self
                        .next
                        .map(|next| step.map_or(next, |step| next.floor_to(step)));
                    self.write_gap(piece, entries, gap, next);
                }
                piece.extend_from_slice(entries.end());
                self.finished = true;
                break;
            };
            let gap = self.gaps.before(&self.app, &sample).await?;
            let time = sample.time();
            let key = self.span.step.map_or(time, |step| time.floor_to(step));
            let same_step = |held: &(Timestamp, Stored)| self.span.step.is_some() && held.0 == key;
            if let Some(held) = self.held.take_if(|held| !same_step(held)) {
                self.write(piece, entries, held, Some(key)).await?;
            }
            // One within a step is not seen at that resolution.
            if let Some(gap) = gap.filter(|_| self.held.is_none()) {
                self.write_gap(piece, entries, gap, Some(key));
            }
            self.held = Some((key, sample));
        }
        Ok(())
    }

    async fn next_sample(&mut self) -> Result<Option<Stored>, ApiError> {
        if self.page.is_empty() {
            self.page = self.walk.page(PAGE).await?.into();
        }
        let sample = self.page.pop_front();
        self.first = self.first.or(sample.as_ref().map(Stored::time));
        Ok(sample)
    }

    async fn write(
        &mut self,
        piece: &mut Vec<u8>,
        entries: &mut Entries,
        (key, sample): (Timestamp, Stored),
        next: Option<Timestamp>,
    ) -> Result<(), ApiError> {
        let begin = Instant::now();
        let sample = unpack(&sample, &self.detail)?;
        self.decoding += begin.elapsed();
        if let Some(mut answer) = answer(&self.detail, self.previous.as_ref(), &sample) {
            if let Answer::Pods(pods) = &mut answer {
                self.names.name(&self.app, &self.uid, pods).await?;
            }
            entries.write(piece, key, next, &answer);
        }
        self.previous = Some(sample);
        Ok(())
    }

    /// An entry for a gap, under the time at which the first sample of it was due.
    fn write_gap(
        &mut self,
        piece: &mut Vec<u8>,
        entries: &mut Entries,
        (due, gap): (Timestamp, Gap),
        next: Option<Timestamp>,
    ) {
        let due = due.max(self.span.from);
        let key = match self.span.step {
            None => due,
            Some(step) => {
                let after = entries
                    .last()
                    .map_or(Timestamp::MIN, |key| key.plus_micros(step));
                due.floor_to(step).max(after)
            }
        };
        // A pod that is over misses nothing, nor does one that has not begun.
        let of_interest = match &self.detail {
            Detail::Pod(pod, ..) => pod.lived(due, gap.to.unwrap_or(Timestamp::MAX)),
            _ => true,
        };
        let in_between = of_interest
            && entries.last().is_none_or(|written| written < key)
            && next.is_none_or(|next| key < next)
            && key <= self.span.to;
        if in_between {
            entries.write(piece, key, next, &GapEntry { gap });
        }
    }
}
