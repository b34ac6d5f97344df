//! What computes: a model, the contexts that it decodes in, and how cached KV is put into them.

mod chat;
mod context;
mod conversation;
mod repair;
mod sampler;
mod sampling;
mod token_mask;
mod usage;

use std::sync::Arc;

pub use chat::{CallForm, Chat, Layout};
pub use context::{AppendOptions, Context, Piece, Progress, Reservation, Step};
pub use conversation::{Conversation, Exchange, Message, Reply, Role, Tool, ToolCall};
#[cfg(feature = "transformer")]
pub(crate) use conversation::{Group, bad_messages, grouped};
pub use repair::{Budget, Repair};
pub use sampler::{Sampler, TokenLogprob};
pub use sampling::Sampling;
pub use token_mask::TokenMask;
pub use usage::Usage;

use crate::{ChunkId, Dtype, Fingerprint, KvChunk, KvShape, PrefixId, Result, Token};

/// What a model says of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelInfo {
    /// A name for people.
    pub name: String,
    /// What its KV depends on: weights, configuration and numerics.
    pub fingerprint: Fingerprint,
    /// How far its numbers may be from those of the same computation done elsewhere.
    pub exactness: Exactness,
    /// The shape of its KV.
    pub shape: KvShape,
    /// The number type of its contexts' KV.
    pub dtype: Dtype,
    /// Tokens that one context holds at most.
    #[doc(alias = "max_model_len")]
    #[doc(alias = "n_ctx")]
    pub context: usize,
    /// Tokens in the vocabulary.
    #[doc(alias = "vocab_size")]
    pub vocabulary: usize,
}

impl ModelInfo {
    /// A model whose results are the same to the bit wherever a row is computed, and whose contexts hold f32. Where that is
    /// not so, set `exactness` and `dtype` afterwards.
    pub fn new(
        name: impl Into<String>,
        fingerprint: Fingerprint,
        shape: KvShape,
        context: usize,
        vocabulary: usize,
    ) -> Self {
        let (name, exactness, dtype) = (name.into(), Exactness::Bits, Dtype::F32);
        Self { name, fingerprint, exactness, shape, dtype, context, vocabulary }
    }

    /// Texts to compute behind `prefix` for `owner`, with the names that their chunks have.
    pub fn prefill_texts<'t>(
        &self,
        owner: &str,
        prefix: &[Token],
        texts: impl IntoIterator<Item = &'t Arc<[Token]>>,
    ) -> Vec<PrefillText> {
        let prefix = PrefixId::of(prefix);
        let named = |tokens: &Arc<[Token]>| PrefillText {
            id: self.chunk_id(owner, &prefix, tokens),
            tokens: Arc::clone(tokens),
        };
        texts.into_iter().map(named).collect()
    }

    /// The name of a chunk of this model that belongs to `owner`: a namespace's name, or nothing for what every
    /// namespace shares.
    pub fn chunk_id(&self, owner: &str, prefix: &PrefixId, tokens: &[Token]) -> ChunkId {
        ChunkId::of(&self.fingerprint, prefix, owner, tokens)
    }
}

/// How far results may be from those of the same computation done in other company: with other rows in the pass, from
/// cached instead of fresh KV, on another number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Exactness {
    /// Not at all: equal bits.
    Bits,
    /// Up to this much, relative to one plus the magnitude of the number.
    Within(f32),
}

/// A text to compute the KV of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefillText {
    /// The name that its chunk is to have: [`ModelInfo::chunk_id`].
    pub id: ChunkId,
    /// Its tokens.
    pub tokens: Arc<[Token]>,
}

/// Texts whose KV is being computed ([`Model::begin_prefill`]). Dropping it ends the work.
pub trait Prefilling: Send {
    /// Computes the next run, of about so many rows at most and at least one; with sensitivity every row is computed twice.
    /// Returns what [`Model::prefill`] does once that is complete, and `None` before.
    ///
    /// # Errors
    /// As [`Model::prefill`]. After one, or once it is complete, it is of no more use.
    fn advance(&mut self, max_rows: usize) -> Result<Option<(Vec<KvChunk>, Usage)>>;
}

/// Texts whose KV is computed in one run.
struct AtOnce<'m, M: ?Sized> {
    model: &'m M,
    prefix: Vec<Token>,
    texts: Vec<PrefillText>,
    measure: bool,
}

impl<M: Model + ?Sized> Prefilling for AtOnce<'_, M> {
    fn advance(&mut self, _: usize) -> Result<Option<(Vec<KvChunk>, Usage)>> {
        self.model.prefill(&self.prefix, &self.texts, self.measure).map(Some)
    }
}

/// A language model. Its methods compute, and so block: an [`Engine`](crate::Engine) calls them on a thread of its own.
///
/// [`Transformer`](crate::transformer::Transformer) is one over any [`Backend`](crate::transformer::Backend), and whoever
/// has kernels of their own writes that. An engine of another kind can be a `Model` if it gives out keys before RoPE and
/// takes them in at any position, computes chosen rows anew that attend to all others, and forks contexts without copying
/// their KV. Contexts come back to [`advance`](Self::advance) as `dyn Context`, which is [`Any`](std::any::Any): a model
/// finds its own by downcasting, and gives an error for others.
///
/// It is checked by `testing::model` (feature `testing`).
pub trait Model: Send + Sync {
    /// What the model says of itself.
    fn info(&self) -> &ModelInfo;

