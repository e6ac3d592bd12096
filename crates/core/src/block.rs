//! Sealed history: what many samples say, by columns, at a tenth of a byte a value.
//!
//! Most counters of most processes do not move between two samples, and those that do move together.
//! So a [`Series`] is coded by whether anything changed, by which columns did, and by how much, each as
//! bits whose probability is learnt as they go ([`coder`]), from what was the case before. Series that
//! stand beside each other share what is learnt; a chunk of them is read without the others.

mod coder;
mod model;
mod table;

pub use table::{Error, Reader, Run, Series, encode};
