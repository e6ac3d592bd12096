//! The query of a request.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodestats_api::fuzz::query_string(data));
