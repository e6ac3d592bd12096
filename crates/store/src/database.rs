//! The connection to `SurrealDB`, a server or one within this process ([`Embedded`]): how it is opened, asked,
//! and closed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nodestats_wire::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use surrealdb::engine::remote::ws::{self, Ws, Wss};
use surrealdb::opt::auth::Root;
use surrealdb::types::{Object, RecordId, SurrealValue, Value, Variables};
use surrealdb::{IndexedResults, Surreal};
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::directory::{self, Directory};
use crate::embedded::Embedded;
use crate::location::Location;
use crate::memory::MemoryBudget;

/// Namespace and database of ours within a server.
pub(crate) const NAMESPACE: &str = "nodestats";

/// What the database said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request failed.
    #[error("{0}")]
    Surreal(#[from] surrealdb::Error),
    /// The embedded database failed.
    #[error("{0}")]
    Datastore(String),
    /// The authorities that were given for a server are none.
    #[error("the file of the database's certificate authorities is not usable: {0}")]
    Authorities(String),
    /// It was closed.
    #[error("the database was closed")]
    Closed,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// What was to be replaced is not there any more.
    #[error("rows are gone")]
    Gone,
    /// The disk is all but full.
    #[error("the disk of the data directory is full: {0} bytes are available")]
    DiskFull(u64),
}

impl Error {
    /// What failed, one of few words: `error.type` of OpenTelemetry.
    fn kind(&self) -> &'static str {
        match self {
            Self::Surreal(_) => "surrealdb",
            Self::Datastore(_) => "datastore",
            Self::Authorities(_) => "authorities",
            Self::Closed => "closed",
            Self::Timeout(_) => "timeout",
            Self::Gone => "gone",
            Self::DiskFull(_) => "disk_full",
        }
    }
}

impl Error {
    /// Whether the embedded database has found that its files do not hold what was written to them: asking
    /// again gives the same.
    pub(crate) fn is_damage(&self) -> bool {
        let text = match self {
            Self::Surreal(error) => error.to_string(),
            Self::Datastore(text) => text.clone(),
            _ => return false,
        };
        // What the operating system says may be another tomorrow.
        if text.contains("os error") {
            return false;
        }
        if let Some((_, version)) = text.split_once(UNKNOWN_VERSION) {
            // One that a later SurrealKV may write, or the two bytes of it are damaged.
            let digits = version.split(|c: char| !c.is_ascii_digit()).next();
            return digits.is_some_and(|digits| digits.len() > 2);
        }
        DAMAGE.iter().any(|of_it| text.contains(of_it))
    }
}

/// What `SurrealKV` says of files that do not hold what was written to them. Where the row that says which
/// version the database is of cannot be read, `SurrealDB` asks for it again for two minutes first.
const DAMAGE: [&str; 4] = [
    "checksum verification failed",
    "orrupt",
    "Failed to load manifest",
    "failed to fill whole buffer",
];
/// What it says of a manifest of another version of it.
const UNKNOWN_VERSION: &str = "Unsupported manifest format version: ";

/// Bytes that stay free where samples are written, and where only rows are deleted. A log of
/// `SurrealKV` that could not be written to its end holds what is written after it in vain: a later
/// start reads no further than the tear. So the disk is asked before.
const ROOM_FOR_WRITES: u64 = 1 << 20;
const ROOM_FOR_DELETES: u64 = 128 << 10;

/// A server has this long to answer, less than an agent waits for us; the embedded database needs
/// no limit.
const REMOTE_TIMEOUT: Duration = Duration::from_secs(8);
/// And so long for a sealing, which nobody waits for: one that is cut off would be begun anew for ever.
const UPKEEP_TIMEOUT: Duration = Duration::from_mins(2);

enum Connection {
    Embedded(Embedded),
    Remote(Surreal<ws::Client>),
}

