//! One prompt of memories and a question on the GPU and on the CPU.

use std::sync::Arc;

use amem_core::transformer::{Backend, Transformer};
use amem_core::{Budget, KvChunk, Model, Piece, Repair, Sampler, Sampling, Token};
use amem_cpu::Cpu;
use amem_cuda::CudaBackend;

/// Texts as a conversation has them, behind the model's own beginning.
struct Prompt {
    memories: Vec<KvChunk>,
    question: Arc<[Token]>,
}

fn prompt<B: Backend>(model: &Transformer<B>) -> Prompt {
    let layout = model.chat().layout("").unwrap();
    let encode = |text: &str| model.chat().encode(text).unwrap();
    let notes =
        ["Alice lives in Denver.", "Alice's sister is Maria. She lives in Paris.", "Bob's locker code is 4817."];
    let texts: Vec<Arc<[Token]>> = notes.iter().map(|note| layout.memory(&encode(note))).collect();
    let texts = model.info().prefill_texts("you", &layout.prefix, &texts);
    let (memories, _) = model.prefill(&layout.prefix, &texts, true).unwrap();
    let question =
        [&layout.to_question[..], &encode("Where does Alice's sister live?"), &layout.to_answer].concat().into();
    Prompt { memories, question }
}

/// The logits after a prompt, and the tokens that a greedy decode goes on with.
fn decoded<B: Backend>(model: &Transformer<B>, prompt: &Prompt, repair: &Repair) -> (Vec<f32>, Vec<Token>) {
    let layout = model.chat().layout("").unwrap();
    let mut pieces = vec![Piece::Fresh(Arc::clone(&layout.prefix))];
    pieces.extend(prompt.memories.iter().rev().cloned().map(Piece::Cached));
    pieces.push(Piece::Fresh(Arc::clone(&prompt.question)));
    let mut context = model.open(512).unwrap();
    model.extend(&mut *context, &pieces, repair).unwrap();
    let logits = context.logits().to_vec();
    let mut sampler = Sampler::new(&Sampling::default()).unwrap();
    let mut tokens = Vec::new();
    for _ in 0..6 {
        let token = model.sample(&*context, &mut sampler, None).unwrap();
        tokens.push(token);
        model.extend(&mut *context, &[Piece::Fresh([token].into())], &Repair::None).unwrap();
    }
    (logits, tokens)
}

fn repairs() -> [Repair; 7] {
    let (budget, layers) = (Budget::Ratio(0.2), 1..2);
    [
        Repair::None,
        Repair::FirstRows(2),
        Repair::Deviation { ratio: 0.2, check_layer: 1 },
        Repair::Attention { budget, layers: layers.clone() },
        Repair::Attention { budget: Budget::Mass(0.5), layers: 1..3 },
        Repair::Weighted { budget, layers },
        Repair::All,
    ]
}

/// Compares a model on the GPU with the same model in the CPU's exact arithmetic, over KV of the same type: the tokens
/// that a greedy decode gives for every [`Repair`], and the logits before them.
pub(crate) fn compare(name: &str, cpu: &Transformer<Cpu>, gpu: &Transformer<CudaBackend>, tolerance: f32) {
    let (on_cpu, on_gpu) = (prompt(cpu), prompt(gpu));
    for repair in repairs() {
        let (expected, tokens) = decoded(cpu, &on_cpu, &repair);
        let (found, same) = decoded(gpu, &on_gpu, &repair);
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max);
        println!("{name}, {repair:?}: logits off by {off:.1e}");
        assert!(off <= tolerance, "{name}, {repair:?}: off by {off}");
        assert_eq!(same, tokens, "{name}, {repair:?}");
    }
}
