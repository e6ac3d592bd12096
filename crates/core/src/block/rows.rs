//! Rows of things of one kind, whatever their widths: those of one width are a table, a wide one several.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::ops::Range;
use std::sync::OnceLock;

use bytes::Bytes;
use hashbrown::HashMap;

use super::Error;
use super::heads::{self, count};
use super::packed::{read_number, write_number};
use super::reader::{Reader, Wanted};
use super::table::{self, COLUMNS, NUMBERS, SERIES, Series};

/// Rows by width and by whose they are; things that are alike have keys that stand beside each other.
#[derive(Debug)]
pub(crate) struct Rows<K>(BTreeMap<usize, HashMap<K, Series>>);

impl<K> Default for Rows<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Hash> Rows<K> {
    /// Adds a row of a sample; of each key samples come in their order.
    pub(crate) fn add(&mut self, sample: usize, key: K, cells: Vec<u64>) {
        let sample = u32::try_from(sample).expect("a block has less samples");
        let of_width = self.0.entry(cells.len()).or_default();
        of_width.entry(key).or_default().push(sample, cells);
    }

    /// Whether a reader would refuse them.
    pub(crate) fn is_too_large(&self) -> bool {
        let series = self.0.values().flat_map(HashMap::values);
        let numbers: u64 = series.map(|series| series.rows.len() as u64).sum();
        let mut tables = self.0.values();
        numbers > NUMBERS || tables.any(|table| table.len() as u64 > SERIES)
    }

    /// As small as can be.
    pub(crate) fn encode(self) -> Vec<u8> {
        self.encode_with(table::encode, &[])
    }

    /// To be read fast; wide rows have parts of these widths first: each can be read without the others.
    pub(crate) fn encode_packed(self, widths: &[usize]) -> Vec<u8> {
        self.encode_with(table::encode_packed, widths)
    }

    fn encode_with(self, encode: fn(usize, &[Series]) -> Vec<u8>, widths: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (width, series) in self.0.into_iter().filter(|(width, _)| *width > 0) {
            write_number(&mut bytes, width as u64);
            let mut series: Vec<(K, Series)> = series.into_iter().collect();
            series.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            let series: Vec<Series> = series.into_iter().map(|(_, series)| series).collect();
            if width <= COLUMNS {
                push(&mut bytes, &encode(width, &series));
                continue;
            }
            let mut widths = widths.iter();
            let mut begin = 0;
            while begin < width {
                let columns = widths.next().copied().unwrap_or(COLUMNS);
                let end = (begin + columns).min(width);
                let part = |series: &Series| Series {
                    runs: series.runs.clone(),
                    rows: series
                        .rows
                        .chunks_exact(width)
                        .flat_map(|row| &row[begin..end])
                        .copied()
                        .collect(),
                };
                let parts: Vec<Series> = series.iter().map(part).collect();
                push(&mut bytes, &encode(end - begin, &parts));
                begin = end;
            }
        }
        bytes
    }
}

fn push(bytes: &mut Vec<u8>, coded: &[u8]) {
    write_number(bytes, coded.len() as u64);
    bytes.extend(coded);
}

/// Rows of some samples; each table of them is read segment by segment, as samples are asked for.
#[derive(Debug)]
pub(crate) struct Decoded {
    samples: usize,
    tables: Vec<Table>,
}

/// Which rows are read, and what of them; without anything, all.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Selection<'a> {
    /// Those alone whose first number is one of these.
    pub(crate) firsts: Option<&'a [u64]>,
    /// Of wide rows the parts of these widths, as far as they are said to be wanted; for the others there is 0.
    /// Where rows were written in other parts they are read whole.
    pub(crate) parts: &'a [(usize, bool)],
}

/// Rows of one width.
#[derive(Debug)]
struct Table {
    /// Those of a wide one have some columns each, and are read or not.
    parts: Vec<(Reader, bool)>,
    /// Which series are read; of nothing, all.
    wanted: Option<Vec<usize>>,
    segments: Vec<(Range<u32>, OnceLock<Segment>)>,
}

/// Rows of some samples one after the other.
#[derive(Debug)]
struct Segment {
    width: usize,
    cells: Vec<u64>,
    /// Where the rows of each sample begin in `places`, and where the last end.
    begins: Vec<u32>,
    /// Number of each row.
    places: Vec<u32>,
}

