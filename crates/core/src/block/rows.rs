//! Rows of things of one kind, whatever their widths: those of one width are a table, a wide one several.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::Error;
use super::table::{self, COLUMNS, Reader, Run, Series, read_number, write_number};

/// Rows by width and by whose they are; things that are alike have keys that stand beside each other.
#[derive(Debug)]
pub(super) struct Rows<K>(BTreeMap<usize, HashMap<K, Series>>);

impl<K> Default for Rows<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Hash> Rows<K> {
    /// Adds a row of a sample; of each key samples come in their order.
    pub(super) fn add(&mut self, sample: usize, key: K, cells: Vec<u64>) {
        let sample = u32::try_from(sample).expect("a block has less samples");
        let series = self
            .0
            .entry(cells.len())
            .or_default()
            .entry(key)
            .or_default();
        series.rows.extend(cells);
        match series.runs.last_mut() {
            Some(run) if run.first + run.length == sample => run.length += 1,
            _ => series.runs.push(Run {
                first: sample,
                length: 1,
            }),
        }
    }

    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (width, series) in self.0.into_iter().filter(|(width, _)| *width > 0) {
            write_number(&mut bytes, width as u64);
            let mut series: Vec<(K, Series)> = series.into_iter().collect();
            series.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            let series: Vec<Series> = series.into_iter().map(|(_, series)| series).collect();
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
                let coded = table::encode(end - begin, &parts);
                write_number(&mut bytes, coded.len() as u64);
                bytes.extend(coded);
            }
        }
        bytes
    }
}

/// Gives each row of each sample, those of one thing in their order.
pub(super) fn decode(
    mut bytes: &[u8],
    mut take: impl FnMut(usize, &[u64]) -> Result<(), Error>,
) -> Result<(), Error> {
    while !bytes.is_empty() {
        let width = usize::try_from(read_number(&mut bytes)?).map_err(|_| Error::Mismatch)?;
        let mut parts = Vec::new();
        let mut left = width;
        while left > 0 {
            let length = usize::try_from(read_number(&mut bytes)?).map_err(|_| Error::Mismatch)?;
            let (coded, rest) = bytes.split_at_checked(length).ok_or(Error::Truncated)?;
            bytes = rest;
            let reader = Reader::open(coded)?;
            let columns = reader.columns();
            left = left.checked_sub(columns).ok_or(Error::Mismatch)?;
            parts.push((columns, reader.all()?));
        }
        let series = parts.first().map_or(0, |(_, series)| series.len());
        if parts.iter().any(|(_, part)| part.len() != series) {
            return Err(Error::Mismatch);
        }
        for number in 0..series {
            let runs = &parts[0].1[number].runs;
            if parts.iter().any(|(_, part)| part[number].runs != *runs) {
                return Err(Error::Mismatch);
            }
            let samples = runs
                .iter()
                .flat_map(|run| run.first..run.first + run.length);
            let mut cells = Vec::with_capacity(width);
            for (at, sample) in samples.enumerate() {
                cells.clear();
                for (columns, part) in &parts {
                    cells.extend(&part[number].rows[at * columns..(at + 1) * columns]);
                }
                take(sample as usize, &cells)?;
            }
        }
    }
    Ok(())
}
