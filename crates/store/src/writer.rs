//! One task that writes samples: what waits is one transaction, so that many agents share the cost
//! of a sync and a lone one does not wait for others.

use surrealdb::types::{Array, Bytes, Object, SurrealValue, Value};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Error;
use crate::database::{self, Database, bind};
use crate::samples::NewSample;
use crate::seen::{self, Seen};

/// Most rows of a transaction: the cost of a row no longer falls beyond a few hundred.
const BATCH_ROWS: usize = 500;
/// Most bytes of a transaction that holds more than one push; well within the memtable.
const BATCH_BYTES: usize = 4 << 20;
/// Pushes that may wait; further ones wait in their own request.
const QUEUE: usize = 64;

struct Job {
    uid: String,
    samples: Vec<NewSample>,
    seen: Seen,
    done: oneshot::Sender<Result<(), Error>>,
}

impl Job {
    fn bytes(&self) -> usize {
        self.samples.iter().map(|sample| sample.payload.len()).sum()
    }
}

#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Job>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
    stop: Arc<tokio::sync::Notify>,
}

impl Writer {
    pub(crate) fn start(database: Database) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let stop = Arc::new(tokio::sync::Notify::new());
        let task = tokio::spawn(run(database, jobs, Arc::clone(&stop)));
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

async fn run(database: Database, mut jobs: mpsc::Receiver<Job>, stop: Arc<tokio::sync::Notify>) {
    let mut waiting = Vec::new();
    loop {
        tokio::select! {
            biased;
            taken = jobs.recv_many(&mut waiting, QUEUE) => if taken == 0 { return },
            () = stop.notified() => jobs.close(),
        }
        let mut rest = std::mem::take(&mut waiting).into_iter().peekable();
        while let Some(first) = rest.next() {
            let (mut rows, mut bytes) = (first.samples.len(), first.bytes());
            let mut batch = vec![first];
            while let Some(next) = rest.next_if(|next| {
                rows + next.samples.len() <= BATCH_ROWS && bytes + next.bytes() <= BATCH_BYTES
            }) {
                rows += next.samples.len();
                bytes += next.bytes();
                batch.push(next);
            }
            write_batch(&database, batch).await;
        }
    }
}

async fn write_batch(database: &Database, batch: Vec<Job>) {
    match insert(database, &batch).await {
        Ok(()) => {
            for job in batch {
                let _ = job.done.send(Ok(()));
            }
        }
        // One push that the database does not take must not fail those beside it.
        Err(error) if batch.len() > 1 => {
            tracing::debug!(%error, pushes = batch.len(), "a batch failed; writing its pushes alone");
            for job in batch {
                let result = insert(database, std::slice::from_ref(&job)).await;
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
        let key = sample.key.record(&job.uid);
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
async fn insert(database: &Database, batch: &[Job]) -> Result<(), database::Error> {
    let rows: BTreeMap<Vec<u8>, Value> = batch.iter().flat_map(job_rows).collect();
    let array = |rows: Vec<Value>| Value::Array(Array::from(rows));
    let statements = format!(
        "BEGIN; \
         INSERT INTO sample $rows ON DUPLICATE KEY UPDATE p = $input.p RETURN NONE; \
         {}; COMMIT",
        seen::UPSERT
    );
    let variables = bind([
        ("rows", array(rows.into_values().collect())),
        ("seen", array(seen_rows(batch))),
    ]);
    let bytes = batch.iter().map(Job::bytes).sum();
    database.write(&statements, variables, bytes).await
}
