//! Keys and values on their way from a cache to the tiles: what is made of them first, and with which instructions they
//! are multiplied then.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};
use pulp::Simd;

use super::tile::{Kernels, Values};
use super::wide::Wide;
use crate::cache::LANES;
use crate::number::Element;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::widening::Loads;
use crate::widening::Native;

/// Numbers as some instructions take them.
type Numbers<'a, K> = &'a [<K as Kernels>::Number];

/// Instructions for caches of one type of numbers.
pub(super) trait CacheReader: Copy {
    /// A number of the cache.
    type Stored: Element;
    /// For keys and values that have been made ready for many tiles.
    type Ready: Kernels;
    /// For keys and values as they stand.
    type Direct: Kernels;

    fn ready(self) -> Self::Ready;

    /// What takes numbers as they stand, where that is as good for a few tiles; they are `width` numbers wide then.
    fn direct(self, block: &[Self::Stored]) -> Option<(Self::Direct, Numbers<'_, Self::Direct>)>;

    /// Puts a query into its place in a tile of some height, multiplied by a factor.
    fn put_query(query: &[f32], factor: f32, place: usize, height: usize, tile: &mut [f32]);

    /// Makes some groups of keys ready.
    fn ready_keys<'a>(
        self,
        keys: &'a [Self::Stored],
        head_dim: usize,
        groups: Range<usize>,
        space: &'a mut [f32],
    ) -> &'a [<Self::Ready as Kernels>::Number];

    /// Makes the values of some slots ready, in rows of `width`.
    fn ready_values<'a>(
        self,
        values: &'a [Self::Stored],
        head_dim: usize,
        width: usize,
        slots: Range<usize>,
        space: &'a mut [f32],
    ) -> Values<'a, <Self::Ready as Kernels>::Number>;
}

/// f32 arithmetic on numbers that are widened first.
#[derive(Clone, Copy)]
pub(super) struct Plain<S, T> {
    simd: S,
    numbers: PhantomData<T>,
}

impl<S: Simd, T> Plain<S, T> {
    pub(super) fn new(simd: S) -> Self {
        Self { simd, numbers: PhantomData }
    }
}

impl<S: Simd, T: Widen> CacheReader for Plain<S, T> {
    type Stored = T;
    type Ready = Wide<Native<S>, f32, false>;
    type Direct = Wide<Native<S>, f32, false>;

    #[inline(always)]
    fn ready(self) -> Self::Ready {
        Wide::new(Native(self.simd))
    }

    #[inline(always)]
    fn direct(self, _: &[T]) -> Option<(Self::Direct, Numbers<'_, Self::Direct>)> {
        None
    }

    #[inline(always)]
    fn put_query(query: &[f32], factor: f32, place: usize, height: usize, tile: &mut [f32]) {
        put_query(query, factor, place, height, tile);
    }

    #[inline(always)]
    fn ready_keys<'a>(self, keys: &'a [T], head_dim: usize, groups: Range<usize>, space: &'a mut [f32]) -> &'a [f32] {
        widened(self.simd, keys, groups.start * LANES * head_dim..groups.end * LANES * head_dim, space)
    }

    #[inline(always)]
    fn ready_values<'a>(
        self,
        values: &'a [T],
        head_dim: usize,
        width: usize,
        slots: Range<usize>,
        space: &'a mut [f32],
    ) -> Values<'a, f32> {
        let numbers = if width == head_dim {
            widened(self.simd, values, slots.start * head_dim..slots.end * head_dim, space)
        } else {
            let places = space.chunks_exact_mut(width).skip(slots.start);
            for (place, values) in
                places.zip(values[slots.start * head_dim..slots.end * head_dim].chunks_exact(head_dim))
            {
                T::widen_all(self.simd, values, &mut place[..head_dim]);
            }
            space
        };
        Values { numbers, ahead: &[], stride: width }
    }
}

#[inline(always)]
fn put_query(query: &[f32], factor: f32, place: usize, height: usize, tile: &mut [f32]) {
    tile.iter_mut().skip(place).step_by(height).zip(query).for_each(|(to, x)| *to = x * factor);
}

/// Some numbers of a block, in their places. What stands elsewhere is of no use.
#[inline(always)]
fn widened<'a, S: Simd, T: Widen>(simd: S, numbers: &'a [T], some: Range<usize>, space: &'a mut [f32]) -> &'a [f32] {
    match bytemuck::try_cast_slice(numbers) {
        Ok(numbers) if T::IS_F32 => numbers,
        _ => {
            T::widen_all(simd, &numbers[some.clone()], &mut space[some]);
            space
        }
    }
}

/// Numbers that are made f32 where no instruction does it while loading them.
pub(super) trait Widen: Element {
    const IS_F32: bool = false;

    #[inline(always)]
    fn widen_all<S: Simd>(simd: S, from: &[Self], to: &mut [f32]) {
        Self::widen(simd, from, to);
    }
}

impl Widen for f32 {
    const IS_F32: bool = true;

