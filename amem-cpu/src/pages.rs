//! Memory for weights, in huge pages where the system has them: reading gigabytes does not wait for address translation
//! then, and the system clears them far faster than the same memory in small pages.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use amem_core::{Error, Result};
use bytemuck::Pod;
use memmap2::{MmapMut, MmapRaw};

/// Regions of memory that matrices are put into, each into the first that has room. Most matrices would end with a part of a
/// huge page, for which the system takes small ones.
#[derive(Clone, Default)]
pub(crate) struct Regions(Arc<Mutex<Vec<Region>>>);

/// A region, held by the matrices in it.
struct Region {
    map: Weak<MmapRaw>,
    used: usize,
}

/// Bytes of a region. What needs more than a quarter has memory of its own.
const REGION: usize = 64 << 20;
/// Where matrices begin: with a page.
const ALIGNED: usize = 4096;
/// A huge page.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

impl Regions {
    /// So many zeros.
    ///
    /// # Errors
    /// [`Error::Full`] when there is no memory for them.
    pub(crate) fn zeros<T: Pod>(&self, len: usize) -> Result<Pages<T>> {
        const { assert!(align_of::<T>() <= ALIGNED) };
        let full = || Error::Full {
            what: "memory".to_owned(),
            reason: format!("weights of {} MiB do not fit", len.saturating_mul(size_of::<T>()) >> 20),
        };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(full)?;
        let (region, offset) = match bytes.checked_next_multiple_of(ALIGNED).ok_or_else(full)? {
            large if large > REGION / 4 => (map(bytes).ok_or_else(full)?, 0),
            small => self.place(small).ok_or_else(full)?,
        };
        Ok(Pages { region, offset, len, numbers: PhantomData })
    }

    /// So many bytes of a region that nobody else is given.
    fn place(&self, bytes: usize) -> Option<(Arc<MmapRaw>, usize)> {
        let mut regions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        regions.retain(|region| region.map.strong_count() > 0);
        for region in regions.iter_mut().filter(|region| region.used + bytes <= REGION) {
            if let Some(map) = region.map.upgrade() {
                region.used += bytes;
                return Some((map, region.used - bytes));
            }
        }
        let map = map(REGION)?;
        regions.push(Region { map: Arc::downgrade(&map), used: bytes });
        Some((map, 0))
    }
}

/// Memory from the system, zero at first.
fn map(bytes: usize) -> Option<Arc<MmapRaw>> {
    let map = MmapMut::map_anon(bytes.max(1)).ok()?;
    // Only advice: without huge pages all works, slower.
    #[cfg(target_os = "linux")]
    if bytes >= HUGE {
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Some(Arc::new(MmapRaw::from(map)))
}

/// Numbers in pages, zero at first.
pub(crate) struct Pages<T> {
    region: Arc<MmapRaw>,
    /// Where they begin in the region, in bytes: a multiple of [`ALIGNED`].
    offset: usize,
    len: usize,
    numbers: PhantomData<T>,
}

#[allow(unsafe_code, reason = "several of them share a mapping")]
impl<T: Pod> std::ops::Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `Regions` gave these bytes of the mapping to nobody else, and they lie within it: it was made with at least
        // as many. It is aligned to pages, and so is the offset. Any bytes are a `T`, and they are zero until somebody
        // writes to them, through an exclusive reference to `self`. The mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.region.as_ptr().add(self.offset).cast(), self.len) }
    }
}

#[allow(unsafe_code, reason = "several of them share a mapping")]
impl<T: Pod> std::ops::DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; and this reference is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.region.as_mut_ptr().add(self.offset).cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_share_regions_and_no_bytes() {
        let regions = Regions::default();
        let sizes = [1, 5000, 0, REGION / 4, 3 << 20, REGION / 4 + 1, REGION / 4, REGION / 4, REGION / 4, 77];
        let mut all: Vec<Pages<u8>> = sizes.map(|size| regions.zeros(size).unwrap()).into();
        for (number, pages) in (1..).zip(&mut all) {
            assert_eq!(pages.as_ptr().addr() % ALIGNED, 0);
            assert!(pages.iter().all(|byte| *byte == 0));
            pages.fill(number);
        }
        for ((number, pages), size) in (1..).zip(&all).zip(sizes) {
            assert_eq!(pages.len(), size);
            assert!(pages.iter().all(|byte| *byte == number));
        }
        let regions =
            |at: &[usize]| at.iter().map(|&at| Arc::as_ptr(&all[at].region)).collect::<std::collections::HashSet<_>>();
        assert_eq!((regions(&[0, 1, 2, 3, 4, 6, 7, 9]).len(), regions(&[0, 5, 8]).len()), (1, 3));
    }

    #[test]
    fn a_region_is_given_back_with_the_last_matrix_in_it() {
        let regions = Regions::default();
        let (first, second): (Pages<u8>, Pages<u32>) = (regions.zeros(10).unwrap(), regions.zeros(10).unwrap());
        let region = Arc::downgrade(&first.region);
        drop(first);
        assert_eq!((region.strong_count(), second[9]), (1, 0));
        drop(second);
        assert_eq!(region.strong_count(), 0);
        assert_eq!(regions.zeros::<u64>(3).unwrap().len(), 3);
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        assert!(Regions::default().zeros::<u64>(usize::MAX / 4).is_err());
        assert!(Regions::default().zeros::<u8>(usize::MAX - 10).is_err());
    }
}
