//! Failures of the driver at each sort of call.

use std::sync::Arc;

use amem_core::transformer::{Backend, Transformer, WeightRole, WeightTensor};
use amem_core::{Budget, Dtype, KvStore, Model, Piece, Repair, Sampler, Sampling, Token};
use amem_cuda::{CudaBackend, Precision, Tensor};
use amem_cuda_simulator::{fail_call, in_simulator, is_simulated, pending_failures};
use futures_lite::future::block_on;

use crate::memory::{SHAPE, chunk};
use crate::{common, families, open};

/// Computes memories, repairs them behind each other, and goes on with a greedy decode.
fn answer(model: &Transformer<CudaBackend>) -> amem_core::Result<Vec<Token>> {
    let layout = model.chat().layout("")?;
    let encode = |text: &str| model.chat().encode(text).unwrap();
    let notes = ["Alice lives in Denver.", "Alice's sister is Maria. She lives in Paris."];
    let texts: Vec<Arc<[Token]>> = notes.iter().map(|note| layout.memory(&encode(note))).collect();
    let texts = model.info().prefill_texts("you", &layout.prefix, &texts);
    let (memories, _) = model.prefill(&layout.prefix, &texts, true)?;
    let question = [&layout.to_question[..], &encode("Where does Alice live?"), &layout.to_answer].concat();
    let mut pieces = vec![Piece::Fresh(Arc::clone(&layout.prefix))];
    pieces.extend(memories.into_iter().rev().map(Piece::Cached));
    pieces.push(Piece::Fresh(question.into()));
    let mut context = model.open(512)?;
    let repair = Repair::Attention { budget: Budget::Ratio(0.2), layers: 1..2 };
    model.extend(&mut *context, &pieces, &repair)?;
    let mut sampler = Sampler::new(&Sampling::default())?;
    let mut tokens = Vec::new();
    for _ in 0..4 {
        let token = model.sample(&*context, &mut sampler, None)?;
        tokens.push(token);
        model.extend(&mut *context, &[Piece::Fresh([token].into())], &Repair::None)?;
    }
    Ok(tokens)
}

#[test]
fn a_call_that_fails_is_an_error_and_the_next_answer_is_right() {
    in_simulator("sweep::a_call_that_fails_is_an_error_and_the_next_answer_is_right", &[], || {
        if !is_simulated() {
            return;
        }
        let model = common::demo(open(Precision::F16), Dtype::F16);
        let expected = answer(&model).unwrap();
        // Which call fails, and with which code: that of a bad argument, or of memory that is full.
        let failures = [
            ("cuLaunchKernel", [1, 13, 34], 1),
            ("cublasLtMatmul", [1, 5, 8], 14),
            ("cuMemcpyHtoDAsync_v2", [1, 5, 13], 1),
            ("cuStreamSynchronize", [1, 3, 5], 999),
            ("cuEventRecord", [1, 3, 5], 400),
            ("cuStreamWaitEvent", [1, 3, 5], 400),
            ("cuGraphLaunch", [1, 3, 5], 1),
        ];
        // Where one of these fails while a graph is captured, they are launched one by one.
        let captured = ["cuLaunchKernel", "cublasLtMatmul", "cuMemcpyHtoDAsync_v2"];
        for (function, calls, code) in failures {
            for call in calls {
                assert!(fail_call(function, call, code));
                let failed = answer(&model);
                assert_eq!(pending_failures(), 0, "{function} is not called {call} times");
                let unharmed = captured.contains(&function) && failed.as_ref().is_ok_and(|tokens| *tokens == expected);
                assert!(failed.is_err() || unharmed, "call {call} of {function} failed, and the answer is {failed:?}");
                assert_eq!(answer(&model).unwrap(), expected, "after call {call} of {function} failed");
            }
        }
    });
}

