//! The registry: rows `node:uid`, one for each life of a node.

use nodestats_core::Life;
use nodestats_wire::Timestamp;
use surrealdb::types::{SurrealValue, Value};

use crate::database::{bind, node_record};
use crate::seen::seen_record;
use crate::{Error, Store};

impl Store {
    /// The life of this identity.
    pub async fn life(&self, uid: &str) -> Result<Option<Life>, Error> {
        let variables = bind([("node", node_record(uid))]);
        let rows = self
            .database
            .select("SELECT VALUE life FROM $node", variables)
            .await
            .map_err(Error::Unavailable)?;
        rows.into_iter().next().map(read_life).transpose()
    }

    /// All lives that have a history, live and gone, by identity.
    pub async fn lives(&self) -> Result<Vec<Life>, Error> {
        let rows: Vec<Value> = self
            .database
            .select("SELECT VALUE life FROM node", bind([]))
            .await
            .map_err(Error::Unavailable)?;
        rows.into_iter().map(read_life).collect()
    }

    /// Writes a life as it is now.
    pub async fn save_life(&self, life: &Life) -> Result<(), Error> {
        let json = serde_json::to_value(life).expect("a life is plain data");
        let variables = bind([
            ("node", node_record(&life.uid)),
            ("life", json.into_value()),
        ]);
        let statement = "UPSERT $node SET life = $life RETURN NONE";
        // A life is some kilobytes at most.
        self.database
            .write(statement, variables, 0)
            .await
            .map_err(Error::Unavailable)
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
        self.database
            .delete(
                "DELETE $node RETURN NONE; DELETE $seen RETURN NONE",
                bind([("node", node_record(uid)), ("seen", seen_record(uid))]),
            )
            .await
            .map_err(Error::Unavailable)
    }
}

fn read_life(row: Value) -> Result<Life, Error> {
    let json = row.into_json_value();
    serde_json::from_value(json).map_err(|_| Error::Damaged("node"))
}
