//! Weights and the product with them.
//!
//! A matrix is packed into panels of [`PANEL`] outputs, input by input. A product is cut into runs of panels, which
//! threads share. Of each run a block of inputs is taken at a time: it stays in a core's cache, and so do those inputs
//! of all rows of `x`, which meet it in tiles of as many rows as a kernel has registers for. Each output adds its
//! products up in the order of the inputs, whatever the tile, so rows do not notice their neighbours.

#[cfg(target_arch = "aarch64")]
mod bf16_fours;
#[cfg(target_arch = "x86_64")]
mod bf16_pairs;
mod blocks;
mod float;
mod quantized;
mod transpose;

use amem_core::transformer::{Activation, WeightRole, WeightTensor, WeightType};
use amem_core::{Error, Result};
use bytemuck::Pod;
use half::{bf16, f16};

use crate::activation::Gated;
use crate::pages::Pages;
use crate::{Cpu, Tensor, WeightFormat};
#[cfg(target_arch = "aarch64")]
use bf16_fours as bf16_products;
#[cfg(target_arch = "x86_64")]
use bf16_pairs as bf16_products;
use quantized::{ByteTile, Layout, Order, Quantized};
use transpose::{Fours, Pairs};

pub(crate) use float::Tile;

/// Outputs in a panel.
const PANEL: usize = 32;

/// A weight matrix, `[outputs][inputs]`, packed in panels of 32 outputs for the kernels of the [`Cpu`] that made it. The
/// last panel is filled up with zeros.
pub struct Matrix {
    pub(crate) outputs: usize,
    inputs: usize,
    weights: Weights,
}

enum Weights {
    F32(Pages<f32>),
    F16(Pages<f16>),
    Bf16(Pages<bf16>),
    /// Inputs interleaved for instructions that multiply bf16: `[panels][inputs / INTERLEAVED][PANEL][INTERLEAVED]`.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Bf16Interleaved(Pages<bf16_products::Weights>, crate::isa::Bf16),
    Quantized(Quantized),
}

impl Cpu {
    /// Packs a matrix for the kernels that will read it.
    pub(crate) fn pack(&self, tensor: &WeightTensor<'_>) -> Result<Matrix> {
        let (outputs, inputs, bytes) = (tensor.rows, tensor.columns, tensor.bytes);
        if !tensor.is_complete() {
            let reason = format!("a matrix of {outputs} × {inputs} numbers does not have {} bytes", bytes.len());
            return Err(Error::BadValue { what: "weights", value: reason, expected: "one number for each entry" });
        }
        let shape = (outputs, inputs);
        let embeds = matches!(tensor.role, WeightRole::Embedding | WeightRole::LmHead | WeightRole::TiedEmbedding);
        // What chooses experts is small, and a rounding error there sends a row elsewhere.
        let routes = tensor.role == WeightRole::Router;
        let format = if routes { WeightFormat::AsStored } else { self.weights };
        let weights = match (format, tensor.dtype) {
            (WeightFormat::Int4, _) if !embeds => Weights::Quantized(self.quantize(Layout::INT4, tensor)?),
            (WeightFormat::Int4 | WeightFormat::Int8, _) => Weights::Quantized(self.quantize(Layout::INT8, tensor)?),
            (_, WeightType::F32) => Weights::F32(self.panels_of_pairs(shape, bytes)?),
            (_, WeightType::F16) => Weights::F16(self.panels_of_fours(shape, bytes)?),
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            (_, WeightType::Bf16) if let Some(isa) = self.isa.bf16.filter(|_| self.is_fast() && !routes) => {
                Weights::Bf16Interleaved(self.pack_bf16(shape, bytes)?, isa)
            }
            (_, WeightType::Bf16) => Weights::Bf16(self.panels_of_fours(shape, bytes)?),
            (_, quantized) => match Layout::of(quantized).filter(|_| self.is_fast() && !routes) {
                Some(layout) => Weights::Quantized(self.take_blocks(layout, tensor)?),
                None => {
                    let mut numbers = tensor.to_f32();
                    if cfg!(target_endian = "big") {
                        numbers.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits().swap_bytes()));
                    }
                    Weights::F32(self.panels_of_pairs(shape, bytemuck::cast_slice(&numbers))?)
                }
            },
        };
        Ok(Matrix { outputs, inputs, weights })
    }

    /// Numbers of two bytes input by input, in panels.
    fn panels_of_fours<T: Pod + Send + Sync>(
        &self,
        (outputs, inputs): (usize, usize),
        bytes: &[u8],
    ) -> Result<Pages<T>> {
        self.packed(outputs, inputs, PANEL, bytes, |rows: &[[u8; 2]], panel: &mut [T]| {
            let numbers: &mut [[u8; 2]] = bytemuck::cast_slice_mut(panel);
            let panel = numbers.as_chunks_mut::<PANEL>().0;
            self.arch.dispatch(Fours { rows, inputs, panel });
            in_native_order(panel);
        })
    }

    /// Numbers of four bytes input by input, in panels.
    fn panels_of_pairs<T: Pod + Send + Sync>(
        &self,
        (outputs, inputs): (usize, usize),
        bytes: &[u8],
    ) -> Result<Pages<T>> {
        self.packed(outputs, inputs, PANEL, bytes, |rows: &[[u8; 4]], panel: &mut [T]| {
            let numbers: &mut [[u8; 4]] = bytemuck::cast_slice_mut(panel);
            let panel = numbers.as_chunks_mut::<PANEL>().0;
            self.arch.dispatch(Pairs { rows, inputs, panel });
            in_native_order(panel);
        })
    }

    /// Memory of `units` times `width` numbers for each panel, filled panel by panel on all threads from the rows of the
    /// panel's outputs.
    fn packed<T: Pod + Send + Sync, const SIZE: usize>(
        &self,
        outputs: usize,
        units: usize,
        width: usize,
        bytes: &[u8],
        fill: impl Fn(&[[u8; SIZE]], &mut [T]) + Send + Sync,
    ) -> Result<Pages<T>> {
        let numbers = bytes.as_chunks::<SIZE>().0;
        let (panels, row) = (outputs.div_ceil(PANEL), numbers.len() / outputs.max(1));
        let mut packed = self.pages.zeros(panels.saturating_mul(units).saturating_mul(width))?;
        let rows = numbers.chunks(PANEL * row);
        let parts = packed.chunks_exact_mut(units * width).zip(rows).collect();
        self.each(parts, numbers.len(), |(panel, rows)| fill(rows, panel));
        Ok(packed)
    }
}

