//! Sealing: the rows of an hour that is over become blocks, a fifteenth of their size, in one transaction
//! that writes the blocks and deletes the rows. So a crash leaves either, and a reader finds either.
//!
//! What comes late is sealed into blocks beside those of its hour; small ones are merged as they become
//! many.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nodestats_core::block::{self, Parts, Sealer};
use nodestats_core::rollup::Roller;
use nodestats_core::{SampleKey, Stored, Wanted, stored};
use nodestats_wire::Timestamp;
use surrealdb::types::{Array, RecordId, SurrealValue, Value};
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::blocks::{AT_ONCE, BlockKey, HOUR, Unreadable, hour_of};
use crate::claim::GUARD;
use crate::database::{bind, object};
use crate::rollups::{self, Made, Rolled, WRITE};
use crate::samples::{key_of_row, record, time_range};
use crate::{Error, Store};

/// A row is left alone for so long after its time, by its node's clock: most that are late come within it.
const SETTLES: Duration = Duration::from_mins(2);
/// An hour that has so many rows is sealed before it is over.
const EARLY: usize = 1024;
/// Most rows, and bytes of them, that are sealed in one transaction.
const ROWS: usize = 4096;
const BYTES: usize = 8 << 20;
/// Rows that are read at once.
const PAGE: usize = 32;
/// Most bytes of blocks that are merged with what came late: a full one has more.
const MERGED_BYTES: u64 = 48 << 10;
/// Transactions of one node at one look: others have their turn, and the rest comes next time.
const TURNS: usize = 200;
/// A block has about so many processes, groups and devices of samples, and one that is read takes 250 bytes
/// of memory for each. An hour of 150 processes each 10 s has 54,000.
const WEIGHT: usize = 1 << 16;

/// What is of this time or later, by a node's clock, cannot have been sealed yet.
pub(crate) fn unsealed_since(now: Timestamp, clock_offset_micros: Option<i64>) -> Timestamp {
    let settles = SETTLES.as_micros() as i64;
    // The clock of the replica that seals may be ahead of ours.
    now.plus_micros(clock_offset_micros.unwrap_or_default() - settles / 2)
}

/// A row that waits to be sealed.
pub(crate) struct Row {
    sample: Stored,
    payload: Bytes,
}

/// Samples of one hour, as blocks.
pub(crate) struct Coded {
    key: BlockKey,
    parts: Parts,
}

impl Store {
    /// Seals what is due, if no other replica does. Returns when it is done; reads and writes go on
    /// meanwhile.
    pub async fn seal(&self, now: Timestamp) -> Result<(), Error> {
        let begin = Instant::now();
        let span = tracing::info_span!("sealing", "otel.status_code" = Empty);
        let done = self.seal_all(now, begin).instrument(span.clone()).await;
        if done.is_err() {
            span.record("otel.status_code", "ERROR");
        }
        self.metrics.looked_to_seal(begin.elapsed(), done.is_ok());
        done
    }

    async fn seal_all(&self, now: Timestamp, begin: Instant) -> Result<(), Error> {
        if !self.claim(now).await? {
            return Ok(());
        }
        let mut failed = Ok(());
        for (uid, seen) in self.seen().await? {
            let offset = seen.clock_offset_micros.unwrap_or_default();
            let settled = now.plus_micros(offset - SETTLES.as_micros() as i64);
            let clock = || now.plus_micros(begin.elapsed().as_micros() as i64);
            // What is wrong with one node's history keeps no other from being sealed.
            if let Err(error) = self.seal_node(&uid, settled, &clock).await {
                tracing::warn!(node = uid, %error, "a history is not sealed");
                failed = Err(error);
            }
        }
        failed
    }

