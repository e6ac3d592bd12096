//! What each node's history takes, and whether a node may take more: while the disk has room each
//! takes what it needs, and when it becomes scarce those that have more than an equal share are
//! refused first, so that one that floods uses up its own share and not the others'.
//!
//! Rows `usage:[uid, day]` hold bytes of payload by the day that samples are of, and `usage:[uid, day, level]`
//! those of rollups. They are written with each look at the retention and at the end: a crash forgets what was
//! stored since, a minute at most.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nodestats_core::Life;
use nodestats_wire::Timestamp;
use surrealdb::types::{Array, Object, RecordId, RecordIdKey, SurrealValue, Value};

use crate::database::{Database, bind};
use crate::rollups::Level;
use crate::samples::NewSample;
use crate::{Error, Store};

const DAY_MICROS: i64 = 24 * 3600 * 1_000_000;
/// So many bytes of the disk go to one byte of payload: keys, and files that wait to be merged.
const OVERHEAD: u64 = 3;
/// The disk is scarce when what is left is less than this part of all that histories could take: 1 in
/// so many.
const SCARCE: u64 = 5;

/// Payload of each node and what it told, by day.
#[derive(Debug, Default, Clone)]
pub(crate) struct Usage(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    nodes: HashMap<String, Node>,
    /// Of all nodes.
    bytes: u64,
}

#[derive(Debug, Default)]
struct Node {
    days: BTreeMap<Slot, u64>,
    bytes: u64,
    /// Not yet in the rows: what came, less what became smaller.
    unwritten: BTreeMap<Slot, i64>,
}

/// What is counted together: the length of a rollup's buckets in seconds, 0 of samples, and the day.
pub(crate) type Slot = (i64, i64);

/// The first part of a [`Slot`] of samples.
pub(crate) const SAMPLES: i64 = 0;

pub(crate) fn day(time: Timestamp) -> i64 {
    time.micros().div_euclid(DAY_MICROS)
}

fn record(uid: &str, (level, day): Slot) -> RecordId {
    let mut key = vec![uid.to_owned().into_value(), day.into_value()];
    if level != SAMPLES {
        key.push(level.into_value());
    }
    RecordId::new("usage", Array::from(key))
}

impl Kept {
    fn add(&mut self, uid: &str, slot: Slot, bytes: u64, is_written: bool) {
        let node = self.nodes.entry(uid.to_owned()).or_default();
        *node.days.entry(slot).or_default() += bytes;
        node.bytes += bytes;
        self.bytes += bytes;
        if !is_written {
            *node.unwritten.entry(slot).or_default() += bytes as i64;
        }
    }

    /// Takes away what a day has no more.
    fn subtract(&mut self, uid: &str, slot: Slot, bytes: u64) {
        let Some(node) = self.nodes.get_mut(uid) else {
            return;
        };
        let Some(of_day) = node.days.get_mut(&slot) else {
            return;
        };
        // What a crash forgot was never counted.
        let bytes = bytes.min(*of_day);
        *of_day -= bytes;
        node.bytes -= bytes;
        self.bytes -= bytes;
        *node.unwritten.entry(slot).or_default() -= bytes as i64;
    }

    /// Forgets the days of a level before `first`, and says which they were.
    fn forget(&mut self, uid: &str, level: i64, first: i64) -> Vec<Slot> {
        let Some(node) = self.nodes.get_mut(uid) else {
            return Vec::new();
        };
        let days = node.days.range((level, i64::MIN)..(level, first));
        let gone: Vec<Slot> = days.map(|(slot, _)| *slot).collect();
        let bytes: u64 = gone.iter().filter_map(|slot| node.days.remove(slot)).sum();
        node.bytes -= bytes;
        self.bytes -= bytes;
        node.unwritten
            .retain(|(of, day), _| *of != level || *day >= first);
        if node.days.is_empty() {
            self.nodes.remove(uid);
        }
        gone
    }

    /// What one node may have where the disk has `available` bytes left; `None` while it has room.
    fn share(&self, available: u64) -> Option<u64> {
        let left = available / OVERHEAD;
        let budget = self.bytes + left;
        let is_scarce = left < budget / SCARCE;
        is_scarce.then(|| budget / self.nodes.len().max(1) as u64)
    }
}

impl Usage {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all nodes.
    pub(crate) fn bytes(&self) -> u64 {
        self.kept().bytes
    }

    /// How many nodes have any.
    pub(crate) fn nodes(&self) -> u64 {
        self.kept().nodes.len() as u64
    }

    /// As the rows have it.
    pub(crate) async fn load(database: &Database) -> Result<Self, crate::database::Error> {
        let rows: Vec<Value> = database.select("SELECT * FROM usage", bind([])).await?;
        let usage = Self::default();
        for row in rows {
            if let Some((uid, slot, bytes)) = read(row) {
                usage.kept().add(&uid, slot, bytes, true);
            }
        }
        Ok(usage)
    }

    /// Counts what was stored. What replaces a row counts again: a share is no invoice.
    pub(crate) fn stored(&self, uid: &str, samples: &[NewSample]) {
        for sample in samples {
            self.add(uid, sample.time(), sample.bytes() as u64);
        }
    }

