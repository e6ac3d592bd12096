//! Rollups: what is kept of each minute and each hour when its samples are gone, written in the transaction
//! that seals an hour.
//!
//! Rows `rollup:[uid, level, part, begin]` hold a part of the minutes of an hour (level 60), or of the hours of
//! a day (level 3600), and `rollup:[uid, 60, 3, hour]` the peaks of an hour's processes and how many samples
//! it was made of. `edge:[uid, hour]` is the last sample before an hour, from which its first rates follow,
//! and the processes that were kept then. `high:[uid, hour]` has what the most of any process was at each of
//! its samples, and is deleted with those.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound;
use std::time::SystemTime;

use bytes::Bytes;
use nodestats_core::rollup::{
    self, Bucket, Figures, Highs, Kept, MINUTE, Part, Peaks, Roller, Rollup,
};
use nodestats_core::{Sample, Stored, Wanted, block, stored};
use nodestats_wire::Timestamp;
use surrealdb::types::{
    Array, Object, RecordId, RecordIdKey, RecordIdKeyRange, SurrealValue, Value,
};

use crate::blocks::HOUR;
use crate::database::{bind, object};
use crate::samples::Order;
use crate::usage::{Slot, day};
use crate::{Error, Store};

/// The hours of a day are kept together.
const DAY: i64 = 24 * HOUR;
/// Rollups that are read at once.
const PAGE: usize = 24;
/// Peaks or highs that are read at once.
const AT_ONCE: usize = 500;
/// So many rows of a level are as new as the last one is as a rule.
const LATEST: i64 = 4;
/// Hours whose rollups are deleted at once.
const HOURS: i64 = 24 * 7;
/// The sample before an hour is looked for among so many.
const LOOK_BACK: usize = 64;
/// The part of a row of peaks, behind those of [`Part`].
const PEAKS: i64 = 3;

/// How coarse a rollup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A minute.
    Minute,
    /// An hour.
    Hour,
}

impl Level {
    /// Both, the finer first.
    pub const ALL: [Self; 2] = [Self::Minute, Self::Hour];

    /// Length of a bucket in microseconds.
    pub fn micros(self) -> i64 {
        match self {
            Self::Minute => MINUTE,
            Self::Hour => HOUR,
        }
    }

    /// The span that a row of the database has.
    fn span(self) -> i64 {
        match self {
            Self::Minute => HOUR,
            Self::Hour => DAY,
        }
    }

    /// By which keys name it.
    pub(crate) fn seconds(self) -> i64 {
        self.micros() / 1_000_000
    }
}

fn number(part: Part) -> i64 {
    match part {
        Part::Hosts => 0,
        Part::Groups => 1,
        Part::Processes => 2,
    }
}

/// The key of a part of a rollup.
fn key(uid: &str, level: Level, part: i64, begin: Timestamp) -> RecordIdKey {
    let key = vec![
        uid.to_owned().into_value(),
        level.seconds().into_value(),
        part.into_value(),
        begin.micros().into_value(),
    ];
    Array::from(key).into()
}

/// The key of what an hour has one of.
fn key_of_hour(uid: &str, hour: Timestamp) -> RecordIdKey {
    let key = vec![uid.to_owned().into_value(), hour.micros().into_value()];
    Array::from(key).into()
}

fn high(uid: &str, hour: Timestamp) -> Value {
    RecordId::new("high", key_of_hour(uid, hour)).into_value()
}

fn record(uid: &str, level: Level, part: i64, begin: Timestamp) -> Value {
    RecordId::new("rollup", key(uid, level, part, begin)).into_value()
}

fn edge(uid: &str, hour: Timestamp) -> Value {
    RecordId::new("edge", key_of_hour(uid, hour)).into_value()
}

/// The rows of a part from one time to another, the first included, the last not.
fn range(uid: &str, level: Level, part: i64, from: Timestamp, until: Timestamp) -> Value {
    let range = RecordIdKeyRange {
        start: Bound::Included(key(uid, level, part, from)),
        end: Bound::Excluded(key(uid, level, part, until)),
    };
    RecordId::new("rollup", range).into_value()
}

/// All edges of a node before a time.
fn edges(uid: &str, until: Timestamp) -> Value {
    let range = RecordIdKeyRange {
        start: Bound::Included(key_of_hour(uid, Timestamp::MIN)),
        end: Bound::Excluded(key_of_hour(uid, until)),
    };
    RecordId::new("edge", range).into_value()
}

