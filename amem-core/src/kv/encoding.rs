//! How a chunk's keys and values are written as bytes.
//!
//! Every encoding stores a chunk layer by layer, and a layer as its keys (before rotation) and then its values, so one
//! layer can be read, checked or sent to a device alone. The encoding says nothing about what a chunk is: its id stays
//! the same when a tier stores it in another one.

use super::{Dtype, KvShape};

/// How a chunk's keys and values are written as bytes. Little-endian; each layer is `[keys, values]` of what is said
/// below, and a row is one token's `kv_heads * head_dim` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Encoding {
    /// Numbers of one type: `[tokens][kv_heads][head_dim]`.
    Plain(Dtype),
    /// Eight bits a number: one f32 scale for each token and head, `[tokens][kv_heads]`, then signed bytes
    /// `[tokens][kv_heads][head_dim]`. A number is its byte times its head's scale, which is the largest magnitude of
    /// the head over 127.
    Int8,
}

impl Encoding {
    /// A stable code for files.
    pub const fn code(self) -> u8 {
        match self {
            Encoding::Plain(dtype) => dtype.code(),
            Encoding::Int8 => 16,
        }
    }

    /// The encoding that [`code`](Self::code) stands for, if it is known.
    pub fn from_code(code: u8) -> Option<Self> {
        if code == Encoding::Int8.code() { Some(Encoding::Int8) } else { Dtype::from_code(code).map(Encoding::Plain) }
    }

    /// Whether numbers of this type are written without loss.
    pub fn is_exact_for(self, dtype: Dtype) -> bool {
        matches!(self, Encoding::Plain(plain) if plain == dtype || plain == Dtype::F32)
    }

    /// Bytes of one layer's KV of `tokens` tokens; `None` if that is more than memory can address.
    pub fn checked_layer_bytes(self, shape: &KvShape, tokens: usize) -> Option<usize> {
        let head = match self {
            Encoding::Plain(dtype) => shape.head_dim.checked_mul(dtype.size())?,
            Encoding::Int8 => shape.head_dim.checked_add(4)?,
        };
        [shape.kv_heads, tokens, 2].into_iter().try_fold(head, usize::checked_mul)
    }

    /// Bytes of one layer's KV of `tokens` tokens, or `usize::MAX` if that is more than memory can address.
    pub fn layer_bytes(self, shape: &KvShape, tokens: usize) -> usize {
        self.checked_layer_bytes(shape, tokens).unwrap_or(usize::MAX)
    }

    /// Bytes of `tokens` tokens' KV over all layers, or `usize::MAX` if that is more than memory can address.
    pub fn bytes(self, shape: &KvShape, tokens: usize) -> usize {
        self.layer_bytes(shape, tokens).saturating_mul(shape.layers)
    }

    /// Appends one layer of keys and values, `[tokens][kv_heads * head_dim]` each.
    pub fn encode_layer(self, shape: &KvShape, keys: &[f32], values: &[f32], bytes: &mut Vec<u8>) {
        for half in [keys, values] {
            match self {
                Encoding::Plain(dtype) => dtype.encode(half, bytes),
                Encoding::Int8 => encode_int8(shape.head_dim, half, bytes),
            }
        }
    }

    /// Reads one head of one token out of one half (keys or values) of a layer, `half` as [`encode_layer`] wrote it.
    /// What lies outside of it reads as whatever `numbers` held.
    ///
    /// [`encode_layer`]: Self::encode_layer
    #[inline(always)]
    pub(crate) fn decode_head(self, shape: &KvShape, half: &[u8], token: usize, head: usize, numbers: &mut [f32]) {
        let index = token * shape.kv_heads + head;
        match self {
            Encoding::Plain(dtype) => {
                let len = shape.head_dim * dtype.size();
                if let Some(bytes) = half.get(index * len..(index + 1) * len) {
                    dtype.decode(bytes, numbers);
                }
            }
            Encoding::Int8 => {
                let heads = half.len() / (shape.head_dim + 4);
                let scale = half.get(4 * index..).and_then(|bytes| bytes.first_chunk::<4>());
                let codes = half.get(4 * heads + index * shape.head_dim..);
                if let (Some(scale), Some(codes)) = (scale, codes) {
                    let scale = f32::from_le_bytes(*scale);
                    numbers.iter_mut().zip(codes).for_each(|(x, &code)| *x = f32::from(code.cast_signed()) * scale);
                }
            }
        }
    }
}

