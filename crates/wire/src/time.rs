//! Points in time as they stand in queries, bodies and answers.
//!
//! A time without a zone is UTC here. Who means another zone (the plugin, for a person) resolves
//! it before it gets to this type.

use std::fmt;
use std::str::FromStr;

use jiff::fmt::temporal::DateTimePrinter;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time, in microseconds since 1970-01-01 00:00:00 UTC, up to the year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// A text that is no time, or one outside the years 1970 to 9999.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a time: write YYYY-MM-DD HH:MM:SS (UTC), RFC 3339 such as \
     2026-03-01T13:45:00Z or 2026-03-01T14:45:00+01:00 (a + in a URL is %2B), or seconds since 1970"
)]
pub struct ParseError(String);

const MICROS: i64 = 1_000_000;
/// How keys are written: each entry of a history has one, and a format of one's own takes several times as long.
const KEY: DateTimePrinter = DateTimePrinter::new().separator(b' ').precision(Some(0));
/// 9999-12-30 22:00:00 UTC, the last second that jiff holds.
const LAST_SECOND: i64 = 253_402_207_200;

impl Timestamp {
    /// The first time that can be named.
    pub const MIN: Self = Self(0);
    /// The last time that can be named.
    pub const MAX: Self = Self(LAST_SECOND * MICROS);

    /// From microseconds since 1970; `None` outside [`Self::MIN`] to [`Self::MAX`].
    pub fn from_micros(micros: i64) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0)
            .contains(&micros)
            .then_some(Self(micros))
    }

    /// From seconds since 1970, rounded to microseconds; `None` outside the range.
    pub fn from_seconds(seconds: f64) -> Option<Self> {
        seconds
            .is_finite()
            .then(|| (seconds * MICROS as f64).round())
            .and_then(|micros| {
                (micros >= 0.0 && micros <= Self::MAX.0 as f64).then_some(Self(micros as i64))
            })
    }

    /// The time that this system clock reading means; clamped to the range.
    pub fn from_system(time: std::time::SystemTime) -> Self {
        let since = time
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self(
            i64::try_from(since.as_micros())
                .unwrap_or(i64::MAX)
                .clamp(Self::MIN.0, Self::MAX.0),
        )
    }

    /// Microseconds since 1970.
    pub fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970, rounded down.
    pub fn second(self) -> i64 {
        self.0.div_euclid(MICROS)
    }

    /// Seconds since 1970 with their fraction.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / MICROS as f64
    }

    /// Seconds from `earlier` to this time; negative where `earlier` is later.
    pub fn seconds_since(self, earlier: Self) -> f64 {
        (self.0 - earlier.0) as f64 / MICROS as f64
    }

    /// This time moved by so many microseconds, held within the range.
    #[must_use]
    pub fn plus_micros(self, micros: i64) -> Self {
        Self(
            self.0
                .saturating_add(micros)
                .clamp(Self::MIN.0, Self::MAX.0),
        )
    }

    /// The start of the step of `step_micros` that this time lies in, counted from 1970.
    #[must_use]
    pub fn floor_to(self, step_micros: i64) -> Self {
        Self(self.0 - self.0.rem_euclid(step_micros.max(1)))
    }

    /// `YYYY-MM-DD HH:MM:SS`, the key of a history answer, without the fraction.
    pub fn to_key(self) -> String {
        KEY.datetime_to_string(&jiff::tz::Offset::UTC.to_datetime(self.jiff()))
    }

    /// The key with its fraction: three digits, or six where the microseconds need them.
    pub fn to_precise_key(self) -> String {
        let micros = self.0.rem_euclid(MICROS);
        if micros % 1000 == 0 {
            format!("{}.{:03}", self.to_key(), micros / 1000)
        } else {
            format!("{}.{micros:06}", self.to_key())
        }
    }

    /// This time as jiff's, for calendars and zones.
    pub fn jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.0).expect("the range is within jiff's")
    }
}

/// RFC 3339 in UTC, with a fraction only where there is one.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.jiff())
    }
}