    /// Seals the rows of a node from before `settled`, as far as their hours are over.
    pub(crate) async fn seal_node(
        &self,
        uid: &str,
        settled: Timestamp,
        clock: &impl Fn() -> Timestamp,
    ) -> Result<(), Error> {
        let begin = self.frontier.look(uid);
        let mut from = begin;
        let mut failed = Ok(());
        // Before it no row is left.
        let mut sealed_until = from;
        for _ in 0..TURNS {
            let Some(oldest) = self.first_row(uid, from).await? else {
                sealed_until = settled;
                break;
            };
            sealed_until = oldest.min(settled);
            let hour = hour_of(oldest);
            let end = hour.plus_micros(HOUR);
            let until = end.min(settled);
            if oldest >= until {
                break;
            }
            if until < end {
                let range = (oldest, until.plus_micros(-1));
                if !self.has_rows(uid, range, EARLY).await? {
                    break;
                }
            }
            from = match self.seal_rows(uid, hour, (oldest, until), clock()).await {
                // A row that stays where it is must not be met again.
                Ok(Some(last)) => last.plus_micros(1),
                Ok(None) => until,
                // The database is away, or another replica has the claim.
                Err(error @ (Error::Unavailable(_) | Error::Closing)) => return Err(error),
                // One hour keeps no other from being sealed.
                Err(error) => {
                    failed = Err(error);
                    until
                }
            };
        }
        if failed.is_ok() {
            // One that was put again meanwhile, or more of one time than a transaction takes.
            if from > begin
                && let Some(left) = self.first_row(uid, begin).await?
            {
                sealed_until = sealed_until.min(left);
            }
            self.frontier.looked(uid, sealed_until);
        }
        failed
    }