/// What is known before an hour is rolled up.
#[derive(Debug, Default)]
pub(crate) struct Before {
    /// The last sample before it.
    sample: Option<Sample>,
    kept: HashSet<Kept>,
    /// Samples that the rollup was made of which is there.
    samples: u64,
    /// The first hour behind it that is rolled up already.
    next: Option<Timestamp>,
}

/// Rows of the database to be written.
#[derive(Debug, Default)]
pub(crate) struct Rolled {
    rows: Vec<Value>,
    highs: Vec<Value>,
    edges: Option<(Value, Value)>,
    pub(crate) bytes: usize,
    /// What rollups take, and took before.
    pub(crate) usage: Vec<(Slot, u64, u64)>,
}

impl Rolled {
    fn add(&mut self, id: Value, payload: &[u8]) {
        self.bytes += payload.len();
        self.rows.push(row(id, payload, None));
    }

    /// The variables of [`WRITE`].
    pub(crate) fn variables(self) -> [(&'static str, Value); 4] {
        let (new, old) = match self.edges {
            Some((new, old)) => (vec![new], vec![old]),
            None => (Vec::new(), Vec::new()),
        };
        [
            ("rolled", Value::Array(Array::from(self.rows))),
            ("highs", Value::Array(Array::from(self.highs))),
            ("edge", Value::Array(Array::from(new))),
            ("old_edges", Value::Array(Array::from(old))),
        ]
    }
}

/// Statements that write what was rolled up.
pub(crate) const WRITE: &str = "INSERT INTO rollup $rolled ON DUPLICATE KEY UPDATE p = $input.p RETURN NONE; \
     INSERT INTO high $highs ON DUPLICATE KEY UPDATE p = $input.p RETURN NONE; \
     DELETE $old_edges RETURN NONE; \
     INSERT INTO edge $edge ON DUPLICATE KEY UPDATE p = $input.p, k = $input.k RETURN NONE; ";

fn row(id: Value, payload: &[u8], more: Option<Vec<u8>>) -> Value {
    let bytes = |bytes: Vec<u8>| Value::Bytes(surrealdb::types::Bytes::from(bytes));
    object([
        ("id", Some(id)),
        ("p", Some(bytes(payload.to_vec()))),
        ("k", more.map(bytes)),
    ])
}

fn take_bytes(row: &mut Object, name: &str) -> Option<Bytes> {
    match row.remove(name)? {
        Value::Bytes(bytes) => Some(bytes.into_inner()),
        _ => None,
    }
}

/// What was made of the samples of an hour.
pub(crate) struct Made {
    minutes: Rollup,
    peaks: Peaks,
    highs: Highs,
    kept: Vec<Kept>,
}

/// Rolls up an hour, once all its samples were added.
pub(crate) fn make(roller: Roller, hour: Timestamp, kept: &HashSet<Kept>, samples: u64) -> Made {
    let (minutes, mut peaks, highs) = roller.finish(hour, kept);
    peaks.samples = samples;
    // Of those that ended meanwhile nothing will be seen again.
    let last = minutes.buckets.last();
    let living = last.map(|bucket| bucket.processes.iter().map(|(process, _)| process.life()));
    Made {
        peaks,
        highs,
        kept: living.into_iter().flatten().collect(),
        minutes,
    }
}

impl Made {
    /// What is known before the next hour that has samples, of which `sample` is the one before.
    pub(crate) fn before_next(&self, sample: Sample) -> Before {
        Before {
            sample: Some(sample),
            kept: self.kept.iter().cloned().collect(),
            ..Before::default()
        }
    }
}

/// A roller for the samples of an hour.
pub(crate) fn roller(before: &mut Before) -> Roller {
    let mut roller = Roller::new(MINUTE);
    if let Some(sample) = before.sample.take() {
        roller.begin_after(sample);
    }
    roller
}

impl Before {
    /// The processes that were kept.
    pub(crate) fn kept(&self) -> &HashSet<Kept> {
        &self.kept
    }

    /// The first hour behind it that is rolled up already.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.next
    }

    /// Whether a rollup of so many samples takes the place of the one that is there: where some of those are
    /// gone, it does not.
    pub(crate) fn is_less_than(&self, samples: u64) -> bool {
        self.samples <= samples
    }
}

