//! What the process may use.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bytes of memory that the process may use: the smallest limit of its cgroups (version 2 or 1),
/// or the host's memory.
pub fn memory() -> u64 {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let host = host_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    cgroup_limit(Path::new("/sys/fs/cgroup"), &cgroups).map_or(host, |limit| limit.min(host))
}

/// Without `/proc/meminfo` a small machine is assumed.
fn host_memory(meminfo: &str) -> u64 {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(1 << 20).saturating_mul(1024)
}

fn cgroup_limit(mount: &Path, cgroups: &str) -> Option<u64> {
    let mut limits = Vec::new();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            other if other.split(',').any(|name| name == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // Each ancestor limits too; a private cgroup namespace shows only the last of them.
        let own = root.join(path.trim_start_matches('/'));
        for folder in own
            .ancestors()
            .take_while(|folder| folder.starts_with(&root))
        {
            let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
            limits.extend(text.trim().parse::<u64>());
        }
    }
    limits.into_iter().min()
}

/// Heaps that all threads share.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// Lets threads share heaps, before there are any. glibc gives each thread one until there are eight for a
/// processor, and keeps in each what its thread has freed: with three hundred nodes that was a seventh of all
/// memory. Who sets `MALLOC_ARENA_MAX` (mallopt(3)) has it otherwise.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        #[allow(unsafe_code)]
        // SAFETY: it sets a number of the allocator, which takes its own lock for it.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, HEAPS);
        }
    }
}

/// Raises the number of files that may be open as far as it goes without privileges: the agent
/// keeps one of each process, and the database many.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                ..limit
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_of_all_ancestors_counts() {
        let mount = tempfile::tempdir().expect("temporary folder");
        let own = mount.path().join("kubepods/pod1/c1");
        fs::create_dir_all(&own).expect("made");
        fs::write(own.join("memory.max"), "max\n").expect("written");
        fs::write(mount.path().join("kubepods/pod1/memory.max"), "268435456\n").expect("written");
        fs::write(mount.path().join("kubepods/memory.max"), "1073741824\n").expect("written");
        assert_eq!(
            cgroup_limit(mount.path(), "0::/kubepods/pod1/c1\n"),
            Some(256 << 20)
        );
        assert_eq!(cgroup_limit(mount.path(), "0::/\n"), None);
        fs::create_dir_all(mount.path().join("memory/a")).expect("made");
        fs::write(
            mount.path().join("memory/a/memory.limit_in_bytes"),
            "1048576\n",
        )
        .expect("written");
        assert_eq!(
            cgroup_limit(mount.path(), "5:cpu:/a\n4:memory:/a\n"),
            Some(1 << 20)
        );
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory() > 1 << 20);
        assert_eq!(host_memory("MemTotal:  2 kB\n"), 2048);
    }
}