fn encode_int8(head_dim: usize, numbers: &[f32], bytes: &mut Vec<u8>) {
    // What is no number has no place on the scale, and reads as zero.
    let largest = |head: &[f32]| head.iter().filter(|x| x.is_finite()).fold(0f32, |top, x| top.max(x.abs()));
    let heads = || numbers.chunks_exact(head_dim.max(1));
    let scales: Vec<f32> = heads().map(|head| largest(head) / 127.0).collect();
    scales.iter().for_each(|scale| bytes.extend(scale.to_le_bytes()));
    for (head, &scale) in heads().zip(&scales) {
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        bytes.extend(head.iter().map(|x| ((x * inverse).round().clamp(-127.0, 127.0) as i8).cast_unsigned()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Encoding; 4] =
        [Encoding::Plain(Dtype::F32), Encoding::Plain(Dtype::F16), Encoding::Plain(Dtype::Bf16), Encoding::Int8];

    proptest! {
        #[test]
        fn a_layer_comes_back_within_what_its_encoding_loses(
            (kv_heads, head_dim, tokens) in (1..4usize, 1..9usize, 1..6usize),
            seed in prop::collection::vec(-100f32..100.0, 2 * 3 * 8 * 5),
        ) {
            let shape = KvShape { layers: 1, kv_heads, head_dim };
            let count = tokens * shape.row();
            let halves = [&seed[..count], &seed[count..2 * count]];
            for (encoding, loss) in ALL.into_iter().zip([0.0, 1.0 / 2048.0, 1.0 / 256.0, 0.5 / 127.0]) {
                let mut bytes = Vec::new();
                encoding.encode_layer(&shape, halves[0], halves[1], &mut bytes);
                prop_assert_eq!(bytes.len(), encoding.layer_bytes(&shape, tokens));
                for (half, numbers) in bytes.chunks_exact(bytes.len() / 2).zip(halves) {
                    for (index, head) in numbers.chunks_exact(head_dim).enumerate() {
                        let mut read = vec![0.0; head_dim];
                        encoding.decode_head(&shape, half, index / kv_heads, index % kv_heads, &mut read);
                        let largest = head.iter().fold(0f32, |top, x| top.max(x.abs()));
                        for (x, y) in head.iter().zip(read) {
                            prop_assert!((x - y).abs() <= largest * loss * 1.001, "{encoding:?}: {x} reads {y}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_reads_as_zero_in_eight_bits() {
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 4 };
        let mut bytes = Vec::new();
        Encoding::Int8.encode_layer(&shape, &[f32::NAN, 2.0, -1.0, 0.0], &[0.0; 4], &mut bytes);
        let mut read = [9.0; 4];
        Encoding::Int8.decode_head(&shape, &bytes[..8], 0, 0, &mut read);
        assert_eq!(read[0], 0.0);
        assert!((read[1] - 2.0).abs() < 1e-6 && (read[2] + 1.0).abs() < 0.01);
    }

    #[test]
    fn codes_stand_for_their_encodings() {
        for encoding in ALL {
            assert_eq!(Encoding::from_code(encoding.code()), Some(encoding));
        }
        assert_eq!(Encoding::from_code(9), None);
    }

    #[test]
    fn sizes_that_no_memory_holds_are_none() {
        let shape = KvShape { layers: 1, kv_heads: usize::MAX, head_dim: 2 };
        assert!(ALL.iter().all(|encoding| encoding.checked_layer_bytes(&shape, 2).is_none()));
    }
}
