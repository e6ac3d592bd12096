//! Series of rows of numbers, in chunks that are read one by one.
//!
//! The coded form is `columns (u8) | shift of each column (u8) | samples of a segment | number of series |
//! length of the index | index | length of each head | heads | number of groups | series of each | length of
//! the prior | prior | length of each chunk | chunks`, numbers as LEB128; the highest bit of the columns is set.
//! A shift with its highest bit set is of a column in which each series has one number all along, of which
//! chunks say nothing. The index has of each series the runs in which it was there and its first number, by
//! which it is found; a head has the rest of the first row of some series, which says whose it is, and of what
//! is seen once it is all.
//!
//! Samples are cut into segments and series into groups, and a chunk has the rows of a group in a segment, so
//! that neither all of a moment nor one series needs all of the rest. The first row of a series in a segment is
//! told from its very first one. What is known of each bit before a chunk is read stands before all of them.
//!
//! The form before this one, without that highest bit, has no segments: `columns | shifts | number of series |
//! length of heads | heads`, of which each is runs and a first row, and then chunks, `number of series | length |
//! bytes`, of all rows of some series.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::coder::{Coder, Counter, Decoder, Encoder};
use super::heads::{Heads, code_firsts, count, heads, samples};
use super::model::{Bits, History, Model};

/// A table with so many rows is cut, where it has more samples than a segment.
const CUT_ROWS: usize = if cfg!(test) { 100 } else { 4000 };
/// Samples of a segment: all of a moment costs about as much as is read of so many.
const SEGMENT: u32 = if cfg!(test) { 7 } else { 30 };
/// A chunk has about so many rows: who asks for one series reads half of them.
const CHUNK_ROWS: usize = if cfg!(test) { 20 } else { 100 };
/// A head has so many series: who asks for one reads about that many.
const HEAD: usize = if cfg!(test) { 3 } else { 32 };
/// Of so many chunks one is counted for what is known of all.
const COUNTED: usize = 4;
/// Most columns, samples, series, and numbers in all: beyond what an hour of a host of thousands of
/// processes has.
pub(crate) const COLUMNS: usize = 64;
/// Set in the columns of a table that may have segments.
const CUT: u8 = 0x80;
/// Set in the shift of a column in which each series has one number all along.
const STILL: u8 = 0x80;
pub(super) const SAMPLES: u64 = 1 << 20;
pub(crate) const SERIES: u64 = 1 << 18;
pub(crate) const NUMBERS: u64 = 1 << 24;

/// Rows of one thing, such as a process, at the samples at which it was there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Series {
    /// When it was there, ascending and apart from each other.
    pub runs: Vec<Run>,
    /// The rows one after another, each of as many numbers as there are columns.
    pub rows: Vec<u64>,
}

impl Series {
    /// Adds the row of a sample; samples come in their order.
    pub fn push(&mut self, sample: u32, row: impl IntoIterator<Item = u64>) {
        self.rows.extend(row);
        match self.runs.last_mut() {
            Some(run) if run.first + run.length == sample => run.length += 1,
            _ => self.runs.push(Run {
                first: sample,
                length: 1,
            }),
        }
    }

    /// Of something that was there all the time.
    pub(crate) fn whole(samples: usize, rows: Vec<u64>) -> Self {
        let run = Run {
            first: 0,
            length: samples as u32,
        };
        Self {
            runs: if samples == 0 { Vec::new() } else { vec![run] },
            rows,
        }
    }
}

/// Samples one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first.
    pub first: u32,
    /// How many, at least one.
    pub length: u32,
}

/// Why bytes are no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// They end too early.
    #[error("the table is cut off")]
    Truncated,
    /// They say of themselves what cannot be.
    #[error("the table is damaged")]
    Damaged,
}

