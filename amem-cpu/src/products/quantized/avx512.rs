//! The product with AVX-512 VNNI: `vpdpbusd` adds the products of four inputs to an i32, for sixteen outputs at a time.

use std::arch::x86_64::*;

use super::super::{Columns, PANEL, load_panel, store_panel};
use super::{BLOCK_INPUTS, ByteTile, Groups, Quantized, RowGroup, Scales};
use crate::unroll::with_rows;

/// Rows of the tallest tile.
pub(super) const TALLEST: usize = 8;

/// All rows times some panels.
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni")]
pub(super) fn multiply_columns(w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
    let Columns { panel: first, rows, .. } = columns;
    let width = rows.first().map_or(0, |row| row.len());
    let block = (BLOCK_INPUTS / w.layout.group).max(1);
    for start in (0..w.groups).step_by(block) {
        let end = w.groups.min(start + block);
        for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
            let groups = w.groups(panel, start..end);
            let mut rest = &mut rows[..];
            for tile in tiles {
                let (rows, others) = rest.split_at_mut(tile.rows);
                rest = others;
                let x = &tile.bytes[start * w.layout.group / 4 * tile.rows..end * w.layout.group / 4 * tile.rows];
                let x_groups = &tile.groups[start * tile.rows..end * tile.rows];
                let (to, begun) = ((rows, column), start > 0);
                if w.layout.four_bits {
                    with_rows!(tile.rows, |ROWS| multiply::<ROWS, true>(&groups, x, x_groups, to, begun));
                } else {
                    with_rows!(tile.rows, |ROWS| multiply::<ROWS, false>(&groups, x, x_groups, to, begun));
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni")]
fn wide(scales: &Scales, unit: __m512) -> [__m512; 2] {
    let halves: [__m256i; 2] = bytemuck::cast(scales.0);
    halves.map(|half| _mm512_mul_ps(_mm512_cvtph_ps(half), unit))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni")]
fn multiply<const ROWS: usize, const FOUR_BITS: bool>(
    w: &Groups<'_>,
    x: &[[i8; 4]],
    x_groups: &[RowGroup],
    (rows, column): (&mut [&mut [f32]], usize),
    begun: bool,
) {
    let Groups { layout, codes, scales, mins, unit } = *w;
    let unit = _mm512_set1_ps(unit);
    let offset = -i32::from(layout.offset);
    let low = _mm512_set1_epi8(15);
    let mut totals = [[_mm512_setzero_ps(); 2]; ROWS];
    if begun {
        totals.iter_mut().zip(&*rows).for_each(|(totals, row)| *totals = bytemuck::cast(load_panel(row, column)));
    }
    let groups = codes.chunks_exact(layout.units()).zip(x.chunks_exact(layout.group / 4 * ROWS));
    for (index, ((codes, x), x_groups)) in groups.zip(x_groups.as_chunks::<ROWS>().0).enumerate() {
        let mut sums: [[__m512i; 2]; ROWS] =
            std::array::from_fn(|row| [_mm512_set1_epi32(offset * x_groups[row].sum); 2]);
        if FOUR_BITS {
            for (codes, x) in codes.iter().zip(x.as_chunks::<ROWS>().0.as_chunks::<2>().0) {
                let both: [__m512i; 2] = bytemuck::cast(codes.0);
                let lower = both.map(|codes| _mm512_and_si512(codes, low));
                let upper = both.map(|codes| _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low));
                for ((sums, &first), &second) in sums.iter_mut().zip(&x[0]).zip(&x[1]) {
                    let first = _mm512_set1_epi32(i32::from_ne_bytes(bytemuck::cast(first)));
                    let second = _mm512_set1_epi32(i32::from_ne_bytes(bytemuck::cast(second)));
                    for half in 0..2 {
                        sums[half] = _mm512_dpbusd_epi32(sums[half], lower[half], first);
                        sums[half] = _mm512_dpbusd_epi32(sums[half], upper[half], second);
                    }
                }
            }
        } else {
            for (codes, x) in codes.iter().zip(x.as_chunks::<ROWS>().0) {
                let both: [__m512i; 2] = bytemuck::cast(codes.0);
                for (sums, &x) in sums.iter_mut().zip(x) {
                    let x = _mm512_set1_epi32(i32::from_ne_bytes(bytemuck::cast(x)));
                    for half in 0..2 {
                        sums[half] = _mm512_dpbusd_epi32(sums[half], both[half], x);
                    }
                }
            }
        }
        let scales = wide(&scales[index], unit);
        for ((totals, sums), x) in totals.iter_mut().zip(&sums).zip(x_groups) {
            let of_row = _mm512_set1_ps(x.scale);
            for half in 0..2 {
                let scale = _mm512_mul_ps(scales[half], of_row);
                totals[half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[half]), scale, totals[half]);
            }
        }
        if let Some(mins) = mins {
            let mins = wide(&mins[index], unit);
            for (totals, x) in totals.iter_mut().zip(x_groups) {
                let sum = _mm512_set1_ps(x.sum as f32 * x.scale);
                for half in 0..2 {
                    totals[half] = _mm512_fnmadd_ps(mins[half], sum, totals[half]);
                }
            }
        }
    }
    totals.iter().zip(rows).for_each(|(totals, row)| store_panel(&bytemuck::cast(*totals), row, column));
}
