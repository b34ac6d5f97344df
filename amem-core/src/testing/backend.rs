//! What every [`Backend`] promises.

use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use super::reference::{self, Table, exact, stored};
use crate::transformer::{Backend, Rope, Row, Span, Dtype};
use crate::{ChunkId, Fingerprint, KvChunk, KvShape, Dtype, Namespace, PrefixId, Result};

/// Checks a backend against the promises of [`Backend`]: every kernel, over sizes that fit no register, against plain
/// loops in f64, and the two laws bit by bit. `make` gives a backend.
///
/// # Panics
/// With a list of all cases that failed.
pub fn backend<B: Backend>(make: impl Fn() -> B) {
    let mut suite = Suite { backend: make(), failures: Vec::new() };
    let checks: [(&str, Check<B>); 9] = [
        ("weights", Suite::weights_are_read_as_they_are),
        ("rows", Suite::rows_are_taken_and_joined),
        ("norm", Suite::norms_are_taken_over_rows_and_heads),
        ("linear", Suite::products_are_those_of_plain_loops),
        ("add and gate", Suite::elements_meet_their_counterparts),
        ("rotate", Suite::heads_turn_with_their_position),
        ("attention", Suite::attention_is_that_of_plain_loops),
        ("positions", Suite::only_differences_of_positions_count),
        ("laws", Suite::where_and_beside_what_a_row_stands_changes_no_bit),
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
    backend: B,
    failures: Vec<String>,
}

impl<B: Backend> Suite<B> {
    /// Notes a case whose numbers are further off than f32 has to be.
    fn close(&mut self, case: impl Display, found: &[f32], expected: &[f64]) {
        self.within(5e-5, case, found, expected);
    }

    fn within(&mut self, tolerance: f64, case: impl Display, found: &[f32], expected: &[f64]) {
        if found.len() != expected.len() {
            self.failures.push(format!("{case}: {} numbers instead of {}", found.len(), expected.len()));
            return;
        }
        let off = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() / (1.0 + expected.abs());
        // Not a number is as far off as can be.
        let far = |off: &f64| off.is_nan() || *off > tolerance;
        if let Some((index, off)) = found.iter().zip(expected).map(off).enumerate().find(|(_, off)| far(off)) {
            let (found, expected) = (found[index], expected[index]);
            self.failures.push(format!("{case}: number {index} is {found} instead of {expected}, off by {off:.1e}"));
        }
    }

    /// Notes a case whose numbers differ in a bit.
    fn same(&mut self, case: impl Display, found: &[f32], expected: &[f32]) {
        let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
        if found.len() != expected.len() || found.iter().zip(expected).any(differ) {
            self.failures.push(format!("{case}: the bits differ"));
        }
    }

    fn matrix(&self, kind: Dtype, table: &Table) -> Result<B::Matrix> {
        let kv = KINDS.iter().find(|(weight, _)| *weight == kind).expect("a kind of KV for each of weights").1;
        let bytes: Vec<u8> = table.data.iter().flat_map(|&x| stored(kv, x)).collect();
        self.backend.matrix(kind, table.rows().len(), table.columns, &bytes)
    }

    /// Numbers on the backend: rows of a table, as an embedding has them.
    fn tensor(&self, table: &Table) -> Result<B::Tensor> {
        let rows: Vec<u32> = (0..table.rows().len() as u32).collect();
        self.backend.embed(&self.matrix(Dtype::F32, table)?, &rows)
    }

    fn weights_are_read_as_they_are(&mut self) -> Result<()> {
        for (kind, kv) in KINDS {
            for (rows, columns) in [(1, 1), (33, 20), (70, 257)] {
                let table = Table::noise(1, rows, columns).rounded(kv);
                let picked = [rows - 1, 0, rows / 2, 0];
                let tokens = picked.map(|row| row as u32);
                let found = self.backend.embed(&self.matrix(kind, &table)?, &tokens)?;
                let found = self.backend.read(&found)?;
                self.same(format!("embed {kind:?} {rows}×{columns}"), &found, &table.take(&picked).data);
            }
            for (outputs, inputs, bytes) in [(2, 3, 5), (2, 3, 25), (usize::MAX, usize::MAX, 4)] {
                if self.backend.matrix(kind, outputs, inputs, &vec![0; bytes]).is_ok() {
                    self.failures.push(format!("matrix {kind:?} {outputs}×{inputs} of {bytes} bytes is accepted"));
                }
            }
        }
        Ok(())
    }

    fn rows_are_taken_and_joined(&mut self) -> Result<()> {
        let [a, b] = [Table::noise(2, 5, 7), Table::noise(3, 2, 7)];
        let mut x = self.tensor(&a)?;
        for rows in [&[4usize][..], &[0, 1, 2, 3, 4], &[3, 3, 0]] {
            let found = self.backend.read(&self.backend.take(&x, rows)?)?;
            self.same(format!("take {rows:?}"), &found, &a.take(rows).data);
        }
        self.backend.join(&mut x, &self.tensor(&b)?)?;
        self.same("join", &self.backend.read(&x)?, &[a.data, b.data].concat());
        Ok(())
    }

    fn norms_are_taken_over_rows_and_heads(&mut self) -> Result<()> {
        for (rows, heads, length) in [(1, 1, 1), (1, 1, 64), (3, 4, 20), (5, 7, 2), (2, 1, 257)] {
            for eps in [1e-5, 0.1] {
                let x = Table::noise(4, rows, heads * length);
                let weight = Table::noise(5, 1, length).data;
                let found = self.backend.norm(&self.tensor(&x)?, &self.backend.vector(&weight)?, eps)?;
                let found = self.backend.read(&found)?;
                self.close(format!("norm {rows}×{heads}×{length}"), &found, &reference::norm(&x, &weight, eps));
            }
        }
        Ok(())
    }

    fn products_are_those_of_plain_loops(&mut self) -> Result<()> {
        for (kind, kv) in KINDS {
            for rows in [1, 2, 7, 13, 33] {
                for (outputs, inputs) in [(1, 1), (31, 20), (33, 257), (64, 48), (101, 3)] {
                    let case = format!("linear {kind:?} {rows} rows {outputs}×{inputs}");
                    let (x, w) = (Table::noise(6, rows, inputs), Table::noise(7, outputs, inputs).rounded(kv));
                    let bias = Table::noise(8, 1, outputs).data;
                    let (tensor, matrix) = (self.tensor(&x)?, self.matrix(kind, &w)?);
                    let found = self.backend.read(&self.backend.linear(&tensor, &matrix, None)?)?;
                    self.close(&case, &found, &reference::linear(&x, &w, None));
                    let vector = self.backend.vector(&bias)?;
                    let found = self.backend.read(&self.backend.linear(&tensor, &matrix, Some(&vector))?)?;
                    self.close(format!("{case}, bias"), &found, &reference::linear(&x, &w, Some(&bias)));
                }
            }
        }
        Ok(())
    }

    fn elements_meet_their_counterparts(&mut self) -> Result<()> {
        for (rows, columns) in [(1, 1), (3, 33), (2, 257)] {
            let [mut a, b] = [Table::noise(9, rows, columns), Table::noise(10, rows, columns)];
            let mut x = self.tensor(&a)?;
            self.backend.add(&mut x, &self.tensor(&b)?)?;
            let sum: Vec<f32> = a.data.iter().zip(&b.data).map(|(a, b)| a + b).collect();
            self.same(format!("add {rows}×{columns}"), &self.backend.read(&x)?, &sum);
            // As far out as an exponential goes, and further.
            a.data.iter_mut().for_each(|x| *x *= 120.0);
            let found = self.backend.read(&self.backend.gate(&self.tensor(&a)?, &self.tensor(&b)?)?)?;
            self.close(format!("gate {rows}×{columns}"), &found, &reference::gate(&a, &b));
        }
        Ok(())
    }

    fn heads_turn_with_their_position(&mut self) -> Result<()> {
        let positions = [0, 1, 77, 1000, 100_000];
        for head_dim in HEAD_DIMS {
            for heads in [1, 3] {
                let x = Table::noise(11, positions.len(), heads * head_dim);
                let rope = Rope { attention_factor: 1.25, ..Rope::plain(10_000.0, head_dim) };
                let mut tensor = self.tensor(&x)?;
                self.backend.rotate(&mut tensor, &self.backend.angles(&rope, &positions)?)?;
                let turned = |(row, &position): (&[f32], &u32)| reference::rotate(row, &rope, position);
                let expected: Vec<f64> = x.rows().zip(&positions).flat_map(turned).collect();
                let found = self.backend.read(&tensor)?;
                self.close(format!("rotate {heads} heads of {head_dim}"), &found, &expected);
            }
        }
        Ok(())
    }

    fn attention_is_that_of_plain_loops(&mut self) -> Result<()> {
        for (_, kind) in KINDS {
            for head_dim in HEAD_DIMS {
                for (kv_heads, group) in [(1, 1), (2, 2), (3, 1), (1, 4), (2, 7)] {
                    let shape = KvShape { layers: 2, kv_heads, head_dim, kind };
                    self.attention(shape, group)?;
                }
            }
        }
        Ok(())
    }

    /// Two contexts: one of placed chunks and written rows, one with slots that are far apart.
    fn attention(&mut self, shape: KvShape, group: usize) -> Result<()> {
        let case =
            format!("{} heads on {} of {}, {:?}", group * shape.kv_heads, shape.kv_heads, shape.head_dim, shape.kind);
        let rope = Rope::plain(10_000.0, shape.head_dim);
        let mut reference = [reference::Cache::new(shape), reference::Cache::new(shape)];
        let mut caches = [self.backend.cache(&shape)?, self.backend.cache(&shape)?];
        for (context, slot, tokens, position) in [(0, 0, 37, 0), (0, 37, 1, 500), (1, 299, 20, 299), (0, 12, 3, 12)] {
            let layers = [0, 1].map(|layer| {
                let seed = u64::from(slot) + 10 * layer;
                [Table::noise(20 + seed, tokens, shape.row()), Table::noise(21 + seed, tokens, shape.row())]
            });
            let positions: Vec<u32> = (position..).take(tokens).collect();
            for (layer, [keys, values]) in layers.iter().enumerate() {
                for (index, &position) in positions.iter().enumerate() {
                    let slot = slot + index as u32;
                    reference[context].put(layer, slot, &rope, position, keys.row(index), values.row(index));
                }
            }
            let angles = self.backend.angles(&rope, &positions)?;
            self.backend.place(&mut caches[context], slot, &angles, &chunk(shape, &layers)?)?;
        }
        let row = |context, slot, position, head: Range<u32>, from| Row {
            token: 0,
            context,
            slot,
            position,
            sees: Span { head, body: from..slot + 1 },
        };
        let rows = [
            row(0, 38, 38, 0..0, 0),
            row(0, 39, 39, 0..0, 5),
            row(0, 40, 40, 0..0, 40),
            row(0, 41, 23, 2..19, 33),
            row(1, 319, 319, 0..0, 299),
            row(1, 320, 320, 299..301, 320),
            row(0, 42, 42, 0..16, 16),
            row(0, 13, 13, 0..0, 1),
        ];
        let count = rows.len();
        let angles = self.backend.angles(&rope, &rows.clone().map(|row| row.position))?;
        for layer in [1, 0] {
            let seed = 100 + 10 * layer as u64;
            let [keys, values] = [0, 1].map(|half| Table::noise(seed + half, count, shape.row()));
            let queries = Table::noise(seed + 2, count, group * shape.row());
            let (keys_there, values_there) = (self.tensor(&keys)?, self.tensor(&values)?);

            let standing = &rows[count - 1..];
            let own = self.tensor(&keys.take(&[count - 1]))?;
            let own_angles = self.backend.angles(&rope, &[standing[0].position])?;
            let [a, b] = &mut caches;
            let found = self.backend.key_distance(&[a, b], layer, standing, &own_angles, &own)?;
            let expected = reference[0].distance(layer, &standing[0], &rope, keys.row(count - 1));
            self.close(format!("key distance, {case}"), &found, &[expected]);

            for (index, row) in rows.iter().enumerate() {
                let (keys, values) = (keys.row(index), values.row(index));
                reference[row.context].put(layer, row.slot, &rope, row.position, keys, values);
            }
            let [a, b] = &mut caches;
            self.backend.write(&mut [a, b], layer, &rows, &angles, &keys_there, &values_there)?;
            let [a, b] = &mut caches;
            let found = self.backend.key_distance(&[a, b], layer, &rows, &angles, &keys_there)?;
            self.same(format!("distance of keys just written, {case}"), &found, &vec![0.0; count]);

            let there = self.tensor(&queries)?;
            let [a, b] = &mut caches;
            let found = self.backend.attend(&[a, b], layer, &rows, &there)?;
            let attend = |(row, queries): (&Row, &[f32])| reference[row.context].attend(layer, row, queries);
            let expected: Vec<f64> = rows.iter().zip(queries.rows()).flat_map(attend).collect();
            let found = self.backend.read(&found)?;
            self.close(format!("attend in layer {layer}, {case}"), &found, &expected);

            // Of the first context only.
            let ours: Vec<usize> = (0..4).collect();
            let mut mass = [0.0; 43];
            for &index in &ours {
                for (slot, weight) in reference[0].weights(layer, &rows[index], queries.row(index)).concat() {
                    mass[slot as usize] += weight;
                }
            }
            let there = self.tensor(&queries.take(&ours))?;
            for slots in [43, 20] {
                let [a, b] = &mut caches;
                let found = self.backend.attention_mass(&[a, b], layer, &rows[..4], &there, slots)?;
                self.close(format!("attention mass on {slots} slots, {case}"), &found, &mass[..slots]);
            }
        }
        Ok(())
    }

    /// Rows that stand behind a shared beginning and side by side, as in packed prefill, and the same rows in a context
    /// of their own, placed as a chunk or written.
    fn where_and_beside_what_a_row_stands_changes_no_bit(&mut self) -> Result<()> {
        for (_, kind) in KINDS {
            for (head_dim, group) in [(2, 7), (20, 2), (64, 4)] {
                let shape = KvShape { layers: 1, kv_heads: 2, head_dim, kind };
                self.laws(shape, group)?;
            }
        }
        for rows in [2, 9] {
            let (x, w) = (Table::noise(30, rows, 70), Table::noise(31, 45, 70));
            let matrix = self.matrix(Dtype::F32, &w)?;
            let weight = self.backend.vector(&Table::noise(32, 1, 70).data)?;
            let pipe = |x: &Table| {
                let normed = self.backend.norm(&self.tensor(x)?, &weight, 1e-5)?;
                let y = self.backend.linear(&normed, &matrix, None)?;
                self.backend.read(&self.backend.gate(&y, &y)?)
            };
            let together = pipe(&x)?;
            let alone = (0..rows).map(|row| pipe(&x.take(&[row]))).collect::<Result<Vec<_>>>()?.concat();
            self.same(format!("norm, linear and gate of {rows} rows at once and one by one"), &together, &alone);
        }
        Ok(())
    }

    fn laws(&mut self, shape: KvShape, group: usize) -> Result<()> {
        let case =
            format!("{} heads on {} of {}, {:?}", group * shape.kv_heads, shape.kv_heads, shape.head_dim, shape.kind);
        const SHARED: u32 = 21;
        const TEXTS: [u32; 3] = [1, 18, 6];
        let rope = Rope::plain(10_000.0, shape.head_dim);
        let count = (SHARED + TEXTS.iter().sum::<u32>()) as usize;
        let [keys, values] = [40, 41].map(|seed| Table::noise(seed, count, shape.row()));
        let queries = Table::noise(42, count, group * shape.row());

        // All texts behind one beginning. The numbers' order is that of the rows.
        let see = |head, body| Span { head, body };
        let row = |slot, position, sees| Row { token: 0, context: 0, slot, position, sees };
        let mut packed: Vec<Row> = (0..SHARED).map(|slot| row(slot, slot, see(0..0, 0..slot + 1))).collect();
        let mut first = SHARED;
        for tokens in TEXTS {
            let rows = first..first + tokens;
            packed.extend(rows.map(|slot| row(slot, SHARED + slot - first, see(0..SHARED, first..slot + 1))));
            first += tokens;
        }
        let mut cache = self.backend.cache(&shape)?;
        let together = self.written_and_attended(&mut cache, &rope, &packed, [&keys, &values, &queries])?;

        // Each text in a context of its own, whose beginning is placed.
        let width = group * shape.row();
        let mut first = SHARED as usize;
        for tokens in TEXTS.map(|tokens| tokens as usize) {
            let shared: Vec<usize> = (0..SHARED as usize).collect();
            let own: Vec<usize> = (first..first + tokens).collect();
            let mut cache = self.backend.cache(&shape)?;
            let angles = self.backend.angles(&rope, &(0..SHARED).collect::<Vec<_>>())?;
            let beginning = chunk(shape, &[[keys.take(&shared), values.take(&shared)]])?;
            self.backend.place(&mut cache, 0, &angles, &beginning)?;
            let slots = SHARED..SHARED + tokens as u32;
            let rows: Vec<Row> = slots.map(|slot| row(slot, slot, see(0..0, 0..slot + 1))).collect();
            let numbers = [&keys, &values, &queries].map(|table| table.take(&own));
            let alone = self.written_and_attended(&mut cache, &rope, &rows, numbers.each_ref())?;
            let expected = &together[first * width..(first + tokens) * width];
            self.same(format!("{tokens} rows packed and in a context of their own, {case}"), &alone, expected);

            let mut by_one = Vec::new();
            for (index, row) in rows.iter().enumerate() {
                let numbers = numbers.each_ref().map(|table| table.take(&[index]));
                let row = std::slice::from_ref(row);
                by_one.extend(self.written_and_attended(&mut cache, &rope, row, numbers.each_ref())?);
            }
            self.same(format!("{tokens} rows at once and one by one, {case}"), &by_one, &alone);

            first += tokens;
        }
        Ok(())
    }

    fn only_differences_of_positions_count(&mut self) -> Result<()> {
        for head_dim in HEAD_DIMS {
            let shape = KvShape { layers: 1, kv_heads: 2, head_dim, kind: Dtype::F16 };
            let rope = Rope::plain(10_000.0, head_dim);
            let numbers = [50, 51, 52].map(|seed| Table::noise(seed, 40, shape.row()));
            let at = |distance: u32| {
                let sees = |slot| Span { head: 0..0, body: 0..slot + 1 };
                let row = |slot| Row { token: 0, context: 0, slot, position: slot + distance, sees: sees(slot) };
                let rows: Vec<Row> = (0..40).map(row).collect();
                self.written_and_attended(&mut self.backend.cache(&shape)?, &rope, &rows, numbers.each_ref())
            };
            let (here, there) = (at(0)?, at(1000)?);
            self.within(1e-3, format!("attend 1000 positions on, heads of {head_dim}"), &there, &exact(&here));
        }
        Ok(())
    }

    /// What rows of the first layer attend to, once their keys and values stand in the cache.
    fn written_and_attended(
        &self,
        cache: &mut B::Cache,
        rope: &Rope,
        rows: &[Row],
        [keys, values, queries]: [&Table; 3],
    ) -> Result<Vec<f32>> {
        let positions: Vec<u32> = rows.iter().map(|row| row.position).collect();
        let angles = self.backend.angles(rope, &positions)?;
        let mut queries = self.tensor(queries)?;
        self.backend.rotate(&mut queries, &angles)?;
        self.backend.write(&mut [cache], 0, rows, &angles, &self.tensor(keys)?, &self.tensor(values)?)?;
        self.backend.read(&self.backend.attend(&[cache], 0, rows, &queries)?)
    }
}

const KINDS: [(Dtype, Dtype); 3] =
    [(Dtype::F32, Dtype::F32), (Dtype::F16, Dtype::F16), (Dtype::Bf16, Dtype::Bf16)];

const HEAD_DIMS: [usize; 4] = [2, 16, 20, 64];

/// A chunk of these keys and values, layer by layer.
fn chunk(shape: KvShape, layers: &[[Table; 2]]) -> Result<KvChunk> {
    let numbers = layers.iter().flatten().flat_map(|table| &table.data);
    let bytes: Vec<u8> = numbers.flat_map(|&x| stored(shape.kind, x)).collect();
    let tokens: Arc<[u32]> = (0..(bytes.len() / shape.token_bytes()) as u32).collect();
    let prefix = PrefixId::of(&[]);
    let id = ChunkId::of(&Fingerprint([1; 32]), &shape, &prefix, &Namespace::new("conformance")?, &tokens);
    KvChunk::new(id, prefix, shape, tokens, Arc::new(bytes))
}
