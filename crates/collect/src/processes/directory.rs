//! `/proc` itself: the list of processes, and their files.

use std::fmt::Write as _;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, openat, statat};
use rustix::io::Errno;

use crate::root::HostRoot;

/// `f_type` of procfs (linux/magic.h).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// An open `/proc`.
pub(super) struct ProcDirectory {
    directory: OwnedFd,
    page_size: u64,
    descriptor_limit: usize,
    /// Whether the size of `PID/fd` is the number of open files (Linux 6.2).
    counts_open_files: bool,
}

impl ProcDirectory {
    pub(super) fn open(root: &HostRoot) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(root.path("proc"), flags, Mode::empty())?;
        let is_procfs = rustix::fs::fstatfs(&directory)
            .is_ok_and(|filesystem| filesystem.f_type == PROC_SUPER_MAGIC);
        // This process has files open, so a size of 0 means that the kernel does not say.
        let sized = rustix::fs::stat("/proc/self/fd").is_ok_and(|fd| fd.st_size > 0);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Ok(Self {
            directory,
            page_size: rustix::param::page_size() as u64,
            // Half of what the process may have: the rest is for sockets and database files.
            descriptor_limit: limit.map_or(usize::MAX, |limit| limit as usize / 2),
            counts_open_files: is_procfs && sized,
        })
    }

    pub(super) fn page_size(&self) -> u64 {
        self.page_size
    }

    /// How many descriptors may be kept open.
    pub(super) fn descriptor_limit(&self) -> usize {
        self.descriptor_limit
    }

    /// All pids in order.
    pub(super) fn list(&self, pids: &mut Vec<u32>) -> io::Result<()> {
        pids.clear();
        rustix::fs::seek(&self.directory, rustix::fs::SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut entries = RawDir::new(&self.directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let number = super::stat::parse_number(entry.file_name().to_bytes());
            pids.extend(number.and_then(|pid| u32::try_from(pid).ok()));
        }
        pids.sort_unstable();
        Ok(())
    }

    pub(super) fn open_file(&self, pid: u32, file: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat(
            &self.directory,
            Path::new(pid, file).as_str(),
            flags,
            Mode::empty(),
        )
    }

    /// Reads the beginning of a file into `buffer`, and returns how much there is.
    pub(super) fn read(&self, pid: u32, file: &str, buffer: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::pread(self.open_file(pid, file)?.as_fd(), buffer, 0)
    }

    /// How many files a process has open; `None` where that may not be known.
    pub(super) fn open_files(&self, pid: u32) -> Option<u64> {
        if self.counts_open_files {
            let status = statat(
                &self.directory,
                Path::new(pid, "fd").as_str(),
                AtFlags::empty(),
            );
            return status
                .ok()
                .and_then(|status| u64::try_from(status.st_size).ok());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = Path::new(pid, "fd");
        let directory = openat(&self.directory, path.as_str(), flags, Mode::empty()).ok()?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(directory, &mut buffer);
        let mut count = 0;
        while let Some(entry) = entries.next() {
            // "." and ".." are the only names that are no number.
            count += u64::from(entry.ok()?.file_name().to_bytes().first() != Some(&b'.'));
        }
        Some(count)
    }
}

/// `PID/file`, on the stack.
struct Path {
    bytes: [u8; 32],
    length: usize,
}

impl Path {
    fn new(pid: u32, file: &str) -> Self {
        let mut path = Self {
            bytes: [0; 32],
            length: 0,
        };
        write!(path, "{pid}/{file}").expect("ten digits and a short name fit");
        path
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).expect("only texts were written")
    }
}

impl std::fmt::Write for Path {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        self.bytes
            .get_mut(self.length..end)
            .ok_or(std::fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}
