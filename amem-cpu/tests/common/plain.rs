//! A forward pass in f64, written down from the papers: no batches, no blocks, no fused kernels, one token after the
//! other. It shares no code with the engine, and is slow.

use std::collections::BTreeMap;

use amem_core::{Dtype, KvChunk, Token};
use safetensors::SafeTensors;
use serde_json::Value;

type Row = Vec<f64>;

/// A model's weights, by name, and the numbers of its `config.json`.
pub struct Plain {
    weights: BTreeMap<String, Row>,
    pub layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden: usize,
    eps: f64,
    theta: f64,
    /// For each layer, how many tokens a token sees, itself included.
    windows: Vec<usize>,
    /// For each layer, whether keys and queries are rotated.
    rotates: Vec<bool>,
    /// Gemma 2: norms around both blocks and offset by one, caps, another activation, embeddings that are scaled.
    gemma: Option<Gemma>,
}

struct Gemma {
    query_pre_attn_scalar: f64,
    attn_logit_softcapping: f64,
    final_logit_softcapping: f64,
}

/// For each layer and slot: the rotated key and the value.
#[derive(Clone)]
pub struct PlainKv(pub Vec<Vec<Option<[Row; 2]>>>);

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], other: &[f64]) {
    to.iter_mut().zip(other).for_each(|(to, other)| *to += other);
}

impl Plain {
    /// A golden case with plain RoPE and weights in f32.
    pub fn open(case: &str) -> Self {
        let files = super::directory(&super::case(case));
        let config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
        let number = |key: &str| config[key].as_f64();
        let count = |key: &str| number(key).unwrap() as usize;
        let tensors = SafeTensors::deserialize(&files["model.safetensors"]).unwrap();
        let weights = tensors.iter().map(|(name, tensor)| {
            let mut numbers = vec![0f32; tensor.data().len() / 4];
            Dtype::F32.decode(tensor.data(), &mut numbers);
            (name.to_owned(), numbers.into_iter().map(f64::from).collect())
        });
        let (heads, hidden) = (count("num_attention_heads"), count("hidden_size"));
        let layers = count("num_hidden_layers");
        let window = |layer: usize| match config["model_type"].as_str().unwrap() {
            "mistral" => count("sliding_window"),
            "qwen2" if config["use_sliding_window"] == true && layer >= count("max_window_layers") => {
                count("sliding_window")
            }
            "gemma2" if layer.is_multiple_of(2) => count("sliding_window"),
            _ => usize::MAX,
        };
        let gemma = (config["model_type"] == "gemma2").then(|| Gemma {
            query_pre_attn_scalar: number("query_pre_attn_scalar").unwrap(),
            attn_logit_softcapping: number("attn_logit_softcapping").unwrap(),
            final_logit_softcapping: number("final_logit_softcapping").unwrap(),
        });
        let theta = number("rope_theta").or(config["rope_parameters"]["rope_theta"].as_f64());
        Self {
            weights: weights.collect(),
            layers,
            heads,
            kv_heads: count("num_key_value_heads"),
            head_dim: number("head_dim").map_or(hidden / heads, |head_dim| head_dim as usize),
            hidden,
            eps: number("rms_norm_eps").unwrap(),
            theta: theta.unwrap(),
            windows: (0..layers).map(window).collect(),
            rotates: (0..layers).map(|layer| config["no_rope_layers"][layer] != 0).collect(),
            gemma,
        }
    }

    /// A place for the KV of so many tokens.
    pub fn kv(&self, slots: usize) -> PlainKv {
        PlainKv(vec![vec![None; slots]; self.layers])
    }

