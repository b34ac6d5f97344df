//! What attention has to do for the rows of a pass, cut into items of work.
//!
//! Everything here is arithmetic on the host: what a kernel is told of its rows. Rows of one context that follow each
//! other share a tile, so that keys are read once for all of them. A decode step has few rows: their keys are split
//! among several blocks of threads, and what these find is combined.

use std::ops::Range;

use amem_core::transformer::Row;

/// Slots in a block of the KV cache.
pub(crate) const BLOCK_TOKENS: usize = 64;

/// Packed rows that the kernel for few rows takes: the rows of one tensor-core product.
const SHORT_ROWS: usize = 16;

/// Blocks of keys that are worth a split of their own: fewer cost more to combine than they save.
const LEAST_SPLIT: usize = 4;

/// Rows up to which lists have the length of a power of two, so that one decode step looks like the next to the driver.
pub(crate) const SHORT_PASS: usize = 64;

/// How attention is cut for one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Query heads that share a KV head.
    pub(crate) group: usize,
    /// KV heads.
    pub(crate) kv_heads: usize,
    /// Packed rows of a tile of the kernel for many rows.
    pub(crate) tile_rows: usize,
    /// Blocks of threads that the GPU can run at a time.
    pub(crate) parallel: usize,
}

/// What an item tells a kernel. The kernels' templates say what each field means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Item {
    /// The first of its rows, in the order.
    pub(crate) first: u32,
    /// How many they are.
    pub(crate) rows: u32,
    /// Where the context's blocks begin in the array of all tables.
    pub(crate) table: u32,
    /// The context's blocks to go through first.
    pub(crate) before: [u32; 2],
    /// The blocks to go through after them.
    pub(crate) own: [u32; 2],
    /// Those of `own` that all rows see in full.
    pub(crate) full: [u32; 2],
    /// Where its part of a split result goes; [`Item::WHOLE`] for a result of its own.
    pub(crate) partial: u32,
}

impl Item {
    pub(crate) const WHOLE: u32 = u32::MAX;

    /// As the kernels read it.
    pub(crate) fn words(&self) -> [u32; 16] {
        let Self { first, rows, table, before, own, full, partial } = *self;
        let mut words = [0; 16];
        words[..10]
            .copy_from_slice(&[first, rows, table, before[0], before[1], own[0], own[1], full[0], full[1], partial]);
        words
    }
}

/// A result to be combined of several splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    /// The first of its rows, in the order.
    pub(crate) first: u32,
    /// How many they are.
    pub(crate) rows: u32,
    /// Its first partial row.
    pub(crate) partial: u32,
    /// How many splits there are.
    pub(crate) splits: u32,
}

/// All that attention does for some rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// For the kernel of many rows.
    pub(crate) tiles: Vec<Item>,
    /// For the kernel of few rows.
    pub(crate) short: Vec<Item>,
    /// What is combined afterwards.
    pub(crate) joins: Vec<Join>,
    /// Rows of partial results.
    pub(crate) partial_rows: usize,
}

/// The rows' indexes, those of a context together and in the order of their slots.
pub(crate) fn order(rows: &[Row]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    order.sort_by_key(|&index| (rows[index as usize].context, rows[index as usize].slot));
    order
}

