//! The agent's push: a sample in a compact binary form, with what makes it count once.
//!
//! A frame is `length (u32) | version (u8) | time | agent start | sequence | interval (u32,
//! milliseconds) | host part | process part | cgroup part | notes part`, little-endian; each part is a
//! length and a zstd frame of the postcard encoding of [`Host`], of the processes, of the control
//! groups, or of the notes. The parts are apart so that a question about the host never unpacks a
//! process table. Version 2 has neither interval nor notes and less of a process,
//! version 1 no cgroup part either. Frames
//! stand one after another in a push, and between them [`Delta`]s, which say only what differs from a
//! frame.

pub mod delta;

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::time::Duration;

use nodestats_wire::Timestamp;
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

pub use delta::Delta;

use crate::pack;
use crate::sample::old::ProcessBefore3;
use crate::sample::{Cgroup, Host, Note, PROCESSES, Process, Sample, cgroup, note, values};

/// The version that this code writes.
pub const VERSION: u8 = 3;
/// The oldest version that it reads.
const OLDEST: u8 = 1;
/// The first version with control groups, and the first with an interval and notes.
const WITH_CGROUPS: u8 = 2;
const WITH_NOTES: u8 = 3;
/// Bytes before the parts, the leading length included.
const HEADER: usize = 4 + 1 + 8 + 16 + 8 + 4;
/// Most bytes that one part may unpack to: 16 MiB hold over 60,000 processes, and what a client
/// sends must not make the server allocate without bound.
const PART_LIMIT: usize = 16 << 20;

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes end in the middle of a frame.
    #[error("the frame is cut off")]
    Truncated,
    /// Another version of the form.
    #[error("the frame has version {0}; this program reads versions {OLDEST} to {VERSION}")]
    Version(u8),
    /// A time outside the years 1970 to 9999.
    #[error("the frame has an impossible time")]
    Time,
    /// The compressed part is damaged, or larger than 16 MiB.
    #[error("a part of the frame cannot be unpacked")]
    Unpack(#[source] std::io::Error),
    /// The unpacked part is no sample.
    #[error("a part of the frame cannot be read")]
    Decode(#[source] postcard::Error),
    /// More processes, or more of something else, than any host has.
    #[error("the frame has more processes, or a longer list of something else, than any host has")]
    Lists,
    /// More groups, or more of one group, than any host has.
    #[error("the frame has more control groups, or more in one of them, than any host has")]
    Groups,
    /// More notes, or a longer one, than an agent writes.
    #[error("the frame has more notes, or a longer one, than an agent writes")]
    Notes,
    /// A delta of another frame than the one that was given.
    #[error("the delta is one of another frame")]
    Key,
    /// There are bytes after the last part.
    #[error("the frame has {0} bytes too many")]
    Surplus(usize),
}

/// What makes a push count once: which start of which agent, and its number since then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId {
    /// Made anew at each start of an agent.
    pub agent_start: Uuid,
    /// 0, 1, 2, … from then on.
    pub sequence: u64,
}

/// An encoded frame whose header has been read; its parts are unpacked on demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'a> {
    /// When the sample was taken, by the agent's wall clock.
    pub time: Timestamp,
    /// What makes it count once.
    pub id: FrameId,
    /// The time from this sample to the next one that was meant; `None` where it is not known.
    pub interval: Option<Duration>,
    host: &'a [u8],
    processes: &'a [u8],
    /// `None` of version 1.
    cgroups: Option<&'a [u8]>,
    /// `None` of versions 1 and 2.
    notes: Option<&'a [u8]>,
}

/// Encodes a sample; the result is what [`Frame::split_first`] takes. `interval` is the time to the
/// next one, where that is known.
pub fn encode(
    time: Timestamp,
    id: FrameId,
    interval: Option<Duration>,
    sample: &Sample,
) -> Vec<u8> {
    let host = pack(&sample.host);
    let processes = pack(&sample.processes);
    let cgroups = pack(&sample.cgroups);
    let notes = pack(&sample.notes);
    let parts = [host, processes, cgroups, notes];
    let header = Header {
        version: VERSION,
        time,
        id,
        interval,
    };
    join(&header, &[], &parts)
}

/// What stands at the begin of a frame.
struct Header {
    version: u8,
    time: Timestamp,
    id: FrameId,
    /// In milliseconds there; 0 where it is not known.
    interval: Option<Duration>,
}

