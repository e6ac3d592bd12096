//! How a row follows from the rows before it: what is coded, with which bit of what was learnt.

use super::coder::{Bit, Coder, NEW, TOGETHER};

/// Sizes of a change are told apart by their bits: 0 to 64.
const SIZES: usize = 65;
/// Nodes of a tree of seven levels, which leads to a size.
const TREE: usize = 128;
/// Sizes of the change before that are told apart.
const BEFORE: usize = 21;
/// Changes of a column that are remembered: many come again.
const KEPT: usize = 4;
/// No change that is remembered.
const NONE: usize = KEPT;
/// Nothing is known yet.
const UNKNOWN: usize = KEPT + 1;
/// Leading bits of a change, behind the first, of which something is learnt.
const LEADING: u32 = 3;

/// What is learnt of a number of columns.
pub(super) struct Model {
    changed: Vec<Bit>,
    mask: Vec<Bit>,
    again: Vec<Bit>,
    sign: Vec<Bit>,
    size: Vec<Bit>,
    leading: Vec<Bit>,
}

/// What the rows before say of one series.
pub(super) struct History {
    row: Vec<u64>,
    /// Whether something changed, in the last three rows, the latest in the lowest bit.
    recent: usize,
    /// Rows since something changed.
    quiet: u32,
    changes: u32,
    rows: u32,
    columns: Vec<Column>,
}

#[derive(Clone, Copy)]
struct Column {
    /// It changed in the last row in which something did.
    changed: bool,
    /// Which of the kept ones its last change was.
    again: usize,
    kept: [i64; KEPT],
    /// Bits of its last change, and whether that was down.
    size: usize,
    down: bool,
}

impl History {
    pub(super) fn new(first: &[u64]) -> Self {
        let column = Column {
            changed: false,
            again: NONE,
            kept: [0; KEPT],
            size: 0,
            down: false,
        };
        Self {
            row: first.to_vec(),
            recent: 0,
            quiet: 0,
            changes: 0,
            rows: 0,
            columns: vec![column; first.len()],
        }
    }

    /// The last row.
    pub(super) fn row(&self) -> &[u64] {
        &self.row
    }

    /// How often something changed, in eighths.
    fn activity(&self) -> usize {
        match self.rows {
            0..3 => 0,
            rows => (8 * self.changes / rows) as usize,
        }
    }

    fn quiet_class(&self) -> usize {
        match self.quiet {
            quiet @ 0..4 => quiet as usize,
            quiet => 2 + quiet.min(40).ilog2() as usize,
        }
    }
}

impl Model {
    pub(super) fn new(columns: usize) -> Self {
        let bits = |count: usize| vec![NEW; count];
        Self {
            changed: bits(8 * 8 * 9),
            mask: bits(columns * 2 * 64),
            again: bits(columns * KEPT * 6 * 6),
            sign: bits(columns * 2),
            size: bits(columns * BEFORE * TREE),
            leading: bits(columns * SIZES * (1 << LEADING)),
        }
    }

    /// Codes the row after those that `history` knows. A reader gives any row of that length, and finds
    /// what was written in the history.
    pub(super) fn code(&mut self, coder: &mut impl Coder, history: &mut History, row: &[u64]) {
        let known = (history.recent * 8 + history.quiet_class()) * 9 + history.activity();
        let changed = coder.code(&mut self.changed[known], history.row != row);
        history.recent = (history.recent << 1 | usize::from(changed)) & 7;
        history.rows += 1;
        if !changed {
            history.quiet += 1;
            return;
        }
        history.quiet = 0;
        history.changes += 1;
        let mut mask = 0_usize;
        let mut again = UNKNOWN;
        let columns = history.row.iter_mut().zip(&mut history.columns).zip(row);
        for (at, ((number, column), next)) in columns.enumerate() {
            let change = next.wrapping_sub(*number) as i64;
            // The last three columns, and how many there were in all.
            let others = (mask & 7) * 4 + (mask.count_ones() as usize).min(3);
            let known = (at * 2 + usize::from(column.changed)) * 64 + others;
            let differs = coder.code(&mut self.mask[known], change != 0);
            column.changed = differs;
            mask = mask << 1 | usize::from(differs);
            if differs {
                let change = self.change(coder, at, column, change, &mut again);
                *number = number.wrapping_add(change as u64);
            }
        }
    }

    /// Codes a row that follows from another series' row, or from none.
    pub(super) fn code_first(&mut self, coder: &mut impl Coder, before: &mut History, row: &[u64]) {
        let columns = before.row.iter_mut().zip(&mut before.columns).zip(row);
        for (at, ((number, column), next)) in columns.enumerate() {
            let change = next.wrapping_sub(*number) as i64;
            let mut again = UNKNOWN;
            let change = self.change(coder, at, column, change, &mut again);
            *number = number.wrapping_add(change as u64);
        }
    }

    /// Codes by how much a column changed. `row_again` is what was the case of the column before it in
    /// this row.
    fn change(
        &mut self,
        coder: &mut impl Coder,
        at: usize,
        column: &mut Column,
        change: i64,
        row_again: &mut usize,
    ) -> i64 {
        let mut found = NONE;
        for which in 0..KEPT {
            let known = ((at * KEPT + which) * 6 + column.again) * 6 + *row_again;
            if coder.code(&mut self.again[known], column.kept[which] == change) {
                found = which;
                break;
            }
        }
        (column.again, *row_again) = (found, found);
        let change = if found == NONE {
            let change = self.new_change(coder, at, column, change);
            column.kept.rotate_right(1);
            column.kept[0] = change;
            change
        } else {
            column.kept[..=found].rotate_right(1);
            column.kept[0]
        };
        column.size = size(change);
        column.down = change < 0;
        change
    }

    fn new_change(
        &mut self,
        coder: &mut impl Coder,
        at: usize,
        column: &Column,
        change: i64,
    ) -> i64 {
        let down = coder.code(
            &mut self.sign[at * 2 + usize::from(column.down)],
            change < 0,
        );
        let magnitude = change.unsigned_abs();
        let wanted = size(change);
        let before = column.size.min(BEFORE - 1);
        let tree = &mut self.size[(at * BEFORE + before) * TREE..][..TREE];
        let mut node = 1;
        for level in (0..7).rev() {
            let bit = coder.code(&mut tree[node], wanted >> level & 1 == 1);
            node = node << 1 | usize::from(bit);
        }
        let size = (node - TREE).min(SIZES - 1);
        let mut read = u64::from(size > 0);
        let leading = &mut self.leading[(at * SIZES + size) << LEADING..][..1 << LEADING];
        let mut known = 1;
        let mut left = (size as u32).saturating_sub(1);
        for _ in 0..LEADING.min(left) {
            left -= 1;
            let bit = coder.code(&mut leading[known], magnitude >> left & 1 == 1);
            known = known << 1 | usize::from(bit);
            read = read << 1 | u64::from(bit);
        }
        while left > 0 {
            let bits = left.min(TOGETHER);
            left -= bits;
            let number = (magnitude >> left) as u32 & ((1 << bits) - 1);
            read = read << bits | u64::from(coder.code_even(bits, number));
        }
        if down {
            (read as i64).wrapping_neg()
        } else {
            read as i64
        }
    }
}

/// Bits of a change without its sign.
fn size(change: i64) -> usize {
    (u64::BITS - change.unsigned_abs().leading_zeros()) as usize
}
