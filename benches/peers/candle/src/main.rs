//! Times candle: loading a model, the prefill of prompts, and decoding, with the tokens that the other engines get.
//!
//! `candle-peer MODEL --prompt 512,2048 --generate 64`: MODEL is a Hugging Face directory, which is computed in f32
//! (candle has no product of bf16 matrices on CPUs), or a GGUF file, which is computed in the types that it has. Prints
//! one line of JSON. `RAYON_NUM_THREADS` says on how many threads.

use std::error::Error;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, quantized_llama, quantized_qwen2, qwen2};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Passes of a few tokens before anything is timed: memory is mapped and threads are started then.
const WARM_UP: usize = 32;

enum Model {
    Qwen2(qwen2::ModelForCausalLM),
    Llama { model: llama::Llama, config: llama::Config, cache: llama::Cache },
    QuantizedQwen2(quantized_qwen2::ModelWeights),
    QuantizedLlama(quantized_llama::ModelWeights),
}

impl Model {
    fn load(path: &Path) -> Result<(Self, u32)> {
        if path.is_dir() { Self::load_directory(path) } else { Self::load_gguf(path) }
    }

    fn load_directory(path: &Path) -> Result<(Self, u32)> {
        let text = fs::read_to_string(path.join("config.json"))?;
        let config: Value = serde_json::from_str(&text)?;
        let vocabulary = config["vocab_size"].as_u64().ok_or("the configuration has no vocab_size")? as u32;
        // SAFETY: the file is written before this program starts, and nobody changes it while it runs.
        let weights = unsafe {
            VarBuilder::from_mmaped_safetensors(&[path.join("model.safetensors")], DType::F32, &Device::Cpu)?
        };
        let model = match config["model_type"].as_str() {
            Some("qwen2") => Self::Qwen2(qwen2::ModelForCausalLM::new(&serde_json::from_str(&text)?, weights)?),
            Some("llama") => {
                let config = serde_json::from_str::<llama::LlamaConfig>(&text)?.into_config(false);
                let cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
                Self::Llama { model: llama::Llama::load(weights, &config)?, config, cache }
            }
            other => return Err(format!("model_type {other:?} is not one that this program loads").into()),
        };
        Ok((model, vocabulary))
    }

    fn load_gguf(path: &Path) -> Result<(Self, u32)> {
        let mut file = BufReader::new(File::open(path)?);
        let content = gguf_file::Content::read(&mut file)?;
        let text = |key: &str| content.metadata.get(key).ok_or_else(|| format!("the file has no {key}"));
        let architecture = text("general.architecture")?.to_string()?.clone();
        let vocabulary = text(&format!("{architecture}.vocab_size"))?.to_u32()?;
        let model = match architecture.as_str() {
            "qwen2" => {
                Self::QuantizedQwen2(quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)
            }
            "llama" => {
                Self::QuantizedLlama(quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)
            }
            other => return Err(format!("architecture {other} is not one that this program loads").into()),
        };
        Ok((model, vocabulary))
    }

    /// Forgets all tokens.
    fn clear(&mut self) -> Result<()> {
        match self {
            Self::Qwen2(model) => model.clear_kv_cache(),
            Self::Llama { config, cache, .. } => *cache = llama::Cache::new(true, DType::F32, config, &Device::Cpu)?,
            Self::QuantizedQwen2(model) => model.clear_kv_cache(),
            Self::QuantizedLlama(model) => model.clear_kv_cache(),
        }
        Ok(())
    }

    /// Computes tokens that stand behind `position` others, and the logits after the last one.
    fn forward(&mut self, tokens: &[u32], position: usize) -> Result<f32> {
        let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match self {
            Self::Qwen2(model) => model.forward(&tokens, position)?,
            Self::Llama { model, cache, .. } => model.forward(&tokens, position, cache)?,
            Self::QuantizedQwen2(model) => model.forward(&tokens, position)?,
            Self::QuantizedLlama(model) => model.forward(&tokens, position)?,
        };
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        Ok(logits[0])
    }
}

/// Tokens that have nothing to do with each other.
fn tokens(count: usize, vocabulary: u32) -> Vec<u32> {
    (0..count as u32).map(|index| index.wrapping_mul(2_654_435_761) % vocabulary).collect()
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("the first argument is the model")?;
    let (mut prompts, mut generate) = (Vec::new(), 0);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--prompt" => prompts = value.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?,
            "--generate" => generate = value.parse()?,
            _ => return Err(format!("{flag} is not an option").into()),
        }
    }

    let begun = Instant::now();
    let (mut model, vocabulary) = Model::load(Path::new(&path))?;
    model.forward(&[1], 0)?;
    let load = begun.elapsed().as_secs_f64();
    let mut prefill = serde_json::Map::new();
    if !prompts.is_empty() || generate > 0 {
        model.clear()?;
        model.forward(&tokens(WARM_UP, vocabulary), 0)?;
    }
    for count in prompts {
        let tokens = tokens(count, vocabulary);
        model.clear()?;
        let begun = Instant::now();
        model.forward(&tokens, 0)?;
        prefill.insert(count.to_string(), json!(begun.elapsed().as_secs_f64()));
    }
    model.clear()?;
    let begun = Instant::now();
    for (position, token) in tokens(generate, vocabulary).into_iter().enumerate() {
        model.forward(&[token], position)?;
    }
    let decode = begun.elapsed().as_secs_f64() / generate.max(1) as f64;
    println!("{}", json!({ "load": load, "prefill": prefill, "decode": decode }));
    Ok(())
}
