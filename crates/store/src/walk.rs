//! A walk through the samples of a node in the order of time, over pushed rows and sealed blocks alike.
//!
//! Rows and the names of blocks are read together, as they were at one moment, and handed out page by page; a
//! block whose parts are gone when they are read was replaced meanwhile, and the rest is read anew. A sample
//! that stands in several places is met once: the row counts before a block, and the later block before the earlier one.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use nodestats_core::block::Block;
use nodestats_core::{SampleKey, Stored, Wanted, stored};
use nodestats_wire::Timestamp;
use surrealdb::types::{RecordId, RecordIdKeyRange, SurrealValue, Value};

use crate::blocks::{AT_ONCE, BlockKey, HOUR, Unreadable, blocks_within};
use crate::database::bind;
use crate::samples::{Order, payload, record_key, time_bound};
use crate::{Error, Store};

/// Names of blocks that are read at once: the hours of a day and more; of the hours of a test less.
const BLOCKS: usize = if cfg!(test) { 3 } else { 32 };
/// Most rows of a page.
const ROWS: usize = 1000;
/// A sample each so many microseconds is expected where the last ones are looked for; where there are fewer, or
/// none, the span becomes so much wider.
const LOOK_BACK: i64 = 20_000_000;
const WIDER: i64 = 8;
const MUCH_WIDER: i64 = 1024;
/// A page begins anew so often.
const ATTEMPTS: usize = 5;

/// Where a walk is.
pub struct Walk {
    store: Store,
    uid: String,
    from: Timestamp,
    to: Timestamp,
    order: Order,
    wanted: Wanted,
    after: Option<SampleKey>,
    /// The hour that is next: all blocks of those before it were met.
    hours_met: Option<Timestamp>,
    finished: bool,
    /// What is left of what was read together.
    moment: Option<Moment>,
    /// How many blocks are opened next.
    batch: usize,
    /// Blocks that were opened, and whose samples have not all been met.
    open: HashMap<BlockKey, Arc<Block>>,
    /// Blocks that were listed, and had no parts when they were read.
    gone: HashSet<BlockKey>,
}

/// Rows and names of blocks at one moment, in the order of the walk.
struct Moment {
    /// Samples of rows, and of blocks that were opened, that are not handed out yet.
    met: Met,
    blocks: VecDeque<BlockKey>,
    /// The last row that was read, where there may be more behind it.
    rows_end: Option<SampleKey>,
    /// The hour of which and behind which blocks are not listed.
    unlisted: Option<Timestamp>,
}

/// Samples that were met, each with its key and what counts of several: the highest.
type Met = Vec<(SampleKey, i64, Stored)>;

impl Store {
    /// Begins a walk through the samples of a node from `from` to `to`, both included, in the order asked
    /// for.
    pub fn walk(
        &self,
        uid: &str,
        (from, to): (Timestamp, Timestamp),
        order: Order,
        wanted: Wanted,
    ) -> Walk {
        Walk {
            store: self.clone(),
            uid: uid.to_owned(),
            from,
            to,
            order,
            wanted,
            after: None,
            hours_met: None,
            finished: from > to,
            moment: None,
            batch: 1,
            open: HashMap::new(),
            gone: HashSet::new(),
        }
    }

    /// The first `limit` samples of a walk.
    pub async fn samples(
        &self,
        uid: &str,
        range: (Timestamp, Timestamp),
        order: Order,
        wanted: Wanted,
        limit: usize,
    ) -> Result<Vec<Stored>, Error> {
        let mut walk = self.walk(uid, range, order, wanted);
        let mut samples = Vec::new();
        while samples.len() < limit {
            let page = walk.page(limit - samples.len()).await?;
            if page.is_empty() {
                break;
            }
            samples.extend(page);
        }
        samples.truncate(limit);
        Ok(samples)
    }
}

impl Walk {
    /// The next samples, none where there are no more. What is read anew is at most `rows` of those that were
    /// pushed; beside them stand as many as are in the blocks that are under way.
    pub async fn page(&mut self, rows: usize) -> Result<Vec<Stored>, Error> {
        let mut attempts = 0;
        while !self.finished && attempts < ATTEMPTS {
            match self.try_page(rows.clamp(1, ROWS)).await? {
                Some(page) if !page.is_empty() => return Ok(page),
                // There was nothing of what is asked for; behind it there may be.
                Some(_) => {}
                None => attempts += 1,
            }
        }
        if self.finished {
            Ok(Vec::new())
        } else {
            Err(Error::Changing)
        }
    }