/// Codes series of `columns` numbers a row. Such as are alike stand beside each other best.
///
/// # Panics
/// Where a series has not as many rows as its runs say.
pub fn encode(columns: usize, series: &[Series]) -> Vec<u8> {
    assert!((1..=COLUMNS).contains(&columns), "{columns} columns");
    let table = Table::new(columns, series);
    let mut bytes = vec![columns as u8 | CUT];
    bytes.extend(table.shifts.iter().enumerate().map(|(at, shift)| {
        let still = if table.moving.contains(&at) { 0 } else { STILL };
        *shift as u8 | still
    }));
    write_number(&mut bytes, table.segment.into());
    write_number(&mut bytes, series.len() as u64);
    let mut index = Heads::new(1, Encoder::new());
    for series in series {
        let count = index.runs(&series.runs).map(|runs| count(&runs));
        let rows = series.rows.len() / columns;
        assert_eq!(count, Ok(rows as u64), "rows of a series");
        if let Some(first) = series.rows.first() {
            index.first(&[first >> table.shifts[0]]);
        }
    }
    write_section(&mut bytes, &index.coder.finish());
    let mut heads = Vec::new();
    if columns > 1 {
        for series in series.chunks(of_head(table.segments)) {
            let firsts = series
                .iter()
                .filter_map(|series| series.rows.chunks_exact(columns).next());
            let firsts = firsts.map(|first| shifted(first, &table.shifts));
            let firsts: Vec<Vec<u64>> = firsts.collect();
            let mut coder = Encoder::new();
            let rows = firsts.iter().map(|first| &first[1..]);
            code_firsts(&mut coder, columns - 1, rows);
            let head = coder.finish();
            write_number(&mut bytes, head.len() as u64);
            heads.extend(head);
        }
    }
    bytes.extend(heads);
    write_number(&mut bytes, table.groups.len() as u64);
    for group in &table.groups {
        write_number(&mut bytes, group.len() as u64);
    }
    let (prior, mut model) = table.prior();
    write_section(&mut bytes, &prior);
    let mut chunks = Vec::new();
    for (segment, group) in table.chunks() {
        model.begin();
        let mut coder = Encoder::new();
        let is_coded = table.code(&mut model, &mut coder, segment, group);
        let before = chunks.len();
        if is_coded {
            chunks.extend(coder.finish());
        }
        write_number(&mut bytes, (chunks.len() - before) as u64);
    }
    bytes.extend(chunks);
    bytes
}

/// Series that are coded.
struct Table<'a> {
    columns: usize,
    shifts: Vec<u32>,
    /// Columns in which a series has more than one number.
    moving: Vec<usize>,
    series: &'a [Series],
    /// Samples of a segment, and how many segments there are.
    segment: u32,
    segments: u32,
    groups: Vec<Range<usize>>,
}

impl<'a> Table<'a> {
    fn new(columns: usize, series: &'a [Series]) -> Self {
        let rows_of = |series: &Series| series.rows.len() / columns;
        let rows: usize = series.iter().map(rows_of).sum();
        let samples = samples(series.iter().map(|series| &series.runs[..]));
        let moving = moving(columns, series);
        // All columns of a wide table are cut alike.
        let is_cut = rows > CUT_ROWS && samples > SEGMENT;
        let segment = if is_cut { SEGMENT } else { samples.max(1) };
        let segments = samples.div_ceil(segment);
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut rows_of_group = 0;
        for (number, series) in series.iter().enumerate() {
            let rows_of_all = CHUNK_ROWS * segments as usize;
            let is_full = is_cut && !moving.is_empty() && rows_of_group >= rows_of_all;
            match groups.last_mut() {
                Some(group) if !is_full => group.end = number + 1,
                _ => {
                    groups.push(number..number + 1);
                    rows_of_group = 0;
                }
            }
            rows_of_group += rows_of(series);
        }
        Self {
            columns,
            shifts: shifts(columns, series),
            moving,
            series,
            segment,
            segments,
            groups,
        }
    }

    fn chunks(&self) -> impl Iterator<Item = (u32, Range<usize>)> {
        let groups = |segment| {
            self.groups
                .iter()
                .map(move |group| (segment, group.clone()))
        };
        (0..self.segments).flat_map(groups)
    }

    /// What is known of all chunks, and a model that knows it; nothing where there is one.
    fn prior(&self) -> (Vec<u8>, Model) {
        if self.segments < 2 || self.moving.is_empty() {
            return (Vec::new(), Model::new(self.moving.len()));
        }
        let mut model = Model::counting(self.moving.len());
        for (segment, group) in self.chunks().step_by(COUNTED) {
            self.code(&mut model, &mut Counter, segment, group);
        }
        let mut coder = Encoder::new();
        let prior = model.code_prior(&mut coder);
        let model = Model::knowing(self.moving.len(), prior.into());
        (coder.finish(), model)
    }