/// The bytes of a frame: its header, what else its version has there, and its parts.
fn join(header: &Header, more: &[u8], parts: &[Vec<u8>]) -> Vec<u8> {
    let interval = header.interval.map_or(0, |interval| interval.as_millis());
    let of_parts = parts.iter().map(|part| 4 + part.len());
    let length = HEADER + more.len() + of_parts.sum::<usize>();
    let mut frame = Vec::with_capacity(length);
    frame.extend_from_slice(&(length as u32).to_le_bytes());
    frame.push(header.version);
    frame.extend_from_slice(&header.time.micros().to_le_bytes());
    frame.extend_from_slice(header.id.agent_start.as_bytes());
    frame.extend_from_slice(&header.id.sequence.to_le_bytes());
    frame.extend_from_slice(&u32::try_from(interval).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend_from_slice(more);
    for part in parts {
        frame.extend_from_slice(&(part.len() as u32).to_le_bytes());
        frame.extend_from_slice(part);
    }
    frame
}

/// A frame or a delta, as they stand in a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed<'a> {
    /// A frame.
    Whole(Frame<'a>),
    /// What differs from a frame.
    Delta(Delta<'a>),
}

impl<'a> Pushed<'a> {
    /// Reads the first frame or delta of `bytes`; also returns its own bytes and the rest.
    pub fn split_first(bytes: &'a [u8]) -> Result<(Self, &'a [u8], &'a [u8]), Error> {
        let (own, rest) = split(bytes)?;
        let pushed = match own.get(4) {
            Some(&delta::VERSION) => Self::Delta(Delta::read(own)?),
            _ => Self::Whole(Frame::read(own)?),
        };
        Ok((pushed, own, rest))
    }

    /// As [`Frame::unpacked_bytes`].
    pub fn unpacked_bytes(&self) -> usize {
        match self {
            Self::Whole(frame) => frame.unpacked_bytes(),
            Self::Delta(delta) => delta.unpacked_bytes(),
        }
    }
}

/// The first frame's own bytes, and the rest.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let length = u32::from_le_bytes(*bytes.first_chunk().ok_or(Error::Truncated)?) as usize;
    bytes.split_at_checked(length).ok_or(Error::Truncated)
}

impl<'a> Frame<'a> {
    /// Reads the first frame of `bytes`; also returns its own bytes and the rest.
    pub fn split_first(bytes: &'a [u8]) -> Result<(Self, &'a [u8], &'a [u8]), Error> {
        let (own, rest) = split(bytes)?;
        Ok((Self::read(own)?, own, rest))
    }

    /// Reads the one frame that `bytes` are.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader(bytes);
        let (length, header) = reader.header(OLDEST..=VERSION)?;
        let host = reader.part()?;
        let processes = reader.part()?;
        let mut part_since = |first| (header.version >= first).then(|| reader.part()).transpose();
        let cgroups = part_since(WITH_CGROUPS)?;
        let notes = part_since(WITH_NOTES)?;
        if length > bytes.len() {
            return Err(Error::Truncated);
        }
        if !reader.0.is_empty() {
            return Err(Error::Surplus(reader.0.len()));
        }
        Ok(Self {
            time: header.time,
            id: header.id,
            interval: header.interval,
            host,
            processes,
            cgroups,
            notes,
        })
    }

    /// At most so many bytes do its parts unpack to, by what they say of themselves; beyond it they
    /// cannot be unpacked.
    pub fn unpacked_bytes(&self) -> usize {
        let parts = [
            Some(self.host),
            Some(self.processes),
            self.cgroups,
            self.notes,
        ];
        parts.into_iter().flatten().map(capacity).sum()
    }

    /// Unpacks the host's figures.
    pub fn host(&self) -> Result<Host, Error> {
        decode_host(&plain(self.host)?)
    }

    /// Unpacks the processes.
    pub fn processes(&self) -> Result<Vec<Process>, Error> {
        let plain = plain(self.processes)?;
        if self.notes.is_some() {
            return decode_processes(&plain);
        }
        let old: Vec<ProcessBefore3> = decode_processes(&plain)?;
        Ok(old.into_iter().map(Process::from).collect())
    }

    /// Unpacks the control groups.
    pub fn cgroups(&self) -> Result<Option<Vec<Cgroup>>, Error> {
        match self.cgroups {
            Some(packed) => decode_cgroups(&plain(packed)?),
            None => Ok(None),
        }
    }

    /// Unpacks the notes.
    pub fn notes(&self) -> Result<Vec<Note>, Error> {
        match self.notes {
            Some(packed) => decode_notes(&plain(packed)?),
            None => Ok(Vec::new()),
        }
    }

    /// Looks whether all parts can be read, as [`Self::sample`] does, in a third of the time.
    pub fn check(&self) -> Result<Checked, Error> {
        let processes = if self.notes.is_some() {
            count_processes::<Process<&str>>(&plain(self.processes)?)?
        } else {
            count_processes::<ProcessBefore3>(&plain(self.processes)?)?
        };
        let (cgroups, notes) = (
            self.cgroups.map(plain).transpose()?,
            self.notes.map(plain).transpose()?,
        );
        check(
            &plain(self.host)?,
            processes,
            cgroups.as_deref(),
            notes.as_deref(),
        )
    }

    /// Unpacks all parts.
    pub fn sample(&self) -> Result<Sample, Error> {
        let mut sample = Sample {
            host: self.host()?,
            processes: self.processes()?,
            cgroups: self.cgroups()?,
            notes: self.notes()?,
        };
        sample.place_processes();
        Ok(sample)
    }
}

