//! Tools through `Session`: results of calls are told with the question and the call that they belong to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use amem_core::transformer::{Options, Transformer};
use amem_core::{Ask, Error, Generation, Memory, Message, Role, SessionOptions, Tool, ToolCall};
use amem_cpu::Cpu;
use common::block_on;

/// The demo model with words for tools. What it makes of them does not matter here.
fn memory() -> Memory {
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'system' and tools %}\
        {{ tools | tojson }}{% endif %}{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>\
        {% endfor %}<end>{% endfor %}<assistant>";
    let mut files: BTreeMap<String, Vec<u8>> =
        amem_demo::files().into_iter().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect();
    files.insert("chat_template.jinja".into(), template.as_bytes().to_vec());
    let model = Transformer::load(&files, Cpu::with_threads(2).unwrap(), Options::default()).unwrap();
    Memory::builder(Arc::new(model)).build().unwrap()
}

#[test]
fn results_of_tools_are_told_with_their_question_and_call_however_little_room_there_is() {
    block_on(async {
        let memory = memory();
        let notes: Vec<String> = (0..40).map(|n| format!("Alice told Bob about town {n} in the hills.")).collect();
        memory.remember_all("me", notes).await.unwrap();
        let question = "Where does Alice live, and how warm is it there today? ".repeat(4);
        let call = ToolCall::new("call00000", "weather", r#"{"place": "Denver"}"#);
        let messages = [
            Message::new(Role::User, &*question),
            Message::new(Role::Assistant, "").tool_calls(vec![call]),
            Message::tool_result("call00000", "It is warm in Denver."),
        ];
        let ask = || {
            let tools = vec![Tool::new("weather", "The weather of a place", r#"{"type": "object"}"#)];
            Ask::messages(messages.to_vec()).tools(tools).generation(Generation::default().max_tokens(4))
        };
        let conversation = memory.model().chat().conversation(memory.layout(), &messages, &ask().tools).unwrap();
        let exchanges = conversation.exchanges.iter();
        let told: usize = conversation.opening.len()
            + exchanges.map(|e| e.prompt.len() + e.reply.as_ref().map_or(0, |reply| reply.tokens.len())).sum::<usize>();
        // There are more memories than room, and they may take all of it.
        let options = SessionOptions::default().budget_tokens(420).memory_share(1.0);
        let mut session = memory.session("me", options).unwrap();
        let usage = session.ask(ask()).await.unwrap().usage;
        assert!(
            usage.prefilled - usage.missed >= told,
            "{} of {told} tokens were told",
            usage.prefilled - usage.missed
        );
        let room = usage.resident + usage.cached + usage.prefilled - usage.missed + usage.generated;
        assert!(usage.cached > 0 && room <= 420 + 1, "{room} tokens, {} of them memories", usage.cached);
        let mut narrow = memory.session("me", SessionOptions::default().budget_tokens(told)).unwrap();
        assert!(matches!(narrow.ask(ask()).await, Err(Error::TooLong { .. })), "part of it is not told");
    });
}

#[test]
fn a_call_that_a_client_told_of_is_known_again() {
    block_on(async {
        let memory = memory();
        memory.remember("me", "Alice lives in Denver.").await.unwrap();
        let tools = vec![Tool::new("weather", "The weather of a place", r#"{"type": "object"}"#)];
        let ask = |messages: &[Message]| {
            Ask::messages(messages.to_vec()).tools(tools.clone()).generation(Generation::default().max_tokens(4))
        };
        let call = |place: &str| ToolCall::new("call00000", "weather", format!("{{\"place\": \"{place}\"}}"));
        let mut messages = vec![
            Message::new(Role::User, "How warm is it where Alice lives?"),
            Message::new(Role::Assistant, "").tool_calls(vec![call("Denver")]),
            Message::tool_result("call00000", "It is warm in Denver."),
        ];
        let mut session = memory.session("me", SessionOptions::default()).unwrap();
        let told = session.ask(ask(&messages)).await.unwrap();
        messages.push(Message::new(Role::Assistant, &*told.text));
        messages.push(Message::new(Role::User, "Where does Alice live?"));
        let stood = session.resident_tokens();
        let again = session.ask(ask(&messages)).await.unwrap().usage;
        assert_eq!((session.epochs(), again.cached), (1, 0));
        assert!(again.resident + 4 >= stood, "{} of {stood} tokens stand", again.resident);
        // A client that tells of another call has another conversation.
        messages[1] = Message::new(Role::Assistant, "").tool_calls(vec![call("Paris")]);
        let other = session.ask(ask(&messages)).await.unwrap().usage;
        assert!(other.prefilled > again.prefilled + 4, "{} and {} tokens", other.prefilled, again.prefilled);
    });
}
