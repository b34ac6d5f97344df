//! How a chunk's keys and values are written as bytes.
//!
//! Every encoding stores a chunk layer by layer, and a layer as its keys (before rotation) and then its values, so one
//! layer can be read, checked or sent to a device alone. The encoding says nothing about what a chunk is: its id stays
//! the same when a tier stores it in another one ([`Tier::encoding`](crate::Tier::encoding)).
//!
//! What each costs the demo model, against KV in f32 (`cargo run --release --example fidelity -- --seed 3 --questions 3000
//! --encodings`; 3,005 questions):
//!
//! | encoding | bits a number | error of attention | KL, first token | same answer | right answer |
//! | --- | ---: | ---: | ---: | ---: | ---: |
//! | f32 | 32 | 0 | 0 | 100 % | 92.0 % |
//! | f16 | 16 | .0002 | < .000001 | 99.8 % | 91.9 % |
//! | bf16 | 16 | .0013 | .000002 | 99.7 % | 91.8 % |
//! | int8 | 8.5 | .0039 | .00002 | 99.7 % | 91.8 % |
//! | int4 | 5.4 | .042 | .0012 | 98.8 % | 91.5 % |
//!
//! The error is that of attention's outputs for the question's rows, relative to their size. It and KL are without repair,
//! the answers with the default one. That not even f16 gives all the same answers is repair's doing: where two rows are
//! worth about the same, the last bits of KV decide which is computed anew. Bits a number are those of chunks of about 15
//! tokens with heads of 64; of long chunks int4 needs 5.

use super::{Dtype, KvShape, f16_to_f32, f32_to_f16};

/// Numbers that share a scale and a least number in [`Encoding::Int4`].
const GROUP: usize = 32;

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
    /// Four bits a number, as in KIVI: keys by channel, over groups of tokens, for a few channels of keys are much larger
    /// than the others; values by token, over groups of a head's numbers. A number is its code, 0 to 15, times its
    /// group's scale, plus its group's least number, both f16.
    ///
    /// - Keys: `[groups of tokens][kv_heads][scale, least][head_dim]`, then codes.
    /// - Values: `[tokens][kv_heads][scale, least][groups of head_dim]`, then codes.
    /// - Codes are `[tokens][kv_heads][head_dim / 2, rounded up]` bytes: byte *i* of a head holds its number *i* in the
    ///   low four bits, and the number *i* + (bytes of a head) in the high ones. These are zero where a head of an odd
    ///   size has no such number.
    ///
    /// A group is 32 tokens or numbers, and the last takes what is left: up to 63, so that no few tokens have a scale of
    /// their own. Fewer than 64 are one group.
    Int4,
}

/// One of the two halves of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Keys,
    Values,
}

/// Groups of so many tokens or numbers.
fn groups(len: usize) -> usize {
    len.div_ceil(GROUP).min((len / GROUP).max(1))
}

/// The group of one of so many tokens or numbers.
#[inline(always)]
fn group_of(index: usize, len: usize) -> usize {
    (index / GROUP).min((len / GROUP).max(1) - 1)
}

impl Encoding {
    /// A stable code for files.
    pub const fn code(self) -> u8 {
        match self {
            Encoding::Plain(dtype) => dtype.code(),
            Encoding::Int8 => 16,
            Encoding::Int4 => 17,
        }
    }

