//! See `waystation_fuzz::tus`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| waystation_fuzz::tus(data));
