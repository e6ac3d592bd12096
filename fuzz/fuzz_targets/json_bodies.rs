//! The JSON of a push or a registration.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nodestats_api::fuzz::json_body(data));
