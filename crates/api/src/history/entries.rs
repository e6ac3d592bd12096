//! The entries of an object that is keyed by time.

use nodestats_wire::Timestamp;
use serde::Serialize;

/// What of it is written.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// Key of the entry that was written last.
    written: Option<Timestamp>,
}

impl Entries {
    /// The key of the last one.
    pub(super) fn last(&self) -> Option<Timestamp> {
        self.written
    }

    /// Writes an entry; `next` is the key of the one behind it, where that is known: two of one second have a
    /// fraction.
    pub(super) fn write(
        &mut self,
        piece: &mut Vec<u8>,
        key: Timestamp,
        next: Option<Timestamp>,
        entry: &impl Serialize,
    ) {
        let second = key.second();
        let shares = |other: Option<Timestamp>| other.is_some_and(|other| other.second() == second);
        let name = if shares(self.written) || shares(next) {
            key.to_precise_key()
        } else {
            key.to_key()
        };
        piece.push(if self.written.is_none() { b'{' } else { b',' });
        serde_json::to_writer(&mut *piece, &name).expect("writing to memory");
        piece.push(b':');
        serde_json::to_writer(&mut *piece, entry).expect("writing to memory");
        self.written = Some(key);
    }

    /// The end of the object.
    pub(super) fn end(&self) -> &'static [u8] {
        if self.written.is_none() { b"{}" } else { b"}" }
    }
}
