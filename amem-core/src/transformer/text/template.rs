//! A model's chat template, rendered in a sandbox.
//!
//! Templates are programs that come with a model, so they are run with a bound on their steps and on recursion, and
//! reach nothing but the conversation. Widths are bounded; what they cannot be kept from is building a long string or list
//! in few steps.

use std::io::Write;

use minijinja::value::{Kwargs, Rest, StringInput};
use minijinja::{Environment, ErrorKind, State, Value, context, filters};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::transformer::ModelSource;
use crate::transformer::settings::{Settings, bad_model};
use crate::{Error, Result};

const JINJA: &str = "chat_template.jinja";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Instructions that one rendering may take: the longest templates in use take some thousands.
const STEPS: u64 = 500_000;
const RECURSION: usize = 100;
const MAX_SOURCE: usize = 1 << 20;
/// Columns that a template may fill with blanks at a time.
const MAX_WIDTH: usize = 999;
/// Around a text's place: a private-use character, which no template writes and no trimming removes.
const MARK: char = '\u{E000}';

/// A chat template and the file that it came from.
pub(super) struct Template {
    environment: Environment<'static>,
    file: &'static str,
    special: [(&'static str, Option<String>); 4],
    names_memories: bool,
    names_tools: bool,
}

/// A part of a rendering.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part<'r> {
    /// What the template writes.
    Written(&'r str),
    /// The place of a text that was rendered as a [`mark`].
    Text {
        /// The mark's number.
        index: usize,
        /// It stands within a JSON string.
        in_json: bool,
    },
}

/// What stands for a text while the template is rendered, so that its place is found again. It has a quotation mark in it,
/// which tells whether the template wrote it into a JSON string.
pub(super) fn mark(index: usize) -> String {
    format!("{MARK}\"{index}{MARK}")
}

/// A rendering before and after a mark.
pub(super) fn split_at<'r>(rendered: &'r str, mark: &str) -> Option<(&'r str, &'r str)> {
    rendered.split_once(mark).or_else(|| rendered.split_once(&mark.replace('"', "\\\"")))
}

/// A rendering, cut at its marks; `None` when a mark is broken.
pub(super) fn parts(rendered: &str) -> Option<Vec<Part<'_>>> {
    let part = |(i, piece): (usize, &'_ str)| {
        if i % 2 == 0 {
            return None;
        }
        let in_json = piece.starts_with('\\');
        let number = piece.strip_prefix(if in_json { "\\\"" } else { "\"" })?;
        Some((number.parse().ok()?, in_json))
    };
    let pieces = rendered.split(MARK).enumerate();
    let mut found = Vec::new();
    for (i, piece) in pieces {
        match part((i, piece)) {
            Some((index, in_json)) => found.push(Part::Text { index, in_json }),
            None if i % 2 == 0 => found.push(Part::Written(piece)),
            None => return None,
        }
    }
    // An even number of marks' ends leaves an odd number of pieces.
    (found.len() % 2 == 1).then_some(found)
}

/// A message as templates expect it.
pub(super) fn message(role: &str, content: &str) -> Value {
    context! { role => role, content => content }
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
        let names_tools = text.contains("tool");
        let special = ["bos_token", "eos_token", "unk_token", "pad_token"].map(|key| (key, special(settings, key)));
        let text = without_generation(text);
        let mut environment = environment();
        if text.contains(TODAY) && !text.contains("strftime_now is defined") {
            environment.add_function(TODAY, |format: String| on_a_fixed_day(&format));
        }
        let added = environment.add_template_owned("chat", text);
        added.map_err(|error| bad_model(file, format!("the chat template is no template: {error}")))?;
        Ok(Self { environment, file, special, names_memories, names_tools })
    }

    /// The name of its file.
    pub(super) fn file(&self) -> &'static str {
        self.file
    }

    /// Whether the template has words for messages of the role `memory`.
    pub(super) fn names_memories(&self) -> bool {
        self.names_memories
    }

    /// Whether the template has words for tools and their results.
    pub(super) fn names_tools(&self) -> bool {
        self.names_tools
    }

    /// A conversation of these messages, with these tools, up to the answer that is to come.
    pub(super) fn render(&self, messages: &[Value], tools: Option<&[Value]>) -> Result<String> {
        let special = Value::from_iter(self.special.iter().filter_map(|(key, text)| Some((*key, text.as_ref()?))));
        let conversation = context! {
            messages => messages,
            add_generation_prompt => true,
            enable_thinking => false,
            tools => tools,
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
/// date would make every stored memory useless the next day. Templates that ask whether it is there have a fixed date to
/// fall back on, and those that do not ask get [one](on_a_fixed_day).
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(STEPS));
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        if let ("format", Some(format)) = (method, value.as_str()) {
            check_widths(format)?;
        }
        unknown_method_callback(state, value, method, arguments)
    });
    environment.add_function("raise_exception", |reason: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("indent", indent);
    environment.add_filter("format", format);
    // They make room for as many parts as a template says. No model's template is known to use them.
    environment.remove_filter("batch");
    environment.remove_filter("slice");
    environment
}

