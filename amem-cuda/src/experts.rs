//! Experts, chosen on the GPU: the host does not wait for what the router says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use amem_core::transformer::{Activation, ExpertWeights, MlpWeights};

use crate::backend::CudaBackend;
use crate::driver::{Buffer, Device, Launch};
use crate::error::CudaError;
use crate::tensor::{Matrix, Tensor};

/// Experts that a row goes through at most where the GPU chooses them: a warp has a lane for each.
const MAX_TOP_K: usize = 32;

/// Experts at most where the GPU groups the choices of many rows.
const MAX_EXPERTS: usize = 4096;

/// Choices of a tile, in the kernel that makes tiles and in those that multiply them.
const TILE_ROWS: usize = 64;

/// What rows chose, on the GPU.
struct Choices {
    rows: usize,
    /// Experts that each row chose.
    each: usize,
    /// Their numbers, `[rows][each]`.
    experts: Buffer,
    /// For each choice its index and what it counts.
    picked: Buffer,
}

impl Choices {
    fn count(&self) -> usize {
        self.rows * self.each
    }
}

/// The same choices, those of an expert together, in tiles.
struct Tiles {
    order: Buffer,
    tiles: Buffer,
    /// How many tiles there may be.
    most: usize,
}

impl CudaBackend {
    /// What rows yield of the experts that they choose. `None` for what there are no kernels for: f32, blocks with biases
    /// or another activation than SiLU, more than 32 experts of a row; and of more rows than decoding has, more than 4,096
    /// experts, odd numbers of outputs, and more tiles than a grid has blocks.
    pub(crate) fn chosen_experts(&self, x: &Tensor, w: &ExpertWeights<Self>) -> Result<Option<Tensor>, CudaError> {
        let Some([gate, down]) = shapes(w) else { return Ok(None) };
        let few = self.fuses(x);
        let (Some(module), true) = (self.precision().experts(), few || takes_many(w, [gate, down], x.rows)) else {
            return Ok(None);
        };
        if w.top_k == 0 || w.top_k > w.experts.len().min(MAX_TOP_K) {
            return Ok(None);
        }
        let choices = self.choose_experts(x, w)?;
        let x = self.narrowed(x)?;
        let tables = self.tables().of(self.device(), &w.experts)?;
        // Where the tables of gate, up and down begin.
        let bytes = 8 * w.experts.len();
        let [of_gate, of_up, of_down] = [0, 1, 2].map(|index| bytes * index);
        let gated = Tensor::new(self.device(), choices.count(), gate.outputs, x.dtype)?;
        let made = Tensor::new(self.device(), choices.count(), down.outputs, x.dtype)?;
        let tiles = if few { None } else { Some(self.group_choices(&choices, w.experts.len())?) };
        let [swiglu, product] = match &tiles {
            None => [
                self.few_of_experts("matvec_experts_swiglu", &x, gate, &choices)?,
                self.few_of_experts("matvec_experts", &gated, down, &choices)?,
            ],
            Some(tiles) => [
                self.many_of_experts((module, "experts_swiglu"), (&x, choices.each), gate, (&choices, tiles))?,
                self.many_of_experts((module, "experts_product"), (&gated, 1), down, (&choices, tiles))?,
            ],
        };
        swiglu
            .part(&tables, of_up, bytes)?
            .part(&tables, of_gate, bytes)?
            .buffer(&gated.buffer, gated.bytes())?
            .count(gate.outputs)
            .submit(self.device())?;
        product
            .part(&tables, of_down, bytes)?
            .buffer(&made.buffer, made.bytes())?
            .count(down.outputs)
            .submit(self.device())?;
        Ok(Some(self.sum_picked(&made, &choices.picked, (choices.rows, choices.each))?))
    }

    /// Each row's experts, and what they count.
    fn choose_experts(&self, x: &Tensor, w: &ExpertWeights<Self>) -> Result<Choices, CudaError> {
        let (rows, each, count) = (x.rows, w.top_k, w.experts.len());
        let scores = self.product(x, &w.router, None)?;
        let experts = Buffer::new(self.device(), 4 * rows * each)?;
        let picked = Buffer::new(self.device(), 8 * rows * each)?;
        Launch::new(&self.device().kernel("select", "choose_experts")?, [rows, 1, 1])
            .buffer(&scores.buffer, 4 * rows * count)?
            .buffer(&experts, 4 * rows * each)?
            .buffer(&picked, 8 * rows * each)?
            .count(count)
            .count(each)
            .count(w.norm_top_k.into())
            .submit(self.device())?;
        Ok(Choices { rows, each, experts, picked })
    }

    /// Choices of `count` experts, in tiles.
    fn group_choices(&self, choices: &Choices, count: usize) -> Result<Tiles, CudaError> {
        let kernel = self.device().kernel("select", "group_choices")?;
        let most = tiles_at_most(choices.count(), count);
        let order = Buffer::new(self.device(), 4 * choices.count())?;
        let tiles = Buffer::new(self.device(), 16 * most)?;
        Launch::new(&kernel, [1, 1, 1])
            .buffer(&choices.experts, 4 * choices.count())?
            .buffer(&order, 4 * choices.count())?
            .buffer(&tiles, 16 * most)?
            .count(choices.count())
            .count(count)
            .count(most)
            .submit(self.device())?;
        Ok(Tiles { order, tiles, most })
    }

