//! What memory of the GPU and of the host is taken, and when it is given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use amem_core::transformer::{Backend, Placement, Rope, WeightRole, WeightTensor};
use amem_core::{ChunkId, Dtype, Encoding, Error, HostKv, KvChunk, KvShape, KvStore, PrefixId};
use amem_cuda::{Cache, CudaBackend, Matrix, Precision};
use amem_cuda_simulator::{counts, fail_call, in_simulator, is_simulated};
use futures_lite::future::block_on;

use crate::{open, open_as_it_is};

/// One layer of f16, 512 bytes for each token.
pub(crate) const SHAPE: KvShape = KvShape { layers: 1, kv_heads: 2, head_dim: 64 };

/// A chunk of so many tokens. Different seeds have different KV.
pub(crate) fn chunk(tokens: usize, seed: u8) -> KvChunk {
    let encoding = Encoding::Plain(Dtype::F16);
    // Small positive numbers, whatever the bits are.
    let bytes = (0..encoding.bytes(&SHAPE, tokens)).map(|at| if at % 2 == 0 { at as u8 ^ seed } else { 0x28 });
    let data = HostKv::new(encoding, SHAPE.layers, bytes.collect());
    let tokens: Arc<[u32]> = (0..tokens as u32).collect();
    KvChunk::new(ChunkId([seed; 32]), PrefixId::of(&[]), SHAPE, tokens, Arc::new(data)).unwrap()
}

/// Loads a chunk to the beginning of a cache.
fn load(gpu: &CudaBackend, cache: &mut Cache, chunk: &KvChunk) {
    let table: Vec<u32> = (0..chunk.tokens().len().div_ceil(gpu.block_tokens()) as u32).collect();
    let placement = Placement { chunk, table: &table, slot: 0, position: 0 };
    gpu.load_kv(cache, &Rope::plain(10_000.0, SHAPE.head_dim), &[0], &[placement]).unwrap();
}

/// A weight matrix of zeros, of so many bytes.
fn weights(gpu: &CudaBackend, bytes: usize) -> amem_core::Result<Matrix> {
    let zeros = vec![0; bytes];
    gpu.matrix(&WeightTensor::new(WeightRole::Gate, Dtype::F16, bytes / 1024, 512, &zeros))
}

const MIB: usize = 1 << 20;

/// Each of these by itself would take a whole number of pages: a third more in one case, two thirds in the other.
#[test]
fn what_stays_on_the_gpu_takes_hardly_more_memory_than_it_has_bytes() {
    in_simulator("memory::what_stays_on_the_gpu_takes_hardly_more_memory_than_it_has_bytes", &[], || {
        if !is_simulated() {
            return;
        }
        let gpu = open_as_it_is(Precision::F16);
        let taken = || counts().allocated_bytes as usize;
        let before = taken();
        let matrices: Vec<Matrix> = (0..20).map(|_| weights(&gpu, 3 * MIB).unwrap()).collect();
        let of_matrices = taken() - before;
        assert!((60 * MIB..=62 * MIB).contains(&of_matrices), "{of_matrices} bytes for 60 MiB");
        let store = gpu.kv_store();
        let chunks: Vec<KvChunk> = (0..28).map(|seed| chunk(2450, seed)).collect();
        block_on(store.put(&chunks)).unwrap();
        let (needed, of_chunks) = (28 * 512 * 2450, taken() - before - of_matrices);
        // The last slab has room for more.
        assert!((needed..=needed + needed / 50 + 16 * MIB).contains(&of_chunks), "{of_chunks} bytes for {needed}");
        drop((matrices, store, chunks));
    });
}

#[test]
fn lasting_memory_that_was_dropped_is_used_again_when_the_host_has_waited() {
    in_simulator("memory::lasting_memory_that_was_dropped_is_used_again_when_the_host_has_waited", &[], || {
        if !is_simulated() {
            return;
        }
        let gpu = open_as_it_is(Precision::F16);
        let x = gpu.upload(512, &[1.0; 512]).unwrap();
        gpu.read(&x).unwrap();
        let held: Vec<Matrix> = (0..8).map(|_| weights(&gpu, 2 * MIB).unwrap()).collect();
        let product = gpu.linear(&x, &held[0], None).unwrap();
        let before = counts().allocated_bytes;
        // The product may not have run yet.
        drop(held);
        let others: Vec<Matrix> = (0..8).map(|_| weights(&gpu, 2 * MIB).unwrap()).collect();
        assert!(counts().allocated_bytes > before);
        assert_eq!(gpu.read(&product).unwrap(), vec![0.0; 2048]);
        let before = counts().allocated_bytes;
        let more: Vec<Matrix> = (0..8).map(|_| weights(&gpu, 2 * MIB).unwrap()).collect();
        assert_eq!(counts().allocated_bytes, before);
        drop((others, more));
    });
}

