//! What AVX2 does with f16 weights: F16C has an instruction that makes eight of them f32.

use std::arch::x86_64::*;

use half::f16;

use super::float::{BLOCK, Tile};
use super::{Columns, PANEL, store_panel};
use crate::isa::Avx2;

/// Vectors of a panel.
const VECTORS: usize = PANEL / 8;

impl Avx2 {
    /// Numbers as f32.
    pub(crate) fn widen(self, from: &[f16], to: &mut [f32]) {
        // SAFETY: `self` is made only where the machine has AVX2, FMA and F16C.
        #[allow(unsafe_code)]
        unsafe {
            widen(from, to);
        }
    }

    /// A few rows, at most four, times some panels.
    pub(super) fn few_rows(self, w: &[f16], tile: &Tile, columns: &mut Columns<'_>) {
        // SAFETY: `self` is made only where the machine has AVX2, FMA and F16C.
        #[allow(unsafe_code)]
        unsafe {
            multiply_columns(w, tile, columns);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen(from: &[f16], to: &mut [f32]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    from.iter().zip(to).for_each(|(from, to)| *to = bytemuck::cast(wide(*from)));
    from_rest.iter().zip(to_rest).for_each(|(from, to)| *to = from.to_f32_const());
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn wide(numbers: [f16; 8]) -> __m256 {
    _mm256_cvtph_ps(bytemuck::cast(numbers))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_columns(w: &[f16], tile: &Tile, columns: &mut Columns<'_>) {
    let Columns { matrix, panel: first, rows, .. } = columns;
    let width = rows.first().map_or(0, |row| row.len());
    for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
        let w = &w[panel * matrix.inputs * PANEL..(panel + 1) * matrix.inputs * PANEL];
        match tile.rows {
            1 => multiply::<1, VECTORS>(&tile.data, w, rows, column),
            2 => multiply::<2, VECTORS>(&tile.data, w, rows, column),
            3 => multiply::<3, { VECTORS / 2 }>(&tile.data, w, rows, column),
            _ => multiply::<4, { VECTORS / 2 }>(&tile.data, w, rows, column),
        }
    }
}

/// So many vectors of a panel together: as many as leave registers for what they are sums of. What is read a second time is in a
/// cache.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply<const ROWS: usize, const TOGETHER: usize>(x: &[f32], w: &[f16], rows: &mut [&mut [f32]], column: usize) {
    let mut panel = [[0f32; PANEL]; ROWS];
    for (x, w) in x.chunks(BLOCK * ROWS).zip(w.chunks(BLOCK * PANEL)) {
        for first in (0..VECTORS).step_by(TOGETHER) {
            let mut sums: [[__m256; TOGETHER]; ROWS] = panel.map(|panel| {
                let vectors: [__m256; VECTORS] = bytemuck::cast(panel);
                std::array::from_fn(|at| vectors[(first + at) % VECTORS])
            });
            for (x, w) in x.as_chunks::<ROWS>().0.iter().zip(w.as_chunks::<PANEL>().0) {
                let w: [[f16; 8]; VECTORS] = bytemuck::cast(*w);
                let w: [__m256; TOGETHER] = std::array::from_fn(|at| wide(w[(first + at) % VECTORS]));
                for (sums, x) in sums.iter_mut().zip(x) {
                    let x = _mm256_set1_ps(*x);
                    sums.iter_mut().zip(w).for_each(|(sum, w)| *sum = _mm256_fmadd_ps(x, w, *sum));
                }
            }
            for (panel, sums) in panel.iter_mut().zip(sums) {
                let vectors: &mut [[f32; 8]; VECTORS] = bytemuck::cast_mut(panel);
                vectors[first..first + TOGETHER].iter_mut().zip(sums).for_each(|(to, sums)| *to = bytemuck::cast(sums));
            }
        }
    }
    panel.iter().zip(rows).for_each(|(panel, row)| store_panel(panel, row, column));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Instructions;
    use crate::isa::Isa;

    #[test]
    fn every_f16_is_widened_to_the_number_that_it_is() {
        let Some(isa) = Isa::of(Instructions::Avx2).and_then(|isa| isa.f16) else { return };
        let numbers: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).chain([f16::ONE; 3]).collect();
        let mut wide = vec![0f32; numbers.len()];
        isa.widen(&numbers, &mut wide);
        for (number, wide) in numbers.iter().zip(wide) {
            let expected = number.to_f32_const();
            assert!(wide.to_bits() == expected.to_bits() || (wide.is_nan() && expected.is_nan()), "{number}: {wide}");
        }
    }
}
