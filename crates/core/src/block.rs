//! Sealed history: the samples of a node over a span of time, by columns, at a tenth of a byte a value.
//!
//! Most counters of most processes do not move between two samples, and those that do move together.
//! So each thing that is sampled (a process, a group, a CPU) is a series of rows of numbers, coded by
//! whether anything changed, by which columns did, and by how much, each as bits whose probability is
//! learnt from what was the case before. Series that are alike stand beside each other and share what is
//! learnt; a chunk of them is read without the others.
//!
//! A block has three parts, which are kept and read apart: a question about a host never reads a process.
//! Each is `version (u8) | checksum | sections`, each section a length (u32, little-endian) and its bytes.
//! The hosts' are headers, texts, hosts in three tables (their clocks, CPU time, and the rest), five lists,
//! notes and readings; those of processes and of groups
//! are texts and rows. The checksum is the begin of the SHA-256 of what follows it.

pub(crate) mod cells;
mod coder;
mod heads;
mod model;
mod open;
pub(crate) mod packed;
mod reader;
pub(crate) mod rows;
mod seal;
mod table;

use std::time::Duration;

use bytes::Bytes;
use nodestats_wire::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::FrameId;
use crate::sample::Sample;
pub use open::Block;
pub(crate) use open::unpack;
pub use reader::Reader;
pub use seal::Sealer;
pub use table::{Run, Series, encode};

/// The version that this code writes. It reads those before it too, whose tables have other forms
/// ([`table`]).
const VERSION: u8 = 3;
/// Bytes of the checksum.
const CHECKSUM: usize = 8;
/// Most bytes that a list of texts, notes or readings unpacks to, and most of each: one frame of the
/// largest has less.
pub(crate) const PLAIN_LIMIT: usize = 64 << 20;
pub(crate) const TEXTS: usize = 1 << 21;
/// Columns of a header: time, what the sample is, which start of which agent, sequence, and interval in
/// milliseconds.
const HEADER: usize = 5;
/// What a sample is: counters without control groups, with them, or a reading.
const WITHOUT_GROUPS: u64 = 0;
const WITH_GROUPS: u64 = 1;
const READING: u64 = 2;
/// Tables of a host's own figures: most questions need the first alone, or one more.
const OWN: usize = 3;
/// Lists of a host, each element of which is a series of its own.
const LISTS: usize = 5;
/// Sections of the part of hosts.
const OF_HOSTS: usize = 4 + OWN + LISTS;
/// Sections of the part of processes, and of that of groups.
const OF_ROWS: usize = 2;
/// Most samples: an hour has 3600 of a second.
const SAMPLES: usize = 1 << 16;

/// Why bytes are no block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// They end too early.
    #[error("the block is cut off")]
    Truncated,
    /// Another version of the form.
    #[error("the block has version {0}; this program reads versions up to {VERSION}")]
    Version(u8),
    /// They are not what was written.
    #[error("the block's checksum is wrong")]
    Checksum,
    /// A table of it is damaged.
    #[error("a table of the block cannot be read")]
    Table(#[from] table::Error),
    /// A row of it says what cannot be.
    #[error("a row of the block cannot be read")]
    Row(#[from] cells::Error),
    /// Texts, notes or readings cannot be unpacked.
    #[error("a part of the block cannot be unpacked: {0}")]
    Unpack(std::io::ErrorKind),
    /// Texts, notes or readings are none.
    #[error("a part of the block cannot be read")]
    Decode(#[source] postcard::Error),
    /// There is more in it than one block may have.
    #[error("the samples are too many for one block")]
    TooLarge,
    /// Its parts do not belong together.
    #[error("the block's parts do not belong together")]
    Mismatch,
    /// What is asked for stands in a part that was not given.
    #[error("a part of the block is not there")]
    Missing,
}

/// What a sample is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// When it was taken.
    pub time: Timestamp,
    /// What makes it count once; `None` of a reading.
    pub push: Option<FrameId>,
    /// The time to the next one that was meant.
    pub interval: Option<Duration>,
}

/// A sample of counters.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When it was taken.
    pub time: Timestamp,
    /// What makes it count once.
    pub id: FrameId,
    /// The time to the next one that was meant.
    pub interval: Option<Duration>,
    /// What it says.
    pub sample: Sample,
}

/// The parts of a block, as they are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// Headers, hosts, notes and readings.
    pub hosts: Bytes,
    /// Processes; `None` where they are not wanted.
    pub processes: Option<Bytes>,
    /// Control groups; `None` where they are not wanted.
    pub groups: Option<Bytes>,
}

impl Parts {
    /// Bytes of all.
    pub fn len(&self) -> usize {
        let others = [&self.processes, &self.groups].into_iter().flatten();
        self.hosts.len() + others.map(Bytes::len).sum::<usize>()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::digest(body);
    *digest.first_chunk().expect("a digest is longer")
}

/// Sections as one part.
pub(crate) fn envelope(sections: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut part = vec![VERSION];
    part.extend([0; CHECKSUM]);
    for section in sections {
        let length = u32::try_from(section.len()).expect("a section is far below 4 GiB");
        part.extend_from_slice(&length.to_le_bytes());
        part.extend(section);
    }
    with_checksum(part)
}

/// A part with the checksum that it should have.
pub(crate) fn with_checksum(mut part: Vec<u8>) -> Vec<u8> {
    if let Some(body) = part.get(1 + CHECKSUM..) {
        let sum = checksum(body);
        part[1..][..CHECKSUM].copy_from_slice(&sum);
    }
    part
}

/// The sections of a part, if it is whole.
pub(crate) fn sections<const N: usize>(part: &Bytes) -> Result<[Bytes; N], Error> {
    let (&version, rest) = part.split_first().ok_or(Error::Truncated)?;
    if !(1..=VERSION).contains(&version) {
        return Err(Error::Version(version));
    }
    let (expected, body) = rest.split_first_chunk().ok_or(Error::Truncated)?;
    if checksum(body) != *expected {
        return Err(Error::Checksum);
    }
    let mut at = 1 + CHECKSUM;
    let mut sections = [const { Bytes::new() }; N];
    for section in &mut sections {
        let rest = &part[at..];
        let length = u32::from_le_bytes(*rest.first_chunk().ok_or(Error::Truncated)?) as usize;
        if rest.len() - 4 < length {
            return Err(Error::Truncated);
        }
        *section = part.slice(at + 4..at + 4 + length);
        at += 4 + length;
    }
    if at == part.len() {
        Ok(sections)
    } else {
        Err(Error::Mismatch)
    }
}

#[cfg(test)]
mod tests;
