//! Number types of weights: plain numbers, and the blocks of GGUF files.

use std::fmt;

use crate::Dtype;
use crate::kv::f16_to_f32;

/// How the numbers of a weight are written, little-endian. The quantised types are those of GGUF files, which
/// llama.cpp names the same; a row of theirs is a whole number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightType {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 numbers in 34 bytes: an f16 scale, then 8 signed bits for each number.
    Q8_0,
    /// 32 numbers in 18 bytes: an f16 scale, then 4 bits for each number, less 8. The first 16 numbers are in the low
    /// halves of the bytes, the others in the high halves.
    Q4_0,
    /// 32 numbers in 20 bytes: an f16 scale and an f16 minimum, then 4 bits for each number, in `Q4_0`'s order.
    Q4_1,
    /// 32 numbers in 22 bytes: an f16 scale, a fifth bit for each number, then 4 bits for each; less 16.
    Q5_0,
    /// 32 numbers in 24 bytes: an f16 scale and an f16 minimum, a fifth bit for each number, then 4 bits for each.
    Q5_1,
    /// `Q4_K`: 256 numbers in 144 bytes. Each 32 of them have a scale and a minimum of 6 bits, which an f16 each
    /// scales; each number has 4 bits.
    Q4K,
    /// `Q5_K`: `Q4_K` with a fifth bit for each number, 176 bytes.
    Q5K,
    /// `Q6_K`: 256 numbers in 210 bytes. Each 16 of them have a scale of 8 signed bits, which an f16 scales; each number
    /// has 6 bits, less 32.
    Q6K,
}

impl From<Dtype> for WeightType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// The name that GGUF files have for it.
impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

impl WeightType {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Numbers in a block; 1 for plain numbers.
    pub const fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The type of its numbers, where they are plain.
    pub const fn plain(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::Bf16 => Some(Dtype::Bf16),
            _ => None,
        }
    }

    /// Bytes of a matrix; `None` if a row of it is no whole number of blocks, or there are more bytes than can be.
    pub const fn matrix_bytes(self, rows: usize, columns: usize) -> Option<usize> {
        if !columns.is_multiple_of(self.block()) {
            return None;
        }
        match (columns / self.block()).checked_mul(self.block_bytes()) {
            Some(row) => row.checked_mul(rows),
            None => None,
        }
    }

    /// Reads numbers, as many as there are whole blocks for and room in `numbers`. They are those that llama.cpp's
    /// reference reads, to the bit.
    pub fn decode(self, bytes: &[u8], numbers: &mut [f32]) {
        match self {
            Self::F32 => Dtype::F32.decode(bytes, numbers),
            Self::F16 => Dtype::F16.decode(bytes, numbers),
            Self::Bf16 => Dtype::Bf16.decode(bytes, numbers),
            Self::Q8_0 => blocks(bytes, numbers, q8_0),
            Self::Q4_0 => blocks(bytes, numbers, q4_0),
            Self::Q4_1 => blocks(bytes, numbers, q4_1),
            Self::Q5_0 => blocks(bytes, numbers, q5_0),
            Self::Q5_1 => blocks(bytes, numbers, q5_1),
            Self::Q4K => blocks(bytes, numbers, q4_k),
            Self::Q5K => blocks(bytes, numbers, q5_k),
            Self::Q6K => blocks(bytes, numbers, q6_k),
        }
    }
}