/// minijinja's `indent`, which takes any width.
fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<Value, minijinja::Error> {
    let named = if width.is_none() { options.peek("width")? } else { None };
    if width.or(named).is_some_and(|width: usize| width > MAX_WIDTH) {
        return Err(too_wide());
    }
    filters::indent(text, width, first, blank, options)
}

/// minijinja's `format`, which takes any width.
fn format(state: &State<'_, '_>, format: &Value, values: Rest<Value>) -> Result<Value, minijinja::Error> {
    check_widths(format.as_str().unwrap_or_default())?;
    filters::format(state, format, values)
}

/// Refuses a format string, of either kind, with a width or a precision that is more than [`MAX_WIDTH`]: a number behind
/// `%`, its name and its flags, or in braces.
fn check_widths(format: &str) -> Result<(), minijinja::Error> {
    let mut rest = format;
    while let Some(at) = rest.find(['%', '{']) {
        let (mark, behind) = rest[at..].split_at(1);
        let spec = match mark {
            "%" => {
                let spec =
                    behind.strip_prefix('(').and_then(|named| named.split_once(')')).map_or(behind, |(_, spec)| spec);
                &spec[..spec.find(|c: char| !"-+ #0123456789.*".contains(c)).unwrap_or(spec.len())]
            }
            _ => behind.split('}').next().unwrap_or_default(),
        };
        let mut numbers = spec.split(|c: char| !c.is_ascii_digit());
        if numbers.any(|digits| digits.trim_start_matches('0').len() > 3) {
            return Err(too_wide());
        }
        // Two of them are one that is written.
        rest = behind.strip_prefix(mark).unwrap_or(behind);
    }
    Ok(())
}

fn too_wide() -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, format!("a width is more than {MAX_WIDTH}"))
}

/// The function of templates that says what day it is.
const TODAY: &str = "strftime_now";

/// What `strftime_now` says in templates that call it without asking for it: the first day of 2025, a Wednesday, whenever
/// that is.
fn on_a_fixed_day(format: &str) -> String {
    let mut parts = format.split('%');
    let mut day = parts.next().unwrap_or_default().to_owned();
    // A code is one letter, or a hyphen (without zeros in front) and one.
    let mut literal = false;
    for part in parts {
        if std::mem::take(&mut literal) {
            day.push_str(part);
            continue;
        }
        let (bare, part) = part.strip_prefix('-').map_or((false, part), |part| (true, part));
        let mut letters = part.chars();
        let padded = match letters.next() {
            Some('Y') => "2025",
            Some('y') => "25",
            Some('B') => "January",
            Some('b' | 'h') => "Jan",
            Some('A') => "Wednesday",
            Some('a') => "Wed",
            Some('d' | 'm') => "01",
            Some('H' | 'M' | 'S') => "00",
            Some('I') => "12",
            Some('p') => "AM",
            Some('j') => "001",
            Some(_) => "",
            None => {
                literal = true;
                "%"
            }
        };
        day.push_str(if bare && padded.len() == 2 { &padded[1..] } else { padded });
        day.push_str(letters.as_str());
    }
    day
}

/// A template without the tags that Hugging Face puts around what a model writes, to train on it: they change nothing of
/// what is written. Blocks that are always entered stand in their place, which keep the tags' say on blanks.
fn without_generation(text: String) -> String {
    if !text.contains("generation") {
        return text;
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((inner, after)) = tag.split_once("%}") else { break };
        let name = inner.trim_matches(|c: char| c.is_ascii_whitespace() || matches!(c, '-' | '+'));
        let inner = match name {
            "generation" => inner.replace("generation", "if true"),
            "endgeneration" => inner.replace("endgeneration", "endif"),
            _ => inner.to_owned(),
        };
        for part in [before, "{%", &inner, "%}"] {
            clean.push_str(part);
        }
        rest = after;
    }
    clean + rest
}

/// JSON as Python writes it, which is what models have seen: a blank after each comma and colon, nothing escaped for the
/// sake of HTML. With `indent`, in lines.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Settings of Python's that say what is done here anyway.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(columns) => {
            let blanks = " ".repeat(columns.min(16));
            value
                .serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(blanks.as_bytes())))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, PythonFormatter)),
    };
    let bad = |error: String| minijinja::Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| bad(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| bad(error.to_string()))
}

struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
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
