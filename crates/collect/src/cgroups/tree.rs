//! Which groups there are.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::Path;

use nodestats_core::sample::cgroup::{self, Kind};

use super::layout::{Hierarchy, Layout, Version};
use super::place;
use crate::collector::Error;

/// `f_type` of control groups (linux/magic.h).
const CGROUP_MAGIC: i64 = 0x0027_e0eb;
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Groups that are looked at, at most: a program that makes them without end must not take the
/// agent along.
const LIMIT: usize = cgroup::GROUPS;
/// What ordinary users have as their own to make groups in: no pod of Kubernetes is there, whatever
/// they call it.
const USERS: &str = "/user.slice/";
/// Levels below the root that are looked at.
const DEPTH: usize = 16;

/// A group that is to be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) path: String,
    pub(super) id: u64,
    pub(super) kind: Kind,
}

#[derive(Debug, Default)]
pub(super) struct Found {
    /// By path.
    pub(super) groups: Vec<Group>,
    /// The group at which this process's cgroup namespace begins; `None` where it is the root, or
    /// is not below it.
    pub(super) own_root: Option<String>,
}

/// Looks for groups in all hierarchies of `layout`.
pub(super) fn walk(layout: &Layout) -> Result<Found, Error> {
    let mut groups = BTreeMap::new();
    let mut own_root = None;
    for (number, hierarchy) in layout.trees().into_iter().enumerate() {
        let mut walk = Walk {
            groups: &mut groups,
            left: LIMIT,
            trusts_links: is_cgroup_filesystem(&hierarchy.directory),
            wanted: None,
            own_root: None,
        };
        if number == 0 && walk.trusts_links {
            walk.wanted = own_inode(hierarchy);
        }
        let directory = &hierarchy.directory;
        walk.enter(directory, String::new(), None, 0)
            .map_err(|source| Error::Read {
                path: directory.display().to_string(),
                source,
            })?;
        own_root = own_root.or(walk.own_root);
    }
    let group = |(path, (id, kind))| Group { path, id, kind };
    Ok(Found {
        groups: groups.into_iter().map(group).collect(),
        own_root,
    })
}

/// The group at which this process's namespace begins, where it has one of its own: then it is in
/// the root of what it sees.
fn own_inode(hierarchy: &Hierarchy) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = place::path_in(
        &text,
        match hierarchy.version {
            Version::One => hierarchy.name,
            Version::Two => "",
        },
    )?;
    let root = fs::metadata(&hierarchy.directory).ok()?.ino();
    let own = fs::metadata(&hierarchy.own).ok()?.ino();
    (path == "/" && own != root).then_some(own)
}

fn is_cgroup_filesystem(directory: &Path) -> bool {
    rustix::fs::statfs(directory)
        .is_ok_and(|filesystem| [CGROUP_MAGIC, CGROUP2_MAGIC].contains(&filesystem.f_type))
}

struct Walk<'a> {
    groups: &'a mut BTreeMap<String, (u64, Kind)>,
    left: usize,
    /// A group without any below it has two links.
    trusts_links: bool,
    /// The inode that is looked for.
    wanted: Option<u64>,
    own_root: Option<String>,
}

impl Walk<'_> {
    fn enter(
        &mut self,
        directory: &Path,
        path: String,
        pod_uid: Option<&std::sync::Arc<str>>,
        depth: usize,
    ) -> std::io::Result<()> {
        if depth > 0 && self.trusts_links && fs::metadata(directory)?.nlink() == 2 {
            return Ok(());
        }
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            // systemd escapes what is no UTF-8, and so do the others.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let Some(left) = self.left.checked_sub(1) else {
                tracing::warn!("there are more than {LIMIT} control groups; the rest is left out");
                return Ok(());
            };
            self.left = left;
            let (path, id) = (format!("{path}/{name}"), entry.ino());
            if self.wanted == Some(id) {
                self.own_root = Some(path.clone());
            }
            let kind = place::kind(&name, pod_uid);
            // A pod within a pod is the affair of the outer one.
            let is_pod = pod_uid.is_none() && !path.starts_with(USERS);
            let kind = kind.filter(|kind| is_pod || !matches!(kind, Kind::Pod { .. }));
            let pod_uid = match &kind {
                Some(Kind::Pod { uid }) => Some(uid.clone()),
                _ => pod_uid.cloned(),
            };
            let is_container = matches!(kind, Some(Kind::Container { .. }));
            if let Some(kind) = kind {
                self.groups.entry(path.clone()).or_insert((id, kind));
            }
            // What a container makes below itself is its own affair.
            if !is_container && depth < DEPTH {
                // One that is gone by now is gone.
                let _ = self.enter(&entry.path(), path, pod_uid.as_ref(), depth + 1);
            }
        }
        Ok(())
    }
}
