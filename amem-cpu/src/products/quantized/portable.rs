//! The product as plain arithmetic, of which compilers make what vector instructions there are.

use half::slice::HalfFloatSliceExt;

use super::super::{Columns, PANEL, store_panel};
use super::{ByteTile, Groups, Quantized};

/// Rows of the tallest tile.
pub(super) const TALLEST: usize = 8;

/// All rows times some panels.
pub(super) fn multiply_columns(w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
    let Columns { panel: first, rows, .. } = columns;
    let width = rows.first().map_or(0, |row| row.len());
    for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
        let groups = w.groups(panel, 0..w.groups);
        let mut rest = &mut rows[..];
        for tile in tiles {
            let (rows, others) = rest.split_at_mut(tile.rows);
            rest = others;
            for (index, row) in rows.iter_mut().enumerate() {
                multiply_row(&groups, tile, index, row, column);
            }
        }
    }
}

#[inline(always)]
fn multiply_row(w: &Groups<'_>, tile: &ByteTile, index: usize, row: &mut [f32], column: usize) {
    let Groups { layout, codes, scales, mins, unit } = *w;
    let mut totals = [0f32; PANEL];
    let (mut wide, mut wide_mins) = ([0f32; PANEL], [0f32; PANEL]);
    for (group, codes) in codes.chunks_exact(layout.units()).enumerate() {
        let x = tile.groups[group * tile.rows + index];
        let mut bytes = tile.bytes[group * layout.group / 4 * tile.rows + index..].iter().step_by(tile.rows);
        let mut sums = [-i32::from(layout.offset) * x.sum; PANEL];
        for codes in codes {
            let halves: &[(u8, u8)] = if layout.four_bits { &[(0, 15), (4, 15)] } else { &[(0, 255)] };
            for (shift, mask) in halves {
                let x = bytes.next().copied().unwrap_or_default().map(i32::from);
                for (sum, codes) in sums.iter_mut().zip(&codes.0) {
                    let code = |at: usize| i32::from(codes[at] >> shift & mask);
                    *sum += code(0) * x[0] + code(1) * x[1] + code(2) * x[2] + code(3) * x[3];
                }
            }
        }
        scales[group].0.convert_to_f32_slice(&mut wide);
        for ((total, sum), scale) in totals.iter_mut().zip(sums).zip(wide) {
            *total = (sum as f32).mul_add(scale * unit * x.scale, *total);
        }
        if let Some(mins) = mins {
            mins[group].0.convert_to_f32_slice(&mut wide_mins);
            let sum = x.sum as f32 * x.scale;
            for (total, min) in totals.iter_mut().zip(wide_mins) {
                *total = (min * unit).mul_add(-sum, *total);
            }
        }
    }
    store_panel(&totals, row, column);
}
