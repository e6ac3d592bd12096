//! Reads tables ([`super::table`]) of this form and those before, rows on demand.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::coder::Decoder;
use super::heads::{code_firsts, count, heads, read_index, samples};
use super::model::{Bits, History, Model};
use super::packed::{self, Differences, read_number};
use super::table::{
    COLUMNS, CUT, Error, LEARNT, NUMBERS, PACKED, Run, SAMPLES, SERIES, STILL, Series, of_head,
    rows_within,
};

/// A coded table whose index has been read.
#[derive(Debug, Clone)]
pub struct Reader {
    bytes: Bytes,
    shifts: Vec<u8>,
    runs: Vec<Vec<Run>>,
    /// The first number of each series, as it is coded.
    firsts: Vec<u64>,
    segment: u32,
    segments: u32,
    rows: Rows,
}

/// Where the rows are.
#[derive(Debug, Clone)]
enum Rows {
    /// In chunks, learnt as they go.
    Learnt(Box<Chunks>),
    /// In one list.
    Packed(Range<usize>),
}

/// Rows that are read chunk by chunk.
#[derive(Debug, Clone)]
struct Chunks {
    /// Columns in which a series has more than one number.
    moving: Vec<usize>,
    heads: Vec<Head>,
    groups: Vec<Range<usize>>,
    /// Where they are, those of a segment one after the other.
    places: Vec<Range<usize>>,
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
    fn byte(&mut self) -> Result<u8, Error> {
        let taken = self.take(1)?;
        Ok(self.bytes[taken.start])
    }

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

/// The series that are read: all, or those of an ascending list.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a>(pub(super) Option<&'a [usize]>);

impl Wanted<'_> {
    fn has(self, number: usize) -> bool {
        self.0
            .is_none_or(|some| some.binary_search(&number).is_ok())
    }

    /// The last of these that is wanted.
    fn last(self, of: &Range<usize>) -> Option<usize> {
        let last = match self.0 {
            None => of.end.checked_sub(1)?,
            Some(some) => some[..some.partition_point(|number| *number < of.end)]
                .last()
                .copied()?,
        };
        (last >= of.start).then_some(last)
    }

    /// Each of so many that is wanted.
    pub(super) fn each(self, count: usize) -> impl Iterator<Item = usize> {
        let all = 0..if self.0.is_none() { count } else { 0 };
        all.chain(self.0.into_iter().flatten().copied())
    }
}

