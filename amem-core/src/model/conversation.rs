//! A conversation as clients send it, in messages, and as a context holds it, in tokens.

use super::chat::Layout;
use crate::{Error, Result, Token};

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Instructions. OpenAI's role `developer` is this one.
    System,
    /// Who asks.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called.
    Tool,
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Who wrote it.
    pub role: Role,
    /// Its text. May be empty in a message that calls tools.
    pub text: String,
    /// The tools that the model called; of [`Role::Assistant`] only.
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result this is; of [`Role::Tool`] only.
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message that is a text.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { role, text: text.into(), tool_calls: Vec::new(), tool_call_id: None }
    }

    /// The result of a call.
    pub fn tool_result(call_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { tool_call_id: Some(call_id.into()), ..Self::new(Role::Tool, text) }
    }

    /// Bytes of its text and of the arguments of its calls.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len() + self.tool_calls.iter().map(|call| call.arguments.len()).sum::<usize>()
    }

    /// With calls of tools.
    #[must_use]
    pub fn tool_calls(self, calls: Vec<ToolCall>) -> Self {
        Self { tool_calls: calls, ..self }
    }
}

/// A call of a tool by the model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToolCall {
    /// What the call's result refers to. Models do not write one, so it says only which of an answer's calls it is.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

impl ToolCall {
    /// A call with these arguments, a JSON object.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: impl Into<String>) -> Self {
        Self { id: id.into(), name: name.into(), arguments: arguments.into() }
    }

    /// Whether two calls ask the same of the same tool. Their ids do not count, nor how the arguments are written.
    fn is_like(&self, other: &Self) -> bool {
        let json = |arguments: &str| serde_json::from_str::<serde_json::Value>(arguments).ok();
        self.name == other.name
            && (self.arguments == other.arguments || json(&self.arguments) == json(&other.arguments))
    }
}

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// Its parameters: a JSON Schema of an object.
    pub parameters: String,
}

impl Tool {
    /// A tool with these parameters, a JSON Schema of an object.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: impl Into<String>) -> Self {
        Self { name: name.into(), description: description.into(), parameters: parameters.into() }
    }
}

/// A conversation in tokens, from the memories on:
///
/// ```text
/// opening  PROMPT  ANSWER  next_question  PROMPT  ANSWER  PROMPT (results of tools)  ANSWER  …  PROMPT
/// ```
///
/// Before a prompt that is a question stands [`Layout::next_question`], or memories that were recalled for it and what
/// is around them. Results of tools follow the answer that called them directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// From the memories to the first question: [`Layout::to_question`], or the client's system message and tools.
    pub opening: Vec<Token>,
    /// At least one. The last one, and it alone, waits for its answer.
    pub exchanges: Vec<Exchange>,
}

/// What is asked and what was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Whether a user asks, or nobody does, where a conversation begins with an answer. Otherwise tools report the results of
    /// the calls in the answer before.
    pub is_question: bool,
    /// What is asked, up to where the answer begins; no more than what stands before any answer, where nothing is.
    pub prompt: Vec<Token>,
    /// What was answered; `None` for the last exchange.
    pub reply: Option<Reply>,
}

/// An answer that was given, as a client sends it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The message.
    pub message: Message,
    /// Its tokens, the end token not included. The model may have written the same text in other ones.
    pub tokens: Vec<Token>,
}

impl Reply {
    /// Whether this is an answer with this text and these calls. White space around texts does not count.
    pub(crate) fn is(&self, text: &str, calls: &[ToolCall]) -> bool {
        let ours = &self.message.tool_calls;
        self.message.text.trim() == text.trim()
            && ours.len() == calls.len()
            && ours.iter().zip(calls).all(|(one, other)| one.is_like(other))
    }
}

/// [`Error::BadValue`] about a conversation.
pub(crate) fn bad_messages(value: impl Into<String>, expected: &'static str) -> Error {
    Error::BadValue { what: "the conversation", value: value.into(), expected }
}

/// Messages that belong to one exchange.
pub(crate) struct Group<'m> {
    /// What is asked: texts of users and systems, or results of tools and what a user adds to them.
    pub(crate) asked: Vec<&'m Message>,
    /// The answer that was given.
    pub(crate) answer: Option<&'m Message>,
}

impl Group<'_> {
    /// Whether no tool reports results: a user asks, or nobody does before an answer that a conversation begins with.
    pub(crate) fn is_question(&self) -> bool {
        self.asked.iter().all(|message| message.role != Role::Tool)
    }

    /// The texts of a question, in one.
    pub(crate) fn question(&self) -> String {
        let texts = self.asked.iter().map(|message| message.text.trim()).filter(|text| !text.is_empty());
        texts.collect::<Vec<_>>().join("\n\n")
    }
}

