//! What computes: a model, the contexts that it decodes in, and how cached KV is put into them.

mod chat;
mod repair;
mod sampling;
mod usage;

use std::sync::Arc;

pub use chat::{Chat, Layout};
pub use repair::{Budget, Repair};
pub use sampling::Sampling;
pub use usage::Usage;

use crate::{ChunkId, Fingerprint, KvChunk, KvShape, Namespace, PrefixId, Result, Token};

/// What a model says of itself.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// A name for people.
    pub name: String,
    /// What its KV depends on: weights and configuration.
    pub fingerprint: Fingerprint,
    /// The shape of its KV.
    pub shape: KvShape,
    /// Tokens that one context holds at most.
    pub context: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
}

impl ModelInfo {
    /// The name of a chunk of this model.
    pub fn chunk_id(&self, namespace: &Namespace, prefix: &PrefixId, tokens: &[Token]) -> ChunkId {
        ChunkId::of(&self.fingerprint, prefix, namespace.as_str(), tokens)
    }
}

/// A language model. Its methods compute, and so block: an async caller moves them to a thread of their own.
///
/// It is checked by `testing::model` (feature `testing`).
pub trait Model: Send + Sync {
    /// What the model says of itself.
    fn info(&self) -> &ModelInfo;

    /// How its conversations are written down, as text and as tokens.
    fn chat(&self) -> &dyn Chat;

    /// How its makers would have tokens drawn.
    fn sampling(&self) -> Sampling;

    /// Computes each text's KV, each behind `prefix` alone, all of them in as few passes as possible. With `measure`,
    /// the [sensitivity](KvChunk::sensitivity) of every token comes with it, at about twice the work.
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty) for a text without tokens, [`Error::TooLong`](crate::Error::TooLong) for
    /// one that no context can hold behind the prefix, [`Error::BadValue`](crate::Error::BadValue) for a token that is
    /// not in the vocabulary; what the backend met.
    fn prefill(
        &self,
        namespace: &Namespace,
        prefix: &[Token],
        texts: &[Arc<[Token]>],
        measure: bool,
    ) -> Result<(Vec<KvChunk>, Usage)>;

    /// An empty context.
    ///
    /// # Errors
    /// What the backend met.
    fn open(&self) -> Result<Box<dyn Context>>;

    /// A context of these pieces, blended: [`open`](Self::open) and [`Context::extend`].
    ///
    /// # Errors
    /// As [`Context::extend`].
    fn blend(&self, pieces: &[Piece], repair: &Repair) -> Result<(Box<dyn Context>, Usage)> {
        let mut context = self.open()?;
        let usage = context.extend(pieces, repair)?;
        Ok((context, usage))
    }
}

/// A sequence of tokens with its KV, which can be extended and decoded.
pub trait Context: Send {
    /// The tokens that stand in it.
    fn tokens(&self) -> &[Token];

    /// Appends pieces: cached ones are put in their places, fresh ones are computed, and the rows that `repair` picks
    /// are computed again. What already stands in the context is never recomputed, except rows of cached pieces that
    /// were not repaired so far: they are candidates too. When the last piece is fresh, [`logits`](Self::logits) are
    /// those after its last token.
    ///
    /// # Errors
    /// [`Error::TooLong`](crate::Error::TooLong), [`Error::WrongKv`](crate::Error::WrongKv) for a chunk of another
    /// shape, [`Error::BadValue`](crate::Error::BadValue) for a repair that makes no sense or a token that is not in
    /// the vocabulary: after these the context is as it was. What the backend met: after that it can be extended no
    /// more.
    fn extend(&mut self, pieces: &[Piece], repair: &Repair) -> Result<Usage>;

    /// Takes the context back to its first `len` tokens; a no-op if it has no more. The logits are gone until the next
    /// call of [`extend`](Self::extend).
    fn truncate(&mut self, len: usize);

    /// The scores of every token of the vocabulary to come next. Empty when the last piece was not fresh.
    fn logits(&self) -> &[f32];
}

/// A part of a prompt.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Tokens whose KV is at hand.
    Cached(KvChunk),
    /// Tokens to compute.
    Fresh(Arc<[Token]>),
}

impl Piece {
    /// Its tokens.
    pub fn tokens(&self) -> &[Token] {
        match self {
            Piece::Cached(chunk) => chunk.tokens(),
            Piece::Fresh(tokens) => tokens,
        }
    }
}
