//! A delta: a frame of which only that is sent which differs from a frame before it, its key.
//!
//! A delta is `length (u32) | version (u8) = 4 | time | agent start | sequence | interval | key's time |
//! key's sequence | key's checksum (8 bytes) | host part | process part | cgroup part | notes part`. Its
//! key is a frame of version 3 of the same start of the agent; the checksum is the begin of the SHA-256 of
//! the key's own bytes. Each part is a zstd frame for which the key's part, unpacked, is the prefix that
//! its matches may reach into (`ZSTD_CCtx_refPrefix`): what did not change costs a few bytes, whatever
//! the sample's form. From a delta and its key the frame comes back; its parts are compressed anew, by
//! which its bytes may be others where two versions of zstd met. So only a frame that came whole is a key.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use zstd::zstd_safe::{CCtx, CParameter, DCtx, compress_bound, get_error_name};

use crate::pack::{self, LEVEL};

use super::{
    Checked, Error, Frame, FrameId, Header, Process, Reader, Timestamp, capacity, check,
    count_processes, join, plain,
};

/// In the place of a frame's version.
pub(super) const VERSION: u8 = 4;
/// Parts of a frame of the version that can be a key.
const PARTS: usize = 4;
const CHECKSUM: usize = 8;

/// A delta whose header has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta<'a> {
    /// When the sample was taken, by the agent's wall clock.
    pub time: Timestamp,
    /// What makes it count once.
    pub id: FrameId,
    /// When its key was taken.
    pub key_time: Timestamp,
    /// What makes its key count once.
    pub key: FrameId,
    interval: Option<Duration>,
    checksum: [u8; CHECKSUM],
    parts: [&'a [u8]; PARTS],
}

/// A key whose parts are unpacked, once for all deltas of it.
#[derive(Debug)]
pub struct Key {
    time: Timestamp,
    id: FrameId,
    checksum: [u8; CHECKSUM],
    plains: [Vec<u8>; PARTS],
}

impl Key {
    /// Unpacks a frame's own bytes; [`Error::Key`] where it is of a version that can be none.
    pub fn unpack(frame: &[u8]) -> Result<Self, Error> {
        let key = Frame::read(frame)?;
        let mut plains: [Vec<u8>; PARTS] = Default::default();
        for (unpacked, packed) in plains.iter_mut().zip(parts(&key).ok_or(Error::Key)?) {
            *unpacked = plain(packed)?;
        }
        Ok(Self {
            time: key.time,
            id: key.id,
            checksum: checksum(frame),
            plains,
        })
    }
}

/// What a delta and its key give.
#[derive(Debug, Clone, PartialEq)]
pub struct Restored {
    /// The frame's own bytes, as [`super::encode`] gives them here.
    pub frame: Vec<u8>,
    /// What is in it.
    pub checked: Checked,
}

/// A frame's parts; `None` of versions that have fewer.
fn parts<'a>(frame: &Frame<'a>) -> Option<[&'a [u8]; PARTS]> {
    Some([frame.host, frame.processes, frame.cgroups?, frame.notes?])
}

fn checksum(key: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::digest(key);
    *digest.first_chunk().expect("32 bytes")
}

fn compress_after(key: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(compress_bound(plain.len()));
    let mut context = CCtx::create();
    let done = context
        .set_parameter(CParameter::CompressionLevel(LEVEL))
        .and_then(|_| context.ref_prefix(key))
        .and_then(|_| context.compress2(&mut packed, plain));
    done.expect("compressing into memory cannot fail");
    packed
}

fn plain_after(key: &[u8], packed: &[u8]) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::with_capacity(capacity(packed));
    let mut context = DCtx::create();
    let done = context
        .ref_prefix(key)
        .and_then(|_| context.decompress(&mut plain, packed));
    match done {
        Ok(_) => Ok(plain),
        Err(code) => Err(Error::Unpack(std::io::Error::other(get_error_name(code)))),
    }
}

