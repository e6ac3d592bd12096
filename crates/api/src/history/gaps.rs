//! Where samples are missing in a history, and why.

use std::time::Duration;

use nodestats_core::gap::{Edge, Ending, reason, reason_of_silence};
use nodestats_core::stored::Counters;
use nodestats_core::{Life, Stored, Wanted};
use nodestats_store::{EventRange, Order};
use nodestats_wire::Timestamp;
use nodestats_wire::v1::{EventKind, Gap};

use crate::{ApiError, App};

/// Tellings of dropped samples that a history looks at, at most.
const DROPS: usize = 1000;

/// Looks at each sample of a history in turn.
pub(super) struct Gaps {
    uid: String,
    /// What the node's interval is where its samples do not say.
    usual: Option<Duration>,
    /// The last sample; `None` where it is no agent's.
    last: Option<(Edge, Counters)>,
    /// Spans of dropped samples, once they were looked for.
    dropped: Option<Vec<(Timestamp, Timestamp)>>,
}

impl Gaps {
    /// `before` is the last sample before the history.
    pub(super) fn new(life: &Life, before: Option<&Stored>) -> Self {
        let usual = life
            .registration
            .interval_seconds
            .filter(|seconds| *seconds > 0);
        let mut gaps = Self {
            uid: life.uid.clone(),
            usual: usual.map(|seconds| Duration::from_secs(seconds.into())),
            last: None,
            dropped: None,
        };
        gaps.last = before.and_then(|sample| gaps.edge(sample));
        gaps
    }

    fn edge(&self, sample: &Stored) -> Option<(Edge, Counters)> {
        let counters = sample.counters()?;
        Some((counters.edge(self.usual), counters.clone()))
    }

    /// What is missing between the last sample and this one, and when it was due.
    pub(super) async fn before(
        &mut self,
        app: &App,
        sample: &Stored,
    ) -> Result<Option<(Timestamp, Gap)>, ApiError> {
        let next = self.edge(sample);
        let before = std::mem::replace(&mut self.last, next.clone());
        match (before, next) {
            (Some(before), Some(next)) => self.between(app, &before, &next).await,
            _ => Ok(None),
        }
    }

    /// What is missing after the last sample of the history, which ends at `end`.
    pub(super) async fn after(
        &mut self,
        app: &App,
        end: Timestamp,
    ) -> Result<Option<(Timestamp, Gap)>, ApiError> {
        let Some(last) = self.last.take() else {
            return Ok(None);
        };
        let later = (end.plus_micros(1), Timestamp::MAX);
        let rows = app
            .store
            .samples(&self.uid, later, Order::Ascending, Wanted::Host, 1);
        if let Some(next) = rows.await?.into_iter().next() {
            let Some(next) = self.edge(&next) else {
                return Ok(None);
            };
            return self.between(app, &last, &next).await;
        }
        // By the node's own clock.
        let seen = app.store.seen_of(&self.uid).await?;
        let offset = seen.and_then(|seen| seen.clock_offset_micros);
        let until = end.min(App::now().plus_micros(offset.unwrap_or_default()));
        let (edge, counters) = last;
        let Some(due) = edge.due().filter(|_| edge.is_before_silence(until)) else {
            return Ok(None);
        };
        let gap = Gap {
            from: edge.time,
            to: None,
            reason: reason_of_silence(ending(&counters)),
        };
        Ok(Some((due, gap)))
    }

    async fn between(
        &mut self,
        app: &App,
        (before, first): &(Edge, Counters),
        (after, second): &(Edge, Counters),
    ) -> Result<Option<(Timestamp, Gap)>, ApiError> {
        let Some(due) = before.due().filter(|_| before.is_before_gap(after)) else {
            return Ok(None);
        };
        let same_boot = match (first.host(), second.host()) {
            (Ok(first), Ok(second)) => first.boot_id == second.boot_id,
            _ => true,
        };
        let is_next = before.id.agent_start == after.id.agent_start
            && after.id.sequence == before.id.sequence.wrapping_add(1);
        let dropped = !is_next && self.were_dropped(app, before.time, after.time).await?;
        let gap = Gap {
            from: before.time,
            to: Some(after.time),
            reason: reason((before, ending(first)), after, same_boot, dropped),
        };
        Ok(Some((due, gap)))
    }

    /// Whether samples of that time are known to have been dropped.
    async fn were_dropped(
        &mut self,
        app: &App,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<bool, ApiError> {
        let dropped = match self.dropped.take() {
            Some(dropped) => dropped,
            // It is told with a later sample: from here on.
            None => self.find_dropped(app, from).await?,
        };
        let found = dropped
            .iter()
            .any(|(first, last)| *first < to && *last > from);
        self.dropped = Some(dropped);
        Ok(found)
    }

    async fn find_dropped(
        &self,
        app: &App,
        from: Timestamp,
    ) -> Result<Vec<(Timestamp, Timestamp)>, ApiError> {
        let range = EventRange {
            node: Some(&self.uid),
            from,
            to: Timestamp::MAX,
        };
        let kind = EventKind::SamplesDropped;
        let told = app
            .store
            .events_of_kind(range, kind, Order::Ascending, DROPS);
        let dropped = told.await?.into_iter();
        Ok(dropped
            .filter_map(|(_, event)| Some((event.first_dropped?, event.last_dropped?)))
            .collect())
    }
}

fn ending(counters: &Counters) -> Ending {
    Ending::of(&counters.notes().unwrap_or_default(), counters.time)
}
