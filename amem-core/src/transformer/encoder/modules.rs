//! What is done around an encoder: the files that sentence-transformers writes beside it.

use serde_json::Value;

use crate::Result;
use crate::transformer::ModelSource;
use crate::transformer::config::unsupported;
use crate::transformer::settings::{Settings, bad_model, shown};

const MODULES: &str = "modules.json";
const TRANSFORMER: &str = "sentence_bert_config.json";
const PROMPTS: &str = "config_sentence_transformers.json";
const TOKENIZER: &str = "tokenizer_config.json";
/// Modules that are looked at, at most.
const MAX_MODULES: usize = 16;
/// Bytes of a prompt at most.
const MAX_PROMPT: usize = 4096;

/// How the hidden states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// Their mean.
    Mean = 0,
    /// That of the first token, `[CLS]`.
    Cls = 1,
}

/// What stands before a text of a kind, which an encoder was trained with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Prompts {
    pub(super) query: String,
    pub(super) passage: String,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Modules {
    pub(super) pooling: Pooling,
    /// Whether vectors are made one long.
    pub(super) normalized: bool,
    /// Tokens that a text is cut to, if the files say so.
    pub(super) max_tokens: Option<usize>,
    /// Whether texts are written in lower case, whatever the tokenizer does.
    pub(super) lower_case: bool,
    pub(super) prompts: Prompts,
}

impl Modules {
    /// Reads the files, for vectors of so many numbers. A pooling that is given counts for more than theirs.
    pub(super) fn read(source: &dyn ModelSource, hidden: usize, pooling: Option<Pooling>) -> Result<Self> {
        let (found, normalized) = match source.file(MODULES) {
            Some(bytes) => read_modules(source, bytes, hidden, pooling.is_none())?,
            None => (None, false),
        };
        let Some(pooling) = pooling.or(found) else {
            let reason = "it is missing, so nothing says how tokens become one vector: add the files that \
                          sentence-transformers writes, or say which pooling the encoder was trained with";
            return Err(bad_model(MODULES, reason));
        };
        let transformer = Settings::read(source, TRANSFORMER)?;
        let transformer = transformer.as_ref();
        let of_transformer = transformer.map(|file| file.whole("max_seq_length", 1..=usize::MAX)).transpose()?;
        let max_tokens = match of_transformer.flatten() {
            Some(tokens) => Some(tokens),
            None => of_tokenizer(source)?,
        };
        let lower_case = transformer.map(|file| file.flag("do_lower_case")).transpose()?.unwrap_or(false);
        Ok(Self { pooling, normalized, max_tokens, lower_case, prompts: Prompts::read(source)? })
    }
}

/// The tokens that the tokenizer's settings allow a text. Who knows no bound writes an absurd number.
fn of_tokenizer(source: &dyn ModelSource) -> Result<Option<usize>> {
    let settings = Settings::read(source, TOKENIZER)?;
    let value = settings.as_ref().and_then(|settings| settings.get("model_max_length"));
    Ok(value.and_then(Value::as_u64).and_then(|tokens| usize::try_from(tokens).ok()).filter(|tokens| *tokens > 0))
}

/// What `modules.json` lists: how to pool, and whether to normalise.
fn read_modules(source: &dyn ModelSource, bytes: &[u8], hidden: usize, pools: bool) -> Result<(Option<Pooling>, bool)> {
    let list: Vec<Value> = serde_json::from_slice(bytes)
        .map_err(|error| bad_model(MODULES, format!("it is no list of modules in JSON: {error}")))?;
    if list.len() > MAX_MODULES {
        return Err(bad_model(MODULES, format!("it lists {} modules: at most {MAX_MODULES} are read", list.len())));
    }
    let (mut pooling, mut normalized) = (None, false);
    for (index, module) in list.iter().enumerate() {
        let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
        // `sentence_transformers.models.Pooling`, or another path in other versions.
        let kind = text("type").rsplit('.').next().unwrap_or_default();
        match (index, kind) {
            (0, "Transformer") if text("path").is_empty() => {}
            (_, "Pooling") if pooling.is_none() && !normalized && index > 0 => {
                pooling = Some(if pools { read_pooling(source, text("path"), hidden)? } else { Pooling::Mean });
            }
            (_, "Normalize") if pooling.is_some() => normalized = true,
            _ => {
                return unsupported(
                    format!("module {index} of {MODULES}, of type {:?}", shown(kind)),
                    "a Transformer in the model's directory, a Pooling and perhaps a Normalize are, in this order",
                );
            }
        }
    }
    Ok((pooling.filter(|_| pools), normalized))
}

