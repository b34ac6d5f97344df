//! Models of random weights, of every family.

use std::collections::BTreeMap;

use amem_core::Sampling;
use amem_core::transformer::{Backend, Options, Transformer};
use amem_cpu::Cpu;
use amem_cuda::Precision;
use amem_cuda_simulator::in_simulator;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype as StoredDtype, TensorView};
use serde_json::{Value, json};

use crate::common;
use crate::compare::compare;
use crate::open;

const VOCABULARY: usize = 128;
const HIDDEN: usize = 96;
const INTERMEDIATE: usize = 160;

/// What a family's configuration adds, and the tensors that it has beside Llama's.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    settings: Value,
    head_dim: usize,
    heads: usize,
    kv_heads: usize,
    biases: bool,
    /// Whether queries, keys and values are one tensor, and gate and up another.
    fused: bool,
    query_norms: QueryNorms,
    norms: Norms,
    /// Experts of each layer, and the names of their block and of gate, up and down.
    experts: Option<(usize, [&'static str; 4])>,
}

#[derive(Clone, Copy, PartialEq)]
enum QueryNorms {
    None,
    /// Of each head.
    Heads,
    /// Of all heads together.
    Rows,
}

/// Where norms of hidden states stand.
#[derive(Clone, Copy, PartialEq)]
enum Norms {
    Before,
    After,
    /// Before and behind each block. They hold what is added to 1.
    Around,
}

/// Gemma 2: capped scores and logits, GELU, a scaled embedding, norms around the blocks, every other layer with a window.
pub(crate) fn gemma2() -> Family {
    let settings = json!({
        "model_type": "gemma2", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 24, "sliding_window": 23, "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": true,
    });
    Family { norms: Norms::Around, ..family("gemma2", settings, (256, 2, 1)) }
}

fn family(name: &'static str, settings: Value, (head_dim, heads, kv_heads): (usize, usize, usize)) -> Family {
    Family {
        name,
        settings,
        head_dim,
        heads,
        kv_heads,
        biases: name == "qwen2",
        fused: false,
        query_norms: QueryNorms::None,
        norms: Norms::Before,
        experts: None,
    }
}

pub(crate) fn families() -> [Family; 13] {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    });
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 });
    let gemma3 = json!({
        "model_type": "gemma3_text", "query_pre_attn_scalar": 24, "sliding_window": 23, "sliding_window_pattern": 2,
        "rope_local_base_freq": 100.0, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true,
    });
    let longrope = json!({
        "type": "longrope", "short_factor": vec![1.25; 48], "long_factor": vec![2.0; 48],
    });
    // Three quarters of a head are rotated.
    let phi3 = json!({
        "model_type": "phi3", "partial_rotary_factor": 0.75, "rope_scaling": longrope,
        "original_max_position_embeddings": 256,
    });
    // The second layer does not rotate.
    let smollm3 = json!({ "model_type": "smollm3", "no_rope_layers": [1, 0, 1] });
    let granite = json!({
        "model_type": "granite", "attention_multiplier": 0.2, "embedding_multiplier": 4.0, "logits_scaling": 2.0,
        "residual_multiplier": 0.6,
    });
    // A row goes through all experts: which are the best of some could differ where two come out nearly even.
    let mixtral = json!({ "model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 3 });
    let moe = json!({
        "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": INTERMEDIATE,
        "norm_topk_prob": true,
    });
    [
        family("llama", json!({ "model_type": "llama", "rope_scaling": llama3 }), (64, 6, 2)),
        family("llama with yarn", json!({ "model_type": "llama", "rope_scaling": yarn }), (80, 2, 2)),
        family("mistral", json!({ "model_type": "mistral", "sliding_window": 23 }), (96, 4, 1)),
        family("qwen2", json!({ "model_type": "qwen2" }), (64, 7, 1)),
        Family { query_norms: QueryNorms::Heads, ..family("qwen3", json!({ "model_type": "qwen3" }), (128, 4, 2)) },
        gemma2(),
        Family { norms: Norms::Around, query_norms: QueryNorms::Heads, ..family("gemma3", gemma3, (64, 4, 2)) },
        Family { fused: true, ..family("phi3", phi3, (128, 2, 1)) },
        family("smollm3", smollm3, (64, 4, 2)),
        Family {
            norms: Norms::After,
            query_norms: QueryNorms::Rows,
            ..family("olmo2", json!({ "model_type": "olmo2" }), (80, 4, 2))
        },
        family("granite", granite, (64, 4, 1)),
        Family { experts: Some((3, ["block_sparse_moe", "w1", "w3", "w2"])), ..family("mixtral", mixtral, (64, 4, 2)) },
        Family {
            experts: Some((4, ["mlp", "gate_proj", "up_proj", "down_proj"])),
            query_norms: QueryNorms::Heads,
            ..family("qwen3-moe", moe, (64, 2, 1))
        },
    ]
}

impl Family {
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut config = json!({
            "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "intermediate_size": INTERMEDIATE,
            "vocab_size": VOCABULARY, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": false,
        });
        let more = self.settings.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(more);
        let mut tensors: Vec<(String, Vec<usize>)> = vec![
            ("model.embed_tokens.weight".into(), vec![VOCABULARY, HIDDEN]),
            ("model.norm.weight".into(), vec![HIDDEN]),
        ];
        if config["tie_word_embeddings"] == false {
            tensors.push(("lm_head.weight".into(), vec![VOCABULARY, HIDDEN]));
        }
        for layer in 0..3 {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            if self.norms != Norms::After {
                add("input_layernorm.weight", &[HIDDEN]);
            }
            add("post_attention_layernorm.weight", &[HIDDEN]);
            let parts = [("q", q), ("k", kv), ("v", kv), ("qkv", q + 2 * kv)];
            for (name, outputs) in if self.fused { &parts[3..] } else { &parts[..3] } {
                add(&format!("self_attn.{name}_proj.weight"), &[*outputs, HIDDEN]);
                if self.biases {
                    add(&format!("self_attn.{name}_proj.bias"), &[*outputs]);
                }
            }
            let normed = match self.query_norms {
                QueryNorms::None => None,
                QueryNorms::Heads => Some((self.head_dim, self.head_dim)),
                QueryNorms::Rows => Some((q, kv)),
            };
            if let Some((of_queries, of_keys)) = normed {
                add("self_attn.q_norm.weight", &[of_queries]);
                add("self_attn.k_norm.weight", &[of_keys]);
            }
            add("self_attn.o_proj.weight", &[HIDDEN, q]);
            if self.norms == Norms::Around {
                add("pre_feedforward_layernorm.weight", &[HIDDEN]);
            }
            if self.norms != Norms::Before {
                add("post_feedforward_layernorm.weight", &[HIDDEN]);
            }
            if self.fused {
                add("mlp.gate_up_proj.weight", &[2 * INTERMEDIATE, HIDDEN]);
                add("mlp.down_proj.weight", &[HIDDEN, INTERMEDIATE]);
                continue;
            }
            let mut gated = |block: &str, [gate, up, down]: [&str; 3]| {
                add(&format!("{block}.{gate}.weight"), &[INTERMEDIATE, HIDDEN]);
                add(&format!("{block}.{up}.weight"), &[INTERMEDIATE, HIDDEN]);
                add(&format!("{block}.{down}.weight"), &[HIDDEN, INTERMEDIATE]);
            };
            match self.experts {
                None => gated("mlp", ["gate_proj", "up_proj", "down_proj"]),
                Some((count, [block, gate, up, down])) => {
                    (0..count).for_each(|index| gated(&format!("{block}.experts.{index}"), [gate, up, down]));
                    add(&format!("{block}.gate.weight"), &[count, HIDDEN]);
                }
            }
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.head_dim as u64 + self.heads as u64);
        let tensors: Vec<(String, Vec<u8>, Vec<usize>)> = tensors
            .into_iter()
            .map(|(name, shape)| {
                // Norms near one, and matrices that keep the size of what they are given.
                let inputs = *shape.last().unwrap() as f32;
                let (middle, spread) = if shape.len() == 1 { (1.0, 0.2) } else { (0.0, (3.0 / inputs).sqrt()) };
                let middle = if name.ends_with("bias") || self.norms == Norms::Around { 0.0 } else { middle };
                let number = |_| middle + rng.random_range(-spread..spread);
                let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
                // Weights that every precision holds exactly, so that only arithmetic is compared.
                let bytes = numbers.iter().flat_map(|x| ((x * 64.0).round() / 64.0).to_le_bytes()).collect();
                (name, bytes, shape)
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, bytes, shape)| (name, TensorView::new(StoredDtype::F32, shape.clone(), bytes).unwrap()));
        BTreeMap::from([
            ("config.json".to_owned(), config.to_string().into_bytes()),
            ("model.safetensors".to_owned(), safetensors::serialize(views, None).unwrap()),
        ])
    }

    pub(crate) fn model<B: Backend>(&self, backend: B, precision: Precision) -> Transformer<B> {
        let options = Options::default().kv(precision.dtype()).kv_cache_bytes(8 << 20);
        let chat = Box::new(common::Numbers);
        Transformer::with_chat(&self.files(), backend, options, chat, Sampling::default()).unwrap()
    }
}