    /// The encoding that [`code`](Self::code) stands for, if it is known.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            16 => Some(Encoding::Int8),
            17 => Some(Encoding::Int4),
            _ => Dtype::from_code(code).map(Encoding::Plain),
        }
    }

    /// Whether numbers of this type are written without loss.
    pub fn is_exact_for(self, dtype: Dtype) -> bool {
        matches!(self, Encoding::Plain(plain) if plain == dtype || plain == Dtype::F32)
    }

    fn checked_half_bytes(self, half: Half, shape: &KvShape, tokens: usize) -> Option<usize> {
        let product = |numbers: &[usize]| numbers.iter().try_fold(1, |all: usize, n| all.checked_mul(*n));
        let (heads, width) = (shape.kv_heads, shape.head_dim);
        match self {
            Encoding::Plain(dtype) => product(&[tokens, heads, width, dtype.size()]),
            // A head without numbers has no scale either.
            Encoding::Int8 if width == 0 => Some(0),
            Encoding::Int8 => product(&[tokens, heads, width.checked_add(4)?]),
            Encoding::Int4 => {
                let scales = match half {
                    Half::Keys => product(&[groups(tokens), heads, width, 4])?,
                    Half::Values => product(&[tokens, heads, groups(width), 4])?,
                };
                product(&[tokens, heads, width.div_ceil(2)])?.checked_add(scales)
            }
        }
    }

    /// Bytes of one layer's KV of `tokens` tokens; `None` if that is more than memory can address.
    pub fn checked_layer_bytes(self, shape: &KvShape, tokens: usize) -> Option<usize> {
        let [keys, values] = [Half::Keys, Half::Values].map(|half| self.checked_half_bytes(half, shape, tokens));
        keys?.checked_add(values?)
    }

    /// Bytes of one layer's KV of `tokens` tokens, or `usize::MAX` if that is more than memory can address.
    pub fn layer_bytes(self, shape: &KvShape, tokens: usize) -> usize {
        self.checked_layer_bytes(shape, tokens).unwrap_or(usize::MAX)
    }

    /// Those of them that are keys: where a layer's values begin.
    pub fn key_bytes(self, shape: &KvShape, tokens: usize) -> usize {
        self.checked_half_bytes(Half::Keys, shape, tokens).unwrap_or(usize::MAX)
    }

    /// Bytes of `tokens` tokens' KV over all layers, or `usize::MAX` if that is more than memory can address.
    pub fn bytes(self, shape: &KvShape, tokens: usize) -> usize {
        self.layer_bytes(shape, tokens).saturating_mul(shape.layers)
    }

    /// Appends one layer of keys and values, `[tokens][kv_heads * head_dim]` each.
    pub fn encode_layer(self, shape: &KvShape, keys: &[f32], values: &[f32], bytes: &mut Vec<u8>) {
        for (half, numbers) in [(Half::Keys, keys), (Half::Values, values)] {
            match self {
                Encoding::Plain(dtype) => dtype.encode(numbers, bytes),
                Encoding::Int8 => encode_int8(shape.head_dim, numbers, bytes),
                Encoding::Int4 => encode_int4(shape, half, numbers, bytes),
            }
        }
    }

    /// Reads one head of one token out of one half of a layer of so many tokens, `bytes` as [`encode_layer`] wrote it.
    /// What lies outside of it reads as whatever `numbers` held.
    ///
    /// [`encode_layer`]: Self::encode_layer
    #[inline(always)]
    pub(crate) fn decode_head(
        self,
        shape: &KvShape,
        (half, bytes): (Half, &[u8]),
        tokens: usize,
        (token, head): (usize, usize),
        numbers: &mut [f32],
    ) {
        if token >= tokens || head >= shape.kv_heads {
            return;
        }
        let (index, len) = (token * shape.kv_heads + head, numbers.len().min(shape.head_dim));
        let numbers = &mut numbers[..len];
        match self {
            Encoding::Plain(dtype) => {
                let len = shape.head_dim * dtype.size();
                if let Some(bytes) = bytes.get(index * len..(index + 1) * len) {
                    dtype.decode(bytes, numbers);
                }
            }
            Encoding::Int8 => {
                let heads = tokens * shape.kv_heads;
                let scale = bytes.get(4 * index..).and_then(|bytes| bytes.first_chunk::<4>());
                let codes = bytes.get(4 * heads + index * shape.head_dim..);
                if let (Some(scale), Some(codes)) = (scale, codes) {
                    let scale = f32::from_le_bytes(*scale);
                    numbers.iter_mut().zip(codes).for_each(|(x, &code)| *x = f32::from(code.cast_signed()) * scale);
                }
            }
            Encoding::Int4 if half == Half::Keys => decode_int4_keys(shape, bytes, tokens, (token, head), numbers),
            Encoding::Int4 => decode_int4_values(shape, bytes, tokens, (token, head), numbers),
        }
    }
}

