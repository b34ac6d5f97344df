//! Numbers on the GPU.

use std::sync::Arc;

use amem_core::transformer::WeightTensor;
use amem_core::{Dtype, Error};

use crate::driver::{Buffer, Device};
use crate::error::Result;
use crate::precision::Precision;

/// Activations, `[rows][columns]`: in f32, or in the precision that is computed in.
pub struct Tensor {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) dtype: Dtype,
    pub(crate) buffer: Buffer,
}

impl Tensor {
    /// A tensor that holds anything.
    pub(crate) fn new(device: &Arc<Device>, rows: usize, columns: usize, dtype: Dtype) -> Result<Self> {
        let bytes = rows.saturating_mul(columns).saturating_mul(dtype.size());
        Ok(Self { rows, columns, dtype, buffer: Buffer::new(device, bytes)? })
    }

    pub(crate) fn numbers(&self) -> usize {
        self.rows * self.columns
    }

    pub(crate) fn bytes(&self) -> usize {
        self.numbers() * self.dtype.size()
    }
}

/// A weight matrix `[outputs][inputs]`, in the precision that is computed in.
pub struct Matrix {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) weights: Buffer,
    /// Whether its products are logits, which stay f32.
    pub(crate) logits: bool,
}

/// A vector of weights: in f32 for norms, and in the precision that is computed in for biases.
pub struct Vector {
    pub(crate) len: usize,
    pub(crate) exact: Buffer,
    pub(crate) rounded: Buffer,
}

impl Vector {
    pub(crate) fn upload(device: &Arc<Device>, precision: Precision, values: &[f32]) -> Result<Self> {
        let mut rounded = Vec::new();
        precision.dtype().encode(values, &mut rounded);
        let exact = device.upload_lasting(bytemuck::cast_slice(values))?;
        Ok(Self { len: values.len(), exact, rounded: device.upload_lasting(&rounded)? })
    }
}

impl Matrix {
    /// Uploads a matrix. Bytes that have the right type already go to the GPU as they lie in the file; others are decoded
    /// into the precision that is computed in, quantised ones too.
    ///
    /// # Errors
    /// [`Error::UnsupportedModel`] when rows do not begin at multiples of 16 bytes.
    pub(crate) fn upload(
        device: &Arc<Device>,
        precision: Precision,
        tensor: &WeightTensor<'_>,
        logits: bool,
    ) -> amem_core::Result<Self> {
        let (outputs, inputs, from, to) = (tensor.rows, tensor.columns, tensor.dtype, precision.dtype());
        if !tensor.is_complete() {
            let value = format!("{} bytes for {outputs} × {inputs} numbers", tensor.bytes.len());
            return Err(Error::BadValue { what: "weights", value, expected: "one number for each entry" });
        }
        // Kernels read a row's numbers 16 bytes at a time.
        if !(inputs * to.size()).is_multiple_of(16) {
            return Err(Error::UnsupportedModel {
                what: format!("a weight matrix with rows of {inputs} numbers in {}, on a GPU", precision.name()),
                supported: "multiples of 8 are, and of 4 in f32; the CPU backend has all",
            });
        }
        let weights = Buffer::lasting(device, (outputs * inputs).saturating_mul(to.size()))?;
        if from.plain() == Some(to) && cfg!(target_endian = "little") {
            device.write(&weights, 0, tensor.bytes)?;
        } else {
            // A whole number of blocks of any type.
            const PIECE: usize = 1 << 20;
            let (mut wide, mut narrow) = (vec![0f32; PIECE], Vec::new());
            for (index, piece) in tensor.bytes.chunks(PIECE / from.block() * from.block_bytes()).enumerate() {
                let wide = &mut wide[..piece.len() / from.block_bytes() * from.block()];
                from.decode(piece, wide);
                narrow.clear();
                to.encode(wide, &mut narrow);
                device.write(&weights, index * PIECE * to.size(), &narrow)?;
            }
        }
        Ok(Self { outputs, inputs, weights, logits })
    }
}