    /// Puts a chunk's KV behind `first` tokens.
    pub fn load(&self, kv: &mut PlainKv, chunk: &KvChunk, first: usize) {
        for layer in 0..self.layers {
            let stored = chunk.layer(layer).unwrap();
            for token in 0..chunk.tokens().len() {
                let [mut key, mut value] = [(); 2].map(|()| vec![0f32; self.kv_heads * self.head_dim]);
                for head in 0..self.kv_heads {
                    let numbers = head * self.head_dim..(head + 1) * self.head_dim;
                    stored.key(token, head, &mut key[numbers.clone()]);
                    stored.value(token, head, &mut value[numbers]);
                }
                let [mut key, value] = [key, value].map(|row| row.into_iter().map(f64::from).collect::<Row>());
                self.rotate(layer, &mut key, (first + token) as f64);
                kv.0[layer][first + token] = Some([key, value]);
            }
        }
    }

    fn weight(&self, layer: usize, name: &str) -> Option<&Row> {
        self.weights.get(&format!("model.layers.{layer}.{name}"))
    }

    fn linear(&self, layer: usize, name: &str, x: &[f64]) -> Row {
        let weight = self.weight(layer, &format!("{name}.weight")).unwrap();
        let mut y: Row = weight.chunks_exact(x.len()).map(|weights| dot(weights, x)).collect();
        if let Some(bias) = self.weight(layer, &format!("{name}.bias")) {
            add(&mut y, bias);
        }
        y
    }

    fn norm(&self, weight: &[f64], x: &[f64]) -> Row {
        let scale = 1.0 / (dot(x, x) / x.len() as f64 + self.eps).sqrt();
        let offset = if self.gemma.is_some() { 1.0 } else { 0.0 };
        x.iter().zip(weight).map(|(x, weight)| x * scale * (weight + offset)).collect()
    }

    /// What a block gives, normed where such a norm is.
    fn left(&self, layer: usize, norm: &str, y: Row) -> Row {
        if self.gemma.is_some() { self.norm(self.weight(layer, norm).unwrap(), &y) } else { y }
    }

    fn rotate(&self, layer: usize, heads: &mut [f64], position: f64) {
        if !self.rotates[layer] {
            return;
        }
        let half = self.head_dim / 2;
        for head in heads.chunks_exact_mut(self.head_dim) {
            for pair in 0..half {
                let angle = position * self.theta.powf(-2.0 * pair as f64 / self.head_dim as f64);
                let (sin, cos) = angle.sin_cos();
                let (a, b) = (head[pair], head[pair + half]);
                head[pair] = a * cos - b * sin;
                head[pair + half] = b * cos + a * sin;
            }
        }
    }

    /// One projection of a layer, with the norm of its heads where the model has one, turned to its position.
    fn turned(&self, layer: usize, name: &str, x: &[f64], position: usize) -> Row {
        let mut heads = self.linear(layer, &format!("self_attn.{name}_proj"), x);
        if let Some(norm) = self.weight(layer, &format!("self_attn.{name}_norm.weight")) {
            heads = heads.chunks_exact(self.head_dim).flat_map(|head| self.norm(norm, head)).collect();
        }
        self.rotate(layer, &mut heads, position as f64);
        heads
    }

    /// A key of this layer as it stands in the cache.
    pub fn key(&self, layer: usize, hidden: &[f64], position: usize) -> Row {
        let x = self.norm(self.weight(layer, "input_layernorm.weight").unwrap(), hidden);
        self.turned(layer, "k", &x, position)
    }

    /// The key and the value of this slot in a layer, the key as it was before it was rotated.
    pub fn unrotated(&self, kv: &PlainKv, layer: usize, slot: usize) -> [Row; 2] {
        let [mut key, value] = kv.0[layer][slot].clone().unwrap();
        self.rotate(layer, &mut key, -(slot as f64));
        [key, value]
    }

