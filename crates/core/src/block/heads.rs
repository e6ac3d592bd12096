//! The heads of a table: when each series was there, and its first row.

use super::coder::{Coder, Decoder};
use super::model::{History, Model};
use super::packed::{self, Differences, read_number, write_number};
use super::table::{Error, Run, SAMPLES};

pub(super) fn count(runs: &[Run]) -> u64 {
    runs.iter().map(|run| u64::from(run.length)).sum()
}

/// How many samples there are at least, so that all runs are of one of them.
pub(super) fn samples<'a>(all: impl Iterator<Item = &'a [Run]>) -> u32 {
    let ends = all.filter_map(|runs| runs.last());
    ends.map(|run| run.first + run.length).max().unwrap_or(0)
}

/// When a series was there, and its first number, if it ever was.
pub(super) type Known<'a> = (&'a [Run], Option<u64>);

/// Writes when each series was there and its first number: how many runs each has, the samples before each run
/// and those of it, and the first numbers.
pub(super) fn write_index<'a>(all: impl Iterator<Item = Known<'a>> + Clone) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (runs, _) in all.clone() {
        write_number(&mut bytes, runs.len() as u64);
    }
    for (runs, _) in all.clone() {
        let mut end = 0;
        for run in runs {
            write_number(&mut bytes, (run.first - end).into());
            write_number(&mut bytes, run.length.into());
            end = run.first + run.length;
        }
    }
    let mut firsts = Differences::default();
    for first in all.filter_map(|(_, first)| first) {
        firsts.write(&mut bytes, first);
    }
    packed::pack(&bytes)
}

/// What [`write_index`] gave, of so many series: the first number of one that never was there is 0.
pub(super) fn read_index(series: u64, kept: &[u8]) -> Result<(Vec<Vec<Run>>, Vec<u64>), Error> {
    let plain = packed::unpack(kept, u64::MAX)?;
    let mut rest = &plain[..];
    // Each takes a byte.
    if series > rest.len() as u64 {
        return Err(Error::Truncated);
    }
    let counts = (0..series).map(|_| read_number(&mut rest));
    let counts: Vec<u64> = counts.collect::<Result<_, _>>()?;
    let mut all = Vec::with_capacity(counts.len());
    for count in &counts {
        if *count > rest.len() as u64 {
            return Err(Error::Truncated);
        }
        let mut runs = Vec::with_capacity(*count as usize);
        let mut end = 0_u64;
        for number in 0..*count {
            let (gap, length) = (read_number(&mut rest)?, read_number(&mut rest)?);
            let first = end.checked_add(gap).ok_or(Error::Damaged)?;
            end = first.checked_add(length).ok_or(Error::Damaged)?;
            let is_apart = number == 0 || gap > 0;
            if length == 0 || !is_apart || end > SAMPLES {
                return Err(Error::Damaged);
            }
            runs.push(Run {
                first: first as u32,
                length: length as u32,
            });
        }
        all.push(runs);
    }
    let mut differences = Differences::default();
    let mut firsts = Vec::with_capacity(all.len());
    for runs in &all {
        firsts.push(if runs.is_empty() {
            0
        } else {
            differences.read(&mut rest)?
        });
    }
    if rest.is_empty() {
        Ok((all, firsts))
    } else {
        Err(Error::Damaged)
    }
}

/// A walk through the runs of all series as the forms before this one have them, with what may stand beside
/// each.
struct Heads<'a> {
    coder: Decoder<'a>,
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

impl<'a> Heads<'a> {
    fn new(columns: usize, coder: Decoder<'a>) -> Self {
        Self {
            coder,
            model: Model::new(columns),
            head: History::new(&vec![0; columns]),
            runs: Model::new(OF_RUN),
            run: History::new(&[0; OF_RUN]),
        }
    }

    /// The runs of the next series.
    fn runs(&mut self) -> Result<Vec<Run>, Error> {
        let mut runs = Vec::new();
        let mut end = 0_u64;
        loop {
            let (coder, none) = (&mut self.coder, [0; OF_RUN]);
            self.runs.code_first(coder, &mut self.run, &none);
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

    /// The first row of the next series.
    fn first(&mut self) -> &[u64] {
        let none = vec![0; self.head.row().len()];
        self.model
            .code_first(&mut self.coder, &mut self.head, &none);
        self.head.row()
    }
}

/// When a series was there, and some columns of its first row.
type Indexed = (Vec<Run>, Vec<u64>);

/// Reads when each of so many series was there, and some columns of its first row, as the forms before this one
/// have them; of one that never was there these are none.
pub(super) fn heads(columns: usize, series: u64, coded: &[u8]) -> Result<Vec<Indexed>, Error> {
    let mut walk = Heads::new(columns, Decoder::new(coded));
    let mut heads = Vec::new();
    for _ in 0..series {
        let runs = walk.runs()?;
        let first = if runs.is_empty() {
            Vec::new()
        } else {
            walk.first().to_vec()
        };
        heads.push((runs, first));
    }
    Ok(heads)
}

/// Codes first rows one after the other; a reader gives none of them, but how many they are.
pub(super) fn code_firsts<'a>(
    coder: &mut impl Coder,
    columns: usize,
    rows: impl Iterator<Item = &'a [u64]>,
) -> Vec<Vec<u64>> {
    let (mut model, mut head) = (Model::new(columns), History::new(&vec![0; columns]));
    let code = |row: &'a [u64]| {
        model.code_first(coder, &mut head, row);
        head.row().to_vec()
    };
    rows.map(code).collect()
}
