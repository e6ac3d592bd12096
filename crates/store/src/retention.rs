//! Retention: what is older than the retention, by its own time, is deleted in bounded pieces: rows one by
//! one, blocks once all of their hour is older.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use nodestats_wire::Timestamp;
use surrealdb::types::{SurrealValue, Value};
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::blocks::{BlockKey, HOUR, blocks_within, hour_of};
use crate::database::bind;
use crate::rollups::Level;
use crate::samples::{Order, key_of_row, time_range};
use crate::usage::{SAMPLES, Slot, day};
use crate::{Error, Store};

/// Names of blocks that are looked at for the last sample: more than an hour has as a rule.
const NAMES: usize = 32;
/// Hours of blocks that are deleted at once.
const HOURS: i64 = 24;

impl Store {
    /// Deletes what is older than the retention, and the lives that are gone and have no sample
    /// left; and what a push left that was under way when its node was purged. Returns when it is
    /// done; reads and writes go on meanwhile.
    pub async fn retain(&self, now: Timestamp) -> Result<(), Error> {
        let begin = Instant::now();
        let span = tracing::info_span!("retention", "otel.status_code" = Empty);
        let done = self.delete_old(now).instrument(span.clone()).await;
        if done.is_err() {
            span.record("otel.status_code", "ERROR");
        }
        self.metrics.retained(begin.elapsed(), done.is_ok());
        done
    }

    async fn delete_old(&self, now: Timestamp) -> Result<(), Error> {
        // First: what follows may fail for want of room.
        self.database.remove_aside(self.default_horizon(now)).await;
        // In this order: a node that registers in between has a life.
        let seen = self.seen().await?;
        let lives = self.lives().await?;
        let known: BTreeSet<&str> = lives.iter().map(|life| &*life.uid).collect();
        for orphan in seen.keys().filter(|uid| !known.contains(&***uid)) {
            self.purge(orphan).await?;
        }
        self.keep_usage(&lives, now).await?;
        self.keep_size(now).await?;
        // As long as any history: which node's it was on is in its record, and not in its key.
        let horizons = lives.iter().map(|life| self.horizon(life, now));
        let horizon = horizons.fold(self.default_horizon(now), Timestamp::min);
        // As long as anything can be told of them.
        let of_levels = lives.iter().flat_map(|life| {
            let level = |level| self.horizon_of(life, level, now);
            Level::ALL.map(level)
        });
        let of_pods = of_levels.fold(horizon, Timestamp::min);
        self.forget_pods(of_pods).await?;
        // Of nodes that are not known too.
        self.forget_events(None, horizon).await?;
        for life in &*lives {
            let horizon = self.horizon(life, now);
            self.delete_before(&life.uid, horizon).await?;
            self.forget_events(Some(&life.uid), horizon).await?;
            for level in Level::ALL {
                let horizon = self.horizon_of(life, level, now);
                self.delete_rollups(&life.uid, level, horizon).await?;
            }
            let gone_long_ago = life.gone_at.is_some_and(|gone_at| gone_at < horizon);
            if gone_long_ago
                && self.oldest(&life.uid).await?.is_none()
                && !self.has_rollups(&life.uid).await?
            {
                self.purge(&life.uid).await?;
            }
        }
        Ok(())
    }

    /// Deletes the oldest hours of those nodes that have more than an equal share, until all take no more
    /// than they may together. The last hour of each stays.
    async fn keep_size(&self, now: Timestamp) -> Result<(), Error> {
        let Some(max_size) = self.max_size else {
            return Ok(());
        };
        let last = hour_of(now.plus_micros(-HOUR));
        let (mut spared, mut counted) = (BTreeSet::new(), BTreeSet::new());
        while let Some(uid) = self.usage.largest_beyond(max_size, &spared) {
            // What other replicas stored or sealed, what a crash forgot, and what replaced itself.
            if counted.insert(uid.clone()) {
                let days = self.bytes_by_day(&uid).await?;
                self.usage.recounted(&uid, days);
                continue;
            }
            let oldest = self.oldest(&uid).await?;
            let Some(hour) = oldest.map(hour_of).filter(|hour| *hour < last) else {
                // Samples first, and then what was made of them.
                if let Some((day, bytes)) = self.delete_oldest_rollups(&uid, now).await? {
                    tracing::info!(node = uid, %day, bytes, "rollups go before their time: histories are too large");
                    self.metrics.deleted_early(bytes);
                } else {
                    spared.insert(uid);
                }
                continue;
            };
            let bytes = self.bytes_of_hour(&uid, hour).await?;
            tracing::info!(node = uid, %hour, bytes, "an hour goes before its time: histories are too large");
            self.delete_before(&uid, hour.plus_micros(HOUR)).await?;
            self.usage.deleted(&uid, SAMPLES, hour, bytes);
            self.metrics.deleted_early(bytes);
        }
        Ok(())
    }

    /// Bytes of the samples of a node and of its rollups, by the days that they are of.
    async fn bytes_by_day(&self, uid: &str) -> Result<BTreeMap<Slot, u64>, Error> {
        let end = Timestamp::MAX.plus_micros(1);
        let variables = bind([
            ("range", time_range(uid, Timestamp::MIN, end)),
            ("blocks", blocks_within(uid, Timestamp::MIN, Timestamp::MAX)),
        ]);
        let statement = "RETURN [(SELECT VALUE [id, bytes::len(p)] FROM $range), \
             (SELECT VALUE id FROM $blocks)]";
        let answer = self.database.select::<Vec<Value>>(statement, variables);
        let mut answer = answer.await.map_err(Error::Unavailable)?.into_iter();
        let (Some(rows), Some(blocks)) = (answer.next(), answer.next()) else {
            return Err(Error::Damaged("sample"));
        };
        let rows = rows.into_iter().filter_map(|row| {
            let mut pair = Vec::<Value>::from_value(row).ok()?.into_iter();
            let key = key_of_row(pair.next()?)?;
            let bytes = i64::from_value(pair.next()?).ok()?;
            Some((key.time, bytes.unsigned_abs()))
        });
        let blocks = blocks.into_iter().filter_map(BlockKey::read);
        let blocks = blocks.map(|block| (block.hour, block.bytes));
        let mut days = BTreeMap::new();
        for (time, bytes) in rows.chain(blocks) {
            *days.entry((SAMPLES, day(time))).or_default() += bytes;
        }
        for (slot, bytes) in self.bytes_rolled(uid).await? {
            *days.entry(slot).or_default() += bytes;
        }
        Ok(days)
    }

