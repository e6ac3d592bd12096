//! The loop that samples, on a steady schedule.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nodestats_collect::Reader;
use nodestats_core::{FrameId, Sample, frame};
use nodestats_runtime::telemetry;
use nodestats_wire::Timestamp;
use opentelemetry::KeyValue;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::metrics::Metrics;
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
    metrics: Arc<Metrics>,
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
        metrics: Arc<Metrics>,
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
            metrics,
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
            let tick = tracing::info_span!("tick");
            let _in = tick.enter();
            let patience = PATIENCE.min(settings.interval.mul_f64(0.8));
            let (time, mut sample) = self.collect(patience);
            self.censor.apply(settings, &mut sample);
            self.observed.send_if_modified(|observed| {
                let next = Observed::of(&sample.host, observed.as_ref());
                let modified = observed.as_ref() != Some(&next);
                *observed = Some(next);
                modified
            });
            let encoding = tracing::info_span!("encode").entered();
            let frame = frame::encode(time, self.id, &sample);
            drop(encoding);
            self.queue.push(frame);
            self.id.sequence += 1;
            self
        });
        Ok(sampled.await?)
    }

    /// All collectors side by side, each with a span of its own.
    fn collect(&mut self, patience: Duration) -> (Timestamp, Sample) {
        let span = tracing::info_span!("collect");
        let _in = span.enter();
        let begin = SystemTime::now();
        let (time, sample) = self.reader.read(patience);
        for run in &sample.host.collectors {
            let took = Duration::from_micros(run.duration_micros);
            self.metrics.collected(&run.collector, took, run.success);
            let name = KeyValue::new("nodestats.collector", run.collector.clone());
            let failure = (!run.success).then_some("no_figures");
            telemetry::past("collector", begin, took, [name], failure);
        }
        (time, sample)
    }
}

/// Waits for other settings. Where nobody gives any more, those that there are stay.
async fn changed(settings: &mut watch::Receiver<Settings>) -> End {
    match settings.changed().await {
        Ok(()) => End::NewSettings,
        Err(_) => std::future::pending().await,
    }
}
