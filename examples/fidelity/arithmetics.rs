//! What does it cost to compute faster than exactly?
//!
//! Each way of computing prefills the memories itself and answers from them, with the default repair; what comes of it is
//! compared with the same in exact f32.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use amem_core::transformer::{Options, Transformer};
use amem_core::{KvChunk, Model, Piece, Repair, Result, Token};
use amem_cpu::{Arithmetic, Cpu, CpuOptions, WeightFormat};
use amem_demo::world::{Question, World};

use crate::{Reply, divergence, reply};

const WAYS: [(&str, Arithmetic, WeightFormat); 4] = [
    ("exact", Arithmetic::Exact, WeightFormat::AsStored),
    ("fast", Arithmetic::Fast, WeightFormat::AsStored),
    ("int8", Arithmetic::Fast, WeightFormat::Int8),
    ("int4", Arithmetic::Fast, WeightFormat::Int4),
];

/// What one way did, summed over questions.
#[derive(Clone, Copy, Default)]
struct Sums {
    questions: usize,
    same: usize,
    right: usize,
    kl: f64,
    least_cosine: f64,
}

/// Asks every question of every way of computing, and prints a table.
pub(crate) fn compare(worlds: &[(World, Vec<Question>)], threads: usize) -> std::result::Result<(), Box<dyn Error>> {
    let models = WAYS.map(|(_, arithmetic, weights)| {
        let cpu = Cpu::open(CpuOptions::default().arithmetic(arithmetic).weights(weights).threads(1))?;
        Transformer::load(&amem_demo::files(), cpu, Options::default().name("demo"))
    });
    let models = models.into_iter().collect::<Result<Vec<_>>>()?;
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<Sums>> {
        let mut sums = vec![Sums { least_cosine: 1.0, ..Sums::default() }; WAYS.len()];
        while let Some((world, questions)) = worlds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let answered = models.iter().map(|model| answers(model, world, questions));
            let answered = answered.collect::<Result<Vec<_>>>()?;
            for (sums, answers) in sums.iter_mut().zip(&answered) {
                for ((exact, _), (reply, right)) in answered[0].iter().zip(answers) {
                    sums.questions += 1;
                    sums.same += usize::from(reply.tokens == exact.tokens);
                    sums.right += usize::from(*right);
                    sums.kl += divergence(&exact.first, &reply.first);
                    sums.least_cosine = sums.least_cosine.min(cosine(&exact.first, &reply.first));
                }
            }
        }
        Ok(sums)
    };
    let mut all = vec![Sums { least_cosine: 1.0, ..Sums::default() }; WAYS.len()];
    std::thread::scope(|scope| -> std::result::Result<(), Box<dyn Error>> {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let sums = thread.join().map_err(|_| "a thread panicked")??;
            all.iter_mut().zip(sums).for_each(|(all, sums)| all.add(&sums));
        }
        Ok(())
    })?;
    println!("{:<9} {:>7} {:>7} {:>10} {:>14}", "computed", "same", "right", "KL", "least cosine");
    for ((name, ..), sums) in WAYS.iter().zip(all) {
        let n = sums.questions.max(1) as f64;
        let percent = |count: usize| 100.0 * count as f64 / n;
        let (same, right) = (percent(sums.same), percent(sums.right));
        println!("{name:<9} {same:>7.2} {right:>7.2} {:>10.7} {:>14.6}", sums.kl / n, sums.least_cosine);
    }
    println!("\nagainst exact f32: same and right in percent; KL in nats and the cosine of logits, of the first token");
    Ok(())
}

/// A model's answers from its own memories, and whether they are right.
fn answers(model: &Transformer<Cpu>, world: &World, questions: &[Question]) -> Result<Vec<(Reply, bool)>> {
    let layout = model.chat().layout(amem_demo::SYSTEM)?;
    let texts = world.memories.iter().map(|text| Ok(layout.memory(&model.chat().encode(text)?)));
    let texts: Vec<Arc<[Token]>> = texts.collect::<Result<_>>()?;
    let named = |prefix: &[Token], texts: &[Arc<[Token]>]| model.info().prefill_texts("fidelity", prefix, texts);
    let (prefix, _) = model.prefill(&[], &named(&[], &[Arc::clone(&layout.prefix)]), false)?;
    let (memories, _) = model.prefill(&layout.prefix, &named(&layout.prefix, &texts), true)?;
    let chunks: Vec<KvChunk> = prefix.into_iter().chain(memories).collect();
    let answer = |question: &Question| {
        let asked = model.chat().encode(&question.text)?;
        let asked = [&layout.to_question, asked.as_slice(), &layout.to_answer].concat();
        let pieces: Vec<Piece> =
            chunks.iter().cloned().map(Piece::Cached).chain([Piece::Fresh(asked.into())]).collect();
        let reply = reply(model, &pieces, &Repair::default())?;
        let right = model.chat().decode(&reply.tokens)?.trim() == question.answer;
        Ok((reply, right))
    };
    questions.iter().map(answer).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

impl Sums {
    fn add(&mut self, more: &Self) {
        self.questions += more.questions;
        self.same += more.same;
        self.right += more.right;
        self.kl += more.kl;
        self.least_cosine = self.least_cosine.min(more.least_cosine);
    }
}
