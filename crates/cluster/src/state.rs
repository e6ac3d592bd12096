//! A cluster's folder, and how a cluster is taken down from what its name alone tells.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::network::Network;
use crate::{network, nodes, process};

/// Present when the cluster was started to its end.
const COMPLETE: &str = "complete";
/// Holds the pid of the process that the cluster belongs to, where it is one's own.
const OWNER: &str = "owner";

/// The folder of one cluster.
#[derive(Debug)]
pub(crate) struct State {
    directory: PathBuf,
}

/// Where clusters of this user are. Paths are short: sockets in them have at most 107 bytes.
fn clusters() -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    PathBuf::from(format!("/var/tmp/nodestats-clusters-{user}"))
}

impl State {
    pub(crate) fn open(name: &str) -> anyhow::Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 9 || !name.chars().all(plain) {
            bail!("{name:?} is no cluster's name: at most 9 lowercase letters, digits and dashes");
        }
        Ok(Self {
            directory: clusters().join(name),
        })
    }

    pub(crate) fn create(&self) -> anyhow::Result<()> {
        for folder in ["", "pki", "log"] {
            let path = self.path(folder);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(())
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    pub(crate) fn log(&self, program: &str) -> PathBuf {
        self.directory.join("log").join(program)
    }

    /// It was started to its end, as `what` says.
    pub(crate) fn complete(&self, what: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.path(COMPLETE), what)?)
    }

    /// What was started to its end, if anything.
    pub(crate) fn completed(&self) -> Option<String> {
        fs::read_to_string(self.path(COMPLETE)).ok()
    }

    /// The cluster belongs to this process, and goes with it.
    pub(crate) fn claim(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.path(OWNER), std::process::id().to_string())?)
    }

    fn owner_is_gone(&self) -> bool {
        let owner = fs::read_to_string(self.path(OWNER)).unwrap_or_default();
        !owner.is_empty() && !Path::new("/proc").join(owner.trim()).exists()
    }

    /// The end of each log, for an error message.
    pub(crate) fn last_lines(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.path("log"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let log = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(4).collect();
            for line in lines.iter().rev() {
                let line: String = line.chars().take(400).collect();
                text = format!("{text}{}: {line}\n", entry.file_name().display());
            }
        }
        text
    }
}

/// Takes a cluster down, and leaves nothing of it: processes, namespaces, interfaces, cgroups and
/// files. All are found by the cluster's name, so this works after a crash in the middle too.
pub fn down(name: &str) -> anyhow::Result<()> {
    let state = State::open(name)?;
    process::kill_all(&state.directory)?;
    if network::is_root() {
        Network::remove(name)?;
        nodes::remove_cgroups(name)?;
    }
    match fs::remove_dir_all(&state.directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", state.directory.display()))
        }
        _ => Ok(()),
    }
}

/// Takes down the clusters of processes that ended without doing so.
pub fn sweep() -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(clusters()) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if State::open(&name).is_ok_and(|state| state.owner_is_gone())
            && let Err(error) = down(&name)
        {
            // It may be another's to sweep at this very moment; nobody needs it gone.
            eprintln!("the cluster {name} of a process that ended is not gone: {error:#}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_interface_can_have_is_refused() {
        for name in ["", "with space", "Upper", "../up", "longer-than-9"] {
            assert!(State::open(name).is_err(), "{name:?}");
        }
        assert!(State::open("test-1").is_ok());
    }
}