#[test]
fn where_the_driver_makes_no_graphs_answers_are_the_same() {
    in_simulator("sweep::where_the_driver_makes_no_graphs_answers_are_the_same", &[], || {
        if !is_simulated() {
            return;
        }
        let gpu = open(Precision::F16);
        let model = common::demo(gpu.clone(), Dtype::F16);
        // Which would be for want of memory.
        (1..=1000).for_each(|call| assert!(fail_call("cuGraphInstantiateWithFlags", call, 2)));
        let expected = answer(&model).unwrap();
        let untried: Vec<usize> = (0..8)
            .map(|_| {
                assert_eq!(answer(&model).unwrap(), expected);
                pending_failures()
            })
            .collect();
        assert_eq!(gpu.counters().graphs, 0);
        // Pinned memory that a copy has not left yet is not taken, so that now and then a pass is another.
        let is_tried_no_more = untried.windows(2).any(|pair| pair[0] == pair[1]);
        assert!(untried[0] < 1000 && is_tried_no_more, "the same is not tried again: {untried:?}");
    });
}

/// What the first pass of a model uploads is used by all that follow: where experts lie, and the angles of a second RoPE.
#[test]
fn a_first_pass_that_fails_leaves_nothing_behind_that_later_passes_miss() {
    in_simulator("sweep::a_first_pass_that_fails_leaves_nothing_behind_that_later_passes_miss", &[], || {
        if !is_simulated() {
            return;
        }
        for family in families::families().iter().filter(|family| ["gemma3", "mixtral"].contains(&family.name)) {
            // More rows than decoding has, in a pass that is short enough to be written down first.
            let logits = |model: &Transformer<CudaBackend>| {
                let text: Arc<[Token]> = (8..28).collect();
                let mut context = model.open(64)?;
                model.extend(&mut *context, &[Piece::Fresh(text)], &Repair::None)?;
                Ok::<_, amem_core::Error>(context.logits().to_vec())
            };
            let model = || family.model(open(Precision::F16), Precision::F16);
            let expected = logits(&model()).unwrap();
            for call in [1, 4] {
                let model = model();
                assert!(fail_call("cublasLtMatmul", call, 14));
                assert!(logits(&model).is_err(), "{}, call {call}", family.name);
                assert_eq!(logits(&model).unwrap(), expected, "{}, after call {call} failed", family.name);
            }
        }
    });
}

/// A product of nine rows that is written down in a pass of this thread, and fails when it is launched.
fn failing_product(gpu: &CudaBackend) -> Tensor {
    let bytes = vec![0; 2 * 64 * 64];
    let weights = gpu.matrix(&WeightTensor::new(WeightRole::Gate, Dtype::F16, 64, 64, &bytes)).unwrap();
    let x = gpu.upload(64, &[1.0; 9 * 64]).unwrap();
    gpu.begin_pass().unwrap();
    let product = gpu.linear(&x, &weights, None).unwrap();
    assert!(fail_call("cublasLtMatmul", 1, 14));
    product
}

/// What another thread returns.
fn elsewhere<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
fn kv_that_is_stored_beside_a_pass_that_fails_is_there() {
    in_simulator("sweep::kv_that_is_stored_beside_a_pass_that_fails_is_there", &[], || {
        if !is_simulated() {
            return;
        }
        let gpu = open(Precision::F16);
        let (store, chunk) = (gpu.kv_store(), chunk(100, 7));
        let product = failing_product(&gpu);
        elsewhere(|| block_on(store.put(std::slice::from_ref(&chunk)))).unwrap();
        assert!(gpu.read(&product).is_err());
        gpu.end_pass().unwrap();
        let stored = block_on(store.get(&chunk.id())).unwrap().unwrap();
        assert!(stored.data().layer(0).unwrap() == chunk.data().layer(0).unwrap());
    });
}

#[test]
fn who_loses_work_when_another_thread_launches_it_is_told() {
    in_simulator("sweep::who_loses_work_when_another_thread_launches_it_is_told", &[], || {
        if !is_simulated() {
            return;
        }
        let gpu = open(Precision::F16);
        let product = failing_product(&gpu);
        // No memory is left, so that all that was written down is launched, and what the pool keeps is given back. This
        // thread has lost nothing by that.
        assert!(fail_call("cuMemAlloc_v2", 1, 2));
        elsewhere(|| gpu.cache(&SHAPE, Dtype::F16, 8).map(drop)).unwrap();
        assert_eq!(pending_failures(), 0);
        assert!(gpu.read(&product).is_err());
        gpu.end_pass().unwrap();
        // It is told once.
        let x = gpu.upload(8, &[1.0; 8]).unwrap();
        assert_eq!(gpu.read(&x).unwrap(), [1.0; 8]);
    });
}
