//! A model's chat template, rendered in a sandbox.
//!
//! Templates are programs that come with a model, so they are run with a bound on their steps and on recursion, and
//! reach nothing but the conversation. What they cannot be kept from is building a long string in few steps.

use minijinja::{Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::transformer::ModelSource;
use crate::transformer::settings::{Settings, bad_model};
use crate::{Error, Result};

const JINJA: &str = "chat_template.jinja";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Instructions that one rendering may take: the longest templates in use take some thousands.
const STEPS: u64 = 500_000;
const RECURSION: usize = 100;
const MAX_SOURCE: usize = 1 << 20;

/// A chat template and the file that it came from.
pub(super) struct Template {
    environment: Environment<'static>,
    file: &'static str,
    special: [(&'static str, Option<String>); 4],
    names_memories: bool,
}

impl Template {
    /// The template in `chat_template.jinja`, or else the one in `tokenizer_config.json`.
    pub(super) fn open(source: &dyn ModelSource, settings: Option<&Settings<'_>>) -> Result<Self> {
        let (file, text) = match source.file(JINJA) {
            Some(bytes) => {
                let text = std::str::from_utf8(bytes).map_err(|_| bad_model(JINJA, "it is not UTF-8"))?;
                (JINJA, text.to_owned())
            }
            None => (TOKENIZER_CONFIG, embedded(settings)?),
        };
        if text.len() > MAX_SOURCE {
            return Err(bad_model(file, format!("the chat template has {} bytes of {MAX_SOURCE} at most", text.len())));
        }
        let names_memories = text.contains("'memory'") || text.contains("\"memory\"");
        let special = ["bos_token", "eos_token", "unk_token", "pad_token"].map(|key| (key, special(settings, key)));
        let mut environment = environment();
        let added = environment.add_template_owned("chat", text);
        added.map_err(|error| bad_model(file, format!("the chat template is no template: {error}")))?;
        Ok(Self { environment, file, special, names_memories })
    }

    /// The name of its file.
    pub(super) fn file(&self) -> &'static str {
        self.file
    }

    /// Whether the template has words for messages of the role `memory`.
    pub(super) fn names_memories(&self) -> bool {
        self.names_memories
    }

    /// A conversation of these messages, each a role and a text, up to the answer that is to come.
    pub(super) fn render(&self, messages: &[(&str, String)]) -> Result<String> {
        let messages: Vec<Value> =
            messages.iter().map(|(role, content)| context! { role => role, content => content }).collect();
        let special = Value::from_iter(self.special.iter().filter_map(|(key, text)| Some((*key, text.as_ref()?))));
        let conversation = context! {
            messages,
            add_generation_prompt => true,
            enable_thinking => false,
            tools => Value::from(()),
            documents => Value::from(()),
            ..special
        };
        let rendered = self.environment.get_template("chat").and_then(|template| template.render(conversation));
        rendered.map_err(|error| self.bad(error.to_string()))
    }

    /// [`Error::BadModel`] about this template.
    pub(super) fn bad(&self, reason: impl AsRef<str>) -> Error {
        bad_model(self.file, format!("the chat template fails: {}", reason.as_ref()))
    }
}

/// What the templates of Hugging Face models expect around them, less `strftime_now`: a prompt that changes with the
/// date would make every stored memory useless the next day. Templates that ask for it have a fixed date to fall back on.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(STEPS));
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment
}

/// The template in `tokenizer_config.json`: a string, or the default one of a named list.
fn embedded(settings: Option<&Settings<'_>>) -> Result<String> {
    let missing = || bad_model(TOKENIZER_CONFIG, format!("there is no chat_template in it, and no {JINJA}"));
    let settings = settings.ok_or_else(missing)?;
    let value = settings.get("chat_template").ok_or_else(missing)?;
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let named = |entry: &&serde_json::Value| entry["name"] == "default";
    let default = settings.list("chat_template")?.iter().find(named).and_then(|entry| entry["template"].as_str());
    default.map(str::to_owned).ok_or_else(|| bad_model(TOKENIZER_CONFIG, "chat_template has no default template"))
}

/// A special token's text: a string, or an object that holds it.
fn special(settings: Option<&Settings<'_>>, key: &str) -> Option<String> {
    let value = settings?.get(key)?;
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}
