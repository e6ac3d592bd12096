//! A sample as history keeps it: an agent's counters, in a frame or in a sealed block, or a third party's
//! reading of gauges.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nodestats_wire::Timestamp;
use nodestats_wire::v1::Reading;

use crate::block::{self, Block, Entry, Sealer};
use crate::frame::{self, Frame, FrameId};
use crate::gap::Edge;
use crate::pack;
use crate::sample::{Host, Note, Sample};

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
    /// It stands in a damaged block.
    #[error("the sample cannot be read from its block")]
    Block(#[source] block::Error),
    /// It is a damaged reading.
    #[error("the stored reading cannot be unpacked")]
    Unpack(#[source] std::io::Error),
    /// It is a reading of another form.
    #[error("the stored reading cannot be read")]
    Reading(#[source] serde_json::Error),
    /// It has no time.
    #[error("the stored reading has no time")]
    Time,
}

/// What makes a sample of one node count once, in the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleKey {
    /// When it was taken.
    pub time: Timestamp,
    /// The push that brought it; `None` for a reading, of which a time has one.
    pub push: Option<FrameId>,
}

/// Which parts of samples a question needs beside the host's figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wanted {
    /// None, and of the host's its clock, how much memory it has, its load and what its CPUs did.
    Cpu,
    /// None.
    #[default]
    Host,
    /// The processes of one pid, and of the host's figures its clock and how much memory it has.
    Process(u32),
    /// All processes.
    Processes,
    /// All processes, control groups, and what is told beside figures.
    All,
}

/// A sample as it was stored. Cloning is cheap.
#[derive(Debug, Clone)]
pub enum Stored {
    /// Counters from an agent.
    Counters(Counters),
    /// Gauges from a third party, given back as they came.
    Gauges(Gauges),
}

/// A third party's reading.
#[derive(Debug, Clone)]
pub struct Gauges {
    /// When it was taken.
    pub time: Timestamp,
    place: GaugesPlace,
}

#[derive(Debug, Clone)]
enum GaugesPlace {
    Own(Arc<Reading>),
    /// The number of the sample in a block.
    Block(Arc<Block>, usize),
}

/// An agent's counters, whose parts are unpacked on demand.
#[derive(Debug, Clone)]
pub struct Counters {
    /// When they were taken, by the agent's wall clock.
    pub time: Timestamp,
    /// What makes them count once.
    pub id: FrameId,
    /// The time from this sample to the next one that was meant; `None` where it is not known.
    pub interval: Option<Duration>,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// A frame's own bytes.
    Frame(Bytes),
    /// The number of the sample in a block.
    Block(Arc<Block>, usize),
}

/// The stored form of an agent's frame (its own encoded bytes).
pub fn from_frame(frame: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + frame.len());
    bytes.push(FRAME);
    bytes.extend_from_slice(frame);
    bytes
}

/// The frame of a sample at rest, as [`from_frame`] took it; `None` of a reading.
pub fn frame_of(stored: &Bytes) -> Option<Bytes> {
    (stored.first() == Some(&FRAME)).then(|| stored.slice(1..))
}

/// The stored form of a reading.
pub fn from_reading(reading: &Reading) -> Vec<u8> {
    let json = serde_json::to_vec(reading).expect("a reading is plain data");
    let mut bytes = vec![READING];
    bytes.extend(pack::pack(&json));
    bytes
}

/// Reads what [`from_frame`] or [`from_reading`] gave.
pub fn read(bytes: &Bytes) -> Result<Stored, Error> {
    match bytes.first() {
        Some(&FRAME) => {
            let own = bytes.slice(1..);
            let frame = Frame::read(&own).map_err(Error::Frame)?;
            Ok(Stored::Counters(Counters {
                time: frame.time,
                id: frame.id,
                interval: frame.interval,
                place: Place::Frame(own),
            }))
        }
        Some(&READING) => {
            let json = unpack_reading(&bytes[1..])?;
            let reading: Reading = serde_json::from_slice(&json).map_err(Error::Reading)?;
            let time = reading.time.ok_or(Error::Time)?;
            Ok(Stored::Gauges(Gauges {
                time,
                place: GaugesPlace::Own(Arc::new(reading)),
            }))
        }
        _ => Err(Error::Kind),
    }
}

fn unpack_reading(packed: &[u8]) -> Result<Vec<u8>, Error> {
    let claimed = zstd::zstd_safe::get_frame_content_size(packed)
        .ok()
        .flatten();
    let capacity = claimed.map_or(READING_LIMIT, |size| {
        size.min(READING_LIMIT as u64) as usize
    });
    pack::unpack(packed, capacity).map_err(Error::Unpack)
}

