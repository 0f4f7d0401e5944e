//! See `waystation_fuzz::proofline`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| waystation_fuzz::proofline(data));
