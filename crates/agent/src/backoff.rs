//! How long to wait before the server is asked again.

use std::time::Duration;

/// The first wait, before jitter.
const FIRST: Duration = Duration::from_millis(500);
/// The longest, before jitter.
const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double up to a limit, each shortened at random by up to a half, so that agents that
/// lost the server together do not come back together.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
    /// What the server asked for at the last failure.
    at_least: Option<Duration>,
}

/// No server is left alone for longer, whatever it asks for: a cluster calls a node lost after five minutes.
const AT_MOST: Duration = Duration::from_mins(1);

impl Backoff {
    /// The wait after one more failure; `random` is any number.
    pub(crate) fn next(&mut self, random: u64) -> Duration {
        let whole = FIRST
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let share = (random % 1024) as f64 / 1024.0;
        let wait = whole.mul_f64(0.5 + share / 2.0);
        match self.at_least.take() {
            // Those that were told the same do not come back together either.
            Some(asked) => wait.max(asked.mul_f64(1.0 + share / 2.0).min(AT_MOST)),
            None => wait,
        }
    }

    /// The server asks to be left alone for so long.
    pub(crate) fn wait_for(&mut self, asked: Option<Duration>) {
        self.at_least = asked;
    }

    /// The server answered.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..10).map(|_| backoff.next(1023)).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(waits[9] <= LONGEST && waits[9] > LONGEST / 2);
        backoff.reset();
        assert!(backoff.next(0) == FIRST / 2);
    }

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_asks() {
        let mut backoff = Backoff::default();
        backoff.wait_for(Some(Duration::from_secs(7)));
        assert_eq!(backoff.next(0), Duration::from_secs(7));
        assert!(backoff.next(0) < Duration::from_secs(1), "asked once");
        backoff.wait_for(Some(Duration::from_secs(7)));
        let late = backoff.next(1023);
        assert!((10..11).contains(&late.as_secs()), "{late:?}");
        backoff.wait_for(Some(Duration::from_hours(9)));
        assert_eq!(backoff.next(0), AT_MOST);
    }
}
