//! The loop that pushes: registers, sends the newest sample first, and the past beside it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodestats_wire::client::{Client, Error};
use nodestats_wire::v1::Registration;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::backoff::Backoff;
use crate::deltas::Deltas;
use crate::join::Joiner;
use crate::metrics::Metrics;
use crate::queue::{Queued, SharedQueue};
use crate::spool::{Keeper, SYNC_INTERVAL};

/// Most bytes of the past in one request.
const BACKFILL_BYTES: usize = 512 << 10;
/// At the end the queue has this long to get empty.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Signing off may take so long.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);
/// What goes wrong again and again is told once in this time.
const REPORT_INTERVAL: Duration = Duration::from_mins(1);

/// Most ticks that a push of the past is linked to.
const LINKS: usize = 32;

/// How the server comes to know the node.
pub(crate) enum Joining {
    /// The agent registers it, and signs it off when it ends; before that it joins, where the server
    /// does not know its token yet.
    ByItself(Box<Registration>, Option<Box<Joiner>>),
    /// The cluster's controller does. An agent that ends takes no node with it.
    ByController,
}

pub(crate) struct Pusher {
    client: Client,
    joining: Joining,
    uid: String,
    queue: Arc<SharedQueue>,
    metrics: Arc<Metrics>,
    keeper: Keeper,
    deltas: Deltas,
    registered: bool,
    backoff: Backoff,
    /// Frames of this order and later have not been the newest that was sent.
    next_newest: u64,
    past: Past,
    report: Report,
}

/// What became of an attempt to push.
#[derive(Debug)]
enum Outcome {
    /// It is dealt with.
    Done,
    /// The server is away or busy.
    Wait(Error),
}

/// When the past goes on: after each push of it the server is left alone for as long as that took, and longer
/// where it has no room for it. Samples of now go on meanwhile.
#[derive(Debug, Default)]
struct Past {
    after: Option<Instant>,
    /// The server had no room for it at the last attempt.
    is_refused: bool,
    backoff: Backoff,
}

impl Past {
    fn is_due(&self) -> bool {
        self.after.is_none_or(|after| after <= Instant::now())
    }

    fn went(&mut self, took: Duration) {
        self.backoff.reset();
        self.is_refused = false;
        self.after = Instant::now().checked_add(took);
    }

    fn waits(&mut self, error: &Error) {
        self.backoff.wait_for(error.retry_after());
        self.is_refused = true;
        self.after = Instant::now().checked_add(self.backoff.next(random()));
    }
}

fn random() -> u64 {
    uuid::Uuid::new_v4().as_u128() as u64
}

impl Pusher {
    pub(crate) fn new(
        client: Client,
        joining: Joining,
        uid: String,
        queue: Arc<SharedQueue>,
        keeper: Keeper,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.damaged(keeper.damaged());
        Self {
            keeper,
            client,
            joining,
            uid,
            queue,
            metrics,
            deltas: Deltas::default(),
            registered: false,
            backoff: Backoff::default(),
            next_newest: 0,
            past: Past::default(),
            report: Report::default(),
        }
    }

