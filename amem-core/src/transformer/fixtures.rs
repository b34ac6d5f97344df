//! Models for tests: the demo model, and variations of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A model whose files a test may change.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

macro_rules! demo_file {
    ($name:literal) => {
        ($name.to_owned(), include_bytes!(concat!("../../../examples/demo-model/model/", $name)).to_vec())
    };
}

/// The demo model.
pub(super) fn demo() -> Files {
    Files::from([
        demo_file!("config.json"),
        demo_file!("model.safetensors"),
        demo_file!("tokenizer.json"),
        demo_file!("tokenizer_config.json"),
    ])
}

/// The demo model with these settings in `config.json`; `null` takes one away.
pub(super) fn demo_with(settings: Value) -> Files {
    let mut files = demo();
    let mut config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
    for (key, value) in settings.as_object().unwrap() {
        config[key] = value.clone();
    }
    files.insert("config.json".into(), serde_json::to_vec(&config).unwrap());
    files
}

/// A model that can only talk: this chat template, and this tokenizer with these special tokens.
pub(super) fn talker(template: &str, special: &[&str], mut tokenizer: Value) -> Files {
    let mut files = demo_with(json!({ "eos_token_id": null }));
    files.insert("tokenizer_config.json".into(), serde_json::to_vec(&json!({ "chat_template": template })).unwrap());
    let first = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let added = special.iter().zip(first..).map(|(content, new)| {
        let id = tokenizer["model"]["vocab"].get(content).cloned().unwrap_or(json!(new));
        added_token(&id, content)
    });
    tokenizer["added_tokens"] = added.collect::<Value>();
    files.insert("tokenizer.json".into(), serde_json::to_vec(&tokenizer).unwrap());
    files
}

/// An entry of a tokenizer's list of special tokens.
pub(super) fn added_token(id: &Value, content: &str) -> Value {
    json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false })
}

/// A byte-level tokenizer whose tokens are single bytes, as of GPT-2 before any merge.
pub(super) fn byte_level() -> Value {
    let mut letters: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    letters.sort_unstable();
    let vocabulary: serde_json::Map<String, Value> =
        letters.iter().enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({ "version": "1.0", "pre_tokenizer": level, "decoder": level,
            "model": { "type": "BPE", "vocab": vocabulary, "merges": [] } })
}

/// A tokenizer in the manner of sentencepiece: `▁` for spaces and one of them in front of every text, bytes for the
/// characters that it does not know. Its special tokens stand in its vocabulary.
pub(super) fn sentence_pieces() -> Value {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>", "▁", "▁a", "▁b"].map(str::to_owned).to_vec();
    pieces.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    pieces.extend((b'!'..=b'~').map(|letter| char::from(letter).to_string()));
    let vocabulary: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), json!(id))).collect();
    json!({
        "version": "1.0",
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" } ] },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] },
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                   "vocab": vocabulary, "merges": ["▁ a", "▁ b"] }
    })
}