/// What is known of a frame that can be read whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Figures of its sample ([`Sample::values`]).
    pub values: u64,
    /// What it tells beside figures.
    pub notes: Vec<Note>,
}

/// Whether unpacked parts can be read: processes, which are most of a frame, are not made for that.
fn check(
    host: &[u8],
    processes: usize,
    cgroups: Option<&[u8]>,
    notes: Option<&[u8]>,
) -> Result<Checked, Error> {
    let cgroups = cgroups.map(decode_cgroups).transpose()?.flatten();
    Ok(Checked {
        values: values(&decode_host(host)?, processes, &cgroups.unwrap_or_default()),
        notes: notes.map(decode_notes).transpose()?.unwrap_or_default(),
    })
}

fn decode_host(plain: &[u8]) -> Result<Host, Error> {
    let host: Host = postcard::from_bytes(plain).map_err(Error::Decode)?;
    if host.is_plausible() {
        Ok(host)
    } else {
        Err(Error::Lists)
    }
}

fn decode_processes<P: DeserializeOwned>(plain: &[u8]) -> Result<Vec<P>, Error> {
    told_processes(plain)?;
    postcard::from_bytes(plain).map_err(Error::Decode)
}

/// How many processes there are, each of which was read and forgotten.
fn count_processes<'a, P: Deserialize<'a>>(plain: &'a [u8]) -> Result<usize, Error> {
    struct Count<P>(usize, PhantomData<P>);

    impl<'de, P: Deserialize<'de>> Deserialize<'de> for Count<P> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_seq(Self(0, PhantomData))
        }
    }

    impl<'de, P: Deserialize<'de>> Visitor<'de> for Count<P> {
        type Value = Self;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("processes")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut all: A) -> Result<Self, A::Error> {
            while all.next_element::<P>()?.is_some() {
                self.0 += 1;
            }
            Ok(self)
        }
    }

    told_processes(plain)?;
    let count: Count<P> = postcard::from_bytes(plain).map_err(Error::Decode)?;
    Ok(count.0)
}

/// As of the groups: counted before they are made.
fn told_processes(plain: &[u8]) -> Result<(), Error> {
    let (count, _) = postcard::take_from_bytes::<u64>(plain).map_err(Error::Decode)?;
    if count > PROCESSES as u64 {
        return Err(Error::Lists);
    }
    Ok(())
}

fn decode_cgroups(plain: &[u8]) -> Result<Option<Vec<Cgroup>>, Error> {
    // A group takes fifty times its bytes in memory: they are counted before they are made.
    if plain.first() == Some(&1) {
        let (count, _) = postcard::take_from_bytes::<u32>(&plain[1..]).map_err(Error::Decode)?;
        if count as usize > cgroup::GROUPS {
            return Err(Error::Groups);
        }
    }
    let groups: Option<Vec<Cgroup>> = postcard::from_bytes(plain).map_err(Error::Decode)?;
    if !groups.iter().flatten().all(Cgroup::is_plausible) {
        return Err(Error::Groups);
    }
    Ok(groups)
}

