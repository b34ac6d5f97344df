//! A context: tokens in a paged KV cache, what each of their rows is worth, and what is still to be computed.

use std::sync::Arc;

use super::backend::{Backend, Row, Span};
use super::loaded_model::LoadedModel;
use super::paged::{BlockCopy, ContextBlocks};
use super::pass_cache::{PassCache, PendingKv};
use super::select::{self, Candidate};
use crate::{
    AppendOptions, Context, Error, KvChunk, ModelInfo, Piece, PrefixId, Repair, Reservation, Result, Token, Usage,
};

/// A [`Context`] of a [`Transformer`](super::Transformer).
pub(super) struct PagedContext<B: Backend> {
    pub(super) model: Arc<LoadedModel<B>>,
    info: Arc<ModelInfo>,
    table: ContextBlocks,
    tokens: Arc<Vec<Token>>,
    /// For each token, what its row in the cache is worth.
    rows: Arc<Vec<RowState>>,
    /// So many rows from the start are what a cold prefill would have computed.
    exact: usize,
    logits: Vec<f32>,
    work: Option<Work>,
    usable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RowState {
    /// Of a fresh piece.
    Fresh,
    /// Of a cached piece: exact here, or repaired since.
    UpToDate,
    /// Of a cached piece: computed behind something else, and not repaired so far.
    Reused { index: u32, sensitivity: f32 },
}

/// What was appended and is not computed yet.
pub(super) struct Work {
    /// Tokens before the append.
    pub(super) before: usize,
    /// The KV of cached pieces, until it is loaded.
    pub(super) pending: PendingKv,
    pub(super) options: AppendOptions,
    /// The slots of fresh pieces, in ascending order.
    pub(super) fresh: Vec<u32>,
    /// How many of them, at the end, make up the last piece: none if that is cached.
    pub(super) question: usize,
    /// Tokens of cached pieces.
    pub(super) cached: usize,
    /// How many rows may be repaired, before they are chosen.
    pub(super) repaired_at_most: usize,
    /// The slots that are repaired, in ascending order, once they are chosen.
    pub(super) repaired: Vec<u32>,
    pub(super) phase: Phase,
    /// Rows times layers computed to choose.
    pub(super) choosing: u64,
}

pub(super) enum Phase {
    /// Rows to repair have to be chosen. So many fresh rows have been read for it, and this is the attention that each
    /// slot got.
    Choose { read: usize, mass: Vec<f32> },
    /// These slots are to be computed, in ascending order; so many of them are.
    Compute { slots: Vec<u32>, done: usize },
}

impl<B: Backend> PagedContext<B> {
    pub(super) fn new(model: Arc<LoadedModel<B>>, info: Arc<ModelInfo>, tokens: usize) -> Result<Self> {
        let mut context = Self {
            table: ContextBlocks::new(Arc::clone(&model.kv.pool)),
            model,
            info,
            tokens: Arc::default(),
            rows: Arc::default(),
            exact: 0,
            logits: Vec::new(),
            work: None,
            usable: true,
        };
        context.reserve(Reservation::new(tokens))?;
        Ok(context)
    }

    /// Refuses what cannot be put into this context, before anything is touched.
    fn check(&self, pieces: &[Piece], options: &AppendOptions) -> Result<()> {
        if !self.usable {
            return Err(Error::Model("the context broke in an earlier call: open another".into()));
        }
        self.check_ready()?;
        let new = pieces.iter().map(|piece| piece.tokens().len()).sum::<usize>();
        self.check_length(self.tokens.len() + new)?;
        for piece in pieces {
            check_tokens(piece.tokens(), &self.info)?;
            if let Piece::Cached(chunk) = piece {
                self.check_chunk(chunk)?;
            }
        }
        select::check(&options.repair, self.info.shape.layers)
    }

    fn check_ready(&self) -> Result<()> {
        match &self.work {
            None => Ok(()),
            Some(_) => {
                let (value, expected) = ("under way".to_owned(), "complete: advance the context until it is done");
                Err(Error::BadValue { what: "what was appended before", value, expected })
            }
        }
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        let limit = self.info.context;
        if tokens > limit { Err(Error::TooLong { what: "prompt", tokens, limit }) } else { Ok(()) }
    }

    fn check_chunk(&self, chunk: &KvChunk) -> Result<()> {
        if chunk.shape() != &self.info.shape {
            let reason = format!("a chunk of {:?} in a context of {:?}", chunk.shape(), self.info.shape);
            return Err(Error::WrongKv { reason });
        }
        match chunk.model() {
            Some(model) if model != self.info.fingerprint => {
                let reason = format!("a chunk of model {model:?} in a context of {:?}", self.info.fingerprint);
                Err(Error::WrongKv { reason })
            }
            _ => Ok(()),
        }
    }

