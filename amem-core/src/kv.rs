//! What is stored: the keys and values of a run of tokens, and the name they go by.
//!
//! Keys are kept *before rotation*, so a chunk can be put at any position of any context. A chunk is computed behind
//! a prefix (the head of the chat template and the system line), and that prefix is part of its identity.

use std::fmt;
use std::sync::Arc;

use crate::{Error, Namespace, Result};

/// A token id, as the model's tokenizer gives it.
pub type Token = u32;

/// How one number of stored KV is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// 32-bit floats: exact, twice the bytes.
    F32,
    /// IEEE half precision, 11 bits of significand. Values beyond ±65504 saturate.
    F16,
    /// bfloat16: the range of f32, 8 bits of significand.
    Bf16,
}

impl KvType {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 | KvType::Bf16 => 2,
        }
    }

    /// A stable code for formats on disk and for hashing.
    pub fn code(self) -> u8 {
        match self {
            KvType::F32 => 0,
            KvType::F16 => 1,
            KvType::Bf16 => 2,
        }
    }

    /// The type that [`code`](Self::code) stands for, if it is known.
    pub fn from_code(code: u8) -> Option<Self> {
        [KvType::F32, KvType::F16, KvType::Bf16].into_iter().find(|kind| kind.code() == code)
    }
}

/// The shape of a model's KV: what one token costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: usize,
    /// Key (and value) heads of a layer.
    pub kv_heads: usize,
    /// Numbers in one head.
    pub head_dim: usize,
    /// How a number is stored.
    pub kind: KvType,
}

impl KvShape {
    /// Numbers in one token's keys (or values) in one layer: `kv_heads * head_dim`.
    pub fn row(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes of one token's KV over all layers.
    pub fn token_bytes(&self) -> usize {
        2 * self.layers * self.row() * self.kind.size()
    }

    /// Bytes of `tokens` tokens' KV.
    pub fn bytes(&self, tokens: usize) -> usize {
        tokens * self.token_bytes()
    }
}

/// What a model is, for the purpose of its KV: a BLAKE3 hash over its weights and configuration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

/// The name of a chunk: what was computed, by which model, behind what, for whom.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub [u8; 32]);

/// A BLAKE3 hash of the tokens that stand before a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixId(pub [u8; 32]);

impl PrefixId {
    /// The id of a prefix.
    pub fn of(tokens: &[Token]) -> Self {
        let mut hash = blake3::Hasher::new_derive_key("amem 2026-11 prefix");
        hash_tokens(&mut hash, tokens);
        Self(*hash.finalize().as_bytes())
    }
}

impl ChunkId {
    /// The id of `tokens` computed by the model `model` behind `prefix`, for `namespace`.
    ///
    /// Equal text in one namespace has one id; namespaces share none, so that a hit tells nobody what another knows.
    pub fn of(
        model: &Fingerprint,
        shape: &KvShape,
        prefix: &PrefixId,
        namespace: &Namespace,
        tokens: &[Token],
    ) -> Self {
        let mut hash = blake3::Hasher::new_derive_key("amem 2026-11 chunk");
        hash.update(&model.0);
        for n in [shape.layers, shape.kv_heads, shape.head_dim] {
            hash.update(&(n as u64).to_le_bytes());
        }
        hash.update(&[shape.kind.code()]);
        hash.update(&prefix.0);
        hash.update(&(namespace.as_str().len() as u64).to_le_bytes());
        hash.update(namespace.as_str().as_bytes());
        hash_tokens(&mut hash, tokens);
        Self(*hash.finalize().as_bytes())
    }
}

fn hash_tokens(hash: &mut blake3::Hasher, tokens: &[Token]) {
    hash.update(&(tokens.len() as u64).to_le_bytes());
    for token in tokens {
        hash.update(&token.to_le_bytes());
    }
}

macro_rules! show_as_hex {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "("))?;
                self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                write!(f, "…)")
            }
        }
    )*};
}
show_as_hex!(Fingerprint, ChunkId, PrefixId);

/// Bytes that hold KV: a heap buffer, a mapped file, …
pub trait KvData: Send + Sync {
    /// The bytes, little-endian, `[layers][key, value][tokens][kv_heads][head_dim]`. Always the same slice.
    fn bytes(&self) -> &[u8];
}

impl KvData for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A run of tokens and its KV. Cheap to clone: the data is shared.
#[derive(Clone)]
pub struct KvChunk {
    id: ChunkId,
    prefix: PrefixId,
    shape: KvShape,
    tokens: Arc<[Token]>,
    sensitivity: Option<Arc<[f32]>>,
    data: Arc<dyn KvData>,
}

impl KvChunk {
    /// A chunk of its parts.
    ///
    /// # Errors
    /// [`Error::WrongKv`] when the data's length is not that of the tokens in this shape, or there are no tokens.
    pub fn new(
        id: ChunkId,
        prefix: PrefixId,
        shape: KvShape,
        tokens: Arc<[Token]>,
        data: Arc<dyn KvData>,
    ) -> Result<Self> {
        let (found, expected) = (data.bytes().len(), shape.bytes(tokens.len()));
        if found != expected || tokens.is_empty() {
            let reason = format!("{} tokens need {expected} bytes and {found} are there", tokens.len());
            return Err(Error::WrongKv { reason });
        }
        Ok(Self { id, prefix, shape, tokens, sensitivity: None, data })
    }

    /// The same chunk with a measured [`sensitivity`](Self::sensitivity).
    ///
    /// # Errors
    /// [`Error::WrongKv`] unless there is one finite number, zero or more, for each token.
    pub fn with_sensitivity(mut self, sensitivity: Arc<[f32]>) -> Result<Self> {
        if sensitivity.len() != self.tokens.len() || sensitivity.iter().any(|s| !s.is_finite() || *s < 0.0) {
            let reason = format!("a sensitivity for each of {} tokens is expected", self.tokens.len());
            return Err(Error::WrongKv { reason });
        }
        self.sensitivity = Some(sensitivity);
        Ok(self)
    }

    /// The chunk's name.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// What the chunk was computed behind.
    pub fn prefix(&self) -> PrefixId {
        self.prefix
    }

    /// The shape of its KV.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Its tokens.
    pub fn tokens(&self) -> &Arc<[Token]> {
        &self.tokens
    }

    /// For each token, how far its keys and values move when something else stands before the chunk: the relative
    /// squared change, summed over the layers. `None` until it has been measured.
    pub fn sensitivity(&self) -> Option<&Arc<[f32]>> {
        self.sensitivity.as_ref()
    }

    /// All of its KV, as [`KvData::bytes`] lays it out.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// One layer's keys, before rotation: `[tokens][kv_heads][head_dim]`. Empty if there is no such layer.
    pub fn keys(&self, layer: usize) -> &[u8] {
        self.half(2 * layer)
    }

    /// One layer's values: `[tokens][kv_heads][head_dim]`. Empty if there is no such layer.
    pub fn values(&self, layer: usize) -> &[u8] {
        self.half(2 * layer + 1)
    }

    fn half(&self, index: usize) -> &[u8] {
        let len = self.tokens.len() * self.shape.row() * self.shape.kind.size();
        self.bytes().get(index * len..(index + 1) * len).unwrap_or_default()
    }
}

impl fmt::Debug for KvChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KvChunk({:?}, {} tokens, {} bytes)", self.id, self.tokens.len(), self.bytes().len())
    }
}
