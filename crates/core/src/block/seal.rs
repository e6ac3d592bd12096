//! Makes a block of samples.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use nodestats_wire::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::cells::{Texts, flatten};
use super::rows::Rows;
use super::table::{Series, encode};
use super::{
    Entry, Error, HEADER, LISTS, OWN, PLAIN_LIMIT, Parts, READING, SAMPLES, TEXTS, WITH_GROUPS,
    WITHOUT_GROUPS, envelope,
};
use crate::sample::{Cgroup, Host, Note, Process};

/// Of texts and notes: zstd -19 makes a block half a hundredth smaller, and takes more than twice as long
/// for all of it.
const LEVEL: i32 = 9;
/// So many bytes of texts, notes or readings weigh as much as a row, and so many numbers of a group.
const BYTES_OF_A_ROW: usize = 256;
const NUMBERS_OF_A_ROW: usize = 32;

/// Samples that become a block. They are taken apart as they come, so that of many only numbers are kept.
#[derive(Debug, Default)]
pub struct Sealer {
    starts: Vec<Uuid>,
    headers: Vec<u64>,
    own: [Rows<()>; OWN],
    lists: [Rows<usize>; LISTS],
    texts: Texts,
    notes: Vec<(usize, Vec<Note>)>,
    readings: Vec<(usize, String)>,
    processes: Rows<ProcessKey>,
    process_texts: Texts,
    /// What each process was called first: it may be called otherwise later on, and is the same.
    names: HashMap<(u32, u64), Arc<str>>,
    groups: Rows<GroupKey>,
    group_texts: Texts,
    weight: usize,
}

/// Name, start, pid, and which of several that share them within one sample.
type ProcessKey = (Arc<str>, u64, u32, usize);
/// Path, inode, and which of several that share them within one sample.
type GroupKey = (Arc<str>, u64, usize);

impl Sealer {
    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.headers.len() / HEADER
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Rows of processes and all else, what its memory grows with: some 250 bytes each.
    pub fn weight(&self) -> usize {
        let texts = [&self.texts, &self.process_texts, &self.group_texts];
        let bytes: usize = texts.map(Texts::bytes).iter().sum();
        self.weight + bytes / BYTES_OF_A_ROW
    }

    /// Adds a sample of counters; they come in the order of time. Processes are kept by pid, groups by
    /// path, and a group's members by the processes that are in it.
    pub fn add(&mut self, entry: &Entry) {
        let number = self.len();
        let mut known = self.starts.iter();
        let known = known.position(|start| *start == entry.id.agent_start);
        let start = known.unwrap_or_else(|| {
            self.starts.push(entry.id.agent_start);
            self.starts.len() - 1
        });
        let interval = entry.interval;
        let what = match entry.sample.cgroups {
            Some(_) => WITH_GROUPS,
            None => WITHOUT_GROUPS,
        };
        self.headers.extend([
            entry.time.micros() as u64,
            what,
            start as u64,
            entry.id.sequence,
            interval.map_or(0, |interval| interval.as_millis() as u64),
        ]);
        self.add_host(number, &entry.sample.host);
        self.add_processes(number, &entry.sample.processes);
        self.add_groups(number, entry.sample.cgroups.as_deref().unwrap_or_default());
        if !entry.sample.notes.is_empty() {
            let bytes = postcard::to_stdvec(&entry.sample.notes).map_or(0, |bytes| bytes.len());
            self.weight += bytes / BYTES_OF_A_ROW;
            self.notes.push((number, entry.sample.notes.clone()));
        }
    }

    /// Adds a reading, as JSON.
    pub fn add_reading(&mut self, time: Timestamp, json: String) {
        let number = self.len();
        let header = [time.micros() as u64, READING, 0, 0, 0];
        self.headers.extend(header);
        self.weight += 1 + json.len() / BYTES_OF_A_ROW;
        self.readings.push((number, json));
    }

