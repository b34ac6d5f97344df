//! GGUF files for tests: written by the format's description, not by what reads them.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::transformer::{ModelSource, WeightType};
use crate::{Dtype, f32_to_f16};

/// A GGUF file that is put together.
#[derive(Clone, Default)]
pub struct GgufWriter {
    /// Type and bytes of each value.
    values: BTreeMap<String, (u32, Vec<u8>)>,
    tensors: Vec<(String, u32, Vec<usize>, Vec<u8>)>,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn list(kind: u32, items: impl ExactSizeIterator<Item = Vec<u8>>) -> (u32, Vec<u8>) {
    let head = [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
    (9, items.fold(head, |bytes, item| [bytes, item].concat()))
}

impl GgufWriter {
    /// A file without anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// With this value in place of any other under its key, as a type's number and bytes.
    #[must_use]
    pub fn value(mut self, key: &str, kind: u32, bytes: Vec<u8>) -> Self {
        self.values.insert(key.to_owned(), (kind, bytes));
        self
    }

    /// With this string.
    #[must_use]
    pub fn text(self, key: &str, text: &str) -> Self {
        self.value(key, 8, string(text))
    }

    /// With this 32-bit whole number.
    #[must_use]
    pub fn whole(self, key: &str, number: u32) -> Self {
        self.value(key, 4, number.to_le_bytes().to_vec())
    }

    /// With this 32-bit number.
    #[must_use]
    pub fn real(self, key: &str, number: f32) -> Self {
        self.value(key, 6, number.to_le_bytes().to_vec())
    }

    /// With this yes or no.
    #[must_use]
    pub fn flag(self, key: &str, flag: bool) -> Self {
        self.value(key, 7, vec![flag.into()])
    }

    /// With these strings.
    #[must_use]
    pub fn texts<T: AsRef<str>>(self, key: &str, texts: &[T]) -> Self {
        let (kind, bytes) = list(8, texts.iter().map(|text| string(text.as_ref())));
        self.value(key, kind, bytes)
    }

    /// With these 32-bit whole numbers.
    #[must_use]
    pub fn wholes(self, key: &str, numbers: &[i32]) -> Self {
        let (kind, bytes) = list(5, numbers.iter().map(|number| number.to_le_bytes().to_vec()));
        self.value(key, kind, bytes)
    }

    /// With these 32-bit numbers.
    #[must_use]
    pub fn reals(self, key: &str, numbers: &[f32]) -> Self {
        let (kind, bytes) = list(6, numbers.iter().map(|number| number.to_le_bytes().to_vec()));
        self.value(key, kind, bytes)
    }

    /// Without this key.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.values.remove(key);
        self
    }

    /// With this tensor in place of any other of its name. The shape has the outermost dimension first; the type is
    /// llama.cpp's number for it.
    #[must_use]
    pub fn raw_tensor(mut self, name: &str, kind: u32, shape: &[usize], bytes: Vec<u8>) -> Self {
        self.tensors.retain(|(other, ..)| other != name);
        self.tensors.push((name.to_owned(), kind, shape.to_vec(), bytes));
        self
    }

    /// With this tensor, its numbers written in a type.
    #[must_use]
    pub fn tensor(self, name: &str, dtype: WeightType, shape: &[usize], numbers: &[f32]) -> Self {
        self.raw_tensor(name, Self::type_number(dtype), shape, quantised(dtype, numbers))
    }

    /// Without this tensor.
    #[must_use]
    pub fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.retain(|(other, ..)| other != name);
        self
    }

    /// llama.cpp's number for a type.
    pub fn type_number(dtype: WeightType) -> u32 {
        match dtype {
            WeightType::F32 => 0,
            WeightType::F16 => 1,
            WeightType::Q4_0 => 2,
            WeightType::Q4_1 => 3,
            WeightType::Q5_0 => 6,
            WeightType::Q5_1 => 7,
            WeightType::Q8_0 => 8,
            WeightType::Q4K => 12,
            WeightType::Q5K => 13,
            WeightType::Q6K => 14,
            WeightType::Bf16 => 30,
        }
    }

