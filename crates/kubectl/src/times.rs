//! Times as a person writes and reads them: local, with the zone named.

use anyhow::{Context as _, anyhow};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use nodestats_wire::Timestamp;

/// Reads a time: local where it names no zone. The text sent to the server is RFC 3339.
pub(crate) fn parse(text: &str, zone: &TimeZone) -> anyhow::Result<Timestamp> {
    let text = text.trim();
    // "Z" directly behind date and time, also with a blank before it.
    let compact = text
        .strip_suffix(" Z")
        .map_or_else(|| text.to_owned(), |text| format!("{text}Z"));
    // A time with a zone first: as a local one its offset would be passed over.
    let with_zone = compact.parse::<jiff::Timestamp>().is_ok();
    // Hours and minutes suffice for a person.
    if !with_zone && let Ok(local) = compact.parse::<DateTime>() {
        let time = zone
            .to_timestamp(local)
            .with_context(|| format!("{text:?} does not exist here"))?;
        return Timestamp::from_micros(time.as_microsecond())
            .ok_or_else(|| anyhow!("{text:?} is before 1970"));
    }
    Ok(compact.parse::<Timestamp>()?)
}

/// The zone's name and what it is at `time`, such as `Europe/Berlin, +01:00`.
pub(crate) fn zone_name(zone: &TimeZone, time: Timestamp) -> String {
    let offset = zone.to_offset(time.jiff());
    if offset == jiff::tz::Offset::UTC {
        return "UTC".to_owned();
    }
    match zone.iana_name() {
        Some(name) => format!("{name}, {offset}"),
        None => format!("UTC{offset}"),
    }
}

/// `YYYY-MM-DD HH:MM:SS` in the zone.
pub(crate) fn local(zone: &TimeZone, time: Timestamp) -> String {
    zone.to_datetime(time.jiff())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// Reads a key of a history answer, which is UTC.
pub(crate) fn key(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(hours: i8) -> TimeZone {
        TimeZone::fixed(jiff::tz::offset(hours))
    }

    #[test]
    fn a_time_without_zone_is_local() {
        let sent = |text, hours| parse(text, &zone(hours)).map(|time| time.to_string()).ok();
        let utc = Some("2026-03-01T12:45:00Z".to_owned());
        assert_eq!(sent("2026-03-01 13:45", 1), utc);
        assert_eq!(sent("2026-03-01 13:45:00", 1), utc);
        assert_eq!(sent("2026-03-01 12:45:00Z", 1), utc);
        assert_eq!(sent("2026-03-01 12:45:00 Z", 1), utc);
        assert_eq!(sent("2026-03-01T07:45:00-05:00", 1), utc);
        assert_eq!(sent("1772369100", 1), utc);
        assert_eq!(sent("yesterday", 1), None);
    }

    #[test]
    fn times_are_shown_in_the_zone_that_is_named() {
        let time = parse("2026-03-01 12:45:00Z", &TimeZone::UTC).expect("valid");
        assert_eq!(local(&zone(1), time), "2026-03-01 13:45:00");
        assert_eq!(zone_name(&TimeZone::UTC, time), "UTC");
        assert_eq!(zone_name(&zone(1), time), "UTC+01");
    }
}
