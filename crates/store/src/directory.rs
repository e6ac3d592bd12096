//! The folder of an embedded database: one process at a time, and no folder of a newer schema is
//! touched.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nodestats_wire::Timestamp;

/// The schema that this program writes. Older ones are brought up to it; newer ones are refused. 2: frames
/// of versions 2 and 3, pods, events. 3: sealed blocks.
pub(crate) const SCHEMA: u32 = 3;

/// Holds the lock, by the operating system, for as long as the process has it open.
const LOCK_FILE: &str = "nodestats.lock";
/// Holds the schema's number, so that it is known before the database is opened.
const SCHEMA_FILE: &str = "nodestats.schema";

/// Why a folder cannot be used. Each text is the whole message for a person.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be made or written to.
    #[error("the data directory {} cannot be written: {source}", .path.display())]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the data directory {} is in use by another nodestats process", .path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A newer nodestats wrote it.
    #[error(
        "the data directory {} has schema {found}, and this nodestats knows {SCHEMA}: \
         start the newer nodestats that wrote it", .path.display()
    )]
    NewerSchema {
        /// The folder.
        path: PathBuf,
        /// Its schema.
        found: String,
    },
}

/// Whether there is a database in the folder, of whatever schema.
pub fn is_made(path: &Path) -> bool {
    path.join(SCHEMA_FILE).exists()
}

/// A folder that this process has for itself.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    database: PathBuf,
    lock: File,
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The lock is the open file's, and a child that this process has just forked has the file open
        // until it runs its program: closing ours would not let go of it.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, path = %self.path.display(), "the lock of a folder was not released");
        }
    }
}

impl Directory {
    /// Makes the folder where it is missing, and takes it.
    pub(crate) fn lock(path: &Path) -> Result<Self, Error> {
        let not_writable = |source| Error::NotWritable {
            path: path.to_owned(),
            source,
        };
        // Before anything is written: a newer schema is left as it is.
        let schema_file = path.join(SCHEMA_FILE);
        let found = match fs::read_to_string(&schema_file) {
            Ok(text) => Some(text.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(not_writable(error)),
        };
        if let Some(found) = &found
            && found.parse::<u32>().map_or(true, |found| found > SCHEMA)
        {
            return Err(Error::NewerSchema {
                path: path.to_owned(),
                found: found.clone(),
            });
        }
        fs::create_dir_all(path).map_err(not_writable)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK_FILE))
            .map_err(not_writable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(not_writable(source)),
        }
        if found.as_deref() != Some(&*SCHEMA.to_string()) {
            write_schema(&schema_file).map_err(not_writable)?;
        }
        Ok(Self {
            path: path.to_owned(),
            database: path.join("database"),
            lock,
        })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that belongs to the database itself.
    pub(crate) fn database(&self) -> &Path {
        &self.database
    }
}

/// The database of a folder that was set aside; the second of 1970 in which it was follows.
const DAMAGED: &str = "database-damaged-";

/// Which `SurrealKV` holds for as long as it has a folder open, and how long it may take to let go of one.
const DATABASE_LOCK: &str = "LOCK";
const CLOSES: Duration = Duration::from_secs(20);

/// Takes a damaged database out of the way, and says where it is now. The folder's lock must be free.
pub(crate) fn set_aside(path: &Path, now: Timestamp) -> Result<PathBuf, Error> {
    let directory = Directory::lock(path)?;
    wait_until_closed(directory.database()).map_err(|source| Error::NotWritable {
        path: path.to_owned(),
        source,
    })?;
    let aside = path.join(format!("{DAMAGED}{}", now.micros() / 1_000_000));
    let moved =
        fs::rename(directory.database(), &aside).and_then(|()| File::open(path)?.sync_all());
    moved.map_err(|source| Error::NotWritable {
        path: path.to_owned(),
        source,
    })?;
    Ok(aside)
}

/// What failed to open closes some time later, by the names of its files: not those of another.
fn wait_until_closed(database: &Path) -> io::Result<()> {
    let lock = match File::open(database.join(DATABASE_LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let begin = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if begin.elapsed() > CLOSES => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "the database that could not be opened does not close",
                ));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// What was set aside in a folder, and when, in seconds of 1970.
fn aside(path: &Path) -> io::Result<Vec<(PathBuf, i64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let second = name.to_str().and_then(|name| name.strip_prefix(DAMAGED));
        let second = second.and_then(|second| second.parse().ok());
        found.extend(second.map(|second| (entry.path(), second)));
    }
    Ok(found)
}

/// How many databases were set aside in a folder, and are there.
pub(crate) fn count_aside(path: &Path) -> io::Result<u64> {
    aside(path).map(|found| found.len() as u64)
}

/// Removes what was set aside before `horizon`.
pub(crate) fn remove_aside(path: &Path, horizon: Timestamp) -> io::Result<()> {
    for (path, second) in aside(path)? {
        if second < horizon.micros() / 1_000_000 {
            let shown = path.display();
            tracing::info!(path = %shown, "a damaged database that was set aside is removed");
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Whole, or as it was: an empty file would say that a newer program wrote it.
fn write_schema(path: &Path) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    writeln!(file, "{SCHEMA}")?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_is_refused_until_it_is_free() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("new").join("data");
        assert!(!is_made(&path));
        let first = Directory::lock(&path).expect("free");
        assert!(is_made(&path));
        assert!(matches!(Directory::lock(&path), Err(Error::InUse { .. })));
        drop(first);
        Directory::lock(&path).expect("free again");
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join(SCHEMA_FILE), "99\n").expect("written");
        let error = Directory::lock(folder.path()).expect_err("newer");
        assert!(
            matches!(error, Error::NewerSchema { ref found, .. } if found == "99"),
            "{error}"
        );
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let error = Directory::lock(Path::new("/proc/nodestats")).expect_err("not writable");
        assert!(matches!(error, Error::NotWritable { .. }), "{error}");
    }
}
