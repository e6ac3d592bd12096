//! `/proc/loadavg`.

use crate::collector::{Collector, Error};
use crate::root::HostRoot;

pub(crate) struct Load;

impl Collector for Load {
    type Output = [f64; 3];
    const NAME: &'static str = "load";

    fn collect(&mut self, root: &HostRoot) -> Result<[f64; 3], Error> {
        let path = "proc/loadavg";
        let text = root.read(path).map_err(Error::read(path))?;
        parse(&text).ok_or_else(|| Error::parse(path))
    }
}

fn parse(text: &str) -> Option<[f64; 3]> {
    let mut values = text
        .split_ascii_whitespace()
        .map(|value| value.parse::<f64>().ok());
    Some([values.next()??, values.next()??, values.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_numbers_or_nothing() {
        assert_eq!(
            parse("0.52 0.58 0.59 1/432 12345\n"),
            Some([0.52, 0.58, 0.59])
        );
        assert_eq!(parse("0.52 x 0.59"), None);
        assert_eq!(parse("0.52"), None);
    }
}