    /// Codes a chunk; returns whether there was anything to code.
    fn code(
        &self,
        model: &mut Model,
        coder: &mut impl Coder,
        segment: u32,
        group: Range<usize>,
    ) -> bool {
        if self.moving.is_empty() {
            return false;
        }
        let mut is_coded = false;
        let mut row = vec![0; self.moving.len()];
        let fill = |row: &mut [u64], numbers: &[u64]| {
            for (number, column) in row.iter_mut().zip(&self.moving) {
                *number = numbers[*column] >> self.shifts[*column];
            }
        };
        for series in &self.series[group] {
            let (before, here) = rows_within(&series.runs, self.segment, segment);
            let rows = &series.rows[before * self.columns..][..here * self.columns];
            let mut rows = rows.chunks_exact(self.columns);
            let Some(first) = rows.next() else { continue };
            fill(&mut row, first);
            let mut history = if before == 0 {
                History::new(&row)
            } else {
                let next = row.clone();
                fill(&mut row, &series.rows[..self.columns]);
                let mut history = History::distant(&row);
                model.code(coder, &mut history, &next);
                history.arrive();
                is_coded = true;
                history
            };
            for next in rows {
                fill(&mut row, next);
                model.code(coder, &mut history, &row);
                is_coded = true;
            }
        }
        is_coded
    }
}

/// Series of a head: all where all are read anyway.
fn of_head(segments: u32) -> usize {
    if segments < 2 { usize::MAX } else { HEAD }
}

/// How many rows there are before a segment, and how many in it.
fn rows_within(runs: &[Run], samples: u32, segment: u32) -> (usize, usize) {
    let (begin, end) = (samples * segment, samples.saturating_mul(segment + 1));
    let (mut before, mut here) = (0, 0);
    for run in runs {
        let run_end = run.first + run.length;
        before += begin.clamp(run.first, run_end) - run.first;
        here += end.clamp(run.first, run_end) - begin.clamp(run.first, run_end);
    }
    (before as usize, here as usize)
}

fn shifted(row: &[u64], shifts: &[u32]) -> Vec<u64> {
    let numbers = row.iter().zip(shifts);
    numbers.map(|(number, shift)| number >> shift).collect()
}

/// Trailing bits of each column that are never set: bytes of memory are whole pages.
fn shifts(columns: usize, series: &[Series]) -> Vec<u32> {
    let mut all = vec![0; columns];
    for row in series
        .iter()
        .flat_map(|series| series.rows.chunks_exact(columns))
    {
        for (all, number) in all.iter_mut().zip(row) {
            *all |= number;
        }
    }
    let shift = |all: u64| if all == 0 { 0 } else { all.trailing_zeros() };
    all.into_iter().map(shift).collect()
}

/// The columns in which a series has more than one number.
fn moving(columns: usize, series: &[Series]) -> Vec<usize> {
    let mut moves = vec![false; columns];
    for series in series {
        let mut rows = series.rows.chunks_exact(columns);
        let Some(first) = rows.next() else { continue };
        for row in rows {
            for (moves, (number, first)) in moves.iter_mut().zip(row.iter().zip(first)) {
                *moves |= number != first;
            }
        }
    }
    (0..columns).filter(|column| moves[*column]).collect()
}

/// A coded table whose heads have been read; chunks are read on demand.
#[derive(Debug, Clone)]
pub struct Reader {
    bytes: Bytes,
    shifts: Vec<u8>,
    /// Columns in which a series has more than one number.
    moving: Vec<usize>,
    runs: Vec<Vec<Run>>,
    /// The first number of each series, as it is coded.
    firsts: Vec<u64>,
    heads: Vec<Head>,
    segment: u32,
    segments: u32,
    groups: Vec<Range<usize>>,
    /// Where the chunks are, those of a segment one after the other.
    chunks: Vec<Range<usize>>,
    prior: Range<usize>,
    known: OnceLock<Arc<Bits>>,
}

/// First rows of some series.
#[derive(Debug, Clone)]
struct Head {
    series: Range<usize>,
    bytes: Range<usize>,
    /// As they are coded; of a series that never was there none.
    rows: OnceLock<Vec<Vec<u64>>>,
}