    fn add(&self, uid: &str, time: Timestamp, bytes: u64) {
        self.kept().add(uid, (SAMPLES, day(time)), bytes, false);
    }

    /// Which node has most where all take more than `max_size` on the disk, if that is more than an equal
    /// share; those that are spared are not looked at.
    pub(crate) fn largest_beyond(
        &self,
        max_size: u64,
        spared: &BTreeSet<String>,
    ) -> Option<String> {
        let kept = self.kept();
        if kept.bytes <= max_size / OVERHEAD {
            return None;
        }
        let others = kept.nodes.iter().filter(|(uid, _)| !spared.contains(*uid));
        let largest = others.max_by_key(|(_, node)| node.bytes);
        let share = max_size / OVERHEAD / kept.nodes.len().max(1) as u64;
        let largest = largest.filter(|(_, node)| node.bytes > share);
        largest.map(|(uid, _)| uid.clone())
    }

    /// Counts a node anew, by the days that its samples are of.
    pub(crate) fn recounted(&self, uid: &str, days: BTreeMap<Slot, u64>) {
        let mut kept = self.kept();
        let before = kept.nodes.remove(uid).unwrap_or_default();
        kept.bytes -= before.bytes;
        let all = before.days.keys().chain(days.keys()).copied();
        let unwritten = all.map(|slot| {
            let of =
                |days: &BTreeMap<Slot, u64>| days.get(&slot).copied().unwrap_or_default() as i64;
            let unwritten = before.unwritten.get(&slot).copied().unwrap_or_default();
            (slot, of(&days) - of(&before.days) + unwritten)
        });
        let unwritten = unwritten.collect();
        let bytes = days.values().sum();
        kept.bytes += bytes;
        let node = Node {
            days,
            bytes,
            unwritten,
        };
        kept.nodes.insert(uid.to_owned(), node);
    }

    /// Counts that samples of a time, or rollups of a level, are gone.
    pub(crate) fn deleted(&self, uid: &str, level: i64, time: Timestamp, bytes: u64) {
        self.kept().subtract(uid, (level, day(time)), bytes);
    }

    /// Counts that rollups took the place of others.
    pub(crate) fn rolled(&self, uid: &str, changes: &[(Slot, u64, u64)]) {
        let mut kept = self.kept();
        for (slot, before, after) in changes {
            kept.subtract(uid, *slot, *before);
            kept.add(uid, *slot, *after, false);
        }
    }

    /// Counts that samples of a time became smaller by being sealed.
    pub(crate) fn sealed(&self, uid: &str, time: Timestamp, before: u64, after: u64) {
        let mut kept = self.kept();
        let slot = (SAMPLES, day(time));
        kept.subtract(uid, slot, before);
        kept.add(uid, slot, after, false);
    }

    /// What a node has beyond its share, with the share: then it may store nothing.
    fn excess(
        &self,
        uid: &str,
        quota: Option<u64>,
        max_size: Option<u64>,
        available: Option<u64>,
    ) -> Option<u64> {
        let kept = self.kept();
        let own = kept.nodes.get(uid)?.bytes;
        let of_disk = || kept.share(available?);
        // One that floods faster than its oldest hours go.
        let of_size = || {
            let budget = max_size? / OVERHEAD;
            let is_beyond = kept.bytes > budget + budget / SCARCE;
            is_beyond.then(|| budget / kept.nodes.len().max(1) as u64)
        };
        let share = quota.or_else(of_disk).or_else(of_size)?;
        (own > share).then_some(share)
    }
}

fn read(row: Value) -> Option<(String, Slot, u64)> {
    let Value::Object(mut row) = row else {
        return None;
    };
    let bytes = i64::from_value(row.remove("bytes")?).ok()?;
    let Some(Value::RecordId(RecordId {
        key: RecordIdKey::Array(key),
        ..
    })) = row.remove("id")
    else {
        return None;
    };
    let mut key = key.into_vec().into_iter();
    let uid = String::from_value(key.next()?).ok()?;
    let day = i64::from_value(key.next()?).ok()?;
    let level = match key.next() {
        Some(level) => i64::from_value(level).ok()?,
        None => SAMPLES,
    };
    Some((uid, (level, day), u64::try_from(bytes).ok()?))
}

impl Store {
    /// An error where this node has more than its share.
    pub(crate) fn check_share(&self, uid: &str) -> Result<(), Error> {
        let available = self.database.available();
        match self
            .usage
            .excess(uid, self.node_quota, self.max_size, available)
        {
            Some(share_bytes) => Err(Error::ShareUsedUp { share_bytes }),
            None => Ok(()),
        }
    }

