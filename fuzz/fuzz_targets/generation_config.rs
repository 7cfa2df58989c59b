#![no_main]

libfuzzer_sys::fuzz_target!(init: sparta_fuzz::init(), |bytes: &[u8]| sparta_fuzz::feed("generation_config", bytes));
