//! A binary arithmetic coder (Witten, Neal, Cleary: Arithmetic coding for data compression, CACM 1987,
//! in the carry-less form with 32 bits), and bits whose probability is learnt.

/// A probability learnt from the bits that were coded with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bit {
    /// That the next one is set, of 65536.
    one: u16,
    seen: u8,
}

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

impl Bit {
    pub(super) const NEW: Self = Self {
        one: 1 << 15,
        seen: 0,
    };

    fn learn(&mut self, bit: bool) {
        let rate = u32::from(RATES[usize::from(self.seen)]);
        let one = u32::from(self.one);
        let one = if bit {
            one + (((65_535 - one) * rate) >> 16)
        } else {
            one - ((one * rate) >> 16)
        };
        // Never quite sure.
        self.one = one.clamp(32, 65_535 - 32) as u16;
        self.seen = (self.seen + 1).min(MEMORY);
    }
}

/// What is left of all numbers for what follows, both ends included.
#[derive(Clone, Copy)]
struct Range {
    low: u32,
    high: u32,
}

impl Range {
    const ALL: Self = Self {
        low: 0,
        high: u32::MAX,
    };

    /// Where the part that stands for a set bit ends.
    fn middle(self, known: Bit) -> u32 {
        let range = u64::from(self.high - self.low);
        self.low + ((range * u64::from(known.one)) >> 16) as u32
    }

    /// Keeps the part that stands for a bit.
    fn narrow(&mut self, middle: u32, bit: bool) {
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
    }

    /// Takes the first byte where both ends have the same.
    fn settled(&mut self) -> Option<u8> {
        if (self.low ^ self.high) >> 24 != 0 {
            return None;
        }
        let byte = (self.high >> 24) as u8;
        self.low <<= 8;
        self.high = self.high << 8 | 0xff;
        Some(byte)
    }
}

/// Writes or reads bits: the same walk through what is coded serves both.
pub(super) trait Coder {
    /// Codes a bit; what is returned is the bit, which a reader finds out here.
    fn code(&mut self, known: &mut Bit, bit: bool) -> bool;

    /// Codes a bit of which nothing can be learnt.
    fn code_even(&mut self, bit: bool) -> bool {
        self.code(&mut Bit::NEW.clone(), bit)
    }
}

pub(super) struct Encoder {
    range: Range,
    bytes: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            range: Range::ALL,
            bytes: Vec::new(),
        }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        // The first bytes of both ends differ: with zeros behind it, that of the higher is between them.
        self.bytes.push((self.range.high >> 24) as u8);
        self.bytes
    }
}

impl Coder for Encoder {
    fn code(&mut self, known: &mut Bit, bit: bool) -> bool {
        let middle = self.range.middle(*known);
        self.range.narrow(middle, bit);
        known.learn(bit);
        while let Some(byte) = self.range.settled() {
            self.bytes.push(byte);
        }
        bit
    }
}

pub(super) struct Decoder<'a> {
    range: Range,
    value: u32,
    bytes: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self {
            range: Range::ALL,
            value: 0,
            bytes,
        };
        (0..4).for_each(|_| decoder.shift());
        decoder
    }

    fn shift(&mut self) {
        let next = self.bytes.split_off_first().copied().unwrap_or_default();
        self.value = self.value << 8 | u32::from(next);
    }
}

impl Coder for Decoder<'_> {
    fn code(&mut self, known: &mut Bit, _: bool) -> bool {
        let middle = self.range.middle(*known);
        let bit = self.value <= middle;
        self.range.narrow(middle, bit);
        known.learn(bit);
        while self.range.settled().is_some() {
            self.shift();
        }
        bit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_read_back_as_written(bits in prop::collection::vec((0usize..4, any::<bool>()), 0..5000)) {
            let mut encoder = Encoder::new();
            let mut known = [Bit::NEW; 3];
            for (which, bit) in &bits {
                match known.get_mut(*which) {
                    Some(known) => encoder.code(known, *bit),
                    None => encoder.code_even(*bit),
                };
            }
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            let mut known = [Bit::NEW; 3];
            for (which, bit) in &bits {
                let read = match known.get_mut(*which) {
                    Some(known) => decoder.code(known, false),
                    None => decoder.code_even(false),
                };
                prop_assert_eq!(read, *bit);
            }
        }
    }

    #[test]
    fn what_is_nearly_sure_costs_nearly_nothing() {
        let mut encoder = Encoder::new();
        let mut known = Bit::NEW;
        for number in 0..80_000 {
            encoder.code(&mut known, number % 1000 == 0);
        }
        let bytes = encoder.finish().len();
        assert!(bytes < 200, "{bytes}");
    }
}