impl Encoding {
    /// Reads one head of the keys of consecutive tokens, `[tokens][head_dim]`, as [`decode_head`](Self::decode_head) does.
    #[inline(always)]
    pub(crate) fn decode_keys(
        self,
        shape: &KvShape,
        bytes: &[u8],
        tokens: usize,
        (from, head): (usize, usize),
        numbers: &mut [f32],
    ) {
        if self == Encoding::Int4 && head < shape.kv_heads {
            return decode_int4_keys(shape, bytes, tokens, (from, head), numbers);
        }
        for (token, numbers) in (from..).zip(numbers.chunks_exact_mut(shape.head_dim.max(1))) {
            self.decode_head(shape, (Half::Keys, bytes), tokens, (token, head), numbers);
        }
    }
}

fn encode_int8(head_dim: usize, numbers: &[f32], bytes: &mut Vec<u8>) {
    // What is no number has no place on the scale, and reads as zero.
    let largest = |head: &[f32]| head.iter().filter(|x| x.is_finite()).fold(0f32, |top, x| top.max(x.abs()));
    let heads = || numbers.chunks_exact(head_dim.max(1));
    // So that 127 times the scale of the largest numbers there are does not round to an infinity.
    let scales: Vec<f32> = heads().map(|head| (largest(head) / 127.0).min(f32::MAX / 128.0)).collect();
    scales.iter().for_each(|scale| bytes.extend(scale.to_le_bytes()));
    for (head, &scale) in heads().zip(&scales) {
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        bytes.extend(head.iter().map(|x| ((x * inverse).round().clamp(-127.0, 127.0) as i8).cast_unsigned()));
    }
}

/// Where the numbers of a group lie between its least and its largest.
#[derive(Clone, Copy)]
struct QuantRange {
    scale: f32,
    least: f32,
}

impl QuantRange {
    /// That of a group with these bounds, as its two f16 say it.
    fn new(least: f32, largest: f32) -> Self {
        // Without a number in the group, the bounds have crossed.
        let (least, largest) = if least <= largest { (least, largest) } else { (0.0, 0.0) };
        let least = f16_to_f32(f32_to_f16(least));
        let scale = f16_to_f32(f32_to_f16(((largest - least) / 15.0).max(0.0)));
        Self { scale, least }
    }

    /// The nearest code. What is no number is written as zero would be, and what is infinite as the end of the range.
    fn code(self, x: f32) -> u8 {
        let x = if x.is_nan() { 0.0 } else { x };
        let inverse = if self.scale > 0.0 { 1.0 / self.scale } else { 0.0 };
        let steps = (x - self.least) * inverse;
        // An infinity times zero is no number.
        if steps.is_nan() { 0 } else { steps.round().clamp(0.0, 15.0) as u8 }
    }
}

