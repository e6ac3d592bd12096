//! Frames on disk: a ring of files, of which the oldest goes as a whole.
//!
//! A file of a ring ("segment") holds frames one after another. Each begins with its length, and its CRC-32
//! (u32, little-endian) follows it, so what a crash cut off is found and let go. Segments are only appended
//! to, so nothing that waits is ever written over; one of which nothing waits any more is removed. Sending a
//! frame twice is harmless, since the server counts it once: so a start takes what is in the files.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nodestats_core::{Frame, Timestamp};

/// A ring has about so many segments when it is full: so much of it is given back at once.
const SEGMENTS: u64 = 16;
/// The files may hold more than what waits by so many segments, before one is emptied into the newest.
const SLACK: u64 = 4;

/// Bytes of the CRC-32 behind a frame.
const CHECKSUM: usize = 4;

/// Where a frame and its checksum are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    offset: u64,
    bytes: u32,
}

impl Place {
    /// What it takes.
    pub(crate) fn bytes(self) -> usize {
        self.bytes as usize
    }
}

/// The files of one node.
#[derive(Debug)]
pub(super) struct Ring {
    directory: PathBuf,
    /// Of its files; the number of the segment follows.
    name: String,
    segments: BTreeMap<u64, Segment>,
    next: u64,
    /// Bytes that may wait.
    limit: u64,
    /// Nobody else has the files while this is open.
    _lock: File,
}

#[derive(Debug)]
struct Segment {
    file: File,
    /// Its length.
    bytes: u64,
    /// How much of it waits.
    waiting: u64,
    /// Behind its end may be what was written in vain: nothing more is.
    is_torn: bool,
}

/// A ring that was opened.
pub(super) struct Opened {
    pub(super) ring: Ring,
    /// What is in it, by time.
    pub(super) frames: Vec<Place>,
    /// Bytes in it that are no samples.
    pub(super) damaged: u64,
}

impl Ring {
    /// Opens a node's files.
    ///
    /// # Errors
    /// Another agent has them, or they cannot be read or written.
    pub(super) fn open(directory: &Path, uid: &str, limit: u64) -> io::Result<Opened> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let name = format!("waiting-{uid}");
        let lock = open(&directory.join(format!("{name}.lock")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let text = "another agent of this node has it";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut ring = Self {
            directory: directory.to_owned(),
            name,
            segments: BTreeMap::new(),
            next: 1,
            limit,
            _lock: lock,
        };
        let (mut frames, mut damaged) = (Vec::new(), 0);
        for number in ring.numbers()? {
            damaged += ring.open_segment(number, &mut frames)?;
            ring.next = number + 1;
        }
        ring.adopt(&mut frames)?;
        // An emptied segment's frames stand behind later ones.
        frames.sort_by_key(|&(time, _)| time);
        Ok(Opened {
            ring,
            frames: frames.into_iter().map(|(_, place)| place).collect(),
            damaged,
        })
    }

    /// Which segments there are.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(&self.name));
            let digits = rest.and_then(|rest| rest.strip_prefix('.'));
            numbers.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{}.{number:08}", self.name))
    }

