//! What does a question cost in a session, where its memories stand already?
//!
//! 6,000 tokens of memories and a question of about twenty: `prefill again` computes all of them for each question, as
//! an agent without memory does; `session` computes the question and at most eight repaired rows on what stands; `ask`
//! blends the eight notes that it recalls and leaves all others out, so it computes more rows over a shorter context. The
//! last two recall and draw one token as well.
//!
//! The floor of a question in a session is reading all weights and the KV of the context from RAM once.
#![allow(clippy::expect_used, reason = "a bench that cannot set itself up has nothing to measure")]

use std::sync::Arc;

use amem_benches::{QUESTION, Race, model, note, notes};
use amem_core::{Ask, Generation, Memory, Model, Piece, Repair, SessionOptions, Token};
use criterion::{Criterion, criterion_group, criterion_main};
use futures_lite::future::block_on;

const MEMORY_TOKENS: usize = 6_000;

fn session(criterion: &mut Criterion) {
    let model: Arc<dyn Model> = Arc::new(model());
    let memory = Memory::builder(Arc::clone(&model)).build().expect("the template has a system line");
    let layout = memory.layout().clone();
    let notes = notes(&*model, &layout, MEMORY_TOKENS);
    block_on(memory.remember_all("bench", (0..notes.len()).map(note))).expect("notes can be remembered");
    block_on(memory.prefill("bench", |_, _| {})).expect("notes can be computed");

    let question = model.chat().encode(QUESTION).expect("a question can be encoded");
    let asked = [&layout.to_question, question.as_slice(), &layout.to_answer];
    let tokens: Vec<Token> =
        [&*layout.prefix].into_iter().chain(notes.iter().map(|note| &**note)).chain(asked).flatten().copied().collect();
    let prompt = [Piece::Fresh(tokens.into())];
    let ask = Ask::new(QUESTION).generation(Generation::default().max_tokens(1));
    // Questions that stand alone keep the working set as it is, call after call.
    let options = SessionOptions::default().conversation(false);
    let mut session = memory.session("bench", options).expect("the default budget is the model's context");
    block_on(session.ask(ask.clone())).expect("the first question opens the session");
    assert_eq!(session.resident().len(), notes.len(), "all notes stand in the session");

    let mut race = Race::new(criterion, "session");
    race.lane("prefill again", || model.blend(&prompt, &Repair::None).expect("the prompt fits into a context").1);
    race.lane("session", || block_on(session.ask(ask.clone())).expect("the question has an answer"));
    race.lane("ask", || block_on(memory.ask("bench", ask.clone())).expect("the question has an answer"));
    race.finish();
    assert_eq!(session.epochs(), 1, "the session was stable");
}

criterion_group!(benches, session);
criterion_main!(benches);
