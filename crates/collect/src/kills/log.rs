//! The kernel's log, read on from where it was (Documentation/ABI/testing/dev-kmsg).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;

use nodestats_core::sample::cgroup::PATH;

use crate::root::HostRoot;

/// A record is no longer than this, and one read gives one.
const RECORD: usize = 8 << 10;
/// Records that one pass reads at most; the rest is read in the next.
const RECORDS: usize = 20_000;

/// Characters of a name (`TASK_COMM_LEN` is 16 bytes), more than there are.
const NAME: usize = 32;

/// A kill as the log tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) pid: u32,
    pub(crate) name: String,
    /// Resident memory of any kind.
    pub(crate) bytes: u64,
    /// The group that it was in.
    pub(crate) cgroup: Option<String>,
    /// How long ago, as far as the log's clock says (`CLOCK_MONOTONIC`, nearly).
    pub(crate) age_micros: Option<u64>,
}

/// The log, opened when it was first read.
#[derive(Debug, Default)]
pub(crate) struct Log {
    file: Option<File>,
    /// What was read of a line that was not whole yet.
    rest: String,
    /// Pid and group of the last line that said which group a victim is in.
    victim: Option<(u32, String)>,
}

impl Log {
    /// Kills since the last call; none of the first, which begins at the log's end. `None` where it
    /// may not be read.
    pub(crate) fn read(&mut self, root: &HostRoot) -> Option<Vec<Logged>> {
        if self.file.is_none() {
            self.file = Some(open(root).ok()?);
        }
        let file = self.file.as_mut()?;
        let mut buffer = [0; RECORD];
        for _ in 0..RECORDS {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    self.rest
                        .push_str(&String::from_utf8_lossy(&buffer[..length]));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Records were overwritten before they were read.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
                Err(_) => {
                    self.file = None;
                    return None;
                }
            }
        }
        let end = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let lines: String = self.rest.drain(..end).collect();
        let now = monotonic_micros();
        Some(
            lines
                .lines()
                .filter_map(|line| self.line(line, now))
                .collect(),
        )
    }

    /// A record is `priority,sequence,time,flags;message`.
    fn line(&mut self, line: &str, now_micros: u64) -> Option<Logged> {
        let (head, message) = line.split_once(';')?;
        if let Some(fields) = message.strip_prefix("oom-kill:") {
            self.victim = victim(fields);
            return None;
        }
        let mut logged = killed(message)?;
        let time = head.split(',').nth(2).and_then(|time| time.parse().ok());
        logged.age_micros = time.and_then(|time| now_micros.checked_sub(time));
        if let Some((pid, cgroup)) = &self.victim
            && *pid == logged.pid
            && cgroup.len() <= PATH
        {
            logged.cgroup = Some(cgroup.clone());
        }
        Some(logged)
    }
}

fn monotonic_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default() / 1000
}

fn open(root: &HostRoot) -> io::Result<File> {
    let mut options = File::options();
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let options = options.read(true).custom_flags(flags);
    let mut file = options.open(root.path("dev/kmsg"))?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

/// Pid and group of `constraint=…,oom_memcg=/a,task_memcg=/a/b,task=NAME,pid=1,uid=0`. A name may hold
/// a comma: what stands behind it is looked for from the end.
fn victim(fields: &str) -> Option<(u32, String)> {
    let (before, pid) = fields.rsplit_once(",pid=")?;
    let pid = pid.split(',').next()?.parse().ok()?;
    let (_, group) = before.split_once(",task_memcg=")?;
    let (group, _) = group.split_once(",task=")?;
    Some((pid, group.to_owned()))
}

/// `… Killed process 1 (NAME) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB, UID:0 …`
fn killed(message: &str) -> Option<Logged> {
    let (_, rest) = message.split_once("Killed process ")?;
    let (pid, rest) = rest.split_once(" (")?;
    let (name, sizes) = rest.rsplit_once(") total-vm:")?;
    let sizes = sizes.split(", ").filter_map(|size| {
        let (kind, size) = size.split_once(':')?;
        let kibibytes: u64 = size.strip_suffix("kB")?.parse().ok()?;
        kind.ends_with("-rss").then_some(kibibytes)
    });
    Some(Logged {
        pid: pid.parse().ok()?,
        name: name.chars().take(NAME).collect(),
        bytes: sizes.sum::<u64>().saturating_mul(1024),
        cgroup: None,
        age_micros: None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const CONSTRAINT: &str = "6,1201,5000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),\
         cpuset=/,mems_allowed=0,oom_memcg=/pods/a,task_memcg=/pods/a/b,task=my, hog,pid=4242,uid=0\n";
    const KILLED: &str = "3,1202,5000010,-;Memory cgroup out of memory: Killed process 4242 (my, hog) \
         total-vm:70000kB, anon-rss:65000kB, file-rss:500kB, shmem-rss:36kB, UID:0 pgtables:176kB \
         oom_score_adj:0\n SUBSYSTEM=x\n";

    #[test]
    fn a_kill_is_read_with_its_group_and_memory_and_what_was_before_is_not() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let root = HostRoot::new(folder.path());
        let mut log = Log::default();
        assert_eq!(log.read(&root), None);
        std::fs::create_dir(folder.path().join("dev")).expect("made");
        let path = folder.path().join("dev/kmsg");
        std::fs::write(&path, KILLED).expect("written");
        assert_eq!(log.read(&root), Some(Vec::new()));
        let mut file = File::options().append(true).open(&path).expect("opened");
        // The last line is not whole yet.
        let (begin, end) = KILLED.split_at(40);
        file.write_all(format!("{CONSTRAINT}{begin}").as_bytes())
            .expect("written");
        assert_eq!(log.read(&root), Some(Vec::new()));
        file.write_all(end.as_bytes()).expect("written");
        let kill = Logged {
            pid: 4242,
            name: "my, hog".into(),
            bytes: 65_536 << 10,
            cgroup: Some("/pods/a/b".into()),
            age_micros: None,
        };
        let mut read = log.read(&root).expect("readable");
        assert!(read[0].age_micros.take().is_some(), "{read:?}");
        assert_eq!(read, [kill]);
        assert_eq!(log.read(&root), Some(Vec::new()));
    }

    #[test]
    fn a_victim_of_another_line_has_no_group() {
        let mut log = Log::default();
        assert_eq!(log.line(CONSTRAINT.trim_end(), 0), None);
        let other = "3,9,9,-;Out of memory: Killed process 7 (x) total-vm:4kB, anon-rss:1kB, UID:0";
        let kill = log.line(other, 20).expect("a kill");
        assert_eq!(
            (kill.pid, kill.bytes, kill.cgroup, kill.age_micros),
            (7, 1024, None, Some(11))
        );
        for line in [
            "",
            "6,1,1,-;usb 1-1: new device",
            "3,1,1,-;Killed process x (y) total-vm:1kB",
        ] {
            assert_eq!(log.line(line, 0), None, "{line}");
        }
    }
}
