//! Rollups as they are kept: parts of sections as a block has them, `headers | texts | rows | sketches`, of
//! which the rows are coded as those of blocks, and those of hosts so that they are read fast.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use nodestats_wire::Timestamp;
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::sketch::class;
use super::{Bucket, Flow, Level, Rollup, Row, Sketch, Thing, host};
use crate::block::cells::{Texts, flatten, restore};
use crate::block::rows::{Decoded, Rows, Selection};
use crate::block::{Error, PLAIN_LIMIT, TEXTS, envelope, sections, unpack};
use crate::pack;

/// Sections of a part.
const SECTIONS: usize = 4;
/// Most buckets of a rollup.
const BUCKETS: usize = 1 << 10;
/// Lengths of time are kept to a millisecond.
const MILLI: u64 = 1000;

/// What of a rollup is kept by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The host's own rows.
    Hosts,
    /// Control groups.
    Groups,
    /// Processes.
    Processes,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Hosts, Self::Groups, Self::Processes];
}

/// What is read of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figures {
    /// All of it.
    All(Part),
    /// What CPUs did, and the load.
    Cpu,
    /// The host's memory.
    Memory,
    /// How its tasks stood still.
    Pressure,
    /// Its block devices.
    Disks,
    /// Its interfaces.
    Interfaces,
    /// Its filesystems.
    Filesystems,
}

/// Cells of a [`Flow`], and of a [`Level`].
const CELLS: usize = 4;
/// Cells of the host's own row up to its levels: which thing it is, and [`Coded`], with a length of each list.
const COUNTERS: usize = 1 + 2 + (1 + host::TOTALS) + (1 + CELLS * host::FLOWS) + 1;

/// The levels of the host itself that are read together: the first of each, and the end.
const TOGETHER: [usize; 5] = [
    host::MEMORY_USED,
    host::LOAD[0],
    host::PROCESSES,
    host::CPUS,
    host::LEVELS,
];
/// Parts of the row of the host itself, the only one that is a wide one: counters, then memory, load, processes
/// and pressure, and what does not move, with whether there are distributions.
const PARTS: [usize; TOGETHER.len()] = {
    let mut parts = [COUNTERS; TOGETHER.len()];
    let mut part = 1;
    while part < parts.len() {
        parts[part] = CELLS * (TOGETHER[part] - TOGETHER[part - 1]);
        part += 1;
    }
    parts[parts.len() - 1] += 1;
    parts
};

impl Figures {
    /// Which part has them.
    pub fn part(self) -> Part {
        match self {
            Self::All(part) => part,
            _ => Part::Hosts,
        }
    }

    /// Places of the variants of [`Thing`] that have them; of nothing, all. Of a host [`Thing::Own`] alone has
    /// distributions, so what is left out has none that would have to be passed over.
    fn things(self) -> Option<&'static [u64]> {
        match self {
            Self::All(_) => None,
            Self::Cpu => Some(&[0, 1]),
            Self::Memory | Self::Pressure => Some(&[0]),
            Self::Disks => Some(&[2]),
            Self::Interfaces => Some(&[3]),
            Self::Filesystems => Some(&[4]),
        }
    }

    /// Whether what is read may have distributions.
    fn has_sketches(self) -> bool {
        self.things().is_none_or(|things| things.contains(&0))
    }

    /// Which of [`PARTS`] are read.
    fn parts(self) -> [bool; PARTS.len()] {
        match self {
            Self::Cpu => [true, false, true, false, true],
            Self::Memory => [true, true, false, false, true],
            Self::Pressure => [true, false, false, true, true],
            _ => [true; PARTS.len()],
        }
    }

    /// Takes out of the row of the host itself what was not read of it.
    fn leave(self, row: &mut Row) {
        let parts = self.parts();
        let levels = TOGETHER.windows(2).zip(&parts[1..]);
        for (levels, _) in levels.filter(|(_, is_read)| !**is_read) {
            for level in row.levels.iter_mut().take(levels[1]).skip(levels[0]) {
                *level = None;
            }
        }
    }
}

/// A bucket without its rows.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    begin: i64,
    covered: u64,
    samples: u32,
}

/// A row as it is coded: what is known of it as bits, and 0 for the rest.
#[derive(Serialize)]
struct Coded {
    /// Milliseconds of the bucket for which it was not watched.
    missing: u64,
    known: u64,
    totals: Vec<u64>,
    flows: Vec<Flow>,
    levels: Vec<Level>,
    has_sketches: bool,
}

/// The same as it is read.
#[derive(Deserialize)]
struct Read {
    missing: u64,
    known: u64,
    totals: Filled<u64>,
    flows: Filled<Flow>,
    levels: Filled<Level>,
    has_sketches: bool,
}

