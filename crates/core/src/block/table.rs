//! Series of rows of numbers, in chunks that are read one by one.
//!
//! The coded form is `columns (u8) | shift of each column (u8) | number of series | length of heads | heads |
//! chunks`, numbers as LEB128; a chunk is `number of series | length | bytes`. A shift with its highest bit
//! set is of a column in which each series has one number all along, of which chunks say nothing. Heads are of each series the
//! runs in which it was there and its first row: they say whose it is, and of what is seen once they are all.
//! A chunk has the next rows of its series.

use super::coder::{Coder, Decoder, Encoder};
use super::model::{History, Model};

/// A chunk has so many rows or a little more: what is learnt of one serves it, and a question about one
/// series reads no more.
const CHUNK_ROWS: usize = 2000;
/// Most columns, samples, series, and numbers in all: beyond what an hour of a host of thousands of
/// processes has.
pub(crate) const COLUMNS: usize = 64;
/// Set in the shift of a column in which each series has one number all along.
const STILL: u8 = 0x80;
const SAMPLES: u64 = 1 << 20;
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
    let shifts = shifts(columns, series);
    let moving = moving(columns, series);
    let mut bytes = vec![columns as u8];
    bytes.extend(shifts.iter().enumerate().map(|(at, shift)| {
        let still = if moving.contains(&at) { 0 } else { STILL };
        *shift as u8 | still
    }));
    write_number(&mut bytes, series.len() as u64);
    let mut heads = Heads::new(columns, Encoder::new());
    for series in series {
        let count = heads.runs(&series.runs).map(|runs| count(&runs));
        let rows = series.rows.len() / columns;
        assert_eq!(count, Ok(rows as u64), "rows of a series");
        if let Some(first) = series.rows.chunks_exact(columns).next() {
            heads.first(&shifted(first, &shifts));
        }
    }
    let coded = heads.coder.finish();
    write_number(&mut bytes, coded.len() as u64);
    bytes.extend(coded);
    let mut rest = series;
    while !rest.is_empty() {
        let mut rows = 0;
        let count = rest
            .iter()
            .take_while(|series| {
                let is_first = rows == 0;
                rows += further(columns, series);
                is_first || rows <= CHUNK_ROWS
            })
            .count();
        let (chunk, next) = rest.split_at(count);
        let coded = encode_chunk(columns, (&shifts, &moving), chunk);
        write_number(&mut bytes, count as u64);
        write_number(&mut bytes, coded.len() as u64);
        bytes.extend(coded);
        rest = next;
    }
    bytes
}

