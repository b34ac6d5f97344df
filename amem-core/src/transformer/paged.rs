//! The blocks of a paged KV cache: who holds which, and how many are left.
//!
//! The backend holds the memory; this is the bookkeeping. A block belongs to one context, or is shared by several that
//! were forked from one another. Whoever wants to write to a shared block takes one of its own first and copies.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Error, Reservation, Result};

/// The blocks of one KV cache.
pub(crate) struct BlockPool {
    /// Tokens in a block.
    block_tokens: usize,
    /// Bytes of a block.
    block_bytes: u64,
    blocks: usize,
    free: Mutex<Free>,
}

/// Blocks that nobody holds.
struct Free {
    /// Those that were given back.
    returned: Vec<u32>,
    /// The first of those that were never taken.
    next: usize,
}

/// A block that is taken. It returns to its pool when the last who holds it lets go.
pub(crate) struct Block {
    id: u32,
    pool: Arc<BlockPool>,
}

impl BlockPool {
    pub(crate) fn new(blocks: usize, block_tokens: usize, block_bytes: u64) -> Arc<Self> {
        let free = Mutex::new(Free { returned: Vec::new(), next: 0 });
        Arc::new(Self { block_tokens: block_tokens.max(1), block_bytes, blocks, free })
    }

    /// Blocks that hold so many tokens.
    fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so many blocks, or none, for a context that holds `held` already. It would do with `spared` less if all others
    /// ended.
    fn take(self: &Arc<Self>, count: usize, held: usize, spared: usize) -> Result<Vec<Arc<Block>>> {
        let mut free = self.free();
        let left = free.returned.len() + self.blocks - free.next;
        if count > left {
            let tokens = |blocks: usize| blocks.saturating_mul(self.block_tokens);
            let needed = tokens(held.saturating_add(count).saturating_sub(spared));
            let available = tokens(held + left);
            return Err(Error::KvCacheFull { needed, available, total: tokens(self.blocks) });
        }
        // Blocks that were used before come first: their memory is there already.
        let returned = free.returned.len().saturating_sub(count);
        let mut ids = free.returned.split_off(returned);
        let fresh = free.next..free.next + (count - ids.len());
        free.next = fresh.end;
        ids.extend(fresh.map(|id| id as u32));
        Ok(ids.into_iter().map(|id| Arc::new(Block { id, pool: Arc::clone(self) })).collect())
    }

    #[cfg(test)]
    fn left(&self) -> usize {
        let free = self.free();
        free.returned.len() + self.blocks - free.next
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.free().returned.push(self.id);
    }
}

/// The blocks of one context.
pub(crate) struct ContextBlocks {
    pool: Arc<BlockPool>,
    /// Blocks that hold slots, in order. Shared with forks until one of them writes.
    used: Arc<Vec<Arc<Block>>>,
    /// Blocks that are reserved for what comes.
    spare: VecDeque<Arc<Block>>,
    /// Blocks that are reserved for each fork.
    for_forks: Vec<Vec<Arc<Block>>>,
}

