//! Chunks of made-up KV, and looking into files.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::path::Path;
use std::sync::Arc;

use amem_core::{ChunkId, Dtype, Encoding, Fingerprint, HostKv, KvChunk, KvShape, PrefixId};

/// A chunk that is different for each `seed`.
pub(crate) fn chunk(seed: u32, tokens: usize) -> KvChunk {
    let (shape, encoding) = (KvShape { layers: 2, kv_heads: 2, head_dim: 4 }, Encoding::Plain(Dtype::F32));
    let tokens: Arc<[u32]> = (0..tokens as u32).map(|i| hash(u64::from(seed) << 32 | u64::from(i)) as u32).collect();
    let prefix = PrefixId::of(&[1, 2, 3]);
    let id = ChunkId::of(&Fingerprint([7; 32]), &prefix, "test", &tokens);
    let words = (0..encoding.bytes(&shape, tokens.len()) as u64 / 8).map(|i| hash(u64::from(seed) << 40 | i));
    let data: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    KvChunk::new(id, prefix, shape, tokens, Arc::new(HostKv::new(encoding, 2, data))).unwrap()
}

/// The chunk with a sensitivity.
pub(crate) fn measured(chunk: &KvChunk) -> KvChunk {
    chunk.clone().with_sensitivity((0..chunk.tokens().len()).map(|i| i as f32).collect()).unwrap()
}

pub(crate) fn assert_same(found: &KvChunk, put: &KvChunk) {
    assert_eq!((found.id(), found.prefix(), found.shape()), (put.id(), put.prefix(), put.shape()));
    assert_eq!((found.tokens(), found.sensitivity()), (put.tokens(), put.sensitivity()));
    assert!(found.to_bytes().unwrap() == put.to_bytes().unwrap(), "other bytes than were put");
}

/// Whether any file in `dir` holds these bytes.
pub(crate) fn files_contain(dir: &Path, needle: &[u8]) -> bool {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file());
    files.map(|path| std::fs::read(path).unwrap()).any(|bytes| contains(&bytes, needle))
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

fn hash(n: u64) -> u64 {
    let mixed = (n ^ n >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}