    /// Seals the rows of an hour, or as many of them as one transaction takes; returns the time of the last.
    async fn seal_rows(
        &self,
        uid: &str,
        hour: Timestamp,
        (from, until): (Timestamp, Timestamp),
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Error> {
        let mut rows = self.rows_to_seal(uid, (from, until)).await?;
        // What came in between may have moved one onto the next page.
        rows.dedup_by_key(|row| row.sample.key());
        reached("read");
        let Some(last) = rows.iter().map(|row| row.sample.time()).max() else {
            return Ok(None);
        };
        let before: u64 = rows.iter().map(|row| row.payload.len() as u64).sum();
        let blocks = self.blocks_of_hour(uid, hour).await?;
        // Higher than of those that were set aside, whose parts are still there.
        let next = blocks.iter().map(|block| block.number + 1).max();
        let number = now.micros().max(next.unwrap_or_default());
        let (merged, others) = to_merge(rows.len(), blocks);
        let beside = others.clone();
        let mut samples = self.samples_of(uid, &merged).await?;
        let first = rows.iter().map(|row| row.sample.time()).min();
        let in_the_way = |block: &BlockKey| block.overlaps(first.unwrap_or(from), last);
        let others: Vec<BlockKey> = others.into_iter().filter(in_the_way).collect();
        let of_rows = rows.iter().map(|row| row.sample.key()).collect();
        let sealed = self.sealed_of(uid, &others, &of_rows).await?;
        let is_new = |row: &&Row| {
            // A reading that was put again counts.
            row.sample.counters().is_none() || !sealed.contains(&row.sample.key())
        };
        let new = rows.iter().filter(is_new);
        samples.extend(new.map(|row| (row.sample.key(), i64::MAX, row.sample.clone())));
        let samples = in_order(samples);
        let count = samples.len() as u64;
        // The whole hour is rolled up, also what stays in other blocks.
        let all = self.whole_hour(uid, &beside, &samples).await?;
        let mut before_hour = self.before_hour(uid, hour).await?;
        let of_hour = all.as_deref().unwrap_or(&samples);
        let counted = rollups::counted(of_hour);
        let is_whole = before_hour.is_less_than(counted);
        let last_of_hour = of_hour
            .iter()
            .rfind(|sample| sample.counters().is_some())
            .cloned();
        let last_key = last_of_hour.as_ref().map(Stored::key);
        // One that is in a block was the last before.
        let last_row = rows.iter().find(|row| Some(row.sample.key()) == last_key);
        let last_payload = last_row.map(|row| row.payload.clone());
        let next_hour = before_hour.next();
        let coding = tokio::task::spawn_blocking(move || {
            let mut roller = rollups::roller(&mut before_hour);
            let coded = match &all {
                None => code(hour, number, &samples, Some(&mut roller)),
                Some(_) => code(hour, number, &samples, None),
            };
            if let (Some(all), Ok(_)) = (&all, &coded) {
                // What cannot be read was not there to be read a moment ago either.
                if let Err(error) = rollups::roll(&mut roller, all) {
                    tracing::error!(%error, "an hour is rolled up in part");
                }
            }
            let made = rollups::make(roller, hour, before_hour.kept(), counted);
            coded.map(|coded| (coded, made))
        });
        let (coded, made) = match coding.await.map_err(|_| Error::Closing)? {
            Ok(coded) => coded,
            Err(Failure::Seal(error)) => return Err(Error::Seal(error)),
            Err(Failure::Sample(key)) => {
                // Of the next attempt it is no part.
                let row = rows.iter().find(|row| row.sample.key() == key);
                if let Some(row) = row {
                    self.set_row_aside(uid, &key, row.payload.clone()).await?;
                } else {
                    let of_sample = merged
                        .iter()
                        .filter(|block| block.overlaps(key.time, key.time));
                    for block in of_sample {
                        let why = Unreadable::Damaged(block::Error::Mismatch);
                        self.set_aside(uid, block, &why).await;
                    }
                }
                return Err(Error::Damaged("sample"));
            }
        };
        let rolled = if is_whole {
            let mut made = vec![(hour, made)];
            let is_new_end = last_payload.is_some();
            if let (Some(next), Some(last)) = (next_hour.filter(|_| is_new_end), &last_of_hour) {
                let again = self.roll_again(uid, next, &made[0].1, last).await?;
                made.extend(again.map(|again| (next, again)));
            }
            self.rolled(uid, made, last_payload).await?
        } else {
            Rolled::default()
        };
        let of_rollups = rolled.usage.clone();
        reached("coded");
        self.replace(uid, &rows, &merged, (&coded, rolled), now)
            .await?;
        reached("replaced");
        let after: u64 = coded.iter().map(|coded| coded.key.bytes).sum();
        let merged: u64 = merged.iter().map(|block| block.bytes).sum();
        self.usage.sealed(uid, hour, before + merged, after);
        self.usage.rolled(uid, &of_rollups);
        self.metrics.sealed(count, after);
        Ok(Some(last))
    }

    /// The rows of a span of time; what cannot be read is set aside.
    pub(crate) async fn rows_to_seal(
        &self,
        uid: &str,
        (mut from, until): (Timestamp, Timestamp),
    ) -> Result<Vec<Row>, Error> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let mut start = 0_i64;
        loop {
            let statement = "SELECT id, p FROM array::first([$range]) LIMIT $limit START $start";
            let variables = bind([
                ("range", time_range(uid, from, until)),
                ("limit", (PAGE as i64).into_value()),
                ("start", start.into_value()),
            ]);
            let page: Vec<Value> = self
                .database
                .select(statement, variables)
                .await
                .map_err(Error::Unavailable)?;
            let is_last = page.len() < PAGE;
            for row in page {
                match read_row(row) {
                    Ok(row) => {
                        bytes += row.payload.len();
                        let time = row.sample.time();
                        // The next page begins behind those of the same time.
                        start = if time == from { start + 1 } else { 1 };
                        from = time;
                        rows.push(row);
                    }
                    Err((key, payload)) => {
                        let key = key.ok_or(Error::Damaged("sample"))?;
                        self.set_row_aside(uid, &key, payload).await?;
                    }
                }
            }
            if is_last || rows.len() >= ROWS || bytes >= BYTES {
                return Ok(rows);
            }
        }
    }

