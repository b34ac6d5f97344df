//! A GGUF file's tokenizer and chat template, in the words of Hugging Face's files.
//!
//! Two kinds of tokenizers are read: `gpt2`, BPE over bytes with its list of merges, and `llama`, sentencepiece's BPE,
//! whose merges follow from the scores of its pieces; and of encoders `bert`, word pieces. How a text is cut before BPE is not in the file: it has a name,
//! `tokenizer.ggml.pre`, which stands for what the makers' own tokenizer does.
//!
//! `add_bos_token` is not looked at: as with a model's directory, a conversation begins with what its template writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::header::Metadata;
use crate::transformer::config::unsupported;
use crate::transformer::settings::{bad_model, shown};
use crate::{Error, Result};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const ADD_SPACE: &str = "tokenizer.ggml.add_space_prefix";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Tokens that have a meaning of their own: `tokenizer_config.json`'s key, and GGUF's.
const SPECIAL: [(&str, &str); 4] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];
/// The keys of tokens that end a text.
const STOPS: [&str; 3] = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
/// Control tokens that end a text, whether a key says it or not: most files have a key for one of several. llama.cpp
/// knows them by their texts too.
const STOP_TEXTS: [&str; 10] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
];

/// The values of `tokenizer.ggml.token_type`.
mod token_type {
    pub(super) const UNKNOWN: u8 = 2;
    pub(super) const CONTROL: u8 = 3;
    pub(super) const USER_DEFINED: u8 = 4;
    pub(super) const UNUSED: u8 = 5;
    pub(super) const BYTE: u8 = 6;
}

/// Control tokens of Phi-3 that leave the white space behind them.
const STRIP_NOTHING: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// A piece of sentencepiece's has some tens of bytes. All ways to cut one in two are looked at.
const MAX_PIECE: usize = 512;
const MAX_TOKENS: usize = u32::MAX as usize;

/// What stands before and behind a text of an encoder, and for what is unknown: the keys of its id, of which the first that
/// there is counts, and its text, for files that have none of them.
const AROUND: [(&[&str], &str); 3] = [
    (&["tokenizer.ggml.cls_token_id", "tokenizer.ggml.bos_token_id"], "[CLS]"),
    (
        &["tokenizer.ggml.seperator_token_id", "tokenizer.ggml.separator_token_id", "tokenizer.ggml.eos_token_id"],
        "[SEP]",
    ),
    (&["tokenizer.ggml.unknown_token_id"], "[UNK]"),
];
/// BERT's control tokens. Old files do not say that they are.
const BERTS_OWN: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const LOWERCASE: &str = "tokenizer.ggml.normalizer.lowercase";
const STRIP_ACCENTS: &str = "tokenizer.ggml.normalizer.strip_accents";
/// Characters of a word that is cut into pieces, at most; a longer one is unknown. BERT's own bound, which no file has.
const MAX_WORD: usize = 100;

/// The tokens that end a text, by id.
pub(super) fn stops(metadata: &Metadata<'_>) -> Result<Vec<u32>> {
    let stated = STOPS.iter().map(|key| metadata.whole(key, 0..=MAX_TOKENS)).collect::<Result<Vec<_>>>()?;
    let tokens = metadata.texts(TOKENS)?.unwrap_or_default();
    let types = metadata.small_wholes(TYPES)?.unwrap_or_default();
    let ends = |(_, (text, kind)): &(usize, (&&str, &u8))| **kind == token_type::CONTROL && STOP_TEXTS.contains(text);
    let known = tokens.iter().zip(&types).enumerate().filter(ends).map(|(id, _)| id);
    let ids: BTreeSet<usize> = stated.into_iter().flatten().chain(known).collect();
    Ok(ids.into_iter().map(|id| id as u32).collect())
}

/// Checks that each token has a row in the embedding. It may have more rows, which nothing stands for.
pub(super) fn check_count(metadata: &Metadata<'_>, rows: usize) -> Result<()> {
    let found = metadata.texts(TOKENS)?.map_or(0, |tokens| tokens.len());
    if found > rows {
        let reason = format!("{TOKENS} has {found} entries, and tensor token_embd.weight {rows} rows");
        return Err(bad_model(metadata.file, reason));
    }
    Ok(())
}

