//! Number types of weights, of a KV cache and of stored KV.
//!
//! Conversions are written without branches and inlined, so that a backend's kernels vectorise them for the
//! instruction set that they are compiled for.

/// What an f16 says, exactly.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    // Multiplying by 2^112 corrects the exponent's bias, of subnormal numbers too.
    const REBIAS: f32 = f32::from_bits((254 - 15) << 23);
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let scaled = (f32::from_bits(magnitude) * REBIAS).to_bits();
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | special | u32::from(bits & 0x8000) << 16)
}

/// The nearest f16, ties to even. Values beyond ±65504 saturate: an infinity would spoil every sum that it enters.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    const LARGEST: u32 = 65504f32.to_bits();
    /// The smallest f16 that is not subnormal.
    const NORMAL: u32 = 0x3880_0000;
    let (bits, sign) = (x.to_bits() & 0x7fff_ffff, (x.to_bits() >> 16 & 0x8000) as u16);
    let clamped = if bits > LARGEST { LARGEST } else { bits };
    // Adding a half leaves the digits of a subnormal f16, rounded, in the last bits.
    let subnormal = (f32::from_bits(clamped) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let rounded = clamped + 0x0fff + (clamped >> 13 & 1);
    let normal = rounded.wrapping_sub(112 << 23) >> 13;
    let magnitude = if clamped < NORMAL { subnormal } else { normal };
    let magnitude = if bits > 0x7f80_0000 { 0x7e00 } else { magnitude };
    magnitude as u16 | sign
}

/// What a bfloat16 says, exactly.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bfloat16, ties to even.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    let nan = (bits >> 16) as u16 | 0x40;
    if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }
}

/// How a number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// IEEE half precision, 11 bits of significand. Values beyond ±65504 saturate.
    F16,
    /// bfloat16: the range of f32, 8 bits of significand.
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// A stable code for files and hashes.
    pub const fn code(self) -> u8 {
        match self {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::Bf16 => 2,
        }
    }

    /// The type that [`code`](Self::code) stands for, if it is known.
    pub fn from_code(code: u8) -> Option<Self> {
        [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|dtype| dtype.code() == code)
    }

    /// Appends numbers as little-endian bytes, rounded to the nearest that this type has.
    pub fn encode(self, numbers: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Dtype::F32 => bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes())),
            Dtype::F16 => bytes.extend(numbers.iter().flat_map(|&x| f32_to_f16(x).to_le_bytes())),
            Dtype::Bf16 => bytes.extend(numbers.iter().flat_map(|&x| f32_to_bf16(x).to_le_bytes())),
        }
    }

    /// Reads little-endian numbers, as many as there are bytes for and room in `numbers`.
    #[inline(always)]
    pub fn decode(self, bytes: &[u8], numbers: &mut [f32]) {
        let halves = || bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes));
        match self {
            Dtype::F32 => bytes.as_chunks().0.iter().zip(numbers).for_each(|(&b, y)| *y = f32::from_le_bytes(b)),
            Dtype::F16 => halves().zip(numbers).for_each(|(b, y)| *y = f16_to_f32(b)),
            Dtype::Bf16 => halves().zip(numbers).for_each(|(b, y)| *y = bf16_to_f32(b)),
        }
    }

    /// Rounds numbers to the nearest that this type has.
    #[inline(always)]
    pub fn round(self, numbers: &mut [f32]) {
        match self {
            Dtype::F32 => {}
            Dtype::F16 => numbers.iter_mut().for_each(|x| *x = f16_to_f32(f32_to_f16(*x))),
            Dtype::Bf16 => numbers.iter_mut().for_each(|x| *x = bf16_to_f32(f32_to_bf16(*x))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_rounded_is_what_is_encoded(numbers in prop::collection::vec(-1e9f32..1e9, 0..70)) {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let (mut bytes, mut rounded, mut decoded) = (Vec::new(), numbers.clone(), vec![0.0; numbers.len()]);
                dtype.encode(&numbers, &mut bytes);
                dtype.round(&mut rounded);
                dtype.decode(&bytes, &mut decoded);
                prop_assert_eq!(bytes.len(), numbers.len() * dtype.size());
                prop_assert_eq!(&decoded, &rounded);
                let mut odd = vec![0];
                odd.extend(&bytes);
                let mut unaligned = vec![0.0; numbers.len()];
                dtype.decode(&odd[1..], &mut unaligned);
                prop_assert_eq!(unaligned, rounded, "where bytes lie in memory changes nothing");
            }
        }
    }

    #[test]
    fn every_half_reads_as_an_independent_implementation_reads_it() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}: {ours}");
            let (ours, theirs) = (bf16_to_f32(bits), half::bf16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}: {ours}");
        }
    }

    #[test]
    fn numbers_are_rounded_as_an_independent_implementation_rounds_them() {
        // All exponents and signs, with digits that round up, down, and to even.
        let digits = [0u32, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0x7f_ffff];
        for exponent in 0..=0xffu32 {
            for bits in digits.iter().flat_map(|d| [d | exponent << 23, d | exponent << 23 | 1 << 31]) {
                let x = f32::from_bits(bits);
                let theirs = half::f16::from_f32(if x.is_nan() { x } else { x.clamp(-65504.0, 65504.0) });
                let ours = half::f16::from_bits(f32_to_f16(x));
                assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{x:e}: {ours}");
                let (ours, theirs) = (half::bf16::from_bits(f32_to_bf16(x)), half::bf16::from_f32(x));
                assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{x:e}: {ours}");
            }
        }
    }

    #[test]
    fn codes_stand_for_their_types() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            assert_eq!(Dtype::from_code(dtype.code()), Some(dtype));
        }
        assert_eq!(Dtype::from_code(3), None);
    }
}
