//! One task that writes samples: what waits is one transaction, so that many agents share the cost
//! of a sync and a lone one does not wait for others.

use surrealdb::types::{Array, Bytes, Object, SurrealValue, Value};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::Error;
use crate::database::{self, Database, bind};
use crate::events::{self, NewEvent, bind_events};
use crate::frontier::Frontier;
use crate::metrics::Metrics;
use crate::samples::{NewSample, record};
use crate::seen::{self, Seen};
use crate::usage::Usage;

/// Most rows of a transaction: the cost of a row no longer falls beyond a few hundred.
const BATCH_ROWS: usize = 500;
/// Most bytes of a transaction that holds more than one push; well within the memtable.
const BATCH_BYTES: usize = 4 << 20;
/// Pushes that may wait; further ones wait in their own request.
const QUEUE: usize = 64;

/// So many transactions of others a push waits for at most, once it is looked at.
const PASSED_OVER: u32 = 3;

struct Job {
    uid: String,
    samples: Vec<NewSample>,
    seen: Seen,
    done: oneshot::Sender<Result<(), Error>>,
    /// The request that brought it; ends with the wait for a turn.
    queued: Span,
    request: Span,
    /// Transactions that others had since it came.
    passed_over: u32,
}

impl Job {
    fn bytes(&self) -> usize {
        self.samples.iter().map(NewSample::bytes).sum()
    }
}

#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Job>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
    stop: Arc<tokio::sync::Notify>,
}

impl Writer {
    pub(crate) fn start(
        database: Database,
        usage: Usage,
        metrics: Metrics,
        frontier: Frontier,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let stop = Arc::new(tokio::sync::Notify::new());
        let books = Books {
            usage,
            metrics,
            frontier,
        };
        let task = tokio::spawn(run(database, books, jobs, Arc::clone(&stop)));
        Self {
            queue,
            task: Arc::new(Mutex::new(Some(task))),
            stop,
        }
    }

    pub(crate) async fn write(
        &self,
        uid: &str,
        samples: Vec<NewSample>,
        seen: Seen,
    ) -> Result<(), Error> {
        if samples.is_empty() {
            return Ok(());
        }
        let (done, answer) = oneshot::channel();
        let job = Job {
            uid: uid.to_owned(),
            samples,
            seen,
            done,
            queued: tracing::info_span!("queue"),
            request: Span::current(),
            passed_over: 0,
        };
        self.queue.send(job).await.map_err(|_| Error::Closing)?;
        answer.await.map_err(|_| Error::Closing)?
    }

    /// Writes what waits, then ends; later writes fail.
    pub(crate) async fn finish(&self) {
        self.stop.notify_one();
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the writer ended in disorder");
        }
    }
}

/// Where it is told what was stored, before who pushed it is.
struct Books {
    usage: Usage,
    metrics: Metrics,
    frontier: Frontier,
}

impl Books {
    fn stored(&self, job: &Job) {
        self.usage.stored(&job.uid, &job.samples);
        let times = job.samples.iter().map(NewSample::time);
        self.frontier.wrote(&job.uid, times);
        let frames = job.samples.iter().filter(|sample| sample.values > 0);
        for sample in frames {
            self.metrics
                .stored(sample.payload.len() as u64, sample.values);
        }
    }
}

async fn run(
    database: Database,
    books: Books,
    mut jobs: mpsc::Receiver<Job>,
    stop: Arc<tokio::sync::Notify>,
) {
    let mut waiting = Vec::new();
    loop {
        if waiting.is_empty() {
            tokio::select! {
                biased;
                taken = jobs.recv_many(&mut waiting, QUEUE) => if taken == 0 { return },
                () = stop.notified() => jobs.close(),
            }
        }
        // What came while a batch was written is looked at before the rest of those that waited.
        while waiting.len() < QUEUE
            && let Ok(job) = jobs.try_recv()
        {
            waiting.push(job);
        }
        let batch = take_batch(&mut waiting);
        if !batch.is_empty() {
            write_batch(&database, &books, batch).await;
        }
    }
}

