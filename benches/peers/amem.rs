//! Times amem: loading a model, the prefill of prompts, and decoding, with the tokens that the other engines get; and
//! what only amem does.
//!
//! `peer MODEL --prompt 512,2048 --generate 64 --threads 2`: MODEL is a Hugging Face directory or a GGUF file. Prints
//! one line of JSON, in seconds. `--weights as-stored|int8|int4` and `--arithmetic exact|fast` choose the kernels. What
//! else may be asked for:
//!
//! - `--together 8`: so many contexts decoded together, next to one;
//! - `--blend 512,4000`: the first token behind so many tokens of memories whose KV is at hand, and a cold prefill of all;
//! - `--packed 20`: memories of so many tokens, 2,048 tokens in all, next to one prompt of 2,048 tokens;
//! - `--ingest 10000`: so many memories of 20 tokens, with their sensitivity.
#![allow(clippy::expect_used, reason = "a program that measures has nothing to say when it cannot")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use amem_benches::Prompt;
use amem_core::transformer::{Options, Transformer};
use amem_core::{Context, Model, Piece, Progress, Repair, Step, Token, Usage};
use amem_cpu::{Arithmetic, Cpu, CpuOptions, WeightFormat};
use amem_store::ModelDir;
use serde_json::{Map, Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Passes of a few tokens before anything is timed: memory is mapped and threads are started then.
const WARM_UP: usize = 32;
/// What memories are packed into, and compared with.
const PACKED: usize = 2048;
/// Times that a blend and a cold prefill are done, alternately: once where it takes minutes.
const BLENDS: usize = 3;
/// Tokens of the question behind memories. The tokenizers of random models know few words, and make of a sentence and the marks
/// around it several times the tokens that a trained model's does.
const QUESTION: usize = 32;
const LONG: usize = 8192;
/// Tokens of a memory that is ingested, and memories that are computed in one call.
const SHORT: usize = 20;
const CALL: usize = 500;

#[derive(Default)]
struct Arguments {
    model: String,
    cpu: CpuOptions,
    prompts: Vec<usize>,
    generate: usize,
    together: usize,
    blends: Vec<usize>,
    packed: usize,
    ingest: usize,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self { model: arguments.next().ok_or("the first argument is the model")?, ..Self::default() };
        while let Some(flag) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--threads" => parsed.cpu.threads = Some(value.parse()?),
                "--weights" => parsed.cpu.weights = weights(&value)?,
                "--arithmetic" => parsed.cpu.arithmetic = arithmetic(&value)?,
                "--prompt" => parsed.prompts = lengths(&value)?,
                "--generate" => parsed.generate = value.parse()?,
                "--together" => parsed.together = value.parse()?,
                "--blend" => parsed.blends = lengths(&value)?,
                "--packed" => parsed.packed = value.parse()?,
                "--ingest" => parsed.ingest = value.parse()?,
                _ => return Err(format!("{flag} is not an option").into()),
            }
        }
        Ok(parsed)
    }
}

fn lengths(list: &str) -> Result<Vec<usize>> {
    Ok(list.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?)
}

fn weights(name: &str) -> Result<WeightFormat> {
    Ok(match name {
        "as-stored" => WeightFormat::AsStored,
        "int8" => WeightFormat::Int8,
        "int4" => WeightFormat::Int4,
        _ => return Err(format!("{name} is not one of as-stored, int8, int4").into()),
    })
}

fn arithmetic(name: &str) -> Result<Arithmetic> {
    Ok(match name {
        "exact" => Arithmetic::Exact,
        "fast" => Arithmetic::Fast,
        _ => return Err(format!("{name} is neither exact nor fast").into()),
    })
}

fn main() -> Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let mut results = Map::new();
    let begun = Instant::now();
    let backend = Cpu::open(arguments.cpu)?;
    let model = Transformer::load(&ModelDir::open(&arguments.model)?, backend, Options::default())?;
    prefill(&model, 1)?;
    results.insert("load".to_owned(), json!(begun.elapsed().as_secs_f64()));
    let Arguments { prompts, generate, together, blends, packed, ingest, .. } = arguments;
    if !prompts.is_empty() || !blends.is_empty() || generate + together + packed + ingest > 0 {
        prefill(&model, WARM_UP)?;
    }

    if !prompts.is_empty() {
        let seconds = prompts.iter().map(|&tokens| Ok((tokens.to_string(), json!(prefill(&model, tokens)?))));
        results.insert("prefill".to_owned(), Value::Object(seconds.collect::<Result<_>>()?));
    }
    if generate > 0 {
        results.insert("decode".to_owned(), json!(decode(&model, 1, generate)? / generate as f64));
    }
    if together > 0 {
        const STEPS: usize = 32;
        let one = decode(&model, 1, STEPS)? / STEPS as f64;
        let all = decode(&model, together, STEPS)? / STEPS as f64;
        results.insert("together".to_owned(), json!({ "contexts": together, "one": one, "all": all }));
    }
    if !blends.is_empty() {
        let blends = blends.iter().map(|&tokens| blended(&model, tokens)).collect::<Result<_>>()?;
        results.insert("blend".to_owned(), Value::Array(blends));
    }
    if packed > 0 {
        results.insert("packed".to_owned(), pack(&model, packed)?);
    }
    if ingest > 0 {
        results.insert("ingest".to_owned(), ingested(&model, ingest)?);
    }
    println!("{}", Value::Object(results));
    Ok(())
}