    /// A launch for what the choices of many rows make of `x`, of which each row is that of `each` choices.
    fn many_of_experts<'b>(
        &self,
        (module, name): (&'static str, &'static str),
        (x, each): (&'b Tensor, usize),
        shape: &Matrix,
        (choices, tiles): (&Choices, &'b Tiles),
    ) -> Result<Launch<'b>, CudaError> {
        if x.columns != shape.inputs {
            return Err(CudaError::Shape { kernel: name, needed: shape.inputs, found: x.columns });
        }
        let kernel = self.device().kernel(module, name)?;
        let grid = [shape.outputs.div_ceil(kernel.outputs().max(1)), tiles.most, 1];
        Ok(Launch::new(&kernel, grid)
            .buffer(&x.buffer, x.bytes())?
            .count(x.columns)
            .buffer(&tiles.order, 4 * choices.count())?
            .buffer(&tiles.tiles, 16 * tiles.most)?
            .count(each))
    }

    /// A launch for what the choices of few rows make of `x`.
    fn few_of_experts<'b>(
        &self,
        name: &'static str,
        x: &'b Tensor,
        shape: &Matrix,
        choices: &'b Choices,
    ) -> Result<Launch<'b>, CudaError> {
        if x.columns != shape.inputs {
            return Err(CudaError::Shape { kernel: name, needed: shape.inputs, found: x.columns });
        }
        let kernel = self.device().kernel(self.precision().matvec(), name)?;
        let grid = [shape.outputs.div_ceil(kernel.outputs().max(1)), choices.count(), 1];
        let launch = Launch::new(&kernel, grid).buffer(&x.buffer, x.bytes())?.count(choices.rows).count(x.columns);
        Ok(launch.buffer(&choices.experts, 4 * choices.count())?.count(choices.each))
    }

    /// Sums of rows of `x`: one for each `each` of `picked`, pairs of a row and what it counts.
    pub(crate) fn sum_picked(
        &self,
        x: &Tensor,
        picked: &Buffer,
        (rows, each): (usize, usize),
    ) -> Result<Tensor, CudaError> {
        let y = Tensor::new(self.device(), rows, x.columns, x.dtype)?;
        self.elementwise("sum_rows", [rows, 1, 1])?
            .buffer(&x.buffer, x.bytes())?
            .buffer(picked, 8 * rows * each)?
            .buffer(&y.buffer, y.bytes())?
            .count(each)
            .count(y.columns)
            .submit(self.device())?;
        Ok(y)
    }
}

/// One expert's gate and down, if the kernels take experts like these: all alike, of SiLU, without biases.
fn shapes(w: &ExpertWeights<CudaBackend>) -> Option<[&Matrix; 2]> {
    let first = w.experts.first()?;
    let shape = |matrix: &Matrix| (matrix.outputs, matrix.inputs);
    let [gate, down] = [&first.gate.weight, &first.down.weight];
    let alike = |expert: &MlpWeights<CudaBackend>| {
        let linears = [&expert.gate, &expert.up, &expert.down];
        expert.activation == Activation::Silu
            && linears.iter().all(|linear| linear.bias.is_none())
            && linears.map(|linear| shape(&linear.weight)) == [gate, gate, down].map(shape)
    };
    (w.experts.iter().all(alike) && down.inputs == gate.outputs).then_some([gate, down])
}

/// Whether the kernels for many rows take experts like these, and so many rows.
fn takes_many(w: &ExpertWeights<CudaBackend>, [gate, down]: [&Matrix; 2], rows: usize) -> bool {
    /// Blocks of a grid in this direction.
    const MAX_TILES: usize = (1 << 16) - 1;
    let even = |matrix: &Matrix| matrix.outputs.is_multiple_of(2);
    let count = w.experts.len();
    even(gate) && even(down) && count <= MAX_EXPERTS && tiles_at_most(rows.saturating_mul(w.top_k), count) <= MAX_TILES
}

/// How many tiles so many choices of so many experts may come to.
fn tiles_at_most(choices: usize, experts: usize) -> usize {
    choices / TILE_ROWS + experts.min(choices)
}

/// Tables of the addresses of experts' weights on the GPU, for kernels that find out by themselves which of them to read:
/// those of gates, then of ups, then of downs.
#[derive(Default)]
pub(crate) struct Tables {
    /// By the first address.
    kept: Mutex<HashMap<u64, Addresses>>,
}

/// Addresses, and where they stand on the GPU.
struct Addresses {
    addresses: Vec<u64>,
    buffer: Arc<Buffer>,
}

impl Tables {
    /// The table of these experts. It is made when it is first asked for, and again when other weights have taken the place
    /// of weights that were dropped.
    fn of(&self, device: &Arc<Device>, experts: &[MlpWeights<CudaBackend>]) -> Result<Arc<Buffer>, CudaError> {
        let address = |matrix: fn(&MlpWeights<CudaBackend>) -> &Matrix| {
            experts.iter().map(move |expert| matrix(expert).weights.address())
        };
        let addresses = address(|w| &w.gate.weight).chain(address(|w| &w.up.weight)).chain(address(|w| &w.down.weight));
        let first = addresses.clone().next().unwrap_or(0);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = kept.get(&first)
            && addresses.clone().eq(table.addresses.iter().copied())
        {
            return Ok(Arc::clone(&table.buffer));
        }
        let addresses: Vec<u64> = addresses.collect();
        let buffer = Arc::new(device.upload_lasting(bytemuck::cast_slice(&addresses))?);
        kept.insert(first, Addresses { addresses, buffer: Arc::clone(&buffer) });
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx;

    #[test]
    fn kernels_agree_on_how_many_choices_a_tile_has() {
        for (module, name) in [
            ("select", "group_choices"),
            ("experts_f16", "experts_swiglu"),
            ("experts_f16", "experts_product"),
            ("experts_bf16", "experts_swiglu"),
            ("experts_bf16", "experts_product"),
        ] {
            let entry = ptx::entries(module).iter().find(|entry| entry.name == name);
            assert_eq!(entry.map(|entry| entry.rows as usize), Some(TILE_ROWS), "{name} of {module}");
        }
    }
}
