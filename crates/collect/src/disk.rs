//! `/proc/diskstats`: whole block devices.

use nodestats_core::sample::DiskCounters;

use crate::collector::{Collector, Error};
use crate::root::HostRoot;

pub(crate) struct Disk;

/// `/proc/diskstats` counts sectors of 512 bytes whatever the device's own are
/// (Documentation/admin-guide/iostats.rst).
const SECTOR: u64 = 512;

impl Collector for Disk {
    type Output = Vec<DiskCounters>;
    const NAME: &'static str = "disk";

    fn collect(&mut self, root: &HostRoot) -> Result<Vec<DiskCounters>, Error> {
        let path = "proc/diskstats";
        let text = root.read(path).map_err(Error::read(path))?;
        let mut disks = parse(&text).ok_or_else(|| Error::parse(path))?;
        // Partitions are counted in their device already. Without /sys nobody can tell them apart.
        if let Ok(devices) = std::fs::read_dir(root.path("sys/block")) {
            let whole: Vec<_> = devices.flatten().map(|entry| entry.file_name()).collect();
            disks.retain(|disk| {
                whole
                    .iter()
                    .any(|name| *name == *disk.device.replace('/', "!"))
            });
        }
        Ok(disks)
    }
}

fn parse(text: &str) -> Option<Vec<DiskCounters>> {
    let mut disks = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // Linux 2.6 to 4.17 has 14 fields, later ones 18 and 20.
        let [_, _, device, ..] = fields[..] else {
            return None;
        };
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let disk = DiskCounters {
            device: device.to_owned(),
            reads: number(3)?,
            read_bytes: number(5)?.saturating_mul(SECTOR),
            writes: number(7)?,
            written_bytes: number(9)?.saturating_mul(SECTOR),
            in_flight: number(11)?,
            busy_millis: number(12)?,
        };
        // Loop and RAM devices that nobody uses are on every host by the dozen.
        let unused = disk.reads == 0 && disk.writes == 0;
        if !(unused && (device.starts_with("loop") || device.starts_with("ram"))) {
            disks.push(disk);
        }
    }
    Some(disks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_cut_off_is_an_error() {
        assert_eq!(parse("8 0 sda 1 2 3"), None);
        assert_eq!(parse("8 0"), None);
        assert_eq!(parse(""), Some(vec![]));
        let unused = "7 0 loop0 0 0 0 0 0 0 0 0 0 0 0\n";
        assert_eq!(parse(unused), Some(vec![]));
    }
}
