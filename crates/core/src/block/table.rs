//! Series of rows of numbers, in chunks that are read one by one.
//!
//! The coded form is `form (u8) | columns (u8) | shift of each column (u8) | samples of a segment | number of
//! series | length of the index | index` and then by the form, numbers as LEB128. The index has of each series the
//! runs in which it was there and its first number, by which it is found (`heads.rs`).
//!
//! [`LEARNT`] goes on with `length of each head | heads | number of groups | series of each | length of the prior |
//! prior | length of each chunk | chunks`. A head has the rest of the first row of some series, which says whose it
//! is, and of what is seen once it is all. Samples are cut into segments and series into groups, and a chunk has
//! the rows of a group in a segment, so that neither all of a moment nor one series needs all of the rest. The
//! first row of a series in a segment is told from its very first one. What is known of each bit before a chunk is
//! read stands before all of them. A shift with its highest bit set is of a column in which each series has one
//! number all along, of which chunks say nothing.
//!
//! [`PACKED`] is one segment, and goes on with all rows column by column, each number by what it differs from the
//! one before, as one list (`packed.rs`).
//!
//! The form before these has its columns, with the highest bit set, in place of both of the first bytes, and an
//! index that is learnt too; it goes on as [`LEARNT`] does. The one before that, without that highest bit, has no
//! segments: `columns | shifts | number of series | length of heads | heads`, of which each is runs and a first row,
//! and then chunks, `number of series | length | bytes`, of all rows of some series.

use std::ops::Range;

use super::coder::{Coder, Counter, Encoder};
use super::heads::{code_firsts, count, samples, write_index};
use super::model::{History, Model};
use super::packed::{self, Differences, write_number};

/// A table with so many rows is cut, where it has more samples than a segment.
const CUT_ROWS: usize = if cfg!(test) { 100 } else { 4000 };
/// Samples of a segment: all of a moment costs about as much as is read of so many.
const SEGMENT: u32 = if cfg!(test) { 7 } else { 30 };
/// A chunk has about so many rows: who asks for one series reads half of them.
const CHUNK_ROWS: usize = if cfg!(test) { 20 } else { 100 };
/// A head has so many series: who asks for one reads about that many.
pub(super) const HEAD: usize = if cfg!(test) { 3 } else { 32 };
/// Of so many chunks one is counted for what is known of all.
const COUNTED: usize = 4;
/// Most columns, samples, series, and numbers in all: beyond what an hour of a host of thousands of
/// processes has.
pub(crate) const COLUMNS: usize = 64;
/// Form of a table that is learnt as it goes: more columns than there can be.
pub(super) const LEARNT: u8 = 0x7e;
/// Form of a table of packed columns.
pub(super) const PACKED: u8 = 0x7f;
/// Set in the columns of a table that may have segments, in the form before.
pub(super) const CUT: u8 = 0x80;
/// Set in the shift of a column in which each series has one number all along.
pub(super) const STILL: u8 = 0x80;
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
    let mut shifts: Vec<u8> = table.shifts.iter().map(|shift| *shift as u8).collect();
    for (at, shift) in shifts.iter_mut().enumerate() {
        *shift |= if table.moving.contains(&at) { 0 } else { STILL };
    }
    let mut bytes = begin(LEARNT, &shifts, table.segment, series);
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

/// The same as packed columns, which are larger and read faster.
///
/// # Panics
/// As [`encode`] does.
pub(crate) fn encode_packed(columns: usize, series: &[Series]) -> Vec<u8> {
    assert!((1..=COLUMNS).contains(&columns), "{columns} columns");
    let shifts = shifts(columns, series);
    let shifts: Vec<u8> = shifts.into_iter().map(|shift| shift as u8).collect();
    let mut bytes = begin(PACKED, &shifts, SAMPLES as u32, series);
    let mut plain = Vec::new();
    for (column, shift) in shifts.iter().enumerate() {
        let mut differences = Differences::default();
        let rows = series
            .iter()
            .flat_map(|series| series.rows.chunks_exact(columns));
        for row in rows {
            differences.write(&mut plain, row[column] >> shift);
        }
    }
    bytes.extend(packed::pack(&plain));
    bytes
}

/// The begin of either form.
fn begin(form: u8, shifts: &[u8], segment: u32, all: &[Series]) -> Vec<u8> {
    let columns = shifts.len();
    for series in all {
        let rows = (series.rows.len() / columns) as u64;
        assert_eq!(count(&series.runs), rows, "rows of a series");
    }
    let mut bytes = vec![form, columns as u8];
    bytes.extend(shifts);
    write_number(&mut bytes, segment.into());
    write_number(&mut bytes, all.len() as u64);
    let first = shifts[0] & !STILL;
    let known = all.iter().map(|series| {
        let number = series.rows.first().map(|number| number >> first);
        (&series.runs[..], number)
    });
    write_section(&mut bytes, &write_index(known));
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
pub(super) fn of_head(segments: u32) -> usize {
    if segments < 2 { usize::MAX } else { HEAD }
}

/// How many rows there are before a segment, and how many in it.
pub(super) fn rows_within(runs: &[Run], samples: u32, segment: u32) -> (usize, usize) {
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

fn write_section(bytes: &mut Vec<u8>, section: &[u8]) {
    write_number(bytes, section.len() as u64);
    bytes.extend(section);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::reader::Reader;
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
            for encode in [encode, encode_packed] {
                let bytes = encode(columns, &all);
                let reader = Reader::open(bytes.into()).expect("well formed");
                prop_assert_eq!((reader.columns(), reader.len()), (columns, all.len()));
                prop_assert_eq!(&reader.all().expect("well formed"), &all);
                for (number, series) in all.iter().enumerate() {
                    let one = reader.one(number).expect("well formed");
                    prop_assert_eq!(one.as_ref(), Some(series));
                }
                prop_assert_eq!(reader.one(all.len()).expect("well formed"), None);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 1..300),
            form in prop::option::of(LEARNT..=PACKED),
        ) {
            bytes[0] = form.unwrap_or(bytes[0]);
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
        for encode in [encode, encode_packed] {
            let bytes = encode(2, &[series.clone(), series.clone()]);
            for end in 0..bytes.len() {
                if let Ok(reader) = Reader::open(bytes[..end].to_vec().into()) {
                    let _ = reader.all();
                }
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
