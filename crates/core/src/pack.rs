//! zstd, with the contexts of each thread kept: to make one for each part of a frame costs more than to pack
//! that part.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

/// Level 3 is zstd's default; higher ones cost an agent more CPU than they save bytes.
pub(crate) const LEVEL: i32 = 3;

thread_local! {
    static COMPRESSOR: RefCell<Compressor<'static>> =
        RefCell::new(Compressor::new(LEVEL).expect("a level that there is"));
    static DECOMPRESSOR: RefCell<Decompressor<'static>> =
        RefCell::new(Decompressor::new().expect("without a dictionary"));
}

/// Packs at [`LEVEL`].
pub(crate) fn pack(plain: &[u8]) -> Vec<u8> {
    let packed = COMPRESSOR.with_borrow_mut(|compressor| compressor.compress(plain));
    packed.expect("compressing into memory cannot fail")
}

/// Unpacks to at most `limit` bytes.
///
/// # Errors
/// It is damaged, or more than that.
pub(crate) fn unpack(packed: &[u8], limit: usize) -> std::io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.decompress(packed, limit))
}
