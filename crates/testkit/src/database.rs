//! A real `SurrealDB` server.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::program::{Running, command};
use crate::{free_port, wait_for};

/// A `SurrealDB` server that runs; killed when it is dropped.
pub struct DatabaseServer {
    child: Running,
    bind: String,
    directory: PathBuf,
}

impl DatabaseServer {
    /// Its root user.
    pub const USER: &str = "root";
    /// That user's password.
    pub const PASSWORD: &str = "not a secret";

    /// Starts one that keeps its data in `directory`, and waits until it answers.
    ///
    /// # Panics
    /// Where it does not.
    pub fn start(directory: &Path) -> Self {
        Self::start_on("127.0.0.1", directory)
    }

    /// The same on this address of this machine, for those who reach it by that.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start_on(address: &str, directory: &Path) -> Self {
        // Its line of what it listens on does not name a port it chose itself.
        Self::start_at(format!("{address}:{}", free_port()), directory)
    }

    fn start_at(bind: String, directory: &Path) -> Self {
        let storage = format!("surrealkv://{}", directory.display());
        let mut arguments = vec!["start", "--no-banner", "--log", "error", "--bind", &bind];
        arguments.extend(["--user", Self::USER, "--pass", Self::PASSWORD, &storage]);
        let mut command = command("surrealdb-server", &arguments);
        let mut child = Running(command.stdout(Stdio::null()).spawn().expect("starts"));
        wait_for("the database server", || {
            let ended = child.0.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "the database server ended: {ended:?}");
            TcpStream::connect(&bind).ok()
        });
        Self {
            child,
            bind,
            directory: directory.to_owned(),
        }
    }

    /// What `--database` takes.
    pub fn url(&self) -> String {
        format!("ws://{}", self.bind)
    }

    /// Kills it (SIGKILL), and returns what starts it again: same place, same data.
    pub fn kill(mut self) -> impl FnOnce() -> Self + use<> {
        self.child.0.kill().expect("it runs");
        self.child.0.wait().expect("it ended");
        let (bind, directory) = (self.bind, self.directory);
        move || Self::start_at(bind, &directory)
    }
}
