//! Samples on their way to the server: bounded, the newest first to go, then the oldest.
//!
//! A frame waits in memory until it is on disk, and from then on there alone (`spool.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use nodestats_core::Frame;
use nodestats_core::sample::Note;
use nodestats_core::sample::note::{Dropped, NOTES, What};
use nodestats_runtime::telemetry::{self, Context};
use tokio::sync::Notify;

use crate::spool::Place;

/// An encoded frame, and its place among those that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queued {
    /// Later ones have higher numbers.
    pub(crate) order: u64,
    /// Empty while it waits on disk.
    pub(crate) frame: Vec<u8>,
    /// Where it is on disk.
    pub(crate) place: Option<Place>,
    /// The tick that took it.
    pub(crate) tick: Context,
}

/// Most bytes that wait in memory: an hour, at a sample of 150 processes each second.
const MEMORY: usize = 16 << 20;

/// Bytes of samples that are dropped from the disk at once, beside as many as come.
const AT_ONCE: usize = 1 << 20;

/// Notes of dropped samples that are carried on, at most.
const CARRIED: usize = 16 * NOTES;
/// Stands for the time of the sample that carries a note.
const NOW: i64 = i64::MIN;

/// What waits, in its order. Beyond what memory may hold the oldest are dropped and counted; the limit of
/// the disk is the spool's to keep.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: BTreeMap<u64, Queued>,
    next: u64,
    /// Bytes of frames in memory.
    in_memory: usize,
    /// Bytes of frames on disk.
    on_disk: usize,
    limit: usize,
    /// There is a disk, so that more may wait than memory may hold.
    has_disk: bool,
    dropped: u64,
    /// Which samples were dropped, for a full buffer and by the server's refusal.
    lost: [Option<Dropped>; 2],
    /// Something was dropped since it was last asked for.
    is_losing: bool,
    /// What those samples had to tell, and what there was no room for.
    carried: VecDeque<Note>,
}

impl Queued {
    /// What it takes where it waits.
    fn bytes(&self) -> usize {
        self.place.map_or(self.frame.len(), Place::bytes)
    }
}

