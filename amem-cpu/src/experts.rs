//! What experts made of rows, put together again.

use amem_core::{Error, Result};
use pulp::{Simd, WithSimd};

use crate::{Cpu, Tensor};

/// One sum of rows of `x`, each times what it counts, added up in their order.
struct Sum<'a> {
    x: &'a Tensor,
    picked: &'a [(usize, f32)],
    /// Zeros before.
    sum: &'a mut [f32],
}

impl WithSimd for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let columns = self.sum.len();
        for &(row, weight) in self.picked {
            let Some(row) = self.x.data.get(row * columns..(row + 1) * columns) else { continue };
            for (sum, &x) in self.sum.iter_mut().zip(row) {
                *sum = weight.mul_add(x, *sum);
            }
        }
    }
}

impl Cpu {
    /// See [`Backend::sum_rows`](amem_core::transformer::Backend::sum_rows).
    pub(crate) fn sums(&self, x: &Tensor, picked: &[(usize, f32)], each: usize) -> Result<Tensor> {
        if let Some((row, _)) = picked.iter().find(|(row, _)| *row >= x.rows()) {
            return Err(Error::BadValue { what: "row", value: row.to_string(), expected: "one of the tensor's" });
        }
        let each = each.max(1);
        let mut sums = self.tensor(picked.len() / each, x.columns);
        sums.data.fill(0.0);
        let parts = sums.data.chunks_exact_mut(x.columns.max(1)).zip(picked.chunks_exact(each)).collect();
        self.each(parts, picked.len() * x.columns, |(sum, picked)| self.arch.dispatch(Sum { x, picked, sum }));
        Ok(sums)
    }
}
