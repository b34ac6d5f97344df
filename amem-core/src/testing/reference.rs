//! A [`Backend`] in plain loops over f64: slow, and short enough to be believed. Other backends are compared with it.

use std::collections::HashMap;
use std::ops::Range;

use crate::transformer::{Attention, Backend, BlockTable, LayerNorm, Numerics, Placement, Rope, Row, WeightTensor};
use crate::{Dtype, Error, Exactness, KvShape, Result, Token};

/// Arithmetic in f64, one number after the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// Numbers in rows.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: usize,
    data: Vec<f64>,
}

/// What a pass knows of its rows.
pub struct Plan {
    rope: Rope,
    rows: Vec<Row>,
    tables: Vec<Vec<u32>>,
}

/// For each layer and each slot of each block: a row of rotated keys and one of values, `[kv_heads * head_dim]`.
pub struct Cache {
    shape: KvShape,
    dtype: Dtype,
    /// For each layer, what was written: a budget may be larger than this machine's memory.
    slots: Vec<HashMap<usize, [Vec<f64>; 2]>>,
}

/// No power of two, so that nothing can rely on one.
const BLOCK_TOKENS: usize = 5;

impl Table {
    fn rows(&self) -> std::slice::ChunksExact<'_, f64> {
        self.data.chunks_exact(self.columns.max(1))
    }
}

fn exact(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The share of the normal distribution that is less than x: its density, integrated by Simpson's rule.
fn normal_distribution(x: f64) -> f64 {
    const STEPS: usize = 1000;
    // Beyond it nothing is left that f64 holds.
    let end = x.clamp(-9.0, 9.0);
    let step = end / STEPS as f64;
    let density = |t: f64| (-t * t / 2.0).exp();
    let weight = |index: usize| match index {
        0 | STEPS => 1.0,
        _ if index.is_multiple_of(2) => 2.0,
        _ => 4.0,
    };
    let sum: f64 = (0..=STEPS).map(|index| weight(index) * density(step * index as f64)).sum();
    0.5 + sum * step / 3.0 / (2.0 * std::f64::consts::PI).sqrt()
}

fn round(dtype: Dtype, numbers: &mut [f64]) {
    for x in numbers {
        let mut rounded = [*x as f32];
        dtype.round(&mut rounded);
        *x = f64::from(rounded[0]);
    }
}

/// Rotates all heads of one row.
fn rotate(row: &mut [f64], rope: &Rope, position: u32) {
    let half = rope.inverse_frequencies.len();
    for head in row.chunks_exact_mut(2 * half) {
        for (pair, &frequency) in rope.inverse_frequencies.iter().enumerate() {
            if frequency == 0.0 {
                continue;
            }
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            let (a, b) = (head[pair], head[pair + half]);
            head[pair] = (a * cos - b * sin) * f64::from(rope.attention_factor);
            head[pair + half] = (b * cos + a * sin) * f64::from(rope.attention_factor);
        }
    }
}

fn slot_of(table: &[u32], slot: u32) -> Result<usize> {
    let block = table.get(slot as usize / BLOCK_TOKENS);
    let block = block.ok_or_else(|| Error::Model(format!("slot {slot} has no block").into()))?;
    Ok(*block as usize * BLOCK_TOKENS + slot as usize % BLOCK_TOKENS)
}

impl Cache {
    /// A row's key as it is stored.
    fn stored(&self, mut key: Vec<f64>, rope: &Rope, position: u32) -> Vec<f64> {
        round(self.dtype, &mut key);
        rotate(&mut key, rope, position);
        round(self.dtype, &mut key);
        key
    }

    fn put(&mut self, layer: usize, slot: usize, key: Vec<f64>, mut value: Vec<f64>) -> Result<()> {
        round(self.dtype, &mut value);
        let slots = self.slots.get_mut(layer);
        slots.ok_or_else(|| Error::Model(format!("the cache has no layer {layer}").into()))?.insert(slot, [key, value]);
        Ok(())
    }

    fn get(&self, layer: usize, slot: usize) -> Result<&[Vec<f64>; 2]> {
        let found = self.slots.get(layer).and_then(|slots| slots.get(&slot));
        found.ok_or_else(|| Error::Model(format!("slot {slot} of layer {layer} was never written").into()))
    }

    /// For each query head of a row, the slots that it sees and their weights.
    fn weights(&self, attention: Attention, plan: &Plan, row: &Row, queries: &[f64]) -> Result<Vec<Vec<(u32, f64)>>> {
        let (head_dim, group) = (self.shape.head_dim, queries.len() / self.shape.row());
        let seen: Vec<u32> = row.sees.shared.clone().chain(row.sees.own.clone()).collect();
        let weights = |(head, query): (usize, &[f64])| {
            let first = head / group * head_dim;
            let score = |&slot: &u32| {
                let [key, _] = self.get(attention.layer, slot_of(&plan.tables[row.context], slot)?)?;
                let score = dot(query, &key[first..first + head_dim]) * f64::from(attention.scale);
                Ok(attention.soft_cap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh()))
            };
            let scores = seen.iter().map(score).collect::<Result<Vec<f64>>>()?;
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
            Ok(seen.iter().copied().zip(scores.iter().map(|score| (score - top).exp() / total)).collect())
        };
        queries.chunks_exact(head_dim).enumerate().map(weights).collect()
    }
}