/// A client that trusts who is signed by one of these authorities, and nobody else.
fn trusting(pem: &[u8]) -> Result<rustls::ClientConfig, Error> {
    let unusable = |error: &dyn std::fmt::Display| Error::Authorities(error.to_string());
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(pem) {
        let authority = authority.map_err(|error| unusable(&error))?;
        roots.add(authority).map_err(|error| unusable(&error))?;
    }
    if roots.is_empty() {
        return Err(unusable(&"it holds no certificate"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| unusable(&error))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The open database. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Database {
    // Shared, since a clone of a client is a session of its own, in which a server has not signed
    // us in: its requests were never answered.
    connection: Arc<Connection>,
    closed: Arc<AtomicBool>,
    // Given back when the last clone is gone.
    directory: Option<Arc<Directory>>,
}

impl Database {
    pub(crate) async fn open(
        location: &Location,
        memory: &MemoryBudget,
        directory: Option<Directory>,
    ) -> Result<Self, Error> {
        let connection = match (location, &directory) {
            (
                Location::Remote {
                    tls,
                    authority,
                    credentials,
                    authorities,
                },
                _,
            ) => {
                let client = if *tls {
                    let config = match authorities {
                        Some(pem) => surrealdb::opt::Config::new().rustls(trusting(pem)?),
                        None => surrealdb::opt::Config::new(),
                    };
                    Surreal::new::<Wss>((authority.as_str(), config)).await?
                } else {
                    Surreal::new::<Ws>(authority.as_str()).await?
                };
                if let Some(credentials) = credentials {
                    let (username, password) =
                        (credentials.user.clone(), credentials.password.clone());
                    client.signin(Root { username, password }).await?;
                }
                client
                    .query("DEFINE NAMESPACE IF NOT EXISTS nodestats; USE NS nodestats; DEFINE DATABASE IF NOT EXISTS nodestats;")
                    .await?
                    .check()?;
                client.use_ns(NAMESPACE).use_db(NAMESPACE).await?;
                Connection::Remote(client)
            }
            (_, None) => Connection::Embedded(Embedded::in_memory().await?),
            (_, Some(directory)) => {
                Connection::Embedded(Embedded::open(directory.database(), memory).await?)
            }
        };
        let database = Self {
            connection: Arc::new(connection),
            closed: Arc::default(),
            directory: directory.map(Arc::new),
        };
        let define = "DEFINE TABLE IF NOT EXISTS node SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS sample SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS block SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS block_part SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS rollup SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS edge SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS high SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS damaged SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS claim SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS seen SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS access_token SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS usage SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS pod SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS pod_uid SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS pod_end SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS event SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS event_time SCHEMALESS;
            DEFINE TABLE IF NOT EXISTS meta SCHEMALESS;";
        database.query(define, Variables::new()).await?;
        Ok(database)
    }

    /// Runs one or more statements; an error of any is the error of all.
    pub(crate) async fn query(
        &self,
        statements: &str,
        variables: Variables,
    ) -> Result<IndexedResults, Error> {
        let span = query_span(statements);
        self.query_within(span, statements, variables, REMOTE_TIMEOUT)
            .await
    }

    async fn query_within(
        &self,
        span: Span,
        statements: &str,
        variables: Variables,
        patience: Duration,
    ) -> Result<IndexedResults, Error> {
        traced(&span, self.answer(statements, variables, patience)).await
    }

    async fn answer(
        &self,
        statements: &str,
        variables: Variables,
        patience: Duration,
    ) -> Result<IndexedResults, Error> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        match &*self.connection {
            Connection::Embedded(embedded) => embedded.query(statements, variables).await,
            Connection::Remote(client) => {
                let answer = async { client.query(statements).bind(variables).await?.check() };
                let answer = tokio::time::timeout(patience, answer).await;
                Ok(answer.map_err(|_| Error::Timeout(patience))??)
            }
        }
    }

    /// Runs statements that write so many bytes of values, if the disk has room for them.
    pub(crate) async fn write(
        &self,
        statements: &str,
        variables: Variables,
        bytes: usize,
    ) -> Result<(), Error> {
        self.write_within(statements, variables, bytes, REMOTE_TIMEOUT)
            .await
    }

    /// The same for upkeep, which may take its time.
    pub(crate) async fn write_patiently(
        &self,
        statements: &str,
        variables: Variables,
        bytes: usize,
    ) -> Result<(), Error> {
        self.write_within(statements, variables, bytes, UPKEEP_TIMEOUT)
            .await
    }

    async fn write_within(
        &self,
        statements: &str,
        variables: Variables,
        bytes: usize,
        patience: Duration,
    ) -> Result<(), Error> {
        self.check_room_to_write(bytes)?;
        let span = query_span(statements);
        self.query_within(span, statements, variables, patience)
            .await
            .map(drop)
    }

    /// Deletes rows and runs statements that write so many bytes, both or neither; nothing where one of the rows
    /// is gone. For upkeep, which may take its time.
    pub(crate) async fn replace(
        &self,
        rows: Vec<RecordId>,
        statements: &str,
        mut variables: Variables,
        bytes: usize,
    ) -> Result<(), Error> {
        match &*self.connection {
            Connection::Embedded(embedded) => {
                self.check_room_to_write(bytes)?;
                if self.closed.load(Ordering::Acquire) {
                    return Err(Error::Closed);
                }
                let replaced = embedded.replace(rows, statements, variables);
                traced(&query_span(statements), replaced).await
            }
            Connection::Remote(_) => {
                // Rows are read once, as they are deleted.
                let statements = format!(
                    "BEGIN; LET $deleted = (DELETE $replaced RETURN VALUE $before.id); \
                     IF count($deleted) != {} {{ THROW 'rows are gone' }}; {statements} COMMIT;",
                    rows.len()
                );
                let rows = rows.into_iter().map(SurrealValue::into_value);
                let rows = Value::Array(rows.collect::<Vec<_>>().into());
                variables.insert("replaced".to_owned(), rows);
                self.write_patiently(&statements, variables, bytes).await
            }
        }
    }

    /// Runs statements that delete.
    pub(crate) async fn delete(&self, statements: &str, variables: Variables) -> Result<(), Error> {
        self.check_room(ROOM_FOR_DELETES)?;
        self.query(statements, variables).await.map(drop)
    }

    /// The same for upkeep, which may take its time.
    pub(crate) async fn delete_patiently(
        &self,
        statements: &str,
        variables: Variables,
    ) -> Result<(), Error> {
        self.check_room(ROOM_FOR_DELETES)?;
        let span = query_span(statements);
        self.query_within(span, statements, variables, UPKEEP_TIMEOUT)
            .await
            .map(drop)
    }

    /// Bytes that its disk has left, where it is embedded and on a disk that says so.
    pub(crate) fn available(&self) -> Option<u64> {
        available(self.directory.as_ref()?.path())
    }

    /// Whether nobody else writes to it.
    pub(crate) fn is_embedded(&self) -> bool {
        matches!(*self.connection, Connection::Embedded(_))
    }

    /// Its folder, where it is embedded and on a disk.
    pub(crate) fn folder(&self) -> Option<&Path> {
        Some(self.directory.as_ref()?.database())
    }

    fn check_room_to_write(&self, bytes: usize) -> Result<(), Error> {
        // Once in the log, once in a table.
        self.check_room(ROOM_FOR_WRITES + 2 * bytes as u64)
    }

    /// A disk that does not say is taken to have room.
    fn check_room(&self, wanted: u64) -> Result<(), Error> {
        match self.available() {
            Some(available) if available < wanted => Err(Error::DiskFull(available)),
            _ => Ok(()),
        }
    }

    /// Runs one statement and takes its rows.
    pub(crate) async fn select<T: SurrealValue>(
        &self,
        statement: &str,
        variables: Variables,
    ) -> Result<Vec<T>, Error> {
        let span = query_span(statement);
        let answer = self.query_within(span.clone(), statement, variables, REMOTE_TIMEOUT);
        let rows: Result<Vec<T>, Error> = answer.await?.take(0).map_err(Into::into);
        match &rows {
            Ok(rows) => span.record("db.response.returned_rows", rows.len()),
            Err(error) => failed(&span, error),
        };
        rows
    }

    /// The schema that the database says it has; `None` of a new one.
    pub(crate) async fn schema(&self) -> Result<Option<u32>, Error> {
        let found: Vec<i64> = self
            .select("SELECT VALUE version FROM meta:schema", Variables::new())
            .await?;
        Ok(found
            .first()
            .and_then(|version| u32::try_from(*version).ok()))
    }

    pub(crate) async fn write_schema(&self, version: u32) -> Result<(), Error> {
        let variables = bind([("version", i64::from(version).into_value())]);
        self.query("UPSERT meta:schema SET version = $version", variables)
            .await
            .map(drop)
    }

    /// Removes databases of this folder that were set aside before `horizon`.
    pub(crate) async fn remove_aside(&self, horizon: Timestamp) {
        let Some(directory) = self.directory.clone() else {
            return;
        };
        let removing = move || directory::remove_aside(directory.path(), horizon);
        let removed = tokio::task::spawn_blocking(removing).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "a database that was set aside is not removed");
        }
    }

    /// Closes an embedded database in order; a server's connection ends with its last clone.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Connection::Embedded(embedded) = &*self.connection {
            embedded.close().await;
            // The last client to be dropped closes the datastore again, which fails and is logged
            // as an error; this one never is.
            std::mem::forget(Arc::clone(&self.connection));
        }
    }
}

