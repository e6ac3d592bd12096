//! Gaps: whether samples are missing between two that were taken one after the other, and why.

use std::time::Duration;

use nodestats_wire::Timestamp;
use nodestats_wire::v1::GapReason;

use crate::FrameId;
use crate::sample::note::{Note, What};

/// One sample later than so many intervals is a gap, where none was taken in between: a busy host
/// misses a tick.
const PATIENCE: f64 = 2.5;
/// The same where the numbers of the samples say that some are missing.
const MISSING: f64 = 1.5;

/// What a sample says of the time after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// When it was taken.
    pub time: Timestamp,
    /// Which agent took it, and its number.
    pub id: FrameId,
    /// When the next one was due; `None` where that is not known.
    pub interval: Option<Duration>,
}

/// What the sample before a gap says beyond its header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ending {
    /// It was the agent's last.
    pub stopping: bool,
    /// The agent was told to take no more.
    pub paused: bool,
}

impl Ending {
    /// What the notes of a sample of this time say; those of earlier samples, which it carries, say
    /// nothing of it.
    pub fn of(notes: &[Note], time: Timestamp) -> Self {
        let own = |note: &&Note| note.time_micros == time.micros();
        let says = |what: &What| notes.iter().filter(own).any(|note| note.what == *what);
        Self {
            stopping: says(&What::Stopping),
            paused: says(&What::Paused),
        }
    }
}

impl Edge {
    /// When the sample after this one was due.
    pub fn due(&self) -> Option<Timestamp> {
        let interval = i64::try_from(self.interval?.as_micros()).ok()?;
        Some(self.time.plus_micros(interval))
    }

    /// Whether samples are missing between this one and `next`.
    pub fn is_before_gap(&self, next: &Self) -> bool {
        let is_next = self.id.agent_start == next.id.agent_start
            && next.id.sequence == self.id.sequence.wrapping_add(1);
        self.is_late(next.time, if is_next { PATIENCE } else { MISSING })
    }

    /// Whether samples are missing from this one, the last there is, to `until`.
    pub fn is_before_silence(&self, until: Timestamp) -> bool {
        self.is_late(until, PATIENCE)
    }

    fn is_late(&self, time: Timestamp, intervals: f64) -> bool {
        self.interval.is_some_and(|interval| {
            time.seconds_since(self.time) > interval.as_secs_f64() * intervals
        })
    }
}

/// Why there is nothing between two samples. `dropped` says whether it is known that what was taken in
/// between was dropped.
pub fn reason(
    (before, ending): (&Edge, Ending),
    after: &Edge,
    same_boot: bool,
    dropped: bool,
) -> GapReason {
    if !same_boot {
        return GapReason::PoweredOff;
    }
    if dropped {
        return GapReason::Dropped;
    }
    if before.id.agent_start != after.id.agent_start {
        return GapReason::AgentStopped;
    }
    if ending.paused && after.id.sequence == before.id.sequence.wrapping_add(1) {
        return GapReason::Paused;
    }
    GapReason::Unknown
}

/// Why nothing came after the last sample that there is.
pub fn reason_of_silence(ending: Ending) -> GapReason {
    if ending.stopping {
        GapReason::AgentStopped
    } else if ending.paused {
        GapReason::Paused
    } else {
        GapReason::Unknown
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn edge(seconds: f64, agent: u128, sequence: u64) -> Edge {
        Edge {
            time: Timestamp::from_seconds(seconds).expect("a time"),
            id: FrameId {
                agent_start: Uuid::from_u128(agent),
                sequence,
            },
            interval: Some(Duration::from_secs(10)),
        }
    }

    #[test]
    fn a_late_sample_is_no_gap_and_a_missing_one_is() {
        let first = edge(100.0, 1, 5);
        for (next, is_gap) in [
            (edge(110.0, 1, 6), false),
            (edge(121.0, 1, 6), false),
            (edge(126.0, 1, 6), true),
            (edge(120.0, 1, 7), true),
            (edge(112.0, 2, 0), false),
            (edge(120.0, 2, 0), true),
        ] {
            assert_eq!(first.is_before_gap(&next), is_gap, "{next:?}");
        }
        let unknown = Edge {
            interval: None,
            ..first
        };
        assert!(!unknown.is_before_gap(&edge(900.0, 1, 6)));
        assert!(!unknown.is_before_silence(Timestamp::MAX));
    }

    #[test]
    fn the_reason_is_what_both_ends_say() {
        let none = Ending::default();
        let paused = Ending {
            paused: true,
            ..none
        };
        let (first, next, later, other) = (
            edge(100.0, 1, 5),
            edge(200.0, 1, 6),
            edge(200.0, 1, 15),
            edge(200.0, 2, 0),
        );
        let of =
            |ending, after, same_boot, dropped| reason((&first, ending), after, same_boot, dropped);
        assert_eq!(of(none, &other, false, false), GapReason::PoweredOff);
        assert_eq!(of(none, &other, true, false), GapReason::AgentStopped);
        assert_eq!(of(none, &later, true, true), GapReason::Dropped);
        assert_eq!(of(none, &later, true, false), GapReason::Unknown);
        assert_eq!(of(paused, &next, true, false), GapReason::Paused);
        assert_eq!(of(paused, &later, true, false), GapReason::Unknown);
        assert_eq!(of(none, &next, true, false), GapReason::Unknown);
        assert_eq!(reason_of_silence(paused), GapReason::Paused);
        assert_eq!(reason_of_silence(none), GapReason::Unknown);
    }
}