fn encode_int4(shape: &KvShape, half: Half, numbers: &[f32], bytes: &mut Vec<u8>) {
    let (row, width) = (shape.row().max(1), shape.head_dim.max(1));
    let tokens = numbers.len() / row;
    // For each group, its least and its largest number.
    let (count, group): (usize, Box<dyn Fn(usize) -> usize>) = match half {
        Half::Keys => (groups(tokens) * row, Box::new(move |at| group_of(at / row, tokens) * row + at % row)),
        Half::Values => {
            let of_head = groups(width);
            (numbers.len() / width * of_head, Box::new(move |at| at / width * of_head + group_of(at % width, width)))
        }
    };
    let mut bounds = vec![(f32::INFINITY, f32::NEG_INFINITY); count];
    for (at, &x) in numbers.iter().enumerate().filter(|(_, x)| x.is_finite()) {
        let (least, largest) = &mut bounds[group(at)];
        (*least, *largest) = (least.min(x), largest.max(x));
    }
    let ranges: Vec<QuantRange> = bounds.into_iter().map(|(least, largest)| QuantRange::new(least, largest)).collect();
    let of_head = if half == Half::Keys { width } else { groups(width) };
    for head in ranges.chunks_exact(of_head) {
        bytes.extend(head.iter().flat_map(|range| f32_to_f16(range.scale).to_le_bytes()));
        bytes.extend(head.iter().flat_map(|range| f32_to_f16(range.least).to_le_bytes()));
    }
    let high = width.div_ceil(2);
    for (head, numbers) in numbers.chunks_exact(width).enumerate() {
        let code = |number: usize| match numbers.get(number) {
            Some(x) => ranges[group(head * width + number)].code(*x),
            None => 0,
        };
        bytes.extend((0..high).map(|number| code(number) | code(number + high) << 4));
    }
}

/// What two bytes say.
#[inline(always)]
fn number(bytes: [u8; 2]) -> f32 {
    f16_to_f32(u16::from_le_bytes(bytes))
}

/// The code in the low or the high four bits.
#[inline(always)]
fn code<const SHIFT: u32>(byte: u8) -> f32 {
    f32::from(byte >> SHIFT & 15)
}

/// Keys of consecutive tokens: scales are read once for all tokens of a group.
#[inline(always)]
fn decode_int4_keys(shape: &KvShape, bytes: &[u8], tokens: usize, (from, head): (usize, usize), numbers: &mut [f32]) {
    let (heads, width) = (shape.kv_heads, shape.head_dim.max(1));
    let (of_codes, all) = (width.div_ceil(2), groups(tokens) * heads * width * 4);
    let mut rest = &mut numbers[..];
    let mut token = from;
    while token < tokens && rest.len() >= width {
        let group = group_of(token, tokens);
        let end = if group + 1 == groups(tokens) { tokens } else { (group + 1) * GROUP };
        let run = (end - token).min(rest.len() / width);
        let (these, others) = rest.split_at_mut(run * width);
        let ranges = bytes.get((group * heads + head) * width * 4..).and_then(|rest| rest.get(..width * 4));
        let codes = bytes.get(all + (token * heads + head) * of_codes..);
        let (Some(ranges), Some(codes)) = (ranges, codes) else { return };
        let (scales, least) = ranges.split_at(2 * width);
        // In pieces of as many channels as the stack holds scales for.
        for at in (0..width).step_by(GROUP) {
            let piece = at..(at + GROUP).min(width);
            let [mut scale, mut low] = [[0f32; GROUP]; 2];
            let halves = |bytes: &[u8], to: &mut [f32; GROUP]| {
                let bytes = bytes.get(2 * piece.start..2 * piece.end).unwrap_or_default();
                bytes.as_chunks().0.iter().zip(to).for_each(|(bytes, to)| *to = number(*bytes));
            };
            halves(scales, &mut scale);
            halves(least, &mut low);
            for (row, codes) in these.chunks_exact_mut(width).zip(codes.chunks(heads * of_codes)) {
                let Some(row) = row.get_mut(piece.clone()) else { return };
                // Of a piece across the middle of a head, the first numbers are in low bits and the others in high ones.
                let (first, second) = row.split_at_mut(of_codes.saturating_sub(at).min(row.len()));
                let (scale_1, scale_2) = scale.split_at(first.len());
                let (low_1, low_2) = low.split_at(first.len());
                let codes_1 = codes.get(at..).unwrap_or_default();
                let codes_2 = codes.get((at + first.len()).saturating_sub(of_codes)..).unwrap_or_default();
                spread::<0>(first, codes_1, scale_1, low_1);
                spread::<4>(second, codes_2, scale_2, low_2);
            }
        }
        (rest, token) = (others, token + run);
    }
}

