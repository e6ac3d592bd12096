//! Where a program keeps its state by convention.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// `/var/lib/NAME` as root; else NAME in the XDG state directory
/// (`$XDG_STATE_HOME`, or `~/.local/state`).
pub fn state(name: &str) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib").join(name);
    }
    let of_user = |variable: &str| std::env::var_os(variable).filter(|path| !path.is_empty());
    let xdg = of_user("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    xdg.or_else(|| of_user("HOME").map(|home| PathBuf::from(home).join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join(name)
}

/// Whether the user of this process owns what is there: what another one writes there its owner may
/// not be able to read.
pub fn is_own(path: &Path) -> io::Result<bool> {
    let owner = std::fs::metadata(path)?.uid();
    Ok(owner == rustix::process::geteuid().as_raw())
}
