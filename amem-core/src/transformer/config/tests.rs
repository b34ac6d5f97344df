//! What is read of `config.json`, and what is refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::transformer::fixtures::{Files, demo, demo_with};

fn parse(settings: Value) -> Result<Config> {
    Config::parse(&demo_with(settings))
}

#[test]
fn the_demo_model_is_read() {
    let config = Config::parse(&demo()).unwrap();
    let sizes = [config.hidden, config.layers, config.heads, config.kv_heads, config.head_dim, config.intermediate];
    assert_eq!(sizes, [128, 5, 4, 2, 64, 192]);
    assert_eq!((config.family, config.vocabulary, config.context), (Family::Llama, 1536, 2048));
    assert_eq!((config.norm_eps, config.tied, config.rotated), (1e-5, true, 64));
    assert_eq!((config.qkv_bias, config.o_bias, config.qk_norm), (false, false, QkNorm::None));
    assert_eq!(config.stops, [6]);
    assert_eq!(config.kinds, [LayerKind { rope: Rope::plain(10_000.0, 64), window: None }]);
    assert_eq!(config.kind_of, [0; 5]);
    assert!(config.further_settings().is_empty(), "{:?}", config.further_settings());
    assert_eq!(config.kv_shape().token_numbers(), 5 * 2 * 2 * 64);
}