fn decode_notes(plain: &[u8]) -> Result<Vec<Note>, Error> {
    // As of the groups.
    let (count, _) = postcard::take_from_bytes::<u32>(plain).map_err(Error::Decode)?;
    if count as usize > note::NOTES || plain.len() > note::NOTES_BYTES {
        return Err(Error::Notes);
    }
    let notes: Vec<Note> = postcard::from_bytes(plain).map_err(Error::Decode)?;
    if !notes.iter().all(Note::is_plausible) {
        return Err(Error::Notes);
    }
    Ok(notes)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    fn time(&mut self) -> Result<Timestamp, Error> {
        let micros = i64::from_le_bytes(self.array()?);
        Timestamp::from_micros(micros).ok_or(Error::Time)
    }

    /// The length that a frame says it has, and its header, which is to be of one of these versions.
    fn header(&mut self, versions: RangeInclusive<u8>) -> Result<(usize, Header), Error> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        let [version] = self.array()?;
        if !versions.contains(&version) {
            return Err(Error::Version(version));
        }
        let time = self.time()?;
        let id = FrameId {
            agent_start: Uuid::from_bytes(self.array()?),
            sequence: u64::from_le_bytes(self.array()?),
        };
        let interval = match version {
            WITH_NOTES.. => u32::from_le_bytes(self.array()?),
            _ => 0,
        };
        let header = Header {
            version,
            time,
            id,
            interval: (interval > 0).then(|| Duration::from_millis(interval.into())),
        };
        Ok((length, header))
    }

    fn part(&mut self) -> Result<&'a [u8], Error> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        let (part, rest) = self.0.split_at_checked(length).ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(part)
    }
}

fn pack<T: Serialize>(value: &T) -> Vec<u8> {
    let plain = postcard::to_stdvec(value).expect("samples are plain data");
    pack::pack(&plain)
}

fn plain(packed: &[u8]) -> Result<Vec<u8>, Error> {
    pack::unpack(packed, capacity(packed)).map_err(Error::Unpack)
}

