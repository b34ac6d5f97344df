//! What every [`Backend`] promises.

use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use super::reference::Reference;
use crate::transformer::{
    Activation, Attention, AttentionWeights, Backend, ExpertWeights, LayerNorm, Linear, MlpWeights, Placement, Qkv,
    Rope, Row, Span, WeightRole, WeightTensor,
};
use crate::{ChunkId, Dtype, Encoding, Error, Exactness, HostKv, KvChunk, KvShape, PrefixId, Result};

/// What a backend can do, as far as the suite has to know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Profile {
    /// How far a kernel may be from the same arithmetic in f64, relative to one plus the magnitude of the number.
    pub tolerance: f64,
    /// Numbers in a head that it has kernels for.
    pub head_dims: Vec<usize>,
    /// Number types of weights that it takes.
    pub weights: Vec<Dtype>,
    /// Number types of KV caches that it has.
    pub caches: Vec<Dtype>,
    /// What the inputs and outputs of matrices have to be multiples of.
    pub alignment: usize,
    /// How far an embedding's numbers may be from those in the file: more than nothing where they are kept in fewer bits.
    pub embedding: f64,
    /// How far activations may be from what was uploaded: more than nothing where they are kept in fewer bits.
    pub activations: f64,
}

impl Default for Profile {
    fn default() -> Self {
        let all = vec![Dtype::F32, Dtype::F16, Dtype::Bf16];
        Self {
            tolerance: 5e-5,
            head_dims: vec![2, 16, 20, 64],
            weights: all.clone(),
            caches: all,
            alignment: 1,
            embedding: 0.0,
            activations: 0.0,
        }
    }
}