impl Queue {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            next: 0,
            in_memory: 0,
            on_disk: 0,
            limit,
            has_disk: false,
            dropped: 0,
            lost: [None; 2],
            is_losing: false,
            carried: VecDeque::new(),
        }
    }

    /// Adds a new frame of the tick that we are in.
    pub(crate) fn add(&mut self, frame: Vec<u8>) {
        let order = self.next_order();
        self.give_back(Queued {
            order,
            frame,
            place: None,
            tick: telemetry::here(),
        });
    }

    /// Adds a frame of an earlier agent.
    pub(crate) fn restore(&mut self, place: Place) {
        let order = self.next_order();
        self.give_back(Queued {
            order,
            frame: Vec::new(),
            place: Some(place),
            tick: telemetry::here(),
        });
    }

    fn next_order(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Adds a frame that was taken, to its old place.
    pub(crate) fn give_back(&mut self, mut queued: Queued) {
        if let Some(place) = queued.place {
            queued.frame = Vec::new();
            self.on_disk += place.bytes();
        } else {
            self.in_memory += queued.frame.len();
        }
        self.waiting.insert(queued.order, queued);
        // The last one stays, however large: a node without any sample is worse.
        while self.in_memory > self.memory_limit() {
            let mut in_memory = self.waiting.values().filter(|one| one.place.is_none());
            let (Some(oldest), Some(_)) = (in_memory.next(), in_memory.next()) else {
                return;
            };
            let order = oldest.order;
            if let Some(oldest) = self.take(order) {
                self.dropped += 1;
                self.lose(&oldest.frame, false);
            }
        }
    }

    pub(crate) fn take(&mut self, order: u64) -> Option<Queued> {
        let one = self.waiting.remove(&order)?;
        match one.place {
            Some(place) => self.on_disk -= place.bytes(),
            None => self.in_memory -= one.frame.len(),
        }
        Some(one)
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

    /// Takes the newest frame, if its order is at least `since`; of those in memory unless the disk can
    /// be asked.
    pub(crate) fn take_newest(&mut self, since: u64, with_disk: bool) -> Option<Queued> {
        let mut waiting = self.waiting.range(since..).rev();
        let (&order, _) = waiting.find(|(_, one)| with_disk || one.place.is_none())?;
        self.take(order)
    }

    /// Takes the oldest frames, at least one, of at most `most` bytes together.
    pub(crate) fn take_oldest(&mut self, most: usize, with_disk: bool) -> Vec<Queued> {
        let mut orders = Vec::new();
        let mut bytes = 0;
        for one in self.waiting.values() {
            if !with_disk && one.place.is_some() {
                continue;
            }
            bytes += one.bytes();
            if bytes > most && !orders.is_empty() {
                break;
            }
            orders.push(one.order);
        }
        let taken = orders.into_iter().map(|order| self.take(order));
        taken.flatten().collect()
    }

    /// Takes the oldest frames on disk, until `more` bytes have room there; where much has to go, a part of it
    /// at once, since it is read for what it has to tell.
    pub(crate) fn make_room(&mut self, more: usize) -> Vec<Queued> {
        let excess = (self.on_disk + more).saturating_sub(self.limit);
        let mut excess = excess.min(more + AT_ONCE);
        let mut orders = Vec::new();
        for one in self.waiting.values() {
            let Some(place) = one.place.filter(|_| excess > 0) else {
                continue;
            };
            excess = excess.saturating_sub(place.bytes());
            orders.push(one.order);
        }
        let taken = orders.into_iter().map(|order| self.take(order));
        taken.flatten().collect()
    }

    /// Copies of the frames that are in memory alone, oldest first.
    pub(crate) fn in_memory(&self) -> Vec<Queued> {
        let waiting = self.waiting.values();
        waiting.filter(|one| one.place.is_none()).cloned().collect()
    }

    /// Frames of a file, oldest first.
    pub(crate) fn in_segment(&self, segment: u64) -> Vec<Queued> {
        let is_in = |one: &&Queued| one.place.is_some_and(|place| place.segment == segment);
        self.waiting.values().filter(is_in).cloned().collect()
    }

    /// A frame is on disk now, and not in memory any more; where it still waits.
    pub(crate) fn set_place(&mut self, order: u64, place: Place) -> bool {
        let Some(mut one) = self.take(order) else {
            return false;
        };
        one.place = Some(place);
        self.give_back(one);
        true
    }

    /// Whether something waits that can be sent: in memory, or on a disk that can be asked.
    pub(crate) fn has_any(&self, with_disk: bool) -> bool {
        self.in_memory > 0 || (with_disk && self.on_disk > 0)
    }

    /// Whether something that waits is not on disk.
    pub(crate) fn is_behind(&self) -> bool {
        self.in_memory > 0
    }

    /// Frames that could not be read from disk, or that it had no room for.
    pub(crate) fn count_dropped(&mut self, frames: u64) {
        self.dropped += frames;
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes that may wait.
    pub(crate) fn limit(&self) -> usize {
        if self.has_disk {
            self.limit
        } else {
            self.memory_limit()
        }
    }

    fn memory_limit(&self) -> usize {
        self.limit.min(MEMORY)
    }

    /// There is a disk where as much as the limit may wait.
    pub(crate) fn use_disk(&mut self) {
        self.has_disk = true;
    }

    /// Their bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.in_memory + self.on_disk
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
        self.with(|queue| queue.add(frame));
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
        (0..5).for_each(|_| queue.add(vec![0; 10]));
        let orders = |taken: &[Queued]| taken.iter().map(|one| one.order).collect::<Vec<_>>();
        assert_eq!(queue.take_newest(0, true).map(|one| one.order), Some(4));
        let oldest = queue.take_oldest(25, true);
        assert_eq!(orders(&oldest), [0, 1]);
        for one in oldest {
            queue.give_back(one);
        }
        assert_eq!(orders(&queue.take_oldest(1, true)), [0]);
        assert_eq!(orders(&queue.take_oldest(1000, true)), [1, 2, 3]);
        assert_eq!(queue.take_newest(0, true), None);
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
        queue.add(frame(1, What::Stopping));
        queue.add(frame(2, What::ClockStep { micros: 5 }));
        queue.add(frame(3, What::Paused));
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
        queue.add(frame(6, What::Dropped(dropped)));
        queue.add(frame(7, What::Paused));
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
    fn what_a_refused_sample_had_to_tell_is_told_once_more() {
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
    }

    proptest! {
        #[test]
        fn it_never_outgrows_its_limit_and_counts_what_it_drops(
            lengths in prop::collection::vec(1usize..50, 1..100), limit in 1usize..500,
        ) {
            let mut queue = Queue::new(limit);
            for length in &lengths {
                queue.add(vec![0; *length]);
                prop_assert!(queue.bytes() <= limit || queue.len() == 1);
            }
            let dropped = queue.take_dropped() as usize;
            let left = queue.take_oldest(usize::MAX, true);
            prop_assert_eq!(dropped + left.len(), lengths.len());
            // What is left are the last ones, in order.
            prop_assert!(left.iter().map(|one| one.order as usize).eq(dropped..lengths.len()));
            prop_assert_eq!(queue.bytes(), 0);
        }
    }
}
