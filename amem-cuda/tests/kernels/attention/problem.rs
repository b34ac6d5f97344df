//! What kernels get for a case: rows and what they see, numbers, and work items; and what should come of it, in f64.

use std::ops::Range;

use super::BLOCK;
use super::case::{Case, Sight, Unseen};
use crate::harness::Random;

/// A query row: its context, and the slots that it sees, as `shared` and `own`.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) context: usize,
    pub(super) shared: Range<u32>,
    pub(super) own: Range<u32>,
}

impl Row {
    pub(super) fn sees(&self, slot: u32) -> bool {
        self.shared.contains(&slot) || self.own.contains(&slot)
    }

    pub(super) fn sees_block(&self, block: u32) -> bool {
        (block * BLOCK..(block + 1) * BLOCK).all(|slot| self.sees(slot))
    }
}

/// Everything that the kernels get and what they should make of it.
pub(super) struct Problem {
    pub(super) rows: Vec<Row>,
    /// For each context the physical blocks of its slots.
    pub(super) tables: Vec<Vec<u32>>,
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl Problem {
    pub(super) fn new(case: &Case) -> Self {
        let mut random = Random::new(case.seed);
        let mut rows = Vec::new();
        for (context, &(length, count)) in case.contexts.iter().enumerate() {
            let shared_end = random.below(length);
            let shared_begin = random.below(shared_end + 1) / 2;
            for index in 0..count {
                let any = random.below(length);
                let slot = if case.sight == Sight::Prefill { length - count + index } else { any };
                let (shared, own) = match case.sight {
                    Sight::Prefill | Sight::Scattered => (0..0, 0..slot + 1),
                    Sight::Whole => (0..0, 0..length),
                    Sight::Packed => {
                        let begin = shared_end + random.below(length - shared_end);
                        (shared_begin..shared_end, begin..begin + 1 + random.below(length - begin))
                    }
                    Sight::Apart => {
                        let begin = length * 2 / 3 + random.below(10).min(length / 6);
                        let end = (length - random.below(length / 6 + 1).min(60)).max(begin + 1);
                        (length / 5..length / 5 + 1 + random.below(length / 6 + 1), begin..end)
                    }
                    Sight::Window => (0..slot.min(3), slot.saturating_sub(70).max(3).min(slot)..slot + 1),
                    Sight::Blind if index % 3 == 0 => (slot..slot, 5..5),
                    Sight::Blind => (0..0, slot..slot + 1),
                };
                rows.push(Row { context, shared, own });
            }
        }
        // Rows of contexts may come in any order.
        for index in (1..rows.len()).rev() {
            rows.swap(index, random.below(index as u32 + 1) as usize);
        }

        let counts: Vec<u32> = case.contexts.iter().map(|(length, _)| length.div_ceil(BLOCK)).collect();
        let blocks = counts.iter().sum::<u32>() + 2;
        let mut free: Vec<u32> = (0..blocks).collect();
        for index in (1..free.len()).rev() {
            free.swap(index, random.below(index as u32 + 1) as usize);
        }
        let tables: Vec<Vec<u32>> = counts.iter().map(|&count| free.split_off(free.len() - count as usize)).collect();

        let size = case.head_dim as usize;
        // The variance of a product of two such numbers is amplitude⁴/9: that of a scaled score is (score/3)².
        let amplitude = case.score.sqrt();
        let mut numbers = |count: usize, amplitude: f32| -> Vec<f32> {
            (0..count).map(|_| case.dtype.round(random.unit() * amplitude)).collect()
        };
        let queries = numbers(rows.len() * (case.kv_heads * case.group) as usize * size, amplitude);
        let cache = (blocks * case.kv_heads * BLOCK) as usize * size;
        let mut keys = numbers(cache, amplitude);
        let mut values = numbers(cache, 1.0);

        let mut seen = vec![false; (blocks * BLOCK) as usize];
        for row in &rows {
            for slot in row.shared.clone().chain(row.own.clone()) {
                let block = tables[row.context][(slot / BLOCK) as usize];
                seen[(block * BLOCK + slot % BLOCK) as usize] = true;
            }
        }
        let garbage = match case.unseen {
            Unseen::Nan => f32::NAN,
            Unseen::Infinite => f32::NEG_INFINITY,
            Unseen::Large => -60000.0,
        };
        for (index, (key, value)) in keys.iter_mut().zip(&mut values).enumerate() {
            let slot = index as u32 / case.head_dim;
            let physical = slot / (case.kv_heads * BLOCK) * BLOCK + slot % BLOCK;
            if !seen[physical as usize] {
                (*key, *value) = (garbage, garbage);
            }
        }
        Self { rows, tables, queries, keys, values }
    }

    /// A head's vector in a slot of a context.
    pub(super) fn at<'a>(&self, case: &Case, cache: &'a [f32], context: usize, slot: u32, kv_head: u32) -> &'a [f32] {
        let block = self.tables[context][(slot / BLOCK) as usize];
        let first = ((block * case.kv_heads + kv_head) * BLOCK + slot % BLOCK) * case.head_dim;
        &cache[first as usize..][..case.head_dim as usize]
    }

    pub(super) fn query(&self, case: &Case, row: usize, head: u32) -> &[f32] {
        let size = case.head_dim as usize;
        &self.queries[(row * (case.kv_heads * case.group) as usize + head as usize) * size..][..size]
    }

    /// The slots that a row sees, and their scores in powers of two; capped ones count from minus the cap.
    pub(super) fn scores(&self, case: &Case, row: usize, head: u32) -> Vec<(u32, f64)> {
        let seen = &self.rows[row];
        let query = self.query(case, row, head);
        let (scale, squash) = case.scales();
        let score = |product: f64| match squash {
            None => product * f64::from(scale),
            Some(squash) => f64::from(scale) / (1.0 + (product * f64::from(squash)).exp2()),
        };
        (0..seen.shared.end.max(seen.own.end))
            .filter(|&slot| seen.sees(slot))
            .map(|slot| {
                let key = self.at(case, &self.keys, seen.context, slot, head / case.group);
                let dot: f64 = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                (slot, score(dot))
            })
            .collect()
    }

    /// A query's output, how large the terms of each of its sums are, and the logarithm of its weights' sum.
    pub(super) fn expected(&self, case: &Case, row: usize, head: u32) -> (Vec<f64>, Vec<f64>, f64) {
        let size = case.head_dim as usize;
        let (mut out, mut terms) = (vec![0f64; size], vec![0f64; size]);
        let scores = self.scores(case, row, head);
        let largest = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|(_, score)| (score - largest).exp2()).sum();
        for (slot, score) in scores {
            let weight = (score - largest).exp2() / sum;
            let value = self.at(case, &self.values, self.rows[row].context, slot, head / case.group);
            for ((out, term), &v) in out.iter_mut().zip(&mut terms).zip(value) {
                *out += weight * f64::from(v);
                *term += weight * f64::from(v).abs();
            }
        }
        (out, terms, largest + sum.log2())
    }
}