fn read_pooling(source: &dyn ModelSource, folder: &str, hidden: usize) -> Result<Pooling> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
    if folder.is_empty() || folder.len() > 64 || !folder.chars().all(plain) {
        let reason = format!("path {:?} of the Pooling must be the plain name of a folder", shown(folder));
        return Err(bad_model(MODULES, reason));
    }
    let name = format!("{folder}/config.json");
    let file = Settings::read(source, &name)?.ok_or_else(|| bad_model(&name, "it is missing"))?;
    for key in ["word_embedding_dimension", "embedding_dimension"] {
        if let Some(found) = file.whole(key, 1..=usize::MAX)?.filter(|found| *found != hidden) {
            return Err(bad_model(&name, format!("{key} is {found}: the model's hidden_size is {hidden}")));
        }
    }
    if file.get("include_prompt").is_some() && !file.flag("include_prompt")? {
        return unsupported(format!("include_prompt false in {name}"), "pooling over all tokens is");
    }
    const MODES: [(&str, &str); 6] = [
        ("cls", "pooling_mode_cls_token"),
        ("mean", "pooling_mode_mean_tokens"),
        ("max", "pooling_mode_max_tokens"),
        ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
        ("weightedmean", "pooling_mode_weightedmean_tokens"),
        ("lasttoken", "pooling_mode_lasttoken"),
    ];
    let mut modes: Vec<String> = Vec::new();
    match file.get("pooling_mode") {
        Some(Value::String(mode)) => modes.push(shown(mode)),
        Some(value) => {
            let list = value.as_array().filter(|list| list.len() <= MODES.len());
            let list =
                list.ok_or_else(|| file.wrong("pooling_mode", value, "the name of a mode, or a list of them"))?;
            modes.extend(list.iter().map(|mode| shown(mode.as_str().unwrap_or_default())));
        }
        None => {
            for (mode, key) in MODES {
                if file.flag(key)? {
                    modes.push(mode.to_owned());
                }
            }
        }
    }
    match modes.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["mean"] => Ok(Pooling::Mean),
        ["cls"] => Ok(Pooling::Cls),
        [] => Err(bad_model(&name, "it names no pooling mode")),
        others => unsupported(format!("pooling by {} in {name}", others.join(" and ")), "pooling by mean or cls is"),
    }
}

impl Prompts {
    fn read(source: &dyn ModelSource) -> Result<Self> {
        let Some(file) = Settings::read(source, PROMPTS)? else { return Ok(Self::default()) };
        let Some(prompts) = file.object("prompts")? else { return Ok(Self::default()) };
        let named = |names: &[&str]| {
            let mut found = Ok(None);
            for name in names {
                if matches!(found, Ok(None)) {
                    found = prompts.text(name).and_then(|prompt| prompt.map(checked_prompt).transpose());
                }
            }
            found
        };
        let default = match file.text("default_prompt_name")? {
            Some(name) => named(&[name])?.unwrap_or_default(),
            None => String::new(),
        };
        Ok(Self {
            query: named(&["query"])?.unwrap_or_else(|| default.clone()),
            passage: named(&["document", "passage", "corpus"])?.unwrap_or(default),
        })
    }
}

