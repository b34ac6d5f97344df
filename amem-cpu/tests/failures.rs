//! A backend that fails at any one call: the context that was being computed is as before or says that it is broken,
//! and nobody else notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::Arc;

use amem_core::testing::Probe;
use amem_core::transformer::{Options, Transformer};
use amem_core::{
    AppendOptions, Budget, ChunkId, Context, Dtype, Encoding, Error, HostKv, KvChunk, Model, Piece, PrefixId, Progress,
    Repair, Result, Sampling, Step, Token,
};
use amem_cpu::Cpu;
use common::prompts::{PREFIX, bits, prefill, text};

const LIMIT: usize = 96;

/// A model whose KV cache has room for three contexts, and what makes its backend fail.
struct Subject {
    probe: Probe<Cpu>,
    model: Transformer<Probe<Cpu>>,
    chunks: Vec<KvChunk>,
    /// A whole context of KV that is nothing but numbers.
    noise: Piece,
}

fn load(case: &str, probe: &Probe<Cpu>, kv_cache_bytes: u64) -> Transformer<Probe<Cpu>> {
    let mut options = Options::default();
    (options.kv, options.kv_cache_bytes, options.context) = (Dtype::F16, kv_cache_bytes, Some(LIMIT));
    let (source, chat) = (common::directory(&common::case(case)), Box::new(common::Numbers));
    Transformer::with_chat(&source, probe.clone(), options, chat, Sampling::default()).unwrap()
}

impl Subject {
    fn new(case: &str) -> Self {
        let probe = Probe::new(common::exact(None, 1));
        let one_context = load(case, &probe, 0).open(LIMIT).unwrap().bytes();
        let model = load(case, &probe, 3 * one_context);
        let texts = [(1, 5), (2, 18), (3, 23)].map(|(seed, tokens)| text(seed, tokens));
        let (chunks, _) = prefill(&model, &PREFIX, &texts, true);
        let shape = model.info().shape;
        let numbers: Vec<f32> = (0..LIMIT * shape.row()).map(|index| (index as f32).sin()).collect();
        let mut bytes = Vec::new();
        let encoding = Encoding::Plain(Dtype::F16);
        (0..shape.layers).for_each(|_| encoding.encode_layer(&shape, &numbers, &numbers, &mut bytes));
        let data = Arc::new(HostKv::new(encoding, shape.layers, bytes));
        let noise = KvChunk::new(ChunkId([7; 32]), PrefixId::of(&[7]), shape, text(7, LIMIT as u32), data).unwrap();
        Self { probe, model, chunks, noise: Piece::Cached(noise) }
    }

    fn cached(&self, index: usize) -> Piece {
        Piece::Cached(self.chunks[index].clone())
    }

    /// How many whole contexts there is room for. All of that room holds something else afterwards, so that nobody is
    /// right by chance who reads what was not written.
    fn room(&self) -> usize {
        let mut held = Vec::new();
        while let Ok(mut context) = self.model.open(LIMIT) {
            self.extend(&mut *context, &(vec![self.noise.clone()], Repair::None)).unwrap();
            held.push(context);
            assert!(held.len() < 100, "there is room without end");
        }
        held.len()
    }

    fn extend(&self, context: &mut dyn Context, (pieces, repair): &Call) -> Result<()> {
        self.model.extend(context, pieces, repair).map(drop)
    }

    /// A context in which these calls were made.
    fn context(&self, calls: &[Call]) -> Box<dyn Context> {
        let mut context = self.model.open(0).unwrap();
        calls.iter().for_each(|call| self.extend(&mut *context, call).unwrap());
        context
    }

    /// The logits after these calls, if a token follows.
    fn answer(&self, context: &mut dyn Context) -> Vec<u32> {
        self.model.extend(context, &[fresh(&[8])], &Repair::None).unwrap();
        bits(context)
    }
}

/// Pieces that are appended and computed, with this repair.
type Call = (Vec<Piece>, Repair);

fn fresh(tokens: &[Token]) -> Piece {
    Piece::Fresh(tokens.into())
}

