//! Answers about a span of the past by buckets: each entry is of a step of time, or where samples are gone of
//! the minute or the hour that is kept.

use std::collections::VecDeque;
use std::sync::Arc;

use nodestats_core::Life;
use nodestats_core::rates::Aggregate;
use nodestats_core::rollup::{Bucket, MINUTE, Part};
use nodestats_store::Order;
use nodestats_wire::Timestamp;
use nodestats_wire::v1::GapEntry;

use super::PIECE;
use super::buckets::{Source, together};
use super::entries::Entries;
use super::gaps::Gaps;
use crate::answer::{Answer, Detail, rolled_answer};
use crate::pods::Names;
use crate::{ApiError, App};

/// Buckets that lie so far apart have something missing in between.
const APART: i64 = 2 * MINUTE;

/// A bucket, and where it has processes the host's own beside it.
type Beside = (Bucket, Option<Bucket>);

/// A walk through buckets that writes JSON as it goes.
pub(super) struct Coarse {
    app: App,
    life: Life,
    detail: Detail,
    aggregate: Aggregate,
    step: Option<i64>,
    to: Timestamp,
    source: Source,
    /// The host's buckets beside those of processes.
    hosts: Option<Source>,
    page: VecDeque<Beside>,
    /// Those of the step under way.
    held: Option<(Timestamp, Vec<Beside>)>,
    /// The end of the last bucket.
    end: Option<Timestamp>,
    names: Names,
    finished: bool,
}

impl Coarse {
    pub(super) fn new(
        app: &App,
        life: &Life,
        detail: &Detail,
        (from, to): (Timestamp, Timestamp),
        (step, aggregate): (Option<i64>, Aggregate),
    ) -> Self {
        let figures = detail.figures();
        let source = Source::new(app, &life.uid, figures, (from, to), step);
        let has_hosts = figures.part() == Part::Processes;
        let hosts = has_hosts.then(|| source.hosts_beside());
        Self {
            app: app.clone(),
            life: life.clone(),
            detail: detail.clone(),
            aggregate,
            step,
            to,
            source,
            hosts,
            page: VecDeque::new(),
            held: None,
            end: None,
            names: Names::default(),
            finished: false,
        }
    }

    /// Of rollups alone: of another walk are the samples.
    pub(super) fn of_rollups(mut self) -> Self {
        self.source = self.source.of_rollups();
        self.hosts = self.hosts.map(Source::of_rollups);
        self
    }

    /// Whether all was written.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Writes entries until a piece is full or nothing is left.
    pub(super) async fn write(
        &mut self,
        piece: &mut Vec<u8>,
        entries: &mut Entries,
    ) -> Result<(), ApiError> {
        while piece.len() < PIECE && !self.finished {
            let reading = Arc::clone(&self.app.reading);
            let turn = reading.acquire().await;
            if self.page.is_empty() && !self.fill().await? {
                drop(turn);
                if let Some(held) = self.held.take() {
                    self.write_step(piece, entries, held).await?;
                }
                self.finished = true;
                break;
            }
            while let Some((bucket, hosts)) = self.page.pop_front() {
                let key = match self.step {
                    Some(step) => bucket.begin.floor_to(step),
                    None => bucket.begin,
                };
                if let Some(held) = self.held.take_if(|held| held.0 != key) {
                    self.write_step(piece, entries, held).await?;
                }
                self.write_gap(piece, entries, &bucket, key).await?;
                let held = self.held.get_or_insert_with(|| (key, Vec::new()));
                held.1.push((bucket, hosts));
            }
        }
        Ok(())
    }

    /// Reads the next buckets; `false` at the end.
    async fn fill(&mut self) -> Result<bool, ApiError> {
        let hours = self.source.hours();
        let Some(buckets) = self.source.page(hours).await? else {
            return Ok(false);
        };
        let hosts = match &mut self.hosts {
            Some(hosts) => hosts.page(hours).await?.unwrap_or_default(),
            None => Vec::new(),
        };
        let mut hosts = hosts.into_iter().peekable();
        for bucket in buckets {
            while hosts.next_if(|host| host.begin < bucket.begin).is_some() {}
            let host = hosts.next_if(|host| host.begin == bucket.begin);
            self.page.push_back((bucket, host));
        }
        Ok(true)
    }

    async fn write_step(
        &mut self,
        piece: &mut Vec<u8>,
        entries: &mut Entries,
        (key, buckets): (Timestamp, Vec<Beside>),
    ) -> Result<(), ApiError> {
        let (buckets, hosts): (Vec<_>, Vec<_>) = buckets.into_iter().unzip();
        let hosts: Vec<Bucket> = hosts.into_iter().flatten().collect();
        let hosts = (!hosts.is_empty()).then(|| together(key, hosts));
        let bucket = together(key, buckets);
        let answer = rolled_answer(&self.detail, &bucket, hosts.as_ref(), self.aggregate);
        if let Some(mut answer) = answer {
            if let Answer::Pods(pods) = &mut answer {
                self.names.name(&self.app, &self.life.uid, pods).await?;
            }
            entries.write(piece, key, None, &answer);
        }
        Ok(())
    }

    /// An entry for what is missing between the last bucket and this one, where samples tell why.
    async fn write_gap(
        &mut self,
        piece: &mut Vec<u8>,
        entries: &mut Entries,
        next: &Bucket,
        next_key: Timestamp,
    ) -> Result<(), ApiError> {
        let end = self.end.replace(next.begin.plus_micros(MINUTE));
        let Some(end) = end.filter(|end| end.plus_micros(APART) <= next.begin) else {
            return Ok(());
        };
        let samples = |range, order| {
            let wanted = nodestats_core::Wanted::Host;
            self.app
                .store
                .samples(&self.life.uid, range, order, wanted, 1)
        };
        let before = samples((Timestamp::MIN, end.plus_micros(-1)), Order::Descending);
        let before = before.await?.pop();
        let after = samples((end, Timestamp::MAX), Order::Ascending);
        let Some(after) = after
            .await?
            .pop()
            .filter(|after| after.time() >= next.begin)
        else {
            return Ok(());
        };
        let mut gaps = Gaps::new(&self.life, before.as_ref());
        let Some((due, gap)) = gaps.before(&self.app, &after).await? else {
            return Ok(());
        };
        let key = self.step.map_or(due, |step| due.floor_to(step));
        let held = self.held.as_ref().map(|held| held.0);
        let is_of_interest = match &self.detail {
            Detail::Pod(pod, ..) => pod.lived(due, gap.to.unwrap_or(Timestamp::MAX)),
            _ => true,
        };
        let is_between = is_of_interest
            && held.or(entries.last()).is_none_or(|last| last < key)
            && key < next_key
            && key <= self.to;
        if is_between {
            if let Some(held) = self.held.take() {
                self.write_step(piece, entries, held).await?;
            }
            entries.write(piece, key, None, &GapEntry { gap });
        }
        Ok(())
    }
}
