//! The database within this process.
//!
//! The one place that uses `SurrealDB`'s interfaces outside semver. Only its datastore builder can set the sizes
//! of its caches. And only a transaction of the datastore deletes a row at the price of a row: `DELETE` reads the
//! definitions of all tables for each one, to see whether any refers to it (`SurrealDB` 3.3 keeps the answer for
//! the transaction, and looks for it where it is not).

use std::borrow::Cow;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use surrealdb::engine::local::Db;
use surrealdb::types::{RecordId, Variables};
use surrealdb::{IndexedResults, Surreal};
use surrealdb_cnf::ConfigMap;
use surrealdb_core::dbs::Session;
use surrealdb_core::kvs::{Datastore, QueryRequest};
use surrealdb_datastore::catalog::providers::DatabaseProvider as _;
use surrealdb_datastore::key::schema::RecordKey;
use surrealdb_datastore::val::{RecordIdKey, TableName};
use surrealdb_datastore::{Transaction, TransactionType};
use tracing::{Instrument as _, Span};

use crate::database::{Error, NAMESPACE};
use crate::engine::Engine;
use crate::memory::MemoryBudget;

pub(crate) struct Embedded {
    client: Arc<Surreal<Db>>,
    datastore: Arc<Datastore>,
    engine: Engine,
}

impl Embedded {
    pub(crate) async fn in_memory() -> Result<Self, Error> {
        Self::start("mem://".to_owned(), ConfigMap::empty()).await
    }

    pub(crate) async fn open(folder: &Path, memory: &MemoryBudget) -> Result<Self, Error> {
        let path = format!("surrealkv://{}", folder.display());
        Self::start(path, configuration(memory)).await
    }

    /// Opens it without `SurrealDB`'s maintenance tasks: there is no index, no change feed and no second server
    /// here for them to work on, and each of them writes.
    async fn start(path: String, configuration: ConfigMap) -> Result<Self, Error> {
        let engine = Engine::start()?;
        let opening = async move {
            let datastore = Datastore::builder()
                .with_config(configuration)
                .without_maintenance_tasks()
                .build_with_path(&path)
                .await
                .map_err(|error| of_datastore(&error))?;
            let begun = begin(&datastore).await;
            if begun.is_err()
                // Dropped alone it would close some time later, when its folder may be another's.
                && let Err(error) = datastore.shutdown().await
            {
                tracing::warn!(%error, "the database did not close in order");
            }
            Ok::<_, Error>((begun?, datastore))
        };
        let (client, datastore) = engine.run(opening).await??;
        Ok(Self {
            client: Arc::new(client),
            datastore,
            engine,
        })
    }

    pub(crate) async fn query(
        &self,
        statements: &str,
        variables: Variables,
    ) -> Result<IndexedResults, Error> {
        let (client, statements) = (Arc::clone(&self.client), statements.to_owned());
        let answer = async move { client.query(statements).bind(variables).await?.check() };
        Ok(self
            .engine
            .run(answer.instrument(Span::current()))
            .await??)
    }

    /// Deletes rows and runs statements, both or neither; nothing where one of the rows is gone.
    pub(crate) async fn replace(
        &self,
        rows: Vec<RecordId>,
        statements: &str,
        variables: Variables,
    ) -> Result<(), Error> {
        let (datastore, statements) = (Arc::clone(&self.datastore), statements.to_owned());
        let replacing = async move {
            let transaction = datastore.transaction(TransactionType::Write).await;
            let transaction = Arc::new(transaction.map_err(|error| of_datastore(&error))?);
            let replaced = async {
                delete(&transaction, rows).await?;
                let session = Session::owner().with_ns(NAMESPACE).with_db(NAMESPACE);
                let request = QueryRequest::new(statements.as_str(), &session)
                    .with_variables(Some(variables))
                    .with_transaction(Arc::clone(&transaction));
                run(&datastore, request).await
            };
            let replaced: Result<(), Error> = replaced.await;
            let ended = match &replaced {
                Ok(()) => transaction.commit().await,
                Err(_) => transaction.cancel().await,
            };
            replaced?;
            ended.map_err(|error| of_datastore(&error))
        };
        self.engine
            .run(replacing.instrument(Span::current()))
            .await?
    }

    /// Ends it in order. Its last client must not be dropped after it.
    pub(crate) async fn close(&self) {
        let datastore = Arc::clone(&self.datastore);
        let closing = async move {
            let closed = datastore.shutdown().await;
            closed.map_err(|error| of_datastore(&error))
        };
        if let Err(error) = self.engine.run(closing).await.flatten() {
            tracing::warn!(%error, "the database did not close in order");
        }
        self.engine.stop();
    }
}

/// What runs statements, as one pointer: its own type is deeper than the compiler looks in whoever calls us, and it
/// is made here and nowhere else.
#[inline(never)]
fn run<'a>(
    datastore: &'a Datastore,
    request: QueryRequest<'a>,
) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>> {
    Box::pin(async move {
        for result in datastore.run(request).await? {
            result.result?;
        }
        Ok(())
    })
}

/// Deletes rows of tables that nothing else in the database knows of: no index, no event, no reference.
async fn delete(transaction: &Transaction, rows: Vec<RecordId>) -> Result<(), Error> {
    let own = transaction.get_db_by_name(NAMESPACE, NAMESPACE, None).await;
    let own = own
        .map_err(|error| of_datastore(&error))?
        .ok_or(Error::Gone)?;
    for row in rows {
        let key = RecordKey {
            ns: own.namespace_id,
            db: own.database_id,
            tb: Cow::Owned(TableName::from(row.table.as_str())),
            id: Cow::Owned(RecordIdKey::from(row.key)),
        };
        let is_there = transaction.exists_key(&key, None).await;
        if !is_there.map_err(|error| of_datastore(&error))? {
            return Err(Error::Gone);
        }
        let deleted = transaction.del_key(&key).await;
        deleted.map_err(|error| of_datastore(&error))?;
    }
    Ok(())
}

/// Caches within the budget, every commit synced, and no value log: its files are given back only
/// when every value in them is gone, so history would grow by each day's writes for ever.
fn configuration(memory: &MemoryBudget) -> ConfigMap {
    ConfigMap::empty()
        .with_key_value(
            "surrealkv_block_cache_capacity",
            memory.block_cache.to_string(),
        )
        .with_key_value("surrealkv_max_memtable_size", memory.memtable.to_string())
        .with_key_value("surrealkv_enable_vlog", "false")
        .with_key_value("datastore_sync", "every")
        .with_key_value("datastore_cache_size", memory.definitions.to_string())
}

/// With all that led to it.
fn of_datastore(error: &dyn std::fmt::Display) -> Error {
    Error::Datastore(format!("{error:#}"))
}

async fn begin(datastore: &Arc<Datastore>) -> Result<Surreal<Db>, Error> {
    datastore
        .check_version()
        .await
        .map_err(|error| of_datastore(&error))?;
    datastore
        .bootstrap()
        .await
        .map_err(|error| of_datastore(&error))?;
    let client = Surreal::<Db>::unstable_from_datastore(Arc::clone(datastore), None).await?;
    client
        .query("DEFINE NAMESPACE IF NOT EXISTS nodestats; USE NS nodestats; DEFINE DATABASE IF NOT EXISTS nodestats;")
        .await?
        .check()?;
    client.use_ns(NAMESPACE).use_db(NAMESPACE).await?;
    Ok(client)
}