    /// Computes tokens through the first `upto` layers, in the order of their slots, over what stands in `kv`; what
    /// they yield stands there afterwards. Returns their hidden states, and for each layer and each of the tokens the
    /// attention that it pays to every slot, summed over the heads.
    pub fn run(&self, kv: &mut PlainKv, tokens: &[(usize, Token)], upto: usize) -> (Vec<Row>, Vec<Vec<Row>>) {
        let embedding = &self.weights["model.embed_tokens.weight"];
        let scale = if self.gemma.is_some() { (self.hidden as f64).sqrt() } else { 1.0 };
        let embed = |token: Token| -> Row {
            embedding[token as usize * self.hidden..][..self.hidden].iter().map(|x| x * scale).collect()
        };
        let mut hidden: Vec<Row> = tokens.iter().map(|(_, token)| embed(*token)).collect();
        let mut attention = Vec::new();
        for layer in 0..upto {
            let mut queries = Vec::new();
            for ((slot, _), hidden) in tokens.iter().zip(&hidden) {
                let x = self.norm(self.weight(layer, "input_layernorm.weight").unwrap(), hidden);
                queries.push(self.turned(layer, "q", &x, *slot));
                let value = self.linear(layer, "self_attn.v_proj", &x);
                kv.0[layer][*slot] = Some([self.turned(layer, "k", &x, *slot), value]);
            }
            let mut paid = Vec::new();
            for (((slot, _), hidden), queries) in tokens.iter().zip(&mut hidden).zip(&queries) {
                let first = (slot + 1).saturating_sub(self.windows[layer]);
                let mut by_slot = vec![0.0; kv.0[layer].len()];
                let mut attended = Vec::new();
                for (head, query) in queries.chunks_exact(self.head_dim).enumerate() {
                    let of_head = head / (self.heads / self.kv_heads) * self.head_dim;
                    let half = |slot: usize, half: usize| {
                        &kv.0[layer][slot].as_ref().unwrap()[half][of_head..of_head + self.head_dim]
                    };
                    let score = |slot: usize| match &self.gemma {
                        None => dot(query, half(slot, 0)) / (self.head_dim as f64).sqrt(),
                        Some(gemma) => {
                            let score = dot(query, half(slot, 0)) / gemma.query_pre_attn_scalar.sqrt();
                            gemma.attn_logit_softcapping * (score / gemma.attn_logit_softcapping).tanh()
                        }
                    };
                    let exponentials: Row = (first..=*slot).map(|slot| score(slot).exp()).collect();
                    let total: f64 = exponentials.iter().sum();
                    let mut sum = vec![0.0; self.head_dim];
                    for (slot, exponential) in (first..=*slot).zip(exponentials) {
                        by_slot[slot] += exponential / total;
                        let value: Row = half(slot, 1).iter().map(|value| value * exponential / total).collect();
                        add(&mut sum, &value);
                    }
                    attended.extend(sum);
                }
                paid.push(by_slot);
                let attended = self.linear(layer, "self_attn.o_proj", &attended);
                add(hidden, &self.left(layer, "post_attention_layernorm.weight", attended));
                let before = if self.gemma.is_some() { "pre_feedforward" } else { "post_attention" };
                let x = self.norm(self.weight(layer, &format!("{before}_layernorm.weight")).unwrap(), hidden);
                let (gate, up) = (self.linear(layer, "mlp.gate_proj", &x), self.linear(layer, "mlp.up_proj", &x));
                let act = |x: f64| match self.gemma {
                    None => x / (1.0 + (-x).exp()),
                    Some(_) => {
                        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                        x / 2.0 * (1.0 + inner.tanh())
                    }
                };
                let gated: Row = gate.iter().zip(&up).map(|(gate, up)| act(*gate) * up).collect();
                let given = self.linear(layer, "mlp.down_proj", &gated);
                add(hidden, &self.left(layer, "post_feedforward_layernorm.weight", given));
            }
            attention.push(paid);
        }
        (hidden, attention)
    }

    /// The logits after a hidden state of the last layer.
    pub fn logits(&self, hidden: &[f64]) -> Row {
        let x = self.norm(&self.weights["model.norm.weight"], hidden);
        let head = self.weights.get("lm_head.weight").unwrap_or(&self.weights["model.embed_tokens.weight"]);
        let cap = |logit: f64| match &self.gemma {
            None => logit,
            Some(gemma) => gemma.final_logit_softcapping * (logit / gemma.final_logit_softcapping).tanh(),
        };
        head.chunks_exact(self.hidden).map(|weights| cap(dot(weights, &x))).collect()
    }
}