#[test]
fn families_differ_in_flags() {
    let flags = |settings| {
        let config = parse(settings).unwrap();
        (config.qkv_bias, config.o_bias, config.qk_norm, config.kinds[0].window)
    };
    let mistral = json!({ "model_type": "mistral", "sliding_window": 4096, "attention_bias": null });
    assert_eq!(flags(mistral), (false, false, QkNorm::None, Some(4096)));
    assert_eq!(flags(json!({ "model_type": "mistral", "sliding_window": null })), (false, false, QkNorm::None, None));
    // Left out it is not the same as `null`, but in Mixtral.
    assert_eq!(flags(json!({ "model_type": "mistral" })), (false, false, QkNorm::None, Some(4096)));
    assert_eq!(flags(json!({ "model_type": "mixtral" })), (false, false, QkNorm::None, None));
    let unsaid = json!({ "model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 0 });
    assert_eq!(flags(unsaid), (true, false, QkNorm::None, Some(4096)));
    let qwen2 = json!({ "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": false });
    assert_eq!(flags(qwen2), (true, false, QkNorm::None, None));
    assert_eq!(flags(json!({ "model_type": "qwen3" })), (false, false, QkNorm::Heads, None));
    assert_eq!(flags(json!({ "attention_bias": true })), (true, true, QkNorm::None, None));
}

#[test]
fn the_head_size_is_derived_where_the_family_allows_it() {
    assert_eq!(parse(json!({ "head_dim": null })).unwrap().head_dim, 32);
    assert!(parse(json!({ "head_dim": null, "model_type": "qwen3" })).is_err());
    assert!(parse(json!({ "head_dim": null, "hidden_size": 130 })).is_err());
    assert!(parse(json!({ "head_dim": null, "hidden_size": 12 })).is_err());
}

#[test]
fn what_would_be_computed_wrongly_is_refused_with_a_reason() {
    let cases = [
        (json!({ "model_type": "gpt_oss" }), "gpt_oss"),
        (json!({ "hidden_act": "gelu" }), "gelu"),
        (json!({ "model_type": "qwen3", "mlp_bias": true }), "mlp_bias"),
        (json!({ "model_type": "phi3", "lm_head_bias": true }), "lm_head_bias"),
        (json!({ "model_type": "gemma3_text", "use_bidirectional_attention": true }), "use_bidirectional_attention"),
        (json!({ "model_type": "gemma2", "hidden_activation": "gelu" }), "gelu"),
        (json!({ "model_type": "mixtral", "attention_bias": true }), "attention_bias"),
        (json!({ "model_type": "mistral", "attention_bias": true }), "attention_bias"),
        (json!({ "quantization_config": {} }), "quantization_config"),
        (json!({ "model_type": "gemma3", "text_config": {}, "quantization_config": {} }), "quantization_config"),
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor"),
        (json!({ "layer_types": kinds(1) }), "layer_types"),
        (json!({ "model_type": "mistral", "sliding_window": 8, "layer_types": kinds(1) }), "layer_types"),
        (json!({ "model_type": "qwen3", "layer_types": kinds(1) }), "layer_types"),
        (json!({ "model_type": "gemma2", "layer_types": ["chunked_attention"] }), "chunked_attention"),
    ];
    for (settings, named) in cases {
        let error = parse(settings).expect_err(named);
        assert!(matches!(error, Error::UnsupportedModel { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
}

/// Layer types of five layers, of which this one has a window.
fn kinds(sliding: usize) -> Value {
    let kind = |layer| if layer == sliding { "sliding_attention" } else { "full_attention" };
    (0..5).map(kind).collect()
}

#[test]
fn windows_stand_in_the_layers_that_the_family_says_or_the_file_lists() {
    let windows = |settings| {
        let config = parse(settings).unwrap();
        config.kind_of.iter().map(|kind| config.kinds[*kind].window).collect::<Vec<_>>()
    };
    let (no, yes) = (None, Some(8));
    let gemma2 = json!({ "model_type": "gemma2", "sliding_window": 8 });
    assert_eq!(windows(gemma2), [yes, no, yes, no, yes]);
    let gemma3 = json!({ "model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 3 });
    assert_eq!(windows(gemma3), [yes, yes, no, yes, yes]);
    let listed = json!({ "model_type": "gemma3_text", "sliding_window": 8, "layer_types": kinds(2) });
    assert_eq!(windows(listed), [no, no, yes, no, no]);
    let qwen2 =
        json!({ "model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 3 });
    assert_eq!(windows(qwen2), [no, no, no, yes, yes]);
    let moe = json!({ "model_type": "qwen3_moe", "sliding_window": 8, "use_sliding_window": true });
    assert_eq!(windows(moe), [yes; 5]);
    assert_eq!(windows(json!({ "model_type": "phi3", "sliding_window": 8 })), [yes; 5]);
    let smollm3 = json!({ "model_type": "smollm3", "sliding_window": 8, "use_sliding_window": true,
                          "no_rope_layers": [1, 0, 1, 0, 1] });
    assert_eq!(windows(smollm3), [no, yes, no, yes, no]);
}

#[test]
fn layers_are_rotated_as_the_file_lists() {
    let none = Rope::none(64);
    let rotates = |settings| {
        let config = parse(settings).unwrap();
        (0..5).map(|layer| config.rope(layer).unwrap() != &none).collect::<Vec<_>>()
    };
    let listed = json!({ "model_type": "smollm3", "no_rope_layers": [1, 0, 0, 1, 1] });
    assert_eq!(rotates(listed), [true, false, false, true, true]);
    assert_eq!(rotates(json!({ "model_type": "smollm3" })), [true, true, true, false, true]);
    assert_eq!(rotates(json!({ "no_rope_layers": [0, 0, 0, 0, 0] })), [true; 5], "llama has no such list");
    for wrong in [json!([1, 0]), json!([1, 1, 1, 1, 2]), json!(["yes", 1, 1, 1, 1])] {
        let error = parse(json!({ "model_type": "smollm3", "no_rope_layers": wrong })).unwrap_err();
        assert!(matches!(error, Error::BadModel { .. }) && error.to_string().contains("no_rope_layers"), "{error}");
    }
}

#[test]
fn lists_of_layers_that_do_not_fit_are_refused() {
    let cases = [
        (json!({ "model_type": "gemma2", "layer_types": ["full_attention"] }), "layer_types"),
        (json!({ "model_type": "qwen3_moe", "mlp_only_layers": [5] }), "mlp_only_layers"),
        (json!({ "model_type": "qwen3_moe", "mlp_only_layers": ["no"] }), "mlp_only_layers"),
        (json!({ "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 5 }), "num_experts_per_tok"),
        (json!({ "model_type": "mixtral", "num_local_experts": 0 }), "num_local_experts"),
        (json!({ "model_type": "phi3", "partial_rotary_factor": 0.01 }), "rotated"),
        (json!({ "model_type": "granite", "residual_multiplier": 0 }), "residual_multiplier"),
        (json!({ "model_type": "gemma2", "final_logit_softcapping": -1 }), "final_logit_softcapping"),
        (json!({ "model_type": "gemma3", "text_config": [] }), "text_config"),
    ];
    for (settings, named) in cases {
        let error = parse(settings).expect_err(named);
        assert!(matches!(error, Error::BadModel { .. }) && error.to_string().contains(named), "{error}");
    }
}

/// A file by itself.
fn read(settings: Value) -> Config {
    let bytes = serde_json::to_vec(&settings).unwrap();
    Config::parse(&Files::from([("config.json".to_owned(), bytes)])).unwrap()
}

/// What the files of published models say, as far as it matters.
#[test]
fn published_models_are_read() {
    let gemma2_2b = read(json!({
        "model_type": "gemma2", "attention_bias": false, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
        "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
        "intermediate_size": 9216, "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26,
        "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "sliding_window": 4096, "torch_dtype": "float32", "vocab_size": 256_000
    }));
    assert_eq!((gemma2_2b.embedding_scale, gemma2_2b.attention_scale), (48.0, 1.0 / 16.0));
    assert_eq!((gemma2_2b.attention_soft_cap, gemma2_2b.logit_soft_cap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma2_2b.norms, gemma2_2b.norm_offset, gemma2_2b.tied), (Norms::Around, 1.0, true));
    assert_eq!(gemma2_2b.activation, Activation::GeluTanh);
    assert_eq!(gemma2_2b.kinds.iter().map(|kind| kind.window).collect::<Vec<_>>(), [Some(4096), None]);
    assert_eq!(gemma2_2b.kv_shape(), KvShape { layers: 26, kv_heads: 4, head_dim: 256 });

    let gemma3_1b = read(json!({
        "model_type": "gemma3_text", "attention_bias": false, "attn_logit_softcapping": null, "bos_token_id": 2,
        "cache_implementation": "hybrid", "eos_token_id": [1, 106], "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
        "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000, "rope_scaling": null,
        "rope_theta": 1_000_000, "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
        "vocab_size": 262_144
    }));
    assert_eq!(
        (gemma3_1b.attention_soft_cap, gemma3_1b.logit_soft_cap, gemma3_1b.qk_norm),
        (None, None, QkNorm::Heads)
    );
    assert_eq!(gemma3_1b.rope(0), Some(&Rope::plain(1e4, 256)));
    assert_eq!(gemma3_1b.rope(5), Some(&Rope::plain(1e6, 256)));
    let sliding = |layer: usize| gemma3_1b.kinds[gemma3_1b.kind_of[layer]].window;
    assert_eq!([0, 4, 5, 6, 11, 25].map(sliding), [Some(512), Some(512), None, Some(512), None, Some(512)]);
    assert_eq!(gemma3_1b.stops, [1, 106]);

    // What it leaves out are the defaults of its family.
    let gemma3_4b = read(json!({
        "model_type": "gemma3", "eos_token_id": [1, 106], "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024
        },
        "vision_config": { "hidden_size": 1152, "model_type": "siglip_vision_model" }
    }));
    let sizes = [gemma3_4b.heads, gemma3_4b.kv_heads, gemma3_4b.head_dim, gemma3_4b.vocabulary, gemma3_4b.context];
    assert_eq!(sizes, [8, 4, 256, 262_208, 131_072]);
    assert_eq!(gemma3_4b.rope(0), Some(&Rope::plain(1e4, 256)));
    let slowed: Vec<f32> = (0..128).map(|pair| (1e6f64.powf(-2.0 * f64::from(pair) / 256.0) / 8.0) as f32).collect();
    assert_eq!(gemma3_4b.rope(5).unwrap().inverse_frequencies, slowed);
    assert_eq!((gemma3_4b.stops.clone(), gemma3_4b.tied), (vec![1, 106], true));

    // Of the factors' numbers only how many there are is what was published.
    let factors = |count: usize| vec![1.5; count];
    let phi3_mini_128k = read(json!({
        "model_type": "phi3", "attention_bias": false, "bos_token_id": 1, "eos_token_id": 32000, "hidden_act": "silu",
        "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 262_144,
        "rope_scaling": { "type": "longrope", "long_factor": factors(48), "short_factor": factors(48) },
        "tie_word_embeddings": false, "vocab_size": 32064
    }));
    assert_eq!((phi3_mini_128k.head_dim, phi3_mini_128k.rotated), (96, 96));
    // √(1 + ln 32 / ln 4096) = √(1 + 5/12).
    assert_eq!(phi3_mini_128k.rope(0).unwrap().attention_factor, (17.0f64 / 12.0).sqrt() as f32);
    let phi4_mini = read(json!({
        "model_type": "phi3", "attention_bias": false, "bos_token_id": 199_999, "eos_token_id": 199_999,
        "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
        "interpolate_factor": 1, "lm_head_bias": false, "max_position_embeddings": 131_072, "mlp_bias": false,
        "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "rms_norm_eps": 1e-5,
        "rope_scaling": { "type": "longrope", "long_factor": factors(48), "short_factor": factors(48) },
        "rope_theta": 10000.0, "sliding_window": 262_144, "tie_word_embeddings": true, "vocab_size": 200_064
    }));
    assert_eq!((phi4_mini.head_dim, phi4_mini.rotated, phi4_mini.tied), (128, 96, true));
    assert!(phi4_mini.rope(0).unwrap().inverse_frequencies[48..].iter().all(|frequency| *frequency == 0.0));

    let no_rope = [1, 1, 1, 0].repeat(9);
    let smollm3_3b = read(json!({
        "model_type": "smollm3", "attention_bias": false, "eos_token_id": 128_012, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 65536, "max_window_layers": 28,
        "mlp_bias": false, "no_rope_layer_interval": 4,
        "no_rope_layers": no_rope, "layer_types": vec!["full_attention"; 36],
        "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
        "rope_scaling": null, "rope_theta": 5_000_000.0, "sliding_window": null, "tie_word_embeddings": true,
        "use_sliding_window": false, "vocab_size": 128_256
    }));
    assert_eq!([0, 2, 3, 35].map(|layer| smollm3_3b.kind_of[layer]), [0, 0, 1, 1]);
    assert_eq!(smollm3_3b.rope(35), Some(&Rope::none(128)));

    let olmo2_1b = read(json!({
        "model_type": "olmo2", "attention_bias": false, "eos_token_id": 100_257, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-6, "rope_scaling": null,
        "rope_theta": 500_000, "tie_word_embeddings": false, "vocab_size": 100_352
    }));
    assert_eq!((olmo2_1b.norms, olmo2_1b.qk_norm, olmo2_1b.norm_offset), (Norms::After, QkNorm::Rows, 0.0));

    let granite_2b = read(json!({
        "model_type": "granite", "attention_bias": false, "attention_multiplier": 0.015625, "bos_token_id": 0,
        "embedding_multiplier": 12.0, "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "logits_scaling": 8.0, "max_position_embeddings": 131_072, "mlp_bias": false,
        "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 5_000_000.0, "tie_word_embeddings": true,
        "vocab_size": 49155
    }));
    assert_eq!((granite_2b.embedding_scale, granite_2b.residual_scale), (12.0, 0.22));
    assert_eq!((granite_2b.attention_scale, granite_2b.logit_scale), (1.0 / 64.0, 0.125));

    let mixtral_8x7b = read(json!({
        "model_type": "mixtral", "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "output_router_logits": false, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "router_aux_loss_coef": 0.02,
        "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 32000
    }));
    let experts = mixtral_8x7b.experts_of(31).unwrap();
    assert_eq!([experts.count, experts.top_k, experts.intermediate], [8, 2, 14336]);
    assert!(experts.norm_top_k);

    let qwen3_30b_a3b = read(json!({
        "model_type": "qwen3_moe", "attention_bias": false, "bos_token_id": 151_643, "decoder_sparse_step": 1,
        "eos_token_id": 151_645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768,
        "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": false, "rms_norm_eps": 1e-6,
        "rope_scaling": null, "rope_theta": 1e6, "sliding_window": null, "tie_word_embeddings": false,
        "use_sliding_window": false, "vocab_size": 151_936
    }));
    let experts = qwen3_30b_a3b.experts_of(0).unwrap();
    assert_eq!([experts.count, experts.top_k, experts.intermediate], [128, 8, 768]);
    assert!(experts.norm_top_k && experts.layers == [true; 48]);
    assert_eq!((qwen3_30b_a3b.qk_norm, qwen3_30b_a3b.kinds.len()), (QkNorm::Heads, 1));
}

#[test]
fn experts_stand_in_the_layers_that_the_file_says() {
    let sparse = |settings: Value| {
        let mut all = json!({ "model_type": "qwen3_moe" });
        all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        parse(all).unwrap().experts.unwrap().layers
    };
    assert_eq!(sparse(json!({})), [true; 5]);
    assert_eq!(sparse(json!({ "decoder_sparse_step": 2 })), [false, true, false, true, false]);
    assert_eq!(sparse(json!({ "mlp_only_layers": [0, 3] })), [false, true, true, false, true]);
}

#[test]
fn numbers_out_of_bounds_are_refused_by_name() {
    let keys = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ];
    for key in keys {
        for value in [json!(0), json!(-1), json!(1.5), json!(u64::MAX), json!(1e308), json!("8"), json!([8])] {
            let error = parse(json!({ key: value })).expect_err(key);
            assert!(matches!(error, Error::BadModel { .. }) && error.to_string().contains(key), "{error}");
        }
    }
    assert!(parse(json!({ "num_key_value_heads": 3 })).is_err());
    assert!(parse(json!({ "head_dim": 63 })).is_err());
    assert!(parse(json!({ "rms_norm_eps": 0 })).is_err());
    assert!(parse(json!({ "eos_token_id": [1, -1] })).is_err());
}

#[test]
fn a_file_that_is_no_object_is_refused() {
    for bytes in ["", "[]", "{", "null", "\u{0}", "{\"model_type\":\"llama\"}"] {
        let files = Files::from([("config.json".into(), bytes.into())]);
        assert!(matches!(Config::parse(&files), Err(Error::BadModel { .. })), "{bytes:?}");
    }
    assert!(matches!(Config::parse(&Files::new()), Err(Error::BadModel { .. })));
}

proptest! {
    #[test]
    fn no_damage_to_the_file_panics(at in 0usize..575, byte: u8, cut in 0usize..576) {
        let mut files = demo();
        let config = files.get_mut("config.json").unwrap();
        config[at] = byte;
        config.truncate(cut.max(1));
        let _ = Config::parse(&files);
    }
}
