//! Rows of things of one kind, whatever their widths: those of one width are a table, a wide one several.

use std::collections::BTreeMap;
use std::hash::Hash;

use hashbrown::HashMap;

use super::Error;
use super::table::{self, COLUMNS, NUMBERS, Reader, SERIES, Series, read_number, write_number};

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

    pub(crate) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (width, series) in self.0.into_iter().filter(|(width, _)| *width > 0) {
            write_number(&mut bytes, width as u64);
            let mut series: Vec<(K, Series)> = series.into_iter().collect();
            series.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            let series: Vec<Series> = series.into_iter().map(|(_, series)| series).collect();
            if width <= COLUMNS {
                push(&mut bytes, &table::encode(width, &series));
                continue;
            }
            for begin in (0..width).step_by(COLUMNS) {
                let end = (begin + COLUMNS).min(width);
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
                push(&mut bytes, &table::encode(end - begin, &parts));
            }
        }
        bytes
    }
}

fn push(bytes: &mut Vec<u8>, coded: &[u8]) {
    write_number(bytes, coded.len() as u64);
    bytes.extend(coded);
}

/// Rows that were read, by sample.
#[derive(Debug)]
pub(crate) struct Decoded {
    tables: Vec<Rectangle>,
    /// Where the rows of each sample begin in `places`, and where the last end.
    begins: Vec<u32>,
    /// Table and number of each row.
    places: Vec<(u32, u32)>,
}

/// Rows of one width, one after the other.
#[derive(Debug)]
struct Rectangle {
    width: usize,
    cells: Vec<u64>,
}

impl Decoded {
    /// Reads all rows of so many samples.
    pub(crate) fn read(bytes: &[u8], samples: usize) -> Result<Self, Error> {
        Self::read_where(bytes, samples, None)
    }

    /// Reads the rows of those whose first number is `first`.
    pub(crate) fn read_some(bytes: &[u8], samples: usize, first: u64) -> Result<Self, Error> {
        Self::read_where(bytes, samples, Some(first))
    }

    fn read_where(mut bytes: &[u8], samples: usize, first: Option<u64>) -> Result<Self, Error> {
        let mut left = NUMBERS as usize;
        let mut tables = Vec::new();
        let mut found: Vec<(u32, u32, u32)> = Vec::new();
        while !bytes.is_empty() {
            let width = usize::try_from(read_number(&mut bytes)?).map_err(|_| Error::Mismatch)?;
            let (cells, of) = read_table(&mut bytes, width, first)?;
            left = left.checked_sub(cells.len()).ok_or(Error::TooLarge)?;
            let table = tables.len() as u32;
            let rows = of.into_iter().enumerate();
            found.extend(rows.map(|(row, sample)| (sample, table, row as u32)));
            tables.push(Rectangle { width, cells });
        }
        if found.iter().any(|(sample, ..)| *sample as usize >= samples) {
            return Err(Error::Mismatch);
        }
        found.sort_by_key(|(sample, ..)| *sample);
        let mut begins = vec![0; samples + 1];
        for (sample, ..) in &found {
            begins[*sample as usize + 1] += 1;
        }
        for sample in 0..samples {
            begins[sample + 1] += begins[sample];
        }
        let places = found.into_iter().map(|(_, table, row)| (table, row));
        Ok(Self {
            tables,
            begins,
            places: places.collect(),
        })
    }

    /// The rows of a sample.
    pub(crate) fn of(&self, sample: usize) -> impl Iterator<Item = &[u64]> {
        let begin = self.begins.get(sample).copied().unwrap_or_default();
        let end = self.begins.get(sample + 1).copied().unwrap_or(begin);
        let places = &self.places[begin as usize..end as usize];
        places.iter().map(|(table, row)| {
            let Rectangle { width, cells } = &self.tables[*table as usize];
            &cells[*row as usize * width..][..*width]
        })
    }
}

/// The rows of the next table, and the sample of each.
fn read_table(
    bytes: &mut &[u8],
    width: usize,
    first: Option<u64>,
) -> Result<(Vec<u64>, Vec<u32>), Error> {
    let mut parts: Vec<(usize, Vec<(usize, Series)>)> = Vec::new();
    let mut wanted: Vec<usize> = Vec::new();
    let mut left = width;
    while left > 0 {
        let length = usize::try_from(read_number(bytes)?).map_err(|_| Error::Mismatch)?;
        let coded = bytes.split_off(..length).ok_or(Error::Truncated)?;
        let reader = Reader::open(coded)?;
        let columns = reader.columns();
        left = left.checked_sub(columns).ok_or(Error::Mismatch)?;
        if parts.is_empty() {
            let firsts = reader.firsts(0).enumerate();
            let is_wanted = |number: u64| first.is_none_or(|first| first == number);
            wanted = firsts
                .filter(|(_, number)| is_wanted(*number))
                .map(|(at, _)| at)
                .collect();
        }
        parts.push((columns, reader.some(&wanted)?));
    }
    if parts.iter().any(|(_, part)| part.len() != wanted.len()) {
        return Err(Error::Mismatch);
    }
    let (mut cells, mut samples) = (Vec::new(), Vec::new());
    for number in 0..wanted.len() {
        let runs = &parts[0].1[number].1.runs;
        let same = |(_, part): &(usize, Vec<(usize, Series)>)| part[number].1.runs == *runs;
        if !parts.iter().all(same) {
            return Err(Error::Mismatch);
        }
        let before = samples.len();
        samples.extend(
            runs.iter()
                .flat_map(|run| run.first..run.first + run.length),
        );
        if let [(_, only)] = &mut parts[..] {
            cells.append(&mut only[number].1.rows);
            continue;
        }
        for at in 0..samples.len() - before {
            for (columns, part) in &parts {
                cells.extend(&part[number].1.rows[at * columns..(at + 1) * columns]);
            }
        }
    }
    Ok((cells, samples))
}
