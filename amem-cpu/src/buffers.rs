//! Memory for activations that is used again. A pass makes and drops thousands of tensors; taken from the system each time,
//! large ones would cost more in page faults than many kernels take.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that nobody uses. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<f32>>>>);

/// Buffers that are kept at most, and numbers in one and in all of them: 64 and 256 MiB.
const KEPT: usize = 32;
const KEPT_LEN: usize = 16 << 20;
const KEPT_NUMBERS: usize = 64 << 20;

impl Buffers {
    /// So many numbers, whatever they are.
    pub(crate) fn take(&self, len: usize) -> Numbers {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough, and not by far too large.
        let fits = |buffer: &Vec<f32>| (len..=(4 * len).max(1 << 12)).contains(&buffer.len());
        let sizes = kept.iter().enumerate().filter(|(_, buffer)| fits(buffer));
        let best = sizes.min_by_key(|(_, buffer)| buffer.len()).map(|(index, _)| index);
        let buffer = best.map(|index| kept.swap_remove(index));
        if buffer.is_none() {
            // It takes the place of one that is somewhat too small: else those of short passes stay when long ones come.
            let small = kept.iter().enumerate().filter(|(_, buffer)| (len / 4..len).contains(&buffer.len()));
            if let Some((index, _)) = small.max_by_key(|(_, buffer)| buffer.len()) {
                kept.swap_remove(index);
            }
        }
        drop(kept);
        Numbers { buffer: buffer.unwrap_or_else(|| vec![0.0; len]), len, home: self.clone() }
    }

    fn give_back(&self, buffer: Vec<f32>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = kept.iter().map(Vec::len).sum();
        if buffer.len() > KEPT_LEN || all + buffer.len() > KEPT_NUMBERS {
            return;
        }
        if kept.len() < KEPT {
            kept.push(buffer);
        } else if let Some(smallest) = kept.iter_mut().min_by_key(|buffer| buffer.len())
            && smallest.len() < buffer.len()
        {
            // Else many small buffers that came first would keep all large ones out.
            *smallest = buffer;
        }
    }
}

/// Numbers in a buffer that goes back when they are dropped.
#[derive(Debug)]
pub(crate) struct Numbers {
    buffer: Vec<f32>,
    /// How many of the buffer's numbers these are.
    len: usize,
    home: Buffers,
}

impl Numbers {
    /// Appends numbers.
    pub(crate) fn append(&mut self, numbers: &[f32]) {
        self.buffer.truncate(self.len);
        self.buffer.extend_from_slice(numbers);
        self.len = self.buffer.len();
    }
}

impl Clone for Numbers {
    fn clone(&self) -> Self {
        let mut copy = self.home.take(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.buffer));
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Numbers {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_holds_as_many_numbers_as_were_asked_for() {
        let buffers = Buffers::default();
        let place = buffers.take(5000).as_ptr();
        let mut again = buffers.take(4000);
        assert_eq!((again.as_ptr(), again.len()), (place, 4000));
        again.append(&[7.0; 3]);
        assert_eq!((again.len(), again[4002]), (4003, 7.0));
        assert_eq!(buffers.take(5000).len(), 5000);
        assert_eq!(again.clone().len(), 4003);
    }

    #[test]
    fn larger_buffers_take_the_places_of_smaller_ones() {
        let buffers = Buffers::default();
        drop([10_000, 20_000, 30_000].map(|len| buffers.take(len)));
        drop(buffers.take(40_000));
        let mut kept: Vec<usize> = buffers.0.lock().unwrap().iter().map(Vec::len).collect();
        kept.sort_unstable();
        assert_eq!(kept, [10_000, 20_000, 40_000]);
        drop(buffers.take(200_000));
        assert_eq!(buffers.0.lock().unwrap().len(), 4);
    }

    #[test]
    fn small_buffers_in_all_places_do_not_keep_a_larger_one_out() {
        let buffers = Buffers::default();
        let many: Vec<Numbers> = (0..KEPT + 8).map(|_| buffers.take(10)).collect();
        drop(many);
        drop(buffers.take(50_000));
        let sizes = |kept: &[Vec<f32>]| kept.iter().map(Vec::len).max();
        assert_eq!(sizes(&buffers.0.lock().unwrap()), Some(50_000));
        drop(buffers.take(10));
        let kept = buffers.0.lock().unwrap();
        assert_eq!((kept.len(), sizes(&kept)), (KEPT, Some(50_000)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let buffers = Buffers::default();
        let many: Vec<Numbers> = (0..2 * KEPT).map(|_| buffers.take(10)).collect();
        drop(many);
        drop(buffers.take(KEPT_LEN + 1));
        let kept = buffers.0.lock().unwrap();
        assert_eq!((kept.len(), kept.iter().map(Vec::len).max()), (KEPT, Some(10)));
    }
}