/// Cuts attention of some rows, a run of `order`, into work. `tables` says where each context's table begins.
pub(crate) fn work(rows: &[Row], order: &[u32], run: Range<usize>, tables: &[u32], cut: Cut) -> Work {
    let row = |index: &u32| &rows[*index as usize];
    let mut tiles: Vec<(Item, bool)> = Vec::new();
    let mut first = run.start;
    for of_context in order[run].chunk_by(|a, b| row(a).context == row(b).context) {
        // One row is always short, however many heads it has: the grid then goes over slices of them.
        let short = of_context.len() == 1 || of_context.len() * cut.group <= SHORT_ROWS;
        let size = if short { of_context.len() } else { (cut.tile_rows / cut.group.max(1)).max(1) };
        for tile in of_context.chunks(size) {
            let mut item = blocks(tile.iter().map(row));
            item.first = first as u32;
            item.rows = tile.len() as u32;
            item.table = tables.get(row(&tile[0]).context).copied().unwrap_or(0);
            tiles.push((item, short));
            first += tile.len();
        }
    }
    let count = |[from, to]: [u32; 2]| (to - from) as usize;
    let blocks: usize = tiles.iter().map(|(item, _)| count(item.before) + count(item.own)).sum();
    // Two blocks of threads for each place to run one, so that the last to finish are waited for less.
    let wanted = 2 * cut.parallel;
    let enough = tiles.len() * cut.kv_heads >= wanted;
    let size = if enough { usize::MAX } else { (blocks * cut.kv_heads).div_ceil(wanted.max(1)).max(LEAST_SPLIT) };
    let mut work = Work::default();
    for (item, short) in tiles {
        let (before, own) = (count(item.before), count(item.own));
        let splits = (before + own).div_ceil(size).max(1);
        let partial_rows = cut.kv_heads * item.rows as usize * cut.group;
        for split in 0..splits {
            let (from, to) = ((before + own) * split / splits, (before + own) * (split + 1) / splits);
            let part = |[begin, _]: [u32; 2], len: usize, skip: usize| {
                [from, to].map(|at| begin + at.saturating_sub(skip).min(len) as u32)
            };
            let partial = match splits {
                1 => Item::WHOLE,
                _ => (work.partial_rows + split * partial_rows) as u32,
            };
            let item = Item { before: part(item.before, before, 0), own: part(item.own, own, before), partial, ..item };
            if short { work.short.push(item) } else { work.tiles.push(item) }
        }
        if splits > 1 {
            let (partial, splits) = (work.partial_rows as u32, splits as u32);
            work.joins.push(Join { first: item.first, rows: item.rows, partial, splits });
            work.partial_rows += splits as usize * partial_rows;
        }
    }
    if rows.len() <= SHORT_PASS {
        for items in [&mut work.tiles, &mut work.short] {
            if !items.is_empty() {
                let nothing = Item { partial: Item::WHOLE, ..Item::default() };
                items.resize(items.len().next_power_of_two(), nothing);
            }
        }
        work.partial_rows = if work.partial_rows == 0 { 0 } else { work.partial_rows.next_power_of_two() };
    }
    work
}

/// The blocks that a tile goes through.
fn blocks<'a>(rows: impl Iterator<Item = &'a Row> + Clone) -> Item {
    const B: u32 = BLOCK_TOKENS as u32;
    let union = |ranges: &mut dyn Iterator<Item = &'a Range<u32>>| {
        let seen = ranges.filter(|range| !range.is_empty());
        let (low, high) = seen.fold((u32::MAX, 0), |(low, high), range| (low.min(range.start), high.max(range.end)));
        if low < high { [low / B, high.div_ceil(B)] } else { [0, 0] }
    };
    let shared = union(&mut rows.clone().map(|row| &row.sees.shared));
    let own = union(&mut rows.clone().map(|row| &row.sees.own));
    let apart = shared[1] <= own[0];
    // Blocks that hold both are gone through once.
    let (before, own) = match (shared[0] == shared[1], own[0] == own[1]) {
        (true, _) => ([own[0]; 2], own),
        (false, true) => ([shared[0]; 2], shared),
        (false, false) if apart => (shared, own),
        (false, false) => {
            let begin = shared[0].min(own[0]);
            ([begin; 2], [begin, shared[1].max(own[1])])
        }
    };
    let begin = rows.clone().map(|row| row.sees.own.start.div_ceil(B)).max().unwrap_or(0).clamp(own[0], own[1]);
    let end = rows.map(|row| row.sees.own.end / B).min().unwrap_or(0).clamp(begin, own[1]);
    Item { before, own, full: [begin, end], ..Item::default() }
}

#[cfg(test)]
mod tests {
    use amem_core::transformer::Span;
    use proptest::prelude::*;

    use super::*;