impl Store {
    /// What is known before an hour.
    pub(crate) async fn before_hour(&self, uid: &str, hour: Timestamp) -> Result<Before, Error> {
        let wanted = vec![edge(uid, hour), record(uid, Level::Minute, PEAKS, hour)];
        let behind = hour.plus_micros(HOUR);
        let behind = range(uid, Level::Minute, PEAKS, behind, Timestamp::MAX);
        let variables = bind([
            ("rows", Value::Array(Array::from(wanted))),
            ("behind", behind),
        ]);
        let statement = "RETURN [(SELECT p, k, meta::tb(id) AS t FROM $rows), \
             (SELECT VALUE id FROM array::first([$behind]) LIMIT 1)]";
        let answer: Vec<Value> = self
            .database
            .select(statement, variables)
            .await
            .map_err(Error::Unavailable)?;
        let mut answer = answer.into_iter();
        let (Some(Value::Array(rows)), Some(Value::Array(behind))) = (answer.next(), answer.next())
        else {
            return Err(Error::Damaged("rollup"));
        };
        let mut before = Before {
            next: behind.into_iter().next().and_then(begin_of),
            ..Before::default()
        };
        let mut payload = None;
        for row in rows {
            let Value::Object(mut row) = row else {
                continue;
            };
            let is_edge = row.remove("t").and_then(|t| String::from_value(t).ok());
            let Some(bytes) = take_bytes(&mut row, "p") else {
                continue;
            };
            if is_edge.as_deref() == Some("edge") {
                let kept = take_bytes(&mut row, "k");
                before.kept = kept.map_or_else(HashSet::new, |kept| rollup::decode_kept(&kept));
                payload = Some(bytes);
            } else if let Ok(peaks) = Peaks::decode(&bytes) {
                before.samples = peaks.samples;
            }
        }
        let sample = if let Some(payload) = payload {
            stored::read(&payload).ok()
        } else {
            // What came late, or after a pause.
            let last = (hour.plus_micros(-HOUR), hour.plus_micros(-1));
            let of = (Level::Minute, Figures::All(Part::Processes));
            let last = self.buckets(uid, of, last).await?.pop();
            let processes = last.map(|bucket| bucket.processes).unwrap_or_default();
            before.kept = processes.iter().map(|(one, _)| one.life()).collect();
            self.last_counters(uid, hour).await?
        };
        let counters = sample.as_ref().and_then(Stored::counters);
        before.sample = counters.and_then(|counters| counters.sample(Wanted::All).ok());
        Ok(before)
    }