/// Work items, as a backend would make them.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) items: Vec<[u32; 16]>,
    pub(super) joins: Vec<[u32; 4]>,
    pub(super) order: Vec<u32>,
    pub(super) tables: Vec<u32>,
    pub(super) partial_rows: u32,
}

impl Plan {
    /// Items of at most `capacity` query rows, each split into `splits` that go through a part of the blocks.
    pub(super) fn new(case: &Case, problem: &Problem, capacity: usize) -> Self {
        let mut plan = Self::default();
        for (context, table) in problem.tables.iter().enumerate() {
            let first_block = plan.tables.len() as u32;
            plan.tables.extend(table);
            let mut rows: Vec<usize> =
                (0..problem.rows.len()).filter(|&row| problem.rows[row].context == context).collect();
            rows.sort_by_key(|&row| problem.rows[row].own.end);
            for rows in rows.chunks(capacity) {
                plan.add(case, problem, rows, first_block);
            }
        }
        // An item without rows fills a list up.
        let mut nothing = [0; 16];
        nothing[9] = u32::MAX;
        plan.items.push(nothing);
        plan
    }

    pub(super) fn add(&mut self, case: &Case, problem: &Problem, rows: &[usize], table: u32) {
        let first = self.order.len() as u32;
        let count = rows.len() as u32;
        self.order.extend(rows.iter().map(|&row| row as u32));
        let rows: Vec<&Row> = rows.iter().map(|&row| &problem.rows[row]).collect();
        let blocks = |spans: &mut dyn Iterator<Item = &Range<u32>>| -> Range<u32> {
            spans
                .filter(|span| !span.is_empty())
                .map(|span| span.start / BLOCK..span.end.div_ceil(BLOCK))
                .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
                .unwrap_or(0..0)
        };
        let mut a = blocks(&mut rows.iter().map(|row| &row.shared));
        let mut b = blocks(&mut rows.iter().map(|row| &row.own));
        if a.end >= b.start {
            (a, b) = (0..0, if b.is_empty() { a } else { a.start.min(b.start)..b.end.max(a.end) });
        }
        // The longest run of blocks that every row sees whole.
        let mut full = 0..0;
        let mut run = 0..0;
        for block in b.clone() {
            if rows.iter().all(|row| row.sees_block(block)) {
                run = if run.end == block && !run.is_empty() { run.start..block + 1 } else { block..block + 1 };
                if run.len() > full.len() {
                    full = run.clone();
                }
            }
        }
        let all: Vec<(bool, u32)> = a.clone().map(|block| (true, block)).chain(b.map(|block| (false, block))).collect();
        let part = all.len().div_ceil(case.splits as usize).max(1);
        let packed = count * case.group * case.kv_heads;
        if case.splits > 1 {
            self.joins.push([first, count, self.partial_rows, case.splits]);
        }
        for split in 0..case.splits as usize {
            let blocks = all.get(split * part..all.len().min((split + 1) * part)).unwrap_or_default();
            let [a, b] = [true, false].map(|shared| {
                let of: Vec<u32> = blocks.iter().filter(|block| block.0 == shared).map(|block| block.1).collect();
                of.first().map_or([0, 0], |&first| [first, first + of.len() as u32])
            });
            let mut item = [0; 16];
            item[..10].copy_from_slice(&[
                first,
                count,
                table,
                a[0],
                a[1],
                b[0],
                b[1],
                full.start,
                full.end,
                if case.splits > 1 { self.partial_rows } else { u32::MAX },
            ]);
            self.items.push(item);
            if case.splits > 1 {
                self.partial_rows += packed;
            }
        }
    }
}
