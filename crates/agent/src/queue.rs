//! Samples on their way to the server: bounded, the newest first to go, then the oldest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use nodestats_core::Frame;
use nodestats_core::sample::Note;
use nodestats_core::sample::note::{Dropped, NOTES, What};
use nodestats_runtime::telemetry::{self, Context};
use tokio::sync::Notify;

/// An encoded frame, and its place among those that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queued {
    /// Later ones have higher numbers.
    pub(crate) order: u64,
    pub(crate) frame: Vec<u8>,
    /// It is on disk too.
    pub(crate) spooled: bool,
    /// The tick that took it.
    pub(crate) tick: Context,
}

/// Which of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    NotSpooled,
}

/// Notes of dropped samples that are carried on, at most.
const CARRIED: usize = 16 * NOTES;
/// Stands for the time of the sample that carries a note.
const NOW: i64 = i64::MIN;

/// What waits, in its order. Beyond its limit the oldest are dropped and counted.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: BTreeMap<u64, Queued>,
    next: u64,
    bytes: usize,
    limit: usize,
    dropped: u64,
    /// Which samples were dropped, for a full buffer and by the server's refusal.
    lost: [Option<Dropped>; 2],
    /// Something was dropped since it was last asked for.
    is_losing: bool,
    /// What those samples had to tell, and what there was no room for.
    carried: VecDeque<Note>,
}

