//! The server's own socket in its data directory: who may open it is whoever runs the server.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::net::UnixListener;

/// Its name in the data directory.
const SOCKET: &str = "nodestats.sock";
/// Bytes of a path that a socket's address holds (unix(7): 108, one of them ends it).
const PATH_LIMIT: usize = 107;

/// The socket of the server whose data directory this is.
pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(SOCKET)
}

/// Listens there. The caller holds the directory, so one that is there is a dead server's.
pub(crate) fn listen(data_dir: &Path) -> anyhow::Result<UnixListener> {
    // Nobody else may come in before the mode is set: it is made where nobody else gets to.
    let private = data_dir.join(format!("{SOCKET}.d"));
    let made = private.join("s");
    let path = path(data_dir);
    for path in [&made, &path] {
        anyhow::ensure!(
            path.as_os_str().len() <= PATH_LIMIT,
            "{} is too long for a socket: a data directory has at most {} bytes",
            path.display(),
            PATH_LIMIT - SOCKET.len() - "/.d/s".len()
        );
    }
    let listening = || -> io::Result<UnixListener> {
        let _ = std::fs::remove_dir_all(&private);
        std::fs::DirBuilder::new().mode(0o700).create(&private)?;
        let listener = UnixListener::bind(&made)?;
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&made, &path)?;
        std::fs::remove_dir(&private)?;
        Ok(listener)
    };
    listening().with_context(|| format!("cannot listen on {}", path.display()))
}
