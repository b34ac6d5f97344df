//! Any bytes are lines of which each is told once, and what they made a ledger hold goes through an export unchanged.
#![no_main]

use amem_core::{Ledger, Namespace, Query, RamLedger, Record, Timestamp};
use amem_store::{Export, export, import, import_reference_log};
use futures_lite::future::block_on;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, input)) = bytes.split_first() else { return };
    let Ok(namespace) = Namespace::new("ours") else { return };
    let (ledger, mut told) = (RamLedger::new(), Vec::new());
    let imported = block_on(async {
        if kind % 2 == 0 {
            import(&ledger, Some(&namespace), input, |line| told.push(line.line)).await
        } else {
            import_reference_log(&ledger, &namespace, input, |line| told.push(line.line)).await
        }
    });
    let imported = imported.expect("bytes in memory can be read, and this ledger does not fail");
    told.sort_unstable();
    // A mark that stands before all lines belongs to none.
    let lines = input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input).split(|byte| *byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    assert_eq!(told, lines.map(|(at, _)| at as u64 + 1).collect::<Vec<_>>());
    let before = active(&ledger, &namespace);
    assert!(before.len() as u64 <= imported.added + imported.superseding);

    let (mut lines, other) = (Vec::new(), RamLedger::new());
    block_on(export(&ledger, &Export::all(), &mut lines, |_| {})).expect("memory takes an export");
    let again = block_on(import(&other, Some(&namespace), &lines[..], |_| {})).expect("as above");
    assert_eq!(again.refused + again.left_out, 0, "what was exported can be imported");
    let after = active(&other, &namespace);
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((&before.text, &before.key, &before.metadata), (&after.text, &after.key, &after.metadata));
        assert_eq!(before.created_at.0 / 1000, after.created_at.0 / 1000);
    }
});

fn active(ledger: &RamLedger, namespace: &Namespace) -> Vec<Record> {
    block_on(ledger.list(namespace, Query::At(Timestamp::now()))).expect("it can be listed")
}
