//! A span of time as people write it in a resource: a number and a unit.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use nodestats_wire::time::parse_span;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span such as `10s`, `5m`, `1h` or `14d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// The units that a resource takes, in seconds, the largest first.
const UNITS: [(u64, char); 4] = [(86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')];

impl Span {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// So many days.
    pub const fn from_days(days: u64) -> Self {
        Self::from_secs(days * 86_400)
    }

    /// In whole seconds.
    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let fits = |(unit, _): &&(u64, char)| seconds.is_multiple_of(*unit);
        let (unit, letter) = UNITS.iter().find(fits).unwrap_or(&(1, 's'));
        write!(f, "{}{letter}", seconds / unit)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        parse_span(&text).map(Self).map_err(de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 8,
            "pattern": "^[1-9][0-9]{0,5}(s|m|h|d)$",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_unit_that_fits_is_written() {
        let written: Vec<String> = [1, 10, 60, 90, 3600, 86_400, 1_209_600]
            .map(|seconds| Span::from_secs(seconds).to_string())
            .to_vec();
        assert_eq!(written, ["1s", "10s", "1m", "90s", "1h", "1d", "14d"]);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(seconds in 1u64..100_000_000) {
            let span = Span::from_secs(seconds);
            let json = serde_json::to_string(&span).expect("plain data");
            prop_assert_eq!(serde_json::from_str::<Span>(&json).expect("reads back"), span);
        }
    }
}
