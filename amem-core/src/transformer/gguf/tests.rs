use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::json;

use super::rope_factors::{LONG_FACTORS, ROPE_FACTORS};
use super::*;
use crate::testing::{GgufWriter, Reference, gguf};
use crate::transformer::fixtures::{demo, demo_with};
use crate::transformer::{Encoded, Encoder, EncoderOptions, HfChat, Purpose, Rope, WeightFeedForward, Weights};
use crate::{Chat, Dtype};

/// The demo model as a GGUF file.
fn file() -> GgufWriter {
    gguf(&demo(), WeightType::F16)
}

fn open(file: &GgufWriter) -> Result<Gguf> {
    Gguf::open("demo.gguf", file.bytes())
}

/// Opens all that a model has.
fn open_all(file: &GgufWriter) -> Result<()> {
    let gguf = open(file)?;
    let config = Config::parse(&gguf)?;
    Weights::open(&gguf, &config)?;
    HfChat::open(&gguf, &config).map(drop)
}

fn error(file: &GgufWriter) -> String {
    let error = open_all(file).expect_err("it should be refused");
    assert!(matches!(error, Error::BadModel { .. } | Error::UnsupportedModel { .. }), "{error}");
    assert!(error.to_string().contains("demo.gguf"), "{error}");
    error.to_string()
}

#[test]
fn the_demo_model_is_the_same_in_both_formats() {
    let (files, gguf) = (demo(), open(&file()).unwrap());
    let (ours, theirs) = (Config::parse(&gguf).unwrap(), Config::parse(&files).unwrap());
    assert_eq!(ours, theirs);
    let (weights, expected) = (Weights::open(&gguf, &ours).unwrap(), Weights::open(&files, &theirs).unwrap());
    assert!(weights.lm_head.is_none());
    assert_eq!(weights.embedding.bytes, expected.embedding.bytes);
    for (layer, expected) in weights.layers.iter().zip(&expected.layers) {
        let (WeightFeedForward::Mlp(mlp), WeightFeedForward::Mlp(expected_mlp)) =
            (&layer.feed_forward, &expected.feed_forward)
        else {
            panic!("the demo model has no experts");
        };
        for (tensor, expected) in [
            (layer.q, expected.q),
            (layer.k, expected.k),
            (layer.v, expected.v),
            (layer.o, expected.o),
            (mlp.gate, expected_mlp.gate),
            (mlp.up, expected_mlp.up),
            (mlp.down, expected_mlp.down),
        ] {
            assert_eq!((tensor.role, tensor.layer, tensor.dtype), (expected.role, expected.layer, expected.dtype));
            assert!(tensor.bytes == expected.bytes, "{:?} {:?}", tensor.role, tensor.layer);
        }
        for (norm, expected) in [(layer.attention_norm, expected.attention_norm), (layer.mlp_norm, expected.mlp_norm)] {
            assert_eq!(norm.unwrap().to_f32(), expected.unwrap().to_f32());
        }
    }
}

#[test]
fn texts_have_the_same_tokens_in_both_formats() {
    let (files, gguf) = (demo(), open(&file()).unwrap());
    let config = Config::parse(&files).unwrap();
    let (ours, theirs) = (HfChat::open(&gguf, &config).unwrap(), HfChat::open(&files, &config).unwrap());
    let texts = [
        "",
        "Alice lives in Denver.",
        " two  spaces ",
        "What is Bob's locker code?\n2096, 17 and 3.14!",
        "don't DON'T",
        "<|user|>Ann<|end|>",
        "ünïcödé — 東京 🦀",
        "\t\r\n\n x",
        "12 345  6 7",
    ];
    for text in texts {
        assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap(), "{text:?}");
    }
    assert_eq!(ours.stops(), theirs.stops());
    assert_eq!(ours.layout("Answer.").unwrap(), theirs.layout("Answer.").unwrap());
    for token in 0..1536 {
        assert_eq!(ours.token_bytes(token), theirs.token_bytes(token), "{token}");
        assert_eq!(ours.decode(&[5, token]).unwrap(), theirs.decode(&[5, token]).unwrap(), "{token}");
    }
}

#[test]
fn a_model_of_every_weight_type_opens() {
    for dtype in WeightType::ALL {
        // Rows are a whole number of the larger blocks too.
        let zeros = |rows: usize| vec![0; dtype.matrix_bytes(rows, 256).unwrap()];
        let kind = GgufWriter::type_number(dtype);
        let file = wide(WeightType::F16).raw_tensor("blk.0.attn_q.weight", kind, &[256, 256], zeros(256));
        let gguf = open(&file).unwrap();
        let config = Config::parse(&gguf).unwrap();
        let weights = Weights::open(&gguf, &config).unwrap();
        assert_eq!(weights.layers[0].q.dtype, dtype);
        assert!(weights.layers[0].q.is_complete());
    }
}