impl Decoded {
    /// Opens rows of so many samples.
    pub(crate) fn open(
        bytes: Bytes,
        samples: usize,
        selection: Selection<'_>,
    ) -> Result<Self, Error> {
        let mut left = NUMBERS;
        let mut tables = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let width = usize::try_from(read_number(&mut rest)?).map_err(|_| Error::Mismatch)?;
            let mut parts: Vec<Reader> = Vec::new();
            let mut columns = 0;
            while columns < width {
                let length =
                    usize::try_from(read_number(&mut rest)?).map_err(|_| Error::Mismatch)?;
                let coded = rest.split_off(..length).ok_or(Error::Truncated)?;
                let part = Reader::open(bytes.slice_ref(coded))?;
                columns += part.columns();
                if let Some(first) = parts.first()
                    && !(part.runs().eq(first.runs()) && part.segments().eq(first.segments()))
                {
                    return Err(Error::Mismatch);
                }
                parts.push(part);
            }
            let Some(reader) = parts.first().filter(|_| columns == width) else {
                return Err(Error::Mismatch);
            };
            let numbers = reader
                .runs()
                .map(count)
                .sum::<u64>()
                .checked_mul(width as u64);
            let numbers = numbers.and_then(|numbers| left.checked_sub(numbers));
            left = numbers.ok_or(Error::TooLarge)?;
            if heads::samples(reader.runs()) as usize > samples {
                return Err(Error::Mismatch);
            }
            let wanted = selection.firsts.map(|wanted| {
                let firsts = reader.firsts().enumerate();
                let wanted = firsts.filter(|(_, number)| wanted.contains(number));
                wanted.map(|(at, _)| at).collect()
            });
            let widths = selection.parts.iter().map(|(width, _)| *width);
            let is_in_parts = widths.eq(parts.iter().map(Reader::columns));
            let is_read = |at: usize| !is_in_parts || selection.parts[at].1;
            let segments = reader.segments().map(|samples| (samples, OnceLock::new()));
            tables.push(Table {
                segments: segments.collect(),
                wanted,
                parts: parts
                    .into_iter()
                    .enumerate()
                    .map(|(at, part)| (part, is_read(at)))
                    .collect(),
            });
        }
        Ok(Self { samples, tables })
    }

    /// The rows of a sample.
    pub(crate) fn of(&self, sample: usize) -> Result<Vec<&[u64]>, Error> {
        if sample >= self.samples {
            return Err(Error::Mismatch);
        }
        let mut found = Vec::new();
        for table in &self.tables {
            let holds = |(samples, _): &(Range<u32>, _)| samples.contains(&(sample as u32));
            let Some(number) = table.segments.iter().position(holds) else {
                continue;
            };
            let (samples, known) = &table.segments[number];
            let segment = if let Some(segment) = known.get() {
                segment
            } else {
                let read = table.read(number, samples)?;
                known.get_or_init(|| read)
            };
            found.extend(segment.of(sample - samples.start as usize));
        }
        Ok(found)
    }
}

impl Table {
    fn read(&self, number: usize, samples: &Range<u32>) -> Result<Segment, Error> {
        let wanted = Wanted(self.wanted.as_deref());
        // The sample of each row, a series after the other.
        let mut of: Vec<u32> = Vec::new();
        let first = &self.parts[0].0;
        for run in wanted
            .each(first.len())
            .flat_map(|series| first.runs_of(series))
        {
            let end = (run.first + run.length).min(samples.end);
            of.extend((run.first.max(samples.start)..end).map(|sample| sample - samples.start));
        }
        let width: usize = self.parts.iter().map(|(part, _)| part.columns()).sum();
        let mut cells = vec![
            0;
            if self.parts.len() > 1 {
                of.len() * width
            } else {
                0
            }
        ];
        if of.is_empty() {
            // Of none that is wanted.
        } else if let [(only, _)] = &self.parts[..] {
            cells.reserve_exact(of.len() * width);
            only.read(number, wanted, |_, row| cells.extend(row))?;
        } else {
            let mut begin = 0;
            for (part, is_read) in &self.parts {
                let mut rows = cells.chunks_exact_mut(width);
                if *is_read {
                    part.read(number, wanted, |_, row| {
                        if let Some(cells) = rows.next() {
                            cells[begin..begin + row.len()].copy_from_slice(row);
                        }
                    })?;
                }
                begin += part.columns();
            }
        }
        let length = of.iter().max().map_or(0, |last| *last as usize + 1);
        let mut begins = vec![0_u32; length + 1];
        for sample in &of {
            begins[*sample as usize + 1] += 1;
        }
        for sample in 0..length {
            begins[sample + 1] += begins[sample];
        }
        let mut next = begins.clone();
        let mut places = vec![0; of.len()];
        for (row, sample) in of.into_iter().enumerate() {
            let place = &mut next[sample as usize];
            places[*place as usize] = row as u32;
            *place += 1;
        }
        Ok(Segment {
            width,
            cells,
            begins,
            places,
        })
    }
}

impl Segment {
    fn of(&self, sample: usize) -> impl Iterator<Item = &[u64]> {
        let begin = self.begins.get(sample).copied().unwrap_or_default();
        let end = self.begins.get(sample + 1).copied().unwrap_or(begin);
        let places = &self.places[begin as usize..end as usize];
        let row = |row: &u32| &self.cells[*row as usize * self.width..][..self.width];
        places.iter().map(row)
    }
}
