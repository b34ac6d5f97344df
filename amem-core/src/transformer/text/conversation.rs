//! Conversations that clients send: their own system messages, tools, calls and results, as the template writes them.
//!
//! What a client sends is text, in JSON too: none of it becomes a token that steers the model. While the template is
//! rendered a mark stands in for each text, and for each string in JSON that is more than plain words.

use minijinja::{Value, context};

use super::frame::END_OF_NOTES;
use super::script::{Memories, Script};
use super::template::{Part, Template, mark, message, parts, split_at};
use super::tokens::Tokens;
use crate::model::{Group, bad_messages, grouped};
use crate::transformer::settings::shown;
use crate::{Conversation, Error, Exchange, Layout, Message, Reply, Result, Role, Token, Tool};

/// What it takes to put a conversation into tokens.
pub(super) struct Writer<'c> {
    pub(super) tokens: &'c Tokens,
    pub(super) template: &'c Template,
    pub(super) script: &'c Script,
    pub(super) layout: &'c Layout,
}

/// Texts that a rendering has marks for.
struct Texts<'c> {
    tokens: &'c Tokens,
    texts: Vec<String>,
}

impl Texts<'_> {
    /// The mark of a text.
    fn mark(&mut self, text: &str) -> String {
        self.texts.push(text.to_owned());
        mark(self.texts.len() - 1)
    }

    /// A text within JSON: as it is if it is plain, and a mark otherwise, so that nothing in it can become a token that
    /// steers the model, whatever the template writes around it or the tokenizer makes of its characters.
    fn guard(&mut self, text: &str) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || " _-.,:;/()'!?%+*#@&=".contains(c);
        if text.chars().all(is_plain) && !self.tokens.has_added(text) { text.to_owned() } else { self.mark(text) }
    }

    /// JSON, its keys and strings guarded.
    fn guard_json(&mut self, value: serde_json::Value) -> serde_json::Value {
        use serde_json::Value::{Array, Object, String};
        match value {
            String(text) => String(self.guard(&text)),
            Array(values) => Array(values.into_iter().map(|value| self.guard_json(value)).collect()),
            Object(map) => {
                Object(map.into_iter().map(|(key, value)| (self.guard(&key), self.guard_json(value))).collect())
            }
            other => other,
        }
    }

    /// A JSON object that a client sent, guarded.
    fn object(&mut self, json: &str, expected: &'static str) -> Result<Value> {
        match serde_json::from_str(json) {
            Ok(value @ serde_json::Value::Object(_)) => Ok(Value::from_serialize(self.guard_json(value))),
            _ => Err(bad_messages(format!("with {:?}", shown(json)), expected)),
        }
    }

    /// The tokens of a rendering. `ends` where the model goes on by itself.
    fn encode(&self, rendered: &str, ends: bool) -> Result<Vec<Token>> {
        let broken = || bad_messages("broken by the chat template", "one that the template leaves as it is");
        let parts = parts(rendered).ok_or_else(broken)?;
        let last = parts.len() - 1;
        let mut tokens = Vec::new();
        for (i, part) in parts.into_iter().enumerate() {
            tokens.extend(match part {
                Part::Written(string) if i == last && ends => self.tokens.closing(string)?,
                Part::Written(string) => self.tokens.between(string)?,
                Part::Text { index, in_json } => {
                    let text = self.texts.get(index).ok_or_else(broken)?;
                    if in_json { self.tokens.text(&escaped(text))? } else { self.tokens.text(text)? }
                }
            });
        }
        Ok(tokens)
    }
}

/// A text as it stands within a JSON string.
fn escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