    /// Takes a row that cannot be read out of the way.
    async fn set_row_aside(&self, uid: &str, key: &SampleKey, payload: Bytes) -> Result<(), Error> {
        tracing::error!(node = uid, time = %key.time, "a stored sample cannot be read; it is set aside");
        self.metrics.damaged();
        let name = Array::from(vec![
            uid.to_owned().into_value(),
            hour_of(key.time).micros().into_value(),
            format!("{key:?}").into_value(),
        ]);
        let bytes = payload.len();
        let variables = bind([
            ("id", record(key, uid).into_value()),
            ("aside", RecordId::new("damaged", name).into_value()),
            ("p", Value::Bytes(payload.to_vec().into())),
        ]);
        let statements = "BEGIN; UPSERT $aside SET p = $p RETURN NONE; \
             DELETE $id RETURN NONE; COMMIT;";
        let moved = self.database.write(statements, variables, bytes).await;
        moved.map_err(Error::Unavailable)
    }

    /// All samples of blocks, with the number of the block of each.
    async fn samples_of(
        &self,
        uid: &str,
        blocks: &[BlockKey],
    ) -> Result<Vec<(SampleKey, i64, Stored)>, Error> {
        let mut samples = Vec::new();
        let opened = self.open_blocks(uid, blocks, Wanted::All).await?;
        for (key, opened) in blocks.iter().zip(opened) {
            let block = match opened {
                Ok(block) => block,
                Err(why) => return Err(self.unreadable(uid, key, &why).await),
            };
            let of_block = (0..block.len()).filter_map(|at| stored::of_block(&block, at));
            samples.extend(of_block.map(|sample| (sample.key(), key.number, sample)));
        }
        Ok(samples)
    }

    /// Rolls up an hour again, since there is another sample before it than there was.
    async fn roll_again(
        &self,
        uid: &str,
        hour: Timestamp,
        before: &Made,
        last: &Stored,
    ) -> Result<Option<Made>, Error> {
        let Some(Ok(sample)) = last.counters().map(|last| last.sample(Wanted::All)) else {
            return Ok(None);
        };
        let blocks = self.blocks_of_hour(uid, hour).await?;
        let samples = in_order(self.samples_of(uid, &blocks).await?);
        let counted = rollups::counted(&samples);
        let known = self.before_hour(uid, hour).await?;
        if !known.is_less_than(counted) {
            return Ok(None);
        }
        let mut before = before.before_next(sample);
        let coding = tokio::task::spawn_blocking(move || {
            let mut roller = rollups::roller(&mut before);
            rollups::roll(&mut roller, &samples)?;
            Ok(rollups::make(roller, hour, before.kept(), counted))
        });
        let made: Result<Made, stored::Error> = coding.await.map_err(|_| Error::Closing)?;
        Ok(Some(made.map_err(|_| Error::Damaged("sample"))?))
    }

    /// All samples of an hour, where some are in blocks that stay; `None` where there are no such blocks.
    async fn whole_hour(
        &self,
        uid: &str,
        beside: &[BlockKey],
        samples: &[Stored],
    ) -> Result<Option<Vec<Stored>>, Error> {
        if beside.is_empty() {
            return Ok(None);
        }
        let mut all = self.samples_of(uid, beside).await?;
        let new = samples.iter();
        all.extend(new.map(|sample| (sample.key(), i64::MAX, sample.clone())));
        Ok(Some(in_order(all)))
    }

    /// Which of these samples are in blocks.
    pub(crate) async fn sealed_of(
        &self,
        uid: &str,
        blocks: &[BlockKey],
        samples: &HashSet<SampleKey>,
    ) -> Result<HashSet<SampleKey>, Error> {
        let mut found = HashSet::new();
        for some in blocks.chunks(AT_ONCE) {
            let opened = self.open_blocks(uid, some, Wanted::Host).await?;
            for (key, opened) in some.iter().zip(opened) {
                let block = match opened {
                    Ok(block) => block,
                    Err(why) => return Err(self.unreadable(uid, key, &why).await),
                };
                let headers = (0..block.len()).filter_map(|at| block.header(at));
                let keys = headers.map(|header| SampleKey {
                    time: header.time,
                    push: header.push,
                });
                found.extend(keys.filter(|key| samples.contains(key)));
            }
        }
        Ok(found)
    }

