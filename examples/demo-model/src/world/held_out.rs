//! The rule that keeps a tenth of all pairs of name and value out of training.

/// Whether the pair is held out: never stated in a training world, and the only pairs that an evaluation asks about.
///
/// A pair is held out when the CRC-32 of `name|value` divides by ten, so that anyone, in any language, draws the same
/// line with no list to keep.
pub fn held_out(name: &str, value: &str) -> bool {
    let bytes = name.bytes().chain([b'|']).chain(value.bytes());
    crc32(bytes).is_multiple_of(10)
}

/// CRC-32 as zlib has it (polynomial 0xEDB88320, reflected).
fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_is_zlibs() {
        assert_eq!(crc32(b"123456789".iter().copied()), 0xCBF4_3926);
        assert_eq!(crc32(b"".iter().copied()), 0);
    }

    #[test]
    fn about_a_tenth_of_all_pairs_is_held_out() {
        let held = (1000..10000).filter(|budget| held_out("Alice", &budget.to_string())).count();
        assert!((800..1000).contains(&held), "{held} of 9000");
    }
}
