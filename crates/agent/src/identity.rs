//! The node's identity: a UUID made at the agent's first start, kept in its state directory.
//!
//! Not the machine id, which clones share. Two agents that are told different addresses or names
//! are two nodes, so each such pair has an identity of its own; and only one agent at a time is
//! a given node.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Why an agent has no identity. Each text is the whole message for a person.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the state directory {} cannot be written: {source}", .path.display())]
    NotWritable { path: PathBuf, source: io::Error },
    #[error(
        "another agent on this host is this node already ({}); give this one its own --node-ip, \
         --hostname or --state-dir", .path.display()
    )]
    InUse { path: PathBuf },
    #[error("{} holds no UUID; remove it, and the node begins a new history", .path.display())]
    Damaged { path: PathBuf },
}

/// An identity that this agent has for itself.
#[derive(Debug)]
pub(crate) struct Identity {
    uid: String,
    _lock: File,
}

impl Identity {
    /// The identity for what the agent was told; made where it is missing.
    pub(crate) fn open(
        directory: &Path,
        node_ip: Option<IpAddr>,
        hostname: Option<&str>,
    ) -> Result<Self, Error> {
        let path = directory.join(file_name("node-id", node_ip, hostname));
        let not_writable = |source| Error::NotWritable {
            path: directory.to_owned(),
            source,
        };
        fs::create_dir_all(directory).map_err(not_writable)?;
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(not_writable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(not_writable(source)),
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(not_writable)?;
        let uid = match text.trim() {
            "" => {
                let uid = Uuid::new_v4();
                file.rewind()
                    .and_then(|()| writeln!(file, "{uid}"))
                    .map_err(not_writable)?;
                file.sync_all().map_err(not_writable)?;
                uid
            }
            kept => Uuid::parse_str(kept).map_err(|_| Error::Damaged { path: path.clone() })?,
        };
        Ok(Self {
            uid: uid.to_string(),
            _lock: file,
        })
    }

    /// The UUID.
    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }
}

/// The file in which `what` is kept of the node that the agent was told to be.
pub(crate) fn file_name(what: &str, node_ip: Option<IpAddr>, hostname: Option<&str>) -> String {
    let mut name = what.to_owned();
    for told in [
        node_ip.map(|ip| ip.to_string()),
        hostname.map(str::to_owned),
    ] {
        let told = told.unwrap_or_default();
        name.push('_');
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || ".-:".contains(c) {
                c
            } else {
                '+'
            }
        };
        name.extend(told.chars().take(80).map(plain));
    }
    name.trim_end_matches('_').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(directory: &Path, ip: Option<&str>, hostname: Option<&str>) -> String {
        let ip = ip.map(|ip| ip.parse().expect("an address"));
        Identity::open(directory, ip, hostname)
            .expect("opens")
            .uid()
            .to_owned()
    }

    #[test]
    fn an_identity_is_kept_and_each_node_has_its_own() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("new");
        let own = uid(&path, None, None);
        assert_eq!(uid(&path, None, None), own);
        let others = [
            uid(&path, Some("10.0.0.1"), None),
            uid(&path, Some("10.0.0.2"), None),
            uid(&path, None, Some("a")),
            uid(&path, Some("10.0.0.1"), Some("a")),
        ];
        assert_eq!(uid(&path, Some("10.0.0.1"), None), others[0]);
        let mut all = others.to_vec();
        all.push(own);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn one_node_has_one_agent_and_a_damaged_file_is_named() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let first = Identity::open(folder.path(), None, None).expect("opens");
        let second = Identity::open(folder.path(), None, None);
        assert!(matches!(second, Err(Error::InUse { .. })));
        drop(first);
        fs::write(folder.path().join("node-id"), "nonsense").expect("written");
        let damaged = Identity::open(folder.path(), None, None);
        assert!(matches!(damaged, Err(Error::Damaged { .. })));
        let unwritable = Identity::open(Path::new("/proc/none"), None, None);
        assert!(matches!(unwritable, Err(Error::NotWritable { .. })));
    }
}