/// Tokens that have nothing to do with each other.
fn tokens(model: &dyn Model, count: usize) -> Vec<Token> {
    let vocabulary = model.info().vocabulary as u32;
    (0..count as u32).map(|index| index.wrapping_mul(2_654_435_761) % vocabulary).collect()
}

/// Seconds from an empty context to the logits behind so many tokens.
fn prefill(model: &dyn Model, count: usize) -> Result<f64> {
    Ok(first_token(model, &[Piece::Fresh(tokens(model, count).into())], &Repair::None)?.0)
}

/// Seconds from an empty context to the logits behind some pieces, and what was computed.
fn first_token(model: &dyn Model, pieces: &[Piece], repair: &Repair) -> Result<(f64, Usage)> {
    let begun = Instant::now();
    let (context, usage) = model.blend(pieces, repair)?;
    std::hint::black_box(context.logits());
    Ok((begun.elapsed().as_secs_f64(), usage))
}

/// Seconds of so many steps in each of which every context gets a token, from empty contexts on.
fn decode(model: &dyn Model, contexts: usize, steps: usize) -> Result<f64> {
    let tokens = tokens(model, steps);
    let mut contexts = (0..contexts).map(|_| model.open(steps)).collect::<amem_core::Result<Vec<_>>>()?;
    let begun = Instant::now();
    for &token in &tokens {
        step(model, &mut contexts, token)?;
        contexts.iter().for_each(|context| _ = std::hint::black_box(context.logits()));
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Appends a token to each context, and computes all of them.
fn step(model: &dyn Model, contexts: &mut [Box<dyn Context>], token: Token) -> Result<()> {
    let options = amem_core::AppendOptions::new(Repair::None);
    let piece = [Piece::Fresh(Arc::new([token]))];
    contexts.iter_mut().try_for_each(|context| context.append(&piece, &options))?;
    while contexts.iter().any(|context| context.pending() > 0) {
        let mut steps: Vec<Step<'_>> =
            contexts.iter_mut().map(|context| Step { context: &mut **context, max_rows: 1 }).collect();
        for progress in model.advance(&mut steps) {
            let (Progress::Pending | Progress::Done(_)) = progress?;
        }
    }
    Ok(())
}

/// The first token behind memories: all computed, and with a tenth of the rows repaired. The share is what that computes of a
/// cold prefill's rows, those of the question included.
fn blended(model: &dyn Model, tokens: usize) -> Result<Value> {
    let prompt = Prompt::new(model, tokens).with_question_of(QUESTION);
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    let mut work = [0, 0];
    for _ in 0..if tokens > LONG { 1 } else { BLENDS } {
        let ways = [(&prompt.fresh, Repair::None, &mut cold), (&prompt.cached, Repair::default(), &mut warm)];
        for ((pieces, repair, seconds), work) in ways.into_iter().zip(&mut work) {
            let (time, usage) = first_token(model, pieces, &repair)?;
            seconds.push(time);
            *work = usage.work();
        }
    }
    let [of_cold, of_blend] = work;
    let share = of_blend as f64 / of_cold as f64;
    Ok(json!({ "tokens": prompt.tokens, "cold": median(cold), "blend": median(warm), "share": share }))
}

/// Many short memories in packed passes, without and with their sensitivity, and one prompt of as many tokens.
fn pack(model: &dyn Model, length: usize) -> Result<Value> {
    let (all, count) = (tokens(model, PACKED), PACKED / length);
    let texts: Vec<Arc<[Token]>> = all.chunks_exact(length).map(Arc::from).collect();
    let texts = model.info().prefill_texts("bench", &[], &texts);
    // What is computed once for all memories of a prefix is not what is asked for.
    model.prefill(&[], texts.get(..1).unwrap_or_default(), true)?;
    let timed = |measure| -> Result<f64> {
        let begun = Instant::now();
        std::hint::black_box(model.prefill(&[], &texts, measure)?);
        Ok(begun.elapsed().as_secs_f64())
    };
    let (plain, measured) = (timed(false)?, timed(true)?);
    Ok(json!({
        "memories": count,
        "tokens": count * length,
        "plain": plain,
        "measured": measured,
        "prompt": { "tokens": PACKED, "seconds": prefill(model, PACKED)? },
    }))
}

/// Short memories, all different, some hundreds at a time. Their KV is dropped.
fn ingested(model: &dyn Model, memories: usize) -> Result<Value> {
    let all = tokens(model, memories * SHORT);
    let texts: Vec<Arc<[Token]>> = all.chunks_exact(SHORT).map(Arc::from).collect();
    let texts = model.info().prefill_texts("bench", &[], &texts);
    model.prefill(&[], texts.get(..1).unwrap_or_default(), true)?;
    let begun = Instant::now();
    for texts in texts.chunks(CALL) {
        std::hint::black_box(model.prefill(&[], texts, true)?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(json!({ "memories": memories, "tokens": memories * SHORT, "seconds": seconds }))
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