    /// Takes over the one file of an older agent, of frames alone.
    fn adopt(&mut self, frames: &mut Vec<(Timestamp, Place)>) -> io::Result<()> {
        let path = self.directory.join(&self.name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let (mut times, mut taken, mut rest) = (Vec::new(), Vec::new(), &*bytes);
        while let Ok((frame, whole, after)) = Frame::split_first(rest) {
            times.push(frame.time);
            taken.push(whole.to_vec());
            rest = after;
        }
        frames.extend(times.into_iter().zip(self.append(&taken)?));
        fs::remove_file(path)
    }

    /// Opens a segment, cuts off what is no frame, and says how many bytes that were.
    fn open_segment(
        &mut self,
        number: u64,
        frames: &mut Vec<(Timestamp, Place)>,
    ) -> io::Result<u64> {
        let path = self.path(number);
        let file = open(&path)?;
        let length = file.metadata()?.len();
        let mut reader = BufReader::new(&file);
        let mut bytes = 0;
        while let Some((time, length)) = next_frame(&mut reader, length - bytes)? {
            let place = Place {
                segment: number,
                offset: bytes,
                bytes: length,
            };
            frames.push((time, place));
            bytes += u64::from(length);
        }
        if bytes == 0 {
            fs::remove_file(&path)?;
            return Ok(length);
        }
        file.set_len(bytes)?;
        let segment = Segment {
            file,
            bytes,
            waiting: bytes,
            is_torn: false,
        };
        self.segments.insert(number, segment);
        Ok(length - bytes)
    }

    /// Adds frames. They are on disk afterwards, or the files are as they were.
    pub(super) fn append(&mut self, frames: &[Vec<u8>]) -> io::Result<Vec<Place>> {
        let mut places = Vec::with_capacity(frames.len());
        let written = frames.iter().try_for_each(|frame| {
            places.push(self.write(frame)?);
            Ok(())
        });
        let Some(first) = places.first() else {
            return written.map(|()| places);
        };
        let synced = written.and_then(|()| {
            let mut segments = self.segments.range(first.segment..);
            segments.try_for_each(|(_, segment)| segment.file.sync_data())
        });
        match synced {
            Ok(()) => Ok(places),
            Err(error) => {
                self.take_back(&places)?;
                Err(error)
            }
        }
    }

    /// Writes a frame into the newest segment, or into a new one.
    fn write(&mut self, frame: &[u8]) -> io::Result<Place> {
        let room = self.limit / SEGMENTS;
        let last = self.segments.last_key_value();
        let number = match last {
            Some((&number, segment)) if segment.bytes < room && !segment.is_torn => number,
            _ => self.begin()?,
        };
        let segment = self.segments.get_mut(&number).expect("was begun");
        let sum = crc32fast::hash(frame).to_le_bytes();
        let written = segment.file.write_all(frame);
        if let Err(error) = written.and_then(|()| segment.file.write_all(&sum)) {
            segment.is_torn = segment.file.set_len(segment.bytes).is_err();
            self.remove_unused(number)?;
            return Err(error);
        }
        let place = Place {
            segment: number,
            offset: segment.bytes,
            bytes: (frame.len() + CHECKSUM) as u32,
        };
        segment.bytes += u64::from(place.bytes);
        segment.waiting += u64::from(place.bytes);
        Ok(place)
    }

    fn begin(&mut self) -> io::Result<u64> {
        let number = self.next;
        let file = open(&self.path(number))?;
        // So that the name is there after a power cut too.
        File::open(&self.directory)?.sync_all()?;
        self.next += 1;
        let segment = Segment {
            file,
            bytes: 0,
            waiting: 0,
            is_torn: false,
        };
        self.segments.insert(number, segment);
        Ok(number)
    }

    /// Takes away what was written last.
    fn take_back(&mut self, places: &[Place]) -> io::Result<()> {
        for place in places.iter().rev() {
            if let Some(segment) = self.segments.get_mut(&place.segment) {
                segment.is_torn |= segment.file.set_len(place.offset).is_err();
                segment.bytes = place.offset;
                segment.waiting -= u64::from(place.bytes);
            }
            self.remove_unused(place.segment)?;
        }
        Ok(())
    }

    /// A frame; `None` where it is damaged.
    pub(super) fn read(&self, place: Place) -> io::Result<Option<Vec<u8>>> {
        let Some(segment) = self.segments.get(&place.segment) else {
            return Ok(None);
        };
        let mut bytes = vec![0; place.bytes as usize];
        segment.file.read_exact_at(&mut bytes, place.offset)?;
        Ok(checked(bytes))
    }

    /// A frame does not wait any more.
    pub(super) fn forget(&mut self, place: Place) -> io::Result<()> {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.waiting = segment.waiting.saturating_sub(u64::from(place.bytes));
        }
        self.remove_unused(place.segment)
    }

    fn remove_unused(&mut self, number: u64) -> io::Result<()> {
        let segment = self.segments.get(&number);
        if segment.is_some_and(|segment| segment.waiting == 0) {
            self.segments.remove(&number);
            return match fs::remove_file(self.path(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn replace_file(&mut self, number: u64, file: File) {
        self.segments.get_mut(&number).expect("a segment").file = file;
    }

    /// The segment of which least waits, where the files hold much that does not.
    pub(super) fn crowded(&self) -> Option<u64> {
        let bytes: u64 = self.segments.values().map(|segment| segment.bytes).sum();
        if bytes <= self.limit + SLACK * (self.limit / SEGMENTS) {
            return None;
        }
        let least = self.segments.iter().min_by_key(|(_, one)| one.waiting)?;
        (least.1.waiting < least.1.bytes).then_some(*least.0)
    }
}

/// The time of the next frame, and its bytes with its checksum, of at most `rest`; `None` where there is no
/// whole one.
fn next_frame(reader: &mut impl Read, rest: u64) -> io::Result<Option<(Timestamp, u32)>> {
    let mut head = [0; 4];
    if rest < head.len() as u64 {
        return Ok(None);
    }
    reader.read_exact(&mut head)?;
    let length = u64::from(u32::from_le_bytes(head)) + CHECKSUM as u64;
    if length < head.len() as u64 + CHECKSUM as u64 || length > rest {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    bytes[..head.len()].copy_from_slice(&head);
    reader.read_exact(&mut bytes[head.len()..])?;
    let Some(frame) = checked(bytes) else {
        return Ok(None);
    };
    let frame = Frame::read(&frame).ok();
    Ok(frame.map(|frame| (frame.time, length as u32)))
}

/// A frame whose checksum is right, without it.
fn checked(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let frame = bytes.len().checked_sub(CHECKSUM)?;
    let is_right = bytes[frame..] == crc32fast::hash(&bytes[..frame]).to_le_bytes();
    bytes.truncate(frame);
    is_right.then_some(bytes)
}

/// Opens a file for reading and appending. What people ran is nobody else's to read.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).create(true).append(true).mode(0o600);
    options.open(path)
}
