//! Writes a seed corpus for each target that reads files, into `corpus/` beside this crate's `Cargo.toml`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use amem_core::residency::Room;
use amem_core::testing::GgufWriter;
use amem_core::transformer::WeightType;
use amem_core::{
    Access, ChunkId, Encoding, Fingerprint, HostKv, KvChunk, KvShape, Namespace, PrefixId, Record, RecordId,
    ResidencyPolicy, Timestamp,
};
use amem_fuzz::{ENCODER_CONFIG, ENCODER_MODULES, ENCODER_POOLING, policy, recaller, tiny_tensors};
use futures_lite::future::block_on;
use safetensors::tensor::{Dtype, TensorView, serialize};

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let seed = |target: &str, name: &str, bytes: &[u8]| {
        let dir = root.join("corpus").join(target);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(name), bytes)
    };

    seed("config", "demo", amem_demo::CONFIG.as_bytes())?;
    seed("tokenizer", "bytes", TOKENIZER.as_bytes())?;
    for (name, config) in CONFIGS {
        seed("config", name, config.as_bytes())?;
    }
    for (name, kind, settings) in ENCODER_SETTINGS {
        seed("encoder", name, &[kind.as_bytes(), settings.as_bytes()].concat())?;
    }
    for (name, template) in TEMPLATES {
        seed("chat_template", name, template.as_bytes())?;
    }
    for (name, lines) in LINES {
        seed("import", name, lines.as_bytes())?;
    }
    for (name, kind, size) in [("f32", Dtype::F32, 4), ("bf16", Dtype::BF16, 2)] {
        seed("weights", name, &weights(kind, size)?)?;
    }
    for (name, architecture, dtype, width) in [
        ("f32", "llama", WeightType::F32, 4),
        ("q8_0", "qwen3", WeightType::Q8_0, 32),
        ("q4_0", "qwen2", WeightType::Q4_0, 32),
    ] {
        let model = model(architecture, dtype, width);
        seed("gguf", name, &byte_level(model.clone()).bytes())?;
        seed("gguf", &format!("{name}_pieces"), &pieces(model).bytes())?;
    }
    for file in ["bert.gguf", "bert-cls.gguf", "nomic-new.gguf"] {
        let path = root.join("../amem-cpu/tests/golden/gguf-encoders").join(file);
        seed("gguf", file, &std::fs::read(path)?)?;
    }
    for (name, part) in [("whole", 1 << 20), ("parts", 100)] {
        let (head, parts) = amem_store::fuzzing::remote_objects(&chunk()?, part).map_err(io::Error::other)?;
        let len = u16::try_from(head.len()).map_err(io::Error::other)?;
        seed("remote", name, &[&len.to_le_bytes()[..], &head, &parts].concat())?;
    }
    for kind in *b"lfgsv2eE" {
        let name = char::from(kind).to_string();
        for (name, chunks) in [(name.clone(), 6), (name + "_many", 90)] {
            let learned = policy(kind).map(|policy| learned(policy, chunks)).unwrap_or_default();
            seed("residency", &name, &[&[kind][..], b"\0\x21\x42\x63\x84\xa5\xc6\xe7", &learned].concat())?;
            if let Some(file) = amem_store::fuzzing::residency_file(&[learned, Vec::new()]) {
                seed("residency", &format!("{name}_file"), &[b"\0".repeat(9), file].concat())?;
            }
        }
    }
    for (name, kind) in [("words", 0), ("vectors", 2), ("both", 3)] {
        seed("recall_index", name, &[&[kind], &index(kind)?[..]].concat())?;
    }
    Ok(())
}

/// What a policy knows after some chunks of two owners came, were used and left.
fn learned(mut policy: Box<dyn ResidencyPolicy>, chunks: u8) -> Vec<u8> {
    for name in 0..chunks {
        let mut id = [name; 32];
        id[..8].fill(name % 2);
        let chunk = ChunkId(id);
        let access = Access { chunk, relevance: 0.5, bytes: 90 + u64::from(name), cost: 9.0, time: 0.0 };
        // Some let a chunk in only the second time.
        if policy.admits(&access) || name % 3 > 0 && policy.admits(&access) {
            policy.insert(access);
            (0..name % 4).for_each(|_| policy.touch(access));
        }
        if name % 4 == 3
            && let Some(victim) = policy.victim(&Room::new(100, 0.0))
        {
            policy.remove(&victim);
        }
    }
    policy.save()
}

