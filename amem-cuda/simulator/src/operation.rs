//! What streams carry out.

use crate::blas::product::Product;
use crate::ffi::host::{HostCall, HostRange};
use crate::order::{Actor, Clock, Epoch};
use amem_ptxsim::{Kernel, Module};
use std::ops::Range;
use std::sync::Arc;

/// One side of a copy: rows that lie a pitch apart.
#[derive(Clone, Debug)]
pub(crate) enum Side {
    Device {
        address: u64,
        pitch: usize,
    },
    /// Page-locked memory, or pageable memory that the call waits for.
    Host {
        range: HostRange,
        pitch: usize,
    },
    /// What pageable memory held when the copy was called: rows without gaps.
    Staged(Arc<[u8]>),
}

/// A copy of `rows` rows of `width` bytes.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) from: Side,
    pub(crate) to: Side,
    pub(crate) width: usize,
    pub(crate) rows: usize,
}

/// Writes a pattern of 1, 2 or 4 bytes again and again.
#[derive(Clone, Debug)]
pub(crate) struct Fill {
    pub(crate) address: u64,
    pub(crate) pitch: usize,
    pub(crate) pattern: Vec<u8>,
    pub(crate) width: usize,
    pub(crate) rows: usize,
}

/// A kernel of a loaded module. It keeps the module's text alive, as a launch does that was queued before the module is
/// unloaded.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) module: Arc<Module>,
    pub(crate) name: Arc<str>,
}

impl Entry {
    pub(crate) fn kernel(&self) -> Option<&Kernel> {
        self.module.kernel(&self.name)
    }
}

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) entry: Entry,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: usize,
    pub(crate) parameters: Vec<u8>,
}

/// What one operation of a stream does.
#[derive(Clone)]
pub(crate) enum Work {
    Launch(Launch),
    Copy(Copy),
    Fill(Fill),
    Product(Arc<Product>),
    /// Memory that may be used from here on.
    Allocate {
        address: u64,
        bytes: usize,
    },
    Free {
        address: u64,
        bytes: usize,
    },
    /// Tells an event the time.
    Record {
        event: u64,
    },
    Call(HostCall),
}

/// An operation in a stream's queue.
pub(crate) struct Operation {
    pub(crate) work: Work,
    pub(crate) label: Arc<str>,
    /// Its number in its stream.
    pub(crate) tick: u64,
    /// What ended before it, and itself.
    pub(crate) clock: Clock,
    /// What page-locked memory that a copy reads held when the copy was queued.
    pub(crate) source: Option<Vec<u8>>,
}

impl Operation {
    pub(crate) fn epoch(&self, actor: Actor) -> Epoch {
        Epoch { actor, tick: self.tick, label: Arc::clone(&self.label) }
    }
}

/// The bytes from the first row's beginning to the last row's end.
pub(crate) fn extent(pitch: usize, width: usize, rows: usize) -> usize {
    if rows == 0 || width == 0 { 0 } else { (rows - 1) * pitch + width }
}

/// The ranges of rows that lie a pitch apart. Rows without gaps are one range.
pub(crate) fn rows(address: u64, pitch: usize, width: usize, rows: usize) -> Vec<Range<u64>> {
    let (width, rows) = if pitch == width { (width * rows, 1) } else { (width, rows) };
    let row = |row: usize| {
        let start = address + (row * pitch) as u64;
        start..start + width as u64
    };
    (0..rows).map(row).collect()
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Side {
    pub(crate) fn device_range(&self, width: usize, rows: usize) -> Option<Range<u64>> {
        match self {
            Side::Device { address, pitch } => Some(*address..address + extent(*pitch, width, rows) as u64),
            _ => None,
        }
    }

    fn host_range(&self) -> Option<Range<u64>> {
        match self {
            Side::Host { range, .. } => Some(range.address()..range.address() + range.len() as u64),
            _ => None,
        }
    }

    fn describe(&self) -> String {
        match self {
            Side::Device { address, .. } => format!("device {address:#x}"),
            Side::Host { range, .. } => format!("host {:#x}", range.address()),
            Side::Staged(_) => "pageable host memory".to_string(),
        }
    }
}

impl Work {
    /// What it is, for messages.
    pub(crate) fn label(&self) -> String {
        match self {
            Work::Launch(launch) => format!("kernel `{}`", launch.entry.name),
            Work::Copy(copy) => {
                let bytes = copy.width * copy.rows;
                format!("copy of {bytes} bytes from {} to {}", copy.from.describe(), copy.to.describe())
            }
            Work::Fill(fill) => format!("fill of {} bytes at {:#x}", fill.width * fill.rows, fill.address),
            Work::Product(product) => product.label(),
            Work::Allocate { address, bytes } => format!("cuMemAllocAsync of {bytes} bytes at {address:#x}"),
            Work::Free { address, .. } => format!("cuMemFreeAsync of {address:#x}"),
            Work::Record { .. } => "cuEventRecord".to_string(),
            Work::Call(_) => "cuLaunchHostFunc".to_string(),
        }
    }

    /// Whether it is known to touch device memory within a range. A kernel touches what its parameters point to, and
    /// perhaps more.
    pub(crate) fn touches_device(&self, range: &Range<u64>) -> bool {
        match self {
            Work::Launch(launch) => {
                let words = launch.parameters.chunks_exact(8).filter_map(|word| word.try_into().ok());
                words.map(u64::from_le_bytes).any(|word| range.contains(&word))
            }
            Work::Copy(copy) => [&copy.from, &copy.to]
                .into_iter()
                .filter_map(|side| side.device_range(copy.width, copy.rows))
                .any(|touched| overlaps(&touched, range)),
            Work::Fill(fill) => {
                let end = fill.address + extent(fill.pitch, fill.width, fill.rows) as u64;
                overlaps(&(fill.address..end), range)
            }
            Work::Product(product) => product.reads().iter().chain(&product.writes()).any(|r| overlaps(r, range)),
            Work::Free { address, bytes } | Work::Allocate { address, bytes } => {
                overlaps(&(*address..address + *bytes as u64), range)
            }
            Work::Record { .. } | Work::Call(_) => false,
        }
    }

    /// Whether it touches memory of the host within a range.
    pub(crate) fn touches_host(&self, range: &Range<u64>) -> bool {
        match self {
            Work::Copy(copy) => {
                let sides = [&copy.from, &copy.to].into_iter();
                sides.filter_map(|side| side.host_range()).any(|touched| overlaps(&touched, range))
            }
            _ => false,
        }
    }
}
