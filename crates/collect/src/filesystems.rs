//! Filesystems: `statvfs` of each mount point of the host's first process.
//!
//! `statvfs` of a dead network mount never returns. It is asked on a thread that can be left
//! behind: the mount is skipped until that thread comes back, and all other mounts are read.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nodestats_core::sample::Filesystem;
use rustix::fs::{StatVfs, StatVfsMountFlags, statvfs};

use crate::collector::{Collector, Error};
use crate::root::HostRoot;

/// A mount that has not answered by then is dead or as good as dead.
const PATIENCE: Duration = Duration::from_millis(300);
/// At most this many threads are left behind; beyond it new mounts are not asked.
const STUCK_LIMIT: usize = 16;

/// Kinds that hold no data of their own.
const PSEUDO: [&str; 30] = [
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fuse.gvfsd-fuse",
    "fuse.lxcfs",
    "fuse.portal",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "mqueue",
    "nsfs",
    "overlay",
    "proc",
    "procfs",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tracefs",
];

type Answer = (String, Option<StatVfs>);

/// Questions to a thread that asks, and its answers.
type Prober = (Sender<(String, PathBuf)>, Receiver<Answer>);

/// Asks the filesystem that holds a path.
type Ask = Arc<dyn Fn(&PathBuf) -> Option<StatVfs> + Send + Sync>;

pub(crate) struct Filesystems {
    ask: Ask,
    prober: Option<Prober>,
    stuck: Arc<Mutex<HashSet<String>>>,
}

impl Default for Filesystems {
    fn default() -> Self {
        Self::asking(Arc::new(|path: &PathBuf| statvfs(path).ok()))
    }
}

impl Collector for Filesystems {
    type Output = Vec<Filesystem>;
    const NAME: &'static str = "filesystems";

    fn collect(&mut self, root: &HostRoot) -> Result<Vec<Filesystem>, Error> {
        let path = "proc/1/mountinfo";
        let text = match root.read(path) {
            Ok(text) => text,
            Err(_) if root.is_own() => root
                .read("proc/self/mountinfo")
                .map_err(Error::read("proc/self/mountinfo"))?,
            Err(source) => return Err(Error::read(path)(source)),
        };
        let mounts = parse(&text);
        Ok(mounts
            .into_iter()
            .filter_map(|mount| self.measure(root, mount))
            .collect())
    }
}

impl Filesystems {
    fn asking(ask: Ask) -> Self {
        Self {
            ask,
            prober: None,
            stuck: Arc::default(),
        }
    }

