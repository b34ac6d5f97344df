//! Any bytes pass for a chunk's objects on a remote server as far as they are sound, and no further.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The head's length, in two bytes; the head; the parts.
fuzz_target!(|bytes: &[u8]| {
    let Some((len, rest)) = bytes.split_first_chunk() else { return };
    let (head, parts) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    assert!(amem_store::fuzzing::remote(head, parts).unwrap_or_default() <= bytes.len());
});
