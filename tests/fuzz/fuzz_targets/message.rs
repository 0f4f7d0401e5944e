//! See `waystation_fuzz::message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| waystation_fuzz::message(data));