/// One layer of a model whose rows have 256 numbers.
fn wide(dtype: WeightType) -> GgufWriter {
    let numbers = |count: usize| (0..count).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
    let matrix = |file: GgufWriter, name: &str, rows: usize, columns: usize| {
        file.tensor(name, dtype, &[rows, columns], &numbers(rows * columns))
    };
    let mut file = GgufWriter::new()
        .text("general.architecture", "llama")
        .whole("llama.context_length", 64)
        .whole("llama.embedding_length", 256)
        .whole("llama.block_count", 1)
        .whole("llama.feed_forward_length", 256)
        .whole("llama.attention.head_count", 4)
        .whole("llama.attention.head_count_kv", 2)
        .real("llama.attention.layer_norm_rms_epsilon", 1e-5);
    for norm in ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"] {
        file = file.tensor(norm, WeightType::F32, &[256], &numbers(256));
    }
    for (name, rows) in [("attn_q", 256), ("attn_k", 128), ("attn_v", 128), ("attn_output", 256)] {
        file = matrix(file, &format!("blk.0.{name}.weight"), rows, 256);
    }
    for name in ["ffn_gate", "ffn_up", "ffn_down"] {
        file = matrix(file, &format!("blk.0.{name}.weight"), 256, 256);
    }
    matrix(file, "token_embd.weight", 32, 256)
}

#[test]
fn parts_are_the_same_model_and_only_together() {
    let whole = file();
    let part = |number: u8, keep: fn(&str) -> bool| {
        let names: Vec<String> = open(&whole).unwrap().tensors.keys().cloned().collect();
        let part = names.iter().filter(|name| !keep(name)).fold(whole.clone(), |part, name| part.without_tensor(name));
        // 16-bit numbers.
        let count = names.len() as u32;
        part.value("split.no", 2, vec![number, 0])
            .value("split.count", 2, vec![2, 0])
            .whole("split.tensors.count", count)
    };
    let (one, two) = (part(0, |name| !name.starts_with("blk.4.")), part(1, |name| name.starts_with("blk.4.")));
    let parts = |parts: &[&GgufWriter]| {
        let named = parts
            .iter()
            .enumerate()
            .map(|(index, part)| (format!("demo.gguf-{index}"), Box::new(part.bytes()) as GgufBytes));
        Gguf::open_parts(named.collect())
    };
    let both = parts(&[&one, &two]).unwrap();
    let config = Config::parse(&both).unwrap();
    let fingerprint = |gguf: &Gguf| Weights::open(gguf, &config).unwrap().fingerprint(&config, "f32", Dtype::F16);
    assert_eq!(fingerprint(&both), fingerprint(&open(&whole).unwrap()));
    for wrong in [&[&one][..], &[&two, &one], &[&one, &one], &[&one, &two, &two], &[]] {
        assert!(matches!(parts(wrong), Err(Error::BadModel { .. })));
    }
    let twice = part(1, |name| name.starts_with("blk.4.") || name == "output_norm.weight");
    assert!(parts(&[&one, &twice]).is_err());
}

#[test]
fn another_weight_or_type_is_another_model() {
    let fingerprint = |file: &GgufWriter| {
        let gguf = open(file).unwrap();
        let config = Config::parse(&gguf).unwrap();
        Weights::open(&gguf, &config).unwrap().fingerprint(&config, "f32", Dtype::F16)
    };
    let norm = |number: f32| file().tensor("output_norm.weight", WeightType::F32, &[128], &[number; 128]);
    assert_ne!(fingerprint(&norm(1.0)), fingerprint(&norm(2.0)));
    assert_ne!(fingerprint(&gguf(&demo(), WeightType::Q8_0)), fingerprint(&file()));
    assert_ne!(fingerprint(&file().real("llama.rope.freq_base", 2e4)), fingerprint(&file()));
}

#[test]
fn rope_is_scaled_as_in_a_models_directory() {
    let rope = |file: &GgufWriter| Config::parse(&open(file).unwrap()).unwrap().rope(0).unwrap().clone();
    let expected = |settings| Config::parse(&demo_with(settings)).unwrap().rope(0).unwrap().clone();
    assert_eq!(rope(&file()), Rope::plain(10_000.0, 64));
    let linear = file().text("llama.rope.scaling.type", "linear").real("llama.rope.scaling.factor", 4.0);
    assert_eq!(rope(&linear), expected(json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } })));
    // Without a type it is linear; without a factor there is none.
    assert_eq!(rope(&linear.clone().without("llama.rope.scaling.type")), rope(&linear));
    for (kind, factor) in [(None, 0.0), (None, 1.0), (Some("none"), 4.0)] {
        let file = file().real("llama.rope.scaling.factor", factor);
        let file = if let Some(kind) = kind { file.text("llama.rope.scaling.type", kind) } else { file };
        assert_eq!(rope(&file), rope(&self::file()), "{kind:?} {factor}");
    }
    let yarn = linear.text("llama.rope.scaling.type", "yarn").whole("llama.rope.scaling.original_context_length", 512);
    let scaling = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512 });
    assert_eq!(rope(&yarn), expected(json!({ "rope_scaling": scaling.clone() })));
    let flat = yarn.real("llama.rope.scaling.yarn_attn_factor", 0.875);
    let mut flat_scaling = scaling;
    flat_scaling["attn_factor"] = json!(0.875);
    assert_eq!(rope(&flat), expected(json!({ "rope_scaling": flat_scaling })));
    // Each pair's own factor, as Llama 3 has them: powers of two divide without rounding.
    let factors: Vec<f32> = (0..32).map(|pair| if pair < 16 { 1.0 } else { 8.0 }).collect();
    let divided = rope(&file().tensor(ROPE_FACTORS, WeightType::F32, &[32], &factors));
    let slowed = divided.inverse_frequencies.iter().zip(&factors).map(|(frequency, factor)| frequency * factor);
    assert_eq!(slowed.collect::<Vec<f32>>(), Rope::plain(10_000.0, 64).inverse_frequencies);
}

