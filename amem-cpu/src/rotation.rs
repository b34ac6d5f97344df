//! RoPE: rotating queries and keys to their positions.

use amem_core::transformer::Rope;
use pulp::{Simd, WithSimd};

use crate::Cpu;

/// The cosines and sines of some positions, one row each, half a head wide.
pub(crate) struct Angles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// One position's cosines and sines.
#[derive(Clone, Copy)]
pub(crate) struct Angle<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Angles {
    /// Those of these positions, computed on several threads where there are many.
    pub(crate) fn new(cpu: &Cpu, rope: &Rope, positions: &[u32]) -> Self {
        const ROWS: usize = 16;
        let half = rope.inverse_frequencies.len();
        let mut angles = Self { half, cos: vec![0.0; half * positions.len()], sin: vec![0.0; half * positions.len()] };
        // A sine costs about as much as forty multiplications.
        let work = 80 * half * positions.len();
        cpu.each(angles.parts(ROWS).collect(), work, |part| part.fill(rope, positions));
        angles
    }

    /// Some rows each.
    fn parts(&mut self, rows: usize) -> impl Iterator<Item = Part<'_>> {
        let numbers = (rows * self.half).max(1);
        let parts = self.cos.chunks_mut(numbers).zip(self.sin.chunks_mut(numbers));
        parts.enumerate().map(move |(part, (cos, sin))| Part { first: part * rows, cos, sin })
    }

    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> Angle<'_> {
        let at = index * self.half..(index + 1) * self.half;
        Angle { cos: &self.cos[at.clone()], sin: &self.sin[at] }
    }
}

/// The angles of some rows, to be computed.
struct Part<'a> {
    first: usize,
    cos: &'a mut [f32],
    sin: &'a mut [f32],
}

impl Part<'_> {
    fn fill(self, rope: &Rope, positions: &[u32]) {
        let half = rope.inverse_frequencies.len().max(1);
        let rows = self.cos.chunks_exact_mut(half).zip(self.sin.chunks_exact_mut(half));
        for ((cos, sin), &position) in rows.zip(positions.iter().skip(self.first)) {
            for ((cos, sin), &frequency) in cos.iter_mut().zip(sin).zip(&rope.inverse_frequencies) {
                (*cos, *sin) = rope.cos_sin(position, frequency);
            }
        }
    }
}

/// Rotates all heads of some rows, which have `columns` columns each.
pub(crate) struct Rotate<'a> {
    pub(crate) angles: &'a Angles,
    /// The first of the rows.
    pub(crate) first: usize,
    pub(crate) x: &'a mut [f32],
    pub(crate) columns: usize,
}

impl WithSimd for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (index, row) in self.x.chunks_exact_mut(self.columns.max(1)).enumerate() {
            let angle = self.angles.row(self.first + index);
            row.chunks_exact_mut(2 * self.angles.half).for_each(|head| angle.rotate(head));
        }
    }
}

impl Angle<'_> {
    /// Rotates one head: pairs (i, i + half).
    #[inline(always)]
    pub(crate) fn rotate(self, head: &mut [f32]) {
        let (low, high) = head.split_at_mut(self.cos.len());
        for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(self.cos).zip(self.sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