    #[inline(always)]
    fn widen_all<S: Simd>(_: S, from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Widen for bf16 {}

impl Widen for f16 {}

/// f32 arithmetic on numbers that `L` widens as it loads them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Clone, Copy)]
pub(super) struct Loaded<L, T> {
    loads: L,
    numbers: PhantomData<T>,
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl<L: Loads<T>, T> Loaded<L, T> {
    pub(super) fn new(loads: L) -> Self {
        Self { loads, numbers: PhantomData }
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl<L: Loads<T>, T: Widen> CacheReader for Loaded<L, T> {
    type Stored = T;
    type Ready = Wide<Native<L::Simd>, f32, false>;
    type Direct = Wide<L, T, true>;

    #[inline(always)]
    fn ready(self) -> Self::Ready {
        Wide::new(Native(self.loads.simd()))
    }

    #[inline(always)]
    fn direct(self, block: &[T]) -> Option<(Self::Direct, Numbers<'_, Self::Direct>)> {
        Some((Wide::new(self.loads), block))
    }

    #[inline(always)]
    fn put_query(query: &[f32], factor: f32, place: usize, height: usize, tile: &mut [f32]) {
        put_query(query, factor, place, height, tile);
    }

    #[inline(always)]
    fn ready_keys<'a>(self, keys: &'a [T], head_dim: usize, groups: Range<usize>, space: &'a mut [f32]) -> &'a [f32] {
        widened(self.loads.simd(), keys, groups.start * LANES * head_dim..groups.end * LANES * head_dim, space)
    }

    #[inline(always)]
    fn ready_values<'a>(
        self,
        values: &'a [T],
        head_dim: usize,
        width: usize,
        slots: Range<usize>,
        space: &'a mut [f32],
    ) -> Values<'a, f32> {
        Plain::<L::Simd, T>::new(self.loads.simd()).ready_values(values, head_dim, width, slots, space)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Paired;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::ops::Range;

    use half::bf16;
    use pulp::x86::V4;

    use super::super::pairs::{self, Pairs};
    use super::super::tile::Values;
    use super::{CacheReader, Numbers};
    use crate::cache::{BLOCK_TOKENS, LANES};
    use crate::isa::Avx512Bf16;

    /// Products of pairs of bf16.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Paired {
        simd: V4,
        products: Avx512Bf16,
    }

    impl Paired {
        pub(in super::super) fn new(simd: V4, products: Avx512Bf16) -> Self {
            Self { simd, products }
        }
    }

    impl CacheReader for Paired {
        type Stored = bf16;
        type Ready = Pairs<false>;
        type Direct = Pairs<true>;

        #[inline(always)]
        fn ready(self) -> Self::Ready {
            Pairs::new(self.simd, self.products)
        }

        #[inline(always)]
        fn direct(self, block: &[bf16]) -> Option<(Self::Direct, Numbers<'_, Self::Direct>)> {
            Some((Pairs::new(self.simd, self.products), block))
        }

        #[inline(always)]
        fn put_query(query: &[f32], factor: f32, place: usize, height: usize, tile: &mut [f32]) {
            let places = tile.iter_mut().skip(place).step_by(height);
            for (to, &[a, b]) in places.zip(query.as_chunks::<2>().0) {
                *to = pairs::pair(a * factor, b * factor);
            }
        }

        #[inline(always)]
        fn ready_keys<'a>(
            self,
            keys: &'a [bf16],
            head_dim: usize,
            groups: Range<usize>,
            space: &'a mut [f32],
        ) -> &'a [bf16] {
            let space: &mut [bf16] = bytemuck::cast_slice_mut(space);
            let some = groups.start * LANES * head_dim..groups.end * LANES * head_dim;
            let (from, to) = (keys[some.clone()].as_chunks::<32>().0, space[some].as_chunks_mut::<32>().0);
            for (from, to) in from.iter().zip(to) {
                *to = bytemuck::cast(pairs::mixed(self.simd, bytemuck::cast(*from)));
            }
            space
        }

        #[inline(always)]
        fn ready_values<'a>(
            self,
            values: &'a [bf16],
            head_dim: usize,
            _: usize,
            slots: Range<usize>,
            space: &'a mut [f32],
        ) -> Values<'a, bf16> {
            let space: &mut [bf16] = bytemuck::cast_slice_mut(space);
            let none = [bf16::ZERO; 32];
            for pair in slots.start / 2..slots.end.div_ceil(2).min(BLOCK_TOKENS / 2) {
                let at = 2 * pair * head_dim..2 * (pair + 1) * head_dim;
                let (first, second) = values[at.clone()].split_at(head_dim);
                let second = second.as_chunks::<32>().0;
                let (first, to) = (first.as_chunks::<32>().0, space[at].as_chunks_mut::<64>().0);
                for ((first, second), to) in first.iter().zip(second).zip(to) {
                    // What stands behind the last slot is none of a query's business.
                    let second = if 2 * pair + 1 < slots.end { second } else { &none };
                    *to = bytemuck::cast(pairs::in_turn(self.simd, bytemuck::cast(*first), bytemuck::cast(*second)));
                }
            }
            Values { numbers: space, ahead: &[], stride: head_dim }
        }
    }
}