    /// A damaged block is out of the way at the next attempt, and one whose parts are lost: where it was
    /// replaced meanwhile, it is not listed any more.
    async fn unreadable(&self, uid: &str, key: &BlockKey, why: &Unreadable) -> Error {
        if why.is_foreign() {
            return Error::Damaged("block");
        }
        let is_lost = match why {
            Unreadable::Gone => match self.blocks_of_hour(uid, key.hour).await {
                Ok(listed) => listed.contains(key),
                Err(error) => return error,
            },
            Unreadable::Damaged(_) | Unreadable::Database(_) => true,
        };
        if is_lost {
            self.set_aside(uid, key, why).await;
        }
        Error::Changing
    }

    /// Writes blocks in the place of rows and other blocks.
    pub(crate) async fn replace(
        &self,
        uid: &str,
        rows: &[Row],
        merged: &[BlockKey],
        (coded, rolled): (&[Coded], Rolled),
        now: Timestamp,
    ) -> Result<(), Error> {
        let (mut blocks, mut parts) = (Vec::new(), Vec::new());
        for Coded { key, parts: of_key } in coded {
            let (block, own) = key.rows(uid, of_key);
            blocks.push(block);
            parts.extend(own);
        }
        let id = |row: &Row| record(&row.sample.key(), uid);
        let (frames, readings): (Vec<&Row>, Vec<&Row>) =
            rows.iter().partition(|row| row.sample.counters().is_some());
        let frames: Vec<RecordId> = frames.into_iter().map(id).collect();
        let reading = |row: &Row| {
            let payload = surrealdb::types::Bytes::from(row.payload.to_vec());
            object([
                ("id", Some(id(row).into_value())),
                ("p", Some(Value::Bytes(payload))),
            ])
        };
        let readings: Vec<Value> = readings.into_iter().map(reading).collect();
        let merged = merged.iter().flat_map(|block| block.records(uid));
        let merged: Vec<Value> = merged.collect();
        let bytes: usize = coded.iter().map(|coded| coded.parts.len()).sum();
        let bytes = bytes + rolled.bytes;
        // Rows that are gone were purged: what was read of them must not come again. A reading that was put
        // again since it was read stays, and counts before the block.
        let statements = format!(
            "{GUARD} \
             IF count((SELECT VALUE id FROM $readings.id)) != {} {{ THROW 'rows are gone' }}; \
             INSERT INTO block $blocks RETURN NONE; INSERT INTO block_part $parts RETURN NONE; \
             DELETE $merged RETURN NONE; {WRITE}\
             FOR $row IN $readings {{ DELETE $row.id WHERE p = $row.p RETURN NONE }};",
            readings.len()
        );
        let mut variables = self.claimed(now);
        for (name, list) in [
            ("blocks", blocks),
            ("parts", parts),
            ("merged", merged),
            ("readings", readings),
        ] {
            variables.insert(name.to_owned(), Value::Array(Array::from(list)));
        }
        for (name, list) in rolled.variables() {
            variables.insert(name.to_owned(), list);
        }
        let replaced = self.database.replace(frames, &statements, variables, bytes);
        replaced.await.map_err(Error::Unavailable)
    }

    /// Whether there are so many rows.
    async fn has_rows(
        &self,
        uid: &str,
        (from, to): (Timestamp, Timestamp),
        count: usize,
    ) -> Result<bool, Error> {
        let variables = bind([
            ("range", time_range(uid, from, to.plus_micros(1))),
            ("before", (count as i64 - 1).into_value()),
        ]);
        let statement = "SELECT VALUE id FROM array::first([$range]) LIMIT 1 START $before";
        let found: Result<Vec<Value>, _> = self.database.select(statement, variables).await;
        Ok(!found.map_err(Error::Unavailable)?.is_empty())
    }
}