    /// The last sample of counters before a time, if it is among the last samples.
    async fn last_counters(&self, uid: &str, end: Timestamp) -> Result<Option<Stored>, Error> {
        let range = (Timestamp::MIN, end.plus_micros(-1));
        let mut walk = self.walk(uid, range, Order::Descending, Wanted::All);
        let mut seen = 0;
        while seen < LOOK_BACK {
            let page = walk.page(1).await?;
            if page.is_empty() {
                break;
            }
            seen += page.len();
            let found = page.into_iter().find(|sample| sample.counters().is_some());
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The rows of what was made of hours; `last` is the last sample of the first of them, as it was pushed.
    pub(crate) async fn rolled(
        &self,
        uid: &str,
        made: Vec<(Timestamp, Made)>,
        last: Option<Bytes>,
    ) -> Result<Rolled, Error> {
        let mut rolled = Rolled::default();
        if let (Some(payload), Some((hour, made))) = (last, made.first()) {
            let next = hour.plus_micros(HOUR);
            let kept = rollup::encode_kept(&made.kept);
            rolled.edges = Some((
                row(edge(uid, next), &payload, Some(kept)),
                edges(uid, *hour),
            ));
        }
        let made = made.into_iter();
        let made: Vec<(Timestamp, Made)> = made
            .filter(|(_, made)| !made.minutes.buckets.is_empty())
            .collect();
        let days: BTreeSet<Timestamp> = made.iter().map(|(hour, _)| hour.floor_to(DAY)).collect();
        let of_days = days.iter().flat_map(|day| {
            let record = |part| record(uid, Level::Hour, number(part), *day);
            Part::ALL.map(record)
        });
        let of_days: Vec<Value> = of_days.collect();
        let variables = bind([("rows", Value::Array(Array::from(of_days)))]);
        let rows: Vec<Value> = self
            .database
            .select("SELECT id, p FROM $rows", variables)
            .await
            .map_err(Error::Unavailable)?;
        let mut known = Vec::new();
        for row in rows {
            let Value::Object(mut row) = row else {
                continue;
            };
            let payload = take_bytes(&mut row, "p");
            known.extend(row.remove("id").zip(payload));
        }
        let (of_node, uid) = (uid, uid.to_owned());
        let coding = tokio::task::spawn_blocking(move || {
            let hours = made.iter();
            let whole: Vec<(Timestamp, Bucket)> = hours
                .map(|(hour, made)| (*hour, made.minutes.whole(*hour)))
                .collect();
            for part in Part::ALL {
                for (hour, made) in &made {
                    let bytes = rollup::encode(&made.minutes, part)?;
                    let slot = (Level::Minute.seconds(), day(*hour));
                    rolled.usage.push((slot, 0, bytes.len() as u64));
                    rolled.add(record(&uid, Level::Minute, number(part), *hour), &bytes);
                }
                for begin in &days {
                    let id = record(&uid, Level::Hour, number(part), *begin);
                    let kept = known.iter().find(|(known, _)| *known == id);
                    let mut rollup = kept.map_or_else(Rollup::default, |(_, bytes)| {
                        rollup::decode(bytes, Figures::All(part)).unwrap_or_else(|error| {
                            tracing::error!(node = uid, day = %begin, %error, "a rollup cannot be read; it begins anew");
                            Rollup::default()
                        })
                    });
                    let of_day = whole
                        .iter()
                        .filter(|(hour, _)| hour.floor_to(DAY) == *begin);
                    for (hour, bucket) in of_day {
                        rollup.buckets.retain(|known| known.begin != *hour);
                        rollup.buckets.push(bucket.clone());
                    }
                    rollup.buckets.sort_by_key(|bucket| bucket.begin);
                    let bytes = rollup::encode(&rollup, part)?;
                    let before = kept.map_or(0, |(_, bytes)| bytes.len() as u64);
                    let slot = (Level::Hour.seconds(), day(*begin));
                    rolled.usage.push((slot, before, bytes.len() as u64));
                    rolled.add(id, &bytes);
                }
            }
            for (hour, made) in &made {
                let id = record(&uid, Level::Minute, PEAKS, *hour);
                let bytes = made.peaks.encode();
                let slot = (Level::Minute.seconds(), day(*hour));
                rolled.usage.push((slot, 0, bytes.len() as u64));
                rolled.add(id, &bytes);
                let bytes = made.highs.encode();
                rolled.bytes += bytes.len();
                rolled.highs.push(row(high(&uid, *hour), &bytes, None));
            }
            Ok(rolled)
        });
        let coded: Result<Rolled, block::Error> = coding.await.map_err(|_| Error::Closing)?;
        // More groups than a rollup takes: samples are sealed all the same.
        Ok(coded.unwrap_or_else(|error| {
            tracing::error!(node = of_node, %error, "an hour is not rolled up");
            Rolled::default()
        }))
    }

    /// Buckets of a node whose begin is within a span, both ends included, in the order of time, with these
    /// figures. What cannot be read is told of and left out.
    pub async fn buckets(
        &self,
        uid: &str,
        (level, figures): (Level, Figures),
        (from, to): (Timestamp, Timestamp),
    ) -> Result<Vec<Bucket>, Error> {
        let mut all = Vec::new();
        let mut next = Some(from.floor_to(level.span()));
        while let Some(begin) = next.take() {
            let part = number(figures.part());
            let rows = range(uid, level, part, begin, to.plus_micros(1));
            let variables = bind([("all", rows), ("limit", (PAGE as i64).into_value())]);
            let statement = "SELECT id, p FROM array::first([$all]) LIMIT $limit";
            let rows: Vec<Value> = self
                .database
                .select(statement, variables)
                .await
                .map_err(Error::Unavailable)?;
            let is_last = rows.len() < PAGE;
            for row in rows {
                let Value::Object(mut row) = row else {
                    continue;
                };
                let payload = take_bytes(&mut row, "p");
                let begin = row.remove("id").and_then(begin_of);
                let (Some(payload), Some(begin)) = (payload, begin) else {
                    continue;
                };
                if !is_last {
                    next = Some(begin.plus_micros(1));
                }
                match rollup::decode(&payload, figures) {
                    Ok(rollup) => all.extend(rollup.buckets),
                    Err(error) => {
                        self.metrics.damaged();
                        tracing::error!(node = uid, %begin, %error, "a rollup cannot be read");
                    }
                }
            }
        }
        all.retain(|bucket: &Bucket| (from..=to).contains(&bucket.begin));
        Ok(all)
    }

    /// From when and until when a node has rollups of a level, the end not included; `None` where it has none.
    pub async fn rolled_span(
        &self,
        uid: &str,
        level: Level,
    ) -> Result<Option<(Timestamp, Timestamp)>, Error> {
        // The last is looked for where it is as a rule: all of them would be read to begin at the end.
        let now = Timestamp::from_system(SystemTime::now());
        let mut from = now.plus_micros(-LATEST * level.span());
        loop {
            let (all, latest) = (
                range(uid, level, 0, Timestamp::MIN, Timestamp::MAX),
                range(uid, level, 0, from, Timestamp::MAX),
            );
            let statement = "RETURN [(SELECT VALUE id FROM array::first([$all]) LIMIT 1), \
                 (SELECT VALUE id FROM $latest)]";
            let ends: Vec<Value> = self
                .database
                .select(statement, bind([("all", all), ("latest", latest)]))
                .await
                .map_err(Error::Unavailable)?;
            let mut ends = ends.into_iter().map(|ids| match ids {
                Value::Array(ids) => ids.into_iter().filter_map(begin_of).collect(),
                _ => Vec::new(),
            });
            let (first, latest) = (
                ends.next().unwrap_or_default(),
                ends.next().unwrap_or_default(),
            );
            match (first.first(), latest.last()) {
                (None, _) => return Ok(None),
                (Some(first), Some(last)) => {
                    return Ok(Some((*first, last.plus_micros(level.span()))));
                }
                (Some(_), None) => from = Timestamp::MIN,
            }
        }
    }

    /// The peaks of nodes in some hours, in the order of what is asked for.
    pub async fn peaks(&self, asked: &[(&str, Timestamp)]) -> Result<Vec<Option<Peaks>>, Error> {
        let ids = asked.iter();
        let ids = ids.map(|(uid, hour)| record(uid, Level::Minute, PEAKS, *hour));
        let found = self.payloads(ids.collect()).await?.into_iter();
        Ok(found.map(|found| Peaks::decode(&found?).ok()).collect())
    }

    /// The highs of nodes in some hours, in the order of what is asked for; of those whose samples are not sealed
    /// there are none, and of those whose samples are gone.
    pub async fn highs(&self, asked: &[(&str, Timestamp)]) -> Result<Vec<Option<Highs>>, Error> {
        let ids = asked.iter().map(|(uid, hour)| high(uid, *hour));
        let found = self.payloads(ids.collect()).await?.into_iter();
        Ok(found.map(|found| Highs::decode(&found?).ok()).collect())
    }

    /// Whether a node may have samples in a span that its peaks and highs do not know of, since they came after
    /// their hour was sealed. On a shared database they are known of once they are sealed too.
    pub fn may_have_unsealed(&self, uid: &str, span: (Timestamp, Timestamp)) -> bool {
        self.frontier.has_rows(uid, span)
    }

    /// What these records hold, in their order.
    async fn payloads(&self, ids: Vec<Value>) -> Result<Vec<Option<Bytes>>, Error> {
        let mut found = Vec::with_capacity(ids.len());
        for some in ids.chunks(AT_ONCE) {
            let variables = bind([("rows", Value::Array(Array::from(some.to_vec())))]);
            let rows: Vec<Value> = self
                .database
                .select("SELECT id, p FROM $rows", variables)
                .await
                .map_err(Error::Unavailable)?;
            // In the order of the records asked for, without those that are not there.
            let mut rows = rows.into_iter().peekable();
            for id in some {
                let row = rows.next_if(|row| match row {
                    Value::Object(row) => row.get("id") == Some(id),
                    _ => false,
                });
                found.push(match row {
                    Some(Value::Object(mut row)) => take_bytes(&mut row, "p"),
                    _ => None,
                });
            }
        }
        Ok(found)
    }

    /// Deletes rollups of a level before a time, in bounded pieces, and with those of the minutes the peaks.
    pub(crate) async fn delete_rollups(
        &self,
        uid: &str,
        level: Level,
        end: Timestamp,
    ) -> Result<(), Error> {
        loop {
            let all = range(uid, level, 0, Timestamp::MIN, end);
            let Some(first) = self.first_id(all).await?.and_then(begin_of) else {
                return Ok(());
            };
            // A row goes once all of it is past.
            let last = first.plus_micros(level.span());
            if end != Timestamp::MAX && last > end {
                return Ok(());
            }
            let until = first
                .plus_micros(HOURS * HOUR)
                .min(end.floor_to(level.span()));
            let until = if end == Timestamp::MAX {
                end
            } else {
                until.max(last)
            };
            let ranges = (0..=PEAKS).map(|part| range(uid, level, part, Timestamp::MIN, until));
            let variables = bind([("ranges", Value::Array(ranges.collect::<Vec<_>>().into()))]);
            let statement = "FOR $range IN $ranges { DELETE $range RETURN NONE };";
            let deleted = self.database.delete_patiently(statement, variables).await;
            deleted.map_err(Error::Unavailable)?;
        }
    }

    /// What rollups of a node take, by level and day.
    pub(crate) async fn bytes_rolled(&self, uid: &str) -> Result<Vec<(Slot, u64)>, Error> {
        let mut found = Vec::new();
        for level in Level::ALL {
            for part in 0..=PEAKS {
                let all = range(uid, level, part, Timestamp::MIN, Timestamp::MAX);
                let statement = "SELECT VALUE [id, bytes::len(p)] FROM $all";
                let rows: Vec<Value> = self
                    .database
                    .select(statement, bind([("all", all)]))
                    .await
                    .map_err(Error::Unavailable)?;
                found.extend(rows.into_iter().filter_map(|row| {
                    let mut pair = Vec::<Value>::from_value(row).ok()?.into_iter();
                    let begin = begin_of(pair.next()?)?;
                    let bytes = i64::from_value(pair.next()?).ok()?;
                    Some(((level.seconds(), day(begin)), bytes.unsigned_abs()))
                }));
            }
        }
        Ok(found)
    }

    /// Deletes the oldest day of rollups of a node, those of minutes before those of hours, and says of which
    /// day and how much that was; `None` where there is none before `today`.
    pub(crate) async fn delete_oldest_rollups(
        &self,
        uid: &str,
        today: Timestamp,
    ) -> Result<Option<(Timestamp, u64)>, Error> {
        for level in Level::ALL {
            let Some((first, _)) = self.rolled_span(uid, level).await? else {
                continue;
            };
            let begin = first.floor_to(DAY);
            let end = begin.plus_micros(DAY);
            if end > today.floor_to(DAY) {
                continue;
            }
            let slot = (level.seconds(), day(begin));
            let of_day = self.bytes_rolled(uid).await?.into_iter();
            let bytes = of_day
                .filter(|(of, _)| *of == slot)
                .map(|(_, bytes)| bytes)
                .sum();
            self.delete_rollups(uid, level, end).await?;
            self.usage.deleted(uid, level.seconds(), begin, bytes);
            return Ok(Some((begin, bytes)));
        }
        Ok(None)
    }

    /// Deletes all that was rolled up of a node.
    pub(crate) async fn purge_rollups(&self, uid: &str) -> Result<(), Error> {
        for level in Level::ALL {
            self.delete_rollups(uid, level, Timestamp::MAX).await?;
        }
        let edges = bind([("edges", edges(uid, Timestamp::MAX))]);
        let deleted = self
            .database
            .delete("DELETE $edges RETURN NONE", edges)
            .await;
        deleted.map_err(Error::Unavailable)
    }

    /// Whether a node has rollups of an hour before that of its oldest sample, or of a day: of what its samples
    /// were of that are gone.
    pub async fn is_rolled_before(&self, uid: &str, oldest: Timestamp) -> Result<bool, Error> {
        for level in Level::ALL {
            let rolled = self.rolled_span(uid, level).await?;
            if rolled.is_some_and(|(begin, _)| begin < oldest.floor_to(level.span())) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether anything is rolled up of a node.
    pub(crate) async fn has_rollups(&self, uid: &str) -> Result<bool, Error> {
        for level in Level::ALL {
            if self.rolled_span(uid, level).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn begin_of(id: Value) -> Option<Timestamp> {
    let Value::RecordId(RecordId {
        key: RecordIdKey::Array(key),
        ..
    }) = id
    else {
        return None;
    };
    let begin = key.into_vec().into_iter().nth(3)?;
    Timestamp::from_micros(i64::from_value(begin).ok()?)
}

/// The samples of an hour in a roller.
pub(crate) fn roll(roller: &mut Roller, samples: &[Stored]) -> Result<(), stored::Error> {
    for sample in samples {
        if let Some(counters) = sample.counters() {
            roller.add(counters.time, counters.sample(Wanted::All)?);
        }
    }
    Ok(())
}

/// Only as many as are counters.
pub(crate) fn counted(samples: &[Stored]) -> u64 {
    samples
        .iter()
        .filter(|sample| sample.counters().is_some())
        .count() as u64
}