/// A recaller's index of some records.
fn index(kind: u8) -> io::Result<Vec<u8>> {
    let (index, home) = (recaller(kind), Namespace::new("home").map_err(io::Error::other)?);
    let record = |n: u8| {
        let text = format!("the red car number {n}");
        Record::new(RecordId::from_bytes([n; 16]), home.clone(), text, Timestamp(0))
    };
    let records: Vec<Record> = (0..20).map(record).collect();
    let saved = block_on(async {
        index.index(&records).await?;
        index.save(&home).await
    });
    saved.map(Option::unwrap_or_default).map_err(io::Error::other)
}

/// A small chunk with all that a chunk can have.
fn chunk() -> io::Result<KvChunk> {
    let (shape, encoding) = (KvShape { layers: 2, kv_heads: 1, head_dim: 4 }, Encoding::Int8);
    let data = Arc::new(HostKv::new(encoding, 2, vec![1; encoding.bytes(&shape, 3)]));
    let chunk = KvChunk::new(ChunkId([1; 32]), PrefixId([2; 32]), shape, [1, 2, 3].into(), data);
    let chunk = chunk.and_then(|chunk| chunk.with_model(Fingerprint([3; 32])).with_sensitivity([0.5; 3].into()));
    chunk.map_err(io::Error::other)
}

/// An export, whose bytes begin with an even one, and a log of the reference system, whose bytes begin with an odd one.
const LINES: [(&str, &str); 2] = [
    (
        "export",
        r#"0{"namespace":"a","id":"0193","text":"Vienna","key":"home","created_at":"2001-09-09T01:46:40.250Z"}
{"text":"Lima","key":"home","metadata":{"a":null,"b":true,"c":1.5,"d":"x"},"created_at":1000000001.5,"state":"active"}
{"text":"brief","expires_at":"2999-01-01T00:00:00+02:00"}
{"text":"gone","state":"superseded"}
"#,
    ),
    (
        "reference",
        r#"1{"op":"add","id":"a","text":"Vienna","key":"home","created_at":1000000000.5}
{"op":"add","id":"b","text":"Lima","key":"home","created_at":1000000001}
{"op":"update","id":"b","text":"Oslo"}
{"op":"forget","id":"a"}
{"text":"tea"}
"#,
    ),
];

