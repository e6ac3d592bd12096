//! A sample as history keeps it: an agent's frame of counters, or a third party's reading of
//! gauges.

use nodestats_wire::Timestamp;
use nodestats_wire::v1::Reading;

use crate::frame::{self, Frame};

/// First byte of an agent's frame at rest.
const FRAME: u8 = 1;
/// First byte of a reading at rest: zstd of its JSON.
const READING: u8 = 2;
/// Most bytes that a reading may unpack to; more than a request's body can hold.
const READING_LIMIT: usize = 64 << 20;

/// Why bytes at rest are no sample.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The first byte says nothing known.
    #[error("the stored sample is of an unknown kind")]
    Kind,
    /// It is a damaged frame.
    #[error("the stored frame cannot be read")]
    Frame(#[source] frame::Error),
    /// It is a damaged reading.
    #[error("the stored reading cannot be unpacked")]
    Unpack(#[source] std::io::Error),
    /// It is a reading of another form.
    #[error("the stored reading cannot be read")]
    Reading(#[source] serde_json::Error),
}

/// A sample as it was stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored<'a> {
    /// Counters from an agent.
    Frame(Frame<'a>),
    /// Gauges from a third party, given back as they came.
    Reading(Box<Reading>),
}

/// The stored form of an agent's frame (its own encoded bytes).
pub fn from_frame(frame: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + frame.len());
    bytes.push(FRAME);
    bytes.extend_from_slice(frame);
    bytes
}

/// The stored form of a reading.
pub fn from_reading(reading: &Reading) -> Vec<u8> {
    let json = serde_json::to_vec(reading).expect("a reading is plain data");
    let mut bytes = vec![READING];
    bytes.extend(zstd::bulk::compress(&json, 3).expect("compressing into memory cannot fail"));
    bytes
}

/// Reads what [`from_frame`] or [`from_reading`] gave.
pub fn read(bytes: &[u8]) -> Result<Stored<'_>, Error> {
    match bytes.split_first() {
        Some((&FRAME, frame)) => Frame::read(frame).map(Stored::Frame).map_err(Error::Frame),
        Some((&READING, packed)) => {
            let claimed = zstd::zstd_safe::get_frame_content_size(packed)
                .ok()
                .flatten();
            let capacity = claimed.map_or(READING_LIMIT, |size| {
                size.min(READING_LIMIT as u64) as usize
            });
            let json = zstd::bulk::decompress(packed, capacity).map_err(Error::Unpack)?;
            let reading = serde_json::from_slice(&json).map_err(Error::Reading)?;
            Ok(Stored::Reading(Box::new(reading)))
        }
        _ => Err(Error::Kind),
    }
}

impl Stored<'_> {
    /// When the sample was taken; `None` for a reading that was stored without a time.
    pub fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Frame(frame) => Some(frame.time),
            Self::Reading(reading) => reading.time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_comes_back_as_it_was_put() {
        let reading = Reading {
            memory_usage_percent: Some(32.0),
            ..Reading::default()
        };
        let bytes = from_reading(&reading);
        assert_eq!(
            read(&bytes).expect("well formed"),
            Stored::Reading(Box::new(reading))
        );
        assert!(matches!(read(&[9]), Err(Error::Kind)));
        assert!(matches!(read(&[]), Err(Error::Kind)));
        assert!(read(&bytes[..bytes.len() - 1]).is_err());
    }
}
