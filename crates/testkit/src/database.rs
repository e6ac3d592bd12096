//! A real `SurrealDB` server.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::certificates::Authority;
use crate::program::{Running, command};
use crate::{free_port, wait_for};

/// A `SurrealDB` server that runs; killed when it is dropped.
pub struct DatabaseServer {
    child: Running,
    bind: String,
    directory: PathBuf,
    tls: bool,
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
        Self::start_at(format!("127.0.0.1:{}", free_port()), directory, false)
    }

    /// The same over TLS on this address of this machine, by a certificate of an authority of its
    /// own: [`DatabaseServer::authority`].
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start_with_tls(address: &str, directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("a folder");
        let authority = Authority::new();
        let [certificate, key] = authority.leaf("database", address);
        for (file, pem) in [
            ("ca.crt", authority.pem()),
            ("tls.crt", &certificate),
            ("tls.key", &key),
        ] {
            fs::write(directory.join(file), pem).expect("written");
        }
        Self::start_at(format!("{address}:{}", free_port()), directory, true)
    }

    fn start_at(bind: String, directory: &Path, tls: bool) -> Self {
        let storage = format!("surrealkv://{}", directory.join("data").display());
        let [certificate, key] =
            ["tls.crt", "tls.key"].map(|file| directory.join(file).display().to_string());
        let mut arguments = vec!["start", "--no-banner", "--log", "error", "--bind", &bind];
        arguments.extend(["--user", Self::USER, "--pass", Self::PASSWORD]);
        if tls {
            arguments.extend(["--web-crt", &certificate, "--web-key", &key]);
        }
        arguments.push(&storage);
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
            tls,
        }
    }

    /// What `--database` takes.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "wss" } else { "ws" }, self.bind)
    }

    /// The PEM file of the authority that signed its certificate, where it has one.
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// Kills it (SIGKILL), and returns what starts it again: same place, same data.
    pub fn kill(mut self) -> impl FnOnce() -> Self + use<> {
        self.child.0.kill().expect("it runs");
        self.child.0.wait().expect("it ended");
        let (bind, directory, tls) = (self.bind, self.directory, self.tls);
        move || Self::start_at(bind, &directory, tls)
    }
}