/// Most of a model's memory can be another's once it is dropped, whoever that is; all of it if this program needs some.
#[test]
fn slabs_that_hold_nothing_are_given_back() {
    in_simulator("memory::slabs_that_hold_nothing_are_given_back", &[], || {
        if !is_simulated() {
            return;
        }
        let gpu = open_as_it_is(Precision::F16);
        let x = gpu.upload(8, &[1.0; 8]).unwrap();
        gpu.read(&x).unwrap();
        let before = counts().allocated_bytes;
        let left = || (counts().allocated_bytes - before) as usize;
        let held: Vec<Matrix> = (0..24).map(|_| weights(&gpu, 2 * MIB).unwrap()).collect();
        let cache = gpu.cache(&SHAPE, Dtype::F16, 65 * 32).unwrap();
        assert_eq!(left(), 48 * MIB + 66 * MIB, "slabs, and what is larger than any has pages of its own");
        drop((held, cache));
        assert_eq!(left(), 48 * MIB + 66 * MIB, "commands might use it");
        gpu.read(&x).unwrap();
        assert_eq!(left(), 16 * MIB, "one slab stays for what comes next");
        assert!(fail_call("cuMemAlloc_v2", 1, 2));
        let cache = gpu.cache(&SHAPE, Dtype::F16, 65 * 32).unwrap();
        assert_eq!(left(), 66 * MIB, "when memory is short");
        drop(cache);
    });
}

/// 200 MiB, of which cuBLASLt's workspace takes 32. By itself, each matrix would take 4.
#[test]
fn lasting_memory_fills_a_small_gpu_to_the_last_page() {
    let settings = [("AMEM_SIM_MEMORY", "209715200")];
    in_simulator("memory::lasting_memory_fills_a_small_gpu_to_the_last_page", &settings, || {
        if !is_simulated() {
            return;
        }
        let gpu = open_as_it_is(Precision::F16);
        let mut held = Vec::new();
        let error = loop {
            match weights(&gpu, 3 * MIB) {
                Ok(matrix) => held.push(matrix),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Full { .. }) && error.to_string().contains("3145728 bytes"), "{error}");
        assert!(held.len() > 50, "{} matrices of 3 MiB in 168", held.len());
        // What is dropped makes room, though the host has not waited for the GPU since.
        let gone = held.len() / 2;
        held.truncate(gone);
        (0..gone).for_each(|_| held.push(weights(&gpu, 3 * MIB).unwrap()));
        // And so does what the pool keeps.
        drop(held);
        let x = gpu.upload(8, &vec![1.0; 10 * MIB / 4]).unwrap();
        gpu.read(&x).unwrap();
        drop(x);
        let cache = gpu.cache(&SHAPE, Dtype::F16, 160 * 32).unwrap();
        drop(cache);
    });
}

/// Some threads compute in short passes, whose tensors go back to the pool while their work is only written down. Another
/// one runs out of memory again and again, so that the pool is emptied.
#[test]
fn memory_is_not_given_back_while_work_that_uses_it_is_written_down() {
    in_simulator("memory::memory_is_not_given_back_while_work_that_uses_it_is_written_down", &[], || {
        if !is_simulated() {
            return;
        }
        let gpu = open(Precision::F16);
        let done = AtomicBool::new(false);
        let compute = || {
            let x = gpu.upload(64, &[1.0; 2 * 64]).unwrap();
            while !done.load(Ordering::Relaxed) {
                gpu.begin_pass().unwrap();
                let mut y = gpu.gather(&x, &[1, 0]).unwrap();
                for _ in 0..30 {
                    y = gpu.gather(&y, &[1, 0]).unwrap();
                }
                assert_eq!(gpu.read(&y).unwrap(), [1.0; 128]);
                gpu.end_pass().unwrap();
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(compute)).collect();
            let mut tries = (0..100).map(|_| gpu.cache(&SHAPE, Dtype::F16, 1 << 20));
            let full = tries.all(|tried| matches!(tried, Err(Error::Full { .. })));
            done.store(true, Ordering::Relaxed);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            assert!(full);
        });
    });
}

