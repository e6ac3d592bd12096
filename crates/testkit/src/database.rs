//! A real `SurrealDB` server.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::PATIENCE;
use crate::program::command;

/// A `SurrealDB` server that runs; killed when it is dropped.
pub struct DatabaseServer {
    child: Child,
    port: u16,
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
        // Its line of what it listens on does not name a port it chose itself.
        let free = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        Self::start_at(port, directory)
    }

    fn start_at(port: u16, directory: &Path) -> Self {
        let bind = format!("127.0.0.1:{port}");
        let storage = format!("surrealkv://{}", directory.display());
        let mut arguments = vec!["start", "--no-banner", "--log", "error", "--bind", &bind];
        arguments.extend(["--user", Self::USER, "--pass", Self::PASSWORD, &storage]);
        let mut child = command("surrealdb-server", &arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        let begin = std::time::Instant::now();
        while std::net::TcpStream::connect(&bind).is_err() {
            let ended = child.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "the database server ended: {ended:?}");
            assert!(begin.elapsed() < PATIENCE, "it does not listen");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self {
            child,
            port,
            directory: directory.to_owned(),
        }
    }

    /// What `--database` takes.
    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    /// Kills it (SIGKILL), and returns what starts it again: same place, same data.
    pub fn kill(mut self) -> impl FnOnce() -> Self + use<> {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ended");
        let (port, directory) = (self.port, self.directory.clone());
        move || Self::start_at(port, &directory)
    }
}

impl Drop for DatabaseServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
