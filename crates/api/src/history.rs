//! Answers about a span of the past: an object keyed by time, oldest first, streamed, so that
//! neither its length nor a slow reader costs memory. Where samples are missing an entry says why.

mod gaps;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Uri, header};
use nodestats_core::{Life, Stored};
use nodestats_runtime::telemetry;
use nodestats_store::{Order, Walk};
use nodestats_wire::v1::{Gap, GapEntry};
use nodestats_wire::{Timestamp, routes};
use serde::Serialize;
use tracing::Instrument as _;

use crate::answer::{Answer, Detail, Unpacked, answer, unpack};
use crate::pieces::{self, Pieces};
use crate::pods::Names;
use crate::query::Span;
use crate::{ApiError, App};
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
    let next = next_page(app, &life.uid, &span).await?;
    if let Some(next) = next {
        // The page ends before the next one begins.
        span.to = next.plus_micros(-1);
        headers.insert(header::LINK, link(uri, next));
    }
    let to = span.to.min(App::now());
    let mut cursor = Cursor::start(app.clone(), life, detail, (span, next)).await?;
    let piece = cursor.next_piece().await?;
    if let Some(first) = cursor.first {
        let resolution = format!("raw;from=\"{first}\";to=\"{to}\"");
        if let Ok(value) = HeaderValue::try_from(resolution) {
            headers.insert(routes::RESOLUTION_HEADER, value);
        }
    }
    Ok((headers, pieces::body(piece, cursor)).into_response())
}

impl Pieces for Cursor {
    async fn next(&mut self) -> Result<Bytes, ApiError> {
        let request = self.request.clone();
        self.next_piece().instrument(request).await
    }
}

/// Where the page after a limited one begins; `None` where it is the last.
async fn next_page(app: &App, uid: &str, span: &Span) -> Result<Option<Timestamp>, ApiError> {
    let Some(limit) = span.limit else {
        return Ok(None);
    };
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
    /// Key of the entry that was written last.
    written: Option<Timestamp>,
    empty: bool,
    finished: bool,
    /// The request, which lasts until the last piece is read.
    request: tracing::Span,
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
            written: None,
            empty: true,
            finished: false,
            request: tracing::Span::current(),
            decoding: Duration::ZERO,
        })
    }

    /// The next piece of the body; an empty one is the end.
    async fn next_piece(&mut self) -> Result<Bytes, ApiError> {
        let span = tracing::info_span!("piece");
        let begin = SystemTime::now();
        self.decoding = Duration::ZERO;
        let piece = self.make_piece().instrument(span.clone()).await;
        // One span for all samples of the piece, as if they had been read one after another.
        span.in_scope(|| telemetry::past("decode", begin, self.decoding, [], None));
        piece
    }

    async fn make_piece(&mut self) -> Result<Bytes, ApiError> {
        let mut piece = Vec::new();
        if self.finished {
            return Ok(piece.into());
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
                    self.write(&mut piece, held, None).await?;
                }
                if let Some(gap) = self.gaps.after(&self.app, self.span.to).await? {
                    let step = self.span.step;
                    let next = self
                        .next
                        .map(|next| step.map_or(next, |step| next.floor_to(step)));
                    self.write_gap(&mut piece, gap, next);
                }
                piece.extend_from_slice(if self.empty { b"{}" } else { b"}" });
                self.finished = true;
                break;
            };
            let gap = self.gaps.before(&self.app, &sample).await?;
            let time = sample.time();
            let key = self.span.step.map_or(time, |step| time.floor_to(step));
            let same_step = |held: &(Timestamp, Stored)| self.span.step.is_some() && held.0 == key;
            if let Some(held) = self.held.take_if(|held| !same_step(held)) {
                self.write(&mut piece, held, Some(key)).await?;
            }
            // One within a step is not seen at that resolution.
            if let Some(gap) = gap.filter(|_| self.held.is_none()) {
                self.write_gap(&mut piece, gap, Some(key));
            }
            self.held = Some((key, sample));
        }
        Ok(piece.into())
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
            self.write_entry(piece, key, next, &answer);
        }
        self.previous = Some(sample);
        Ok(())
    }

    /// An entry for a gap, under the time at which the first sample of it was due.
    fn write_gap(
        &mut self,
        piece: &mut Vec<u8>,
        (due, gap): (Timestamp, Gap),
        next: Option<Timestamp>,
    ) {
        let due = due.max(self.span.from);
        let key = match self.span.step {
            None => due,
            Some(step) => {
                let after = self
                    .written
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
            && self.written.is_none_or(|written| written < key)
            && next.is_none_or(|next| key < next)
            && key <= self.span.to;
        if in_between {
            self.write_entry(piece, key, next, &GapEntry { gap });
        }
    }

    fn write_entry(
        &mut self,
        piece: &mut Vec<u8>,
        key: Timestamp,
        next: Option<Timestamp>,
        entry: &impl Serialize,
    ) {
        let second = key.second();
        let shares = |other: Option<Timestamp>| other.is_some_and(|other| other.second() == second);
        let name = if shares(self.written) || shares(next) {
            key.to_precise_key()
        } else {
            key.to_key()
        };
        piece.push(if self.empty { b'{' } else { b',' });
        serde_json::to_writer(&mut *piece, &name).expect("writing to memory");
        piece.push(b':');
        serde_json::to_writer(&mut *piece, entry).expect("writing to memory");
        self.empty = false;
        self.written = Some(key);
    }
}
