//! The arithmetic of counters.

use crate::sample::Host;

/// The span between two samples of one boot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    seconds: f64,
}

impl Span {
    /// `None` where the samples have no counter in common (another boot, an unknown one), or where
    /// time did not advance by at least a millisecond.
    pub(super) fn between(previous: &Host, current: &Host) -> Option<Self> {
        let micros = current.uptime_micros.checked_sub(previous.uptime_micros)?;
        let same_boot = previous.boot_id == current.boot_id && !current.boot_id.is_empty();
        (same_boot && micros >= 1000).then(|| Self {
            seconds: micros as f64 / 1e6,
        })
    }

    /// How long it is.
    pub(crate) fn micros(self) -> f64 {
        self.seconds * 1e6
    }

    /// The growth of a counter per second. One that shrank was reset (an interface made anew, a
    /// device plugged in again) and has counted from zero since.
    pub(super) fn rate(self, previous: u64, current: u64) -> f64 {
        let grown = current.checked_sub(previous).unwrap_or(current);
        round(grown as f64 / self.seconds)
    }

    /// The same for a counter that only one boot can reset: less than before is the kernel's own
    /// rounding (`iowait` is known for it), and no growth.
    pub(crate) fn monotonic_rate(self, previous: u64, current: u64) -> f64 {
        current.saturating_sub(previous) as f64 / self.seconds
    }
}

/// Two decimals: what a reader can use, and a third of the bytes in JSON.
pub(super) fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// `part` of `whole` in percent; `None` of nothing.
pub(crate) fn percent(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| round(part / whole * 100.0))
}