/// Goes on from a place in bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn number(&mut self) -> Result<u64, Error> {
        let mut rest = self.bytes.get(self.at..).ok_or(Error::Truncated)?;
        let number = read_number(&mut rest)?;
        self.at = self.bytes.len() - rest.len();
        Ok(number)
    }

    fn take(&mut self, length: u64) -> Result<Range<usize>, Error> {
        let length = usize::try_from(length).map_err(|_| Error::Damaged)?;
        let end = self.at.checked_add(length).ok_or(Error::Damaged)?;
        if end > self.bytes.len() {
            return Err(Error::Truncated);
        }
        let taken = self.at..end;
        self.at = end;
        Ok(taken)
    }

    fn section(&mut self) -> Result<Range<usize>, Error> {
        let length = self.number()?;
        self.take(length)
    }
}

impl Reader {
    /// Reads the heads, and finds the chunks.
    pub fn open(bytes: Bytes) -> Result<Self, Error> {
        let mut cursor = Cursor {
            bytes: &bytes,
            at: 0,
        };
        let first = bytes[cursor.take(1)?][0];
        let (is_cut, columns) = (first & CUT != 0, usize::from(first & !CUT));
        if !(1..=COLUMNS).contains(&columns) {
            return Err(Error::Damaged);
        }
        let shifts = &bytes[cursor.take(columns as u64)?];
        let moving = (0..columns).filter(|column| shifts[*column] & STILL == 0);
        let moving: Vec<usize> = moving.collect();
        let shifts: Vec<u8> = shifts.iter().map(|shift| shift & !STILL).collect();
        if shifts.iter().any(|shift| *shift > 63) {
            return Err(Error::Damaged);
        }
        let segment = if is_cut { cursor.number()? } else { SAMPLES };
        if !(1..=SAMPLES).contains(&segment) {
            return Err(Error::Damaged);
        }
        let segment = segment as u32;
        let series = cursor.number()?;
        let coded = cursor.section()?;
        if series > SERIES {
            return Err(Error::Damaged);
        }
        let index = heads(if is_cut { 1 } else { columns }, series, &bytes[coded])?;
        let (runs, rows): (Vec<Vec<Run>>, Vec<Vec<u64>>) = index.into_iter().unzip();
        let numbers: u64 = runs.iter().map(|runs| count(runs)).sum();
        if numbers.saturating_mul(columns as u64) > NUMBERS {
            return Err(Error::Damaged);
        }
        let segments = samples(runs.iter().map(|runs| &runs[..])).div_ceil(segment);
        let firsts = rows.iter().map(|row| row.first().copied().unwrap_or(0));
        let firsts = firsts.collect();
        let heads = if is_cut && columns > 1 {
            let of_head = of_head(segments);
            let count = runs.len().div_ceil(of_head);
            let lengths = (0..count).map(|_| cursor.number());
            let lengths: Vec<u64> = lengths.collect::<Result<_, _>>()?;
            let head = |(number, length): (usize, u64)| {
                let begin = number * of_head;
                Ok(Head {
                    series: begin..begin.saturating_add(of_head).min(runs.len()),
                    bytes: cursor.take(length)?,
                    rows: OnceLock::new(),
                })
            };
            let heads = lengths.into_iter().enumerate().map(head);
            heads.collect::<Result<_, Error>>()?
        } else {
            vec![Head {
                series: 0..rows.len(),
                bytes: 0..0,
                rows: OnceLock::from(rows),
            }]
        };
        let (mut groups, mut chunks, mut prior) = (Vec::new(), Vec::new(), 0..0);
        let mut end = 0_u64;
        let mut add_group = |count: u64| {
            let begin = end as usize;
            end = end.checked_add(count).filter(|end| *end <= series)?;
            groups.push(begin..end as usize);
            (count > 0).then_some(())
        };
        if is_cut {
            for _ in 0..cursor.number()? {
                add_group(cursor.number()?).ok_or(Error::Damaged)?;
            }
            prior = cursor.section()?;
            let count = u64::from(segments) * groups.len() as u64;
            // Each length takes a byte.
            if count > bytes.len() as u64 {
                return Err(Error::Truncated);
            }
            let lengths = (0..count).map(|_| cursor.number());
            let lengths: Vec<u64> = lengths.collect::<Result<_, _>>()?;
            for length in lengths {
                chunks.push(cursor.take(length)?);
            }
            if cursor.at < bytes.len() {
                return Err(Error::Damaged);
            }
        } else {
            while cursor.at < bytes.len() {
                add_group(cursor.number()?).ok_or(Error::Damaged)?;
                chunks.push(cursor.section()?);
            }
        }
        if end != series {
            return Err(Error::Damaged);
        }
        Ok(Self {
            shifts,
            moving,
            runs,
            firsts,
            heads,
            segment,
            segments,
            groups,
            chunks,
            prior,
            known: OnceLock::new(),
            bytes,
        })
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        self.shifts.len()
    }

