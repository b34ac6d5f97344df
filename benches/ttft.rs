//! How much sooner does an answer begin when the memories' KV is at hand?
//!
//! From an empty context to the logits of the first token, over the same tokens: `cold` computes all of them, the other
//! lanes put cached KV in place and repair it in their own way. `all` repairs every row, which saves nothing and shows
//! what handling chunks costs.
//!
//! The floor of a blend is computing the repaired rows and the question, a known share of `cold`'s work: with the
//! default's tenth of 1,000 tokens, about 1/8. The floor of `none` is reading the KV from RAM once and computing the
//! question.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::sync::Arc;

use amem_benches::{QUESTION, Race, notes, random_model};
use amem_core::{Model, Piece, Repair, Token};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn ttft(criterion: &mut Criterion) {
    let model = random_model();
    for tokens in [1_000, 4_000] {
        let prompt = Prompt::new(&model, tokens);
        let mut race = Race::new(criterion, &format!("ttft/{tokens}"));
        race.throughput(Throughput::Elements(prompt.tokens as u64));
        race.lane("cold", || first_logits(&model, &prompt.fresh, &Repair::None));
        for (name, repair) in [("weighted", Repair::default()), ("none", Repair::None), ("all", Repair::All)] {
            race.lane(name, || first_logits(&model, &prompt.cached, &repair));
        }
        race.finish();
    }
}

/// One prompt in two forms.
struct Prompt {
    /// Nothing at hand.
    fresh: Vec<Piece>,
    /// All but the question at hand.
    cached: Vec<Piece>,
    tokens: usize,
}

impl Prompt {
    fn new(model: &dyn Model, memory_tokens: usize) -> Self {
        let layout = model.chat().layout(amem_demo::SYSTEM).expect("the template has a system line");
        let texts = notes(model, &layout, memory_tokens);
        let prefill = |prefix: &[Token], texts: &[Arc<[Token]>], measure| {
            model
                .prefill(prefix, &model.info().prefill_texts("bench", prefix, texts), measure)
                .expect("the notes fit into a context")
                .0
        };
        let head = prefill(&[], std::slice::from_ref(&layout.prefix), false);
        let chunks = [head, prefill(&layout.prefix, &texts, true)].concat();
        let question = model.chat().encode(QUESTION).expect("a question can be encoded");
        let question = Piece::Fresh([&layout.to_question, question.as_slice(), &layout.to_answer].concat().into());
        let standing: Vec<Token> = chunks.iter().flat_map(|chunk| chunk.tokens().iter().copied()).collect();
        let tokens = standing.len() + question.tokens().len();
        let cached = chunks.into_iter().map(Piece::Cached).chain([question.clone()]).collect();
        Self { fresh: vec![Piece::Fresh(standing.into()), question], cached, tokens }
    }
}

fn first_logits(model: &dyn Model, pieces: &[Piece], repair: &Repair) -> f32 {
    let (context, _) = model.blend(pieces, repair).expect("the prompt fits into a context");
    context.logits()[0]
}

criterion_group!(benches, ttft);
criterion_main!(benches);