/// Rows of a series beside its first.
fn further(columns: usize, series: &Series) -> usize {
    (series.rows.len() / columns).saturating_sub(1)
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

/// The rows of a chunk's series but the first of each.
fn encode_chunk(columns: usize, (shifts, moving): (&[u32], &[usize]), chunk: &[Series]) -> Vec<u8> {
    if moving.is_empty() || chunk.iter().all(|series| further(columns, series) == 0) {
        return Vec::new();
    }
    let mut model = Model::new(moving.len());
    let mut coder = Encoder::new();
    let mut row = vec![0; moving.len()];
    let fill = |row: &mut [u64], numbers: &[u64]| {
        for (number, column) in row.iter_mut().zip(moving) {
            *number = numbers[*column] >> shifts[*column];
        }
    };
    for series in chunk {
        let mut rows = series.rows.chunks_exact(columns);
        let Some(first) = rows.next() else { continue };
        fill(&mut row, first);
        let mut history = History::new(&row);
        for next in rows {
            fill(&mut row, next);
            model.code(&mut coder, &mut history, &row);
        }
    }
    coder.finish()
}

fn count(runs: &[Run]) -> u64 {
    runs.iter().map(|run| u64::from(run.length)).sum()
}

/// A walk through the heads of all series, for whoever writes them and for whoever reads them.
struct Heads<C> {
    coder: C,
    /// First rows, each of which follows from the one before.
    model: Model,
    head: History,
    /// Runs of a series follow from those of the one before: number of runs, begin, lengths and gaps.
    runs: Model,
    run: History,
}

/// Columns of what is told of runs: how many more there are, samples from the end of the run before,
/// and length.
const OF_RUN: usize = 3;

impl<C: Coder> Heads<C> {
    fn new(columns: usize, coder: C) -> Self {
        Self {
            coder,
            model: Model::new(columns),
            head: History::new(&vec![0; columns]),
            runs: Model::new(OF_RUN),
            run: History::new(&[0; OF_RUN]),
        }
    }

    /// Codes the runs of a series; a reader gives none, and gets them.
    fn runs(&mut self, known: &[Run]) -> Result<Vec<Run>, Error> {
        let mut runs = Vec::new();
        let mut end = 0;
        loop {
            let next = known.get(runs.len());
            let left = known.len().saturating_sub(runs.len()) as u64;
            let row = match next {
                Some(run) => [left, u64::from(run.first) - end, u64::from(run.length)],
                None => [0; OF_RUN],
            };
            self.runs.code_first(&mut self.coder, &mut self.run, &row);
            let &[left, gap, length] = self.run.row() else {
                return Err(Error::Damaged);
            };
            if left == 0 {
                return Ok(runs);
            }
            let first = end.checked_add(gap).ok_or(Error::Damaged)?;
            let is_apart = runs.is_empty() || gap > 0;
            end = first.checked_add(length).ok_or(Error::Damaged)?;
            if length == 0 || !is_apart || end > SAMPLES {
                return Err(Error::Damaged);
            }
            runs.push(Run {
                first: first as u32,
                length: length as u32,
            });
            if left == 1 {
                return Ok(runs);
            }
        }
    }

    /// Codes the first row of a series, and returns it.
    fn first(&mut self, row: &[u64]) -> &[u64] {
        self.model.code_first(&mut self.coder, &mut self.head, row);
        self.head.row()
    }
}

/// When something was there, and its first row as it is coded; of one that never was there none.
type Head = (Vec<Run>, Vec<u64>);

/// A coded table whose heads have been read; chunks are read on demand.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    shifts: Vec<u8>,
    /// Columns in which a series has more than one number.
    moving: Vec<usize>,
    heads: Vec<Head>,
    chunks: Vec<Chunk<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct Chunk<'a> {
    /// Number of its first series.
    first: usize,
    series: usize,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads the heads, and finds the chunks.
    pub fn open(mut bytes: &'a [u8]) -> Result<Self, Error> {
        let columns = usize::from(*bytes.split_off_first().ok_or(Error::Truncated)?);
        if !(1..=COLUMNS).contains(&columns) {
            return Err(Error::Damaged);
        }
        let shifts = bytes.split_off(..columns).ok_or(Error::Truncated)?;
        let moving = (0..columns).filter(|column| shifts[*column] & STILL == 0);
        let moving: Vec<usize> = moving.collect();
        let shifts: Vec<u8> = shifts.iter().map(|shift| shift & !STILL).collect();
        if shifts.iter().any(|shift| *shift > 63) {
            return Err(Error::Damaged);
        }
        let series = read_number(&mut bytes)?;
        let length = read_number(&mut bytes)?;
        let length = usize::try_from(length).map_err(|_| Error::Damaged)?;
        let coded = bytes.split_off(..length).ok_or(Error::Truncated)?;
        if series > SERIES {
            return Err(Error::Damaged);
        }
        let heads = heads(columns, series, coded)?;
        let (mut chunks, mut first) = (Vec::new(), 0_u64);
        while !bytes.is_empty() {
            let count = read_number(&mut bytes)?;
            let length = read_number(&mut bytes)?;
            let length = usize::try_from(length).map_err(|_| Error::Damaged)?;
            if count == 0 {
                return Err(Error::Damaged);
            }
            chunks.push(Chunk {
                first: first as usize,
                series: usize::try_from(count).map_err(|_| Error::Damaged)?,
                bytes: bytes.split_off(..length).ok_or(Error::Truncated)?,
            });
            first = first.checked_add(count).ok_or(Error::Damaged)?;
        }
        if first != series {
            return Err(Error::Damaged);
        }
        Ok(Self {
            shifts,
            moving,
            heads,
            chunks,
        })
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        self.shifts.len()
    }

    /// The number in a column of the first row of each series; of one without rows 0.
    pub(crate) fn firsts(&self, column: usize) -> impl Iterator<Item = u64> {
        let shift = self.shifts.get(column).copied().unwrap_or_default();
        let of = move |head: &Vec<u64>| head.get(column).map_or(0, |number| number << shift);
        self.heads.iter().map(move |(_, head)| of(head))
    }

    /// All series.
    pub fn all(&self) -> Result<Vec<Series>, Error> {
        let mut all = Vec::with_capacity(self.heads.len());
        for chunk in &self.chunks {
            all.extend(self.read(*chunk, |_| true)?.into_iter().map(|(_, one)| one));
        }
        Ok(all)
    }

    /// One series; `None` where there are not so many.
    pub fn one(&self, number: usize) -> Result<Option<Series>, Error> {
        let mut found = self.some(&[number])?;
        Ok(found.pop().map(|(_, series)| series))
    }

    /// Those of these numbers, ascending, that there are.
    pub(crate) fn some(&self, numbers: &[usize]) -> Result<Vec<(usize, Series)>, Error> {
        let mut found = Vec::new();
        for chunk in &self.chunks {
            let end = chunk.first + chunk.series;
            let wanted = |number: usize| numbers.binary_search(&number).is_ok();
            if (chunk.first..end).any(wanted) {
                found.extend(self.read(*chunk, wanted)?);
            }
        }
        Ok(found)
    }

    /// Those series of a chunk that are wanted; behind the last of them nothing is read.
    fn read(
        &self,
        chunk: Chunk<'_>,
        is_wanted: impl Fn(usize) -> bool,
    ) -> Result<Vec<(usize, Series)>, Error> {
        let columns = self.columns();
        let mut model = Model::new(if chunk.bytes.is_empty() {
            0
        } else {
            self.moving.len()
        });
        let mut coder = Decoder::new(chunk.bytes);
        let none = vec![0; self.moving.len()];
        let numbers = chunk.first..chunk.first + chunk.series;
        let Some(last) = numbers.clone().rev().find(|number| is_wanted(*number)) else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for number in numbers.start..=last {
            let (runs, head) = &self.heads[number];
            let keep = is_wanted(number);
            let count = count(runs) as usize;
            let mut rows = Vec::with_capacity(if keep { count * columns } else { 0 });
            if count > 0 {
                let is_coded = count > 1 && !self.moving.is_empty();
                if is_coded && chunk.bytes.is_empty() {
                    return Err(Error::Truncated);
                }
                let first: Vec<u64> = self.moving.iter().map(|column| head[*column]).collect();
                let mut history = History::new(&first);
                let mut row = head.clone();
                let mut push = |history: &History| {
                    if keep {
                        for (column, number) in self.moving.iter().zip(history.row()) {
                            row[*column] = *number;
                        }
                        self.push(&mut rows, &row);
                    }
                };
                push(&history);
                for _ in 1..count {
                    if is_coded {
                        model.code(&mut coder, &mut history, &none);
                    }
                    push(&history);
                }
            }
            if keep {
                let runs = runs.clone();
                all.push((number, Series { runs, rows }));
            }
        }
        Ok(all)
    }

    fn push(&self, rows: &mut Vec<u64>, row: &[u64]) {
        let numbers = row.iter().zip(&self.shifts);
        rows.extend(numbers.map(|(number, shift)| number << shift));
    }
}

/// Reads the heads of so many series; what all rows together have is bounded.
fn heads(columns: usize, series: u64, coded: &[u8]) -> Result<Vec<Head>, Error> {
    let mut walk = Heads::new(columns, Decoder::new(coded));
    let none = vec![0; columns];
    let mut left = NUMBERS;
    let mut heads = Vec::new();
    for _ in 0..series {
        let runs = walk.runs(&[])?;
        let count = count(&runs);
        let numbers = count.checked_mul(columns as u64);
        let rest = numbers.and_then(|numbers| left.checked_sub(numbers));
        left = rest.ok_or(Error::Damaged)?;
        let first = if count > 0 {
            walk.first(&none).to_vec()
        } else {
            Vec::new()
        };
        heads.push((runs, first));
    }
    Ok(heads)
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
            let reader = Reader::open(&bytes).expect("well formed");
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
            if let Ok(reader) = Reader::open(&bytes) {
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
            if let Ok(reader) = Reader::open(&bytes[..end]) {
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
