//! Sealed blocks: rows `block:[uid, hour, first, last, samples, bytes, number]` say which there are, and
//! `block_part:[uid, hour, number, part]` hold what is in them. All samples of a block are of one hour,
//! so that those of a range of time are a range of keys; where two hold the same sample the one with the
//! higher number counts.

use std::ops::Bound;
use std::sync::Arc;

use nodestats_core::block::{self, Block, Parts};
use nodestats_core::stored::Wanted;
use nodestats_wire::Timestamp;
use surrealdb::types::{
    Array, Bytes, Object, RecordId, RecordIdKey, RecordIdKeyRange, SurrealValue, Value,
};

use crate::database::{self, bind, object};
use crate::{Error, Store};

/// The span of time that a block is of.
pub(crate) const HOUR: i64 = 3_600_000_000;

/// Blocks that are opened at once where only hosts are wanted of them, or one process.
pub(crate) const AT_ONCE: usize = 8;

/// Parts of a block, by which they are kept.
const HOSTS: i64 = 0;
const PROCESSES: i64 = 1;
const GROUPS: i64 = 2;

/// What is known of a block without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlockKey {
    /// Begin of its hour.
    pub(crate) hour: Timestamp,
    /// Time of its first sample.
    pub(crate) first: Timestamp,
    /// Time of its last sample.
    pub(crate) last: Timestamp,
    pub(crate) samples: u32,
    pub(crate) bytes: u64,
    /// Higher than of those that were there before it, in its hour.
    pub(crate) number: i64,
}

/// Why a block is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    /// A part of it is gone: it was replaced or deleted meanwhile, or is lost.
    #[error("a part of the block is gone")]
    Gone,
    /// It is damaged.
    #[error(transparent)]
    Damaged(#[from] block::Error),
    /// So is the database's own file.
    #[error("the database cannot read it")]
    Database(#[source] database::Error),
}

impl Unreadable {
    /// Whether it is of another version of this program: nothing is wrong with it.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self, Self::Damaged(block::Error::Version(_)))
    }
}

impl BlockKey {
    pub(crate) fn record(&self, uid: &str) -> RecordId {
        let key = Array::from(vec![
            uid.to_owned().into_value(),
            self.hour.micros().into_value(),
            self.first.micros().into_value(),
            self.last.micros().into_value(),
            i64::from(self.samples).into_value(),
            (self.bytes as i64).into_value(),
            self.number.into_value(),
        ]);
        RecordId::new("block", key)
    }

    pub(crate) fn part(&self, uid: &str, part: i64) -> RecordId {
        let key = Array::from(vec![
            uid.to_owned().into_value(),
            self.hour.micros().into_value(),
            self.number.into_value(),
            part.into_value(),
        ]);
        RecordId::new("block_part", key)
    }

    /// All rows of a block.
    pub(crate) fn records(&self, uid: &str) -> impl Iterator<Item = Value> {
        let parts = [HOSTS, PROCESSES, GROUPS].map(|part| self.part(uid, part));
        let all = std::iter::once(self.record(uid)).chain(parts);
        all.map(RecordId::into_value)
    }

    /// The rows of a new block: what it is, and its parts.
    pub(crate) fn rows(&self, uid: &str, parts: &Parts) -> (Value, Vec<Value>) {
        let row = |id: RecordId| ("id".to_owned(), id.into_value());
        let index = Object::from_iter([row(self.record(uid))]).into_value();
        let parts = [
            (HOSTS, Some(&parts.hosts)),
            (PROCESSES, parts.processes.as_ref()),
            (GROUPS, parts.groups.as_ref()),
        ];
        let parts = parts.into_iter().filter_map(|(part, bytes)| {
            let payload = Value::Bytes(Bytes::from(bytes?.to_vec()));
            let row = [row(self.part(uid, part)), ("p".to_owned(), payload)];
            Some(Object::from_iter(row).into_value())
        });
        (index, parts.collect())
    }

    pub(crate) fn read(id: Value) -> Option<Self> {
        let Value::RecordId(RecordId {
            key: RecordIdKey::Array(parts),
            ..
        }) = id
        else {
            return None;
        };
        let mut parts = parts.into_vec().into_iter().skip(1);
        let mut number = || i64::from_value(parts.next()?).ok();
        Some(Self {
            hour: Timestamp::from_micros(number()?)?,
            first: Timestamp::from_micros(number()?)?,
            last: Timestamp::from_micros(number()?)?,
            samples: u32::try_from(number()?).ok()?,
            bytes: u64::try_from(number()?).ok()?,
            number: number()?,
        })
    }

