//! The one way to files of the host: everything is below an explicit root.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// A host's file tree: `/`, a place where a host is mounted, or a fixture.
#[derive(Debug, Clone)]
pub struct HostRoot {
    root: PathBuf,
}

/// Files of `/proc` and `/sys` have no size; none that is read whole here is larger than this
/// on a host of 4,096 CPUs.
const FILE_LIMIT: u64 = 4 << 20;

impl HostRoot {
    /// The tree at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The path on this machine of `path`, which is relative to the host's `/`.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether this is the tree that the process itself lives in.
    pub fn is_own(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Reads a file whole. Bytes that are no UTF-8 stand as U+FFFD.
    pub fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let mut bytes = Vec::new();
        File::open(self.path(path))?
            .take(FILE_LIMIT)
            .read_to_end(&mut bytes)?;
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }
}