/// The error for a token that stands under two ids.
fn twice(metadata: &Metadata<'_>, token: &str, first: usize, second: usize) -> Error {
    let token = shown(token);
    let reason = format!("{TOKENS} has {token:?} twice, as {first} and as {second}: convert the model anew");
    bad_model(metadata.file, reason)
}

/// `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`.
pub(super) fn files(metadata: &Metadata<'_>, strips: bool) -> Result<BTreeMap<String, Vec<u8>>> {
    let vocabulary = Vocabulary::read(metadata)?;
    let tokenizer = match metadata.word(MODEL)? {
        "gpt2" => vocabulary.byte_level(metadata)?,
        "llama" => vocabulary.sentence_pieces(metadata, strips)?,
        other => return unsupported(format!("{}: {MODEL} {}", metadata.file, shown(other)), "gpt2 and llama are"),
    };
    let json = |written: serde_json::Result<Vec<u8>>| {
        written.map_err(|error| bad_model(metadata.file, format!("its tokenizer cannot be written as JSON: {error}")))
    };
    let files = [
        ("tokenizer.json", json(serde_json::to_vec(&tokenizer))?),
        ("tokenizer_config.json", json(serde_json::to_vec(&vocabulary.settings(metadata)?))?),
        ("generation_config.json", json(serde_json::to_vec(&sampling(metadata)?))?),
    ];
    Ok(files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect())
}

/// `tokenizer.json` of an encoder with word pieces. Files have them as llama.cpp wants them: those that begin a word with
/// `▁`, the others without the `##` of Hugging Face.
pub(super) fn word_pieces(metadata: &Metadata<'_>) -> Result<Vec<u8>> {
    let model = metadata.word(MODEL)?;
    if model != "bert" {
        return unsupported(format!("{}: {MODEL} {} of an encoder", metadata.file, shown(model)), "bert is");
    }
    let tokens = metadata.texts(TOKENS)?.ok_or_else(|| metadata.missing(TOKENS))?;
    let types = metadata.small_wholes(TYPES)?.unwrap_or_default();
    let (mut ids, mut special) = (BTreeMap::new(), Vec::new());
    for (id, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
        let is_special = types.get(id) == Some(&token_type::CONTROL) || BERTS_OWN.contains(token);
        let piece = match token.strip_prefix('▁') {
            _ if is_special => (*token).to_owned(),
            Some(word) => word.to_owned(),
            None => format!("##{token}"),
        };
        if is_special {
            special.push(json!({ "id": id, "content": piece, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false }));
        }
        if let Some(first) = ids.insert(piece, id) {
            return Err(twice(metadata, token, first, id));
        }
    }
    let token = |(keys, text): (&[&str], &'static str)| {
        for key in keys {
            if let Some(id) = metadata.whole(key, 0..=MAX_TOKENS)? {
                let known = ids.iter().find(|(_, known)| **known == id).map(|(piece, id)| (piece.as_str(), *id));
                return known.ok_or_else(|| metadata.wrong(key, format!("the id of a token in {TOKENS}")));
            }
        }
        let known = ids.get(text).map(|id| (text, *id));
        known.ok_or_else(|| bad_model(metadata.file, format!("{TOKENS} has no {text}, and no key says which it is")))
    };
    let [begin, end, unknown] = AROUND.map(token);
    let ((begin, first), (end, last), (unknown, _)) = (begin?, end?, unknown?);
    let part = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let entry = |id: usize, token: &str| json!({ "id": token, "ids": [id], "tokens": [token] });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": true,
            "strip_accents": metadata.flag(STRIP_ACCENTS)?,
            "lowercase": metadata.flag(LOWERCASE)?.unwrap_or(true),
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [part(begin), { "Sequence": { "id": "A", "type_id": 0 } }, part(end)],
            "pair": [part(begin), { "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }, part(end)],
            "special_tokens": { begin: entry(first, begin), end: entry(last, end) },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": MAX_WORD,
            "vocab": ids,
        },
    });
    Ok(tokenizer.to_string().into_bytes())
}

