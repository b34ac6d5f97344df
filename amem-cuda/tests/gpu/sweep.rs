//! Failures of the driver at each sort of call.

use std::sync::Arc;

use amem_core::transformer::Transformer;
use amem_core::{Budget, Dtype, Model, Piece, Repair, Sampler, Sampling, Token};
use amem_cuda::{CudaBackend, Precision};
use amem_cuda_simulator::{fail_call, in_simulator, is_simulated, pending_failures};

use crate::{common, open};

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
        for (function, calls, code) in failures {
            for call in calls {
                assert!(fail_call(function, call, code));
                let failed = answer(&model);
                assert_eq!(pending_failures(), 0, "{function} is not called {call} times");
                assert!(failed.is_err(), "call {call} of {function} failed, and the answer is {failed:?}");
                assert_eq!(answer(&model).unwrap(), expected, "after call {call} of {function} failed");
            }
        }
    });
}
