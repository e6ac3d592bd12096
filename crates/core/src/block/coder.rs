//! A binary range coder (Martin: Range encoding, 1979; with 64 bits, so that what is settled is written four
//! bytes at a time), and bits whose probability is learnt.

/// A probability learnt from the bits that were coded with it: in the upper half that the next one is set,
/// of 65536, less [`EVEN`]; in the lowest byte how many bits it was learnt from, and in the one above it what
/// its owner wants ([`OWNERS`]). So one that is new is 0.
pub(super) type Bit = u32;

/// Nothing was learnt yet.
pub(super) const NEW: Bit = 0;
const EVEN: u32 = 1 << 15;
/// The byte of a [`Bit`] that is left as it is.
pub(super) const OWNERS: u32 = 0xff00;

/// From so many bits on a later one counts as much as all before: what is coded changes with time.
const MEMORY: u8 = 250;
/// How far a probability moves after so many bits, of 65536: 1 / (seen + 1.8).
const RATES: [u16; MEMORY as usize + 1] = rates();

const fn rates() -> [u16; MEMORY as usize + 1] {
    let mut rates = [0; MEMORY as usize + 1];
    let mut seen = 0;
    while seen < rates.len() {
        rates[seen] = (655_360 / (seen as u32 * 10 + 18)) as u16;
        seen += 1;
    }
    rates
}

/// That the next bit is set, of 65536.
#[inline]
fn one(known: Bit) -> u32 {
    (known >> 16) ^ EVEN
}

#[inline]
fn learn(known: &mut Bit, bit: bool) {
    let seen = (*known & 0xff) as usize;
    let rate = u32::from(RATES[seen]);
    let before = one(*known);
    let after = if bit {
        before + (((65_535 - before) * rate) >> 16)
    } else {
        before - ((before * rate) >> 16)
    };
    // Never quite sure.
    let after = after.clamp(32, 65_535 - 32);
    let seen = (seen as u32 + 1).min(MEMORY.into());
    *known = (after ^ EVEN) << 16 | *known & OWNERS | seen;
}

/// A probability of 65536 that so many bits have told of; never quite sure.
pub(super) fn known(one: u32, seen: u8) -> Bit {
    (one.clamp(32, 65_535 - 32) ^ EVEN) << 16 | u32::from(seen.min(MEMORY))
}

/// Bits that are coded together at most.
pub(super) const TOGETHER: u32 = 16;

/// Writes or reads bits: the same walk through what is coded serves both.
pub(super) trait Coder {
    /// Codes a bit; what is returned is the bit, which a reader finds out here.
    fn code(&mut self, known: &mut Bit, bit: bool) -> bool;

    /// Codes some bits of which nothing can be learnt, at most [`TOGETHER`].
    fn code_even(&mut self, bits: u32, number: u32) -> u32;
}

/// Counts instead of coding: of each [`Bit`] in the upper half how many were set, in the lower half how many
/// there were.
pub(super) struct Counter;

impl Coder for Counter {
    fn code(&mut self, known: &mut Bit, bit: bool) -> bool {
        *known += u32::from(bit) << 16 | 1;
        if *known & 0xffff == 0xffff {
            *known = *known >> 1 & 0x7fff_7fff;
        }
        bit
    }

    fn code_even(&mut self, _: u32, number: u32) -> u32 {
        number
    }
}

/// A range that is smaller is made larger by so many bits, which are settled.
const SMALL: u64 = 1 << SETTLED;
const SETTLED: u32 = 32;

/// The part of a range that stands for a set bit; never nothing, and never all of it.
#[inline]
fn part_of(range: u64, known: Bit) -> u64 {
    (range >> 16) * u64::from(one(known))
}