impl Queue {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            next: 0,
            bytes: 0,
            limit,
            dropped: 0,
            lost: [None; 2],
            is_losing: false,
            carried: VecDeque::new(),
        }
    }

    /// Adds a new frame of the tick that we are in.
    pub(crate) fn add(&mut self, frame: Vec<u8>, spooled: bool) {
        let tick = telemetry::here();
        let order = self.next;
        self.next += 1;
        self.give_back(Queued {
            order,
            frame,
            spooled,
            tick,
        });
    }

    /// Adds a frame of an earlier agent. What is beyond the limit was sent or told as dropped by that
    /// one, whose file may hold more than what waits.
    pub(crate) fn restore(&mut self, frame: Vec<u8>) {
        let order = self.next;
        self.next += 1;
        self.bytes += frame.len();
        let queued = Queued {
            order,
            frame,
            spooled: true,
            tick: telemetry::here(),
        };
        self.waiting.insert(order, queued);
        while self.bytes > self.limit && self.waiting.len() > 1 {
            if let Some((_, oldest)) = self.waiting.pop_first() {
                self.bytes -= oldest.frame.len();
            }
        }
    }

    /// Adds a frame that was taken, to its old place.
    pub(crate) fn give_back(&mut self, queued: Queued) {
        self.bytes += queued.frame.len();
        self.waiting.insert(queued.order, queued);
        // The last one stays, however large: a node without any sample is worse.
        while self.bytes > self.limit && self.waiting.len() > 1 {
            if let Some((_, oldest)) = self.waiting.pop_first() {
                self.bytes -= oldest.frame.len();
                self.dropped += 1;
                self.lose(&oldest.frame, false);
            }
        }
    }

    /// A frame is dropped: what it had to tell goes with the next one, and that it was dropped.
    pub(crate) fn lose(&mut self, frame: &[u8], refused: bool) {
        let Ok(frame) = Frame::read(frame) else {
            return;
        };
        let time = frame.time.micros();
        self.remember(Dropped {
            samples: 1,
            first_micros: time,
            last_micros: time,
            refused,
        });
        for mut note in frame.notes().unwrap_or_default() {
            if let What::Dropped(dropped) = note.what {
                self.remember(dropped);
                continue;
            }
            if refused {
                // It may have been refused for its time, or for what it tells: once more, as of now.
                if note.time_micros != time {
                    continue;
                }
                note.time_micros = NOW;
            }
            self.carry([note]);
        }
    }

    /// These go with later samples.
    pub(crate) fn carry(&mut self, notes: impl IntoIterator<Item = Note>) {
        let room = CARRIED.saturating_sub(self.carried.len());
        self.carried.extend(notes.into_iter().take(room));
    }

    fn remember(&mut self, dropped: Dropped) {
        self.is_losing = true;
        let lost = &mut self.lost[usize::from(dropped.refused)];
        *lost = Some(lost.map_or(dropped, |before| before.and(dropped)));
    }

    /// What is to be told with the next sample, at `now`: what was dropped, and what that had to tell.
    /// While more is dropped with each sample it waits, so that it is told as one; with the last
    /// sample of all it does not.
    pub(crate) fn take_notes(&mut self, now_micros: i64, is_last: bool) -> Vec<Note> {
        let goes_on = std::mem::take(&mut self.is_losing) && !is_last;
        let mut notes = Vec::new();
        if !goes_on {
            let lost = self.lost.iter_mut().filter_map(Option::take);
            notes.extend(lost.map(|dropped| Note {
                time_micros: now_micros,
                what: What::Dropped(dropped),
            }));
        }
        let some = if is_last { NOTES } else { NOTES / 2 };
        let carried = self.carried.drain(..some.min(self.carried.len()));
        notes.extend(carried.map(|note| Note {
            time_micros: match note.time_micros {
                // Beside the sample's own time, which says that a note is of it.
                NOW => now_micros - 1,
                time => time,
            },
            what: note.what,
        }));
        notes
    }

    /// Takes the newest frame.
    pub(crate) fn take_newest(&mut self) -> Option<Queued> {
        let (_, newest) = self.waiting.pop_last()?;
        self.bytes -= newest.frame.len();
        Some(newest)
    }

    /// Takes the oldest frames, at least one, of at most `most` bytes together.
    pub(crate) fn take_oldest(&mut self, most: usize) -> Vec<Queued> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some((_, oldest)) = self.waiting.first_key_value() {
            bytes += oldest.frame.len();
            if bytes > most && !taken.is_empty() {
                break;
            }
            if let Some((_, oldest)) = self.waiting.pop_first() {
                self.bytes -= oldest.frame.len();
                taken.push(oldest);
            }
        }
        taken
    }

    /// Copies of frames that wait, oldest first.
    pub(crate) fn copies(&self, which: Which) -> Vec<Queued> {
        let wanted = |one: &&Queued| which == Which::All || !one.spooled;
        self.waiting.values().filter(wanted).cloned().collect()
    }

    /// These are on disk.
    pub(crate) fn set_spooled(&mut self, orders: &[u64]) {
        for order in orders {
            if let Some(one) = self.waiting.get_mut(order) {
                one.spooled = true;
            }
        }
    }

    /// Whether something that waits is not on disk.
    pub(crate) fn is_behind(&self) -> bool {
        self.waiting.values().any(|one| !one.spooled)
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes that may wait.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Their bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many were dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

/// The queue between the loop that samples and the loop that pushes.
#[derive(Debug)]
pub(crate) struct SharedQueue {
    queue: Mutex<Queue>,
    arrived: Notify,
}

impl SharedQueue {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            queue: Mutex::new(Queue::new(limit)),
            arrived: Notify::new(),
        }
    }

    /// Works on the queue; never across an await.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Queue) -> T) -> T {
        work(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a new frame and wakes the pusher.
    pub(crate) fn push(&self, frame: Vec<u8>) {
        self.with(|queue| queue.add(frame, false));
        self.arrived.notify_one();
    }

    /// Waits for a new frame.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use nodestats_core::{FrameId, Sample, Timestamp, frame};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_goes_first_and_then_the_oldest() {
        let mut queue = Queue::new(1000);
        (0..5).for_each(|_| queue.add(vec![0; 10], false));
        let orders = |taken: &[Queued]| taken.iter().map(|one| one.order).collect::<Vec<_>>();
        assert_eq!(queue.take_newest().map(|one| one.order), Some(4));
        let oldest = queue.take_oldest(25);
        assert_eq!(orders(&oldest), [0, 1]);
        for one in oldest {
            queue.give_back(one);
        }
        assert_eq!(orders(&queue.take_oldest(1)), [0]);
        assert_eq!(orders(&queue.take_oldest(1000)), [1, 2, 3]);
        assert_eq!(queue.take_newest(), None);
    }

    fn frame_of(seconds: i64, what: What) -> Vec<u8> {
        let note = Note {
            time_micros: seconds * 1_000_000,
            what,
        };
        frame_with(seconds, note)
    }

    fn frame_with(seconds: i64, note: Note) -> Vec<u8> {
        let sample = Sample {
            notes: vec![note],
            ..Sample::default()
        };
        let time = Timestamp::from_micros(seconds * 1_000_000).expect("a time");
        let id = FrameId {
            agent_start: uuid::Uuid::nil(),
            sequence: 0,
        };
        frame::encode(time, id, None, &sample)
    }

    #[test]
    fn what_a_dropped_sample_had_to_tell_goes_with_a_later_one() {
        let frame = frame_of;
        let mut queue = Queue::new(1);
        queue.add(frame(1, What::Stopping), false);
        queue.add(frame(2, What::ClockStep { micros: 5 }), false);
        queue.add(frame(3, What::Paused), false);
        // More may be dropped with the next one.
        let carried = queue.take_notes(3_000_000, false);
        assert_eq!(carried.len(), 2);
        let mut notes = queue.take_notes(4_000_000, false);
        notes.extend(carried);
        let told: Vec<_> = notes
            .iter()
            .map(|note| (note.time_micros, &note.what))
            .collect();
        let dropped = Dropped {
            samples: 2,
            first_micros: 1_000_000,
            last_micros: 2_000_000,
            refused: false,
        };
        assert_eq!(
            told,
            [
                (4_000_000, &What::Dropped(dropped)),
                (1_000_000, &What::Stopping),
                (2_000_000, &What::ClockStep { micros: 5 }),
            ]
        );
        assert_eq!(queue.take_notes(5_000_000, false), []);
        // One that tells of others is dropped too: all of them were.
        queue.add(frame(6, What::Dropped(dropped)), false);
        queue.add(frame(7, What::Paused), false);
        let again = queue.take_notes(8_000_000, true);
        let What::Dropped(all) = again[0].what else {
            panic!("{again:?}")
        };
        assert_eq!(
            (all.samples, all.first_micros, all.last_micros),
            (4, 1_000_000, 6_000_000)
        );
    }

    #[test]
    fn what_a_refused_sample_had_to_tell_is_told_once_more_and_what_a_file_has_too_much_is_not() {
        let mut queue = Queue::new(1);
        let refused = frame_of(5, What::Stopping);
        queue.lose(&refused, true);
        let notes = queue.take_notes(9_000_000, true);
        let times: Vec<i64> = notes.iter().map(|note| note.time_micros).collect();
        assert_eq!(times, [9_000_000, 8_999_999]);
        // Carried by another that is refused too.
        let carried = Note {
            time_micros: 8_999_999,
            what: What::Stopping,
        };
        queue.lose(&frame_with(9, carried), true);
        let notes = queue.take_notes(10_000_000, true);
        assert!(
            matches!(
                &notes[..],
                [Note {
                    what: What::Dropped(_),
                    ..
                }]
            ),
            "{notes:?}"
        );
        // Of an earlier agent's file.
        for seconds in 1..4 {
            queue.restore(frame_of(seconds, What::Paused));
        }
        assert_eq!((queue.len(), queue.take_notes(1, true)), (1, vec![]));
    }

    proptest! {
        #[test]
        fn it_never_outgrows_its_limit_and_counts_what_it_drops(
            lengths in prop::collection::vec(1usize..50, 1..100), limit in 1usize..500,
        ) {
            let mut queue = Queue::new(limit);
            for length in &lengths {
                queue.add(vec![0; *length], false);
                prop_assert!(queue.bytes <= limit || queue.len() == 1);
            }
            let dropped = queue.take_dropped() as usize;
            let left = queue.take_oldest(usize::MAX);
            prop_assert_eq!(dropped + left.len(), lengths.len());
            // What is left are the last ones, in order.
            prop_assert!(left.iter().map(|one| one.order as usize).eq(dropped..lengths.len()));
            prop_assert_eq!(queue.bytes, 0);
        }
    }
}
