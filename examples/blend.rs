//! The parts by themselves: a model, a store for its KV, and an answer that a loop of your own decodes. This is what
//! `Memory` does, without its ledger, recall, sessions and batching.
//!
//! ```text
//! cargo run --release --example blend
//! ```

use std::error::Error;
use std::sync::Arc;

use amem_core::transformer::{Options, Transformer};
use amem_core::{KvStore, Model, Piece, RamStore, Repair, Result, Sampler, Token};
use amem_cpu::Cpu;

const NOTES: [&str; 4] =
    ["Alice lives in Denver.", "Bob's locker code is 4817.", "Alice's sister is Maria.", "Maria lives in Paris."];

fn main() -> Result<(), Box<dyn Error>> {
    let model = Transformer::load(&amem_demo::files(), Cpu::new()?, Options::default())?;
    let (chat, kv) = (model.chat(), RamStore::default());
    let layout = chat.layout("Answer from the notes.")?;
    futures_lite::future::block_on(async {
        // Once: the KV of each note, computed behind the system line and nothing else.
        let notes = NOTES.iter().map(|note| Ok(layout.memory(&chat.encode(note)?))).collect::<Result<Vec<_>>>()?;
        let texts = model.info().prefill_texts("alice", &layout.prefix, &notes);
        let (chunks, usage) = model.prefill(&layout.prefix, &texts, true)?;
        kv.put(&chunks).await?;
        println!("prefilled once: {usage}");

        // For each question: notes in any order, at any position.
        for (question, order) in [("Where does Alice's sister live?", [3, 0, 2]), ("Where does Alice live?", [1, 2, 0])] {
            let cached = kv.get_many(&order.map(|note| texts[note].id)).await?;
            let mut pieces = vec![Piece::Fresh(Arc::clone(&layout.prefix))];
            for (note, chunk) in order.into_iter().zip(cached) {
                // A store may lose KV. It is computed again, here in its place.
                pieces.push(chunk.map_or_else(|| Piece::Fresh(Arc::clone(&notes[note])), Piece::Cached));
            }
            let question_tokens = [&layout.to_question, &*chat.encode(question)?, &layout.to_answer].concat();
            pieces.push(Piece::Fresh(question_tokens.into()));
            // The rows that the new neighbours changed most are computed again: 10 %.
            let (mut context, usage) = model.blend(&pieces, &Repair::default())?;

            let (mut sampler, mut answer) = (Sampler::new(&model.sampling())?, Vec::<Token>::new());
            loop {
                let token = model.sample(&*context, &mut sampler, None)?;
                if chat.stops().contains(&token) || answer.len() == 64 {
                    break;
                }
                answer.push(token);
                model.extend(&mut *context, &[Piece::Fresh([token].into())], &Repair::None)?;
            }
            println!("{question} {}\n    {usage}", chat.decode(&answer)?);
        }
        Ok(())
    })
}
