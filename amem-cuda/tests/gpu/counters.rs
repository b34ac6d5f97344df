//! What a decode step asks of the driver.

use std::sync::Arc;

use amem_core::{Dtype, Model, Piece, Repair, Step, Token};
use amem_cuda::{Counters, Precision};
use amem_cuda_simulator::in_simulator;

use crate::{common, open};

/// What one more decode step of some contexts asks for.
fn step<M: Model>(
    model: &M,
    contexts: &mut [Box<dyn amem_core::Context>],
    counters: &dyn Fn() -> Counters,
) -> [u64; 4] {
    let before = counters();
    for context in contexts.iter_mut() {
        context.append(&[Piece::Fresh([9].into())], &amem_core::AppendOptions::new(Repair::None)).unwrap();
    }
    let mut steps: Vec<Step<'_>> =
        contexts.iter_mut().map(|context| Step { context: &mut **context, max_rows: 64 }).collect();
    model.advance(&mut steps).into_iter().for_each(|result| assert!(result.is_ok()));
    let now = counters();
    [
        now.submitted - before.submitted,
        now.graphs - before.graphs,
        now.waits - before.waits,
        now.allocations - before.allocations,
    ]
}

#[test]
fn a_decode_step_is_one_graph_and_one_wait_and_allocates_nothing() {
    in_simulator("counters::a_decode_step_is_one_graph_and_one_wait_and_allocates_nothing", &[], || {
        let gpu = open(Precision::F16);
        let model = common::demo(gpu.clone(), Dtype::F16);
        let counters = || gpu.counters();
        for contexts in [1, 3] {
            let text: Arc<[Token]> = (0..70).map(|index| 8 + index % 90).collect();
            let mut open: Vec<Box<dyn amem_core::Context>> = (0..contexts)
                .map(|_| {
                    let mut context = model.open(200).unwrap();
                    model.extend(&mut *context, &[Piece::Fresh(Arc::clone(&text))], &Repair::None).unwrap();
                    context
                })
                .collect();
            // The first step is launched piece by piece, and the second is captured.
            let first = step(&model, &mut open, &counters);
            step(&model, &mut open, &counters);
            for _ in 0..5 {
                let [submitted, graphs, waits, allocations] = step(&model, &mut open, &counters);
                assert_eq!((graphs, waits, allocations), (1, 1, 0), "{contexts} contexts");
                assert_eq!(submitted, first[0], "the same work as the first step");
            }
            // What the README says: nine a layer, and seven beside.
            assert_eq!(first[0], 5 * 9 + 7, "{contexts} contexts");
        }
    });
}