/// Turns numbers as files have them, little-endian, into those of this machine.
fn in_native_order<const SIZE: usize>(panel: &mut [[[u8; SIZE]; PANEL]]) {
    if cfg!(target_endian = "big") {
        panel.as_flattened_mut().iter_mut().for_each(|number| number.reverse());
    }
}

impl Matrix {
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    fn input_kind(&self) -> InputKind {
        match &self.weights {
            Weights::F32(_) | Weights::F16(_) | Weights::Bf16(_) => InputKind::F32,
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Weights::Bf16Interleaved(..) => InputKind::Bf16,
            Weights::Quantized(w) => InputKind::Bytes(w.inputs()),
        }
    }

    /// One row, as an embedding table is read. A row that is not there reads as zeros.
    pub(crate) fn read_row(&self, index: usize, row: &mut [f32]) {
        fn copy(row: &mut [f32], numbers: impl Iterator<Item = f32>) {
            row.iter_mut().zip(numbers).for_each(|(to, x)| *to = x);
        }
        let (panel, lane) = (index / PANEL, index % PANEL);
        if index >= self.outputs {
            return row.fill(0.0);
        }
        let start = panel * PANEL * self.inputs + lane;
        match &self.weights {
            Weights::F32(w) => copy(row, w[start..].iter().step_by(PANEL).copied()),
            Weights::F16(w) => copy(row, w[start..].iter().step_by(PANEL).map(|x| x.to_f32())),
            Weights::Bf16(w) => copy(row, w[start..].iter().step_by(PANEL).map(|x| x.to_f32())),
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Weights::Bf16Interleaved(w, _) => {
                let blocks = self.inputs.div_ceil(bf16_products::INTERLEAVED);
                copy(row, w[panel * blocks..(panel + 1) * blocks].iter().flat_map(|block| block.of(lane)));
            }
            Weights::Quantized(w) => copy(row, w.row(index)),
        }
    }
}

/// How a kind of kernels wants the rows of `x`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InputKind {
    F32,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Bf16,
    /// With so many inputs in a group, in this order.
    Bytes((usize, Order)),
}

