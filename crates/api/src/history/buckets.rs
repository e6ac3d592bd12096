//! Where the buckets of a history come from: rollups where they are fine enough, samples where those are
//! there, and else the best that is kept.

use std::collections::BTreeMap;

use nodestats_core::rollup::{Bucket, Figures, HOUR, MINUTE, Part, Roller, Rollup};
use nodestats_core::{Stored, Wanted};
use nodestats_store::{Level, Order};
use nodestats_wire::Timestamp;

use crate::answer::unreadable;
use crate::{ApiError, App};

/// Hours that are read at once: of hosts, and of what has many rows.
const HOURS_OF_HOSTS: i64 = 24;
const HOURS_OF_ROWS: i64 = 2;
/// So many times as many where hours are all that is wanted.
const OF_HOURS: i64 = 14;
/// Samples that are read at once.
const PAGE: usize = 64;

/// Which levels answered.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Levels {
    pub(crate) samples: bool,
    pub(crate) minutes: bool,
    pub(crate) hours: bool,
}

impl Levels {
    pub(crate) fn add(&mut self, other: Self) {
        self.samples |= other.samples;
        self.minutes |= other.minutes;
        self.hours |= other.hours;
    }

    /// As an answer says it.
    pub(crate) fn name(self) -> &'static str {
        match (self.hours, self.minutes, self.samples) {
            (true, false, false) => "hour",
            (true, true, false) => "hour, minute",
            (true, false, true) => "hour, raw",
            (true, true, true) => "hour, minute, raw",
            (false, true, false) => "minute",
            (false, true, true) => "minute, raw",
            (false, false, _) => "raw",
        }
    }
}

/// Which source comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preference {
    /// Samples, in buckets of a length that rollups do not have.
    Samples,
    /// Rollups of minutes.
    Minutes,
    /// Rollups of hours.
    Hours,
}

/// Buckets of a node in the order of time.
pub(crate) struct Source {
    app: App,
    uid: String,
    figures: Figures,
    preference: Preference,
    /// Length of buckets that are made of samples.
    step: i64,
    /// Whether samples are looked at.
    with_samples: bool,
    from: Timestamp,
    to: Timestamp,
    /// The hour that is next.
    next: Timestamp,
    levels: Levels,
}

impl Source {
    /// Buckets from one time to another, both included; minutes that are there in part count whole.
    pub(crate) fn new(
        app: &App,
        uid: &str,
        figures: Figures,
        (from, to): (Timestamp, Timestamp),
        step: Option<i64>,
    ) -> Self {
        let preference = match step {
            Some(step) if step % HOUR == 0 => Preference::Hours,
            Some(step) if step % MINUTE != 0 => Preference::Samples,
            _ => Preference::Minutes,
        };
        let step = match (preference, step) {
            (Preference::Samples, Some(step)) => step,
            _ => MINUTE,
        };
        Self {
            app: app.clone(),
            uid: uid.to_owned(),
            figures,
            preference,
            step,
            with_samples: true,
            from: from.floor_to(step),
            to: to.floor_to(step).plus_micros(step - 1),
            next: from.floor_to(HOUR),
            levels: Levels::default(),
        }
    }

    /// Of rollups alone.
    pub(crate) fn of_rollups(mut self) -> Self {
        self.with_samples = false;
        self
    }

    /// The same of the host, beside which rows of processes stand.
    pub(crate) fn hosts_beside(&self) -> Self {
        Self {
            app: self.app.clone(),
            uid: self.uid.clone(),
            figures: Figures::All(Part::Hosts),
            ..*self
        }
    }

    /// The next buckets; `None` at the end. There may be none in between.
    pub(crate) async fn page(&mut self, hours: i64) -> Result<Option<Vec<Bucket>>, ApiError> {
        if self.next > self.to {
            return Ok(None);
        }
        let begin = self.next;
        let end = begin.plus_micros(hours * HOUR);
        self.next = end;
        let last = end.plus_micros(-1).min(self.to);
        let mut all: BTreeMap<Timestamp, Vec<Bucket>> = BTreeMap::new();
        let whole = |hour: Timestamp| hour >= self.from && hour.plus_micros(HOUR - 1) <= self.to;
        if self.preference == Preference::Hours {
            for bucket in self.rolled(Level::Hour, (begin, last)).await? {
                if whole(bucket.begin) {
                    self.levels.hours = true;
                    all.insert(bucket.begin, vec![bucket]);
                }
            }
        }
        let sources = match self.preference {
            Preference::Samples => [false, true],
            Preference::Minutes | Preference::Hours => [true, false],
        };
        for is_rolled in sources {
            for range in missing(&all, (begin, last)) {
                let buckets = if is_rolled {
                    // Of all of its last hour: where that has other minutes than these, there are none of these.
                    let end = range.1.floor_to(HOUR).plus_micros(HOUR - 1);
                    self.rolled(Level::Minute, (range.0, end)).await?
                } else if self.with_samples {
                    self.of_samples(range).await?
                } else {
                    Vec::new()
                };
                let level = if is_rolled {
                    &mut self.levels.minutes
                } else {
                    &mut self.levels.samples
                };
                *level |= !buckets.is_empty();
                for bucket in buckets {
                    let hour = bucket.begin.floor_to(HOUR);
                    all.entry(hour).or_default().push(bucket);
                }
            }
        }
        let mut whole_hours = Vec::new();
        if self.preference != Preference::Hours {
            for range in missing(&all, (begin, last)) {
                whole_hours.extend(self.rolled(Level::Hour, range).await?);
            }
        }
        self.levels.hours |= !whole_hours.is_empty();
        let is_within = |bucket: &Bucket| bucket.begin >= self.from && bucket.begin <= self.to;
        let mut buckets: Vec<Bucket> = all.into_values().flatten().filter(is_within).collect();
        // An hour's own counts also where the span begins within it.
        buckets.extend(whole_hours);
        buckets.sort_by_key(|bucket| bucket.begin);
        Ok(Some(buckets))
    }

