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

/// Most rows of a transaction: the cost of a row no longer falls beyond a few hundred.
const BATCH_ROWS: usize = 500;
/// Most bytes of a transaction that holds more than one push; well within the memtable.
const BATCH_BYTES: usize = 4 << 20;
/// Pushes that may wait; further ones wait in their own request.
const QUEUE: usize = 64;

struct Job {
    uid: String,
    samples: Vec<NewSample>,
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

    pub(crate) async fn write(&self, uid: &str, samples: Vec<NewSample>) -> Result<(), Error> {
        if samples.is_empty() {
            return Ok(());
        }
        let (done, answer) = oneshot::channel();
        let job = Job {
            uid: uid.to_owned(),
            samples,
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
    let rows = batch.iter().flat_map(job_rows).collect();
    match insert(database, rows).await {
        Ok(()) => {
            for job in batch {
                let _ = job.done.send(Ok(()));
            }
        }
        // One push that the database does not take must not fail those beside it.
        Err(error) if batch.len() > 1 => {
            tracing::debug!(%error, pushes = batch.len(), "a batch failed; writing its pushes alone");
            for job in batch {
                let result = insert(database, job_rows(&job)).await;
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

fn job_rows(job: &Job) -> BTreeMap<Vec<u8>, Value> {
    let row = |sample: &NewSample| {
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
    };
    job.samples.iter().map(row).collect()
}

async fn insert(
    database: &Database,
    rows: BTreeMap<Vec<u8>, Value>,
) -> Result<(), database::Error> {
    let rows = Value::Array(Array::from(rows.into_values().collect::<Vec<_>>()));
    let statement = "INSERT INTO sample $rows ON DUPLICATE KEY UPDATE p = $input.p RETURN NONE";
    database
        .query(statement, bind([("rows", rows)]))
        .await
        .map(drop)
}
