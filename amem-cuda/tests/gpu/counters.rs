//! What a decode step asks of the driver.

use std::collections::HashMap;
use std::sync::Arc;

use amem_core::transformer::{Backend, Transformer};
use amem_core::{Dtype, Model, Piece, Repair, Step, Token};
use amem_cuda::{Counters, Precision};
use amem_cuda_simulator::in_simulator;

use crate::{common, families, open};

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

/// Checks that decode steps of some contexts are one graph each, once one of them was captured. Returns what a step
/// submits.
fn is_one_graph<B: Backend>(model: &Transformer<B>, counters: &dyn Fn() -> Counters, contexts: usize) -> u64 {
    let text: Arc<[Token]> = (0..70).map(|index| 8 + index % 90).collect();
    let mut open: Vec<Box<dyn amem_core::Context>> = (0..contexts)
        .map(|_| {
            let mut context = model.open(200).unwrap();
            model.extend(&mut *context, &[Piece::Fresh(Arc::clone(&text))], &Repair::None).unwrap();
            context
        })
        .collect();
    // The first uploads what all others use: where the weights of experts are.
    step(model, &mut open, counters);
    let first = step(model, &mut open, counters);
    // When it comes again, it is captured.
    step(model, &mut open, counters);
    for _ in 0..5 {
        let [submitted, graphs, waits, allocations] = step(model, &mut open, counters);
        assert_eq!((graphs, waits, allocations), (1, 1, 0), "{contexts} contexts");
        assert_eq!(submitted, first[0], "the same work as before");
    }
    first[0]
}

#[test]
fn a_decode_step_is_one_graph_and_one_wait_and_allocates_nothing() {
    in_simulator("counters::a_decode_step_is_one_graph_and_one_wait_and_allocates_nothing", &[], || {
        let gpu = open(Precision::F16);
        let model = common::demo(gpu.clone(), Dtype::F16);
        for contexts in [1, 3] {
            // What the README says: nine a layer, and seven beside.
            assert_eq!(is_one_graph(&model, &|| gpu.counters(), contexts), 5 * 9 + 7, "{contexts} contexts");
        }
    });
}

#[test]
fn a_decode_step_with_capped_scores_or_with_experts_is_one_graph_too() {
    in_simulator("counters::a_decode_step_with_capped_scores_or_with_experts_is_one_graph_too", &[], || {
        let gpu = open(Precision::F16);
        for family in families::families().iter().filter(|family| ["gemma2", "mixtral"].contains(&family.name)) {
            let model = family.model(gpu.clone(), Precision::F16);
            for contexts in [1, 3] {
                let asked = is_one_graph(&model, &|| gpu.counters(), contexts);
                assert_eq!(asked, submitted(family.name), "{}, {contexts} contexts", family.name);
            }
        }
    });
}

/// What a decode step of a family's model submits, of which it has three layers, as the README counts it.
fn submitted(family: &str) -> u64 {
    let (llama, of_pass) = (9, 7);
    // The router's product, the choice, and the sum of what the experts make of a row; and gate and up, and down, as ever.
    let experts = llama + 3;
    let (of_layer, more) = match family {
        "qwen3" => (llama + 2, 0),
        // Norms behind blocks; the embedding's scale, the cap, and a second plan.
        "gemma2" => (llama + 2, 1 + 1 + 2),
        "gemma3" => (llama + 2 + 2, 1 + 2),
        "granite" => (llama + 2, 1 + 1),
        // A second plan, for the layer that does not rotate.
        "smollm3" => (llama, 2),
        // The residual stream is rounded before each block, but for what the embedding gives, which is rounded already.
        "olmo2" => (llama + 2 + 2, 2 * 3 - 1),
        "mixtral" => (experts, 0),
        "qwen3-moe" => (experts + 2, 0),
        _ => (llama, 0),
    };
    3 * of_layer + of_pass + more
}

#[test]
fn a_decode_step_waits_for_nothing_but_its_logits() {
    in_simulator("counters::a_decode_step_waits_for_nothing_but_its_logits", &[], || {
        let gpu = open(Precision::F16);
        for family in families::families() {
            let model = family.model(gpu.clone(), Precision::F16);
            let mut context = model.open(64).unwrap();
            model.extend(&mut *context, &[Piece::Fresh([8, 9, 10].into())], &Repair::None).unwrap();
            let [asked, _, waits, _] = step(&model, &mut [context], &|| gpu.counters());
            assert_eq!(waits, 1, "{}", family.name);
            assert_eq!(asked, submitted(family.name), "{}", family.name);
        }
    });
}

/// Of more rows than the kernels of decoding take, experts are chosen on the GPU too.
#[test]
fn a_prefill_waits_for_nothing_but_its_logits() {
    in_simulator("counters::a_prefill_waits_for_nothing_but_its_logits", &[], || {
        let gpu = open(Precision::F16);
        let asked = families::families().into_iter().map(|family| {
            let model = family.model(gpu.clone(), Precision::F16);
            let prefill = || {
                let text: Arc<[Token]> = (8..28).collect();
                let mut context = model.open(64).unwrap();
                let before = gpu.counters();
                model.extend(&mut *context, &[Piece::Fresh(text)], &Repair::None).unwrap();
                let now = gpu.counters();
                (now.submitted - before.submitted, now.waits - before.waits)
            };
            // The first one uploads where the weights of experts are.
            prefill();
            let (submitted, waits) = prefill();
            assert_eq!(waits, 1, "{}", family.name);
            (family.name, submitted)
        });
        let asked: HashMap<&str, u64> = asked.collect();
        // Two more in each of the three layers; but in the last one, a single row is left. In the others, none of the three
        // products of a feed-forward block has to be kept from infinity, for experts have kernels of their own.
        assert_eq!(asked["mixtral"], asked["llama"] + 2 * 2 + 3 - 2 * 3);
    });
}
