//! The heads of a table: when each series was there, and its first row.

use super::coder::{Coder, Decoder};
use super::model::{History, Model};
use super::table::{Error, Run, SAMPLES};

pub(super) fn count(runs: &[Run]) -> u64 {
    runs.iter().map(|run| u64::from(run.length)).sum()
}

/// How many samples there are at least, so that all runs are of one of them.
pub(super) fn samples<'a>(all: impl Iterator<Item = &'a [Run]>) -> u32 {
    let ends = all.filter_map(|runs| runs.last());
    ends.map(|run| run.first + run.length).max().unwrap_or(0)
}

/// A walk through the runs of all series, for whoever writes them and for whoever reads them, with what may
/// stand beside each.
pub(super) struct Heads<C> {
    pub(super) coder: C,
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
    pub(super) fn new(columns: usize, coder: C) -> Self {
        Self {
            coder,
            model: Model::new(columns),
            head: History::new(&vec![0; columns]),
            runs: Model::new(OF_RUN),
            run: History::new(&[0; OF_RUN]),
        }
    }

    /// Codes the runs of a series; a reader gives none, and gets them.
    pub(super) fn runs(&mut self, known: &[Run]) -> Result<Vec<Run>, Error> {
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
    pub(super) fn first(&mut self, row: &[u64]) -> &[u64] {
        self.model.code_first(&mut self.coder, &mut self.head, row);
        self.head.row()
    }
}

/// When a series was there, and some columns of its first row.
type Indexed = (Vec<Run>, Vec<u64>);

/// Reads when each of so many series was there, and some columns of its first row; of one that never was there
/// these are none.
pub(super) fn heads(columns: usize, series: u64, coded: &[u8]) -> Result<Vec<Indexed>, Error> {
    let mut walk = Heads::new(columns, Decoder::new(coded));
    let none = vec![0; columns];
    let mut heads = Vec::new();
    for _ in 0..series {
        let runs = walk.runs(&[])?;
        let first = if runs.is_empty() {
            Vec::new()
        } else {
            walk.first(&none).to_vec()
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
