//! Any bytes can be decoded as KV, in any encoding, shape and place, and numbers that were encoded come back as finite ones.
#![no_main]

use std::sync::Arc;

use amem_core::{ChunkId, Encoding, HostKv, KvChunk, KvShape, PrefixId};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    code: u8,
    shape: [u8; 3],
    tokens: u16,
    at: (u16, u8),
    bytes: Vec<u8>,
    numbers: Vec<f32>,
}

fuzz_target!(|input: Input| {
    let Some(encoding) = Encoding::from_code(input.code) else { return };
    let [layers, kv_heads, head_dim] = input.shape.map(usize::from);
    let shape = KvShape { layers: 1 + layers % 3, kv_heads: kv_heads % 9, head_dim: head_dim % 150 };
    let tokens = usize::from(input.tokens % 200);
    // As many bytes as the shape needs, or the chunk is refused.
    let mut bytes = input.bytes;
    bytes.resize(encoding.bytes(&shape, tokens), 0x5a);
    let chunk = |bytes| {
        let data = Arc::new(HostKv::new(encoding, shape.layers, bytes));
        KvChunk::new(ChunkId([1; 32]), PrefixId::of(&[]), shape, vec![7; tokens].into(), data)
    };
    let Ok(any) = chunk(bytes) else { return };
    let (token, head) = (usize::from(input.at.0), usize::from(input.at.1));
    let mut numbers = vec![0.0; shape.head_dim * 3];
    for layer in 0..shape.layers {
        let layer = any.layer(layer).expect("it is there");
        layer.key(token, head, &mut numbers);
        layer.value(token, head, &mut numbers);
        layer.keys_from(token, head, &mut numbers);
    }
    let numbers: Vec<f32> = input.numbers.iter().copied().chain([1.0]).cycle().take(tokens * shape.row()).collect();
    let mut bytes = Vec::new();
    (0..shape.layers).for_each(|_| encoding.encode_layer(&shape, &numbers, &numbers, &mut bytes));
    let encoded = chunk(bytes).expect("an encoded layer has the bytes that it should have");
    let mut read = vec![0.0; shape.head_dim];
    for (token, head) in (0..tokens).flat_map(|token| (0..shape.kv_heads).map(move |head| (token, head))) {
        let at = (token * shape.kv_heads + head) * shape.head_dim;
        let layer = encoded.layer(0).expect("it is there");
        layer.key(token, head, &mut read);
        let finite = numbers[at..at + shape.head_dim].iter().zip(&read).all(|(x, y)| y.is_finite() || !x.is_finite());
        assert!(finite || encoding == Encoding::Plain(amem_core::Dtype::Bf16), "{encoding:?}: {read:?}");
    }
});