impl Writer<'_> {
    /// The tokens of a conversation.
    pub(super) fn conversation(&self, messages: &[Message], tools: &[Tool]) -> Result<Conversation> {
        let uses_tools = |message: &Message| message.role == Role::Tool || !message.tool_calls.is_empty();
        if (!tools.is_empty() || messages.iter().any(uses_tools)) && !self.template.names_tools() {
            return Err(no_words_for_tools());
        }
        let leading = messages.iter().take_while(|message| message.role == Role::System).count();
        // Where nobody else says anything, the system message is what is asked.
        let leading = if leading == messages.len() { 0 } else { leading };
        let (system, rest) = messages.split_at(leading);
        let system = Group { asked: system.iter().collect(), answer: None }.question();
        let (opening, above) = match self.opening(&system, tools)? {
            Some(opening) => (opening, None),
            None => (self.layout.to_question.to_vec(), Some(system)),
        };
        let mut exchanges = Vec::new();
        for (index, group) in grouped(rest)?.into_iter().enumerate() {
            let above = above.as_deref().filter(|_| index == 0);
            let prompt = if group.is_question() { self.question(&group, above)? } else { self.results(&group)? };
            let reply = group.answer.map(|message| self.reply(message)).transpose()?;
            exchanges.push(Exchange { is_question: group.is_question(), prompt, reply });
        }
        Ok(Conversation { opening, exchanges })
    }

    fn texts(&self) -> Texts<'_> {
        Texts { tokens: self.tokens, texts: Vec::new() }
    }

    /// From the memories to the first question, with a client's system message and its tools in between; `None` if the
    /// template has no place for the system message there.
    fn opening(&self, system: &str, tools: &[Tool]) -> Result<Option<Vec<Token>>> {
        if system.is_empty() && tools.is_empty() {
            return Ok(Some(self.layout.to_question.to_vec()));
        }
        let mut texts = self.texts();
        let definitions = (!tools.is_empty())
            .then(|| tools.iter().map(|tool| definition(&mut texts, tool)).collect::<Result<Vec<_>>>())
            .transpose()?;
        match &self.script.memories {
            Memories::InQuestion if definitions.is_some() => Err(no_words_for_tools()),
            // Its own text, so that it reads the same whatever stands around it.
            Memories::InQuestion => Ok(Some(
                [self.tokens.between(END_OF_NOTES)?, self.tokens.text(system)?, self.tokens.between(END_OF_NOTES)?]
                    .concat(),
            )),
            Memories::InSystem { .. } => {
                let (notes, question) = (texts.mark(""), texts.mark(""));
                let messages = [message("system", &notes), message("user", &question)];
                let to_question = self.written_between(&messages, definitions.as_deref(), &notes, &question)?;
                let mut opening = Vec::new();
                if !system.is_empty() {
                    opening.extend(self.tokens.between(END_OF_NOTES)?);
                    opening.extend(self.tokens.text(system)?);
                }
                opening.extend(texts.encode(&to_question, false)?);
                Ok(Some(opening))
            }
            Memories::Messages { .. } => {
                let (line, memory, question) = (texts.mark(""), texts.mark(""), texts.mark(""));
                let mut messages = vec![message("system", &line), message("memory", &memory)];
                if !system.is_empty() {
                    messages.push(message("system", &texts.mark(system)));
                }
                messages.push(message("user", &question));
                let written = self.written_between(&messages, definitions.as_deref(), &memory, &question);
                let written = match written {
                    Ok(written) => texts.encode(&written, false)?,
                    // Some templates refuse a second system message.
                    Err(_) if definitions.is_none() => return Ok(None),
                    Err(error) => return Err(error),
                };
                // What ends a memory stands behind it already.
                Ok(written.strip_prefix(&*self.layout.memory_close).map(<[Token]>::to_vec))
            }
        }
    }

    /// What the template writes between two marks. With tools, they have to stand there.
    fn written_between(&self, messages: &[Value], tools: Option<&[Value]>, from: &str, to: &str) -> Result<String> {
        let between = |tools: Option<&[Value]>| {
            let rendered = self.render(messages, tools)?;
            let after = split_at(&rendered, from).map(|(_, after)| after.to_owned());
            let between = after.and_then(|after| split_at(&after, to).map(|(before, _)| before.to_owned()));
            between.ok_or_else(|| bad_messages("changed by the chat template", "one that the template leaves as it is"))
        };
        let written = between(tools)?;
        if tools.is_some() && written == between(None)? {
            return Err(no_words_for_tools());
        }
        Ok(written)
    }

    fn question(&self, group: &Group<'_>, above: Option<&str>) -> Result<Vec<Token>> {
        let question = group.question();
        let texts = above.into_iter().chain([&*question]).filter(|text| !text.is_empty());
        let question = texts.collect::<Vec<_>>().join("\n\n");
        Ok([self.tokens.text(&question)?.as_slice(), &self.layout.to_answer].concat())
    }

    /// From an answer's end, over the results of its calls and what a user says to them, to the next answer.
    fn results(&self, group: &Group<'_>) -> Result<Vec<Token>> {
        let mut texts = self.texts();
        let answer = texts.mark("");
        let mut messages = self.up_to_answer();
        messages.push(message("assistant", &answer));
        for asked in &group.asked {
            let text = texts.mark(asked.text.trim());
            messages.push(match asked.role {
                Role::Tool => {
                    let tool_call_id = asked.tool_call_id.as_deref().map(|id| texts.guard(id));
                    context! { role => "tool", content => text, tool_call_id }
                }
                Role::System => message("system", &text),
                _ => message("user", &text),
            });
        }
        let rendered = self.render(&messages, None)?;
        let (_, after) = split_at(&rendered, &answer).ok_or_else(no_words_for_tools)?;
        texts.encode(after, true)
    }

    /// An answer as the model would have written it.
    fn reply(&self, reply: &Message) -> Result<Reply> {
        let tokens = if reply.tool_calls.is_empty() { self.tokens.text(&reply.text)? } else { self.calls(reply)? };
        Ok(Reply { message: reply.clone(), tokens })
    }

    /// An answer that calls tools: what the template writes of it, less what it writes around an answer that does not.
    fn calls(&self, reply: &Message) -> Result<Vec<Token>> {
        let mut texts = self.texts();
        let content = if reply.text.trim().is_empty() { String::new() } else { texts.mark(&reply.text) };
        let (mut calls, mut ids) = (Vec::new(), Vec::new());
        for call in &reply.tool_calls {
            let arguments = texts.object(&call.arguments, "such that the arguments of calls are JSON objects")?;
            let function = context! { name => texts.guard(&call.name), arguments };
            let id = texts.guard(&call.id);
            ids.push(id.clone());
            calls.push(context! { id, type => "function", function });
        }
        let result = texts.mark("");
        let results = || {
            let results = ids.iter().zip(std::iter::once(&*result).chain(std::iter::repeat("")));
            results.map(|(id, text)| context! { role => "tool", content => text, tool_call_id => id })
        };
        let asked = self.up_to_answer();
        let around = |answer: Value| {
            let messages: Vec<Value> = asked.iter().cloned().chain([answer]).chain(results()).collect();
            let rendered = self.render(&messages, None)?;
            let (_, after) = split_at(&rendered, &mark(ASKED)).ok_or_else(no_words_for_tools)?;
            let (answer, _) = split_at(after, &result).ok_or_else(no_words_for_tools)?;
            Ok::<String, Error>(answer.to_owned())
        };
        let with_calls = around(context! { role => "assistant", content, tool_calls => calls })?;
        let plain = texts.mark("");
        let without = around(message("assistant", &plain))?;
        let (before, after) = split_at(&without, &plain).ok_or_else(no_words_for_tools)?;
        let written = with_calls
            .strip_suffix(after)
            .and_then(|written| written.strip_prefix(before).or_else(|| written.strip_prefix(before.trim_end())));
        match written {
            Some(written) if written != content => texts.encode(written, false),
            _ => Err(no_words_for_tools()),
        }
    }

    /// Messages up to an answer, for renderings of what comes then.
    fn up_to_answer(&self) -> Vec<Value> {
        let system = match self.script.memories {
            Memories::InQuestion => None,
            _ => Some(message("system", "x")),
        };
        system.into_iter().chain([message("user", &mark(ASKED))]).collect()
    }

    /// A rendering of what a client sent: where the template refuses it, the client is told.
    fn render(&self, messages: &[Value], tools: Option<&[Value]>) -> Result<String> {
        let rendered = self.template.render(messages, tools);
        rendered.map_err(|error| {
            bad_messages(format!("not rendered ({error})"), "one that the chat template has words for")
        })
    }
}

/// The number of the mark for a question that stands before what is rendered; no text has it.
const ASKED: usize = usize::MAX;

fn no_words_for_tools() -> Error {
    bad_messages("with tools", "without them: this model's chat template has no words for them where they would stand")
}

/// A tool as OpenAI's API describes it, which is what templates expect.
fn definition(texts: &mut Texts<'_>, tool: &Tool) -> Result<Value> {
    let parameters = texts.object(&tool.parameters, "such that a tool's parameters are a JSON Schema of an object")?;
    let (name, description) = (texts.guard(&tool.name), texts.guard(&tool.description));
    Ok(context! { type => "function", function => context! { name, description, parameters } })
}
