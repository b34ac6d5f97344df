//! What computes: a model, the contexts that it decodes in, and how cached KV is put into them.

use std::fmt;
use std::iter::Sum;
use std::ops::{AddAssign, Range};
use std::sync::Arc;

use crate::{Chat, ChunkId, Fingerprint, KvChunk, KvShape, Namespace, PrefixId, Result, Sampling, Token};

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
        ChunkId::of(&self.fingerprint, &self.shape, prefix, namespace, tokens)
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

/// Which rows of cached pieces are recomputed in their new context. Rows that are exact where they stand are never
/// chosen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Repair {
    /// None: reuse as it is.
    None,
    /// The first rows of every chunk (EPIC).
    Heads(usize),
    /// The rows whose keys differ most from fresh ones at one layer (CacheBlend). All rows are computed up to there.
    Deviation {
        /// Share of all cached rows that go on, 0 to 1.
        ratio: f32,
        /// The layer at which keys are compared, from 1.
        check_layer: usize,
    },
    /// The rows that the last fresh piece attends to most (InfoFlow).
    Attention {
        /// How many.
        budget: Budget,
        /// The layers whose attention is read, from 0.
        layers: Range<usize>,
    },
    /// The rows with the most attention times [sensitivity](KvChunk::sensitivity): what the question needs and what is
    /// wrong there. Without a fresh piece at the end, or with no layers, sensitivity alone decides.
    ///
    /// Reading layer 1 (`1..2`) costs no work: what comes before it depends on the tokens alone, so the question's way
    /// there is exact whatever is cached, and its answer goes on from where the reading ended.
    Weighted {
        /// How many.
        budget: Budget,
        /// The layers whose attention is read, from 0; those that the model does not have are passed over.
        layers: Range<usize>,
    },
    /// Every row: a cold prefill, with nothing saved.
    All,
}

impl Default for Repair {
    /// A tenth of the cached rows, by attention in layer 1 times sensitivity.
    fn default() -> Self {
        Repair::Weighted { budget: Budget::Ratio(0.1), layers: 1..2 }
    }
}

/// How many rows are repaired.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// This share of all cached rows in the context, exact ones included, 0 to 1, rounded down.
    Ratio(f32),
    /// As few rows as cover this share of the candidates' total weight, 0 to 1.
    Mass(f32),
    /// So many rows.
    Rows(usize),
}

/// What a call cost and what it was spared, counted where the work is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens that stood in the context already.
    pub resident: usize,
    /// Cached tokens that were put in place.
    pub cached: usize,
    /// Cached tokens whose KV was not held and had to be computed for this call. They count as prefilled too.
    pub missed: usize,
    /// Resident and cached tokens whose rows were computed again.
    pub repaired: usize,
    /// Tokens that had no KV and were computed: the question, the template around it, memories that were not held.
    pub prefilled: usize,
    /// Tokens that were generated.
    pub generated: usize,
    /// Rows times layers that were computed to choose what to repair.
    pub work_choosing: u64,
    /// Rows times layers that were computed to repair.
    pub work_repairing: u64,
    /// Rows times layers that were computed for prefilled tokens.
    pub work_prefilling: u64,
}

impl Usage {
    /// Tokens whose KV was held and used as it was.
    pub fn reused(&self) -> usize {
        (self.resident + self.cached).saturating_sub(self.missed + self.repaired)
    }

    /// Rows times layers computed before the first token of the answer.
    pub fn work(&self) -> u64 {
        self.work_choosing + self.work_repairing + self.work_prefilling
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reused, repaired) = (self.reused(), self.repaired);
        write!(f, "{reused} tokens reused, {repaired} repaired, {} prefilled", self.prefilled)?;
        if self.generated > 0 { write!(f, ", {} generated", self.generated) } else { Ok(()) }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.resident += other.resident;
        self.cached += other.cached;
        self.missed += other.missed;
        self.repaired += other.repaired;
        self.prefilled += other.prefilled;
        self.generated += other.generated;
        self.work_choosing += other.work_choosing;
        self.work_repairing += other.work_repairing;
        self.work_prefilling += other.work_prefilling;
    }
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, usage| {
            sum += usage;
            sum
        })
    }
}
