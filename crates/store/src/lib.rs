//! History and registry of nodestats in `SurrealDB`; no other room names the database.
//!
//! A push is one row whose payload is encoded, many pushes are one transaction, and a push is
//! acknowledged when the database has synced it to disk. Once an hour is over its rows are sealed: they
//! become blocks, which take a twentieth. Keys begin with the node's UID and the time, so that a range of
//! time is a range of keys.

#![recursion_limit = "256"] // What SurrealDB gives to run statements is that deep.

mod blocks;
mod claim;
mod database;
mod directory;
mod embedded;
mod engine;
mod events;
mod frontier;
mod location;
mod memory;
mod metrics;
mod pods;
mod registry;
mod retention;
mod rollups;
mod samples;
mod seal;
mod seen;
mod tokens;
mod usage;
mod walk;
mod writer;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nodestats_core::Life;
use nodestats_wire::Timestamp;
use opentelemetry::metrics::Meter;

pub use directory::is_made;
pub use events::{EventKey, EventPage, EventRange, NewEvent};
pub use location::{Credentials, Location, LocationError};
pub use memory::MemoryBudget;
pub use pods::PodKey;
pub use rollups::Level;
pub use samples::{NewSample, Order};
pub use seen::Seen;
pub use tokens::Joined;
pub use walk::Walk;

use crate::database::Database;
use crate::directory::Directory;

/// Why the store could not be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error(transparent)]
    Directory(#[from] directory::Error),
    /// The database cannot be opened or reached.
    #[error("cannot open the database {location}")]
    Database {
        /// Where it is.
        location: String,
        /// What the database said.
        #[source]
        source: Box<database::Error>,
    },
    /// The database was written by a newer nodestats.
    #[error(
        "the database {location} has schema {found}, and this nodestats knows {}: \
         start the newer nodestats that wrote it",
        directory::SCHEMA
    )]
    NewerSchema {
        /// Where it is.
        location: String,
        /// Its schema.
        found: u32,
    },
}

