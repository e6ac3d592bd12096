//! Reads a block: each part, and each table of it, once it is asked for.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use nodestats_wire::Timestamp;
use nodestats_wire::v1::Reading;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::cells::restore;
use super::reader::Reader;
use super::rows::{Decoded, Selection};
use super::{
    Error, HEADER, Header, LISTS, OF_HOSTS, OF_ROWS, OWN, PLAIN_LIMIT, Parts, READING, SAMPLES,
    TEXTS, WITH_GROUPS, sections,
};
use crate::FrameId;
use crate::pack;
use crate::sample::{Cgroup, Host, Memory, Note, Process, Sample};
use crate::stored::Wanted;

/// A block whose checksums are right.
#[derive(Debug)]
pub struct Block {
    headers: Vec<u64>,
    starts: Vec<Uuid>,
    texts: Lazy<Vec<Arc<str>>>,
    own: [Lazy<Decoded>; OWN],
    lists: [Lazy<Decoded>; LISTS],
    notes: Lazy<Vec<(usize, Vec<Note>)>>,
    readings: Lazy<Vec<(usize, String)>>,
    processes: Option<Table>,
    groups: Option<Table>,
}

/// What is read when it is asked for.
#[derive(Debug)]
struct Lazy<T> {
    bytes: Bytes,
    read: OnceLock<T>,
}

impl<T> Lazy<T> {
    fn new(bytes: Bytes) -> Self {
        Self {
            bytes,
            read: OnceLock::new(),
        }
    }

    fn get(&self, read: impl FnOnce(&Bytes) -> Result<T, Error>) -> Result<&T, Error> {
        if let Some(known) = self.read.get() {
            return Ok(known);
        }
        let new = read(&self.bytes)?;
        Ok(self.read.get_or_init(|| new))
    }
}

/// Rows with their texts.
#[derive(Debug)]
struct Table {
    texts: Lazy<Vec<Arc<str>>>,
    rows: Lazy<Decoded>,
}

impl Table {
    fn open(part: &Bytes) -> Result<Self, Error> {
        let [texts, rows] = sections::<OF_ROWS>(part)?;
        Ok(Self {
            texts: Lazy::new(texts),
            rows: Lazy::new(rows),
        })
    }
}

impl Block {
    /// Opens a block, and reads which samples it has.
    pub fn open(parts: &Parts) -> Result<Self, Error> {
        let all = sections::<OF_HOSTS>(&parts.hosts)?;
        let [
            headers,
            texts,
            clock,
            cpu,
            rest,
            lists @ ..,
            notes,
            readings,
        ] = all;
        let (starts, headers) = read_headers(&headers)?;
        let table = |part: &Option<Bytes>| part.as_ref().map(Table::open).transpose();
        Ok(Self {
            headers,
            starts,
            texts: Lazy::new(texts),
            own: [clock, cpu, rest].map(Lazy::new),
            lists: lists.map(Lazy::new),
            notes: Lazy::new(notes),
            readings: Lazy::new(readings),
            processes: table(&parts.processes)?,
            groups: table(&parts.groups)?,
        })
    }

