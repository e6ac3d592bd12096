//! Samples: rows `sample:[uid, 0, time, agent start, sequence]`, a payload each.

use std::ops::Bound;

use bytes::Bytes;
use nodestats_core::{FrameId, NodeIdentity, Stored, stored};
use nodestats_wire::Timestamp;
use nodestats_wire::v1::Reading;
use surrealdb::types::{Array, RecordId, RecordIdKey, RecordIdKeyRange, SurrealValue, Value};

use crate::database::bind;
use crate::{Error, NewEvent, Seen, Store};

/// Second part of each key: rows as they were pushed. Later kinds (blocks, rollups) sort after.
const RAW: i64 = 0;

/// A sample to keep.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSample {
    /// Where it belongs.
    pub(crate) key: SampleKey,
    /// Its encoded form.
    pub(crate) payload: Vec<u8>,
    /// Figures of a frame; 0 of a reading.
    pub(crate) values: u64,
    /// What it tells beside figures.
    pub(crate) events: Vec<NewEvent>,
}

/// What makes a sample of one node count once, in the order of time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleKey {
    /// When it was taken.
    pub time: Timestamp,
    /// The push that brought it; `None` for a reading, of which a time has one.
    pub push: Option<FrameId>,
}

/// In which order a range is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

impl NewSample {
    /// From an agent's frame: its own bytes, its header, and how many figures it has.
    pub fn from_frame(time: Timestamp, id: FrameId, frame: &[u8], values: u64) -> Self {
        Self {
            key: SampleKey {
                time,
                push: Some(id),
            },
            payload: stored::from_frame(frame),
            values,
            events: Vec::new(),
        }
    }

    /// With what it tells beside figures.
    #[must_use]
    pub fn with_events(mut self, events: Vec<NewEvent>) -> Self {
        self.events = events;
        self
    }

    /// Bytes that it takes: its payload, and what it tells.
    pub(crate) fn bytes(&self) -> usize {
        self.payload.len() + self.events.iter().map(NewEvent::bytes).sum::<usize>()
    }

    fn is_reconciled(&self) -> bool {
        self.events.iter().any(NewEvent::is_reconciled)
    }

    /// When it was taken, by its node's clock.
    pub fn time(&self) -> Timestamp {
        self.key.time
    }

    /// From a third party's reading; its `time` is set to `time`.
    pub fn from_reading(time: Timestamp, mut reading: Reading) -> Self {
        reading.time = Some(time);
        Self {
            key: SampleKey { time, push: None },
            payload: stored::from_reading(&reading),
            values: 0,
            events: Vec::new(),
        }
    }
}

impl SampleKey {
    /// The key of a sample that was read.
    pub fn of(sample: &Stored) -> Option<Self> {
        let time = sample.time()?;
        let push = match sample {
            Stored::Frame(frame) => Some(frame.id),
            Stored::Reading(_) => None,
        };
        Some(Self { time, push })
    }

    pub(crate) fn record(&self, uid: &str) -> Value {
        RecordId::new("sample", self.record_key(uid)).into_value()
    }

    fn record_key(&self, uid: &str) -> RecordIdKey {
        let (start, sequence) = match &self.push {
            Some(id) => (id.agent_start.to_string(), id.sequence),
            None => (String::new(), 0),
        };
        // Sequences are counted by a program that is restarted before 2^63.
        let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
        Array::from(vec![
            uid.to_owned().into_value(),
            RAW.into_value(),
            self.time.micros().into_value(),
            start.into_value(),
            sequence.into_value(),
        ])
        .into()
    }
}

/// The bound that is before all samples of `time`.
fn before(uid: &str, time: i64) -> RecordIdKey {
    Array::from(vec![
        uid.to_owned().into_value(),
        RAW.into_value(),
        time.into_value(),
    ])
    .into()
}

pub(crate) fn time_range(uid: &str, from: Timestamp, until: Timestamp) -> Value {
    let range = RecordIdKeyRange {
        start: Bound::Included(before(uid, from.micros())),
        end: Bound::Excluded(before(uid, until.micros())),
    };
    RecordId::new("sample", range).into_value()
}

