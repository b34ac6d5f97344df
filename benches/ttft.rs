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

use amem_benches::{Prompt, Race, model};
use amem_core::{Model, Piece, Repair};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn ttft(criterion: &mut Criterion) {
    let model = model();
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

fn first_logits(model: &dyn Model, pieces: &[Piece], repair: &Repair) -> f32 {
    let (context, _) = model.blend(pieces, repair).expect("the prompt fits into a context");
    context.logits()[0]
}

criterion_group!(benches, ttft);
criterion_main!(benches);