impl FromStr for Timestamp {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let trimmed = text.trim();
        let parsed = if let Ok(seconds) = trimmed.parse::<f64>() {
            Self::from_seconds(seconds)
        } else if let Ok(time) = trimmed.parse::<jiff::Timestamp>() {
            Self::from_micros(time.as_microsecond())
        } else if let Ok(time) = trimmed.parse::<jiff::civil::DateTime>() {
            jiff::tz::TimeZone::UTC
                .to_timestamp(time)
                .ok()
                .and_then(|time| Self::from_micros(time.as_microsecond()))
        } else {
            None
        };
        // The text is a client's: what is shown of it is short.
        parsed.ok_or_else(|| ParseError(text.chars().take(40).collect()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time: YYYY-MM-DD HH:MM:SS (UTC), RFC 3339 or seconds since 1970")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_f64<E: serde::de::Error>(self, seconds: f64) -> Result<Timestamp, E> {
                Timestamp::from_seconds(seconds)
                    .ok_or_else(|| E::custom(ParseError(seconds.to_string())))
            }
            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Timestamp, E> {
                self.visit_f64(seconds as f64)
            }
            fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<Timestamp, E> {
                self.visit_f64(seconds as f64)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A time. Answers carry RFC 3339 in UTC; requests may also write \
                            YYYY-MM-DD HH:MM:SS (UTC) or seconds since 1970.",
            "type": ["string", "number"],
            "examples": ["2026-03-01T13:45:00Z"],
        })
    }
}

/// A text that is no span of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a span of time: write a number and s, m, h or d, such as 10s, 5m or 14d")]
pub struct ParseSpanError(String);

/// Reads a span such as `500ms`, `10s`, `5m`, `36h`, `14d`, or plain seconds.
pub fn parse_span(text: &str) -> Result<std::time::Duration, ParseSpanError> {
    let error = || ParseSpanError(text.chars().take(40).collect());
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(trimmed.len());
    let number: f64 = trimmed[..split].trim().parse().map_err(|_| error())?;
    let unit = match &trimmed[split..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        "w" => 604_800.0,
        _ => return Err(error()),
    };
    let seconds = number * unit;
    // Three hundred years: more than any history, less than what overflows.
    if !(seconds > 0.0 && seconds <= 1e10) {
        return Err(error());
    }
    Ok(std::time::Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect(text)
    }

    #[test]
    fn all_three_forms_name_the_same_moment() {
        let expected = Timestamp::from_micros(1_646_142_300_000_000).expect("in range");
        assert_eq!(time("2022-03-01 13:45:00"), expected);
        assert_eq!(time("2022-03-01T13:45:00"), expected);
        assert_eq!(time("2022-03-01T13:45:00Z"), expected);
        assert_eq!(time("2022-03-01T15:45:00+02:00"), expected);
        assert_eq!(time("1646142300"), expected);
        assert_eq!(time(" 1646142300.0 "), expected);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "yesterday",
            "2022-13-01 00:00:00",
            "-5",
            "NaN",
            "inf",
            "1e300",
            "9e15",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn keys_have_a_fraction_on_request_only() {
        let quarter = time("2022-03-01 13:45:00.25");
        assert_eq!(quarter.to_key(), "2022-03-01 13:45:00");
        assert_eq!(quarter.to_precise_key(), "2022-03-01 13:45:00.250");
        assert_eq!(
            quarter.plus_micros(1).to_precise_key(),
            "2022-03-01 13:45:00.250001"
        );
        assert_eq!(quarter.to_string(), "2022-03-01T13:45:00.25Z");
        assert_eq!(time(&quarter.to_precise_key()), quarter);
        assert_eq!(time(&Timestamp::MAX.to_key()), Timestamp::MAX);
    }

    #[test]
    fn spans_have_units() {
        let seconds = |text| parse_span(text).map(|span| span.as_secs_f64());
        assert_eq!(seconds("10s"), Ok(10.0));
        assert_eq!(seconds("14d"), Ok(14.0 * 86_400.0));
        assert_eq!(seconds("36500d"), Ok(36_500.0 * 86_400.0));
        assert_eq!(seconds("250ms"), Ok(0.25));
        assert_eq!(seconds("90"), Ok(90.0));
        for text in ["", "d", "0s", "-1s", "10x", "1e99d", "10 s m"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
    }
}