    /// `None` where what was read has changed meanwhile.
    async fn try_page(&mut self, limit: usize) -> Result<Option<Vec<Stored>>, Error> {
        let mut moment = match self.moment.take() {
            Some(moment) => moment,
            None => self.moment(limit).await?,
        };
        let position = self.after.map(|after| after.time);
        self.open
            .retain(|key, _| position.is_none_or(|time| self.order.is_ahead(key, time)));
        loop {
            let complete = |(key, ..): &(SampleKey, i64, Stored)| self.is_complete(&moment, key);
            if moment.blocks.is_empty() || moment.met.iter().any(complete) {
                break;
            }
            if !self.meet_next(&mut moment).await? {
                return Ok(None);
            }
        }
        let met = std::mem::take(&mut moment.met);
        let (mut met, rest): (Met, Met) = met
            .into_iter()
            .partition(|(key, ..)| self.is_complete(&moment, key));
        moment.met = rest;
        met.sort_by(|(a, rank_a, _), (b, rank_b, _)| self.compare(a, b).then(rank_b.cmp(rank_a)));
        met.dedup_by(|later, first| later.0 == first.0);
        if let Some((key, ..)) = met.last() {
            self.after = Some(*key);
            // Behind the last row that was read there may be more: nothing is complete any more.
            self.moment = (moment.rows_end != Some(*key)).then_some(moment);
        } else {
            // All that is listed was met; what is not listed begins here.
            match moment.unlisted {
                Some(hour) => self.hours_met = Some(hour),
                None => self.finished = true,
            }
        }
        Ok(Some(met.into_iter().map(|(.., sample)| sample).collect()))
    }

    /// Which of two comes first.
    fn compare(&self, a: &SampleKey, b: &SampleKey) -> Ordering {
        match self.order {
            Order::Ascending => a.cmp(b),
            Order::Descending => b.cmp(a),
        }
    }

    /// Whether all that stands with this key or before it has been read.
    fn is_complete(&self, moment: &Moment, key: &SampleKey) -> bool {
        let is_before = |begin: Timestamp, end: Timestamp| match self.order {
            Order::Ascending => key.time < begin,
            Order::Descending => key.time > end,
        };
        let next = moment.blocks.front();
        let unlisted = moment.unlisted;
        next.is_none_or(|block| is_before(block.first, block.last))
            && unlisted.is_none_or(|hour| is_before(hour, hour.plus_micros(HOUR - 1)))
            && moment
                .rows_end
                .is_none_or(|end| self.compare(key, &end).is_le())
    }

    /// Reads the next blocks; `false` where one of them is gone.
    async fn meet_next(&mut self, moment: &mut Moment) -> Result<bool, Error> {
        let Moment { met, blocks, .. } = moment;
        let count = self.batch.min(blocks.len());
        let taken: Vec<BlockKey> = blocks.drain(..count).collect();
        let is_new = |key: &&BlockKey| !self.open.contains_key(*key);
        let new: Vec<BlockKey> = taken.iter().filter(is_new).copied().collect();
        let mut has_changed = false;
        if !new.is_empty() {
            let opened = self.store.open_blocks(&self.uid, &new, self.wanted);
            for (key, opened) in new.iter().zip(opened.await?) {
                match opened {
                    Ok(block) => {
                        self.open.insert(*key, block);
                    }
                    Err(Unreadable::Gone) if self.gone.insert(*key) => has_changed = true,
                    Err(why) if why.is_foreign() => return Err(Error::Damaged("block")),
                    Err(why) => self.store.set_aside(&self.uid, key, &why).await,
                }
            }
            if !matches!(self.wanted, Wanted::Processes | Wanted::All) {
                self.batch = (self.batch * 2).min(AT_ONCE);
            }
        }
        if has_changed {
            return Ok(false);
        }
        for key in taken {
            let Some(block) = self.open.get(&key) else {
                continue;
            };
            let samples = (0..block.len()).filter_map(|number| stored::of_block(block, number));
            let is_asked_for = |sample: &Stored| {
                let time = sample.time();
                let after = self.after.as_ref();
                (self.from..=self.to).contains(&time)
                    && after.is_none_or(|after| self.compare(&sample.key(), after).is_gt())
            };
            let samples = samples.filter(is_asked_for);
            met.extend(samples.map(|sample| (sample.key(), key.number, sample)));
        }
        Ok(true)
    }

