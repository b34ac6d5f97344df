//! Memory as a host sees it.

use amem_ptxsim::{Memory, MemoryError};
use proptest::prelude::*;

#[test]
fn accesses_from_outside_are_checked() {
    let mut memory = Memory::new();
    let address = memory.allocate("keys", 100);
    assert_eq!(address % 512, 0);
    assert_eq!(memory.allocated_bytes(), 100);
    assert!(memory.read(address, &mut [0]).unwrap_err().to_string().contains("byte 0 of `keys`"));
    memory.write(address, &[7; 60]).unwrap();
    let mut out = [0; 61];
    assert_eq!(memory.read(address, &mut out), Err(MemoryError::Uninitialised { name: "keys".into(), offset: 60 }));
    memory.read_raw(address, &mut out).unwrap();
    assert_eq!((out[59], out[60]), (7, 0xcd));
    let past = MemoryError::OutOfBounds { name: "keys".into(), offset: 96, bytes: 5, len: 100 };
    assert_eq!(memory.write(address + 96, &[0; 5]), Err(past.clone()));
    assert_eq!(memory.fill(address + 96, 0, 5), Err(past.clone()));
    assert_eq!(memory.read_raw(address + 96, &mut [0; 5]), Err(past));
    assert_eq!(memory.read(16, &mut [0]), Err(MemoryError::NotAllocated { address: 16 }));
    memory.fill(address, 3, 100).unwrap();
    memory.read(address + 99, &mut out[..1]).unwrap();
    assert_eq!(out[0], 3);
}

#[test]
fn freed_memory_is_gone_and_never_given_out_again() {
    let mut memory = Memory::new();
    let first = memory.allocate("first", 64);
    let second = memory.allocate("second", 64);
    assert_eq!(memory.free(first + 8), Err(MemoryError::NotAllocated { address: first + 8 }));
    memory.free(first).unwrap();
    let freed = MemoryError::Freed { name: "first".into() };
    assert_eq!(memory.free(first), Err(freed.clone()));
    assert_eq!(memory.write(first + 8, &[0]), Err(freed.clone()));
    assert_eq!(memory.copy(first, second, 8), Err(freed));
    assert!(memory.allocate("third", 64) > second);
    assert_eq!(memory.allocated_bytes(), 128);
}

proptest! {
    /// A copy against one byte by byte, at offsets that share no alignment, within one allocation too.
    #[test]
    fn a_copy_carries_what_was_never_written(
        writes in prop::collection::vec((0usize..300, 1usize..40, any::<u8>()), 0..12),
        (from, to, len) in (0usize..150, 0usize..150, 0usize..150),
        same in any::<bool>(),
    ) {
        let mut memory = Memory::new();
        let source = memory.allocate("source", 340);
        let target = if same { source } else { memory.allocate("target", 340) };
        let mut expected: [Vec<Option<u8>>; 2] = [vec![None; 340], vec![None; 340]];
        for (index, (offset, len, byte)) in writes.into_iter().enumerate() {
            let which = if same { 0 } else { index % 2 };
            memory.fill([source, target][which] + offset as u64, byte, len).unwrap();
            expected[which][offset..offset + len].fill(Some(byte));
        }
        memory.copy(source + from as u64, target + to as u64, len).unwrap();
        let copied = expected[0][from..from + len].to_vec();
        expected[usize::from(!same)][to..to + len].copy_from_slice(&copied);
        for (address, expected) in [source, target].into_iter().zip(&expected).take(if same { 1 } else { 2 }) {
            for (offset, expected) in expected.iter().enumerate() {
                let mut byte = [0];
                let read = memory.read(address + offset as u64, &mut byte).ok().map(|()| byte[0]);
                prop_assert_eq!(read, *expected, "byte {}", offset);
            }
        }
    }
}
