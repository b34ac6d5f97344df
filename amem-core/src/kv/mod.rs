//! What is stored, and where: chunks of keys and values, their names, and the stores that keep them.
//!
//! Keys are kept *before rotation*, so a chunk can be put at any position of any context. A chunk is computed behind
//! a prefix (the start of the chat template and the system line), and that prefix is part of its identity.

mod chunk;
mod dtype;
mod encoding;
mod ram;
mod store;

use std::fmt;

pub(crate) use chunk::LayerReads;
pub use chunk::{HostKv, KvChunk, KvData, LayerKv};
pub use dtype::{Dtype, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub use encoding::Encoding;
pub use ram::RamStore;
pub use store::{KvStore, Lease, StoreStats, StoredChunk, TierStats, Wanted};

/// A token id, as the model's tokenizer gives it.
pub type Token = u32;

/// The shape of a model's KV: how many numbers one token has. How they are written is an [`Encoding`]'s matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: usize,
    /// Key (and value) heads of a layer.
    pub kv_heads: usize,
    /// Numbers in one head.
    pub head_dim: usize,
}

impl KvShape {
    /// Numbers in one token's keys (or values) in one layer: `kv_heads * head_dim`.
    pub fn row(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Numbers in one token's KV over all layers.
    pub fn token_numbers(&self) -> usize {
        2 * self.layers * self.row()
    }
}

/// What a model is, for the purpose of its KV: a BLAKE3 hash over its weights, its configuration and the numerics that
/// it computes with. KV of equal weights computed in int8 has another fingerprint than in f32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

/// The name of a chunk: what was computed, by which model, behind what, for whom. It begins with its [`OwnerId`], so in
/// the order of ids an owner's chunks stand together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub [u8; 32]);

/// Whose a chunk is: 64 bits of a BLAKE3 hash of the owner's name, usually that of a namespace. Stores and residency
/// policies tell owners apart by it, without knowing their names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(pub [u8; 8]);

/// A BLAKE3 hash of the tokens that stand before a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixId(pub [u8; 32]);

impl PrefixId {
    /// In place of a prefix's id: the chunk's bytes are not numbers but something encrypted, and its shape and encoding say
    /// no more than how many there are. No prefix has this id.
    pub const SEALED: Self = Self([0; 32]);

    /// The id of a prefix.
    pub fn of(tokens: &[Token]) -> Self {
        let mut hash = blake3::Hasher::new_derive_key("amem 2026-11 prefix");
        hash_tokens(&mut hash, tokens);
        Self(*hash.finalize().as_bytes())
    }
}

impl OwnerId {
    /// The id of the owner of this name.
    pub fn of(name: &str) -> Self {
        let mut hash = blake3::Hasher::new_derive_key("amem 2026-11 owner");
        hash.update(name.as_bytes());
        Self::first_of(&hash)
    }

    /// As [`of`](Self::of), for those who have the secret: nobody else can tell whose it is, or guess.
    pub fn keyed(secret: &[u8; 32], name: &str) -> Self {
        let mut hash = keyed_hash("amem 2026-11 keyed owner", secret);
        hash.update(name.as_bytes());
        Self::first_of(&hash)
    }

    fn first_of(hash: &blake3::Hasher) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *hash.finalize().as_bytes();
        Self([a, b, c, d, e, f, g, h])
    }
}

impl ChunkId {
    /// The id of `tokens` computed by `model` behind `prefix`, for the owner of this name.
    ///
    /// Equal text of one owner has one id; owners share none, so that a hit tells nobody what another knows. The
    /// encoding is no part of it: a chunk stays the same in every tier. After the owner's id come 192 bits of a BLAKE3 hash.
    pub fn of(model: &Fingerprint, prefix: &PrefixId, owner: &str, tokens: &[Token]) -> Self {
        let hash = blake3::Hasher::new_derive_key("amem 2026-11 chunk v3");
        Self::hashed(hash, OwnerId::of(owner), model, prefix, owner, tokens)
    }

    /// As [`of`](Self::of), for those who have the secret: nobody else can tell from it what the tokens are, or whose,
    /// or guess.
    pub fn keyed(secret: &[u8; 32], model: &Fingerprint, prefix: &PrefixId, owner: &str, tokens: &[Token]) -> Self {
        let hash = keyed_hash("amem 2026-11 keyed chunk", secret);
        Self::hashed(hash, OwnerId::keyed(secret, owner), model, prefix, owner, tokens)
    }

    fn hashed(
        mut hash: blake3::Hasher,
        id: OwnerId,
        model: &Fingerprint,
        prefix: &PrefixId,
        owner: &str,
        tokens: &[Token],
    ) -> Self {
        hash.update(&model.0);
        hash.update(&prefix.0);
        hash.update(&(owner.len() as u64).to_le_bytes());
        hash.update(owner.as_bytes());
        hash_tokens(&mut hash, tokens);
        let mut chunk = *hash.finalize().as_bytes();
        chunk[..8].copy_from_slice(&id.0);
        Self(chunk)
    }

    /// Whose it is.
    pub fn owner(&self) -> OwnerId {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        OwnerId([a, b, c, d, e, f, g, h])
    }
}

/// A hash for one purpose that needs the secret.
fn keyed_hash(purpose: &'static str, secret: &[u8; 32]) -> blake3::Hasher {
    blake3::Hasher::new_keyed(&blake3::derive_key(purpose, secret))
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
                f.write_str(&blake3::Hash::from(self.0).to_hex())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}…)"), &blake3::Hash::from(self.0).to_hex()[..12])
            }
        }
    )*};
}
show_as_hex!(Fingerprint, ChunkId, PrefixId);

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owners_chunks_have_its_id_and_share_none_with_others() {
        let (model, prefix) = (Fingerprint([1; 32]), PrefixId::of(&[]));
        let id = |owner: &str, tokens: &[Token]| ChunkId::of(&model, &prefix, owner, tokens);
        let [first, second, other] = [id("alice", &[1]), id("alice", &[2]), id("bob", &[1])];
        assert_eq!((first.owner(), second.owner()), (OwnerId::of("alice"), OwnerId::of("alice")));
        assert_eq!(other.owner(), OwnerId::of("bob"));
        assert_ne!(first.owner(), other.owner());
        assert!(first.0[8..] != second.0[8..] && first.0[8..] != other.0[8..]);
    }

    #[test]
    fn ids_under_a_secret_differ_in_both_parts_from_those_under_another_or_none() {
        let (model, prefix) = (Fingerprint([1; 32]), PrefixId::of(&[]));
        let plain = ChunkId::of(&model, &prefix, "alice", &[1]);
        let keyed = |secret: u8, owner: &str| ChunkId::keyed(&[secret; 32], &model, &prefix, owner, &[1]);
        assert_eq!(keyed(1, "alice"), keyed(1, "alice"));
        assert_eq!(keyed(1, "alice").owner(), OwnerId::keyed(&[1; 32], "alice"));
        let all = [plain, keyed(1, "alice"), keyed(2, "alice"), keyed(1, "bob")];
        for (at, one) in all.iter().enumerate() {
            for other in &all[..at] {
                assert!(one.owner() != other.owner() && one.0[8..] != other.0[8..]);
            }
        }
    }
}
