//! Of segment files with sound checksums and any contents, some bytes of which were changed then, a store gives out no
//! chunk but what they say; it finds all records of files that were not changed; and it reads no more than they hold.
#![no_main]

use amem_fuzz::segments::{Files, Segment};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|segments: Vec<Segment>| {
    let files = Files::of(&segments[..segments.len().min(3)]);
    if let Ok(found) = amem_store::fuzzing::segments(files.files.clone()) {
        files.check(&found);
    }
});