pub(super) struct Encoder {
    low: u64,
    range: u64,
    bytes: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            low: 0,
            range: u64::MAX,
            bytes: Vec::new(),
        }
    }

    /// Leaves out what is below a part of the range.
    fn skip(&mut self, below: u64) {
        let (low, carry) = self.low.overflowing_add(below);
        self.low = low;
        if carry {
            self.carry();
        }
    }

    /// Adds one to what is written.
    fn carry(&mut self) {
        for byte in self.bytes.iter_mut().rev() {
            let (next, carry) = byte.overflowing_add(1);
            *byte = next;
            if !carry {
                break;
            }
        }
    }

    fn settle(&mut self) {
        if self.range < SMALL {
            let settled = (self.low >> SETTLED) as u32;
            self.bytes.extend(settled.to_be_bytes());
            self.low <<= SETTLED;
            self.range <<= SETTLED;
        }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        // Of the numbers of the range the one that ends in most zeros: a reader has zeros behind the end.
        let (low, end) = (
            u128::from(self.low),
            u128::from(self.low) + u128::from(self.range),
        );
        let round = |bits: u32| (low + ((1 << bits) - 1)) >> bits << bits;
        let best = (0..=u64::BITS)
            .rev()
            .map(round)
            .find(|number| *number < end);
        let best = best.unwrap_or(low);
        if best >> u64::BITS > 0 {
            self.carry();
        }
        self.bytes.extend((best as u64).to_be_bytes());
        let zeros = self.bytes.iter().rev().take_while(|byte| **byte == 0);
        let length = self.bytes.len() - zeros.count();
        // An empty chunk is one of which nothing is coded.
        self.bytes.truncate(length.max(1));
        self.bytes
    }
}

impl Coder for Encoder {
    fn code(&mut self, known: &mut Bit, bit: bool) -> bool {
        let part = part_of(self.range, *known);
        if bit {
            self.range = part;
        } else {
            self.skip(part);
            self.range -= part;
        }
        learn(known, bit);
        self.settle();
        bit
    }

    fn code_even(&mut self, bits: u32, number: u32) -> u32 {
        let part = self.range >> bits;
        self.skip(part * u64::from(number));
        self.range = part;
        self.settle();
        number
    }
}

pub(super) struct Decoder<'a> {
    /// What is read, less what the writer has left out.
    value: u64,
    range: u64,
    bytes: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self {
            value: 0,
            range: u64::MAX,
            bytes,
        };
        decoder.read();
        decoder.read();
        decoder
    }

    fn read(&mut self) {
        let next = if let Some((next, rest)) = self.bytes.split_first_chunk::<4>() {
            self.bytes = rest;
            u32::from_be_bytes(*next)
        } else {
            let mut last = [0; 4];
            for (byte, next) in last.iter_mut().zip(self.bytes) {
                *byte = *next;
            }
            self.bytes = &[];
            u32::from_be_bytes(last)
        };
        self.value = self.value << SETTLED | u64::from(next);
    }

    #[inline]
    fn settle(&mut self) {
        if self.range < SMALL {
            self.range <<= SETTLED;
            self.read();
        }
    }
}

impl Coder for Decoder<'_> {
    #[inline]
    fn code(&mut self, known: &mut Bit, _: bool) -> bool {
        let part = part_of(self.range, *known);
        let bit = self.value < part;
        if bit {
            self.range = part;
        } else {
            self.value -= part;
            self.range -= part;
        }
        learn(known, bit);
        self.settle();
        bit
    }

    fn code_even(&mut self, bits: u32, _: u32) -> u32 {
        let part = self.range >> bits;
        // What no writer writes stands for the last part.
        let number = (self.value / part).min((1 << bits) - 1);
        self.value -= part * number;
        self.range = part;
        self.settle();
        number as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_read_back_as_written(
            bits in prop::collection::vec((0usize..4, any::<u16>(), 1..=TOGETHER), 0..5000),
        ) {
            let mut encoder = Encoder::new();
            let mut known = [NEW; 3];
            let even = |number: u16, bits: u32| u32::from(number) & ((1 << bits) - 1);
            for (which, number, bits) in &bits {
                match known.get_mut(*which) {
                    Some(known) => drop(encoder.code(known, number % 5 == 0)),
                    None => drop(encoder.code_even(*bits, even(*number, *bits))),
                }
            }
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            let mut known = [NEW; 3];
            for (which, number, bits) in &bits {
                if let Some(known) = known.get_mut(*which) {
                    prop_assert_eq!(decoder.code(known, false), number % 5 == 0);
                } else {
                    prop_assert_eq!(decoder.code_even(*bits, 0), even(*number, *bits));
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut decoder = Decoder::new(&bytes);
            let mut known = NEW;
            for bits in 0..2000 {
                decoder.code(&mut known, false);
                decoder.code_even(1 + bits % TOGETHER, 0);
            }
        }
    }

    #[test]
    fn what_is_nearly_sure_costs_nearly_nothing() {
        let mut encoder = Encoder::new();
        let mut known = NEW;
        for number in 0..80_000 {
            encoder.code(&mut known, number % 1000 == 0);
        }
        let bytes = encoder.finish().len();
        assert!(bytes < 200, "{bytes}");
    }
}
