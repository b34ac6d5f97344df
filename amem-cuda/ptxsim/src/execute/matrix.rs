//! `ldmatrix` and `mma`: fragments of matrices that lie in the registers of a warp.

use super::access::{Machine, addresses};
use super::float::half_to_f32;
use super::shared::{Use, conflicts};
use super::warp::{ALL, LANES, Lanes, Warp};
use crate::fault::{FaultKind, Violation};
use crate::program::{Address, MatrixOperands, Registers};

/// Rows and columns of a matrix that `ldmatrix` loads.
const SIDE: usize = 8;

/// Bytes of a row.
const ROW: usize = 16;

impl Machine<'_> {
    /// Lane `8 m + r` gives the address of row `r` of matrix `m`. Lane `4 r + c` gets the elements `2 c` and `2 c + 1`
    /// of row `r` of each matrix, or of its transpose.
    pub(super) fn load_matrix(
        &mut self,
        warp: &mut Warp<'_>,
        mask: u32,
        transpose: bool,
        to: &Registers,
        at: Address,
    ) -> Result<(), Violation> {
        warp.demand_all(mask, FaultKind::Divergent)?;
        whole(mask)?;
        self.counts.matrix_loads += 1;
        let matrices = to.as_slice().len();
        let giving = ALL >> (LANES - matrices * SIDE);
        let addresses = addresses(warp, at, giving)?;
        self.counts.bank_conflicts += conflicts(&addresses, giving, ROW);
        for (matrix, register) in to.as_slice().iter().enumerate() {
            let mut elements = [[0u16; SIDE]; SIDE];
            for (row, elements) in elements.iter_mut().enumerate() {
                let lane = matrix * SIDE + row;
                let offset = self.shared.access(warp.number, lane, addresses[lane], ROW, Use::ReadForAll)?;
                let mut bytes = [0; ROW];
                self.shared.load(offset, &mut bytes);
                for (element, bytes) in elements.iter_mut().zip(bytes.chunks_exact(2)) {
                    *element = u16::from_le_bytes([bytes[0], bytes[1]]);
                }
            }
            let values: Lanes = std::array::from_fn(|lane| {
                let (row, column) = (lane / 4, lane % 4 * 2);
                let [low, high] = if transpose {
                    [elements[column][row], elements[column + 1][row]]
                } else {
                    [elements[row][column], elements[row][column + 1]]
                };
                u64::from(low) | u64::from(high) << 16
            });
            warp.write(*register, ALL, &values);
        }
        Ok(())
    }

    /// `d = a * b + c` with 16 rows, 8 columns, and a depth of 8 for each register of `b`.
    pub(super) fn matrix_product(
        &mut self,
        warp: &mut Warp<'_>,
        mask: u32,
        operands: &MatrixOperands,
    ) -> Result<(), Violation> {
        let MatrixOperands { half, d, a, b, c } = operands;
        warp.demand_all(mask, FaultKind::Divergent)?;
        whole(mask)?;
        self.counts.matrix_products += 1;
        let (mut left, mut right, mut sums) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
        let depth = b.as_slice().len() * 8;
        let pair = |value: u64| [half_to_f32(*half, value as u16), half_to_f32(*half, (value >> 16) as u16)];
        // Register `i` of `a` holds the rows from `8 (i % 2)` on, and the depths from `8 (i / 2)` on.
        for (index, register) in a.as_slice().iter().enumerate() {
            let values = warp.read(*register, ALL)?;
            for (lane, value) in values.iter().enumerate() {
                let (row, k) = (lane / 4 + index % 2 * 8, lane % 4 * 2 + index / 2 * 8);
                [left[row][k], left[row][k + 1]] = pair(*value);
            }
        }
        // Register `i` of `b` holds the depths from `8 i` on.
        for (index, register) in b.as_slice().iter().enumerate() {
            let values = warp.read(*register, ALL)?;
            for (lane, value) in values.iter().enumerate() {
                let (column, k) = (lane / 4, lane % 4 * 2 + index * 8);
                [right[k][column], right[k + 1][column]] = pair(*value);
            }
        }
        // Register `i` of `c` and `d` holds the rows from `8 (i / 2)` on, and of each lane's two columns one.
        let place = |index: usize, lane: usize| (lane / 4 + index / 2 * 8, lane % 4 * 2 + index % 2);
        for (index, register) in c.as_slice().iter().enumerate() {
            let values = warp.read(*register, ALL)?;
            for (lane, value) in values.iter().enumerate() {
                let (row, column) = place(index, lane);
                sums[row][column] = f32::from_bits(*value as u32);
            }
        }
        for (sums, left) in sums.iter_mut().zip(&left) {
            for (left, right) in left[..depth].iter().zip(&right) {
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum += left * right;
                }
            }
        }
        for (index, register) in d.as_slice().iter().enumerate() {
            let values: Lanes = std::array::from_fn(|lane| {
                let (row, column) = place(index, lane);
                u64::from(sums[row][column].to_bits())
            });
            warp.write(*register, ALL, &values);
        }
        Ok(())
    }
}

/// A matrix instruction needs all 32 lanes: none may have exited, and the block's last warp must be whole.
fn whole(mask: u32) -> Result<(), Violation> {
    if mask == ALL {
        return Ok(());
    }
    let detail = format!("a matrix instruction with the lanes {mask:#010x} only");
    Err(Violation::new(FaultKind::Divergent, (!mask).trailing_zeros() as usize, detail))
}
