//! What nodestats is about, without any I/O: samples of raw counters, their encoded form, and
//! the rates that follow from two of them.
//!
//! Knows no runtime, no network, no database, and no clock: time is an argument.

pub mod block;
pub mod event;
pub mod frame;
pub mod fuzz;
pub mod gap;
pub mod identity;
pub mod life;
mod pack;
pub mod pod;
pub mod rates;
pub mod redact;
pub mod rollup;
pub mod sample;
pub mod stored;
pub mod token;

pub use frame::{Frame, FrameId};
pub use identity::NodeIdentity;
pub use life::Life;
pub use nodestats_wire::Timestamp;
pub use sample::Sample;
pub use stored::{SampleKey, Stored, Wanted};