type Change = Box<dyn Fn(GgufWriter) -> GgufWriter>;

#[test]
fn what_contradicts_itself_is_refused_by_name() {
    let number = |key: &'static str, value| move |file: GgufWriter| file.whole(key, value);
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(number("llama.embedding_length", 0)), "llama.embedding_length is 0"),
        (Box::new(number("llama.block_count", 6)), "tensor blk.5.attn_norm.weight is missing"),
        (Box::new(number("llama.block_count", 4)), "tensor blk.4."),
        (
            Box::new(number("llama.feed_forward_length", 190)),
            "blk.0.ffn_gate.weight has shape [192, 128] and the configuration asks for [190, 128]",
        ),
        (Box::new(number("llama.attention.head_count_kv", 3)), "llama.attention.head_count is 4"),
        (Box::new(number("llama.attention.value_length", 32)), "llama.attention.value_length 32"),
        (Box::new(number("llama.rope.dimension_count", 32)), "llama.rope.dimension_count 32"),
        (Box::new(number("llama.expert_shared_count", 1)), "llama.expert_shared_count 1"),
        (Box::new(number("llama.expert_count", 8)), "tensor blk.0.ffn_gate_inp.weight is missing"),
        (Box::new(number("tokenizer.ggml.token_type", 8)), "tokenizer.ggml.token_type is 8"),
        (Box::new(|file| file.text("llama.context_length", "many")), "llama.context_length is \"many\""),
        (Box::new(|file| file.without("llama.context_length")), "llama.context_length is missing"),
        (Box::new(|file| file.without("general.architecture")), "general.architecture is missing"),
        (Box::new(|file| file.text("general.architecture", "mamba")), "architecture mamba"),
        (Box::new(|file| file.text("llama.rope.scaling.type", "longrope")), "short_factor has 0 numbers"),
        (Box::new(|file| file.without("tokenizer.ggml.tokens")), "tokenizer.ggml.tokens is missing"),
        (Box::new(|file| file.without("tokenizer.ggml.pre")), "tokenizer.ggml.pre is missing"),
        (
            Box::new(|file| {
                let tokens: Vec<String> = (0..1537).map(|token| format!("t{token}")).collect();
                file.texts("tokenizer.ggml.tokens", &tokens).wholes("tokenizer.ggml.token_type", &[1; 1537])
            }),
            "tokenizer.ggml.tokens has 1537 entries, and tensor token_embd.weight 1536 rows",
        ),
        (Box::new(|file| file.text("tokenizer.ggml.pre", "klingon")), "tokenizer.ggml.pre klingon"),
        (Box::new(|file| file.text("tokenizer.ggml.model", "t5")), "tokenizer.ggml.model t5"),
        (Box::new(|file| file.without("tokenizer.chat_template")), "chat_template"),
        (Box::new(|file| file.text("tokenizer.chat_template", "{{")), "chat template"),
        (Box::new(|file| file.texts("tokenizer.ggml.merges", &["ab"])), "two parts"),
        (Box::new(|file| file.texts("tokenizer.ggml.merges", &["no such"])), "tokenizer"),
        (Box::new(|file| file.without_tensor("token_embd.weight")), "token_embd.weight is missing"),
        (Box::new(|file| file.raw_tensor("token_embd.weight", 20, &[1536, 128], vec![0; 1536 * 72])), "in IQ4_NL"),
        (Box::new(|file| file.raw_tensor("token_embd.weight", 99, &[1536, 128], vec![0; 1536 * 128])), "type 99"),
        (Box::new(|file| file.raw_tensor("a", 12, &[2, 128], vec![0; 144])), "in which Q4_K cannot be"),
        (Box::new(|file| file.raw_tensor("a", 0, &[0, 128], vec![])), "in which F32 cannot be"),
        (Box::new(|file| file.raw_tensor("a", 0, &[usize::MAX, 128], vec![])), "in which F32 cannot be"),
        (Box::new(|file| file.raw_tensor("a", 0, &[1; 5], vec![0; 4])), "5 dimensions"),
        (Box::new(|file| file.raw_tensor("a", 0, &[1024, 1024], vec![0; 4])), "tensor a ends beyond"),
        (
            Box::new(|file| file.raw_tensor("blk.0.ffn_gate_inp.weight", 0, &[1], vec![0; 4])),
            "blk.0.ffn_gate_inp.weight",
        ),
        (Box::new(|file| file.tensor(ROPE_FACTORS, WeightType::F32, &[3], &[1.0; 3])), "3 RoPE factors"),
        (
            Box::new(|file| {
                let file = file.real("llama.rope.scaling.factor", 4.0);
                file.tensor(ROPE_FACTORS, WeightType::F32, &[32], &[1.0; 32])
            }),
            "RoPE's factors",
        ),
        (Box::new(|file| file.real("llama.rope.scaling.yarn_attn_factor", 0.875)), "yarn_attn_factor 0.875"),
        (
            Box::new(|file| {
                let file = file.text("llama.rope.scaling.type", "yarn");
                file.real("llama.rope.scaling.yarn_attn_factor", 1.125)
            }),
            "yarn_attn_factor 1.125",
        ),
        (Box::new(|file| file.tensor(ROPE_FACTORS, WeightType::F32, &[32], &[f32::NAN; 32])), "numbers that are none"),
    ];
    for (change, expected) in cases {
        let found = error(&change(file()));
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

/// The place of some bytes in a file.
fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).position(|window| window == wanted).unwrap()
}

