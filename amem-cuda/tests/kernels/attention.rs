//! Attention kernels against plain loops in f64.
//!
//! A case draws contexts, rows and what they see, makes work items of them as a backend would, runs the kernels, and
//! compares every number that they wrote. Numbers that nobody may read are NaN: slots that no row sees, outputs.

use std::ops::Range;

use amem_ptxsim::{Counts, Kernel, Schedule};

use crate::harness::{Argument, Device, NULL, Random, SCHEDULES, Type, constant, kernel};

/// Slots in a block.
const BLOCK: u32 = 64;

/// Bytes that no kernel writes: a NaN in every number type.
const POISON: u8 = 0xff;

/// What rows see.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sight {
    /// The last rows of a context, each up to itself.
    Prefill,
    /// Rows anywhere in a context, each up to itself.
    Scattered,
    /// All of a context.
    Whole,
    /// A beginning that all share, and then a text of their own that begins at some slot behind it.
    Packed,
    /// A part that all share, nothing for some blocks, and then texts that begin and end near each other.
    Apart,
    /// A few slots at the beginning, and a window that ends with the row itself.
    Window,
    /// Now and then nothing at all.
    Blind,
}

/// What stands in the slots that no row sees.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unseen {
    Nan,
    Infinite,
    Large,
}

#[derive(Clone, Debug)]
struct Case {
    dtype: Type,
    head_dim: u32,
    kv_heads: u32,
    group: u32,
    /// `attend_rows` or `attend_short`.
    entry: &'static str,
    /// Slots of each context, and how many rows it has.
    contexts: Vec<(u32, u32)>,
    sight: Sight,
    splits: u32,
    /// How large scores are, after scaling.
    score: f32,
    /// What they are capped at.
    cap: Option<f32>,
    unseen: Unseen,
    with_lse: bool,
    seed: u64,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            dtype: Type::Bf16,
            head_dim: 64,
            kv_heads: 2,
            group: 2,
            entry: "attend_rows",
            contexts: vec![(150, 33)],
            sight: Sight::Scattered,
            splits: 1,
            score: 4.0,
            cap: None,
            unseen: Unseen::Nan,
            with_lse: true,
            seed: 1,
        }
    }
}

/// The kernels that a case runs.
#[derive(Clone, Copy)]
struct Kernels<'a> {
    attend: &'a Kernel,
    combine: Option<&'a Kernel>,
}

impl Case {
    fn module(&self) -> String {
        match self.dtype {
            Type::F32 => "attention_f32".into(),
            dtype => format!("attention_{}_d{}", dtype.name(), self.head_dim),
        }
    }

    /// Query rows that fit an item.
    fn capacity(&self) -> usize {
        (constant(&self.module(), self.entry, "rows") / self.group).max(1) as usize
    }

    /// `scale_log2`, and `squash` if scores are capped: what makes a score of a product p is p times the scale, or of it
    /// the cap times the tangent of (that by the cap), and the cap once more.
    fn scales(&self) -> (f32, Option<f32>) {
        let log2 = |x: f64| (std::f64::consts::LOG2_E * x) as f32;
        let scale = 1.0 / f64::from(self.head_dim).sqrt();
        match self.cap.map(f64::from) {
            None => (log2(scale), None),
            Some(cap) => (log2(2.0 * cap), Some(log2(-2.0 * scale / cap))),
        }
    }

    /// The kernels that tell what is attended to.
    fn mass_kernels(&self) -> [&'static Kernel; 2] {
        let mass = if self.cap.is_some() { "attention_mass_capped" } else { "attention_mass" };
        [mass, "mass_sum"].map(|entry| kernel(&self.module(), entry))
    }

    fn kernels(&self) -> Kernels<'static> {
        let module = self.module();
        Kernels { attend: kernel(&module, self.entry), combine: (self.splits > 1).then(|| kernel(&module, "combine")) }
    }
}

/// A query row: its context, and the slots that it sees, as `shared` and `own`.
#[derive(Clone, Debug)]
struct Row {
    context: usize,
    shared: Range<u32>,
    own: Range<u32>,
}

