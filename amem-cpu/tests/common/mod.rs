//! Models for tests: Hugging Face directories on disk, with a tokenizer that needs no files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, dead_code, unreachable_pub)]

pub mod encoders;
pub mod plain;
pub mod prompts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use amem_core::transformer::{Backend, Options, Transformer};
use amem_core::{Chat, Dtype, Layout, Result, Sampling, Token};
use amem_cpu::{Arithmetic, Cpu, CpuOptions, Instructions};
use safetensors::SafeTensors;

/// The files of a directory.
pub fn directory(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
    };
    entries.map(file).collect()
}

/// A CPU that computes exactly, with the best instructions of the machine or with these.
pub fn exact(instructions: Option<Instructions>, threads: usize) -> Cpu {
    let mut options = CpuOptions::default().arithmetic(Arithmetic::Exact).threads(threads);
    options.instructions = instructions;
    Cpu::open(options).unwrap()
}

/// A text of numbers, each of them a token.
pub struct Numbers;

impl Chat for Numbers {
    fn layout(&self, _: &str) -> Result<Layout> {
        let some = |token: Token| -> Arc<[Token]> { Arc::from([token]) };
        let mut layout = Layout::default();
        layout.prefix = Arc::from([1, 3, 5, 7]);
        layout.memory_open = some(2);
        layout.to_question = some(4);
        layout.to_answer = some(6);
        layout.next_question = some(4);
        Ok(layout)
    }

    fn encode(&self, text: &str) -> Result<Vec<Token>> {
        Ok(text.bytes().map(|byte| u32::from(byte) % 90 + 8).collect())
    }

    fn decode(&self, tokens: &[Token]) -> Result<String> {
        Ok(tokens.iter().map(|token| format!("{token} ")).collect())
    }

    fn token_bytes(&self, token: Token) -> Option<Vec<u8>> {
        Some(format!("{token} ").into_bytes())
    }

    fn stops(&self) -> &[Token] {
        &[]
    }
}

/// The directory of a golden case.
pub fn case(name: &str) -> PathBuf {
    golden_files().join("cases").join(name)
}

/// Where the golden files are: in the sources, or where `AMEM_GOLDEN` says on machines that tests were carried to.
pub fn golden_files() -> PathBuf {
    // From whichever crate the tests are.
    let sources = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../amem-cpu/tests/golden");
    std::env::var_os("AMEM_GOLDEN").map_or_else(sources, PathBuf::from)
}

/// Room for what a test needs: a device takes all of it at once.
fn options(kv: Dtype) -> Options {
    Options::default().kv(kv).kv_cache_bytes(64 << 20)
}

/// A model of the golden cases.
pub fn golden<B: Backend>(case: &str, backend: B, kv: Dtype) -> Transformer<B> {
    open_golden(case, backend, options(kv)).unwrap_or_else(|error| panic!("{case}: {error}"))
}

/// A model of the golden cases, for a text of so many tokens: with LongRoPE the length of contexts makes a difference.
pub fn golden_for<B: Backend>(case: &str, backend: B, kv: Dtype, tokens: usize) -> Result<Transformer<B>> {
    open_golden(case, backend, options(kv).context(tokens + 16))
}

fn open_golden<B: Backend>(case: &str, backend: B, options: Options) -> Result<Transformer<B>> {
    with_numbers(&directory(&self::case(case)), backend, options)
}

/// A model of these files, which speaks in numbers.
pub fn of_files<B: Backend>(files: &BTreeMap<String, Vec<u8>>, backend: B, kv: Dtype) -> Transformer<B> {
    with_numbers(files, backend, options(kv)).unwrap()
}

fn with_numbers<B: Backend>(files: &BTreeMap<String, Vec<u8>>, backend: B, options: Options) -> Result<Transformer<B>> {
    Transformer::with_chat(files, backend, options, Box::new(Numbers), Sampling::default())
}

/// The demo model, with a tokenizer of its own.
pub fn demo<B: Backend>(backend: B, kv: Dtype) -> Transformer<B> {
    Transformer::load(&amem_demo::files(), backend, options(kv)).unwrap()
}

/// A golden file's tokens and logits.
pub fn expected(path: &Path) -> (Vec<Token>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name| file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let tokens = numbers("tokens").into_iter().map(|b| i32::from_le_bytes(b).cast_unsigned()).collect();
    (tokens, numbers("logits").into_iter().map(f32::from_le_bytes).collect())
}