/// Figures, as if all of them were known.
struct Filled<T>(Vec<Option<T>>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Filled<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Each<T> {
            type Value = Filled<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("figures")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut figures: A) -> Result<Filled<T>, A::Error> {
                let count = figures.size_hint().unwrap_or_default().min(FIGURES);
                let mut all = Vec::with_capacity(count);
                while let Some(figure) = figures.next_element()? {
                    all.push(Some(figure));
                }
                Ok(Filled(all))
            }
        }

        deserializer.deserialize_seq(Each(PhantomData))
    }
}

/// Most figures of a row, each of which has a bit.
const FIGURES: usize = 64;

impl Coded {
    fn new(row: &Row, covered: u64) -> Self {
        let is_known = row.totals.iter().map(Option::is_some);
        let is_known = is_known.chain(row.flows.iter().map(Option::is_some));
        let is_known = is_known.chain(row.levels.iter().map(Option::is_some));
        let bits = is_known.enumerate().take(FIGURES);
        let known = bits.fold(0, |bits, (at, is_known)| bits | u64::from(is_known) << at);
        Self {
            missing: covered.saturating_sub(row.covered / MILLI),
            known,
            totals: row.totals.iter().map(|total| total.unwrap_or(0)).collect(),
            flows: row
                .flows
                .iter()
                .map(|flow| flow.unwrap_or_default())
                .collect(),
            levels: row
                .levels
                .iter()
                .map(|level| level.unwrap_or_default())
                .collect(),
            has_sketches: row.sketches.is_some(),
        }
    }
}

impl Read {
    fn row(self, covered: u64) -> Row {
        let mut bits = (0..).map(|at| at < FIGURES && self.known >> at & 1 == 1);
        let mut is_known = || bits.next().unwrap_or_default();
        Row {
            covered: covered.saturating_sub(self.missing).saturating_mul(MILLI),
            totals: known(self.totals, &mut is_known),
            flows: known(self.flows, &mut is_known),
            levels: known(self.levels, &mut is_known),
            sketches: self.has_sketches.then(Default::default),
        }
    }
}

fn known<T>(mut all: Filled<T>, is_known: &mut impl FnMut() -> bool) -> Vec<Option<T>> {
    for figure in &mut all.0 {
        if !is_known() {
            *figure = None;
        }
    }
    all.0
}

/// A part of a rollup.
pub fn encode(rollup: &Rollup, part: Part) -> Result<Bytes, Error> {
    let mut rows = Rows::default();
    let mut texts = Texts::default();
    let mut sketches = Vec::new();
    for (number, bucket) in rollup.buckets.iter().enumerate() {
        let covered = bucket.covered / MILLI;
        let mut add = |key, info: &dyn ErasedInfo, row: &Row| -> Result<(), Error> {
            let cells = info.cells(&Coded::new(row, covered), &mut texts)?;
            rows.add(number, key, cells);
            write_sketches(&mut sketches, row);
            Ok(())
        };
        match part {
            Part::Hosts => {
                for (thing, row) in &bucket.hosts {
                    add((format!("{thing:?}"), 0, 0), thing, row)?;
                }
            }
            Part::Groups => {
                for (group, row) in &bucket.groups {
                    add((group.path.to_string(), group.id, 0), group, row)?;
                }
            }
            Part::Processes => {
                for (process, row) in &bucket.processes {
                    let key = (process.name.to_string(), process.start_ticks, process.pid);
                    add(key, &Some(process), row)?;
                }
                let nobody: Option<&super::Process> = None;
                add((String::new(), 0, 0), &nobody, &bucket.others)?;
            }
        }
    }
    let header = |bucket: &Bucket| Header {
        begin: bucket.begin.micros(),
        covered: bucket.covered / MILLI,
        samples: bucket.samples,
    };
    let headers: Vec<Header> = rollup.buckets.iter().map(header).collect();
    if rows.is_too_large() || headers.len() > BUCKETS {
        return Err(Error::TooLarge);
    }
    let sections = [
        packed(&headers)?,
        packed(&texts.into_list())?,
        match part {
            // What is asked for most, and of which there is least.
            Part::Hosts => rows.encode_packed(&PARTS),
            Part::Groups | Part::Processes => rows.encode(),
        },
        packed(&sketches)?,
    ];
    Ok(envelope(sections).into())
}

/// A list, packed as frames are: it is small, and to begin at a higher level takes longer than it saves.
fn packed<T: Serialize>(list: &Vec<T>) -> Result<Vec<u8>, Error> {
    let plain = postcard::to_stdvec(list).expect("plain data");
    if plain.len() > PLAIN_LIMIT || list.len() > TEXTS {
        return Err(Error::TooLarge);
    }
    Ok(pack::pack(&plain))
}

/// What a row is of, whatever that is.
trait ErasedInfo {
    fn cells(&self, row: &Coded, texts: &mut Texts) -> Result<Vec<u64>, Error>;
}

