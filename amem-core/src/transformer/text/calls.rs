//! Calls of tools in the text of an answer. Each model writes them in its own way; its template shows which.

use minijinja::{Value, context};
use serde_json::Deserializer;

use super::script::{Memories, Script};
use super::template::{Part, Template, mark, message, parts};
use super::tokens::Tokens;
use crate::{CallForm, ToolCall};

/// How a model writes calls: JSON behind a prefix.
pub(super) struct CallSyntax {
    /// What stands before a call, as text; empty where an answer is nothing but its calls.
    prefix: String,
    /// What closes the prefix, if it is a tag.
    closing: Option<String>,
    /// An answer that is one call.
    form: CallForm,
}

impl CallSyntax {
    /// The syntax of a template that writes calls.
    pub(super) fn of(template: &Template, script: &Script, tokens: &Tokens) -> crate::Result<Option<Self>> {
        let Some((open, arguments)) = written(template, script) else { return Ok(None) };
        // Special tokens are not in the text of an answer.
        Ok(Some(Self::new(tokens.decode(&tokens.between(&open)?)?.trim_start(), arguments)))
    }

    /// The syntax in which `open` stands before the JSON object of an answer's first call.
    fn new(open: &str, arguments: &'static str) -> Self {
        let before = open.trim_end();
        let prefix = before.strip_suffix('[').unwrap_or(before).trim().to_owned();
        let closing = prefix.strip_prefix('<').map(|name| format!("</{name}"));
        let array = if before.ends_with('[') { "]" } else { "" };
        let line = if closing.is_some() && open.ends_with('\n') { "\n" } else { "" };
        let close = format!("{array}{line}{}", closing.as_deref().unwrap_or_default());
        Self { prefix, closing, form: CallForm { open: open.to_owned(), arguments: arguments.to_owned(), close } }
    }

    /// An answer that is one call.
    pub(super) fn form(&self) -> &CallForm {
        &self.form
    }

    /// The text of an answer without its calls, and the calls. An answer whose calls cannot be read is all text.
    pub(super) fn read(&self, answer: &str) -> (String, Vec<ToolCall>) {
        self.find(answer).unwrap_or_else(|_| (answer.to_owned(), Vec::new()))
    }

    /// How many bytes of an answer that goes on are its text, whatever follows.
    pub(super) fn text_len(&self, answer: &str) -> usize {
        match self.find(answer) {
            Err(NoCalls::Unreadable) => answer.len(),
            Err(NoCalls::NoPrefix) => {
                let may_begin = |start: &usize| self.prefix.starts_with(&answer[*start..]);
                let starts = answer.char_indices().map(|(start, _)| start);
                starts.rev().take(self.prefix.len()).filter(may_begin).last().unwrap_or(answer.len())
            }
            // What follows may show that these are no calls.
            Err(NoCalls::Unfinished) | Ok(_) => answer.find(&self.prefix).unwrap_or(0),
        }
    }

    fn find(&self, answer: &str) -> Result<(String, Vec<ToolCall>), NoCalls> {
        let (mut text, mut rest) = match self.prefix.as_str() {
            "" => (String::new(), answer),
            prefix => {
                let (before, after) = answer.split_once(prefix).ok_or(NoCalls::NoPrefix)?;
                (before.trim_end().to_owned(), after)
            }
        };
        let mut calls = Vec::new();
        loop {
            let mut values = Deserializer::from_str(rest).into_iter::<serde_json::Value>();
            let value = match values.next() {
                Some(Ok(value)) => value,
                Some(Err(error)) if !error.is_eof() => return Err(NoCalls::Unreadable),
                Some(Err(_)) | None => return Err(NoCalls::Unfinished),
            };
            read_calls(value, &mut calls).ok_or(NoCalls::Unreadable)?;
            rest = rest[values.byte_offset()..].trim_start();
            rest = self.closing.as_deref().and_then(|closing| rest.strip_prefix(closing)).unwrap_or(rest);
            let more = if self.prefix.is_empty() { rest.strip_prefix(';') } else { None };
            match more.map(|more| ("", more)).or_else(|| self.next(rest)) {
                Some((between, after)) => {
                    text.push_str(between.trim_end());
                    rest = after;
                }
                // Whoever writes on behind JSON without a prefix meant no call.
                None if self.prefix.is_empty() && !rest.is_empty() => return Err(NoCalls::Unreadable),
                None => {
                    text.push_str(rest.trim_end());
                    return Ok((text, calls));
                }
            }
        }
    }

