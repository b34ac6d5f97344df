//! Any bytes pass for a segment's index file as far as they are sound, and no further.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Each record that is listed takes 56 bytes.
    assert!(amem_store::fuzzing::index(bytes) <= bytes.len() / 56);
});
