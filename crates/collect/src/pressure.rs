//! Pressure stall information, `/proc/pressure` (Documentation/accounting/psi.rst).

use std::io::ErrorKind;

use nodestats_core::sample::{Pressure as Figures, Stall, StallLine};

use crate::collector::{Collector, Error};
use crate::root::HostRoot;

pub(crate) struct Pressure;

impl Collector for Pressure {
    /// `None` where the kernel has none: before 4.20, or switched off.
    type Output = Option<Figures>;
    const NAME: &'static str = "pressure";

    fn collect(&mut self, root: &HostRoot) -> Result<Option<Figures>, Error> {
        let resource = |name: &str| {
            let path = format!("proc/pressure/{name}");
            match root.read(&path) {
                Ok(text) => parse(&text).map(Some).ok_or_else(|| Error::parse(&path)),
                // With psi=0 the files are there and refuse to be read (EOPNOTSUPP).
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) =>
                {
                    Ok(None)
                }
                Err(source) => Err(Error::Read { path, source }),
            }
        };
        let figures = Figures {
            cpu: resource("cpu")?,
            memory: resource("memory")?,
            io: resource("io")?,
        };
        Ok((figures != Figures::default()).then_some(figures))
    }
}

pub(crate) fn parse(text: &str) -> Option<Stall> {
    let line = |kind: &str| text.lines().find_map(|line| line.strip_prefix(kind));
    let full = match line("full ") {
        Some(values) => Some(stall(values)?),
        None => None,
    };
    Some(Stall {
        some: stall(line("some ")?)?,
        full,
    })
}

fn stall(values: &str) -> Option<StallLine> {
    let value = |key: &str| {
        values
            .split_ascii_whitespace()
            .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    };
    let average = |key| value(key)?.parse().ok();
    Some(StallLine {
        averages: [average("avg10")?, average("avg60")?, average("avg300")?],
        total_micros: value("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_full_is_optional() {
        let some = "some avg10=0.12 avg60=0.01 avg300=0.00 total=123\n";
        let stall = parse(some).expect("well formed");
        assert_eq!(
            (stall.some.averages[0], stall.some.total_micros),
            (0.12, 123)
        );
        assert_eq!(stall.full, None);
        assert!(parse("").is_none());
        assert!(parse("some avg10=0.12\n").is_none());
    }
}
