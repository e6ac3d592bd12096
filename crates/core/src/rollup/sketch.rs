//! A sketch of how values were distributed, from which quantiles follow within a stated error; two of them
//! are merged by adding what they count.
//!
//! Values stand in classes whose bounds grow by one factor, as in `DDSketch` (Masson, Rim, Lee, 2019): a
//! quantile is off by at most [`ERROR`] of itself.

use std::collections::BTreeMap;

/// Greatest relative error of a quantile.
pub const ERROR: f64 = 0.05;
/// The bounds of a class.
const FACTOR: f64 = (1.0 + ERROR) / (1.0 - ERROR);

/// How often values of each class were seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sketch(pub(super) BTreeMap<u16, u32>);

/// The class of a value: 0 of 0, and n of those above `FACTOR` to the power of n − 2 up to that of n − 1.
pub(super) fn class(value: u64) -> u16 {
    match value {
        0 => 0,
        // The largest has the number 444.
        value => ((value as f64).ln() / FACTOR.ln()).ceil() as u16 + 1,
    }
}

/// What stands for a class: as far from its lower bound as from its upper one, by the share of itself.
fn value(class: u16) -> f64 {
    match class {
        0 => 0.0,
        class => 2.0 * FACTOR.powi(i32::from(class) - 1) / (FACTOR + 1.0),
    }
}

impl Sketch {
    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        *self.0.entry(class(value)).or_default() += 1;
    }

    /// Counts what another one has counted.
    pub fn merge(&mut self, other: &Self) {
        for (class, count) in &other.0 {
            let own = self.0.entry(*class).or_default();
            *own = own.saturating_add(*count);
        }
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.0.values().map(|count| u64::from(*count)).sum()
    }

    /// The value that a share of all are not above, such as 0.99; `None` of nothing.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        let rank = (share.clamp(0.0, 1.0) * count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (class, count) in &self.0 {
            seen += u64::from(*count);
            if seen >= rank {
                return Some(value(*class));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_quantile_is_as_exact_as_is_said_also_when_merged(
            mut values in prop::collection::vec(prop_oneof![0_u64..100, any::<u64>()], 1..200),
            share in 0.0_f64..1.0,
            at in any::<prop::sample::Index>(),
        ) {
            let (mut first, mut second) = (Sketch::default(), Sketch::default());
            let (left, right) = values.split_at(at.index(values.len()));
            for value in left {
                first.add(*value);
            }
            for value in right {
                second.add(*value);
            }
            first.merge(&second);
            prop_assert_eq!(first.count(), values.len() as u64);
            values.sort_unstable();
            let rank = (share * values.len() as f64).ceil().max(1.0) as usize;
            let exact = values[rank - 1] as f64;
            let told = first.quantile(share).expect("some");
            prop_assert!((told - exact).abs() <= exact * (ERROR + 1e-9), "{told} for {exact}");
        }
    }
}
