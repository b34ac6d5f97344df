//! Memory for weights: aligned to pages, and in huge pages where the system has them, so that reading gigabytes does not
//! wait for address translation.

use std::marker::PhantomData;

use amem_core::{Error, Result};
use bytemuck::Pod;
use memmap2::MmapMut;

/// Numbers in whole pages, zero at first.
pub(crate) struct Pages<T> {
    map: MmapMut,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T: Pod> Pages<T> {
    /// So many zeros.
    ///
    /// # Errors
    /// [`Error::Full`] when there is no memory for them.
    pub(crate) fn zeros(len: usize) -> Result<Self> {
        let full = || Error::Full { what: "memory".to_owned(), reason: format!("{len} weights do not fit") };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(full)?;
        let map = MmapMut::map_anon(bytes.max(1)).map_err(|_| full())?;
        // Only advice: without huge pages all works, slower.
        #[cfg(target_os = "linux")]
        if bytes >= 2 << 20 {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map, len, numbers: PhantomData })
    }
}

impl<T: Pod> std::ops::Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // A map begins with a page, so no alignment is missing.
        bytemuck::try_cast_slice(&self.map[..self.len * size_of::<T>()]).unwrap_or_default()
    }
}

impl<T: Pod> std::ops::DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::try_cast_slice_mut(&mut self.map[..self.len * size_of::<T>()]).unwrap_or_default()
    }
}
