//! Whatever an index file with sound checksums lists, a store gives out no chunk but what the segment says; and it lists
//! no more records than it has room for.
#![no_main]

use amem_fuzz::segments::{Files, Segment};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|segment: Segment| {
    let files = Files::of(&[segment.with_index()]);
    files.check_indexes();
    if let Ok(found) = amem_store::fuzzing::segments(files.files.clone()) {
        files.check(&found);
    }
});