    /// How its conversations are written down, as text and as tokens.
    fn chat(&self) -> &dyn Chat;

    /// How its makers would have tokens drawn.
    fn sampling(&self) -> Sampling;

    /// Computes each text's KV, each behind `prefix` alone, all of them in as few passes as possible. With `measure`, the
    /// [sensitivity](KvChunk::sensitivity) of every token comes with it, at about twice the work. The usage counts these
    /// texts; what a model computes once for a prefix is not in it.
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty) for a text without tokens, [`Error::TooLong`](crate::Error::TooLong) for
    /// one that no context can hold behind the prefix, [`Error::BadValue`](crate::Error::BadValue) for a token that is
    /// not in the vocabulary, [`Error::Model`](crate::Error::Model) when the backend fails.
    fn prefill(&self, prefix: &[Token], texts: &[PrefillText], measure: bool) -> Result<(Vec<KvChunk>, Usage)>;

    /// As [`prefill`](Self::prefill), in runs, between which others may be computed: an engine prefills like this. What does
    /// not override it computes all texts in one run, and so holds up everybody for as long as a long text takes.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), here or when it is advanced.
    fn begin_prefill<'m>(
        &'m self,
        prefix: &[Token],
        texts: Vec<PrefillText>,
        measure: bool,
    ) -> Result<Box<dyn Prefilling + 'm>> {
        Ok(Box::new(AtOnce { model: self, prefix: prefix.to_vec(), texts, measure }))
    }

    /// An empty context with room for `tokens` tokens, taken from the model's KV cache. It can grow beyond that for as
    /// long as the cache has room.
    ///
    /// # Errors
    /// [`Error::KvCacheFull`](crate::Error::KvCacheFull) when the KV cache has no such room, at present or ever: an engine
    /// waits where [that is only for now](crate::Error::lacks_room_for_now). [`Error::TooLong`](crate::Error::TooLong) when
    /// no context may hold so many tokens.
    fn open(&self, tokens: usize) -> Result<Box<dyn Context>>;

    /// Computes some of what was [appended](Context::append) to each of these contexts, all of them in one pass where
    /// that is possible. What each answer says does not depend on which contexts are advanced together, nor on how
    /// many rows a step may compute, as far as the model's [`Exactness`] goes.
    ///
    /// There is one result for each step, in their order; for a context that has nothing to compute it is done, and cost
    /// nothing. [`Error::DamagedKv`](crate::Error::DamagedKv), when a chunk that was appended cannot be read, comes with
    /// the first step after the append and concerns the chunk's context alone. The append is undone then; the logits are
    /// gone, and rows that were repaired meanwhile stay so. [`Error::KvCacheFull`](crate::Error::KvCacheFull) may come
    /// where a shared block has to be copied. After any other error, [`Context::is_usable`] tells whether the context is as
    /// it was, or broken.
    #[doc(alias = "forward")]
    #[doc(alias = "decode")]
    fn advance(&self, steps: &mut [Step<'_>]) -> Vec<Result<Progress>>;

    /// Draws the token that follows a context from the logits after its last token, among the tokens that are allowed:
    /// all of them if `None`. A model whose logits lie on a device may draw there what it can, the likeliest token say,
    /// rather than read them all; it then [takes note](Sampler::note) of what it drew.
    ///
    /// # Errors
    /// As [`Sampler::pick`]; [`Error::Model`](crate::Error::Model) when the backend fails.
    fn sample(&self, context: &dyn Context, sampler: &mut Sampler, allowed: Option<&TokenMask>) -> Result<Token> {
        let (logits, vocabulary) = (context.logits(), self.info().vocabulary);
        let last = &logits[logits.len().saturating_sub(vocabulary)..];
        sampler.pick_among(last, context.tokens(), allowed)
    }

    /// Appends pieces to a context and computes all of it. Tokens that were drawn are appended with [`Repair::None`]: a
    /// repair is a share of all cached rows, and would be taken again for each token.
    ///
    /// # Errors
    /// As [`Context::append`]; [`Error::Model`](crate::Error::Model) when the backend fails.
    fn extend(&self, context: &mut dyn Context, pieces: &[Piece], repair: &Repair) -> Result<Usage> {
        context.append(pieces, &AppendOptions::new(repair.clone()))?;
        advance_until_done(self, context)
    }

    /// A context of these pieces, blended: [`open`](Self::open) and [`extend`](Self::extend).
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`extend`](Self::extend).
    fn blend(&self, pieces: &[Piece], repair: &Repair) -> Result<(Box<dyn Context>, Usage)> {
        let mut context = self.open(pieces.iter().map(|piece| piece.tokens().len()).sum())?;
        let usage = self.extend(&mut *context, pieces, repair)?;
        Ok((context, usage))
    }
}

/// Computes all that was appended to a context.
pub(crate) fn advance_until_done(model: &(impl Model + ?Sized), context: &mut dyn Context) -> Result<Usage> {
    loop {
        let mut steps = [Step { context, max_rows: STEP_ROWS }];
        match model.advance(&mut steps).pop() {
            Some(Ok(Progress::Done(usage))) => return Ok(usage),
            Some(Ok(Progress::Pending)) => {}
            Some(Err(error)) => return Err(error),
            None => return Err(crate::Error::Model("the model gave no result for a step".into())),
        }
    }
}

/// Rows of one pass: wide enough for full use of the weights, and few enough that activations stay small.
pub(crate) const STEP_ROWS: usize = 1024;