/// Bytes that the disk of a folder has left for us.
pub(crate) fn available(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// How the first rows of a range are selected, in the order of keys: `SELECT … FROM array::first([$range]) LIMIT …`.
/// `SurrealDB` 3.3 pushes LIMIT and START down to a range that a function gives; of one that a parameter is it
/// reads all, and so it does to bring any into an order.
const FIRST: &str = "array::first([";

/// What a statement does and to which table, as spans are called; both of closed sets, since all
/// statements are ours. What stands in a variable is called as the variable is.
fn summary(statements: &str) -> (&str, &str) {
    let mut words = statements.split_whitespace();
    let operation = words.find(|word| *word != "BEGIN;").unwrap_or_default();
    match operation {
        // Several reads at one moment, all of samples.
        "RETURN" => return ("SELECT", "sample"),
        // What is written if nobody else has it, or if we have it.
        "IF" => return ("UPSERT", "claim"),
        _ => {}
    }
    let table = match operation {
        "SELECT" => words
            .find(|word| *word == "FROM")
            .and_then(|_| words.next()),
        "INSERT" => words.nth(1),
        _ => words.next(),
    };
    let table = table.unwrap_or_default();
    let table = table.strip_prefix(FIRST).unwrap_or(table);
    let end = table.find([':', ';', ')', ']']).unwrap_or(table.len());
    let table = match &table[..end] {
        "$range" => "sample",
        "$blocks" => "block",
        "$parts" => "block_part",
        other => other.trim_start_matches('$'),
    };
    (operation, table)
}

/// What is answered within a span, which has the error.
async fn traced<T>(
    span: &Span,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let answer = answer.instrument(span.clone()).await;
    if let Err(error) = &answer {
        failed(span, error);
    }
    answer
}

fn failed<'a>(span: &'a Span, error: &Error) -> &'a Span {
    span.record("error.type", error.kind());
    span.record("otel.status_code", "ERROR")
}

