//! Logits against PyTorch and Hugging Face transformers: every family, RoPE scaling and weight type.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use amem_core::transformer::{Options, Transformer};
use amem_core::{
    AnswerStream, Ask, Chat, Constraint, ConstraintSource, Dtype, Event, Generation, Layout, Memory, Recall, Repair,
    Result, Sampling, SessionOptions, Token, TokenLogprob, TokenMask, Usage,
};
use amem_cpu::Cpu;
use futures_lite::StreamExt;
use futures_lite::future::block_on;
use safetensors::SafeTensors;

const TOLERANCE: f32 = 1e-4;

fn worst(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A model in f32 for this text. See [`common::golden_for`].
fn load(files: &BTreeMap<String, Vec<u8>>, text: &[Token], chat: Box<dyn Chat>) -> Transformer<Cpu> {
    let options = Options::default().kv(Dtype::F32).context(text.len() + 16);
    Transformer::with_chat(files, common::exact(None, 2), options, chat, Sampling::default()).unwrap()
}

fn all_cases() -> impl Iterator<Item = String> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cases");
    std::fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap())
}

#[test]
fn logits_equal_those_of_an_independent_implementation() {
    let mut failures = Vec::new();
    let mut count = 0;
    for case in all_cases() {
        let (tokens, logits) = common::expected(&common::case(&case).join("golden.safetensors"));
        let model = load(&common::directory(&common::case(&case)), &tokens, Box::new(common::Numbers));
        let error = worst(&model.score(&tokens).unwrap(), &logits);
        println!("{case}: {error:.2e}");
        count += 1;
        if error.is_nan() || error > TOLERANCE {
            failures.push(format!("{case}: off by {error}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(count, 27);
}

#[test]
fn the_demo_models_logits_equal_those_of_an_independent_implementation() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/demo.safetensors");
    let (tokens, logits) = common::expected(&golden);
    let mut options = Options::default();
    options.kv = Dtype::F32;
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo-model/model");
    let files = common::directory(&model);
    let chat = Box::new(common::Numbers);
    let model = Transformer::with_chat(&files, common::exact(None, 2), options, chat, Sampling::default()).unwrap();
    let all = model.score(&tokens).unwrap();
    let error = worst(&all[all.len() - logits.len()..], &logits);
    println!("demo: {error:.2e}");
    assert!(error <= TOLERANCE, "off by {error}");
}

/// Gemma 3 with a part for images: its text model is a part of the file, and of the tensors' names.
#[test]
fn a_text_model_beside_an_image_model_is_the_same_as_by_itself() {
    let mut files = common::directory(&common::case("gemma3"));
    let (tokens, _) = common::expected(&common::case("gemma3").join("golden.safetensors"));
    let alone = load(&files, &tokens, Box::new(common::Numbers)).score(&tokens).unwrap();
    let text: serde_json::Value = serde_json::from_slice(&files["config.json"]).unwrap();
    let whole = serde_json::json!({ "model_type": "gemma3", "text_config": text, "eos_token_id": [1, 2] });
    files.insert("config.json".into(), whole.to_string().into_bytes());
    let tensors = files.remove("model.safetensors").unwrap();
    let tensors = SafeTensors::deserialize(&tensors).unwrap();
    for prefix in ["language_model.model.", "model.language_model."] {
        let named = |name: &str| name.replacen("model.", prefix, 1);
        let renamed = tensors.iter().map(|(name, tensor)| (named(name), tensor));
        files.insert("model.safetensors".into(), safetensors::serialize(renamed, None).unwrap());
        assert_eq!(load(&files, &tokens, Box::new(common::Numbers)).score(&tokens).unwrap(), alone, "{prefix}");
    }
}

/// A conversation whose tokens are those of its texts and nothing around them, behind a beginning of its own. A text is
/// the numbers of its tokens.
struct Verbatim {
    prefix: Arc<[Token]>,
}

impl Chat for Verbatim {
    fn layout(&self, _: &str) -> Result<Layout> {
        let mut layout = Layout::default();
        layout.prefix = Arc::clone(&self.prefix);
        Ok(layout)
    }

    fn encode(&self, text: &str) -> Result<Vec<Token>> {
        let numbers: Option<Vec<Token>> = text.split(' ').map(|word| word.parse().ok()).collect();
        Ok(numbers.unwrap_or_else(|| text.bytes().map(|byte| u32::from(byte) % 90 + 8).collect()))
    }

    fn decode(&self, tokens: &[Token]) -> Result<String> {
        Ok(numbers(tokens) + " ")
    }

    fn token_bytes(&self, token: Token) -> Option<Vec<u8>> {
        Some(format!("{token} ").into_bytes())
    }

    fn stops(&self) -> &[Token] {
        &[]
    }
}

fn numbers(tokens: &[Token]) -> String {
    tokens.iter().map(Token::to_string).collect::<Vec<_>>().join(" ")
}

/// Lets an answer say these tokens and no others.
struct TeacherForced {
    tokens: Vec<Token>,
    said: usize,
}

impl Constraint for TeacherForced {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<()> {
        mask.insert(self.tokens[self.said]);
        Ok(())
    }

    fn accept(&mut self, _: Token) -> Result<()> {
        self.said += 1;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.said == self.tokens.len()
    }
}

/// What an answer was made of, token by token, and what it cost.
async fn collect(mut stream: AnswerStream) -> (Vec<TokenLogprob>, Usage) {
    let mut drawn = Vec::new();
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            Event::Delta(delta) => drawn.extend(delta.logprob),
            Event::Done(answer) => return (drawn, answer.usage),
            other => panic!("{other:?}"),
        }
    }
    panic!("there is no answer");
}

/// How far the likeliest tokens are from those of the golden logits, at worst.
fn off(drawn: &[TokenLogprob], expected: &[&[f32]]) -> f64 {
    assert_eq!(drawn.len(), expected.len());
    let mut worst: f64 = 0.0;
    for (drawn, logits) in drawn.iter().zip(expected) {
        let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        for (token, logprob) in drawn.top.iter().chain([&(drawn.token, drawn.logprob)]) {
            let expected = f64::from(logits[*token as usize]) - sum.ln();
            worst = worst.max((f64::from(*logprob) - expected).abs());
        }
    }
    worst
}

/// A golden text that is told as three memories, a question and an answer: before every token of the answer, the model
/// has the golden logits, as if the text were one prompt.
#[test]
fn a_memory_that_is_repaired_in_full_answers_with_the_golden_logits() {
    const FORCED: usize = 6;
    // Short, as the last memories are, so that all of them are within the window of those models that have one.
    const QUESTION: usize = 9;
    for case in all_cases() {
        let (tokens, logits) = common::expected(&common::case(&case).join("golden.safetensors"));
        let (asked, vocabulary) = (tokens.len() - FORCED, logits.len() / tokens.len());
        let (told, first) = (asked - QUESTION, asked - QUESTION - 15);
        let rows: Vec<&[f32]> = logits.chunks_exact(vocabulary).skip(asked - 1).take(FORCED).collect();
        let chat = Box::new(Verbatim { prefix: tokens[..4].into() });
        let model = load(&common::directory(&common::case(&case)), &tokens, chat);
        block_on(async {
            let memory = Memory::builder(Arc::new(model)).build().unwrap();
            let texts = [4..first, first..told - 7, told - 7..told].map(|text| numbers(&tokens[text]));
            memory.remember_all("me", texts.clone()).await.unwrap();
            memory.prefill("me", |_, _| {}).await.unwrap();
            let ask = |repair: Repair| {
                let mut generation = Generation::default().max_tokens(FORCED);
                generation.logprobs = Some(20);
                let forced = tokens[asked..].to_vec();
                let source = move || -> Result<Box<dyn Constraint>> {
                    Ok(Box::new(TeacherForced { tokens: forced.clone(), said: 0 }))
                };
                generation.constraint = Some(ConstraintSource::new(source));
                let recall = Recall::new(texts.join(" ")).k(3);
                Ask::new(numbers(&tokens[told..asked])).recall(recall).repair(repair).generation(generation)
            };
            let (drawn, usage) = collect(memory.ask_stream("me", ask(Repair::All)).await.unwrap()).await;
            let said: Vec<Token> = drawn.iter().map(|drawn| drawn.token).collect();
            assert_eq!(said, tokens[asked..], "{case}");
            // The first memory stands where it was computed. The others are computed again, and the question is new.
            assert_eq!((usage.repaired, usage.prefilled), (told - first, QUESTION), "{case}");
            assert!(off(&drawn, &rows) <= 2e-4, "{case}: off by {}", off(&drawn, &rows));
            let (unrepaired, _) = collect(memory.ask_stream("me", ask(Repair::None)).await.unwrap()).await;
            assert!(off(&unrepaired, &rows) > 1e-2, "{case}: this text does not show whether anything is repaired");

            let opening = SessionOptions::default().opening_repair(Repair::All);
            let mut session = memory.session("me", opening).unwrap();
            let (drawn, _) = collect(session.ask_stream(ask(Repair::None)).await.unwrap()).await;
            assert!(off(&drawn, &rows) <= 2e-4, "{case}, in a session: off by {}", off(&drawn, &rows));
        });
    }
}
