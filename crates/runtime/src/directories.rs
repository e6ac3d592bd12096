//! Where a program keeps its state by convention.

use std::path::PathBuf;

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