    /// When each series was there.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &[Run]> {
        self.runs.iter().map(|runs| &runs[..])
    }

    /// The samples of each segment; of the last there may be less.
    pub(crate) fn segments(&self) -> impl Iterator<Item = Range<u32>> {
        let segment = self.segment;
        (0..self.segments).map(move |number| number * segment..(number + 1).saturating_mul(segment))
    }

    /// The first number of each series; of one without rows 0.
    pub(crate) fn firsts(&self) -> impl Iterator<Item = u64> {
        let shift = self.shifts.first().copied().unwrap_or_default();
        self.firsts.iter().map(move |number| number << shift)
    }

    /// The first row of a series as it is coded.
    fn head(&self, number: usize) -> Result<&[u64], Error> {
        let place = self.heads.partition_point(|head| head.series.end <= number);
        let head = self.heads.get(place).ok_or(Error::Damaged)?;
        let rows = head.rows.get_or_init(|| {
            let columns = self.columns();
            let none = vec![0; columns - 1];
            let is_there = |number: &usize| !self.runs[*number].is_empty();
            let there = head.series.clone().filter(is_there);
            let mut coder = Decoder::new(&self.bytes[head.bytes.clone()]);
            let rows = code_firsts(&mut coder, columns - 1, there.map(|_| &none[..]));
            let mut rows = rows.into_iter();
            let row = |number: usize| {
                if !is_there(&number) {
                    return Vec::new();
                }
                let mut row = vec![self.firsts[number]];
                row.extend(rows.next().unwrap_or_default());
                row
            };
            head.series.clone().map(row).collect()
        });
        let row = rows.get(number - head.series.start);
        row.map(Vec::as_slice).ok_or(Error::Damaged)
    }

    /// All series.
    pub fn all(&self) -> Result<Vec<Series>, Error> {
        self.read_all(|_| true)
    }

    /// One series; `None` where there are not so many.
    pub fn one(&self, number: usize) -> Result<Option<Series>, Error> {
        if number >= self.len() {
            return Ok(None);
        }
        let mut all = self.read_all(|other| other == number)?;
        Ok(Some(all.swap_remove(number)))
    }

    fn read_all(&self, is_wanted: impl Fn(usize) -> bool) -> Result<Vec<Series>, Error> {
        let runs = self.runs().map(|runs| Series {
            runs: runs.to_vec(),
            rows: Vec::new(),
        });
        let mut all: Vec<Series> = runs.collect();
        for segment in 0..self.segments {
            self.read(segment as usize, &is_wanted, |number, row| {
                all[number].rows.extend(row);
            })?;
        }
        Ok(all)
    }

    /// Gives the rows that those series have in a segment which are wanted, a series after the other.
    pub(crate) fn read(
        &self,
        segment: usize,
        is_wanted: impl Fn(usize) -> bool,
        mut give: impl FnMut(usize, &[u64]),
    ) -> Result<(), Error> {
        let mut model = None;
        let chunks = self.chunks.iter().skip(segment * self.groups.len());
        for (group, chunk) in self.groups.iter().zip(chunks) {
            // Behind the last that is wanted nothing is read.
            let Some(last) = group.clone().rev().find(|number| is_wanted(*number)) else {
                continue;
            };
            let mut coder = Decoder::new(&self.bytes[chunk.clone()]);
            let model = match &mut model {
                Some(model) => {
                    Model::begin(model);
                    model
                }
                None => model.insert(self.model()),
            };
            for number in group.start..=last {
                let (before, here) = rows_within(&self.runs[number], self.segment, segment as u32);
                if here == 0 {
                    continue;
                }
                let is_coded = (before > 0 || here > 1) && !self.moving.is_empty();
                if is_coded && chunk.is_empty() {
                    return Err(Error::Truncated);
                }
                let head = self.head(number)?;
                let keep = is_wanted(number);
                let first: Vec<u64> = self.moving.iter().map(|column| head[*column]).collect();
                let numbers = head.iter().zip(&self.shifts);
                let mut row: Vec<u64> = numbers.map(|(number, shift)| number << shift).collect();
                let mut push = |history: &History| {
                    if keep {
                        for (column, number) in self.moving.iter().zip(history.row()) {
                            row[*column] = number << self.shifts[*column];
                        }
                        give(number, &row);
                    }
                };
                let mut history = if before > 0 && is_coded {
                    let mut history = History::distant(&first);
                    model.code(&mut coder, &mut history, &first);
                    history.arrive();
                    history
                } else {
                    History::new(&first)
                };
                push(&history);
                for _ in 1..here {
                    if is_coded {
                        model.code(&mut coder, &mut history, &first);
                    }
                    push(&history);
                }
            }
        }
        Ok(())
    }

    /// A model that knows what is known before a chunk is read.
    fn model(&self) -> Model {
        let columns = if self.chunks.iter().all(Range::is_empty) {
            0
        } else {
            self.moving.len()
        };
        if self.prior.is_empty() {
            return Model::new(columns);
        }
        let known = self.known.get_or_init(|| {
            let mut coder = Decoder::new(&self.bytes[self.prior.clone()]);
            Model::new(columns).code_prior(&mut coder).into()
        });
        Model::knowing(columns, Arc::clone(known))
    }
}