#[test]
fn a_file_that_is_cut_off_or_has_wrong_places_is_refused() {
    let whole = file().bytes();
    let refused = |bytes: Vec<u8>, expected: &str| {
        let error = Gguf::open("demo.gguf", bytes).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("demo.gguf"), "{expected}: {error}");
    };
    for len in [0, 3, 4, 10, 24, 40, 1000] {
        refused(whole[..len].to_vec(), "cut off");
    }
    refused(whole[..whole.len() - 1].to_vec(), "cut off");
    refused([b"GGML", &whole[4..]].concat(), "no GGUF file");
    for (version, expected) in [(1u32, "version 1"), (4, "version 4"), (3 << 24, "big-endian")] {
        refused([&whole[..4], &version.to_le_bytes(), &whole[8..]].concat(), expected);
    }
    // Counts and lengths that no file could hold.
    for at in [8, 16, 24] {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        refused(bytes, "demo.gguf");
    }
    // The offset of a tensor stands 12 bytes behind its two dimensions, after its type.
    let at = find(&whole, b"blk.1.attn_q.weight") + 19 + 4 + 16 + 4;
    for (offset, expected) in
        [(8u64, "alignment"), (0, "lie over each other"), (1 << 40, "ends beyond"), (u64::MAX, "")]
    {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        refused(bytes, expected);
    }
    refused(file().whole("general.alignment", 24).bytes(), "power of two");
    refused(file().whole("general.alignment", 0).bytes(), "general.alignment");
}

#[test]
fn pieces_are_joined_in_the_order_of_their_scores() {
    // "▁ab" has the best score that can be reached; "abc" has a better one than what it could be made of otherwise.
    let pieces = [
        ("<unk>", 2, 0.0),
        ("<s>", 3, 0.0),
        ("</s>", 3, 0.0),
        ("<0x0A>", 6, 0.0),
        ("▁", 1, -9.0),
        ("a", 1, -9.0),
        ("b", 1, -9.0),
        ("c", 1, -9.0),
        ("ab", 1, -2.0),
        ("bc", 1, -1.0),
        ("abc", 1, -3.0),
        ("▁a", 1, -4.0),
        ("<0xC3>", 6, 0.0),
        ("<0xA9>", 6, 0.0),
        ("xy", 4, -1000.0),
        ("x", 1, -9.0),
        ("y", 1, -9.0),
    ];
    let template =
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}[assistant]";
    let (tokens, rest): (Vec<&str>, Vec<(i32, f32)>) = pieces.iter().map(|(t, k, s)| (*t, (*k, *s))).unzip();
    let (kinds, scores): (Vec<i32>, Vec<f32>) = rest.into_iter().unzip();
    let file = file()
        .text("tokenizer.ggml.model", "llama")
        .without("tokenizer.ggml.add_space_prefix")
        .texts("tokenizer.ggml.tokens", &tokens)
        .wholes("tokenizer.ggml.token_type", &kinds)
        .reals("tokenizer.ggml.scores", &scores)
        .whole("tokenizer.ggml.bos_token_id", 1)
        .whole("tokenizer.ggml.eos_token_id", 2)
        .whole("tokenizer.ggml.unknown_token_id", 0)
        .text("tokenizer.chat_template", template);
    let chat = |file: &GgufWriter| {
        let gguf = open(file).unwrap();
        HfChat::open(&gguf, &Config::parse(&gguf).unwrap()).unwrap()
    };
    let with_space = chat(&file);
    let ids = |text: &str| with_space.encode(text).unwrap();
    // bc is joined before ab, then a to it; the blank in front is "▁" alone, for "▁a" comes too late.
    assert_eq!(ids("abc"), [4, 10]);
    assert_eq!(ids("ab"), [4, 8]);
    assert_eq!(ids("ac"), [11, 7]);
    assert_eq!(ids("\né"), [4, 3, 12, 13]);
    assert_eq!(ids("cxy"), [4, 7, 14]);
    assert_eq!(with_space.decode(&[11, 7, 12, 13]).unwrap(), "acé");
    assert_eq!(with_space.token_bytes(11).unwrap(), b" a");
    assert_eq!(with_space.stops(), [2]);

    let without = chat(&file.clone().flag("tokenizer.ggml.add_space_prefix", false));
    assert_eq!(without.encode("a a").unwrap(), [5, 11]);

    assert!(error(&file.clone().reals("tokenizer.ggml.scores", &scores[1..])).contains("tokenizer.ggml.scores"));
    assert!(error(&file.clone().without("tokenizer.ggml.scores")).contains("tokenizer.ggml.scores is missing"));
    let z = "z".repeat(600);
    let long = [tokens.as_slice(), &[z.as_str()]].concat();
    let longer = file.clone().texts("tokenizer.ggml.tokens", &long).reals("tokenizer.ggml.scores", &[0.0; 18]);
    assert!(error(&longer.wholes("tokenizer.ggml.token_type", &[1; 18])).contains("600 bytes"));
    let twice = [tokens.as_slice(), &["ab"]].concat();
    let twice = file.texts("tokenizer.ggml.tokens", &twice).wholes("tokenizer.ggml.token_type", &[1; 18]);
    assert!(error(&twice).contains("\"ab\" twice, as 8 and as 17"));
}

