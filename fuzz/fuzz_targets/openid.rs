//! Feeds `openid`; what it holds is told there.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stormglass_fuzz::targets::openid(bytes));