    /// Which levels there was something of.
    pub(crate) fn levels(&self) -> Levels {
        self.levels
    }

    /// The hour that is next.
    pub(crate) fn position(&self) -> Timestamp {
        self.next
    }

    /// How many hours are read at once.
    pub(crate) fn hours(&self) -> i64 {
        let hours = match self.figures.part() {
            Part::Hosts => HOURS_OF_HOSTS,
            Part::Groups | Part::Processes => HOURS_OF_ROWS,
        };
        match self.preference {
            Preference::Hours => hours * OF_HOURS,
            _ => hours,
        }
    }

    async fn rolled(
        &self,
        level: Level,
        range: (Timestamp, Timestamp),
    ) -> Result<Vec<Bucket>, ApiError> {
        let of = (level, self.figures);
        let found = self.app.store.buckets(&self.uid, of, range);
        Ok(found.await?)
    }

    /// Buckets made of samples.
    async fn of_samples(&self, range: (Timestamp, Timestamp)) -> Result<Vec<Bucket>, ApiError> {
        let (from, to) = (range.0.max(self.from), range.1);
        let wanted = match self.figures.part() {
            Part::Hosts => Wanted::Host,
            Part::Groups => Wanted::All,
            Part::Processes => Wanted::Processes,
        };
        roll(&self.app, &self.uid, (from, to), (self.step, wanted)).await
    }
}

/// Samples of a span as buckets of `step`, or as one where that is 0; with all processes.
pub(crate) async fn roll(
    app: &App,
    uid: &str,
    (from, to): (Timestamp, Timestamp),
    (step, wanted): (i64, Wanted),
) -> Result<Vec<Bucket>, ApiError> {
    let mut walk = app.store.walk(uid, (from, to), Order::Ascending, wanted);
    let mut roller = None;
    loop {
        let page = walk.page(PAGE).await?;
        if page.is_empty() {
            break;
        }
        if roller.is_none() {
            let mut new = Roller::new(step);
            if from > Timestamp::MIN {
                let before = (Timestamp::MIN, from.plus_micros(-1));
                let found = app.store.samples(uid, before, Order::Descending, wanted, 1);
                let found = found.await?.pop();
                if let Some(counters) = found.as_ref().and_then(Stored::counters) {
                    new.begin_after(counters.sample(wanted).map_err(unreadable)?);
                }
            }
            roller = Some(new);
        }
        let Some(roller) = &mut roller else { break };
        for sample in page {
            if let Some(counters) = sample.counters() {
                roller.add(counters.time, counters.sample(wanted).map_err(unreadable)?);
            }
        }
    }
    Ok(roller.map(Roller::all).unwrap_or_default())
}

/// Spans of the hours from one time to another of which there is nothing yet.
fn missing(
    all: &BTreeMap<Timestamp, Vec<Bucket>>,
    (begin, last): (Timestamp, Timestamp),
) -> Vec<(Timestamp, Timestamp)> {
    let mut spans: Vec<(Timestamp, Timestamp)> = Vec::new();
    let mut hour = begin;
    while hour <= last {
        let end = hour.plus_micros(HOUR - 1).min(last);
        if !all.contains_key(&hour) {
            match spans.last_mut() {
                Some(span) if span.1.plus_micros(1) == hour => span.1 = end,
                _ => spans.push((hour, end)),
            }
        }
        hour = hour.plus_micros(HOUR);
    }
    spans
}

/// Buckets of the same step as one.
pub(crate) fn together(begin: Timestamp, mut buckets: Vec<Bucket>) -> Bucket {
    if buckets.len() == 1
        && let Some(mut only) = buckets.pop()
    {
        only.begin = begin;
        return only;
    }
    Rollup { buckets }.whole(begin)
}