/// A block that is to be copied before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockCopy {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl ContextBlocks {
    pub(crate) fn new(pool: Arc<BlockPool>) -> Self {
        Self { pool, used: Arc::default(), spare: VecDeque::new(), for_forks: Vec::new() }
    }

    /// The same slots in the same blocks. What is reserved for it is what [`reserve`](Self::reserve) took for a fork, or
    /// nothing.
    pub(crate) fn fork(&mut self) -> Self {
        let spare = self.for_forks.pop().unwrap_or_default().into();
        Self { pool: Arc::clone(&self.pool), used: Arc::clone(&self.used), spare, for_forks: Vec::new() }
    }

    /// The ids of the blocks that hold slots.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.used.iter().map(|block| block.id).collect()
    }

    /// Bytes of all blocks, shared and reserved ones included.
    pub(crate) fn bytes(&self) -> u64 {
        self.held() as u64 * self.pool.block_bytes
    }

    /// All blocks, shared and reserved ones included.
    fn held(&self) -> usize {
        self.used.len() + self.spare.len() + self.for_forks.iter().map(Vec::len).sum::<usize>()
    }

    /// Takes blocks for this context, of which `len` slots are in use, and for its forks; all of them or none. Blocks that were
    /// reserved before count.
    pub(crate) fn reserve(&mut self, len: usize, room: Reservation) -> Result<()> {
        let Reservation { tokens, forks, forked_at } = room;
        let blocks = self.pool.blocks_for(tokens);
        // Who goes on from the middle of a block that is shared needs a copy of it. No block that is full is written to.
        let goes_on_in_a_block = |slots: usize| slots < tokens && !slots.is_multiple_of(self.pool.block_tokens);
        let copies_last = self.last_is_shared() && goes_on_in_a_block(len);
        let copies_forked = forks > 0 && goes_on_in_a_block(forked_at) && !(copies_last && forked_at == len);
        let own = blocks + usize::from(copies_last) + usize::from(copies_forked);
        let own = own.saturating_sub(self.used.len());
        let each = if forked_at < tokens { blocks - forked_at / self.pool.block_tokens } else { 0 };
        let wanted = forks.saturating_mul(each).saturating_add(own);
        let reserved = self.held() - self.used.len();
        if wanted > reserved {
            let taken = self.pool.take(wanted - reserved, self.held(), 0)?;
            self.spare.extend(taken);
        }
        self.spare.extend(self.for_forks.drain(..).flatten());
        if each > 0 {
            self.for_forks = (0..forks).map(|_| self.spare.drain(self.spare.len() - each..).collect()).collect();
        }
        Ok(())
    }

    fn last_is_shared(&self) -> bool {
        let shared_table = Arc::strong_count(&self.used) > 1;
        self.used.last().is_some_and(|last| shared_table || Arc::strong_count(last) > 1)
    }

    /// Gives back what is reserved and not used.
    pub(crate) fn release(&mut self) {
        self.spare.clear();
        self.for_forks.clear();
    }

    /// Lets go of the blocks behind the first `tokens` slots. They stay reserved unless they are shared.
    pub(crate) fn truncate(&mut self, tokens: usize) {
        let kept = self.pool.blocks_for(tokens);
        if kept < self.used.len() {
            for block in Arc::make_mut(&mut self.used).split_off(kept).into_iter().rev() {
                if Arc::strong_count(&block) == 1 {
                    self.spare.push_front(block);
                }
            }
        }
    }

    /// Makes room for slots up to `tokens` and makes those that are to be written this context's own. `len` is how many
    /// slots hold something. Blocks that hold some of them are copied with `copy`, and the copy takes the block's place
    /// only then: if copying fails, all slots hold what they held before.
    pub(crate) fn write(
        &mut self,
        len: usize,
        tokens: usize,
        slots: impl IntoIterator<Item = u32>,
        mut copy: impl FnMut(BlockCopy) -> Result<()>,
    ) -> Result<()> {
        let missing = self.pool.blocks_for(tokens).saturating_sub(self.used.len());
        let mut written: Vec<usize> = slots.into_iter().map(|slot| slot as usize / self.pool.block_tokens).collect();
        written.dedup();
        let table_is_shared = Arc::strong_count(&self.used) > 1;
        let shared =
            |index: &usize| self.used.get(*index).is_some_and(|block| table_is_shared || Arc::strong_count(block) > 1);
        written.retain(shared);
        written.sort_unstable();
        written.dedup();
        if missing == 0 && written.is_empty() {
            return Ok(());
        }
        // What is reserved is for slots that are appended, and for a copy of the block in which they begin. Copies of full
        // blocks must not use it up.
        let full = written.iter().filter(|index| (**index + 1) * self.pool.block_tokens <= len).count();
        let wanted = (missing + written.len() - full).saturating_sub(self.spare.len()) + full;
        if wanted > 0 {
            self.spare.extend(self.pool.take(wanted, self.held(), written.len().min(wanted))?);
        }
        let used = Arc::make_mut(&mut self.used);
        for index in written {
            let (Some(own), Some(block)) = (self.spare.pop_front(), used.get_mut(index)) else { continue };
            // A block without content needs no copy.
            if index * self.pool.block_tokens < len {
                copy(BlockCopy { from: block.id, to: own.id })?;
            }
            *block = own;
        }
        used.extend(self.spare.drain(..missing.min(self.spare.len())));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Operation {
        Reserve(usize, usize),
        Write(usize, usize),
        Rewrite(usize, prop::sample::Index),
        Fork(usize),
        ForkWithRoom(usize, usize, usize),
        Truncate(usize, prop::sample::Index),
        Release(usize),
        Close(usize),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            (0..6usize, 0..40usize).prop_map(|(at, n)| Operation::Reserve(at, n)),
            (0..6usize, 1..20usize).prop_map(|(at, n)| Operation::Write(at, n)),
            (0..6usize, index()).prop_map(|(at, slot)| Operation::Rewrite(at, slot)),
            (0..6usize).prop_map(Operation::Fork),
            (0..6usize, 0..6usize, 0..12usize).prop_map(|(at, n, more)| Operation::ForkWithRoom(at, n, more)),
            (0..6usize, index()).prop_map(|(at, len)| Operation::Truncate(at, len)),
            (0..6usize).prop_map(Operation::Release),
            (0..6usize).prop_map(Operation::Close),
        ]
    }

    const BLOCK: usize = 4;
    const BLOCKS: usize = 16;

    /// What each slot of each context holds, in plain vectors, beside the blocks that should hold the same.
    struct Contexts {
        memory: Vec<[u32; BLOCK]>,
        open: Vec<(ContextBlocks, Vec<u32>)>,
        stamp: u32,
    }

    impl Contexts {
        fn write(&mut self, at: usize, tokens: usize, slots: Vec<u32>) -> Result<()> {
            let (table, expected) = &mut self.open[at];
            let memory = &mut self.memory;
            table.write(expected.len(), tokens, slots.iter().copied(), |BlockCopy { from, to }| {
                memory[to as usize] = memory[from as usize];
                Ok(())
            })?;
            expected.resize(tokens, 0);
            let ids = table.ids();
            for slot in slots {
                self.stamp += 1;
                self.memory[ids[slot as usize / BLOCK] as usize][slot as usize % BLOCK] = self.stamp;
                expected[slot as usize] = self.stamp;
            }
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn every_context_reads_what_it_wrote_whoever_shares_its_blocks(operations in prop::collection::vec(operation(), 0..60)) {
            let pool = BlockPool::new(BLOCKS, BLOCK, 1);
            let open = vec![(ContextBlocks::new(Arc::clone(&pool)), vec![])];
            let mut contexts = Contexts { memory: vec![[0; BLOCK]; BLOCKS], open, stamp: 0 };
            for operation in operations {
                let at = |index: usize, open: &Vec<(ContextBlocks, Vec<u32>)>| index % open.len().max(1);
                if contexts.open.is_empty() {
                    contexts.open.push((ContextBlocks::new(Arc::clone(&pool)), vec![]));
                }
                match operation {
                    Operation::Reserve(index, tokens) => {
                        let at = at(index, &contexts.open);
                        let (table, expected) = &mut contexts.open[at];
                        if table.reserve(expected.len(), Reservation::new(expected.len() + tokens)).is_ok() {
                            let len = expected.len();
                            let slots = (len as u32..(len + tokens) as u32).collect();
                            prop_assert!(contexts.write(at, len + tokens, slots).is_ok(), "what is reserved can be written");
                        }
                    }
                    Operation::Write(index, count) => {
                        let at = at(index, &contexts.open);
                        let len = contexts.open[at].1.len();
                        let slots = (len as u32..(len + count) as u32).collect();
                        let before = contexts.open[at].0.ids();
                        if contexts.write(at, len + count, slots).is_err() {
                            prop_assert_eq!(contexts.open[at].0.ids(), before, "a write without room changes nothing");
                        }
                    }
                    Operation::Rewrite(index, slot) => {
                        let at = at(index, &contexts.open);
                        let len = contexts.open[at].1.len();
                        if len > 0 {
                            let _ = contexts.write(at, len, vec![slot.index(len) as u32]);
                        }
                    }
                    Operation::Fork(index) => {
                        let at = at(index, &contexts.open);
                        let fork = (contexts.open[at].0.fork(), contexts.open[at].1.clone());
                        contexts.open.push(fork);
                    }
                    Operation::ForkWithRoom(index, before, after) => {
                        let at = at(index, &contexts.open);
                        let (table, expected) = &mut contexts.open[at];
                        let (len, forked_at) = (expected.len(), expected.len() + before);
                        let tokens = forked_at + after;
                        if table.reserve(len, Reservation { tokens, forks: 2, forked_at }).is_ok() {
                            let slots = (len as u32..forked_at as u32).collect();
                            prop_assert!(contexts.write(at, forked_at, slots).is_ok(), "what is reserved can be written");
                            for _ in 0..2 {
                                let (table, expected) = &mut contexts.open[at];
                                let fork = (table.fork(), expected.clone());
                                contexts.open.push(fork);
                            }
                            let slots: Vec<u32> = (forked_at as u32..tokens as u32).collect();
                            for at in [at, contexts.open.len() - 2, contexts.open.len() - 1] {
                                prop_assert!(contexts.write(at, tokens, slots.clone()).is_ok(), "all have room");
                            }
                        }
                    }
                    Operation::Truncate(index, len) => {
                        let at = at(index, &contexts.open);
                        let (table, expected) = &mut contexts.open[at];
                        expected.truncate(len.index(expected.len() + 1));
                        table.truncate(expected.len());
                    }
                    Operation::Release(index) => {
                        let at = at(index, &contexts.open);
                        contexts.open[at].0.release();
                    }
                    Operation::Close(index) => {
                        let at = at(index, &contexts.open);
                        contexts.open.swap_remove(at);
                    }
                }
                for (table, expected) in &contexts.open {
                    let ids = table.ids();
                    prop_assert!(ids.len() * BLOCK >= expected.len());
                    for (slot, stamp) in expected.iter().enumerate() {
                        prop_assert_eq!(contexts.memory[ids[slot / BLOCK] as usize][slot % BLOCK], *stamp);
                    }
                }
            }
            contexts.open.clear();
            prop_assert_eq!(pool.left(), BLOCKS, "every block comes back");
        }
    }

    #[test]
    fn a_pool_without_room_says_what_is_missing() {
        let pool = BlockPool::new(4, BLOCK, 1);
        let [mut table, mut other] = [ContextBlocks::new(Arc::clone(&pool)), ContextBlocks::new(pool)];
        let missing = |result: Result<()>| match result.unwrap_err() {
            error @ Error::KvCacheFull { needed, available, total } => {
                (needed / BLOCK, available / BLOCK, total / BLOCK, error.lacks_room_for_now())
            }
            error => panic!("{error}"),
        };
        assert_eq!(missing(table.reserve(0, Reservation::new(5 * BLOCK))), (5, 4, 4, false));
        table.reserve(0, Reservation::new(2 * BLOCK)).unwrap();
        other.reserve(0, Reservation::new(BLOCK)).unwrap();
        assert_eq!(missing(table.reserve(0, Reservation::new(4 * BLOCK))), (4, 3, 4, true));
        let with_forks = |forks| Reservation { tokens: 2 * BLOCK, forks, forked_at: BLOCK };
        assert_eq!(missing(table.reserve(0, with_forks(2))), (4, 3, 4, true));
        assert_eq!(missing(table.reserve(0, with_forks(3))), (5, 3, 4, false));
        assert!(!missing(table.reserve(0, with_forks(usize::MAX))).3);
        drop(other);
        table.reserve(0, with_forks(2)).unwrap();
    }

    /// How many blocks a context with so many slots in use takes from its pool for a reservation.
    fn needed(table: &mut ContextBlocks, len: usize, room: Reservation) -> usize {
        let before = table.pool.left();
        table.reserve(len, room).unwrap();
        before - table.pool.left()
    }

    #[test]
    fn a_reservation_takes_what_the_context_and_its_forks_write_and_no_more() {
        // Slots that are in use, slots when it is forked, slots in all, forks, and the blocks that are taken.
        let cases = [
            (0, 0, 2 * BLOCK, 0, 2),
            (0, BLOCK, 2 * BLOCK, 3, 2 + 3),
            // Each writes to the block in which they part, and needs one of its own for that.
            (0, BLOCK + 1, 2 * BLOCK, 3, 2 + 1 + 3),
            (BLOCK + 1, BLOCK + 1, 2 * BLOCK, 3, 1 + 3),
            (BLOCK + 1, BLOCK + 1, 3 * BLOCK, 3, 1 + 1 + 2 * 3),
            // Forks that never grow write nothing.
            (0, BLOCK + 1, BLOCK + 1, 3, 2),
            (BLOCK + 1, BLOCK + 1, BLOCK + 1, 3, 0),
        ];
        for (len, forked_at, tokens, forks, expected) in cases {
            let mut table = ContextBlocks::new(BlockPool::new(100, BLOCK, 1));
            table.write(0, len, 0..len as u32, |_| Ok(())).unwrap();
            let room = Reservation { tokens, forks, forked_at };
            assert_eq!(needed(&mut table, len, room), expected, "{room:?} behind {len}");
            assert_eq!(needed(&mut table, len, room), 0, "what is reserved counts: {room:?} behind {len}");
            assert_eq!(
                needed(&mut table, len, Reservation::new(tokens)),
                0,
                "what was for forks is for the context now"
            );
            table.release();
            let used = table.used.len();
            let mut exact = ContextBlocks::new(BlockPool::new(used + expected, BLOCK, 1));
            exact.write(0, len, 0..len as u32, |_| Ok(())).unwrap();
            exact.reserve(len, room).unwrap();
            assert_eq!(exact.bytes(), (used + expected) as u64, "all of it is held");
        }
    }

    #[test]
    fn a_shared_block_is_copied_only_where_it_is_written_to() {
        // Slots in use, slots in all, and the blocks that are taken.
        let cases =
            [(BLOCK, 2 * BLOCK, 1), (BLOCK + 1, 2 * BLOCK, 1), (BLOCK + 1, 3 * BLOCK, 2), (BLOCK + 1, BLOCK + 1, 0)];
        for (len, tokens, expected) in cases {
            let mut table = ContextBlocks::new(BlockPool::new(100, BLOCK, 1));
            table.write(0, len, 0..len as u32, |_| Ok(())).unwrap();
            let mut fork = table.fork();
            assert_eq!(needed(&mut fork, len, Reservation::new(tokens)), expected, "{len} slots that grow to {tokens}");
            fork.write(len, tokens, len as u32..tokens as u32, |_| Ok(())).unwrap();
            assert!(fork.spare.is_empty(), "what was taken is used: {len} slots that grow to {tokens}");
        }
        // It goes on in a block that it shares, and is forked there: one copy serves both.
        let mut table = ContextBlocks::new(BlockPool::new(100, BLOCK, 1));
        table.write(0, 1, [0], |_| Ok(())).unwrap();
        let mut fork = table.fork();
        assert_eq!(needed(&mut fork, 1, Reservation { tokens: 2, forks: 1, forked_at: 1 }), 1 + 1);
        assert_eq!(needed(&mut fork, 1, Reservation { tokens: 3, forks: 1, forked_at: 2 }), 1, "or it is two copies");
    }

    #[test]
    fn a_reservation_without_room_takes_nothing() {
        let pool = BlockPool::new(6, BLOCK, 1);
        let mut table = ContextBlocks::new(Arc::clone(&pool));
        let fits = Reservation { tokens: 2 * BLOCK, forks: 1, forked_at: BLOCK };
        table.reserve(0, fits).unwrap();
        // There is room for this context, and not for its forks.
        assert!(table.reserve(0, Reservation { tokens: 3 * BLOCK, forks: 2, forked_at: BLOCK }).is_err());
        assert_eq!((pool.left(), table.spare.len(), table.for_forks.len()), (3, 2, 1));
        table.write(0, BLOCK, 0..BLOCK as u32, |_| Ok(())).unwrap();
        let mut fork = table.fork();
        for context in [&mut table, &mut fork] {
            context.write(BLOCK, 2 * BLOCK, BLOCK as u32..2 * BLOCK as u32, |_| Ok(())).unwrap();
        }
        assert_eq!(pool.left(), 3, "what was reserved before is still there");
    }

    #[test]
    fn copies_of_what_stood_before_use_up_nothing_that_is_reserved() {
        let pool = BlockPool::new(5, BLOCK, 1);
        let mut table = ContextBlocks::new(Arc::clone(&pool));
        let tokens = 2 * BLOCK + 1;
        table.write(0, tokens, 0..tokens as u32, |_| Ok(())).unwrap();
        let mut fork = table.fork();
        fork.reserve(tokens, Reservation::new(3 * BLOCK)).unwrap();
        let mut other = ContextBlocks::new(pool);
        other.reserve(0, Reservation::new(BLOCK)).unwrap();
        let rewritten = fork.write(tokens, tokens, [0], |_| Ok(()));
        assert!(rewritten.unwrap_err().lacks_room_for_now());
        fork.write(tokens, 3 * BLOCK, tokens as u32..3 * BLOCK as u32, |_| Ok(())).unwrap();
        drop(other);
        fork.write(3 * BLOCK, 3 * BLOCK, [0], |_| Ok(())).unwrap();
    }

    #[test]
    fn blocks_that_are_copied_only_because_others_hold_them_too_are_not_needed() {
        let mut table = ContextBlocks::new(BlockPool::new(5, BLOCK, 1));
        let tokens = 4 * BLOCK;
        table.write(0, tokens, 0..tokens as u32, |_| Ok(())).unwrap();
        let mut fork = table.fork();
        let mut rewrite = || fork.write(tokens, tokens, [0, BLOCK as u32], |_| Ok(()));
        let error = rewrite().unwrap_err();
        assert!(error.lacks_room_for_now(), "{error}");
        drop(table);
        rewrite().unwrap();
    }
}