/// The span of statements, by OpenTelemetry's conventions for databases.
/// A part of what it is asked for: what nobody traces, such as a probe, begins no trace here.
fn query_span(statements: &str) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    let span = tracing::info_span!(
        "query",
        "otel.kind" = "client",
        "otel.name" = Empty,
        "otel.status_code" = Empty,
        "db.system.name" = "surrealdb",
        "db.namespace" = NAMESPACE,
        "db.operation.name" = Empty,
        "db.collection.name" = Empty,
        "db.response.returned_rows" = Empty,
        "error.type" = Empty,
    );
    if !span.is_disabled() {
        let (operation, table) = summary(statements);
        span.record("otel.name", format!("{operation} {table}"));
        span.record("db.operation.name", operation);
        span.record("db.collection.name", table);
    }
    span
}

/// An object of those fields that there are.
pub(crate) fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let fields = fields.map(|(name, value)| Some((name.to_owned(), value?)));
    fields
        .into_iter()
        .flatten()
        .collect::<Object>()
        .into_value()
}

/// Variables of a statement.
pub(crate) fn bind<const N: usize>(variables: [(&str, Value); N]) -> Variables {
    let mut bound = Variables::new();
    for (name, value) in variables {
        bound.insert(name.to_owned(), value);
    }
    bound
}

/// The record of a node in the registry.
pub(crate) fn node_record(uid: &str) -> Value {
    RecordId::new("node", uid).into_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_what_the_files_say_and_not_what_the_system_says() {
        let is_damage = |text: &str| Error::Datastore(text.to_owned()).is_damage();
        let load = "There was a problem with the datastore: Failed to load manifest: ";
        for text in [
            "SSTable error: checksum verification failed for block at 1239283",
            "Unsupported manifest format version: 1025",
            "Manifest corruption",
        ] {
            assert!(is_damage(&format!("{load}{text}")), "{text}");
        }
        for text in [
            "IO error: Input/output error (os error 5)",
            "IO error: Permission denied (os error 13)",
            "Unsupported manifest format version: 2",
        ] {
            assert!(!is_damage(&format!("{load}{text}")), "{text}");
        }
        assert!(!is_damage(
            "Check version failed after 28 attempts over 120 s: timed out"
        ));
    }

    #[test]
    fn a_statement_is_called_by_what_it_does_and_to_what() {
        for (statements, called) in [
            (
                "SELECT id, p FROM array::first([$range]) LIMIT $limit",
                ("SELECT", "sample"),
            ),
            ("SELECT VALUE life FROM $node", ("SELECT", "node")),
            ("SELECT * FROM seen", ("SELECT", "seen")),
            ("SELECT VALUE version FROM meta:schema", ("SELECT", "meta")),
            (
                "BEGIN; INSERT INTO sample $rows ON DUPLICATE",
                ("INSERT", "sample"),
            ),
            ("DELETE $node RETURN NONE; DELETE $seen", ("DELETE", "node")),
            ("UPSERT meta:schema SET version = 1", ("UPSERT", "meta")),
            (
                "RETURN [(SELECT id, p FROM $range), (SELECT VALUE id FROM $blocks)]",
                ("SELECT", "sample"),
            ),
            ("SELECT id, p FROM $parts", ("SELECT", "block_part")),
            (
                "IF $claim.holder = $me { UPSERT $claim }",
                ("UPSERT", "claim"),
            ),
        ] {
            assert_eq!(summary(statements), called, "{statements}");
        }
    }
}
