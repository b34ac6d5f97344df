//! Many requests on one engine: each gets the answer that it gets alone, and nobody waits for those who are gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use amem_core::testing::{Probe, Reference};
use amem_core::transformer::{Options, Transformer};
use amem_core::{
    Budget, Completion, Constraint, ConstraintSource, Dtype, Engine, EngineOptions, Error, Finish, Generation, Model,
    Namespace, Output, OutputStream, Piece, Prefilled, Repair, Request, Result, Sampling, Token, TokenMask,
};
use common::prompts::{PREFIX, prefill, text};
use futures_lite::StreamExt;
use futures_lite::future::{block_on, poll_once};

fn owner(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

fn model() -> Arc<dyn Model> {
    Arc::new(common::golden("qwen3", common::exact(None, 2), Dtype::F16))
}

/// A model whose contexts hold so many tokens, with room for a single one that is full.
fn with_room_for(tokens: usize) -> Arc<dyn Model> {
    let source = common::directory(&common::case("qwen3"));
    let (chat, backend) = (Box::new(common::Numbers), common::exact(None, 1));
    // One full context has room, whatever is said, and a block of 64 tokens beside it.
    let options = Options::default().kv_cache_bytes(0).context(tokens - 64);
    Arc::new(Transformer::with_chat(&source, backend, options, chat, Sampling::default()).unwrap())
}

fn engine(model: &Arc<dyn Model>, options: EngineOptions) -> Engine {
    Engine::start(Arc::clone(model), options).unwrap()
}

fn generation(max_tokens: usize) -> Generation {
    let mut generation = Generation::default();
    generation.max_tokens = max_tokens;
    generation
}

async fn complete(mut stream: OutputStream) -> Result<Completion> {
    while let Some(output) = stream.next().await {
        if let Output::Done(completion) = output? {
            return Ok(completion);
        }
    }
    Err(Error::Cancelled)
}

/// Prompts of every make: cold and blended, short and long, greedy and drawn, repaired in different ways.
fn prompts(model: &dyn Model, count: u32) -> Vec<(Vec<Piece>, Repair, Generation)> {
    let texts = [(1, 1), (2, 12), (3, 7), (4, 16), (5, 23)].map(|(seed, tokens)| text(seed, tokens));
    let (chunks, _) = prefill(model, &PREFIX, &texts, true);
    let prompt = |index: u32| {
        let mut pieces = vec![Piece::Fresh(PREFIX.into())];
        for nth in 0..index % 4 {
            pieces.push(Piece::Cached(chunks[((index + 3 * nth) % 5) as usize].clone()));
        }
        pieces.push(Piece::Fresh(text(index, 1 + 5 * (index % 7))));
        let repair = match index % 3 {
            0 => Repair::None,
            1 => Repair::Weighted { budget: Budget::Ratio(0.3), layers: 1..2 },
            _ => Repair::All,
        };
        let mut generation = generation(3 + index as usize % 5);
        if index % 2 == 1 {
            let mut sampling = Sampling::default();
            (sampling.temperature, sampling.seed) = (1.0, index.into());
            generation.sampling = Some(sampling);
        }
        (pieces, repair, generation)
    };
    (0..count).map(prompt).collect()
}

#[test]
fn sixty_four_requests_at_once_are_answered_as_each_is_alone() {
    let model = model();
    let prompts = prompts(&*model, 64);
    let request = |index: usize| {
        let (pieces, repair, generation) = prompts[index].clone();
        let owner = owner(&format!("tenant {}", index % 5));
        Request::new(owner, pieces).repair(repair).generation(generation)
    };
    let mut one = EngineOptions::default();
    one.max_running = 1;
    let alone = engine(&model, one);
    let expected: Vec<Completion> =
        (0..64).map(|index| block_on(complete(alone.submit(request(index)).unwrap())).unwrap()).collect();
    for step_tokens in [64, 512] {
        let mut options = EngineOptions::default();
        options.step_tokens = step_tokens;
        let together = engine(&model, options);
        let streams: Vec<OutputStream> = (0..64).map(|index| together.submit(request(index)).unwrap()).collect();
        for (index, (stream, expected)) in streams.into_iter().zip(&expected).enumerate() {
            let found = block_on(complete(stream)).unwrap();
            assert_eq!(found.choices, expected.choices, "request {index}");
            assert_eq!(found.usage, expected.usage, "request {index}");
        }
        let stats = together.stats();
        assert!(stats.contexts > 8 * stats.steps, "{} contexts took {} steps", stats.contexts, stats.steps);
    }
}

#[test]
fn several_answers_to_one_prompt_share_its_prefill() {
    let model = model();
    let engine = engine(&model, EngineOptions::default());
    let ask = |n: usize, seed: u64| {
        let mut generation = generation(6);
        let mut sampling = Sampling::default();
        (sampling.temperature, sampling.seed) = (2.0, seed);
        (generation.n, generation.sampling) = (n, Some(sampling));
        let request = Request::new(owner("me"), vec![Piece::Fresh(text(3, 30))]).generation(generation);
        block_on(complete(engine.submit(request).unwrap())).unwrap()
    };
    let several = ask(3, 7);
    assert_eq!(several.usage.prefilled, 30, "the prompt is computed once");
    assert_eq!(several.usage.generated, 18);
    for (choice, seed) in several.choices.iter().zip(7..) {
        assert_eq!(choice, &ask(1, seed).choices[0], "each answer has a seed of its own");
    }
    assert_ne!(several.choices[0].tokens, several.choices[1].tokens);
}

#[test]
fn several_answers_to_one_prompt_wait_for_the_room_of_all_of_them() {
    // 4 blocks of 64 tokens.
    let model = with_room_for(256);
    let engine = engine(&model, EngineOptions::default());
    let request = |n: usize| {
        let mut generation = generation(20);
        generation.n = n;
        Request::new(owner("me"), vec![Piece::Fresh(text(1, 100))]).generation(generation)
    };
    // Of the prompt's two blocks the first is shared; both answers write to the second, so one of them needs a copy, and
    // one block more is taken in case that it is the other one. That is all the room there is.
    let streams: Vec<OutputStream> = (0..3).map(|_| engine.submit(request(2)).unwrap()).collect();
    for stream in streams {
        assert_eq!(block_on(complete(stream)).unwrap().usage.generated, 40);
    }
    let before = engine.stats().steps;
    let error = block_on(complete(engine.submit(request(3)).unwrap())).unwrap_err();
    assert!(matches!(&error, Error::KvCacheFull { .. }) && !error.lacks_room_for_now(), "{error}");
    assert_eq!(engine.stats().steps, before, "what can never have room is refused before it is computed");
}

#[test]
fn a_caller_who_is_gone_is_noticed_within_a_step() {
    let model = model();
    let engine = engine(&model, EngineOptions::default());
    let request = || Request::new(owner("me"), vec![Piece::Fresh(text(1, 5))]).generation(generation(100_000));
    let mut stream = engine.submit(request()).unwrap();
    block_on(stream.next()).unwrap().unwrap();
    drop(stream);
    let before = engine.stats().steps;
    let deadline = Instant::now() + Duration::from_secs(20);
    while engine.stats().running > 0 {
        assert!(Instant::now() < deadline, "the request runs on");
        std::thread::yield_now();
    }
    // One step may have been under way, and one may have begun.
    assert!(engine.stats().steps <= before + 2, "{} steps for nobody", engine.stats().steps - before);
}

#[test]
fn more_requests_than_may_wait_are_refused() {
    let model = model();
    let mut options = EngineOptions::default();
    (options.max_running, options.max_waiting) = (1, 2);
    let engine = engine(&model, options);
    let request = || Request::new(owner("me"), vec![Piece::Fresh(text(1, 5))]).generation(generation(50));
    let mut accepted = Vec::new();
    let refused = (0..20).filter_map(|_| engine.submit(request()).map(|stream| accepted.push(stream)).err()).count();
    assert!(refused > 0 && accepted.len() >= 2, "{refused} of 20 were refused");
    for stream in accepted {
        assert_eq!(block_on(complete(stream)).unwrap().usage.generated, 50);
    }
    block_on(complete(engine.submit(request()).unwrap())).expect("there is room again");
}

#[test]
fn a_short_question_does_not_wait_for_a_neighbours_long_prompts() {
    let model = model();
    let limit = model.info().context;
    let mut options = EngineOptions::default();
    options.step_tokens = 16;
    let engine = engine(&model, options);
    let long = || Request::new(owner("heavy"), vec![Piece::Fresh(text(2, limit as u32 - 2))]).generation(generation(1));
    let heavy: Vec<OutputStream> = (0..8).map(|_| engine.submit(long()).unwrap()).collect();
    let short = Request::new(owner("light"), vec![Piece::Fresh(text(3, 4))]).generation(generation(2));
    block_on(complete(engine.submit(short).unwrap())).unwrap();
    let (done, all) = (engine.stats().contexts, 8 * limit.div_ceil(16) as u64);
    assert!(done < all / 2, "{done} of {all} runs came first");
    for stream in heavy {
        block_on(complete(stream)).unwrap();
    }
}

#[test]
fn requests_beyond_the_kv_cache_wait_for_room_or_say_what_is_missing() {
    let model = with_room_for(192);
    let engine = engine(&model, EngineOptions::default());
    let request = || Request::new(owner("me"), vec![Piece::Fresh(text(1, 100))]).generation(generation(20));
    let streams: Vec<OutputStream> = (0..6).map(|_| engine.submit(request()).unwrap()).collect();
    for stream in streams {
        assert_eq!(block_on(complete(stream)).unwrap().usage.generated, 20);
    }
    let (held, _) = model.blend(&[Piece::Fresh(text(1, 120))], &Repair::None).unwrap();
    let error = block_on(complete(engine.submit(request()).unwrap())).unwrap_err();
    assert!(error.lacks_room_for_now(), "{error}");
    drop(held);
    block_on(complete(engine.submit(request()).unwrap())).expect("there is room again");
}

#[test]
fn a_full_kv_cache_has_contexts_ended_that_nobody_uses() {
    let model = with_room_for(256);
    let engine = engine(&model, EngineOptions::default());
    // One block of four stays free.
    let held: Vec<_> =
        (0..3).map(|seed| model.blend(&[Piece::Fresh(text(seed, 40))], &Repair::None).unwrap().0).collect();
    let held = Arc::new(Mutex::new(held));
    let ended = Arc::clone(&held);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let missing = Arc::clone(&asked);
    engine.make_room_with(move |tokens| {
        missing.lock().unwrap().push(tokens);
        ended.lock().unwrap().pop().is_some()
    });
    let request = |tokens| Request::new(owner("me"), vec![Piece::Fresh(text(9, tokens))]).generation(generation(20));
    block_on(complete(engine.submit(request(30)).unwrap())).unwrap();
    assert_eq!(held.lock().unwrap().len(), 3, "there was room");
    block_on(complete(engine.submit(request(150)).unwrap())).unwrap();
    assert_eq!(held.lock().unwrap().len(), 1, "no more are ended than must be");
    assert_eq!(*asked.lock().unwrap(), [128, 64], "of 170 tokens in blocks of 64, one block had room");
    let used = model.blend(&[Piece::Fresh(text(7, 100))], &Repair::None).unwrap().0;
    let error = block_on(complete(engine.submit(request(150)).unwrap())).unwrap_err();
    assert!(error.lacks_room_for_now() && held.lock().unwrap().is_empty(), "{error}");
    drop(used);
    engine.make_room_with(|_| panic!("whoever was to make room"));
    block_on(complete(engine.submit(request(150)).unwrap())).unwrap();
    let used = model.blend(&[Piece::Fresh(text(7, 100))], &Repair::None).unwrap().0;
    let error = block_on(complete(engine.submit(request(150)).unwrap())).unwrap_err();
    assert!(error.lacks_room_for_now(), "{error}");
    drop(used);
    block_on(complete(engine.submit(request(150)).unwrap())).expect("the engine goes on");
}

#[test]
fn a_backend_that_fails_takes_down_those_in_its_pass_and_nobody_after_them() {
    let probe = Probe::new(common::exact(None, 1));
    let model: Arc<dyn Model> = Arc::new(common::golden("qwen3", probe.clone(), Dtype::F16));
    let engine = engine(&model, EngineOptions::default());
    let request = || Request::new(owner("me"), vec![Piece::Fresh(text(1, 9))]).generation(generation(4));
    probe.take_calls();
    let expected = block_on(complete(engine.submit(request()).unwrap())).unwrap();
    let calls = probe.take_calls().len();
    for nth in (1..calls).step_by(7) {
        probe.fail_at(nth);
        let failed = block_on(complete(engine.submit(request()).unwrap()));
        assert!(matches!(failed, Err(Error::Model(_))), "call {nth} failed and nobody was told: {failed:?}");
        probe.fail_at(0);
        let again = block_on(complete(engine.submit(request()).unwrap())).unwrap();
        assert_eq!(again.choices, expected.choices, "after call {nth} failed");
    }
}

/// Panics at its second token.
struct Panics(bool);

impl Constraint for Panics {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<()> {
        assert!(!self.0, "a constraint of somebody's");
        (40..50).for_each(|token| mask.insert(token));
        Ok(())
    }

    fn accept(&mut self, _: Token) -> Result<()> {
        self.0 = true;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        false
    }
}

#[test]
fn a_constraint_that_panics_fails_its_own_request() {
    let model = model();
    let engine = engine(&model, EngineOptions::default());
    let request = || Request::new(owner("me"), vec![Piece::Fresh(text(1, 9))]).generation(generation(4));
    let expected = block_on(complete(engine.submit(request()).unwrap())).unwrap();
    let mut constrained = generation(4);
    constrained.constraint = Some(ConstraintSource::new(|| Ok(Box::new(Panics(false)))));
    let failing = engine.submit(request().generation(constrained)).unwrap();
    let beside = engine.submit(request()).unwrap();
    let error = block_on(complete(failing)).unwrap_err();
    assert!(error.to_string().contains("a constraint of somebody's"), "{error}");
    assert_eq!(block_on(complete(beside)).unwrap().choices, expected.choices);
    let mut constrained = generation(4);
    constrained.constraint = Some(ConstraintSource::new(|| panic!("at its start")));
    let error = block_on(complete(engine.submit(request().generation(constrained)).unwrap())).unwrap_err();
    assert!(error.to_string().contains("at its start"), "{error}");
    assert_eq!(block_on(complete(engine.submit(request()).unwrap())).unwrap().choices, expected.choices);
}

/// Allows everything, and keeps the engine waiting before its second token and before its fiftieth.
struct Waits {
    tokens: usize,
    go_on: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Constraint for Waits {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<()> {
        if [1, 49].contains(&self.tokens) {
            let _ = self.go_on.lock().unwrap().recv();
        }
        (0..mask.vocabulary() as Token).for_each(|token| mask.insert(token));
        Ok(())
    }

    fn accept(&mut self, _: Token) -> Result<()> {
        self.tokens += 1;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        false
    }
}

#[test]
fn a_request_without_room_whose_caller_is_gone_keeps_nobody_from_beginning() {
    // 4 blocks of 64 tokens, of which the long answer has 3.
    let model = with_room_for(256);
    let engine = engine(&model, EngineOptions::default());
    let request = |tokens: u32, generation: Generation| {
        Request::new(owner("me"), vec![Piece::Fresh(text(1, tokens))]).generation(generation)
    };
    let (go_on, waits) = mpsc::channel();
    let waits = Arc::new(Mutex::new(waits));
    let mut waiting = generation(150);
    waiting.constraint =
        Some(ConstraintSource::new(move || Ok(Box::new(Waits { tokens: 0, go_on: Arc::clone(&waits) }))));
    let mut long = engine.submit(request(10, waiting)).unwrap();
    block_on(long.next()).unwrap().unwrap();
    let without_room = engine.submit(request(100, generation(30))).unwrap();
    let short = engine.submit(request(5, generation(5))).unwrap();
    go_on.send(()).unwrap();
    // It was found to have no room by then, and the long answer is far from its end.
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.stats().steps < 45 {
        assert!(Instant::now() < deadline, "the long answer goes on");
        std::thread::yield_now();
    }
    drop(without_room);
    drop(go_on);
    assert_eq!(block_on(complete(short)).unwrap().usage.generated, 5);
    assert_eq!(block_on(complete(long)).unwrap().usage.generated, 150);
    let stats = engine.stats();
    assert!(stats.contexts > stats.steps, "the short answer was computed beside the long one");
}

#[test]
fn memories_are_prefilled_between_the_steps_of_answers() {
    let model = model();
    let engine = engine(&model, EngineOptions::default());
    let (go_on, waits) = mpsc::channel();
    let waits = Arc::new(Mutex::new(waits));
    let mut generation = generation(100_000);
    generation.constraint =
        Some(ConstraintSource::new(move || Ok(Box::new(Waits { tokens: 0, go_on: Arc::clone(&waits) }))));
    let long = Request::new(owner("me"), vec![Piece::Fresh(text(1, 5))]).generation(generation);
    let mut stream = engine.submit(long).unwrap();
    block_on(stream.next()).unwrap().unwrap();
    let texts: Vec<Arc<[Token]>> = (0..40).map(|seed| text(seed, 30)).collect();
    let named = model.info().prefill_texts("ours", &PREFIX, &texts);
    let me = owner("me");
    let mut prefilled = Box::pin(engine.prefill(&me, PREFIX.into(), named.clone(), true));
    assert!(block_on(poll_once(&mut prefilled)).is_none());
    // It waits in the queue now, and the answer is far from its end.
    go_on.send(()).unwrap();
    let Prefilled { chunks, usage, time, .. } = block_on(prefilled).expect("texts are computed");
    assert_eq!(
        chunks.iter().map(amem_core::KvChunk::id).collect::<Vec<_>>(),
        named.iter().map(|t| t.id).collect::<Vec<_>>()
    );
    assert_eq!((usage.prefilled, engine.stats().prefilled_tokens), (1200, 1200));
    assert_eq!(engine.stats().running, 1, "the answer goes on meanwhile");
    // A sum of seconds is rounded where a sum of durations is not.
    assert!(engine.stats().prefill_seconds + 1e-6 >= time.as_secs_f64());
    drop(go_on);
    let (alone, _) = prefill(&*model, &PREFIX, &texts, true);
    assert!(chunks.iter().zip(&alone).all(|(a, b)| a.to_bytes().unwrap() == b.to_bytes().unwrap()));
}

#[test]
fn a_long_memory_is_prefilled_between_the_steps_of_answers() {
    let model = model();
    let engine = engine(&model, EngineOptions::default().step_tokens(16));
    let (go_on, waits) = mpsc::channel();
    let waits = Arc::new(Mutex::new(waits));
    let mut generation = generation(100_000);
    generation.constraint =
        Some(ConstraintSource::new(move || Ok(Box::new(Waits { tokens: 0, go_on: Arc::clone(&waits) }))));
    let answer = Request::new(owner("me"), vec![Piece::Fresh(text(1, 5))]).generation(generation);
    let mut stream = engine.submit(answer).unwrap();
    block_on(stream.next()).unwrap().unwrap();
    let named = model.info().prefill_texts("ours", &PREFIX, &[text(1, 160), text(2, 7)]);
    let me = owner("me");
    let mut prefilled = Box::pin(engine.prefill(&me, PREFIX.into(), named.clone(), true));
    assert!(block_on(poll_once(&mut prefilled)).is_none());
    let before = engine.stats().steps;
    go_on.send(()).unwrap();
    let Prefilled { chunks, usage, .. } = block_on(prefilled).expect("texts are computed");
    let steps = engine.stats().steps - before;
    assert!((9..=14).contains(&steps), "the answer went {steps} steps on meanwhile");
    drop(go_on);
    let (alone, cost) = model.prefill(&PREFIX, &named, true).unwrap();
    assert_eq!(usage, cost);
    assert!(chunks.iter().zip(&alone).all(|(a, b)| a.to_bytes().unwrap() == b.to_bytes().unwrap()));
}

#[test]
fn an_engine_that_ends_cancels_what_it_has() {
    let model = model();
    let engine = engine(&model, EngineOptions::default());
    let long = || Request::new(owner("me"), vec![Piece::Fresh(text(1, 5))]).generation(generation(100_000));
    let streams: Vec<OutputStream> = (0..3).map(|_| engine.submit(long()).unwrap()).collect();
    drop(engine);
    for stream in streams {
        let last = block_on(stream.fold(None, |_, output| Some(output)));
        assert!(matches!(last, None | Some(Err(Error::Cancelled))), "{last:?}");
    }
}

#[test]
fn answers_are_the_same_on_a_backend_of_another_make() {
    // Blocks of five slots and arithmetic in f64: nothing in the engine or the pass may rely on the CPU's own.
    let reference: Arc<dyn Model> = Arc::new(common::golden("qwen3", Reference, Dtype::F32));
    let cpu: Arc<dyn Model> = Arc::new(common::golden("qwen3", common::exact(None, 1), Dtype::F32));
    let answers = |model: &Arc<dyn Model>| -> Vec<Vec<Token>> {
        let engine = engine(model, EngineOptions::default());
        let streams = prompts(&**model, 6).into_iter().map(|(pieces, repair, mut generation)| {
            generation.sampling = None;
            engine.submit(Request::new(owner("me"), pieces).repair(repair).generation(generation)).unwrap()
        });
        let streams: Vec<OutputStream> = streams.collect();
        streams.into_iter().map(|stream| block_on(complete(stream)).unwrap().choices[0].tokens.clone()).collect()
    };
    assert_eq!(answers(&cpu), answers(&reference));
}

/// Allows the tokens 40 to 49, and calls three of them a whole answer.
struct Forties(usize);

impl Constraint for Forties {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<()> {
        if self.0 < 3 {
            (40..50).for_each(|token| mask.insert(token));
        }
        Ok(())
    }

    fn accept(&mut self, token: Token) -> Result<()> {
        assert!((40..50).contains(&token), "{token} was not allowed");
        self.0 += 1;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.0 == 3
    }
}

#[test]
fn an_answer_says_only_what_its_constraint_allows() {
    let model = model();
    let engine = engine(&model, EngineOptions::default());
    let mut generation = generation(50);
    generation.logprobs = Some(2);
    generation.constraint = Some(ConstraintSource::new(|| Ok(Box::new(Forties(0)))));
    let request = Request::new(owner("me"), vec![Piece::Fresh(text(1, 9))]).generation(generation);
    let found = block_on(complete(engine.submit(request).unwrap())).unwrap().choices.remove(0);
    assert_eq!((found.tokens.len(), &found.finish), (3, &Finish::Constraint));
    assert_eq!(found.logprobs.iter().map(|drawn| drawn.token).collect::<Vec<_>>(), found.tokens);
    assert!(found.logprobs.iter().all(|drawn| drawn.top.len() == 2 && drawn.top[0].1 >= drawn.logprob));
}

#[test]
fn settings_that_make_no_sense_are_refused_before_anything_is_computed() {
    let model = model();
    let engine = engine(&model, EngineOptions::default());
    let with = |change: &dyn Fn(&mut Generation)| {
        let mut generation = Generation::default();
        change(&mut generation);
        engine.submit(Request::new(owner("me"), vec![Piece::Fresh(text(1, 9))]).generation(generation)).map(drop)
    };
    let cases: [&dyn Fn(&mut Generation); 5] =
        [&|g| g.n = 0, &|g| g.n = 129, &|g| g.logprobs = Some(21), &|g| g.stop = vec![String::new(); 65], &|g| {
            g.stop = vec!["x".repeat(1025)]
        }];
    for (index, change) in cases.into_iter().enumerate() {
        assert!(matches!(with(change), Err(Error::BadValue { .. })), "case {index}");
    }
    assert_eq!(engine.stats().steps, 0);
}
