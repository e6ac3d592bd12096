//! The registry: rows `node:uid`, one for each life of a node.

use std::sync::{Arc, Mutex, PoisonError};

use nodestats_core::Life;
use nodestats_wire::Timestamp;
use surrealdb::types::{SurrealValue, Value};

use tracing::Instrument as _;

use crate::database::{self, bind, node_record};
use crate::seen::seen_record;
use crate::{Error, Store};

/// All lives as they were last read. Kept where nobody else writes to the database: a name in a path
/// would else be looked for among thousands of rows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lives {
    known: Arc<Mutex<Known>>,
    /// What is written is known in the order in which it was.
    writing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Known {
    lives: Option<Arc<[Arc<Life>]>>,
    /// How often something was written.
    writes: u64,
}

impl Lives {
    /// What is known, and how often something had been written by then.
    fn get(&self) -> (Option<Arc<[Arc<Life>]>>, u64) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        (known.lives.clone(), known.writes)
    }

    /// What was read after so many writes, unless there was another one meanwhile.
    fn set(&self, lives: &Arc<[Arc<Life>]>, writes: u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.writes == writes {
            known.lives = Some(Arc::clone(lives));
        }
    }

    /// Something was written, or will be answered no more.
    pub(crate) fn forget(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.lives = None;
        known.writes += 1;
    }

    /// This life was written, or removed: the others are as they were, and thousands of nodes that register
    /// together do not each read all of them.
    fn replace(&self, uid: &str, life: Option<Life>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.writes += 1;
        let Some(lives) = known.lives.take() else {
            return;
        };
        let at = lives.partition_point(|other| other.uid.as_str() < uid);
        let after = lives[at..].iter().skip_while(|other| other.uid == uid);
        let before = lives[..at].iter().cloned();
        let changed = before.chain(life.map(Arc::new)).chain(after.cloned());
        known.lives = Some(changed.collect());
    }

    /// Writes, and knows what it wrote; to its end, also where nobody waits for it any more.
    async fn change(
        &self,
        (uid, life): (String, Option<Life>),
        write: impl Future<Output = Result<(), database::Error>> + Send + 'static,
    ) -> Result<(), Error> {
        let lives = self.clone();
        let changing = async move {
            let _turn = lives.writing.lock().await;
            let written = write.await;
            match &written {
                Ok(()) => lives.replace(&uid, life),
                // It may have been written.
                Err(_) => lives.forget(),
            }
            written
        };
        let changed = tokio::spawn(changing.in_current_span()).await;
        changed
            .map_err(|_| Error::Closing)?
            .map_err(Error::Unavailable)
    }
}

impl Store {
    /// The life of this identity.
    pub async fn life(&self, uid: &str) -> Result<Option<Life>, Error> {
        if let (Some(lives), _) = self.lives.get() {
            let found = lives.binary_search_by(|life| life.uid.as_str().cmp(uid));
            return Ok(found.ok().map(|at| Life::clone(&lives[at])));
        }
        let variables = bind([("node", node_record(uid))]);
        let rows = self
            .database
            .select("SELECT VALUE life FROM $node", variables)
            .await
            .map_err(Error::Unavailable)?;
        rows.into_iter().next().map(read_life).transpose()
    }

    /// All lives that have a history, live and gone, by identity.
    pub async fn lives(&self) -> Result<Arc<[Arc<Life>]>, Error> {
        let (known, writes) = self.lives.get();
        if let Some(lives) = known {
            return Ok(lives);
        }
        let rows: Vec<Value> = self
            .database
            .select("SELECT VALUE life FROM node", bind([]))
            .await
            .map_err(Error::Unavailable)?;
        let read = |row| read_life(row).map(Arc::new);
        let lives: Result<Vec<Arc<Life>>, Error> = rows.into_iter().map(read).collect();
        let mut lives = lives?;
        lives.sort_by(|a, b| a.uid.cmp(&b.uid));
        let lives = lives.into();
        if self.database.is_embedded() {
            self.lives.set(&lives, writes);
        }
        Ok(lives)
    }

    /// Writes a life as it is now.
    pub async fn save_life(&self, life: &Life) -> Result<(), Error> {
        let json = serde_json::to_value(life).expect("a life is plain data");
        let variables = bind([
            ("node", node_record(&life.uid)),
            ("life", json.into_value()),
        ]);
        let statement = "UPSERT $node SET life = $life RETURN NONE";
        let database = self.database.clone();
        // A life is some kilobytes at most.
        let write = async move { database.write(statement, variables, 0).await };
        let changed = (life.uid.clone(), Some(life.clone()));
        self.lives.change(changed, write).await
    }

    /// Removes all samples of a life, and what happened to it.
    pub async fn purge_history(&self, uid: &str) -> Result<(), Error> {
        self.delete_before(uid, Timestamp::MAX).await?;
        self.forget_events(Some(uid), Timestamp::MAX).await
    }

    /// Removes a life and all its samples.
    pub async fn purge(&self, uid: &str) -> Result<(), Error> {
        // The registry last: a purge that is cut off can be asked for again.
        self.purge_history(uid).await?;
        self.purge_usage(uid).await?;
        let statements = "DELETE $node RETURN NONE; DELETE $seen RETURN NONE";
        let variables = bind([("node", node_record(uid)), ("seen", seen_record(uid))]);
        let database = self.database.clone();
        let delete = async move { database.delete(statements, variables).await };
        self.lives.change((uid.to_owned(), None), delete).await
    }
}

fn read_life(row: Value) -> Result<Life, Error> {
    let json = row.into_json_value();
    serde_json::from_value(json).map_err(|_| Error::Damaged("node"))
}
