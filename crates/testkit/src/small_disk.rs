//! A disk that is soon full: a tmpfs in a mount namespace of its own.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::program::{Program, binary};

/// A small disk. It is there for the programs that are started on it, and gone when it is dropped.
pub struct SmallDisk {
    // Keeps the namespace, and with it what is on the disk, while no program runs.
    holder: Child,
    mountpoint: TempDir,
}

impl SmallDisk {
    /// One of so many MiB.
    ///
    /// # Panics
    /// Where this user may not have a mount namespace.
    pub fn new(size_mib: u32) -> Self {
        let mountpoint = tempfile::tempdir().expect("temporary folder");
        let script =
            "mount -t tmpfs -o size=$2m none \"$1\" && touch \"$1/ready\" && exec sleep inf";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", script, "sh"]);
        let mut holder = command
            .arg(mountpoint.path())
            .arg(size_mib.to_string())
            .stdin(Stdio::null())
            .spawn()
            .expect("util-linux has unshare");
        let ready = seen_by(&holder, &mountpoint.path().join("ready"));
        while !ready.exists() {
            let ended = holder.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "no mount namespace: {ended:?}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Self { holder, mountpoint }
    }

    /// Where the disk is for the programs on it.
    pub fn path(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Starts `nodestats` on it and waits until it listens.
    pub fn serve(&self, arguments: &[&str]) -> Program {
        let mut command = Command::new("nsenter");
        command.args(["--user", "--mount", "--preserve-credentials", "--target"]);
        command.arg(self.holder.id().to_string());
        Program::serve_by(command.arg(binary("nodestats")).args(arguments))
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("created");
        let some = [0; 4096];
        while filler.write_all(&some).is_ok() {}
        while filler.write_all(&some[..1]).is_ok() {}
    }

    /// Takes away what [`SmallDisk::fill`] wrote.
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        seen_by(&self.holder, &self.mountpoint.path().join("filler"))
    }
}

/// A path as `process` sees it (`/proc/PID/root`, proc(5)).
fn seen_by(process: &Child, path: &Path) -> PathBuf {
    let root = format!("/proc/{}/root", process.id());
    Path::new(&root).join(path.strip_prefix("/").expect("absolute"))
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
