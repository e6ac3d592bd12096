//! `/proc/meminfo`.

use nodestats_core::sample::Memory as Figures;

use crate::collector::{Collector, Error};
use crate::root::HostRoot;

pub(crate) struct Memory;

impl Collector for Memory {
    type Output = Figures;
    const NAME: &'static str = "memory";

    fn collect(&mut self, root: &HostRoot) -> Result<Figures, Error> {
        let path = "proc/meminfo";
        let text = root.read(path).map_err(Error::read(path))?;
        parse(&text).ok_or_else(|| Error::parse(path))
    }
}

fn parse(text: &str) -> Option<Figures> {
    let mut total = None;
    let mut figures = Figures::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let field = match key {
            "MemTotal" => &mut total,
            "MemFree" => &mut figures.free,
            "MemAvailable" => &mut figures.available,
            "Buffers" => &mut figures.buffers,
            "Cached" => &mut figures.cached,
            "Shmem" => &mut figures.shared,
            "SReclaimable" => &mut figures.slab_reclaimable,
            "SwapTotal" => &mut figures.swap_total,
            "SwapFree" => &mut figures.swap_free,
            _ => continue,
        };
        *field = bytes(value);
    }
    Some(Figures {
        total: total?,
        ..figures
    })
}

/// "kB" there means 1,024 bytes.
pub(crate) fn bytes(value: &str) -> Option<u64> {
    value
        .trim()
        .strip_suffix("kB")?
        .trim_end()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_does_not_say_is_absent() {
        let old = parse("MemTotal: 100 kB\nMemFree:  40 kB\nSwapTotal: broken\n").expect("a total");
        assert_eq!((old.total, old.free), (102_400, Some(40_960)));
        assert_eq!((old.available, old.swap_total), (None, None));
        assert_eq!(parse("MemFree: 40 kB\n"), None);
    }
}
