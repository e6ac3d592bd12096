//! A disk that is soon full: a tmpfs in a mount namespace of its own.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::program::{Program, Running, binary, isolated};
use crate::wait_for;

/// A small disk. It is there for the programs that are started on it, and gone when it is dropped.
pub struct SmallDisk {
    // Keeps the namespace, and with it what is on the disk, while no program runs.
    holder: Running,
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
        let mut command = isolated("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", script, "sh"]);
        command.arg(mountpoint.path()).arg(size_mib.to_string());
        let mut holder = Running(command.spawn().expect("util-linux has unshare"));
        let ready = seen_by(&holder, &mountpoint.path().join("ready"));
        wait_for("the small disk", || {
            let ended = holder.0.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "no mount namespace: {ended:?}");
            ready.exists().then_some(())
        });
        Self { holder, mountpoint }
    }

    /// Where the disk is for the programs on it.
    pub fn path(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Starts `nodestats` on it and waits until it listens.
    pub fn serve(&self, arguments: &[&str]) -> Program {
        let mut command = isolated("nsenter");
        command.args(["--user", "--mount", "--preserve-credentials", "--target"]);
        command.arg(self.holder.0.id().to_string());
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
fn seen_by(process: &Running, path: &Path) -> PathBuf {
    let root = format!("/proc/{}/root", process.0.id());
    Path::new(&root).join(path.strip_prefix("/").expect("absolute"))
}