    /// How many samples it has.
    pub fn len(&self) -> usize {
        self.headers.len() / HEADER
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// What a sample is known by; `None` where there are not so many.
    pub fn header(&self, number: usize) -> Option<Header> {
        let &[time, what, start, sequence, interval] = self.row_of_header(number)? else {
            return None;
        };
        let agent_start = self.starts.get(usize::try_from(start).ok()?);
        let push = (what != READING).then_some(FrameId {
            agent_start: agent_start.copied().unwrap_or_default(),
            sequence,
        });
        Some(Header {
            time: Timestamp::from_micros(time as i64)?,
            push,
            interval: (interval > 0).then(|| Duration::from_millis(interval)),
        })
    }

    fn row_of_header(&self, number: usize) -> Option<&[u64]> {
        self.headers.chunks_exact(HEADER).nth(number)
    }

    /// A sample of counters, as far as it is wanted; what it has to tell beside figures only where all of
    /// it is.
    pub fn sample(&self, number: usize, wanted: Wanted) -> Result<Sample, Error> {
        let mut sample = Sample {
            host: self.host(number, wanted)?,
            ..Sample::default()
        };
        if !matches!(wanted, Wanted::Cpu | Wanted::Host) {
            sample.processes = self.processes(number, wanted)?;
        }
        if wanted == Wanted::All {
            sample.cgroups = self.groups(number)?;
            sample.gather_members();
            sample.notes = self.notes(number)?;
        }
        Ok(sample)
    }

    /// The host's figures at a sample: its clock and how much memory it has where only a process is wanted,
    /// and beside that the load and what CPUs did where only that is.
    fn host(&self, number: usize, wanted: Wanted) -> Result<Host, Error> {
        let texts = self.texts.get(|bytes| unpack(bytes))?;
        let decode = |bytes: &Bytes| Decoded::open(bytes.clone(), self.len(), Selection::default());
        macro_rules! own {
            ($section:expr) => {{
                let rows = $section.get(decode)?.of(number)?;
                restore(rows.first().ok_or(Error::Mismatch)?, texts)?
            }};
        }
        let [clock, cpu, rest] = &self.own;
        let clock: (String, u64, Option<f64>, u32, Option<u64>) = own!(clock);
        // The idle task, which has no pid, is what CPUs did.
        let is_process = matches!(wanted, Wanted::Process(1..));
        let mut host = if is_process || wanted == Wanted::Cpu {
            let memory = |total| Memory {
                total,
                ..Memory::default()
            };
            Host {
                memory: clock.4.map(memory),
                ..Host::default()
            }
        } else {
            own!(rest)
        };
        (
            host.boot_id,
            host.uptime_micros,
            host.boot_time_seconds,
            host.ticks_per_second,
            _,
        ) = clock;
        if is_process {
            return Ok(host);
        }
        (host.cpu_total, host.load_average) = own!(cpu);
        macro_rules! list {
            ($section:expr => $list:expr) => {
                // Elements of one list may have several widths.
                let mut elements: Vec<(usize, _)> = Vec::new();
                for cells in $section.get(decode)?.of(number)? {
                    elements.push(restore(cells, texts)?);
                }
                if !elements.is_empty() {
                    elements.sort_by_key(|(at, _)| *at);
                    *$list = elements.into_iter().map(|(_, element)| element).collect();
                }
            };
        }
        let [cpus, disks, interfaces, filesystems, collectors] = &self.lists;
        list!(cpus => &mut host.cpus);
        if wanted == Wanted::Cpu {
            return Ok(host);
        }
        list!(disks => host.disks.get_or_insert_default());
        list!(interfaces => host.interfaces.get_or_insert_default());
        list!(filesystems => host.filesystems.get_or_insert_default());
        list!(collectors => &mut host.collectors);
        Ok(host)
    }

    /// The processes of a sample, by pid; where one is wanted, of that pid alone.
    fn processes(&self, number: usize, wanted: Wanted) -> Result<Vec<Process>, Error> {
        let table = self.processes.as_ref().ok_or(Error::Missing)?;
        // The first figure of a process is its pid.
        let pid = match wanted {
            Wanted::Process(pid) => Some([pid.into()]),
            _ => None,
        };
        let selection = Selection {
            firsts: pid.as_ref().map(|pid| &pid[..]),
            ..Selection::default()
        };
        let rows = table
            .rows
            .get(|bytes| Decoded::open(bytes.clone(), self.len(), selection))?;
        let texts = table.texts.get(|bytes| unpack(bytes))?;
        let mut processes = Vec::new();
        for cells in rows.of(number)? {
            let (mut process, cgroup): (Process, Option<Arc<str>>) = restore(cells, texts)?;
            process.cgroup = cgroup;
            processes.push(process);
        }
        processes.sort_by_key(|process| process.pid);
        Ok(processes)
    }

    /// The control groups of a sample, by path.
    fn groups(&self, number: usize) -> Result<Option<Vec<Cgroup>>, Error> {
        let header = self.row_of_header(number).ok_or(Error::Mismatch)?;
        if header.get(1) != Some(&WITH_GROUPS) {
            return Ok(None);
        }
        let table = self.groups.as_ref().ok_or(Error::Missing)?;
        let rows = table
            .rows
            .get(|bytes| Decoded::open(bytes.clone(), self.len(), Selection::default()))?;
        let texts = table.texts.get(|bytes| unpack(bytes))?;
        let groups = rows
            .of(number)?
            .into_iter()
            .map(|cells| restore(cells, texts));
        let mut groups: Vec<Cgroup> = groups.collect::<Result<_, _>>()?;
        groups.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Some(groups))
    }

    /// What a sample has to tell beside figures.
    pub fn notes(&self, number: usize) -> Result<Vec<Note>, Error> {
        let notes = self.notes.get(|bytes| unpack(bytes))?;
        let found = notes.iter().find(|(at, _)| *at == number);
        Ok(found.map(|(_, notes)| notes.clone()).unwrap_or_default())
    }

    /// A reading.
    pub fn reading(&self, number: usize) -> Result<Reading, Error> {
        let readings = self.readings.get(|bytes| unpack(bytes))?;
        let found = readings.binary_search_by_key(&number, |(at, _)| *at);
        let (_, json) = &readings[found.map_err(|_| Error::Mismatch)?];
        serde_json::from_str(json).map_err(|_| Error::Mismatch)
    }
}

/// The starts of agents, and a row of each sample.
fn read_headers(bytes: &[u8]) -> Result<(Vec<Uuid>, Vec<u64>), Error> {
    let (count, bytes) = bytes.split_first_chunk().ok_or(Error::Truncated)?;
    let length = (u32::from_le_bytes(*count) as usize).saturating_mul(16);
    let (starts, bytes) = bytes.split_at_checked(length).ok_or(Error::Truncated)?;
    let starts = starts.chunks_exact(16);
    let starts = starts.filter_map(|start| Uuid::from_slice(start).ok());
    let reader = Reader::open(Bytes::copy_from_slice(bytes))?;
    if reader.columns() != HEADER || reader.len() != 1 {
        return Err(Error::Mismatch);
    }
    let headers = reader.all()?.pop().ok_or(Error::Mismatch)?.rows;
    if headers.len() > SAMPLES * HEADER {
        return Err(Error::TooLarge);
    }
    Ok((starts.collect(), headers))
}

pub(crate) fn unpack<T: DeserializeOwned>(packed: &[u8]) -> Result<T, Error> {
    let claimed = zstd::zstd_safe::get_frame_content_size(packed)
        .ok()
        .flatten();
    let limit = claimed.map_or(0, |size| size.min(PLAIN_LIMIT as u64) as usize);
    let plain = pack::unpack(packed, limit);
    let plain = plain.map_err(|error| Error::Unpack(error.kind()))?;
    // What is a list here is counted before it is made.
    let (count, _) = postcard::take_from_bytes::<u64>(&plain).map_err(Error::Decode)?;
    if count > TEXTS as u64 {
        return Err(Error::TooLarge);
    }
    postcard::from_bytes(&plain).map_err(Error::Decode)
}
