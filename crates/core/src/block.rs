//! Sealed history: the samples of a node over a span of time, by columns, at a tenth of a byte a value.
//!
//! Most counters of most processes do not move between two samples, and those that do move together.
//! So each thing that is sampled (a process, a group, a CPU) is a series of rows of numbers, coded by
//! whether anything changed, by which columns did, and by how much, each as bits whose probability is
//! learnt from what was the case before. Series that are alike stand beside each other and share what is
//! learnt; a chunk of them is read without the others.
//!
//! A block is `version (u8) | checksum | sections`, each section a length (u32, little-endian) and its
//! bytes: headers, texts, hosts, processes, groups, notes. The checksum is the begin of the SHA-256 of
//! what follows it.

mod cells;
mod coder;
mod model;
mod rows;
mod table;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nodestats_wire::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::FrameId;
use crate::sample::{Cgroup, Host, Note, Process, Sample};
use cells::{Texts, flatten, restore};
use rows::Rows;
pub use table::{Reader, Run, Series, encode};

/// The version that this code writes.
const VERSION: u8 = 1;
/// Bytes of the checksum.
const CHECKSUM: usize = 8;
/// Of texts and notes, which are few: zstd's highest level before it takes more memory to read.
const LEVEL: i32 = 19;
/// Most bytes that texts or notes unpack to, and most texts.
const PLAIN_LIMIT: usize = 16 << 20;
const TEXTS: usize = 1 << 18;
/// Columns of a header: time, which start of which agent, sequence, interval in milliseconds, and whether
/// groups are known.
const HEADER: usize = 5;
/// Lists of a host, each element of which is a series of its own.
const LISTS: usize = 5;
/// Most samples: an hour has 3600 of a second.
const SAMPLES: usize = 1 << 16;