/// A prompt that is not too long.
pub(super) fn checked_prompt(prompt: &str) -> Result<String> {
    if prompt.len() > MAX_PROMPT {
        return Err(bad_model(PROMPTS, format!("a prompt has {} bytes: at most {MAX_PROMPT} are", prompt.len())));
    }
    Ok(prompt.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::Error;

    type Files = BTreeMap<String, Vec<u8>>;

    fn files(all: &[(&str, Value)]) -> Files {
        all.iter().map(|(name, value)| ((*name).to_owned(), value.to_string().into_bytes())).collect()
    }

    fn modules(types: &[&str]) -> Value {
        let module = |(index, kind): (usize, &&str)| {
            let path = if index == 0 { String::new() } else { format!("{index}_{kind}") };
            json!({ "idx": index, "name": index.to_string(), "path": path,
                "type": format!("sentence_transformers.models.{kind}") })
        };
        types.iter().enumerate().map(module).collect()
    }

    fn sentence_bert(pooling: Value) -> Files {
        files(&[(MODULES, modules(&["Transformer", "Pooling", "Normalize"])), ("1_Pooling/config.json", pooling)])
    }

    #[test]
    fn modules_say_how_to_pool_in_either_spelling() {
        for (pooling, expected) in [
            (json!({ "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false }), Pooling::Mean),
            (json!({ "word_embedding_dimension": 8, "pooling_mode_cls_token": true }), Pooling::Cls),
            (json!({ "embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": true }), Pooling::Cls),
            (json!({ "pooling_mode": ["mean"] }), Pooling::Mean),
        ] {
            let found = Modules::read(&sentence_bert(pooling), 8, None).unwrap();
            assert_eq!((found.pooling, found.normalized), (expected, true));
        }
        let plain = files(&[
            (MODULES, modules(&["Transformer", "Pooling"])),
            ("1_Pooling/config.json", json!({ "pooling_mode": "mean" })),
        ]);
        assert!(!Modules::read(&plain, 8, None).unwrap().normalized);
    }

    #[test]
    fn other_ways_to_pool_and_other_modules_are_refused_by_name() {
        for (pooling, part) in [
            (json!({ "pooling_mode_max_tokens": true }), "max"),
            (json!({ "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true }), "cls and mean"),
            (json!({ "pooling_mode": "lasttoken" }), "lasttoken"),
            (json!({ "pooling_mode": "mean", "include_prompt": false }), "include_prompt"),
        ] {
            let found = Modules::read(&sentence_bert(pooling), 8, None).unwrap_err();
            assert!(matches!(found, Error::UnsupportedModel { .. }) && found.to_string().contains(part), "{found}");
        }
        for types in [
            &["Transformer", "Pooling", "Dense"][..],
            &["Transformer", "Pooling", "Pooling"],
            &["Transformer", "Normalize", "Pooling"],
            &["Pooling"],
            &["CLIPModel"],
        ] {
            let mut files = sentence_bert(json!({ "pooling_mode": "mean" }));
            files.insert(MODULES.to_owned(), modules(types).to_string().into_bytes());
            assert!(matches!(Modules::read(&files, 8, None), Err(Error::UnsupportedModel { .. })), "{types:?}");
        }
    }

    #[test]
    fn damaged_modules_are_errors() {
        for pooling in [
            json!({}),
            json!({ "word_embedding_dimension": 9, "pooling_mode": "mean" }),
            json!({ "pooling_mode": 7 }),
            json!({ "pooling_mode_mean_tokens": "yes" }),
            json!([]),
        ] {
            assert!(matches!(Modules::read(&sentence_bert(pooling), 8, None), Err(Error::BadModel { .. })));
        }
        let pooling = |path: &str| json!([{ "type": "Transformer", "path": "" }, { "type": "Pooling", "path": path }]);
        for list in [
            json!({}),
            json!("Transformer"),
            pooling(""),
            pooling("../1_Pooling"),
            pooling("/etc"),
            pooling("2_Pooling"),
            vec![json!({ "type": "Transformer" }); 1000].into(),
        ] {
            let mut files = sentence_bert(json!({ "pooling_mode": "mean" }));
            files.insert(MODULES.to_owned(), list.to_string().into_bytes());
            assert!(matches!(Modules::read(&files, 8, None), Err(Error::BadModel { .. })), "{list}");
        }
        assert!(matches!(Modules::read(&files(&[]), 8, None), Err(Error::BadModel { .. })));
    }

    #[test]
    fn a_pooling_that_is_given_counts_for_more_than_the_files() {
        let found = Modules::read(&sentence_bert(json!({ "pooling_mode": "mean" })), 8, Some(Pooling::Cls)).unwrap();
        assert_eq!((found.pooling, found.normalized), (Pooling::Cls, true));
        assert_eq!(Modules::read(&files(&[]), 8, Some(Pooling::Cls)).unwrap().pooling, Pooling::Cls);
    }

    #[test]
    fn prompts_are_those_of_their_names_or_the_default() {
        let read = |config: Value| Prompts::read(&files(&[(PROMPTS, config)])).unwrap();
        let both = |query: &str, passage: &str| Prompts { query: query.to_owned(), passage: passage.to_owned() };
        assert_eq!(read(json!({ "prompts": { "query": "q: ", "passage": "p: " } })), both("q: ", "p: "));
        assert_eq!(
            read(json!({ "prompts": { "query": "q: ", "document": "d: ", "passage": "p: " } })),
            both("q: ", "d: ")
        );
        assert_eq!(read(json!({ "prompts": { "query": "q: " } })), both("q: ", ""));
        let with_default = json!({ "prompts": { "query": "", "all": "a: " }, "default_prompt_name": "all" });
        assert_eq!(read(with_default), both("", "a: "));
        assert_eq!(read(json!({ "prompts": { "query": null }, "default_prompt_name": null })), both("", ""));
        assert_eq!(read(json!({})), both("", ""));
        for wrong in [
            json!({ "prompts": { "query": 1 } }),
            json!({ "prompts": [] }),
            json!({ "prompts": { "query": "a".repeat(5000) } }),
        ] {
            assert!(matches!(Prompts::read(&files(&[(PROMPTS, wrong)])), Err(Error::BadModel { .. })));
        }
    }

    #[test]
    fn texts_are_cut_as_the_files_say() {
        let mut all = sentence_bert(json!({ "pooling_mode": "mean" }));
        let mut read = |name: &str, value: Value| {
            all.insert(name.to_owned(), value.to_string().into_bytes());
            Modules::read(&all, 8, None).map(|modules| (modules.max_tokens, modules.lower_case))
        };
        assert_eq!(read("other.json", json!({})).unwrap(), (None, false));
        assert_eq!(read(TOKENIZER, json!({ "model_max_length": 1e30 })).unwrap(), (None, false));
        assert_eq!(read(TOKENIZER, json!({ "model_max_length": 512 })).unwrap(), (Some(512), false));
        assert_eq!(
            read(TRANSFORMER, json!({ "max_seq_length": 256, "do_lower_case": true })).unwrap(),
            (Some(256), true)
        );
        assert!(read(TRANSFORMER, json!({ "max_seq_length": 0 })).is_err());
    }
}