impl Store {
    /// Keeps samples of one node, all or none; returns when they are synced to disk. One that is
    /// there already (the same push, or a reading of the same time) is replaced. `seen` is what
    /// they say of the node's freshness. A node that has used up its share of the disk stores nothing.
    pub async fn append(
        &self,
        node: &NodeIdentity,
        mut samples: Vec<NewSample>,
        seen: Seen,
    ) -> Result<(), Error> {
        self.check_share(node.uid())?;
        let is_reconciled = samples.iter().any(NewSample::is_reconciled);
        let telling = self.telling(is_reconciled).await;
        if telling.is_some() {
            let all = samples.iter_mut();
            let all: Vec<NewEvent> = all
                .flat_map(|sample| std::mem::take(&mut sample.events))
                .collect();
            let kept = self.reconcile_events(all).await?;
            if let Some(first) = samples.first_mut() {
                first.events = kept;
            }
        }
        let written = self.writer.write(node.uid(), samples, seen).await;
        drop(telling);
        written
    }

    /// At most `limit` stored samples of a node from `from` to `to`, both included, beyond
    /// `after` in the order asked for.
    pub async fn samples(
        &self,
        uid: &str,
        (from, to): (Timestamp, Timestamp),
        after: Option<&SampleKey>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Bytes>, Error> {
        let mut start = Bound::Included(before(uid, from.micros()));
        let mut end = Bound::Excluded(before(uid, to.micros() + 1));
        let direction = match order {
            Order::Ascending => {
                if let Some(after) = after {
                    start = Bound::Excluded(after.record_key(uid));
                }
                "ASC"
            }
            Order::Descending => {
                if let Some(after) = after {
                    end = Bound::Excluded(after.record_key(uid));
                }
                "DESC"
            }
        };
        let range = RecordId::new("sample", RecordIdKeyRange { start, end });
        let statement = format!("SELECT id, p FROM $range ORDER BY id {direction} LIMIT $limit");
        let variables = bind([
            ("range", range.into_value()),
            ("limit", (limit as i64).into_value()),
        ]);
        let rows: Vec<Value> = self
            .database
            .select(&statement, variables)
            .await
            .map_err(Error::Unavailable)?;
        rows.into_iter().map(payload).collect()
    }

    /// The time of the sample that has `n` before it, from `from` to `to`, both included; read
    /// from keys alone.
    pub async fn nth_time(
        &self,
        uid: &str,
        (from, to): (Timestamp, Timestamp),
        n: usize,
    ) -> Result<Option<Timestamp>, Error> {
        let range = time_range(uid, from, to.plus_micros(1));
        let statement = "SELECT VALUE id FROM $range LIMIT 1 START $n";
        let variables = bind([("range", range), ("n", (n as i64).into_value())]);
        let ids: Vec<RecordId> = self
            .database
            .select(statement, variables)
            .await
            .map_err(Error::Unavailable)?;
        let Some(id) = ids.into_iter().next() else {
            return Ok(None);
        };
        let RecordIdKey::Array(parts) = id.key else {
            return Err(Error::Damaged("sample"));
        };
        let micros = parts
            .into_vec()
            .into_iter()
            .nth(2)
            .and_then(|part| i64::from_value(part).ok());
        micros
            .and_then(Timestamp::from_micros)
            .map(Some)
            .ok_or(Error::Damaged("sample"))
    }

    /// How many samples of a node are kept.
    pub async fn count(&self, uid: &str) -> Result<u64, Error> {
        let range = time_range(uid, Timestamp::MIN, Timestamp::MAX);
        let statement = "SELECT VALUE count FROM (SELECT count() AS count FROM $range GROUP ALL)";
        let counts: Vec<i64> = self
            .database
            .select(statement, bind([("range", range)]))
            .await
            .map_err(Error::Unavailable)?;
        Ok(counts.first().map_or(0, |count| count.unsigned_abs()))
    }
}

fn payload(row: Value) -> Result<Bytes, Error> {
    let Value::Object(mut row) = row else {
        return Err(Error::Damaged("sample"));
    };
    match row.remove("p") {
        Some(Value::Bytes(payload)) => Ok(payload.into_inner()),
        _ => Err(Error::Damaged("sample")),
    }
}