/// Why a read or a write failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not take or give what it should; it may later.
    #[error("the database is not available")]
    Unavailable(#[source] database::Error),
    /// The store is closing.
    #[error("the database is closing")]
    Closing,
    /// This node has its share of the disk; others may go on.
    #[error("the node has used up its share of the disk, {share_bytes} bytes")]
    ShareUsedUp {
        /// The share.
        share_bytes: u64,
    },
    /// Samples cannot be made into a block.
    #[error("samples cannot be sealed")]
    Seal(#[source] nodestats_core::block::Error),
    /// What was asked for is replaced faster than it can be read.
    #[error("the history changes faster than it can be read")]
    Changing,
    /// A row cannot be read.
    #[error("a stored {0} cannot be read")]
    Damaged(&'static str),
}

/// How to open the store.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long samples are kept, by their own time.
    pub retention: Duration,
    /// How long rollups of minutes are kept.
    pub retention_minute: Duration,
    /// How long rollups of hours are kept.
    pub retention_hour: Duration,
    /// What the database's caches may take.
    pub memory: MemoryBudget,
    /// Bytes that one node may keep. `None`: an equal share, when the disk becomes scarce.
    pub node_quota: Option<u64>,
    /// Bytes of disk that all histories may take, with what the database needs to merge its files: beyond
    /// it the oldest go. `None`: no limit but the retention.
    pub max_size: Option<u64>,
    /// Where it counts.
    pub meter: Meter,
}

/// The open store. Cloning is cheap; all clones are one store.
#[derive(Clone)]
pub struct Store {
    database: Database,
    writer: writer::Writer,
    usage: usage::Usage,
    retention: Duration,
    retention_minute: Duration,
    retention_hour: Duration,
    node_quota: Option<u64>,
    max_size: Option<u64>,
    metrics: metrics::Metrics,
    lives: registry::Lives,
    /// See `Store::telling`.
    telling: Arc<tokio::sync::Mutex<()>>,
    frontier: frontier::Frontier,
    /// Who we are among those that share the database.
    replica: Arc<str>,
}

impl Store {
    /// Opens the store, and creates what is not there yet. A database of a folder whose files are damaged, so
    /// that it cannot be opened, is set aside, and another one begins: what happens from now on is kept.
    pub async fn open(location: &Location, options: &Options) -> Result<Self, OpenError> {
        let opened = Box::pin(Self::open_as_it_is(location, options)).await;
        let (Location::Directory(path), Err(error)) = (location, &opened) else {
            return opened;
        };
        if !matches!(error, OpenError::Database { source, .. } if source.is_damage()) {
            return opened;
        }
        let why = std::error::Error::source(error).map(ToString::to_string);
        let now = Timestamp::from_system(SystemTime::now());
        let of_task = path.clone();
        let setting = tokio::task::spawn_blocking(move || directory::set_aside(&of_task, now));
        let aside = setting.await.unwrap_or_else(|panicked| {
            Err(directory::Error::NotWritable {
                path: path.clone(),
                source: std::io::Error::other(panicked),
            })
        })?;
        tracing::error!(
            why,
            path = %aside.display(),
            "the database is damaged; it is set aside for as long as history is kept, and an empty one begins"
        );
        Box::pin(Self::open_as_it_is(location, options)).await
    }

    async fn open_as_it_is(location: &Location, options: &Options) -> Result<Self, OpenError> {
        let directory = match location {
            Location::Directory(path) => Some(Directory::lock(path)?),
            Location::Memory | Location::Remote { .. } => None,
        };
        let failed = |source| OpenError::Database {
            location: location.to_string(),
            source: Box::new(source),
        };
        let database = Database::open(location, &options.memory, directory);
        let database = database.await.map_err(failed)?;
        let opened = Self::begin(&database, location, options).await;
        if opened.is_err() {
            database.close().await;
        }
        opened
    }

    /// The store on an open database.
    async fn begin(
        database: &Database,
        location: &Location,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Database {
            location: location.to_string(),
            source: Box::new(source),
        };
        let found = database.schema().await.map_err(failed)?;
        if found.is_some_and(|found| found > directory::SCHEMA) {
            return Err(OpenError::NewerSchema {
                location: location.to_string(),
                found: found.unwrap_or_default(),
            });
        }
        database
            .write_schema(directory::SCHEMA)
            .await
            .map_err(failed)?;
        if !matches!(location, Location::Remote { .. }) {
            claim::end_claim(database).await.map_err(failed)?;
        }
        let usage = usage::Usage::load(database).await.map_err(failed)?;
        let metrics = metrics::Metrics::new(&options.meter, database, &usage, &options.memory);
        let frontier = frontier::Frontier::new(!database.is_embedded());
        let writer = writer::Writer::start(
            database.clone(),
            usage.clone(),
            metrics.clone(),
            frontier.clone(),
        );
        Ok(Self {
            database: database.clone(),
            writer,
            usage,
            retention: options.retention,
            retention_minute: options.retention_minute,
            retention_hour: options.retention_hour,
            node_quota: options.node_quota,
            max_size: options.max_size,
            metrics,
            lives: registry::Lives::default(),
            telling: Arc::default(),
            frontier,
            replica: uuid::Uuid::new_v4().to_string().into(),
        })
    }

    /// The oldest time that a sample of this node may have at `now`: by its own retention where
    /// its cluster says one, else by the store's.
    pub fn horizon(&self, life: &Life, now: Timestamp) -> Timestamp {
        match &life.cluster {
            Some(own) => before(now, Duration::from_secs(own.retention_seconds)),
            None => self.default_horizon(now),
        }
    }

    /// The oldest time that is kept where nothing says otherwise.
    fn default_horizon(&self, now: Timestamp) -> Timestamp {
        before(now, self.retention)
    }

    /// The oldest time of which rollups of a level are kept of this node at `now`: by its own retention where
    /// its cluster says one, else by the store's.
    pub fn horizon_of(&self, life: &Life, level: Level, now: Timestamp) -> Timestamp {
        let cluster = life.cluster.as_ref();
        let (own, all) = match level {
            Level::Minute => (
                cluster.and_then(|own| own.retention_minute_seconds),
                self.retention_minute,
            ),
            Level::Hour => (
                cluster.and_then(|own| own.retention_hour_seconds),
                self.retention_hour,
            ),
        };
        before(now, own.map_or(all, Duration::from_secs))
    }

    /// Whether the database answers.
    pub async fn check(&self) -> Result<(), Error> {
        self.database
            .schema()
            .await
            .map(drop)
            .map_err(Error::Unavailable)
    }

    /// Writes what was accepted, then closes the database. Later calls fail.
    pub async fn close(&self) {
        self.writer.finish().await;
        if let Err(error) = self.write_usage().await {
            tracing::warn!(%error, "what histories take is not written");
        }
        if let Err(error) = self.release_claim().await {
            tracing::debug!(%error, "the claim to seal is kept until it expires");
        }
        self.database.close().await;
        self.lives.forget();
    }
}

fn before(now: Timestamp, span: Duration) -> Timestamp {
    let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    now.plus_micros(-micros)
}

#[cfg(test)]
mod tests;
