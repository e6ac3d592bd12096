//! How a row follows from the rows before it: what is coded, with which bit of what was learnt.

use std::sync::Arc;

use super::coder::{Bit, Coder, NEW, OWNERS, TOGETHER, known};

/// Sizes of a change are told apart by their bits: 0 to 64.
const SIZES: usize = 65;
/// Nodes of a tree of seven levels, which leads to a size.
const TREE: usize = 128;
/// Sizes of the change before that are told apart.
const BEFORE: usize = 21;
/// No row has changed in the last one and not in the two before that is as quiet as a distant one is.
const DISTANT: usize = 1;
/// Changes of a column that are remembered: many come again.
const KEPT: usize = 4;
/// No change that is remembered.
const NONE: usize = KEPT;
/// Nothing is known yet.
const UNKNOWN: usize = KEPT + 1;
/// Leading bits of a change, behind the first, of which something is learnt.
const LEADING: u32 = 3;

/// What is learnt of a number of columns: bits of six kinds, numbered one kind after the other.
pub(super) struct Model {
    /// Where each kind begins, behind that of whether anything changed, and where the last ends.
    kinds: [usize; 6],
    bits: Bits,
    /// What each bit is at the begin; without them it is new.
    prior: Option<Arc<Bits>>,
    /// Bits that have it were learnt since the begin. Without one all bits are as they are.
    turn: u32,
}

/// Bits by number. Of most of them there is nothing: to clear all would take longer than what is coded with the
/// few that are met.
#[derive(Debug)]
pub(super) struct Bits {
    /// So many from the first are there, and behind them pages of the others in the order in which they were met.
    all: Vec<Bit>,
    first: usize,
    /// Where each page of the others is; one that was not met yet is at [`NOWHERE`].
    pages: Vec<u32>,
}

/// Bits of a page: a tree, or some of the leading bits.
const PAGE: usize = TREE;
const NOWHERE: u32 = u32::MAX;

impl Bits {
    fn new(first: usize, count: usize) -> Self {
        // With room for some pages, so that it is not moved for the first of them.
        let mut all = Vec::with_capacity(2 * first);
        all.resize(first, NEW);
        Self {
            all,
            first,
            pages: vec![NOWHERE; (count - first).div_ceil(PAGE)],
        }
    }

    /// Where a bit is, and those behind it in its page, which comes into being.
    #[inline]
    fn place(&mut self, number: usize) -> usize {
        let Some(number) = number.checked_sub(self.first) else {
            return number;
        };
        let page = &mut self.pages[number / PAGE];
        if *page == NOWHERE {
            *page = self.all.len() as u32;
            self.all.resize(self.all.len() + PAGE, NEW);
        }
        *page as usize + number % PAGE
    }

    /// A bit; one that was not met is new.
    fn get(&self, number: usize) -> Bit {
        let Some(paged) = number.checked_sub(self.first) else {
            return self.all[number];
        };
        match self.pages[paged / PAGE] {
            NOWHERE => NEW,
            page => self.all[page as usize + paged % PAGE],
        }
    }

    fn set(&mut self, number: usize, bit: Bit) {
        let place = self.place(number);
        self.all[place] = bit;
    }
}

