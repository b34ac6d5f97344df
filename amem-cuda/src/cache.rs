//! The paged KV cache, and bringing stored KV into it.

use std::sync::{Mutex, PoisonError};

use amem_core::transformer::{Placement, Rope};
use amem_core::{Dtype, Encoding, Error, KvChunk, KvShape};

use crate::backend::CudaBackend;
use crate::driver::{Buffer, Launch, Staging};
use crate::plan::BLOCK_TOKENS;
use crate::store;

/// The KV cache of a model: `[layers][keys, values][blocks][kv_heads][64][head_dim]`, so that one head of one block is one
/// piece of memory.
pub struct Cache {
    pub(crate) shape: KvShape,
    blocks: usize,
    /// Bytes of one layer's keys, or of its values.
    half: usize,
    memory: Buffer,
    staging: Mutex<Staging>,
}

/// A run of tokens to be loaded, as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Source {
    /// Where the layer's bytes begin.
    address: u64,
    tokens: u32,
    /// Its first row among all that are loaded.
    first: u32,
}

impl Cache {
    pub(crate) fn new(backend: &CudaBackend, shape: &KvShape, dtype: Dtype, blocks: usize) -> amem_core::Result<Self> {
        let device = backend.device();
        if dtype != backend.precision().dtype() {
            let value = format!("{dtype:?}");
            return Err(Error::BadValue {
                what: "the KV cache's type",
                value,
                expected: "what the backend computes in",
            });
        }
        backend.attention_module(shape.head_dim)?;
        let half = blocks
            .checked_mul(BLOCK_TOKENS)
            .and_then(|slots| slots.checked_mul(shape.row()))
            .and_then(|numbers| numbers.checked_mul(dtype.size()));
        let bytes = half.and_then(|half| half.checked_mul(2 * shape.layers));
        let too_large = || Error::Full { what: "the GPU's memory".to_owned(), reason: format!("{blocks} blocks") };
        let (half, bytes) = half.zip(bytes).ok_or_else(too_large)?;
        let memory = Buffer::lasting(device, bytes)?;
        // A tile reads slots behind a context's last one too. What stands there is not seen, but has to be a number.
        device.zero(&memory)?;
        Ok(Self { shape: *shape, blocks, half, memory, staging: Mutex::new(Staging::new(device)) })
    }

