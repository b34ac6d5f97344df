//! Memory that begins with a cache line, so that no vector lies in two of them.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Numbers, the first of them at the beginning of a cache line.
#[derive(Default)]
pub(crate) struct Lines<T> {
    /// With some more than are used.
    numbers: Vec<T>,
    start: usize,
}

impl<T> Lines<T> {
    /// Numbers of a cache line.
    const EACH: usize = LINE / size_of::<T>();
}

impl<T: Copy + Default> Lines<T> {
    /// So many zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let numbers = vec![T::default(); len + Self::EACH];
        let start = numbers.as_ptr().align_offset(LINE).min(Self::EACH);
        Self { numbers, start }
    }
}

impl<T: Copy + Default> Clone for Lines<T> {
    fn clone(&self) -> Self {
        if self.is_empty() {
            return Self { numbers: Vec::new(), start: 0 };
        }
        let mut copy = Self::zeros(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl<T> Deref for Lines<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        let len = self.numbers.len().saturating_sub(Self::EACH);
        &self.numbers[self.start..self.start + len]
    }
}

impl<T> DerefMut for Lines<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.numbers.len().saturating_sub(Self::EACH);
        &mut self.numbers[self.start..self.start + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_with_a_cache_line_wherever_they_are_copied_to() {
        assert!(Lines::<f32>::default().clone().is_empty());
        for len in [1, 16, 100, 8192] {
            let mut lines = Lines::<u16>::zeros(len);
            lines[len - 1] = 7;
            for lines in [lines.clone(), lines] {
                assert_eq!((lines.as_ptr().align_offset(LINE), lines.len(), lines[len - 1]), (0, len, 7));
            }
        }
    }
}