impl Backend for Reference {
    type Matrix = Table;
    type Vector = Vec<f64>;
    type Tensor = Table;
    type Cache = Cache;
    type Plan = Plan;

    fn numerics(&self) -> Numerics {
        Numerics { name: "f64".to_owned(), exactness: Exactness::Bits }
    }

    fn matrix(&self, tensor: &WeightTensor<'_>) -> Result<Table> {
        if !tensor.is_complete() {
            let value = format!("{} bytes", tensor.bytes.len());
            return Err(Error::BadValue { what: "weights", value, expected: "one number for each entry" });
        }
        Ok(Table { columns: tensor.columns, data: exact(&tensor.to_f32()) })
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f64>> {
        Ok(exact(values))
    }

    fn block_tokens(&self) -> usize {
        BLOCK_TOKENS
    }

    fn cache(&self, shape: &KvShape, dtype: Dtype, _: usize) -> Result<Cache> {
        Ok(Cache { shape: *shape, dtype, slots: vec![HashMap::new(); shape.layers] })
    }

    fn copy_block(&self, cache: &mut Cache, from: u32, to: u32) -> Result<()> {
        for slots in &mut cache.slots {
            for index in 0..BLOCK_TOKENS {
                let [from, to] = [from, to].map(|block| block as usize * BLOCK_TOKENS + index);
                match slots.get(&from).cloned() {
                    Some(kv) => slots.insert(to, kv),
                    None => slots.remove(&to),
                };
            }
        }
        Ok(())
    }

    fn plan(&self, rope: &Rope, rows: &[Row], tables: &[BlockTable<'_>]) -> Result<Plan> {
        let tables = tables.iter().map(|table| table.to_vec()).collect();
        Ok(Plan { rope: rope.clone(), rows: rows.to_vec(), tables })
    }

    fn upload(&self, columns: usize, numbers: &[f32]) -> Result<Table> {
        Ok(Table { columns, data: exact(numbers) })
    }

    fn columns(&self, x: &Table) -> usize {
        x.columns
    }

    fn embed(&self, table: &Table, tokens: &[Token]) -> Result<Table> {
        let rows: Vec<usize> = tokens.iter().map(|&token| token as usize).collect();
        self.gather(table, &rows)
    }

    fn rms_norm(&self, x: &Table, weight: &Vec<f64>, eps: f32) -> Result<Table> {
        let norm = |run: &[f64]| {
            let scale = 1.0 / (dot(run, run) / run.len() as f64 + f64::from(eps)).sqrt();
            run.iter().zip(weight).map(|(x, w)| x * scale * w).collect::<Vec<_>>()
        };
        Ok(Table { columns: x.columns, data: x.data.chunks_exact(weight.len()).flat_map(norm).collect() })
    }

    fn linear(&self, x: &Table, w: &Table, bias: Option<&Vec<f64>>) -> Result<Table> {
        let mut data = Vec::new();
        for row in x.rows() {
            for (output, weights) in w.rows().enumerate() {
                data.push(dot(row, weights) + bias.map_or(0.0, |bias| bias[output]));
            }
        }
        Ok(Table { columns: w.data.len() / w.columns.max(1), data })
    }

    fn add(&self, x: &mut Table, y: &Table) -> Result<()> {
        x.data.iter_mut().zip(&y.data).for_each(|(x, y)| *x += y);
        Ok(())
    }

    fn silu_mul(&self, gate: &Table, up: &Table) -> Result<Table> {
        let data = gate.data.iter().zip(&up.data).map(|(x, up)| x / (1.0 + (-x).exp()) * up).collect();
        Ok(Table { columns: gate.columns, data })
    }

    fn gelu_mul(&self, gate: &Table, up: &Table) -> Result<Table> {
        let factor = (2.0 / std::f64::consts::PI).sqrt();
        let gelu = |x: f64| x / 2.0 * (1.0 + (factor * (x + 0.044715 * x.powi(3))).tanh());
        let data = gate.data.iter().zip(&up.data).map(|(x, up)| gelu(*x) * up).collect();
        Ok(Table { columns: gate.columns, data })
    }

    fn layer_norm(&self, x: &Table, norm: &LayerNorm<Self>) -> Result<Table> {
        let normed = |row: &[f64]| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let centred: Vec<f64> = row.iter().map(|x| x - mean).collect();
            let scale = 1.0 / (dot(&centred, &centred) / row.len() as f64 + f64::from(norm.eps)).sqrt();
            let of_weight = centred.iter().zip(&norm.weight).zip(&norm.bias);
            of_weight.map(|((x, weight), bias)| x * scale * weight + bias).collect::<Vec<_>>()
        };
        Ok(Table { columns: x.columns, data: x.rows().flat_map(normed).collect() })
    }

    fn gelu(&self, x: &mut Table) -> Result<()> {
        x.data.iter_mut().for_each(|x| *x *= normal_distribution(*x));
        Ok(())
    }

    fn scale(&self, x: &mut Table, factor: f32) -> Result<()> {
        x.data.iter_mut().for_each(|x| *x *= f64::from(factor));
        Ok(())
    }

    fn soft_cap(&self, x: &mut Table, cap: f32) -> Result<()> {
        let cap = f64::from(cap);
        x.data.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        Ok(())
    }

    fn sum_rows(&self, x: &Table, picked: &[(usize, f32)], each: usize) -> Result<Table> {
        let all: Vec<&[f64]> = x.rows().collect();
        let mut data = Vec::new();
        for picked in picked.chunks_exact(each) {
            let mut sum = vec![0.0; x.columns];
            for &(row, weight) in picked {
                sum.iter_mut().zip(all[row]).for_each(|(sum, x)| *sum += f64::from(weight) * x);
            }
            data.extend(sum);
        }
        Ok(Table { columns: x.columns, data })
    }

    fn rotate(&self, x: &mut Table, plan: &Plan) -> Result<()> {
        let rows = x.data.chunks_exact_mut(x.columns.max(1)).zip(&plan.rows);
        rows.for_each(|(x, row)| rotate(x, &plan.rope, row.position));
        Ok(())
    }

    fn gather(&self, x: &Table, rows: &[usize]) -> Result<Table> {
        let all: Vec<&[f64]> = x.rows().collect();
        Ok(Table { columns: x.columns, data: rows.iter().flat_map(|&row| all[row]).copied().collect() })
    }

    fn concat(&self, x: &mut Table, y: &Table) -> Result<()> {
        x.data.extend_from_slice(&y.data);
        Ok(())
    }

    fn read(&self, x: &Table) -> Result<Vec<f32>> {
        Ok(x.data.iter().map(|&x| x as f32).collect())
    }

    fn write_kv(&self, cache: &mut Cache, layer: usize, plan: &Plan, keys: &Table, values: &Table) -> Result<()> {
        for ((row, key), value) in plan.rows.iter().zip(keys.rows()).zip(values.rows()) {
            let key = cache.stored(key.to_vec(), &plan.rope, row.position);
            cache.put(layer, slot_of(&plan.tables[row.context], row.slot)?, key, value.to_vec())?;
        }
        Ok(())
    }

    fn load_kv(&self, cache: &mut Cache, rope: &Rope, layers: &[usize], placements: &[Placement<'_>]) -> Result<()> {
        let KvShape { kv_heads, head_dim, .. } = cache.shape;
        for placement in placements {
            for &layer in layers {
                let kv = placement.chunk.layer(layer)?;
                for token in 0..placement.chunk.tokens().len() {
                    let [mut key, mut value] = [(); 2].map(|()| vec![0f32; kv_heads * head_dim]);
                    for head in 0..kv_heads {
                        kv.key(token, head, &mut key[head * head_dim..(head + 1) * head_dim]);
                        kv.value(token, head, &mut value[head * head_dim..(head + 1) * head_dim]);
                    }
                    let key = cache.stored(exact(&key), rope, placement.position + token as u32);
                    cache.put(layer, slot_of(placement.table, placement.slot + token as u32)?, key, exact(&value))?;
                }
            }
        }
        Ok(())
    }

    fn attend(&self, cache: &Cache, attention: Attention, plan: &Plan, queries: &Table) -> Result<Table> {
        let (head_dim, group) = (cache.shape.head_dim, queries.columns / cache.shape.row());
        let mut data = Vec::new();
        for (row, queries) in plan.rows.iter().zip(queries.rows()) {
            for (head, weights) in cache.weights(attention, plan, row, queries)?.into_iter().enumerate() {
                let mut sum = vec![0.0; head_dim];
                for (slot, weight) in weights {
                    let [_, values] = cache.get(attention.layer, slot_of(&plan.tables[row.context], slot)?)?;
                    let values = &values[head / group * head_dim..][..head_dim];
                    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
                }
                data.extend(sum);
            }
        }
        Ok(Table { columns: queries.columns, data })
    }

    fn attention_mass(
        &self,
        cache: &Cache,
        attention: Attention,
        plan: &Plan,
        rows: Range<usize>,
        queries: &Table,
        mass: &mut Table,
    ) -> Result<()> {
        for (row, queries) in plan.rows.iter().zip(queries.rows()).take(rows.end).skip(rows.start) {
            for (slot, weight) in cache.weights(attention, plan, row, queries)?.concat() {
                if let Some(mass) = mass.data.get_mut(slot as usize) {
                    *mass += weight;
                }
            }
        }
        Ok(())
    }

    fn key_distance(&self, cache: &Cache, layer: usize, plan: &Plan, keys: &Table) -> Result<Table> {
        let distance = |(row, key): (&Row, &[f64])| {
            let key = cache.stored(key.to_vec(), &plan.rope, row.position);
            let [standing, _] = cache.get(layer, slot_of(&plan.tables[row.context], row.slot)?)?;
            Ok(key.iter().zip(standing).map(|(a, b)| (a - b) * (a - b)).sum())
        };
        Ok(Table { columns: 1, data: plan.rows.iter().zip(keys.rows()).map(distance).collect::<Result<_>>()? })
    }
}