    /// Forgets what retention has deleted, and writes what was counted since.
    pub(crate) async fn keep_usage(
        &self,
        lives: &[Arc<Life>],
        now: Timestamp,
    ) -> Result<(), Error> {
        for life in lives {
            // A day that is partly kept counts whole.
            let of_level = |level: Level| (level.seconds(), self.horizon_of(life, level, now));
            let [minutes, hours] = Level::ALL.map(of_level);
            for (level, horizon) in [(SAMPLES, self.horizon(life, now)), minutes, hours] {
                let gone = self.usage.kept().forget(&life.uid, level, day(horizon));
                self.delete_usage(&life.uid, &gone).await?;
            }
        }
        self.write_usage().await
    }

    /// Writes what was counted since it was written last.
    pub(crate) async fn write_usage(&self) -> Result<(), Error> {
        let mut rows = Vec::new();
        let mut written = Vec::new();
        for (uid, node) in &mut self.usage.kept().nodes {
            for (slot, bytes) in std::mem::take(&mut node.unwritten) {
                let object = Object::from_iter([
                    ("id".to_owned(), record(uid, slot).into_value()),
                    ("bytes".to_owned(), bytes.into_value()),
                ]);
                rows.push(object.into_value());
                written.push((uid.clone(), slot, bytes));
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let statement = "INSERT INTO usage $rows ON DUPLICATE KEY UPDATE bytes += $input.bytes \
             RETURN NONE";
        let variables = bind([("rows", Value::Array(Array::from(rows)))]);
        let done = self.database.write(statement, variables, 0).await;
        if done.is_err() {
            let mut kept = self.usage.kept();
            for (uid, slot, bytes) in written {
                if let Some(node) = kept.nodes.get_mut(&uid) {
                    *node.unwritten.entry(slot).or_default() += bytes;
                }
            }
        }
        done.map_err(Error::Unavailable)
    }

    /// Forgets a node that is purged.
    pub(crate) async fn purge_usage(&self, uid: &str) -> Result<(), Error> {
        for level in [SAMPLES, Level::Minute.seconds(), Level::Hour.seconds()] {
            let gone = self.usage.kept().forget(uid, level, i64::MAX);
            self.delete_usage(uid, &gone).await?;
        }
        Ok(())
    }

    async fn delete_usage(&self, uid: &str, slots: &[Slot]) -> Result<(), Error> {
        for slot in slots {
            let variables = bind([("row", record(uid, *slot).into_value())]);
            let deleted = self.database.delete("DELETE $row RETURN NONE", variables);
            deleted.await.map_err(Error::Unavailable)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn who_has_more_than_a_share_is_refused_when_the_disk_is_scarce_and_not_before() {
        let usage = Usage::default();
        let now = Timestamp::from_micros(40 * DAY_MICROS).expect("a time");
        usage.add("flood", now, 90 * MIB);
        usage.add("small", now, 5 * MIB);
        usage.add("other", now, 5 * MIB);
        let excess = |uid: &str, available| usage.excess(uid, None, None, Some(available));
        assert_eq!(excess("flood", 1000 * MIB), None);
        let scarce = 30 * MIB;
        assert_eq!(excess("flood", scarce), Some(110 * MIB / 3));
        assert_eq!(excess("small", scarce), None);
        assert_eq!(excess("a new one", scarce), None);
        // Of a server's disk nothing is known, and a quota counts whatever the disk has.
        assert_eq!(usage.excess("flood", None, None, None), None);
        assert_eq!(
            usage.excess("small", Some(4 * MIB), None, None),
            Some(4 * MIB)
        );
        assert_eq!(usage.excess("small", Some(5 * MIB), None, Some(0)), None);
        // One node alone has the whole disk.
        let alone = Usage::default();
        alone.add("a", now, 90 * MIB);
        assert_eq!(alone.excess("a", None, None, Some(MIB)), None);
        // Beyond a size that was set too, and by a fifth more than it holds.
        let of_size = |uid: &str, mib: u64| usage.excess(uid, None, Some(3 * mib * MIB), None);
        assert_eq!(of_size("flood", 90), None);
        assert_eq!(of_size("flood", 60), Some(20 * MIB));
        assert_eq!(of_size("small", 60), None);
        assert_eq!(
            usage
                .largest_beyond(3 * 60 * MIB, &BTreeSet::new())
                .as_deref(),
            Some("flood")
        );
        let spared = BTreeSet::from(["flood".to_owned()]);
        assert_eq!(usage.largest_beyond(3 * 60 * MIB, &spared), None);
        // What is past the retention counts no more.
        let early = Timestamp::from_micros(DAY_MICROS).expect("a time");
        usage.add("small", early, MIB);
        assert_eq!(usage.kept().forget("small", SAMPLES, 2), [(SAMPLES, 1)]);
        assert_eq!(usage.kept().nodes["small"].bytes, 5 * MIB);
        assert_eq!(usage.kept().bytes, 100 * MIB);
        // Rollups count too, and stay longer.
        usage.rolled("small", &[((60, 1), 0, 2 * MIB), ((60, 1), MIB, 3 * MIB)]);
        assert_eq!(usage.kept().forget("small", SAMPLES, 2), []);
        assert_eq!(usage.kept().bytes, 104 * MIB);
        assert_eq!(usage.kept().forget("small", 60, 2), [(60, 1)]);
        assert_eq!(usage.kept().bytes, 100 * MIB);
    }
}