/// Makes some calls and lets the backend fail at each of theirs, one after the other. Another context shares what stood
/// there before.
fn survives(subject: &Subject, name: &str, before: &[Call], calls: &[Call]) {
    let room = subject.room();
    let stood = subject.answer(&mut *subject.context(before));
    // What is answered after so many of the calls.
    let answers: Vec<Vec<u32>> = (0..=calls.len())
        .map(|made| subject.answer(&mut *subject.context(&[before, &calls[..made]].concat())))
        .collect();
    let (mut nth, mut usable) = (0, 0);
    loop {
        nth += 1;
        assert_eq!(subject.room(), room, "{name}: room is lost before call {nth} fails");
        let mut context = subject.context(before);
        let mut fork = context.fork().unwrap();
        subject.probe.take_calls();
        subject.probe.fail_at(nth);
        let mut made = 0;
        let failed = loop {
            let Some(call) = calls.get(made) else { break None };
            match subject.extend(&mut *context, call) {
                Ok(()) => made += 1,
                Err(error) => break Some(error),
            }
        };
        subject.probe.fail_at(0);
        let Some(error) = failed else { break };
        let case = format!("{name}: call {nth} of the backend, {}", subject.probe.take_calls().pop().unwrap());
        assert!(matches!(error, Error::Model(_)), "{case}: {error}");
        assert_eq!(context.pending(), 0, "{case}: nothing is left to compute");
        if context.is_usable() {
            usable += 1;
            let tokens: usize =
                before.iter().chain(&calls[..made]).flat_map(|(pieces, _)| pieces).map(|p| p.tokens().len()).sum();
            assert_eq!(context.tokens().len(), tokens, "{case}: what failed is not there");
            let mut other_way = context.fork().unwrap();
            assert!(subject.answer(&mut *other_way) == answers[made], "{case}: what stood there is not what it was");
            for call in &calls[made..] {
                subject.extend(&mut *context, call).unwrap();
            }
            assert!(subject.answer(&mut *context) == answers[calls.len()], "{case}: the call comes to something else");
        } else {
            let again = subject.extend(&mut *context, &calls[made]);
            assert!(again.is_err(), "{case}: a broken context computes");
        }
        assert!(subject.answer(&mut *fork) == stood, "{case}: a context that shares its blocks is harmed");
    }
    assert!(nth > 20, "{name}: only {nth} calls");
    assert!(usable > 0, "{name}: no failure leaves the context as it was");
}

/// What stands in a context before it is extended: chunks in another order than any that is exact, and an end within a
/// block.
fn standing(subject: &Subject) -> Vec<Call> {
    vec![(vec![fresh(&PREFIX), subject.cached(1), subject.cached(2), fresh(&text(9, 5))], Repair::None)]
}

#[test]
fn a_backend_that_fails_while_a_prompt_is_computed_leaves_the_context_as_it_was() {
    let subject = Subject::new("qwen3");
    let prompt = vec![fresh(&text(4, 40))];
    survives(&subject, "a cold prompt", &[], &[(prompt.clone(), Repair::None)]);
    survives(&subject, "a prompt behind others", &standing(&subject), &[(prompt, Repair::None)]);
    let pieces = vec![subject.cached(0), fresh(&[9]), subject.cached(1), fresh(&text(4, 9))];
    survives(&subject, "cached pieces", &standing(&subject), &[(pieces, Repair::None)]);
}

#[test]
fn a_backend_that_fails_while_rows_are_repaired_leaves_the_context_as_it_was_or_broken() {
    let subject = Subject::new("llama3");
    let layers = subject.model.info().shape.layers;
    let budget = Budget::Rows(7);
    for repair in [
        Repair::All,
        Repair::FirstRows(2),
        Repair::Weighted { budget, layers: 0..0 },
        Repair::Weighted { budget, layers: 1..2 },
        Repair::Attention { budget, layers: layers - 1..layers },
        Repair::Deviation { ratio: 0.3, check_layer: layers - 1 },
    ] {
        let question = vec![fresh(&text(5, 6))];
        survives(&subject, &format!("{repair:?}"), &standing(&subject), &[(question.clone(), repair.clone())]);
        let pieces = [vec![subject.cached(0), subject.cached(1)], question].concat();
        survives(&subject, &format!("{repair:?} of new chunks"), &[], &[(pieces, repair)]);
    }
}