/// Checks a backend against the promises of [`Backend`]: every kernel, over sizes that fit no register, against plain
/// loops in f64; fused methods against what they are made of; and the two laws, as exactly as the backend's
/// [numerics](Backend::numerics) say. `make` gives a backend.
///
/// # Panics
/// With a list of all cases that failed.
pub fn backend<B: Backend>(profile: &Profile, make: impl Fn() -> B) {
    let mut suite = Suite { backend: Arc::new(make()), profile: profile.clone(), failures: Vec::new() };
    let checks: [(&str, Check<B>); 13] = [
        ("weights", Suite::weights_are_read_as_they_are),
        ("rows", Suite::rows_are_gathered_and_joined),
        ("elements", Suite::elements_meet_their_counterparts),
        ("linear", Suite::products_are_those_of_plain_loops),
        ("rotate", Suite::heads_turn_with_their_position),
        ("attention", Suite::attention_is_that_of_plain_loops),
        ("bidirectional", Suite::rows_may_see_what_comes_after_them),
        ("scores", Suite::scores_may_be_far_from_zero),
        ("heaviest", Suite::the_heaviest_slots_are_chosen),
        ("fused", Suite::fused_methods_are_what_they_are_made_of),
        ("experts", Suite::rows_go_through_the_experts_that_they_choose),
        ("positions", Suite::only_differences_of_positions_count),
        ("laws", Suite::where_and_beside_what_a_row_stands_changes_nothing),
    ];
    for (name, check) in checks {
        if let Err(error) = check(&mut suite) {
            suite.failures.push(format!("{name}: {error}"));
        }
    }
    let failures = suite.failures;
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

type Check<B> = fn(&mut Suite<B>) -> Result<()>;

struct Suite<B> {
    backend: Arc<B>,
    profile: Profile,
    failures: Vec<String>,
}

/// Numbers on the host, in rows.
#[derive(Clone)]
struct Table {
    columns: usize,
    data: Vec<f32>,
}

impl Table {
    /// Noise between -1 and 1 that is different for each `seed`.
    fn noise(seed: u64, rows: usize, columns: usize) -> Self {
        let number = |index: u64| {
            // SplitMix64, Sebastiano Vigna's mixer of a counter.
            let mut z = (seed << 32 | index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        Self { columns, data: (0..(rows * columns) as u64).map(number).collect() }
    }

    fn rows(&self) -> usize {
        self.data.len() / self.columns
    }

    fn gather(&self, rows: &[usize]) -> Self {
        let row = |&row: &usize| &self.data[row * self.columns..(row + 1) * self.columns];
        Self { columns: self.columns, data: rows.iter().flat_map(row).copied().collect() }
    }

    fn scaled(mut self, factor: f32) -> Self {
        self.data.iter_mut().for_each(|x| *x *= factor);
        self
    }

    fn on<B: Backend>(&self, backend: &B) -> Result<B::Tensor> {
        backend.upload(self.columns, &self.data)
    }

    fn matrix<B: Backend>(&self, backend: &B, role: WeightRole, dtype: Dtype) -> Result<B::Matrix> {
        let mut bytes = Vec::new();
        dtype.encode(&self.data, &mut bytes);
        backend.matrix(&WeightTensor::new(role, dtype, self.rows(), self.columns, &bytes))
    }

    fn vector<B: Backend>(&self, backend: &B) -> Result<B::Vector> {
        backend.vector(&self.data)
    }

    /// A layer norm of these weights and biases.
    fn layer_norm<B: Backend>(&self, bias: &Self, eps: f32, backend: &B) -> Result<LayerNorm<B>> {
        LayerNorm::new(backend, self.data.clone(), bias.data.clone(), eps)
    }

    fn moved(mut self, by: f32) -> Self {
        self.data.iter_mut().for_each(|x| *x += by);
        self
    }
}

/// Runs the same lines on a backend and on the [`Reference`], and notes the case if the numbers differ.
macro_rules! compare {
    ($suite:ident, $tolerance:expr, $case:expr, |$backend:ident| $body:expr) => {{
        let found = {
            let $backend = &*$suite.backend;
            $body?
        };
        let expected = {
            let $backend = &Reference;
            $body?
        };
        $suite.close($tolerance, $case, &found, &expected);
    }};
}

impl<B: Backend> Suite<B> {
    /// Notes a case whose numbers are further apart than they may be.
    fn close(&mut self, tolerance: f64, case: impl Display, found: &[f32], expected: &[f32]) {
        if found.len() != expected.len() {
            self.failures.push(format!("{case}: {} numbers instead of {}", found.len(), expected.len()));
            return;
        }
        let off = |(found, expected): (&f32, &f32)| {
            let (found, expected) = (f64::from(*found), f64::from(*expected));
            (found - expected).abs() / (1.0 + expected.abs())
        };
        // What is no number is as far off as can be.
        let far = |off: &f64| off.is_nan() || *off > tolerance;
        if let Some((index, off)) = found.iter().zip(expected).map(off).enumerate().find(|(_, off)| far(off)) {
            let (found, expected) = (found[index], expected[index]);
            self.failures.push(format!("{case}: number {index} is {found} instead of {expected}, off by {off:.1e}"));
        }
    }

    /// Notes a case whose numbers differ by more than the backend says they may from one pass to another.
    fn same(&mut self, case: impl Display, found: &[f32], expected: &[f32]) {
        match self.backend.numerics().exactness {
            Exactness::Within(tolerance) => self.close(tolerance.into(), case, found, expected),
            _ => {
                let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
                if found.len() != expected.len() || found.iter().zip(expected).any(differ) {
                    self.failures.push(format!("{case}: the bits differ"));
                }
            }
        }
    }

    /// What a number may be off by where the last step rounds to a type: neighbours may round apart.
    fn tolerance_of(&self, dtype: Dtype) -> f64 {
        self.profile.tolerance
            + match dtype {
                Dtype::F32 => 0.0,
                Dtype::F16 => 1e-3,
                Dtype::Bf16 => 8e-3,
            }
    }

    fn size(&self, size: usize) -> usize {
        size.next_multiple_of(self.profile.alignment.max(1))
    }

    fn weights_are_read_as_they_are(&mut self) -> Result<()> {
        for dtype in self.profile.weights.clone() {
            for (rows, columns) in [(1, 1), (33, 20), (70, 257)] {
                let (rows, columns) = (self.size(rows), self.size(columns));
                let table = Table::noise(1, rows, columns);
                let tokens = [rows - 1, 0, rows / 2, 0].map(|row| row as u32);
                let tolerance = self.profile.embedding + self.profile.activations;
                compare!(self, tolerance, format!("embed {dtype:?} {rows}×{columns}"), |b| {
                    b.read(&b.embed(&table.matrix(b, WeightRole::Embedding, dtype)?, &tokens)?)
                });
            }
            for (outputs, inputs, bytes) in [(2, 3, 5), (2, 3, 25), (usize::MAX, usize::MAX, 4)] {
                let bytes = vec![0; bytes];
                if self.backend.matrix(&WeightTensor::new(WeightRole::Up, dtype, outputs, inputs, &bytes)).is_ok() {
                    let case = format!("a matrix {dtype:?} {outputs}×{inputs} of {} bytes is accepted", bytes.len());
                    self.failures.push(case);
                }
            }
        }
        Ok(())
    }

    fn rows_are_gathered_and_joined(&mut self) -> Result<()> {
        let columns = self.size(7);
        let [x, y] = [Table::noise(2, 5, columns), Table::noise(3, 2, columns)];
        for rows in [&[4usize][..], &[0, 1, 2, 3, 4], &[3, 3, 0]] {
            compare!(self, self.profile.activations, format!("gather {rows:?}"), |b| b
                .read(&b.gather(&x.on(b)?, rows)?));
        }
        let of_tensor = self.backend.columns(&x.on(&*self.backend)?);
        if of_tensor != columns {
            self.failures.push(format!("columns: {of_tensor} numbers in a row of {columns}"));
        }
        let picked = [(4, 0.5), (0, -2.0), (0, 0.25), (2, 1.0), (1, 0.0), (3, 3.0)];
        for each in [1, 2, 3] {
            compare!(self, self.profile.tolerance, format!("sum_rows of {each} each"), |b| {
                b.read(&b.sum_rows(&x.on(b)?, &picked, each)?)
            });
            let backend = Arc::clone(&self.backend);
            let summed = |picked: &[(usize, f32)]| backend.read(&backend.sum_rows(&x.on(&*backend)?, picked, each)?);
            let by_one = picked.chunks(each).map(summed).collect::<Result<Vec<_>>>()?.concat();
            self.same(format!("sum_rows of {each} each at once and one by one"), &summed(&picked)?, &by_one);
        }
        compare!(self, self.profile.activations, "concat", |b| {
            let mut joined = x.on(b)?;
            b.concat(&mut joined, &y.on(b)?)?;
            b.read(&joined)
        });
        Ok(())
    }

    fn elements_meet_their_counterparts(&mut self) -> Result<()> {
        for (rows, heads, length) in [(1, 1, 1), (1, 1, 64), (3, 4, 20), (5, 7, 2), (2, 1, 257)] {
            let length = self.size(length);
            for eps in [1e-5, 0.1] {
                let (x, weight) = (Table::noise(4, rows, heads * length), Table::noise(5, 1, length));
                compare!(self, self.profile.tolerance, format!("rms_norm {rows}×{heads}×{length}"), |b| {
                    b.read(&b.rms_norm(&x.on(b)?, &weight.vector(b)?, eps)?)
                });
            }
        }
        for (rows, columns) in [(1, 1), (1, 64), (5, 20), (3, 384), (2, 257)] {
            let columns = self.size(columns);
            let [weight, bias] = [12, 13].map(|seed| Table::noise(seed, 1, columns));
            for (eps, mean) in [(1e-5, 0.0), (1e-5, 3.0), (0.1, -2.0)] {
                let x = Table::noise(14, rows, columns).moved(mean);
                compare!(self, self.profile.tolerance, format!("layer_norm {rows}×{columns} about {mean}"), |b| {
                    b.read(&b.layer_norm(&x.on(b)?, &weight.layer_norm(&bias, eps, b)?)?)
                });
            }
        }
        for (rows, columns) in [(1, 1), (3, 33), (2, 257)] {
            let columns = self.size(columns);
            let [x, y] = [Table::noise(9, rows, columns), Table::noise(10, rows, columns)];
            compare!(self, 1e-7 + self.profile.activations, format!("add {rows}×{columns}"), |b| {
                let mut sum = x.on(b)?;
                b.add(&mut sum, &y.on(b)?)?;
                b.read(&sum)
            });
            for factor in [1.0, 0.3] {
                let sums = Table::noise(11, rows, 1);
                compare!(self, self.profile.tolerance, format!("add_row_distance {rows}×{columns}"), |b| {
                    let mut sums = sums.on(b)?;
                    // Activations as kernels hand them to each other, and others.
                    b.add_row_distance(&x.on(b)?, &b.silu_mul(&y.on(b)?, &y.on(b)?)?, factor, &mut sums)?;
                    b.read(&sums)
                });
            }
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let tolerance = self.tolerance_of(dtype);
                compare!(self, tolerance, format!("read_as {dtype:?} {rows}×{columns}"), |b| {
                    let bytes = b.read_as(&b.silu_mul(&x.on(b)?, &y.on(b)?)?, dtype)?;
                    let mut numbers = vec![0.0; bytes.len() / dtype.size()];
                    dtype.decode(&bytes, &mut numbers);
                    Ok::<_, crate::Error>(numbers)
                });
            }
            // As far out as an exponential goes, and further.
            let x = x.scaled(120.0);
            compare!(self, self.profile.tolerance, format!("silu_mul {rows}×{columns}"), |b| {
                b.read(&b.silu_mul(&x.on(b)?, &y.on(b)?)?)
            });
            for x in [&x, &y, &y.clone().scaled(5.0)] {
                compare!(self, self.profile.tolerance, format!("gelu {rows}×{columns}"), |b| {
                    let mut x = x.on(b)?;
                    b.gelu(&mut x)?;
                    b.read(&x)
                });
                compare!(self, self.profile.tolerance, format!("gelu_mul {rows}×{columns}"), |b| {
                    b.read(&b.gelu_mul(&x.on(b)?, &y.on(b)?)?)
                });
                compare!(self, self.profile.tolerance, format!("soft_cap {rows}×{columns}"), |b| {
                    let mut capped = x.on(b)?;
                    b.soft_cap(&mut capped, 30.0)?;
                    b.read(&capped)
                });
                compare!(self, self.profile.tolerance, format!("scale {rows}×{columns}"), |b| {
                    let mut scaled = x.on(b)?;
                    b.scale(&mut scaled, 0.3)?;
                    b.read(&scaled)
                });
            }
        }
        Ok(())
    }

    fn products_are_those_of_plain_loops(&mut self) -> Result<()> {
        for dtype in self.profile.weights.clone() {
            for rows in [1, 2, 7, 13, 33] {
                for (outputs, inputs) in [(1, 1), (31, 20), (33, 257), (64, 48), (101, 3)] {
                    let (outputs, inputs) = (self.size(outputs), self.size(inputs));
                    let case = format!("linear {dtype:?} {rows} rows {outputs}×{inputs}");
                    let (x, w) = (Table::noise(6, rows, inputs), Table::noise(7, outputs, inputs));
                    let bias = Table::noise(8, 1, outputs);
                    compare!(self, self.profile.tolerance, &case, |b| {
                        b.read(&b.linear(&x.on(b)?, &w.matrix(b, WeightRole::Gate, dtype)?, None)?)
                    });
                    compare!(self, self.profile.tolerance, format!("{case}, bias"), |b| {
                        b.read(&b.linear(&x.on(b)?, &w.matrix(b, WeightRole::Gate, dtype)?, Some(&bias.vector(b)?))?)
                    });
                }
            }
        }
        Ok(())
    }

    fn heads_turn_with_their_position(&mut self) -> Result<()> {
        let positions = [0, 1, 77, 1000, 100_000];
        for head_dim in self.profile.head_dims.clone() {
            for heads in [1, 3] {
                let x = Table::noise(11, positions.len(), heads * head_dim);
                let mut rope = Rope { attention_factor: 1.25, ..Rope::plain(10_000.0, head_dim) };
                let rows: Vec<Row> =
                    (0..).zip(positions).map(|(slot, position)| row(0, slot, position, 0..0, 0)).collect();
                for turning in [head_dim / 2, head_dim / 4, 0] {
                    // Pairs of frequency 0 stay, and are not stretched by the factor.
                    rope.inverse_frequencies.iter_mut().skip(turning).for_each(|frequency| *frequency = 0.0);
                    let case = format!("rotate {turning} pairs of {heads} heads of {head_dim}");
                    compare!(self, self.profile.tolerance, case, |b| {
                        let mut turned = x.on(b)?;
                        b.rotate(&mut turned, &b.plan(&rope, &rows, &[&table(b, 5, 0)])?)?;
                        b.read(&turned)
                    });
                }
            }
        }
        Ok(())
    }

    fn attention_is_that_of_plain_loops(&mut self) -> Result<()> {
        for dtype in self.profile.caches.clone() {
            for head_dim in self.profile.head_dims.clone() {
                for (kv_heads, group) in [(1, 1), (2, 2), (3, 1), (1, 4), (2, 7)] {
                    let shape = KvShape { layers: 2, kv_heads, head_dim };
                    let case = format!("{} heads on {kv_heads} of {head_dim}, {dtype:?}", group * kv_heads);
                    let tolerance = self.tolerance_of(dtype);
                    let plain = |layer| Attention::new(layer, head_dim);
                    compare!(self, tolerance, &case, |b| attention(b, (shape, dtype, group), plain));
                    let capped = |layer| plain(layer).scale(0.9).soft_cap(Some(1.5));
                    match self.backend.check_attention(&capped(0)) {
                        Ok(()) => compare!(self, tolerance, format!("{case}, scaled and capped"), |b| {
                            attention(b, (shape, dtype, group), capped)
                        }),
                        Err(Error::UnsupportedModel { .. }) => {
                            let scaled = |layer| plain(layer).scale(0.9);
                            compare!(self, tolerance, format!("{case}, scaled"), |b| {
                                attention(b, (shape, dtype, group), scaled)
                            });
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }

    /// Texts side by side, each of whose rows sees all of its text, as in an encoder, and one whose rows see what stands
    /// before them.
    fn rows_may_see_what_comes_after_them(&mut self) -> Result<()> {
        const TEXTS: [u32; 5] = [1, 18, 75, 6, 140];
        const CAUSAL: usize = 3;
        let Some(&dtype) = self.profile.caches.first() else { return Ok(()) };
        let mut rows = Vec::new();
        for (index, tokens) in TEXTS.into_iter().enumerate() {
            let first: u32 = TEXTS[..index].iter().sum();
            let end = |slot: u32| if index == CAUSAL { slot + 1 } else { first + tokens };
            rows.extend((first..first + tokens).map(|slot| Row {
                token: 0,
                context: 0,
                slot,
                position: slot - first,
                sees: Span { shared: 0..0, own: first..end(slot) },
            }));
        }
        for head_dim in self.profile.head_dims.clone() {
            let shape = KvShape { layers: 1, kv_heads: 2, head_dim };
            for group in [1, 3] {
                let case = format!("texts in both directions, {} heads on 2 of {head_dim}", 2 * group);
                let [keys, values] = [130, 131].map(|seed| Table::noise(seed, rows.len(), shape.row()));
                let queries = Table::noise(132, rows.len(), group * shape.row());
                let cached = |rope| Cached::new(&*self.backend, shape, dtype, rope);
                let mut cache = cached(Rope::plain(10_000.0, head_dim))?;
                let found = cache.written_and_attended(&rows, [&keys, &values, &queries])?;
                let some: Vec<usize> = (0..rows.len()).step_by(23).collect();
                let by_one = some.iter().map(|&row| cache.attended(&rows[row..row + 1], &queries.gather(&[row])));
                let by_one = by_one.collect::<Result<Vec<_>>>()?.concat();
                let at_once = Table { columns: queries.columns, data: found.clone() }.gather(&some);

                let mut reference = Cached::new(&Reference, shape, dtype, Rope::plain(10_000.0, head_dim))?;
                let expected = reference.written_and_attended(&rows, [&keys, &values, &queries])?;
                self.close(self.tolerance_of(dtype), &case, &found, &expected);
                self.same(format!("{case}, at once and one by one"), &by_one, &at_once.data);
            }
        }
        Ok(())
    }

    /// Scores whose exponentials no f32 holds. Whatever the weights are, a row gets a mean of the values that it sees.
    fn scores_may_be_far_from_zero(&mut self) -> Result<()> {
        let Some(&dtype) = self.profile.caches.first() else { return Ok(()) };
        for head_dim in self.profile.head_dims.clone() {
            let shape = KvShape { layers: 1, kv_heads: 2, head_dim };
            let [keys, values] = [63, 64].map(|seed| Table::noise(seed, 30, shape.row()));
            let queries = Table::noise(65, 30, shape.row()).scaled(400.0);
            let rows: Vec<Row> = (0..30).map(|slot| row(0, slot, slot, 0..0, 0)).collect();
            let backend = Arc::clone(&self.backend);
            let mut cache = Cached::new(&*backend, shape, dtype, Rope::plain(10_000.0, head_dim))?;
            let attended = cache.written_and_attended(&rows, [&keys, &values, &queries])?;
            let tolerance = self.tolerance_of(dtype) as f32;
            let is_mean = |(index, mean): (usize, &f32)| {
                let (row, column) = (index / shape.row(), index % shape.row());
                let seen = || (0..=row).map(|row| values.data[row * shape.row() + column]);
                let (low, high) = (seen().fold(f32::INFINITY, f32::min), seen().fold(f32::NEG_INFINITY, f32::max));
                (low - tolerance..=high + tolerance).contains(mean)
            };
            if !attended.iter().enumerate().all(is_mean) {
                self.failures.push(format!("scores far from zero, heads of {head_dim}: what comes of them is no mean"));
            }
        }
        Ok(())
    }

    /// Whatever chooses, the same slots are chosen: the numbers here are sums of powers of two, which no machine rounds.
    fn the_heaviest_slots_are_chosen(&mut self) -> Result<()> {
        let noise = |seed: u64, count: usize| Table::noise(seed, 1, count).data.into_iter().map(|x| (8.0 * x).floor());
        for slots in [1usize, 5, 64, 3001] {
            let mass: Vec<f32> = noise(120, slots).map(|x| x / 4.0).collect();
            // Every third slot is no candidate, and the last stands behind all that was read.
            let candidates: Vec<u32> = (0..slots as u32 + 1).filter(|slot| slot % 3 != 1).collect();
            let factors: Vec<f32> = noise(121, candidates.len()).map(f32::abs).collect();
            let at = |slot: i64| usize::try_from(slot).ok().and_then(|slot| mass.get(slot)).copied().unwrap_or(0.0);
            for factors in [None, Some(&factors[..])] {
                let weight = |(index, &slot): (usize, &u32)| {
                    let slot = i64::from(slot);
                    let smoothed = at(slot) + (at(slot - 1) + at(slot + 1)) / 2.0;
                    (index, smoothed * factors.map_or(1.0, |factors| factors[index]))
                };
                let mut ranked: Vec<(usize, f32)> = candidates.iter().enumerate().map(weight).collect();
                ranked.retain(|(_, weight)| *weight > 0.0);
                ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                for count in [0, 1, candidates.len() / 10, candidates.len() / 2, candidates.len(), usize::MAX] {
                    let mut expected: Vec<usize> = ranked.iter().take(count).map(|(index, _)| *index).collect();
                    expected.sort_unstable();
                    let mass = self.backend.upload(slots, &mass)?;
                    let found = self.backend.heaviest(&mass, &candidates, factors, count)?;
                    if found != expected {
                        let factors = factors.map_or("no factors", |_| "factors");
                        self.failures.push(format!("the {count} heaviest of {slots} slots with {factors} are others"));
                    }
                }
            }
        }
        Ok(())
    }

    /// A backend may fuse these. Whatever it does, they come to what the other methods come to.
    fn fused_methods_are_what_they_are_made_of(&mut self) -> Result<()> {
        let head_dim = self.profile.head_dims.last().copied().unwrap_or(2);
        let (hidden, heads, kv_heads) = (self.size(24), 4, 2);
        let rope = Rope::plain(10_000.0, head_dim);
        let rows: Vec<Row> = (0..7).map(|slot| row(0, slot, slot, 0..0, 0)).collect();
        let x = Table::noise(60, rows.len(), hidden);
        let y = Table::noise(61, rows.len(), hidden);
        let (dtype, silu, gelu) = (Dtype::F32, Activation::Silu, Activation::GeluTanh);
        // Heads normed, all heads of a row normed together, none.
        for (normed, biased, activation) in [(None, true, silu), (Some(1), false, gelu), (Some(heads), false, silu)] {
            if !self.profile.weights.contains(&dtype) {
                continue;
            }
            let backend = &*self.backend;
            let linear = |seed: u64, outputs: usize, inputs: usize, biased: bool| -> Result<Linear<B>> {
                let weight = Table::noise(seed, outputs, inputs).matrix(backend, WeightRole::Gate, dtype)?;
                let bias = biased.then(|| Table::noise(seed + 1, 1, outputs).vector(backend)).transpose()?;
                Ok(Linear { weight, bias })
            };
            let norm = |seed, heads: usize| {
                let length = normed.map(|normed| head_dim * heads.min(normed));
                length.map(|length| Table::noise(seed, 1, length).vector(backend)).transpose()
            };
            let w = AttentionWeights {
                query: linear(70, heads * head_dim, hidden, biased)?,
                key: linear(72, kv_heads * head_dim, hidden, biased)?,
                value: linear(74, kv_heads * head_dim, hidden, biased)?,
                query_norm: norm(76, heads)?,
                key_norm: norm(77, kv_heads)?,
                output: linear(78, hidden, heads * head_dim, biased)?,
                norm_eps: 1e-5,
            };
            let plan = backend.plan(&rope, &rows, &[&table(backend, 7, 0)])?;
            let x = x.on(backend)?;
            let fused = backend.qkv(&x, &w, &plan)?;
            let made = |linear: &Linear<B>, norm: Option<&B::Vector>| {
                let made = backend.linear(&x, &linear.weight, linear.bias.as_ref())?;
                if let Some(norm) = norm { backend.rms_norm(&made, norm, w.norm_eps) } else { Ok(made) }
            };
            let mut queries = made(&w.query, w.query_norm.as_ref())?;
            backend.rotate(&mut queries, &plan)?;
            let (keys, values) = (made(&w.key, w.key_norm.as_ref())?, made(&w.value, None)?);
            let pairs = [(fused.queries, queries), (fused.keys, keys), (fused.values, values)];
            let read = |(fused, made)| Ok((backend.read(&fused)?, backend.read(&made)?));
            let pairs = pairs.map(read).into_iter().collect::<Result<Vec<_>>>()?;

            let mlp = MlpWeights {
                activation,
                gate: linear(80, self.size(40), hidden, biased)?,
                up: linear(82, self.size(40), hidden, biased)?,
                down: linear(84, hidden, self.size(40), biased)?,
            };
            let apply = |x: &B::Tensor, l: &Linear<B>| backend.linear(x, &l.weight, l.bias.as_ref());
            let (gate, up) = (apply(&x, &mlp.gate)?, apply(&x, &mlp.up)?);
            let gated =
                if activation == silu { backend.silu_mul(&gate, &up)? } else { backend.gelu_mul(&gate, &up)? };
            let made = backend.read(&apply(&gated, &mlp.down)?)?;
            let fused = backend.read(&backend.mlp(&x, &mlp)?)?;

            let mut by_one: [Vec<f32>; 4] = Default::default();
            for (index, row) in rows.iter().enumerate() {
                let x = backend.gather(&x, &[index])?;
                let row = [Row { context: 0, ..row.clone() }];
                let Qkv { queries, keys, values } =
                    backend.qkv(&x, &w, &backend.plan(&rope, &row, &[&table(backend, 7, 0)])?)?;
                for (all, one) in by_one.iter_mut().zip([queries, keys, values, backend.mlp(&x, &mlp)?]) {
                    all.extend(backend.read(&one)?);
                }
            }
            let at_once = [&pairs[0].0, &pairs[1].0, &pairs[2].0, &fused].map(Vec::clone);
            for (((at_once, by_one), name), of) in
                at_once.iter().zip(&by_one).zip(["queries", "keys", "values", ""]).zip(["qkv", "qkv", "qkv", "mlp"])
            {
                self.same(format!("{name} of {of} of {} rows at once and one by one", rows.len()), at_once, by_one);
            }

            let tolerance = self.profile.tolerance;
            for ((fused, made), name) in pairs.into_iter().zip(["queries", "keys", "values"]) {
                self.close(tolerance, format!("{name} of qkv"), &fused, &made);
            }
            self.close(tolerance, "mlp", &fused, &made);
        }
        let weight = Table::noise(62, 1, hidden);
        compare!(self, self.profile.tolerance, "add_rms_norm", |b| {
            let mut sum = x.on(b)?;
            let normed = b.add_rms_norm(&mut sum, &y.on(b)?, &weight.vector(b)?, 1e-5)?;
            Ok::<_, crate::Error>([b.read(&sum)?, b.read(&normed)?].concat())
        });
        let backend = Arc::clone(&self.backend);
        let normed = |x: &Table, y: &Table| {
            let weight = weight.vector(&*backend)?;
            backend.read(&backend.add_rms_norm(&mut x.on(&*backend)?, &y.on(&*backend)?, &weight, 1e-5)?)
        };
        let by_one = (0..rows.len()).map(|row| normed(&x.gather(&[row]), &y.gather(&[row])));
        let by_one = by_one.collect::<Result<Vec<_>>>()?.concat();
        self.same(format!("add_rms_norm of {} rows at once and one by one", rows.len()), &normed(&x, &y)?, &by_one);

        let bias = Table::noise(63, 1, hidden);
        compare!(self, self.profile.tolerance, "add_layer_norm", |b| {
            let mut sum = x.on(b)?;
            let normed = b.add_layer_norm(&mut sum, &y.on(b)?, &weight.layer_norm(&bias, 1e-5, b)?)?;
            Ok::<_, crate::Error>([b.read(&sum)?, b.read(&normed)?].concat())
        });
        let norm = weight.layer_norm(&bias, 1e-5, &*backend)?;
        let normed = |x: &Table, y: &Table| {
            backend.read(&backend.add_layer_norm(&mut x.on(&*backend)?, &y.on(&*backend)?, &norm)?)
        };
        let by_one = (0..rows.len()).map(|row| normed(&x.gather(&[row]), &y.gather(&[row])));
        let by_one = by_one.collect::<Result<Vec<_>>>()?.concat();
        self.same(format!("add_layer_norm of {} rows at once and one by one", rows.len()), &normed(&x, &y)?, &by_one);
        Ok(())
    }

    fn rows_go_through_the_experts_that_they_choose(&mut self) -> Result<()> {
        let (hidden, intermediate, dtype) = (self.size(24), self.size(40), self.profile.weights[0]);
        // Rows; experts, and how many of them are chosen; how far their scores are apart. Of equal scores the first count.
        let cases = [
            (1, 8, 2, 1.0),
            (5, 8, 2, 1.0),
            (8, 40, 8, 3.0),
            (8, 72, 1, 1.0),
            (3, 8, 8, 20.0),
            (2, 16, 3, 0.0),
            (19, 16, 4, 1.0),
            // More of an expert than a tile of a kernel has.
            (150, 2, 2, 1.0),
        ];
        for ((rows, experts, top_k, spread), norm_top_k) in cases.into_iter().flat_map(|c| [(c, true), (c, false)]) {
            let backend = Arc::clone(&self.backend);
            let backend = &*backend;
            let matrix = |role, seed: usize, outputs, inputs| {
                Table::noise(seed as u64, outputs, inputs).matrix(backend, role, dtype)
            };
            let linear = |role, seed: usize, outputs, inputs| {
                Ok::<_, Error>(Linear { weight: matrix(role, seed, outputs, inputs)?, bias: None })
            };
            let expert = |index: usize| {
                Ok(MlpWeights {
                    activation: Activation::Silu,
                    gate: linear(WeightRole::Gate, 200 + 3 * index, intermediate, hidden)?,
                    up: linear(WeightRole::Up, 201 + 3 * index, intermediate, hidden)?,
                    down: linear(WeightRole::Down, 202 + 3 * index, hidden, intermediate)?,
                })
            };
            let router = Table::noise(92, experts, hidden).scaled(spread).matrix(backend, WeightRole::Router, dtype)?;
            let w =
                ExpertWeights { router, experts: (0..experts).map(expert).collect::<Result<_>>()?, top_k, norm_top_k };
            let x = Table::noise(93, rows, hidden);
            let of = |x: &Table| backend.read(&backend.experts(&x.on(backend)?, &w)?);
            let found = of(&x)?;
            let case = format!("{top_k} of {experts} experts, norm_top_k: {norm_top_k}, scores up to {spread} apart");
            let by_one = (0..rows).map(|row| of(&x.gather(&[row]))).collect::<Result<Vec<_>>>()?.concat();
            self.same(format!("{case}: {rows} rows at once and one by one"), &found, &by_one);

            let on = x.on(backend)?;
            let scores = backend.read(&backend.linear(&on, &w.router, None)?)?;
            let all: Vec<Vec<f32>> =
                w.experts.iter().map(|w| backend.read(&backend.mlp(&on, w)?)).collect::<Result<_>>()?;
            let mut expected = Vec::new();
            for (row, scores) in scores.chunks_exact(experts).enumerate() {
                let mut ranked: Vec<usize> = (0..experts).collect();
                ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
                let share = |expert: &usize| (f64::from(scores[*expert]) - f64::from(scores[ranked[0]])).exp();
                let counted = if norm_top_k { top_k } else { experts };
                let total: f64 = ranked[..counted].iter().map(share).sum();
                let of = |expert: usize, at| f64::from(all[expert].get(at).copied().unwrap_or(f32::NAN));
                expected.extend((row * hidden..(row + 1) * hidden).map(|at| {
                    let terms = ranked[..top_k].iter().map(|expert| share(expert) / total * of(*expert, at));
                    terms.sum::<f64>() as f32
                }));
            }
            self.close(self.profile.tolerance, format!("{case}, {rows} rows"), &found, &expected);
        }
        Ok(())
    }

    /// Rows that stand behind a shared beginning and side by side, as in packed prefill, and the same rows in a context
    /// of their own, loaded from a chunk or written.
    fn where_and_beside_what_a_row_stands_changes_nothing(&mut self) -> Result<()> {
        for dtype in self.profile.caches.clone() {
            for (head_dim, group) in self.profile.head_dims.clone().into_iter().zip([7, 1, 2, 4]) {
                self.laws(KvShape { layers: 1, kv_heads: 2, head_dim }, dtype, group)?;
            }
        }
        let (inputs, outputs) = (self.size(70), self.size(45));
        for rows in [2, 9] {
            let (x, w) = (Table::noise(30, rows, inputs), Table::noise(31, outputs, inputs));
            let matrix = w.matrix(&*self.backend, WeightRole::Gate, self.profile.weights[0])?;
            let weight = Table::noise(32, 1, inputs).vector(&*self.backend)?;
            let pipe = |x: &Table| {
                let normed = self.backend.rms_norm(&x.on(&*self.backend)?, &weight, 1e-5)?;
                let y = self.backend.linear(&normed, &matrix, None)?;
                self.backend.read(&self.backend.silu_mul(&y, &y)?)
            };
            let together = pipe(&x)?;
            let alone = (0..rows).map(|row| pipe(&x.gather(&[row]))).collect::<Result<Vec<_>>>()?.concat();
            self.same(
                format!("rms_norm, linear and silu_mul of {rows} rows at once and one by one"),
                &together,
                &alone,
            );
        }
        Ok(())
    }

    fn laws(&mut self, shape: KvShape, dtype: Dtype, group: usize) -> Result<()> {
        const SHARED: u32 = 21;
        const TEXTS: [u32; 3] = [1, 18, 6];
        let case = format!("{} heads on {} of {}, {dtype:?}", group * shape.kv_heads, shape.kv_heads, shape.head_dim);
        let rope = Rope::plain(10_000.0, shape.head_dim);
        let count = (SHARED + TEXTS.iter().sum::<u32>()) as usize;
        let [keys, values] = [40, 41].map(|seed| Table::noise(seed, count, shape.row()));
        let queries = Table::noise(42, count, group * shape.row());

        // All texts behind one beginning. The numbers' order is that of the rows.
        let mut packed: Vec<Row> = (0..SHARED).map(|slot| row(0, slot, slot, 0..0, 0)).collect();
        let mut first = SHARED;
        for tokens in TEXTS {
            let slots = first..first + tokens;
            packed.extend(slots.map(|slot| row(0, slot, SHARED + slot - first, 0..SHARED, first)));
            first += tokens;
        }
        let backend = Arc::clone(&self.backend);
        let mut cache = Cached::new(&*backend, shape, dtype, rope)?;
        let together = cache.written_and_attended(&packed, [&keys, &values, &queries])?;
        let own = count - 1..count;
        let [moved, asked] = [Table::noise(43, count, shape.row()), queries.clone()];
        let [mass, distances] = cache.measured(&packed, own.clone(), [&moved, &asked])?;
        let [moved, asked] = [moved, asked].map(|table| table.gather(&own.clone().collect::<Vec<_>>()));
        let [mass_alone, distances_alone] = cache.measured(&packed[own.clone()], 0..own.len(), [&moved, &asked])?;
        self.same(format!("attention mass of rows in a pass of many and of their own, {case}"), &mass, &mass_alone);
        let distances = &distances[own];
        self.same(
            format!("key distance of rows in a pass of many and of their own, {case}"),
            distances,
            &distances_alone,
        );

        // Each text in a context of its own, whose beginning is loaded, beside others in the same cache.
        let width = group * shape.row();
        let mut first = SHARED as usize;
        for (context, tokens) in TEXTS.map(|tokens| tokens as usize).into_iter().enumerate() {
            let shared: Vec<usize> = (0..SHARED as usize).collect();
            let own: Vec<usize> = (first..first + tokens).collect();
            let beginning = chunk(shape, Encoding::Plain(dtype), &[[keys.gather(&shared), values.gather(&shared)]])?;
            cache.load(context, &[0], &beginning, 0, 0)?;
            let slots = SHARED..SHARED + tokens as u32;
            let rows: Vec<Row> = slots.map(|slot| row(context, slot, slot, 0..0, 0)).collect();
            let numbers = [&keys, &values, &queries].map(|table| table.gather(&own));
            let alone = cache.written_and_attended(&rows, numbers.each_ref())?;
            let expected = &together[first * width..(first + tokens) * width];
            let mut by_one = Vec::new();
            for (index, row) in rows.iter().enumerate() {
                let numbers = numbers.each_ref().map(|table| table.gather(&[index]));
                by_one.extend(cache.written_and_attended(std::slice::from_ref(row), numbers.each_ref())?);
            }
            // Another context that shares its blocks, until a block of it is copied and written over.
            let copied = cache.attended_in_a_copy(context, &rows, &numbers[2])?;
            let after = cache.attended(&rows, &numbers[2])?;
            self.same(format!("{tokens} rows packed and in a context of their own, {case}"), &alone, expected);
            self.same(format!("{tokens} rows at once and one by one, {case}"), &by_one, &alone);
            self.same(format!("{tokens} rows in a copy of their blocks, {case}"), &copied, &alone);
            self.same(format!("{tokens} rows after a copy was written over, {case}"), &after, &alone);
            first += tokens;
        }
        // Several contexts in one pass.
        let rows: Vec<Row> = (0..TEXTS.len()).map(|context| row(context, SHARED, SHARED, 0..0, 0)).collect();
        let asked = queries.gather(&(0..TEXTS.len()).collect::<Vec<_>>());
        let at_once = cache.attended(&rows, &asked)?;
        let alone = rows
            .iter()
            .enumerate()
            .map(|(index, row)| cache.attended(std::slice::from_ref(row), &asked.gather(&[index])));
        let alone = alone.collect::<Result<Vec<_>>>()?.concat();
        self.same(format!("rows of {} contexts in one pass, {case}", TEXTS.len()), &at_once, &alone);
        Ok(())
    }

    fn only_differences_of_positions_count(&mut self) -> Result<()> {
        let Some(&dtype) = self.profile.caches.first() else { return Ok(()) };
        for head_dim in self.profile.head_dims.clone() {
            let shape = KvShape { layers: 1, kv_heads: 2, head_dim };
            let rope = Rope::plain(10_000.0, head_dim);
            let numbers = [50, 51, 52].map(|seed| Table::noise(seed, 40, shape.row()));
            let at = |distance: u32| {
                let rows: Vec<Row> = (0..40).map(|slot| row(0, slot, slot + distance, 0..0, 0)).collect();
                let mut cache = Cached::new(&*self.backend, shape, dtype, rope.clone())?;
                cache.written_and_attended(&rows, numbers.each_ref())
            };
            let (here, there) = (at(0)?, at(1000)?);
            self.close(
                1e-3 + self.tolerance_of(dtype),
                format!("1000 positions on, heads of {head_dim}"),
                &there,
                &here,
            );
        }
        Ok(())
    }
}

fn row(context: usize, slot: u32, position: u32, shared: Range<u32>, from: u32) -> Row {
    Row { token: 0, context, slot, position, sees: Span { shared, own: from..slot + 1 } }
}

/// A block table for so many slots whose blocks stand in no order, different ones for each `context`.
fn table<B: Backend>(backend: &B, slots: usize, context: u32) -> Vec<u32> {
    let count = slots.div_ceil(backend.block_tokens()) as u32;
    (0..count).map(|index| 4 * (count - 1 - index) + context).collect()
}

/// Slots that a context of the suite may have.
const SLOTS: usize = 330;

/// A cache with some contexts in it.
struct Cached<'b, B: Backend> {
    backend: &'b B,
    shape: KvShape,
    rope: Rope,
    cache: B::Cache,
    tables: Vec<Vec<u32>>,
}

impl<'b, B: Backend> Cached<'b, B> {
    fn new(backend: &'b B, shape: KvShape, dtype: Dtype, rope: Rope) -> Result<Self> {
        let blocks = 4 * SLOTS.div_ceil(backend.block_tokens());
        let tables = (0..4).map(|context| table(backend, SLOTS, context)).collect();
        Ok(Self { backend, shape, rope, cache: backend.cache(&shape, dtype, blocks)?, tables })
    }

    fn plan(&self, rows: &[Row]) -> Result<B::Plan> {
        let tables: Vec<&[u32]> = self.tables.iter().map(Vec::as_slice).collect();
        self.backend.plan(&self.rope, rows, &tables)
    }

    fn load(&mut self, context: usize, layers: &[usize], chunk: &KvChunk, slot: u32, position: u32) -> Result<()> {
        let placement = Placement { chunk, table: &self.tables[context], slot, position };
        self.backend.load_kv(&mut self.cache, &self.rope, layers, &[placement])
    }

    fn attended(&self, rows: &[Row], queries: &Table) -> Result<Vec<f32>> {
        let plan = self.plan(rows)?;
        let mut queries = queries.on(self.backend)?;
        self.backend.rotate(&mut queries, &plan)?;
        self.backend.read(&self.backend.attend(&self.cache, Attention::new(0, self.shape.head_dim), &plan, &queries)?)
    }

    /// What rows of the first layer attend to, once their keys and values stand in the cache.
    fn written_and_attended(&mut self, rows: &[Row], numbers: [&Table; 3]) -> Result<Vec<f32>> {
        let [keys, values, queries] = numbers;
        let plan = self.plan(rows)?;
        let (keys, values) = (keys.on(self.backend)?, values.on(self.backend)?);
        self.backend.write_kv(&mut self.cache, 0, &plan, &keys, &values)?;
        self.attended(rows, queries)
    }

    /// The attention that some of these rows pay to all slots, and how far the keys of all of them are from those in the
    /// cache.
    fn measured(&self, rows: &[Row], asked: Range<usize>, numbers: [&Table; 2]) -> Result<[Vec<f32>; 2]> {
        let [keys, queries] = numbers;
        let (backend, plan) = (self.backend, self.plan(rows)?);
        let mut mass = backend.upload(SLOTS, &[0.0; SLOTS])?;
        let mut queries = queries.on(backend)?;
        backend.rotate(&mut queries, &plan)?;
        backend.attention_mass(
            &self.cache,
            Attention::new(0, self.shape.head_dim),
            &plan,
            asked,
            &queries,
            &mut mass,
        )?;
        let distances = backend.key_distance(&self.cache, 0, &plan, &keys.on(backend)?)?;
        Ok([backend.read(&mass)?, backend.read(&distances)?])
    }

    /// What the rows attend to in the fourth context after all of their own blocks were copied there. The copy is then
    /// written over.
    fn attended_in_a_copy(&mut self, context: usize, rows: &[Row], queries: &Table) -> Result<Vec<f32>> {
        for (from, to) in self.tables[context].clone().into_iter().zip(self.tables[3].clone()) {
            self.backend.copy_block(&mut self.cache, from, to)?;
        }
        let moved: Vec<Row> = rows.iter().map(|row| Row { context: 3, ..row.clone() }).collect();
        let attended = self.attended(&moved, queries)?;
        let noise = Table::noise(99, rows.len(), self.shape.row());
        self.written_and_attended(&moved, [&noise, &noise, queries])?;
        Ok(attended)
    }
}

/// A chunk of these keys and values, layer by layer.
fn chunk(shape: KvShape, encoding: Encoding, layers: &[[Table; 2]]) -> Result<KvChunk> {
    let mut bytes = Vec::new();
    for [keys, values] in layers {
        encoding.encode_layer(&shape, &keys.data, &values.data, &mut bytes);
    }
    let tokens: Arc<[u32]> = (0..layers[0][0].rows() as u32).collect();
    let data = HostKv::new(encoding, shape.layers, bytes);
    KvChunk::new(ChunkId([1; 32]), PrefixId::of(&[]), shape, tokens, Arc::new(data))
}

/// All that attention does to two contexts in one cache: one of loaded chunks and written rows, one whose slots are far
/// apart. Everything that comes of it, one after the other.
fn attention<B: Backend>(
    backend: &B,
    (shape, dtype, group): (KvShape, Dtype, usize),
    of: impl Fn(usize) -> Attention,
) -> Result<Vec<f32>> {
    let mut cached = Cached::new(backend, shape, dtype, Rope::plain(10_000.0, shape.head_dim))?;
    let chunks = [
        (0, 0, 37, 0, Encoding::Plain(dtype)),
        (0, 37, 1, 500, Encoding::Plain(Dtype::F32)),
        (1, 299, 20, 299, Encoding::Int8),
        (0, 12, 3, 12, Encoding::Plain(Dtype::F16)),
        (0, 9, 2, 9, Encoding::Int4),
    ];
    let mut of_first = Vec::new();
    for (context, slot, tokens, position, encoding) in chunks {
        let of_layers = |other: u64| {
            let layers = [0, 1].map(|layer| {
                let seed = u64::from(slot) + 10 * layer + 1000 * other;
                [Table::noise(20 + seed, tokens, shape.row()), Table::noise(21 + seed, tokens, shape.row())]
            });
            chunk(shape, encoding, &layers)
        };
        // The second layer of one chunk, then the first layer of another: neither touches the other layer.
        cached.load(context, &[1], &of_layers(0)?, slot, position)?;
        of_first.push((context, of_layers(1)?, slot, position));
    }
    // Several at once, as long as they share no slot.
    for chunks in [&of_first[..3], &of_first[3..]] {
        let placements: Vec<Placement<'_>> = chunks
            .iter()
            .map(|(context, chunk, slot, position)| Placement {
                chunk,
                table: &cached.tables[*context],
                slot: *slot,
                position: *position,
            })
            .collect();
        backend.load_kv(&mut cached.cache, &cached.rope, &[0], &placements)?;
    }
    let rows = [
        row(0, 38, 38, 0..0, 0),
        row(0, 39, 39, 0..0, 5),
        row(0, 40, 40, 0..0, 40),
        row(0, 41, 23, 2..19, 33),
        row(0, 42, 42, 0..16, 16),
        row(0, 13, 13, 0..0, 1),
        row(1, 319, 319, 0..0, 299),
        row(1, 320, 320, 299..301, 320),
    ];
    let plan = cached.plan(&rows)?;
    let mut all = Vec::new();
    let queries_of = |layer: usize| Table::noise(102 + 10 * layer as u64, rows.len(), group * shape.row()).on(backend);
    for layer in [1, 0] {
        let seed = 100 + 10 * layer as u64;
        let [keys, values] = [0, 1].map(|half| Table::noise(seed + half, rows.len(), shape.row()));
        let queries = queries_of(layer)?;
        let standing = cached.plan(&rows[5..6])?;
        let own = keys.gather(&[5]).on(backend)?;
        all.extend(backend.read(&backend.key_distance(&cached.cache, layer, &standing, &own)?)?);

        let (keys, values) = (keys.on(backend)?, values.on(backend)?);
        backend.write_kv(&mut cached.cache, layer, &plan, &keys, &values)?;
        // Keys that were just written are no distance away.
        all.extend(backend.read(&backend.key_distance(&cached.cache, layer, &plan, &keys)?)?);
        all.extend(backend.read(&backend.attend(&cached.cache, of(layer), &plan, &queries)?)?);
        for (rows, slots) in [(0..4, 43), (1..5, 20), (6..8, 330)] {
            let mut mass = backend.upload(slots, &vec![0.5; slots])?;
            backend.attention_mass(&cached.cache, of(layer), &plan, rows, &queries, &mut mass)?;
            all.extend(backend.read(&mass)?);
        }
    }
    // The second layer is as it was before the first was written, and so is a copy of both.
    for (from, to) in cached.tables[0]
        .clone()
        .into_iter()
        .zip(cached.tables[2].clone())
        .take(43usize.div_ceil(backend.block_tokens()))
    {
        backend.copy_block(&mut cached.cache, from, to)?;
    }
    let copied: Vec<Row> = rows[..6].iter().map(|row| Row { context: 2, ..row.clone() }).collect();
    let copied = cached.plan(&copied)?;
    for layer in [1, 0] {
        let queries = queries_of(layer)?;
        all.extend(backend.read(&backend.attend(&cached.cache, of(layer), &plan, &queries)?)?);
        let of_copied = backend.gather(&queries, &[0, 1, 2, 3, 4, 5])?;
        all.extend(backend.read(&backend.attend(&cached.cache, of(layer), &copied, &of_copied)?)?);
    }
    Ok(all)
}