    /// Whether it may have samples of a range, both ends included.
    pub(crate) fn overlaps(&self, from: Timestamp, to: Timestamp) -> bool {
        self.first <= to && self.last >= from
    }
}

/// The begin of the hour of a time.
pub(crate) fn hour_of(time: Timestamp) -> Timestamp {
    time.floor_to(HOUR)
}

/// The keys of one table that a node's hours from one to another have, the first included, the last not.
fn hours(table: &str, uid: &str, from: Timestamp, until: Timestamp) -> Value {
    let bound = |time: Timestamp| -> RecordIdKey {
        Array::from(vec![
            uid.to_owned().into_value(),
            time.micros().into_value(),
        ])
        .into()
    };
    let range = RecordIdKeyRange {
        start: Bound::Included(bound(from)),
        end: Bound::Excluded(bound(until)),
    };
    RecordId::new(table, range).into_value()
}

/// The blocks of the hours from that of `from` to that of `to`, both included.
pub(crate) fn blocks_within(uid: &str, from: Timestamp, to: Timestamp) -> Value {
    hours("block", uid, hour_of(from), hour_of(to).plus_micros(HOUR))
}

impl Store {
    /// Reads the parts that are wanted of some blocks of a node.
    pub(crate) async fn open_blocks(
        &self,
        uid: &str,
        keys: &[BlockKey],
        wanted: Wanted,
    ) -> Result<Vec<Result<Arc<Block>, Unreadable>>, Error> {
        match self.open_together(uid, keys, wanted).await {
            Err(Error::Unavailable(error)) if error.is_damage() => {}
            opened => return opened,
        }
        // One of them is damaged, and takes no other down.
        let mut opened = Vec::new();
        for key in keys {
            match self.open_together(uid, &[*key], wanted).await {
                Ok(one) => opened.extend(one),
                Err(Error::Unavailable(error)) if error.is_damage() => {
                    opened.push(Err(Unreadable::Database(error)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(opened)
    }

    async fn open_together(
        &self,
        uid: &str,
        keys: &[BlockKey],
        wanted: Wanted,
    ) -> Result<Vec<Result<Arc<Block>, Unreadable>>, Error> {
        let parts: &[i64] = match wanted {
            Wanted::Cpu | Wanted::Host => &[HOSTS],
            Wanted::Process(_) | Wanted::Processes => &[HOSTS, PROCESSES],
            Wanted::All => &[HOSTS, PROCESSES, GROUPS],
        };
        let records = keys.iter().flat_map(|key| {
            let part = |part: &i64| key.part(uid, *part).into_value();
            parts.iter().map(part)
        });
        let variables = bind([("parts", Value::Array(records.collect::<Vec<_>>().into()))]);
        let rows: Vec<Value> = self
            .database
            .select("SELECT id, p FROM $parts", variables)
            .await
            .map_err(Error::Unavailable)?;
        // In the order of the records asked for; which of them are there says the id.
        let found = rows.into_iter().filter_map(|row| {
            let Value::Object(mut row) = row else {
                return None;
            };
            match (row.remove("id"), row.remove("p")) {
                (Some(Value::RecordId(id)), Some(Value::Bytes(payload))) => {
                    Some((id, payload.into_inner()))
                }
                _ => None,
            }
        });
        let mut found = found.peekable();
        let opened = keys.iter().map(|key| {
            let mut take = |part: i64| {
                let record = key.part(uid, part);
                let row = found.next_if(|(id, _)| parts.contains(&part) && *id == record);
                row.map(|(_, payload)| payload)
            };
            let given = Parts {
                hosts: take(HOSTS).unwrap_or_default(),
                processes: take(PROCESSES),
                groups: take(GROUPS),
            };
            let there = [
                !given.hosts.is_empty(),
                given.processes.is_some(),
                given.groups.is_some(),
            ];
            if there.iter().filter(|is_there| **is_there).count() < parts.len() {
                return Err(Unreadable::Gone);
            }
            Ok(Arc::new(Block::open(&given)?))
        });
        Ok(opened.collect())
    }

    /// Takes a block that cannot be read out of history, and counts it. What it holds is kept as long as it
    /// would have been, for whoever wants to look.
    pub(crate) async fn set_aside(&self, uid: &str, key: &BlockKey, why: &Unreadable) {
        tracing::error!(
            node = uid, hour = %key.hour, samples = key.samples, number = key.number, error = %why,
            "a sealed block cannot be read; it is set aside"
        );
        self.metrics.damaged();
        let name = Array::from(vec![
            uid.to_owned().into_value(),
            key.hour.micros().into_value(),
            key.number.into_value(),
        ]);
        let variables = bind([
            ("aside", RecordId::new("damaged", name).into_value()),
            ("samples", i64::from(key.samples).into_value()),
            (
                "parts",
                Value::Array(key.records(uid).skip(1).collect::<Vec<_>>().into()),
            ),
            ("block", key.record(uid).into_value()),
        ]);
        // Its parts stay where they are: nothing names them any more.
        let statements = "BEGIN; UPSERT $aside SET samples = $samples, parts = $parts RETURN NONE; \
             DELETE $block RETURN NONE; COMMIT;";
        if let Err(error) = self.database.write(statements, variables, 0).await {
            tracing::warn!(%error, "the block stays where it is");
        }
    }

    /// Deletes the blocks of the hours before a time, and what was set aside.
    pub(crate) async fn delete_hours(&self, uid: &str, until: Timestamp) -> Result<(), Error> {
        let statements = "BEGIN; DELETE $blocks RETURN NONE; DELETE $parts RETURN NONE; \
             DELETE $highs RETURN NONE; DELETE $aside RETURN NONE; COMMIT;";
        let before = |table| hours(table, uid, Timestamp::MIN, until);
        let variables = bind([
            ("blocks", before("block")),
            ("parts", before("block_part")),
            ("highs", before("high")),
            ("aside", before("damaged")),
        ]);
        let deleted = self.database.delete_patiently(statements, variables).await;
        deleted.map_err(Error::Unavailable)
    }

    /// Gives the sealed history of a node to others too: for benchmarks, which could else fill a database only
    /// as fast as it is pushed to.
    #[doc(hidden)]
    pub async fn copy_blocks(&self, uid: &str, others: &[String]) -> Result<(), Error> {
        let all = hours("block", uid, Timestamp::MIN, Timestamp::MAX);
        let ids: Vec<Value> = self
            .database
            .select("SELECT VALUE id FROM $blocks", bind([("blocks", all)]))
            .await
            .map_err(Error::Unavailable)?;
        let keys: Vec<BlockKey> = ids.into_iter().filter_map(BlockKey::read).collect();
        let parts = keys.iter().flat_map(|key| key.records(uid).skip(1));
        let variables = bind([("parts", Value::Array(parts.collect::<Vec<_>>().into()))]);
        let payloads: Vec<Bytes> = self
            .database
            .select("SELECT VALUE p FROM $parts", variables)
            .await
            .map_err(Error::Unavailable)?;
        for other in others {
            let row = |id: Value, more: Option<Value>| object([("id", Some(id)), ("p", more)]);
            let blocks = keys
                .iter()
                .map(|key| row(key.record(other).into_value(), None));
            let names = keys.iter().flat_map(|key| key.records(other).skip(1));
            let parts = names.zip(&payloads);
            let parts = parts.map(|(id, p)| row(id, Some(Value::Bytes(p.clone()))));
            let variables = bind([
                ("blocks", Value::Array(blocks.collect::<Vec<_>>().into())),
                ("parts", Value::Array(parts.collect::<Vec<_>>().into())),
            ]);
            let statements = "BEGIN; INSERT INTO block $blocks RETURN NONE; \
                 INSERT INTO block_part $parts RETURN NONE; COMMIT;";
            let bytes = payloads.iter().map(|payload| payload.len()).sum();
            let written = self.database.write(statements, variables, bytes).await;
            written.map_err(Error::Unavailable)?;
        }
        Ok(())
    }

    /// All blocks of an hour.
    pub(crate) async fn blocks_of_hour(
        &self,
        uid: &str,
        hour: Timestamp,
    ) -> Result<Vec<BlockKey>, Error> {
        let range = blocks_within(uid, hour, hour);
        let ids: Vec<Value> = self
            .database
            .select("SELECT VALUE id FROM $blocks", bind([("blocks", range)]))
            .await
            .map_err(Error::Unavailable)?;
        Ok(ids.into_iter().filter_map(BlockKey::read).collect())
    }
}