    /// Rows of several contexts, in no order, some of which see a shared beginning or what stands behind them.
    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let behind = prop_oneof![Just(0u32), 0u32..200];
        let row = (0usize..4, 0u32..900, 0u32..200, 0u32..300, 0u32..400, behind);
        prop::collection::vec(row, 1..150).prop_map(|rows| {
            let row = |(context, slot, shared_from, shared, from, behind): (usize, u32, u32, u32, u32, u32)| {
                let own = from.min(slot)..slot + 1 + behind;
                let shared = shared_from.min(own.start)..(shared_from + shared).min(own.start);
                Row { token: 0, context, slot, position: slot, sees: Span { shared, own } }
            };
            let mut rows: Vec<Row> = rows.into_iter().map(row).collect();
            rows.sort_by_key(|row| (row.context * 7 + row.slot as usize) % 11);
            rows
        })
    }

    fn covers(item: &Item, block: u32) -> usize {
        [item.before, item.own].iter().filter(|[from, to]| (*from..*to).contains(&block)).count()
    }

    proptest! {
        #[test]
        fn every_row_goes_through_each_block_that_it_sees_once(
            rows in rows(),
            group in 1usize..9,
            kv_heads in 1usize..4,
            parallel in 1usize..200,
        ) {
            let cut = Cut { group, kv_heads, tile_rows: 64, parallel };
            let order = order(&rows);
            let tables = [0, 100, 200, 300];
            let work = work(&rows, &order, 0..rows.len(), &tables, cut);
            let items = || work.tiles.iter().chain(&work.short);
            for (place, index) in order.iter().enumerate() {
                let (row, place) = (&rows[*index as usize], place as u32);
                let of_row: Vec<&Item> =
                    items().filter(|item| (item.first..item.first + item.rows).contains(&place)).collect();
                prop_assert!(!of_row.is_empty());
                prop_assert!(of_row.iter().all(|item| item.table == 100 * row.context as u32));
                for slot in row.sees.shared.clone().chain(row.sees.own.clone()) {
                    let block = slot / BLOCK_TOKENS as u32;
                    let times: usize = of_row.iter().map(|item| covers(item, block)).sum();
                    prop_assert_eq!(times, 1, "slot {} of row {:?}", slot, row);
                }
                for block in of_row.iter().flat_map(|item| item.full[0]..item.full[1]) {
                    let (from, to) = (block * BLOCK_TOKENS as u32, (block + 1) * BLOCK_TOKENS as u32);
                    prop_assert!(row.sees.own.start <= from && to <= row.sees.own.end);
                }
            }
            prop_assert!(work.tiles.iter().all(|item| item.rows as usize * group <= 64));
            prop_assert!(work.short.iter().all(|item| item.rows <= 1 || item.rows as usize * group <= SHORT_ROWS));
        }

        #[test]
        fn partial_results_do_not_overlap_and_each_is_combined_once(
            rows in rows(),
            group in 1usize..9,
            kv_heads in 1usize..4,
        ) {
            let cut = Cut { group, kv_heads, tile_rows: 128, parallel: 132 };
            let order = order(&rows);
            let work = work(&rows, &order, 0..rows.len(), &[0; 4], cut);
            let mut taken = vec![0u32; work.partial_rows];
            for join in &work.joins {
                let size = kv_heads * join.rows as usize * group;
                for split in 0..join.splits as usize {
                    let start = join.partial as usize + split * size;
                    taken[start..start + size].iter_mut().for_each(|taken| *taken += 1);
                    let written = work
                        .tiles
                        .iter()
                        .chain(&work.short)
                        .filter(|item| item.partial as usize == start && item.first == join.first)
                        .count();
                    prop_assert_eq!(written, 1);
                }
            }
            prop_assert!(taken.iter().all(|taken| *taken <= 1));
            let split = work.tiles.iter().chain(&work.short).filter(|item| item.partial != Item::WHOLE).count();
            prop_assert_eq!(split, work.joins.iter().map(|join| join.splits as usize).sum::<usize>());
        }
    }

    #[test]
    fn a_decode_step_of_a_long_context_is_spread_over_the_gpu_and_looks_like_the_next() {
        let cut = Cut { group: 4, kv_heads: 8, tile_rows: 128, parallel: 132 };
        let at = |slot: u32| {
            let sees = Span { shared: 0..0, own: 0..slot + 1 };
            work(&[Row { token: 0, context: 0, slot, position: slot, sees }], &[0], 0..1, &[0], cut)
        };
        let (now, next) = (at(32_000), at(32_001));
        assert!(now.short.len() * 8 >= 132, "{} items", now.short.len());
        assert_eq!((now.short.len(), now.partial_rows), (next.short.len(), next.partial_rows));
        assert_eq!(at(40).joins, [], "a short one is not split");
    }
}
