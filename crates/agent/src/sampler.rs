//! The loop that samples, on a steady schedule.

use std::sync::Arc;
use std::time::Duration;

use nodestats_collect::Reader;
use nodestats_core::{FrameId, frame};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::pressure::Observed;
use crate::queue::SharedQueue;
use crate::settings::{Censor, Settings};

/// The first two samples are so far apart: rates are there at once.
const FIRST_GAP: Duration = Duration::from_millis(500);
/// A collector has at most this long, and never longer than most of an interval.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Sampler {
    reader: Reader,
    settings: watch::Receiver<Settings>,
    observed: watch::Sender<Option<Observed>>,
    queue: Arc<SharedQueue>,
    censor: Censor,
    id: FrameId,
}

/// Why a schedule ended.
enum End {
    Stop,
    NewSettings,
}

impl Sampler {
    pub(crate) fn new(
        reader: Reader,
        settings: watch::Receiver<Settings>,
        observed: watch::Sender<Option<Observed>>,
        queue: Arc<SharedQueue>,
    ) -> Self {
        let id = FrameId {
            agent_start: Uuid::new_v4(),
            sequence: 0,
        };
        Self {
            reader,
            settings,
            observed,
            queue,
            censor: Censor::default(),
            id,
        }
    }

    /// Samples until `stop`; new settings begin a new schedule at once.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let settings = *self.settings.borrow_and_update();
            let end;
            (self, end) = if settings.paused {
                let end = tokio::select! {
                    end = changed(&mut self.settings) => end,
                    () = stop.cancelled() => End::Stop,
                };
                (self, end)
            } else {
                self.keep_schedule(settings, &stop).await?
            };
            if let End::Stop = end {
                return Ok(());
            }
        }
    }

    async fn keep_schedule(
        mut self,
        settings: Settings,
        stop: &CancellationToken,
    ) -> anyhow::Result<(Self, End)> {
        let begin = Instant::now();
        self = self.sample(settings).await?;
        if settings.interval > FIRST_GAP {
            tokio::select! {
                () = tokio::time::sleep_until(begin + FIRST_GAP) => {
                    self = self.sample(settings).await?;
                }
                end = changed(&mut self.settings) => return Ok((self, end)),
                () = stop.cancelled() => return Ok((self, End::Stop)),
            }
        }
        // Times are counted from the begin: a late sample does not delay the ones after it, and
        // one that was missed is missed.
        let mut ticks = interval_at(begin + settings.interval, settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = ticks.tick() => self = self.sample(settings).await?,
                end = changed(&mut self.settings) => return Ok((self, end)),
                () = stop.cancelled() => return Ok((self, End::Stop)),
            }
        }
    }

    /// One sample into the queue. Reading blocks, so it leaves this thread and comes back.
    async fn sample(mut self, settings: Settings) -> anyhow::Result<Self> {
        let sampled = tokio::task::spawn_blocking(move || {
            let patience = PATIENCE.min(settings.interval.mul_f64(0.8));
            let (time, mut sample) = self.reader.read(patience);
            self.censor.apply(settings, &mut sample);
            self.observed.send_if_modified(|observed| {
                let next = Observed::of(&sample.host, observed.as_ref());
                let modified = observed.as_ref() != Some(&next);
                *observed = Some(next);
                modified
            });
            let frame = frame::encode(time, self.id, &sample);
            self.queue.push(frame);
            self.id.sequence += 1;
            self
        });
        Ok(sampled.await?)
    }
}

/// Waits for other settings. Where nobody gives any more, those that there are stay.
async fn changed(settings: &mut watch::Receiver<Settings>) -> End {
    match settings.changed().await {
        Ok(()) => End::NewSettings,
        Err(_) => std::future::pending().await,
    }
}
