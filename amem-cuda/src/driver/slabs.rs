//! Where lasting memory lies: in slabs, large pieces of the driver's memory.
//!
//! The driver gives what is larger than 1 MiB in whole pages of 2 MiB, so that a matrix of 3 MiB by itself would take 4. A
//! slab is whole pages, and holds many buffers.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

use range_alloc::RangeAllocator;

/// What the driver rounds a large allocation up to.
const PAGE: usize = 2 << 20;

/// What it does not round up to pages: several of these share one.
const SMALL: usize = 1 << 20;

/// Slabs begin with this size and grow with what there is, so that the last one, which is not full, is a small part of all.
const FIRST: usize = 16 << 20;

/// A share of all slabs, and of the memory that is free, that the next slab is not larger than.
const SHARE: usize = 8;

/// The largest slab. A larger buffer has memory of its own: the rest of its last page is a small part of it.
pub(super) const LARGEST: usize = 64 << 20;

/// Slabs by their addresses, and what is free in each. All sizes are multiples of the same number, which divides a page, and
/// so are addresses, counted from where their slab begins.
#[derive(Default)]
pub(super) struct Slabs {
    slabs: BTreeMap<u64, RangeAllocator<u64>>,
}

impl Slabs {
    /// The address of so many bytes that nobody has, if a slab has room for them.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u64> {
        let found = self.slabs.values_mut().find_map(|slab| slab.allocate_range(bytes.max(1) as u64).ok());
        found.map(|range| range.start)
    }

    /// Takes bytes back that [`take`](Self::take) or [`add`](Self::add) gave. Returns whether they are a slab's.
    pub(super) fn put(&mut self, address: u64, bytes: usize) -> bool {
        let range = address..address + bytes.max(1) as u64;
        let slab = self.slabs.range_mut(..=address).next_back().map(|(_, slab)| slab);
        let Some(slab) = slab.filter(|slab| range.end <= slab.initial_range().end) else { return false };
        slab.free_range(range);
        true
    }

    /// What to ask of the driver, of whose memory so many bytes are free, when no slab has room for so many bytes.
    pub(super) fn next_size(&self, bytes: usize, free: usize) -> usize {
        let held: u64 = self.slabs.values().map(|slab| len(slab.initial_range())).sum();
        let size = (held as usize / SHARE).clamp(FIRST, LARGEST).min(free / SHARE);
        // Buffers of one size come in numbers, as matrices of layers and experts do. So many of them as leave little of the
        // last page.
        let most = (size / bytes.max(1)).max(1);
        let least = (most / 2 + 1).max(most.saturating_sub(15));
        let whole = (least..=most).map(|count| count * bytes).min_by_key(|all| (pages(*all) - all, Reverse(*all)));
        pages(whole.unwrap_or(bytes))
    }

    /// A new slab, of which the first bytes are taken already.
    pub(super) fn add(&mut self, slab: Range<u64>, bytes: usize) -> u64 {
        let start = slab.start;
        let mut ranges = RangeAllocator::new(slab);
        // It is as large as this at least.
        let _ = ranges.allocate_range(bytes.max(1) as u64);
        self.slabs.insert(start, ranges);
        start
    }

    /// The addresses of slabs in which nothing lies, but for `keep` of them. They are then the caller's to free.
    pub(super) fn take_empty(&mut self, keep: usize) -> Vec<u64> {
        let empty = self.slabs.iter().filter(|(_, slab)| slab.is_empty()).map(|(address, _)| *address);
        let gone: Vec<u64> = empty.skip(keep).collect();
        self.slabs.retain(|address, _| !gone.contains(address));
        gone
    }
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// What the driver takes for so many bytes.
fn pages(bytes: usize) -> usize {
    if bytes > SMALL { bytes.checked_next_multiple_of(PAGE).unwrap_or(bytes) } else { bytes }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEAST: usize = 512;
    const MIB: usize = 1 << 20;

    /// Slabs of a driver with so much memory, which gives one piece behind the other, and what is left of it.
    struct Driver {
        slabs: Slabs,
        given: Vec<Range<u64>>,
        free: usize,
    }

    impl Driver {
        fn new(free: usize) -> Self {
            Self { slabs: Slabs::default(), given: Vec::new(), free }
        }

        fn buffer(&mut self, bytes: usize) -> Option<u64> {
            if let Some(address) = self.slabs.take(bytes) {
                return Some(address);
            }
            let size = self.slabs.next_size(bytes, self.free);
            self.free = self.free.checked_sub(size)?;
            let start = self.given.last().map_or(PAGE as u64, |slab| slab.end.next_multiple_of(PAGE as u64));
            self.given.push(start..start + size as u64);
            Some(self.slabs.add(start..start + size as u64, bytes))
        }

        fn taken(&self) -> usize {
            self.given.iter().map(|slab| len(slab) as usize).sum()
        }
    }

    proptest! {
        #[test]
        fn buffers_lie_apart_within_slabs_and_all_of_these_come_back(
            steps in prop::collection::vec((1usize..6000, any::<prop::sample::Index>(), 0..3), 1..200),
        ) {
            let mut driver = Driver::new(1 << 40);
            let mut held: Vec<Range<u64>> = Vec::new();
            for (blocks, index, what) in steps {
                if what == 0 && !held.is_empty() {
                    let gone = held.swap_remove(index.index(held.len()));
                    prop_assert!(driver.slabs.put(gone.start, len(&gone) as usize));
                    continue;
                }
                let Some(start) = driver.buffer(blocks * LEAST) else { panic!("there is room") };
                let new = start..start + (blocks * LEAST) as u64;
                prop_assert!(start.is_multiple_of(LEAST as u64));
                prop_assert!(driver.given.iter().any(|slab| slab.start <= new.start && new.end <= slab.end));
                prop_assert!(held.iter().all(|other| other.end <= new.start || new.end <= other.start));
                held.push(new);
            }
            // Nothing that holds anything is given back.
            let slab_of = |range: &Range<u64>| driver.given.iter().find(|slab| slab.contains(&range.start));
            let used: Vec<u64> = held.iter().filter_map(slab_of).map(|slab| slab.start).collect();
            let empty = driver.slabs.take_empty(0);
            prop_assert!(!empty.iter().any(|slab| used.contains(slab)));
            let mut all = empty;
            for range in held {
                prop_assert!(driver.slabs.put(range.start, len(&range) as usize));
            }
            all.extend(driver.slabs.take_empty(0));
            all.sort_unstable();
            prop_assert_eq!(all, driver.given.iter().map(|slab| slab.start).collect::<Vec<_>>());
        }

        #[test]
        fn many_buffers_of_a_size_take_little_more_than_their_bytes(blocks in 1usize..12_000) {
            let bytes = blocks * LEAST;
            let (mut driver, count) = (Driver::new(1 << 40), (256 * MIB).div_ceil(bytes));
            (0..count).for_each(|_| assert!(driver.buffer(bytes).is_some()));
            let most = count * bytes * 9 / 8;
            // Of the last slab, little need be used.
            let last = driver.given.last().map_or(0, |slab| len(slab) as usize);
            prop_assert!(driver.taken() - last <= most, "{} for {}", driver.taken(), count * bytes);
            prop_assert!(last <= 34 * MIB, "{last}");
        }

        #[test]
        fn a_slab_fits_where_its_first_buffer_does_and_leaves_most_of_what_is_free(
            blocks in 1usize..40_000,
            free in 0usize..1 << 34,
        ) {
            let bytes = blocks * LEAST;
            let size = Slabs::default().next_size(bytes, free);
            prop_assert!(size >= bytes && size <= pages(bytes).max(pages(free / SHARE)), "{size} for {bytes}");
        }
    }

    #[test]
    fn matrices_of_three_mebibytes_take_no_more() {
        let mut driver = Driver::new(80 << 30);
        for _ in 0..18_432 {
            assert!(driver.buffer(3 * MIB).is_some());
        }
        let (needed, taken) = (18_432 * 3 * MIB, driver.taken());
        assert!(taken - needed <= LARGEST, "{taken} for {needed}");
    }

    #[test]
    fn all_but_some_of_the_empty_slabs_are_given_back() {
        let mut driver = Driver::new(1 << 30);
        let buffers: Vec<u64> = (0..9).filter_map(|_| driver.buffer(4 * MIB)).collect();
        assert_eq!((buffers.len(), driver.given.len()), (9, 3));
        assert!(buffers[1..].iter().all(|address| driver.slabs.put(*address, 4 * MIB)));
        assert_eq!(driver.slabs.take_empty(1), [driver.given[2].start]);
        assert_eq!(driver.slabs.take_empty(0), [driver.given[1].start]);
        assert!(driver.slabs.take_empty(0).is_empty());
        assert!(!driver.slabs.put(driver.given[2].start, 4 * MIB), "nothing is known of it any more");
    }
}