/// The rows of `x`, so.
enum Input {
    F32(Vec<Tile>),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Bf16(Vec<bf16_products::RoundedTile>),
    Bytes(Vec<ByteTile>),
}

/// The rows of `x` for some matrices, once for each kind of kernels among theirs.
struct Inputs(Vec<(InputKind, Input)>);

impl Inputs {
    fn of<const N: usize>(cpu: &Cpu, x: &Tensor, matrices: [&Matrix; N]) -> Self {
        let mut inputs: Vec<(InputKind, Input)> = Vec::new();
        for kind in matrices.map(Matrix::input_kind) {
            if !inputs.iter().any(|(known, _)| *known == kind) {
                inputs.push((kind, cpu.input(x, kind)));
            }
        }
        Self(inputs)
    }

    fn for_matrix(&self, matrix: &Matrix) -> Option<&Input> {
        let kind = matrix.input_kind();
        self.0.iter().find(|(known, _)| *known == kind).map(|(_, input)| input)
    }
}

/// Some columns of the rows of a product, which one task computes.
struct Columns<'a> {
    matrix: &'a Matrix,
    bias: Option<&'a [f32]>,
    /// The first of its panels.
    panel: usize,
    /// Its columns of each row.
    rows: Vec<&'a mut [f32]>,
}

impl Cpu {
    /// `x · wᵀ + bias`.
    pub(crate) fn multiply(&self, x: &Tensor, w: &Matrix, bias: Option<&[f32]>) -> Tensor {
        let [product] = self.multiply_each(x, [(w, bias)]);
        product
    }

    /// `x · wᵀ + bias` for several matrices. `x` is made ready once for each kind of numbers among them.
    pub(crate) fn multiply_each<const N: usize>(
        &self,
        x: &Tensor,
        weights: [(&Matrix, Option<&[f32]>); N],
    ) -> [Tensor; N] {
        let mut products = weights.map(|(w, _)| self.tensor(x.rows(), w.outputs));
        let outputs: usize = weights.iter().map(|(w, _)| w.outputs).sum();
        let inputs = Inputs::of(self, x, weights.map(|(w, _)| w));
        let each = self.panels_of_task(x.rows(), outputs, 1);
        let mut tasks = Vec::new();
        for ((matrix, bias), product) in weights.into_iter().zip(&mut products) {
            tasks.extend(columns(matrix, bias, &mut product.data, each));
        }
        self.each(tasks, x.data.len() * outputs, |mut columns| self.columns(&inputs, &mut columns));
        products
    }