    fn measure(&mut self, root: &HostRoot, mount: Mount) -> Option<Filesystem> {
        let figures = self.probe(&mount.mountpoint, root.path(&mount.mountpoint))?;
        // Zero blocks: a pseudo filesystem that the table does not know.
        (figures.f_blocks > 0).then(|| Filesystem {
            mountpoint: mount.mountpoint,
            device: mount.device,
            kind: mount.kind,
            total: figures.f_blocks.saturating_mul(figures.f_frsize),
            free: figures.f_bfree.saturating_mul(figures.f_frsize),
            available: figures.f_bavail.saturating_mul(figures.f_frsize),
            inodes: figures.f_files,
            inodes_free: figures.f_ffree,
            read_only: figures.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }

    fn probe(&mut self, mountpoint: &str, path: PathBuf) -> Option<StatVfs> {
        let stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        if stuck.contains(mountpoint) || stuck.len() >= STUCK_LIMIT {
            return None;
        }
        drop(stuck);
        if self.prober.is_none() {
            self.prober = start_prober(Arc::clone(&self.ask), Arc::clone(&self.stuck));
        }
        let (questions, answers) = self.prober.as_ref()?;
        questions.send((mountpoint.to_owned(), path)).ok()?;
        if let Ok((_, figures)) = answers.recv_timeout(PATIENCE) {
            return figures;
        }
        // Marked first, then left: the thread takes the mark away when it comes back.
        self.stuck
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(mountpoint.to_owned());
        self.prober = None;
        tracing::warn!(
            mountpoint,
            "a filesystem does not answer; it is left out until it does"
        );
        None
    }
}

fn start_prober(ask: Ask, stuck: Arc<Mutex<HashSet<String>>>) -> Option<Prober> {
    let (question_tx, questions) = mpsc::channel::<(String, PathBuf)>();
    let (answer_tx, answers) = mpsc::channel();
    let run = move || {
        while let Ok((mountpoint, path)) = questions.recv() {
            let figures = ask(&path);
            if answer_tx.send((mountpoint.clone(), figures)).is_err() {
                // Left behind, and back.
                stuck
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&mountpoint);
                return;
            }
        }
    };
    let thread = thread::Builder::new()
        .name("collect-statvfs".to_owned())
        .stack_size(128 << 10);
    thread.spawn(run).ok()?;
    Some((question_tx, answers))
}

#[derive(Debug, PartialEq)]
struct Mount {
    mountpoint: String,
    device: String,
    kind: String,
}

/// Each filesystem once, at its shortest mount point, in the order of mount points.
fn parse(text: &str) -> Vec<Mount> {
    let mut shortest: HashMap<&str, Mount> = HashMap::new();
    for line in text.lines() {
        let Some((number, mount)) = mount(line) else {
            continue;
        };
        let known = shortest.get(number);
        if known.is_none_or(|known| mount.mountpoint.len() < known.mountpoint.len()) {
            shortest.insert(number, mount);
        }
    }
    let mut mounts: Vec<Mount> = shortest.into_values().collect();
    mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    mounts
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw` (`proc(5)`); the device number
/// and the mount.
fn mount(line: &str) -> Option<(&str, Mount)> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let (number, _, mountpoint) = (before.next()?, before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (kind, device) = (after.next()?, after.next()?);
    let mountpoint = unescape(mountpoint);
    let system = ["/proc", "/sys", "/dev", "/run"];
    let is_system = |top: &str| {
        mountpoint == top
            || mountpoint
                .strip_prefix(top)
                .is_some_and(|rest| rest.starts_with('/'))
    };
    // A container's own root is an overlay, and all it has.
    let pseudo = PSEUDO.contains(&kind) && !(kind == "overlay" && mountpoint == "/");
    if pseudo || (kind == "tmpfs" && system.into_iter().any(is_system)) {
        return None;
    }
    Some((
        number,
        Mount {
            mountpoint,
            device: unescape(device),
            kind: kind.to_owned(),
        },
    ))
}

/// Blank, tab, newline and backslash stand as three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.get(..3)).flatten();
        let code =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(byte));
        rest = &after[if code.is_some() { 3 } else { 0 }..];
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
23 22 0:21 / /proc rw - proc proc rw\n\
24 22 0:22 / /run rw - tmpfs tmpfs rw\n\
25 22 8:1 /var/lib/x /var/lib/y rw - ext4 /dev/sda1 rw\n\
26 22 0:40 / /mnt/with\\040space rw - nfs4 host:/a\\134b rw\n\
27 22 0:41 / /tmp rw - tmpfs tmpfs rw\n\
broken\n";

    #[test]
    fn each_filesystem_stands_once_at_its_shortest_place() {
        let found: Vec<_> = parse(MOUNTINFO)
            .into_iter()
            .map(|mount| mount.mountpoint)
            .collect();
        assert_eq!(found, ["/", "/mnt/with space", "/tmp"]);
        assert_eq!(parse(MOUNTINFO)[1].device, "host:/a\\b");
    }

    #[test]
    fn a_dead_mount_is_left_out_alone_until_it_comes_back() {
        let folder = tempfile::tempdir().expect("temporary folder");
        for place in ["proc/1", "mnt/with space", "tmp"] {
            std::fs::create_dir_all(folder.path().join(place)).expect("made");
        }
        std::fs::write(folder.path().join("proc/1/mountinfo"), MOUNTINFO).expect("written");
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let mut collector = Filesystems::asking(Arc::new(move |path| {
            if path.ends_with("mnt/with space") {
                let _ = held.lock().expect("one thread").recv();
            }
            statvfs(path).ok()
        }));
        let root = HostRoot::new(folder.path());
        let mut places = || {
            let filesystems = collector.collect(&root).expect("read");
            filesystems
                .into_iter()
                .map(|filesystem| filesystem.mountpoint)
                .collect::<Vec<_>>()
        };
        assert_eq!(places(), ["/", "/tmp"]);
        assert_eq!(places(), ["/", "/tmp"]);
        drop(release);
        let back = (0..1000).any(|_| {
            thread::yield_now();
            places().len() == 3
        });
        assert!(back, "the mount answers again");
    }
}