    /// A layer's keys (0) or values (1), as the next argument of a launch.
    pub(crate) fn argument<'b>(
        &'b self,
        launch: Launch<'b>,
        layer: usize,
        half: usize,
    ) -> crate::error::Result<Launch<'b>> {
        launch.part(&self.memory, (2 * layer + half) * self.half, self.half)
    }

    pub(crate) fn copy_block(&self, backend: &CudaBackend, from: u32, to: u32) -> amem_core::Result<()> {
        self.check(Some(from.max(to)))?;
        let bytes = self.half / self.blocks.max(1);
        for half in 0..2 * self.shape.layers {
            let [from, to] = [from, to].map(|block| half * self.half + block as usize * bytes);
            backend.device().copy((&self.memory, to), (&self.memory, from), bytes)?;
        }
        Ok(())
    }

    /// Refuses blocks that are not there.
    pub(crate) fn check(&self, highest: Option<u32>) -> amem_core::Result<()> {
        match highest {
            Some(block) if block as usize >= self.blocks => {
                let value = format!("block {block} of a cache with {} blocks", self.blocks);
                Err(Error::BadValue { what: "block table", value, expected: "blocks of the cache" })
            }
            _ => Ok(()),
        }
    }

    /// Puts layers of chunks into their slots: while one layer is on its way, the next is read.
    pub(crate) fn load(
        &self,
        backend: &CudaBackend,
        rope: &Rope,
        layers: &[usize],
        placements: &[Placement<'_>],
    ) -> amem_core::Result<()> {
        let mut kinds: Vec<Encoding> = placements.iter().map(|placement| placement.chunk.encoding()).collect();
        kinds.sort_by_key(|kind| kind.code());
        kinds.dedup();
        for kind in kinds {
            let of_kind: Vec<&Placement<'_>> =
                placements.iter().filter(|placement| placement.chunk.encoding() == kind).collect();
            self.load_kind(backend, rope, layers, kind, &of_kind)?;
        }
        Ok(())
    }

    fn load_kind(
        &self,
        backend: &CudaBackend,
        rope: &Rope,
        layers: &[usize],
        encoding: Encoding,
        placements: &[&Placement<'_>],
    ) -> amem_core::Result<()> {
        let device = backend.device();
        let kernel = device.kernel(backend.precision().kv(), loader(encoding)?)?;
        if let Some(other) = placements.iter().find(|placement| *placement.chunk.shape() != self.shape) {
            let reason = format!("a chunk of {:?} in a cache of {:?}", other.chunk.shape(), self.shape);
            return Err(Error::WrongKv { reason });
        }
        self.check(placements.iter().flat_map(|placement| placement.table).max().copied())?;
        let rows = Rows::of(placements);
        let count = rows.slots.len();
        if count == 0 {
            return Ok(());
        }
        let angles = backend.angles(rope, rows.positions.iter().copied().max().unwrap_or(0))?;
        let lists: Vec<u32> = [rows.chunks, rows.slots, rows.positions].concat();
        let lists = device.upload(bytemuck::cast_slice(&lists))?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let head = placements.len() * size_of::<Source>();
        for &layer in layers {
            let (parts, end) = parts(backend, placements, head, layer);
            let launch = |staged: &Buffer| {
                let launch = Launch::new(&kernel, [count.div_ceil(kernel.rows().max(1)), 1, 1])
                    .of_heads(&kernel, self.shape.head_dim)
                    .buffer(staged, end)?
                    .part(&lists, 0, 4 * count)?
                    .part(&lists, 4 * count, 4 * count)?
                    .part(&lists, 8 * count, 4 * count)?
                    .buffer(&angles.pairs, angles.bytes())?;
                let launch = self.argument(self.argument(launch, layer, 0)?, layer, 1)?;
                Ok(launch.count(self.shape.kv_heads).count(self.shape.head_dim).count(count).into_call())
            };
            staging.load(end, |bytes, address| fill(bytes, address, placements, &parts, layer), launch)?;
        }
        drop(angles);
        Ok(())
    }
}

/// Where the kernel finds one layer of a chunk.
#[derive(Clone, Copy)]
enum Part {
    /// In staging memory, from here on.
    Staged(usize),
    /// On the GPU already, at this address.
    Resident(u64),
}

/// Where each chunk's layer is, and how many bytes of staging memory are used, of which the first `head` are taken.
fn parts(backend: &CudaBackend, placements: &[&Placement<'_>], head: usize, layer: usize) -> (Vec<Part>, usize) {
    // The kernels read 16 bytes at a time.
    const ALIGNMENT: usize = 16;
    let mut end = head;
    let part = |placement: &&Placement<'_>| {
        if let Some(address) = store::resident(backend, placement.chunk, layer) {
            return Part::Resident(address);
        }
        let (chunk, start) = (placement.chunk, end.next_multiple_of(ALIGNMENT));
        end = start + chunk.encoding().layer_bytes(chunk.shape(), chunk.tokens().len());
        Part::Staged(start)
    };
    let parts = placements.iter().map(part).collect();
    (parts, end)
}

/// Puts the table of sources and one layer of all chunks that are not there yet into staging memory, which the GPU will
/// find at `address`.
fn fill(
    bytes: &mut [u8],
    address: u64,
    placements: &[&Placement<'_>],
    parts: &[Part],
    layer: usize,
) -> amem_core::Result<()> {
    let head = placements.len() * size_of::<Source>();
    let (table, mut rest) = bytes.split_at_mut(head);
    let (mut taken, mut first) = (head, 0);
    let mut copies: Vec<(&KvChunk, &mut [u8])> = Vec::new();
    let entries = table.chunks_exact_mut(size_of::<Source>());
    for ((placement, part), entry) in placements.iter().zip(parts).zip(entries) {
        let chunk = placement.chunk;
        let address = match *part {
            Part::Resident(address) => address,
            Part::Staged(start) => {
                let (_, from_start) = std::mem::take(&mut rest).split_at_mut(start - taken);
                let len = chunk.encoding().layer_bytes(chunk.shape(), chunk.tokens().len());
                let (place, behind) = from_start.split_at_mut(len);
                (rest, taken) = (behind, start + len);
                copies.push((chunk, place));
                address + start as u64
            }
        };
        let tokens = chunk.tokens().len() as u32;
        entry.copy_from_slice(bytemuck::bytes_of(&Source { address, tokens, first }));
        first += tokens;
    }
    copy_layers(copies, layer)
}

/// Copies one layer of each chunk into its place, on several threads if it is worth waking them: a link to a GPU is faster
/// than one of them can read.
fn copy_layers(mut copies: Vec<(&KvChunk, &mut [u8])>, layer: usize) -> amem_core::Result<()> {
    const WORTH_A_THREAD: usize = 1 << 20;
    const MOST_THREADS: usize = 8;
    let copy = |copies: &mut [(&KvChunk, &mut [u8])]| -> amem_core::Result<()> {
        let mut buffer = Vec::new();
        for (chunk, place) in copies {
            place.copy_from_slice(chunk.layer_in(layer, &mut buffer)?.bytes());
        }
        Ok(())
    };
    let bytes: usize = copies.iter().map(|(_, place)| place.len()).sum();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = (bytes / WORTH_A_THREAD).min(copies.len()).min(cores).min(MOST_THREADS);
    if threads <= 1 {
        return copy(&mut copies);
    }
    let share = copies.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let threads: Vec<_> = copies.chunks_mut(share).map(|copies| scope.spawn(|| copy(copies))).collect();
        let panicked = |_| Err(Error::Model("a thread that reads KV panicked".into()));
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(panicked))
    })
}