fn blocks<const BYTES: usize, const NUMBERS: usize>(
    bytes: &[u8],
    numbers: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; NUMBERS]),
) {
    let (whole, rest) = numbers.as_chunks_mut::<NUMBERS>();
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    blocks.iter().zip(&mut *whole).for_each(|(block, numbers)| decode(block, numbers));
    if let (Some(block), false) = (blocks.get(whole.len()), rest.is_empty()) {
        let mut last = [0.0; NUMBERS];
        decode(block, &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

fn half(low: u8, high: u8) -> f32 {
    f16_to_f32(u16::from_le_bytes([low, high]))
}

fn q8_0(block: &[u8; 34], numbers: &mut [f32; 32]) {
    let [low, high, quants @ ..] = block;
    let scale = half(*low, *high);
    for (y, &q) in numbers.iter_mut().zip(quants) {
        *y = f32::from(q as i8) * scale;
    }
}

fn q4_0(block: &[u8; 18], numbers: &mut [f32; 32]) {
    let [low, high, quants @ ..] = block;
    let scale = half(*low, *high);
    halves(quants, 0, numbers, |q| f32::from(q as i8 - 8) * scale);
}

fn q4_1(block: &[u8; 20], numbers: &mut [f32; 32]) {
    let [d0, d1, m0, m1, quants @ ..] = block;
    let (scale, minimum) = (half(*d0, *d1), half(*m0, *m1));
    halves(quants, 0, numbers, |q| f32::from(q) * scale + minimum);
}

fn q5_0(block: &[u8; 22], numbers: &mut [f32; 32]) {
    let [low, high, b0, b1, b2, b3, quants @ ..] = block;
    let scale = half(*low, *high);
    halves(quants, u32::from_le_bytes([*b0, *b1, *b2, *b3]), numbers, |q| f32::from(q as i8 - 16) * scale);
}

fn q5_1(block: &[u8; 24], numbers: &mut [f32; 32]) {
    let [d0, d1, m0, m1, b0, b1, b2, b3, quants @ ..] = block;
    let (scale, minimum) = (half(*d0, *d1), half(*m0, *m1));
    halves(quants, u32::from_le_bytes([*b0, *b1, *b2, *b3]), numbers, |q| f32::from(q) * scale + minimum);
}

/// The first 16 numbers are in the low halves of the bytes, the others in the high ones. Of `fifth`, each number has one
/// bit.
#[inline(always)]
fn halves(quants: &[u8; 16], fifth: u32, numbers: &mut [f32; 32], number: impl Fn(u8) -> f32) {
    let (first, second) = numbers.split_at_mut(16);
    for (index, ((a, b), &q)) in first.iter_mut().zip(second).zip(quants).enumerate() {
        *a = number(q & 15 | ((fifth >> index & 1) as u8) << 4);
        *b = number(q >> 4 | ((fifth >> (index + 16) & 1) as u8) << 4);
    }
}

fn q4_k(block: &[u8; 144], numbers: &mut [f32; 256]) {
    let (head, quants) = block.split_at(16);
    scaled_twice(head, &[0; 32], quants, numbers);
}

fn q5_k(block: &[u8; 176], numbers: &mut [f32; 256]) {
    let (head, rest) = block.split_at(16);
    let (fifth, quants) = rest.split_at(32);
    scaled_twice(head, fifth, quants, numbers);
}

/// Groups of 32 numbers with scales and minimums that have a scale themselves. Each bit of a byte of `fifth` belongs to
/// another group.
#[inline(always)]
fn scaled_twice(head: &[u8], fifth: &[u8], quants: &[u8], numbers: &mut [f32; 256]) {
    let (scale, minimum, packed) = (half(head[0], head[1]), half(head[2], head[3]), &head[4..]);
    // The low 6 bits of the first 8 bytes are scales and minimums 0 to 3. Those of 4 to 7 have their low 4 bits in the
    // last 4 bytes, and their high 2 bits above the first 8 bytes' own.
    let six = |group: usize| match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (packed[group + 4] & 15 | packed[group - 4] >> 6 << 4, packed[group + 4] >> 4 | packed[group] >> 6 << 4),
    };
    for (group, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (sc, m) = six(group);
        let (scale, minimum) = (scale * f32::from(sc), minimum * f32::from(m));
        let quants = &quants[group / 2 * 32..][..32];
        for ((y, q), fifth) in numbers.iter_mut().zip(quants).zip(fifth) {
            *y = scale * f32::from(q >> (group % 2 * 4) & 15 | (fifth >> group & 1) << 4) - minimum;
        }
    }
}

fn q6_k(block: &[u8; 210], numbers: &mut [f32; 256]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, scale) = rest.split_at(16);
    let scale = half(scale[0], scale[1]);
    for (index, y) in numbers.iter_mut().enumerate() {
        // Each 128 numbers have 64 bytes with their low 4 bits and 32 with their high 2: bytes hold numbers that are
        // 64 (low) and 32 (high) apart.
        let (part, within) = (index / 128, index % 128);
        let four = low[64 * part + within % 64] >> (4 * (within / 64)) & 15;
        let two = high[32 * part + within % 32] >> (2 * (within / 32)) & 3;
        let q = (four | two << 4) as i8 - 32;
        *y = scale * f32::from(scales[index / 16] as i8) * f32::from(q);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;

    /// Blocks of each type, and the numbers that the `gguf` package of the llama.cpp project reads in them.
    const BLOCKS: &[u8] = include_bytes!("gguf/fixtures/blocks.safetensors");

    #[test]
    fn blocks_read_as_an_independent_implementation_reads_them() {
        let golden = SafeTensors::deserialize(BLOCKS).unwrap();
        for kind in WeightType::ALL {
            let bytes = golden.tensor(&format!("{kind}.blocks")).unwrap();
            let expected = golden.tensor(&format!("{kind}.numbers")).unwrap();
            let expected: Vec<u32> =
                expected.data().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
            assert!(expected.len() >= 4 * kind.block());
            assert_eq!(kind.matrix_bytes(1, expected.len()), Some(bytes.data().len()), "{kind}");
            let mut numbers = vec![0.0; expected.len()];
            kind.decode(bytes.data(), &mut numbers);
            for (index, (x, expected)) in numbers.iter().zip(expected).enumerate() {
                assert_eq!(x.to_bits(), expected, "{kind} {index}: {x} is not {}", f32::from_bits(expected));
            }
        }
    }

    #[test]
    fn a_row_of_half_a_block_has_no_size() {
        assert_eq!(WeightType::Q4K.matrix_bytes(3, 512), Some(3 * 2 * 144));
        assert_eq!(WeightType::Q4K.matrix_bytes(4, 128), None);
        assert_eq!(WeightType::F32.matrix_bytes(usize::MAX, 2), None);
        assert_eq!(WeightType::Q8_0.matrix_bytes(1, usize::MAX - 31), None);
    }

    proptest! {
        #[test]
        fn as_much_is_read_as_there_are_blocks_and_room_for(
            kind in prop::sample::select(WeightType::ALL.to_vec()),
            bytes in prop::collection::vec(any::<u8>(), 0..700),
            room in 0usize..600,
        ) {
            let whole = bytes.len() / kind.block_bytes() * kind.block();
            let mut all = vec![7.0; whole];
            kind.decode(&bytes, &mut all);
            let mut some = vec![7.0; room];
            kind.decode(&bytes, &mut some);
            let read = room.min(whole);
            let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&some[..read]), bits(&all[..read]));
            prop_assert!(some[read..].iter().all(|x| *x == 7.0));
        }
    }
}