/// Bits of whether anything changed.
const CHANGED: usize = 8 * 8 * 9;
/// Of each column, of whether it did: whether it did the last time, and which others did.
const MASK: usize = 2 * 64;
/// Of each column and kept change, of whether it is that one.
const AGAIN: usize = 6 * 6;
/// Bits of a turn.
const TURN: u32 = 1 << OWNERS.trailing_zeros();

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

    /// Of a row that may be long ago: the next one is told from it as no other is.
    pub(super) fn distant(row: &[u64]) -> Self {
        let mut history = Self::new(row);
        (history.recent, history.quiet) = (DISTANT, 1);
        for column in &mut history.columns {
            (column.changed, column.size) = (true, BEFORE);
        }
        history
    }

    /// Goes on from a row that was told from a distant one: which columns moved says which ones do.
    pub(super) fn arrive(&mut self) {
        let moved = std::mem::take(&mut self.columns);
        *self = Self::new(&self.row);
        for (column, moved) in self.columns.iter_mut().zip(moved) {
            column.changed = moved.changed;
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
    /// Of which nothing is known yet.
    pub(super) fn new(columns: usize) -> Self {
        let sizes = [
            CHANGED,
            columns * MASK,
            columns * KEPT * AGAIN,
            columns * 2,
            columns * BEFORE * TREE,
            columns * SIZES * (1 << LEADING),
        ];
        let mut end = 0;
        let ends = sizes.map(|size| {
            end += size;
            end
        });
        let [mask, again, sign, size, leading, all] = ends;
        Self {
            kinds: [mask, again, sign, size, leading, all],
            bits: Bits::new(size, all),
            prior: None,
            turn: TURN,
        }
    }

    /// Of which something is known before the first row.
    pub(super) fn knowing(columns: usize, prior: Arc<Bits>) -> Self {
        Self {
            prior: Some(prior),
            ..Self::new(columns)
        }
    }

    /// For whoever counts ([`Counter`](super::coder::Counter)).
    pub(super) fn counting(columns: usize) -> Self {
        Self {
            turn: 0,
            ..Self::new(columns)
        }
    }

    /// Begins anew, with what was known at first.
    pub(super) fn begin(&mut self) {
        self.turn += TURN;
        if self.turn > OWNERS {
            self.bits.all.fill(NEW);
            self.turn = TURN;
        }
    }

    /// A bit of the first four kinds.
    #[inline]
    fn at(&mut self, number: usize) -> &mut Bit {
        self.at_place(number, number)
    }

    #[inline]
    fn at_place(&mut self, place: usize, number: usize) -> &mut Bit {
        let bit = &mut self.bits.all[place];
        if *bit & OWNERS != self.turn && self.turn > 0 {
            let prior = self.prior.as_ref().map_or(NEW, |prior| prior.get(number));
            *bit = prior | self.turn;
        }
        bit
    }

    /// Codes the row after those that `history` knows. A reader gives any row of that length, and finds
    /// what was written in the history.
    pub(super) fn code(&mut self, coder: &mut impl Coder, history: &mut History, row: &[u64]) {
        let known = (history.recent * 8 + history.quiet_class()) * 9 + history.activity();
        let changed = coder.code(self.at(known), history.row != row);
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
            let known = at * MASK + usize::from(column.changed) * 64 + others;
            let known = self.kinds[0] + known;
            let differs = coder.code(self.at(known), change != 0);
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
            let known = (at * KEPT + which) * AGAIN + column.again * 6 + *row_again;
            let known = self.kinds[1] + known;
            if coder.code(self.at(known), column.kept[which] == change) {
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
        let [_, _, sign, sizes, leading, _] = self.kinds;
        let known = sign + at * 2 + usize::from(column.down);
        let down = coder.code(self.at(known), change < 0);
        let magnitude = change.unsigned_abs();
        let wanted = size(change);
        let before = column.size.min(BEFORE - 1);
        let tree = sizes + (at * BEFORE + before) * TREE;
        let place = self.bits.place(tree);
        let mut node = 1;
        for level in (0..7).rev() {
            let bit = coder.code(
                self.at_place(place + node, tree + node),
                wanted >> level & 1 == 1,
            );
            node = node << 1 | usize::from(bit);
        }
        let size = (node - TREE).min(SIZES - 1);
        let mut read = u64::from(size > 0);
        let leading = leading + ((at * SIZES + size) << LEADING);
        let place = self.bits.place(leading);
        let mut known = 1;
        let mut left = (size as u32).saturating_sub(1);
        for _ in 0..LEADING.min(left) {
            left -= 1;
            let bit = self.at_place(place + known, leading + known);
            let bit = coder.code(bit, magnitude >> left & 1 == 1);
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

/// Probabilities of 65536 that a prior may have: equally far apart in log odds.
const ODDS: [u16; 32] = [
    61, 96, 150, 236, 369, 576, 899, 1399, 2168, 3338, 5088, 7642, 11_240, 16_062, 22_110, 29_097,
    36_439, 43_426, 49_474, 54_296, 57_894, 60_448, 62_198, 63_368, 64_137, 64_637, 64_960, 65_167,
    65_300, 65_386, 65_440, 65_475,
];
/// A bit that was met less often has no prior: to tell it costs more than to learn it.
const TOLD: u32 = if cfg!(test) { 4 } else { 20 };
/// As how many bits a prior counts, by how often it was met.
const WEIGHTS: [(u32, u8); 4] = [(0, 2), (12, 5), (40, 10), (200, 18)];

/// How a prior is told: whether there is one, which of [`ODDS`], and which of [`WEIGHTS`].
struct Prior {
    told: [Bit; 3],
    odds: [Bit; 32],
    weight: [Bit; 4],
}

impl Prior {
    fn new() -> Self {
        Self {
            told: [NEW; 3],
            odds: [NEW; 32],
            weight: [NEW; 4],
        }
    }

    /// Codes one bit's; `before` says of which kind the last one was. A reader gives no counts.
    fn code(&mut self, coder: &mut impl Coder, before: usize, counts: Bit) -> Option<Bit> {
        let (seen, set) = (counts & 0xffff, counts >> 16);
        if !coder.code(&mut self.told[before], seen >= TOLD) {
            return None;
        }
        let one = (set * 65_536 + 32_768) / (seen + 1);
        let wanted = ODDS.windows(2).take_while(|pair| {
            // Halfway by their odds is near enough halfway.
            u32::from(pair[0]) + u32::from(pair[1]) < 2 * one
        });
        let wanted = wanted.count();
        let level = code_tree(coder, &mut self.odds, 5, wanted);
        let wanted = WEIGHTS.iter().rposition(|(least, _)| seen >= *least);
        let weight = code_tree(coder, &mut self.weight, 2, wanted.unwrap_or_default());
        Some(known(ODDS[level].into(), WEIGHTS[weight].1))
    }
}

/// Codes a number of so many bits, the highest first, each by those before it.
fn code_tree(coder: &mut impl Coder, tree: &mut [Bit], bits: u32, wanted: usize) -> usize {
    let mut node = 1;
    for level in (0..bits).rev() {
        let bit = coder.code(&mut tree[node], wanted >> level & 1 == 1);
        node = node << 1 | usize::from(bit);
    }
    node - (1 << bits)
}

impl Model {
    /// Codes what is known at the begin: a writer has counted it, and a reader has a model of which nothing is
    /// known, and gives its own bits.
    pub(super) fn code_prior(&self, coder: &mut impl Coder) -> Bits {
        let [mask, _, _, sizes, leading, end] = self.kinds;
        let mut all = Bits::new(sizes, end);
        // Those that are told one by one.
        let flat = [0..mask, mask..sizes];
        for range in flat {
            let mut prior = Prior::new();
            let mut before = 0;
            for number in range {
                let told = prior.code(coder, before, self.bits.get(number));
                before = usize::from(told.is_some());
                if let Some(told) = told {
                    all.set(number, told);
                }
            }
        }
        // Trees, of which a node is met less often than the one above it.
        let trees = (sizes..leading).step_by(TREE).map(|begin| (begin, TREE));
        let others = (leading..end).step_by(1 << LEADING);
        let others = others.map(|begin| (begin, 1 << LEADING));
        let mut prior = Prior::new();
        for (begin, nodes) in trees.chain(others) {
            for node in 1..nodes {
                let is_met = node == 1 || all.get(begin + node / 2) != NEW;
                if is_met {
                    let own = usize::from(node > 1) + 1;
                    let told = prior.code(coder, own, self.bits.get(begin + node));
                    if let Some(told) = told {
                        all.set(begin + node, told);
                    }
                }
            }
        }
        all
    }
}
