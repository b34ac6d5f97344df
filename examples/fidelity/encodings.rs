//! What does it cost to store KV in fewer bits?
//!
//! Every chunk, the system line's included, is encoded and decoded as a tier does it, and what comes of it is compared
//! with the same chunks in f32. Errors of attention are those of the outputs for the question's rows, in all layers, and
//! what an earlier layer got wrong counts in those after it. They and KL are without repair, which would choose other rows
//! to compute anew; answers are with the default repair, as questions are asked.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use amem_core::testing::Probe;
use amem_core::transformer::{Options, Transformer};
use amem_core::{Dtype, Encoding, KvChunk, Model, Piece, Repair, Result, Token};
use amem_cpu::Cpu;
use amem_demo::world::{Question, World};

use crate::{Reply, divergence, reply};

const ENCODINGS: [(&str, Encoding); 5] = [
    ("f32", Encoding::Plain(Dtype::F32)),
    ("f16", Encoding::Plain(Dtype::F16)),
    ("bf16", Encoding::Plain(Dtype::Bf16)),
    ("int8", Encoding::Int8),
    ("int4", Encoding::Int4),
];

/// What one encoding did, summed over questions.
#[derive(Clone, Copy, Default)]
struct Sums {
    questions: usize,
    same: usize,
    right: usize,
    kl: f64,
    attention_error: f64,
    bits: f64,
}

/// What comes of a context that nothing was repaired in.
#[derive(Clone)]
struct Plain {
    /// What attention gives in all layers for the rows of the question.
    attended: Vec<f32>,
    /// For the first token of the answer.
    logits: Vec<f32>,
}

/// A model whose attention is watched. Each thread has its own, for a probe does not tell threads apart.
struct Watched {
    model: Transformer<Probe<Cpu>>,
    probe: Probe<Cpu>,
}

/// Asks every question of KV in every encoding, and prints a table.
pub(crate) fn compare(worlds: &[(World, Vec<Question>)], threads: usize) -> Result<(), Box<dyn Error>> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<[Sums; ENCODINGS.len()]> {
        let probe = Probe::new(Cpu::with_threads(1)?);
        // In f32, for a KV cache rounds what it is given to its own type.
        let options = Options::default().name("demo").kv(Dtype::F32);
        let watched = Watched { model: Transformer::load(&amem_demo::files(), probe.clone(), options)?, probe };
        let mut sums = [Sums::default(); ENCODINGS.len()];
        while let Some((world, questions)) = worlds.get(next.fetch_add(1, Ordering::Relaxed)) {
            watched.judge(world, questions, &mut sums)?;
        }
        Ok(sums)
    };
    let mut all = [Sums::default(); ENCODINGS.len()];
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let sums = thread.join().map_err(|_| "a thread panicked")??;
            all.iter_mut().zip(sums).for_each(|(all, sums)| all.add(&sums));
        }
        Ok(())
    })?;
    println!(
        "{:<9} {:>15} {:>16} {:>9} {:>6} {:>7}",
        "encoding", "bits a number", "attention error", "KL", "same", "right"
    );
    for ((name, _), sums) in ENCODINGS.iter().zip(all) {
        let n = sums.questions.max(1) as f64;
        let percent = |count: usize| 100.0 * count as f64 / n;
        println!(
            "{name:<9} {:>15.2} {:>16.6} {:>9.6} {:>6.2} {:>7.2}",
            sums.bits / n,
            sums.attention_error / n,
            sums.kl / n,
            percent(sums.same),
            percent(sums.right)
        );
    }
    println!("\nattention error relative to the size of the outputs, KL in nats, same and right in percent;");
    println!("against f32; attention and KL without repair, answers with the default one");
    Ok(())
}

impl Watched {
    fn judge(&self, world: &World, questions: &[Question], sums: &mut [Sums; ENCODINGS.len()]) -> Result<()> {
        let model = &self.model;
        let layout = model.chat().layout(amem_demo::SYSTEM)?;
        let texts = world.memories.iter().map(|text| Ok(layout.memory(&model.chat().encode(text)?)));
        let texts: Vec<Arc<[Token]>> = texts.collect::<Result<_>>()?;
        let named = |prefix: &[Token], texts: &[Arc<[Token]>]| model.info().prefill_texts("fidelity", prefix, texts);
        let (prefix, _) = model.prefill(&[], &named(&[], &[Arc::clone(&layout.prefix)]), false)?;
        let (memories, _) = model.prefill(&layout.prefix, &named(&layout.prefix, &texts), true)?;
        let chunks: Vec<KvChunk> = prefix.into_iter().chain(memories).collect();
        let numbers: usize = chunks.iter().map(|chunk| chunk.tokens().len() * chunk.shape().token_numbers()).sum();
        for question in questions {
            let asked = model.chat().encode(&question.text)?;
            let asked = [&layout.to_question, asked.as_slice(), &layout.to_answer].concat();
            let asked = Piece::Fresh(asked.into());
            let mut exact: Option<(Reply, Plain)> = None;
            for ((_, encoding), sums) in ENCODINGS.iter().zip(sums.iter_mut()) {
                // Everything comes from f32, so that no encoding inherits another's loss.
                let encoded = chunks.iter().map(|chunk| {
                    chunk.encoded_as(Encoding::Plain(Dtype::F32)).and_then(|chunk| chunk.encoded_as(*encoding))
                });
                let encoded = encoded.collect::<Result<Vec<_>>>()?;
                let bytes: usize = encoded.iter().map(KvChunk::size).sum();
                let pieces: Vec<Piece> = encoded.into_iter().map(Piece::Cached).chain([asked.clone()]).collect();
                let plain = self.without_repair(&pieces)?;
                let reply = reply(model, &pieces, &Repair::default())?;
                let (exact, exact_plain) = exact.get_or_insert_with(|| (reply.clone(), plain.clone()));
                sums.questions += 1;
                sums.same += usize::from(reply.tokens == exact.tokens);
                sums.right += usize::from(model.chat().decode(&reply.tokens)?.trim() == question.answer);
                sums.kl += divergence(&exact_plain.logits, &plain.logits);
                sums.attention_error += relative_error(&exact_plain.attended, &plain.attended);
                sums.bits += 8.0 * bytes as f64 / numbers as f64;
            }
        }
        Ok(())
    }

    fn without_repair(&self, pieces: &[Piece]) -> Result<Plain> {
        self.probe.watch_attention(true);
        let blended = self.model.blend(pieces, &Repair::None);
        self.probe.watch_attention(false);
        let attended = self.probe.take_attended();
        self.probe.take_calls();
        self.probe.take_plans();
        let (context, _) = blended?;
        Ok(Plain { attended: attended.concat(), logits: context.logits().to_vec() })
    }
}

impl Sums {
    fn add(&mut self, more: &Self) {
        self.questions += more.questions;
        self.same += more.same;
        self.right += more.right;
        self.kl += more.kl;
        self.attention_error += more.attention_error;
        self.bits += more.bits;
    }
}

/// The size of the difference over that of `exact`.
fn relative_error(exact: &[f32], other: &[f32]) -> f64 {
    let size = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let difference = size(&mut exact.iter().zip(other).map(|(a, b)| f64::from(a - b)));
    difference / size(&mut exact.iter().map(|x| f64::from(*x))).max(f64::MIN_POSITIVE)
}
