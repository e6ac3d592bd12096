//! The frames of a push.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodestats_core::fuzz::frames(data));