/// For each token that is loaded: whose it is, and where it goes.
struct Rows {
    chunks: Vec<u32>,
    slots: Vec<u32>,
    positions: Vec<u32>,
}

impl Rows {
    fn of(placements: &[&Placement<'_>]) -> Self {
        let mut rows = Self { chunks: Vec::new(), slots: Vec::new(), positions: Vec::new() };
        for (index, placement) in placements.iter().enumerate() {
            for token in 0..placement.chunk.tokens().len() as u32 {
                rows.chunks.push(index as u32);
                rows.slots.push(physical(placement.table, placement.slot + token));
                rows.positions.push(placement.position + token);
            }
        }
        rows
    }
}

/// Stands for a slot that is in no block: nothing is written to it.
const NO_SLOT: u32 = u32::MAX;

/// The place of a slot among all of a layer's slots.
pub(crate) fn physical(table: &[u32], slot: u32) -> u32 {
    const B: u32 = BLOCK_TOKENS as u32;
    table.get((slot / B) as usize).map_or(NO_SLOT, |block| block * B + slot % B)
}

fn loader(encoding: Encoding) -> amem_core::Result<&'static str> {
    match encoding {
        Encoding::Plain(Dtype::F32) => Ok("load_kv_f32"),
        Encoding::Plain(Dtype::F16) => Ok("load_kv_f16"),
        Encoding::Plain(Dtype::Bf16) => Ok("load_kv_bf16"),
        Encoding::Int8 => Ok("load_kv_int8"),
        Encoding::Int4 => Ok("load_kv_int4"),
        other => Err(Error::WrongKv { reason: format!("this backend does not read {other:?}") }),
    }
}