/// A sample of a block; `None` where it has not so many.
pub fn of_block(block: &Arc<Block>, number: usize) -> Option<Stored> {
    let header = block.header(number)?;
    let block = Arc::clone(block);
    Some(match header.push {
        Some(id) => Stored::Counters(Counters {
            time: header.time,
            id,
            interval: header.interval,
            place: Place::Block(block, number),
        }),
        None => Stored::Gauges(Gauges {
            time: header.time,
            place: GaugesPlace::Block(block, number),
        }),
    })
}

impl Stored {
    /// When the sample was taken.
    pub fn time(&self) -> Timestamp {
        match self {
            Self::Counters(counters) => counters.time,
            Self::Gauges(gauges) => gauges.time,
        }
    }

    /// What makes it count once.
    pub fn key(&self) -> SampleKey {
        let push = match self {
            Self::Counters(counters) => Some(counters.id),
            Self::Gauges(_) => None,
        };
        SampleKey {
            time: self.time(),
            push,
        }
    }

    /// An agent's counters.
    pub fn counters(&self) -> Option<&Counters> {
        match self {
            Self::Counters(counters) => Some(counters),
            Self::Gauges(_) => None,
        }
    }

    /// Adds it to a block, and gives what was unpacked of an agent's counters.
    pub fn seal(&self, sealer: &mut Sealer) -> Result<Option<Entry>, Error> {
        match self {
            Self::Counters(counters) => {
                let entry = Entry {
                    time: counters.time,
                    id: counters.id,
                    interval: counters.interval,
                    sample: counters.sample(Wanted::All)?,
                };
                sealer.add(&entry);
                Ok(Some(entry))
            }
            Self::Gauges(gauges) => {
                let json = serde_json::to_string(&*gauges.reading()?).map_err(Error::Reading)?;
                sealer.add_reading(gauges.time, json);
                Ok(None)
            }
        }
    }
}

impl Gauges {
    /// The reading as it was put.
    pub fn reading(&self) -> Result<Arc<Reading>, Error> {
        match &self.place {
            GaugesPlace::Own(reading) => Ok(Arc::clone(reading)),
            GaugesPlace::Block(block, number) => {
                let reading = block.reading(*number).map_err(Error::Block)?;
                Ok(Arc::new(reading))
            }
        }
    }
}

impl Counters {
    /// What the sample says of the time after it; `usual` is the interval where it says none.
    pub fn edge(&self, usual: Option<Duration>) -> Edge {
        Edge {
            time: self.time,
            id: self.id,
            interval: self.interval.or(usual),
        }
    }

    /// The host's figures.
    pub fn host(&self) -> Result<Host, Error> {
        match &self.place {
            Place::Frame(frame) => of_frame(frame, Frame::host),
            Place::Block(block, number) => {
                let sample = block.sample(*number, Wanted::Host);
                Ok(sample.map_err(Error::Block)?.host)
            }
        }
    }

    /// What the agent had to tell beside figures.
    pub fn notes(&self) -> Result<Vec<Note>, Error> {
        match &self.place {
            Place::Frame(frame) => of_frame(frame, Frame::notes),
            Place::Block(block, number) => block.notes(*number).map_err(Error::Block),
        }
    }

    /// The sample as far as it is wanted, and more where that costs nothing. Of a block those parts are there
    /// that were wanted of it.
    pub fn sample(&self, wanted: Wanted) -> Result<Sample, Error> {
        let frame = match &self.place {
            Place::Frame(frame) => frame,
            Place::Block(block, number) => {
                return block.sample(*number, wanted).map_err(Error::Block);
            }
        };
        if matches!(wanted, Wanted::Cpu | Wanted::Host) {
            return Ok(Sample {
                host: self.host()?,
                ..Sample::default()
            });
        }
        let mut sample = of_frame(frame, Frame::sample)?;
        if let Wanted::Process(pid) = wanted {
            sample.processes.retain(|process| process.pid == pid);
        }
        Ok(sample)
    }
}

fn of_frame<'a, T>(
    frame: &'a [u8],
    take: impl FnOnce(&Frame<'a>) -> Result<T, frame::Error>,
) -> Result<T, Error> {
    let frame = Frame::read(frame).map_err(Error::Frame)?;
    take(&frame).map_err(Error::Frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_comes_back_as_it_was_put() {
        let reading = Reading {
            time: Timestamp::from_micros(5),
            memory_usage_percent: Some(32.0),
            ..Reading::default()
        };
        let bytes = Bytes::from(from_reading(&reading));
        let Stored::Gauges(gauges) = read(&bytes).expect("well formed") else {
            panic!("no reading");
        };
        assert_eq!(gauges.time.micros(), 5);
        assert_eq!(*gauges.reading().expect("well formed"), reading);
        let read = |bytes: &'static [u8]| read(&Bytes::from_static(bytes));
        assert!(matches!(read(&[9]), Err(Error::Kind)));
        assert!(matches!(read(&[]), Err(Error::Kind)));
        assert!(super::read(&bytes.slice(..bytes.len() - 1)).is_err());
    }
}