impl Row {
    fn sees(&self, slot: u32) -> bool {
        self.shared.contains(&slot) || self.own.contains(&slot)
    }

    fn sees_block(&self, block: u32) -> bool {
        (block * BLOCK..(block + 1) * BLOCK).all(|slot| self.sees(slot))
    }
}

/// Everything that the kernels get and what they should make of it.
struct Problem {
    rows: Vec<Row>,
    /// For each context the physical blocks of its slots.
    tables: Vec<Vec<u32>>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Problem {
    fn new(case: &Case) -> Self {
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
    fn at<'a>(&self, case: &Case, cache: &'a [f32], context: usize, slot: u32, kv_head: u32) -> &'a [f32] {
        let block = self.tables[context][(slot / BLOCK) as usize];
        let first = ((block * case.kv_heads + kv_head) * BLOCK + slot % BLOCK) * case.head_dim;
        &cache[first as usize..][..case.head_dim as usize]
    }

    fn query(&self, case: &Case, row: usize, head: u32) -> &[f32] {
        let size = case.head_dim as usize;
        &self.queries[(row * (case.kv_heads * case.group) as usize + head as usize) * size..][..size]
    }

    /// The slots that a row sees, and their scores in powers of two; capped ones count from minus the cap.
    fn scores(&self, case: &Case, row: usize, head: u32) -> Vec<(u32, f64)> {
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
    fn expected(&self, case: &Case, row: usize, head: u32) -> (Vec<f64>, Vec<f64>, f64) {
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
struct Plan {
    items: Vec<[u32; 16]>,
    joins: Vec<[u32; 4]>,
    order: Vec<u32>,
    tables: Vec<u32>,
    partial_rows: u32,
}

impl Plan {
    /// Items of at most `capacity` query rows, each split into `splits` that go through a part of the blocks.
    fn new(case: &Case, problem: &Problem, capacity: usize) -> Self {
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

    fn add(&mut self, case: &Case, problem: &Problem, rows: &[usize], table: u32) {
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

/// What the kernels wrote.
struct Written {
    out: Vec<u8>,
    lse: Vec<u8>,
    counts: Counts,
}

/// Runs a case's kernels, and compares what they wrote.
fn attend(case: &Case, kernels: Kernels<'_>, schedule: Schedule) -> Result<Counts, String> {
    let problem = Problem::new(case);
    let plan = Plan::new(case, &problem, case.capacity());
    let written = launch(case, &problem, &plan, kernels, schedule)?;
    compare(case, &problem, &written)?;
    Ok(written.counts)
}

/// Runs a case's kernels.
fn launch(
    case: &Case,
    problem: &Problem,
    plan: &Plan,
    kernels: Kernels<'_>,
    schedule: Schedule,
) -> Result<Written, String> {
    let heads = case.kv_heads * case.group;
    let module = case.module();
    let limit = |name| constant(&module, case.entry, name);
    let slices = case.group.div_ceil(limit("rows"));

    let mut device = Device::new();
    let queries = device.upload_as(case.dtype, "queries", &problem.queries);
    let k_cache = device.upload_as(case.dtype, "k_cache", &problem.keys);
    let v_cache = device.upload_as(case.dtype, "v_cache", &problem.values);
    let items = device.upload("items", &plan.items);
    let order = device.upload("order", &plan.order);
    let spans: Vec<[u32; 4]> =
        problem.rows.iter().map(|row| [row.shared.start, row.shared.end, row.own.start, row.own.end]).collect();
    let spans = device.upload("spans", &spans);
    let tables = device.upload("tables", &plan.tables);
    // One row more than there are: it stays as it was.
    let vectors = (problem.rows.len() as u32 + 1) * heads;
    let out = device.upload("out", &vec![POISON; vectors as usize * case.head_dim as usize * case.dtype.bytes()]);
    let lse = device.upload("lse", &vec![POISON; vectors as usize * 4]);
    let lse_argument: Argument = if case.with_lse { lse.into() } else { NULL };
    let partial_out = device.allocate("partial_out", (plan.partial_rows * case.head_dim * 4) as usize);
    let partial_lse = device.allocate("partial_lse", plan.partial_rows as usize * 4);

    let (scale, squash) = case.scales();
    let mut arguments: Vec<Argument> = vec![
        queries.into(),
        out.into(),
        lse_argument,
        k_cache.into(),
        v_cache.into(),
        items.into(),
        order.into(),
        spans.into(),
        tables.into(),
        case.kv_heads.into(),
        case.group.into(),
        scale.into(),
        squash.unwrap_or(0.0).into(),
        partial_out.into(),
        partial_lse.into(),
    ];
    if case.dtype == Type::F32 {
        arguments.push(case.head_dim.into());
    }
    let grid = [plan.items.len() as u32, case.kv_heads, slices];
    let counts = device.launch(kernels.attend, grid, limit("threads"), limit("shared"), &arguments, schedule)?;
    if let Some(combine) = kernels.combine {
        let joins = device.upload("joins", &plan.joins);
        let mut arguments: Vec<Argument> = vec![
            partial_out.into(),
            partial_lse.into(),
            out.into(),
            lse_argument,
            joins.into(),
            order.into(),
            case.kv_heads.into(),
            case.group.into(),
        ];
        if case.dtype == Type::F32 {
            arguments.push(case.head_dim.into());
        }
        let grid = [plan.joins.len() as u32, case.kv_heads, 1 + case.group % 3];
        device.launch(combine, grid, constant(&module, "combine", "threads"), 0, &arguments, schedule)?;
    }
    Ok(Written { out: device.read(out)?, lse: device.read(lse)?, counts })
}

/// How far a score may be off, for sums in f32: by the sum of the terms' magnitudes times a few roundings, and by what
/// capping it is off.
fn score_error(case: &Case) -> f64 {
    let terms = f64::from(case.head_dim).sqrt() * f64::from(case.score) / 4.0;
    1e-6 + 4.0 * terms * f64::from(f32::EPSILON) + 5e-7 * f64::from(case.cap.unwrap_or(0.0))
}

/// Compares all of the output.
fn compare(case: &Case, problem: &Problem, written: &Written) -> Result<(), String> {
    let heads = case.kv_heads * case.group;
    let Written { out, lse, .. } = written;
    let numbers = case.dtype.decode(out);
    let vectors = problem.rows.len() * heads as usize;
    let size = case.head_dim as usize;
    let kept = |bytes: &[u8]| bytes.iter().all(|&byte| byte == POISON);
    if !kept(&out[vectors * size * case.dtype.bytes()..]) {
        return Err("wrote behind the last row of the output".into());
    }
    if !kept(&lse[if case.with_lse { vectors * 4 } else { 0 }..]) {
        return Err("wrote log-sum-exps that nobody asked for".into());
    }
    let lse: Vec<f32> = bytemuck::pod_collect_to_vec(lse);
    // A score is a sum of products in f32, and the weights of 16-bit types are rounded to that type.
    let rounding = case.dtype.rounding();
    let score = score_error(case);
    for row in 0..problem.rows.len() {
        for head in 0..heads {
            let vector = row * heads as usize + head as usize;
            let (expected, terms, expected_lse) = problem.expected(case, row, head);
            for column in 0..size {
                let found = f64::from(numbers[vector * size + column]);
                let allowed = rounding * (expected[column].abs() + 1.5 * terms[column]) + score * terms[column] + 1e-7;
                let wrong = (found - expected[column]).abs();
                if wrong.is_nan() || wrong > allowed {
                    return Err(format!(
                        "row {row} ({:?}) head {head} column {column}: {found} instead of {} (±{allowed})",
                        problem.rows[row], expected[column]
                    ));
                }
            }
            if case.with_lse {
                let found = f64::from(lse[vector]);
                let equal = found == expected_lse || (found - expected_lse).abs() <= 2.0 * score + 1e-6;
                if !equal {
                    return Err(format!("row {row} head {head}: log-sum-exp {found} instead of {expected_lse}"));
                }
            }
        }
    }
    Ok(())
}

/// Adds up what a case's rows attend to, and compares it. `kernels` are attention_mass and mass_sum.
fn mass(case: &Case, kernels: [&Kernel; 2], schedule: Schedule) -> Result<(), String> {
    let problem = Problem::new(case);
    let heads = case.kv_heads * case.group;
    let module = case.module();
    let slots = case.contexts[0].0;
    // Every other row, backwards: those of an order that begins somewhere.
    let chosen: Vec<usize> = (0..problem.rows.len()).rev().step_by(2).collect();
    let order: Vec<u32> = [u32::MAX, 7].into_iter().chain(chosen.iter().map(|&row| row as u32)).collect();
    let spans: Vec<[u32; 4]> =
        problem.rows.iter().map(|row| [row.shared.start, row.shared.end, row.own.start, row.own.end]).collect();
    let table: Vec<u32> = [u32::MAX].iter().chain(&problem.tables[0]).copied().collect();
    let before: Vec<f32> = (0..slots + 3).map(|slot| slot as f32 / 16.0).collect();

    let mut lse = vec![f32::NAN; problem.rows.len() * heads as usize];
    let mut expected: Vec<f64> = before.iter().map(|&mass| f64::from(mass)).collect();
    for &row in &chosen {
        for head in 0..heads {
            let scores = problem.scores(case, row, head);
            let largest = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|(_, score)| (score - largest).exp2()).sum();
            lse[row * heads as usize + head as usize] = (largest + sum.log2()) as f32;
            for (slot, score) in scores {
                expected[slot as usize] += (score - largest).exp2() / sum;
            }
        }
    }

    let mut device = Device::new();
    let partial = device.allocate("partial", (case.kv_heads * slots * 4) as usize);
    let sums = device.upload("mass", &before);
    let (scale, squash) = case.scales();
    let mut arguments: Vec<Argument> = vec![
        device.upload_as(case.dtype, "queries", &problem.queries).into(),
        device.upload("lse", &lse).into(),
        device.upload_as(case.dtype, "k_cache", &problem.keys).into(),
        device.upload("order", &order).into(),
        device.upload("spans", &spans).into(),
        device.upload("tables", &table).into(),
        2u32.into(),
        (chosen.len() as u32).into(),
        1u32.into(),
        case.kv_heads.into(),
        case.group.into(),
        scale.into(),
    ];
    arguments.extend(squash.map(Argument::from));
    arguments.extend([Argument::from(partial), slots.into()]);
    if case.dtype == Type::F32 {
        arguments.push(case.head_dim.into());
    }
    let [attention_mass, mass_sum] = kernels;
    let limit = |name| constant(&module, "attention_mass", name);
    let grid = [slots.div_ceil(BLOCK), case.kv_heads, 1];
    device.launch(attention_mass, grid, limit("threads"), limit("shared"), &arguments, schedule)?;
    let arguments = [partial.into(), sums.into(), case.kv_heads.into(), slots.into()];
    let threads = constant(&module, "mass_sum", "threads");
    device.launch(mass_sum, [slots.div_ceil(threads), 1, 1], threads, 0, &arguments, schedule)?;

    let found: Vec<f32> = device.read(sums)?;
    for (slot, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let added = expected - f64::from(before[slot]);
        // Weights too small for an f32 are zero.
        let allowed = 1e-30 + 2.0 * score_error(case) * added + f64::from(f32::EPSILON) * 16.0 * expected;
        let wrong = (f64::from(found) - expected).abs();
        if wrong.is_nan() || wrong > allowed {
            return Err(format!("slot {slot}: mass {found} instead of {expected}"));
        }
    }
    Ok(())
}

fn check_mass(cases: impl IntoIterator<Item = Case>) {
    let mut failures = Vec::new();
    for (index, case) in cases.into_iter().enumerate() {
        if let Err(error) = mass(&case, case.mass_kernels(), SCHEDULES[index % SCHEDULES.len()]) {
            failures.push(format!("{case:?}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// All of these, each in one order of warps and copies.
fn check(cases: impl IntoIterator<Item = Case>) {
    let mut failures = Vec::new();
    for (index, case) in cases.into_iter().enumerate() {
        if let Err(error) = attend(&case, case.kernels(), SCHEDULES[index % SCHEDULES.len()]) {
            failures.push(format!("{case:?}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

const HEAD_DIMS: [u32; 5] = [64, 80, 96, 128, 256];
const HALVES: [Type; 2] = [Type::Bf16, Type::F16];
const SIGHTS: [Sight; 7] =
    [Sight::Prefill, Sight::Scattered, Sight::Whole, Sight::Packed, Sight::Apart, Sight::Window, Sight::Blind];

#[test]
fn many_rows_attend_to_what_each_of_them_sees() {
    let cases = SIGHTS.map(|sight| Case { sight, contexts: vec![(150, 33), (64, 5)], ..Case::default() });
    check(cases);
}

#[test]
fn many_rows_attend_in_every_head_size_and_type() {
    check(HEAD_DIMS.into_iter().flat_map(|head_dim| HALVES.map(|dtype| Case { dtype, head_dim, ..Case::default() })));
}

#[test]
fn many_rows_attend_in_tiles_of_any_fill() {
    let counts = [1, 15, 16, 17, 63, 64, 65, 100];
    let groups = [1, 2, 3, 4, 7, 8, 1, 1];
    check(counts.into_iter().zip(groups).map(|(count, group)| Case {
        group,
        kv_heads: 1 + count % 2,
        contexts: vec![(129, count)],
        ..Case::default()
    }));
    // More query heads to a key head than packed rows in a tile: slices of them.
    check([(64, 130, Type::Bf16), (256, 70, Type::F16), (20, 17, Type::F32)].map(|(head_dim, group, dtype)| Case {
        dtype,
        head_dim,
        group,
        contexts: vec![(70, 2)],
        ..Case::default()
    }));
}

#[test]
fn scores_far_from_zero_do_not_drown_each_other() {
    let sights = [Sight::Prefill, Sight::Packed, Sight::Blind];
    check(sights.map(|sight| Case { sight, score: 400.0, contexts: vec![(300, 20)], ..Case::default() }));
}

/// Caps that scores hardly reach, that squash them, and at which they all stand.
const CAPS: [(f32, f32); 3] = [(50.0, 4.0), (3.0, 6.0), (50.0, 4000.0)];

#[test]
fn scores_are_capped_before_what_a_row_does_not_see_is_left_out() {
    let case = Case { contexts: vec![(150, 20), (64, 5)], ..Case::default() };
    let few = Case { entry: "attend_short", contexts: vec![(150, 9), (64, 5), (400, 1)], ..Case::default() };
    check([case, few].into_iter().flat_map(|case| {
        SIGHTS.into_iter().zip(CAPS.into_iter().cycle()).map(move |(sight, (cap, score))| Case {
            sight,
            score,
            cap: Some(cap),
            ..case.clone()
        })
    }));
}

#[test]
fn scores_are_capped_in_every_head_size_and_type() {
    let sizes = HEAD_DIMS.into_iter().zip(CAPS.into_iter().cycle());
    check(sizes.flat_map(|(head_dim, (cap, score))| {
        ["attend_rows", "attend_short"].into_iter().zip(HALVES).map(move |(entry, dtype)| Case {
            dtype,
            head_dim,
            entry,
            score,
            cap: Some(cap),
            contexts: vec![(300, 5)],
            splits: 3,
            ..Case::default()
        })
    }));
    check(["attend_rows", "attend_short"].into_iter().zip(CAPS).map(|(entry, (cap, score))| Case {
        dtype: Type::F32,
        head_dim: 66,
        entry,
        score,
        cap: Some(cap),
        splits: 2,
        unseen: Unseen::Infinite,
        ..Case::default()
    }));
}

#[test]
fn the_mass_of_slots_is_that_of_capped_scores() {
    let types = HALVES.into_iter().chain([Type::F32]);
    check_mass(types.flat_map(|dtype| {
        HEAD_DIMS.into_iter().zip(CAPS.into_iter().cycle()).map(move |(head_dim, (cap, score))| Case {
            dtype,
            head_dim,
            score,
            cap: Some(cap),
            contexts: vec![(129, if dtype == Type::F32 { 20 } else { 80 })],
            ..Case::default()
        })
    }));
}

#[test]
fn what_stands_in_slots_that_nobody_sees_changes_nothing() {
    let unseen = [Unseen::Nan, Unseen::Infinite, Unseen::Large];
    check(unseen.into_iter().flat_map(|unseen| {
        [64, 80, 256].map(|head_dim| Case {
            unseen,
            head_dim,
            dtype: Type::F16,
            entry: if head_dim == 80 { "attend_short" } else { "attend_rows" },
            contexts: vec![(70, 20)],
            sight: Sight::Window,
            ..Case::default()
        })
    }));
}

/// The bank conflicts of a case's tiles: what more slots add to them.
fn bank_conflicts_of_tiles(case: &Case) -> u64 {
    let run = |slots| {
        let case = Case { contexts: vec![(slots, 40)], sight: Sight::Prefill, ..case.clone() };
        attend(&case, case.kernels(), SCHEDULES[0]).unwrap_or_else(|error| panic!("{case:?}: {error}"))
    };
    run(5 * BLOCK).bank_conflicts - run(3 * BLOCK).bank_conflicts
}

#[test]
fn tiles_are_read_from_shared_memory_without_bank_conflicts() {
    for (head_dim, entry) in HEAD_DIMS.into_iter().flat_map(|size| [(size, "attend_rows"), (size, "attend_short")]) {
        let case = Case { head_dim, entry, ..Case::default() };
        assert_eq!(bank_conflicts_of_tiles(&case), 0, "{case:?}");
    }
}

#[test]
fn few_rows_attend_to_what_each_of_them_sees() {
    let case = Case { entry: "attend_short", contexts: vec![(150, 9), (64, 5), (400, 1)], ..Case::default() };
    check(SIGHTS.map(|sight| Case { sight, ..case.clone() }));
}

#[test]
fn few_rows_attend_in_every_head_size_and_type() {
    check(HEAD_DIMS.into_iter().flat_map(|head_dim| {
        HALVES.map(|dtype| Case { dtype, head_dim, entry: "attend_short", contexts: vec![(500, 3)], ..Case::default() })
    }));
}

#[test]
fn few_rows_attend_in_groups_of_any_size() {
    check([1, 2, 3, 4, 7, 8, 16, 17, 40].map(|group| Case {
        group,
        kv_heads: 1 + group % 3,
        entry: "attend_short",
        contexts: vec![(129, 3)],
        ..Case::default()
    }));
}

#[test]
fn splits_of_a_context_are_merged() {
    let splits = [2, 3, 5, 9, 40];
    check(splits.into_iter().zip(HEAD_DIMS).flat_map(|(splits, head_dim)| {
        ["attend_rows", "attend_short"].map(|entry| Case {
            splits,
            head_dim,
            group: splits,
            entry,
            contexts: vec![(300, 3)],
            sight: SIGHTS[splits as usize % SIGHTS.len()],
            score: 20.0,
            ..Case::default()
        })
    }));
}

#[test]
fn the_mass_of_slots_is_what_rows_attend_to_them() {
    check_mass(SIGHTS.into_iter().zip([1, 2, 3, 4, 7, 8, 5]).map(|(sight, group)| Case {
        sight,
        group,
        kv_heads: 1 + group % 3,
        contexts: vec![(100 + 50 * group, 40)],
        ..Case::default()
    }));
    check_mass(HEAD_DIMS.into_iter().flat_map(|head_dim| {
        HALVES.map(|dtype| Case { dtype, head_dim, contexts: vec![(129, 80)], score: 100.0, ..Case::default() })
    }));
}

#[test]
fn exact_kernels_attend_in_any_even_head_size() {
    let sizes = [2, 6, 20, 64, 66, 128, 130, 256];
    check(sizes.into_iter().zip([1, 2, 3, 4, 7, 8, 17, 40]).map(|(head_dim, group)| Case {
        dtype: Type::F32,
        head_dim,
        group,
        kv_heads: 1 + group % 3,
        entry: if group % 2 == 0 { "attend_rows" } else { "attend_short" },
        contexts: vec![(130, 9), (64, 3)],
        sight: SIGHTS[group as usize % SIGHTS.len()],
        splits: 1 + group % 3,
        unseen: [Unseen::Nan, Unseen::Infinite][group as usize % 2],
        ..Case::default()
    }));
    check_mass(sizes.map(|head_dim| Case { dtype: Type::F32, head_dim, contexts: vec![(129, 41)], ..Case::default() }));
}

#[test]
fn what_a_row_yields_depends_on_no_row_beside_it() {
    for (entry, dtype, head_dim) in [
        ("attend_rows", Type::Bf16, 64),
        ("attend_rows", Type::F16, 256),
        ("attend_short", Type::Bf16, 80),
        ("attend_rows", Type::F32, 20),
    ] {
        for sight in [Sight::Packed, Sight::Window] {
            let contexts = vec![(300, 12)];
            let case = Case { entry, dtype, head_dim, sight, contexts, score: 30.0, ..Case::default() };
            let problem = Problem::new(&case);
            let [alone, together] = [1, case.capacity()].map(|capacity| {
                let plan = Plan::new(&case, &problem, capacity);
                launch(&case, &problem, &plan, case.kernels(), SCHEDULES[capacity % 3]).unwrap()
            });
            assert!(alone.out == together.out && alone.lse == together.lse, "{case:?}");
        }
    }
}

/// Every sight, group and fill, with all else drawn at random.
fn sweep(entry: &'static str, head_dims: &[u32], dtypes: &[Type]) {
    let mut cases = Vec::new();
    let mut random = Random::new(7);
    for &head_dim in head_dims {
        for &dtype in dtypes {
            for sight in SIGHTS {
                for group in [1, 2, 3, 4, 7, 8] {
                    for (length, count) in
                        [(1, 1), (63, 15), (64, 16), (65, 17), (200, 63), (321, 64), (400, 65), (129, 100)]
                    {
                        cases.push(Case {
                            dtype,
                            head_dim,
                            kv_heads: 1 + random.below(3),
                            group,
                            entry,
                            contexts: vec![(length, count), (1 + random.below(100), 1 + random.below(9))],
                            sight,
                            splits: [1, 1, 2, 5][random.below(4) as usize],
                            score: [0.1, 4.0, 50.0, 400.0][random.below(4) as usize],
                            cap: [None, None, Some(3.0), Some(50.0)][random.below(4) as usize],
                            unseen: [Unseen::Nan, Unseen::Infinite, Unseen::Large][random.below(3) as usize],
                            with_lse: random.below(4) > 0,
                            seed: random.next(),
                        });
                    }
                }
            }
        }
    }
    cases.retain(|case| case.sight != Sight::Prefill || case.contexts.iter().all(|(length, count)| count <= length));
    check(cases);
}

#[test]
#[ignore = "takes minutes: every sight, group and fill"]
fn many_rows_attend_rightly_in_a_wide_sweep() {
    sweep("attend_rows", &HEAD_DIMS, &HALVES);
}

#[test]
#[ignore = "takes minutes: every sight, group and fill"]
fn exact_kernels_attend_rightly_in_a_wide_sweep() {
    sweep("attend_rows", &[2, 20, 64, 130, 256], &[Type::F32]);
}

#[test]
#[ignore = "takes minutes: every sight, group and fill"]
fn few_rows_attend_rightly_in_a_wide_sweep() {
    sweep("attend_short", &HEAD_DIMS, &HALVES);
}

/// Small cases that between them need every instruction of a kernel of one module, as far as deleting it can be noticed.
fn probes(dtype: Type, head_dim: u32, entry: &'static str) -> Vec<Case> {
    let case = Case { dtype, head_dim, entry, kv_heads: 3, ..Case::default() };
    let rows = if entry == "attend_rows" { 60 } else { 9 };
    vec![
        Case { sight: Sight::Prefill, contexts: vec![(333, rows), (70, 1)], ..case.clone() },
        Case { sight: Sight::Packed, contexts: vec![(433, rows)], splits: 2, unseen: Unseen::Infinite, ..case.clone() },
        Case { sight: Sight::Blind, contexts: vec![(65, rows)], group: 7, with_lse: false, ..case.clone() },
        Case { sight: Sight::Prefill, contexts: vec![(300, rows)], group: 1, score: 400.0, ..case.clone() },
        Case { sight: Sight::Window, contexts: vec![(400, rows)], score: 400.0, splits: 3, ..case.clone() },
        Case { sight: Sight::Apart, contexts: vec![(800, rows)], kv_heads: 1, ..case.clone() },
        Case { sight: Sight::Prefill, contexts: vec![(333, rows)], score: 6.0, cap: Some(3.0), ..case.clone() },
        Case { group: 17, contexts: vec![(70, 3)], cap: Some(3.0), ..case.clone() },
        Case { sight: Sight::Blind, contexts: vec![(9, 1)], ..case.clone() },
        Case { contexts: vec![(300, 4)], splits: 5, ..case.clone() },
        Case { sight: Sight::Whole, contexts: vec![(40 * BLOCK, 1)], splits: 40, unseen: Unseen::Infinite, ..case },
    ]
}

/// A kernel, and what finds out whether a version of it is right.
pub(crate) type Subject = (&'static Kernel, Box<dyn Fn(&Kernel) -> Result<(), String>>);

/// The kernels of one module with their probes.
pub(crate) fn subjects(dtype: Type, head_dim: u32) -> Vec<Subject> {
    let module = Case { dtype, head_dim, ..Case::default() }.module();
    let get = |entry| kernel(&module, entry);
    let mut subjects: Vec<Subject> = Vec::new();
    for entry in ["attend_rows", "attend_short"] {
        subjects.push((
            get(entry),
            Box::new(move |attend| {
                let cases = probes(dtype, head_dim, entry);
                cases.iter().zip(SCHEDULES.iter().cycle()).try_for_each(|(case, &schedule)| {
                    self::attend(case, Kernels { attend, ..case.kernels() }, schedule).map(drop)
                })
            }),
        ));
    }
    subjects.push((
        get("combine"),
        Box::new(move |combine| {
            probes(dtype, head_dim, "attend_short").iter().filter(|case| case.splits > 1).try_for_each(|case| {
                attend(case, Kernels { combine: Some(combine), ..case.kernels() }, SCHEDULES[0]).map(drop)
            })
        }),
    ));
    let masses = [(0, "attention_mass", None), (0, "attention_mass_capped", Some(3.0)), (1, "mass_sum", None)];
    for (index, entry, cap) in masses {
        subjects.push((
            get(entry),
            Box::new(move |kernel| {
                let mut cases = probes(dtype, head_dim, "attend_rows");
                cases.truncate(6);
                let contexts = |case: &Case| vec![(case.contexts[0].0, 120)];
                cases.iter_mut().for_each(|case| (case.contexts, case.cap) = (contexts(case), cap));
                let mut kernels: [&Kernel; 2] = cases[0].mass_kernels();
                kernels[index] = kernel;
                cases
                    .iter()
                    .zip(SCHEDULES.iter().cycle())
                    .try_for_each(|(case, &schedule)| mass(case, kernels, schedule))
            }),
        ));
    }
    subjects
}