    /// `activation(x · gateᵀ) · (x · upᵀ)`, each with its bias: what stands between the products of a feed-forward block. A
    /// task computes some columns of both: no more of the second than these is ever in memory.
    pub(crate) fn multiply_gated(
        &self,
        x: &Tensor,
        activation: Activation,
        [gate, up]: [(&Matrix, Option<&[f32]>); 2],
    ) -> Result<Tensor> {
        let gated = Gated::by(activation)?;
        let mut product = self.tensor(x.rows(), gate.0.outputs);
        let inputs = Inputs::of(self, x, [gate.0, up.0]);
        debug_assert_eq!(gate.0.outputs, up.0.outputs);
        let each = self.panels_of_task(x.rows(), gate.0.outputs, 2);
        let tasks = columns(gate.0, gate.1, &mut product.data, each).collect();
        let work = x.data.len() * (gate.0.outputs + up.0.outputs);
        self.each(tasks, work, |mut columns: Columns<'_>| {
            self.columns(&inputs, &mut columns);
            let width = columns.rows.first().map_or(1, |row| row.len());
            let mut others = self.tensor(columns.rows.len(), width);
            let rows = others.data.chunks_exact_mut(width).collect();
            self.columns(&inputs, &mut Columns { matrix: up.0, bias: up.1, panel: columns.panel, rows });
            for (y, up) in columns.rows.into_iter().zip(others.data.chunks_exact(width)) {
                self.arch.dispatch(gated.of(y, up));
            }
        });
        Ok(product)
    }

    /// How many panels a task has of each of its matrices: few enough that threads end at about the same time, enough to be
    /// worth its while.
    fn panels_of_task(&self, rows: usize, outputs: usize, matrices: usize) -> usize {
        let panels = outputs.div_ceil(PANEL);
        panels.div_ceil(8 * self.threads.count()).max(if rows == 1 { 4 / matrices } else { 1 })
    }

    /// The rows of `x` in tiles of at most `most`, each made from its rows and their number, on all threads.
    fn in_tiles<T: Send>(&self, x: &Tensor, most: usize, make: impl Fn(&[f32], usize) -> T + Send + Sync) -> Vec<T> {
        let mut rest = &x.data[..];
        let cut = tile_heights(x.rows(), most).map(|rows| {
            let (own, others) = rest.split_at(rows * x.columns);
            rest = others;
            (own, rows, None)
        });
        let mut tiles: Vec<(&[f32], usize, Option<T>)> = cut.collect();
        self.each(tiles.iter_mut().collect(), 2 * x.data.len(), |(own, rows, tile)| *tile = Some(make(own, *rows)));
        tiles.into_iter().filter_map(|(.., tile)| tile).collect()
    }

    fn input(&self, x: &Tensor, kind: InputKind) -> Input {
        match kind {
            InputKind::F32 => Input::F32(self.tiles(x)),
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            InputKind::Bf16 => Input::Bf16(self.bf16_tiles(x)),
            InputKind::Bytes(order) => Input::Bytes(self.byte_tiles(x, order)),
        }
    }

    /// Computes the columns of a task.
    fn columns(&self, inputs: &Inputs, columns: &mut Columns<'_>) {
        match (&columns.matrix.weights, inputs.for_matrix(columns.matrix)) {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            (Weights::Bf16Interleaved(w, isa), Some(Input::Bf16(tiles))) => isa.columns(w, tiles, columns),
            (Weights::Quantized(w), Some(Input::Bytes(tiles))) => self.byte_columns(w, tiles, columns),
            (_, Some(Input::F32(tiles))) => self.float_columns(tiles, columns),
            _ => {}
        }
        if let Some(bias) = columns.bias {
            let bias = &bias[columns.panel * PANEL..];
            for row in &mut columns.rows {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }
}

/// Cuts a product into tasks of `each` panels.
fn columns<'a>(
    matrix: &'a Matrix,
    bias: Option<&'a [f32]>,
    product: &'a mut [f32],
    each: usize,
) -> impl Iterator<Item = Columns<'a>> {
    let rows = product.len() / matrix.outputs;
    let count = matrix.outputs.div_ceil(PANEL * each);
    let mut tasks: Vec<Columns<'a>> =
        (0..count).map(|task| Columns { matrix, bias, panel: task * each, rows: Vec::with_capacity(rows) }).collect();
    for row in product.chunks_exact_mut(matrix.outputs) {
        for (task, part) in tasks.iter_mut().zip(row.chunks_mut(PANEL * each)) {
            task.rows.push(part);
        }
    }
    tasks.into_iter()
}

/// How many rows each tile has, when `count` rows are cut into tiles of at most `most`, about equally high.
pub(crate) fn tile_heights(count: usize, most: usize) -> impl Iterator<Item = usize> {
    let tiles = count.div_ceil(most);
    (0..tiles).map(move |tile| count * (tile + 1) / tiles - count * tile / tiles)
}

/// What a panel has come to so far in a row, whose column it begins with: zeros where the panel is wider than the row.
#[inline(always)]
fn load_panel(row: &[f32], column: usize) -> [f32; PANEL] {
    load_columns(row, column)
}

/// Puts it back.
#[inline(always)]
fn store_panel(sums: &[f32; PANEL], row: &mut [f32], column: usize) {
    store_columns(sums, row, column);
}

/// [`load_panel`] for some columns.
#[inline(always)]
fn load_columns<const WIDTH: usize>(row: &[f32], column: usize) -> [f32; WIDTH] {
    let row = row.get(column..).unwrap_or_default();
    match row.first_chunk::<WIDTH>() {
        Some(row) => *row,
        None => {
            let mut sums = [0f32; WIDTH];
            sums[..row.len()].copy_from_slice(row);
            sums
        }
    }
}

/// [`store_panel`] for some columns.
#[inline(always)]
fn store_columns<const WIDTH: usize>(sums: &[f32; WIDTH], row: &mut [f32], column: usize) {
    let row = row.get_mut(column..).unwrap_or_default();
    match row.first_chunk_mut::<WIDTH>() {
        Some(row) => *row = *sums,
        None => row.copy_from_slice(&sums[..row.len()]),
    }
}
