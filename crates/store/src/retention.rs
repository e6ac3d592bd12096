//! Retention: what is older than the retention, by its own time, is deleted in bounded pieces.

use std::collections::BTreeSet;
use std::time::Instant;

use nodestats_core::stored;
use nodestats_wire::Timestamp;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::database::bind;
use crate::samples::{Order, time_range};
use crate::{Error, Store};

/// Span of one delete: an hour of samples each second is 3,600 rows.
const PIECE_MICROS: i64 = 3_600_000_000;

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
        // In this order: a node that registers in between has a life.
        let seen = self.seen().await?;
        let lives = self.lives().await?;
        let known: BTreeSet<&str> = lives.iter().map(|life| &*life.uid).collect();
        for orphan in seen.keys().filter(|uid| !known.contains(&***uid)) {
            self.purge(orphan).await?;
        }
        self.keep_usage(&lives, now).await?;
        // As long as any history: which node's it was on is in its record, and not in its key.
        let horizons = lives.iter().map(|life| self.horizon(life, now));
        let horizon = horizons.fold(self.default_horizon(now), Timestamp::min);
        self.forget_pods(horizon).await?;
        // Of nodes that are not known too.
        self.forget_events(None, horizon).await?;
        for life in lives {
            let horizon = self.horizon(&life, now);
            self.delete_before(&life.uid, horizon).await?;
            self.forget_events(Some(&life.uid), horizon).await?;
            let gone_long_ago = life.gone_at.is_some_and(|gone_at| gone_at < horizon);
            if gone_long_ago && self.oldest(&life.uid).await?.is_none() {
                self.purge(&life.uid).await?;
            }
        }
        Ok(())
    }

    /// The time of the oldest sample of a node.
    pub async fn oldest(&self, uid: &str) -> Result<Option<Timestamp>, Error> {
        self.end_of_history(uid, Order::Ascending).await
    }

    /// The time of the newest sample of a node.
    pub async fn newest(&self, uid: &str) -> Result<Option<Timestamp>, Error> {
        self.end_of_history(uid, Order::Descending).await
    }

    async fn end_of_history(&self, uid: &str, order: Order) -> Result<Option<Timestamp>, Error> {
        let all = (Timestamp::MIN, Timestamp::MAX);
        let rows = self.samples(uid, all, None, order, 1).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        Ok(stored::read(row)
            .map_err(|_| Error::Damaged("sample"))?
            .time())
    }

    pub(crate) async fn delete_before(&self, uid: &str, end: Timestamp) -> Result<(), Error> {
        while let Some(oldest) = self.oldest(uid).await?.filter(|oldest| *oldest < end) {
            let until = oldest.plus_micros(PIECE_MICROS).min(end);
            let until = if until == Timestamp::MAX {
                until.plus_micros(1)
            } else {
                until
            };
            let range = time_range(uid, oldest, until);
            self.database
                .delete("DELETE $range RETURN NONE", bind([("range", range)]))
                .await
                .map_err(Error::Unavailable)?;
        }
        Ok(())
    }
}