/// Takes a conversation apart into exchanges. It may begin with an answer, as where an assistant greets: then nothing was
/// asked in the first exchange. Later answers that follow each other without a question in between cannot be told apart in a
/// context, so they are refused.
///
/// # Errors
/// [`Error::BadValue`] for messages that are not an alternation of questions and answers with a question at the end, and
/// for results of tools that nobody called.
pub(crate) fn grouped(messages: &[Message]) -> Result<Vec<Group<'_>>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut asked = Vec::new();
    let mut calls: &[ToolCall] = &[];
    for message in messages {
        let last = asked.last().map(|message: &&Message| message.role);
        match message.role {
            Role::Assistant => {
                let group = Group { asked: std::mem::take(&mut asked), answer: Some(message) };
                if !(groups.is_empty() && group.asked.is_empty()) {
                    check(&group)?;
                }
                groups.push(group);
                calls = &message.tool_calls;
                continue;
            }
            Role::Tool if calls.is_empty() || last.is_some_and(|last| last != Role::Tool) => {
                return Err(bad_messages("with a tool's result", "such that results follow the calls of an answer"));
            }
            _ => {}
        }
        asked.push(message);
    }
    let group = Group { asked, answer: None };
    check(&group)?;
    groups.push(group);
    Ok(groups)
}

fn check(group: &Group<'_>) -> Result<()> {
    if group.is_question() && group.question().is_empty() {
        let value = if group.answer.is_some() { "with an answer to no question" } else { "without a question" };
        return Err(bad_messages(value, "such that a user asks before each answer, and at the end"));
    }
    Ok(())
}

/// A conversation of texts alone, in the words of a layout.
pub(super) fn plain_conversation(
    layout: &Layout,
    messages: &[Message],
    tools: &[Tool],
    encode: impl Fn(&str) -> Result<Vec<Token>>,
) -> Result<Conversation> {
    let uses_tools = |message: &Message| message.role == Role::Tool || !message.tool_calls.is_empty();
    if !tools.is_empty() || messages.iter().any(uses_tools) {
        return Err(bad_messages("with tools", "without tools: this model's chat has no words for them"));
    }
    let exchange = |group: Group<'_>| {
        let prompt = [encode(&group.question())?.as_slice(), &layout.to_answer].concat();
        let reply = |message: &Message| Ok(Reply { message: message.clone(), tokens: encode(&message.text)? });
        Ok(Exchange { is_question: true, prompt, reply: group.answer.map(reply).transpose()? })
    };
    let exchanges = grouped(messages)?.into_iter().map(exchange).collect::<Result<_>>()?;
    Ok(Conversation { opening: layout.to_question.to_vec(), exchanges })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(roles: &str) -> Vec<Message> {
        let message = |role| match role {
            's' => Message::new(Role::System, "be brief"),
            'u' => Message::new(Role::User, "why?"),
            'e' => Message::new(Role::User, " "),
            'a' => Message::new(Role::Assistant, "so."),
            'c' => Message::new(Role::Assistant, "").tool_calls(vec![ToolCall::new("1", "look", "{}")]),
            _ => Message::tool_result("1", "found"),
        };
        roles.chars().map(message).collect()
    }

    #[test]
    fn every_answer_ends_an_exchange_and_the_last_one_waits_for_its_own() {
        let cases = [
            ("u", Some("1")),
            ("su", Some("2")),
            ("suau", Some("21")),
            ("suausu", Some("23")),
            ("uct", Some("11")),
            ("ucttau", Some("121")),
            ("uctu", Some("12")),
            ("s", Some("1")),
            ("", None),
            ("e", None),
            ("ua", None),
            ("uaa", None),
            ("au", Some("01")),
            ("auau", Some("011")),
            ("aau", None),
            ("a", None),
            ("eau", None),
            ("ut", None),
            ("t", None),
            ("uat", None),
            ("ucut", None),
        ];
        for (roles, expected) in cases {
            let messages = messages(roles);
            let found = grouped(&messages).ok().map(|groups| {
                assert!(groups.iter().rev().skip(1).all(|group| group.answer.is_some()), "{roles}");
                assert!(groups.last().unwrap().answer.is_none(), "{roles}");
                groups.iter().map(|group| group.asked.len().to_string()).collect::<String>()
            });
            assert_eq!(found.as_deref(), expected, "{roles}");
        }
    }

    #[test]
    fn a_reply_is_known_by_its_words_and_by_what_its_calls_ask_for() {
        let call = |arguments: &str| vec![ToolCall::new("id", "look", arguments)];
        let message = Message::new(Role::Assistant, " so. ").tool_calls(call("{\"a\": 1, \"b\": [2]}"));
        let reply = Reply { message, tokens: Vec::new() };
        let same = vec![ToolCall::new("other", "look", "{\"b\":[2],\"a\":1}")];
        assert!(reply.is("so.", &same));
        assert!(!reply.is("so", &same));
        assert!(!reply.is("so.", &call("{\"a\": 2, \"b\": [2]}")));
        assert!(!reply.is("so.", &[]));
        assert!(!reply.is("so.", &[same[0].clone(), same[0].clone()]));
    }
}
