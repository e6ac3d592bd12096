//! `/proc/net/dev` of the host's own network namespace.

use nodestats_core::sample::{DirectionCounters, InterfaceCounters};

use crate::collector::{Collector, Error};
use crate::root::HostRoot;

pub(crate) struct Network;

impl Collector for Network {
    type Output = Vec<InterfaceCounters>;
    const NAME: &'static str = "network";

    fn collect(&mut self, root: &HostRoot) -> Result<Vec<InterfaceCounters>, Error> {
        // `/proc/net` is the namespace of who reads it; the host's is that of its first process.
        let path = "proc/1/net/dev";
        let text = match root.read(path) {
            Ok(text) => text,
            Err(_) if root.is_own() => root
                .read("proc/net/dev")
                .map_err(Error::read("proc/net/dev"))?,
            Err(source) => return Err(Error::read(path)(source)),
        };
        parse(&text).ok_or_else(|| Error::parse(path))
    }
}

/// Two lines of headings, then a name, a colon, eight columns received and eight sent.
pub(crate) fn parse(text: &str) -> Option<Vec<InterfaceCounters>> {
    text.lines().skip(2).map(line).collect()
}

fn line(line: &str) -> Option<InterfaceCounters> {
    // A name may hold a colon itself (`eth0:1`); the counters hold none.
    let (name, counters) = line.rsplit_once(':')?;
    let columns: Option<Vec<u64>> = counters
        .split_ascii_whitespace()
        .map(|column| column.parse().ok())
        .collect();
    let columns = columns.filter(|columns| columns.len() >= 16)?;
    let direction = |first: usize| DirectionCounters {
        bytes: columns[first],
        packets: columns[first + 1],
        errors: columns[first + 2],
        dropped: columns[first + 3],
    };
    let interface = name.trim().to_owned();
    Some(InterfaceCounters {
        interface,
        receive: direction(0),
        transmit: direction(8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_may_touch_the_colon() {
        let text = "a\nb\n  eth0:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let interfaces = parse(text).expect("well formed");
        assert_eq!(interfaces[0].interface, "eth0");
        assert_eq!(
            (interfaces[0].receive.bytes, interfaces[0].transmit.bytes),
            (1, 9)
        );
        assert_eq!(parse("a\nb\neth0: 1 2 3\n"), None);
        assert_eq!(
            parse("a\nb\neth0: 1 2 3 x 5 6 7 8 9 10 11 12 13 14 15 16\n"),
            None
        );
    }
}