    /// Pushes until `stop`, then sends what is left, if there is time, and says good-bye.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        // The node is there before its first sample is.
        let mut outcome = self.try_register().await;
        loop {
            match &outcome {
                Outcome::Done => self.backoff.reset(),
                Outcome::Wait(error) => self.report.away(error),
            }
            tokio::select! {
                () = self.pause(&outcome) => {}
                () = stop.cancelled() => break,
            }
            outcome = tokio::select! {
                outcome = self.push_waiting() => outcome,
                () = stop.cancelled() => break,
            };
            self.keep_what_waits().await;
            self.report_losses();
        }
        let _ = tokio::time::timeout(END_PATIENCE, self.push_all()).await;
        self.keeper.is_ending();
        self.keep_what_waits().await;
        if let Joining::ByItself(..) = self.joining {
            self.sign_off().await;
        }
        let (left, lost) = self
            .queue
            .with(|queue| (queue.len(), queue.in_memory().len()));
        if lost > 0 {
            tracing::warn!(samples = lost, "samples are lost with this agent");
        }
        if left > lost {
            let samples = left - lost;
            tracing::info!(samples, "samples wait on disk for the next start");
        }
    }

    /// Waits for a new sample, or until the past goes on; after a failure for a while, in which new ones
    /// come to disk.
    async fn pause(&mut self, after: &Outcome) {
        let queue = Arc::clone(&self.queue);
        let Outcome::Wait(error) = after else {
            let with_disk = self.keeper.answers().await;
            let (waits, is_empty) =
                queue.with(|queue| (queue.has_any(with_disk), queue.len() == 0));
            if is_empty {
                return queue.arrived().await;
            }
            let soon = Instant::now() + SYNC_INTERVAL;
            let past = self.past.after.filter(|_| waits).unwrap_or(soon);
            tokio::select! {
                () = queue.arrived() => {}
                () = tokio::time::sleep_until(past.into()) => {}
            }
            return;
        };
        self.backoff.wait_for(error.retry_after());
        let mut while_away = pin!(tokio::time::sleep(self.backoff.next(random())));
        loop {
            // What came too soon after the last write is written when its time has come.
            let is_late = queue.with(|queue| queue.is_behind());
            tokio::select! {
                () = &mut while_away => return,
                () = queue.arrived() => self.keep_what_waits().await,
                () = tokio::time::sleep(SYNC_INTERVAL), if is_late => self.keep_what_waits().await,
            }
        }
    }

    /// What the server did not take is on disk, and what it took is not.
    async fn keep_what_waits(&mut self) {
        if let Err(error) = self.keeper.keep().await {
            self.report.not_kept(&error);
        }
    }

    async fn sign_off(&self) {
        let goodbye = tokio::time::timeout(GOODBYE_PATIENCE, self.client.deregister(&self.uid));
        match goodbye.await {
            Ok(Ok(())) => tracing::info!("signed off"),
            Ok(Err(error)) => tracing::warn!(%error, "could not sign off"),
            Err(_) => tracing::warn!("could not sign off in time"),
        }
    }

    /// Sends all that waits, without a pause: what is left is lost where there is no disk.
    async fn push_all(&mut self) {
        loop {
            self.past = Past::default();
            let outcome = self.push_waiting().await;
            let with_disk = self.keeper.answers().await;
            let waits = self.queue.with(|queue| queue.has_any(with_disk));
            if !waits || matches!(outcome, Outcome::Wait(_)) || self.past.is_refused {
                return;
            }
        }
    }

    /// Sends the newest sample, then the oldest, until nothing waits, or the past has to. A sample that
    /// comes meanwhile goes before the rest of the past.
    async fn push_waiting(&mut self) -> Outcome {
        if !self.registered {
            let outcome = self.try_register().await;
            if let Outcome::Wait(_) = outcome {
                return outcome;
            }
        }
        loop {
            let (since, with_disk) = (self.next_newest, self.keeper.answers().await);
            let newest = self.queue.with(|queue| queue.take_newest(since, with_disk));
            if let Some(newest) = newest {
                let order = newest.order;
                let outcome = self.push(vec![newest]).await;
                if let Outcome::Wait(_) = outcome {
                    return outcome;
                }
                self.next_newest = order + 1;
            }
            if !self.past.is_due() {
                return Outcome::Done;
            }
            let with_disk = self.keeper.answers().await;
            let oldest = self
                .queue
                .with(|queue| queue.take_oldest(BACKFILL_BYTES, with_disk));
            if oldest.is_empty() {
                return Outcome::Done;
            }
            let begin = Instant::now();
            match self.push(oldest).await {
                Outcome::Done => self.past.went(begin.elapsed()),
                Outcome::Wait(error) if self.registered => {
                    self.past.waits(&error);
                    self.report.past_waits(&error);
                }
                outcome @ Outcome::Wait(_) => return outcome,
            }
        }
    }

    async fn push(&mut self, batch: Vec<Queued>) -> Outcome {
        let mut guard = GiveBack {
            queue: Arc::clone(&self.queue),
            batch,
        };
        if let Err(error) = self.keeper.load(&mut guard.batch).await {
            // What is in memory can go.
            self.report.not_kept(&error);
            return Outcome::Done;
        }
        if guard.batch.is_empty() {
            return Outcome::Done;
        }
        let frames: Vec<&[u8]> = guard.batch.iter().map(|one| &*one.frame).collect();
        let body = self.deltas.body(&frames);
        let span = push_span(&guard.batch);
        let begin = Instant::now();
        let answer = self
            .client
            .push_frames(&self.uid, body.bytes.clone())
            .instrument(span.clone());
        let answer = answer.await;
        match &answer {
            Ok(stored) => self
                .deltas
                .acknowledged(&body, &frames, stored.takes_deltas),
            Err(_) => self.deltas.forget(),
        }
        if answer.is_err() {
            span.record("otel.status_code", "ERROR");
            self.metrics.push_failed();
        }
        drop(span);
        self.metrics.push_took(begin.elapsed(), answer.is_ok());
        match answer {
            Ok(_) => {
                let sent = guard.keep();
                self.keeper.sent(&sent);
                self.metrics.pushed(sent.len(), body.bytes.len());
                self.report.answered();
                Outcome::Done
            }
            // Another server, or its database of another day: now it is sent whole.
            Err(error) if body.needs_key && error.misses_key_frame() => {
                Box::pin(self.push(guard.keep())).await
            }
            Err(error) if error.status() == Some(404) => {
                // The server lost its registry, or somebody signed this node off.
                self.registered = false;
                drop(guard);
                match self.joining {
                    Joining::ByItself(..) => self.try_register().await,
                    Joining::ByController => Outcome::Wait(error),
                }
            }
            // Who does not let this agent in may do so later: with its next token, or another rule.
            Err(error) if error.is_temporary() || matches!(error.status(), Some(401 | 403)) => {
                Outcome::Wait(error)
            }
            // All or nothing: one sample of many that the server will never take is found alone.
            Err(_) if guard.batch.len() > 1 => self.push_each(guard.keep()).await,
            Err(error) => {
                let refused = guard.keep();
                self.keeper.sent(&refused);
                self.metrics.dropped(refused.len() as u64);
                self.queue.with(|queue| {
                    for one in &refused {
                        queue.lose(&one.frame, true);
                    }
                });
                self.report.refused(&error);
                Outcome::Done
            }
        }
    }

    async fn push_each(&mut self, batch: Vec<Queued>) -> Outcome {
        let mut rest = GiveBack {
            queue: Arc::clone(&self.queue),
            batch,
        };
        while let Some(one) = rest.batch.pop() {
            let outcome = Box::pin(self.push(vec![one])).await;
            if let Outcome::Wait(_) = outcome {
                return outcome;
            }
        }
        Outcome::Done
    }

    async fn try_register(&mut self) -> Outcome {
        let Joining::ByItself(registration, joiner) = &mut self.joining else {
            self.registered = true;
            return Outcome::Done;
        };
        let registered = async {
            if let Some(joining) = joiner {
                if let Err(error) = joining.join().await {
                    // The join token may have ended after the server had taken ours.
                    let is_over = matches!(error.status(), Some(401 | 403 | 409));
                    if !is_over || self.client.register(registration).await.is_err() {
                        return Err(error);
                    }
                    joining.keep()?;
                }
                *joiner = None;
            }
            self.client.register(registration).await
        };
        match registered.await {
            Ok(_) => {
                self.registered = true;
                self.report.answered();
                Outcome::Done
            }
            Err(error) => {
                self.metrics.push_failed();
                Outcome::Wait(error)
            }
        }
    }

    fn report_losses(&mut self) {
        let dropped = self.queue.with(crate::queue::Queue::take_dropped);
        self.metrics.dropped(dropped);
        self.report.dropped(dropped);
    }
}

