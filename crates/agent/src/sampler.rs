//! The loop that samples, on a steady schedule.

use std::sync::Arc;
use std::time::Duration;

use nodestats_collect::Reader;
use nodestats_core::{FrameId, frame};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::queue::{Queued, SharedQueue};

/// The first two samples are so far apart: rates are there at once.
const FIRST_GAP: Duration = Duration::from_millis(500);
/// A collector has at most this long, and never longer than most of an interval.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Sampler {
    reader: Reader,
    interval: Duration,
    queue: Arc<SharedQueue>,
    id: FrameId,
}

impl Sampler {
    pub(crate) fn new(reader: Reader, interval: Duration, queue: Arc<SharedQueue>) -> Self {
        let id = FrameId {
            agent_start: Uuid::new_v4(),
            sequence: 0,
        };
        Self {
            reader,
            interval,
            queue,
            id,
        }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let begin = Instant::now();
        self = self.sample().await?;
        if self.interval > FIRST_GAP {
            tokio::select! {
                () = tokio::time::sleep_until(begin + FIRST_GAP) => self = self.sample().await?,
                () = stop.cancelled() => return Ok(()),
            }
        }
        // Times are counted from the begin: a late sample does not delay the ones after it, and
        // one that was missed is missed.
        let mut ticks = interval_at(begin + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = ticks.tick() => self = self.sample().await?,
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// One sample into the queue. Reading blocks, so it leaves this thread and comes back.
    async fn sample(mut self) -> anyhow::Result<Self> {
        let sampled = tokio::task::spawn_blocking(move || {
            let (time, sample) = self.reader.read(PATIENCE.min(self.interval.mul_f64(0.8)));
            let frame = frame::encode(time, self.id, &sample);
            self.queue.push(Queued {
                sequence: self.id.sequence,
                frame,
            });
            self.id.sequence += 1;
            self
        });
        Ok(sampled.await?)
    }
}
