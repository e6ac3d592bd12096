//! What comes from outside, read as far as it can be: what fuzz targets call. No input may make any of it
//! panic, hang, or take more memory than its limits say.

use bytes::Bytes;

use crate::block::{Block, Parts, with_checksum};
use crate::frame::delta::Key;
use crate::frame::{Frame, Pushed};
use crate::stored::{Wanted, of_block, read};

/// Samples of a block that are looked at: all others are read alike.
const SAMPLES: usize = 64;

/// Bytes as the frames and deltas of a push, and as a sample at rest.
pub fn frames(data: &[u8]) {
    let mut rest = data;
    let mut key: &[u8] = &[];
    while let Ok((pushed, own, next)) = Pushed::split_first(rest) {
        let _ = pushed.unpacked_bytes();
        match pushed {
            Pushed::Whole(frame) => {
                // What is let in can be read.
                assert_eq!(frame.check().is_ok(), frame.sample().is_ok());
                key = own;
            }
            Pushed::Delta(delta) => {
                let restored = Key::unpack(key).and_then(|key| delta.restore(&key));
                if let Ok(restored) = restored {
                    let frame = Frame::read(&restored.frame).and_then(|frame| frame.sample());
                    assert!(frame.is_ok());
                }
            }
        }
        rest = next;
    }
    if let Ok(stored) = read(&Bytes::copy_from_slice(data)) {
        let _ = stored.key();
    }
}

/// Bytes as a block: the lengths of its hosts and its processes (u32, little-endian), and its three parts,
/// of which the checksums are made right.
pub fn block(data: &[u8]) {
    let Some((lengths, rest)) = data.split_first_chunk::<8>() else {
        return;
    };
    let length = |at: usize| {
        let bytes = [0, 1, 2, 3].map(|byte| lengths[at + byte]);
        u32::from_le_bytes(bytes) as usize
    };
    let (hosts, rest) = rest.split_at(length(0).min(rest.len()));
    let (processes, groups) = rest.split_at(length(4).min(rest.len()));
    let part = |bytes: &[u8]| Bytes::from(with_checksum(bytes.to_vec()));
    let Ok(block) = Block::open(&Parts {
        hosts: part(hosts),
        processes: Some(part(processes)),
        groups: Some(part(groups)),
    }) else {
        return;
    };
    let block = std::sync::Arc::new(block);
    for number in 0..block.len().min(SAMPLES) {
        let _ = block.sample(number, Wanted::All);
        let _ = of_block(&block, number).map(|stored| stored.key());
        let _ = block.reading(number);
    }
}

/// A block as [`block`] takes it.
pub fn of_parts(parts: &Parts) -> Vec<u8> {
    let processes = parts.processes.clone().unwrap_or_default();
    let mut data = Vec::new();
    for part in [&parts.hosts, &processes] {
        data.extend((part.len() as u32).to_le_bytes());
    }
    data.extend_from_slice(&parts.hosts);
    data.extend_from_slice(&processes);
    data.extend_from_slice(parts.groups.as_deref().unwrap_or_default());
    data
}
