//! When each node was last heard of: rows `seen:uid`, written with the pushes themselves, so that
//! the freshness of all nodes is one read of one small row each.

use std::collections::BTreeMap;

use nodestats_wire::Timestamp;
use surrealdb::types::{Object, RecordId, RecordIdKey, SurrealValue, Value};

use crate::database::bind;
use crate::{Error, Store};

/// What pushes say of a node's freshness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Time of the newest sample, by the node's clock.
    pub last_sample: Timestamp,
    /// When that sample was taken, by the server's clock, and never later than it came.
    pub fresh_at: Timestamp,
    /// How far the node's clock was ahead of the server's, in microseconds; `None` where the
    /// sender did not say.
    pub clock_offset_micros: Option<i64>,
}

pub(crate) fn seen_record(uid: &str) -> Value {
    RecordId::new("seen", uid).into_value()
}

impl Seen {
    /// Both together: the later times, and the clock of `newer`.
    #[must_use]
    pub fn merge(self, newer: Self) -> Self {
        Self {
            last_sample: self.last_sample.max(newer.last_sample),
            fresh_at: self.fresh_at.max(newer.fresh_at),
            clock_offset_micros: newer.clock_offset_micros.or(self.clock_offset_micros),
        }
    }

    pub(crate) fn row(self, uid: &str) -> Value {
        let offset = self
            .clock_offset_micros
            .map_or(Value::None, i64::into_value);
        let object = Object::from_iter([
            ("id".to_owned(), seen_record(uid)),
            ("last".to_owned(), self.last_sample.micros().into_value()),
            ("fresh".to_owned(), self.fresh_at.micros().into_value()),
            ("offset".to_owned(), offset),
        ]);
        object.into_value()
    }
}

/// A row is never set back: replicas of the API may write in another order than pushes came.
/// (`math::max([last, $input.last])` does not see the row's own `last` in `SurrealDB` 3.3.)
pub(crate) const UPSERT: &str = "INSERT INTO seen $seen ON DUPLICATE KEY UPDATE \
     last = IF $input.last > last { $input.last } ELSE { last }, \
     fresh = IF $input.fresh > fresh { $input.fresh } ELSE { fresh }, \
     offset = IF $input.offset = NONE { offset } ELSE { $input.offset } RETURN NONE";

impl Store {
    /// When each node was last heard of, by its identity.
    pub async fn seen(&self) -> Result<BTreeMap<String, Seen>, Error> {
        let rows: Vec<Value> = self
            .database
            .select("SELECT * FROM seen", bind([]))
            .await
            .map_err(Error::Unavailable)?;
        rows.into_iter().map(read).collect()
    }

    /// When one node was last heard of.
    pub async fn seen_of(&self, uid: &str) -> Result<Option<Seen>, Error> {
        let rows: Vec<Value> = self
            .database
            .select("SELECT * FROM $row", bind([("row", seen_record(uid))]))
            .await
            .map_err(Error::Unavailable)?;
        let row = rows.into_iter().next();
        Ok(row.map(read).transpose()?.map(|(_, seen)| seen))
    }
}

fn read(row: Value) -> Result<(String, Seen), Error> {
    let damaged = || Error::Damaged("time of a node");
    let Value::Object(mut row) = row else {
        return Err(damaged());
    };
    let Some(Value::RecordId(RecordId {
        key: RecordIdKey::String(uid),
        ..
    })) = row.remove("id")
    else {
        return Err(damaged());
    };
    let mut number = |name: &str| {
        row.remove(name)
            .and_then(|value| i64::from_value(value).ok())
    };
    let mut time = |name: &str| {
        number(name)
            .and_then(Timestamp::from_micros)
            .ok_or_else(damaged)
    };
    let seen = Seen {
        last_sample: time("last")?,
        fresh_at: time("fresh")?,
        clock_offset_micros: number("offset"),
    };
    Ok((uid, seen))
}
