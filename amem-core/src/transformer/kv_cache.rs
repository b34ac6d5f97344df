//! The memory that contexts' KV lies in: how much of it there is, who writes to it, and caches of their own for memories
//! that are prefilled.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::backend::Backend;
use super::paged::BlockPool;
use crate::model::STEP_ROWS;
use crate::{Dtype, KvShape, Result};

/// The KV cache of a model.
pub(super) struct KvCache<B: Backend> {
    pub(super) shape: KvShape,
    pub(super) dtype: Dtype,
    /// Who holds which of its blocks.
    pub(super) pool: Arc<BlockPool>,
    /// Tokens in a block.
    pub(super) block_tokens: usize,
    /// The KV of all contexts. One pass writes at a time.
    cache: Mutex<B::Cache>,
    /// The last prefill's KV caches, kept for the next one.
    scratch: Mutex<Vec<Scratch<B>>>,
}

/// A KV cache for texts that are prefilled side by side.
pub(super) struct Scratch<B: Backend> {
    blocks: usize,
    pub(super) cache: B::Cache,
}

/// Slots of a scratch cache that is kept for the next call: room for a batch of memories and what they are computed
/// behind.
const KEPT_SLOTS: usize = 2 * STEP_ROWS;

/// Scratch caches that are kept: a prefill that measures sensitivity has two.
const KEPT: usize = 2;

impl<B: Backend> KvCache<B> {
    /// A cache of at most `bytes`, or of one full context of so many tokens if that is more.
    pub(super) fn new(backend: &B, shape: KvShape, dtype: Dtype, context: usize, bytes: u64) -> Result<Self> {
        let block_tokens = backend.block_tokens().max(1);
        let block_bytes = (block_tokens * shape.token_numbers() * dtype.size()) as u64;
        let fit = bytes / block_bytes.max(1);
        // One more than a context has: a fork of another one writes to a copy of the block in which that one ends.
        let blocks = fit.max(context.div_ceil(block_tokens) as u64 + 1).min(1 << 31) as usize;
        let cache = Mutex::new(backend.cache(&shape, dtype, blocks)?);
        let pool = BlockPool::new(blocks, block_tokens, block_bytes);
        Ok(Self { shape, dtype, pool, block_tokens, cache, scratch: Mutex::default() })
    }

    /// The KV of all contexts, for one pass.
    pub(super) fn lock(&self) -> MutexGuard<'_, B::Cache> {
        // A pass that panicked has left rows half written, and the contexts that it broke say so themselves.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A KV cache of at least so many blocks for what outlives no prefill, and is nobody's.
    pub(super) fn scratch(&self, backend: &B, blocks: usize) -> Result<Scratch<B>> {
        let kept = {
            let mut all = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().position(|kept| kept.blocks >= blocks).map(|index| all.swap_remove(index))
        };
        match kept {
            Some(kept) => Ok(kept),
            None => Ok(Scratch { blocks, cache: backend.cache(&self.shape, self.dtype, blocks)? }),
        }
    }

    /// Keeps the cache for the next prefill, unless it is a large one.
    pub(super) fn keep(&self, scratch: Scratch<B>) {
        if scratch.blocks * self.block_tokens > KEPT_SLOTS {
            return;
        }
        let mut all = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(scratch);
        if all.len() > KEPT {
            // The smallest is of the least use.
            all.sort_by_key(|kept| std::cmp::Reverse(kept.blocks));
            all.truncate(KEPT);
        }
    }
}