/// `tokenizer.json`. What is large in it is borrowed: a vocabulary has hundreds of thousands of entries.
#[derive(Serialize)]
struct TokenizerFile<'a> {
    version: &'static str,
    added_tokens: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Bpe<'a>,
}

/// Its model.
#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    settings: Map<String, Value>,
    #[serde(serialize_with = "ids")]
    vocab: &'a [&'a str],
    merges: Vec<(&'a str, &'a str)>,
}

/// The tokens that texts can consist of, and their ids.
fn ids<S: Serializer>(tokens: &[&str], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer
        .collect_map(tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()).map(|(id, token)| (token, id)))
}

fn settings<const N: usize>(settings: [(&str, Value); N]) -> Map<String, Value> {
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The tokens, by id.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<u8>,
    ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Metadata<'a>) -> Result<Self> {
        let tokens = metadata.texts(TOKENS)?.ok_or_else(|| metadata.missing(TOKENS))?;
        let types = metadata.small_wholes(TYPES)?.ok_or_else(|| metadata.missing(TYPES))?;
        if types.len() != tokens.len() || tokens.is_empty() {
            return Err(metadata.wrong(TYPES, format!("as long as {TOKENS}, which has {} entries", tokens.len())));
        }
        let mut ids = HashMap::new();
        for (id, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
            if let Some(first) = ids.insert(*token, id) {
                return Err(twice(metadata, token, first, id));
            }
        }
        Ok(Self { tokens, types, ids })
    }

    fn is(&self, id: usize, kinds: &[u8]) -> bool {
        self.types.get(id).is_some_and(|kind| kinds.contains(kind))
    }

    /// Tokens that texts do not consist of: control tokens, and those that were added and are no control tokens.
    fn added(&self, strips: bool) -> Value {
        let entry = |(id, content): (usize, &&str)| {
            let special = self.is(id, &[token_type::CONTROL, token_type::UNKNOWN]);
            let strips = strips && self.is(id, &[token_type::CONTROL]) && !STRIP_NOTHING.contains(content);
            let added = special || self.is(id, &[token_type::USER_DEFINED]);
            (added && !content.is_empty()).then(|| {
                json!({ "id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
                        "rstrip": strips, "normalized": false })
            })
        };
        self.tokens.iter().enumerate().filter_map(entry).collect()
    }

    /// GPT-2's kind.
    fn byte_level(&'a self, metadata: &Metadata<'a>) -> Result<TokenizerFile<'a>> {
        let pre = metadata.word(PRE)?;
        let Some(pre) = PRE_TOKENIZERS.iter().find(|known| known.names.contains(&pre)) else {
            return unsupported(
                format!("{}: {PRE} {}", metadata.file, shown(pre)),
                "llama-bpe, qwen2, smollm, gpt-2, dbrx, tekken, gpt-4o, default and their like are",
            );
        };
        let add_space = metadata.flag(ADD_SPACE)?.unwrap_or(false);
        let Some(pre_tokenizer) = pre.cut.pre_tokenizer(add_space) else {
            return unsupported(
                format!("{}: {ADD_SPACE} with this {PRE}", metadata.file),
                "gpt-2 and smollm with it are",
            );
        };
        let merges = metadata.texts(MERGES)?.ok_or_else(|| metadata.missing(MERGES))?;
        let wrong = |merge: &str| {
            let merge = shown(merge);
            bad_model(metadata.file, format!("{MERGES} has {merge:?}: it must be two parts with a space between"))
        };
        let merges = merges.into_iter().map(|merge| {
            let parts = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
            parts.ok_or_else(|| wrong(merge))
        });
        let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        Ok(TokenizerFile {
            version: "1.0",
            added_tokens: self.added(false),
            normalizer: if pre.composes { json!({ "type": "NFC" }) } else { Value::Null },
            pre_tokenizer,
            decoder: level,
            model: Bpe {
                r#type: "BPE",
                settings: settings([("ignore_merges", json!(pre.ignores_merges))]),
                vocab: &self.tokens,
                merges: merges.collect::<Result<_>>()?,
            },
        })
    }

    /// Sentencepiece's kind: `▁` for spaces, one of them in front of every text, and bytes for characters that are no
    /// pieces.
    fn sentence_pieces(&'a self, metadata: &Metadata<'a>, strips: bool) -> Result<TokenizerFile<'a>> {
        let scores = metadata.reals(SCORES)?.ok_or_else(|| metadata.missing(SCORES))?;
        if scores.len() != self.tokens.len() {
            return Err(metadata.wrong(SCORES, format!("as long as {TOKENS}, which has {}", self.tokens.len())));
        }
        if let Some(piece) = self.tokens.iter().find(|piece| piece.len() > MAX_PIECE) {
            let reason = format!("{TOKENS} has a piece of {} bytes: {MAX_PIECE} is the most", piece.len());
            return Err(bad_model(metadata.file, reason));
        }
        let unknown = self.tokens.iter().enumerate().find(|(id, _)| self.is(*id, &[token_type::UNKNOWN]));
        let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
        let (mut normalizers, mut decoders) = (Vec::new(), vec![replace("▁", " ")]);
        decoders.extend([json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })]);
        if metadata.flag(ADD_SPACE)?.unwrap_or(true) {
            normalizers.push(json!({ "type": "Prepend", "prepend": "▁" }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        normalizers.push(replace(" ", "▁"));
        Ok(TokenizerFile {
            version: "1.0",
            added_tokens: self.added(strips),
            normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
            pre_tokenizer: Value::Null,
            decoder: json!({ "type": "Sequence", "decoders": decoders }),
            model: Bpe {
                r#type: "BPE",
                settings: settings([
                    ("unk_token", json!(unknown.map(|(_, token)| token))),
                    ("fuse_unk", json!(true)),
                    ("byte_fallback", json!(true)),
                ]),
                vocab: &self.tokens,
                merges: self.merges(&scores),
            },
        })
    }

    /// Sentencepiece joins the two neighbours whose joint piece scores best. Each way to cut a piece into two pieces is a
    /// merge, those of the best score first; of one score the longer left part goes first, as in Hugging Face's
    /// converter.
    fn merges(&'a self, scores: &[f32]) -> Vec<(&'a str, &'a str)> {
        let is_text =
            |id: usize| !self.is(id, &[token_type::CONTROL, token_type::UNKNOWN, token_type::UNUSED, token_type::BYTE]);
        let mut merges = Vec::new();
        for (id, (piece, score)) in self.tokens.iter().zip(scores).enumerate().filter(|(id, _)| is_text(*id)) {
            // Pieces that a user has added are never split, whatever their score.
            let score = if self.is(id, &[token_type::USER_DEFINED]) { f32::INFINITY } else { *score };
            let cuts = piece.char_indices().skip(1).filter_map(|(at, _)| {
                let (left, right) = piece.split_at(at);
                let ids = (*self.ids.get(left)?, *self.ids.get(right)?);
                (is_text(ids.0) && is_text(ids.1)).then_some((ids, left, right))
            });
            let mut cuts: Vec<_> = cuts.collect();
            cuts.sort_by_key(|(ids, ..)| *ids);
            merges.extend(cuts.into_iter().map(|(_, left, right)| (score, left, right)));
        }
        let length = |part: &str| std::cmp::Reverse(part.chars().count());
        merges.sort_by_cached_key(|(score, left, right)| (Descending(*score), length(left), length(right)));
        merges.into_iter().map(|(_, left, right)| (left, right)).collect()
    }

    fn settings(&self, metadata: &Metadata<'_>) -> Result<Value> {
        let mut settings = Map::new();
        if let Some(template) = metadata.text(TEMPLATE)? {
            settings.insert("chat_template".to_owned(), json!(template));
        }
        for (ours, theirs) in SPECIAL {
            let Some(id) = metadata.whole(theirs, 0..=MAX_TOKENS)? else { continue };
            if let Some(token) = self.tokens.get(id) {
                settings.insert(ours.to_owned(), json!(token));
            }
        }
        Ok(Value::Object(settings))
    }
}

/// Scores, the best first.
#[derive(PartialEq)]
struct Descending(f32);

impl Eq for Descending {}

impl PartialOrd for Descending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Descending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0)
    }
}

