//! What packing is: of the rows of a panel's outputs, the numbers for one input come to lie side by side.
//!
//! Stores bound it, where each number is stored by itself. So rows are taken a few at a time, and what comes to lie side by
//! side is put together in a register of eight bytes. That is written as arithmetic, of which compilers make vector
//! instructions.

use pulp::{Simd, WithSimd};

use super::PANEL;

/// Inputs that are put together at a time.
const STEP: usize = 16;
/// Inputs of all rows that are gone through together: what they become stays in a core's nearest cache. With half as many,
/// the core fetches too little of a row ahead, and packing takes twice as long.
const PART: usize = 128;

/// A number as a file has it.
pub(super) trait Number: Copy + Send + Sync {
    fn wide(self) -> u64;
}

impl Number for [u8; 2] {
    #[inline(always)]
    fn wide(self) -> u64 {
        u64::from(u16::from_le_bytes(self))
    }
}

impl Number for [u8; 4] {
    #[inline(always)]
    fn wide(self) -> u64 {
        u64::from(u32::from_le_bytes(self))
    }
}

/// Numbers of 2 and 4 bytes: as many rows as make eight bytes.
pub(super) type Fours<'a> = Transpose<'a, [u8; 2], 4>;
pub(super) type Pairs<'a> = Transpose<'a, [u8; 4], 2>;

/// Puts rows of `inputs` numbers into the first columns of a panel: `panel[input][row] = rows[row][input]`.
pub(super) struct Transpose<'a, T, const ROWS: usize> {
    pub(super) rows: &'a [T],
    pub(super) inputs: usize,
    pub(super) panel: &'a mut [[T; PANEL]],
}

impl<T: Number, const ROWS: usize> WithSimd for Transpose<'_, T, ROWS>
where
    [T; PANEL]: bytemuck::Pod,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { rows, inputs, panel } = self;
        for start in (0..inputs).step_by(PART) {
            let part = start..inputs.min(start + PART);
            for (group, rows) in rows.chunks(ROWS * inputs).enumerate() {
                let (panel, first) = (&mut panel[part.clone()], group * ROWS);
                let mut own = [&[][..]; ROWS];
                own.iter_mut().zip(rows.chunks_exact(inputs)).for_each(|(own, row)| *own = &row[part.clone()]);
                let done = if rows.len() == ROWS * inputs { put_together(own, panel, first) } else { 0 };
                for (row, numbers) in own.into_iter().enumerate() {
                    let rest = panel.iter_mut().zip(numbers).skip(done);
                    rest.for_each(|(panel, number)| panel[first + row] = *number);
                }
            }
        }
    }
}

/// Does as many inputs as make whole steps, and says how many.
#[inline(always)]
fn put_together<T: Number, const ROWS: usize>(rows: [&[T]; ROWS], panel: &mut [[T; PANEL]], first: usize) -> usize
where
    [T; PANEL]: bytemuck::Pod,
{
    let bits = 64 / ROWS;
    let steps = rows[0].len() / STEP;
    for step in 0..steps {
        let mut words = [0u64; STEP];
        for (row, numbers) in rows.iter().enumerate() {
            let Some(numbers) = numbers[step * STEP..].first_chunk::<STEP>() else { continue };
            words.iter_mut().zip(numbers).for_each(|(word, number)| *word |= number.wide() << (row * bits));
        }
        for (panel, word) in panel[step * STEP..(step + 1) * STEP].iter_mut().zip(words) {
            let bytes: &mut [u8] = bytemuck::bytes_of_mut(panel);
            bytes[first / ROWS * 8..first / ROWS * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
    steps * STEP
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::Arch;

    fn check<T: Number + PartialEq + std::fmt::Debug + bytemuck::Pod, const ROWS: usize>(number: impl Fn(usize) -> T)
    where
        [T; PANEL]: bytemuck::Pod,
    {
        for arch in [Arch::Scalar, Arch::new()] {
            for (outputs, inputs) in [(32, 1), (32, 16), (32, 300), (31, 70), (5, 129), (1, 200)] {
                let rows: Vec<T> = (0..outputs * inputs).map(&number).collect();
                let mut panel = vec![[T::zeroed(); PANEL]; inputs];
                arch.dispatch(Transpose::<T, ROWS> { rows: &rows, inputs, panel: &mut panel });
                for (input, panel) in panel.iter().enumerate() {
                    for (output, found) in panel.iter().enumerate() {
                        let expected = rows.get(output * inputs + input).filter(|_| output < outputs);
                        assert_eq!(*found, expected.copied().unwrap_or(T::zeroed()), "{outputs} × {inputs}");
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_for_one_input_come_to_lie_side_by_side() {
        check::<[u8; 2], 4>(|at| (at as u16).wrapping_mul(40_503).to_le_bytes());
        check::<[u8; 4], 2>(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes());
    }
}