    /// Takes slots for pieces. Returns what is to be loaded into those of cached ones.
    fn place(&mut self, pieces: &[Piece], tokens: usize) -> Result<PendingKv> {
        let before = self.tokens.len();
        let model = Arc::clone(&self.model);
        let mut cache = model.kv.lock();
        let copy = |copy: BlockCopy| model.backend.copy_block(&mut cache, copy.from, copy.to);
        self.table.write(before, tokens, before as u32..tokens as u32, copy)?;
        let mut slot = before as u32;
        let mut pending = PendingKv::default();
        for piece in pieces {
            if let Piece::Cached(chunk) = piece {
                pending.chunks.push((chunk.clone(), slot));
            }
            slot += piece.tokens().len() as u32;
        }
        if !pending.chunks.is_empty() {
            pending.table = self.table.ids();
        }
        Ok(pending)
    }

    /// Notes what a chunk's rows are worth where they stand now.
    fn note_cached(&mut self, chunk: &KvChunk) {
        // A chunk that does not say which model computed it is taken for this model's, but not for exact.
        let at_home =
            self.exact == self.tokens.len() && chunk.model().is_some() && chunk.prefix() == PrefixId::of(&self.tokens);
        Arc::make_mut(&mut self.tokens).extend_from_slice(chunk.tokens());
        let (rows, len) = (Arc::make_mut(&mut self.rows), self.tokens.len());
        if at_home && chunk.encoding().is_exact_for(self.model.kv.dtype) {
            rows.resize(len, RowState::UpToDate);
            self.exact = len;
            return;
        }
        // Rows of a chunk that was never measured count 1. Rows that stand where they were computed, and differ only
        // because their encoding rounds, count 0: repair would not help them.
        let sensitivity = |index: usize| match chunk.sensitivity() {
            _ if at_home => 0.0,
            Some(all) => all.get(index).copied().unwrap_or(1.0),
            None => 1.0,
        };
        let reused = |index: usize| RowState::Reused { index: index as u32, sensitivity: sensitivity(index) };
        rows.extend((0..chunk.tokens().len()).map(reused));
    }

    /// Notes fresh tokens, which are exact once they are computed if all before them is.
    fn note_fresh(&mut self, tokens: &[Token]) {
        let first = self.tokens.len();
        Arc::make_mut(&mut self.tokens).extend_from_slice(tokens);
        Arc::make_mut(&mut self.rows).resize(self.tokens.len(), RowState::Fresh);
        if self.exact == first {
            self.exact = self.tokens.len();
        }
    }

    /// Rows of cached pieces that are not exact where they stand.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(slot, state): (usize, &RowState)| match *state {
            RowState::Reused { index, sensitivity } => Some(Candidate { slot: slot as u32, index, sensitivity }),
            RowState::Fresh | RowState::UpToDate => None,
        };
        self.rows.iter().enumerate().skip(self.exact).filter_map(candidate).collect()
    }

    /// Rows of cached pieces: what [`Budget::Ratio`](crate::Budget::Ratio) is a share of.
    pub(super) fn cached_rows(&self) -> usize {
        self.rows.iter().filter(|state| **state != RowState::Fresh).count()
    }

    /// The rows of these slots, as the context with this index in a pass.
    pub(super) fn rows(&self, context: usize, slots: &[u32]) -> impl Iterator<Item = Row> {
        let row = move |&slot: &u32| {
            let sees = Span { shared: 0..0, own: 0..slot + 1 };
            Row { token: self.tokens[slot as usize], context, slot, position: slot, sees }
        };
        slots.iter().map(row)
    }

    /// Its tokens, those that are still to be computed included.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The blocks of its slots.
    pub(super) fn table(&self) -> Vec<u32> {
        self.table.ids()
    }

    /// Makes the blocks of these slots its own, so that they can be written.
    pub(super) fn make_writable(&mut self, cache: &mut PassCache<'_, B>, slots: &[u32]) -> Result<()> {
        let len = self.tokens.len();
        let copy = |copy: BlockCopy| self.model.backend.copy_block(cache.blocks(), copy.from, copy.to);
        self.table.write(len, len, slots.iter().copied(), copy)
    }

    /// Takes what is to be computed. Until it comes back by [`put_back`](Self::put_back), [`complete`](Self::complete)
    /// or [`fail`](Self::fail) the context is unusable: a panic on the way leaves rows in an unknown state.
    pub(super) fn take_work(&mut self) -> Option<Work> {
        let work = self.work.take();
        self.usable &= work.is_none();
        work
    }

    pub(super) fn put_back(&mut self, work: Work) {
        self.work = Some(work);
        self.usable = true;
    }

    pub(super) fn add_logits(&mut self, logits: &[f32]) {
        self.logits.extend_from_slice(logits);
    }

    /// Takes note that all of this was computed.
    pub(super) fn complete(&mut self, work: &Work) -> Usage {
        self.usable = true;
        let rows = Arc::make_mut(&mut self.rows);
        for &slot in &work.repaired {
            rows[slot as usize] = RowState::UpToDate;
        }
        // What was computed just now, with nothing inexact before it, is exact.
        let computed = |slot: &u32| work.repaired.binary_search(slot).is_ok() || work.fresh.binary_search(slot).is_ok();
        self.exact += (self.exact as u32..self.tokens.len() as u32).take_while(computed).count();
        let in_full = |rows: usize| (rows * self.info.shape.layers) as u64;
        Usage {
            resident: work.before,
            cached: work.cached,
            repaired: work.repaired.len(),
            prefilled: work.fresh.len(),
            work_choosing: work.choosing,
            work_repairing: in_full(work.repaired.len()),
            work_prefilling: in_full(work.fresh.len()),
            ..Usage::default()
        }
    }

    /// Gives up what was appended, after a pass that came to its end. Rows that it computed before the append are as a repair
    /// leaves them, for they see nothing of what was appended.
    pub(super) fn take_back(&mut self, work: &Work) {
        self.usable = true;
        self.truncate(work.before);
    }

    /// Takes note that computing this failed: the context is as it was before, unless rows that stood already have been
    /// written since. `begun` says whether the last pass may have written any.
    pub(super) fn fail(&mut self, work: &Work, begun: bool) {
        let rewrites = |slots: &[u32]| slots.first().is_some_and(|&slot| (slot as usize) < work.before);
        let written = match &work.phase {
            Phase::Choose { .. } => &work.repaired[..],
            Phase::Compute { slots, .. } if begun => slots,
            Phase::Compute { slots, done } => &slots[..*done],
        };
        self.usable = !rewrites(written);
        self.truncate(work.before);
    }
}

