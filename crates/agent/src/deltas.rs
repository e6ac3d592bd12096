//! How frames go over the wire: whole, or as what differs from a frame that the server has. What waits is
//! whole; so none is lost with another, and none that the server lacks holds others up.

use nodestats_core::frame::delta;

/// Deltas of one frame: after two minutes at ten seconds more processes have changed than have not.
const DELTAS: u32 = 12;
/// A delta that has not at most so many hundredths of its frame's bytes is none: the frame is sent whole,
/// and later ones say what differs from that.
const WORTH: usize = 70;

/// What the server is known to have, and to understand.
#[derive(Debug, Default)]
pub(crate) struct Deltas {
    /// It has said that it takes them.
    taken: bool,
    key: Option<Key>,
}

/// A frame from which later ones may say their differences.
#[derive(Debug)]
struct Key {
    frame: Vec<u8>,
    /// How many have.
    deltas: u32,
}

/// What is sent of some frames.
#[derive(Debug, Default)]
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    /// It needs a frame that the server is to have.
    pub(crate) needs_key: bool,
}

impl Deltas {
    /// The body of a push. One frame alone may say its differences from what was sent before; of several
    /// frames, which are of the past, each only from one of them.
    pub(crate) fn body(&self, frames: &[&[u8]]) -> Body {
        let mut body = Body::default();
        let alone = frames.len() == 1;
        let before = self.key.as_ref().filter(|_| alone);
        let mut key = before.map(|key| (&*key.frame, key.deltas));
        for &frame in frames {
            let usable = key.filter(|(_, deltas)| self.taken && *deltas < DELTAS);
            let delta = usable.and_then(|(key, _)| delta_of(frame, key));
            if let Some((delta, (_, deltas))) = delta.zip(key.as_mut()) {
                body.bytes.extend_from_slice(&delta);
                body.needs_key = alone;
                *deltas += 1;
            } else {
                body.bytes.extend_from_slice(frame);
                key = Some((frame, 0));
            }
        }
        body
    }

    /// The server has stored these frames, which this was the body of.
    pub(crate) fn acknowledged(&mut self, body: &Body, frames: &[&[u8]], takes_deltas: bool) {
        self.taken = takes_deltas;
        if !takes_deltas {
            self.key = None;
        } else if body.needs_key {
            self.key.iter_mut().for_each(|key| key.deltas += 1);
        } else if let [whole] = frames {
            self.key = Some(Key {
                frame: whole.to_vec(),
                deltas: 0,
            });
        }
    }

    /// The server may have another state than it had, or be another: the next frame is whole.
    pub(crate) fn forget(&mut self) {
        self.key = None;
    }
}

/// What of a frame differs from another; `None` where that is not worth it.
fn delta_of(frame: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let delta = delta::encode(frame, key).ok()??;
    (delta.len() * 100 <= frame.len() * WORTH).then_some(delta)
}

#[cfg(test)]
mod tests {
    use nodestats_core::frame::{self, Pushed};
    use nodestats_core::sample::{Process, Sample};
    use nodestats_core::{FrameId, Timestamp};

    use super::*;

    /// A frame of 40 processes, of which some are others than those of number 0.
    fn frame(sequence: u64, others: u32) -> Vec<u8> {
        let process = |pid: u32| {
            let others = if pid < others { sequence * 7919 } else { 0 };
            Process {
                pid: pid + others as u32,
                name: format!("{:x}", u64::from(pid).pow(5) * (others + 3)).into(),
                ..Process::default()
            }
        };
        let sample = Sample {
            processes: (0..40).map(process).collect(),
            ..Sample::default()
        };
        let time = Timestamp::from_micros(sequence as i64 * 10_000_000).expect("a time");
        let id = FrameId {
            agent_start: uuid::Uuid::from_u128(5),
            sequence,
        };
        frame::encode(time, id, None, &sample)
    }

    /// Which frames of a body are deltas, and of which one.
    fn keys(body: &Body) -> Vec<Option<u64>> {
        let mut rest = &*body.bytes;
        let mut keys = Vec::new();
        while !rest.is_empty() {
            let (pushed, _, after) = Pushed::split_first(rest).expect("a frame");
            keys.push(match pushed {
                Pushed::Whole(_) => None,
                Pushed::Delta(delta) => Some(delta.key.sequence),
            });
            rest = after;
        }
        keys
    }

    fn sent(deltas: &mut Deltas, frames: &[Vec<u8>]) -> Vec<Option<u64>> {
        let frames: Vec<&[u8]> = frames.iter().map(|frame| &**frame).collect();
        let body = deltas.body(&frames);
        deltas.acknowledged(&body, &frames, true);
        keys(&body)
    }

    #[test]
    fn after_a_whole_frame_come_some_that_differ_from_it() {
        let mut deltas = Deltas::default();
        let live: Vec<_> = (0..30)
            .flat_map(|sequence| sent(&mut deltas, &[frame(sequence, 2)]))
            .collect();
        let group = |key| std::iter::once(None).chain([Some(key); DELTAS as usize]);
        let wanted: Vec<_> = group(0)
            .chain(group(13))
            .chain(group(26))
            .take(30)
            .collect();
        assert_eq!(live, wanted);
        // The past needs nothing that it does not bring, and changes nothing for what is live.
        let past: Vec<_> = (100..103).map(|sequence| frame(sequence, 2)).collect();
        assert_eq!(sent(&mut deltas, &past), [None, Some(100), Some(100)]);
        assert_eq!(sent(&mut deltas, &[frame(30, 2)]), [Some(26)]);
    }

    #[test]
    fn a_frame_of_which_much_differs_is_whole_and_the_next_key() {
        let mut deltas = Deltas::default();
        assert_eq!(sent(&mut deltas, &[frame(0, 0)]), [None]);
        assert_eq!(sent(&mut deltas, &[frame(1, 0)]), [Some(0)]);
        assert_eq!(sent(&mut deltas, &[frame(2, 40)]), [None]);
        assert_eq!(sent(&mut deltas, &[frame(2, 40)]), [Some(2)]);
    }

    #[test]
    fn a_server_that_takes_none_or_has_not_said_so_gets_whole_ones() {
        let mut deltas = Deltas::default();
        let frames = [frame(0, 0), frame(1, 0)];
        for _ in 0..2 {
            for frame in &frames {
                let body = deltas.body(&[frame]);
                assert_eq!((keys(&body), body.needs_key), (vec![None], false));
                deltas.acknowledged(&body, &[frame], false);
            }
        }
        assert_eq!(sent(&mut deltas, &frames[..1]), [None]);
        assert!(deltas.body(&[&frames[1]]).needs_key);
        deltas.forget();
        assert_eq!(sent(&mut deltas, &frames[1..]), [None]);
    }
}