/// The delta that says of a frame what differs from its key; `None` where these two have none: another
/// start of the agent, or an older version. Both are whole frames' own bytes.
pub fn encode(frame: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let (whole, of_key) = (Frame::read(frame)?, Frame::read(key)?);
    if whole.id.agent_start != of_key.id.agent_start {
        return Ok(None);
    }
    let (Some(own), Some(before)) = (parts(&whole), parts(&of_key)) else {
        return Ok(None);
    };
    let mut packed = Vec::with_capacity(PARTS);
    for (own, before) in own.into_iter().zip(before) {
        packed.push(compress_after(&plain(before)?, &plain(own)?));
    }
    let header = Header {
        version: VERSION,
        time: whole.time,
        id: whole.id,
        interval: whole.interval,
    };
    let mut more = Vec::with_capacity(8 + 8 + CHECKSUM);
    more.extend_from_slice(&of_key.time.micros().to_le_bytes());
    more.extend_from_slice(&of_key.id.sequence.to_le_bytes());
    more.extend_from_slice(&checksum(key));
    Ok(Some(join(&header, &more, &packed)))
}

impl<'a> Delta<'a> {
    /// Reads the one delta that `bytes` are.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader(bytes);
        let (_, header) = reader.header(VERSION..=VERSION)?;
        let key_time = reader.time()?;
        let key = FrameId {
            sequence: u64::from_le_bytes(reader.array()?),
            ..header.id
        };
        let checksum = reader.array()?;
        let mut parts: [&[u8]; PARTS] = [&[]; PARTS];
        for part in &mut parts {
            *part = reader.part()?;
        }
        if !reader.0.is_empty() {
            return Err(Error::Surplus(reader.0.len()));
        }
        Ok(Self {
            time: header.time,
            id: header.id,
            key_time,
            key,
            interval: header.interval,
            checksum,
            parts,
        })
    }

    /// As [`Frame::unpacked_bytes`].
    pub fn unpacked_bytes(&self) -> usize {
        self.parts.into_iter().map(capacity).sum()
    }

    /// The frame that this is the delta of. [`Error::Key`] where the key is another frame's.
    pub fn restore(&self, key: &Key) -> Result<Restored, Error> {
        if (key.time, key.id, key.checksum) != (self.key_time, self.key, self.checksum) {
            return Err(Error::Key);
        }
        let mut plains: [Vec<u8>; PARTS] = Default::default();
        let packed = self.parts.into_iter().zip(&key.plains);
        for (unpacked, (packed, before)) in plains.iter_mut().zip(packed) {
            *unpacked = plain_after(before, packed)?;
        }
        let [host, processes, cgroups, notes] = &plains;
        let processes = count_processes::<Process<&str>>(processes)?;
        let checked = check(host, processes, Some(cgroups), Some(notes))?;
        let header = Header {
            version: super::VERSION,
            time: self.time,
            id: self.id,
            interval: self.interval,
        };
        let packed = plains.map(|plain| pack::pack(&plain));
        Ok(Restored {
            frame: join(&header, &[], &packed),
            checked,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::id;
    use super::super::{HEADER, Pushed, encode as encode_frame};
    use super::*;
    use crate::sample::{Cgroup, Note, Sample, note};

    fn sample(pids: &[u32], ticks: u64) -> Sample {
        let process = |pid: &u32| Process {
            pid: *pid,
            name: format!("program-{pid}").into(),
            state: 'S',
            user_ticks: ticks * u64::from(*pid),
            command_line: Some(format!("/usr/bin/program-{pid} --verbose").into()),
            ..Process::default()
        };
        let mut sample = Sample {
            processes: pids.iter().map(process).collect(),
            cgroups: Some(vec![Cgroup {
                path: "/a".into(),
                members: pids.to_vec(),
                ..Cgroup::default()
            }]),
            notes: vec![Note {
                time_micros: 9,
                what: note::What::Stopping,
            }],
            ..Sample::default()
        };
        sample.place_processes();
        sample
    }

    fn frame_of(sequence: u64, sample: &Sample) -> Vec<u8> {
        let time = Timestamp::from_micros(1_000_000 * sequence as i64).expect("in range");
        encode_frame(time, id(sequence), Some(Duration::from_secs(10)), sample)
    }

    fn unpacked(frame: &[u8]) -> Key {
        Key::unpack(frame).expect("a frame")
    }

    fn read(bytes: &[u8]) -> Delta<'_> {
        match Pushed::split_first(bytes) {
            Ok((Pushed::Delta(delta), _, [])) => delta,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_delta_and_its_key_give_the_frame_to_the_last_bit(
            before in prop::collection::vec(any::<u32>(), 0..40),
            after in prop::collection::vec(any::<u32>(), 0..40),
            ticks in any::<u32>(),
        ) {
            let key = frame_of(3, &sample(&before, 5));
            let wanted = sample(&after, ticks.into());
            let frame = frame_of(9, &wanted);
            let bytes = encode(&frame, &key).expect("frames").expect("of one agent");
            let restored = read(&bytes).restore(&unpacked(&key)).expect("its key");
            prop_assert_eq!((restored.checked.values, restored.checked.notes), (wanted.values(), wanted.notes));
            prop_assert_eq!(restored.frame, frame);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let key = frame_of(3, &sample(&[1, 2], 5));
            let mut delta = encode(&key, &key).expect("frames").expect("of one agent");
            for (byte, other) in delta.iter_mut().skip(65).zip(bytes) {
                *byte ^= other;
            }
            if let Ok((Pushed::Delta(delta), ..)) = Pushed::split_first(&delta) {
                let _ = delta.restore(&unpacked(&key));
            }
        }
    }

    #[test]
    fn a_sample_that_is_all_but_the_same_takes_next_to_nothing() {
        let pids: Vec<u32> = (1..150).collect();
        let key = frame_of(3, &sample(&pids, 5));
        let mut next = sample(&pids, 5);
        next.processes[7].user_ticks += 1;
        let frame = frame_of(4, &next);
        let delta = encode(&frame, &key).expect("frames").expect("of one agent");
        assert!(delta.len() < 250, "{} of {}", delta.len(), frame.len());
    }

    #[test]
    fn another_key_is_refused_and_not_guessed_from() {
        let key = frame_of(3, &sample(&[1, 2], 5));
        let frame = frame_of(4, &sample(&[1, 2], 6));
        let bytes = encode(&frame, &key).expect("frames").expect("of one agent");
        let delta = read(&bytes);
        // The same number with another content, and another number with the same content.
        for other in [
            frame_of(3, &sample(&[1, 2], 7)),
            frame_of(2, &sample(&[1, 2], 5)),
        ] {
            assert!(matches!(delta.restore(&unpacked(&other)), Err(Error::Key)));
        }
        // Of another start of the agent there is none.
        let mut other = key.clone();
        other[13] ^= 1;
        assert_eq!(encode(&frame, &other).expect("frames"), None);
    }

    #[test]
    fn cut_off_anywhere_is_an_error() {
        let key = frame_of(3, &sample(&[1, 2], 5));
        let bytes = encode(&key, &key).expect("frames").expect("of one agent");
        for end in 0..bytes.len() {
            assert!(Pushed::split_first(&bytes[..end]).is_err(), "{end}");
            let mut short = bytes[..end].to_vec();
            if let Some(length) = short.first_chunk_mut() {
                *length = (end as u32).to_le_bytes();
                assert!(Pushed::split_first(&short).is_err(), "{end}");
            }
        }
    }

    #[test]
    fn a_bomb_is_refused_and_not_unpacked() {
        let key = frame_of(3, &sample(&[1], 5));
        let of_key = Frame::read(&key).expect("a frame");
        let header = Header {
            version: VERSION,
            time: of_key.time,
            id: id(4),
            interval: None,
        };
        let mut more = of_key.time.micros().to_le_bytes().to_vec();
        more.extend_from_slice(&of_key.id.sequence.to_le_bytes());
        more.extend_from_slice(&checksum(&key));
        let bomb = pack::pack(&vec![0; 64 << 20]);
        let bytes = join(&header, &more, &vec![bomb; PARTS]);
        let delta = read(&bytes);
        assert!(delta.unpacked_bytes() <= PARTS * (16 << 20));
        assert!(matches!(
            delta.restore(&unpacked(&key)),
            Err(Error::Unpack(_))
        ));
        assert_eq!(HEADER + more.len(), 65);
    }
}
