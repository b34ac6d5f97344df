//! Instructions for vectors of sixteen numbers of a cache: what is done with them while KV is loaded.
//!
//! Functions that use them are written without closures: what a closure calls is compiled for no instruction set in particular,
//! unless the compiler happens to inline all of it.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::Simd;

use crate::cache::LANES;
use crate::number::Element;

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{transpose, v3};

/// Numbers of a row that are transposed at once: sixteen bytes of those of 16 bits.
pub(crate) const ROW_PART: usize = 8;

/// Instructions for the numbers of a cache. They give the same bits, whichever they are.
pub(crate) trait Vectors<T>: Copy {
    /// Transposes rows.
    fn transpose(self, rows: [[T; ROW_PART]; LANES]) -> [[T; LANES]; ROW_PART];

    /// Rotates pairs of numbers by their angles, cosines and sines.
    fn rotate(self, pairs: [&[T; LANES]; 2], angles: &[[f32; LANES]; 2]) -> [[T; LANES]; 2];

    /// Rounds numbers.
    fn narrow(self, from: &[f32], to: &mut [T]);

    /// Copies numbers, past the caches if that is allowed and there are instructions for it.
    fn put(self, from: &[T], to: &mut [T], streaming: Option<Streaming<'_>>);
}

/// The leave to write past the caches. Nobody reads what was written so before the fence was dropped.
#[derive(Clone, Copy)]
pub(crate) struct Streaming<'f>(PhantomData<&'f Fence>);

/// When it is dropped, all that this thread has written past the caches can be seen, by itself and by others.
#[derive(Default)]
pub(crate) struct Fence(());

impl Fence {
    #[inline(always)]
    pub(crate) fn streaming(&self) -> Option<Streaming<'_>> {
        Some(Streaming(PhantomData))
    }
}

impl Drop for Fence {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        x86::fence();
    }
}

/// Any instructions that `pulp` knows.
#[derive(Clone, Copy)]
pub(crate) struct AnySimd<S>(pub(crate) S);

impl<S: Simd, T: Element> Vectors<T> for AnySimd<S> {
    #[inline(always)]
    fn transpose(self, rows: [[T; ROW_PART]; LANES]) -> [[T; LANES]; ROW_PART] {
        T::transpose(self.0, rows)
    }

    #[inline(always)]
    fn rotate(self, [low, high]: [&[T; LANES]; 2], [cos, sin]: &[[f32; LANES]; 2]) -> [[T; LANES]; 2] {
        let [mut low_space, mut high_space, mut a, mut b] = [[0f32; LANES]; 4];
        let (low, high) = (T::widen(self.0, low, &mut low_space), T::widen(self.0, high, &mut high_space));
        for lane in 0..LANES {
            a[lane] = low[lane] * cos[lane] - high[lane] * sin[lane];
            b[lane] = high[lane] * cos[lane] + low[lane] * sin[lane];
        }
        let mut rotated = [[T::default(); LANES]; 2];
        let [to_low, to_high] = &mut rotated;
        T::narrow(self.0, &a, to_low);
        T::narrow(self.0, &b, to_high);
        rotated
    }

    #[inline(always)]
    fn narrow(self, from: &[f32], to: &mut [T]) {
        T::narrow(self.0, from, to);
    }

    #[inline(always)]
    fn put(self, from: &[T], to: &mut [T], streaming: Option<Streaming<'_>>) {
        #[cfg(target_arch = "x86_64")]
        if let (Some(streaming), Some(simd)) = (streaming, x86::v3(self.0)) {
            return x86::put(simd, from, to, streaming);
        }
        let _ = streaming;
        to.copy_from_slice(from);
    }
}

/// Rotates the keys of one head, `[LANES][head_dim]` in rows that are `stride` apart, to their positions, and transposes them:
/// `[head_dim][LANES]`. `angles` are cosines and sines in turn, of `head_dim / 2` frequencies.
#[inline(always)]
pub(crate) fn rotate_and_transpose<T: Element, V: Vectors<T>>(
    v: V,
    angles: &[[f32; LANES]],
    (rows, stride): (&[T], usize),
    to: &mut [T],
    streaming: Option<Streaming<'_>>,
) {
    let (angles, half) = (angles.as_chunks::<2>().0, angles.len() / 2);
    let (low, high) = to.as_chunks_mut::<LANES>().0.split_at_mut(half);
    // In whole groups, so that compilers know how long each is, and then what is left.
    let whole = half / ROW_PART * ROW_PART;
    let ((low, last_low), (high, last_high)) = (low.as_chunks_mut::<ROW_PART>(), high.as_chunks_mut::<ROW_PART>());
    let groups = low.iter_mut().zip(high).zip(angles.as_chunks::<ROW_PART>().0);
    for (index, ((to_low, to_high), angles)) in groups.enumerate() {
        let low = whole_group(v, rows, stride, index * ROW_PART);
        let high = whole_group(v, rows, stride, half + index * ROW_PART);
        turn_group(v, [&low, &high], angles, [to_low, to_high], streaming);
    }
    if whole < half {
        let low = part_of_group(v, rows, stride, whole..half);
        let high = part_of_group(v, rows, stride, half + whole..2 * half);
        turn_group(v, [&low, &high], &angles[whole..], [last_low, last_high], streaming);
    }
}

#[inline(always)]
fn turn_group<T: Element, V: Vectors<T>>(
    v: V,
    [low, high]: [&[[T; LANES]; ROW_PART]; 2],
    angles: &[[[f32; LANES]; 2]],
    [to_low, to_high]: [&mut [[T; LANES]]; 2],
    streaming: Option<Streaming<'_>>,
) {
    for (((low, high), (to_low, to_high)), angle) in
        low.iter().zip(high).zip(to_low.iter_mut().zip(to_high)).zip(angles)
    {
        let [low, high] = v.rotate([low, high], angle);
        v.put(&low, to_low, streaming);
        v.put(&high, to_high, streaming);
    }
}

/// [`ROW_PART`] numbers of each row, transposed.
#[inline(always)]
fn whole_group<T: Element, V: Vectors<T>>(v: V, rows: &[T], stride: usize, first: usize) -> [[T; LANES]; ROW_PART] {
    let mut numbers = [[T::default(); ROW_PART]; LANES];
    for (row, numbers) in numbers.iter_mut().enumerate() {
        numbers.copy_from_slice(&rows[row * stride + first..][..ROW_PART]);
    }
    v.transpose(numbers)
}

/// Fewer numbers of each row, transposed.
#[inline(always)]
fn part_of_group<T: Element, V: Vectors<T>>(
    v: V,
    rows: &[T],
    stride: usize,
    part: Range<usize>,
) -> [[T; LANES]; ROW_PART] {
    let mut numbers = [[T::default(); ROW_PART]; LANES];
    for (row, numbers) in numbers.iter_mut().enumerate() {
        numbers[..part.len()].copy_from_slice(&rows[row * stride..][part.clone()]);
    }
    v.transpose(numbers)
}