/// How the model's makers would draw tokens.
fn sampling(metadata: &Metadata<'_>) -> Result<Value> {
    let mut settings = Map::new();
    for (ours, theirs) in [("temperature", "temp"), ("top_p", "top_p"), ("min_p", "min_p")] {
        if let Some(number) = metadata.real(&format!("general.sampling.{theirs}"))? {
            settings.insert(ours.to_owned(), json!(number));
        }
    }
    if let Some(top_k) = metadata.whole("general.sampling.top_k", 0..=MAX_TOKENS)? {
        settings.insert("top_k".to_owned(), json!(top_k));
    }
    if !settings.is_empty() {
        settings.insert("do_sample".to_owned(), json!(true));
    }
    if let Some(penalty) = metadata.real("general.sampling.penalty_repeat")? {
        settings.insert("repetition_penalty".to_owned(), json!(penalty));
    }
    Ok(Value::Object(settings))
}

/// What a name of `tokenizer.ggml.pre` stands for.
struct PreTokenizer {
    names: &'static [&'static str],
    cut: Cut,
    /// A word that is a token as a whole is one, whatever the merges say.
    ignores_merges: bool,
    /// Characters are composed first (NFC). llama.cpp does not do it; the makers' tokenizers do.
    composes: bool,
}

/// How a text is cut into words.
enum Cut {
    /// As GPT-2 does it.
    Gpt2,
    /// Each digit apart, then as GPT-2.
    Digits,
    /// By patterns, one after the other: what matches is a word, and what is between matches as well.
    Patterns(&'static [&'static str]),
}

