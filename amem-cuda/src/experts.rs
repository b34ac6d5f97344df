//! Experts, chosen on the GPU: the host does not wait for what the router says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use amem_core::transformer::{Activation, ExpertWeights, MlpWeights};

use crate::backend::CudaBackend;
use crate::driver::{Buffer, Device, Launch};
use crate::error::CudaError;
use crate::tensor::{Matrix, Tensor};

/// Experts that a row goes through at most where the GPU chooses them: a warp has a lane for each.
const MOST_CHOSEN: usize = 32;

impl CudaBackend {
    /// What rows yield of the experts that they choose. `None` for what there are no kernels for: many rows, f32, blocks with
    /// biases or another activation than SiLU.
    pub(crate) fn chosen_experts(&self, x: &Tensor, w: &ExpertWeights<Self>) -> Result<Option<Tensor>, CudaError> {
        let (each, count) = (w.top_k, w.experts.len());
        let Some([gate, down]) = shapes(w) else { return Ok(None) };
        if !self.fuses(x) || each == 0 || each > count.min(MOST_CHOSEN) {
            return Ok(None);
        }
        let scores = self.product(x, &w.router, None)?;
        let x = self.narrowed(x)?;
        let choices = x.rows * each;
        let chosen = Buffer::new(self.device(), 4 * choices)?;
        let picked = Buffer::new(self.device(), 8 * choices)?;
        Launch::new(&self.device().kernel("select", "choose_experts")?, [x.rows, 1, 1])
            .buffer(&scores.buffer, 4 * x.rows * count)?
            .buffer(&chosen, 4 * choices)?
            .buffer(&picked, 8 * choices)?
            .count(count)
            .count(each)
            .count(w.norm_top_k.into())
            .submit(self.device())?;

        let tables = self.tables().of(self.device(), &w.experts)?;
        // Where the tables of gate, up and down begin.
        let [of_gate, of_up, of_down] = [0, 1, 2].map(|index| 8 * count * index);
        let gated = Tensor::new(self.device(), choices, gate.outputs, x.dtype)?;
        let launch = self.of_chosen("matvec_experts_swiglu", (&x, x.rows), gate, (&chosen, each))?;
        launch
            .part(&tables, of_up, 8 * count)?
            .part(&tables, of_gate, 8 * count)?
            .buffer(&gated.buffer, gated.bytes())?
            .count(gate.outputs)
            .submit(self.device())?;
        let made = Tensor::new(self.device(), choices, down.outputs, x.dtype)?;
        let launch = self.of_chosen("matvec_experts", (&gated, x.rows), down, (&chosen, each))?;
        launch
            .part(&tables, of_down, 8 * count)?
            .buffer(&made.buffer, made.bytes())?
            .count(down.outputs)
            .submit(self.device())?;
        Ok(Some(self.sum_picked(&made, &picked, (x.rows, each))?))
    }

    /// A launch for what the choices of so many rows make of `x`, with the arguments that all of them begin with.
    fn of_chosen(
        &self,
        name: &'static str,
        (x, rows): (&Tensor, usize),
        shape: &Matrix,
        (chosen, each): (&Buffer, usize),
    ) -> Result<Launch, CudaError> {
        if x.columns != shape.inputs {
            return Err(CudaError::Shape { kernel: name, needed: shape.inputs, found: x.columns });
        }
        let kernel = self.device().kernel(self.precision().matvec(), name)?;
        let grid = [shape.outputs.div_ceil(kernel.outputs().max(1)), rows * each, 1];
        let launch = Launch::new(&kernel, grid).buffer(&x.buffer, x.bytes())?.count(rows).count(x.columns);
        Ok(launch.buffer(chosen, 4 * rows * each)?.count(each))
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

/// Tables of the addresses of experts' weights on the GPU, for kernels that find out by themselves which of them to read:
/// those of gates, then of ups, then of downs.
#[derive(Default)]
pub(crate) struct Tables {
    /// By the first address.
    kept: Mutex<HashMap<u64, Table>>,
}

/// Addresses, and where they stand on the GPU.
struct Table {
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
        let buffer = Arc::new(device.upload(bytemuck::cast_slice(&addresses))?);
        kept.insert(first, Table { addresses, buffer: Arc::clone(&buffer) });
        Ok(buffer)
    }
}
