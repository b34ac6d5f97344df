//! Products with weights: of few rows by kernels that read each weight once, of many by cuBLASLt.

use amem_core::transformer::{Activation, Backend, Linear, MlpWeights};
use amem_core::{Dtype, Error, Result};

use crate::backend::CudaBackend;
use crate::driver::{Launch, Product};
use crate::error::CudaError;
use crate::precision::Precision;
use crate::tensor::{Matrix, Tensor, Vector};

/// Rows that the kernels for few rows take: they are bound by reading the weights, however many rows there are up to
/// here.
const FEW_ROWS: usize = 8;

impl CudaBackend {
    /// `x · wᵀ + bias`.
    pub(crate) fn product(&self, x: &Tensor, w: &Matrix, bias: Option<&Vector>) -> Result<Tensor, CudaError> {
        let x = self.narrowed(x)?;
        let to = if w.logits { Dtype::F32 } else { self.precision().dtype() };
        let y = self.output(&x, w, to)?;
        if x.rows <= FEW_ROWS {
            // Where f32 is not what is computed in, logits have a kernel of their own.
            let logits = to == Dtype::F32 && self.precision() != Precision::F32;
            let name = if logits { "matvec_f32" } else { "matvec" };
            let launch = self.few_rows(name, &x, w.outputs.div_ceil(self.outputs(name)?))?;
            output(weights(launch, w, bias)?, &y)?.submit(self.device())?;
            return Ok(y);
        }
        let bias = bias.map(|bias| if to == Dtype::F32 { &bias.exact } else { &bias.rounded });
        let shape = (x.rows, w.inputs, w.outputs);
        let product = Product::new(shape, (x.dtype, to), [&x.buffer, &w.weights, &y.buffer], bias)?;
        self.device().multiply(product)?;
        if to == Dtype::F16 {
            // cuBLASLt rounds what is too large to infinity, and all other kernels to the largest number: so does this one,
            // which leaves the rest as it is.
            self.in_place("scale", &y)?.real(1.0).submit(self.device())?;
        }
        Ok(y)
    }

    /// Three products of the same rows.
    pub(crate) fn products(&self, x: &Tensor, of: [&Linear<Self>; 3]) -> Result<[Tensor; 3], CudaError> {
        if !self.fuses(x) {
            let [a, b, c] = of.map(|linear| self.product(x, &linear.weight, linear.bias.as_ref()));
            return Ok([a?, b?, c?]);
        }
        let x = self.narrowed(x)?;
        let name = "matvec_qkv";
        let outputs = self.outputs(name)?;
        let blocks = of.iter().map(|linear| linear.weight.outputs.div_ceil(outputs)).sum();
        let [a, b, c] = of.map(|linear| self.output(&x, &linear.weight, x.dtype));
        let made = [a?, b?, c?];
        let mut launch = self.few_rows(name, &x, blocks)?;
        for (linear, y) in of.iter().zip(&made) {
            launch = output(weights(launch, &linear.weight, linear.bias.as_ref())?, y)?;
        }
        launch.submit(self.device())?;
        Ok(made)
    }

    /// `silu(gate) · up` of a feed-forward block's rows, or what its activation is.
    pub(crate) fn gated(&self, x: &Tensor, w: &MlpWeights<Self>) -> Result<Tensor> {
        if !self.fuses(x) || w.up.weight.outputs != w.gate.weight.outputs {
            let product = |linear: &Linear<Self>| self.product(x, &linear.weight, linear.bias.as_ref());
            let (gate, up) = (product(&w.gate)?, product(&w.up)?);
            return match w.activation {
                Activation::Silu => self.silu_mul(&gate, &up),
                Activation::GeluTanh => self.gelu_mul(&gate, &up),
                other => Err(unsupported(other)),
            };
        }
        let x = self.narrowed(x)?;
        let name = match w.activation {
            Activation::Silu => "matvec_swiglu",
            Activation::GeluTanh => "matvec_geglu",
            other => return Err(unsupported(other)),
        };
        let y = self.output(&x, &w.gate.weight, x.dtype)?;
        // The columns of `up` are checked like those of `gate`.
        self.output(&x, &w.up.weight, x.dtype)?;
        let launch = self.few_rows(name, &x, w.gate.weight.outputs.div_ceil(self.outputs(name)?))?;
        let launch = weights(launch, &w.up.weight, w.up.bias.as_ref())?;
        let launch = weights(launch, &w.gate.weight, w.gate.bias.as_ref())?;
        output(launch, &y)?.submit(self.device())?;
        Ok(y)
    }

    /// Whether several products are one launch: f32 has no kernels for that.
    pub(crate) fn fuses(&self, x: &Tensor) -> bool {
        x.rows <= FEW_ROWS && self.precision() != Precision::F32
    }

    /// Room for what comes of a product.
    fn output(&self, x: &Tensor, w: &Matrix, dtype: Dtype) -> Result<Tensor, CudaError> {
        if x.columns != w.inputs {
            return Err(CudaError::Shape { kernel: "a product", needed: w.inputs, found: x.columns });
        }
        Tensor::new(self.device(), x.rows, w.outputs, dtype)
    }

    /// How many outputs a block of a kernel for few rows has.
    fn outputs(&self, name: &'static str) -> Result<usize, CudaError> {
        Ok(self.device().kernel(self.precision().matvec(), name)?.outputs().max(1))
    }

    /// A launch for few rows, with the arguments that all of them begin with.
    fn few_rows<'b>(&self, name: &'static str, x: &'b Tensor, blocks: usize) -> Result<Launch<'b>, CudaError> {
        // Without rows there is nothing to do.
        let blocks = if x.rows == 0 { 0 } else { blocks };
        let kernel = self.device().kernel(self.precision().matvec(), name)?;
        Ok(Launch::new(&kernel, [blocks, 1, 1]).buffer(&x.buffer, x.bytes())?.count(x.rows).count(x.columns))
    }
}

/// What is said of an activation that there is no kernel for.
fn unsupported(activation: Activation) -> Error {
    let what = format!("feed-forward blocks with the activation {activation:?}, on a GPU");
    Error::UnsupportedModel { what, supported: "silu and gelu_pytorch_tanh are" }
}

/// A matrix and its bias, as the next arguments.
fn weights<'b>(launch: Launch<'b>, w: &'b Matrix, bias: Option<&'b Vector>) -> Result<Launch<'b>, CudaError> {
    let launch = launch.buffer(&w.weights, w.weights.bytes())?;
    match bias {
        Some(bias) => launch.buffer(&bias.exact, 4 * w.outputs),
        None => Ok(launch.none()),
    }
}

/// Where the result goes and how wide it is, as the next arguments.
fn output<'b>(launch: Launch<'b>, y: &'b Tensor) -> Result<Launch<'b>, CudaError> {
    Ok(launch.buffer(&y.buffer, y.bytes())?.count(y.columns))
}