#[test]
fn words_are_cut_as_the_named_tokenizers_cut_them() {
    // Tokens of one byte each; a merge tells whether two bytes stood in one word.
    let letters = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut tokens: Vec<String> = letters.into_iter().map(String::from).collect();
    tokens.sort_unstable();
    let merges = ["1 2", "12 3", "123 4", "Ġ 1", "Ġ a", "' s", "' S", ". Ċ", "Ġ Ġ"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    tokens.extend(["<|e|>".to_owned()]);
    let mut types = vec![1; tokens.len()];
    *types.last_mut().unwrap() = 3;
    let file = file()
        .without("tokenizer.ggml.add_space_prefix")
        .texts("tokenizer.ggml.tokens", &tokens)
        .wholes("tokenizer.ggml.token_type", &types)
        .texts("tokenizer.ggml.merges", &merges)
        .text("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}<|e|>{% endfor %}");
    let cut = |pre: &str, text: &str| {
        let gguf = open(&file.clone().text("tokenizer.ggml.pre", pre)).unwrap();
        let chat = HfChat::open(&gguf, &Config::parse(&gguf).unwrap()).unwrap();
        let words = chat.encode(text).unwrap().into_iter().map(|id| tokens[id as usize].clone());
        words.collect::<Vec<_>>().join("|")
    };
    for (pre, expected) in [
        ("gpt-2", "1234|Ġ1|'s|'|S|.|Ċ|Ġ|Ġa"),
        ("smollm", "1|2|3|4|Ġ|1|'s|'|S|.|Ċ|Ġ|Ġa"),
        ("llama-bpe", "123|4|Ġ|1|'s|'S|.Ċ|Ġ|Ġa"),
        ("dbrx", "123|4|Ġ|1|'s|'S|.Ċ|Ġ|Ġa"),
        ("qwen2", "1|2|3|4|Ġ|1|'s|'S|.Ċ|Ġ|Ġa"),
        ("tekken", "1|2|3|4|Ġ|1|'s|'S|.Ċ|Ġ|Ġa"),
        ("gpt-4o", "123|4|Ġ|1|'s|'S|.Ċ|Ġ|Ġa"),
        ("default", "123|4|Ġ|1|'|s|'|S|.|Ċ|Ġ|Ġa"),
    ] {
        assert_eq!(cut(pre, "1234 1's'S.\n  a"), expected, "{pre}");
    }
    // Qwen's tokenizer composes letters and marks first.
    assert_eq!(cut("qwen2", "e\u{301}"), "Ã|©");
    assert_eq!(cut("llama-bpe", "e\u{301}"), "e|Ì|ģ");
    let prefixed = file.text("tokenizer.ggml.pre", "qwen2").flag("tokenizer.ggml.add_space_prefix", true);
    assert!(error(&prefixed).contains("add_space_prefix"));
}

#[test]
fn the_makers_way_to_draw_tokens_is_taken_over() {
    let sampling = |file: &GgufWriter| {
        let gguf = open(file).unwrap();
        HfChat::open(&gguf, &Config::parse(&gguf).unwrap()).unwrap().sampling().clone()
    };
    assert_eq!(sampling(&file()).temperature, 0.0);
    let drawn = sampling(&file().real("general.sampling.temp", 0.5).whole("general.sampling.top_k", 20));
    assert_eq!((drawn.temperature, drawn.top_k, drawn.top_p), (0.5, 20, 1.0));
}

#[test]
fn control_tokens_that_are_known_to_end_a_text_do_so_without_a_key() {
    let tokens = ["a", "<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|end|>", "</s>"];
    let file = file()
        .texts("tokenizer.ggml.tokens", &tokens)
        .wholes("tokenizer.ggml.token_type", &[1, 3, 3, 3, 1, 3])
        .texts("tokenizer.ggml.merges", &[] as &[&str])
        .whole("tokenizer.ggml.eos_token_id", 5)
        .text(
            "tokenizer.chat_template",
            "{% for m in messages %}<|im_start|>{{ m.content }}</s>{% endfor %}<|im_start|>",
        );
    let gguf = open(&file).unwrap();
    let config = Config::parse(&gguf).unwrap();
    // The fifth is an ordinary token, which texts can have.
    assert_eq!(HfChat::open(&gguf, &config).unwrap().stops(), [1, 2, 5]);
    assert_eq!(config.stops, [1, 2, 5]);
}

/// The settings of a model that has no more than these and an embedding.
fn settings(architecture: &str, change: impl Fn(GgufWriter) -> GgufWriter) -> Result<Config> {
    let key = |name: &str| format!("{architecture}.{name}");
    let file = GgufWriter::new()
        .text("general.architecture", architecture)
        .whole(&key("context_length"), 256)
        .whole(&key("embedding_length"), 96)
        .whole(&key("block_count"), 8)
        .whole(&key("feed_forward_length"), 64)
        .whole(&key("attention.head_count"), 4)
        .real(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .tensor("token_embd.weight", WeightType::F32, &[2, 96], &[0.0; 192]);
    Config::parse(&open(&change(file))?)
}

#[test]
fn what_no_file_says_of_a_family_is_what_llama_cpp_knows_of_it() {
    use crate::transformer::Family;

    let plain = |file: GgufWriter| file;
    let gemma = |layers: u32| {
        move |file: GgufWriter| {
            let file = file.whole("gemma2.block_count", layers).whole("gemma3.block_count", layers);
            file.whole("gemma2.attention.key_length", 16).whole("gemma3.attention.key_length", 16)
        }
    };
    // 27 billion parameters: scaled by the hidden state's share of a head, 96 / 4, in place of the head's size.
    let capped = (Some(50.0), Some(30.0));
    for (architecture, layers, scale, caps) in [
        ("gemma2", 42, 16.0, capped),
        ("gemma2", 46, 24.0, capped),
        ("gemma3", 48, 16.0, (None, None)),
        ("gemma3", 62, 24.0, (None, None)),
    ] {
        let config = settings(architecture, gemma(layers)).unwrap();
        assert_eq!(config.attention_scale, f64::powf(scale, -0.5) as f32, "{architecture} {layers}");
        assert_eq!(
            (config.norm_offset, (config.attention_soft_cap, config.logit_soft_cap)),
            (0.0, caps),
            "{architecture}"
        );
    }
    let windowed = |file| gemma(8)(file).whole("gemma3.attention.sliding_window", 32);
    let config = settings("gemma3", windowed).unwrap();
    let windows: Vec<_> = config.kind_of.iter().map(|kind| config.kinds[*kind].window).collect();
    assert_eq!(windows, [Some(32), Some(32), Some(32), Some(32), Some(32), None, Some(32), Some(32)]);

    let config = settings("smollm3", plain).unwrap();
    let rotates = (0..8).map(|layer| config.rope(layer).unwrap().inverse_frequencies[0] > 0.0);
    assert_eq!(rotates.collect::<Vec<_>>(), [true, true, true, false, true, true, true, false]);

    let partial =
        |file: GgufWriter| file.whole("phi3.rope.dimension_count", 18).whole("phi3.attention.sliding_window", 0);
    assert_eq!(settings("phi3", partial).unwrap().rotated, 18);

    let windowed = |file: GgufWriter| file.whole("llama.attention.sliding_window", 32);
    let config = settings("llama", windowed).unwrap();
    assert_eq!((config.family, config.kinds[0].window), (Family::Mistral, Some(32)));
    let experts = |file: GgufWriter| file.whole("llama.expert_count", 4).whole("llama.expert_used_count", 2);
    assert_eq!(settings("llama", experts).unwrap().family, Family::Mixtral);

    let granite = settings("granite", |file| file.real("granite.logit_scale", 8.0)).unwrap();
    assert_eq!((granite.logit_scale, granite.attention_scale), (0.125, f64::powf(24.0, -0.5) as f32));

    let unrotated = |file: GgufWriter| file.flag("granite.rope.scaling.finetuned", false);
    assert!(settings("granite", unrotated).is_err());
    for architecture in ["qwen2", "qwen3", "olmo2"] {
        let windowed = |file: GgufWriter| file.whole(&format!("{architecture}.attention.sliding_window"), 32);
        assert!(settings(architecture, windowed).is_err(), "{architecture}");
    }
    let half = |file: GgufWriter| file.tensor(LONG_FACTORS, WeightType::F32, &[12], &[1.0; 12]);
    assert!(settings("phi3", half).is_err());
}

/// The smallest encoder.
fn encoder() -> GgufWriter {
    let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁a", "a", "▁live", "s"];
    let mut file = GgufWriter::new()
        .text("general.architecture", "bert")
        .whole("bert.context_length", 12)
        .whole("bert.embedding_length", 8)
        .whole("bert.block_count", 1)
        .whole("bert.feed_forward_length", 6)
        .whole("bert.attention.head_count", 2)
        .real("bert.attention.layer_norm_epsilon", 1e-5)
        .flag("bert.attention.causal", false)
        .whole("bert.pooling_type", 1)
        .text("tokenizer.ggml.model", "bert")
        .texts("tokenizer.ggml.tokens", &tokens)
        .wholes("tokenizer.ggml.token_type", &[3, 3, 3, 3, 1, 1, 1, 1]);
    for (name, rows, columns) in [
        ("token_embd", 8, 8),
        ("position_embd", 12, 8),
        ("token_types", 2, 8),
        ("blk.0.attn_q", 8, 8),
        ("blk.0.attn_k", 8, 8),
        ("blk.0.attn_v", 8, 8),
        ("blk.0.attn_output", 8, 8),
        ("blk.0.ffn_up", 6, 8),
        ("blk.0.ffn_down", 8, 6),
    ] {
        // No two rows point the same way.
        let numbers: Vec<f32> = (0..rows * columns).map(|at| (at as f32 * 0.7).sin()).collect();
        file = file.tensor(&format!("{name}.weight"), WeightType::F32, &[rows, columns], &numbers);
        if name.starts_with("blk") {
            file = file.tensor(&format!("{name}.bias"), WeightType::F32, &[rows], &vec![0.5; rows]);
        }
    }
    for name in ["token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"] {
        for (part, number) in [("weight", 1.0), ("bias", 0.1)] {
            file = file.tensor(&format!("{name}.{part}"), WeightType::F32, &[8], &[number; 8]);
        }
    }
    file
}

fn load_encoder(file: &GgufWriter) -> Result<Encoder> {
    Encoder::load(&open(file)?, Reference, EncoderOptions::default())
}

fn vectors(file: &GgufWriter, texts: &[&str]) -> Vec<Encoded> {
    futures_lite::future::block_on(load_encoder(file).unwrap().encode(texts, Purpose::Plain)).unwrap()
}

#[test]
fn an_encoder_is_what_its_file_says_and_no_language_model() {
    let gguf = open(&encoder()).unwrap();
    assert!(gguf.is_encoder() && !open(&file()).unwrap().is_encoder());
    let loaded = load_encoder(&encoder()).unwrap();
    assert_eq!((loaded.dimensions(), loaded.max_tokens()), (8, 12));
    let found = vectors(&encoder(), &["a", "A lives a", "á"]);
    assert_eq!(found.iter().map(|found| found.tokens).collect::<Vec<_>>(), [3, 6, 3]);
    assert_eq!(found[0].vector, found[2].vector, "accents are taken away");
    assert_ne!(found[0].vector, found[1].vector);
    for Encoded { vector, .. } in &found {
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
    }
    let first = vectors(&encoder().whole("bert.pooling_type", 2), &["a lives"]);
    assert_ne!(first, vectors(&encoder(), &["a lives"]));

    let error = Config::parse(&gguf).unwrap_err().to_string();
    assert!(error.contains("demo.gguf") && error.contains("bert"), "{error}");
    let error = load_encoder(&file()).unwrap_err().to_string();
    assert!(error.contains("demo.gguf") && error.contains("model_type llama"), "{error}");
}

#[test]
fn words_keep_their_case_and_accents_where_an_encoders_file_says_so() {
    let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁a", "▁A", "▁á", "▁Á"];
    let with = |lowercase: bool, strips: bool| {
        let file = encoder().texts("tokenizer.ggml.tokens", &tokens);
        let file = file.flag("tokenizer.ggml.normalizer.lowercase", lowercase);
        vectors(&file.flag("tokenizer.ggml.normalizer.strip_accents", strips), &["a", "A", "á", "Á"])
    };
    let same = |found: &[Encoded], one: usize, other: usize| found[one].vector == found[other].vector;
    let found = with(false, false);
    assert!((1..4).all(|other| !same(&found, 0, other)));
    let found = with(true, false);
    assert!(same(&found, 0, 1) && same(&found, 2, 3) && !same(&found, 0, 2));
    let found = with(false, true);
    assert!(same(&found, 0, 2) && same(&found, 1, 3) && !same(&found, 0, 1));
}

#[test]
fn the_tokens_around_a_text_are_those_of_their_keys_or_of_their_names() {
    // Of files that have no names for them, and of old files that do not say which tokens are control tokens.
    let renamed = ["<pad>", "<unk>", "<s>", "</s>", "▁a", "a", "▁live", "s"];
    let keyed = encoder().texts("tokenizer.ggml.tokens", &renamed);
    assert!(load_encoder(&keyed).unwrap_err().to_string().contains("[CLS]"));
    let keyed = keyed.whole("tokenizer.ggml.bos_token_id", 2).whole("tokenizer.ggml.eos_token_id", 3);
    assert!(load_encoder(&keyed).unwrap_err().to_string().contains("[UNK]"));
    let keyed = keyed.whole("tokenizer.ggml.unknown_token_id", 1);
    let texts = ["a", "lives", "b", ""];
    assert_eq!(vectors(&keyed, &texts), vectors(&encoder(), &texts));
    assert_eq!(vectors(&encoder().without("tokenizer.ggml.token_type"), &texts), vectors(&encoder(), &texts));
    assert_ne!(vectors(&keyed.whole("tokenizer.ggml.cls_token_id", 4), &texts), vectors(&encoder(), &texts));
}

#[test]
fn encoders_that_would_be_computed_wrongly_are_refused_by_name() {
    let number = |key: &'static str, value| move |file: GgufWriter| file.whole(key, value);
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(number("bert.pooling_type", 3)), "bert.pooling_type 3 (last)"),
        (Box::new(number("bert.pooling_type", 4)), "bert.pooling_type 4 (rank)"),
        (Box::new(number("bert.pooling_type", 9)), "bert.pooling_type 9 (unknown)"),
        (Box::new(number("bert.pooling_type", 0)), "how tokens become one vector"),
        (Box::new(|file| file.without("bert.pooling_type")), "how tokens become one vector"),
        (Box::new(|file| file.flag("bert.attention.causal", true)), "bert.attention.causal true"),
        (Box::new(|file| file.real("bert.attention.max_alibi_bias", 8.0)), "bert.attention.max_alibi_bias 8"),
        (Box::new(|file| file.text("bert.rope.scaling.type", "yarn")), "bert.rope.scaling.type yarn"),
        (Box::new(number("bert.attention.head_count", 3)), "bert.attention.head_count"),
        (Box::new(number("bert.embedding_length", 0)), "bert.embedding_length is 0"),
        (Box::new(number("bert.block_count", 2)), "tensor blk.1.attn_q.weight is missing"),
        (Box::new(number("bert.context_length", 13)), "position_embd.weight has shape [12, 8]"),
        (Box::new(number("bert.feed_forward_length", 7)), "blk.0.ffn_up.weight has shape [6, 8]"),
        (Box::new(number("tokenizer.ggml.cls_token_id", 8)), "tokenizer.ggml.cls_token_id is 8"),
        (Box::new(|file| file.text("tokenizer.ggml.model", "t5")), "tokenizer.ggml.model t5"),
        (Box::new(|file| file.without("tokenizer.ggml.tokens")), "tokenizer.ggml.tokens is missing"),
        (Box::new(|file| file.texts("tokenizer.ggml.tokens", &["a", "[CLS]", "a"])), "\"a\" twice, as 0 and as 2"),
        (Box::new(|file| file.texts("tokenizer.ggml.tokens", &[""; 9])), "has 9 entries"),
        (Box::new(|file| file.without_tensor("token_embd.weight")), "token_embd.weight is missing"),
        (Box::new(|file| file.without_tensor("blk.0.attn_q.bias")), "tensor blk.0.attn_q.bias is missing"),
        (Box::new(|file| file.tensor("cls.weight", WeightType::F32, &[8, 8], &[0.0; 64])), "tensor cls.weight"),
        (Box::new(|file| file.tensor(ROPE_FACTORS, WeightType::F32, &[2], &[1.0; 2])), "tensor rope_freqs.weight"),
        (Box::new(|file| file.raw_tensor("blk.0.ffn_up.weight", 24, &[6, 8], vec![0; 48])), "in I8"),
    ];
    for (change, expected) in cases {
        let error = load_encoder(&change(encoder())).expect_err(expected);
        assert!(matches!(error, Error::BadModel { .. } | Error::UnsupportedModel { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains(expected) && error.contains("demo.gguf"), "{expected}: {error}");
    }
}

/// A file with all that a model has, and a short header.
static SMALL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let tiny = wide(WeightType::Q8_0);
    let tokens = ["<s>", "a", "b", "ab", "Ġ"];
    tiny.text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "llama-bpe")
        .texts("tokenizer.ggml.tokens", &tokens)
        .wholes("tokenizer.ggml.token_type", &[3, 1, 1, 1, 1])
        .texts("tokenizer.ggml.merges", &["a b"])
        .text("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}<s>{% endfor %}")
        .bytes()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_damage_to_a_file_panics(at in 0usize..2400, bytes: [u8; 8], len in 1usize..9, cut in prop::option::of(0usize..3000)) {
        let mut file = SMALL.clone();
        file[at..at + len].copy_from_slice(&bytes[..len]);
        file.truncate(cut.unwrap_or(usize::MAX));
        if let Ok(gguf) = Gguf::open("small.gguf", file) {
            let config = Config::parse(&gguf).unwrap();
            if let Ok(weights) = Weights::open(&gguf, &config) {
                prop_assert!(weights.layers.iter().all(|layer| layer.q.is_complete() && layer.k.is_complete()));
                weights.fingerprint(&config, "f32", Dtype::F16);
            }
            let _ = HfChat::open(&gguf, &config);
        }
    }

    #[test]
    fn no_damage_to_an_encoders_file_panics(at in 0usize..2200, bytes: [u8; 8], len in 1usize..9, cut in prop::option::of(0usize..3000)) {
        let mut file = encoder().bytes();
        file[at..at + len].copy_from_slice(&bytes[..len]);
        file.truncate(cut.unwrap_or(usize::MAX));
        if let Ok(gguf) = Gguf::open("small.gguf", file) {
            let options = EncoderOptions::default().max_tokens(12);
            if let Ok(encoder) = Encoder::load(&gguf, Reference, options) {
                let _ = futures_lite::future::block_on(encoder.encode(&["a lives", ""], Purpose::Plain));
            }
        }
    }
}