/// Why bytes are no block.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They end too early.
    #[error("the block is cut off")]
    Truncated,
    /// Another version of the form.
    #[error("the block has version {0}; this program reads version {VERSION}")]
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
    /// Texts or notes cannot be unpacked.
    #[error("a part of the block cannot be unpacked")]
    Unpack(#[source] std::io::Error),
    /// Texts or notes are none.
    #[error("a part of the block cannot be read")]
    Decode(#[source] postcard::Error),
    /// There is more in it than one block may have.
    #[error("the samples are too many for one block")]
    TooLarge,
    /// Its parts do not belong together.
    #[error("the block's parts do not belong together")]
    Mismatch,
}

/// A sample of a block.
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

/// Seals samples in their order. Processes are kept by pid, groups by path, and a group's members by the
/// processes that are in it. Where they are too many for one block ([`Error::TooLarge`]) fewer may not be.
pub fn seal(entries: &[Entry]) -> Result<Vec<u8>, Error> {
    if entries.len() > SAMPLES {
        return Err(Error::TooLarge);
    }
    let mut sections: Vec<Vec<u8>> = Vec::new();
    let mut texts = Texts::default();
    sections.push(headers(entries));
    let hosts = hosts(entries, &mut texts);
    let processes = processes(entries, &mut texts);
    let groups = groups(entries, &mut texts);
    let texts = texts.into_list();
    if texts.len() > TEXTS {
        return Err(Error::TooLarge);
    }
    sections.push(pack(&texts)?);
    sections.extend(hosts);
    sections.push(processes);
    sections.push(groups);
    let notes = entries.iter().map(|entry| &entry.sample.notes);
    let notes: Vec<(usize, &Vec<Note>)> = notes
        .enumerate()
        .filter(|(_, notes)| !notes.is_empty())
        .collect();
    sections.push(pack(&notes)?);
    let mut body = Vec::new();
    for section in sections {
        let length = u32::try_from(section.len()).expect("a section is far below 4 GiB");
        body.extend_from_slice(&length.to_le_bytes());
        body.extend(section);
    }
    let mut block = vec![VERSION];
    block.extend_from_slice(&checksum(&body));
    block.extend(body);
    Ok(block)
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::digest(body);
    *digest.first_chunk().expect("a digest is longer")
}

fn pack(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    let plain = postcard::to_stdvec(value).expect("plain data");
    if plain.len() > PLAIN_LIMIT {
        return Err(Error::TooLarge);
    }
    Ok(zstd::bulk::compress(&plain, LEVEL).expect("compressing into memory cannot fail"))
}

fn unpack<T: DeserializeOwned>(packed: &[u8]) -> Result<T, Error> {
    let claimed = zstd::zstd_safe::get_frame_content_size(packed)
        .ok()
        .flatten();
    let limit = claimed.map_or(0, |size| size.min(PLAIN_LIMIT as u64) as usize);
    let plain = zstd::bulk::decompress(packed, limit).map_err(Error::Unpack)?;
    // What is a list here is counted before it is made.
    let (count, _) = postcard::take_from_bytes::<u64>(&plain).map_err(Error::Decode)?;
    if count > TEXTS as u64 {
        return Err(Error::TooLarge);
    }
    postcard::from_bytes(&plain).map_err(Error::Decode)
}

/// The starts of agents, and a row of each sample.
fn headers(entries: &[Entry]) -> Vec<u8> {
    let mut starts: Vec<Uuid> = Vec::new();
    let mut rows = Vec::new();
    for entry in entries {
        let known = starts
            .iter()
            .position(|start| *start == entry.id.agent_start);
        let start = known.unwrap_or_else(|| {
            starts.push(entry.id.agent_start);
            starts.len() - 1
        });
        let interval = entry
            .interval
            .map_or(0, |interval| interval.as_millis() as u64);
        rows.extend([
            entry.time.micros() as u64,
            start as u64,
            entry.id.sequence,
            interval,
            u64::from(entry.sample.cgroups.is_some()),
        ]);
    }
    let mut bytes = (starts.len() as u32).to_le_bytes().to_vec();
    bytes.extend(starts.iter().flat_map(Uuid::as_bytes));
    bytes.extend(encode(HEADER, &[Series::whole(entries.len(), rows)]));
    bytes
}

/// Hosts without their lists, and each list.
fn hosts(entries: &[Entry], texts: &mut Texts) -> Vec<Vec<u8>> {
    let mut hosts = Rows::default();
    let mut lists: [Rows<usize>; LISTS] = Default::default();
    for (number, entry) in entries.iter().enumerate() {
        let host = &entry.sample.host;
        let [cpus, disks, interfaces, filesystems, collectors] = &mut lists;
        add_each(cpus, number, &host.cpus, texts);
        add_each(
            disks,
            number,
            host.disks.as_deref().unwrap_or_default(),
            texts,
        );
        add_each(
            interfaces,
            number,
            host.interfaces.as_deref().unwrap_or_default(),
            texts,
        );
        add_each(
            filesystems,
            number,
            host.filesystems.as_deref().unwrap_or_default(),
            texts,
        );
        add_each(collectors, number, &host.collectors, texts);
        let rest = Host {
            cpus: Vec::new(),
            disks: host.disks.as_ref().map(|_| Vec::new()),
            interfaces: host.interfaces.as_ref().map(|_| Vec::new()),
            filesystems: host.filesystems.as_ref().map(|_| Vec::new()),
            collectors: Vec::new(),
            boot_id: host.boot_id.clone(),
            ..*host
        };
        hosts.add(number, 0, row(&rest, texts));
    }
    std::iter::once(hosts.encode())
        .chain(lists.map(Rows::encode))
        .collect()
}

fn add_each<T: Serialize>(rows: &mut Rows<usize>, number: usize, list: &[T], texts: &mut Texts) {
    for (at, element) in list.iter().enumerate() {
        rows.add(number, at, row(&(at, element), texts));
    }
}

fn row(value: &impl Serialize, texts: &mut Texts) -> Vec<u64> {
    flatten(value, texts).expect("samples are plain data")
}

/// Each process, with the group that it is in.
fn processes(entries: &[Entry], texts: &mut Texts) -> Vec<u8> {
    let mut rows = Rows::default();
    let mut names: HashMap<(u32, u64), Arc<str>> = HashMap::new();
    for (number, entry) in entries.iter().enumerate() {
        let mut seen: HashMap<(u32, u64), usize> = HashMap::new();
        for process in &entry.sample.processes {
            let life = (process.pid, process.start_ticks);
            // It may be called otherwise later on, and is the same.
            let name = names.entry(life).or_insert_with(|| process.name.clone());
            let again = seen.entry(life).or_default();
            let key = (name.clone(), process.start_ticks, process.pid, *again);
            *again += 1;
            rows.add(number, key, row(&(process, &process.cgroup), texts));
        }
    }
    rows.encode()
}

fn groups(entries: &[Entry], texts: &mut Texts) -> Vec<u8> {
    let mut rows = Rows::default();
    for (number, entry) in entries.iter().enumerate() {
        let mut seen: HashMap<(&str, u64), usize> = HashMap::new();
        for group in entry.sample.cgroups.iter().flatten() {
            let again = seen.entry((&group.path, group.id)).or_default();
            let key = (group.path.clone(), group.id, *again);
            *again += 1;
            // Its members are known from the processes.
            let group = Cgroup {
                members: Vec::new(),
                ..group.clone()
            };
            rows.add(number, key, row(&group, texts));
        }
    }
    rows.encode()
}

/// A block whose checksum is right; its parts are read on demand.
#[derive(Debug, Clone)]
pub struct Block<'a> {
    starts: Vec<Uuid>,
    headers: Vec<u64>,
    texts: &'a [u8],
    hosts: [&'a [u8]; 1 + LISTS],
    processes: &'a [u8],
    groups: &'a [u8],
    notes: &'a [u8],
}

impl<'a> Block<'a> {
    /// Opens a block, and reads which samples it has.
    pub fn open(bytes: &'a [u8]) -> Result<Self, Error> {
        let (&version, rest) = bytes.split_first().ok_or(Error::Truncated)?;
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let (expected, mut body) = rest.split_first_chunk().ok_or(Error::Truncated)?;
        if checksum(body) != *expected {
            return Err(Error::Checksum);
        }
        let mut section = || -> Result<&'a [u8], Error> {
            let (length, rest) = body.split_first_chunk().ok_or(Error::Truncated)?;
            let length = u32::from_le_bytes(*length) as usize;
            let (section, rest) = rest.split_at_checked(length).ok_or(Error::Truncated)?;
            body = rest;
            Ok(section)
        };
        let (headers, texts) = (section()?, section()?);
        let mut hosts = [&[][..]; 1 + LISTS];
        for list in &mut hosts {
            *list = section()?;
        }
        let (processes, groups, notes) = (section()?, section()?, section()?);
        let (count, headers) = headers.split_first_chunk().ok_or(Error::Truncated)?;
        let length = (u32::from_le_bytes(*count) as usize).saturating_mul(16);
        let (starts, headers) = headers.split_at_checked(length).ok_or(Error::Truncated)?;
        let starts = starts.chunks_exact(16);
        let reader = Reader::open(headers)?;
        if reader.columns() != HEADER || reader.len() != 1 {
            return Err(Error::Mismatch);
        }
        let headers = reader.all()?.pop().ok_or(Error::Mismatch)?.rows;
        if headers.len() > SAMPLES * HEADER {
            return Err(Error::TooLarge);
        }
        Ok(Self {
            starts: starts
                .filter_map(|start| Uuid::from_slice(start).ok())
                .collect(),
            headers,
            texts,
            hosts,
            processes,
            groups,
            notes,
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

    /// Its samples, with the figures of the host alone.
    pub fn hosts(&self) -> Result<Vec<Entry>, Error> {
        let texts: Vec<String> = unpack(self.texts)?;
        self.read_hosts(&texts)
    }

    /// Its samples as they were sealed.
    pub fn entries(&self) -> Result<Vec<Entry>, Error> {
        let texts: Vec<String> = unpack(self.texts)?;
        let mut entries = self.read_hosts(&texts)?;
        rows::decode(self.processes, |number, cells| {
            let entry = entries.get_mut(number).ok_or(Error::Mismatch)?;
            let (mut process, cgroup): (Process, Option<Arc<str>>) = restore(cells, &texts)?;
            process.cgroup = cgroup;
            entry.sample.processes.push(process);
            Ok(())
        })?;
        rows::decode(self.groups, |number, cells| {
            let entry = entries.get_mut(number).ok_or(Error::Mismatch)?;
            let groups = entry.sample.cgroups.as_mut().ok_or(Error::Mismatch)?;
            groups.push(restore(cells, &texts)?);
            Ok(())
        })?;
        for (number, notes) in unpack::<Vec<(usize, Vec<Note>)>>(self.notes)? {
            entries.get_mut(number).ok_or(Error::Mismatch)?.sample.notes = notes;
        }
        for entry in &mut entries {
            let sample = &mut entry.sample;
            sample.processes.sort_by_key(|process| process.pid);
            if let Some(groups) = &mut sample.cgroups {
                groups.sort_by(|a, b| a.path.cmp(&b.path));
            }
            sample.gather_members();
        }
        Ok(entries)
    }

    fn read_hosts(&self, texts: &[String]) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::with_capacity(self.len());
        for header in self.headers.chunks_exact(HEADER) {
            let &[time, start, sequence, interval, has_groups] = header else {
                return Err(Error::Mismatch);
            };
            let start = usize::try_from(start)
                .ok()
                .and_then(|start| self.starts.get(start));
            entries.push(Entry {
                time: Timestamp::from_micros(time as i64).ok_or(Error::Mismatch)?,
                id: FrameId {
                    agent_start: *start.ok_or(Error::Mismatch)?,
                    sequence,
                },
                interval: (interval > 0).then(|| Duration::from_millis(interval)),
                sample: Sample {
                    cgroups: (has_groups > 0).then(Vec::new),
                    ..Sample::default()
                },
            });
        }
        let [hosts, cpus, disks, interfaces, filesystems, collectors] = self.hosts;
        rows::decode(hosts, |number, cells| {
            let entry = entries.get_mut(number).ok_or(Error::Mismatch)?;
            entry.sample.host = restore(cells, texts)?;
            Ok(())
        })?;
        macro_rules! list {
            ($section:expr, $host:ident => $list:expr) => {
                // Elements of one list may have several widths.
                let mut elements = Vec::new();
                rows::decode($section, |number, cells| {
                    let (at, element): (usize, _) = restore(cells, texts)?;
                    elements.push((number, at, element));
                    Ok(())
                })?;
                elements.sort_by_key(|(number, at, _)| (*number, *at));
                for (number, _, element) in elements {
                    let $host = &mut entries.get_mut(number).ok_or(Error::Mismatch)?.sample.host;
                    $list.push(element);
                }
            };
        }
        list!(cpus, host => host.cpus);
        list!(disks, host => host.disks.get_or_insert_default());
        list!(interfaces, host => host.interfaces.get_or_insert_default());
        list!(filesystems, host => host.filesystems.get_or_insert_default());
        list!(collectors, host => host.collectors);
        Ok(entries)
    }
}

#[cfg(test)]
mod tests;