/// One thread computes in short passes, as above. Another one loads KV into new caches, through memory of the same size.
#[test]
fn kv_is_not_copied_to_memory_that_work_which_is_written_down_still_uses() {
    in_simulator("memory::kv_is_not_copied_to_memory_that_work_which_is_written_down_still_uses", &[], || {
        let gpu = open(Precision::F16);
        let x = gpu.upload(64, &[1.0; 60 * 64]).unwrap();
        let rows: Vec<usize> = (0..60).rev().collect();
        let chunk = chunk(30, 1);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let mut cache = gpu.cache(&SHAPE, Dtype::F16, 1).unwrap();
                    load(&gpu, &mut cache, &chunk);
                }
            });
            let pass = || -> amem_core::Result<bool> {
                gpu.begin_pass()?;
                let mut y = gpu.gather(&x, &rows)?;
                for _ in 0..6 {
                    y = gpu.gather(&y, &rows)?;
                }
                let is_intact = gpu.read(&y)?.iter().all(|number| *number == 1.0);
                gpu.end_pass()?;
                Ok(is_intact)
            };
            let wrong = (0..200).map(|_| pass()).find(|intact| !matches!(intact, Ok(true)));
            // Before anything can panic: the other thread would go on for ever.
            done.store(true, Ordering::Relaxed);
            assert!(wrong.is_none(), "{wrong:?}");
        });
    });
}

#[test]
fn a_gpu_that_is_closed_leaves_nothing_in_a_context_that_somebody_else_holds() {
    in_simulator("memory::a_gpu_that_is_closed_leaves_nothing_in_a_context_that_somebody_else_holds", &[], || {
        if !is_simulated() {
            return;
        }
        let held = cudarc::driver::CudaContext::new(0).unwrap();
        for _ in 0..2 {
            let gpu = open(Precision::F16);
            let bytes = [0; 2 * 8 * 8];
            let weights = gpu.matrix(&WeightTensor::new(WeightRole::Gate, Dtype::F16, 8, 8, &bytes)).unwrap();
            let product = gpu.linear(&gpu.upload(8, &[1.0; 9 * 8]).unwrap(), &weights, None).unwrap();
            assert_eq!(gpu.read(&product).unwrap(), [0.0; 9 * 8]);
            drop((gpu, weights, product));
            let left = counts();
            assert_eq!((left.allocated_bytes, left.host_bytes, left.modules), (0, 0, 0));
        }
        drop(held);
    });
}

/// The simulator finds fault with a library that is let go of after the context.
#[test]
fn a_gpu_that_is_closed_lets_go_of_its_context_last() {
    in_simulator("memory::a_gpu_that_is_closed_lets_go_of_its_context_last", &[], || drop(open(Precision::F16)));
}

#[test]
fn a_chunk_that_is_a_little_longer_is_loaded_through_the_same_memory() {
    in_simulator("memory::a_chunk_that_is_a_little_longer_is_loaded_through_the_same_memory", &[], || {
        let gpu = open(Precision::F16);
        let mut cache = gpu.cache(&SHAPE, Dtype::F16, 4).unwrap();
        // There are two places to copy through, and each is made when it is first needed.
        (0..2).for_each(|_| load(&gpu, &mut cache, &chunk(100, 1)));
        let (before, pinned) = (gpu.counters(), counts().host_bytes);
        (0..2).for_each(|_| load(&gpu, &mut cache, &chunk(101, 2)));
        let after = gpu.counters();
        assert_eq!((after.waits, after.allocations), (before.waits, before.allocations));
        assert!(counts().host_bytes - pinned < 8192, "but for lists of a few bytes");
    });
}

#[test]
fn pinned_memory_that_became_too_small_or_is_not_used_is_given_back() {
    in_simulator("memory::pinned_memory_that_became_too_small_or_is_not_used_is_given_back", &[], || {
        if !is_simulated() {
            return;
        }
        let gpu = open(Precision::F16);
        let mut cache = gpu.cache(&SHAPE, Dtype::F16, 16).unwrap();
        // The first one uploads what all others use: the angles of RoPE.
        load(&gpu, &mut cache, &chunk(1, 1));
        let before = counts().host_bytes;
        for tokens in [200, 400, 800] {
            (0..2).for_each(|_| load(&gpu, &mut cache, &chunk(tokens, 1)));
        }
        let (largest, taken) = (512 * 800, counts().host_bytes - before);
        assert!(taken < 2 * largest * 5 / 4 + 64 * 1024, "{taken} bytes to copy {largest} through two places");
        drop(cache);
        // No memory is left on the GPU, so that all is given back that is only kept for later. No slab has room for so much.
        assert!(fail_call("cuMemAlloc_v2", 1, 2));
        gpu.cache(&SHAPE, Dtype::F16, 65 * 32).unwrap();
        assert_eq!(counts().host_bytes, 0);
    });
}