    fn next<'t>(&self, rest: &'t str) -> Option<(&'t str, &'t str)> {
        if self.prefix.is_empty() { None } else { rest.split_once(&self.prefix) }
    }
}

/// Why an answer is all text.
enum NoCalls {
    /// Nothing in it begins a call.
    NoPrefix,
    /// A call is begun and not ended.
    Unfinished,
    /// What begins like a call is none.
    Unreadable,
}

/// What a template writes between the start of an answer and the JSON of its first call, and what it calls the
/// arguments there.
fn written(template: &Template, script: &Script) -> Option<(String, &'static str)> {
    if !template.names_tools() {
        return None;
    }
    let system = (!matches!(script.memories, Memories::InQuestion)).then(|| message("system", "x"));
    let function = context! { name => mark(1), arguments => context! { a => "b" } };
    // Nine letters: some templates insist on that many.
    let call = context! { id => "abcdefghi", type => "function", function };
    let answer = context! { role => "assistant", content => "", tool_calls => [call] };
    let messages: Vec<Value> = system.into_iter().chain([message("user", &mark(0)), answer]).collect();
    let rendered = template.render(&messages, None).ok()?;
    let parts = parts(&rendered)?;
    let is = |part: &Part<'_>, number| matches!(part, Part::Text { index, .. } if *index == number);
    let (written, after) = parts.windows(4).find_map(|parts| match parts {
        [asked, Part::Written(written), name, Part::Written(after)] if is(asked, 0) && is(name, 1) => {
            Some((*written, *after))
        }
        _ => None,
    })?;
    let written = written.strip_prefix(script.to_answer.trim_end()).unwrap_or(written);
    let open = &written[..written.rfind('{')?];
    let key = after.split('{').next().unwrap_or_default();
    let arguments = if key.contains("\"parameters\"") { "parameters" } else { "arguments" };
    // A call within other JSON is none that could be told from text.
    (!open.contains('"')).then(|| (open.to_owned(), arguments))
}

