//! Samples as they were pushed: rows `sample:[uid, 0, time, agent start, sequence]`, a payload each, until
//! they are sealed.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound;

use bytes::Bytes;
use nodestats_core::{FrameId, NodeIdentity, SampleKey, Wanted, stored};
use nodestats_wire::Timestamp;
use nodestats_wire::v1::Reading;
use surrealdb::types::{Array, RecordId, RecordIdKey, RecordIdKeyRange, SurrealValue, Value};

use crate::blocks::{BlockKey, blocks_within, hour_of};
use crate::database::bind;
use crate::seal::unsealed_since;
use crate::{Error, NewEvent, Seen, Store};

/// What is sealed of an hour is looked at so often.
const ATTEMPTS: usize = 5;
/// Rows that are read at once to be counted among blocks.
const COUNTED: usize = 64;
/// Second part of each key: a sample as it was pushed.
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

/// In which order a range is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

impl Order {
    /// Whether a block has samples at this time, or behind it.
    pub(crate) fn is_ahead(self, block: &BlockKey, time: Timestamp) -> bool {
        match self {
            Self::Ascending => block.last >= time,
            Self::Descending => block.first <= time,
        }
    }
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

pub(crate) fn record(key: &SampleKey, uid: &str) -> RecordId {
    RecordId::new("sample", record_key(key, uid))
}

pub(crate) fn record_key(key: &SampleKey, uid: &str) -> RecordIdKey {
    let (start, sequence) = match &key.push {
        Some(id) => (id.agent_start.to_string(), id.sequence),
        None => (String::new(), 0),
    };
    // Sequences are counted by a program that is restarted before 2^63.
    let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
    Array::from(vec![
        uid.to_owned().into_value(),
        RAW.into_value(),
        key.time.micros().into_value(),
        start.into_value(),
        sequence.into_value(),
    ])
    .into()
}

/// The bound that is before all samples of `time`.
pub(crate) fn time_bound(uid: &str, time: i64) -> RecordIdKey {
    Array::from(vec![
        uid.to_owned().into_value(),
        RAW.into_value(),
        time.into_value(),
    ])
    .into()
}

/// The rows from one time to another, the first included, the last not; none where the first is later.
pub(crate) fn time_range(uid: &str, from: Timestamp, until: Timestamp) -> Value {
    let range = RecordIdKeyRange {
        start: Bound::Included(time_bound(uid, from.min(until).micros())),
        end: Bound::Excluded(time_bound(uid, until.micros())),
    };
    RecordId::new("sample", range).into_value()
}

impl Store {
    /// Keeps samples of one node, all or none; returns when they are synced to disk. One that is
    /// there already (the same push, or a reading of the same time) is replaced. `seen` is what
    /// they say of the node's freshness, and `now` the server's clock. A node that has used up its share of
    /// the disk stores nothing.
    pub async fn append(
        &self,
        node: &NodeIdentity,
        samples: Vec<NewSample>,
        seen: Seen,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.check_share(node.uid())?;
        let recent = unsealed_since(now, seen.clock_offset_micros);
        let mut samples = self.without_sealed(node.uid(), samples, recent).await?;
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

    /// Those that are not in a block yet: what is sent again after it was sealed is known.
    async fn without_sealed(
        &self,
        uid: &str,
        samples: Vec<NewSample>,
        recent: Timestamp,
    ) -> Result<Vec<NewSample>, Error> {
        let old = |sample: &NewSample| sample.key.time < recent && sample.key.push.is_some();
        let hours: BTreeSet<Timestamp> = samples
            .iter()
            .filter(|sample| old(sample))
            .map(|sample| hour_of(sample.key.time))
            .collect();
        let mut sealed = HashSet::new();
        let asked: HashSet<SampleKey> = samples.iter().map(|sample| sample.key).collect();
        for hour in hours {
            let of_hour = |sample: &&NewSample| hour_of(sample.key.time) == hour;
            let times = samples.iter().filter(of_hour).map(NewSample::time);
            let (first, last) = times
                .fold((Timestamp::MAX, Timestamp::MIN), |(first, last), time| {
                    (first.min(time), last.max(time))
                });
            let mut attempts = 0;
            loop {
                attempts += 1;
                let blocks = self.blocks_of_hour(uid, hour).await?.into_iter();
                let blocks = blocks.filter(|block| block.overlaps(first, last));
                let blocks: Vec<BlockKey> = blocks.collect();
                match self.sealed_of(uid, &blocks, &asked).await {
                    // One was replaced meanwhile, or is set aside by now.
                    Err(Error::Changing) if attempts < ATTEMPTS => {}
                    found => {
                        sealed.extend(found?);
                        break;
                    }
                }
            }
        }
        let is_new = |sample: &NewSample| !sealed.contains(&sample.key);
        Ok(samples.into_iter().filter(is_new).collect())
    }

    /// The own bytes of a frame that was pushed and is not sealed yet.
    pub async fn frame(&self, uid: &str, key: &SampleKey) -> Result<Option<Bytes>, Error> {
        let variables = bind([("sample", record(key, uid).into_value())]);
        let rows: Vec<Value> = self
            .database
            .select("SELECT p FROM $sample", variables)
            .await
            .map_err(Error::Unavailable)?;
        let row = rows.into_iter().next().map(payload).transpose()?;
        Ok(row.and_then(|payload| stored::frame_of(&payload)))
    }

    /// The time of the sample that has `n` before it, from `from` to `to`, both included.
    pub async fn nth_time(
        &self,
        uid: &str,
        (from, to): (Timestamp, Timestamp),
        n: usize,
    ) -> Result<Option<Timestamp>, Error> {
        // Rows are counted by their keys alone.
        let statement = "RETURN [(SELECT VALUE id FROM array::first([$range]) LIMIT 1 START $n), \
             (SELECT VALUE id FROM array::first([$blocks]) LIMIT 1)]";
        let variables = bind([
            (
                "range",
                time_range(uid, self.frontier.first(uid, from), to.plus_micros(1)),
            ),
            ("n", (n as i64).into_value()),
            ("blocks", blocks_within(uid, from, to)),
        ]);
        let found: Vec<Value> = self
            .database
            .select(statement, variables)
            .await
            .map_err(Error::Unavailable)?;
        let mut found = found.into_iter();
        let (Some(Value::Array(rows)), Some(Value::Array(blocks))) = (found.next(), found.next())
        else {
            return Err(Error::Damaged("sample"));
        };
        if blocks.is_empty() {
            let row = rows.into_iter().next();
            return row.map(time_of_row).transpose();
        }
        let mut walk = self.walk(uid, (from, to), Order::Ascending, Wanted::Host);
        let mut left = n;
        loop {
            let page = walk.page((left + 1).min(COUNTED)).await?;
            match page.get(left) {
                Some(sample) => return Ok(Some(sample.time())),
                None if page.is_empty() => return Ok(None),
                None => left -= page.len(),
            }
        }
    }

    /// The time of the first row of a node from `from` on.
    pub(crate) async fn first_row(
        &self,
        uid: &str,
        from: Timestamp,
    ) -> Result<Option<Timestamp>, Error> {
        let range = time_range(uid, from, Timestamp::MAX.plus_micros(1));
        self.first_id(range).await?.map(time_of_row).transpose()
    }

    /// The id of the first row of a range.
    pub(crate) async fn first_id(&self, range: Value) -> Result<Option<Value>, Error> {
        let statement = "SELECT VALUE id FROM array::first([$range]) LIMIT 1";
        let ids: Vec<Value> = self
            .database
            .select(statement, bind([("range", range)]))
            .await
            .map_err(Error::Unavailable)?;
        Ok(ids.into_iter().next())
    }
}

/// The time of the row of this id.
fn time_of_row(id: Value) -> Result<Timestamp, Error> {
    key_of_row(id)
        .map(|key| key.time)
        .ok_or(Error::Damaged("sample"))
}

/// Which sample the row of this id holds.
pub(crate) fn key_of_row(id: Value) -> Option<SampleKey> {
    let Value::RecordId(RecordId {
        key: RecordIdKey::Array(parts),
        ..
    }) = id
    else {
        return None;
    };
    let mut parts = parts.into_vec().into_iter().skip(2);
    let time = Timestamp::from_micros(i64::from_value(parts.next()?).ok()?)?;
    let start = String::from_value(parts.next()?).ok()?;
    let sequence = i64::from_value(parts.next()?).ok()?;
    let push = |agent_start| FrameId {
        agent_start,
        sequence: sequence.unsigned_abs(),
    };
    let push = (!start.is_empty()).then(|| Some(push(start.parse().ok()?)));
    Some(SampleKey {
        time,
        push: match push {
            Some(push) => Some(push?),
            None => None,
        },
    })
}

/// What a row holds.
pub(crate) fn payload(row: Value) -> Result<Bytes, Error> {
    let Value::Object(mut row) = row else {
        return Err(Error::Damaged("sample"));
    };
    match row.remove("p") {
        Some(Value::Bytes(payload)) => Ok(payload.into_inner()),
        _ => Err(Error::Damaged("sample")),
    }
}