/// The size that the part claims bounds the allocation; the limit bounds it in turn.
fn capacity(packed: &[u8]) -> usize {
    let claimed = zstd::zstd_safe::get_frame_content_size(packed)
        .ok()
        .flatten();
    claimed.map_or(PART_LIMIT, |size| size.min(PART_LIMIT as u64) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::IoCalls;

    pub(super) fn id(sequence: u64) -> FrameId {
        FrameId {
            agent_start: Uuid::from_u128(7),
            sequence,
        }
    }

    fn sample(names: &[String]) -> Sample {
        let process = |(pid, name): (usize, &String)| Process {
            pid: pid as u32,
            name: name.as_str().into(),
            state: 'S',
            read_bytes: (pid % 2 == 0).then_some(pid as u64),
            calls: Some(IoCalls {
                syscr: 5,
                ..IoCalls::default()
            }),
            ..Process::default()
        };
        Sample {
            host: Host {
                boot_id: "b".into(),
                uptime_micros: 5,
                ..Host::default()
            },
            processes: names.iter().enumerate().map(process).collect(),
            notes: vec![Note {
                time_micros: 9,
                what: note::What::Stopping,
            }],
            cgroups: (!names.is_empty()).then(|| {
                vec![Cgroup {
                    path: "/a".into(),
                    members: vec![0],
                    ..Cgroup::default()
                }]
            }),
        }
    }

    /// As an older version wrote it: without an interval, with fewer parts, and less of processes.
    fn in_version(version: u8, frame: &[u8], sample: &Sample) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut rest = &frame[HEADER..];
        for number in 0..=version {
            let (length, after) = rest.split_first_chunk().expect("a length");
            let (part, after) = after.split_at(u32::from_le_bytes(*length) as usize);
            rest = after;
            let processes = sample.processes.iter().map(ProcessBefore3::from);
            let part = match number {
                1 => pack(&processes.collect::<Vec<_>>()),
                _ => part.to_vec(),
            };
            parts.extend((part.len() as u32).to_le_bytes());
            parts.extend(part);
        }
        let mut old = [&frame[..HEADER - 4], &parts].concat();
        let length = old.len() as u32;
        old[..4].copy_from_slice(&length.to_le_bytes());
        old[4] = version;
        old
    }

    #[test]
    fn more_groups_than_a_host_has_are_not_unpacked() {
        let time = Timestamp::MIN;
        let of = |cgroups| Sample {
            cgroups: Some(cgroups),
            ..Sample::default()
        };
        let many = vec![Cgroup::default(); cgroup::GROUPS + 1];
        let long = Cgroup {
            path: "/".repeat(cgroup::PATH + 1).into(),
            ..Cgroup::default()
        };
        let wide = Cgroup {
            disks: Some(vec![cgroup::Disk::default(); cgroup::DEVICES + 1]),
            ..Cgroup::default()
        };
        for groups in [many, vec![long], vec![wide]] {
            let bytes = encode(time, id(1), None, &of(groups));
            let frame = Frame::read(&bytes).expect("well formed");
            assert!(matches!(frame.cgroups(), Err(Error::Groups)));
        }
    }

    #[test]
    fn frames_of_older_versions_are_read() {
        let names = ["a".to_owned(), "b".to_owned()];
        let interval = Some(Duration::from_millis(500));
        let new = encode(Timestamp::MIN, id(7), interval, &sample(&names));
        assert_eq!(Frame::read(&new).expect("well formed").interval, interval);
        for version in 1..VERSION {
            let old = in_version(version, &new, &sample(&names));
            let frame = Frame::read(&old).expect("well formed");
            let read = frame.sample().expect("well formed");
            let checked = frame.check().expect("well formed");
            assert_eq!(checked.values, read.values());
            assert_eq!(read.host, sample(&names).host);
            let names: Vec<&str> = read.processes.iter().map(|one| &*one.name).collect();
            assert_eq!(names, ["a", "b"]);
            assert_eq!(read.processes[0].read_bytes, Some(0));
            assert_eq!(read.cgroups.is_some(), version >= WITH_CGROUPS);
            assert_eq!(
                (read.notes, frame.id, frame.interval),
                (vec![], id(7), None)
            );
        }
        let mut newer = new;
        newer[4] = VERSION + 1;
        assert!(matches!(Frame::read(&newer), Err(Error::Version(4))));
    }

    #[test]
    fn more_notes_than_an_agent_writes_are_not_unpacked() {
        let stopping = sample(&[]).notes.remove(0);
        let long = Note {
            what: note::What::Started {
                version: "x".repeat(5000),
                kills: note::KillSources::default(),
                boot_id: String::new(),
                uptime_micros: 0,
            },
            ..stopping.clone()
        };
        for notes in [vec![stopping; note::NOTES + 1], vec![long]] {
            let sample = Sample {
                notes,
                ..Sample::default()
            };
            let bytes = encode(Timestamp::MIN, id(1), None, &sample);
            let frame = Frame::read(&bytes).expect("well formed");
            assert!(matches!(frame.notes(), Err(Error::Notes)));
        }
        // What an agent has too much of waits.
        let container = note::Container {
            id: "x".repeat(64),
            cgroup: "/".repeat(4096),
            pod_uid: None,
        };
        let note = Note {
            time_micros: 9,
            what: note::What::ContainerEnded(container),
        };
        let mut notes = vec![note; 300];
        let fitting = note::fitting(&notes);
        assert!((60..64).contains(&fitting), "{fitting}");
        notes.truncate(fitting);
        let sample = Sample {
            notes,
            ..Sample::default()
        };
        let bytes = encode(Timestamp::MIN, id(1), None, &sample);
        assert!(Frame::read(&bytes).expect("well formed").notes().is_ok());
    }

    proptest! {
        #[test]
        fn frames_in_a_row_read_back_as_written(
            names in prop::collection::vec(any::<String>(), 0..20),
            micros in 0i64..2_000_000_000_000_000,
            sequence: u64,
        ) {
            let time = Timestamp::from_micros(micros).expect("in range");
            let mut sample = sample(&names);
            sample.place_processes();
            let mut bytes = encode(time, id(sequence), None, &sample);
            let length = bytes.len();
            bytes.extend(encode(time, id(0), None, &sample));
            let (frame, own, rest) = Frame::split_first(&bytes).expect("well formed");
            prop_assert_eq!(own.len(), length);
            prop_assert_eq!(frame.time, time);
            prop_assert_eq!(frame.id, id(sequence));
            let checked = Checked { values: sample.values(), notes: sample.notes.clone() };
            prop_assert_eq!(frame.check().expect("well formed"), checked);
            prop_assert_eq!(frame.sample().expect("well formed"), sample);
            prop_assert_eq!(Frame::split_first(rest).expect("well formed").0.id, id(0));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((frame, ..)) = Frame::split_first(&bytes) {
                let _ = frame.sample();
            }
        }

        #[test]
        fn a_damaged_frame_is_an_error_or_a_sample(at in 0usize..200, bit in 0u8..8) {
            let mut bytes = encode(Timestamp::MIN, id(1), None, &sample(&["a".into(), "b".into()]));
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok((frame, ..)) = Frame::split_first(&bytes) {
                // What is let in can be read, and the other way round.
                let read = frame.sample().ok().map(|sample| Checked {
                    values: sample.values(),
                    notes: sample.notes,
                });
                prop_assert_eq!(frame.check().ok(), read);
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_and_not_unpacked() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).expect("compresses");
        assert!(bomb.len() < 10_000);
        assert!(matches!(plain(&bomb), Err(Error::Unpack(_))));
    }

    #[test]
    fn cut_off_anywhere_is_an_error() {
        let bytes = encode(Timestamp::MIN, id(1), None, &sample(&["a".into()]));
        for end in 0..bytes.len() {
            assert!(Frame::split_first(&bytes[..end]).is_err(), "{end}");
        }
    }
}