fn write_section(bytes: &mut Vec<u8>, section: &[u8]) {
    write_number(bytes, section.len() as u64);
    bytes.extend(section);
}

pub(crate) fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

pub(crate) fn read_number(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first().ok_or(Error::Truncated)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(Error::Damaged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers as counters and gauges have them, and any.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => Just(0),
            4 => 0_u64..100,
            2 => (0_u64..1000).prop_map(|pages| pages * 4096),
            1 => any::<u64>(),
        ]
    }

    fn series(columns: usize) -> impl Strategy<Value = Series> {
        prop::collection::vec((1_u32..5, 1_u32..20), 0..4).prop_flat_map(move |runs| {
            let mut end = 0;
            let runs: Vec<Run> = runs
                .into_iter()
                .map(|(gap, length)| {
                    let first = end + gap;
                    end = first + length;
                    Run { first, length }
                })
                .collect();
            let count = count(&runs) as usize;
            let step = prop::collection::vec((0..columns, number()), 0..3);
            (
                prop::collection::vec(number(), columns),
                prop::collection::vec(step, count),
            )
                .prop_map(move |(mut row, steps)| {
                    let mut rows = Vec::new();
                    for step in steps {
                        for (column, change) in step {
                            row[column] = row[column].wrapping_add(change);
                        }
                        rows.extend(&row);
                    }
                    Series {
                        runs: runs.clone(),
                        rows,
                    }
                })
        })
    }

    proptest! {
        #[test]
        fn a_table_reads_back_as_written_whole_and_one_by_one(
            all in (1_usize..20).prop_flat_map(|columns| {
                (Just(columns), prop::collection::vec(series(columns), 0..40))
            }),
        ) {
            let (columns, all) = all;
            let bytes = encode(columns, &all);
            let reader = Reader::open(bytes.clone().into()).expect("well formed");
            prop_assert_eq!((reader.columns(), reader.len()), (columns, all.len()));
            prop_assert_eq!(&reader.all().expect("well formed"), &all);
            for (number, series) in all.iter().enumerate() {
                let one = reader.one(number).expect("well formed");
                prop_assert_eq!(one.as_ref(), Some(series));
            }
            prop_assert_eq!(reader.one(all.len()).expect("well formed"), None);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(reader) = Reader::open(bytes.into()) {
                let _ = reader.one(0);
            }
        }
    }

    #[test]
    fn cut_off_anywhere_it_is_an_error_or_other_numbers() {
        let series = Series {
            runs: vec![Run {
                first: 3,
                length: 50,
            }],
            rows: (0..100).collect(),
        };
        let bytes = encode(2, &[series.clone(), series]);
        for end in 0..bytes.len() {
            if let Ok(reader) = Reader::open(bytes[..end].to_vec().into()) {
                let _ = reader.all();
            }
        }
    }

    #[test]
    fn what_does_not_change_takes_no_room() {
        let series: Vec<Series> = (0..150)
            .map(|process| Series {
                runs: vec![Run {
                    first: 0,
                    length: 360,
                }],
                rows: [process, 7 << 12, 5].repeat(360),
            })
            .collect();
        let bytes = encode(3, &series);
        assert!(bytes.len() < 2000, "{}", bytes.len());
    }
}