impl<T: Serialize> ErasedInfo for T {
    fn cells(&self, row: &Coded, texts: &mut Texts) -> Result<Vec<u64>, Error> {
        Ok(flatten(&(self, row), texts)?)
    }
}

/// Reads figures of a part that [`encode`] gave; of the buckets the other parts are empty, and of this
/// one what stands in none of the things and the columns that these figures need.
pub fn decode(bytes: &Bytes, figures: Figures) -> Result<Rollup, Error> {
    let [headers, texts, rows, sketches] = sections::<SECTIONS>(bytes)?;
    let headers: Vec<Header> = unpack(&headers)?;
    if headers.len() > BUCKETS {
        return Err(Error::TooLarge);
    }
    let texts: Vec<Arc<str>> = unpack(&texts)?;
    let parts: Vec<(usize, bool)> = PARTS.into_iter().zip(figures.parts()).collect();
    let selection = Selection {
        firsts: figures.things(),
        parts: &parts,
    };
    let rows = Decoded::open(rows, headers.len(), selection)?;
    let sketches: Vec<u8> = if figures.has_sketches() {
        unpack(&sketches)?
    } else {
        Vec::new()
    };
    let mut sketches = &sketches[..];
    let mut rollup = Rollup::default();
    for (number, header) in headers.iter().enumerate() {
        let begin = Timestamp::from_micros(header.begin).ok_or(Error::Mismatch)?;
        let mut bucket = Bucket::new(begin);
        bucket.covered = header.covered.saturating_mul(MILLI);
        bucket.samples = header.samples;
        match figures.part() {
            Part::Hosts => {
                bucket.hosts = infos(&rows, number, &texts, header.covered)?;
                let own = bucket.hosts.iter_mut();
                for (_, row) in own.filter(|(thing, _)| *thing == Thing::Own) {
                    figures.leave(row);
                }
            }
            Part::Groups => bucket.groups = infos(&rows, number, &texts, header.covered)?,
            Part::Processes => {
                let all = infos::<Option<super::Process>>(&rows, number, &texts, header.covered)?;
                for (process, row) in all {
                    match process {
                        Some(process) => bucket.processes.push((process, row)),
                        None => bucket.others = row,
                    }
                }
            }
        }
        // As they were written: rows of different widths stand apart from each other.
        bucket.hosts.sort_by(|(a, _), (b, _)| a.cmp(b));
        bucket
            .groups
            .sort_by(|(a, _), (b, _)| (&a.path, a.id).cmp(&(&b.path, b.id)));
        bucket
            .processes
            .sort_by(|(a, _), (b, _)| super::roller::order(a, b));
        let hosts = bucket.hosts.iter_mut().map(|(_, row)| row);
        let groups = bucket.groups.iter_mut().map(|(_, row)| row);
        for row in hosts.chain(groups) {
            read_sketches(&mut sketches, row)?;
        }
        rollup.buckets.push(bucket);
    }
    Ok(rollup)
}

fn infos<T: DeserializeOwned>(
    rows: &Decoded,
    number: usize,
    texts: &[Arc<str>],
    covered: u64,
) -> Result<Vec<(T, Row)>, Error> {
    let cells = rows.of(number)?;
    let mut infos = Vec::with_capacity(cells.len());
    for cells in cells {
        let (info, row): (T, Read) = restore(cells, texts)?;
        infos.push((info, row.row(covered)));
    }
    Ok(infos)
}

/// Writes the distributions of a row: of each how many classes it has, and those with what they count.
fn write_sketches(bytes: &mut Vec<u8>, row: &Row) {
    let Some(sketches) = &row.sketches else {
        return;
    };
    for sketch in sketches {
        write(bytes, sketch.0.len() as u64);
        let mut before = 0;
        for (class, count) in &sketch.0 {
            write(bytes, u64::from(*class - before));
            write(bytes, u64::from(*count));
            before = *class;
        }
    }
}

fn read_sketches(bytes: &mut &[u8], row: &mut Row) -> Result<(), Error> {
    let Some(sketches) = &mut row.sketches else {
        return Ok(());
    };
    for sketch in sketches {
        let count = read(bytes)?;
        if count > u64::from(class(u64::MAX)) + 1 {
            return Err(Error::Mismatch);
        }
        let (mut all, mut class) = (BTreeMap::new(), 0_u64);
        for _ in 0..count {
            class = class.checked_add(read(bytes)?).ok_or(Error::Mismatch)?;
            let number = u16::try_from(class).map_err(|_| Error::Mismatch)?;
            let count = u32::try_from(read(bytes)?).map_err(|_| Error::Mismatch)?;
            all.insert(number, count);
        }
        *sketch = Sketch(all);
    }
    Ok(())
}

fn write(bytes: &mut Vec<u8>, number: u64) {
    crate::block::packed::write_number(bytes, number);
}

fn read(bytes: &mut &[u8]) -> Result<u64, Error> {
    Ok(crate::block::packed::read_number(bytes)?)
}