/// Codes on scales of their own.
#[inline(always)]
fn spread<const SHIFT: u32>(numbers: &mut [f32], codes: &[u8], scales: &[f32], least: &[f32]) {
    for (((x, &byte), scale), least) in numbers.iter_mut().zip(codes).zip(scales).zip(least) {
        *x = code::<SHIFT>(byte) * scale + least;
    }
}

#[inline(always)]
fn decode_int4_values(
    shape: &KvShape,
    bytes: &[u8],
    tokens: usize,
    (token, head): (usize, usize),
    numbers: &mut [f32],
) {
    let (heads, width) = (shape.kv_heads, shape.head_dim);
    let (index, of_codes, of_head) = (token * heads + head, width.div_ceil(2), groups(width));
    let ranges = bytes.get(4 * of_head * index..4 * of_head * (index + 1));
    let codes = bytes.get(4 * of_head * tokens * heads + index * of_codes..).and_then(|rest| rest.get(..of_codes));
    let (Some(ranges), Some(codes), Some(numbers)) = (ranges, codes, numbers.get_mut(..width)) else { return };
    let (low, high) = numbers.split_at_mut(of_codes);
    low.iter_mut().zip(codes).for_each(|(x, &byte)| *x = code::<0>(byte));
    high.iter_mut().zip(codes).for_each(|(x, &byte)| *x = code::<4>(byte));
    let (scales, least) = ranges.split_at(2 * of_head);
    let mut rest = numbers;
    for (group, (&scale, &least)) in scales.as_chunks().0.iter().zip(least.as_chunks().0).enumerate() {
        let len = if group + 1 == of_head { rest.len() } else { GROUP };
        let (these, others) = rest.split_at_mut(len);
        let (scale, least) = (number(scale), number(least));
        these.iter_mut().for_each(|x| *x = *x * scale + least);
        rest = others;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Encoding; 5] = [
        Encoding::Plain(Dtype::F32),
        Encoding::Plain(Dtype::F16),
        Encoding::Plain(Dtype::Bf16),
        Encoding::Int8,
        Encoding::Int4,
    ];

    /// Both halves of a layer, read head by head.
    fn decoded(encoding: Encoding, shape: &KvShape, tokens: usize, bytes: &[u8]) -> [Vec<f32>; 2] {
        let (keys, values) = bytes.split_at(encoding.key_bytes(shape, tokens));
        [(Half::Keys, keys), (Half::Values, values)].map(|half| {
            let mut numbers = vec![f32::MAX; tokens * shape.row()];
            for (index, head) in numbers.chunks_exact_mut(shape.head_dim).enumerate() {
                encoding.decode_head(shape, half, tokens, (index / shape.kv_heads, index % shape.kv_heads), head);
            }
            numbers
        })
    }

    /// Keys, read in runs of `run` tokens.
    fn decoded_in_runs(encoding: Encoding, shape: &KvShape, tokens: usize, bytes: &[u8], run: usize) -> Vec<f32> {
        let mut keys = vec![f32::MAX; tokens * shape.row()];
        for (from, head) in (0..tokens).step_by(run).flat_map(|from| (0..shape.kv_heads).map(move |head| (from, head)))
        {
            let mut numbers = vec![f32::MAX; run.min(tokens - from) * shape.head_dim];
            encoding.decode_keys(shape, bytes, tokens, (from, head), &mut numbers);
            for (token, read) in (from..).zip(numbers.chunks_exact(shape.head_dim)) {
                let at = (token * shape.kv_heads + head) * shape.head_dim;
                keys[at..at + shape.head_dim].copy_from_slice(read);
            }
        }
        keys
    }

    fn round_trip(encoding: Encoding, shape: &KvShape, keys: &[f32], values: &[f32]) -> [Vec<f32>; 2] {
        let (mut bytes, tokens) = (Vec::new(), keys.len() / shape.row());
        encoding.encode_layer(shape, keys, values, &mut bytes);
        assert_eq!(bytes.len(), encoding.layer_bytes(shape, tokens));
        decoded(encoding, shape, tokens, &bytes)
    }

    /// The last of the groups of 32 that this is in, where the rest belongs to the last whole one: counted, not computed.
    fn group_by_counting(index: usize, len: usize) -> usize {
        let (mut group, mut begins) = (0, 0);
        while len - begins >= 64 && index >= begins + 32 {
            (group, begins) = (group + 1, begins + 32);
        }
        group
    }

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
                for (read, numbers) in round_trip(encoding, &shape, halves[0], halves[1]).iter().zip(halves) {
                    for (head, read) in numbers.chunks_exact(head_dim).zip(read.chunks_exact(head_dim)) {
                        let largest = head.iter().fold(0f32, |top, x| top.max(x.abs()));
                        for (x, y) in head.iter().zip(read) {
                            prop_assert!((x - y).abs() <= largest * loss * 1.001, "{encoding:?}: {x} reads {y}");
                        }
                    }
                }
            }
        }

        #[test]
        fn in_four_bits_a_number_is_off_by_half_a_step_of_its_group_at_most(
            (kv_heads, head_dim, tokens) in (1..3usize, 1..100usize, 1..140usize),
            (seed, size, offset) in (any::<u64>(), 1e-3f32..1e3, -1e3f32..1e3),
        ) {
            let shape = KvShape { layers: 1, kv_heads, head_dim };
            let mut state = seed | 1;
            let mut halves = [(); 2].map(|()| -> Vec<f32> {
                let next = || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    offset + size * ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
                };
                std::iter::repeat_with(next).take(tokens * shape.row()).collect()
            });
            // One channel of the keys is much larger, as in real ones: the others must not lose by it.
            halves[0].chunks_exact_mut(shape.row()).for_each(|row| row[0] *= 20.0);
            let read = round_trip(Encoding::Int4, &shape, &halves[0], &halves[1]);
            let row = shape.row();
            let key_group = |at: usize| (group_by_counting(at / row, tokens), at % row);
            let value_group = |at: usize| (at / head_dim, group_by_counting(at % head_dim, head_dim));
            let groups: [&dyn Fn(usize) -> (usize, usize); 2] = [&key_group, &value_group];
            for ((numbers, read), group) in halves.iter().zip(&read).zip(groups) {
                let mut bounds = std::collections::HashMap::new();
                for (at, &x) in numbers.iter().enumerate() {
                    let (least, largest) = bounds.entry(group(at)).or_insert((x, x));
                    (*least, *largest) = (least.min(x), largest.max(x));
                }
                for (at, (&x, &y)) in numbers.iter().zip(read).enumerate() {
                    let (least, largest) = bounds[&group(at)];
                    // Half a step; and the least number and the scale are rounded to eleven bits.
                    let rounded = f32::max(least.abs(), largest.abs()) / 1024.0;
                    prop_assert!((x - y).abs() <= (largest - least) / 30.0 + rounded, "{x} reads {y} in {least}..{largest}");
                }
            }
        }

        #[test]
        fn keys_read_in_runs_are_those_read_one_by_one(
            (kv_heads, head_dim, tokens, run) in (1..3usize, 1..100usize, 1..140usize, 1..40usize),
            bits in prop::collection::vec(-100f32..100.0, 97),
        ) {
            let shape = KvShape { layers: 1, kv_heads, head_dim };
            let numbers: Vec<f32> = bits.iter().copied().cycle().take(tokens * shape.row()).collect();
            for encoding in ALL {
                let mut bytes = Vec::new();
                encoding.encode_layer(&shape, &numbers, &numbers, &mut bytes);
                let [keys, _] = decoded(encoding, &shape, tokens, &bytes);
                prop_assert_eq!(decoded_in_runs(encoding, &shape, tokens, &bytes, run), keys, "{:?}", encoding);
            }
        }

        #[test]
        fn whatever_numbers_are_encoded_finite_ones_are_read(
            (kv_heads, head_dim, tokens) in (1..3usize, 1..40usize, 1..70usize),
            numbers in prop::collection::vec(any::<f32>(), 2 * 39 * 69),
        ) {
            let shape = KvShape { layers: 1, kv_heads, head_dim };
            let numbers = &numbers[..tokens * shape.row()];
            for encoding in [Encoding::Int4, Encoding::Int8] {
                let [keys, values] = round_trip(encoding, &shape, numbers, numbers);
                prop_assert!(keys.iter().chain(&values).all(|x| x.is_finite()));
            }
        }
    }

    /// Worked out by hand from what [`Encoding::Int4`] says.
    #[test]
    fn the_bytes_of_four_bits_are_those_of_the_format() {
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 3 };
        // Two tokens. Channel 0 goes from -1 to 2.75: steps of 0.25. Channel 1 from 0 to 15: steps of 1. Channel 2 is 0.5.
        let keys = [-1.0, 15.0, 0.5, 2.75, 0.0, 0.5];
        // Token 0 goes from 0 to 7.5: steps of 0.5, and 2.6 is nearest to 2.5. Token 1 is -2 all over.
        let values = [0.0, 7.5, 2.6, -2.0, -2.0, -2.0];
        let mut bytes = Vec::new();
        Encoding::Int4.encode_layer(&shape, &keys, &values, &mut bytes);
        let expected_keys = [
            [0x00, 0x34, 0x00, 0x3c, 0x00, 0x00], // scales 0.25, 1, 0
            [0x00, 0xbc, 0x00, 0x00, 0x00, 0x38], // least -1, 0, 0.5
            // Token 0: 0 and 15, with the 0 of channel 2 above channel 0's; token 1: 15 and 0.
            [0x00, 0x0f, 0x0f, 0x00, 0, 0],
        ];
        let expected_keys = &expected_keys.concat()[..16];
        let expected_values = [
            [0x00, 0x38, 0x00, 0x00], // token 0: scale 0.5, least 0
            [0x00, 0x00, 0x00, 0xc0], // token 1: scale 0, least -2
            // Token 0: 0, 15 and 5; token 1: all 0.
            [0x50, 0x0f, 0x00, 0x00],
        ];
        assert_eq!(bytes, [expected_keys, &expected_values.concat()].concat());
        let [read_keys, read_values] = decoded(Encoding::Int4, &shape, 2, &bytes);
        assert_eq!(read_keys, keys);
        assert_eq!(read_values, [0.0, 7.5, 2.5, -2.0, -2.0, -2.0]);
    }

    #[test]
    fn four_bits_take_the_bytes_that_their_groups_need() {
        // Heads of 5 numbers have 3 bytes of codes; each group has two f16.
        let shape = KvShape { layers: 3, kv_heads: 2, head_dim: 5 };
        // 63 tokens are one group of keys, 64 are two, and 95 are two.
        for (tokens, key_groups) in [(1, 1), (63, 1), (64, 2), (95, 2), (96, 3)] {
            let codes = tokens * 2 * 3;
            let (keys, values) = (key_groups * 2 * 5 * 4 + codes, tokens * 2 * 4 + codes);
            assert_eq!(Encoding::Int4.key_bytes(&shape, tokens), keys);
            assert_eq!(Encoding::Int4.layer_bytes(&shape, tokens), keys + values);
            assert_eq!(Encoding::Int4.bytes(&shape, tokens), 3 * (keys + values));
        }
        // Of a large model: 4 bits and, for 64 tokens of 128 numbers, another bit for the scales.
        let large = KvShape { layers: 32, kv_heads: 8, head_dim: 128 };
        assert_eq!(Encoding::Int4.bytes(&large, 64) * 8, large.token_numbers() * 64 * 5);
    }

    #[test]
    fn what_is_no_number_reads_as_zero_in_eight_bits() {
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 4 };
        let [read, _] = round_trip(Encoding::Int8, &shape, &[f32::NAN, 2.0, -1.0, 0.0], &[0.0; 4]);
        assert_eq!(read[0], 0.0);
        assert!((read[1] - 2.0).abs() < 1e-6 && (read[2] + 1.0).abs() < 0.01);
    }

    #[test]
    fn in_four_bits_what_is_no_number_reads_as_near_to_zero_as_its_group_comes() {
        let (shape, inf, nan) = (KvShape { layers: 1, kv_heads: 1, head_dim: 4 }, f32::INFINITY, f32::NAN);
        let values = [nan, 4.0, 1.0, inf, nan, nan, -inf, nan, nan, -1.5, 6.0, -inf];
        let [_, read] = round_trip(Encoding::Int4, &shape, &[0.0; 12], &values);
        assert_eq!(read[..4], [1.0, 4.0, 1.0, 4.0].map(|x: f32| if x == 4.0 { read[1] } else { x }));
        assert!((read[1] - 4.0).abs() < 0.002);
        assert_eq!(read[4..8], [0.0; 4], "a group without numbers");
        assert_eq!(read[8..], [0.0, -1.5, 6.0, -1.5]);
    }

    #[test]
    fn the_largest_numbers_are_cut_and_stay_finite() {
        let shape = KvShape { layers: 1, kv_heads: 1, head_dim: 2 };
        let [_, read] = round_trip(Encoding::Int4, &shape, &[0.0; 2], &[-1e9, 1e9]);
        assert_eq!(read[0], -65504.0);
        assert!(read[1].is_finite() && read[1] > 65504.0);
        let [_, read] = round_trip(Encoding::Int8, &shape, &[0.0; 2], &[f32::MAX, f32::MIN]);
        assert!(read[0].is_finite() && read[0] > 0.99 * f32::MAX && read[1] == -read[0], "{read:?}");
    }

    #[test]
    fn what_lies_outside_of_a_layer_is_not_read() {
        let shape = KvShape { layers: 1, kv_heads: 2, head_dim: 4 };
        for encoding in ALL {
            let mut bytes = Vec::new();
            encoding.encode_layer(&shape, &[1.0; 24], &[1.0; 24], &mut bytes);
            let mut numbers = [7.0; 6];
            let (keys, values) = bytes.split_at(encoding.key_bytes(&shape, 3));
            for (half, bytes) in [(Half::Keys, keys), (Half::Values, values)] {
                encoding.decode_head(&shape, (half, &[]), 3, (0, 0), &mut numbers[..4]);
                encoding.decode_head(&shape, (half, bytes), 3, (3, 0), &mut numbers[..4]);
                encoding.decode_head(&shape, (half, bytes), 3, (0, 2), &mut numbers[..4]);
                assert_eq!(numbers, [7.0; 6], "{encoding:?}");
                encoding.decode_head(&shape, (half, bytes), 3, (0, 1), &mut numbers);
                assert_eq!(numbers[4..], [7.0; 2], "{encoding:?}");
                numbers[..4].fill(7.0);
            }
        }
    }

    #[test]
    fn heads_without_numbers_take_no_bytes() {
        let shape = KvShape { layers: 1, kv_heads: 3, head_dim: 0 };
        for encoding in ALL {
            let mut bytes = Vec::new();
            encoding.encode_layer(&shape, &[], &[], &mut bytes);
            assert_eq!((bytes.len(), encoding.layer_bytes(&shape, 70)), (0, 0), "{encoding:?}");
        }
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
