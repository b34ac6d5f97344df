//! Number types of weights, of a KV cache and of stored KV.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

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
            Dtype::F32 => numbers.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
            Dtype::F16 => numbers.iter().for_each(|&x| bytes.extend(f16::from_f32(saturate(x)).to_le_bytes())),
            Dtype::Bf16 => numbers.iter().for_each(|&x| bytes.extend(bf16::from_f32(x).to_le_bytes())),
        }
    }

    /// Reads little-endian numbers, as many as there are bytes for and room in `numbers`.
    #[inline]
    pub fn decode(self, bytes: &[u8], numbers: &mut [f32]) {
        match self {
            Dtype::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
                Ok(halves) if cfg!(target_endian = "little") && halves.len() == numbers.len() => {
                    halves.convert_to_f32_slice(numbers);
                }
                _ => bytes.as_chunks().0.iter().zip(numbers).for_each(|(&b, y)| *y = f16::from_le_bytes(b).to_f32()),
            },
            Dtype::Bf16 => {
                let widen = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                bytes.as_chunks().0.iter().zip(numbers).for_each(|(b, y)| *y = widen(b));
            }
            Dtype::F32 => bytes.as_chunks().0.iter().zip(numbers).for_each(|(&b, y)| *y = f32::from_le_bytes(b)),
        }
    }

    /// Rounds numbers to the nearest that this type has.
    #[inline]
    pub fn round(self, numbers: &mut [f32]) {
        match self {
            Dtype::F32 => {}
            Dtype::F16 => numbers.iter_mut().for_each(|x| *x = f16::from_f32(saturate(*x)).to_f32()),
            Dtype::Bf16 => numbers.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        }
    }
}

/// f16 has no room beyond ±65504; an infinity would spoil every sum it enters.
fn saturate(x: f32) -> f32 {
    x.clamp(-65504.0, 65504.0)
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
    fn codes_stand_for_their_types() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            assert_eq!(Dtype::from_code(dtype.code()), Some(dtype));
        }
        assert_eq!(Dtype::from_code(3), None);
    }
}
