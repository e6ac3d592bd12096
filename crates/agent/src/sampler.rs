//! The loop that samples, on a steady schedule.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nodestats_collect::Reader;
use nodestats_core::sample::Note;
use nodestats_core::sample::note::{self, What};
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
/// In the last sample before an end or a pause: whoever waits for that does not wait long.
const LAST_PATIENCE: Duration = Duration::from_millis(500);
/// A clock that is off by more than this from where it was going was set: it is slewed by 0.5 ms a
/// second at most (adjtimex(2)), and read a moment before the time since boot is.
const STEP_MICROS: i64 = 500_000;

pub(crate) struct Sampler {
    reader: Reader,
    settings: watch::Receiver<Settings>,
    observed: watch::Sender<Option<Observed>>,
    queue: Arc<SharedQueue>,
    metrics: Arc<Metrics>,
    censor: Censor,
    id: FrameId,
    /// Wall clock less time since boot in the last sample, in microseconds.
    clock: Option<i64>,
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
            clock: None,
        }
    }

    /// Samples until `stop`; new settings begin a new schedule at once. The last sample before an end
    /// or a pause says so.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            let settings = *self.settings.borrow_and_update();
            if settings.paused {
                let end = tokio::select! {
                    end = changed(&mut self.settings) => end,
                    () = stop.cancelled() => End::Stop,
                };
                match end {
                    End::Stop => return Ok(()),
                    End::NewSettings => continue,
                }
            }
            let end;
            (self, end) = self.keep_schedule(settings, &stop).await?;
            if let End::Stop = end {
                self.sample(settings, Some(What::Stopping)).await?;
                return Ok(());
            }
            if self.settings.borrow().paused {
                self = self.sample(settings, Some(What::Paused)).await?;
            }
        }
    }

    async fn keep_schedule(
        mut self,
        settings: Settings,
        stop: &CancellationToken,
    ) -> anyhow::Result<(Self, End)> {
        let begin = Instant::now();
        self = self.sample(settings, None).await?;
        if settings.interval > FIRST_GAP {
            tokio::select! {
                () = tokio::time::sleep_until(begin + FIRST_GAP) => {
                    self = self.sample(settings, None).await?;
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
                _ = ticks.tick() => self = self.sample(settings, None).await?,
                end = changed(&mut self.settings) => return Ok((self, end)),
                () = stop.cancelled() => return Ok((self, End::Stop)),
            }
        }
    }

    /// One sample into the queue, the last one where it tells so. Reading blocks, so it leaves this
    /// thread and comes back.
    async fn sample(mut self, settings: Settings, last: Option<What>) -> anyhow::Result<Self> {
        let sampled = tokio::task::spawn_blocking(move || {
            let tick = tracing::info_span!("tick");
            let _in = tick.enter();
            let longest = last.as_ref().map_or(PATIENCE, |_| LAST_PATIENCE);
            let patience = longest.min(settings.interval.mul_f64(0.8));
            let (time, mut sample) = self.collect(patience);
            self.censor.apply(settings, &mut sample);
            self.note(time, &mut sample, last);
            self.observed.send_if_modified(|observed| {
                let next = Observed::of(&sample.host, observed.as_ref());
                let modified = observed.as_ref() != Some(&next);
                *observed = Some(next);
                modified
            });
            let encoding = tracing::info_span!("encode").entered();
            let frame = frame::encode(time, self.id, Some(settings.interval), &sample);
            drop(encoding);
            self.queue.push(frame);
            self.id.sequence += 1;
            self
        });
        Ok(sampled.await?)
    }

    /// Adds what there is to tell beside what the collectors have seen.
    fn note(&mut self, time: Timestamp, sample: &mut Sample, last: Option<What>) {
        let begun = (self.id.sequence == 0).then(|| What::Started {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kills: self.reader.kill_sources(),
            boot_id: sample.host.boot_id.chars().take(64).collect(),
            uptime_micros: sample.host.uptime_micros,
        });
        let uptime = i64::try_from(sample.host.uptime_micros).unwrap_or(i64::MAX);
        let clock = time.micros().saturating_sub(uptime);
        let step = clock_step(self.clock.replace(clock), clock);
        let note = |what| Note {
            time_micros: time.micros(),
            what,
        };
        let is_last = last.is_some();
        // What is told of the agent itself has its place before what else there is.
        let mut notes: Vec<Note> = [begun, step, last]
            .into_iter()
            .flatten()
            .map(note)
            .collect();
        notes.extend(
            self.queue
                .with(|queue| queue.take_notes(time.micros(), is_last)),
        );
        notes.append(&mut sample.notes);
        let fitting = note::fitting(&notes);
        if notes.len() > fitting {
            let rest = notes.split_off(fitting);
            self.queue.with(|queue| queue.carry(rest));
        }
        sample.notes = notes;
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

/// By how much the wall clock was set, from what it was ahead of the time since boot before and now.
fn clock_step(before: Option<i64>, now: i64) -> Option<What> {
    let micros = now.saturating_sub(before?);
    (micros.abs() > STEP_MICROS).then_some(What::ClockStep { micros })
}

/// Waits for other settings. Where nobody gives any more, those that there are stay.
async fn changed(settings: &mut watch::Receiver<Settings>) -> End {
    match settings.changed().await {
        Ok(()) => End::NewSettings,
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_and_one_that_drifts_is_not() {
        for (before, now, micros) in [
            (None, 5, None),
            (Some(0), 5_000, None),
            (Some(0), -400_000, None),
            (Some(1_000), 2_001_000, Some(2_000_000)),
            (Some(0), -3_600_000_000, Some(-3_600_000_000)),
        ] {
            let step = micros.map(|micros| What::ClockStep { micros });
            assert_eq!(clock_step(before, now), step, "{before:?} {now}");
        }
    }
}