    fn add_host(&mut self, number: usize, host: &Host) {
        let Self {
            own,
            lists,
            texts,
            weight,
            ..
        } = self;
        let [cpus, disks, interfaces, filesystems, collectors] = lists;
        *weight += add_each(cpus, number, &host.cpus, texts);
        *weight += add_each(disks, number, host.disks.iter().flatten(), texts);
        *weight += add_each(interfaces, number, host.interfaces.iter().flatten(), texts);
        let mounted = host.filesystems.iter().flatten();
        *weight += add_each(filesystems, number, mounted, texts);
        *weight += add_each(collectors, number, &host.collectors, texts);
        let rest = Host {
            cpus: Vec::new(),
            disks: host.disks.as_ref().map(|_| Vec::new()),
            interfaces: host.interfaces.as_ref().map(|_| Vec::new()),
            filesystems: host.filesystems.as_ref().map(|_| Vec::new()),
            collectors: Vec::new(),
            boot_id: String::new(),
            uptime_micros: 0,
            boot_time_seconds: None,
            ticks_per_second: 0,
            cpu_total: None,
            load_average: None,
            ..*host
        };
        let clock = (
            &host.boot_id,
            host.uptime_micros,
            host.boot_time_seconds,
            host.ticks_per_second,
            // By which memory of a process is a share.
            host.memory.map(|memory| memory.total),
        );
        let cpu = (host.cpu_total, host.load_average);
        let cells = [row(&clock, texts), row(&cpu, texts), row(&rest, texts)];
        for (own, cells) in own.iter_mut().zip(cells) {
            own.add(number, (), cells);
        }
        *weight += 1;
    }

    fn add_processes(&mut self, number: usize, processes: &[Process]) {
        self.weight += processes.len();
        let mut seen: HashMap<(u32, u64), usize> = HashMap::with_capacity(processes.len());
        for process in processes {
            let life = (process.pid, process.start_ticks);
            let name = self.names.entry(life);
            let name = name.or_insert_with(|| process.name.clone());
            let again = seen.entry(life).or_default();
            let key = (name.clone(), process.start_ticks, process.pid, *again);
            *again += 1;
            let cells = row(&(process, &process.cgroup), &mut self.process_texts);
            self.processes.add(number, key, cells);
        }
    }

    fn add_groups(&mut self, number: usize, groups: &[Cgroup]) {
        self.weight += groups.len();
        let mut seen: HashMap<(&str, u64), usize> = HashMap::with_capacity(groups.len());
        for group in groups {
            let again = seen.entry((&group.path, group.id)).or_default();
            let key = (group.path.clone(), group.id, *again);
            *again += 1;
            // Its members are known from the processes.
            let group = Cgroup {
                members: Vec::new(),
                ..group.clone()
            };
            let cells = row(&group, &mut self.group_texts);
            self.weight += cells.len() / NUMBERS_OF_A_ROW;
            self.groups.add(number, key, cells);
        }
    }

    /// The block. Where the samples are too many for one ([`Error::TooLarge`]) fewer may not be; one alone
    /// never is.
    pub fn finish(self) -> Result<Parts, Error> {
        if self.len() > SAMPLES {
            return Err(Error::TooLarge);
        }
        let mut sections = vec![self.headers(), pack_texts(self.texts)?];
        sections.extend(self.own.map(Rows::encode));
        sections.extend(self.lists.map(Rows::encode));
        sections.extend([pack(&self.notes)?, pack(&self.readings)?]);
        let rows = |texts, rows: Vec<u8>| -> Result<Option<Bytes>, Error> {
            Ok(Some(envelope([pack_texts(texts)?, rows]).into()))
        };
        if self.processes.is_too_large() || self.groups.is_too_large() {
            return Err(Error::TooLarge);
        }
        Ok(Parts {
            hosts: envelope(sections).into(),
            processes: rows(self.process_texts, self.processes.encode())?,
            groups: rows(self.group_texts, self.groups.encode())?,
        })
    }

    /// The starts of agents, and a row of each sample.
    fn headers(&self) -> Vec<u8> {
        let mut bytes = (self.starts.len() as u32).to_le_bytes().to_vec();
        bytes.extend(self.starts.iter().flat_map(Uuid::as_bytes));
        let rows = Series::whole(self.len(), self.headers.clone());
        bytes.extend(encode(HEADER, &[rows]));
        bytes
    }
}

/// Adds the elements of a list, and says how many there are.
fn add_each<'a, T: Serialize + 'a>(
    rows: &mut Rows<usize>,
    number: usize,
    list: impl IntoIterator<Item = &'a T>,
    texts: &mut Texts,
) -> usize {
    let mut count = 0;
    for (at, element) in list.into_iter().enumerate() {
        rows.add(number, at, row(&(at, element), texts));
        count += 1;
    }
    count
}

fn row(value: &impl Serialize, texts: &mut Texts) -> Vec<u64> {
    flatten(value, texts).expect("samples are plain data")
}

fn pack_texts(texts: Texts) -> Result<Vec<u8>, Error> {
    pack(&texts.into_list())
}

fn pack<T: Serialize>(list: &Vec<T>) -> Result<Vec<u8>, Error> {
    let plain = postcard::to_stdvec(list).expect("plain data");
    if plain.len() > PLAIN_LIMIT || list.len() > TEXTS {
        return Err(Error::TooLarge);
    }
    Ok(zstd::bulk::compress(&plain, LEVEL).expect("compressing into memory cannot fail"))
}
