//! The product with 256-bit vectors: AVX-VNNI, whose `vpdpbusd` adds the products of four inputs to an i32, and AVX2, where
//! two instructions add them in two steps.
//!
//! The first of these steps has room for 16 bits. Codes of up to 6 bits fit. Those of 8 bits are taken as signed numbers: their
//! magnitudes times bytes that have taken their sign are at most 2 · 128 · 127.

use std::arch::x86_64::*;

use super::super::{Columns, PANEL, load_panel, store_panel};
use super::{BLOCK, ByteTile, Groups, Quantized, RowGroup, Scales};
use crate::isa::{Avx2, AvxVnni};

impl AvxVnni {
    /// All rows times some panels.
    pub(super) fn byte_columns(self, w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
        // SAFETY: `self` is made only where the machine has AVX2, FMA, F16C and AVX-VNNI.
        #[allow(unsafe_code)]
        unsafe {
            vnni::multiply_columns(w, tiles, columns);
        }
    }
}

impl Avx2 {
    /// All rows times some panels.
    pub(super) fn byte_columns(self, w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
        // SAFETY: `self` is made only where the machine has AVX2, FMA and F16C.
        #[allow(unsafe_code)]
        unsafe {
            two_steps::multiply_columns(w, tiles, columns);
        }
    }
}

/// Vectors of a panel.
const VECTORS: usize = PANEL / 8;

