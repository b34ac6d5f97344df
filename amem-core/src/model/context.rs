//! A sequence of tokens with its KV.

use std::any::Any;
use std::sync::Arc;

use crate::{KvChunk, Repair, Result, Token, Usage};

/// A sequence of tokens with its KV, which can be extended, decoded and forked. It holds no computing: what is
/// [appended](Self::append) is computed by [`Model::advance`](crate::Model::advance), together with other contexts.
pub trait Context: Any + Send {
    /// The tokens that stand in it, those that are still to be computed included.
    fn tokens(&self) -> &[Token];

    /// Appends pieces. The KV of cached ones may be put in its place here, or by the first call of
    /// [`Model::advance`](crate::Model::advance); fresh ones, and the rows that are to be repaired, wait for that call.
    /// What stands in the context already is never recomputed, except rows of cached pieces that were not repaired so far:
    /// they are candidates too.
    ///
    /// # Errors
    /// [`Error::TooLong`](crate::Error::TooLong); [`Error::KvCacheFull`](crate::Error::KvCacheFull) when the KV cache has
    /// no room; [`Error::WrongKv`](crate::Error::WrongKv) for a chunk of another shape or model;
    /// [`Error::DamagedKv`](crate::Error::DamagedKv) for a chunk that cannot be read, unless that is found when its context
    /// is advanced; [`Error::BadValue`](crate::Error::BadValue) for a repair that makes no sense, a token that is not in
    /// the vocabulary, or when something appended before is not computed yet. After any of these the context is as it was.
    fn append(&mut self, pieces: &[Piece], options: &AppendOptions) -> Result<()>;

    /// About how many rows are still to be computed, those that a repair may choose included. Zero when the context is ready.
    fn pending(&self) -> usize;

    /// Takes room, so that neither appending up to there from where the context stands nor its forks can fail for lack of it.
    /// Takes all of it or nothing. What the context holds already counts, and so does what was reserved before: what of it is
    /// more than this stays until [`release`](Self::release). Copies that repair makes of shared KV are not in it.
    ///
    /// # Errors
    /// [`Error::KvCacheFull`](crate::Error::KvCacheFull) when the KV cache has no such room, at present or ever.
    /// [`Error::TooLong`](crate::Error::TooLong) when no context may hold so many tokens.
    fn reserve(&mut self, room: Reservation) -> Result<()>;

    /// Gives back room that was reserved, for forks too, and is not used.
    fn release(&mut self);

    /// Another context that begins as this one stands. Both share their KV until one of them writes.
    ///
    /// # Errors
    /// [`Error::BadValue`](crate::Error::BadValue) while something appended is not computed yet.
    #[doc(alias = "seq_cp")]
    fn fork(&mut self) -> Result<Box<dyn Context>>;

    /// Takes the context back to its first `len` tokens; a no-op if it has no more. What was appended and not computed
    /// is given up. The logits are gone until something is computed again: for those after the last token, truncate to one
    /// token less and append it again.
    #[doc(alias = "seq_rm")]
    fn truncate(&mut self, len: usize);

    /// The scores of every token of the vocabulary after each of the last tokens, `[rows][vocabulary]`. There are as many
    /// rows as [`AppendOptions::logits`] asked for, or as the last piece has tokens, if it has fewer; none if that was
    /// cached.
    fn logits(&self) -> &[f32];

    /// Bytes of KV cache that it holds, blocks shared with other contexts included.
    fn bytes(&self) -> u64;

    /// Whether it can be extended. False after a pass failed while it rewrote rows that stood already.
    fn is_usable(&self) -> bool;
}

/// Room in the KV cache, for a context and for forks of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    /// Tokens that the context will hold in all, and each fork too.
    pub tokens: usize,
    /// How many forks will be made. Each takes its part of the room with it.
    pub forks: usize,
    /// Tokens that the context will hold when it is forked.
    pub forked_at: usize,
}

impl Reservation {
    /// For a context of so many tokens in all, and no forks.
    pub fn new(tokens: usize) -> Self {
        Self { tokens, ..Self::default() }
    }
}

/// How pieces are appended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AppendOptions {
    /// Which rows of cached pieces are computed again.
    pub repair: Repair,
    /// After how many of the last tokens logits are wanted: 0 for none, 1 to decode, more to score.
    pub logits: usize,
}

impl AppendOptions {
    /// With this repair, and the logits after the last token.
    pub fn new(repair: Repair) -> Self {
        Self { repair, logits: 1 }
    }

    /// With the logits after so many of the last tokens.
    #[must_use]
    pub fn logits(self, rows: usize) -> Self {
        Self { logits: rows, ..self }
    }
}

/// One context's part in a call of [`Model::advance`](crate::Model::advance).
pub struct Step<'a> {
    /// The context.
    pub context: &'a mut dyn Context,
    /// About how many of its rows may be computed in this call, at least one. What cannot be divided is done in one go:
    /// up to 512 rows of a question whose attention is read and of what it has repaired, and all of [`Repair::Deviation`].
    pub max_rows: usize,
}

/// How far a context has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to compute.
    Pending,
    /// All is computed; this is what the whole append took.
    Done(Usage),
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