fn every_family(precision: Precision, tolerance: f32) {
    for family in families() {
        let cpu = family.model(Cpu::with_threads(2).unwrap(), precision);
        compare(family.name, &cpu, &family.model(open(precision), precision), tolerance);
    }
}

#[test]
#[ignore = "f32 has no tensor cores, so it takes the simulator three times as long; its logits are compared below"]
fn in_f32_every_family_gives_the_cpus_tokens() {
    in_simulator("families::in_f32_every_family_gives_the_cpus_tokens", &[], || every_family(Precision::F32, 1e-3));
}

#[test]
fn in_f16_every_family_gives_the_cpus_tokens() {
    in_simulator("families::in_f16_every_family_gives_the_cpus_tokens", &[], || every_family(Precision::F16, 2e-2));
}

#[test]
fn in_bf16_every_familys_logits_are_near_the_cpus() {
    in_simulator("families::in_bf16_every_familys_logits_are_near_the_cpus", &[], || {
        for family in families() {
            let cpu = family.model(Cpu::with_threads(2).unwrap(), Precision::Bf16);
            let gpu = family.model(open(Precision::Bf16), Precision::Bf16);
            let tokens: Vec<u32> = (0..70).map(|index| (index * 37 + 11) % VOCABULARY as u32).collect();
            let (expected, found) = (cpu.score(&tokens).unwrap(), gpu.score(&tokens).unwrap());
            // The mean over all rows: single logits of random models may be sums of large numbers that cancel out.
            let off: f32 = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum::<f32>() / found.len() as f32;
            println!("{}: {off:.1e}", family.name);
            assert!(off <= 2e-2, "{}: off by {off}", family.name);
        }
    });
}

#[test]
fn logits_equal_those_of_an_independent_implementation() {
    in_simulator("families::logits_equal_those_of_an_independent_implementation", &[], || {
        let mut checked = 0;
        for case in std::fs::read_dir(common::case("")).unwrap() {
            let case = case.unwrap().file_name().into_string().unwrap();
            let (tokens, logits) = common::expected(&common::case(&case).join("golden.safetensors"));
            let loaded = common::golden_for(&case, open(Precision::F32), Precision::F32.dtype(), tokens.len());
            let model = loaded.unwrap_or_else(|error| panic!("{case}: {error}"));
            let found = model.score(&tokens).unwrap();
            assert_eq!(found.len(), logits.len(), "{case}");
            let off = found.iter().zip(&logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{case}: {off:.1e}");
            assert!(off <= 1e-4, "{case}: off by {off}");
            checked += 1;
        }
        assert_eq!(checked, 27);
    });
}