    /// The next rows, and which blocks there are.
    async fn moment(&self, limit: usize) -> Result<Moment, Error> {
        let mut names = BLOCKS;
        loop {
            let (rows, mut blocks, listed) = self.read(limit, names).await?;
            let mut unlisted = None;
            if listed == names {
                // Whole hours alone, so that what is not listed is of other ones.
                let last = blocks.last().map(|block| block.hour);
                blocks.retain(|block| Some(block.hour) != last);
                if blocks.is_empty() {
                    names *= 8;
                    continue;
                }
                unlisted = last;
            }
            let position = self.after.map(|after| after.time);
            let (from, to) = match self.order {
                Order::Ascending => (position.unwrap_or(self.from), self.to),
                Order::Descending => (self.from, position.unwrap_or(self.to)),
            };
            blocks.retain(|block| block.overlaps(from, to));
            blocks.sort_by(|a, b| match self.order {
                Order::Ascending => a.first.cmp(&b.first),
                Order::Descending => b.last.cmp(&a.last),
            });
            let rows_end = (rows.len() == limit).then(|| rows.last().map(Stored::key));
            let met = rows.into_iter().map(|row| (row.key(), i64::MAX, row));
            return Ok(Moment {
                met: met.collect(),
                blocks: blocks.into(),
                rows_end: rows_end.flatten(),
                unlisted,
            });
        }
    }

    async fn read(
        &self,
        limit: usize,
        names: usize,
    ) -> Result<(Vec<Stored>, Vec<BlockKey>, usize), Error> {
        let (mut from, mut to) = (self.from, self.to);
        let after = self.after.map(|after| after.time);
        match self.order {
            Order::Ascending => from = from.max(after.unwrap_or(from)),
            Order::Descending => to = to.min(after.unwrap_or(to)),
        }
        let first = self.store.frontier.first(&self.uid, from);
        let last = to;
        // `hours_met` is the hour that comes next.
        if let Some(hour) = self.hours_met {
            match self.order {
                Order::Ascending => from = from.max(hour),
                Order::Descending => to = to.min(hour),
            }
        }
        // Where the end is asked for all is read from where a range begins: that is near, as long as there is enough.
        let (statement, mut window) = match self.order {
            Order::Ascending => (
                "RETURN [(SELECT id, p FROM array::first([$range]) LIMIT $limit), \
                 (SELECT VALUE id FROM array::first([$blocks]) LIMIT $names)]",
                i64::MAX,
            ),
            Order::Descending => (
                "RETURN [(SELECT id, p FROM $range), \
                 (SELECT VALUE id FROM $blocks ORDER BY id DESC LIMIT $names)]",
                LOOK_BACK.saturating_mul(limit as i64 + 1),
            ),
        };
        let (rows, blocks) = loop {
            let begin = last.plus_micros(-window).max(first);
            let range = (begin, last);
            let variables = bind([
                (
                    "range",
                    row_range(&self.uid, range, self.after.as_ref(), self.order),
                ),
                ("limit", (limit as i64).into_value()),
                ("blocks", blocks_within(&self.uid, from, to)),
                ("names", (names as i64).into_value()),
            ]);
            let answer: Vec<Value> = self
                .store
                .database
                .select(statement, variables)
                .await
                .map_err(Error::Unavailable)?;
            let mut answer = answer.into_iter();
            let (Some(Value::Array(rows)), Some(Value::Array(blocks))) =
                (answer.next(), answer.next())
            else {
                return Err(Error::Damaged("sample"));
            };
            let mut rows = rows.into_vec();
            if self.order == Order::Descending {
                if rows.len() < limit && begin > first {
                    let wider = if rows.is_empty() { MUCH_WIDER } else { WIDER };
                    window = window.saturating_mul(wider);
                    continue;
                }
                rows.reverse();
                rows.truncate(limit);
            }
            break (rows, blocks);
        };
        let mut samples = Vec::with_capacity(rows.len());
        for row in rows {
            let payload = payload(row)?;
            samples.push(stored::read(&payload).map_err(|_| Error::Damaged("sample"))?);
        }
        let listed = blocks.len();
        let blocks = blocks.into_iter().filter_map(BlockKey::read);
        Ok((samples, blocks.collect(), listed))
    }
}

/// The rows from one time to another, both included, beyond `after`; none where the first is later.
fn row_range(
    uid: &str,
    (from, to): (Timestamp, Timestamp),
    after: Option<&SampleKey>,
    order: Order,
) -> Value {
    let until = to.micros() + 1;
    let mut start = Bound::Included(time_bound(uid, from.micros().min(until)));
    let mut end = Bound::Excluded(time_bound(uid, until));
    if let Some(after) = after.filter(|after| (from..=to).contains(&after.time)) {
        let after = Bound::Excluded(record_key(after, uid));
        match order {
            Order::Ascending => start = after,
            Order::Descending => end = after,
        }
    }
    RecordId::new("sample", RecordIdKeyRange { start, end }).into_value()
}
