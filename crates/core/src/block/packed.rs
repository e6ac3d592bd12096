//! Lists of numbers as LEB128, packed by zstd where that makes them less. Of rows of gauges that is larger by a
//! fifth than what is learnt as it goes (`model.rs`), and read in a tenth of the time.

use std::borrow::Cow;

use super::PLAIN_LIMIT;
use super::table::Error;

/// Higher levels make rollups of a host no smaller.
const LEVEL: i32 = 9;
/// How a list stands there.
const PLAIN: u8 = 0;
const PACKED: u8 = 1;

pub(crate) fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

pub(crate) fn read_number(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first().ok_or(Error::Truncated)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(Error::Damaged)
}

/// Numbers of which each is told by what it differs from the one before, small differences in few bytes.
#[derive(Debug, Default)]
pub(super) struct Differences(u64);

impl Differences {
    pub(super) fn write(&mut self, bytes: &mut Vec<u8>, number: u64) {
        let difference = number.wrapping_sub(self.0) as i64;
        self.0 = number;
        write_number(bytes, (difference << 1 ^ difference >> 63) as u64);
    }

    pub(super) fn read(&mut self, bytes: &mut &[u8]) -> Result<u64, Error> {
        let told = read_number(bytes)?;
        let difference = (told >> 1) as i64 ^ -((told & 1) as i64);
        self.0 = self.0.wrapping_add(difference as u64);
        Ok(self.0)
    }
}

/// A list as it is kept.
pub(super) fn pack(plain: &[u8]) -> Vec<u8> {
    let packed = zstd::bulk::compress(plain, LEVEL).expect("compressing into memory cannot fail");
    let (how, bytes) = if packed.len() < plain.len() {
        (PACKED, &packed[..])
    } else {
        (PLAIN, plain)
    };
    let mut kept = vec![how];
    kept.extend(bytes);
    kept
}

/// A list as it was written: at most so many numbers, or [`PLAIN_LIMIT`].
pub(super) fn unpack(kept: &[u8], numbers: u64) -> Result<Cow<'_, [u8]>, Error> {
    let (how, bytes) = kept.split_first().ok_or(Error::Truncated)?;
    match *how {
        PLAIN => Ok(bytes.into()),
        PACKED => {
            let claimed = zstd::zstd_safe::get_frame_content_size(bytes);
            let claimed = claimed.ok().flatten().ok_or(Error::Damaged)?;
            // Ten bytes are the longest number.
            let limit = numbers.saturating_mul(10).min(PLAIN_LIMIT as u64);
            if claimed > limit {
                return Err(Error::Damaged);
            }
            let plain = crate::pack::unpack(bytes, claimed as usize);
            Ok(plain.map_err(|_| Error::Damaged)?.into())
        }
        _ => Err(Error::Damaged),
    }
}