/// The span of a push: a child of the tick of its newest sample, and linked to those of the others.
fn push_span(batch: &[Queued]) -> Span {
    let span = tracing::info_span!(
        "push",
        "nodestats.samples" = batch.len(),
        "otel.status_code" = Empty
    );
    if let Some((newest, others)) = batch.split_last()
        && !span.is_disabled()
    {
        newest.tick.adopt(&span);
        for other in others.iter().rev().take(LINKS) {
            other.tick.link(&span);
        }
    }
    span
}

/// Samples that go back into the queue unless they were sent: also when the push is cancelled.
struct GiveBack {
    queue: Arc<SharedQueue>,
    batch: Vec<Queued>,
}

impl GiveBack {
    /// They are dealt with.
    fn keep(mut self) -> Vec<Queued> {
        std::mem::take(&mut self.batch)
    }
}

impl Drop for GiveBack {
    fn drop(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.queue
            .with(|queue| batch.into_iter().for_each(|one| queue.give_back(one)));
    }
}

/// Tells a person what goes wrong, once a minute and not once a failure.
#[derive(Debug, Default)]
struct Report {
    away_since: Option<Instant>,
    dropped: u64,
    refused: u64,
    told: Option<Instant>,
}

impl Report {
    fn answered(&mut self) {
        if let Some(since) = self.away_since.take() {
            tracing::info!(seconds = since.elapsed().as_secs(), "the server is back");
        }
    }

    fn away(&mut self, error: &Error) {
        if self.away_since.is_none() {
            let source = std::error::Error::source(error).map(ToString::to_string);
            tracing::warn!(%error, source, "the server does not take samples; they wait here");
            self.away_since = Some(Instant::now());
        }
    }

    fn past_waits(&mut self, error: &Error) {
        if self.away_since.is_none() && self.is_time() {
            tracing::info!(%error, "samples of the past wait until the server has time for them");
        }
    }

    fn refused(&mut self, error: &Error) {
        self.refused += 1;
        if self.is_time() {
            tracing::error!(%error, samples = self.refused, "the server refuses samples for good");
            self.refused = 0;
        }
    }

    fn not_kept(&mut self, error: &std::io::Error) {
        if self.is_time() {
            tracing::warn!(%error, "the disk does not keep samples that wait");
        }
    }

    fn dropped(&mut self, dropped: u64) {
        self.dropped += dropped;
        if self.dropped > 0 && self.is_time() {
            tracing::warn!(
                samples = self.dropped,
                "the buffer is full; the oldest samples were dropped"
            );
            self.dropped = 0;
        }
    }

    fn is_time(&mut self) -> bool {
        let due = self
            .told
            .is_none_or(|told| told.elapsed() >= REPORT_INTERVAL);
        if due {
            self.told = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests;