#[test]
fn a_backend_that_fails_while_tokens_are_decoded_leaves_those_before() {
    let subject = Subject::new("qwen3");
    // Over the end of a block.
    let before = [standing(&subject), vec![(vec![fresh(&text(6, 12))], Repair::None)]].concat();
    let tokens: Vec<Call> = (10..14).map(|token| (vec![fresh(&[token])], Repair::None)).collect();
    survives(&subject, "decoding", &before, &tokens);
}

#[test]
fn contexts_that_fail_in_one_pass_are_as_they_were() {
    let subject = Subject::new("qwen3");
    let calls: [Call; 3] = [
        (vec![fresh(&text(4, 20))], Repair::None),
        (vec![subject.cached(0), subject.cached(1), fresh(&text(5, 6))], Repair::default()),
        (vec![subject.cached(2), fresh(&[9])], Repair::All),
    ];
    let expected = calls.each_ref().map(|call| subject.answer(&mut *subject.context(std::slice::from_ref(call))));
    let room = subject.room();
    for nth in 1.. {
        let mut contexts = calls.each_ref().map(|_| subject.model.open(0).unwrap());
        for (context, (pieces, repair)) in contexts.iter_mut().zip(&calls) {
            context.append(pieces, &AppendOptions::new(repair.clone())).unwrap();
        }
        subject.probe.fail_at(nth);
        let mut results: Vec<Option<Result<Progress>>> = calls.iter().map(|_| None).collect();
        while results.iter().any(|result| matches!(result, None | Some(Ok(Progress::Pending)))) {
            let going = contexts.iter_mut().zip(&mut results).filter(|(context, _)| context.pending() > 0);
            let (mut steps, places): (Vec<Step<'_>>, Vec<_>) =
                going.map(|(context, result)| (Step { context: &mut **context, max_rows: 11 }, result)).unzip();
            let advanced = subject.model.advance(&mut steps);
            places.into_iter().zip(advanced).for_each(|(place, result)| *place = Some(result));
        }
        subject.probe.fail_at(0);
        if results.iter().all(|result| matches!(result, Some(Ok(_)))) {
            assert!(nth > 20, "only {nth} calls");
            break;
        }
        for (index, (context, result)) in contexts.iter_mut().zip(results).enumerate() {
            assert!(context.is_usable(), "context {index} had nothing that could break at call {nth}");
            if result.unwrap().is_err() {
                assert!(context.tokens().is_empty(), "context {index} keeps what failed at call {nth}");
                subject.extend(&mut **context, &calls[index]).unwrap();
            }
            assert!(subject.answer(&mut **context) == expected[index], "context {index} after call {nth} failed");
        }
        drop(contexts);
        assert_eq!(subject.room(), room, "call {nth}: room is lost");
    }
}

#[test]
fn a_backend_that_fails_while_memories_are_computed_leaves_nothing_wrong_behind() {
    let (subject, never_failed) = (Subject::new("qwen3"), Subject::new("qwen3"));
    let texts: Vec<Arc<[Token]>> = vec![text(1, 5), text(2, 18)];
    let mut prefix = PREFIX;
    for nth in (1..).step_by(2) {
        // Behind a prefix of its own each time, for a prefix is computed once.
        prefix[3] = 8 + nth as Token % 90;
        let named = subject.model.info().prefill_texts("ours", &prefix, &texts);
        subject.probe.fail_at(nth);
        let failed = subject.model.prefill(&prefix, &named, true);
        subject.probe.fail_at(0);
        if failed.is_ok() {
            assert!(nth > 20, "only {nth} calls");
            break;
        }
        let (again, _) = prefill(&subject.model, &prefix, &texts, true);
        let (expected, _) = prefill(&never_failed.model, &prefix, &texts, true);
        for (again, expected) in again.iter().zip(&expected) {
            assert!(again.to_bytes().unwrap() == expected.to_bytes().unwrap(), "KV after call {nth} failed");
            assert_eq!(again.sensitivity(), expected.sensitivity(), "sensitivity after call {nth} failed");
        }
    }
    assert_eq!(subject.room(), never_failed.room());
}