impl Reader {
    /// Reads the index, and finds the rows.
    pub fn open(bytes: Bytes) -> Result<Self, Error> {
        let mut cursor = Cursor {
            bytes: &bytes,
            at: 0,
        };
        let form = cursor.byte()?;
        let is_packed_index = matches!(form, LEARNT | PACKED);
        let is_cut = is_packed_index || form & CUT != 0;
        let columns = if is_packed_index {
            cursor.byte()?
        } else {
            form & !CUT
        };
        let columns = usize::from(columns);
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
        let index = &bytes[cursor.section()?];
        if series > SERIES {
            return Err(Error::Damaged);
        }
        // First rows stand in the index alone where there are no heads.
        let (runs, firsts, first_rows) = if is_packed_index {
            let (runs, firsts) = read_index(series, index)?;
            (runs, firsts, Vec::new())
        } else {
            let known = heads(if is_cut { 1 } else { columns }, series, index)?;
            let (runs, rows): (Vec<_>, Vec<Vec<u64>>) = known.into_iter().unzip();
            let firsts = rows.iter().map(|row| row.first().copied().unwrap_or(0));
            (runs, firsts.collect(), rows)
        };
        let numbers: u64 = runs.iter().map(|runs| count(runs)).sum();
        if numbers.saturating_mul(columns as u64) > NUMBERS {
            return Err(Error::Damaged);
        }
        let segments = samples(runs.iter().map(|runs| &runs[..])).div_ceil(segment);
        let rows = if form == PACKED {
            if segments > 1 {
                return Err(Error::Damaged);
            }
            Rows::Packed(cursor.at..bytes.len())
        } else {
            let heads = if is_cut && columns > 1 {
                cursor.heads(runs.len(), of_head(segments))?
            } else {
                let rows = if is_packed_index {
                    firsts.iter().map(|first| vec![*first]).collect()
                } else {
                    first_rows
                };
                vec![Head {
                    series: 0..runs.len(),
                    bytes: 0..0,
                    rows: OnceLock::from(rows),
                }]
            };
            let chunks = cursor.chunks(series, is_cut.then_some(segments), heads, moving)?;
            Rows::Learnt(Box::new(chunks))
        };
        Ok(Self {
            bytes,
            shifts,
            runs,
            firsts,
            segment,
            segments,
            rows,
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

    /// When one was there.
    pub(super) fn runs_of(&self, number: usize) -> &[Run] {
        self.runs.get(number).map_or(&[], |runs| runs)
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

    /// All series.
    pub fn all(&self) -> Result<Vec<Series>, Error> {
        let mut all: Vec<Series> = self.runs.iter().map(|runs| of(runs)).collect();
        self.read_all(Wanted(None), |number, row| all[number].rows.extend(row))?;
        Ok(all)
    }

    /// One series; `None` where there are not so many.
    pub fn one(&self, number: usize) -> Result<Option<Series>, Error> {
        let Some(runs) = self.runs.get(number) else {
            return Ok(None);
        };
        let mut one = of(runs);
        self.read_all(Wanted(Some(&[number])), |_, row| one.rows.extend(row))?;
        Ok(Some(one))
    }

    fn read_all(
        &self,
        wanted: Wanted<'_>,
        mut give: impl FnMut(usize, &[u64]),
    ) -> Result<(), Error> {
        (0..self.segments as usize).try_for_each(|segment| self.read(segment, wanted, &mut give))
    }

    /// Gives the rows that those series have in a segment which are wanted, a series after the other.
    pub(super) fn read(
        &self,
        segment: usize,
        wanted: Wanted<'_>,
        give: impl FnMut(usize, &[u64]),
    ) -> Result<(), Error> {
        match &self.rows {
            Rows::Learnt(chunks) => self.read_learnt(chunks, segment, wanted, give),
            Rows::Packed(bytes) => self.read_packed(&self.bytes[bytes.clone()], wanted, give),
        }
    }

    fn read_packed(
        &self,
        bytes: &[u8],
        wanted: Wanted<'_>,
        mut give: impl FnMut(usize, &[u64]),
    ) -> Result<(), Error> {
        let columns = self.columns();
        let rows: u64 = self.runs.iter().map(|runs| count(runs)).sum();
        let numbers = rows * columns as u64;
        let plain = packed::unpack(bytes, numbers)?;
        let mut rest = &plain[..];
        // Each takes a byte.
        if numbers > rest.len() as u64 {
            return Err(Error::Truncated);
        }
        let mut cells = vec![0; numbers as usize];
        for (column, shift) in self.shifts.iter().enumerate() {
            let mut differences = Differences::default();
            for row in cells.chunks_exact_mut(columns) {
                row[column] = differences.read(&mut rest)? << shift;
            }
        }
        if !rest.is_empty() {
            return Err(Error::Damaged);
        }
        let mut rows = cells.chunks_exact(columns);
        for (number, runs) in self.runs.iter().enumerate() {
            let rows = rows.by_ref().take(count(runs) as usize);
            if wanted.has(number) {
                rows.for_each(|row| give(number, row));
            } else {
                rows.for_each(drop);
            }
        }
        Ok(())
    }

    fn read_learnt(
        &self,
        all: &Chunks,
        segment: usize,
        wanted: Wanted<'_>,
        mut give: impl FnMut(usize, &[u64]),
    ) -> Result<(), Error> {
        let mut model = None;
        let chunks = all.places.iter().skip(segment * all.groups.len());
        for (group, chunk) in all.groups.iter().zip(chunks) {
            // Behind the last that is wanted nothing is read.
            let Some(last) = wanted.last(group) else {
                continue;
            };
            let mut coder = Decoder::new(&self.bytes[chunk.clone()]);
            let model = match &mut model {
                Some(model) => {
                    Model::begin(model);
                    model
                }
                None => model.insert(all.model(&self.bytes)),
            };
            for number in group.start..=last {
                let (before, here) = rows_within(&self.runs[number], self.segment, segment as u32);
                if here == 0 {
                    continue;
                }
                let is_coded = (before > 0 || here > 1) && !all.moving.is_empty();
                if is_coded && chunk.is_empty() {
                    return Err(Error::Truncated);
                }
                let head = self.head(all, number)?;
                let keep = wanted.has(number);
                let first: Vec<u64> = all.moving.iter().map(|column| head[*column]).collect();
                let numbers = head.iter().zip(&self.shifts);
                let mut row: Vec<u64> = numbers.map(|(number, shift)| number << shift).collect();
                let mut push = |history: &History| {
                    if keep {
                        for (column, number) in all.moving.iter().zip(history.row()) {
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

    /// The first row of a series as it is coded.
    fn head<'a>(&self, all: &'a Chunks, number: usize) -> Result<&'a [u64], Error> {
        let place = all.heads.partition_point(|head| head.series.end <= number);
        let head = all.heads.get(place).ok_or(Error::Damaged)?;
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
}

fn of(runs: &[Run]) -> Series {
    Series {
        runs: runs.to_vec(),
        rows: Vec::new(),
    }
}

impl Cursor<'_> {
    /// Finds the heads of so many series.
    fn heads(&mut self, series: usize, of_head: usize) -> Result<Vec<Head>, Error> {
        let count = series.div_ceil(of_head);
        let lengths = (0..count).map(|_| self.number());
        let lengths: Vec<u64> = lengths.collect::<Result<_, _>>()?;
        let head = |(number, length): (usize, u64)| {
            let begin = number * of_head;
            Ok(Head {
                series: begin..begin.saturating_add(of_head).min(series),
                bytes: self.take(length)?,
                rows: OnceLock::new(),
            })
        };
        lengths.into_iter().enumerate().map(head).collect()
    }

    /// Finds the chunks of so many series, to the end; the first form has no segments.
    fn chunks(
        &mut self,
        series: u64,
        segments: Option<u32>,
        heads: Vec<Head>,
        moving: Vec<usize>,
    ) -> Result<Chunks, Error> {
        let (mut groups, mut places, mut prior) = (Vec::new(), Vec::new(), 0..0);
        let mut end = 0_u64;
        let mut add_group = |count: u64| {
            let begin = end as usize;
            end = end.checked_add(count).filter(|end| *end <= series)?;
            groups.push(begin..end as usize);
            (count > 0).then_some(())
        };
        if let Some(segments) = segments {
            for _ in 0..self.number()? {
                add_group(self.number()?).ok_or(Error::Damaged)?;
            }
            prior = self.section()?;
            let count = u64::from(segments) * groups.len() as u64;
            // Each length takes a byte.
            if count > self.bytes.len() as u64 {
                return Err(Error::Truncated);
            }
            let lengths = (0..count).map(|_| self.number());
            let lengths: Vec<u64> = lengths.collect::<Result<_, _>>()?;
            for length in lengths {
                places.push(self.take(length)?);
            }
            if self.at < self.bytes.len() {
                return Err(Error::Damaged);
            }
        } else {
            while self.at < self.bytes.len() {
                add_group(self.number()?).ok_or(Error::Damaged)?;
                places.push(self.section()?);
            }
        }
        if end != series {
            return Err(Error::Damaged);
        }
        Ok(Chunks {
            moving,
            heads,
            groups,
            places,
            prior,
            known: OnceLock::new(),
        })
    }
}

impl Chunks {
    /// A model that knows what is known before a chunk is read.
    fn model(&self, bytes: &[u8]) -> Model {
        let columns = if self.places.iter().all(Range::is_empty) {
            0
        } else {
            self.moving.len()
        };
        if self.prior.is_empty() {
            return Model::new(columns);
        }
        let known = self.known.get_or_init(|| {
            let mut coder = Decoder::new(&bytes[self.prior.clone()]);
            Model::new(columns).code_prior(&mut coder).into()
        });
        Model::knowing(columns, Arc::clone(known))
    }
}
