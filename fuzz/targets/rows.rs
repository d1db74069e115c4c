#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| floe_tests::fuzz::rows(bytes));
