//! What `stat` does not say of a process.

use std::sync::Arc;

use nodestats_core::sample::{IoCalls, Process};

use super::directory::ProcDirectory;
use super::stat::parse_number;
use crate::cgroups;
use crate::memory;
use crate::root::HostRoot;
use crate::users::Users;

/// Longer command lines are cut: what tells processes apart is at the beginning.
const COMMAND_LINE_LIMIT: usize = 2048;

/// `PF_KTHREAD`'s sign for who may not see flags: pid 2 and its children.
fn is_kernel_thread(process: &Process) -> bool {
    process.pid == 2 || process.ppid == 2
}

/// Whether any memory is swapped out; true where that cannot be told.
pub(super) fn swap_in_use(root: &HostRoot) -> bool {
    let Ok(text) = root.read("proc/meminfo") else {
        return true;
    };
    let field = |key: &str| {
        text.lines()
            .find_map(|line| memory::bytes(line.strip_prefix(key)?.strip_prefix(':')?))
    };
    field("SwapTotal").is_none() || field("SwapTotal") != field("SwapFree")
}

/// What rarely changes: owner, command line, cgroup.
pub(super) fn refresh(directory: &ProcDirectory, process: &mut Process, users: &Users) {
    let mut buffer = [0; 4096];
    let mut read = |file: &str| {
        let length = directory.read(process.pid, file, &mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let user = read("status")
        .and_then(|status| uid(&status))
        .map(|uid| users.name(uid));
    share(&mut process.user, user);
    if is_kernel_thread(process) {
        return;
    }
    share(
        &mut process.command_line,
        read("cmdline").and_then(|raw| command_line(&raw)),
    );
    let place = read("cgroup")
        .map(|text| cgroups::of_process(&text))
        .unwrap_or_default();
    share(&mut process.cgroup, place.path);
    share(&mut process.container_id, place.container_id);
    share(&mut process.pod_uid, place.pod_uid);
}

/// What changes where a process ran: shared and swapped memory, I/O, open files.
pub(super) fn update(directory: &ProcDirectory, process: &mut Process, swap_in_use: bool) {
    if is_kernel_thread(process) {
        // No memory and no files of its own; its I/O is accounted to who caused it.
        return;
    }
    let mut buffer = [0; 2048];
    let mut read = |file: &str, take: &mut dyn FnMut(&[u8])| {
        if let Ok(length) = directory.read(process.pid, file, &mut buffer) {
            take(&buffer[..length]);
        }
    };
    let (mut shared, mut swapped) = (None, (!swap_in_use).then_some(0));
    let (mut read_bytes, mut written_bytes, mut calls) = (None, None, None);
    read("statm", &mut |statm| {
        let pages = statm
            .split(|&byte| byte == b' ')
            .nth(2)
            .and_then(parse_number);
        shared = pages.map(|pages| pages.saturating_mul(directory.page_size()));
    });
    read("io", &mut |io| {
        read_bytes = value(io, b"\nread_bytes:").and_then(parse_number);
        written_bytes = value(io, b"\nwrite_bytes:").and_then(parse_number);
        calls = io_calls(io);
    });
    if swap_in_use {
        read("status", &mut |status| {
            let text = value(status, b"\nVmSwap:").map(String::from_utf8_lossy);
            swapped = text.and_then(|text| memory::bytes(&text));
        });
    }
    process.shared_bytes = shared;
    process.swapped_bytes = swapped;
    process.read_bytes = read_bytes;
    process.written_bytes = written_bytes;
    process.calls = calls;
    process.open_files = directory.open_files(process.pid);
}

/// The first four lines of `io`, which stand in this order.
fn io_calls(io: &[u8]) -> Option<IoCalls> {
    let mut lines = io.split(|&byte| byte == b'\n');
    let mut next = |key: &[u8]| {
        let line = lines.next()?.strip_prefix(key)?;
        parse_number(line.trim_ascii())
    };
    Some(IoCalls {
        rchar: next(b"rchar:")?,
        wchar: next(b"wchar:")?,
        syscr: next(b"syscr:")?,
        syscw: next(b"syscw:")?,
    })
}

/// The rest of the line that begins with `key`, without blanks around it.
fn value<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let at = text.windows(key.len()).position(|window| window == key)?;
    let rest = &text[at + key.len()..];
    let end = rest
        .iter()
        .position(|&byte| byte == b'\n')
        .unwrap_or(rest.len());
    Some(rest[..end].trim_ascii())
}

/// The effective user: the second number of `Uid:`.
fn uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Arguments end with a NUL each; a process may overwrite them with anything.
fn command_line(raw: &str) -> Option<String> {
    let mut line = raw.trim_end_matches('\0').to_owned();
    if line.len() > COMMAND_LINE_LIMIT {
        let end = (0..=COMMAND_LINE_LIMIT)
            .rev()
            .find(|&end| line.is_char_boundary(end));
        line.truncate(end.unwrap_or(0));
    }
    (!line.is_empty()).then_some(line)
}

/// Replaces a shared text only where it differs.
fn share(slot: &mut Option<Arc<str>>, text: Option<String>) {
    if slot.as_deref() != text.as_deref() {
        *slot = text.map(Arc::from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_io_are_not_mixed_up() {
        let io = b"rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n";
        assert_eq!(value(io, b"\nread_bytes:"), Some(&b"5"[..]));
        assert_eq!(value(io, b"\nwrite_bytes:"), Some(&b"6"[..]));
        let calls = IoCalls {
            rchar: 1,
            wchar: 2,
            syscr: 3,
            syscw: 4,
        };
        assert_eq!(io_calls(io), Some(calls));
        assert_eq!(io_calls(b"rchar: 1\nread_bytes: 5\n"), None);
        assert_eq!(value(io, b"\nabsent:"), None);
    }

    #[test]
    fn arguments_are_cut_at_a_character() {
        assert_eq!(
            command_line("sleep\0infinity\0").as_deref(),
            Some("sleep\0infinity")
        );
        assert_eq!(command_line("\0\0"), None);
        let long = command_line(&"\u{1F980}".repeat(1000)).expect("not empty");
        assert!(long.len() <= COMMAND_LINE_LIMIT && long.ends_with('\u{1F980}'));
    }
}
