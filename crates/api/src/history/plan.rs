//! Which level of history answers which part of a span.

use nodestats_core::rates::Aggregate;
use nodestats_core::rollup::{HOUR, MINUTE};
use nodestats_core::{Life, Stored, Wanted};
use nodestats_store::{Level, Order};
use nodestats_wire::Timestamp;

use crate::query::Span;
use crate::{ApiError, App};

/// Points that an automatic step aims at.
const POINTS: i64 = 500;
/// Lengths that people know, in seconds.
const STEPS: [i64; 20] = [
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400,
    604_800, 2_592_000,
];

/// What is kept of a node.
pub(super) struct Kept {
    /// The first sample.
    samples: Option<Timestamp>,
    /// From when and until when there are rollups of minutes and of hours.
    minutes: Option<(Timestamp, Timestamp)>,
    hours: Option<(Timestamp, Timestamp)>,
    /// The samples are a third party's, of which there are no rollups.
    is_gauges: bool,
}

impl Kept {
    /// Looks at what is kept, and chooses the step of a span where that is still to be chosen.
    pub(super) async fn of(app: &App, life: &Life, span: &mut Span) -> Result<Self, ApiError> {
        let store = &app.store;
        let samples = store.oldest(&life.uid).await?;
        let minutes = store.rolled_span(&life.uid, Level::Minute).await?;
        let hours = store.rolled_span(&life.uid, Level::Hour).await?;
        if span.is_auto {
            let begins = [minutes, hours].into_iter().flatten();
            let begins = begins.map(|(begin, _)| begin).chain(samples);
            let from = begins.min().map_or(span.from, |begin| begin.max(span.from));
            span.step = Some(automatic_step((from, span.to)));
        }
        let mut is_gauges = false;
        if minutes.is_none() && hours.is_none() && is_of_buckets(span) {
            let range = (span.from, span.to);
            let first = store.samples(&life.uid, range, Order::Ascending, Wanted::Host, 1);
            let first = first.await?.pop();
            is_gauges = matches!(first, Some(Stored::Gauges(_)));
        }
        Ok(Self {
            samples,
            minutes,
            hours,
            is_gauges,
        })
    }

    /// The first rollup, where there is one of a time before the samples: rows of rollups begin with the hour or
    /// the day of their first sample.
    fn first_rolled(&self) -> Option<Timestamp> {
        let mut first = self.samples;
        for (kept, span) in [(self.minutes, HOUR), (self.hours, 24 * HOUR)] {
            let begin = kept.map(|(begin, _)| begin);
            let is_before =
                |begin: &Timestamp| first.is_none_or(|first| *begin < first.floor_to(span));
            first = begin.filter(is_before).or(first);
        }
        first
    }

    /// The part of a span that is answered by buckets, and where the part begins that is answered by samples.
    pub(super) fn parts(&self, span: &Span) -> (Option<(Timestamp, Timestamp)>, Option<Timestamp>) {
        let from = self
            .first_rolled()
            .map_or(span.from, |begin| span.from.max(begin));
        if is_of_buckets(span) && !self.is_gauges {
            let to = span.to.min(App::now().plus_micros(HOUR));
            return (
                (from <= to).then_some((from, to)),
                (from > to).then_some(span.from),
            );
        }
        // Where samples are gone.
        let samples = self.samples.unwrap_or(Timestamp::MAX);
        let is_rolled = self.first_rolled().is_some_and(|first| first < samples);
        if !is_rolled || from >= samples {
            return (None, Some(span.from));
        }
        let end = span.to.min(samples.plus_micros(-1)).min(App::now());
        let coarse = (from <= end).then_some((from, end));
        (
            coarse,
            (samples <= span.to)
                .then_some(samples)
                .or(coarse.is_none().then_some(span.from)),
        )
    }

    /// Which level answers from when to when; `None` where samples alone do.
    pub(super) fn resolution(&self, span: &Span, to: Timestamp) -> Option<String> {
        let (coarse, samples) = self.parts(span);
        let (from, end) = coarse?;
        let end = end.min(to);
        let mut told = Vec::new();
        let mut tell = |level: &str, from: Timestamp, to: Timestamp| {
            if from <= to {
                told.push(format!("{level};from=\"{from}\";to=\"{to}\""));
            }
        };
        let step = span.step.unwrap_or_default();
        let minutes = self.minutes;
        let is_of_samples = is_of_buckets(span) && step % MINUTE != 0;
        if is_of_buckets(span) && step % HOUR == 0 {
            tell("hour", from, end);
        } else if is_of_samples {
            let samples = self.samples.unwrap_or(end);
            let minute = minutes.map_or(samples, |(begin, _)| begin);
            tell("hour", from, minute.min(samples).plus_micros(-1).min(end));
            tell("minute", from.max(minute), samples.plus_micros(-1).min(end));
            tell("raw", from.max(samples), end);
        } else {
            // What is not sealed is made of samples.
            let (begin, sealed) = minutes.unwrap_or((end, end));
            tell("hour", from, begin.plus_micros(-1).min(end));
            tell("minute", from.max(begin), sealed.plus_micros(-1).min(end));
            if samples.is_none() {
                tell("raw", from.max(sealed), end);
            }
        }
        if let Some(samples) = samples {
            tell("raw", samples, to);
        }
        (!told.is_empty()).then(|| told.join(", "))
    }
}

/// The step, in microseconds, of which a span has about [`POINTS`].
pub(crate) fn automatic_step((from, to): (Timestamp, Timestamp)) -> i64 {
    let to = to.min(App::now());
    let seconds = (to.micros().saturating_sub(from.micros()) / 1_000_000).max(1);
    let fits = |step: &&i64| seconds <= **step * POINTS;
    let step = STEPS.iter().find(fits).unwrap_or(&STEPS[STEPS.len() - 1]);
    step * 1_000_000
}

/// Whether a span is answered by buckets wherever there are any.
fn is_of_buckets(span: &Span) -> bool {
    let is_coarse = span.step.is_some_and(|step| step % MINUTE == 0);
    is_coarse || span.aggregate != Aggregate::Natural
}
