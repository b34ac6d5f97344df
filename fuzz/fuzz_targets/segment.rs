//! Any bytes pass for a segment file as far as they are sound, and no further.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A record takes a page at least.
    assert!(amem_store::fuzzing::segment(bytes) <= bytes.len() / 4096);
});