/// Settings of encoders, and the letter that the target reads them by.
const ENCODER_SETTINGS: [(&str, &str, &str); 7] = [
    ("config", "c", ENCODER_CONFIG),
    (
        "nomic",
        "c",
        r#"{"model_type":"nomic_bert","n_embd":4,"n_layer":1,"n_head":2,"n_inner":6,"n_positions":8,"vocab_size":8,
            "type_vocab_size":2,"activation_function":"swiglu","layer_norm_epsilon":1e-12,"rotary_emb_base":1000,
            "rotary_emb_fraction":1.0,"rotary_scaling_factor":null,"qkv_proj_bias":false,"mlp_fc1_bias":false}"#,
    ),
    (
        "roberta",
        "c",
        r#"{"model_type":"xlm-roberta","hidden_size":4,"num_hidden_layers":1,"num_attention_heads":2,"intermediate_size":6,
            "vocab_size":8,"max_position_embeddings":6,"type_vocab_size":1,"pad_token_id":1,"hidden_act":"gelu"}"#,
    ),
    ("modules", "m", ENCODER_MODULES),
    ("pooling", "p", ENCODER_POOLING),
    ("length", "l", r#"{"max_seq_length":4,"do_lower_case":true}"#),
    ("prompts", "s", r#"{"prompts":{"query":"a ","passage":"b "},"default_prompt_name":"query"}"#),
];

/// One of each family and of each rope scaling.
const CONFIGS: [(&str, &str); 8] = [
    (
        "gemma3",
        r#"{"model_type":"gemma3","eos_token_id":[1,106],"text_config":{"model_type":"gemma3_text","hidden_size":64,
            "num_hidden_layers":7,"head_dim":16,"intermediate_size":128,"vocab_size":256,"sliding_window":8,
            "query_pre_attn_scalar":16,"final_logit_softcapping":30.0,"rope_theta":1000000.0,"rope_local_base_freq":10000,
            "rope_scaling":{"rope_type":"linear","factor":8.0}}}"#,
    ),
    (
        "phi3",
        r#"{"model_type":"phi3","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,"intermediate_size":128,
            "vocab_size":256,"max_position_embeddings":131072,"original_max_position_embeddings":4096,
            "partial_rotary_factor":0.75,"rope_scaling":{"type":"longrope","short_factor":[1.0,1.1,1.3,1.4,1.7,2.0],
            "long_factor":[1.0,1.5,2.5,4.0,7.0,11.0]},"sliding_window":262144}"#,
    ),
    (
        "smollm3",
        r#"{"model_type":"smollm3","hidden_size":64,"num_hidden_layers":4,"num_attention_heads":4,"intermediate_size":128,
            "vocab_size":256,"max_position_embeddings":65536,"no_rope_layers":[1,1,1,0],"rope_theta":5000000.0,
            "layer_types":["full_attention","full_attention","full_attention","full_attention"],"mlp_bias":true}"#,
    ),
    (
        "qwen3_moe",
        r#"{"model_type":"qwen3_moe","hidden_size":64,"num_hidden_layers":4,"num_attention_heads":4,"head_dim":16,
            "intermediate_size":128,"moe_intermediate_size":32,"num_experts":8,"num_experts_per_tok":2,
            "norm_topk_prob":true,"decoder_sparse_step":2,"mlp_only_layers":[3],"vocab_size":256,
            "max_position_embeddings":40960}"#,
    ),
    (
        "llama3",
        r#"{"model_type":"llama","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,
            "intermediate_size":128,"vocab_size":256,"max_position_embeddings":131072,"rms_norm_eps":1e-5,
            "rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,
            "high_freq_factor":4.0,"original_max_position_embeddings":8192},"eos_token_id":[1,2]}"#,
    ),
    (
        "mistral",
        r#"{"model_type":"mistral","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,"sliding_window":4096,
            "intermediate_size":128,"vocab_size":256,"max_position_embeddings":32768,
            "rope_parameters":{"rope_type":"default","rope_theta":10000.0},"tie_word_embeddings":false}"#,
    ),
    (
        "qwen2",
        r#"{"model_type":"qwen2","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,"use_sliding_window":false,
            "intermediate_size":128,"vocab_size":256,"max_position_embeddings":32768,"rope_theta":1000000.0,
            "rope_scaling":{"type":"yarn","factor":4.0,"original_max_position_embeddings":32768}}"#,
    ),
    (
        "qwen3",
        r#"{"model_type":"qwen3","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":1,
            "head_dim":32,"intermediate_size":128,"vocab_size":256,"max_position_embeddings":40960,"attention_bias":false,
            "rope_scaling":{"type":"linear","factor":2.0},"layer_types":["full_attention","full_attention"]}"#,
    ),
];

