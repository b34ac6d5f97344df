//! Clients of OpenAI's chat completions.

use super::common::{block_on, in_ram, world};
use super::front::Front;
use super::scripted::Scripted;
use super::{node, pytest, python};

const CALL: &str = r#"<call>{"name": "weather", "arguments": {"place": "Denver"}}</call>"#;

/// A model that answers in the ways that the scripts ask for.
fn scripted() -> Front {
    let script = [
        ("How warm", CALL),
        ("It is warm", "Warm & sunny."),
        ("a place", r#"{"place": "Denver"}"#),
        ("Count", "one two three #four five"),
    ];
    Front::of(Scripted::new(&script).memory().0)
}

/// A server that remembers, a question and its answer.
fn remembering() -> (Front, String, String) {
    let (notes, questions) = world(3, 8);
    let memory = in_ram();
    block_on(memory.remember_all("alice", notes)).unwrap();
    let (question, answer) = questions.into_iter().next().unwrap();
    (Front::of(memory), question, answer)
}

#[test]
fn openai_for_python_is_answered_and_told_what_is_wrong() {
    let ((memory, question, answer), script) = (remembering(), scripted());
    python("openai_chat.py", &[&memory.url("/v1"), &question, &answer, &script.url("/v1")]);
}

#[test]
fn openai_for_node_is_answered_and_told_what_is_wrong() {
    let ((memory, question, answer), script) = (remembering(), scripted());
    node("openai_chat.mjs", &[&memory.url("/v1"), &question, &answer, &script.url("/v1")]);
}

#[test]
fn litellm_is_answered() {
    let ((memory, question, answer), script) = (remembering(), scripted());
    python("litellm_chat.py", &[&memory.url("/v1"), &question, &answer, &script.url("/v1")]);
}

#[test]
fn langchains_standard_tests_of_chat_models_pass() {
    let call = |name: &str, arguments: &str| format!(r#"<call>{{"name": "{name}", "arguments": {arguments}}}</call>"#);
    let joke = r#"{"setup": "Why do cats purr?", "punchline": "They remember."}"#;
    let joke_call = call("Joke", joke);
    let magic = call("magic_function", r#"{"input": 3}"#);
    let nothing = call("magic_function_no_args", "{}");
    let pirate = call("greeting_generator", r#"{"answer_style": "Pirate"}"#);
    let adder = call("my_adder_tool", r#"{"a": 3, "b": 4}"#);
    let weather = call("get_weather", r#"{"location": "San Francisco, CA"}"#);
    let chinese = call("unicode_customer", r#"{"customer_name": "你好", "description": "a company"}"#);
    let japanese = call("unicode_customer", r#"{"customer_name": "こん", "description": "a company"}"#);
    let script = [
        ("Hello!", magic.as_str()),
        ("Hello", "I am fine."),
        ("hello", "I am fine."),
        ("how are you", "I am fine."),
        ("hi", "Hi."),
        ("Hey", "Hi."),
        ("haikus", "Frogs jump into ponds."),
        ("magic_function(3)", &magic),
        ("magic_function_no_args()", &nothing),
        ("Pirate greeting", &pirate),
        ("\"result\": 3", "It is 3."),
        ("required argument", "One argument is missing."),
        ("What is 3 + 4", &adder),
        ("weather in San Francisco", &weather),
        ("sunny", "The sun shines."),
        ("technology company", &chinese),
        ("Japanese company", &japanese),
        ("than JSON", joke),
        ("a joke about cats", joke),
        ("a joke about cats", &joke_call),
    ];
    let front = Front::of(Scripted::new(&script).memory().0);
    pytest("langchain_chat.py", &front.url("/v1"));
}

#[test]
fn openai_for_python_completes_embeds_responds_and_parses() {
    pytest("formats.py", &Front::of(in_ram()).url(""));
}
