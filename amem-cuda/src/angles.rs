//! The angles of RoPE: a table of cosines and sines for each position, on the GPU.
//!
//! It is computed on the host, where sines of large numbers are exact, once for each position that was ever used.

use std::sync::{Arc, Mutex, PoisonError};

use amem_core::transformer::Rope;

use crate::driver::{Buffer, Device};
use crate::error::Result;

/// Tables that are kept: models that share a backend each have their own.
const KEPT: usize = 8;

/// The cosines and sines of positions from 0 on: `[positions][head_dim / 2]` pairs of f32.
pub(crate) struct Table {
    rope: Rope,
    positions: usize,
    pub(crate) pairs: Buffer,
}

/// The tables of a backend.
#[derive(Default)]
pub(crate) struct Angles(Mutex<Vec<Arc<Table>>>);

impl Angles {
    /// A table that reaches at least as far as this position.
    pub(crate) fn up_to(&self, device: &Arc<Device>, rope: &Rope, position: u32) -> Result<Arc<Table>> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tables.iter().position(|table| table.rope == *rope);
        if let Some(index) = known {
            if tables[index].positions > position as usize {
                return Ok(Arc::clone(&tables[index]));
            }
            tables.remove(index);
        }
        let table = Arc::new(Table::compute(device, rope, position)?);
        tables.insert(0, Arc::clone(&table));
        tables.truncate(KEPT);
        Ok(table)
    }
}

impl Table {
    fn compute(device: &Arc<Device>, rope: &Rope, position: u32) -> Result<Self> {
        const LEAST: usize = 2048;
        let positions = (position as usize + 1).next_power_of_two().max(LEAST);
        let pairs = pairs(rope, positions);
        Ok(Self { rope: rope.clone(), positions, pairs: device.upload_lasting(bytemuck::cast_slice(&pairs))? })
    }

    /// Numbers in a head.
    pub(crate) fn head_dim(&self) -> usize {
        2 * self.rope.inverse_frequencies.len()
    }

    /// Bytes of the table.
    pub(crate) fn bytes(&self) -> usize {
        self.positions * self.rope.inverse_frequencies.len() * size_of::<[f32; 2]>()
    }
}

fn pairs(rope: &Rope, positions: usize) -> Vec<[f32; 2]> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(16);
    let half = rope.inverse_frequencies.len().max(1);
    let mut pairs = vec![[0f32; 2]; positions * half];
    let share = positions.div_ceil(threads);
    std::thread::scope(|scope| {
        for (index, rows) in pairs.chunks_mut(share * half).enumerate() {
            scope.spawn(move || {
                for (position, row) in (index * share..).zip(rows.chunks_exact_mut(half)) {
                    for (pair, &frequency) in row.iter_mut().zip(&rope.inverse_frequencies) {
                        *pair = rope.cos_sin(position as u32, frequency).into();
                    }
                }
            });
        }
    });
    pairs
}