/// Each sample once, in the order of time: of several with one key the one of the highest rank.
fn in_order(mut samples: Vec<(SampleKey, i64, Stored)>) -> Vec<Stored> {
    samples.sort_by(|(a, rank_a, _), (b, rank_b, _)| a.cmp(b).then(rank_b.cmp(rank_a)));
    samples.dedup_by(|later, first| later.0 == first.0);
    samples.into_iter().map(|(.., sample)| sample).collect()
}

/// What a row holds, or which one it is that cannot be read, and its bytes.
fn read_row(row: Value) -> Result<Row, (Option<SampleKey>, Bytes)> {
    let Value::Object(mut row) = row else {
        return Err((None, Bytes::new()));
    };
    let key = row.remove("id").and_then(key_of_row);
    let payload = match row.remove("p") {
        Some(Value::Bytes(payload)) => payload.into_inner(),
        _ => return Err((key, Bytes::new())),
    };
    match stored::read(&payload) {
        Ok(sample) => Ok(Row { sample, payload }),
        Err(_) => Err((key, payload)),
    }
}

/// Which blocks of an hour are merged with so many new samples, and which stay. Merged are the latest, so
/// that no other one counts before them, as long as they are small and not much larger than all that is
/// merged before them, so that few remain and none is written often.
fn to_merge(new: usize, mut blocks: Vec<BlockKey>) -> (Vec<BlockKey>, Vec<BlockKey>) {
    blocks.sort_by_key(|block| std::cmp::Reverse(block.number));
    let (mut total, mut bytes, mut merged) = (new, 0, 0);
    for block in &blocks {
        let samples = block.samples as usize;
        bytes += block.bytes;
        if samples > 2 * total || total + samples > EARLY || bytes > MERGED_BYTES {
            break;
        }
        total += samples;
        merged += 1;
    }
    let others = blocks.split_off(merged);
    (blocks, others)
}

/// Why samples are no blocks.
enum Failure {
    /// One of them cannot be read.
    Sample(SampleKey),
    Seal(block::Error),
}

/// Samples as blocks of a bounded weight each, numbered from `number` on.
fn code(
    hour: Timestamp,
    mut number: i64,
    samples: &[Stored],
    mut roller: Option<&mut Roller>,
) -> Result<Vec<Coded>, Failure> {
    let mut coded = Vec::new();
    let mut rest = samples;
    // Samples that were given to the roller: of a block that is too large some come again.
    let mut given = 0;
    while let Some(first) = rest.first() {
        let mut limit = rest.len();
        loop {
            let mut sealer = Sealer::default();
            let begin = samples.len() - rest.len();
            for (at, sample) in (begin..).zip(&rest[..limit]) {
                let added = sample.seal(&mut sealer);
                let entry = added.map_err(|_| Failure::Sample(sample.key()))?;
                if let (Some(roller), Some(entry)) = (&mut roller, entry)
                    && at >= given
                {
                    roller.add(entry.time, entry.sample);
                    given = at + 1;
                }
                if sealer.weight() >= WEIGHT {
                    break;
                }
            }
            let count = sealer.len();
            match sealer.finish() {
                Ok(parts) => {
                    let (own, next) = rest.split_at(count);
                    let key = BlockKey {
                        hour,
                        first: first.time(),
                        last: own.last().map_or(first.time(), Stored::time),
                        samples: count as u32,
                        bytes: parts.len() as u64,
                        number,
                    };
                    number += 1;
                    coded.push(Coded { key, parts });
                    rest = next;
                    break;
                }
                Err(block::Error::TooLarge) if count > 1 => limit = count / 2,
                Err(error) => return Err(Failure::Seal(error)),
            }
        }
    }
    Ok(coded)
}

/// A point of a sealing at which a test ends the process.
#[cfg(test)]
fn reached(point: &str) {
    if std::env::var("NODESTATS_TEST_END_AT").is_ok_and(|wanted| wanted == point) {
        std::process::abort();
    }
}

#[cfg(not(test))]
const fn reached(_: &str) {}