impl Cut {
    fn pre_tokenizer(&self, add_space: bool) -> Option<Value> {
        let level = |add_space: bool, use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": add_space, "trim_offsets": true, "use_regex": use_regex });
        let digits = json!({ "type": "Digits", "individual_digits": true });
        let steps = match self {
            Self::Gpt2 => vec![level(add_space, true)],
            // The space belongs in front of the text, not of each digit in it.
            Self::Digits if add_space => vec![level(true, true), digits],
            Self::Digits => vec![digits, level(false, true)],
            Self::Patterns(_) if add_space => return None,
            Self::Patterns(patterns) => {
                let split = |pattern: &&str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
                patterns.iter().map(split).chain([level(false, false)]).collect()
            }
        };
        Some(json!({ "type": "Sequence", "pretokenizers": steps }))
    }
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const PRE_TOKENIZERS: [PreTokenizer; 9] = [
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        cut: Cut::Patterns(&[LLAMA3]),
        ignores_merges: true,
        composes: false,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe"],
        cut: Cut::Patterns(&[LLAMA3]),
        ignores_merges: false,
        composes: false,
    },
    PreTokenizer { names: &["qwen2"], cut: Cut::Patterns(&[QWEN2]), ignores_merges: false, composes: true },
    PreTokenizer {
        names: &["deepseek-r1-qwen", "megrez"],
        cut: Cut::Patterns(&[QWEN2]),
        ignores_merges: false,
        composes: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        cut: Cut::Digits,
        ignores_merges: false,
        composes: false,
    },
    PreTokenizer {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"],
        cut: Cut::Gpt2,
        ignores_merges: false,
        composes: false,
    },
    PreTokenizer { names: &["tekken"], cut: Cut::Patterns(&[TEKKEN]), ignores_merges: true, composes: false },
    PreTokenizer { names: &["gpt-4o", "llama4"], cut: Cut::Patterns(&[O200K]), ignores_merges: false, composes: false },
    // llama.cpp's own, for tokenizers that nobody has named.
    PreTokenizer {
        names: &["default"],
        cut: Cut::Patterns(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        ignores_merges: false,
        composes: false,
    },
];