    /// The file, tensors in the order in which they were added.
    pub fn bytes(&self) -> Vec<u8> {
        const ALIGNMENT: usize = 32;
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.values.len() as u64).to_le_bytes());
        for (key, (kind, value)) in &self.values {
            bytes.extend(string(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        let mut data = Vec::new();
        for (name, kind, shape, tensor) in &self.tensors {
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
            bytes.extend(string(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            bytes.extend(shape.iter().rev().flat_map(|dimension| (*dimension as u64).to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(tensor);
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        [bytes, data].concat()
    }
}

/// Numbers in a type, whole blocks of them, rounded without finesse: each block by its largest number.
///
/// # Panics
/// For `Q4_1`, `Q5_0`, `Q5_1` and `Q5_K`.
pub fn quantised(dtype: WeightType, numbers: &[f32]) -> Vec<u8> {
    if let Some(plain) = dtype.plain() {
        let mut bytes = Vec::new();
        plain.encode(numbers, &mut bytes);
        return bytes;
    }
    let blocks = numbers.chunks_exact(dtype.block());
    let block = |numbers: &[f32]| {
        let most = |numbers: &[f32]| numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
        let largest = most(numbers);
        let rounded = |x: f32, step: f32, range: f32| (x / step.max(1e-30)).round().clamp(-range, range - 1.0) as i32;
        let half = |x: f32| f32_to_f16(x).to_le_bytes();
        match dtype {
            WeightType::Q8_0 => {
                let step = largest / 127.0;
                let quants = numbers.iter().map(|x| rounded(*x, step, 128.0) as u8);
                half(step).into_iter().chain(quants).collect::<Vec<u8>>()
            }
            WeightType::Q4_0 => {
                let step = largest / 7.0;
                let quant = |x: f32| (rounded(x, step, 8.0) + 8) as u8;
                let (low, high) = numbers.split_at(16);
                half(step).into_iter().chain(low.iter().zip(high).map(|(a, b)| quant(*a) | quant(*b) << 4)).collect()
            }
            WeightType::Q4K => {
                // One scale and minimum for the whole block: 15 steps from -largest to largest.
                let step = 2.0 * largest / 15.0;
                let quant = |x: f32| ((x + largest) / step.max(1e-30)).round().clamp(0.0, 15.0) as u8;
                let scales = [1u8, 1, 1, 1, 1, 1, 1, 1, 0x11, 0x11, 0x11, 0x11];
                let pairs = numbers.chunks_exact(64).flat_map(|pair| {
                    let (low, high) = pair.split_at(32);
                    low.iter().zip(high).map(|(a, b)| quant(*a) | quant(*b) << 4).collect::<Vec<u8>>()
                });
                half(step).into_iter().chain(half(largest)).chain(scales).chain(pairs).collect()
            }
            WeightType::Q6K => {
                let step = largest / 31.0;
                let quants: Vec<u8> = numbers.iter().map(|x| (rounded(*x, step, 32.0) + 32) as u8).collect();
                let (mut low, mut high) = (Vec::new(), Vec::new());
                for part in quants.chunks_exact(128) {
                    low.extend((0..64).map(|i| part[i] & 15 | (part[i + 64] & 15) << 4));
                    high.extend((0..32).map(|i| {
                        part[i] >> 4 | part[i + 32] >> 4 << 2 | part[i + 64] >> 4 << 4 | part[i + 96] >> 4 << 6
                    }));
                }
                [low, high, vec![1; 16], half(step).to_vec()].concat()
            }
            other => panic!("{other} is not written here"),
        }
    };
    blocks.flat_map(block).collect()
}

/// A Llama model's directory as a GGUF file, with its matrices in this type. The model has one file of weights and BPE
/// over bytes that cuts words as the demo model's tokenizer does.
pub fn gguf(source: &dyn ModelSource, dtype: WeightType) -> GgufWriter {
    let json = |name: &str| -> Value { serde_json::from_slice(source.file(name).unwrap()).unwrap() };
    let config = json("config.json");
    let number = |key: &str| config[key].as_u64().unwrap() as u32;
    let file = GgufWriter::new()
        .text("general.architecture", "llama")
        .whole("llama.context_length", number("max_position_embeddings"))
        .whole("llama.embedding_length", number("hidden_size"))
        .whole("llama.block_count", number("num_hidden_layers"))
        .whole("llama.feed_forward_length", number("intermediate_size"))
        .whole("llama.attention.head_count", number("num_attention_heads"))
        .whole("llama.attention.head_count_kv", number("num_key_value_heads"))
        .whole("llama.attention.key_length", number("head_dim"))
        .whole("llama.attention.value_length", number("head_dim"))
        .whole("llama.rope.dimension_count", number("head_dim"))
        .real("llama.rope.freq_base", config["rope_theta"].as_f64().unwrap() as f32)
        .real("llama.attention.layer_norm_rms_epsilon", config["rms_norm_eps"].as_f64().unwrap() as f32);
    let file = tokenizer(file, &json("tokenizer.json"), &json("tokenizer_config.json"));
    let heads = |key: &str| number(key) as usize;
    let weights = SafeTensors::deserialize(source.file("model.safetensors").unwrap()).unwrap();
    // In an order that is the same each time.
    let mut tensors: Vec<_> = weights.iter().collect();
    tensors.sort_by_key(|(name, _)| *name);
    tensors.into_iter().fold(file, |file, (name, view)| {
        let from = match view.dtype() {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            _ => Dtype::Bf16,
        };
        let mut numbers = vec![0.0; view.data().len() / from.size()];
        from.decode(view.data(), &mut numbers);
        let columns = if let [_, columns] = view.shape() { *columns } else { 1 };
        let numbers = match name {
            _ if name.contains("q_proj") => pairs_together(&numbers, heads("num_attention_heads"), columns),
            _ if name.contains("k_proj") => pairs_together(&numbers, heads("num_key_value_heads"), columns),
            _ => numbers,
        };
        // As llama.cpp's converter does it, vectors stay as exact as they can be.
        let dtype = if view.shape().len() == 1 { WeightType::F32 } else { dtype };
        file.tensor(&renamed(name), dtype, view.shape(), &numbers)
    })
}

/// Rows of heads, so that the two numbers that RoPE turns together stand side by side: `[head][2][half]` becomes
/// `[head][half][2]`.
fn pairs_together(numbers: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let row = |row: usize| &numbers[row * columns..(row + 1) * columns];
    let (rows, half) = (numbers.len() / columns, numbers.len() / columns / heads / 2);
    let order = (0..rows).map(|to| {
        let (head, within) = (to / (2 * half), to % (2 * half));
        head * 2 * half + within % 2 * half + within / 2
    });
    order.flat_map(|from| row(from).to_vec()).collect()
}

fn renamed(name: &str) -> String {
    let parts = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    parts.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
}

fn tokenizer(file: GgufWriter, tokenizer: &Value, settings: &Value) -> GgufWriter {
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let count =
        vocabulary.len().max(added.iter().map(|token| token["id"].as_u64().unwrap() as usize + 1).max().unwrap_or(0));
    let (mut tokens, mut types) = (vec![String::new(); count], vec![1; count]);
    for (token, id) in vocabulary {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    for token in added {
        let id = token["id"].as_u64().unwrap() as usize;
        token["content"].as_str().unwrap().clone_into(&mut tokens[id]);
        types[id] = if token["special"].as_bool().unwrap() { 3 } else { 4 };
    }
    let merge = |merge: &Value| {
        let parts: Vec<&str> = merge.as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect();
        parts.join(" ")
    };
    let merges: Vec<String> = tokenizer["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    let file = file
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .flag("tokenizer.ggml.add_space_prefix", true)
        .texts("tokenizer.ggml.merges", &merges)
        .wholes("tokenizer.ggml.token_type", &types)
        .text("tokenizer.chat_template", settings["chat_template"].as_str().unwrap());
    let keys = [("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"), ("pad_token", "padding_token_id")];
    let file = keys.iter().fold(file, |file, (ours, theirs)| {
        match tokens.iter().position(|token| Some(token.as_str()) == settings[ours].as_str()) {
            Some(id) => file.whole(&format!("tokenizer.ggml.{theirs}"), id as u32),
            None => file,
        }
    });
    file.texts("tokenizer.ggml.tokens", &tokens)
}