/// Templates in the manners of the families, and the constructs that they use.
const TEMPLATES: [(&str, &str); 3] = [
    (
        "chatml",
        "{% for message in messages %}{{ '<|user|>' + message['role'] + '\\n' + message['content'] | trim + '<|end|>' }}\
         {% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    ),
    (
        "instruct",
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}\
         {% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for m in messages %}\
         {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
         {% if m.role == 'user' %}{% if loop.first %}[{{ system }}] {% endif %}{{ m.content.strip() }}<|user|>\
         {% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    ),
    (
        "macros",
        "{% macro turn(m) -%}<|{{ m.role }}|>{{ m.content }}{%- endmacro %}{% set ns = namespace(last=messages|length-1) %}\
         {% for m in messages %}{{ turn(m) }}{% if not loop.last %}<|end|>{% endif %}{% endfor %}\
         {% if add_generation_prompt is defined and ns.last >= 0 %}<|assistant|>{% endif %}",
    ),
];

/// A tokenizer that knows bytes and the special tokens that the demo model's template writes.
const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,
    "added_tokens":[{"id":3,"content":"<|user|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,
    "special":true}],"normalizer":null,
    "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
    "post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
    "model":{"type":"BPE","unk_token":null,"byte_fallback":false,"vocab":{"a":0,"b":1,"ab":2,"<|user|>":3},
    "merges":[["a","b"]]}}"#;

/// `model.safetensors` with a number in every place.
fn weights(kind: Dtype, size: usize) -> io::Result<Vec<u8>> {
    let tensors = tiny_tensors();
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, shape)| vec![1; size * shape.iter().product::<usize>()]).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
        let view = TensorView::new(kind, shape.clone(), bytes).map_err(io::Error::other)?;
        Ok((*name, view))
    });
    let views = views.collect::<io::Result<BTreeMap<_, _>>>()?;
    serialize(views, None).map_err(io::Error::other)
}

/// A model of one layer whose hidden states, feed-forward block and vocabulary are as wide as this.
fn model(architecture: &str, dtype: WeightType, width: usize) -> GgufWriter {
    let key = |name: &str| format!("{architecture}.{name}");
    let half = width / 2;
    let mut file = GgufWriter::new()
        .text("general.architecture", architecture)
        .whole(&key("context_length"), 16)
        .whole(&key("embedding_length"), width as u32)
        .whole(&key("block_count"), 1)
        .whole(&key("feed_forward_length"), width as u32)
        .whole(&key("attention.head_count"), 2)
        .whole(&key("attention.head_count_kv"), 1)
        .whole(&key("attention.key_length"), half as u32)
        .real(&key("rope.freq_base"), 1e4)
        .real(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    let ones = |count: usize| vec![1.0; count];
    let mut vectors =
        vec![("output_norm.weight", width), ("blk.0.attn_norm.weight", width), ("blk.0.ffn_norm.weight", width)];
    match architecture {
        "qwen2" => {
            vectors.extend([("blk.0.attn_q.bias", width), ("blk.0.attn_k.bias", half), ("blk.0.attn_v.bias", half)])
        }
        "qwen3" => vectors.extend([("blk.0.attn_q_norm.weight", half), ("blk.0.attn_k_norm.weight", half)]),
        _ => vectors.push(("rope_freqs.weight", half / 2)),
    }
    for (name, len) in vectors {
        file = file.tensor(name, WeightType::F32, &[len], &ones(len));
    }
    for (name, rows) in [
        ("token_embd", width),
        ("output", width),
        ("blk.0.attn_q", width),
        ("blk.0.attn_k", half),
        ("blk.0.attn_v", half),
        ("blk.0.attn_output", width),
        ("blk.0.ffn_gate", width),
        ("blk.0.ffn_up", width),
        ("blk.0.ffn_down", width),
    ] {
        file = file.tensor(&format!("{name}.weight"), dtype, &[rows, width], &ones(rows * width));
    }
    file.text("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
}

/// With a tokenizer of bytes.
fn byte_level(file: GgufWriter) -> GgufWriter {
    file.text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "llama-bpe")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab", "<|user|>"])
        .wholes("tokenizer.ggml.token_type", &[1, 1, 1, 3])
        .texts("tokenizer.ggml.merges", &["a b"])
        .whole("tokenizer.ggml.eos_token_id", 3)
}

/// With a tokenizer of pieces.
fn pieces(file: GgufWriter) -> GgufWriter {
    file.text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &["<unk>", "</s>", "▁a", "▁"])
        .wholes("tokenizer.ggml.token_type", &[2, 3, 1, 1])
        .reals("tokenizer.ggml.scores", &[0.0, 0.0, -1.0, -2.0])
        .whole("tokenizer.ggml.eos_token_id", 1)
}
