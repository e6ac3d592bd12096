//! Samples on their way to the server: bounded, the newest first to go, then the oldest.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// An encoded frame and its sequence number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) sequence: u64,
    pub(crate) frame: Vec<u8>,
}

/// What waits, by sequence. Beyond its limit the oldest are dropped and counted.
#[derive(Debug)]
pub(crate) struct Queue {
    frames: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
    limit: usize,
    dropped: u64,
}

impl Queue {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            frames: BTreeMap::new(),
            bytes: 0,
            limit,
            dropped: 0,
        }
    }

    /// Adds a frame, new or given back after a failed push.
    pub(crate) fn add(&mut self, queued: Queued) {
        self.bytes += queued.frame.len();
        self.frames.insert(queued.sequence, queued.frame);
        // The last one stays, however large: a node without any sample is worse.
        while self.bytes > self.limit && self.frames.len() > 1 {
            if let Some((_, frame)) = self.frames.pop_first() {
                self.bytes -= frame.len();
                self.dropped += 1;
            }
        }
    }

    /// Takes the newest frame.
    pub(crate) fn take_newest(&mut self) -> Option<Queued> {
        let (sequence, frame) = self.frames.pop_last()?;
        self.bytes -= frame.len();
        Some(Queued { sequence, frame })
    }

    /// Takes the oldest frames, at least one, of at most `most` bytes together.
    pub(crate) fn take_oldest(&mut self, most: usize) -> Vec<Queued> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some((_, frame)) = self.frames.first_key_value() {
            bytes += frame.len();
            if bytes > most && !taken.is_empty() {
                break;
            }
            if let Some((sequence, frame)) = self.frames.pop_first() {
                self.bytes -= frame.len();
                taken.push(Queued { sequence, frame });
            }
        }
        taken
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
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
    pub(crate) fn push(&self, queued: Queued) {
        self.with(|queue| queue.add(queued));
        self.arrived.notify_one();
    }

    /// Waits for a new frame.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queued(sequence: u64, length: usize) -> Queued {
        Queued {
            sequence,
            frame: vec![0; length],
        }
    }

    #[test]
    fn the_newest_goes_first_and_then_the_oldest() {
        let mut queue = Queue::new(1000);
        (0..5).for_each(|sequence| queue.add(queued(sequence, 10)));
        let sequences = |taken: &[Queued]| taken.iter().map(|one| one.sequence).collect::<Vec<_>>();
        assert_eq!(queue.take_newest().map(|one| one.sequence), Some(4));
        let oldest = queue.take_oldest(25);
        assert_eq!(sequences(&oldest), [0, 1]);
        for one in oldest {
            queue.add(one);
        }
        assert_eq!(sequences(&queue.take_oldest(1)), [0]);
        assert_eq!(sequences(&queue.take_oldest(1000)), [1, 2, 3]);
        assert_eq!(queue.take_newest(), None);
    }

    proptest! {
        #[test]
        fn it_never_outgrows_its_limit_and_counts_what_it_drops(
            lengths in prop::collection::vec(1usize..50, 1..100), limit in 1usize..500,
        ) {
            let mut queue = Queue::new(limit);
            for (sequence, length) in lengths.iter().enumerate() {
                queue.add(queued(sequence as u64, *length));
                prop_assert!(queue.bytes <= limit || queue.len() == 1);
            }
            let dropped = queue.take_dropped() as usize;
            let left = queue.take_oldest(usize::MAX);
            prop_assert_eq!(dropped + left.len(), lengths.len());
            // What is left are the last ones, in order.
            prop_assert!(left.iter().map(|one| one.sequence as usize).eq(dropped..lengths.len()));
            prop_assert_eq!(queue.bytes, 0);
        }
    }
}