/// Adds the calls in a JSON value; `None` if it is no call.
fn read_calls(value: serde_json::Value, calls: &mut Vec<ToolCall>) -> Option<()> {
    let mut call = match value {
        serde_json::Value::Array(values) if !values.is_empty() => {
            return values.into_iter().try_for_each(|value| read_calls(value, calls));
        }
        serde_json::Value::Object(call) => call,
        _ => return None,
    };
    if let Some(function @ serde_json::Value::Object(_)) = call.remove("function") {
        return read_calls(function, calls);
    }
    let arguments = match call.remove("arguments").or_else(|| call.remove("parameters"))? {
        arguments @ serde_json::Value::Object(_) => arguments.to_string(),
        serde_json::Value::String(json) => {
            let _: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).ok()?;
            json
        }
        _ => return None,
    };
    let serde_json::Value::String(name) = call.remove("name")? else { return None };
    // Nine letters and digits, which the strictest templates ask for.
    calls.push(ToolCall::new(format!("call{:05}", calls.len()), name, arguments));
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn syntax(prefix: &str) -> CallSyntax {
        CallSyntax::new(prefix, "arguments")
    }

    fn read(prefix: &str, answer: &str) -> (String, Vec<String>) {
        let (text, calls) = syntax(prefix).read(answer);
        (text, calls.into_iter().map(|call| format!("{}({})", call.name, call.arguments)).collect())
    }

    #[test]
    fn calls_are_found_in_the_manners_of_several_models() {
        let f = r#"{"name": "f", "arguments": {"a": "</call>"}}"#;
        let g = r#"{"name": "g", "parameters": {}}"#;
        let (called, both) = (r#"f({"a":"</call>"})"#, vec![r#"f({"a":"</call>"})"#.to_owned(), "g({})".to_owned()]);
        let cases = [
            ("<call>", format!("<call>\n{f}\n</call>"), "", vec![called.to_owned()]),
            ("<call>", format!("Let me see.\n<call>{f}</call>\n<call>\n{g}\n</call>"), "Let me see.", both.clone()),
            ("<call>", format!("<call>{f}</call> Done."), " Done.", vec![called.to_owned()]),
            ("<call>", "Nothing to call.".to_owned(), "Nothing to call.", vec![]),
            ("<call>", "<call>{\"name\": \"f\"".to_owned(), "<call>{\"name\": \"f\"", vec![]),
            ("<call>", "<call>{\"name\": \"f\"}</call>".to_owned(), "<call>{\"name\": \"f\"}</call>", vec![]),
            ("[CALLS]", format!("[CALLS] [{f}, {g}]"), "", both.clone()),
            ("", f.to_owned(), "", vec![called.to_owned()]),
            ("", format!("[{f},{g}]"), "", both.clone()),
            ("", format!("{f}; {g}"), "", both),
            (
                "",
                format!("{g} is what I would call."),
                "{\"name\": \"g\", \"parameters\": {}} is what I would call.",
                vec![],
            ),
            ("", "[1, 2]".to_owned(), "[1, 2]", vec![]),
            ("", "[]".to_owned(), "[]", vec![]),
            ("", String::new(), "", vec![]),
        ];
        for (prefix, answer, text, calls) in cases {
            let (found, found_calls) = read(prefix, &answer);
            assert_eq!((found.as_str(), found_calls), (text, calls), "{prefix:?} {answer}");
        }
    }

    #[test]
    fn an_answer_in_the_form_of_a_call_is_read_as_that_call() {
        for (open, close) in
            [("<call>", "</call>"), ("<call>\n", "\n</call>"), ("[CALLS] [", "]"), ("[", "]"), ("", "")]
        {
            for arguments in ["arguments", "parameters"] {
                let syntax = CallSyntax::new(open, arguments);
                let form = syntax.form();
                assert_eq!(form.close, close, "{open}");
                let answer = format!("{}{{\"name\": \"f\", \"{}\": {{}}}}{}", form.open, form.arguments, form.close);
                let (text, calls) = syntax.read(&answer);
                assert_eq!((text.as_str(), calls.len()), ("", 1), "{answer}");
            }
        }
    }

    #[test]
    fn arguments_may_be_a_string_of_json() {
        let answer = r#"{"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}"#;
        assert_eq!(read("", answer).1, [r#"f({"a": 1})"#]);
        assert_eq!(read("", r#"{"name": "f", "arguments": "all"}"#).1, [""; 0]);
    }
    #[test]
    fn text_is_kept_back_only_where_a_call_may_begin() {
        let cases = [
            ("<call>", "Let me see. ", "Let me see. "),
            ("<call>", "a < b and b <c", "a < b and b "),
            ("<call>", "a <cab", "a <cab"),
            ("<call>", "So. <call>{\"name\": \"f\"", "So. "),
            ("<call>", "So. <call>{\"name\": \"f\", \"arguments\": {}}</call>", "So. "),
            ("<call>", "So. <call>none of them", "So. <call>none of them"),
            ("", "Well", "Well"),
            ("", "{\"name\": \"f\", \"argu", ""),
            ("", "[{\"name\": \"f\", \"arguments\": {}}]", ""),
            ("", "{\"name\": 1}", "{\"name\": 1}"),
            ("", "{so}", "{so}"),
        ];
        for (prefix, answer, text) in cases {
            assert_eq!(&answer[..syntax(prefix).text_len(answer)], text, "{prefix:?} {answer}");
        }
    }

    proptest! {
        #[test]
        fn text_that_is_not_kept_back_is_the_answers_text_however_it_goes_on(
            prefix in prop::sample::select(vec!["<call>", "[CALLS]", ""]),
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "<call>", "</call>", "<ca", "[CALLS]", "[", "]", ",", ";", " ", "\n", "é", "so",
                    r#"{"name": "f", "arguments": {"a": "é"}}"#, r#"{"name": "f"}"#, "{", "}", "\"", "1",
                ]),
                0..8,
            ),
        ) {
            let answer = parts.concat();
            let text = read(prefix, &answer).0;
            for (cut, _) in answer.char_indices() {
                let shown = answer[..syntax(prefix).text_len(&answer[..cut])].trim_end();
                prop_assert!(text.starts_with(shown), "{shown:?} of {text:?} after {:?}", &answer[..cut]);
            }
        }
    }
}