/// The kernels with these features. `$dot` adds to sums the products of codes, which are signed or not, with bytes; with the
/// second `$signed`, codes of offset 128 are signed.
macro_rules! kernels {
    ($module:ident, $features:literal, signed: $signed:literal, $dot:item) => {
        mod $module {
            use super::*;

            #[target_feature(enable = $features)]
            pub(super) fn multiply_columns(w: &Quantized, tiles: &[ByteTile], columns: &mut Columns<'_>) {
                let Columns { panel: first, rows, .. } = columns;
                let width = rows.first().map_or(0, |row| row.len());
                let block = (BLOCK / w.layout.group).max(1);
                for start in (0..w.groups).step_by(block) {
                    let range = start..w.groups.min(start + block);
                    for (panel, column) in (*first..).zip((0..width).step_by(PANEL)) {
                        let groups = w.groups(panel, range.clone());
                        let mut rest = &mut rows[..];
                        for tile in tiles {
                            let (rows, others) = rest.split_at_mut(tile.rows);
                            rest = others;
                            let fours = w.layout.group / 4 * tile.rows;
                            let x = &tile.bytes[range.start * fours..range.end * fours];
                            let x_groups = &tile.groups[range.start * tile.rows..range.end * tile.rows];
                            for (index, rows) in rows.chunks_mut(2).enumerate() {
                                let (x, place) = ((x, x_groups), (tile.rows, 2 * index));
                                match (rows.len(), w.layout.four_bits) {
                                    (2, true) => multiply::<2, true>(&groups, x, place, (rows, column), start > 0),
                                    (2, false) => multiply::<2, false>(&groups, x, place, (rows, column), start > 0),
                                    (_, true) => multiply::<1, true>(&groups, x, place, (rows, column), start > 0),
                                    (_, false) => multiply::<1, false>(&groups, x, place, (rows, column), start > 0),
                                }
                            }
                        }
                    }
                }
            }

            /// Two rows of a tile of `height`, or one, from `first` on.
            #[inline]
            #[target_feature(enable = $features)]
            fn multiply<const ROWS: usize, const FOUR_BITS: bool>(
                w: &Groups<'_>,
                (x, x_groups): (&[[i8; 4]], &[RowGroup]),
                (height, first): (usize, usize),
                (rows, column): (&mut [&mut [f32]], usize),
                begun: bool,
            ) {
                let Groups { layout, codes, scales, mins, unit } = *w;
                let signed = $signed && layout.offset == 128;
                let offset = if signed { 0 } else { -i32::from(layout.offset) };
                let low = _mm256_set1_epi8(15);
                let unit = _mm256_set1_ps(unit);
                let mut totals = [[_mm256_setzero_ps(); VECTORS]; ROWS];
                if begun {
                    totals.iter_mut().zip(&*rows).for_each(|(to, row)| *to = bytemuck::cast(load_panel(row, column)));
                }
                let units = codes.chunks_exact(layout.units()).zip(x.chunks_exact(layout.group / 4 * height));
                for (index, ((codes, x), x_groups)) in units.zip(x_groups.chunks_exact(height)).enumerate() {
                    let x_groups: [RowGroup; ROWS] = std::array::from_fn(|row| x_groups[first + row]);
                    let mut sums = x_groups.map(|x| [_mm256_set1_epi32(offset * x.sum); VECTORS]);
                    let mut fours = x.chunks_exact(height);
                    let mut next = || -> [__m256i; ROWS] {
                        let fours = fours.next().unwrap_or_default();
                        std::array::from_fn(|row| {
                            let four = fours.get(first + row).copied().unwrap_or_default();
                            _mm256_set1_epi32(i32::from_ne_bytes(bytemuck::cast(four)))
                        })
                    };
                    for codes in codes {
                        let codes: [__m256i; VECTORS] = bytemuck::cast(codes.0);
                        if FOUR_BITS {
                            let (lower, upper) = (next(), next());
                            for (vector, codes) in codes.into_iter().enumerate() {
                                let low_codes = _mm256_and_si256(codes, low);
                                let high_codes = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
                                for row in 0..ROWS {
                                    sums[row][vector] = dot(sums[row][vector], low_codes, lower[row], false);
                                    sums[row][vector] = dot(sums[row][vector], high_codes, upper[row], false);
                                }
                            }
                        } else {
                            let x = next();
                            for (vector, codes) in codes.into_iter().enumerate() {
                                for row in 0..ROWS {
                                    sums[row][vector] = dot(sums[row][vector], codes, x[row], signed);
                                }
                            }
                        }
                    }
                    let scales = wide(&scales[index], unit);
                    let mins = mins.map(|mins| wide(&mins[index], unit));
                    for ((totals, sums), x) in totals.iter_mut().zip(sums).zip(x_groups) {
                        let of_row = _mm256_set1_ps(x.scale);
                        for vector in 0..VECTORS {
                            let scale = _mm256_mul_ps(scales[vector], of_row);
                            totals[vector] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[vector]), scale, totals[vector]);
                        }
                        if let Some(mins) = mins {
                            let sum = _mm256_set1_ps(x.sum as f32 * x.scale);
                            for vector in 0..VECTORS {
                                totals[vector] = _mm256_fnmadd_ps(mins[vector], sum, totals[vector]);
                            }
                        }
                    }
                }
                totals.iter().zip(rows).for_each(|(totals, row)| store_panel(&bytemuck::cast(*totals), row, column));
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn wide(scales: &Scales, unit: __m256) -> [__m256; VECTORS] {
                let quarters: [__m128i; VECTORS] = bytemuck::cast(scales.0);
                quarters.map(|quarter| _mm256_mul_ps(_mm256_cvtph_ps(quarter), unit))
            }

            #[inline]
            #[target_feature(enable = $features)]
            $dot
        }
    };
}

kernels!(
    vnni,
    "avx2,fma,f16c,avxvnni",
    signed: false,
    fn dot(sums: __m256i, codes: __m256i, x: __m256i, _: bool) -> __m256i {
        _mm256_dpbusd_avx_epi32(sums, codes, x)
    }
);

kernels!(
    two_steps,
    "avx2,fma,f16c",
    signed: true,
    fn dot(sums: __m256i, codes: __m256i, x: __m256i, signed: bool) -> __m256i {
        let (codes, x) = if signed {
            let codes = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
            (_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
        } else {
            (codes, x)
        };
        _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)))
    }
);
