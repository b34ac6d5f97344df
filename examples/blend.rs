//! The parts by themselves: a model, a store for its KV, and a loop of your own that decodes. `Memory` is made of the same
//! parts, and brings records, recall, sessions, batching and what is to be done when a store fails.
//!
//! ```text
//! cargo run --release --example blend
//! ```

use std::error::Error;
use std::sync::Arc;

use amem_core::transformer::{Options, Transformer};
use amem_core::{KvStore, Model, Piece, PrefillText, RamStore, Repair, Reservation, Result, Sampler, Token};
use amem_cpu::Cpu;

const NOTES: [&str; 4] =
    ["Alice lives in Denver.", "Bob's locker code is 4817.", "Alice's sister is Maria.", "Maria lives in Paris."];

/// Tokens of an answer at most.
const MAX_TOKENS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let model = Transformer::load(&amem_demo::files(), Cpu::new()?, Options::default())?;
    let (chat, kv) = (model.chat(), RamStore::default());
    let layout = chat.layout("Answer from the notes.")?;
    // A model's methods block while they compute: among tasks of a runtime they belong on a thread of their own.
    futures_lite::future::block_on(async {
        // Once: the system line, which all contexts begin with, and the KV of each note, computed behind it alone.
        let (mut beginning, _) = model.blend(&[Piece::Fresh(Arc::clone(&layout.prefix))], &Repair::None)?;
        let notes = NOTES.iter().map(|note| Ok(layout.memory(&chat.encode(note)?))).collect::<Result<Vec<_>>>()?;
        let texts = model.info().prefill_texts("alice", &layout.prefix, &notes);
        let (chunks, usage) = model.prefill(&layout.prefix, &texts, true)?;
        kv.put(&chunks).await?;
        println!("prefilled once: {usage}");

        // For each question: notes in any order, at any position.
        for (question, order) in [("Where does Alice's sister live?", [3, 0, 2]), ("Where does Alice live?", [1, 2, 0])]
        {
            let mut pieces = Vec::new();
            for text in order.map(|note| &texts[note]) {
                pieces.push(Piece::Cached(stored_or_prefilled(&model, &kv, &layout.prefix, text).await?));
            }
            let question_tokens = [&layout.to_question, &*chat.encode(question)?, &layout.to_answer].concat();
            pieces.push(Piece::Fresh(question_tokens.into()));

            let mut context = beginning.fork()?;
            let prompt = context.tokens().len() + pieces.iter().map(|piece| piece.tokens().len()).sum::<usize>();
            context.reserve(Reservation::new(prompt + MAX_TOKENS))?;
            // The rows that are most wrong among their new neighbours are computed again: 10 %.
            let usage = model.extend(&mut *context, &pieces, &Repair::default())?;

            let (mut sampler, mut answer) = (Sampler::new(&model.sampling())?, Vec::<Token>::new());
            while answer.len() < MAX_TOKENS {
                let token = model.sample(&*context, &mut sampler, None)?;
                if chat.stops().contains(&token) {
                    break;
                }
                answer.push(token);
                model.extend(&mut *context, &[Piece::Fresh([token].into())], &Repair::None)?;
            }
            println!("{question} {}\n    {usage}", chat.decode(&answer)?.trim());
        }
        Ok(())
    })
}

/// A note's KV from the store, which is a cache and may have lost it.
async fn stored_or_prefilled(
    model: &impl Model,
    kv: &impl KvStore,
    prefix: &[Token],
    text: &PrefillText,
) -> Result<amem_core::KvChunk> {
    if let Some(chunk) = kv.get(&text.id).await? {
        return Ok(chunk);
    }
    let (mut chunks, _) = model.prefill(prefix, std::slice::from_ref(text), true)?;
    kv.put(&chunks).await?;
    Ok(chunks.remove(0))
}