/// The next transaction: of each node the push that came first, small ones before large ones, so that
/// nobody waits for more than one push of a node that sends many, or large ones. Who was passed over
/// three times is not again.
fn take_batch(waiting: &mut Vec<Job>) -> Vec<Job> {
    let mut nodes = BTreeSet::new();
    let mut first_of_each: Vec<usize> = (0..waiting.len())
        .filter(|index| nodes.insert(waiting[*index].uid.clone()))
        .collect();
    first_of_each.sort_by_key(|index| {
        let job = &waiting[*index];
        let waited = Some(job.passed_over).filter(|rounds| *rounds >= PASSED_OVER);
        (Reverse(waited), job.samples.len())
    });
    let (mut rows, mut bytes) = (0, 0);
    let mut taken = Vec::new();
    for index in first_of_each {
        let job = &waiting[index];
        rows += job.samples.len();
        bytes += job.bytes();
        if !taken.is_empty() && (rows > BATCH_ROWS || bytes > BATCH_BYTES) {
            break;
        }
        taken.push(index);
    }
    taken.sort_unstable();
    let mut batch = Vec::with_capacity(taken.len());
    for index in taken.into_iter().rev() {
        batch.push(waiting.remove(index));
    }
    batch.reverse();
    for job in waiting {
        job.passed_over += 1;
    }
    batch
}

async fn write_batch(database: &Database, books: &Books, mut batch: Vec<Job>) {
    for job in &mut batch {
        job.queued = Span::none();
    }
    let metrics = &books.metrics;
    match insert(database, metrics, &batch).await {
        Ok(()) => {
            for job in batch {
                books.stored(&job);
                let _ = job.done.send(Ok(()));
            }
        }
        // One push that the database does not take must not fail those beside it.
        Err(error) if batch.len() > 1 => {
            tracing::debug!(%error, pushes = batch.len(), "a batch failed; writing its pushes alone");
            for job in batch {
                let result = insert(database, metrics, std::slice::from_ref(&job)).await;
                if result.is_ok() {
                    books.stored(&job);
                }
                let _ = job.done.send(result.map_err(Error::Unavailable));
            }
        }
        Err(error) => {
            for job in batch {
                let _ = job
                    .done
                    .send(Err(Error::Unavailable(database::Error::Datastore(
                        error.to_string(),
                    ))));
            }
        }
    }
}

fn job_rows(job: &Job) -> impl Iterator<Item = (Vec<u8>, Value)> {
    job.samples.iter().map(|sample| {
        let key = record(&sample.key, &job.uid).into_value();
        // Within one statement the last of the same key counts.
        let order = format!("{key:?}").into_bytes();
        let object = Object::from_iter([
            ("id".to_owned(), key),
            (
                "p".to_owned(),
                Value::Bytes(Bytes::from(sample.payload.clone())),
            ),
        ]);
        (order, object.into_value())
    })
}

/// What was heard of each node, one row each.
fn seen_rows(batch: &[Job]) -> Vec<Value> {
    let mut nodes: BTreeMap<&str, Seen> = BTreeMap::new();
    for job in batch {
        nodes
            .entry(&job.uid)
            .and_modify(|seen| *seen = seen.merge(job.seen))
            .or_insert(job.seen);
    }
    nodes.into_iter().map(|(uid, seen)| seen.row(uid)).collect()
}

/// Writes all of a batch in one transaction.
async fn insert(
    database: &Database,
    metrics: &Metrics,
    batch: &[Job],
) -> Result<(), database::Error> {
    let begin = Instant::now();
    // Each push sees the transaction that it shares with others as its own; the statement itself is in
    // the trace of the first.
    let spans: Vec<Span> = batch
        .iter()
        .map(|job| {
            tracing::info_span!(
                parent: &job.request,
                "transaction",
                "otel.status_code" = Empty,
                "nodestats.pushes" = batch.len()
            )
        })
        .collect();
    let first = spans.first().cloned().unwrap_or_else(Span::none);
    let inserted = insert_rows(database, batch).instrument(first).await;
    if inserted.is_err() {
        for span in &spans {
            span.record("otel.status_code", "ERROR");
        }
    }
    let rows = batch.iter().map(|job| job.samples.len()).sum();
    metrics.wrote(batch.len(), rows, begin.elapsed(), inserted.is_ok());
    inserted
}