impl<B: Backend> Context for PagedContext<B> {
    fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    fn append(&mut self, pieces: &[Piece], options: &AppendOptions) -> Result<()> {
        self.check(pieces, options)?;
        let before = self.tokens.len();
        let tokens = before + pieces.iter().map(|piece| piece.tokens().len()).sum::<usize>();
        let pending = match self.place(pieces, tokens) {
            Ok(pending) => pending,
            Err(error) => {
                self.table.truncate(before);
                return Err(error);
            }
        };
        let mut work = Work {
            before,
            pending,
            options: options.clone(),
            fresh: Vec::new(),
            question: 0,
            cached: 0,
            repaired_at_most: 0,
            repaired: Vec::new(),
            phase: Phase::Choose { read: 0, mass: Vec::new() },
            choosing: 0,
        };
        for piece in pieces {
            let first = self.tokens.len();
            match piece {
                Piece::Cached(chunk) => {
                    self.note_cached(chunk);
                    work.cached += chunk.tokens().len();
                    work.question = 0;
                }
                Piece::Fresh(tokens) => {
                    self.note_fresh(tokens);
                    work.question = tokens.len();
                    work.fresh.extend(first as u32..self.tokens.len() as u32);
                }
            }
        }
        if options.repair != Repair::None {
            let (candidates, cached) = (self.candidates().len(), self.cached_rows());
            work.repaired_at_most = select::repaired_at_most(&options.repair, candidates, cached);
        }
        self.logits.clear();
        self.work = Some(work);
        Ok(())
    }

    fn pending(&self) -> usize {
        match &self.work {
            None => 0,
            Some(Work { phase: Phase::Compute { slots, done }, .. }) => (slots.len() - done).max(1),
            Some(Work { phase: Phase::Choose { .. }, fresh, repaired_at_most, .. }) => {
                (fresh.len() + repaired_at_most).max(1)
            }
        }
    }

    fn reserve(&mut self, room: Reservation) -> Result<()> {
        self.check_length(room.tokens)?;
        self.table.reserve(self.tokens.len(), room)
    }

    fn release(&mut self) {
        self.table.release();
    }

    fn fork(&mut self) -> Result<Box<dyn Context>> {
        self.check_ready()?;
        Ok(Box::new(Self {
            model: Arc::clone(&self.model),
            info: Arc::clone(&self.info),
            table: self.table.fork(),
            tokens: Arc::clone(&self.tokens),
            rows: Arc::clone(&self.rows),
            exact: self.exact,
            logits: self.logits.clone(),
            work: None,
            usable: self.usable,
        }))
    }

    fn truncate(&mut self, len: usize) {
        // Of what was appended and not computed nothing stays, so that no row counts which does not stand.
        let len = self.work.take().map_or(len, |work| len.min(work.before));
        if len < self.tokens.len() {
            Arc::make_mut(&mut self.tokens).truncate(len);
            Arc::make_mut(&mut self.rows).truncate(len);
            self.table.truncate(len);
            self.exact = self.exact.min(len);
            self.logits.clear();
        }
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn bytes(&self) -> u64 {
        self.table.bytes()
    }

    fn is_usable(&self) -> bool {
        self.usable
    }
}

/// Refuses tokens that the model does not know.
pub(super) fn check_tokens(tokens: &[Token], info: &ModelInfo) -> Result<()> {
    match tokens.iter().find(|token| **token as usize >= info.vocabulary) {
        None => Ok(()),
        Some(token) => {
            let (value, expected) = (token.to_string(), "an id in the model's vocabulary");
            Err(Error::BadValue { what: "token", value, expected })
        }
    }
}