    /// Bytes of the samples of an hour.
    async fn bytes_of_hour(&self, uid: &str, hour: Timestamp) -> Result<u64, Error> {
        let blocks = self.blocks_of_hour(uid, hour).await?;
        let blocks: u64 = blocks.iter().map(|block| block.bytes).sum();
        let range = time_range(uid, hour, hour.plus_micros(HOUR));
        let statement = "SELECT VALUE bytes::len(p) FROM $range";
        let rows: Vec<i64> = self
            .database
            .select(statement, bind([("range", range)]))
            .await
            .map_err(Error::Unavailable)?;
        let rows: i64 = rows.iter().sum();
        Ok(blocks + rows.unsigned_abs())
    }

    /// The time of the oldest sample of a node.
    pub async fn oldest(&self, uid: &str) -> Result<Option<Timestamp>, Error> {
        let (row, blocks) = self.ends(uid, Order::Ascending, 1).await?;
        // Within an hour they are in the order of their first samples.
        Ok(blocks.iter().map(|block| block.first).chain(row).min())
    }

    /// The time of the newest sample of a node.
    pub async fn newest(&self, uid: &str) -> Result<Option<Timestamp>, Error> {
        let (row, mut blocks) = self.ends(uid, Order::Descending, NAMES).await?;
        let hour = blocks.first().map(|block| block.hour);
        if let Some(hour) = hour
            && blocks.len() == NAMES
            && blocks.iter().all(|block| block.hour == hour)
        {
            blocks = self.blocks_of_hour(uid, hour).await?;
        }
        Ok(blocks.iter().map(|block| block.last).chain(row).max())
    }

    /// The time of the first row, and the first blocks.
    async fn ends(
        &self,
        uid: &str,
        order: Order,
        names: usize,
    ) -> Result<(Option<Timestamp>, Vec<BlockKey>), Error> {
        let statement = match order {
            Order::Ascending => {
                "RETURN [(SELECT VALUE id FROM array::first([$range]) LIMIT 1), \
                 (SELECT VALUE id FROM array::first([$blocks]) LIMIT $names)]"
            }
            Order::Descending => {
                "RETURN [(SELECT VALUE id FROM $range ORDER BY id DESC LIMIT 1), \
                 (SELECT VALUE id FROM $blocks ORDER BY id DESC LIMIT $names)]"
            }
        };
        let first = self.frontier.first(uid, Timestamp::MIN);
        let end = Timestamp::MAX.plus_micros(1);
        let variables = bind([
            ("range", time_range(uid, first, end)),
            ("blocks", blocks_within(uid, Timestamp::MIN, Timestamp::MAX)),
            ("names", (names as i64).into_value()),
        ]);
        let answer = self.database.select::<Vec<Value>>(statement, variables);
        let mut answer = answer.await.map_err(Error::Unavailable)?.into_iter();
        let (Some(rows), Some(blocks)) = (answer.next(), answer.next()) else {
            return Err(Error::Damaged("sample"));
        };
        let row = rows.into_iter().next().and_then(key_of_row);
        let blocks = blocks.into_iter().filter_map(BlockKey::read);
        Ok((row.map(|row| row.time), blocks.collect()))
    }

    /// Deletes the rows before `end`, and the blocks of hours that end before it.
    pub(crate) async fn delete_before(&self, uid: &str, end: Timestamp) -> Result<(), Error> {
        let is_purge = end == Timestamp::MAX;
        if !is_purge && self.oldest(uid).await?.is_none_or(|oldest| oldest >= end) {
            return Ok(());
        }
        let mut from = if is_purge {
            self.frontier.forget(uid);
            Timestamp::MIN
        } else {
            self.frontier.first(uid, Timestamp::MIN)
        };
        while let Some(oldest) = self.first_row(uid, from).await?
            && oldest < end
        {
            // An hour of samples each second is 3,600 rows.
            from = piece_end(oldest, HOUR, end);
            self.database
                .delete(
                    "DELETE $range RETURN NONE",
                    bind([("range", time_range(uid, oldest, from))]),
                )
                .await
                .map_err(Error::Unavailable)?;
        }
        let end = if is_purge { end } else { hour_of(end) };
        while let (_, blocks) = self.ends(uid, Order::Ascending, 1).await?
            && let Some(first) = blocks.first()
            && first.hour < end
        {
            let until = piece_end(first.hour, HOURS * HOUR, end);
            self.delete_hours(uid, until).await?;
        }
        if is_purge {
            // What was set aside is named by no block.
            self.delete_hours(uid, end).await?;
            self.purge_rollups(uid).await?;
        }
        Ok(())
    }
}

/// Where a piece ends that begins at `begin`.
fn piece_end(begin: Timestamp, span: i64, end: Timestamp) -> Timestamp {
    let until = begin.plus_micros(span).min(end);
    if until == Timestamp::MAX {
        until.plus_micros(1)
    } else {
        until
    }
}