/// What the samples of a batch tell beside figures.
fn events_of(batch: &[Job]) -> Vec<&NewEvent> {
    let samples = batch.iter().flat_map(|job| &job.samples);
    samples.flat_map(|sample| &sample.events).collect()
}

async fn insert_rows(database: &Database, batch: &[Job]) -> Result<(), database::Error> {
    let rows: BTreeMap<Vec<u8>, Value> = batch.iter().flat_map(job_rows).collect();
    let array = |rows: Vec<Value>| Value::Array(Array::from(rows));
    let mut variables = bind([
        ("rows", array(rows.into_values().collect())),
        ("seen", array(seen_rows(batch))),
    ]);
    let mut bytes: usize = batch.iter().map(Job::bytes).sum();
    let mut save_events = "";
    let events = events_of(batch);
    if !events.is_empty() {
        bytes += bind_events(events.into_iter(), &mut variables);
        save_events = events::SAVE;
    }
    let statements = format!(
        "BEGIN; \
         INSERT INTO sample $rows ON DUPLICATE KEY UPDATE p = $input.p RETURN NONE; \
         {save_events}{}; COMMIT",
        seen::UPSERT
    );
    database.write(&statements, variables, bytes).await
}

#[cfg(test)]
mod tests {
    use nodestats_wire::Timestamp;
    use nodestats_wire::v1::Reading;

    use super::*;

    fn job(uid: &str, rows: usize) -> Job {
        let time = Timestamp::MIN;
        Job {
            uid: uid.to_owned(),
            samples: vec![NewSample::from_reading(time, Reading::default()); rows],
            seen: Seen {
                last_sample: time,
                fresh_at: time,
                clock_offset_micros: None,
            },
            done: oneshot::channel().0,
            queued: Span::none(),
            request: Span::none(),
            passed_over: 0,
        }
    }

    fn batches(mut waiting: Vec<Job>) -> Vec<Vec<(String, usize)>> {
        let mut batches = Vec::new();
        while !waiting.is_empty() {
            let batch = take_batch(&mut waiting);
            let named = batch.iter().map(|job| (job.uid.clone(), job.samples.len()));
            batches.push(named.collect());
        }
        batches
    }

    #[test]
    fn nobody_waits_for_more_than_one_push_of_another() {
        let flood = |rows| job("flood", rows);
        let waiting = vec![flood(5000), flood(5001), flood(2), job("a", 1), job("b", 1)];
        let named = |all: &[(&str, usize)]| {
            let all = all.iter().map(|(uid, rows)| ((*uid).to_owned(), *rows));
            all.collect::<Vec<_>>()
        };
        assert_eq!(
            batches(waiting),
            [
                named(&[("a", 1), ("b", 1)]),
                // In the order in which they came.
                named(&[("flood", 5000)]),
                named(&[("flood", 5001)]),
                named(&[("flood", 2)]),
            ]
        );
    }

    #[test]
    fn a_large_push_has_its_turn_though_small_ones_keep_coming() {
        let mut waiting = vec![job("large", BATCH_ROWS)];
        let mut rounds = 0;
        loop {
            // More than one transaction holds, so that small ones wait too.
            let small = |n| job(&format!("small-{rounds}-{n}"), BATCH_ROWS - 1);
            waiting.extend((0..2).map(small));
            let batch = take_batch(&mut waiting);
            if batch.iter().any(|job| job.uid == "large") {
                break;
            }
            rounds += 1;
        }
        assert_eq!(rounds, PASSED_OVER);
    }

    #[test]
    fn many_small_pushes_are_one_transaction() {
        let waiting: Vec<Job> = (0..64).map(|n| job(&n.to_string(), 1)).collect();
        assert_eq!(batches(waiting).len(), 1);
    }
}
