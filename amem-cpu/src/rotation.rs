//! RoPE: turning queries and keys to their positions.

use amem_core::transformer::Rope;
use pulp::{Simd, WithSimd};

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
    pub(crate) fn new(rope: &Rope, positions: &[u32]) -> Self {
        let half = rope.inverse_frequencies.len();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        cos.reserve_exact(half * positions.len());
        sin.reserve_exact(half * positions.len());
        for &position in positions {
            for &frequency in &rope.inverse_frequencies {
                let (c, s) = rope.cos_sin(position, frequency);
                cos.push(c);
                sin.push(s);
            }
        }
        Self { half, cos, sin }
    }

    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> Angle<'_> {
        let at = index * self.half..(index + 1) * self.half;
        Angle { cos: &self.cos[at.clone()], sin: &self.sin[at] }
    }
}

/// Rotates all heads of all rows of `x`, which has `columns` columns.
pub(crate) struct Rotate<'a> {
    pub(crate) angles: &'a Angles,
    pub(crate) x: &'a mut [f32],
    pub(crate) columns: usize,
}

impl WithSimd for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (index, row) in self.x.chunks_exact_mut(self.columns.max(1)).enumerate() {
            let angle = self.angles.row(index);
            row.chunks_exact_mut(2 * self.angles.half).for_each(|head| angle.rotate(head));
        }
    }
}

impl Angle<'_> {
    /// The cosine and the sine for one frequency.
    pub(crate) fn of(&self, frequency: usize) -> (f32, f32) {
        (self.cos[frequency], self.sin[frequency])
    }

    /// Rotates one head: pairs (i, i + half).
    #[inline(always)]
    pub(crate) fn rotate(self, head: &mut [f32]) {
        let (low, high) = head.split_at_mut(self.cos.len());
        for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(self.cos).zip(self.sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
